//! What clients notice of a snapshot: latencies of sets while one is always under way, beside those without any, on the
//! same data; and how long a start takes until it serves.
//!
//! The server is `target/release/ringkeeper` (`cargo build --release`), or what `RINGKEEPER_BIN` names.
//! `RINGKEEPER_BENCH_ZNODES` says how many znodes of 100 bytes there are (1,000,000), `RINGKEEPER_BENCH_ROUNDS` how many
//! rounds (3) of how many `RINGKEEPER_BENCH_SECONDS` (12), `RINGKEEPER_BENCH_RATE` how many sets come each second (unless
//! said, the clients ask without a pause). Data lies below `target`; `RINGKEEPER_BENCH_DIR` names another place. Not by
//! criterion: what counts is the tail, and rounds with and without take turns.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::env;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ringkeeper_benches::clients::Clients;
use ringkeeper_benches::latency::Latencies;
use ringkeeper_benches::served::{
    ALWAYS_SNAPSHOTS, NO_SNAPSHOTS, PATIENCE, fill, metric, server, stop,
};
use ringkeeper_benches::{directory, environment, is_smoke_test, median, path_of, set};
use ringkeeper_harness::Server;

/// Clients with one set on its way each.
const CLIENTS: usize = 8;
const ROUNDS: usize = 3;
/// What a round takes: a whole snapshot of a million znodes is in it.
const SECONDS: usize = 12;

/// Latencies of sets for `time`: of so many each second, or of as many as the server can.
fn sets(server: &Server, znodes: usize, time: Duration, per_second: Option<u32>) -> Latencies {
    let mut clients =
        Clients::connect(server.address(), CLIENTS).expect("the server takes clients");
    let mut number = 0_usize;
    let mut next = |_client: usize, xid, out: &mut BytesMut| {
        number = (number + 7919) % znodes;
        set(&path_of(number), &[b'y'; 100]).encode_frame(xid, out);
    };
    // What the first ones wait for is the start.
    clients.run(2000, &mut next).expect("the server commits");
    drop(clients.take_latencies());
    if let Some(per_second) = per_second {
        let interval = Duration::from_secs(1) / per_second;
        let run = clients.run_each(interval, time, &mut next);
        run.expect("the server commits");
    } else {
        let began = Instant::now();
        while began.elapsed() < time {
            clients.run(2000, &mut next).expect("the server commits");
        }
    }
    let latencies = clients.take_latencies();
    clients.close().expect("the server closes sessions");
    latencies
}

fn main() {
    let told = |name: &str| env::var(name).ok().and_then(|told| told.parse().ok());
    let per_second = told("RINGKEEPER_BENCH_RATE")
        .and_then(|rate| u32::try_from(rate).ok())
        .filter(|rate| *rate > 0);
    let (znodes, rounds, time) = if is_smoke_test() {
        (1000, 1, Duration::from_millis(300))
    } else {
        (
            told("RINGKEEPER_BENCH_ZNODES").unwrap_or(1_000_000),
            told("RINGKEEPER_BENCH_ROUNDS").unwrap_or(ROUNDS),
            Duration::from_secs(told("RINGKEEPER_BENCH_SECONDS").unwrap_or(SECONDS) as u64),
        )
    };
    let dir = directory();
    environment::print(Some(dir.path()));
    let mut filled = server(dir.path(), ALWAYS_SNAPSHOTS);
    filled.start(PATIENCE).expect("the server starts");
    fill(&filled, znodes);
    stop(&mut filled);
    drop(filled);
    let mut p999s = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let both = [("without", NO_SNAPSHOTS), ("with", ALWAYS_SNAPSHOTS)].map(|(name, settings)| {
            let mut server = server(dir.path(), settings);
            let started = server.start(PATIENCE).expect("the server starts");
            let latencies = sets(&server, znodes, time, per_second);
            println!(
                "round {round}, {name}: start {} ms; {latencies}; {} snapshots, core late by {} us at most \
                 ({} busy, {} waiting for its CPU), {} times over 5 ms",
                started.as_millis(),
                metric(&server, "snapshots_taken"),
                metric(&server, "snapshot_core_stall_max_us"),
                metric(&server, "snapshot_core_busy_max_us"),
                metric(&server, "snapshot_core_wait_max_us"),
                metric(&server, "snapshot_core_stalls_over_5ms"),
            );
            stop(&mut server);
            latencies
        });
        for (all, latencies) in p999s.iter_mut().zip(&both) {
            all.push(latencies.micros(0.999));
        }
    }
    let [without, with] = p999s.map(median);
    println!(
        "{znodes} znodes, medians of {rounds} rounds: p99.9 {with:.0} us with a snapshot, {without:.0} us without, {:.2} times",
        with / without
    );
}
