//! What a learner does to its log while it runs: truncations, a leader's snapshot in the place of everything, history
//! read while it is written.

use std::{cell::RefCell, rc::Rc};

use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{
    Dirs, Durable, EpochState, LogOptions, LogReader, Opened, SimDisk, SnapshotInfo,
    SnapshotWriter, StorageError, Store, TxnLog,
};

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 64 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 4 << 10,
        free_bytes_min: 0,
        spares_kept: 1,
    }
}

/// Runs `test` with a new store and its maintenance.
fn with_store<F: Future<Output = ()>>(test: impl FnOnce(SimDisk, Opened<SimDisk>) -> F + 'static) {
    let disk = SimDisk::new(7);
    disk.run({
        let disk = disk.clone();
        async move {
            let opened = open(&disk).await;
            disk.spawn(opened.log.maintenance());
            test(disk.clone(), opened).await;
        }
    })
    .expect("the test ends");
}

async fn open(disk: &SimDisk) -> Opened<SimDisk> {
    Store::open(disk.clone(), &Dirs::single("/data"), options())
        .await
        .expect("open")
}

/// Hands over a batch of the given records, whose bytes are `mark`.
fn hand_over(
    log: &mut TxnLog<SimDisk>,
    zxids: &[u64],
    mark: u8,
) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<> {
    let mut batch = log.new_batch();
    for zxid in zxids {
        batch
            .append(Zxid(*zxid), 3, |slot| slot.fill(mark))
            .expect("append");
    }
    log.write(batch, Zxid::ZERO)
}

async fn read(mut reader: LogReader<SimDisk>) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    while let Some(records) = reader.next_batch().await.expect("read") {
        found.extend(records.map(|(zxid, bytes)| (zxid.0, bytes[0])));
    }
    reader.close().await;
    found
}

fn make_snapshot(disk: &SimDisk, store: &Store<SimDisk>, zxid: u64) -> SnapshotInfo {
    let mut writer =
        SnapshotWriter::create_with(disk.clone(), store.snapshot_dir(), Zxid(zxid), None)
            .expect("create");
    writer.push_chunk(1, &zxid.to_be_bytes()).expect("push");
    writer.finish(zxid, [0; 4]).expect("finish")
}

/// Lets every other task go on once.
async fn next_turn() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

const fn durable(through: u64, generation: u64) -> Durable {
    Durable {
        through: Zxid(through),
        generation,
    }
}

#[test]
fn a_flush_is_reported_with_its_generation() {
    with_store(|disk, Opened { mut log, .. }| async move {
        hand_over(&mut log, &[1, 2, 3], 1).await.expect("write");
        assert_eq!(log.durable(), durable(3, 0));
        disk.hold_completions(true);
        let reports: Rc<RefCell<Vec<Durable>>> = Rc::default();
        let log = Rc::new(RefCell::new(log));
        let before = hand_over(&mut log.borrow_mut(), &[4, 5], 1);
        log.borrow_mut().begin_generation(8);
        let cut = log.borrow_mut().truncate(Zxid(2));
        assert_eq!(log.borrow().last_zxid(), Zxid(2));
        // The zxids are used again before the truncation is durable.
        let again = hand_over(&mut log.borrow_mut(), &[3, 4], 2);
        let waits: [std::pin::Pin<Box<dyn Future<Output = _>>>; 3] =
            [Box::pin(before), Box::pin(cut), Box::pin(again)];
        for wait in waits {
            let (log, reports) = (Rc::clone(&log), Rc::clone(&reports));
            disk.spawn(async move {
                wait.await.expect("the disk writes");
                reports.borrow_mut().push(log.borrow().durable());
            });
        }
        assert_eq!(log.borrow().durable(), durable(3, 0));
        disk.hold_completions(false);
        let empty = log.borrow_mut().new_batch();
        let all = log.borrow_mut().write(empty, Zxid::ZERO);
        all.await.expect("all is durable");
        assert_eq!(log.borrow().durable(), durable(4, 8));
        for report in reports.borrow().iter() {
            // What the old generation wrote is never reported as the new one's, and the reverse.
            let possible = [durable(5, 0), durable(2, 8), durable(4, 8)];
            assert!(possible.contains(report), "{report:?}");
        }
        let reader = log.borrow().read_from(Zxid::ZERO).expect("read");
        assert_eq!(read(reader).await, [(1, 1), (2, 1), (3, 2), (4, 2)]);
    });
}

