//! What clients notice of a snapshot: latencies of sets while one is always under way, beside those without any, on the
//! same data; and how long a start takes until it serves.
//!
//! The server is `target/release/ringkeeper` (`cargo build --release`), or what `RINGKEEPER_BIN` names.
//! `RINGKEEPER_BENCH_ZNODES` says how many znodes of 100 bytes there are (1,000,000), `RINGKEEPER_BENCH_ROUNDS` how many
//! rounds (3) of how many `RINGKEEPER_BENCH_SECONDS` (12), `RINGKEEPER_BENCH_RATE` how many sets come each second (unless
//! said, the clients ask without a pause). Data lies below `target`; `RINGKEEPER_BENCH_DIR` names another place. Not by
//! criterion: what counts is the tail, and rounds with and without take turns.
//!
//! Beside all of it the machine is watched ([`Watch`]): a request during which a CPU did not run what was due tells of the
//! machine, so the tail is shown of all requests and of the others alone.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::time::{Duration, Instant, SystemTime};
use std::{env, fs};

use bytes::BytesMut;
use ringkeeper_benches::clients::Clients;
use ringkeeper_benches::latency::{Answered, Latencies};
use ringkeeper_benches::pauses::{Pauses, Watch};
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

/// A core that is late for longer has missed the goal.
const LATE: Duration = Duration::from_millis(5);

/// Sets that were answered in `time`: so many each second, or as many as the server can.
fn sets(server: &Server, znodes: usize, time: Duration, per_second: Option<u32>) -> Vec<Answered> {
    let mut clients =
        Clients::connect(server.address(), CLIENTS).expect("the server takes clients");
    let mut number = 0_usize;
    let mut next = |_client: usize, xid, out: &mut BytesMut| {
        number = (number + 7919) % znodes;
        set(&path_of(number), &[b'y'; 100]).encode_frame(xid, out);
    };
    // What the first ones wait for is the start.
    clients.run(2000, &mut next).expect("the server commits");
    drop(clients.take_answered());
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
    let answered = clients.take_answered();
    clients.close().expect("the server closes sessions");
    answered
}

/// The p99.9 of each round in microseconds.
#[derive(Default)]
struct Tails {
    of_all: Vec<f64>,
    /// Of the requests during which the machine made no pause.
    of_quiet: Vec<f64>,
}

impl Tails {
    /// Adds a round, and says what it was like.
    fn add(&mut self, answered: &[Answered], pauses: Option<&Pauses>) -> String {
        let all: Latencies = answered.iter().collect();
        self.of_all.push(all.micros(0.999));
        let Some(pauses) = pauses else {
            return format!(
                "{all}; the machine was not watched, which takes threads of real-time priority"
            );
        };
        let is_quiet = |request: &&Answered| pauses.share(request.since, request.took).is_zero();
        let quiet: Latencies = answered.iter().filter(is_quiet).collect();
        self.of_quiet.push(quiet.micros(0.999));
        format!(
            "{all}; the machine paused {} times, {} us at most, {} over 5 ms; without that {quiet}",
            pauses.longer_than(Duration::ZERO),
            pauses.longest().as_micros(),
            pauses.longer_than(LATE),
        )
    }
}

/// What is left of the core's delays since `began` without the machine's pauses: how many are over 5 ms, and the longest.
fn own_delays(server: &Server, began: SystemTime, pauses: Option<&Pauses>) -> String {
    let Some(pauses) = pauses else {
        return "not known".to_owned();
    };
    let log = fs::read_to_string(server.dir().join("server.log")).expect("the server logs");
    let delays = log.lines().filter_map(|line| {
        let (at, late) = delay(line)?;
        let ago = (at >= began).then(|| at.elapsed().ok()).flatten()?;
        let since = Instant::now().checked_sub(ago + late)?;
        Some(late.saturating_sub(pauses.share(since, late)))
    });
    let delays: Vec<Duration> = delays.collect();
    let over = delays.iter().filter(|delay| **delay > LATE).count();
    let longest = delays.into_iter().max().unwrap_or_default();
    format!("{over}, {} us of those at most", longest.as_micros())
}

/// When a delay ended that a line of the log tells of, and how long it was.
fn delay(line: &str) -> Option<(SystemTime, Duration)> {
    let (before, fields) = line.split_once("the core was late late_us=")?;
    let at = humantime::parse_rfc3339(before.split_whitespace().next()?).ok()?;
    let micros = fields.split_whitespace().next()?.parse().ok()?;
    Some((at, Duration::from_micros(micros)))
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
    let mut tails = [Tails::default(), Tails::default()];
    for round in 0..rounds {
        let both = [("without", NO_SNAPSHOTS), ("with", ALWAYS_SNAPSHOTS)];
        for ((name, settings), tails) in both.into_iter().zip(&mut tails) {
            let mut server = server(dir.path(), settings);
            let started = server.start(PATIENCE).expect("the server starts");
            let began = SystemTime::now();
            let watch = Watch::start();
            let answered = sets(&server, znodes, time, per_second);
            let pauses = watch.end();
            println!(
                "round {round}, {name}: start {} ms; {}; {} snapshots, core late by {} us at most \
                 ({} busy, {} waiting for its CPU), {} times over 5 ms; without the machine's pauses {}",
                started.as_millis(),
                tails.add(&answered, pauses.as_ref()),
                metric(&server, "snapshots_taken"),
                metric(&server, "snapshot_core_stall_max_us"),
                metric(&server, "snapshot_core_busy_max_us"),
                metric(&server, "snapshot_core_wait_max_us"),
                metric(&server, "snapshot_core_stalls_over_5ms"),
                own_delays(&server, began, pauses.as_ref()),
            );
            stop(&mut server);
        }
    }
    let [without, with] = tails;
    for (of, without, with) in [
        ("all", without.of_all, with.of_all),
        ("those without a pause", without.of_quiet, with.of_quiet),
    ] {
        let (without, with) = (median(without), median(with));
        println!(
            "{znodes} znodes, medians of {rounds} rounds, of {of}: p99.9 {with:.0} us with a snapshot, {without:.0} us without, \
             {:.2} times",
            with / without
        );
    }
}
