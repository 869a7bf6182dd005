//! `purge` on directories of Apache ZooKeeper: what stays, what goes, and when nothing does.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use ringkeeper_apache_files::{Compression, write_snapshot};
use ringkeeper_proto::Zxid;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_tree::{Events, Tree};
use support::{apache_log, arg, copy_dir, expect, expect_error, flip, history, json, records};
use support::{run, temp_dir};

const SNAPSHOTS: [usize; 5] = [100, 200, 300, 400, 500];

/// The zxid of the `n`-th transaction.
fn zxid(n: usize) -> Zxid {
    Zxid(0x1_0000_0000 + n as u64)
}

/// The tree after each of `counts` transactions is written as a snapshot into `folder`.
fn snapshots(folder: &Path, records: &[(Zxid, Vec<u8>)], counts: &[usize]) {
    fs::create_dir_all(folder).unwrap();
    let mut tree = Tree::new();
    for (at, (_, record)) in records.iter().enumerate() {
        let (header, txn, _) = decode_record(record).unwrap();
        let _applied = tree.apply(&header, &txn, &mut Events::new());
        if counts.contains(&(at + 1)) {
            let compression = [Compression::Plain, Compression::Gz, Compression::Snappy][at % 3];
            write_snapshot(&tree, folder, compression, &mut |_| ()).unwrap();
        }
    }
}

/// Snapshots in `data` and logs in `log` that begin behind each of `starts` transactions.
fn directory(data: &Path, log: &Path, starts: &[usize]) {
    let own = temp_dir();
    history(own.path());
    let records = records(own.path());
    snapshots(&data.join("version-2"), &records, &SNAPSHOTS);
    for (at, start) in starts.iter().enumerate() {
        let end = starts.get(at + 1).map_or(records.len(), |next| *next);
        apache_log(&log.join("version-2"), &records[*start..end], 100_000);
    }
}

