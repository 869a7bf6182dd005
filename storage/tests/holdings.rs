//! Damaged logs opened as a member of an ensemble does: every combination of whole and damaged batches, what is
//! answered zxid by zxid, and the two ways to become whole.

use std::path::{Path, PathBuf};

use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{
    Dirs, HEADER_BYTES, Holding, LogOptions, OpenError, Opened, SimDisk, SnapshotInfo,
    SnapshotWriter, StorageError, Store, TxnLog,
};

const BLOCK: usize = 4096;
/// Batches of records; the one behind them is a seal.
const BATCHES: u32 = 6;
/// Zxids of each batch.
const RECORDS: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    /// Only the records are damaged.
    Body,
    /// The header is damaged.
    Header,
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 64 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 4 << 10,
        free_bytes_min: 0,
        spares_kept: 1,
    }
}

fn segment() -> PathBuf {
    PathBuf::from(format!("/data/ringkeeper/log-{:016x}", 1))
}

fn payload(zxid: u64) -> [u8; 3] {
    [1, 2, u8::try_from(zxid).expect("small")]
}

fn zxids_of(batch: u32) -> std::ops::RangeInclusive<u64> {
    let first = u64::from(batch) * RECORDS + 1;
    first..=first + RECORDS - 1
}

async fn append(log: &mut TxnLog<SimDisk>, zxids: impl Iterator<Item = u64>) {
    let mut batch = log.new_batch();
    for zxid in zxids {
        batch
            .append(Zxid(zxid), 3, |slot| slot.copy_from_slice(&payload(zxid)))
            .expect("append");
    }
    log.write(batch, Zxid::ZERO).await.expect("write");
}

/// A log of [`BATCHES`] batches and a seal, each durable before the next; closed in order if told so.
fn filled(is_closed: bool) -> SimDisk {
    let disk = SimDisk::new(3);
    disk.run({
        let disk = disk.clone();
        async move {
            let Opened { store, mut log, .. } =
                Store::open(disk, &Dirs::single("/data"), options())
                    .await
                    .expect("make a store");
            let epoch = Epoch(1);
            store.save_epochs(epoch, epoch).await.expect("save");
            for batch in 0..BATCHES {
                append(&mut log, zxids_of(batch)).await;
            }
            log.seal(Zxid::ZERO).await.expect("seal");
            if is_closed {
                assert!(store.close().await.expect("close"));
            }
        }
    })
    .expect("the log is filled");
    disk
}

/// Where batch `number` is: behind the segment's first block and the seal of the first opening.
fn place(number: u32) -> usize {
    (2 + number as usize) * BLOCK
}

fn damage(disk: &SimDisk, states: &[State]) {
    for (number, state) in (0..).zip(states) {
        let at = match state {
            State::Whole => continue,
            State::Body => place(number) + HEADER_BYTES + 17,
            State::Header => place(number) + 25,
        };
        disk.damage(&segment(), |bytes| bytes[at] ^= 4);
    }
}

fn open(disk: &SimDisk) -> Result<Opened<SimDisk>, OpenError> {
    let (runner, disk) = (disk.clone(), disk.clone());
    let opened = runner
        .run(async move { Store::open_as_member(disk, &Dirs::single("/data"), options()).await });
    opened.expect("opening ends")
}

fn open_alone(disk: &SimDisk) -> Result<Opened<SimDisk>, OpenError> {
    let (runner, disk) = (disk.clone(), disk.clone());
    let opened =
        runner.run(async move { Store::open(disk, &Dirs::single("/data"), options()).await });
    opened.expect("opening ends")
}

fn records(disk: &SimDisk, log: &TxnLog<SimDisk>) -> Vec<u64> {
    let mut reader = log.read_from(Zxid::ZERO).expect("read");
    let found = disk.run(async move {
        let mut found = Vec::new();
        while let Some(records) = reader.next_batch().await.expect("read") {
            for (zxid, bytes) in records {
                assert_eq!(bytes, payload(zxid.0));
                found.push(zxid.0);
            }
        }
        found
    });
    found.expect("reading ends")
}

/// Every combination of the states of so many batches and the seal.
fn combinations(mut visit: impl FnMut(&[State])) {
    let all = [State::Whole, State::Body, State::Header];
    for number in 0..3_usize.pow(BATCHES + 1) {
        let states: Vec<State> = (0..=BATCHES)
            .map(|batch| all[number / 3_usize.pow(batch) % 3])
            .collect();
        // A seal has no body.
        if states.last() != Some(&State::Body) {
            visit(&states);
        }
    }
}

