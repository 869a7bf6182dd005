//! Power cuts at every operation of a workload, with every set of unflushed sectors and names that may
//! survive: what was acknowledged is there, what is there was submitted, in order, and the log goes on.
#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "test bytes wrap, and the number of states is printed"
)]

use std::{cell::RefCell, path::Path, rc::Rc};

use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{
    Dirs, LogOptions, Opened, SimDisk, SnapshotInfo, SnapshotReader, SnapshotWriter, StorageError,
    Store, TxnLog, offline::FileName,
};

/// All subsets of that many units are tried; beyond, a sample.
const UNITS_EXHAUSTED: usize = 8;
const SAMPLES: u64 = 128;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 24 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 6 << 10,
        free_bytes_min: 0,
        spares_kept: 1,
    }
}

/// Two directories: where they are one, a flush of the one's names hides that the other's was forgotten.
fn dirs() -> Dirs {
    Dirs {
        data: "/data".into(),
        log: "/log".into(),
    }
}

fn payload(zxid: u64) -> Vec<u8> {
    let len = [3, 700, 90, 2500, 5000][usize::try_from(zxid % 5).expect("below 5")];
    (0..len)
        .map(|i| (zxid.wrapping_mul(251) ^ i) as u8)
        .collect()
}

/// What the caller of the log has done, and what it was told.
#[derive(Debug, Default)]
struct Model {
    /// The log's history after each step: step 0 is the empty log.
    histories: Vec<Vec<u64>>,
    /// How many steps are acknowledged.
    acknowledged: usize,
    epochs_submitted: u32,
    epochs_acknowledged: u32,
}

impl Model {
    fn last(&self) -> &[u64] {
        self.histories.last().map_or(&[], Vec::as_slice)
    }
}

type Shared = Rc<RefCell<Model>>;

/// Hands a batch over and lets it finish in the background.
fn append(disk: &SimDisk, log: &mut TxnLog<SimDisk>, model: &Shared, zxids: &[u64]) {
    let mut batch = log.new_batch();
    for zxid in zxids {
        let bytes = payload(*zxid);
        batch
            .append(Zxid(*zxid), bytes.len(), |slot| {
                slot.copy_from_slice(&bytes)
            })
            .expect("append");
    }
    let committed = log.durable_through();
    let mut history = model.borrow().last().to_vec();
    history.extend_from_slice(zxids);
    step(disk, model, history, log.write(batch, committed));
}

fn truncate(disk: &SimDisk, log: &mut TxnLog<SimDisk>, model: &Shared, after: u64) {
    let history = model
        .borrow()
        .last()
        .iter()
        .copied()
        .filter(|zxid| *zxid <= after)
        .collect();
    step(disk, model, history, log.truncate(Zxid(after)));
}

fn step<E: std::fmt::Debug + 'static, T: 'static>(
    disk: &SimDisk,
    model: &Shared,
    history: Vec<u64>,
    done: impl Future<Output = Result<T, E>> + 'static,
) {
    let number = {
        let mut model = model.borrow_mut();
        model.histories.push(history);
        model.histories.len() - 1
    };
    let model = Rc::clone(model);
    disk.spawn(async move {
        done.await.expect("the disk does not fail here");
        let mut model = model.borrow_mut();
        assert_eq!(model.acknowledged + 1, number, "acknowledged out of order");
        model.acknowledged = number;
    });
}

async fn settle(log: &mut TxnLog<SimDisk>) {
    let batch = log.new_batch();
    log.write(batch, Zxid::ZERO)
        .await
        .expect("the disk does not fail here");
}

/// Writes and verifies a snapshot; `None` when the power went meanwhile.
fn write_snapshot(disk: &SimDisk, store: &Store<SimDisk>, history: &[u64]) -> Option<SnapshotInfo> {
    let zxid = Zxid(*history.last().expect("something to snapshot"));
    let made = || {
        let mut writer =
            SnapshotWriter::create_with(disk.clone(), store.snapshot_dir(), zxid, None)?;
        for zxid in history {
            writer.push_chunk(1, &zxid.to_be_bytes())?;
        }
        writer.finish(history.len() as u64, [0; 4])
    };
    let made = made();
    // The blocking files report a power cut as an error; the rest of the workload does not happen.
    (!disk.is_powerless()).then(|| made.expect("the disk does not fail here"))
}

