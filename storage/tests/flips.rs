//! Every byte of a small directory on real files (of padding, every eighth), flipped one at a time: each start finds all of it, or says what is
//! damaged. Never anything else, and never a panic.
//!
//! The log was closed in order, so that not even its last batch may be taken for torn.
#![allow(clippy::print_stdout, reason = "the number of cases is printed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use futures_util::FutureExt as _;
use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{
    BLOCK_BYTES, Compression, Dirs, LogOptions, OpenError, Opened, SnapshotInfo, SnapshotReader,
    SnapshotWriter, StdDisk, Store,
};

const LAST: u64 = 6;
const SNAPSHOT: u64 = 2;
const EPOCHS: (Epoch, Epoch) = (Epoch(7), Epoch(6));

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 20 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 1 << 10,
        free_bytes_min: 0,
        spares_kept: 1,
    }
}

fn payload(zxid: u64) -> Vec<u8> {
    [0x5A_u8, 0xC3, 0x0F].repeat(usize::try_from(zxid).expect("it is small") * 20)
}

/// On memory where there is some: the same files, and nobody waits for a device.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("make a directory")
}

fn open(dir: &Path) -> Result<Opened<StdDisk>, OpenError> {
    let dirs = Dirs::single(dir);
    let opening = Store::open(StdDisk::new(), &dirs, options());
    opening
        .now_or_never()
        .expect("blocking files are ready at once")
}

fn done<T, E: std::fmt::Debug>(future: impl Future<Output = Result<T, E>>) -> T {
    let result = future.now_or_never();
    result
        .expect("blocking files are ready at once")
        .expect("it succeeds")
}

/// Makes the directory: batches over two segments, a compressed snapshot, both epochs.
fn make(dir: &Path) -> SnapshotInfo {
    let Opened { store, mut log, .. } = open(dir).expect("make a store");
    for zxid in 1..=LAST {
        let bytes = payload(zxid);
        let mut batch = log.new_batch();
        batch
            .append(Zxid(zxid), bytes.len(), |slot| slot.copy_from_slice(&bytes))
            .expect("append");
        done(log.write(batch, Zxid(zxid)));
    }
    done(store.save_epochs(EPOCHS.0, EPOCHS.1));
    let writer = SnapshotWriter::create(store.snapshot_dir(), Zxid(SNAPSHOT), None);
    let mut writer = writer.expect("create").compressed_by(Compression::Lz4);
    writer.push_chunk(1, &payload(40)).expect("push a chunk");
    writer.push_chunk(2, b"short").expect("push a chunk");
    let info = writer.finish(9, [1, 2, 3, 4]).expect("finish");
    done(store.register_snapshot(info));
    assert!(done(store.close()), "it is closed in order");
    info
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("list");
    let files = entries.map(|entry| {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("read");
        (path, bytes)
    });
    files.collect()
}

/// Brings the folder back to `files`, one of them changed.
fn restore(folder: &Path, files: &BTreeMap<PathBuf, Vec<u8>>, changed: (&Path, &[u8])) {
    for path in contents(folder)
        .keys()
        .filter(|path| !files.contains_key(*path))
    {
        fs::remove_file(path).expect("remove");
    }
    for (path, bytes) in files {
        let bytes = if path == changed.0 { changed.1 } else { bytes };
        fs::write(path, bytes).expect("write");
    }
}

/// What a start finds; `None` when it says that something is damaged.
fn found(dir: &Path) -> Option<Vec<(u64, Vec<u8>)>> {
    let Opened {
        store: _store,
        log,
        recovered,
    } = open(dir).ok()?;
    let listed: Vec<Zxid> = recovered.snapshots.iter().map(|info| info.zxid).collect();
    assert_eq!(listed, [Zxid(SNAPSHOT)]);
    assert_eq!((recovered.accepted_epoch, recovered.current_epoch), EPOCHS);
    assert_eq!(
        (recovered.last_zxid, recovered.committed),
        (Zxid(LAST), Zxid(LAST))
    );
    let mut records = Vec::new();
    let replayed = log.replay(Zxid(SNAPSHOT), |zxid, bytes| {
        records.push((zxid.0, bytes.to_vec()));
        Ok::<(), String>(())
    });
    replayed.now_or_never()?.ok().map(|_| records)
}

fn chunks(dir: &Path, info: SnapshotInfo) -> Option<Vec<Vec<u8>>> {
    let reader = SnapshotReader::open(&Dirs::single(dir).data_folder(), info).ok()?;
    assert_eq!((reader.info(), reader.counts()), (info, [1, 2, 3, 4]));
    let chunk = |place| {
        let mut bytes = Vec::new();
        reader.read_chunk(place, &mut bytes).ok().map(|()| bytes)
    };
    reader.chunks().iter().map(chunk).collect()
}

/// All bytes but most of the padding, of which every eighth stands for the rest.
fn is_flipped(bytes: &[u8], at: usize) -> bool {
    let block = bytes
        .get(at / BLOCK_BYTES * BLOCK_BYTES..)
        .unwrap_or_default();
    let block = block.get(..BLOCK_BYTES).unwrap_or(block);
    let written = block
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    at % BLOCK_BYTES < written || at.is_multiple_of(8)
}

#[test]
fn every_flipped_byte_is_noticed_or_does_not_matter() {
    let dir = directory();
    let info = make(dir.path());
    let folder = Dirs::single(dir.path()).data_folder();
    let files = contents(&folder);
    let history: Vec<_> = (SNAPSHOT + 1..=LAST)
        .map(|zxid| (zxid, payload(zxid)))
        .collect();
    let tree = vec![payload(40), b"short".to_vec()];
    let (mut whole, mut refused) = (0, 0);
    let mut kinds = BTreeMap::<String, usize>::new();
    for (path, bytes) in &files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let kind = name.split('-').next().unwrap_or_default().to_owned();
        *kinds.entry(kind.clone()).or_default() += 1;
        for at in (0..bytes.len()).filter(|at| is_flipped(bytes, *at)) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            if kind == "snapshot" {
                fs::write(path, &bad).expect("write");
                assert_eq!(
                    chunks(dir.path(), info),
                    None,
                    "byte {at} of {name} went unnoticed"
                );
                refused += 1;
                continue;
            }
            restore(&folder, &files, (path, &bad));
            match found(dir.path()) {
                Some(records) => {
                    assert_eq!(records, history, "byte {at} of {name}");
                    whole += 1;
                }
                None => refused += 1,
            }
        }
        restore(&folder, &files, (path, bytes));
        assert_eq!(chunks(dir.path(), info), Some(tree.clone()));
    }
    let names: Vec<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(names, ["lock", "log", "manifest", "snapshot"]);
    println!("{whole} flips do not matter, {refused} are refused");
    assert!(whole > 1000 && refused > 1000);
}
