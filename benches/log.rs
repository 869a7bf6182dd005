//! The log: durable appends by batch size, and the latency of a durable write beside the raw floor.
//!
//! Data lies below `target`, on the disk that is measured; `RINGKEEPER_BENCH_DIR` names another place.

#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::env;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    AlignedBuffer, BLOCK_BYTES, Dirs, Disk, DiskBuffer, LogOptions, Opened, Store, TxnLog, probe,
};
use ringkeeper_transport::{ExecutorSpec, run_executor, spawn_local};
use rustix::fs::OFlags;

/// Bytes of the file that single writes go to, round and round.
const FILE_BYTES: u64 = 16 << 20;

fn directory() -> tempfile::TempDir {
    let place = env::var_os("RINGKEEPER_BENCH_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    std::fs::create_dir_all(&place).expect("a place for the data");
    tempfile::tempdir_in(place).expect("a directory for the data")
}

/// Runs `main` on an executor as the server's.
fn on_executor<T: 'static>(main: impl Future<Output = T> + 'static) -> T {
    run_executor(&ExecutorSpec::new("bench", None), main).expect("io_uring is needed")
}

/// Durable writes of `len` bytes through glommio, by the variant that the probe chooses.
fn durable(dir: &Path, len: usize, count: u64) -> Duration {
    let dir = dir.to_owned();
    on_executor(async move {
        let (disk, report) = probe(&dir).await.expect("the disk can be measured");
        let file = disk
            .create_zeroed(&dir.join("durable"), FILE_BYTES)
            .await
            .expect("room for it");
        let buffer = AlignedBuffer::with_capacity(len);
        println!("{report}");
        let started = Instant::now();
        for write in 0..count {
            let offset = write * len as u64 % FILE_BYTES;
            disk.write_durable_at(&file, offset, &buffer)
                .await
                .expect("the disk writes");
        }
        started.elapsed()
    })
}

/// The same without glommio: `pwrite` on a descriptor with `O_DIRECT` and `O_DSYNC`, on a file of zeros.
fn raw(dir: &Path, len: usize, count: u64) -> Duration {
    let path = dir.join("raw");
    std::fs::write(&path, vec![0; usize::try_from(FILE_BYTES).expect("16 MiB")])
        .expect("room for it");
    File::open(&path)
        .and_then(|file| file.sync_all())
        .expect("the disk writes");
    let flags = OFlags::DIRECT | OFlags::DSYNC;
    let file = File::options()
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(&path)
        .expect("O_DIRECT is needed");
    let memory = vec![0_u8; len + BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = memory
        .get(start..start + len)
        .expect("it has room for the alignment");
    let started = Instant::now();
    for write in 0..count {
        file.write_all_at(block, write * len as u64 % FILE_BYTES)
            .expect("the disk writes");
    }
    started.elapsed()
}

fn fsync(criterion: &mut Criterion) {
    let dir = directory();
    for len in [4 << 10, 16 << 10, 64 << 10] {
        let mut group = criterion.benchmark_group(format!("durable write of {} KiB", len >> 10));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(2));
        group.bench_function("raw floor (pwrite, O_DIRECT + O_DSYNC)", |bencher| {
            bencher.iter_custom(|count| raw(dir.path(), len, count));
        });
        group.bench_function("the log's path", |bencher| {
            bencher.iter_custom(|count| durable(dir.path(), len, count));
        });
    }
}

/// Appends `count` batches of `records` records of `len` bytes, each durable before the next.
fn append(dir: &Path, records: usize, len: usize, count: u64) -> Duration {
    let dir = dir.to_owned();
    on_executor(async move {
        let (disk, _) = probe(&dir).await.expect("the disk can be measured");
        let opened = Store::open(disk, &Dirs::single(&dir), LogOptions::default()).await;
        let Opened { store, mut log, .. } = opened.expect("an own directory");
        let maintenance = spawn_local(log.maintenance());
        let mut zxid = log.last_zxid();
        let started = Instant::now();
        for _ in 0..count {
            write_batch(&mut log, &mut zxid, records, len).await;
        }
        let took = started.elapsed();
        let stats = log.stats();
        println!(
            "bytes written / txn bytes: {:.3}",
            stats.write_amplification().unwrap_or(0.0)
        );
        maintenance.cancel().await;
        drop(Rc::new(store));
        took
    })
}

async fn write_batch<D: Disk>(log: &mut TxnLog<D>, zxid: &mut Zxid, records: usize, len: usize) {
    let mut batch = log.new_batch();
    for _ in 0..records {
        *zxid = Zxid(zxid.0 + 1);
        batch
            .append(*zxid, len, |place| place.fill(b'x'))
            .expect("within the limits");
    }
    let committed = *zxid;
    log.write(batch, committed).await.expect("the disk writes");
}

fn appends(criterion: &mut Criterion) {
    for len in [100, 1024] {
        let mut group = criterion.benchmark_group(format!("append records of {len} B"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(2));
        for records in [1, 10, 100, 1000] {
            let dir = directory();
            group.throughput(Throughput::Elements(records as u64));
            group.bench_function(format!("{records} in a batch"), |bencher| {
                bencher.iter_custom(|count| append(dir.path(), records, len, count));
            });
        }
    }
}

criterion_group!(benches, fsync, appends);
criterion_main!(benches);
