//! `ringkeeper-compare`: the same load on Apache ZooKeeper and on Ringkeeper, in turn, on one
//! machine, as a table of ratios.
//!
//! - Both servers run standalone (with `--ensemble 3`, as ensembles of three) from the same `zoo.cfg`, durable, on the same file system; in each
//!   round each starts fresh, is warmed up, and the order alternates.
//! - The load generator is native and cheap; its own CPU time stands beside each figure, so that a
//!   figure it limits shows.
//! - Beside the figures stands the raw floor: what a durable write of one block costs without a server.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a tool's report")]

mod crowd;
mod environment;
mod floor;
mod load;
mod report;
mod requests;
mod subject;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ringkeeper_harness::{Launch, four_letter_word};

use crate::load::Shape;
use crate::report::{Better, Metric, Report};
use crate::subject::Subject;
use crate::workload::{OTHERS, START_PATIENCE, STEADY, Scale};

/// The same load on Apache ZooKeeper and on Ringkeeper, in turn, as a table of ratios
#[derive(Debug, Parser)]
#[command(name = "ringkeeper-compare", version)]
struct Options {
    /// Ringkeeper's binary
    #[arg(long, default_value = "target/release/ringkeeper")]
    ringkeeper: PathBuf,
    /// Apache's jars; default: Debian's package `zookeeper`
    #[arg(long)]
    apache_classpath: Option<String>,
    /// Apache's largest heap
    #[arg(long, default_value = "1g")]
    apache_heap: String,
    /// Which servers, in order: `apache`, `ringkeeper`, or a command line that takes a zoo.cfg
    #[arg(long, value_delimiter = ',', default_value = "apache,ringkeeper")]
    servers: Vec<String>,
    /// Only these workloads; see --list
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Names the workloads
    #[arg(long)]
    list: bool,
    /// A short run with small sizes, to see that it works; its figures mean little
    #[arg(long)]
    quick: bool,
    /// How often all is done
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds that each load is measured
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds of warm-up, with all loads, before each round
    #[arg(long)]
    warm_up: Option<f64>,
    /// How many servers make an ensemble; 1 is standalone
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    ensemble: u8,
    /// Clients of the loads with many clients
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Requests that each of them keeps in flight
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Clients that connect at once
    #[arg(long)]
    storm: Option<usize>,
    /// Clients that are idle
    #[arg(long)]
    idle: Option<usize>,
    /// Znodes of the big tree
    #[arg(long)]
    znodes: Option<u64>,
    /// A line for the zoo.cfg of both (key=value); may be repeated
    #[arg(long = "set")]
    settings: Vec<String>,
    /// A line for Apache's zoo.cfg only
    #[arg(long)]
    apache_set: Vec<String>,
    /// A line for Ringkeeper's zoo.cfg only
    #[arg(long)]
    ringkeeper_set: Vec<String>,
    /// Under which directory the servers' data lies: the disk that is measured
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Writes the results as JSON to this file too
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.list {
        for steady in STEADY {
            println!("{:<14}{}", steady.name, steady.title);
        }
        println!("{}", OTHERS.join("\n"));
        return Ok(());
    }
    for name in &options.only {
        let known = STEADY.iter().any(|steady| steady.name == name) || OTHERS.contains(&&**name);
        ensure!(known, "no workload is called {name:?}; see --list");
    }
    let report = compare(&options)?;
    print!("{}", report.table());
    if let Some(path) = &options.json {
        fs::write(path, report.json()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn compare(options: &Options) -> Result<Report> {
    let scale = scale(options);
    let launches = options
        .servers
        .iter()
        .map(|name| launch(options, name))
        .collect::<Result<Vec<_>>>()?;
    ensure!(!launches.is_empty(), "no server is named");
    crowd::allow_files(scale.idle.max(scale.storm))?;
    fs::create_dir_all(&options.dir)?;
    let dir = tempfile::Builder::new()
        .prefix("compare-")
        .tempdir_in(&options.dir)?;
    let names = launches.iter().map(|launch| launch.name.clone());
    let mut report = Report::new(names.collect(), environment::describe(dir.path()));
    let mut environment =
        |name: &str, value: String| report.environment.push((name.to_owned(), value));
    environment("java", launch_version(&launches));
    environment(
        "load",
        format!(
            "{} clients x {} in flight, {} threads, {:.1} s measured after {:.1} s of warm-up",
            scale.shape.connections,
            scale.shape.depth,
            scale.shape.threads,
            scale.measured.as_secs_f64(),
            scale.warm_up.as_secs_f64()
        ),
    );
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    for round in 0..rounds {
        add_floor(&mut report, dir.path(), &scale)?;
        for index in order(launches.len(), round) {
            eprintln!("round {} of {rounds}: {}", round + 1, launches[index].name);
            let dir = dir.path().join(format!("{round}-{index}"));
            let (launch, servers) = (&launches[index], options.ensemble.into());
            if wanted("big") {
                let mut subject = Subject::new(launch, servers, &dir)?;
                subject.start(START_PATIENCE)?;
                workload::big(&mut subject, index, &scale, &mut report)
                    .with_context(|| format!("big: {}:\n{}", launch.name, subject.log_tail(20)))?;
                subject.terminate()?;
                fs::remove_dir_all(&dir)?;
            }
            let mut subject = Subject::new(launch, servers, &dir)?;
            measure(
                &mut subject,
                &launch.name,
                index,
                &scale,
                &wanted,
                &mut report,
            )
            .with_context(|| format!("{}:\n{}", launch.name, subject.log_tail(20)))?;
            subject.terminate()?;
            drop(subject);
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(report)
}

/// One server's part of a round.
fn measure(
    subject: &mut Subject,
    name: &str,
    index: usize,
    scale: &Scale,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let steady: Vec<_> = STEADY.iter().filter(|steady| wanted(steady.name)).collect();
    if steady.is_empty() && !wanted("storm") && !wanted("idle") {
        return Ok(());
    }
    subject.start(START_PATIENCE)?;
    note_version(subject, name, index, report);
    workload::prepare(subject, scale.shape.connections)?;
    workload::warm_up(subject, scale).context("warm up")?;
    for steady in steady {
        steady
            .run(subject, index, scale, report)
            .with_context(|| steady.name)?;
    }
    if wanted("storm") {
        workload::storm(subject, index, scale, report).context("storm")?;
    }
    if wanted("idle") {
        workload::idle(subject, index, scale, report).context("idle")?;
    }
    Ok(())
}

fn launch(options: &Options, name: &str) -> Result<Launch> {
    let mut launch = match name {
        "apache" => Launch::apache(options.apache_classpath.as_deref(), &options.apache_heap)?,
        "ringkeeper" => {
            let binary = options.ringkeeper.canonicalize().with_context(|| {
                format!(
                    "find {}: build it with `cargo build --release`, or name it with --ringkeeper",
                    options.ringkeeper.display()
                )
            })?;
            Launch::parse(&format!("{} serve", binary.display()))?
        }
        command => Launch::parse(command)?,
    };
    let own = if launch.is_apache() {
        &options.apache_set
    } else {
        &options.ringkeeper_set
    };
    for line in options.settings.iter().chain(own) {
        launch.set_line(line)?;
    }
    Ok(launch)
}

fn scale(options: &Options) -> Scale {
    let quick = options.quick;
    let seconds = |given: Option<f64>, quickly, normally| {
        Duration::from_secs_f64(given.unwrap_or(if quick { quickly } else { normally }))
    };
    Scale {
        shape: Shape {
            connections: options.clients.max(1),
            depth: options.depth.max(1),
            threads: options.threads.max(1),
        },
        warm_up: seconds(options.warm_up, 2.0, 20.0),
        ramp: seconds(None, 0.2, 1.0),
        measured: seconds(options.seconds, 0.5, 6.0),
        storm: options.storm.unwrap_or(if quick { 100 } else { 1_000 }),
        idle: options.idle.unwrap_or(if quick { 200 } else { 10_000 }),
        hold: seconds(None, 1.0, 10.0),
        znodes: options
            .znodes
            .unwrap_or(if quick { 20_000 } else { 1_000_000 }),
        restarts: if quick { 1 } else { 3 },
    }
}

/// The order alternates, so that no server always comes after the other.
fn order(servers: usize, round: u32) -> Vec<usize> {
    let forward = 0..servers;
    if round.is_multiple_of(2) {
        forward.collect()
    } else {
        forward.rev().collect()
    }
}

fn add_floor(report: &mut Report, dir: &Path, scale: &Scale) -> Result<()> {
    let floor = floor::measure(dir, scale.measured.min(Duration::from_secs(2)))?;
    let micros = |nanos: u64| nanos as f64 / 1e3;
    for (way, latency) in [("O_DSYNC", &floor.dsync), ("fdatasync", &floor.fdatasync)] {
        let title = format!("raw floor: O_DIRECT + {way}, 4 KiB");
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let metric = Metric {
                name,
                unit: "us",
                better: Better::Neither,
            };
            let value = micros(latency.value_at_quantile(quantile));
            for server in 0..report.servers.len() {
                report.add(&title, metric, server, value);
            }
        }
    }
    eprintln!("floor p50 {:.0?}", floor.p50());
    Ok(())
}

fn launch_version(launches: &[Launch]) -> String {
    let apache = launches.iter().find(|launch| launch.is_apache());
    apache.map_or_else(|| "not used".to_owned(), Launch::version)
}

fn note_version(subject: &Subject, name: &str, index: usize, report: &mut Report) {
    let key = format!("server {}", index + 1);
    if report.environment.iter().any(|(known, _)| *known == key) {
        return;
    }
    let text = four_letter_word(subject.address(0), "srvr").unwrap_or_default();
    let version = text.lines().next().unwrap_or_default();
    let servers = subject.addresses().len();
    let value = format!("{servers} x {name}, {version}");
    report.environment.push((key, value));
}
