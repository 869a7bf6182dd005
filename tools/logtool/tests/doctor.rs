//! What the doctor says about each kind of directory, and that its advice works.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::fs;
use std::path::Path;

use ringkeeper_tree::Tree;
use serde_json::Value;
use support::{Maker, arg, expect, expect_error, files, flip, history, json, temp_dir};

/// The first problem's texts.
fn problem(diagnosis: &Value) -> (&str, &str) {
    let first = &diagnosis["problems"][0];
    (
        first["what"].as_str().unwrap_or(""),
        first["next"].as_str().unwrap_or(""),
    )
}

/// The doctor's answer, which must find something wrong.
fn sick(dir: &Path) -> Value {
    json(1, &["doctor", arg(dir)])
}

/// Repairs `dir` beside, checks that the result is whole, and returns what was said.
fn repaired(dir: &Path) -> String {
    let text = expect(0, &["repair", "--yes", arg(dir)]);
    let target = format!("{}.repaired", arg(dir));
    expect(0, &["verify", &target]);
    expect(0, &["doctor", &target]);
    text
}

/// A directory of history in a parent of its own, so that a repair can lie beside it.
fn patient() -> (tempfile::TempDir, std::path::PathBuf) {
    let parent = temp_dir();
    let dir = parent.path().join("data");
    fs::create_dir(&dir).unwrap();
    (parent, dir)
}

/// Flips a bit in the first record of the segment at `index`.
fn hurt(dir: &Path, index: usize) {
    let segment = &files(dir, "log-")[index];
    let dump = expect(0, &["dump", "--json", arg(segment)]);
    let first: Value = serde_json::from_str(dump.lines().next().unwrap()).unwrap();
    flip(segment, (first["offset"].as_u64().unwrap() + 20) * 8);
}

#[test]
fn a_healthy_directory() {
    let dir = temp_dir();
    history(dir.path());
    let text = expect(0, &["doctor", arg(dir.path())]);
    assert!(text.ends_with(": healthy\n"), "{text}");
    assert!(text.contains("no server runs on it"), "{text}");
    let held = Maker::open(dir.path(), Tree::new());
    assert!(expect(0, &["doctor", arg(dir.path())]).contains("; a server runs on it"));
    drop(held);
}

#[test]
fn nothing_and_strangers() {
    let dir = temp_dir();
    assert!(expect(0, &["doctor", arg(dir.path())]).contains("may not be mounted"));
    fs::write(dir.path().join("lost+found"), "").unwrap();
    assert!(expect(0, &["doctor", arg(dir.path())]).contains("may not be mounted"));
    fs::create_dir(dir.path().join("ringkeeper")).unwrap();
    fs::write(dir.path().join("ringkeeper/data.db"), "x").unwrap();
    let found = sick(dir.path());
    assert!(problem(&found).0.contains("data.db"));
    assert!(problem(&found).1.contains("move them away"));
    expect_error(3, &["doctor", arg(&dir.path().join("none"))]);
    expect_error(3, &["doctor", arg(&dir.path().join("ringkeeper/data.db"))]);
}

#[test]
fn a_crash_is_normal() {
    let dir = temp_dir();
    let mut maker = Maker::open(dir.path(), Tree::new());
    maker.create("/n", b"");
    maker.fill(20);
    maker.crash();
    let log = &files(dir.path(), "log-")[0];
    let dump = expect(0, &["dump", "--json", arg(log)]);
    let last: Value = serde_json::from_str(dump.lines().last().unwrap()).unwrap();
    flip(log, last["offset"].as_u64().unwrap() * 8 + 77);
    let text = expect(0, &["doctor", arg(dir.path())]);
    assert!(text.contains("as a crash leaves it"), "{text}");
}

#[test]
fn rot_that_a_snapshot_covers_loses_nothing() {
    let (_parent, dir) = patient();
    let tree = history(&dir);
    hurt(&dir, 0);
    let found = sick(&dir);
    assert!(problem(&found).0.contains("nothing is lost"), "{found:#}");
    assert!(problem(&found).1.contains("repair"));
    assert!(repaired(&dir).contains("lost: nothing"));
    let target = format!("{}.repaired", arg(&dir));
    let row = expect(0, &["tree", "--json", "--depth", "0", &target]);
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!(row["znodes"], tree.root().all_children_number() + 1);
}

