//! `ringkeeper-torture`: kills a server with `kill -9` at random moments, under load, while it starts
//! and while it takes snapshots, restarts it, and checks that
//!
//! - every acknowledged write is there, with its data, version and zxids;
//! - of the writes that were sent but not acknowledged, those that are there are a front part of what
//!   each connection sent, and nothing is there that nobody sent;
//! - zxids go on growing, and no two writes share one;
//! - sessions survive within their time-out, and ephemerals live exactly as long as their session.
//!
//! A kill proves nothing about flushing: the kernel keeps what was written. That no reply leaves
//! before its write is durable is tested elsewhere, on a disk whose completions are held back.
//!
//! It runs with every server that takes an Apache `zoo.cfg`, so it can be checked on Apache itself.
//! What is random comes from the seed; the moments at which kills hit do not repeat exactly.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a tool's report")]

mod holders;
mod model;
mod run;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use ringkeeper_harness::Launch;

use crate::run::{Plan, Tally, run};

/// Kills a server at random moments and checks that nothing acknowledged is lost
#[derive(Debug, Parser)]
#[command(name = "ringkeeper-torture", version)]
struct Options {
    /// `apache`, or a command line; `{config}` in it stands for the zoo.cfg, else it is appended
    #[arg(long, default_value = "target/release/ringkeeper serve")]
    server: String,
    /// How often the server is killed under load
    #[arg(long, default_value_t = 30)]
    cycles: u32,
    /// Seed of what is random; printed, and different each time when not given
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that write
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Requests that each keeps in flight
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Most kills come within so many milliseconds of load; some after up to twice as long
    #[arg(long, default_value_t = 500)]
    load_ms: u64,
    /// Znodes that are there from the start, so that snapshots take time
    #[arg(long, default_value_t = 5_000)]
    filler: u32,
    /// In every so many cycles a session is left to expire; 0 is never
    #[arg(long, default_value_t = 10)]
    expiry_every: u32,
    /// A line for the zoo.cfg (key=value); may be repeated
    #[arg(long = "set")]
    settings: Vec<String>,
    /// Where data lies; kept. Default: a temporary directory, kept only when something is lost
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match torture(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn torture(options: &Options) -> Result<()> {
    let mut launch = Launch::parse(&options.server)?;
    // Short ticks for short expiries; snapshots every few thousand writes or every MiB of log, and
    // small log files, so that kills hit snapshots and changes of the log file too.
    launch.set("tickTime", "200");
    launch.set("minSessionTimeout", "1000");
    launch.set("maxSessionTimeout", "60000");
    launch.set("snapCount", "1000");
    launch.set("snapSizeLimitInKb", "1024");
    launch.set("ringkeeper.snapshotLogSizeInKb", "256");
    launch.set("preAllocSize", "8192");
    // On all shards, however few the clients are.
    launch.set("ringkeeper.clientsBesideCore", "0");
    for line in &options.settings {
        launch.set_line(line)?;
    }
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let plan = Plan {
        cycles: options.cycles,
        seed,
        writers: options.writers.max(1),
        depth: options.depth.max(1),
        load_ms_max: options.load_ms.max(20),
        filler: options.filler,
        expiry_every: options.expiry_every,
    };
    let temporary = tempfile::Builder::new()
        .prefix("ringkeeper-torture-")
        .tempdir()?;
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    println!(
        "{}, seed {seed}, {} cycles, in {}",
        options.server,
        plan.cycles,
        dir.display()
    );
    let began = Instant::now();
    match run(&plan, launch, &dir) {
        Ok(tally) => {
            report(&tally);
            println!("nothing lost, {:.1?}", began.elapsed());
            Ok(())
        }
        Err(error) => {
            // Dropping `temporary` would remove the evidence.
            let kept = options.dir.clone().unwrap_or_else(|| temporary.keep());
            Err(error).with_context(|| format!("FAILED, the directory is kept: {}", kept.display()))
        }
    }
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() << 20 ^ u64::from(now.subsec_nanos()))
}

fn report(tally: &Tally) {
    println!(
        "killed {} times under load and {} times while starting, stopped {} times by SIGTERM",
        tally.killed_under_load, tally.killed_while_starting, tally.terminated
    );
    println!(
        "{} acknowledged writes checked; of those in flight {} were there, {} were not",
        tally.acks, tally.survived, tally.gone
    );
    println!(
        "{} sessions taken up again, {} ephemerals and {} expiries checked",
        tally.sessions, tally.ephemerals, tally.expiries
    );
    let mean = tally
        .start_time
        .checked_div(tally.starts)
        .unwrap_or_default();
    println!(
        "start to serving: mean {mean:.1?}, longest {:.1?}",
        tally.start_time_max
    );
    if tally.bursts_without_ack > 0 {
        println!(
            "{} bursts were killed before any write was acknowledged",
            tally.bursts_without_ack
        );
    }
}
