//! Apache ZooKeeper's files: whole, torn, damaged, every flipped bit, and what is made of them.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringkeeper_proto::Zxid;
use serde_json::Value;
use support::{apache_log, arg, expect, expect_error, flip, history, json, records, temp_dir};

/// The same history as an Apache directory of two logs; returns the logs with the offsets of their entries.
fn apache_history(dir: &Path) -> Vec<(PathBuf, Vec<u64>)> {
    let own = temp_dir();
    history(own.path());
    let records = records(own.path());
    let folder = dir.join("version-2");
    let (first, second) = records.split_at(600);
    vec![
        apache_log(&folder, first, 1 << 20),
        apache_log(&folder, second, 300_000),
    ]
}

fn damages(report: &Value) -> Vec<&Value> {
    let all = report["findings"].as_array().expect("a list");
    all.iter()
        .filter(|finding| finding["severity"] == "damage")
        .collect()
}

#[test]
fn a_whole_directory_is_read_as_its_own_counterpart() {
    let dir = temp_dir();
    apache_history(dir.path());
    let text = expect(0, &["verify", arg(dir.path())]);
    assert!(
        text.contains(
            "1006 records (zxids 0x100000001 to 0x1000003ee), 1006 replayed from the beginning, 0 digests differ"
        ),
        "{text}"
    );
    assert!(text.ends_with("the log ends cleanly\n"), "{text}");
    let own = temp_dir();
    history(own.path());
    assert_eq!(
        expect(0, &["dump", arg(dir.path())]),
        expect(0, &["dump", arg(own.path())])
    );
    let filter = ["--path", "/app", "--after", "0x100000193"];
    let [a, b] =
        [&dir, &own].map(|dir| expect(0, &[&["dump", arg(dir.path())][..], &filter].concat()));
    assert_eq!(a, b);
    assert_eq!(a.lines().count(), 2);
    assert_eq!(
        json(0, &["stats", arg(dir.path())]),
        json(0, &["stats", arg(own.path())])
    );
    assert!(expect(0, &["diff", arg(dir.path()), arg(own.path())]).contains(": equal"));
    assert!(
        expect(0, &["at", "0x100000003", "/app", arg(dir.path())]).ends_with("data = \"first\"\n")
    );
}

#[test]
fn a_torn_tail_is_a_note_and_a_cut_in_the_middle_is_damage() {
    let dir = temp_dir();
    let logs = apache_history(dir.path());
    let (last, offsets) = &logs[1];
    let bytes = fs::read(last).unwrap();
    // The file ends within its last entry.
    let cut = usize::try_from(offsets[offsets.len() - 2]).unwrap() + 30;
    fs::write(last, &bytes[..cut]).unwrap();
    let report = json(0, &["verify", arg(dir.path())]);
    assert_eq!(
        (&report["ending"], &report["records"]),
        (&"torn".into(), &1005.into())
    );
    // The same with zeros behind, as a crash leaves a preallocated file.
    let mut padded = bytes[..cut].to_vec();
    padded.resize(bytes.len(), 0);
    fs::write(last, padded).unwrap();
    assert_eq!(json(0, &["verify", arg(dir.path())])["ending"], "torn");
    // But what was written to its end and is not what it was is damage: the checksum, the length, the end mark.
    fs::write(last, &bytes).unwrap();
    let (start, end) = (offsets[offsets.len() - 2], offsets[offsets.len() - 1]);
    for (byte, kind) in [
        (start + 5, "checksum"),
        (start + 40, "checksum"),
        (start + 11, "frame"),
        (end - 1, "frame"),
    ] {
        for bit in 0..8 {
            flip(last, byte * 8 + bit);
            let report = json(1, &["verify", arg(dir.path())]);
            let found = &damages(&report)[0];
            assert_eq!(
                (&found["kind"], &found["offset"]),
                (&kind.into(), &start.into()),
                "{byte} {bit}"
            );
            flip(last, byte * 8 + bit);
        }
    }
    fs::write(last, &bytes).unwrap();
    // Zeros in the middle, where Apache sees the end of the log.
    let mut holed = bytes;
    let (from, to) = (
        usize::try_from(offsets[100]).unwrap(),
        usize::try_from(offsets[103]).unwrap(),
    );
    holed[from..to].fill(0);
    fs::write(last, holed).unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    let found = &damages(&report)[0];
    assert_eq!(
        (&found["kind"], &found["offset"]),
        (&"broken".into(), &offsets[100].into())
    );
    let (after, before) = (0x1_0000_0000 + 600 + 100, 0x1_0000_0000 + 600 + 104);
    assert_eq!(found["after_zxid"], Zxid(after).to_string());
    assert_eq!(found["before_zxid"], Zxid(before).to_string());
    let dump = support::run(&["dump", arg(dir.path())]);
    assert_eq!(dump.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(dump.stdout).unwrap().lines().count(),
        1003
    );
}

