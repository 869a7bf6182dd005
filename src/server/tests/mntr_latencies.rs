//! The latencies that `mntr` tells of each device: their names and shape, and that they move with what is really written.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ringkeeper_harness::{Launch, Server, Session, four_letter_word};
use ringkeeper_proto::Request;

const PATIENCE: Duration = Duration::from_secs(60);
/// What follows a name's prefix: Apache's nine of a summary with percentiles.
const PARTS: [&str; 9] = [
    "avg", "min", "max", "cnt", "sum", "p50", "p95", "p99", "p999",
];
/// Of the log's device.
const LOG: [&str; 2] = ["fsynctime", "log_commit_time"];
const MANIFEST: &str = "manifest_fsynctime";
const SNAPSHOTS: [&str; 2] = ["snapshot_fsynctime", "snapshottime"];
const NO_SNAPSHOTS: [(&str, &str); 2] = [("snapCount", "2000000000"), ("snapSizeLimitInKb", "0")];
/// Sets one by one, each durable before its reply.
const SETS: u64 = 12;

fn start(dir: &Path, settings: &[(&str, &str)]) -> Server {
    let program = env!("CARGO_BIN_EXE_ringkeeper");
    let mut launch = Launch::parse(&format!("{program} serve")).unwrap();
    for (key, value) in settings {
        launch.set(key, value);
    }
    let mut server = Server::new(launch, dir).unwrap();
    server.start(PATIENCE).unwrap();
    server
}

/// What `mntr` tells, without the prefix that each name has.
fn told(server: &Server) -> BTreeMap<String, String> {
    let text = four_letter_word(server.address(), "mntr").unwrap();
    let lines = text.lines().map(|line| {
        let (name, value) = line.split_once('\t').unwrap();
        let name = name.strip_prefix("zk_").unwrap();
        (name.to_owned(), value.to_owned())
    });
    lines.collect()
}

/// A summary of latencies in ms.
#[derive(Clone, Copy, Debug)]
struct Summary {
    avg: f64,
    min: f64,
    max: f64,
    count: u64,
    sum: f64,
    percentiles: [f64; 4],
}

impl Summary {
    fn of(told: &BTreeMap<String, String>, name: &str) -> Self {
        let text = |part: &str| {
            let key = format!("{part}_{name}");
            told.get(&key)
                .unwrap_or_else(|| panic!("no {key}"))
                .as_str()
        };
        for part in PARTS {
            // As Apache prints them: counts whole, the rest with a point.
            assert_eq!(text(part).contains('.'), part != "cnt", "{part}_{name}");
        }
        let number = |part: &str| text(part).parse::<f64>().unwrap();
        let summary = Self {
            avg: number("avg"),
            min: number("min"),
            max: number("max"),
            count: text("cnt").parse().unwrap(),
            sum: number("sum"),
            percentiles: ["p50", "p95", "p99", "p999"].map(number),
        };
        summary.assert_consistent(name);
        summary
    }

    fn assert_consistent(&self, name: &str) {
        let [p50, p95, p99, p999] = self.percentiles;
        if self.count == 0 {
            let all = [self.avg, self.min, self.max, self.sum, p50, p95, p99, p999];
            assert!(all.iter().all(|value| *value == 0.0), "{name}: {self:?}");
            return;
        }
        let ascending = [self.min, p50, p95, p99, p999, self.max];
        assert!(ascending.is_sorted(), "{name}: {self:?}");
        assert!(
            (self.min..=self.max).contains(&self.avg),
            "{name}: {self:?}"
        );
        let sum = self.avg * self.count as f64;
        assert!((self.sum - sum).abs() <= sum * 0.001, "{name}: {self:?}");
    }
}

fn set(session: &mut Session) {
    let request = Request::SetData {
        path: "/",
        data: Some(b"data"),
        version: -1,
    };
    session.call(&request).unwrap().ok().unwrap();
}

#[test]
fn each_device_has_its_summaries_and_they_move_with_its_writes() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut server = start(dir.path(), &NO_SNAPSHOTS);
    let mut session = Session::open(server.address(), 30_000).unwrap();
    let before = told(&server);
    for _ in 0..SETS {
        set(&mut session);
    }
    let after = told(&server);
    for name in LOG {
        let (before, after) = (Summary::of(&before, name), Summary::of(&after, name));
        assert!(after.count >= before.count + SETS, "{name}: {after:?}");
        assert!(after.sum > before.sum, "{name}: {before:?} {after:?}");
        assert!(after.min > 0.0, "{name}: {after:?}");
    }
    // The manifest was saved at the start, and sets are none of its business.
    let [manifest, later] = [&before, &after].map(|told| Summary::of(told, MANIFEST));
    assert!(manifest.count > 0 && manifest.min > 0.0, "{manifest:?}");
    assert_eq!(manifest.count, later.count);
    for name in SNAPSHOTS {
        assert_eq!(Summary::of(&after, name).count, 0, "{name}");
    }
    session.close().unwrap();
    assert!(server.terminate(PATIENCE).unwrap().unwrap().success());

    // A snapshot is flushed and takes its time, and the manifest lists it.
    let mut server = start(
        dir.path(),
        &[("snapCount", "2"), ("snapSizeLimitInKb", "1")],
    );
    let mut session = Session::open(server.address(), 30_000).unwrap();
    let manifest = Summary::of(&told(&server), MANIFEST);
    let taken = loop {
        set(&mut session);
        let told = told(&server);
        // The time is known when the snapshot has ended, and it is listed after that.
        let is_taken = told
            .get("cnt_snapshottime")
            .is_some_and(|count| count != "0");
        if is_taken && Summary::of(&told, MANIFEST).count > manifest.count {
            break told;
        }
    };
    for name in SNAPSHOTS {
        assert!(Summary::of(&taken, name).count > 0, "{name}");
    }
    assert!(Summary::of(&taken, SNAPSHOTS[0]).min > 0.0);
    session.close().unwrap();
    assert!(server.terminate(PATIENCE).unwrap().unwrap().success());
}

/// They are times of durable writes, in milliseconds: on a disk that takes so much longer none is shorter.
#[test]
fn a_slow_disk_shows_in_the_log_s_latencies() {
    const DELAY_MS: f64 = 25.0;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let delay = ("ringkeeper.test.diskDelayMs", "25");
    let mut server = start(dir.path(), &[&NO_SNAPSHOTS[..], &[delay]].concat());
    let mut session = Session::open(server.address(), 30_000).unwrap();
    for _ in 0..SETS {
        set(&mut session);
    }
    let told = told(&server);
    for name in LOG {
        let summary = Summary::of(&told, name);
        assert!(summary.count >= SETS, "{name}: {summary:?}");
        // Two digits are kept of each.
        assert!(summary.min >= DELAY_MS * 0.99, "{name}: {summary:?}");
        assert!(
            summary.sum >= DELAY_MS * 0.99 * SETS as f64,
            "{name}: {summary:?}"
        );
    }
    session.close().unwrap();
    assert!(server.terminate(PATIENCE).unwrap().unwrap().success());
}
