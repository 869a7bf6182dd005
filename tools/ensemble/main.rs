//! `ringkeeper-ensemble`: starts an ensemble on loopback, writes, kills, stops and restarts members one
//! at a time, the leader more often than others, and checks that nothing acknowledged is lost, that
//! each session's writes have their order, and that no session expires.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a tool's report")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use ringkeeper_ensemble::check::check;
use ringkeeper_ensemble::faults::{Fault, inflict};
use ringkeeper_ensemble::load::{Load, LoadPlan};
use ringkeeper_ensemble::{Ensemble, Plan, apache, debian};
use ringkeeper_harness::Launch;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs an ensemble under load and faults, and checks that nothing acknowledged is lost
#[derive(Debug, Parser)]
#[command(name = "ringkeeper-ensemble", version)]
struct Options {
    /// A voter: `apache`, `debian`, or a command line ({config} in it stands for the zoo.cfg); repeated
    #[arg(long = "voter")]
    voters: Vec<String>,
    /// An observer, in the same way
    #[arg(long = "observer")]
    observers: Vec<String>,
    /// Faults, one after the other
    #[arg(long, default_value_t = 6)]
    faults: u32,
    /// Seed of what is random; printed, and different each time when not given
    #[arg(long)]
    seed: Option<u64>,
    /// Sessions that write
    #[arg(long, default_value_t = 4)]
    writers: u32,
    /// Steps that each keeps in flight
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// A line for every zoo.cfg (key=value); may be repeated
    #[arg(long = "set")]
    settings: Vec<String>,
    /// Where data lies; kept. Default: a temporary directory, kept only when something is wrong
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let temporary = tempfile::Builder::new()
        .prefix("ringkeeper-ensemble-")
        .tempdir()?;
    let dir = options.dir.clone();
    let dir = dir.unwrap_or_else(|| temporary.path().to_owned());
    let seed = options.seed.unwrap_or_else(seed_of_now);
    println!("seed {seed}, in {}", dir.display());
    let plan = Plan {
        voters: launches(&options.voters)?,
        observers: launches(&options.observers)?,
        settings: options.settings.clone(),
        absent: BTreeSet::new(),
    };
    let mut ensemble = Ensemble::new(&plan, &dir)?;
    let outcome = run_faults(options, &mut ensemble, seed);
    if outcome.is_err() && options.dir.is_none() {
        let kept = temporary.keep();
        return outcome
            .with_context(|| format!("FAILED, the directory is kept: {}", kept.display()));
    }
    outcome
}

fn run_faults(options: &Options, ensemble: &mut Ensemble, seed: u64) -> Result<()> {
    let began = Instant::now();
    ensemble.start(PATIENCE)?;
    println!(
        "serving after {:.1?}, leader {:?}",
        began.elapsed(),
        ensemble.leader()
    );
    let ids = ensemble.ids();
    let addresses = ids.iter().map(|id| ensemble.address(*id));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let plan = LoadPlan {
        writers: options.writers,
        depth: options.depth.max(1),
    };
    let load = Load::start(&addresses, plan)?;
    let faulted = inflict_all(options, ensemble, &load, seed, &ids);
    // What a writer saw says more than that it does not write any more.
    let written = match (load.stop(), faulted) {
        (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
        (Ok(written), Ok(())) => written,
    };
    let found = check(&addresses, &written)?;
    let reconnects: u32 = written.iter().map(|it| it.reconnects).sum();
    let pause = written
        .iter()
        .map(|it| it.pause_max)
        .max()
        .unwrap_or_default();
    println!(
        "{} acknowledged steps there at each of {} members; {reconnects} reconnects, longest pause {pause:.1?}",
        found.steps, found.members
    );
    println!("nothing lost, {:.1?}", began.elapsed());
    Ok(())
}

fn inflict_all(
    options: &Options,
    ensemble: &mut Ensemble,
    load: &Load,
    seed: u64,
    ids: &[u64],
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    load.wait_for(100, PATIENCE)?;
    for at in 1..=options.faults {
        let leader = ensemble.leader();
        let id = match leader {
            Some(leader) if rng.random_bool(0.5) => leader,
            _ => *ids.choose(&mut rng).context("there is no member")?,
        };
        let fault = Fault::choose(&mut rng);
        let began = Instant::now();
        let role = ensemble.role(id);
        inflict(ensemble, load, id, fault)?;
        println!(
            "{at:3}. {fault:?} of member {id} ({role:?}): back after {:.1?}, {} steps",
            began.elapsed(),
            load.acknowledged()
        );
    }
    Ok(())
}

fn launches(texts: &[String]) -> Result<Vec<Launch>> {
    let launch = |text: &String| match text.as_str() {
        "apache" => apache(),
        "debian" => debian(),
        command => Launch::parse(command),
    };
    texts.iter().map(launch).collect()
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() << 20 ^ u64::from(now.subsec_nanos()))
}
