//! When a snapshot is due does not depend on how often the server was restarted.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ringkeeper_harness::{Launch, Server, Session, four_letter_word};
use ringkeeper_proto::Request;

const PATIENCE: Duration = Duration::from_secs(60);
const SETS: usize = 40;

/// A server that takes a snapshot after so many transactions.
fn start(dir: &Path, snap_count: &str) -> Server {
    let program = env!("CARGO_BIN_EXE_ringkeeper");
    let mut launch = Launch::parse(&format!("{program} serve")).unwrap();
    launch.set("snapCount", snap_count);
    launch.set("ringkeeper.snapshotLogSizeInKb", "1");
    let mut server = Server::new(launch, dir).unwrap();
    server.start(PATIENCE).unwrap();
    server
}

fn stop(mut server: Server) {
    assert!(server.terminate(PATIENCE).unwrap().unwrap().success());
}

fn has_taken_a_snapshot(server: &Server) -> bool {
    let told = four_letter_word(server.address(), "mntr").unwrap();
    told.contains("zk_snapshots_taken\t1\n")
}

/// How many transactions the last start has replayed.
fn replayed(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("server.log")).unwrap();
    let loaded = log.lines().rfind(|line| line.contains("data loaded"));
    let (_, rest) = loaded.unwrap().split_once(" replayed=").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn what_a_start_replays_counts_for_the_next_snapshot() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = start(dir.path(), "1000000");
    let mut session = Session::open(server.address(), 30_000).unwrap();
    for _ in 0..SETS {
        let set = Request::SetData {
            path: "/",
            data: Some(&[b'x'; 100]),
            version: -1,
        };
        session.call(&set).unwrap().ok().unwrap();
    }
    session.close().unwrap();
    stop(server);

    // Nothing is written any more, so no transaction makes it due.
    let server = start(dir.path(), "20");
    let all = (SETS + 2).to_string();
    assert_eq!(replayed(dir.path()), all, "and two of the session");
    let began = Instant::now();
    while !has_taken_a_snapshot(&server) {
        assert!(began.elapsed() < PATIENCE, "no snapshot is taken");
    }
    stop(server);

    stop(start(dir.path(), "20"));
    assert_eq!(replayed(dir.path()), "0");
}
