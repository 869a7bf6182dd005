//! The log on real files.

mod support;

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{
    Dirs, DmaDisk, DurableVariant, LogOptions, OpenError, StorageError, Store, Tail, choose_variant,
};
use ringkeeper_transport::spawn_local;

use support::{on_executor, open, payload, read, small, temp_dir, write};

#[test]
fn write_reopen_read() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        assert!(opened.recovered.fresh);
        assert_eq!(write(&mut opened.log, 1..=3, 100).await, Zxid(3));
        assert_eq!(write(&mut opened.log, 4..=4, 5000).await, Zxid(4));
        opened
            .store
            .save_epochs(Epoch(7), Epoch(6))
            .await
            .expect("save epochs");
        drop(opened);

        let opened = open(&path, small()).await.expect("open the store");
        let recovered = &opened.recovered;
        assert_eq!((recovered.fresh, recovered.last_zxid), (false, Zxid(4)));
        assert_eq!(
            (recovered.accepted_epoch, recovered.current_epoch),
            (Epoch(7), Epoch(6))
        );
        assert_eq!(
            (recovered.tail, recovered.committed),
            (Tail::Clean, Zxid(3))
        );
        let expect: Vec<_> = [(1, 100), (2, 100), (3, 100), (4, 5000)]
            .map(|(zxid, len)| (zxid, payload(zxid, len)))
            .to_vec();
        assert_eq!(read(&opened.log, 0).await, expect);
        assert_eq!(read(&opened.log, 2).await, expect[2..]);
    });
}

#[test]
fn many_in_flight_finish_in_order_over_many_segments() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        spawn_local(opened.log.maintenance()).detach();
        let mut zxid = 0;
        for _ in 0..40 {
            let mut tasks = Vec::new();
            for _ in 0..4 {
                let mut batch = opened.log.new_batch();
                while batch.has_room(900) {
                    zxid += 1;
                    let bytes = payload(zxid, 900);
                    batch
                        .append(Zxid(zxid), 900, |slot| slot.copy_from_slice(&bytes))
                        .expect("append");
                }
                let last = batch.last_zxid();
                let written = opened.log.write(batch, Zxid::ZERO);
                tasks.push((last, spawn_local(written)));
            }
            for (last, task) in tasks {
                assert!(task.await.expect("write") >= last);
            }
        }
        let stats = opened.log.stats();
        assert!(stats.rolls > 15, "{} rolls", stats.rolls);
        let amplification = stats.write_amplification().expect("records were written");
        assert!(
            amplification < 1.1,
            "{amplification} bytes written per payload byte"
        );
        assert_eq!(read(&opened.log, 0).await.len() as u64, zxid);
        drop(opened);

        let mut opened = open(&path, small()).await.expect("open the store");
        let records = read(&opened.log, 0).await;
        assert_eq!(records.len() as u64, zxid);
        assert!(
            records
                .iter()
                .zip(1..)
                .all(|((found, bytes), zxid)| { *found == zxid && *bytes == payload(zxid, 900) })
        );
        write(&mut opened.log, zxid + 1..=zxid + 1, 10).await;
        assert_eq!(read(&opened.log, zxid).await.len(), 1);
    });
}

#[test]
fn segments_longer_than_what_is_read_at_a_time_are_read_whole() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    let options = LogOptions {
        segment_bytes: 9 << 20,
        batch_bytes_max: 1 << 20,
        record_bytes_max: 1 << 20,
        ..small()
    };
    // From one block to more than a third of what is read at a time, so that batches lie over its ends.
    let len_of = |zxid: u64| (zxid * 7919 * 61 % 800_000) as usize;
    on_executor(move || async move {
        let mut opened = open(&path, options.clone()).await.expect("make a store");
        for zxid in 1..=60 {
            write(&mut opened.log, zxid..=zxid, len_of(zxid)).await;
        }
        assert!(opened.log.stats().rolls > 1);
        drop(opened);
        let opened = open(&path, options).await.expect("open the store");
        assert_eq!(opened.recovered.last_zxid, Zxid(60));
        for after in [0, 1, 33] {
            let records = read(&opened.log, after).await;
            assert_eq!(records.len() as u64, 60 - after);
            for (zxid, bytes) in records {
                assert!(bytes == payload(zxid, len_of(zxid)), "record {zxid}");
            }
        }
    });
}

