//! Faults other than power cuts, on the simulated disk: failing, lost and misdirected writes, damaged
//! bytes, a full disk, and completions that are held back.
#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "test bytes wrap, and the number of states is printed"
)]

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{
    Damage, DamageKind, Dirs, EpochState, Fault, LogOptions, OpenError, Opened, SimDisk,
    SnapshotWriter, StorageError, Store, Tail, TxnLog,
};

const BLOCK: u64 = 4096;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 48 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 4 << 10,
        free_bytes_min: 0,
        spares_kept: 1,
    }
}

fn segment(number: u64) -> PathBuf {
    PathBuf::from(format!("/data/ringkeeper/log-{number:016x}"))
}

fn open(disk: &SimDisk) -> Result<Opened<SimDisk>, OpenError> {
    let (disk, dirs) = (disk.clone(), Dirs::single("/data"));
    let runner = disk.clone();
    runner
        .run(async move { Store::open(disk, &dirs, options()).await })
        .expect("opening comes to an end")
}

/// Hands over a batch with one record of 100 bytes.
fn hand_over(
    log: &mut TxnLog<SimDisk>,
    zxid: u64,
) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<> {
    let mut batch = log.new_batch();
    batch
        .append(Zxid(zxid), 100, |slot| slot.fill(zxid as u8))
        .expect("append");
    log.write(batch, Zxid::ZERO)
}

fn write(disk: &SimDisk, log: &mut TxnLog<SimDisk>, zxid: u64) -> Result<Zxid, StorageError> {
    let written = hand_over(log, zxid);
    disk.run(written).expect("the write comes to an end")
}

fn seal(disk: &SimDisk, log: &mut TxnLog<SimDisk>) {
    let sealed = log.seal(Zxid::ZERO);
    disk.run(sealed)
        .expect("the seal comes to an end")
        .expect("seal");
}

fn zxids(disk: &SimDisk, opened: Opened<SimDisk>) -> Vec<u64> {
    let records = Rc::new(RefCell::new(Vec::new()));
    let into = Rc::clone(&records);
    disk.run(async move {
        let each = |zxid: Zxid, bytes: &[u8]| {
            assert!(bytes.len() == 100 && bytes.iter().all(|byte| *byte == zxid.0 as u8));
            into.borrow_mut().push(zxid.0);
            Ok::<(), String>(())
        };
        opened.log.replay(Zxid::ZERO, each).await.expect("replay");
    })
    .expect("the replay comes to an end");
    records.take()
}

/// A store with records 1 to `last`, one batch each, from block 2 of the first segment on.
fn filled(last: u64) -> (SimDisk, Opened<SimDisk>) {
    let disk = SimDisk::new(7);
    let mut opened = open(&disk).expect("make a store");
    for zxid in 1..=last {
        assert_eq!(
            write(&disk, &mut opened.log, zxid).expect("write"),
            Zxid(zxid)
        );
    }
    (disk, opened)
}

/// Where record `zxid` of [`filled`] is: behind the segment's first block and the first seal.
fn place(zxid: u64) -> u64 {
    (zxid + 1) * BLOCK
}

fn flip(disk: &SimDisk, path: &Path, at: u64, mask: u8) {
    disk.damage(path, |bytes| {
        bytes[usize::try_from(at).expect("fits")] ^= mask
    });
}

fn expect_damage(disk: &SimDisk, kind: DamageKind, at: u64, after: u64, before: Option<u64>) {
    let found = open(disk).expect_err("acknowledged history is damaged");
    let OpenError::Damaged(found) = found else {
        panic!("{found}")
    };
    let (after, before) = (Zxid(after), before.map(Zxid));
    assert_eq!(
        found,
        Damage {
            file: segment(1),
            offset: at,
            kind,
            after,
            before
        }
    );
}

#[test]
fn nothing_is_acknowledged_while_completions_are_held() {
    let (disk, mut opened) = filled(1);
    disk.hold_completions(true);
    let answers = Rc::new(Cell::new(0));
    for zxid in 2..=4 {
        let (written, answers) = (hand_over(&mut opened.log, zxid), Rc::clone(&answers));
        disk.spawn(async move {
            written.await.expect("write");
            answers.set(answers.get() + 1);
        });
    }
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    assert_eq!((disk.in_flight(), answers.get()), (3, 0));
    assert_eq!(opened.log.durable_through(), Zxid(1));
    let lost = disk.after_power_cut(|_| false);
    assert_eq!(zxids(&lost, open(&lost).expect("open")), [1]);

    disk.hold_completions(false);
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    assert_eq!((disk.in_flight(), answers.get()), (0, 3));
    let kept = disk.after_power_cut(|_| false);
    assert_eq!(zxids(&kept, open(&kept).expect("open")), [1, 2, 3, 4]);
}

