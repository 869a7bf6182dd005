//! The log under load: full batches by how many are on their way at a time, beside the raw bandwidth of durable
//! writes of the same size and depth on a zero-filled file.
//!
//! The log runs in segments that were used before, as a server's does once its first snapshots are taken. Data lies below
//! `target`, on the disk that is measured; `RINGKEEPER_BENCH_DIR` names another place.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::alloc::System;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::{directory, environment, executor, floor};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    AlignedBuffer, BLOCK_BYTES, Dirs, Disk, DiskBuffer as _, DmaDisk, HugePages, LogOptions,
    LogStats, Opened, SnapshotWriter, StorageError, Store, TxnLog,
};
use ringkeeper_transport::{Task, pulse, reactor_turn, run_executor, spawn_local};
use rustix::fs::OFlags;

/// As the server's, but for the small blocks.
#[global_allocator]
static ALLOCATOR: HugePages<System> = HugePages(System);

/// Segments that are kept to be used again: more than one measurement writes.
const SPARES: usize = 24;

/// What each measurement writes, in batches; criterion is told its share.
const BATCHES: u64 = 400;

/// Batches before that are not counted: they allocate what the others use again.
const WARM_UP: u64 = 16;

/// What fills a batch.
#[derive(Clone, Copy)]
struct Load {
    records: usize,
    len: usize,
    depth: usize,
}

impl Load {
    /// Bytes of a batch on disk.
    fn stored_bytes(self) -> usize {
        let body = self.records * (self.len + ringkeeper_storage::FRAME_BYTES);
        (ringkeeper_storage::HEADER_BYTES + body).next_multiple_of(BLOCK_BYTES)
    }
}

/// Writes `count` batches to the log in `dir`, so many at a time. What it did before is purged first.
fn append(dir: &Path, load: Load, count: u64) -> (Duration, LogStats) {
    let dir = dir.to_owned();
    let main = async move {
        let _busy = pulse::busy();
        let disk = DmaDisk::new().expect("the executor has a ring");
        let options = LogOptions {
            spares_kept: SPARES,
            ..LogOptions::default()
        };
        let opened = Store::open(disk, &Dirs::single(&dir), options).await;
        let Opened { store, mut log, .. } = opened.expect("an own directory");
        let maintenance = spawn_local(log.maintenance());
        make_room(&store, &mut log).await;
        let before = log.stats();
        let mut zxid = log.last_zxid().0;
        let mut running: VecDeque<Task<Result<Zxid, StorageError>>> = VecDeque::new();
        let mut began = Instant::now();
        for number in 0..WARM_UP + count {
            if number == WARM_UP {
                began = Instant::now();
            }
            let mut batch = log.new_batch();
            for _ in 0..load.records {
                zxid += 1;
                batch
                    .append(Zxid(zxid), load.len, |place| place.fill(b'x'))
                    .expect("within the limits");
            }
            // It was filled while the others were written, as under load.
            if running.len() >= load.depth
                && let Some(oldest) = running.pop_front()
            {
                oldest.await.expect("the disk writes");
            }
            running.push_back(spawn_local(log.write(batch, Zxid::ZERO)));
            // Otherwise it would be submitted only once the next one is full.
            reactor_turn().await;
        }
        for write in running {
            write.await.expect("the disk writes");
        }
        let took = began.elapsed();
        let mut stats = log.stats();
        stats.txn_bytes -= before.txn_bytes;
        stats.written_bytes -= before.written_bytes;
        maintenance.cancel().await;
        drop((log, store));
        (took, stats)
    };
    run_executor(&executor(), main).expect("io_uring is needed")
}