#[test]
fn history_is_read_while_it_is_written() {
    with_store(|disk, Opened { mut log, .. }| async move {
        hand_over(&mut log, &[1, 2, 3], 1).await.expect("write");
        disk.hold_completions(true);
        for (zxids, mark) in [(&[4, 5][..], 1), (&[6][..], 1)] {
            let written = hand_over(&mut log, zxids, mark);
            disk.spawn(async move {
                _ = written.await.expect("the disk writes");
            });
        }
        let cut = log.truncate(Zxid(4));
        let again = hand_over(&mut log, &[5, 6], 2);
        disk.spawn(async move {
            cut.await.expect("the disk writes");
            again.await.expect("the disk writes");
        });
        assert_eq!(log.durable_through(), Zxid(3));
        let history = |after, through| {
            log.read_history(Zxid(after), Zxid(through))
                .expect("it is there")
        };
        // Nothing below waits for the disk but reads of what is durable.
        disk.hold_completions(false);
        assert_eq!(
            read(history(1, 6)).await,
            [(2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
        );
        assert_eq!(read(history(3, 5)).await, [(4, 1), (5, 2)]);
        assert_eq!(read(history(6, 9)).await, []);
        assert_eq!(read(history(0, 2)).await, [(1, 1), (2, 1)]);
    });
}

#[test]
fn what_is_in_flight_needs_no_disk() {
    with_store(|disk, Opened { mut log, .. }| async move {
        hand_over(&mut log, &[1], 1).await.expect("write");
        disk.hold_completions(true);
        let written = hand_over(&mut log, &[2, 3], 1);
        disk.spawn(async move {
            _ = written.await.expect("the disk writes");
        });
        let mut reader = log.read_history(Zxid(1), Zxid(3)).expect("it is there");
        // The first batch is read from the disk, and passed over.
        disk.hold_completions(false);
        let mut found = Vec::new();
        while let Some(records) = reader.next_batch().await.expect("read") {
            found.extend(records.map(|(zxid, _)| zxid.0));
        }
        assert_eq!(found, [2, 3]);
    });
}

#[test]
fn history_that_is_gone_is_said_to_be_gone() {
    with_store(|disk, opened| async move {
        let Opened { store, mut log, .. } = opened;
        for zxid in 1..=60 {
            hand_over(&mut log, &[zxid], 1).await.expect("write");
        }
        let old = log.read_history(Zxid(2), Zxid(60)).expect("it is there");
        let info = make_snapshot(&disk, &store, 58);
        store.register_snapshot(info).await.expect("register");
        assert!(store.purge(1).await.expect("purge").segments > 0);
        let start = log.starts_after();
        assert!(start > Zxid(2) && start <= Zxid(58));
        assert!(matches!(
            log.read_history(Zxid(2), Zxid(60)),
            Err(StorageError::Purged { wanted: Zxid(2), start: told }) if told == start
        ));
        // One that was reading says the same, and does not take it for damage: the segments go on being used.
        for zxid in 61..=160 {
            hand_over(&mut log, &[zxid], 1).await.expect("write");
            if zxid % 20 == 0 {
                let info = make_snapshot(&disk, &store, zxid);
                store.register_snapshot(info).await.expect("register");
                store.purge(1).await.expect("purge");
            }
        }
        let mut old = old;
        let ended = loop {
            match old.next_batch().await {
                Ok(Some(_)) => {}
                other => break other.map(|_| ()),
            }
        };
        assert!(
            matches!(ended, Err(StorageError::Purged { .. })),
            "{ended:?}"
        );
    });
}

#[test]
fn a_snapshot_takes_the_place_of_everything() {
    with_store(|disk, opened| async move {
        let Opened { store, mut log, .. } = opened;
        let epochs = EpochState {
            accepted: Epoch(4),
            current: Epoch(3),
            is_member: true,
            doubted_through: None,
        };
        store.save_epoch_state(epochs).await.expect("save");
        for zxid in 1..=40 {
            hand_over(&mut log, &[zxid], 1).await.expect("write");
        }
        // Two own snapshots, one of them above the leader's.
        for zxid in [10, 39] {
            let info = make_snapshot(&disk, &store, zxid);
            store.register_snapshot(info).await.expect("register");
        }
        let begun = store.history();
        let stale = make_snapshot(&disk, &store, 40);
        let info = make_snapshot(&disk, &store, 30);
        // Something is still in flight, and belongs to the old history.
        let late = hand_over(&mut log, &[41], 1);
        disk.spawn(async move {
            _ = late.await.expect("the disk writes");
        });
        log.begin_generation(1);
        store.install_snapshot(info).await.expect("install");
        assert_eq!(log.durable(), durable(30, 1));
        assert_eq!((log.last_zxid(), log.starts_after()), (Zxid(30), Zxid(30)));
        // A snapshot of the old history comes too late.
        let kept = store.register_snapshot_of(stale, begun).await;
        assert!(!kept.expect("register"));
        // One whose file went with an earlier one of the same zxid is no failure.
        let kept = store.register_snapshot_of(stale, begun).await;
        assert!(!kept.expect("register"));
        let refused = hand_over(&mut log, &[30], 2).await;
        assert!(matches!(refused, Err(StorageError::OutOfOrder { .. })));
        hand_over(&mut log, &[31, 32], 2).await.expect("write");
        let reader = log.read_history(Zxid(30), Zxid(99)).expect("read");
        assert_eq!(read(reader).await, [(31, 2), (32, 2)]);
        assert!(matches!(
            log.read_history(Zxid(29), Zxid(99)),
            Err(StorageError::Purged { .. })
        ));
        drop((log, store));

        let Opened { recovered, log, .. } = open(&disk).await;
        assert_eq!(recovered.snapshots, [info]);
        assert_eq!(recovered.last_zxid, Zxid(32));
        let found = EpochState {
            accepted: recovered.accepted_epoch,
            current: recovered.current_epoch,
            is_member: recovered.is_member,
            doubted_through: recovered.doubted_through,
        };
        assert_eq!(found, epochs);
        let reader = log.read_from(Zxid(30)).expect("read");
        assert_eq!(read(reader).await, [(31, 2), (32, 2)]);
        let snapshots = disk.files().into_iter().filter(|path| {
            let name = path.file_name().expect("a file").to_string_lossy();
            name.starts_with("snapshot-")
        });
        assert_eq!(snapshots.count(), 1);
    });
}

#[test]
fn nothing_is_appended_while_a_snapshot_takes_the_place() {
    with_store(|disk, opened| async move {
        let Opened { store, mut log, .. } = opened;
        hand_over(&mut log, &[1], 1).await.expect("write");
        let info = make_snapshot(&disk, &store, 9);
        disk.hold_completions(true);
        disk.spawn({
            let store = store.clone();
            async move { store.install_snapshot(info).await.expect("install") }
        });
        // The other task gets its turn.
        next_turn().await;
        assert!(!log.needs_seal());
        let refused = hand_over(&mut log, &[2], 1).await;
        assert!(
            matches!(refused, Err(StorageError::Replaced)),
            "{refused:?}"
        );
        disk.hold_completions(false);
        let twice = store.install_snapshot(info).await;
        twice.expect("one after the other");
        hand_over(&mut log, &[10], 1).await.expect("write");
    });
}

/// Whether the manifest names the old history or the new one is unknown then: nothing may be written to either.
#[test]
fn a_replacement_dropped_half_way_latches_the_log() {
    let disk = SimDisk::new(1);
    let opened = {
        let disk = disk.clone();
        async move { open(&disk).await }
    };
    let Opened { store, mut log, .. } = disk.run(opened).expect("an end");
    let first = hand_over(&mut log, &[1], 1);
    disk.run(first).expect("an end").expect("write");
    let info = make_snapshot(&disk, &store, 9);
    disk.hold_completions(true);
    // Stalls while it is held, and is dropped there.
    assert!(disk.run(store.install_snapshot(info)).is_none());
    disk.hold_completions(false);
    let second = hand_over(&mut log, &[2], 1);
    let refused = disk.run(second).expect("an end");
    assert!(
        matches!(refused, Err(StorageError::Abandoned)),
        "{refused:?}"
    );
}

#[test]
fn a_truncation_below_every_snapshot_is_refused() {
    with_store(|disk, opened| async move {
        let Opened { store, mut log, .. } = opened;
        for zxid in 1..=60 {
            hand_over(&mut log, &[zxid], 1).await.expect("write");
        }
        for zxid in [20, 59] {
            let info = make_snapshot(&disk, &store, zxid);
            store.register_snapshot(info).await.expect("register");
        }
        let zxids = |snapshots: Vec<SnapshotInfo>| -> Vec<u64> {
            snapshots.iter().map(|info| info.zxid.0).collect()
        };
        store
            .discard_snapshots_above(Zxid(58))
            .await
            .expect("one is left");
        assert_eq!(zxids(store.snapshots().await), [20]);
        // The log still reaches back to the beginning.
        store
            .discard_snapshots_above(Zxid(19))
            .await
            .expect("the log has it");
        assert_eq!(zxids(store.snapshots().await), []);
        let info = make_snapshot(&disk, &store, 59);
        store.register_snapshot(info).await.expect("register");
        store.purge(1).await.expect("purge");
        let refused = store.discard_snapshots_above(Zxid(19)).await;
        assert!(matches!(refused, Err(StorageError::Purged { .. })));
        assert_eq!(zxids(store.snapshots().await), [59]);
    });
}

#[test]
fn what_is_committed_is_remembered_by_a_seal() {
    with_store(|disk, Opened { mut log, store, .. }| async move {
        hand_over(&mut log, &[1, 2, 3], 1).await.expect("write");
        log.seal(Zxid(1)).await.expect("seal");
        assert!(!log.needs_seal());
        log.note_committed(Zxid(9));
        assert_eq!(log.committed(), Zxid(3), "no further than the log");
        assert!(log.needs_seal());
        let committed = log.committed();
        log.seal(committed).await.expect("seal");
        assert!(!log.needs_seal());
        drop((log, store));
        let opened = open(&disk).await;
        assert_eq!(opened.recovered.committed, Zxid(3));
    });
}