#[test]
fn writes_that_finish_out_of_order_are_acknowledged_in_order() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let mut opened = open(&disk).expect("make a store");
        disk.reorder();
        let order = Rc::new(RefCell::new(Vec::new()));
        for zxid in 1..=6 {
            let (written, order) = (hand_over(&mut opened.log, zxid), Rc::clone(&order));
            disk.spawn(async move {
                let through = written.await.expect("write");
                assert!(through >= Zxid(zxid));
                order.borrow_mut().push(zxid);
            });
        }
        assert_eq!(disk.run(std::future::pending::<()>()), None);
        assert_eq!(*order.borrow(), [1, 2, 3, 4, 5, 6], "seed {seed}");
    }
}

#[test]
fn the_first_failed_write_is_the_answer_to_everything_after() {
    let (disk, mut opened) = filled(3);
    disk.inject(0, Fault::WriteError { kept: 0 });
    let first = write(&disk, &mut opened.log, 4)
        .expect_err("the write fails")
        .to_string();
    assert!(
        first.contains("write log batch") && first.contains("offset 20480"),
        "{first}"
    );
    let then = write(&disk, &mut opened.log, 5)
        .expect_err("latched")
        .to_string();
    assert_eq!(then, first);
    let sealed = opened.log.seal(Zxid::ZERO);
    assert_eq!(
        disk.run(sealed)
            .expect("an answer")
            .expect_err("latched")
            .to_string(),
        first
    );
    assert_eq!(opened.log.admits().expect_err("latched").to_string(), first);
    drop(opened);
    assert_eq!(zxids(&disk, open(&disk).expect("open")), [1, 2, 3]);
}

#[test]
fn writes_in_flight_with_a_failed_one_are_not_acknowledged() {
    let (disk, mut opened) = filled(1);
    // The second of three fails; the third reaches the disk and must not be acknowledged.
    disk.inject(1, Fault::WriteError { kept: 150 });
    let answers: Vec<_> = (2..=4)
        .map(|zxid| {
            let (written, answer) = (hand_over(&mut opened.log, zxid), Rc::new(Cell::new(None)));
            let into = Rc::clone(&answer);
            disk.spawn(async move { into.set(Some(written.await.is_ok())) });
            answer
        })
        .collect();
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    let answers: Vec<_> = answers.iter().map(|answer| answer.get()).collect();
    assert_eq!(answers, [Some(true), Some(false), Some(false)]);
    drop(opened);
    let opened = open(&disk).expect("open");
    let (after, through) = (Zxid(2), Some(Zxid(4)));
    assert_eq!(opened.recovered.tail, Tail::Torn { after, through });
    assert_eq!(zxids(&disk, opened), [1, 2]);
}

#[test]
fn a_failed_directory_flush_latches() {
    let (disk, mut opened) = filled(1);
    disk.inject(0, Fault::FlushError);
    disk.spawn(opened.log.maintenance());
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    let error = write(&disk, &mut opened.log, 2)
        .expect_err("latched")
        .to_string();
    assert!(error.contains("flush log directory"), "{error}");
}

#[test]
fn a_damaged_batch_that_is_attested_is_reported_and_not_cut() {
    for zxid in 1..=3 {
        let (disk, opened) = filled(4);
        drop(opened);
        // Header, frame and payload of the record.
        for at in [8, 40, 88, 104, 203] {
            flip(&disk, &segment(1), place(zxid) + at, 1);
            let before = disk.content(&segment(1));
            expect_damage(
                &disk,
                DamageKind::Checksum,
                place(zxid),
                zxid - 1,
                Some(zxid + 1),
            );
            assert_eq!(
                disk.content(&segment(1)),
                before,
                "a refusal changes nothing"
            );
            flip(&disk, &segment(1), place(zxid) + at, 1);
        }
        assert_eq!(zxids(&disk, open(&disk).expect("open")), [1, 2, 3, 4]);
    }
}