/// Whether damage at `batch` is told from a torn write.
fn is_attested(states: &[State], is_closed: bool, batch: usize) -> bool {
    is_closed
        || states[batch + 1..]
            .iter()
            .any(|state| *state != State::Header)
}

#[test]
fn every_combination_is_answered_zxid_by_zxid() {
    let (mut damaged, mut whole) = (0, 0);
    for is_closed in [false, true] {
        let good = filled(is_closed);
        combinations(|states| {
            let disk = good.after_power_cut(|_| true);
            damage(&disk, states);
            let context = format!("{states:?}, closed: {is_closed}");
            let opened = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
            let first_bad = states.iter().position(|state| *state != State::Whole);
            let is_rot = first_bad.is_some_and(|batch| is_attested(states, is_closed, batch));
            let holdings = &opened.recovered.holdings;
            assert_eq!(holdings.damage.is_some(), is_rot, "{context}");
            for (batch, state) in (0..BATCHES).zip(states) {
                let expect = match state {
                    State::Whole => Holding::Have,
                    State::Body | State::Header => Holding::HaveFaulty,
                };
                for zxid in zxids_of(batch) {
                    assert_eq!(holdings.of(Zxid(zxid)), expect, "{context}, {zxid}");
                }
            }
            // Whether more was written is known where the last batch can be read, or where it was told.
            let is_end_known = is_closed && states.iter().all(|state| *state == State::Whole)
                || states.last() == Some(&State::Whole);
            let beyond = holdings.of(Zxid(100));
            assert_eq!(beyond == Holding::DontHave, is_end_known, "{context}");
            assert_ne!(beyond, Holding::Have, "{context}");
            // Up to the first bad batch everything can be read, and nothing else is.
            let readable = first_bad.map_or(BATCHES, |batch| u32::try_from(batch).expect("few"));
            let expect: Vec<u64> = (1..=u64::from(readable.min(BATCHES)) * RECORDS).collect();
            assert_eq!(records(&disk, &opened.log), expect, "{context}");
            let last = Zxid(u64::from(readable.min(BATCHES)) * RECORDS);
            assert_eq!(opened.recovered.last_zxid, last, "{context}");
            if is_rot {
                damaged += 1;
                refuses_everything(&disk, opened, &context);
            } else {
                whole += 1;
            }
        });
    }
    assert_eq!(damaged + whole, 2 * 2 * 3_usize.pow(BATCHES));
    // Whole, or torn: nothing is bad, or the first bad one has no header behind it and was not told as the end.
    assert_eq!(whole, 2 + 2 * usize::try_from(BATCHES).expect("few") + 1);
}

/// A damaged log is not written, and is as it was after any number of starts.
fn refuses_everything(disk: &SimDisk, mut opened: Opened<SimDisk>, context: &str) {
    let before = disk.content(&segment());
    assert!(opened.log.admits().is_err() && !opened.log.needs_seal());
    let mut batch = opened.log.new_batch();
    batch.append(Zxid(50), 1, |_| ()).expect("append");
    let written = disk.run(opened.log.write(batch, Zxid::ZERO));
    let written = written.expect("the write ends");
    assert!(
        matches!(written, Err(StorageError::Damaged(_))),
        "{context}"
    );
    let holdings = opened.recovered.holdings;
    drop((opened.log, opened.store));
    assert_eq!(disk.content(&segment()), before, "{context}");
    let again = open(disk).expect("open again");
    assert_eq!(again.recovered.holdings, holdings, "{context}");
    drop(again);
    let alone = open_alone(disk).map(|_| ());
    assert!(matches!(alone, Err(OpenError::Damaged(_))), "{context}");
}

