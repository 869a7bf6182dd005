//! `verify` on whole directories, on each kind of damage, and on every flipped bit.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringkeeper_storage::offline::{FIRST_BATCH_OFFSET, whole_header_at};
use ringkeeper_storage::{BatchHeader, HEADER_BYTES};
use ringkeeper_tree::{Events, Tree};
use serde_json::Value;
use support::{Maker, arg, expect, expect_error, files, flip, history, json, run, temp_dir};

/// A batch of a log: file, offset, header.
struct BatchAt {
    file: PathBuf,
    offset: u64,
    header: BatchHeader,
}

/// Every batch of the log in `dir`, by its headers.
fn batches(dir: &Path) -> Vec<BatchAt> {
    let mut found = Vec::new();
    for file in files(dir, "log-") {
        let bytes = fs::read(&file).unwrap();
        let mut at = usize::try_from(FIRST_BATCH_OFFSET).unwrap();
        while let Some(header) = bytes.get(at..).and_then(whole_header_at) {
            found.push(BatchAt {
                file: file.clone(),
                offset: at as u64,
                header,
            });
            at += header.stored_bytes();
        }
    }
    found
}

fn findings(report: &Value) -> Vec<&Value> {
    let all = report["findings"].as_array().unwrap();
    all.iter()
        .filter(|finding| finding["severity"] == "damage")
        .collect()
}

#[test]
fn a_whole_directory() {
    let dir = temp_dir();
    let tree = history(dir.path());
    let text = expect(0, &["verify", arg(dir.path())]);
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("ok; "), "{text}");
    assert!(
        last.contains("1006 records (zxids 0x100000001 to 0x1000003ee)"),
        "{text}"
    );
    assert!(
        last.contains("1006 replayed from the beginning, 0 digests differ"),
        "{text}"
    );
    assert!(last.ends_with("the log ends cleanly"), "{text}");
    let report = json(0, &["verify", arg(dir.path())]);
    assert_eq!(report["ok"], true);
    assert_eq!(report["snapshots"].as_array().unwrap().len(), 2);
    assert!(report["segments"].as_array().unwrap().len() >= 2);
    assert_eq!(report["last_zxid"], tree.zxid().to_string());
    assert_eq!(report["replay"]["mismatches"], 0);
    // One file of it, and one thread, find the same.
    let segment = &files(dir.path(), "log-")[1];
    assert!(expect(0, &["verify", arg(segment), "--threads", "1"]).contains("ok; 1 segments"));
}