#[test]
fn a_damaged_last_batch_is_cut_unless_a_seal_attests_it() {
    let (disk, opened) = filled(4);
    drop(opened);
    let unsealed = disk.after_power_cut(|_| true);
    flip(&unsealed, &segment(1), place(4) + 150, 1);
    let opened = open(&unsealed).expect("open");
    let (after, through) = (Zxid(3), Some(Zxid(4)));
    assert_eq!(opened.recovered.tail, Tail::Torn { after, through });
    assert_eq!(zxids(&unsealed, opened), [1, 2, 3]);

    let mut opened = open(&disk).expect("opening seals");
    assert!(!opened.log.needs_seal());
    write(&disk, &mut opened.log, 5).expect("write");
    assert!(opened.log.needs_seal());
    seal(&disk, &mut opened.log);
    assert!(!opened.log.needs_seal());
    drop(opened);
    let five = place(4) + 2 * BLOCK;
    flip(&disk, &segment(1), five + 150, 1);
    expect_damage(&disk, DamageKind::Checksum, five, 4, None);
    flip(&disk, &segment(1), five + 150, 1);
    flip(&disk, &segment(1), place(4) + 150, 1);
    expect_damage(&disk, DamageKind::Checksum, place(4), 3, Some(5));
}

/// The same store as a member, which has taken over the history of epoch 1 when its log ended at `history` of 4.
fn member(history: u64) -> SimDisk {
    let (disk, opened) = filled(history);
    let (store, mut log) = (opened.store, opened.log);
    save(&disk, &store, None);
    for zxid in history + 1..=4 {
        write(&disk, &mut log, zxid).expect("write");
    }
    disk.after_power_cut(|_| true)
}

fn save(disk: &SimDisk, store: &Store<SimDisk>, doubted_through: Option<Zxid>) {
    let (store, epochs) = (
        store.clone(),
        EpochState {
            accepted: Epoch(1),
            current: Epoch(1),
            is_member: true,
            doubted_through,
        },
    );
    disk.run(async move { store.save_epoch_state(epochs).await })
        .expect("an end")
        .expect("save");
}

fn open_as_member(disk: &SimDisk) -> Opened<SimDisk> {
    let (runner, dirs) = (disk.clone(), Dirs::single("/data"));
    let disk = disk.clone();
    runner
        .run(async move { Store::open_as_member(disk, &dirs, options()).await })
        .expect("an end")
        .expect("open")
}

#[test]
fn a_member_remembers_what_a_torn_write_may_have_taken() {
    // The records can be torn, or the header too, and then nobody knows how much there was.
    for (at, doubted) in [(150, Zxid(4)), (20, Zxid(u64::MAX))] {
        let disk = member(3);
        flip(&disk, &segment(1), place(4) + at, 1);
        // Once it is cut the log just ends; the doubt stays over any number of starts.
        for _ in 0..3 {
            let opened = open_as_member(&disk);
            assert_eq!(opened.recovered.doubted_through, Some(doubted));
            assert!(opened.recovered.holdings.damage.is_none());
            assert_eq!(zxids(&disk, opened), [1, 2, 3]);
        }
        // A leader has settled it.
        let opened = open_as_member(&disk);
        save(&disk, &opened.store, None);
        drop(opened);
        assert_eq!(open_as_member(&disk).recovered.doubted_through, None);
    }
    assert_eq!(open_as_member(&member(3)).recovered.doubted_through, None);
}

/// As the last batch anywhere else: the rest of the segment before it, which a roll left unused, is not where the log ends.
#[test]
fn a_damaged_last_batch_is_torn_at_the_beginning_of_a_segment_too() {
    // A segment takes the seal and ten of these. With records that differ in size some of the rest is unused.
    for large in [false, true] {
        let (disk, mut opened) = filled(if large { 9 } else { 10 });
        let last = if large { 10 } else { 11 };
        let mut batch = opened.log.new_batch();
        let bytes = if large { 4 << 10 } else { 100 };
        batch
            .append(Zxid(last), bytes, |slot| slot.fill(last as u8))
            .expect("append");
        let written = opened.log.write(batch, Zxid::ZERO);
        disk.run(written).expect("an end").expect("write");
        drop(opened);
        for (at, through) in [(150, Some(Zxid(last))), (20, None)] {
            let left = disk.after_power_cut(|_| true);
            flip(&left, &segment(2), BLOCK + at, 1);
            let opened = open(&left).expect("open");
            let after = Zxid(last - 1);
            assert_eq!(opened.recovered.tail, Tail::Torn { after, through });
            assert_eq!(zxids(&left, opened), (1..last).collect::<Vec<_>>());
        }
    }
}

