//! The tree that Apache ZooKeeper's files make, and their records as those of any log.

use std::path::Path;

use anyhow::Context as _;
use ringkeeper_apache_files::{Directory, Entry, LogReport, Replay};
use ringkeeper_proto::Zxid;

use crate::exit::Failure;
use crate::finding::Finding;
use crate::own_log::default_threads;
use crate::progress::bytes_bar;
use crate::record::{RecordAt, Span, Visit};
use crate::state::State;

/// Reads and judges the logs of `dir`.
///
/// # Errors
/// When one cannot be read.
pub(crate) fn read_logs(
    dir: &Directory,
    threads: usize,
    what: &'static str,
    quiet: bool,
) -> anyhow::Result<LogReport> {
    let bar = bytes_bar(what, dir.log_bytes(), quiet);
    let report = dir.read_logs(threads, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(report)
}

/// Hands every whole record of `span` to `visit`; returns what is wrong with the rest.
///
/// # Errors
/// Those of `visit`, and when a file cannot be read.
pub(crate) fn for_each(
    dir: &Directory,
    span: Span,
    visit: Visit<'_>,
) -> anyhow::Result<Vec<Finding>> {
    let problems = dir.for_each(span.after, span.through, &mut |file, entry| {
        visit(&RecordAt {
            zxid: entry.zxid,
            bytes: entry.bytes,
            file,
            offset: entry.offset,
            batch: None,
            index: entry.index,
            is_void: false,
        })
    })?;
    Ok(problems.into_iter().map(Finding::from).collect())
}

/// The state of `dir` at `through`, or its newest.
///
/// # Errors
/// When no snapshot can be used and the logs do not reach back to the beginning, or when the logs between are
/// damaged.
pub(crate) fn of_dir(dir: &Directory, through: Option<Zxid>, quiet: bool) -> anyhow::Result<State> {
    let mut replay = base(dir, through, quiet)?;
    let logs = dir.with_logs_after(replay.tree.zxid());
    let report = read_logs(&logs, default_threads(), "read", quiet)?;
    let end = through.unwrap_or(Span::ALL.through);
    if replay.from.is_none() && !report.begins_at_the_beginning() {
        return Err(unknown(
            through,
            "there is no snapshot at or below it, and the logs do not reach back to the first transaction",
        ));
    }
    if let Some((after, _)) = report.first_break(replay.tree.zxid(), end) {
        return Err(Failure::unreadable(format!(
            "the log is damaged after {after}: the state is known up to there only (`ringkeeper-log verify` \
             shows the damage; naming a zxid up to {after} shows the state before it)"
        )));
    }
    logs.for_each(replay.tree.zxid(), end, &mut |file, entry| {
        apply(&mut replay, file, entry)?;
        Ok::<_, anyhow::Error>(std::ops::ControlFlow::Continue(()))
    })?;
    Ok(replay.into())
}

/// Applies an entry.
///
/// # Errors
/// When it is no transaction that is known.
pub(crate) fn apply(replay: &mut Replay, file: &Path, entry: &Entry<'_>) -> anyhow::Result<()> {
    let place = || {
        let (file, offset) = (file.display(), entry.offset);
        let zxid = entry.zxid;
        format!("{file} at offset {offset}: record {zxid} cannot be decoded")
    };
    replay.apply(entry.zxid, entry.bytes).with_context(place)
}

/// The newest snapshot that shows nothing above `through`, or the beginning where the logs reach back to it.
fn base(dir: &Directory, through: Option<Zxid>, quiet: bool) -> anyhow::Result<Replay> {
    let bar = bytes_bar("read snapshot", dir.snapshot_bytes(), quiet);
    let base = dir.base(through, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    if let Some(replay) = base.replay {
        return Ok(replay);
    }
    if base.failures.is_empty() {
        return Ok(Replay::from_nothing());
    }
    let failures: Vec<String> = base.failures.iter().map(ToString::to_string).collect();
    Err(unknown(through, &failures.join("; ")))
}

fn unknown(through: Option<Zxid>, why: &str) -> anyhow::Error {
    let at = through.map_or_else(|| "the end".to_owned(), |zxid| zxid.to_string());
    Failure::unreadable(format!("the state at {at} cannot be told: {why}"))
}

impl From<Replay> for State {
    fn from(replay: Replay) -> Self {
        Self {
            replayed: replay.applied,
            mismatches: replay.mismatches,
            first_mismatch: replay.first_mismatch,
            ..Self::new(replay.tree, replay.from)
        }
    }
}
