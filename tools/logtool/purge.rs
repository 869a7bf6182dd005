//! `purge`: giving back the space of old snapshots and of the log before them.

use std::path::PathBuf;

use clap::Args;
use futures_lite::future::block_on;
use indicatif::ProgressBar;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Dirs, Purged};
use serde_json::json;

use crate::apache_purge;
use crate::exit::{Exit, Failure};
use crate::input::{Format, Input, Kind, kind_of};
use crate::output::Output;
use crate::own_dir::{OwnDir, configured};
use crate::own_log::default_threads;
use crate::segment_scan::Depth;
use crate::state::load_snapshot;
use crate::writing::{close_store, confirm, open_store, options_for};

/// Remove old snapshots and the log that only they need; the server must be stopped (it purges by itself)
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The data directory, Ringkeeper's or Apache's
    #[arg(value_name = "DATADIR")]
    pub(crate) dir: PathBuf,
    /// The directory of the log, where dataLogDir is configured
    #[arg(long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Which data to purge where the directory holds both; Ringkeeper's unless said
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// How many of the newest snapshots stay; at least 3 of Apache's
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) keep: u16,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    match (kind_of(&options.dir)?, options.format) {
        (Kind::ApacheDir, _) | (Kind::BothDir, Some(Format::Apache)) => {
            apache_purge::run(options, out)
        }
        _ => run_on_own(options, out),
    }
}

fn run_on_own(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let input = Input::of(&options.dir, options.log_dir.as_deref(), Some(Format::Own));
    let dir = input.open_data_dir()?;
    if dir.is_live && !options.dry_run {
        return Err(Failure::refused(
            "a server runs on this directory, and purges it by itself; nothing was changed",
        ));
    }
    // What stays must be good: a snapshot that cannot be read would keep nothing.
    let keep = usize::from(options.keep);
    for file in dir.usable_snapshots().rev().take(keep) {
        if let Err(error) = load_snapshot(&file.path) {
            return Err(Failure::unreadable(format!(
                "a snapshot that would stay is damaged, so nothing is purged: {error:#}"
            )));
        }
    }
    if options.dry_run {
        let purged = foreseen(&dir, keep)?;
        return report(&purged, true, out);
    }
    confirm(
        &format!(
            "Keep the newest {keep} snapshots and the log after the oldest of them, and remove the rest?"
        ),
        options.yes,
    )?;
    let dirs = Dirs {
        data: configured(&options.dir),
        log: configured(options.log_dir.as_deref().unwrap_or(&options.dir)),
    };
    let opened = open_store(&dirs, options_for(&dir))?;
    let purged = block_on(opened.store.purge(keep))?;
    block_on(opened.store.remove_spares())?;
    close_store(opened)?;
    report(&purged, false, out)
}

/// What a purge would do, told from the files: that of the store counts the same way.
fn foreseen(dir: &OwnDir, keep: usize) -> anyhow::Result<Purged> {
    let snapshots: Vec<Zxid> = dir.usable_snapshots().map(|file| file.zxid).collect();
    let excess = snapshots.len().saturating_sub(keep);
    let Some(oldest) = snapshots.get(excess).copied() else {
        return Ok(Purged::default());
    };
    let log = dir.read_log(Depth::Headers, default_threads(), &ProgressBar::hidden())?;
    let first = dir.info().map_or(0, |info| info.first_segment);
    let (mut segments, mut counted) = (0, 0);
    let mut before = dir.info().map_or(Zxid::ZERO, |info| info.zxid_before);
    for segment in log.segments.iter().filter(|scan| scan.number >= first) {
        // The last segment that begins at or before the snapshot is the first one needed.
        if before <= oldest && !segment.runs.is_empty() {
            segments = counted;
        }
        counted += 1;
        if let Some(run) = segment.runs.last() {
            before = run.last.last_zxid;
        }
    }
    Ok(Purged {
        snapshots: excess,
        segments,
        oldest: Some(oldest),
    })
}

fn report(purged: &Purged, is_dry: bool, out: &mut Output) -> anyhow::Result<Exit> {
    if out.json {
        out.value(&json!({
            "dry_run": is_dry,
            "snapshots": purged.snapshots,
            "segments": purged.segments,
            "oldest": purged.oldest.map(|zxid| zxid.to_string()),
        }))?;
        return Ok(Exit::Ok);
    }
    let (removed, is) = if is_dry {
        ("would be removed", "would be")
    } else {
        ("removed", "is now")
    };
    let oldest = purged.oldest.map_or_else(
        || "there is no snapshot, so the whole log is needed".to_owned(),
        |zxid| format!("the oldest snapshot {is} that at {zxid}"),
    );
    out.line(format!(
        "{} snapshots and {} log segments {removed}; {oldest}",
        purged.snapshots, purged.segments
    ))?;
    Ok(Exit::Ok)
}
