//! Commit latency end to end: clients on loopback, a server in its own process, each write durable before its
//! reply.
//!
//! The server is `target/release/ringkeeper` (`cargo build --release`), or what `RINGKEEPER_BIN` names. Its data
//! lies below `target`, on the disk that is measured; `RINGKEEPER_BENCH_DIR` names another place.
//!
//! The same for an ensemble of three servers on this machine, with one client at its leader and then at a follower.
//!
//! Criterion's estimate is the time per commit: with one client that is its latency, with more it is the inverse of
//! the throughput. Latencies of single commits are printed below it.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::clients::{Clients, measure_loopback};
use ringkeeper_benches::{create, directory, environment, floor, set, target};
use ringkeeper_ensemble::{Ensemble, Plan, Role};
use ringkeeper_harness::{Launch, Server, Session, Usage, usage};
use ringkeeper_proto::Xid;

const PATIENCE: Duration = Duration::from_secs(20);
const FLOOR_TIME: Duration = Duration::from_millis(300);
/// Clients at the most; each has a parent of its own.
const CLIENTS_MAX: usize = 64;
/// Znodes that each client sets in turn.
const KEYS: u64 = 100;

#[derive(Clone, Copy)]
enum Write {
    Create,
    Set,
}

/// Numbers what clients write, over all runs.
#[derive(Default)]
struct Numbers {
    next: u64,
}

impl Numbers {
    /// Appends the next request of a client.
    fn encode(&mut self, write: Write, client: usize, data: &[u8], xid: Xid, out: &mut BytesMut) {
        self.next += 1;
        match write {
            Write::Create => {
                let path = format!("/bench/{client}/c{:010}", self.next);
                create(&path, data).encode_frame(xid, out);
            }
            Write::Set => {
                let path = format!("/bench/{client}/k{}", self.next % KEYS);
                set(&path, data).encode_frame(xid, out);
            }
        }
    }
}

fn program() -> PathBuf {
    let named = env::var_os("RINGKEEPER_BIN").map(PathBuf::from);
    let program = named.unwrap_or_else(|| target().join("release/ringkeeper"));
    program.canonicalize().unwrap_or_else(|error| {
        panic!(
            "no server at {} ({error}): `cargo build --release` makes it, RINGKEEPER_BIN names another",
            program.display()
        )
    })
}

fn launch() -> Launch {
    let launch = Launch::parse(&format!("{} serve", program().display()));
    let launch = launch.expect("a command line without blanks");
    println!("server: {}", launch.version());
    launch
}

fn start(dir: &Path) -> Server {
    let mut server = Server::new(launch(), dir).expect("room for its files");
    server.start(PATIENCE).expect("the server starts");
    prepare(server.address()).expect("an empty server takes creates");
    server
}

/// Makes every client's parent and the keys that it sets.
fn prepare(address: SocketAddr) -> anyhow::Result<()> {
    let mut session = Session::open(address, 30_000)?;
    session.call(&create("/bench", b""))?.ok()?;
    for client in 0..CLIENTS_MAX {
        let parent = format!("/bench/{client}");
        session.send(&create(&parent, b""));
        for key in 0..KEYS {
            session.send(&create(&format!("{parent}/k{key}"), b""));
        }
        session.flush()?;
        for _ in 0..=KEYS {
            session.receive()?.ok()?;
        }
    }
    session.close()
}

fn commits(criterion: &mut Criterion) {
    let dir = directory();
    environment::print(Some(dir.path()));
    let mut server = start(dir.path());
    let mut numbers = Numbers::default();
    for count in [1, CLIENTS_MAX] {
        for (name, write) in [("create", Write::Create), ("set", Write::Set)] {
            for len in [100, 1024] {
                let case = Case {
                    name: format!("{name} {len} B, clients: {count}"),
                    write,
                    data: vec![b'x'; len],
                    clients: count,
                    address: server.address(),
                    pids: vec![server.pid().expect("it runs")],
                };
                measure(criterion, &case, dir.path(), &mut numbers);
            }
        }
    }
    let status = server.terminate(PATIENCE).expect("the server can be told");
    assert!(
        status.is_some_and(|status| status.success()),
        "SIGTERM: {status:?}"
    );
}

