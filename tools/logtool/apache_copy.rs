//! A new directory of Apache's files with the history of another up to a transaction: what `truncate` and `repair`
//! make of Apache's directories, which nothing here changes.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ringkeeper_apache_files::{
    self as apache, ACCEPTED_EPOCH, CURRENT_EPOCH, Directory, LogReport, LogWriter, write_epoch,
};
use ringkeeper_proto::Zxid;
use serde_json::{Value, json};

use crate::apache_state::read_logs;
use crate::exit::Failure;
use crate::own_log::default_threads;
use crate::progress::bytes_bar;
use crate::record::Span;

/// Where a copy is made, beside its place.
const UNFINISHED: &str = "version-2.unfinished";

/// What a copy holds, and what it lacks.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The snapshot that it begins with.
    base: Option<(Zxid, PathBuf)>,
    /// The last transaction to keep.
    pub(crate) through: Zxid,
    kept: u64,
    last_kept: Zxid,
    /// Whole transactions that are not kept.
    pub(crate) dropped: u64,
    last_seen: Zxid,
    /// Zxids that cannot be read: the last one before, the first one behind.
    lost: Vec<(Zxid, Option<Zxid>)>,
    notes: Vec<String>,
}

/// Plans a copy of everything up to `through`, or of everything before the first damage.
///
/// # Errors
/// When no state can be made of what is there.
pub(crate) fn plan(dir: &Directory, through: Option<Zxid>, quiet: bool) -> anyhow::Result<Plan> {
    let bar = bytes_bar("read snapshot", dir.snapshot_bytes(), quiet);
    let base = dir.base(through, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let report = read_logs(dir, default_threads(), "read", quiet)?;
    let (from, settled) = match &base.replay {
        Some(replay) => (replay.tree.zxid(), replay.fuzzy_through),
        None if report.begins_at_the_beginning() => (Zxid::ZERO, Zxid::ZERO),
        None => {
            return Err(Failure::unreadable(
                "there is no snapshot to begin with, and the logs do not reach back to the first transaction: fetch the \
                 data from another member of the ensemble, or restore a backup",
            ));
        }
    };
    let end = through.unwrap_or(Span::ALL.through);
    let broken = report.first_break(from, end);
    if let (Some(through), Some((after, _))) = (through, broken) {
        return Err(Failure::unreadable(format!(
            "the log is damaged after {after}, so the state at {through} cannot be told"
        )));
    }
    let through = broken.map_or(end, |(after, _)| after);
    if through < settled {
        return Err(Failure::unreadable(format!(
            "the snapshot at {from} is only whole with the log up to {settled}, which is damaged after {through}"
        )));
    }
    let mut plan = Plan {
        base: base.replay.as_ref().and_then(|_| {
            let mut newest_first = dir.snapshots.iter().rev();
            newest_first.find(|(zxid, _)| *zxid == from).cloned()
        }),
        through,
        kept: 0,
        last_kept: from,
        dropped: 0,
        last_seen: from,
        lost: lost(&report, from),
        notes: base.failures.iter().map(ToString::to_string).collect(),
    };
    dir.for_each(from, Span::ALL.through, &mut |_, entry| {
        if entry.zxid <= through {
            plan.kept += 1;
            plan.last_kept = plan.last_kept.max(entry.zxid);
        } else {
            plan.dropped += 1;
        }
        plan.last_seen = plan.last_seen.max(entry.zxid);
        Ok::<_, anyhow::Error>(ControlFlow::Continue(()))
    })?;
    Ok(plan)
}

fn lost(report: &LogReport, from: Zxid) -> Vec<(Zxid, Option<Zxid>)> {
    let concerns =
        |(_, before): &&(Zxid, Option<Zxid>)| before.is_none_or(|before| before.0 > from.0 + 1);
    let mut lost: Vec<_> = report.breaks.iter().filter(concerns).copied().collect();
    let first = report.first_break(from, Span::ALL.through);
    if let Some(first) = first.filter(|first| !lost.contains(first)) {
        lost.insert(0, first);
    }
    lost
}

impl Plan {
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
        if self.dropped == 0 && self.lost.is_empty() {
            lines.push("lost: nothing".to_owned());
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
                "lost: {} whole transactions after {}, up to {}",
                self.dropped, self.last_kept, self.last_seen
            ));
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines
    }

    pub(crate) fn json(&self, target: &Path) -> Value {
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

/// Writes what `plan` says into `target`, a data directory that has no `version-2` yet.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn write(dir: &Directory, plan: &Plan, target: &Path) -> anyhow::Result<()> {
    let folder = begin(target)?;
    let from = match &plan.base {
        Some((zxid, path)) => {
            let copy = folder.join(path.file_name().unwrap_or_default());
            let failed = || format!("copy {} to {}", path.display(), copy.display());
            fs::copy(path, &copy).with_context(failed)?;
            File::open(&copy)?.sync_all().with_context(failed)?;
            *zxid
        }
        None => Zxid::ZERO,
    };
    let mut writer = LogWriter::new(&folder);
    let mut last = from;
    dir.for_each(from, plan.through, &mut |_, entry| {
        if entry.zxid > last {
            writer.append(entry.zxid, entry.bytes)?;
            last = entry.zxid;
        }
        Ok::<_, anyhow::Error>(ControlFlow::Continue(()))
    })?;
    writer.finish()?;
    let epochs = [
        (ACCEPTED_EPOCH, dir.epochs.accepted),
        (CURRENT_EPOCH, dir.epochs.current),
    ];
    for (name, epoch) in epochs {
        if let Some(epoch) = epoch.value() {
            write_epoch(&folder, name, epoch)?;
        }
    }
    publish(target)
}

/// Makes the folder to write into, beside the place of `version-2` in `target`.
///
/// # Errors
/// When `target` has one already, or it cannot be made.
pub(crate) fn begin(target: &Path) -> anyhow::Result<PathBuf> {
    check_free(target)?;
    let folder = target.join(UNFINISHED);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Refuses a target that has data.
///
/// # Errors
/// When it does, or cannot be looked at.
pub(crate) fn check_free(target: &Path) -> anyhow::Result<()> {
    for name in [apache::FOLDER, ringkeeper_storage::FOLDER] {
        let there = target.join(name);
        if there.exists() {
            return Err(Failure::refused(format!(
                "{} is there already; nothing was changed",
                there.display()
            )));
        }
    }
    Ok(())
}

/// Brings what was written to its place.
///
/// # Errors
/// When it cannot be flushed or renamed.
pub(crate) fn publish(target: &Path) -> anyhow::Result<()> {
    let (from, to) = (target.join(UNFINISHED), target.join(apache::FOLDER));
    File::open(&from)?
        .sync_all()
        .with_context(|| format!("flush {}", from.display()))?;
    fs::rename(&from, &to).with_context(|| format!("rename {}", from.display()))?;
    File::open(target)?
        .sync_all()
        .with_context(|| format!("flush {}", target.display()))?;
    Ok(())
}
