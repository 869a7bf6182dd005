//! Segments are made ready before they are needed, and where that is late, nobody waits for zeros.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    Dirs, Disk as _, LogOptions, Opened, SimDisk, SnapshotWriter, Store, TxnLog, Urgency,
};
use support::{on_executor, small, temp_dir};

/// A segment of eleven batches of one record.
fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 48 << 10,
        batch_bytes_max: 4 << 10,
        record_bytes_max: 4 << 10,
        free_bytes_min: 0,
        spares_kept: 8,
    }
}

fn open(disk: &SimDisk) -> Opened<SimDisk> {
    let (disk, dirs) = (disk.clone(), Dirs::single("/data"));
    let runner = disk.clone();
    let opened = runner.run(async move { Store::open(disk, &dirs, options()).await });
    opened.expect("opening comes to an end").expect("open")
}

fn write(disk: &SimDisk, log: &mut TxnLog<SimDisk>, zxid: u64) {
    let mut batch = log.new_batch();
    batch
        .append(Zxid(zxid), 100, |slot| slot.fill(7))
        .expect("append");
    let written = log.write(batch, Zxid(zxid));
    disk.run(written)
        .expect("the write comes to an end")
        .expect("write");
}

fn spares(disk: &SimDisk) -> usize {
    let is_spare = |path: &&PathBuf| path.to_string_lossy().contains("spare-");
    disk.files().iter().filter(is_spare).count()
}

#[test]
fn how_much_the_next_segment_is_wanted_follows_the_log() {
    let disk = SimDisk::new(1);
    let Opened {
        mut log,
        store: _store,
        ..
    } = open(&disk);
    assert_eq!(
        disk.last_urgency(),
        Some(Urgency::Soon),
        "a new store's first segment is filled"
    );
    // Nobody maintains: the roll finds nothing, and its batch waits.
    for zxid in 1..=12 {
        write(&disk, &mut log, zxid);
    }
    assert_eq!(disk.last_urgency(), Some(Urgency::Waiting));
    disk.spawn(log.maintenance());
    write(&disk, &mut log, 13);
    assert_eq!(
        disk.last_urgency(),
        Some(Urgency::Soon),
        "the log has begun to fill the active one"
    );
    let stats = log.stats();
    assert_eq!((stats.rolls, stats.rolls_unprepared), (1, 1));
    for zxid in 14..=24 {
        write(&disk, &mut log, zxid);
    }
    let stats = log.stats();
    assert_eq!(
        (stats.rolls, stats.rolls_unprepared),
        (2, 1),
        "the second was ready"
    );
}

#[test]
fn a_log_that_a_snapshot_replaces_waits_for_no_zeros() {
    let disk = SimDisk::new(1);
    let Opened { mut log, store, .. } = open(&disk);
    write(&disk, &mut log, 1);
    assert_eq!(disk.last_urgency(), Some(Urgency::Soon));
    log.begin_generation(1);
    let files = disk.clone();
    let install = async move {
        let writer = SnapshotWriter::create_with(files, store.snapshot_dir(), Zxid(60), None);
        let snapshot = writer.expect("create").finish(0, [0; 4]).expect("finish");
        store.install_snapshot(snapshot).await.expect("install");
    };
    disk.run(install).expect("the installation comes to an end");
    assert_eq!(disk.last_urgency(), Some(Urgency::Waiting));
    write(&disk, &mut log, 61);
}

/// Takes a snapshot of nothing at `zxid`, and purges all before it; how many segments that freed.
fn snapshot_and_purge(disk: &SimDisk, store: &Store<SimDisk>, zxid: u64) -> usize {
    let (files, store) = (disk.clone(), store.clone());
    let purge = async move {
        let dir = store.snapshot_dir().to_path_buf();
        let writer = SnapshotWriter::create_with(files, &dir, Zxid(zxid), None);
        let snapshot = writer.expect("create").finish(0, [0; 4]).expect("finish");
        store.register_snapshot(snapshot).await.expect("register");
        store.purge(1).await.expect("purge").segments
    };
    disk.run(purge).expect("the purge comes to an end")
}

/// The log needs as many segments until the next purge as the last one has freed; what a burst has left beyond that goes.
#[test]
fn as_many_spares_stay_as_a_purge_frees() {
    let disk = SimDisk::new(1);
    let Opened { mut log, store, .. } = open(&disk);
    let options = options();
    let mut zxid = 0;
    let mut fill_and_purge = |segments: usize| {
        for _ in 0..segments * 11 {
            zxid += 1;
            write(&disk, &mut log, zxid);
        }
        snapshot_and_purge(&disk, &store, zxid)
    };
    let minute = Duration::from_secs(60);
    disk.spawn(store.trim());
    let burst = fill_and_purge(20);
    assert!(burst > 2 * options.spares_kept, "{burst} segments freed");
    disk.pass(minute);
    assert_eq!(spares(&disk), burst);
    // As much again makes no file and removes none.
    assert_eq!(fill_and_purge(20), 20);
    disk.pass(minute);
    assert_eq!(spares(&disk), 20);
    let few = fill_and_purge(3);
    assert!(few < options.spares_kept, "{few} segments freed");
    assert_eq!(spares(&disk), 20, "what is too many goes later");
    disk.pass(minute);
    assert_eq!(spares(&disk), options.spares_kept);
    disk.set_available(0);
    disk.pass(minute);
    assert_eq!(spares(&disk), 2, "few stay where space is short");
}