async fn snapshot(disk: &SimDisk, store: &Store<SimDisk>, history: &[u64]) -> Option<()> {
    let info = write_snapshot(disk, store, history)?;
    store.register_snapshot(info).await.expect("register");
    Some(())
}

/// Takes a snapshot of all that was written, and purges what it makes superfluous.
async fn snapshot_and_purge(disk: &SimDisk, store: &Store<SimDisk>, model: &Shared) -> Option<()> {
    let history = model.borrow().last().to_vec();
    snapshot(disk, store, &history).await?;
    store.purge(1).await.expect("purge");
    Some(())
}

/// Puts a leader's snapshot in the place of everything.
async fn install(
    disk: &SimDisk,
    store: &Store<SimDisk>,
    model: &Shared,
    history: &[u64],
) -> Option<()> {
    let info = write_snapshot(disk, store, history)?;
    model.borrow_mut().histories.push(history.to_vec());
    store.install_snapshot(info).await.expect("install");
    let mut model = model.borrow_mut();
    // What was in flight is of a history that does not count any more.
    model.acknowledged = model.histories.len() - 1;
    Some(())
}

/// Batches in flight together, rolls, a truncation, epochs, snapshots, purge, recycled segments.
async fn workload(disk: SimDisk, model: Shared) -> Option<()> {
    model.borrow_mut().histories.push(Vec::new());
    let opened = Store::open(disk.clone(), &dirs(), options())
        .await
        .expect("make a store");
    let Opened { store, mut log, .. } = opened;
    disk.spawn(log.maintenance());
    append(&disk, &mut log, &model, &[1]);
    settle(&mut log).await;
    append(&disk, &mut log, &model, &[2, 3]);
    append(&disk, &mut log, &model, &[4]);
    append(&disk, &mut log, &model, &[5, 6, 7]);
    for epoch in 1..=2 {
        model.borrow_mut().epochs_submitted = epoch;
        store
            .save_epochs(Epoch(epoch), Epoch(epoch))
            .await
            .expect("save epochs");
        model.borrow_mut().epochs_acknowledged = epoch;
    }
    settle(&mut log).await;
    for zxid in 8..=11 {
        append(&disk, &mut log, &model, &[zxid]);
    }
    settle(&mut log).await;
    truncate(&disk, &mut log, &model, 9);
    append(&disk, &mut log, &model, &[20, 21]);
    append(&disk, &mut log, &model, &[22]);
    settle(&mut log).await;
    snapshot_and_purge(&disk, &store, &model).await?;
    for zxid in 23..=31 {
        append(&disk, &mut log, &model, &[zxid]);
        if zxid % 3 == 0 {
            settle(&mut log).await;
        }
    }
    log.seal(Zxid(28)).await.expect("seal");
    snapshot_and_purge(&disk, &store, &model).await?;
    assert!(
        disk.files()
            .iter()
            .any(|path| path.ends_with("snapshot-spare"))
    );
    append(&disk, &mut log, &model, &[32]);
    settle(&mut log).await;
    // Over the file that the purge has left.
    snapshot_and_purge(&disk, &store, &model).await?;
    for zxid in 33..=37 {
        append(&disk, &mut log, &model, &[zxid]);
    }
    settle(&mut log).await;
    assert!(store.close().await.expect("close"));
    drop((store, log));
    // A second run of the server, which takes the clean end back.
    let opened = Store::open(disk.clone(), &dirs(), options())
        .await
        .expect("open again");
    let Opened { store, mut log, .. } = opened;
    append(&disk, &mut log, &model, &[38, 39]);
    // A snapshot lies above the truncation, another below.
    let history = model.borrow().last().to_vec();
    settle(&mut log).await;
    snapshot(&disk, &store, &history).await?;
    store
        .discard_snapshots_above(Zxid(36))
        .await
        .expect("discard");
    truncate(&disk, &mut log, &model, 36);
    append(&disk, &mut log, &model, &[37, 38, 39]);
    settle(&mut log).await;
    disk.spawn(log.maintenance());
    // The leader's history is another one, and its last zxid below what was here.
    install(&disk, &store, &model, &[1, 2, 33]).await?;
    append(&disk, &mut log, &model, &[34]);
    append(&disk, &mut log, &model, &[35, 36]);
    settle(&mut log).await;
    install(&disk, &store, &model, &[1, 2, 33, 38]).await?;
    append(&disk, &mut log, &model, &[39]);
    // More than two segments at once: not all of them are ready.
    for zxid in 40..=47 {
        append(&disk, &mut log, &model, &[zxid]);
    }
    settle(&mut log).await;
    assert!(store.close().await.expect("close"));
    Some(())
}

