//! `truncate`: going back to an earlier transaction.

use std::path::PathBuf;

use clap::Args;
use futures_lite::future::block_on;
use indicatif::ProgressBar;
use ringkeeper_apache_files::Directory;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::Dirs;
use serde_json::json;

use crate::apache_copy;
use crate::exit::{Exit, Failure};
use crate::filter::parse_zxid;
use crate::input::{Format, Input, Kind, kind_of};
use crate::output::Output;
use crate::own_dir::configured;
use crate::own_log;
use crate::own_records::{self, Damaged};
use crate::record::Span;
use crate::repair::finish_apache;
use crate::segment_scan::Depth;
use crate::state;
use crate::writing::{close_store, confirm, open_store, options_for};

/// Make every transaction after a zxid void: in place, or (Apache's) in a copy; the server must be stopped
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The last transaction that stays
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    after: Zxid,
    /// The data directory
    #[arg(value_name = "DATADIR")]
    dir: PathBuf,
    /// The directory of the log, where dataLogDir is configured
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// For Apache's directories, which are never changed: the new directory with the history up to there
    #[arg(long, value_name = "NEW")]
    into: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    if kind_of(&options.dir)? == Kind::ApacheDir {
        return run_on_apache(options, out);
    }
    if options.into.is_some() {
        return Err(Failure::usage(
            "--into is for Apache's directories; Ringkeeper's are truncated in place",
        ));
    }
    let input = Input::of(&options.dir, options.log_dir.as_deref(), Some(Format::Own));
    let dir = input.open_data_dir()?;
    if dir.is_live {
        return Err(Failure::refused(
            "a server runs on this directory: stop it first; nothing was changed",
        ));
    }
    let log = dir.read_log(
        Depth::Headers,
        own_log::default_threads(),
        &ProgressBar::hidden(),
    )?;
    // Before anything goes: the state to go back to must be there.
    let state = state::of_dir(&dir, Some(options.after), &ProgressBar::hidden())?;
    let mut records = 0_u64;
    own_records::for_each(
        &log,
        Span::after(options.after),
        Damaged::Refuse,
        &mut |record| {
            records += u64::from(!record.is_void);
            Ok(std::ops::ControlFlow::Continue(()))
        },
    )?;
    let snapshots = dir
        .usable_snapshots()
        .filter(|file| file.zxid > options.after)
        .count();
    let last = log.last_zxid().unwrap_or_default();
    if records == 0 && snapshots == 0 {
        out.line(format!(
            "nothing lies after {}: nothing was changed",
            options.after
        ))?;
        return Ok(Exit::Ok);
    }
    let lost = format!(
        "{records} transactions after {} (up to {last}) become void, and {snapshots} snapshots are removed; the state \
         goes back to {}",
        options.after,
        state.tree.zxid()
    );
    out.line(&lost)?;
    out.flush()?;
    confirm("Go back?", options.yes)?;
    let dirs = Dirs {
        data: configured(&options.dir),
        log: configured(options.log_dir.as_deref().unwrap_or(&options.dir)),
    };
    let mut opened = open_store(&dirs, options_for(&dir))?;
    // Snapshots first: a start that finds one above the log's end would go on from it.
    block_on(opened.store.discard_snapshots_above(options.after))?;
    block_on(opened.log.truncate(options.after))?;
    close_store(opened)?;
    if out.json {
        out.value(&json!({
            "after": options.after.to_string(),
            "void_transactions": records,
            "removed_snapshots": snapshots,
        }))?;
    } else {
        out.line("done")?;
    }
    Ok(Exit::Ok)
}

/// Of Apache's directory a copy is made that ends earlier.
fn run_on_apache(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let Some(target) = &options.into else {
        return Err(Failure::usage(
            "Apache's files are never changed: name a new directory with --into",
        ));
    };
    apache_copy::check_free(target)?;
    let log = options.log_dir.as_deref().unwrap_or(&options.dir);
    let dir = Directory::open(&options.dir, log)?;
    let plan = apache_copy::plan(&dir, Some(options.after), out.quiet)?;
    if !out.json {
        for line in plan.lines() {
            out.line(line)?;
        }
        out.flush()?;
    }
    confirm(&format!("Write {}?", target.display()), options.yes)?;
    apache_copy::write(&dir, &plan, target)?;
    finish_apache(&plan, target, out)
}