#[test]
fn truncation_and_reset_survive_a_restart() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        write(&mut opened.log, 1..=9, 10).await;
        assert_eq!(
            opened.log.truncate(Zxid(4)).await.expect("truncate"),
            Zxid(4)
        );
        write(&mut opened.log, 5..=6, 20).await;
        let zxids = |records: Vec<(u64, Vec<u8>)>| records.iter().map(|r| r.0).collect::<Vec<_>>();
        assert_eq!(zxids(read(&opened.log, 0).await), [1, 2, 3, 4, 5, 6]);
        drop(opened);

        let mut opened = open(&path, small()).await.expect("open the store");
        assert_eq!(zxids(read(&opened.log, 0).await), [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            read(&opened.log, 4).await,
            [(5, payload(5, 20)), (6, payload(6, 20))]
        );
        opened.log.reset(Zxid(100)).await.expect("reset");
        write(&mut opened.log, 101..=102, 20).await;
        drop(opened);

        let opened = open(&path, small()).await.expect("open the store");
        assert_eq!(zxids(read(&opened.log, 0).await), [101, 102]);
        assert_eq!(opened.recovered.last_zxid, Zxid(102));
    });
}

#[test]
fn refuses_what_is_not_ours_and_a_second_process() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        std::fs::create_dir(path.join("version-2")).expect("make Apache's directory");
        std::fs::write(path.join("version-2/acceptedEpoch"), "1").expect("write a file");
        assert!(matches!(
            open(&path, small()).await,
            Err(OpenError::ApacheData(_))
        ));
        // Empty it is what a server that never ran has left.
        std::fs::remove_file(path.join("version-2/acceptedEpoch")).expect("remove it");

        std::fs::create_dir(path.join("ringkeeper")).expect("make our directory");
        std::fs::write(path.join("ringkeeper/letter.txt"), "not ours").expect("write a file");
        assert!(matches!(
            open(&path, small()).await,
            Err(OpenError::Foreign { .. })
        ));
        std::fs::remove_file(path.join("ringkeeper/letter.txt")).expect("remove it");

        let held = open(&path, small()).await.expect("make a store");
        assert!(matches!(
            open(&path, small()).await,
            Err(OpenError::Locked(_))
        ));
        drop(held);
        open(&path, small()).await.expect("open the store again");

        for copy in ["manifest-a", "manifest-b"] {
            std::fs::write(path.join("ringkeeper").join(copy), [7; 4096]).expect("damage a copy");
        }
        assert!(matches!(
            open(&path, small()).await,
            Err(OpenError::ManifestUnreadable(_))
        ));
    });
}

#[test]
fn a_dropped_write_latches() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        let mut batch = opened.log.new_batch();
        batch
            .append(Zxid(1), 1, |slot| slot.fill(1))
            .expect("append");
        drop(opened.log.write(batch, Zxid::ZERO));
        assert!(matches!(opened.log.admits(), Err(StorageError::Abandoned)));
        let mut batch = opened.log.new_batch();
        batch
            .append(Zxid(2), 1, |slot| slot.fill(1))
            .expect("append");
        let refused = opened.log.write(batch, Zxid::ZERO).await;
        assert!(matches!(refused, Err(StorageError::Abandoned)));
    });
}

#[test]
fn log_in_a_directory_of_its_own() {
    let (data, log) = (temp_dir(), temp_dir());
    let dirs = Dirs {
        data: data.path().to_path_buf(),
        log: log.path().to_path_buf(),
    };
    on_executor(move || async move {
        for run in 1..=3_u64 {
            let disk = DmaDisk::new().expect("start the disk");
            let mut opened = Store::open(disk, &dirs, small())
                .await
                .expect("open the store");
            assert_eq!(read(&opened.log, 0).await.len() as u64, run - 1);
            write(&mut opened.log, run..=run, 10).await;
        }
        let names = |dir: &std::path::Path| {
            let mut names: Vec<_> = std::fs::read_dir(dir.join("ringkeeper"))
                .expect("list")
                .map(|entry| {
                    entry
                        .expect("entry")
                        .file_name()
                        .into_string()
                        .expect("UTF-8")
                })
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&dirs.data), ["lock", "manifest-a", "manifest-b"]);
        assert_eq!(names(&dirs.log), ["lock", "log-0000000000000001"]);
    });
}