/// Opens what is left and holds it against the model; returns the last zxid found.
fn check(disk: &SimDisk, model: &Model, context: &str) -> u64 {
    // What has a snapshot's name is whole, listed or not: tools look at it too.
    for path in disk.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if matches!(FileName::parse(&name), Some(FileName::Snapshot(_))) {
            read_snapshot(disk, &path, context);
        }
    }
    let (found, epoch, last) = disk
        .run({
            let (disk, context) = (disk.clone(), context.to_owned());
            async move {
                let opened = Store::open(disk.clone(), &dirs(), options())
                    .await
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                let (recovered, log) = (&opened.recovered, &opened.log);
                let mut history = Vec::new();
                if let Some(info) = recovered.snapshot() {
                    let path = format!("/data/ringkeeper/snapshot-{:016x}", info.zxid.0);
                    history = read_snapshot(&disk, path.as_ref(), &context);
                    assert_eq!(history.len() as u64, info.digest, "{context}");
                }
                let after = history.last().copied().unwrap_or(0);
                log.replay(Zxid(after), |zxid, bytes| {
                    assert_eq!(bytes, payload(zxid.0), "{context}: bytes of {zxid}");
                    history.push(zxid.0);
                    Ok::<(), String>(())
                })
                .await
                .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert!(recovered.committed <= recovered.last_zxid, "{context}");
                (history, recovered.current_epoch.0, recovered.last_zxid.0)
            }
        })
        .unwrap_or_else(|| panic!("{context}: recovery hangs"));
    let epochs = model.epochs_acknowledged..=model.epochs_submitted;
    assert!(epochs.contains(&epoch), "{context}: epoch {epoch}");
    // Any step that was submitted may have reached the disk, none that was acknowledged may be missing.
    let possible = model
        .histories
        .get(model.acknowledged..)
        .unwrap_or_default();
    let matches = possible.contains(&found) || model.histories.is_empty() && found.is_empty();
    assert!(
        matches,
        "{context}: found {found:?}, acknowledged {:?}",
        model.histories.get(model.acknowledged)
    );
    last
}

fn read_snapshot(disk: &SimDisk, path: &Path, context: &str) -> Vec<u64> {
    let damaged =
        |error: StorageError| format!("{context}: {} is damaged: {error}", path.display());
    let opened = SnapshotReader::open_file_with(disk, path);
    let reader = opened.unwrap_or_else(|error| panic!("{}", damaged(error)));
    let mut bytes = Vec::new();
    let history: Vec<u64> = reader
        .chunks()
        .iter()
        .map(|chunk| {
            let read = reader.read_chunk(chunk, &mut bytes);
            read.unwrap_or_else(|error| panic!("{}", damaged(error)));
            u64::from_be_bytes(bytes.as_slice().try_into().expect("eight bytes"))
        })
        .collect();
    assert_eq!(history.len() as u64, reader.info().digest, "{context}");
    history
}

