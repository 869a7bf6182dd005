//! Mailbox, doorbell and chain, on one executor and between threads.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ringkeeper_transport::doorbell::doorbell;
use ringkeeper_transport::mailbox::{self, BATCH_MAX, MailboxError};
use ringkeeper_transport::{
    Chain, ExecutorSpec, LAG_MAX_QUIET, Lag, busy, run_executor, sleep, spawn_executor,
    spawn_local, timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn spec(name: &str) -> ExecutorSpec {
    ExecutorSpec::new(name, None)
}

#[test]
fn mailbox_ping_pong_between_executors() {
    const ROUNDS: u64 = 3000;
    let (to_b, mut b_box) = mailbox::bounded::<u64>(4);
    let (to_a, mut a_box) = mailbox::bounded::<u64>(4);
    let b = spawn_executor(spec("b"), move || async move {
        while let Some(item) = b_box.recv().await {
            to_a.send(item + 1).unwrap();
        }
    });
    let a = spawn_executor(spec("a"), move || async move {
        let _busy = busy();
        for round in 0..ROUNDS {
            to_b.send(round).unwrap();
            let answer = timeout(PATIENCE, a_box.recv()).await;
            assert_eq!(answer, Some(Some(round + 1)), "a wake was lost");
        }
    });
    a.unwrap().join().unwrap();
    b.unwrap().join().unwrap();
}

#[test]
fn mailbox_keeps_each_producers_order_and_loses_nothing() {
    const PRODUCERS: usize = 4;
    const ITEMS: usize = 20_000;
    let (sender, mut receiver) = mailbox::bounded::<(usize, usize)>(256);
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let sender = sender.clone();
            spawn_executor(spec("producer"), move || async move {
                for item in 0..ITEMS {
                    sender.send_wait((producer, item)).await.unwrap();
                }
            })
            .unwrap()
        })
        .collect();
    drop(sender);
    let next = run_executor(&spec("consumer"), async move {
        let mut next = [0; PRODUCERS];
        let mut batch = Vec::new();
        while receiver.recv_batch(&mut batch).await > 0 {
            assert!(batch.len() <= BATCH_MAX);
            for (producer, item) in batch.drain(..) {
                assert_eq!(item, next[producer]);
                next[producer] += 1;
            }
        }
        next
    });
    assert_eq!(next.unwrap(), [ITEMS; PRODUCERS]);
    for producer in producers {
        producer.join().unwrap();
    }
}

#[test]
fn mailbox_is_bounded_and_says_so() {
    let (sender, mut receiver) = mailbox::bounded(2);
    assert_eq!((sender.send(1), sender.send(2)), (Ok(()), Ok(())));
    assert_eq!(sender.send(3), Err(MailboxError::Full(3)));
    assert_eq!((sender.len(), sender.capacity()), (2, 2));
    let mut batch = Vec::new();
    assert_eq!(receiver.try_recv_batch(&mut batch), 2);
    assert_eq!(batch, [1, 2]);
    drop(receiver);
    assert_eq!(sender.send(4), Err(MailboxError::Closed(4)));
}

#[test]
fn mailbox_on_one_executor() {
    run_executor(&spec("one"), async {
        let (sender, mut receiver) = mailbox::bounded(8);
        let consumer = spawn_local(async move {
            let mut sum = 0;
            while let Some(item) = receiver.recv().await {
                sum += item;
            }
            sum
        });
        for item in 1..=100 {
            sender.send_wait(item).await.unwrap();
        }
        drop(sender);
        assert_eq!(consumer.await, 5050);
    })
    .unwrap();
}

#[test]
fn doorbell_counts_rings_as_one_and_loses_none() {
    let (ringer, mut bell) = doorbell();
    let stored = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&stored);
    let handle = spawn_executor(spec("bell"), move || async move {
        let (mut last, mut returned) = (0, 0);
        while last < 50_000 {
            timeout(PATIENCE, bell.rung()).await.unwrap();
            returned += 1;
            let now = seen.load(Ordering::Relaxed);
            // What is stored may be seen before its own ring comes.
            assert!(now >= last && now >= returned, "rung for nothing");
            last = now;
        }
    });
    for value in 1..=50_000 {
        stored.store(value, Ordering::Relaxed);
        ringer.ring();
    }
    handle.unwrap().join().unwrap();
}

