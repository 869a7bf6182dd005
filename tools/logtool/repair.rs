//! `repair`: a new data directory from what is whole of a damaged one, with a statement of what is lost.
//!
//! The damaged directory is only read. Two answers to a gap in history are possible, and the choice is the
//! user's: end before it (the default: a state that once was), or go on behind it (`--skip-damage`: later
//! transactions are kept, on top of a state that lacks the lost ones). Damage that a whole snapshot already covers
//! loses nothing either way.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use futures_lite::future::block_on;
use ringkeeper_apache_files::Directory;
use ringkeeper_import::Appender;
use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{Dirs, Opened, SnapshotReader, SnapshotWriter, StdDisk};
use serde_json::json;

use crate::apache_copy;
use crate::apache_verify;
use crate::exit::{Exit, Failure};
use crate::finding::{Finding, has_damage};
use crate::input::{Format, Input, Kind, kind_of};
use crate::output::Output;
use crate::own_dir::{Manifest, OwnDir};
use crate::own_log::{self, OwnLog};
use crate::own_records::{self, Damaged};
use crate::progress::bytes_bar;
use crate::record::{RecordAt, Span};
use crate::segment_scan::Depth;
use crate::state::{load_snapshot, log_reaches_back_to};
use crate::verify;
use crate::writing::{check_target, close_store, confirm, open_store, options_for};

/// Write a new data directory from what is whole of a damaged one; says what is lost, and asks
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The damaged data directory; it is left as it is
    #[arg(value_name = "DATADIR")]
    dir: PathBuf,
    /// The new data directory; DATADIR.repaired unless given
    #[arg(value_name = "NEW")]
    target: Option<PathBuf>,
    /// The directory of the log, where dataLogDir is configured (the new one holds both)
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Keep what comes behind the damage, without the transactions that are lost in it
    #[arg(long)]
    skip_damage: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only say what would be lost
    #[arg(long)]
    dry_run: bool,
}

/// What a repair would keep and lose.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The snapshot that the new directory begins with.
    base: Option<(Zxid, PathBuf)>,
    /// The last record to keep; everything readable when none.
    through: Option<Zxid>,
    pub(crate) kept: u64,
    /// Whole records that are not kept.
    dropped: u64,
    last_kept: Zxid,
    last_seen: Zxid,
    /// Zxids that cannot be read: the last one before, the first one behind.
    lost: Vec<(Zxid, Option<Zxid>)>,
    epochs: (Epoch, Epoch),
    notes: Vec<String>,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    if kind_of(&options.dir)? == Kind::ApacheDir {
        return run_on_apache(options, out);
    }
    let input = Input::of(&options.dir, options.log_dir.as_deref(), Some(Format::Own));
    let dir = input.open_data_dir()?;
    if dir.is_live {
        return Err(Failure::refused(
            "a server runs on this directory: stop it first; nothing was changed",
        ));
    }
    let target = options
        .target
        .clone()
        .unwrap_or_else(|| default_target(&options.dir));
    check_target(&target)?;
    let bar = bytes_bar("read", dir.log_bytes(), out.quiet);
    let log = dir.read_log(Depth::Full, own_log::default_threads(), &bar)?;
    bar.finish_and_clear();
    let plan = plan(&dir, &log, options.skip_damage)?;
    for line in plan.lines() {
        out.line(line)?;
    }
    out.flush()?;
    if options.dry_run {
        return Ok(Exit::Ok);
    }
    confirm(&format!("Write {}?", target.display()), options.yes)?;
    write(&dir, &log, &plan, &target)?;
    let (_, report) = verify::check_input(
        &Input::of(&target, None, Some(Format::Own)),
        own_log::default_threads(),
        true,
        out.quiet,
    )?;
    for finding in &report.findings {
        out.line(finding.to_string())?;
    }
    if out.json {
        out.value(&plan.json(&target))?;
    }
    out.line(format!(
        "{} is written: {}. To use it, stop the server, move {} away and this one in its place",
        target.display(),
        if has_damage(&report.findings) {
            "NOT WHOLE, see above"
        } else {
            "verified, whole"
        },
        options.dir.display()
    ))?;
    Ok(if has_damage(&report.findings) {
        Exit::Found
    } else {
        Exit::Ok
    })
}

/// Of Apache's directory a new one is made in Apache's format.
fn run_on_apache(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    if options.skip_damage {
        return Err(Failure::usage(
            "--skip-damage works on Ringkeeper's own directories: what lies behind damage in Apache's cannot be told \
             from what it would make of a state that lacks the rest",
        ));
    }
    let target = options
        .target
        .clone()
        .unwrap_or_else(|| default_target(&options.dir));
    apache_copy::check_free(&target)?;
    let log = options.log_dir.as_deref().unwrap_or(&options.dir);
    let dir = Directory::open(&options.dir, log)?;
    let plan = apache_copy::plan(&dir, None, out.quiet)?;
    if !out.json {
        for line in plan.lines() {
            out.line(line)?;
        }
        out.flush()?;
    }
    if options.dry_run {
        return Ok(Exit::Ok);
    }
    confirm(&format!("Write {}?", target.display()), options.yes)?;
    apache_copy::write(&dir, &plan, &target)?;
    finish_apache(&plan, &target, out)
}