/// A start is not the time to free much: what it finds becomes spares.
#[test]
fn a_start_keeps_what_it_finds() {
    let disk = SimDisk::new(1);
    let Opened { mut log, store, .. } = open(&disk);
    for zxid in 1..=220 {
        write(&disk, &mut log, zxid);
    }
    let freed = snapshot_and_purge(&disk, &store, 220);
    let dir = store.snapshot_dir().to_path_buf();
    let unfinished = SnapshotWriter::create_with(disk.clone(), &dir, Zxid(221), None);
    let _unfinished = unfinished.expect("create");
    drop((log, store));
    let opened = open(&disk);
    assert_eq!(opened.recovered.last_zxid, Zxid(220));
    let names = disk.files();
    let spare = dir.join("snapshot-spare");
    assert!(names.contains(&spare), "{names:?}");
    assert!(freed > options().spares_kept && spares(&disk) >= freed);
}

#[test]
fn purged_segments_are_kept_while_there_is_room() {
    for (available, expect) in [(1 << 40, 5), (300 << 10, 2)] {
        let disk = SimDisk::new(1);
        let Opened { mut log, store, .. } = open(&disk);
        for zxid in 1..=60 {
            write(&disk, &mut log, zxid);
        }
        assert_eq!(spares(&disk), 0);
        disk.set_available(available);
        let files = disk.clone();
        let purge = async move {
            for zxid in [Zxid(59), Zxid(60)] {
                let files = files.clone();
                let writer = SnapshotWriter::create_with(files, store.snapshot_dir(), zxid, None);
                let snapshot = writer.expect("create").finish(0, [0; 4]).expect("finish");
                store.register_snapshot(snapshot).await.expect("register");
            }
            let purged = store.purge(1).await.expect("purge");
            let has_spare = || {
                let files = files.files();
                files.iter().any(|path| path.ends_with("snapshot-spare"))
            };
            assert_eq!(has_spare(), expect > 2, "{available} bytes left");
            files.set_available(300 << 10);
            store.purge(1).await.expect("purge");
            assert!(!has_spare(), "it goes when space gets short");
            purged
        };
        let purged = disk.run(purge).expect("the purge comes to an end");
        assert_eq!(purged.segments, 5);
        assert_eq!(spares(&disk), expect, "{available} bytes left");
    }
}

/// What is only reserved reads as zeros, has its whole length, and takes durable writes.
#[test]
fn a_file_that_is_waited_for_is_as_good_as_a_filled_one() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let disk = ringkeeper_storage::DmaDisk::new().expect("start the disk");
        for (name, urgency) in [("filled", Urgency::Soon), ("reserved", Urgency::Waiting)] {
            check_file(&disk, &path.join(name), urgency).await;
        }
    });
}

/// Piece by piece, and the file is gone in the end; also a part of one.
#[test]
fn a_file_that_is_removed_gently_is_gone() {
    let dir = temp_dir();
    let path = dir.path().join("file");
    on_executor(move || async move {
        let disk = ringkeeper_storage::DmaDisk::new().expect("start the disk");
        for bytes in [4096, (2 << 20) + 4096] {
            let made = disk.create_zeroed(&path, bytes, |_| Urgency::Soon).await;
            disk.close(made.expect("make the file")).await;
            disk.remove_gently(&path, bytes).await.expect("remove");
            assert!(!path.exists(), "{bytes} bytes");
            let again = disk.remove_gently(&path, bytes).await;
            let kind = again.expect_err("it is gone").kind();
            assert_eq!(kind, std::io::ErrorKind::NotFound);
        }
    });
}

async fn check_file(disk: &ringkeeper_storage::DmaDisk, path: &Path, urgency: Urgency) {
    use ringkeeper_storage::DiskBuffer as _;
    let len = usize::try_from(small().segment_bytes).expect("it is small");
    let bytes = len as u64;
    let file = disk
        .create_zeroed(path, bytes, |_| urgency)
        .await
        .expect("make the file");
    assert_eq!(disk.size(&file).await.expect("ask for its size"), bytes);
    // A reserved extent that nobody has written is a hole to whoever looks for data.
    let told = std::fs::File::open(path).expect("open");
    let data = rustix::fs::seek(&told, rustix::fs::SeekFrom::Data(0));
    assert_eq!(
        data.ok(),
        (urgency != Urgency::Waiting).then_some(0),
        "{urgency:?}"
    );
    let mut buffer = ringkeeper_storage::AlignedBuffer::with_capacity(4096);
    buffer.bytes_mut().fill(9);
    let place = len / 2..len / 2 + 4096;
    disk.write_durable_at(&file, bytes / 2, &buffer)
        .await
        .expect("write");
    let all = disk.read_at(&file, 0, len).await.expect("read");
    assert_eq!(all.len(), len);
    let is_right = all
        .iter()
        .enumerate()
        .all(|(index, byte)| *byte == if place.contains(&index) { 9 } else { 0 });
    assert!(is_right, "{urgency:?}");
    drop(all);
    disk.close(file).await;
}
