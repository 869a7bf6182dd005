//! `purge` on Apache ZooKeeper's directories: the newest whole snapshots stay, and every log that may hold
//! transactions after the oldest of them.
//!
//! Invariants:
//! - Nothing is removed before everything that stays has been read whole.
//! - Whatever is left when a removal is interrupted can be gone on with: snapshots go first and each kind goes from the
//!   oldest on, so what is left of either is always its newer end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ringkeeper_apache_files::{Directory, Listed, LogReport, Severity, Snapshot, read_snapshot};
use ringkeeper_proto::Zxid;
use serde_json::{Value, json};

use crate::apache_state::read_logs;
use crate::exit::{Exit, Failure};
use crate::live::users_of;
use crate::output::Output;
use crate::own_log::default_threads;
use crate::progress::bytes_bar;
use crate::purge::Options;
use crate::record::Span;
use crate::writing::confirm;

/// ZK: PurgeTxnLog takes no less.
const KEEP_MIN: usize = 3;

/// Removes what `options` says; see the module.
///
/// # Errors
/// When a process has the files open, what would stay is damaged, the answer is no, or a file cannot be removed.
pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let keep = usize::from(options.keep);
    if keep < KEEP_MIN {
        return Err(Failure::usage(format!(
            "of Apache's snapshots at least {KEEP_MIN} stay: say --keep {KEEP_MIN} or more"
        )));
    }
    let log = options.log_dir.as_deref().unwrap_or(&options.dir);
    let dir = Directory::open(&options.dir, log)?;
    if !options.dry_run {
        check_unused(&dir)?;
    }
    let plan = plan(&dir, keep, out.quiet)?;
    if !out.json {
        for line in plan.lines() {
            out.line(line)?;
        }
        out.flush()?;
    }
    let is_done = plan.removes() && !options.dry_run;
    if is_done {
        let (snapshots, logs) = (plan.snapshots.len(), plan.logs.len());
        confirm(
            &format!("Remove {snapshots} snapshots and {logs} logs?"),
            options.yes,
        )?;
        // A server may have been started while the question stood.
        check_unused(&dir)?;
        let now = Directory::open(&options.dir, log)?;
        if now.logs != dir.logs || now.snapshots != dir.snapshots {
            return Err(Failure::refused(
                "somebody has written to the directory meanwhile; nothing was changed",
            ));
        }
        remove(&plan)?;
    }
    if out.json {
        out.value(&plan.json(options.dry_run))?;
    } else if is_done {
        out.line("done")?;
    }
    Ok(Exit::Ok)
}

/// Apache's server takes no lock: what can be told is whether a process has one of the files open.
fn check_unused(dir: &Directory) -> anyhow::Result<()> {
    let files = dir.logs.iter().chain(&dir.snapshots);
    match users_of(files.map(|(_, path)| path.as_path())).first() {
        None => Ok(()),
        Some((pid, path)) => Err(Failure::refused(format!(
            "process {pid} has {} open: stop the server first, or let it purge by itself (autopurge.purgeInterval); \
             nothing was changed",
            path.display()
        ))),
    }
}

/// What goes and what stays.
#[derive(Debug, Default)]
struct Plan {
    /// How many whole snapshots were to stay.
    keep: usize,
    /// Those that do, newest first; with fewer than `keep` everything stays.
    kept: Vec<Zxid>,
    kept_logs: usize,
    first_log: Option<PathBuf>,
    /// To remove, oldest first.
    snapshots: Vec<PathBuf>,
    /// To remove, oldest first.
    logs: Vec<PathBuf>,
    /// Bytes of what is to be removed.
    bytes: u64,
    notes: Vec<String>,
}

fn plan(dir: &Directory, keep: usize, quiet: bool) -> anyhow::Result<Plan> {
    let report = read_logs(dir, default_threads(), "logs", quiet)?;
    let mut plan = Plan {
        keep,
        ..Plan::default()
    };
    plan.kept = newest_whole(dir, &report, keep, &mut plan.notes, quiet);
    let (Some(&newest), Some(&oldest)) = (plan.kept.first(), plan.kept.get(keep - 1)) else {
        plan.kept_logs = dir.logs.len();
        return Ok(plan);
    };
    // The log that begins at or before the snapshot may go on behind it.
    let first = dir.logs.iter().rev().find(|(zxid, _)| *zxid <= oldest);
    let first = first.map_or(Zxid::ZERO, |(zxid, _)| *zxid);
    let is_older = |(zxid, _): &Listed| *zxid < first;
    let (logs, kept_logs): (Vec<_>, Vec<_>) = dir.logs.iter().cloned().partition(is_older);
    check_kept(&report, &kept_logs, (oldest, newest))?;
    check_removed(&report, &logs, oldest)?;
    let older = dir.snapshots.iter().filter(|(zxid, _)| *zxid < oldest);
    plan.snapshots = older.map(|(_, path)| path.clone()).collect();
    plan.logs = logs.into_iter().map(|(_, path)| path).collect();
    let sizes = plan.snapshots.iter().chain(&plan.logs).map(fs::metadata);
    plan.bytes = sizes.flatten().map(|metadata| metadata.len()).sum();
    plan.kept_logs = kept_logs.len();
    plan.first_log = kept_logs.into_iter().next().map(|(_, path)| path);
    Ok(plan)
}

