//! The latency of a durable write by variant and size: the paths that the log can take, of which a start-up probe picks one,
//! beside the raw floor of the same minute.
//!
//! Data lies below `target`, on the disk that is measured; `RINGKEEPER_BENCH_DIR` names another place.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use ringkeeper_benches::floor::{RawFile, RawWay, next_offset, zero_fill};
use ringkeeper_benches::latency::Latencies;
use ringkeeper_benches::{directory, environment};
use ringkeeper_storage::{AlignedBuffer, Disk, DiskBuffer, DmaDisk, DurableVariant, probe};
use ringkeeper_transport::{ExecutorSpec, run_executor};

/// Writes before each measurement that are not counted.
const WARM_UP: u64 = 16;
/// Bytes of a write: the smallest that the log makes, up to more than its largest batch.
const SIZES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Durable writes through glommio on an executor as the server's.
fn through_glommio(
    path: &Path,
    variant: DurableVariant,
    len: usize,
    count: u64,
) -> (Duration, Latencies) {
    let path = path.to_owned();
    let main = async move {
        let dir = path.parent().expect("it lies in a directory");
        let disk = DmaDisk::start(dir).await.expect("O_DIRECT is needed");
        disk.set_variant(variant);
        let file = disk.open(&path).await.expect("it was made before");
        let mut buffer = AlignedBuffer::with_capacity(len);
        buffer.bytes_mut().fill(b'x');
        let mut latencies = Latencies::new();
        let (mut at, mut took) = (0, Duration::ZERO);
        for write in 0..WARM_UP + count {
            let started = Instant::now();
            disk.write_durable_at(&file, at, &buffer)
                .await
                .expect("the disk writes");
            let latency = started.elapsed();
            at = next_offset(at, len);
            if write >= WARM_UP {
                latencies.record(latency);
                took += latency;
            }
        }
        disk.close(file).await;
        (took, latencies)
    };
    run_executor(&ExecutorSpec::new("bench", None), main).expect("io_uring is needed")
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
    let report = run_executor(&ExecutorSpec::new("probe", None), async move {
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
            let name = format!("glommio {}", variant.name());
            let all = bench(&mut group, &name, |count| {
                through_glommio(&path, variant, len, count)
            });
            rows.push((name + mark, all));
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