/// As Apache writes them: a new log behind each snapshot.
fn usual(data: &Path, log: &Path) {
    directory(data, log, &[0, 100, 200, 300, 400, 500]);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("version-2")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn snapshot_zxids(names: &[String]) -> Vec<Zxid> {
    let numbers = names.iter().filter_map(|name| {
        let hex = name.strip_prefix("snapshot.")?.split('.').next()?;
        Some(Zxid(u64::from_str_radix(hex, 16).unwrap()))
    });
    numbers.collect()
}

fn logs(names: &[String]) -> Vec<&str> {
    let names = names.iter().map(String::as_str);
    names.filter(|name| name.starts_with("log.")).collect()
}

#[test]
fn the_newest_snapshots_stay_with_every_log_that_they_need() {
    let (data, log) = (temp_dir(), temp_dir());
    usual(data.path(), log.path());
    let before = (names(data.path()), names(log.path()));
    let place = [arg(data.path()), "--log-dir", arg(log.path())];
    let with = |options: &[&'static str]| [&["purge"], options, &place].concat();

    // Nobody said yes, too few would stay, or it is only asked for: nothing goes.
    assert!(expect_error(4, &with(&[])).contains("--yes"));
    assert!(expect_error(2, &with(&["--yes", "--keep", "2"])).contains("at least 3"));
    let foreseen = json(0, &with(&["--dry-run"]));
    let text = expect(0, &with(&["--dry-run"]));
    assert!(text.contains("goes: 2 snapshots and 2 logs"), "{text}");
    assert!(!text.contains("done"), "{text}");
    assert_eq!(before, (names(data.path()), names(log.path())));

    let done = json(0, &with(&["--yes"]));
    assert_eq!(
        (&foreseen["dry_run"], &done["dry_run"]),
        (&true.into(), &false.into())
    );
    for key in [
        "kept",
        "kept_logs",
        "oldest",
        "snapshots",
        "logs",
        "bytes",
        "notes",
    ] {
        assert_eq!(foreseen[key], done[key], "{key}");
    }
    assert_eq!(done["oldest"], zxid(300).to_string());
    assert_eq!(done["snapshots"].as_array().unwrap().len(), 2);
    assert!(done["bytes"].as_u64().unwrap() > 200_000);
    assert_eq!(
        snapshot_zxids(&names(data.path())),
        [300, 400, 500].map(zxid)
    );
    // The log before the snapshot's stays too, as with Apache: a learner may be behind.
    let left = names(log.path());
    assert_eq!(
        logs(&left),
        [
            "log.1000000c9",
            "log.10000012d",
            "log.100000191",
            "log.1000001f5"
        ]
    );
    expect(0, &[&["verify"][..], &place].concat());
    let text = expect(0, &with(&["--yes"]));
    assert!(text.contains("nothing is older"), "{text}");
}

#[test]
fn a_log_that_begins_before_the_oldest_snapshot_and_goes_on_behind_it_stays() {
    let dir = temp_dir();
    // The one from 251 on holds what comes after the snapshot at 300; the snapshots of 400 and 500 lie in one log.
    directory(dir.path(), dir.path(), &[0, 150, 250, 350]);
    expect(0, &["purge", "--yes", arg(dir.path())]);
    let left = names(dir.path());
    assert_eq!(logs(&left), ["log.1000000fb", "log.10000015f"]);
    assert_eq!(snapshot_zxids(&left), [300, 400, 500].map(zxid));
    // Every state from the oldest snapshot on can still be told.
    for n in [300, 301, 349, 350, 351, 1006] {
        let text = expect(0, &["at", &zxid(n).0.to_string(), "/n", arg(dir.path())]);
        assert!(text.contains("/n"), "{text}");
    }
}

#[test]
fn a_snapshot_that_is_not_whole_does_not_count() {
    let dir = temp_dir();
    usual(dir.path(), dir.path());
    let folder = dir.path().join("version-2");
    let damaged = names(dir.path());
    let damaged = damaged
        .iter()
        .find(|name| name.contains("100000190"))
        .unwrap();
    flip(&folder.join(damaged), 8 * 2000);
    let done = json(0, &["purge", "--yes", arg(dir.path())]);
    assert_eq!(done["notes"].as_array().unwrap().len(), 1, "{done:#}");
    // It stays itself, since somebody may want to look at it.
    assert_eq!(
        snapshot_zxids(&names(dir.path())),
        [200, 300, 400, 500].map(zxid)
    );
    // One that shows what no log holds: named after an earlier moment than it is of.
    let dir = temp_dir();
    let own = temp_dir();
    history(own.path());
    let records = records(own.path());
    let folder = dir.path().join("version-2");
    snapshots(&folder, &records, &[100, 200, 300, 480]);
    let name = |n: usize| format!("snapshot.{:x}", zxid(n).0);
    let late = names(dir.path())
        .into_iter()
        .find(|one| one.starts_with(&name(480)))
        .unwrap();
    fs::rename(
        folder.join(&late),
        folder.join(late.replace(&name(480), &name(440))),
    )
    .unwrap();
    apache_log(&folder, &records[..450], 0);
    let text = expect(0, &["purge", "--yes", arg(dir.path())]);
    assert!(text.contains("does not count as whole"), "{text}");
    assert_eq!(
        snapshot_zxids(&names(dir.path())),
        [100, 200, 300, 440].map(zxid)
    );
    // With two whole ones nothing goes, whatever else lies there.
    flip(
        &folder.join(
            names(dir.path())
                .into_iter()
                .find(|one| one.starts_with(&name(100)))
                .unwrap(),
        ),
        8 * 2000,
    );
    let text = expect(0, &["purge", "--yes", arg(dir.path())]);
    assert!(
        text.contains("2 snapshots are whole, and 3 are to stay"),
        "{text}"
    );
    assert_eq!(names(dir.path()).len(), 5);
}

#[test]
fn nothing_goes_when_what_would_stay_is_damaged() {
    let dir = temp_dir();
    usual(dir.path(), dir.path());
    let folder = dir.path().join("version-2");
    let before = names(dir.path());
    let refused = |expected: &str| {
        let error = expect_error(3, &["purge", "--yes", arg(dir.path())]);
        assert!(
            error.contains(expected) && error.contains("nothing is purged"),
            "{error}"
        );
        assert_eq!(names(dir.path()), before);
    };
    // In a log that would stay, after the oldest snapshot that would.
    let log = folder.join("log.100000191");
    flip(&log, 8 * 3000);
    refused("checksum does not hold");
    flip(&log, 8 * 3000);
    // In the log that stays for its end: what the snapshots cover is no reason to keep everything.
    let log = folder.join("log.1000000c9");
    flip(&log, 8 * 3000);
    expect(0, &["purge", "--dry-run", arg(dir.path())]);
    flip(&log, 8 * 3000);
    // A log that is gone, between two that stay.
    fs::remove_file(folder.join("log.100000191")).unwrap();
    let newest = before.iter().find(|one| one.contains("1000001f4"));
    let newest = folder.join(newest.unwrap());
    let whole = fs::read(&newest).unwrap();
    let before = names(dir.path());
    // No whole snapshot is behind the gap, though one is that would be, if it were whole.
    flip(&newest, 8 * 2000);
    let refused = || {
        let error = expect_error(3, &["purge", "--yes", arg(dir.path())]);
        assert!(
            error.contains("missing") && error.contains("nothing is purged"),
            "{error}"
        );
    };
    refused();
    assert_eq!(names(dir.path()), before);
    fs::remove_file(&newest).unwrap();
    refused();
    // With it nothing is lost: a member was given a snapshot by its leader.
    fs::write(&newest, whole).unwrap();
    expect(0, &["purge", "--yes", arg(dir.path())]);
}

#[test]
fn a_log_that_holds_more_than_its_name_tells_is_not_removed() {
    let dir = temp_dir();
    usual(dir.path(), dir.path());
    let folder = dir.path().join("version-2");
    // The newest, under a name by which it would be the second.
    fs::rename(folder.join("log.1000001f5"), folder.join("log.100000002")).unwrap();
    let before = names(dir.path());
    let error = expect_error(3, &["purge", "--yes", arg(dir.path())]);
    assert!(
        error.contains("log.100000002 holds transactions after")
            && error.contains("nothing is purged"),
        "{error}"
    );
    assert_eq!(names(dir.path()), before);
}

#[test]
fn a_directory_that_a_process_has_open_is_left_alone() {
    let dir = temp_dir();
    usual(dir.path(), dir.path());
    let before = names(dir.path());
    let log = File::open(dir.path().join("version-2/log.1000001f5")).unwrap();
    let mut user = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(log))
        .spawn()
        .unwrap();
    let output = run(&["purge", "--yes", arg(dir.path())]);
    let foreseen = run(&["purge", "--dry-run", arg(dir.path())]);
    user.kill().unwrap();
    user.wait().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(
        error.contains(&format!("process {}", user.id())) && error.contains("log.1000001f5"),
        "{error}"
    );
    assert!(foreseen.status.success());
    assert_eq!(names(dir.path()), before);
    expect(0, &["purge", "--yes", arg(dir.path())]);
    assert_ne!(names(dir.path()), before);
}

/// The files go in the order in which they are listed; whatever is left in between can be gone on with.
#[test]
fn an_interrupted_purge_leaves_what_can_be_gone_on_with() {
    let dir = temp_dir();
    usual(dir.path(), dir.path());
    let foreseen = json(0, &["purge", "--dry-run", arg(dir.path())]);
    let paths = |key: &str| foreseen[key].as_array().unwrap().clone();
    let going: Vec<_> = [paths("snapshots"), paths("logs")].concat();
    assert_eq!(going.len(), 4);
    for done in 0..=going.len() {
        let state = temp_dir();
        copy_dir(dir.path(), state.path());
        for path in &going[..done] {
            let name = Path::new(path.as_str().unwrap()).file_name().unwrap();
            fs::remove_file(state.path().join("version-2").join(name)).unwrap();
        }
        let report = json(0, &["verify", arg(state.path())]);
        assert_eq!(report["last_zxid"], zxid(1006).to_string());
        assert_eq!(report["replay"]["through"], zxid(1006).to_string());
        expect(0, &["purge", "--yes", arg(state.path())]);
        assert_eq!(names(state.path()).len(), 7);
    }
}

/// Snapshots go before logs, and the oldest first: what cannot be removed leaves everything behind it.
#[test]
fn what_cannot_be_removed_ends_the_purge_with_the_newer_end_left() {
    let dir = temp_dir();
    usual(dir.path(), dir.path());
    let stuck = format!("snapshot.{:x}", zxid(150).0);
    fs::create_dir(dir.path().join("version-2").join(&stuck)).unwrap();
    let before = names(dir.path());
    let error = expect_error(3, &["purge", "--yes", arg(dir.path())]);
    assert!(error.contains(&stuck), "{error}");
    let left = names(dir.path());
    assert_eq!(snapshot_zxids(&left), [150, 200, 300, 400, 500].map(zxid));
    assert_eq!(logs(&left), logs(&before));
}

#[test]
fn the_format_says_whose_data_goes_where_a_directory_holds_both() {
    let dir = temp_dir();
    history(dir.path());
    usual(dir.path(), dir.path());
    let text = expect(0, &["purge", "--dry-run", "--keep", "1", arg(dir.path())]);
    assert!(text.contains("log segments would be removed"), "{text}");
    expect(
        0,
        &["purge", "--yes", "--format", "apache", arg(dir.path())],
    );
    assert_eq!(snapshot_zxids(&names(dir.path())).len(), 3);
    assert_eq!(support::files(dir.path(), "snapshot-").len(), 2);
}
