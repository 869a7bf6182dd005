//! The differential test: the same seeded random scripts against Apache ZooKeeper and against Ringkeeper, with
//! everything that clients can see compared field by field.
//!
//! `docs/internals/differential.md` tells how it works, what it can and cannot see, and how to use it.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command prints its report")]

mod capture;
mod client;
mod compare;
mod coverage;
mod decode;
mod deliberate;
mod execute;
mod generate;
mod identity;
mod observation;
mod pair;
mod report;
mod script;
mod servers;
mod shrink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;

use crate::pair::Pair;
use crate::report::Report;
use crate::script::Script;
use crate::servers::{DEBIAN_CLASSPATH, Product, Settings};

/// Runs the same random scripts on Apache ZooKeeper and on Ringkeeper, and compares all that clients see.
#[derive(Debug, Parser)]
struct Arguments {
    /// The `ringkeeper` program to test.
    #[arg(long, conflicts_with = "against_classpath")]
    ringkeeper: Option<PathBuf>,
    /// In place of Ringkeeper, another Apache from this class path: the oracle's own shows that the
    /// comparison is deterministic, a later release's that the list of version differences is exact.
    #[arg(long)]
    against_classpath: Option<String>,
    /// The class path of the oracle.
    #[arg(long, default_value = DEBIAN_CLASSPATH)]
    apache_classpath: String,
    /// How many requests to make.
    #[arg(long, default_value_t = 6_000)]
    operations: usize,
    /// What all scripts are made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this script only.
    #[arg(long)]
    script: Option<u64>,
    /// Print what the oracle and the subject showed, of the one script.
    #[arg(long, requires = "script")]
    trace: bool,
    /// Stop after this many different differences.
    #[arg(long, default_value_t = 20)]
    differences: usize,
    /// How often every reachable cell of the table must be met: the run goes on for up to twice as many
    /// operations until they are, and fails if they are not.
    #[arg(long, default_value_t = 0)]
    cells: u64,
    /// Record requests and replies of the oracle in this directory, and do nothing else.
    #[arg(long)]
    capture: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let oracle = Product::Apache {
        classpath: arguments.apache_classpath.clone(),
    };
    if let Some(directory) = &arguments.capture {
        let count = capture::capture(&oracle, directory)?;
        println!("{count} exchanges recorded in {}", directory.display());
        return Ok(ExitCode::SUCCESS);
    }
    let subject = match (&arguments.ringkeeper, &arguments.against_classpath) {
        (Some(binary), _) => Product::Ringkeeper {
            binary: binary.clone(),
        },
        (None, Some(classpath)) => Product::Apache {
            classpath: classpath.clone(),
        },
        (None, None) => bail!("say --ringkeeper PROGRAM or --against-classpath PATH"),
    };
    if let Some(index) = arguments.script {
        return run_one(&arguments, &oracle, &subject, index);
    }
    let start = Instant::now();
    let mut report = Report::default();
    for settings in Settings::ALL {
        run_settings(&arguments, &oracle, &subject, settings, &mut report)?;
    }
    report.print(start.elapsed(), arguments.cells);
    Ok(if report.is_good(arguments.cells) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the share of the scripts that these settings have.
fn run_settings(
    arguments: &Arguments,
    oracle: &Product,
    subject: &Product,
    settings: Settings,
    report: &mut Report,
) -> Result<()> {
    let mut pair = Pair::start(oracle, subject, settings)?;
    let (eighth, sweeping) = (arguments.operations / 8, arguments.operations / 200);
    let share = match settings {
        Settings::Full => arguments.operations - eighth - sweeping,
        Settings::Sparse => eighth,
        Settings::Sweeping => sweeping,
    };
    let goal = report.operations + share;
    let is_lacking = |report: &Report| {
        settings == Settings::LAST
            && report.operations < 2 * arguments.operations
            && report.lacks(arguments.cells)
    };
    let mut scripts = (0..).filter(|index| settings_of(*index) == settings);
    while report.kinds() < arguments.differences && (report.operations < goal || is_lacking(report))
    {
        let Some(index) = scripts.next() else { break };
        let script = generate::script(arguments.seed, index, settings);
        pair.check(&script, report)?;
    }
    Ok(())
}

fn run_one(
    arguments: &Arguments,
    oracle: &Product,
    subject: &Product,
    index: u64,
) -> Result<ExitCode> {
    let settings = settings_of(index);
    let script: Script = generate::script(arguments.seed, index, settings);
    let mut pair = Pair::start(oracle, subject, settings)?;
    if arguments.trace {
        let (theirs, ours) = pair.run(&script)?;
        println!("oracle:\n{}", report::listing(&script, &theirs, None));
        println!("subject:\n{}", report::listing(&script, &ours, None));
    }
    let mut report = Report::default();
    pair.check(&script, &mut report)?;
    report.print_differences();
    Ok(if report.is_good(0) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The settings that the script of this number runs with.
const fn settings_of(index: u64) -> Settings {
    if index % 32 == 31 {
        Settings::Sweeping
    } else if index % 8 == 7 {
        Settings::Sparse
    } else {
        Settings::Full
    }
}
