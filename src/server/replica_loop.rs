//! Drives the replica core on its executor: messages in, log writes out, sessions that expire,
//! containers that are empty.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringkeeper_config::{ContainersConfig, SnapshotConfig};
use ringkeeper_peers::PeerLinks;
use ringkeeper_storage::{Disk, Purged, SnapshotInfo, Store};
use ringkeeper_transport::mailbox::Receiver;
use ringkeeper_transport::{sleep, spawn_local};

use crate::clock;
use crate::fatal::{self, Reason};
use crate::messages::CoreMessage;
use crate::oracle::Oracle;
use crate::peer_loop;
use crate::replica::Replica;

/// How long after its last write an idle log is sealed. Until then damage to the last batch could not
/// be told from a torn write.
const SEAL_AFTER: Duration = Duration::from_millis(20);

/// How long a stop waits before it looks again whether the last writes have completed.
const STOP_PAUSE: Duration = Duration::from_millis(1);

/// Takes messages until the server has stopped and everything is flushed.
pub(crate) async fn run<D: Disk>(
    replica: Rc<RefCell<Replica<D>>>,
    store: Store<D>,
    mut inbox: Receiver<CoreMessage>,
    links: Option<PeerLinks>,
    oracle: Option<Oracle>,
) {
    let maintenance = spawn_local(replica.borrow().core.log().maintenance());
    let trim = spawn_local(store.trim());
    let changes = Rc::new(Cell::new(0));
    let background = [
        spawn_local(expire_sessions(Rc::clone(&replica))),
        spawn_local(delete_containers(Rc::clone(&replica))),
        spawn_local(seal_when_idle(Rc::clone(&replica))),
        spawn_local(keep_snapshots(
            Rc::clone(&replica),
            store.clone(),
            Rc::clone(&changes),
        )),
        spawn_local(purge_from_time_to_time(
            Rc::clone(&replica),
            store.clone(),
            Rc::clone(&changes),
        )),
    ];
    let peers = links.map(|links| spawn_local(peer_loop::run(Rc::clone(&replica), links, oracle)));
    turn(&replica);
    let mut messages = Vec::new();
    while !replica.borrow().shards_have_stopped() {
        inbox.recv_batch(&mut messages).await;
        {
            let mut replica = replica.borrow_mut();
            replica.start_turn();
            messages.drain(..).for_each(|message| replica.hear(message));
        }
        turn(&replica);
    }
    if let Some(peers) = peers {
        peers.cancel().await;
        {
            let mut replica = replica.borrow_mut();
            replica.start_turn();
            replica.core.retire();
        }
        turn(&replica);
        replica.borrow().close_links();
    }
    // What was still under way is the server's own: a session that expired, say, or a snapshot that is
    // being registered, which must not be cut short.
    while !replica.borrow().core.is_idle() || changes.get() > 0 {
        sleep(STOP_PAUSE).await;
    }
    for task in background {
        task.cancel().await;
    }
    let seal = replica.borrow_mut().core.seal_log();
    if let Err(error) = seal.await {
        fatal::exit(Reason::Storage, &error);
    }
    maintenance.cancel().await;
    trim.cancel().await;
    // Says where the log ends, so that the next start need not look behind it.
    match store.close().await {
        Ok(true) => {}
        Ok(false) => tracing::warn!("the log was still being written when the server stopped"),
        Err(error) => tracing::warn!(%error, "close the data directory"),
    }
}

/// Counts a change of the data directory as under way until it is dropped.
struct Change(Rc<Cell<usize>>);