/// Tells when it is dropped.
struct Tracked {
    value: u64,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn chain_is_walked_by_all_and_freed_by_the_writer_alone() {
    const BATCHES: u64 = 20_000;
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut chain = Chain::new();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut cursor = chain.cursor();
            spawn_executor(spec("reader"), move || async move {
                let mut bell = cursor.doorbell();
                let mut expected = 1;
                while expected <= BATCHES {
                    timeout(PATIENCE, bell.rung()).await.unwrap();
                    while let Some(batch) = cursor.next() {
                        let batch: &Tracked = batch;
                        assert_eq!(batch.value, expected);
                        assert_eq!(cursor.index(), expected);
                        expected += 1;
                    }
                }
            })
            .unwrap()
        })
        .collect();
    let mut freed = Vec::new();
    for value in 1..=BATCHES {
        let batch = Tracked {
            value,
            dropped: Arc::clone(&dropped),
        };
        assert_eq!(chain.append(batch, 10, &mut freed), value);
        chain.ring();
        if value % 64 == 0 {
            thread::yield_now();
        }
    }
    // Whatever the readers passed came back here, in order, and none of it was dropped by them.
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    for reader in readers {
        reader.join().unwrap();
    }
    chain.reclaim(usize::MAX, &mut freed);
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    let order: Vec<_> = freed.iter().map(|batch| batch.value).collect();
    let expected: Vec<_> = (1..=order.len() as u64).collect();
    assert_eq!(order, expected);
    // With no reader left, only the tail is not below the horizon.
    assert_eq!(order.len() as u64, BATCHES - 1);
}

#[test]
fn chain_lag_is_the_slowest_readers() {
    let mut chain = Chain::new();
    let mut freed = Vec::new();
    assert_eq!(chain.lag(), Lag::default());
    let mut quick = chain.cursor();
    let mut slow = chain.cursor();
    for value in 0..10 {
        chain.append(value, 100, &mut freed);
    }
    while quick.next().is_some() {}
    for _ in 0..4 {
        slow.next();
    }
    let lag = Lag {
        batches: 6,
        bytes: 600,
    };
    assert_eq!(chain.lag(), lag);
    assert_eq!((slow.index(), slow.current()), (4, Some(&3)));
    assert!(slow.has_next() && !quick.has_next());
    chain.reclaim(100, &mut freed);
    assert_eq!(
        freed,
        [0, 1, 2],
        "the batch that the slow reader holds stays"
    );
    drop(slow);
    assert_eq!(chain.lag(), Lag::default());
    let late = chain.cursor();
    assert_eq!((late.index(), late.current()), (10, Some(&9)));
    assert!(!late.has_next());
}

#[test]
fn a_sleeping_reader_that_is_not_eager_is_rung_when_wanted_or_far_behind() {
    run_executor(&spec("one"), async {
        let mut chain = Chain::new();
        let mut freed = Vec::new();
        let mut cursor = chain.cursor();
        let mut bell = cursor.doorbell();
        let rung = Rc::new(Cell::new(0));
        let count = Rc::clone(&rung);
        let sleeper = spawn_local(async move {
            loop {
                bell.rung().await;
                count.set(count.get() + 1);
            }
        });
        let mut publish = |wanted: bool| {
            chain.append(0, 1, &mut freed);
            chain.ring_some(|reader| wanted && reader == 0);
            chain.lag().batches
        };
        // The sleeper runs whenever this task waits, and a wake that is due is ready before a timer.
        let settle = || sleep(Duration::from_millis(5));

        settle().await;
        assert!(!cursor.set_eager(false));
        publish(false);
        settle().await;
        assert_eq!(rung.get(), 0, "nobody wanted it");
        publish(true);
        settle().await;
        assert_eq!(rung.get(), 1, "wanted");
        publish(false);
        assert!(cursor.set_eager(true), "what was there before is told");
        publish(false);
        settle().await;
        assert_eq!(rung.get(), 2, "eager");

        while cursor.next().is_some() {}
        assert!(!cursor.set_eager(false));
        while publish(false) < LAG_MAX_QUIET {}
        settle().await;
        assert_eq!(rung.get(), 2, "not far behind yet");
        publish(false);
        settle().await;
        assert_eq!(rung.get(), 3, "far behind");
        sleeper.cancel().await;
    })
    .unwrap();
}

#[test]
fn a_chain_of_a_million_links_drops_without_recursion() {
    const LINKS: u64 = 1_000_000;
    for drop_reader_first in [true, false] {
        let mut chain = Chain::new();
        let stuck = chain.cursor();
        let mut freed = Vec::new();
        for value in 0..LINKS {
            chain.append(value, 1, &mut freed);
        }
        assert_eq!(chain.lag().batches, LINKS);
        assert_eq!((chain.retained_len() as u64, freed.len()), (LINKS, 0));
        // On a thread with a small stack, one frame per link would end the process.
        let drops = thread::Builder::new().stack_size(64 * 1024);
        drops
            .spawn(move || {
                if drop_reader_first {
                    drop(stuck);
                    drop(chain);
                } else {
                    drop(chain);
                    drop(stuck);
                }
            })
            .unwrap()
            .join()
            .unwrap();
    }
}

#[test]
fn a_stuck_reader_that_walks_on_drops_without_recursion() {
    let mut chain = Chain::new();
    let mut stuck = chain.cursor();
    let mut freed = Vec::new();
    for value in 0..300_000_u64 {
        chain.append(value, 1, &mut freed);
    }
    drop(chain);
    // The reader owns all of it now, link by link.
    let walk = move || {
        let mut walked = 0;
        while stuck.next().is_some() {
            walked += 1;
            if walked == 100_000 {
                break;
            }
        }
        walked
    };
    let walker = thread::Builder::new().stack_size(64 * 1024);
    assert_eq!(walker.spawn(walk).unwrap().join().unwrap(), 100_000);
}
