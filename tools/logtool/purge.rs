//! `purge`: giving back the space of old snapshots and of the log before them.

use std::path::PathBuf;

use clap::Args;
use futures_lite::future::block_on;
use ringkeeper_storage::Dirs;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::input::{Format, Input};
use crate::output::Output;
use crate::own_dir::configured;
use crate::state::load_snapshot;
use crate::writing::{close_store, confirm, open_store, options_for};

/// Remove old snapshots and the log that only they need; the server must be stopped (it purges by itself)
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The data directory
    #[arg(value_name = "DATADIR")]
    dir: PathBuf,
    /// The directory of the log, where dataLogDir is configured
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// How many of the newest snapshots stay
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    keep: u16,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let input = Input::of(&options.dir, options.log_dir.as_deref(), Some(Format::Own));
    let dir = input.open_data_dir()?;
    if dir.is_live {
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
    close_store(opened)?;
    if out.json {
        out.value(&json!({
            "snapshots": purged.snapshots,
            "segments": purged.segments,
            "oldest": purged.oldest.map(|zxid| zxid.to_string()),
        }))?;
    } else {
        let oldest = purged.oldest.map_or_else(
            || "there is no snapshot, so the whole log is needed".to_owned(),
            |zxid| format!("the oldest snapshot is now that at {zxid}"),
        );
        out.line(format!(
            "{} snapshots and {} log segments removed; {oldest}",
            purged.snapshots, purged.segments
        ))?;
    }
    Ok(Exit::Ok)
}
