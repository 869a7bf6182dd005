//! How fast `verify` reads, beside what reads the same files and does nothing with them.
//!
//! Small by default, so that it keeps running; by hand, on a device and in release:
//! `RINGKEEPER_SPEED_MB=1024 cargo test --release -p ringkeeper-logtool --test speed -- --nocapture`

mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringkeeper_storage::LogOptions;
use ringkeeper_tree::Tree;
use support::{Maker, arg, files};

/// Runs each of these so often, in turns; the best time of each counts.
const ROUNDS: usize = 3;

#[test]
fn verify_beside_cat_and_dd() {
    let megabytes: u64 = std::env::var("RINGKEEPER_SPEED_MB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(4);
    // On the build's file system: the system's temporary one may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = LogOptions {
        free_bytes_min: 0,
        ..LogOptions::default()
    };
    let mut maker = Maker::open_with(dir.path(), Tree::new(), options);
    maker.batch = 200;
    maker.create("/n", b"");
    let data = vec![7; 1024];
    for n in 0..1000 {
        maker.create(&format!("/n/{n:04}"), &data);
    }
    for n in 0..megabytes * 900 {
        maker.set(&format!("/n/{:04}", n % 1000), &data);
    }
    maker.close();
    let segments = files(dir.path(), "log-");
    let names: Vec<&str> = segments.iter().map(|path| arg(path)).collect();
    let bytes: u64 = segments
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    let tool = env!("CARGO_BIN_EXE_ringkeeper-log");
    let direct = names
        .iter()
        .map(|name| format!("dd if={name} of=/dev/null bs=1M iflag=direct status=none"));
    let direct = direct.collect::<Vec<_>>().join(" && ");
    let mut cat = vec!["cat"];
    cat.extend(&names);
    let commands: [(&str, Vec<&str>); 5] = [
        ("cat", cat),
        ("dd iflag=direct", vec!["sh", "-c", &direct]),
        (
            "verify --no-replay",
            vec![tool, "verify", "--no-replay", arg(dir.path())],
        ),
        (
            "verify --no-replay --threads 1",
            vec![
                tool,
                "verify",
                "--no-replay",
                "--threads",
                "1",
                arg(dir.path()),
            ],
        ),
        ("verify", vec![tool, "verify", arg(dir.path())]),
    ];
    let mut best = [Duration::MAX; 5];
    for _ in 0..ROUNDS {
        for ((_, command), best) in commands.iter().zip(&mut best) {
            forget(&segments);
            let started = Instant::now();
            let status = Command::new(command[0])
                .args(&command[1..])
                .stdout(Stdio::null())
                .status()
                .unwrap();
            *best = started.elapsed().min(*best);
            assert!(status.success() || command[0] == "sh", "{command:?}");
        }
    }
    for ((name, _), best) in commands.iter().zip(best) {
        let rate = bytes as f64 / best.as_secs_f64() / 1e6;
        eprintln!(
            "{name:>32}: {:>8.3} s, {rate:>8.0} MB/s",
            best.as_secs_f64()
        );
    }
}

/// Drops what the system holds of the files, so that the device is asked.
fn forget(files: &[PathBuf]) {
    for path in files {
        let file = std::fs::File::open(path).expect("open a segment");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .expect("tell the kernel to forget a segment");
    }
}