#[test]
fn snapshot_and_purge_free_the_log() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        let mut zxid = 0;
        for round in 1..=4_u64 {
            // More than two segments each.
            for _ in 0..25 {
                write(&mut opened.log, zxid + 1..=zxid + 20, 1200).await;
                zxid += 20;
            }
            let folder = opened.store.snapshot_dir().to_path_buf();
            let info = std::thread::spawn(move || {
                let mut writer =
                    ringkeeper_storage::SnapshotWriter::create(&folder, Zxid(round * 500), None)
                        .expect("create a snapshot");
                writer
                    .push_chunk(1, &round.to_be_bytes())
                    .expect("push a chunk");
                writer
                    .finish(round, [round; 4])
                    .expect("finish the snapshot")
            })
            .join()
            .expect("join the snapshot thread");
            opened
                .store
                .register_snapshot(info)
                .await
                .expect("register");
        }
        let purged = opened.store.purge(2).await.expect("purge");
        assert_eq!((purged.snapshots, purged.oldest), (2, Some(Zxid(1500))));
        assert!(purged.segments >= 6, "{purged:?}");
        let names = std::fs::read_dir(opened.store.snapshot_dir()).expect("list");
        let mut names: Vec<_> = names
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .map(|name| name.expect("our names are ASCII"))
            .filter(|name| name.starts_with("snapshot-"))
            .collect();
        names.sort();
        let kept = [1500, 2000].map(|zxid| format!("snapshot-{zxid:016x}"));
        assert_eq!(names[..2], kept, "{names:?}");
        assert_eq!(names[2..], ["snapshot-spare"]);
        assert_eq!(opened.store.purge(2).await.expect("purge").segments, 0);
        assert_eq!(read(&opened.log, 1500).await.len(), 500);
        assert!(matches!(
            opened
                .log
                .replay(Zxid(10), |_, _| Ok::<(), String>(()))
                .await,
            Err(StorageError::Purged { .. })
        ));
        drop(opened);

        let mut opened = open(&path, small()).await.expect("open the store");
        let zxids: Vec<_> = opened
            .recovered
            .snapshots
            .iter()
            .map(|info| info.zxid.0)
            .collect();
        assert_eq!(zxids, [2000, 1500]);
        assert_eq!(read(&opened.log, 1500).await.len(), 500);
        write(&mut opened.log, 2001..=2001, 10).await;
        // The recycled segments are taken again, and what they held before is not met.
        for start in (2002..5000).step_by(20) {
            write(&mut opened.log, start..=start + 19, 1200).await;
        }
        drop(opened);
        let opened = open(&path, small()).await.expect("open the store");
        assert_eq!(opened.recovered.tail, Tail::Clean);
        assert_eq!(read(&opened.log, 2000).await.len(), 3001);
    });
}

#[test]
fn the_probe_chooses_and_says_why() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let (disk, report) = ringkeeper_storage::probe(&path).await.expect("probe");
        assert_eq!(disk.variant(), report.variant);
        assert!(!report.dsync.is_zero() && !report.write_then_flush.is_zero());
        assert!(
            report.to_string().contains(report.variant.name()),
            "{report}"
        );
        assert_eq!(std::fs::read_dir(&path).expect("list").count(), 0);
    });
}

#[test]
fn the_probe_does_not_wait_for_a_busy_device() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let disk = DmaDisk::new().expect("start the disk");
        disk.slow_down(Duration::from_millis(250));
        let report = choose_variant(&disk, &path).await.expect("probe");
        assert_eq!(report.rounds, 1, "{report}");
        assert_eq!(report.variant, DurableVariant::Dsync);
        assert!(report.to_string().contains("busy"), "{report}");
    });
}

/// Damages a small log on real files, one byte at a time: the whole history, or a refusal.
#[test]
fn every_flipped_byte_is_survived_or_refused() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        write(&mut opened.log, 1..=2, 70).await;
        write(&mut opened.log, 3..=3, 300).await;
        opened.log.seal(Zxid(3)).await.expect("seal");
        drop(opened);
        let file = path.join("ringkeeper/log-0000000000000001");
        let good = std::fs::read(&file).expect("read the log");
        let last = good
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("something was written");
        let expect = [
            (1, payload(1, 70)),
            (2, payload(2, 70)),
            (3, payload(3, 300)),
        ];
        let (mut whole, mut refused) = (0, 0);
        let disk = DmaDisk::new().expect("start the disk");
        // Padding is zeros; a sample of it is enough here.
        for at in (0..=last).filter(|at| good[*at] != 0 || at % 64 == 0) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let target = std::fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .expect("open the log");
            // What was written, and the seals that opening it has added.
            let used = last.next_multiple_of(4096) + (16 << 10);
            target.write_all_at(&bad[..used], 0).expect("write the log");
            match Store::open(disk.clone(), &Dirs::single(&path), small()).await {
                Ok(opened) => {
                    assert_eq!(read(&opened.log, 0).await, expect, "byte {at}");
                    whole += 1;
                }
                Err(OpenError::Damaged(_) | OpenError::Segment(_)) => refused += 1,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(
            refused > 500 && whole > 50,
            "{refused} refused, {whole} harmless"
        );
    });
}