#[test]
fn it_writes_nothing_and_takes_no_lock() {
    let dir = temp_dir();
    history(dir.path());
    let held = Maker::open(dir.path(), Tree::new());
    let before = contents(dir.path());
    for command in [
        ["verify"],
        ["dump"],
        ["stats"],
        ["tree"],
        ["show-snapshot"],
        ["doctor"],
    ] {
        expect(0, &[command[0], arg(dir.path())]);
    }
    assert_eq!(before, contents(dir.path()));
    // And those that write say that a server runs there.
    for command in [
        vec!["repair", "--yes", arg(dir.path())],
        vec![
            "truncate",
            "--yes",
            "--after",
            "0x100000005",
            arg(dir.path()),
        ],
        vec!["purge", "--yes", arg(dir.path())],
    ] {
        assert!(expect_error(4, &command).contains("nothing was changed"));
    }
    assert_eq!(before, contents(dir.path()));
    drop(held);
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let all = files(dir, "").into_iter();
    all.map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn after_a_crash_the_tail_is_torn_and_that_is_no_damage() {
    let dir = temp_dir();
    let mut maker = Maker::open(dir.path(), Tree::new());
    maker.create("/n", b"");
    maker.fill(50);
    maker.crash();
    let last = batches(dir.path()).pop().unwrap();
    flip(&last.file, (last.offset + HEADER_BYTES as u64 + 20) * 8);
    let report = json(0, &["verify", arg(dir.path())]);
    assert_eq!(report["ending"], "torn");
    let torn = &report["findings"][0];
    assert_eq!(
        (&torn["kind"], &torn["offset"], &torn["batch"]),
        (
            &"torn".into(),
            &last.offset.into(),
            &last.header.sequence.into()
        )
    );
    // The same bytes, but the log was closed in order: then they had been acknowledged.
    let dir = temp_dir();
    let mut maker = Maker::open(dir.path(), Tree::new());
    maker.create("/n", b"");
    maker.fill(50);
    maker.close();
    let last = batches(dir.path()).pop().unwrap();
    flip(&last.file, (last.offset + HEADER_BYTES as u64 + 20) * 8);
    let report = json(1, &["verify", arg(dir.path())]);
    assert_eq!(
        (&report["ending"], &report["findings"][0]["kind"]),
        (&"damaged".into(), &"checksum".into())
    );
}

#[test]
fn a_log_that_was_cut_by_a_crash_and_gone_on_with() {
    let dir = temp_dir();
    let mut maker = Maker::open(dir.path(), Tree::new());
    maker.create("/n", b"");
    maker.fill(100);
    maker.crash();
    let all = batches(dir.path());
    // The last two batches are lost in part: what would attest the second but last is gone, too.
    for torn in &all[all.len() - 2..] {
        flip(&torn.file, (torn.offset + 60) * 8);
    }
    let report = json(0, &["verify", arg(dir.path())]);
    assert_eq!(report["ending"], "torn");
    let after = report["last_zxid"].as_str().unwrap().to_owned();
    let at = expect(0, &["tree", "--json", "--depth", "0", arg(dir.path())]);
    assert!(at.contains("\"znodes\""));
    let tree = tree_at(dir.path(), &after);
    let mut maker = Maker::open(dir.path(), tree);
    maker.fill(20);
    maker.close();
    let report = json(0, &["verify", arg(dir.path())]);
    assert_eq!(
        (&report["ok"], &report["ending"]),
        (&true.into(), &"clean".into())
    );
}

/// The tree after replaying the log of `dir` up to `zxid`, made by the library.
fn tree_at(dir: &Path, zxid: &str) -> Tree {
    let zxid = u64::from_str_radix(zxid.trim_start_matches("0x"), 16).unwrap();
    let dump = expect(
        0,
        &[
            "dump",
            "--json",
            "--data",
            "--through",
            &zxid.to_string(),
            arg(dir),
        ],
    );
    let mut tree = Tree::new();
    let text = dump
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    for line in text {
        let file = fs::File::open(line["file"].as_str().unwrap()).unwrap();
        let mut bytes = vec![0; usize::try_from(line["bytes"].as_u64().unwrap()).unwrap()];
        file.read_exact_at(&mut bytes, line["offset"].as_u64().unwrap() + 16)
            .unwrap();
        let (header, txn, _) = ringkeeper_proto::txn::decode_record(&bytes).unwrap();
        let _applied = tree.apply(&header, &txn, &mut Events::new());
    }
    tree
}

#[test]
fn a_missing_segment_a_short_one_and_a_foreign_one() {
    let dir = temp_dir();
    history(dir.path());
    let segments = files(dir.path(), "log-");
    let second = fs::read(&segments[1]).unwrap();
    fs::remove_file(&segments[1]).unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    let found = findings(&report);
    assert_eq!(found[0]["kind"], "segment-missing", "{report:#}");
    assert_eq!(found[0]["file"], arg(&segments[1]));
    assert!(found[0]["after_zxid"].is_string() && found[0]["before_zxid"].is_string());
    // Cut short in the middle of a batch.
    fs::write(&segments[1], &second[..100_001]).unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    let kinds: Vec<_> = findings(&report)
        .iter()
        .map(|f| f["kind"].clone())
        .collect();
    assert!(kinds.contains(&"truncated".into()), "{kinds:?}");
    // Of another store.
    let other = temp_dir();
    history(other.path());
    fs::copy(&files(other.path(), "log-")[1], &segments[1]).unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    assert!(
        findings(&report)
            .iter()
            .any(|f| f["kind"] == "foreign-segment"),
        "{report:#}"
    );
}

#[test]
fn a_stale_batch_in_place_of_the_right_one() {
    let dir = temp_dir();
    history(dir.path());
    let all = batches(dir.path());
    let (from, to) = (&all[5], &all[9]);
    let bytes = fs::read(&from.file).unwrap();
    let start = usize::try_from(from.offset).unwrap();
    let stale = &bytes[start..start + from.header.stored_bytes()];
    fs::OpenOptions::new()
        .write(true)
        .open(&to.file)
        .unwrap()
        .write_all_at(stale, to.offset)
        .unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    let found = findings(&report);
    assert_eq!(found[0]["offset"], to.offset, "{report:#}");
    assert_eq!(found[0]["batch"], to.header.sequence);
}

#[test]
fn all_damage_is_told_not_only_the_first() {
    let dir = temp_dir();
    history(dir.path());
    let all = batches(dir.path());
    let hit = [3, 7, 8, 40];
    for at in hit {
        let batch = &all[at];
        flip(&batch.file, (batch.offset + 100) * 8);
    }
    let report = json(1, &["verify", arg(dir.path())]);
    let told: Vec<_> = findings(&report)
        .iter()
        .map(|f| f["batch"].as_u64().unwrap())
        .collect();
    assert_eq!(told, hit.map(|at| all[at].header.sequence), "{report:#}");
}

#[test]
fn a_damaged_snapshot_and_a_missing_one() {
    let dir = temp_dir();
    history(dir.path());
    let snapshots = files(dir.path(), "snapshot-");
    flip(&snapshots[1], 5000 * 8);
    let report = json(1, &["verify", arg(dir.path())]);
    assert_eq!(findings(&report)[0]["file"], arg(&snapshots[1]));
    assert_eq!(report["snapshots"][1]["whole"], false);
    fs::remove_file(&snapshots[1]).unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    assert_eq!(findings(&report)[0]["kind"], "snapshot-missing");
}

#[test]
fn a_digest_that_the_log_does_not_replay_to() {
    let dir = temp_dir();
    let mut maker = Maker::open(dir.path(), Tree::new());
    maker.create("/n", b"");
    maker.fill(20);
    // What is logged from now on is of another tree than the one before.
    let mut other = Tree::new();
    std::mem::swap(&mut maker.tree, &mut other);
    let zxid = maker.create("/n2", b"");
    maker.close();
    let report = json(1, &["verify", arg(dir.path())]);
    let found = findings(&report);
    assert_eq!(found[0]["kind"], "digest");
    assert!(
        found[0]["text"]
            .as_str()
            .unwrap()
            .contains(&zxid.to_string())
    );
    json(0, &["verify", "--no-replay", arg(dir.path())]);
}

#[test]
fn what_is_no_data_directory() {
    let dir = temp_dir();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(expect_error(3, &["verify", arg(&empty)]).contains("an empty directory"));
    let file = dir.path().join("text");
    fs::write(&file, "hello").unwrap();
    assert!(expect_error(3, &["verify", arg(&file)]).contains("a file of another kind"));
    fs::write(&file, "").unwrap();
    assert!(expect_error(3, &["dump", arg(&file)]).contains("an empty file"));
    assert!(expect_error(3, &["verify", arg(&dir.path().join("none"))]).contains("No such file"));
    expect_error(2, &["verify"]);
    expect_error(2, &["dump", "--after", "x", arg(&file)]);
}

#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::{Command, Stdio};
    let dir = temp_dir();
    history(dir.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringkeeper-log"))
        .args(["dump", "--data", arg(dir.path())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

/// How many bits are flipped; `RINGKEEPER_FLIPS=1000` for the full check.
fn flips() -> usize {
    std::env::var("RINGKEEPER_FLIPS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60)
}

/// Each flipped bit of what was written (segment headers, batch headers, frames, records, padding) is found,
/// and the batch that it is in is named.
#[test]
fn every_flipped_bit_of_a_log_is_found_and_its_batch_named() {
    let dir = temp_dir();
    history(dir.path());
    let all = batches(dir.path());
    let seed = 20_261_123;
    let mut random = StdRng::seed_from_u64(seed);
    let (mut in_records, mut in_padding) = (0, 0);
    for round in 0..flips() {
        let batch = &all[random.random_range(0..all.len())];
        let within = random.random_range(0..batch.header.stored_bytes() as u64 * 8);
        let bit = batch.offset * 8 + within;
        flip(&batch.file, bit);
        let report = json(1, &["verify", "--no-replay", arg(dir.path())]);
        let used = (HEADER_BYTES as u64 + u64::from(batch.header.body_bytes)) * 8;
        let is_named = findings(&report).iter().any(|finding| {
            finding["file"] == arg(&batch.file)
                && finding["batch"] == batch.header.sequence
                && finding["offset"].as_u64().is_some_and(|offset| {
                    (batch.offset..=batch.offset + within / 8).contains(&offset)
                })
        });
        assert!(
            is_named,
            "seed {seed} round {round} bit {within} of batch {}: {report:#}",
            batch.header.sequence
        );
        assert_eq!(findings(&report).len(), 1, "{report:#}");
        if (HEADER_BYTES as u64 * 8..used).contains(&within) {
            in_records += 1;
            check_record(findings(&report)[0], batch);
        } else if within >= used {
            in_padding += 1;
            assert_eq!(findings(&report)[0]["kind"], "padding");
        }
        flip(&batch.file, bit);
    }
    json(0, &["verify", arg(dir.path())]);
    eprintln!(
        "{} bits: {in_records} in records, {in_padding} in padding",
        flips()
    );
    assert!(in_records > 0 && in_padding > 0);
}

/// The record is named, and the zxids around it are those of its batch.
fn check_record(finding: &Value, batch: &BatchAt) {
    let zxid = |name: &str| {
        let text = finding[name].as_str().unwrap();
        u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
    };
    assert!(finding["record"].as_u64().unwrap() < u64::from(batch.header.count));
    assert!(zxid("after_zxid") >= batch.header.first_zxid.0 - 1);
    assert!(zxid("after_zxid") < batch.header.last_zxid.0);
    assert!(zxid("before_zxid") > zxid("after_zxid"));
}

#[test]
fn every_bit_of_a_segments_header_and_of_the_manifest() {
    let dir = temp_dir();
    history(dir.path());
    let segment = &files(dir.path(), "log-")[1];
    let manifest = &files(dir.path(), "manifest-")[0];
    let step = if flips() >= 1000 { 1 } else { 29 };
    for (file, bits) in [(segment, 48 * 8), (manifest, 1640 * 8)] {
        let step = if file == manifest { step * 37 } else { step };
        for bit in (0..bits).step_by(step) {
            flip(file, bit);
            let report = json(1, &["verify", "--no-replay", arg(dir.path())]);
            assert!(
                findings(&report).iter().any(|f| f["file"] == arg(file)),
                "bit {bit}: {report:#}"
            );
            flip(file, bit);
        }
    }
    assert!(run(&["verify", arg(dir.path())]).status.success());
}