/// Servers of an ensemble.
const SERVERS: usize = 3;

fn commits_of_an_ensemble(criterion: &mut Criterion) {
    let dir = directory();
    environment::print(Some(dir.path()));
    let plan = Plan::alike(&launch(), SERVERS);
    let mut ensemble = Ensemble::new(&plan, dir.path()).expect("room for its files");
    ensemble.start(PATIENCE).expect("a leader is elected");
    let ids = ensemble.ids();
    let of_role = |role| {
        ids.iter()
            .copied()
            .find(|id| ensemble.role(*id) == Some(role))
    };
    let leader = of_role(Role::Leader).expect("one leads");
    let follower = of_role(Role::Follower).expect("others follow");
    let address = |id| ensemble.address(id).expect("it has a process");
    let pids: Vec<u32> = ids
        .iter()
        .filter_map(|id| ensemble.member(*id).ok()?.pid())
        .collect();
    prepare(address(leader)).expect("an empty ensemble takes creates");
    let mut numbers = Numbers::default();
    for (place, id) in [("leader", leader), ("follower", follower)] {
        for (name, write) in [("create", Write::Create), ("set", Write::Set)] {
            let case = Case {
                name: format!("{SERVERS} servers, {name} 100 B, one client at the {place}"),
                write,
                data: vec![b'x'; 100],
                clients: 1,
                address: address(id),
                pids: pids.clone(),
            };
            measure(criterion, &case, dir.path(), &mut numbers);
        }
    }
}

struct Case {
    name: String,
    write: Write,
    data: Vec<u8>,
    clients: usize,
    /// Where they connect.
    address: SocketAddr,
    /// The servers: each of them makes every commit durable.
    pids: Vec<u32>,
}

impl Case {
    fn cpu(&self) -> Duration {
        let usages = self.pids.iter().map(|pid| usage(*pid).expect("it runs"));
        usages.map(|Usage { cpu, .. }| cpu).sum()
    }
}

fn measure(criterion: &mut Criterion, case: &Case, dir: &Path, numbers: &mut Numbers) {
    let writers = case.pids.len();
    let floor = floor::measure(dir, writers, FLOOR_TIME).expect("the disk writes");
    let loopback = measure_loopback(case.data.len(), FLOOR_TIME).expect("loopback works");
    let mut clients =
        Clients::connect(case.address, case.clients).expect("the server takes clients");
    let before = case.cpu();
    let (mut commits, mut clock) = (0, Duration::ZERO);
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements(1));
    group.bench_function(&case.name, |bencher| {
        bencher.iter_custom(|count| {
            let took = clients.run(count, |client, xid, out| {
                numbers.encode(case.write, client, &case.data, xid, out);
            });
            let took = took.expect("the server commits");
            commits += count;
            clock += took;
            took
        });
    });
    group.finish();
    let latencies = clients.take_latencies();
    clients.close().expect("the server closes sessions");
    if commits == 0 {
        return;
    }
    let cpu = case.cpu().saturating_sub(before);
    // To the client and back; in an ensemble, to the learners and back as well.
    let round_trips = if writers == 1 { 1.0 } else { 2.0 };
    let (floor_us, loopback_us) = (floor.micros(0.5), loopback.micros(0.5));
    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    let commits = commits as f64;
    println!("  commit:   {latencies}");
    println!("  floor:    raw O_DSYNC 4 KiB, writers at once: {writers}: {floor}");
    println!("  loopback: {loopback}");
    println!(
        "  p50 / (floor + {round_trips} loopback): {:.2}, which is {:.0} us more; {:.0} commits/s; server CPU {:.1} us per \
         commit",
        latencies.micros(0.5) / (floor_us + round_trips * loopback_us),
        latencies.micros(0.5) - (floor_us + round_trips * loopback_us),
        commits / clock.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / commits,
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = commits, commits_of_an_ensemble
}
criterion_main!(benches);