#[test]
fn a_missing_log_and_one_that_a_snapshot_covers() {
    let dir = temp_dir();
    let own = temp_dir();
    history(own.path());
    let records = records(own.path());
    let folder = dir.path().join("version-2");
    apache_log(&folder, &records[..300], 0);
    let (middle, _) = apache_log(&folder, &records[300..500], 0);
    apache_log(&folder, &records[500..], 0);
    expect(0, &["verify", arg(dir.path())]);
    fs::remove_file(middle).unwrap();
    let report = json(1, &["verify", arg(dir.path())]);
    let found = &damages(&report)[0];
    assert_eq!(found["kind"], "zxid-gap");
    assert_eq!(
        (&found["after_zxid"], &found["before_zxid"]),
        (&"0x10000012c".into(), &"0x1000001f5".into())
    );
}

/// How many bits are flipped; `RINGKEEPER_FLIPS=1000` for the full check.
fn flips() -> usize {
    std::env::var("RINGKEEPER_FLIPS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60)
}

/// Each flipped bit of what was written (header, checksums, lengths, records, ends, and the zeros behind) is found,
/// and the record that it is in is named.
#[test]
fn every_flipped_bit_is_found_and_its_record_named() {
    let dir = temp_dir();
    let logs = apache_history(dir.path());
    let seed = 20_261_124;
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..flips() {
        let (path, offsets) = &logs[random.random_range(0..logs.len())];
        let end = offsets[offsets.len() - 1];
        // A tenth of them in the padding.
        let written = if round % 10 == 0 {
            fs::metadata(path).unwrap().len()
        } else {
            end
        };
        let bit = random.random_range(0..written * 8);
        flip(path, bit);
        let report = json(1, &["verify", "--no-replay", arg(dir.path())]);
        let found = damages(&report);
        let byte = bit / 8;
        let entry = offsets.iter().rposition(|offset| *offset <= byte);
        let is_named = found.iter().any(|finding| {
            finding["file"] == arg(path)
                && match entry {
                    None => finding["kind"] == "header",
                    Some(at) if at + 1 == offsets.len() => {
                        finding["kind"] == "padding" && finding["offset"] == byte
                    }
                    Some(at) => finding["offset"] == offsets[at] && finding["record"] == at as u64,
                }
        });
        assert!(
            is_named,
            "seed {seed} round {round} byte {byte} of {}: {report:#}",
            path.display()
        );
        assert_eq!(
            found.len(),
            1,
            "seed {seed} round {round} byte {byte}: {report:#}"
        );
        // And the doctor says what to do about it.
        let doctor = json(1, &["doctor", "--no-replay", arg(dir.path())]);
        assert_eq!(doctor["verdict"], "damaged", "byte {byte}: {doctor:#}");
        let what = match entry {
            None => ("the first bytes of a log", "ringkeeper-log repair"),
            Some(at) if at + 1 == offsets.len() => ("behind the last transaction", "its health"),
            Some(_) => ("acknowledged transactions", "ringkeeper-log repair"),
        };
        let problem = &doctor["problems"][0];
        let has = |field: &str, text: &str| problem[field].as_str().unwrap().contains(text);
        assert!(
            has("what", what.0) && has("next", what.1),
            "byte {byte}: {doctor:#}"
        );
        flip(path, bit);
    }
    json(0, &["verify", arg(dir.path())]);
}

/// The same history with two snapshots, as Apache would have taken them; returns the logs.
fn with_snapshots(dir: &Path) -> Vec<PathBuf> {
    let own = temp_dir();
    history(own.path());
    let logs = apache_history(dir);
    let folder = dir.join("version-2");
    let own = own.path();
    for (at, compression) in [("0x100000193", "plain"), ("0x100000324", "gz")] {
        let one = temp_dir();
        let export = ["export", "--format", "apache", "--compression", compression];
        expect(
            0,
            &[&export[..], &["--at", at, arg(own), arg(one.path())]].concat(),
        );
        for entry in fs::read_dir(one.path().join("version-2")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("snapshot.") {
                fs::copy(&path, folder.join(name)).unwrap();
            }
        }
    }
    logs.into_iter().map(|(path, _)| path).collect()
}

#[test]
fn snapshots_are_shown_compared_and_begun_with() {
    let dir = temp_dir();
    let logs = with_snapshots(dir.path());
    let folder = dir.path().join("version-2");
    let report = json(0, &["verify", arg(dir.path())]);
    let snapshots = report["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 2, "{report:#}");
    assert_eq!(snapshots[1]["compression"], "gz");
    // The figures that the state at its zxid has.
    let gz = folder.join("snapshot.100000324.gz");
    let shown = expect(0, &["show-snapshot", "--sessions", "--nodes", arg(&gz)]);
    assert!(
        shown.contains("compression = gz") && shown.contains("/n/000400"),
        "{shown}"
    );
    assert!(shown.contains("timeout 30000 ms"), "{shown}");
    assert!(
        expect(
            0,
            &["diff", "--new-at", "0x100000324", arg(&gz), arg(dir.path())]
        )
        .contains(": equal")
    );
    let tree = expect(0, &["tree", "--depth", "1", arg(&gz)]);
    assert!(tree.starts_with("state at 0x100000324"), "{tree}");
    // Without the first log the state goes on from the snapshots, and no further back.
    fs::remove_file(&logs[0]).unwrap();
    assert!(
        expect_error(3, &["at", "0x100000300", "/app", arg(dir.path())]).contains("damaged after")
    );
    expect(0, &["at", "0x100000193", "/app", arg(dir.path())]);
    expect(0, &["at", "0x100000393", "/app", arg(dir.path())]);
    assert_eq!(json(0, &["doctor", arg(dir.path())])["verdict"], "healthy");
}

#[test]
fn a_damaged_snapshot_has_an_older_one_and_the_log_instead() {
    let dir = temp_dir();
    with_snapshots(dir.path());
    let gz = dir.path().join("version-2/snapshot.100000324.gz");
    let whole = fs::read(&gz).unwrap();
    flip(&gz, 8 * 300);
    let report = json(1, &["verify", arg(dir.path())]);
    assert_eq!(damages(&report)[0]["kind"], "snapshot");
    let doctor = json(1, &["doctor", arg(dir.path())]);
    let problem = &doctor["problems"][0];
    assert!(
        problem["what"]
            .as_str()
            .unwrap()
            .contains("make up for them"),
        "{doctor:#}"
    );
    // The advice: away with it.
    fs::remove_file(&gz).unwrap();
    assert_eq!(json(0, &["doctor", arg(dir.path())])["verdict"], "healthy");
    let own = temp_dir();
    assert_eq!(
        json(0, &["import", arg(dir.path()), arg(own.path())])["digest_check"],
        "equal"
    );
    // A snapshot that a crash has left.
    fs::write(&gz, &whole[..200]).unwrap();
    assert!(expect(1, &["verify", arg(dir.path())]).contains("ends before it is complete"));
}

#[test]
fn what_is_wrong_with_epochs_and_missing_snapshots_is_judged() {
    let dir = temp_dir();
    let logs = with_snapshots(dir.path());
    let folder = dir.path().join("version-2");
    let problem = |part: &str| {
        let doctor = json(1, &["doctor", "--no-replay", arg(dir.path())]);
        let problems = doctor["problems"].as_array().unwrap().clone();
        let is_it = |problem: &&Value| problem["what"].as_str().unwrap().contains(part);
        let found = problems.iter().find(is_it);
        found
            .unwrap_or_else(|| panic!("{part}: {doctor:#}"))
            .clone()
    };
    fs::write(folder.join("currentEpoch"), "0").unwrap();
    problem("contradict each other");
    fs::write(folder.join("currentEpoch"), "2").unwrap();
    fs::write(folder.join("acceptedEpoch"), "1").unwrap();
    problem("contradict each other");
    fs::write(folder.join("acceptedEpoch"), "?").unwrap();
    problem("holds no number");
    fs::write(folder.join("acceptedEpoch"), "2").unwrap();
    let clean = json(0, &["doctor", arg(dir.path())]);
    let facts = clean["facts"].as_array().unwrap();
    assert!(
        facts
            .iter()
            .any(|fact| fact == "epochs: accepted 2, current 2"),
        "{clean:#}"
    );
    for name in ["snapshot.100000193", "snapshot.100000324.gz"] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let next = problem("no snapshot")["next"].clone();
    assert!(next.as_str().unwrap().contains("start Ringkeeper"));
    fs::remove_file(&logs[0]).unwrap();
    let next = problem("no snapshot")["next"].clone();
    assert!(next.as_str().unwrap().contains("backup"));
}

#[test]
fn repair_and_truncate_write_a_new_directory_of_apaches() {
    let dir = temp_dir();
    let logs = with_snapshots(dir.path());
    let folder = dir.path().join("version-2");
    fs::write(folder.join("currentEpoch"), "1").unwrap();
    let before = fs::read(&logs[1]).unwrap();
    // Damage behind the newest snapshot: what comes after is lost, and said to be.
    flip(&logs[1], 8 * (before.len() as u64 / 2));
    let damaged = fs::read(&logs[1]).unwrap();
    let target = temp_dir();
    let target = target.path().join("new");
    let said = expect(0, &["repair", "--yes", arg(dir.path()), arg(&target)]);
    assert!(said.contains("kept: the snapshot at 0x100000324"), "{said}");
    assert!(
        said.contains("which cannot be read") && said.contains("whole transactions after"),
        "{said}"
    );
    assert!(said.contains("verified, whole"), "{said}");
    assert_eq!(fs::read(&logs[1]).unwrap(), damaged);
    assert_eq!(json(0, &["doctor", arg(&target)])["verdict"], "healthy");
    assert_eq!(
        fs::read_to_string(target.join("version-2/currentEpoch")).unwrap(),
        "1"
    );
    expect_error(4, &["repair", "--yes", arg(dir.path()), arg(&target)]);
    expect_error(2, &["repair", "--skip-damage", "--yes", arg(dir.path())]);
    fs::write(&logs[1], before).unwrap();
    // A copy that ends earlier, from a snapshot and in the middle of a log.
    let to = temp_dir();
    let to = to.path().join("old");
    expect_error(
        2,
        &[
            "truncate",
            "--yes",
            "--after",
            "0x1000001f4",
            arg(dir.path()),
        ],
    );
    let truncate = ["truncate", "--yes", "--after", "0x1000001f4", "--into"];
    expect(0, &[&truncate[..], &[arg(&to), arg(dir.path())]].concat());
    assert!(
        expect(
            0,
            &["diff", "--old-at", "0x1000001f4", arg(dir.path()), arg(&to)]
        )
        .contains(": equal")
    );
    let report = json(0, &["verify", arg(&to)]);
    assert_eq!(report["last_zxid"], "0x1000001f4");
}

#[test]
fn import_and_export_go_there_and_back() {
    let dir = temp_dir();
    with_snapshots(dir.path());
    fs::write(dir.path().join("version-2/acceptedEpoch"), "4").unwrap();
    fs::write(dir.path().join("version-2/currentEpoch"), "3").unwrap();
    // Into the same directory, as a server's start does it.
    let summary = json(0, &["import", arg(dir.path()), arg(dir.path())]);
    assert_eq!(summary["snapshot"], "0x100000324", "{summary:#}");
    assert_eq!(summary["logged"], 202);
    assert_eq!(
        (&summary["accepted_epoch"], &summary["current_epoch"]),
        (&4.into(), &3.into())
    );
    expect_error(4, &["import", arg(dir.path()), arg(dir.path())]);
    let both = ["diff", "--old-format", "apache", "--new-format", "own"];
    assert!(
        expect(
            0,
            &[&both[..], &[arg(dir.path()), arg(dir.path())]].concat()
        )
        .contains(": equal")
    );
    for format in ["own", "apache"] {
        let doctor = json(0, &["doctor", "--format", format, arg(dir.path())]);
        assert_eq!(doctor["verdict"], "healthy", "{doctor:#}");
    }
    fs::write(dir.path().join("myid"), "7").unwrap();
    let back = temp_dir();
    let export = [
        "export",
        "--format",
        "apache",
        arg(dir.path()),
        arg(back.path()),
    ];
    let said = json(0, &export);
    // What is not known to be committed stays log.
    assert_eq!(
        (&said["snapshot"], &said["logged"]),
        (&"0x100000324".into(), &202.into())
    );
    expect_error(4, &export);
    for (name, text) in [
        ("version-2/acceptedEpoch", "4"),
        ("version-2/currentEpoch", "3"),
        ("myid", "7"),
    ] {
        assert_eq!(fs::read_to_string(back.path().join(name)).unwrap(), text);
    }
    let formats = ["diff", "--format", "apache"];
    assert!(
        expect(
            0,
            &[&formats[..], &[arg(dir.path()), arg(back.path())]].concat()
        )
        .contains(": equal")
    );
    // Apache goes on: a start would refuse, and the doctor says so of either.
    fs::write(dir.path().join("version-2/acceptedEpoch"), "5").unwrap();
    let doctor = json(1, &["doctor", "--format", "own", arg(dir.path())]);
    let what = doctor["problems"][0]["what"].as_str().unwrap();
    assert!(what.contains("since it was imported"), "{doctor:#}");
    let beside = temp_dir();
    fs::create_dir(beside.path().join("ringkeeper")).unwrap();
    expect_error(
        4,
        &[
            "export",
            "--format",
            "apache",
            arg(dir.path()),
            arg(beside.path()),
        ],
    );
}