impl Change {
    fn new(changes: &Rc<Cell<usize>>) -> Self {
        changes.set(changes.get() + 1);
        Self(Rc::clone(changes))
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What follows whatever the core was told: writes go out, and so does what it says.
pub(crate) fn turn<D: Disk>(replica: &Rc<RefCell<Replica<D>>>) {
    start_work(replica);
    start_writes(replica);
    replica.borrow_mut().end_turn();
    // What is said at the end may have asked for more.
    start_work(replica);
}

/// Starts what is to be done on the disk beside the log's writes; begun in order.
fn start_work<D: Disk>(replica: &Rc<RefCell<Replica<D>>>) {
    loop {
        let Some(work) = replica.borrow_mut().next_work() else {
            return;
        };
        let replica = Rc::clone(replica);
        // Nobody cancels this task.
        spawn_local(async move {
            match work.await {
                Ok(done) => {
                    let mut replica = replica.borrow_mut();
                    replica.start_turn();
                    replica.core.done(done);
                }
                Err(error) => fatal::exit(Reason::Storage, &error),
            }
            turn(&replica);
        })
        .detach();
    }
}

/// Starts as many log writes as may be on their way.
fn start_writes<D: Disk>(replica: &Rc<RefCell<Replica<D>>>) {
    loop {
        let Some(write) = replica.borrow_mut().core.next_write() else {
            return;
        };
        let replica = Rc::clone(replica);
        let slow = Duration::from_millis(replica.borrow().core.settings().config.log.slow_write_ms);
        // Nobody cancels this task: a log write that is dropped may never have been submitted.
        spawn_local(async move {
            let started = Instant::now();
            let written = write.await;
            let took = started.elapsed();
            if took > slow {
                tracing::warn!(
                    ms = took.as_millis(),
                    "slow log write: a sick or overloaded device"
                );
            }
            match written {
                Ok(_) => {
                    let mut replica = replica.borrow_mut();
                    replica.start_turn();
                    replica.core.flushed();
                }
                Err(error) => fatal::exit(Reason::Storage, &error),
            }
            turn(&replica);
        })
        .detach();
    }
}

async fn expire_sessions<D: Disk>(replica: Rc<RefCell<Replica<D>>>) {
    loop {
        let now_ms = clock::monotonic_ms();
        let wait_ms = {
            let replica = replica.borrow();
            let tick_ms = u64::from(replica.core.settings().config.ensemble.tick_ms);
            let due_ms = replica.core.next_expiry_ms();
            due_ms.map_or(tick_ms, |due_ms| due_ms.saturating_sub(now_ms).min(tick_ms))
        };
        sleep(Duration::from_millis(wait_ms.max(1))).await;
        {
            let mut replica = replica.borrow_mut();
            replica.start_turn();
            replica.core.expire_sessions();
        }
        turn(&replica);
    }
}

async fn delete_containers<D: Disk>(replica: Rc<RefCell<Replica<D>>>) {
    let ContainersConfig {
        check_interval_ms,
        per_minute_max,
        ..
    } = *replica.borrow().core.containers();
    // ZK: ContainerManager spreads its deletions (znode.container.maxPerMinute).
    let pause = Duration::from_secs(60) / per_minute_max.max(1);
    loop {
        sleep(Duration::from_millis(check_interval_ms.into())).await;
        let candidates = {
            let mut replica = replica.borrow_mut();
            replica.start_turn();
            replica.core.deletable_containers()
        };
        for path in candidates {
            {
                let mut replica = replica.borrow_mut();
                replica.start_turn();
                replica.core.delete_container(&path);
            }
            turn(&replica);
            sleep(pause).await;
        }
    }
}

/// Attests the last batch of an idle log.
async fn seal_when_idle<D: Disk>(replica: Rc<RefCell<Replica<D>>>) {
    loop {
        sleep(SEAL_AFTER).await;
        let seal = {
            let mut replica = replica.borrow_mut();
            if !replica.core.log().needs_seal() || !replica.core.is_idle() {
                continue;
            }
            replica.core.seal_log()
        };
        // As a write of the log it is not to be dropped, so it has a task that nobody cancels.
        let sealed = spawn_local(async move {
            if let Err(error) = seal.await {
                fatal::exit(Reason::Storage, &error);
            }
        });
        sealed.detach();
    }
}

/// Enters each finished snapshot in the manifest, then purges what it makes superfluous.
async fn keep_snapshots<D: Disk>(
    replica: Rc<RefCell<Replica<D>>>,
    store: Store<D>,
    changes: Rc<Cell<usize>>,
) {
    let config = replica.borrow().core.settings().config.snapshots.clone();
    loop {
        let taken = poll_fn(|context| replica.borrow_mut().poll_taken(context)).await;
        let _change = Change::new(&changes);
        let SnapshotInfo { zxid, bytes, .. } = taken.info;
        match store.register_snapshot_of(taken.info, taken.history).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!(%zxid, "a snapshot was overtaken by one from the leader");
                continue;
            }
            Err(error) => fatal::exit(Reason::Storage, &error),
        }
        tracing::info!(%zxid, bytes, ms = taken.ms, "snapshot taken");
        if config.purge_interval_ms.is_some() {
            purge(&store, &config).await;
        }
    }
}

/// Purges from time to time (`autopurge.purgeInterval`): what a snapshot's purge could not remove.
async fn purge_from_time_to_time<D: Disk>(
    replica: Rc<RefCell<Replica<D>>>,
    store: Store<D>,
    changes: Rc<Cell<usize>>,
) {
    let config = replica.borrow().core.settings().config.snapshots.clone();
    while let Some(interval_ms) = config.purge_interval_ms {
        sleep(Duration::from_millis(interval_ms)).await;
        let _change = Change::new(&changes);
        purge(&store, &config).await;
    }
}

async fn purge<D: Disk>(store: &Store<D>, config: &SnapshotConfig) {
    match store.purge(config.retain_count as usize).await {
        Ok(Purged {
            snapshots: 0,
            segments: 0,
            ..
        }) => {}
        Ok(Purged {
            snapshots,
            segments,
            ..
        }) => tracing::info!(snapshots, segments, "purged"),
        Err(error) => tracing::warn!(%error, "purge"),
    }
}