#[test]
fn records_of_other_servers_mend_what_has_a_header() {
    let mut mended = 0;
    let good = filled(false);
    combinations(|states| {
        if states.contains(&State::Header) || !states.contains(&State::Body) {
            return;
        }
        let disk = good.after_power_cut(|_| true);
        damage(&disk, states);
        let opened = open(&disk).expect("open");
        let store = opened.store.clone();
        for range in opened.recovered.holdings.faulty() {
            assert!(range.is_mendable());
            let zxids = range.after.0 + 1..=range.through.0;
            let mend = |records: Vec<(Zxid, [u8; 3])>| {
                let (store, range) = (store.clone(), range.clone());
                let done = disk.run(async move {
                    let records = records.iter().map(|(zxid, bytes)| (*zxid, &bytes[..]));
                    store.mend(&range, records).await.expect("the disk writes")
                });
                done.expect("mending ends")
            };
            let right: Vec<_> = zxids.map(|zxid| (Zxid(zxid), payload(zxid))).collect();
            let before = disk.content(&segment());
            let mut wrong = right.clone();
            wrong[1].1[0] ^= 1;
            assert!(!mend(wrong), "other bytes");
            assert!(!mend(right[..1].to_vec()), "too few records");
            let mut more = right.clone();
            more.push((Zxid(99), payload(99)));
            assert!(!mend(more), "too many records");
            assert_eq!(disk.content(&segment()), before);
            assert!(mend(right));
            mended += 1;
        }
        drop((opened.log, opened.store, store));
        let opened = open(&disk).expect("open");
        assert_eq!(opened.recovered.holdings.damage, None);
        let all: Vec<u64> = (1..=u64::from(BATCHES) * RECORDS).collect();
        assert_eq!(records(&disk, &opened.log), all);
        // Bit for bit as it was, but for the seal of this opening.
        let bytes = |disk: &SimDisk| disk.content(&segment()).expect("it is there");
        let end = place(BATCHES + 1);
        assert_eq!(bytes(&disk)[..end], bytes(&good)[..end]);
    });
    assert!(mended > 100, "{mended}");
}

fn make_snapshot(disk: &SimDisk, dir: &Path, zxid: u64) -> SnapshotInfo {
    let mut writer =
        SnapshotWriter::create_with(disk.clone(), dir, Zxid(zxid), None).expect("create");
    writer.push_chunk(1, &[1]).expect("push");
    writer.finish(0, [0; 4]).expect("finish")
}

#[test]
fn a_leaders_snapshot_makes_a_damaged_log_whole() {
    let good = filled(true);
    let mut visited = 0;
    combinations(|states| {
        if states[0] == State::Whole || states[2] != State::Whole {
            return;
        }
        visited += 1;
        let disk = good.after_power_cut(|_| true);
        damage(&disk, states);
        let Opened { store, mut log, .. } = open(&disk).expect("open");
        // The leader's history need not reach as far as what was here.
        let info = make_snapshot(&disk, store.snapshot_dir(), 4);
        disk.spawn(log.maintenance());
        let ended = disk.run(async move {
            store.install_snapshot(info).await.expect("install");
            assert_eq!(log.damage(), None);
            append(&mut log, 5..=6).await;
        });
        ended.expect("installing ends");
        let opened = open(&disk).expect("open");
        assert_eq!(opened.recovered.snapshots, [info]);
        assert_eq!(opened.recovered.holdings.damage, None);
        assert_eq!(opened.recovered.last_zxid, Zxid(6));
        assert_eq!(opened.recovered.current_epoch, Epoch(1));
    });
    assert!(visited > 100, "{visited}");
}

#[test]
fn a_segment_that_cannot_be_read_is_surveyed_around() {
    let disk = SimDisk::new(3);
    disk.run({
        let disk = disk.clone();
        async move {
            let opened = Store::open(disk.clone(), &Dirs::single("/data"), options()).await;
            let Opened { mut log, store, .. } = opened.expect("make a store");
            disk.spawn(log.maintenance());
            for zxid in 1..=50 {
                append(&mut log, zxid..=zxid).await;
            }
            assert!(store.close().await.expect("close"));
        }
    })
    .expect("the log is filled");
    let second = PathBuf::from(format!("/data/ringkeeper/log-{:016x}", 2));
    disk.damage(&second, |bytes| bytes[9] ^= 1);
    let opened = open(&disk).expect("open");
    let holdings = opened.recovered.holdings;
    let damage = holdings.damage.as_ref().expect("it is damaged");
    assert_eq!((&damage.file, damage.offset), (&second, 0));
    let of = |zxid| holdings.of(Zxid(zxid));
    let last_whole = opened.recovered.last_zxid.0;
    let faulty: Vec<u64> = (1..=50)
        .filter(|zxid| of(*zxid) == Holding::HaveFaulty)
        .collect();
    assert!(faulty.len() > 10 && faulty.first() == Some(&(last_whole + 1)));
    assert_eq!(of(last_whole), Holding::Have);
    assert_eq!((of(50), of(51)), (Holding::Have, Holding::DontHave));
    assert_eq!(holdings.faulty().len(), 1);
}
