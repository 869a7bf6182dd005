//! What an append costs over the disk's floor: `cargo run --release -p ringkeeper-storage --example append
//! -- DIR`.
//!
//! Writes of 4 KiB in turn: blocking `pwrite` on an O_DIRECT | O_DSYNC descriptor (the floor), the same
//! by the disk of the log, and a one-record append through the log. Then throughput with several batches in
//! flight, bytes written per record byte, and the time of a restart.
#![expect(clippy::print_stdout, reason = "a measurement for people to read")]

use std::{
    fs,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    AlignedBuffer, BLOCK_BYTES, Dirs, Disk as _, DiskBuffer as _, DmaDisk, LogOptions, Store,
    TxnLog, Urgency, disk_ring, probe,
};
use ringkeeper_transport::{DiskHooks, ExecutorSpec, run_executor, spawn_local};

const ROUNDS: u64 = 4000;
const FILE_BYTES: u64 = 16 << 20;

fn main() {
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    fs::create_dir_all(&dir).expect("make the directory");
    let dir = tempfile::tempdir_in(dir).expect("make a temporary directory");
    let path = dir.path().to_path_buf();
    let spec = ExecutorSpec::new("append", None).with_disk(DiskHooks {
        start: disk_ring::start,
        reap: disk_ring::reap,
    });
    run_executor(&spec, async move { measure(&path).await }).expect("start an executor");
}

async fn measure(dir: &Path) {
    let (disk, report) = probe(dir).await.expect("probe the disk");
    println!("{report}");
    one_client(&disk, dir).await;
    for (payload, label) in [(100, "100 B"), (1024, "1 KiB")] {
        for in_flight in [1, 2, 4] {
            saturate(&disk, dir, payload, label, in_flight).await;
        }
    }
    restart(&disk, dir, "killed").await;
    restart(&disk, dir, "closed").await;
}

async fn one_client(disk: &DmaDisk, dir: &Path) {
    let scratch = dir.join("scratch");
    let file = disk
        .create_zeroed(&scratch, FILE_BYTES, |_| Urgency::Soon)
        .await
        .expect("fill a file");
    let raw = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(&scratch)
        .expect("open the file");
    let mut buffer = AlignedBuffer::with_capacity(BLOCK_BYTES);
    buffer.bytes_mut().fill(7);
    let (_store, mut log) = open(disk, dir, "one").await;
    let mut took = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let offset = round * BLOCK_BYTES as u64 % FILE_BYTES;
        took[0]
            .push(timed(async { raw.write_all_at(buffer.bytes(), offset).expect("write") }).await);
        let write = disk.write_durable_at(&file, offset, &buffer);
        took[1].push(timed(async { write.await.expect("write") }).await);
        let append = async {
            let mut batch = log.new_batch();
            batch
                .append(Zxid(round + 1), 150, |slot| slot.fill(3))
                .expect("append");
            let written = spawn_local(log.write(batch, Zxid(round)));
            written.await.expect("write");
        };
        took[2].push(timed(append).await);
    }
    let names = [
        "blocking pwrite, O_DIRECT | O_DSYNC",
        "the same by the disk",
        "append of one record",
    ];
    for (name, took) in names.iter().zip(&mut took) {
        took.sort_unstable();
        let at = |quantile: usize| took[took.len() * quantile / 1000].as_micros();
        println!(
            "{name:36} p50 {:4} us  p99 {:5} us  p99.9 {:5} us",
            at(500),
            at(990),
            at(999)
        );
    }
    let median = |index: usize| took[index][took[index].len() / 2].as_secs_f64();
    println!(
        "append / disk {:.3}, append / floor {:.3}",
        median(2) / median(1),
        median(2) / median(0)
    );
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let started = Instant::now();
    work.await;
    started.elapsed()
}

async fn saturate(disk: &DmaDisk, dir: &Path, payload: usize, label: &str, in_flight: usize) {
    let (_store, mut log) = open(disk, dir, &format!("saturate-{payload}-{in_flight}")).await;
    let maintenance = spawn_local(log.maintenance());
    // The first segments are made while nothing is measured, as on a server that has run for a while.
    disk.sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    let mut zxid = 0;
    let mut running = std::collections::VecDeque::new();
    while started.elapsed() < Duration::from_secs(2) {
        let mut batch = log.new_batch();
        for _ in 0..256 {
            zxid += 1;
            batch
                .append(Zxid(zxid), payload, |slot| slot.fill(5))
                .expect("append");
        }
        running.push_back(spawn_local(log.write(batch, Zxid::ZERO)));
        if running.len() >= in_flight {
            let oldest = running.pop_front().expect("not empty");
            oldest.await.expect("write");
        }
    }
    for write in running {
        write.await.expect("write");
    }
    let seconds = started.elapsed().as_secs_f64();
    let stats = log.stats();
    println!(
        "{label}, 256 records a batch, {in_flight} in flight: {:.0} records/s, {:.0} MB/s, {:.3} bytes written \
         per record byte, write p50 {} us p99.9 {} us, {} rolls ({} unprepared)",
        stats.records as f64 / seconds,
        stats.written_bytes as f64 / seconds / 1e6,
        stats.write_amplification().unwrap_or_default(),
        stats.write_us.value_at_quantile(0.5),
        stats.write_us.value_at_quantile(0.999),
        stats.rolls,
        stats.rolls_unprepared,
    );
    drop(log);
    maintenance.await;
}

async fn restart(disk: &DmaDisk, dir: &Path, how: &str) {
    let (store, mut log) = open(disk, dir, how).await;
    let maintenance = spawn_local(log.maintenance());
    let mut zxid = 0;
    for _ in 0..500 {
        let mut batch = log.new_batch();
        for _ in 0..400 {
            zxid += 1;
            batch
                .append(Zxid(zxid), 500, |slot| slot.fill(5))
                .expect("append");
        }
        log.write(batch, Zxid::ZERO).await.expect("write");
    }
    let bytes = log.stats().written_bytes;
    if how == "closed" {
        store.close().await.expect("close");
    }
    drop((store, log));
    maintenance.await;
    let started = Instant::now();
    let (_store, log) = open(disk, dir, how).await;
    let opened = started.elapsed();
    let mut sum = 0_u64;
    let count = log
        .replay(Zxid::ZERO, |_, bytes| {
            sum += bytes.len() as u64;
            Ok::<(), String>(())
        })
        .await
        .expect("replay");
    println!(
        "{how}, restart over {} MB of log: opened in {} ms, {count} records replayed in {} ms",
        bytes / 1_000_000,
        opened.as_millis(),
        (started.elapsed() - opened).as_millis(),
    );
}

async fn open(disk: &DmaDisk, dir: &Path, name: &str) -> (Store<DmaDisk>, TxnLog<DmaDisk>) {
    let dirs = Dirs::single(dir.join(name));
    let opened = Store::open(disk.clone(), &dirs, LogOptions::default())
        .await
        .expect("open the store");
    (opened.store, opened.log)
}
