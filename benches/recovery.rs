//! How long a start takes: from a log of N creates without any snapshot, and from a snapshot of N znodes, which is loaded
//! in parallel. From the start of the process to the first answer; what the server says of its own loading beside it, and
//! the memory that it has then.
//!
//! N is `RINGKEEPER_BENCH_ZNODES` (100,000), znodes of 100 bytes. The server is `target/release/ringkeeper`
//! (`cargo build --release`), or what `RINGKEEPER_BIN` names. Data lies below `target`; `RINGKEEPER_BENCH_DIR` names
//! another place. The system may hold the files in memory, as after the restart of a server.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::served::{
    ALWAYS_SNAPSHOTS, NO_SNAPSHOTS, PATIENCE, fill, metric, server, stop,
};
use ringkeeper_benches::{directory, environment, is_smoke_test, number_of, set};
use ringkeeper_harness::{Server, Session, usage};

const ZNODES: usize = 100_000;
const ZNODES_OF_A_SMOKE_TEST: usize = 1_000;

/// What the server says when it has loaded its data.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    snapshot_ms: u64,
    replayed: u64,
    total_ms: u64,
    rss: u64,
}

impl Load {
    /// Of the last start of `server`.
    fn of(server: &Server) -> Self {
        let log = server.log_tail(200);
        let line = log.lines().rev().find(|line| line.contains("data loaded"));
        let line = line.expect("the server says so at each start");
        let field = |name: &str| {
            let mut words = line.split_whitespace();
            let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let pid = server.pid().expect("it runs");
        Self {
            snapshot_ms: field("snapshot_ms"),
            replayed: field("replayed"),
            total_ms: field("total_ms"),
            rss: usage(pid).expect("it runs").rss,
        }
    }
}

/// Makes a log of creates in `dir`, and no snapshot.
fn make_log(dir: &Path, znodes: usize) {
    let mut server = server(dir, NO_SNAPSHOTS);
    server.start(PATIENCE).expect("the server starts");
    fill(&server, znodes);
    stop(&mut server);
}

/// Has a snapshot taken of what is in `dir`.
fn take_snapshot(dir: &Path) {
    let mut server = server(dir, ALWAYS_SNAPSHOTS);
    server.start(PATIENCE).expect("the server starts");
    let taken = |server: &Server| {
        metric(server, "snapshots_taken")
            .parse::<u64>()
            .unwrap_or(0)
    };
    let mut session = Session::open(server.address(), 30_000).expect("the server takes clients");
    let began = Instant::now();
    while taken(&server) == 0 {
        let set = set("/0", b"of a snapshot");
        session.send(&set);
        session.flush().expect("the server reads");
        let reply = session.receive().expect("the server answers");
        reply.ok().expect("it is there");
        assert!(began.elapsed() < PATIENCE, "a snapshot is taken");
        thread::sleep(Duration::from_millis(20));
    }
    println!("snapshot: {} ms", metric(&server, "max_snapshottime"));
    session.close().expect("the server closes sessions");
    stop(&mut server);
}

/// Benches starts in `dir`.
fn starts(criterion: &mut Criterion, name: &str, dir: &Path, znodes: usize) {
    let mut loads = Vec::new();
    let mut group = criterion.benchmark_group("start");
    group.throughput(Throughput::Elements(znodes as u64));
    group.bench_function(format!("{name}, N = {znodes}"), |bencher| {
        bencher.iter_custom(|count| {
            let mut took = Duration::ZERO;
            for _ in 0..count {
                let mut server = server(dir, NO_SNAPSHOTS);
                took += server.start(PATIENCE).expect("the server starts");
                loads.push(Load::of(&server));
                stop(&mut server);
            }
            took
        });
    });
    group.finish();
    loads.sort_by_key(|load| load.total_ms);
    if let (Some(best), Some(median)) = (loads.first(), loads.get(loads.len() / 2)) {
        println!(
            "  of {} starts: data loaded in {} ms (median; best {}), {} ms of it the snapshot, {} transactions replayed; \
             RSS {} MiB",
            loads.len(),
            median.total_ms,
            best.total_ms,
            median.snapshot_ms,
            median.replayed,
            median.rss >> 20,
        );
    }
}

fn recovery(criterion: &mut Criterion) {
    let znodes = match number_of("RINGKEEPER_BENCH_ZNODES") {
        _ if is_smoke_test() => ZNODES_OF_A_SMOKE_TEST,
        told => told.unwrap_or(ZNODES),
    };
    let dir = directory();
    environment::print(Some(dir.path()));
    make_log(dir.path(), znodes);
    starts(criterion, "from a log of N creates", dir.path(), znodes);
    take_snapshot(dir.path());
    starts(criterion, "from a snapshot of N znodes", dir.path(), znodes);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(5));
    targets = recovery
}
criterion_main!(benches);
