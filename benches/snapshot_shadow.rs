//! What clients notice of a snapshot: latencies of sets while one is always under way, beside those without any, on the
//! same data; and how long a start takes until it serves.
//!
//! The server is `target/release/ringkeeper` (`cargo build --release`), or what `RINGKEEPER_BIN` names.
//! `RINGKEEPER_BENCH_ZNODES` says how many znodes of 100 bytes there are (1,000,000). Data lies below
//! `target`; `RINGKEEPER_BENCH_DIR` names another place. Not by criterion: what counts is the tail, and rounds with and
//! without take turns.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ringkeeper_benches::clients::Clients;
use ringkeeper_benches::latency::Latencies;
use ringkeeper_benches::{create, directory, environment, is_smoke_test, path_of, set, target};
use ringkeeper_harness::{Launch, Server, Session, four_letter_word};

const PATIENCE: Duration = Duration::from_secs(120);
/// Clients with one set on its way each.
const CLIENTS: usize = 8;
const ROUNDS: usize = 3;
/// Creates on their way at a time while the data is made.
const PIPELINED: usize = 1000;
const NEVER: &str = "snapCount=2000000000\nsnapSizeLimitInKb=0\n";
/// One begins as soon as the one before has ended.
const ALWAYS: &str = "snapCount=2\nsnapSizeLimitInKb=1\n";

fn server(dir: &Path, settings: &str) -> Server {
    let named = env::var_os("RINGKEEPER_BIN").map(PathBuf::from);
    let program = named.unwrap_or_else(|| target().join("release/ringkeeper"));
    let program = program.canonicalize().expect("the server is built");
    let launch = Launch::parse(&format!("{} serve", program.display()));
    let launch = launch.expect("a command line without blanks");
    let server = Server::new(launch, dir).expect("room for its files");
    let mut file = OpenOptions::new()
        .append(true)
        .open(server.dir().join("zoo.cfg"))
        .expect("it was written just now");
    file.write_all(settings.as_bytes()).expect("room for it");
    server
}

fn fill(server: &Server, znodes: usize) {
    let mut session = Session::open(server.address(), 30_000).expect("the server takes clients");
    let parents = (0..100).map(|parent| (format!("/{parent}"), &b""[..]));
    let children = (0..znodes).map(|number| (path_of(number), &[b'x'; 100][..]));
    let mut on_their_way = 0;
    let flush = |session: &mut Session, count: &mut usize| {
        session.flush().expect("the server reads");
        for _ in 0..std::mem::take(count) {
            let reply = session.receive().expect("the server answers");
            reply.ok().expect("an empty server takes creates");
        }
    };
    for (path, data) in parents.chain(children) {
        session.send(&create(&path, data));
        on_their_way += 1;
        if on_their_way == PIPELINED {
            flush(&mut session, &mut on_their_way);
        }
    }
    flush(&mut session, &mut on_their_way);
    session.close().expect("the server closes sessions");
}

/// The value of a line of `mntr`.
fn metric(server: &Server, name: &str) -> String {
    let told = four_letter_word(server.address(), "mntr").expect("the server answers");
    let mut lines = told.lines().filter_map(|line| line.split_once('\t'));
    let found = lines.find(|(key, _)| *key == format!("zk_{name}"));
    found.map_or_else(String::new, |(_, value)| value.to_owned())
}

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
    let told = env::var("RINGKEEPER_BENCH_ZNODES").ok();
    let told = told.and_then(|told| told.parse().ok());
    let (znodes, rounds, time) = if is_smoke_test() {
        (1000, 1, Duration::from_millis(300))
    } else {
        (told.unwrap_or(1_000_000), ROUNDS, Duration::from_secs(8))
    };
    let dir = directory();
    environment::print(Some(dir.path()));
    let mut filled = server(dir.path(), ALWAYS);
    filled.start(PATIENCE).expect("the server starts");
    fill(&filled, znodes);
    assert!(stop(&mut filled), "it stops in order");
    drop(filled);
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let [without, with] = [("without", NEVER), ("with", ALWAYS)].map(|(name, settings)| {
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
            assert!(stop(&mut server), "it stops in order");
            latencies
        });
        ratios.push(with.micros(0.999) / without.micros(0.999));
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    println!(
        "{znodes} znodes: p99.9 with a snapshot / without, median of {rounds} rounds: {median:.2}"
    );
}

fn stop(server: &mut Server) -> bool {
    let status = server.terminate(PATIENCE).expect("the server can be told");
    status.is_some_and(|status| status.success())
}