/// What is written after recovery is there after another start, whatever was cut before.
fn goes_on(disk: &SimDisk, last: u64, context: &str) {
    let (first, end) = (last + 1000, last + 1001);
    disk.run({
        let disk = disk.clone();
        async move {
            let opened = Store::open(disk.clone(), &dirs(), options())
                .await
                .expect("open again");
            let Opened { store, mut log, .. } = opened;
            for zxid in first..=end {
                let mut batch = log.new_batch();
                batch
                    .append(Zxid(zxid), 1, |slot| slot.fill(1))
                    .expect("append");
                log.write(batch, Zxid::ZERO).await.expect("write");
                if zxid == first {
                    // What was cut has lower zxids than this snapshot, and must not be taken for a start.
                    snapshot(&disk, &store, &[zxid])
                        .await
                        .expect("the power is on");
                }
            }
        }
    })
    .unwrap_or_else(|| panic!("{context}: the writes hang"));
    let after = disk.after_power_cut(|_| false);
    let found = after.run({
        let disk = after.clone();
        async move {
            let opened = Store::open(disk, &dirs(), options())
                .await
                .expect("open once more");
            let count = opened
                .log
                .replay(Zxid(first), |_, _| Ok::<(), String>(()))
                .await;
            (opened.recovered.last_zxid.0, count.expect("replay"))
        }
    });
    assert_eq!(found, Some((end, 1)), "{context}");
}

/// Calls `visit` with every set of `units`, or with a sample.
fn subsets(units: usize, seed: u64, mut visit: impl FnMut(&dyn Fn(usize) -> bool)) {
    if units <= UNITS_EXHAUSTED {
        for mask in 0..1_u64 << units {
            visit(&|unit| mask >> unit & 1 == 1);
        }
        return;
    }
    visit(&|_| false);
    visit(&|_| true);
    for sample in 0..SAMPLES {
        // Some sets keep most, some little.
        let density = sample % 4 + 1;
        let keeps = |unit: usize| mix(seed, sample * 1000 + unit as u64) % 5 < density;
        visit(&keeps);
    }
}

fn mix(seed: u64, value: u64) -> u64 {
    let mut z = seed.wrapping_add(value.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Runs the workload until the power is cut at `cut`; the model says what was acknowledged by then.
fn cut_at(seed: u64, cut: u64) -> (SimDisk, Model, bool) {
    let disk = SimDisk::new(seed);
    disk.reorder();
    disk.cut_power_at(cut);
    let model: Shared = Rc::default();
    let done = disk.run(workload(disk.clone(), Rc::clone(&model)));
    let model = model.replace(Model::default());
    (disk, model, matches!(done, Some(Some(()))))
}

fn every_cut(seed: u64, recovery_cuts: u64) -> (u64, u64) {
    let (mut states, mut cuts) = (0, 0);
    for cut in 0.. {
        let (disk, model, done) = cut_at(seed, cut);
        if done {
            break;
        }
        cuts += 1;
        subsets(disk.unflushed(), seed ^ cut, |keeps| {
            let left = disk.after_power_cut(keeps);
            states += 1;
            let context = format!("seed {seed}, cut {cut}, state {states}");
            if recovery_cuts > 0 && states % recovery_cuts == 0 {
                states += cut_recovery(&left, &model, &context);
            }
            let again = left.after_power_cut(|_| true);
            let last = check(&left, &model, &context);
            if states % 4 == 0 {
                goes_on(&again, last, &context);
            }
        });
    }
    (states, cuts)
}

/// Cuts the power again at every operation of the recovery.
fn cut_recovery(left: &SimDisk, model: &Model, context: &str) -> u64 {
    let mut states = 0;
    for cut in 0.. {
        let disk = left.after_power_cut(|_| true);
        disk.cut_power_at(cut);
        let cut_short = disk.run({
            let disk = disk.clone();
            async move {
                Store::open(disk, &dirs(), options()).await.expect("open");
            }
        });
        if cut_short.is_some() {
            return states;
        }
        let units = disk.unflushed().min(3);
        for mask in 0..1_u64 << units {
            let twice = disk.after_power_cut(|unit| mask >> (unit % 3) & 1 == 1);
            states += 1;
            check(
                &twice,
                model,
                &format!("{context}, recovery cut {cut}, mask {mask}"),
            );
        }
    }
    states
}

#[test]
fn every_power_cut_keeps_what_was_acknowledged() {
    let (mut states, mut cuts) = (0, 0);
    for seed in [1, 2] {
        let (more, at) = every_cut(seed, 97);
        states += more;
        cuts += at;
    }
    println!("{states} states after {cuts} power cuts");
    assert!(states > 8_000, "{states} states");
}