#[test]
fn what_was_durable_when_epochs_were_saved_is_never_taken_for_torn() {
    // Damaged, or gone without a trace: a write that was acknowledged and never reached the disk.
    let erase = |disk: &SimDisk| {
        disk.damage(&segment(1), |bytes| {
            bytes[usize::try_from(place(4)).expect("fits")..].fill(0);
        });
    };
    let tear = |disk: &SimDisk| flip(disk, &segment(1), place(4) + 150, 1);
    for spoil in [&erase as &dyn Fn(&SimDisk), &tear] {
        let disk = member(4);
        spoil(&disk);
        let recovered = open_as_member(&disk).recovered;
        let damage = recovered.holdings.damage.expect("it was acknowledged");
        assert_eq!((damage.after, recovered.last_zxid), (Zxid(3), Zxid(3)));
        assert!(matches!(open(&disk), Err(OpenError::Damaged(_))));
    }
}

#[test]
fn a_log_that_was_closed_in_order_has_no_window() {
    let (disk, opened) = filled(4);
    let store = opened.store.clone();
    assert!(
        disk.run(async move { store.close().await.expect("close") })
            .expect("an end")
    );
    let mut log = opened.log;
    let refused = write(&disk, &mut log, 5).expect_err("closed");
    assert!(matches!(refused, StorageError::Closed));
    drop((opened.store, log));

    // Damage to the last batch, which no seal attests, is not taken for a torn write, however often one tries.
    flip(&disk, &segment(1), place(4) + 150, 1);
    for _ in 0..2 {
        expect_damage(&disk, DamageKind::Checksum, place(4), 3, None);
    }
    flip(&disk, &segment(1), place(4) + 150, 1);
    let mut opened = open(&disk).expect("open");
    assert_eq!(opened.recovered.tail, Tail::Clean);
    write(&disk, &mut opened.log, 5).expect("write");
    drop(opened);
    // The clean end is used up: what was written since is there, and is missed if it is not.
    let damaged = disk.after_power_cut(|_| true);
    assert_eq!(zxids(&disk, open(&disk).expect("open")), [1, 2, 3, 4, 5]);
    let seal = place(4) + BLOCK;
    damaged.damage(&segment(1), |bytes| {
        let at = usize::try_from(seal).expect("fits");
        bytes[at..at + 4096].fill(0);
    });
    expect_damage(&damaged, DamageKind::Missing, seal, 4, Some(5));
}

#[test]
fn what_a_recycled_segment_held_before_is_a_clean_end() {
    let (disk, mut opened) = filled(1);
    disk.spawn(opened.log.maintenance());
    let mut zxid = 1;
    // Segments of eleven batches; each snapshot frees all but the last.
    for _ in 0..4 {
        for _ in 0..20 {
            zxid += 1;
            write(&disk, &mut opened.log, zxid).expect("write");
        }
        let folder = opened.store.snapshot_dir().to_path_buf();
        let writer = SnapshotWriter::create_with(disk.clone(), &folder, Zxid(zxid), None);
        let info = writer.expect("create").finish(0, [0; 4]).expect("finish");
        let store = opened.store.clone();
        disk.run(async move {
            store.register_snapshot(info).await.expect("register");
            store.purge(1).await.expect("purge");
        });
    }
    let mut recycled = 0;
    for _ in 0..30 {
        zxid += 1;
        write(&disk, &mut opened.log, zxid).expect("write");
        let left = disk.after_power_cut(|_| false);
        let opened = open(&left).expect("open");
        assert_eq!(
            (opened.recovered.tail, opened.recovered.last_zxid),
            (Tail::Clean, Zxid(zxid))
        );
        let newest = left
            .files()
            .into_iter()
            .rfind(|path| path.to_string_lossy().contains("/log-"));
        let bytes = left
            .content(&newest.expect("a segment"))
            .expect("its bytes");
        recycled += u64::from(bytes.rchunks(4096).next().is_some_and(|last| last[0] != 0));
    }
    assert!(recycled > 10, "only {recycled} times in a recycled segment");
}