/// As [`raw`], by the log's disk.
fn by_disk(path: &Path, len: usize, depth: usize, count: u64) -> Duration {
    let path = path.to_owned();
    let main = async move {
        let _busy = pulse::busy();
        let disk = DmaDisk::new().expect("the executor has a ring");
        let file = disk.open(&path).await.expect("it was made before");
        let next = Rc::new(Cell::new(0));
        let began = Instant::now();
        let writers: Vec<Task<()>> = (0..depth)
            .map(|_| {
                let (disk, file, next) = (disk.clone(), file.clone(), Rc::clone(&next));
                spawn_local(async move {
                    let mut buffer = AlignedBuffer::with_capacity(len);
                    buffer.bytes_mut().fill(b'x');
                    while next.get() < count {
                        let place = next.replace(next.get() + 1) % places(len);
                        disk.write_durable_at(&file, place * len as u64, &buffer)
                            .await
                            .expect("the disk writes");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await;
        }
        let took = began.elapsed();
        disk.close(file).await;
        took
    };
    run_executor(&executor(), main).expect("io_uring is needed")
}

/// How many writes of `len` bytes the file has room for.
const fn places(len: usize) -> u64 {
    floor::FILE_BYTES / len as u64
}

/// Makes all segments but the last two spares.
async fn make_room<D: Disk>(store: &Store<D>, log: &mut TxnLog<D>) {
    let zxid = Zxid(log.last_zxid().0 + 1);
    let mut batch = log.new_batch();
    batch.append(zxid, 1, |_| ()).expect("within the limits");
    log.write(batch, zxid).await.expect("the disk writes");
    let writer = SnapshotWriter::create(store.snapshot_dir(), zxid, None).expect("room for it");
    let snapshot = writer.finish(0, [0; 4]).expect("room for it");
    store
        .register_snapshot(snapshot)
        .await
        .expect("the disk writes");
    store.purge(1).await.expect("the disk writes");
}

/// Writes `count` times `len` bytes durably, in order of the file, from so many threads.
fn raw(path: &Path, len: usize, depth: usize, count: u64) -> Duration {
    let next = AtomicU64::new(0);
    let write = || {
        let flags = OFlags::DIRECT | OFlags::DSYNC;
        let file = File::options()
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .expect("it was made before");
        let memory = vec![b'x'; len + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        let bytes = memory.get(start..start + len).unwrap_or_default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            file.write_all_at(bytes, number % places(len) * len as u64)
                .expect("the disk writes");
        }
    };
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..depth {
            scope.spawn(write);
        }
    });
    began.elapsed()
}

fn bandwidth(criterion: &mut Criterion) {
    let dir = directory();
    environment::print(Some(dir.path()));
    let path = dir.path().join("raw");
    floor::zero_fill(&path).expect("room for the file");
    // The last is as much as a batch takes.
    for (records, len) in [(1000, 100), (112, 1024), (255, 1024), (1000, 1024)] {
        for depth in [1, 2, 4] {
            let load = Load {
                records,
                len,
                depth,
            };
            let stored = load.stored_bytes();
            let mut group = criterion.benchmark_group(format!(
                "{} records of {len} B a batch, {depth} in flight",
                load.records
            ));
            group.throughput(Throughput::BytesDecimal(stored as u64));
            let mut rounds = Vec::new();
            let mut stats: Option<LogStats> = None;
            group.bench_function("raw", |bencher| {
                bencher.iter_custom(|count| share(raw(&path, stored, depth, BATCHES), count));
            });
            group.bench_function("disk", |bencher| {
                bencher.iter_custom(|count| share(by_disk(&path, stored, depth, BATCHES), count));
            });
            group.bench_function("log", |bencher| {
                bencher.iter_custom(|count| {
                    // A device's speed changes within seconds, so a ratio is of what was measured in turn.
                    let raw = raw(&path, stored, depth, BATCHES);
                    let disk = by_disk(&path, stored, depth, BATCHES);
                    let (took, now) = append(dir.path(), load, BATCHES);
                    rounds.push([raw, disk, took].map(|took| rate(stored, BATCHES, took)));
                    stats = Some(now);
                    share(took, count)
                });
            });
            group.finish();
            if let Some(stats) = stats {
                println!(
                    "  medians of {} rounds: raw {:.0} MB/s, disk {:.0} MB/s, log {:.0} MB/s: {:.2} of raw, {:.2} of disk \
                     in the same round; bytes written / txn bytes {:.3}; {} rolls, {} of them unprepared",
                    rounds.len(),
                    median(&rounds, |[raw, _, _]| raw),
                    median(&rounds, |[_, disk, _]| disk),
                    median(&rounds, |[_, _, log]| log),
                    median(&rounds, |[raw, _, log]| log / raw),
                    median(&rounds, |[_, disk, log]| log / disk),
                    stats.write_amplification().unwrap_or(0.0),
                    stats.rolls,
                    stats.rolls_unprepared,
                );
            }
        }
    }
}

/// The middle of what `value` makes of each round, of which there is one at least.
fn median(rounds: &[[f64; 3]], value: impl Fn([f64; 3]) -> f64) -> f64 {
    ringkeeper_benches::median(rounds.iter().map(|round| value(*round)))
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn share(took: Duration, count: u64) -> Duration {
    took.mul_f64(count as f64 / BATCHES as f64)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
fn rate(len: usize, count: u64, took: Duration) -> f64 {
    len as f64 * count as f64 / took.as_secs_f64() / 1e6
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = bandwidth
}
criterion_main!(benches);