/// Verifies what was written for Apache, and says how to use it.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn finish_apache(
    plan: &apache_copy::Plan,
    target: &Path,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let dir = Directory::open(target, target)?;
    let report = apache_verify::check(&dir, own_log::default_threads(), true, out.quiet)?;
    let is_whole = !has_damage(&report.findings);
    if out.json {
        out.value(&plan.json(target))?;
    } else {
        for finding in &report.findings {
            out.line(finding.to_string())?;
        }
        out.line(format!(
            "{} is written: {}. To use it, put its version-2 (and myid) in the place of the old ones",
            target.display(),
            if is_whole { "verified, whole" } else { "NOT WHOLE, see above" },
        ))?;
    }
    Ok(if is_whole { Exit::Ok } else { Exit::Found })
}

fn default_target(dir: &Path) -> PathBuf {
    let mut name = dir
        .components()
        .next_back()
        .map_or_else(|| "data".into(), |name| name.as_os_str().to_owned());
    name.push(".repaired");
    dir.parent().unwrap_or_else(|| Path::new("")).join(name)
}

/// Decides what is kept.
///
/// # Errors
/// When there is nothing that a state could be made of.
pub(crate) fn plan(dir: &OwnDir, log: &OwnLog, skip_damage: bool) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    let mut failures = Vec::new();
    for file in dir.snapshots.iter().rev() {
        match load_snapshot(&file.path) {
            Ok(tree) => {
                plan.base = Some((tree.zxid(), file.path.clone()));
                break;
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let from = plan.base.as_ref().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
    let reaches = log_reaches_back_to(log);
    if plan.base.is_none() && !(log.begins_empty && reaches == Some(Zxid::ZERO)) {
        return Err(Failure::unreadable(format!(
            "no snapshot can be read, and the log does not reach back to the beginning: nothing can be made of this \
             directory alone. Fetch the data from another member of the ensemble or from a backup. {}",
            failures.join("; ")
        )));
    }
    plan.notes.extend(failures);
    if let Some(reaches) = reaches.filter(|reaches| *reaches > from) {
        plan.lost.push((from, Some(Zxid(reaches.0 + 1))));
    }
    let concerns =
        |(_, before): &&(Zxid, Option<Zxid>)| before.is_none_or(|before| before.0 > from.0 + 1);
    plan.lost
        .extend(log.breaks.iter().filter(concerns).copied());
    plan.last_kept = from;
    plan.last_seen = from;
    each_kept(log, Span::after(from), &mut |record| {
        narrow(&mut plan.lost, record.zxid);
        Ok(())
    })?;
    plan.through = plan
        .lost
        .first()
        .filter(|_| !skip_damage)
        .map(|(after, _)| (*after).max(from));
    count(log, from, &mut plan)?;
    plan.epochs = epochs(dir, &mut plan.notes, plan.last_seen);
    Ok(plan)
}

/// Counts what is kept and what is not.
fn count(log: &OwnLog, from: Zxid, plan: &mut Plan) -> anyhow::Result<()> {
    each_kept(log, Span::after(from), &mut |record| {
        if plan.through.is_none_or(|through| record.zxid <= through) {
            plan.kept += 1;
            plan.last_kept = plan.last_kept.max(record.zxid);
        } else {
            plan.dropped += 1;
        }
        plan.last_seen = plan.last_seen.max(record.zxid);
        Ok(())
    })
}

/// Walks over everything in `span` that can be read and is not void, whole records of damaged batches included.
fn each_kept(
    log: &OwnLog,
    span: Span,
    each: &mut dyn FnMut(&RecordAt<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // What is damaged has been told.
    let mut ignore = |_: Finding| {};
    own_records::for_each(log, span, Damaged::Tell(&mut ignore), &mut |record| {
        if !record.is_void {
            each(record)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Takes a record that could be read after all out of the ranges that could not.
fn narrow(lost: &mut Vec<(Zxid, Option<Zxid>)>, found: Zxid) {
    let within = |(after, before): &(Zxid, Option<Zxid>)| {
        *after < found && before.is_none_or(|before| found < before)
    };
    let Some(at) = lost.iter().position(within) else {
        return;
    };
    let (after, before) = lost.remove(at);
    let mut parts = Vec::new();
    if after.next() != Some(found) {
        parts.push((after, Some(found)));
    }
    if before.is_none_or(|before| found.next() != Some(before)) {
        parts.push((found, before));
    }
    for (offset, part) in parts.into_iter().enumerate() {
        lost.insert(at + offset, part);
    }
}

fn epochs(dir: &OwnDir, notes: &mut Vec<String>, last: Zxid) -> (Epoch, Epoch) {
    if let Manifest::Present(info) = &dir.manifest {
        return (info.accepted_epoch, info.current_epoch);
    }
    let epoch = last.epoch();
    notes.push(format!(
        "the manifest cannot be read: both epochs are set to {epoch}, that of the last transaction"
    ));
    (epoch, epoch)
}

impl Plan {
    /// Whether nothing that was acknowledged is lost.
    pub(crate) fn is_lossless(&self) -> bool {
        self.dropped == 0 && self.lost.is_empty()
    }

    /// What it means, in words.
    pub(crate) fn lines(&self) -> Vec<String> {
        let base = self.base.as_ref().map_or_else(
            || "the beginning of the log".to_owned(),
            |(zxid, path)| format!("the snapshot at {zxid} ({})", path.display()),
        );
        let mut lines = vec![format!(
            "kept: {base} and {} transactions after it, up to {}",
            self.kept, self.last_kept
        )];
        if self.is_lossless() {
            lines.push("lost: nothing; what is damaged is held elsewhere".to_owned());
        }
        for (after, before) in &self.lost {
            lines.push(match before {
                Some(before) => format!(
                    "lost: the transactions after {after} and before {before}, which cannot be read"
                ),
                None => format!("lost: whatever came after {after}, which cannot be read"),
            });
        }
        if self.dropped > 0 {
            lines.push(format!(
                "lost: {} whole transactions behind the damage, up to {} (--skip-damage keeps them, on top of a state \
                 that lacks the others)",
                self.dropped, self.last_seen
            ));
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines
    }

    fn json(&self, target: &Path) -> serde_json::Value {
        let lost = self.lost.iter().map(|(after, before)| {
            json!({"after": after.to_string(), "before": before.map(|zxid| zxid.to_string())})
        });
        json!({
            "written": target.display().to_string(),
            "base": self.base.as_ref().map(|(zxid, _)| zxid.to_string()),
            "kept": self.kept,
            "last_zxid": self.last_kept.to_string(),
            "dropped": self.dropped,
            "lost": lost.collect::<Vec<_>>(),
        })
    }
}

fn write(dir: &OwnDir, log: &OwnLog, plan: &Plan, target: &Path) -> anyhow::Result<()> {
    let mut opened = open_store(&Dirs::single(target), options_for(dir))?;
    let (accepted, current) = plan.epochs;
    block_on(opened.store.save_epochs(accepted.max(current), current))?;
    let from = match &plan.base {
        Some((zxid, path)) => {
            copy_snapshot(path, &opened)?;
            block_on(opened.log.reset(*zxid))?;
            *zxid
        }
        None => Zxid::ZERO,
    };
    let disk = StdDisk::new();
    let mut appender = Appender::new(&disk, &mut opened, log.committed);
    let span = Span {
        after: from,
        through: plan.through.unwrap_or(Span::ALL.through),
    };
    each_kept(log, span, &mut |record| {
        let appended = appender.append(record.zxid, record.bytes);
        appended.with_context(|| format!("append {}", record.zxid))?;
        Ok(())
    })?;
    appender.finish()?;
    close_store(opened)?;
    Ok(())
}

fn copy_snapshot(path: &Path, opened: &Opened<StdDisk>) -> anyhow::Result<()> {
    let reader = SnapshotReader::open_file(path)?;
    let info = reader.info();
    let mut writer = SnapshotWriter::create(opened.store.snapshot_dir(), info.zxid, None)?;
    let mut bytes = Vec::new();
    for chunk in reader.chunks() {
        reader.read_chunk(chunk, &mut bytes)?;
        writer.push_chunk(chunk.kind, &bytes)?;
    }
    let written = writer.finish(info.digest, reader.counts())?;
    block_on(opened.store.register_snapshot(written))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_not_lost() {
        let mut lost = vec![(Zxid(4), Some(Zxid(9))), (Zxid(20), None)];
        narrow(&mut lost, Zxid(6));
        assert_eq!(
            lost,
            [
                (Zxid(4), Some(Zxid(6))),
                (Zxid(6), Some(Zxid(9))),
                (Zxid(20), None)
            ]
        );
        narrow(&mut lost, Zxid(5));
        narrow(&mut lost, Zxid(7));
        narrow(&mut lost, Zxid(8));
        narrow(&mut lost, Zxid(3));
        assert_eq!(lost, [(Zxid(20), None)]);
        narrow(&mut lost, Zxid(21));
        assert_eq!(lost, [(Zxid(21), None)]);
    }
}