#[test]
fn rot_behind_the_newest_snapshot_is_a_loss_and_said_so() {
    let (parent, dir) = patient();
    let mut maker = Maker::open(&dir, Tree::new());
    maker.create("/n", b"");
    maker.fill(40);
    maker.snapshot();
    let last_safe = maker.zxid;
    maker.fill(100);
    maker.close();
    // Of the batch after the snapshot, the second record.
    let after = last_safe.0.to_string();
    let dump = expect(0, &["dump", "--json", "--after", &after, arg(&dir)]);
    let second: Value = serde_json::from_str(dump.lines().nth(1).unwrap()).unwrap();
    flip(
        &files(&dir, "log-")[0],
        second["offset"].as_u64().unwrap() * 8 + 200,
    );
    let found = sick(&dir);
    let (what, next) = problem(&found);
    assert!(
        what.contains("lost: the transactions after 0x10000002a and before 0x10000002c"),
        "{what}"
    );
    assert!(
        next.contains("fetches everything from the others") && next.contains("asks"),
        "{next}"
    );
    // The default ends before the damage.
    let text = repaired(&dir);
    assert!(
        text.contains("lost: 98 whole transactions behind the damage"),
        "{text}"
    );
    assert!(
        expect(0, &["verify", &format!("{}.repaired", arg(&dir))]).contains("to 0x10000002a)"),
        "{text}"
    );
    // The other way keeps what is behind; the digests then say that something is missing.
    let other = parent.path().join("other");
    let text = expect(
        1,
        &["repair", "--yes", "--skip-damage", arg(&dir), arg(&other)],
    );
    assert!(
        text.contains("kept: the snapshot at 0x100000029") && text.contains("and 99 transactions"),
        "{text}"
    );
    assert!(text.contains("NOT WHOLE"), "{text}");
    expect(0, &["at", "0x10000008d", "/n/000140", arg(&other)]);
    // A target that is there is left alone, as is everything when nobody says yes.
    expect_error(4, &["repair", "--yes", arg(&dir)]);
    let third = parent.path().join("third");
    expect_error(4, &["repair", arg(&dir), arg(&third)]);
    assert!(!third.exists());
    expect(0, &["repair", "--dry-run", arg(&dir), arg(&third)]);
    assert!(!third.exists());
}

#[test]
fn the_manifest() {
    let (_parent, dir) = patient();
    history(&dir);
    let copies = files(&dir, "manifest-");
    flip(&copies[0], 300);
    let found = sick(&dir);
    assert_eq!(found["verdict"], "needs attention");
    assert!(problem(&found).1.contains("writes both copies anew"));
    drop(Maker::open(&dir, Tree::new()));
    expect(0, &["doctor", arg(&dir)]);
    for copy in &copies {
        flip(copy, 300);
    }
    let found = sick(&dir);
    assert!(problem(&found).0.contains("both copies"), "{found:#}");
    let text = repaired(&dir);
    assert!(text.contains("both epochs are set to 1"), "{text}");
}

#[test]
fn snapshots() {
    // The newest is damaged: an older one and the log do.
    let (_parent, dir) = patient();
    history(&dir);
    let both = files(&dir, "snapshot-");
    flip(&both[1], 5000 * 8);
    let found = sick(&dir);
    assert!(
        problem(&found)
            .0
            .contains("the one at 0x100000193 is whole"),
        "{found:#}"
    );
    assert!(problem(&found).1.contains("start the server"));
    // None is whole: the log reaches back to the beginning.
    flip(&both[0], 5000 * 8);
    let found = sick(&dir);
    assert!(
        problem(&found).0.contains("reaches back to the beginning"),
        "{found:#}"
    );
    assert!(repaired(&dir).contains("lost: nothing"));
    // And when it does not, this directory alone is not enough.
    let (_parent, dir) = patient();
    history(&dir);
    expect(0, &["purge", "--yes", "--keep", "1", arg(&dir)]);
    flip(&files(&dir, "snapshot-")[0], 5000 * 8);
    let found = sick(&dir);
    assert!(problem(&found).1.contains("another member"), "{found:#}");
    assert!(expect_error(3, &["repair", "--yes", arg(&dir)]).contains("nothing can be made"));
}

#[test]
fn a_missing_segment_a_bad_first_block_and_padding() {
    let (_parent, dir) = patient();
    history(&dir);
    let segments = files(&dir, "log-");
    flip(&segments[1], 100);
    let found = sick(&dir);
    assert!(problem(&found).0.contains("first block"), "{found:#}");
    assert!(repaired(&dir).contains("lost: nothing"));
    flip(&segments[1], 100);
    // Behind the first block's header, and so of no record.
    flip(&segments[0], 4000 * 8);
    let found = sick(&dir);
    assert!(
        problem(&found).1.contains("bits change on this device"),
        "{found:#}"
    );
    flip(&segments[0], 4000 * 8);
    expect(0, &["doctor", arg(&dir)]);
    fs::remove_file(&segments[0]).unwrap();
    let found = sick(&dir);
    assert!(problem(&found).0.contains("nothing is lost"), "{found:#}");
}
