//! Apache ZooKeeper's logs: whole, torn, damaged, and every flipped bit.

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
    // What only works on own directories says so.
    for command in ["repair", "purge"] {
        assert!(expect_error(2, &[command, "--yes", arg(dir.path())]).contains("Apache"));
    }
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
        flip(path, bit);
    }
    json(0, &["verify", arg(dir.path())]);
}
