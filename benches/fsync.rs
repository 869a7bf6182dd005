//! The latency of a durable write by variant and size: the paths that the log can take, of which a start-up probe picks one,
//! beside the raw floor of the same minute.
//!
//! Data lies below `target`, on the disk that is measured; `RINGKEEPER_BENCH_DIR` names another place.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use glommio::io::OpenOptions;
use glommio::{LocalExecutorBuilder, allocate_dma_buffer};
use ringkeeper_benches::floor::{RawFile, RawWay, next_offset, zero_fill};
use ringkeeper_benches::latency::Latencies;
use ringkeeper_benches::{directory, environment, executor};
use ringkeeper_storage::{AlignedBuffer, Disk, DiskBuffer, DmaDisk, DurableVariant, probe};
use ringkeeper_transport::run_executor;

/// Writes before each measurement that are not counted.
const WARM_UP: u64 = 16;
/// Bytes of a write: the smallest that the log makes, up to more than its largest batch.
const SIZES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// So many durable writes to a file, of so many bytes each.
type Way = fn(&Path, DurableVariant, usize, u64) -> (Duration, Latencies);

/// What `count` writes took by themselves, the first few not counted.
async fn timed<F: Future>(
    count: u64,
    len: usize,
    write: impl Fn(u64) -> F,
) -> (Duration, Latencies) {
    let mut latencies = Latencies::new();
    let (mut at, mut took) = (0, Duration::ZERO);
    for number in 0..WARM_UP + count {
        let started = Instant::now();
        write(at).await;
        let latency = started.elapsed();
        at = next_offset(at, len);
        if number >= WARM_UP {
            latencies.record(latency);
            took += latency;
        }
    }
    (took, latencies)
}

/// Durable writes by the log's disk.
fn by_disk(path: &Path, variant: DurableVariant, len: usize, count: u64) -> (Duration, Latencies) {
    let path = path.to_owned();
    let main = async move {
        let disk = DmaDisk::new().expect("the executor has a ring");
        disk.set_variant(variant);
        let file = disk.open(&path).await.expect("it was made before");
        let mut buffer = AlignedBuffer::with_capacity(len);
        buffer.bytes_mut().fill(b'x');
        let write = async |at| {
            disk.write_durable_at(&file, at, &buffer)
                .await
                .expect("it writes")
        };
        timed(count, len, write).await
    };
    run_executor(&executor(), main).expect("io_uring is needed")
}

/// The same through glommio's files, under the rules that keep its executor from sleeping through a completion.
fn through_glommio(
    path: &Path,
    variant: DurableVariant,
    len: usize,
    count: u64,
) -> (Duration, Latencies) {
    let path = path.to_owned();
    let made = LocalExecutorBuilder::default()
        .preempt_timer(Duration::from_secs(3600))
        .ring_depth(4096)
        .make();
    made.expect("io_uring is needed").run(async move {
        let is_synced = variant == DurableVariant::Dsync;
        let flags = if is_synced { libc::O_DSYNC } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        let file = Rc::new(options.dma_open(&path).await.expect("it was made before"));
        let mut buffer = allocate_dma_buffer(len);
        buffer.as_bytes_mut().fill(b'x');
        let buffer = Rc::new(buffer);
        let write = async |at| {
            let written = file.write_rc_at(Rc::clone(&buffer), at).await;
            assert_eq!(written.expect("it writes"), len);
            if !is_synced {
                file.fdatasync().await.expect("it flushes");
            }
        };
        let outcome = timed(count, len, write).await;
        file.close_rc().await.expect("it closes");
        outcome
    })
}

fn raw(path: &Path, way: RawWay, len: usize, count: u64) -> (Duration, Latencies) {
    let mut file = RawFile::open(path, way, len).expect("O_DIRECT is needed");
    let mut latencies = Latencies::new();
    let mut took = Duration::ZERO;
    for write in 0..WARM_UP + count {
        let started = Instant::now();
        file.write().expect("the disk writes");
        let latency = started.elapsed();
        if write >= WARM_UP {
            latencies.record(latency);
            took += latency;
        }
    }
    (took, latencies)
}

/// One bench of `write`, which does so many and says how long they took; all their latencies.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    write: impl Fn(u64) -> (Duration, Latencies),
) -> Latencies {
    let mut all = Latencies::new();
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let (took, latencies) = write(count);
            all.add(&latencies);
            took
        });
    });
    all
}

fn probed(dir: PathBuf) -> DurableVariant {
    let report = run_executor(&executor(), async move {
        probe(&dir).await.expect("the disk can be measured").1
    });
    let report = report.expect("io_uring is needed");
    println!("{report}");
    report.variant
}

fn durable_writes(criterion: &mut Criterion) {
    let dir = directory();
    environment::print(Some(dir.path()));
    let chosen = probed(dir.path().to_owned());
    let path = dir.path().join("file");
    zero_fill(&path).expect("room for the file");
    for len in SIZES {
        let mut group = criterion.benchmark_group(format!("durable write of {} KiB", len >> 10));
        let mut rows = Vec::new();
        for way in RawWay::ALL {
            let name = way.name().to_owned();
            let all = bench(&mut group, &name, |count| raw(&path, way, len, count));
            rows.push((name, all));
        }
        for variant in [DurableVariant::Dsync, DurableVariant::WriteThenFlush] {
            let mark = if variant == chosen { ", chosen" } else { "" };
            let ways = [("glommio", through_glommio as Way), ("disk", by_disk)];
            for (way, write) in ways {
                let name = format!("{way} {}", variant.name());
                let all = bench(&mut group, &name, |count| write(&path, variant, len, count));
                rows.push((name + mark, all));
            }
        }
        print_rows(&rows);
    }
}

/// The floor is the fastest of the raw ways.
fn print_rows(rows: &[(String, Latencies)]) {
    let measured = rows.iter().filter(|(_, all)| all.count() > 0);
    let floor = measured
        .clone()
        .filter(|(name, _)| name.starts_with("raw"))
        .map(|(_, all)| all.micros(0.5))
        .fold(f64::INFINITY, f64::min);
    for (name, all) in measured {
        let ratio = all.micros(0.5) / floor;
        println!("  {name:34} {all}; p50 / floor {ratio:.2}");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = durable_writes
}
criterion_main!(benches);
