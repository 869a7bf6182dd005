//! How fast `ringkeeper-log verify` reads a log, beside what reads the same bytes and does nothing with them.
//!
//! The log has `RINGKEEPER_BENCH_LOG_MB` (300) megabytes of sets of 1 KiB; before each run the system forgets what it
//! holds of it in memory, so that the device is read. The tool is `target/release/ringkeeper-log`, or what
//! `RINGKEEPER_LOG_BIN` names, and the log is written by `target/release/ringkeeper` (`RINGKEEPER_BIN`); `cargo build
//! --release -p ringkeeper -p ringkeeper-logtool` makes both. Data lies below `target`; `RINGKEEPER_BENCH_DIR` names
//! another place.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::served::{NO_SNAPSHOTS, PATIENCE, Pipeline, program, server, stop};
use ringkeeper_benches::{create, directory, environment, is_smoke_test, number_of, set};
use ringkeeper_harness::Session;
use ringkeeper_storage::BLOCK_BYTES;
use rustix::fs::{Advice, OFlags};

const LOG_MEGABYTES: usize = 300;
const LOG_MEGABYTES_OF_A_SMOKE_TEST: usize = 4;
const RECORD_BYTES: usize = 1024;
/// Znodes that are set in turn.
const KEYS: usize = 1000;
/// Bytes of a raw read.
const READ_BYTES: usize = 1 << 20;

/// Has a server write so many sets into `dir`; returns the log's segments that hold some.
fn make_log(dir: &Path, megabytes: usize) -> Vec<PathBuf> {
    let mut server = server(dir, NO_SNAPSHOTS);
    server.start(PATIENCE).expect("the server starts");
    let mut session = Session::open(server.address(), 30_000).expect("the server takes clients");
    let mut pipeline = Pipeline::new(&mut session);
    let data = [b'x'; RECORD_BYTES];
    let path = |key: usize| format!("/{:04}", key % KEYS);
    for key in 0..KEYS {
        pipeline.send(&create(&path(key), &data));
    }
    for number in 0..megabytes * 1_000_000 / RECORD_BYTES {
        pipeline.send(&set(&path(number), &data));
    }
    pipeline.finish();
    session.close().expect("the server closes sessions");
    stop(&mut server);
    let folder = server.dir().join("data/ringkeeper");
    let entries = std::fs::read_dir(&folder).expect("the server made it");
    let mut segments: Vec<PathBuf> = entries
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with("log-")
        })
        .collect();
    segments.sort();
    segments
}

/// Has the system forget what it holds of the files in memory.
fn forget(files: &[PathBuf]) {
    for path in files {
        let file = File::open(path).expect("the file is there");
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("the system can be told");
    }
}

/// Reads the files through the system's memory, one after another.
fn read_buffered(files: &[PathBuf]) {
    let mut bytes = vec![0; READ_BYTES];
    for path in files {
        let mut file = File::open(path).expect("the file is there");
        while file.read(&mut bytes).expect("the device reads") > 0 {}
    }
}

/// Reads the files past the system's memory, one after another.
fn read_direct(files: &[PathBuf]) {
    let mut memory = vec![0; READ_BYTES + BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let bytes = memory
        .get_mut(start..start + READ_BYTES)
        .expect("there is room for the alignment");
    for path in files {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(path)
            .expect("O_DIRECT is needed");
        let mut at = 0;
        loop {
            match file.read_at(bytes, at).expect("the device reads") {
                0 => break,
                read => at += read as u64,
            }
        }
    }
}

fn verify(tool: &Path, dir: &Path, options: &[&str]) {
    let status = Command::new(tool)
        .args(["verify", "--quiet"])
        .args(options)
        .arg(dir)
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("the tool is built").success(), "it is whole");
}

fn speed(criterion: &mut Criterion) {
    let megabytes = match number_of("RINGKEEPER_BENCH_LOG_MB") {
        _ if is_smoke_test() => LOG_MEGABYTES_OF_A_SMOKE_TEST,
        told => told.unwrap_or(LOG_MEGABYTES),
    };
    let tool = program("RINGKEEPER_LOG_BIN", "ringkeeper-log");
    let dir = directory();
    environment::print(Some(dir.path()));
    let segments = make_log(dir.path(), megabytes);
    let sizes = segments
        .iter()
        .map(|path| path.metadata().map(|file| file.len()));
    let bytes: u64 = sizes.map(|size| size.expect("the file is there")).sum();
    println!(
        "{} segments, {bytes} bytes, prepared ones included",
        segments.len()
    );
    let data = dir.path().join("data");
    let mut group = criterion.benchmark_group("read a log");
    group.throughput(Throughput::Bytes(bytes));
    let mut bench = |name: &str, read: &dyn Fn()| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let mut took = Duration::ZERO;
                for _ in 0..count {
                    forget(&segments);
                    let began = Instant::now();
                    read();
                    took += began.elapsed();
                }
                took
            });
        });
    };
    bench("raw, O_DIRECT, 1 MiB at a time", &|| read_direct(&segments));
    bench("raw, buffered, 1 MiB at a time", &|| {
        read_buffered(&segments)
    });
    bench("verify --no-replay", &|| {
        verify(&tool, &data, &["--no-replay"])
    });
    bench("verify --no-replay --threads 1", &|| {
        verify(&tool, &data, &["--no-replay", "--threads", "1"]);
    });
    bench("verify, with the replay", &|| verify(&tool, &data, &[]));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(5));
    targets = speed
}
criterion_main!(benches);
