//! `ringkeeper-log`: looks into transaction logs and snapshots, judges them, and changes them where that is asked for.
//!
//! It reads Ringkeeper's own files and Apache ZooKeeper's, offline or beside a running server: reading takes no
//! lock, writes nothing and needs constant memory, however long the log is (a subcommand that builds the tree needs
//! room for the tree). Subcommands that write say so, and take the directory's lock first.
//!
//! `docs/log-tools.md` is the user's guide.
#![forbid(unsafe_code)]

mod apache_copy;
mod apache_doctor;
mod apache_purge;
mod apache_state;
mod apache_verify;
mod at;
mod diff;
mod doctor;
mod dump;
mod exit;
mod export;
mod filter;
mod finding;
mod import;
mod input;
mod live;
mod output;
mod own_dir;
mod own_log;
mod own_records;
mod progress;
mod purge;
mod record;
mod records;
mod render;
mod repair;
mod segment_scan;
mod show_snapshot;
mod state;
mod stats;
mod tree_summary;
mod truncate;
mod verify;
mod writing;
mod znode;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{Exit, is_closed_pipe, status};
use crate::output::Output;

/// Look into transaction logs and snapshots: verify, dump, compare, repair and convert them
///
/// Statuses: 0 all is well or done, 1 damage or a difference was found (or nothing where something was asked for), 2 wrong
/// arguments, 3 something cannot be read or written, 4 nothing was changed (a server runs there, the target exists, the
/// answer was no).
#[derive(Debug, Parser)]
#[command(name = "ringkeeper-log", version)]
struct Options {
    /// Print JSON for machines (dump: one object per line)
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress bar
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(verify::Options),
    Dump(dump::Options),
    Stats(stats::Options),
    ShowSnapshot(show_snapshot::Options),
    Tree(tree_summary::Options),
    Diff(diff::Options),
    At(at::Options),
    Import(import::Options),
    Export(export::Options),
    Repair(repair::Options),
    Truncate(truncate::Options),
    Purge(purge::Options),
    Doctor(doctor::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut out = Output::new(options.json, options.quiet);
    let result = run(&options.command, &mut out);
    let result = match out.flush() {
        Err(error) if result.is_ok() => Err(error.into()),
        _ => result,
    };
    if let Err(error) = &result
        && !is_closed_pipe(error)
    {
        eprintln!("ringkeeper-log: {error:#}");
    }
    status(&result)
}

fn run(command: &Command, out: &mut Output) -> anyhow::Result<Exit> {
    match command {
        Command::Verify(options) => verify::run(options, out),
        Command::Dump(options) => dump::run(options, out),
        Command::Stats(options) => stats::run(options, out),
        Command::ShowSnapshot(options) => show_snapshot::run(options, out),
        Command::Tree(options) => tree_summary::run(options, out),
        Command::Diff(options) => diff::run(options, out),
        Command::At(options) => at::run(options, out),
        Command::Import(options) => import::run(options, out),
        Command::Export(options) => export::run(options, out),
        Command::Repair(options) => repair::run(options, out),
        Command::Truncate(options) => truncate::run(options, out),
        Command::Purge(options) => purge::run(options, out),
        Command::Doctor(options) => doctor::run(options, out),
    }
}
