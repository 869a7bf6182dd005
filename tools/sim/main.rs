//! `ringkeeper-sim`: runs one seed, or one after the other until the time is up.
#![expect(clippy::print_stdout, reason = "what was found is what was asked for")]
#![expect(
    clippy::disallowed_methods,
    reason = "how long to go on is told by the real clock; runs do not see it"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ringkeeper_sim::{Counts, Outcome, run};

/// An ensemble of the production code on simulated disks, network and time.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Replay this one, and print the hash of its trace
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Run so many seeds at most
    #[arg(long)]
    seeds: Option<u64>,
    /// Begin no further one after so many minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Print the trace
    #[arg(long, requires = "seed")]
    print: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print {
        // What the members log stands between the lines of the trace.
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .with_ansi(false)
            .init();
    }
    if let Some(seed) = arguments.seed {
        let outcome = guarded(seed, arguments.print);
        println!(
            "seed {seed}: trace {:016x}, {} lines",
            outcome.trace_hash, outcome.trace_lines
        );
        report(&outcome.counts, outcome.seconds, outcome.transactions);
        return verdict(seed, &outcome);
    }
    let started = Instant::now();
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let mut counts = Counts::default();
    let (mut seconds, mut transactions) = (0, 0);
    let mut last = Instant::now();
    let mut seed = arguments.first;
    let more = |seed: u64| {
        arguments
            .seeds
            .is_none_or(|seeds| seed - arguments.first < seeds)
            && limit.is_none_or(|limit| started.elapsed() < limit)
    };
    while more(seed) {
        let outcome = guarded(seed, false);
        counts.merge(&outcome.counts);
        seconds += outcome.seconds;
        transactions += outcome.transactions;
        if outcome.violation.is_some() {
            report(&counts, seconds, transactions);
            println!(
                "found after {} seeds and {:.1} s",
                seed - arguments.first + 1,
                started.elapsed().as_secs_f64()
            );
            return verdict(seed, &outcome);
        }
        if last.elapsed() > Duration::from_secs(60) {
            last = Instant::now();
            println!(
                "{:.0} s: {} seeds, {:.1} cluster-hours",
                started.elapsed().as_secs_f64(),
                seed - arguments.first + 1,
                seconds as f64 / 3600.0
            );
        }
        seed += 1;
    }
    println!(
        "{} seeds in {:.1} s, none violated anything",
        seed - arguments.first,
        started.elapsed().as_secs_f64()
    );
    report(&counts, seconds, transactions);
    ExitCode::SUCCESS
}

/// Runs a seed. A panic of the code under test is a violation too, where panics unwind; elsewhere it ends this
/// process, and the seed is said before.
fn guarded(seed: u64, print: bool) -> Outcome {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        println!("VIOLATION: {panic}");
        println!("replay: {}", replay(seed));
    }));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, print)));
    std::panic::set_hook(default);
    outcome.unwrap_or_else(|panic| Outcome {
        violation: Some(text_of(&*panic)),
        trace_hash: 0,
        trace_lines: 0,
        seconds: 0,
        transactions: 0,
        counts: Counts::default(),
    })
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("an invariant is false: {}", text.unwrap_or("a panic"))
}

fn replay(seed: u64) -> String {
    format!("cargo run --profile sim -p ringkeeper-sim -- --seed {seed} --print")
}

fn verdict(seed: u64, outcome: &Outcome) -> ExitCode {
    match &outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("VIOLATION (seed {seed}): {violation}");
            println!("replay: {}", replay(seed));
            ExitCode::FAILURE
        }
    }
}

fn report(counts: &Counts, seconds: u64, transactions: u64) {
    println!(
        "{:.2} cluster-hours with acknowledged writes, {transactions} transactions",
        seconds as f64 / 3600.0
    );
    println!("faults:");
    for (what, count) in &counts.faults {
        println!("  {count:>10}  {what}");
    }
    println!("what happened:");
    for (what, count) in &counts.others {
        println!("  {count:>10}  {what}");
    }
}