#[test]
fn a_close_with_writes_in_flight_does_nothing() {
    let (disk, mut opened) = filled(1);
    disk.hold_completions(true);
    let written = hand_over(&mut opened.log, 2);
    disk.spawn(async move { assert_eq!(written.await.expect("write"), Zxid(2)) });
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    let store = opened.store.clone();
    assert_eq!(
        disk.run(async move { store.close().await.expect("close") }),
        Some(false)
    );
    disk.hold_completions(false);
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    assert_eq!(opened.log.durable_through(), Zxid(2));
}

#[test]
fn a_write_that_the_disk_lost_is_missed() {
    let (disk, mut opened) = filled(2);
    disk.inject(0, Fault::LostWrite);
    for zxid in 3..=5 {
        write(&disk, &mut opened.log, zxid).expect("the disk claims success");
    }
    drop(opened);
    expect_damage(&disk, DamageKind::Missing, place(3), 2, Some(4));
}

#[test]
fn a_write_that_went_elsewhere_is_missed() {
    let (disk, mut opened) = filled(2);
    // Over the place of a later record, which is then written where it belongs.
    disk.inject(0, Fault::MisdirectedWrite(2 * BLOCK));
    for zxid in 3..=5 {
        write(&disk, &mut opened.log, zxid).expect("the disk claims success");
    }
    drop(opened);
    expect_damage(&disk, DamageKind::Missing, place(3), 2, Some(4));

    let (disk, mut opened) = filled(2);
    // Over an earlier record: the next write of that place never comes.
    write(&disk, &mut opened.log, 3).expect("write");
    let stale = disk.content(&segment(1)).expect("the segment");
    let (from, to) = (place(1) as usize, place(2) as usize);
    disk.damage(&segment(1), |bytes| {
        bytes[to..to + 4096].copy_from_slice(&stale[from..to])
    });
    drop(opened);
    // The stale batch is whole, but it is not the one that belongs there.
    let found = open(&disk).expect_err("a stale sector");
    let OpenError::Damaged(found) = found else {
        panic!("{found}")
    };
    assert_eq!(
        (found.offset, found.after, found.kind),
        (place(2), Zxid(1), DamageKind::Chain)
    );
}

