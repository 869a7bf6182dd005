//! What clients notice of a snapshot: latencies of sets while one is always under way, beside those without any, on the
//! same data; and how long a start takes until it serves.
//!
//! The server is `target/release/ringkeeper` (`cargo build --release`), or what `RINGKEEPER_BIN` names.
//! `RINGKEEPER_BENCH_ZNODES` says how many znodes of 100 bytes there are (1,000,000), `RINGKEEPER_BENCH_ROUNDS` how many
//! rounds (3). Data lies below `target`; `RINGKEEPER_BENCH_DIR` names another place. Not by criterion: what counts is the
//! tail, and rounds with and without take turns.
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
fn sets(server: &Server, znodes: usize, time: Duration) -> Latencies {
    let mut clients =
        Clients::connect(server.address(), CLIENTS).expect("the server takes clients");
    let mut number = 0_usize;
    let mut round = |clients: &mut Clients, count| {
        let next = |_client: usize, xid, out: &mut BytesMut| {
            number = (number + 7919) % znodes;
            set(&path_of(number), &[b'y'; 100]).encode_frame(xid, out);
        };
        clients.run(count, next).expect("the server commits");
    };
    // What the first ones wait for is the start.
    round(&mut clients, 2000);
    drop(clients.take_latencies());
    let began = Instant::now();
    loop {
        round(&mut clients, 2000);
        if began.elapsed() >= time {
            break;
        }
    }
    let latencies = clients.take_latencies();
    clients.close().expect("the server closes sessions");
    latencies
}

fn main() {
    let told = |name: &str| env::var(name).ok().and_then(|told| told.parse().ok());
    let (znodes, rounds, time) = if is_smoke_test() {
        (1000, 1, Duration::from_millis(300))
    } else {
        (
            told("RINGKEEPER_BENCH_ZNODES").unwrap_or(1_000_000),
            told("RINGKEEPER_BENCH_ROUNDS").unwrap_or(ROUNDS),
            Duration::from_secs(12),
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
            let latencies = sets(&server, znodes, time);
            println!(
                "round {round}, {name}: start {} ms; {latencies}; {} snapshots, core stalled {} us at most, {} times \
                 over 5 ms",
                started.as_millis(),
                metric(&server, "snapshots_taken"),
                metric(&server, "snapshot_core_stall_max_us"),
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