/// The newest `keep` snapshots that are whole with the log, newest first; fewer where there are not so many. What is
/// wrong with those passed over goes to `notes`.
fn newest_whole(
    dir: &Directory,
    report: &LogReport,
    keep: usize,
    notes: &mut Vec<String>,
    quiet: bool,
) -> Vec<Zxid> {
    let bar = bytes_bar("snapshots", dir.snapshot_bytes(), quiet);
    let mut kept: Vec<Zxid> = Vec::new();
    for (zxid, path) in dir.snapshots.iter().rev() {
        // The same snapshot in another compression is no further one.
        if kept.contains(zxid) {
            continue;
        }
        match read_snapshot(path, &mut |bytes| bar.inc(bytes)) {
            Ok(snapshot) if is_made_whole(&snapshot, report) => kept.push(*zxid),
            Ok(snapshot) => notes.push(format!(
                "{} shows transactions up to {} that the logs do not hold: it does not count as whole",
                path.display(),
                snapshot.fuzzy_through
            )),
            Err(error) => notes.push(format!("{error}: it does not count as whole")),
        }
        if kept.len() == keep {
            break;
        }
    }
    bar.finish_and_clear();
    kept
}

/// Whether the log holds everything that the snapshot may show a part of.
fn is_made_whole(snapshot: &Snapshot, report: &LogReport) -> bool {
    let (from, through) = (snapshot.tree.zxid(), snapshot.fuzzy_through);
    let end = report.zxids().map_or(Zxid::ZERO, |(_, high)| high);
    through <= from || end >= through && report.first_break(from, through).is_none()
}

/// Refuses when a transaction after the oldest snapshot is damaged or missing: an older snapshot does not bring it
/// back, but nothing should go from a directory that has to be repaired.
fn check_kept(
    report: &LogReport,
    kept: &[Listed],
    (oldest, newest): (Zxid, Zxid),
) -> anyhow::Result<()> {
    let is_kept = |file: &Path| kept.iter().any(|(_, path)| path == file);
    let damage = report.problems.iter().find(|problem| {
        problem.severity == Severity::Damage
            && problem.before.is_none_or(|before| before > oldest)
            && is_kept(&problem.file)
    });
    let missing = report.first_break(newest, Span::ALL.through);
    let what = match (damage, missing) {
        (None, None) => return Ok(()),
        (Some(problem), _) => format!("{}: {}", problem.file.display(), problem.text),
        (None, Some((after, _))) => format!("transactions after {after} are missing"),
    };
    Err(Failure::unreadable(format!(
        "what would stay is damaged, so nothing is purged: {what}; run `ringkeeper-log doctor` on the directory"
    )))
}

/// Refuses when a log holds more than its name and the next one's tell.
fn check_removed(report: &LogReport, removed: &[Listed], oldest: Zxid) -> anyhow::Result<()> {
    let is_removed = |file: &Path| removed.iter().any(|(_, path)| path == file);
    let beyond = report
        .files
        .iter()
        .find(|file| is_removed(&file.path) && file.zxids.is_some_and(|(_, high)| high > oldest));
    match beyond {
        None => Ok(()),
        Some(file) => Err(Failure::unreadable(format!(
            "{} holds transactions after the snapshot at {oldest}, which its name does not tell, so nothing is purged; \
             run `ringkeeper-log doctor` on the directory",
            file.path.display()
        ))),
    }
}

/// Removes what the plan says, and makes that durable.
fn remove(plan: &Plan) -> anyhow::Result<()> {
    let mut folders: Vec<&Path> = Vec::new();
    for path in plan.snapshots.iter().chain(&plan.logs) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
        folders.extend(path.parent().filter(|folder| !folders.contains(folder)));
    }
    for folder in folders {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("flush {}", folder.display()))?;
    }
    Ok(())
}

impl Plan {
    fn removes(&self) -> bool {
        !self.snapshots.is_empty() || !self.logs.is_empty()
    }

    fn oldest(&self) -> Option<Zxid> {
        self.kept.last().copied()
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(oldest) = self.oldest() {
            let from = self
                .first_log
                .as_ref()
                .map_or_else(String::new, |path| format!(" (from {} on)", path.display()));
            lines.push(format!(
                "stays: {} whole snapshots, the oldest at {oldest}, and {} logs{from}",
                self.kept.len(),
                self.kept_logs
            ));
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        if self.kept.len() < self.keep {
            lines.push(format!(
                "{} snapshots are whole, and {} are to stay: nothing is removed",
                self.kept.len(),
                self.keep
            ));
        } else if !self.removes() {
            lines.push("nothing is older: nothing is removed".to_owned());
        } else {
            lines.push(format!(
                "goes: {} snapshots and {} logs, {} bytes",
                self.snapshots.len(),
                self.logs.len(),
                self.bytes
            ));
        }
        let files = self.snapshots.iter().chain(&self.logs);
        lines.extend(files.map(|path| format!("  {}", path.display())));
        lines
    }

    fn json(&self, is_dry: bool) -> Value {
        let names = |paths: &[PathBuf]| -> Vec<String> {
            let names = paths.iter().map(|path| path.display().to_string());
            names.collect()
        };
        json!({
            "format": "apache",
            "dry_run": is_dry,
            "kept": self.kept.iter().map(Zxid::to_string).collect::<Vec<_>>(),
            "kept_logs": self.kept_logs,
            "oldest": self.oldest().map(|zxid| zxid.to_string()),
            "snapshots": names(&self.snapshots),
            "logs": names(&self.logs),
            "bytes": self.bytes,
            "notes": self.notes,
        })
    }
}