#[test]
fn a_failing_read_is_reported_as_such() {
    for after in 0..12 {
        let (disk, opened) = filled(3);
        drop(opened);
        disk.inject(after, Fault::ReadError);
        match open(&disk) {
            Err(OpenError::Storage(StorageError::Io { operation, .. })) => {
                assert!(operation.starts_with("read"), "{operation}");
            }
            Err(other) => panic!("{other}"),
            // More reads than opening needs.
            Ok(opened) => assert_eq!(opened.recovered.last_zxid, Zxid(3)),
        }
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let (disk, mut opened) = filled(1);
    disk.set_available(1000);
    disk.spawn(opened.log.maintenance());
    // Longer than the log waits before it looks for space.
    let look = Duration::from_millis(1500);
    disk.pass(look);
    // The segment at hand is still used, down to the reserve.
    let mut zxid = 1;
    let refused = loop {
        match opened.log.admits() {
            Ok(()) => {
                zxid += 1;
                write(&disk, &mut opened.log, zxid).expect("write");
            }
            Err(error) => break error,
        }
    };
    assert!(refused.is_disk_full(), "{refused}");
    assert!(zxid >= 5, "{zxid}");
    // What was admitted already has room.
    for _ in 0..2 {
        zxid += 1;
        write(&disk, &mut opened.log, zxid).expect("write into the reserve");
    }
    disk.set_available(1 << 30);
    disk.pass(look);
    opened.log.admits().expect("space has returned");
    for _ in 0..20 {
        zxid += 1;
        write(&disk, &mut opened.log, zxid).expect("write");
    }
    disk.kill_tasks();
    drop(opened);
    let expect: Vec<u64> = (1..=zxid).collect();
    assert_eq!(zxids(&disk, open(&disk).expect("open")), expect);
}

#[test]
fn a_write_beyond_the_reserve_waits_for_space() {
    let (disk, mut opened) = filled(1);
    disk.set_available(0);
    let done = Rc::new(Cell::new(0));
    // More than the segment holds.
    for zxid in 2..=14 {
        let (written, done) = (hand_over(&mut opened.log, zxid), Rc::clone(&done));
        disk.spawn(async move {
            written.await.expect("write");
            done.set(done.get() + 1);
        });
    }
    disk.pass(Duration::from_secs(5));
    let waiting = done.get();
    assert!(waiting < 13, "{waiting} written without space");
    disk.set_available(1 << 30);
    assert_eq!(disk.run(std::future::pending::<()>()), None);
    assert_eq!(done.get(), 13);
}

#[test]
fn one_good_copy_of_the_manifest_is_enough() {
    for copy in ["manifest-a", "manifest-b"] {
        let (disk, opened) = filled(3);
        let epochs = opened.store.clone();
        disk.run(async move {
            let (accepted, current) = (Epoch(9), Epoch(8));
            epochs
                .save_epochs(accepted, current)
                .await
                .expect("save epochs");
        });
        drop(opened);
        disk.damage(&Path::new("/data/ringkeeper").join(copy), |bytes| {
            bytes.fill(0xFF)
        });
        let opened = open(&disk).expect("open");
        assert_eq!(opened.recovered.accepted_epoch.0, 9);
        assert_eq!(opened.recovered.current_epoch.0, 8);
        assert_eq!(zxids(&disk, opened), [1, 2, 3]);
    }
}

#[test]
fn a_change_of_the_manifest_dropped_half_way_fails_it() {
    let (disk, opened) = filled(1);
    let epochs = |epoch: u32| {
        let (store, epoch) = (opened.store.clone(), Epoch(epoch));
        async move { store.save_epochs(epoch, epoch).await }
    };
    disk.run(epochs(3)).expect("an end").expect("save epochs");
    disk.hold_completions(true);
    // Stalls while it is held, and is dropped there.
    assert!(disk.run(epochs(4)).is_none());
    disk.hold_completions(false);
    let refused = disk
        .run(epochs(5))
        .expect("an end")
        .expect_err("nobody knows what was written");
    assert!(matches!(refused, StorageError::Abandoned));
    drop(opened);
    let found = open(&disk).expect("open").recovered.accepted_epoch.0;
    assert!((3..=4).contains(&found), "{found}");
}

#[test]
fn a_missing_segment_is_reported() {
    let (disk, mut opened) = filled(1);
    for zxid in 2..=40 {
        write(&disk, &mut opened.log, zxid).expect("write");
    }
    drop(opened);
    for number in 1..=3 {
        let broken = disk.after_power_cut(|_| true);
        let path = segment(number);
        broken.run({
            let (broken, path) = (broken.clone(), path.clone());
            async move {
                use ringkeeper_storage::Disk as _;
                broken.remove(&path).await.expect("remove");
            }
        });
        let error = open(&broken).expect_err("a segment is missing");
        assert!(matches!(error, OpenError::Segment(found) if found == path));
    }
}

/// Every byte of every file, one at a time: the whole history, or a refusal.
#[test]
fn every_flipped_byte_is_survived_or_refused() {
    let (disk, mut opened) = filled(3);
    seal(&disk, &mut opened.log);
    drop(opened);
    let (mut whole, mut refused) = (0, 0);
    for path in disk.files() {
        let written = disk.content(&path).map_or(0, |bytes| {
            bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1)
        });
        let bytes = disk.content(&path).unwrap_or_default();
        // Of zeros, most of which are padding, one in sixteen.
        let chosen = (0..written).filter(|at| bytes[*at] != 0 || at % 16 == 0);
        for at in chosen {
            let damaged = disk.after_power_cut(|_| true);
            flip(&damaged, &path, at as u64, 1 << (at % 8));
            match open(&damaged) {
                Ok(opened) => {
                    assert_eq!(
                        zxids(&damaged, opened),
                        [1, 2, 3],
                        "{} at {at}",
                        path.display()
                    );
                    whole += 1;
                }
                Err(OpenError::Damaged(_) | OpenError::Segment(_)) => refused += 1,
                Err(other) => panic!("{} at {at}: {other}", path.display()),
            }
        }
    }
    println!("{whole} harmless, {refused} refused");
    // The records, their headers and the segment's; fewer than all because many of their bytes are zero.
    assert!(refused > 3 * 130, "{refused} refused");
}
