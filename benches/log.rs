//! The log: durable appends by batch size, one batch in flight.
//!
//! Data lies below `target`, on the disk that is measured; `RINGKEEPER_BENCH_DIR` names another place.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::latency::Latencies;
use ringkeeper_benches::{directory, environment, executor, floor};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    Dirs, Disk, DmaDisk, DurableVariant, LogOptions, LogStats, Opened, Store, TxnLog, probe,
};
use ringkeeper_transport::{run_executor, spawn_local};

const FLOOR_TIME: Duration = Duration::from_millis(200);

/// What one run of appends came to.
struct Appended {
    took: Duration,
    latencies: Latencies,
    stats: LogStats,
}

/// Appends `count` batches of `records` records of `len` bytes to a new log, each batch durable before the next.
fn append(variant: DurableVariant, records: usize, len: usize, count: u64) -> Appended {
    let dir = directory();
    let main = {
        let dir = dir.path().to_owned();
        async move {
            let disk = DmaDisk::new().expect("the executor has a ring");
            disk.set_variant(variant);
            let opened = Store::open(disk, &Dirs::single(&dir), LogOptions::default()).await;
            let Opened { store, mut log, .. } = opened.expect("an own directory");
            let maintenance = spawn_local(log.maintenance());
            let mut zxid = log.last_zxid();
            // The first segment is made while nothing is measured, as on a server that has run for a while.
            write_batch(&mut log, &mut zxid, records, len).await;
            let mut latencies = Latencies::new();
            let began = Instant::now();
            for _ in 0..count {
                let started = Instant::now();
                write_batch(&mut log, &mut zxid, records, len).await;
                latencies.record(started.elapsed());
            }
            let took = began.elapsed();
            let stats = log.stats();
            maintenance.cancel().await;
            drop((log, store));
            Appended {
                took,
                latencies,
                stats,
            }
        }
    };
    run_executor(&executor(), main).expect("io_uring is needed")
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

fn choose(dir: &Path) -> DurableVariant {
    let dir = dir.to_owned();
    let probed = run_executor(&executor(), async move {
        probe(&dir).await.expect("the disk can be measured").1
    });
    let report = probed.expect("io_uring is needed");
    println!("{report}");
    report.variant
}

fn appends(criterion: &mut Criterion) {
    let dir = directory();
    environment::print(Some(dir.path()));
    let variant = choose(dir.path());
    for len in [100, 1024] {
        let mut group = criterion.benchmark_group(format!("append records of {len} B"));
        for records in [1, 10, 100, 1000] {
            let floor = floor::measure(dir.path(), 1, FLOOR_TIME).expect("the disk writes");
            let mut all = Latencies::new();
            // Of the longest run: in a short one the first batch after a start weighs too much.
            let mut stats: Option<LogStats> = None;
            group.throughput(Throughput::Elements(records as u64));
            group.bench_function(format!("{records} in a batch"), |bencher| {
                bencher.iter_custom(|count| {
                    let appended = append(variant, records, len, count);
                    all.add(&appended.latencies);
                    if stats
                        .as_ref()
                        .is_none_or(|known| known.writes < appended.stats.writes)
                    {
                        stats = Some(appended.stats);
                    }
                    appended.took
                });
            });
            let Some(stats) = stats else {
                continue;
            };
            println!("  batch: {all}");
            println!("  floor: raw O_DSYNC 4 KiB: {floor}");
            println!(
                "  p50 of a batch / floor: {:.2}; bytes written / txn bytes: {:.3}; {} rolls, {} of them unprepared",
                all.micros(0.5) / floor.micros(0.5),
                stats.write_amplification().unwrap_or(0.0),
                stats.rolls,
                stats.rolls_unprepared,
            );
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = appends
}
criterion_main!(benches);
