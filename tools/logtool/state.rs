//! The tree at a zxid: a snapshot, and the log after it.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context as _;
use indicatif::ProgressBar;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{TxnDigest, Zxid};
use ringkeeper_storage::{BatchKind, SnapshotReader};
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder};
use ringkeeper_tree::{Events, Tree};

use crate::apache_state;
use crate::exit::Failure;
use crate::input::{Input, Source};
use crate::live;
use crate::own_dir::OwnDir;
use crate::own_log::{self, OwnLog};
use crate::own_records::{self, Damaged};
use crate::progress::bytes_bar;
use crate::record::{RecordAt, Span};
use crate::segment_scan::Depth;

/// A tree, and how it came about.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) tree: Tree,
    /// The snapshot that it starts from.
    pub(crate) base: Option<Zxid>,
    /// Transactions applied to it.
    pub(crate) replayed: u64,
    /// Transactions after which the digest is not the one that was logged.
    pub(crate) mismatches: u64,
    /// The first of them.
    pub(crate) first_mismatch: Option<Zxid>,
}

impl State {
    pub(crate) fn new(tree: Tree, base: Option<Zxid>) -> Self {
        Self {
            tree,
            base,
            replayed: 0,
            mismatches: 0,
            first_mismatch: None,
        }
    }

    /// Applies a record, and compares the digest with the logged one.
    ///
    /// # Errors
    /// When the record is not a transaction.
    pub(crate) fn apply(&mut self, record: &RecordAt<'_>) -> anyhow::Result<()> {
        if record.is_void || record.zxid <= self.tree.zxid() {
            return Ok(());
        }
        let (header, txn, digest) = decode_record(record.bytes).with_context(|| {
            let file = record.file.display();
            format!(
                "{file} at offset {}: record {} cannot be decoded",
                record.offset, record.zxid
            )
        })?;
        let mut events = Events::new();
        // A transaction that failed when it was first applied fails again: that is its outcome.
        let _applied = self.tree.apply(&header, &txn, &mut events);
        self.replayed += 1;
        if let Some(TxnDigest {
            version: TxnDigest::VERSION,
            tree_digest,
        }) = digest
        {
            if tree_digest == self.tree.digest_to_wire() {
                self.tree.set_fuzzy(false);
            } else if !self.tree.is_fuzzy() {
                self.mismatches += 1;
                self.first_mismatch.get_or_insert(record.zxid);
            }
        }
        Ok(())
    }
}

/// Loads a snapshot file and checks all of it: checksums, digest, counts.
///
/// # Errors
/// When it cannot be read or is not a tree.
pub(crate) fn load_snapshot(path: &Path) -> anyhow::Result<Tree> {
    match load_file(path) {
        // What was read of a purged snapshot may be of the one that is written over it.
        Err(error) if !path.exists() => {
            let text = format!(
                "{} has changed while it was read: it was purged ({error:#})",
                path.display()
            );
            Err(Failure::Changed(text).into())
        }
        loaded => loaded,
    }
}

fn load_file(path: &Path) -> anyhow::Result<Tree> {
    let reader = SnapshotReader::open_file(path)?;
    let mut builder = SnapshotBuilder::new();
    let mut bytes = Vec::new();
    for chunk in reader.chunks() {
        reader.read_chunk(chunk, &mut bytes)?;
        let damaged = || format!("{}: a chunk is whole and is not of a tree", path.display());
        builder
            .push(Chunk::decode(&bytes).with_context(damaged)?)
            .with_context(damaged)?;
    }
    let tree = builder
        .finish()
        .with_context(|| format!("{} is not a whole tree", path.display()))?;
    anyhow::ensure!(
        tree.zxid() == reader.info().zxid && tree.digest() == reader.info().digest,
        "{}: the tree in it is not the one that its trailer names",
        path.display()
    );
    Ok(tree)
}

/// The zxid above which the log has every record, if it has any batch.
pub(crate) fn log_reaches_back_to(log: &OwnLog) -> Option<Zxid> {
    let (_, run) = log.runs().next()?;
    // All records before a reset are void.
    if let Some(resumes_after) = log.voids.iter().rev().find_map(|void| void.resumes_after) {
        return Some(resumes_after);
    }
    let first = &run.first;
    Some(match first.kind {
        BatchKind::Records => Zxid(first.first_zxid.0.saturating_sub(1)),
        BatchKind::Seal | BatchKind::Truncation | BatchKind::Reset => first.last_zxid,
    })
}

/// The state of what `input` names, at `through` or the newest.
///
/// # Errors
/// As [`of_dir`], and when it cannot be opened.
pub(crate) fn of_input(input: &Input, through: Option<Zxid>, quiet: bool) -> anyhow::Result<State> {
    let own = || match input.open()? {
        Source::Own(dir) => Ok(*dir),
        Source::Apache(_) => Err(Failure::unreadable("Apache ZooKeeper's state")),
    };
    if let Source::Apache(dir) = input.open()? {
        return apache_state::of_dir(&dir, through, quiet);
    }
    let work = |dir: &OwnDir| {
        let bar = bytes_bar("read", dir.log_bytes(), quiet);
        let state = of_dir(dir, through, &bar);
        bar.finish_and_clear();
        state
    };
    let (_, state) = live::settled(own, work, |_| false)?;
    Ok(state)
}

/// The state of `dir` at `through`, or its newest.
///
/// # Errors
/// When no snapshot can be read and the log does not reach back to the beginning, or when the log between them is
/// damaged.
pub(crate) fn of_dir(
    dir: &OwnDir,
    through: Option<Zxid>,
    bar: &ProgressBar,
) -> anyhow::Result<State> {
    let log = dir.read_log(Depth::Headers, own_log::default_threads(), bar)?;
    let mut state = base(dir, &log, through)?;
    let span = Span {
        after: state.tree.zxid(),
        through: through.unwrap_or(Span::ALL.through),
    };
    let is_in_the_way = |(after, before): &&(Zxid, Option<Zxid>)| {
        before.is_none_or(|before| before.0 > span.after.0 + 1) && *after < span.through
    };
    if let Some((after, _)) = log.breaks.iter().find(is_in_the_way) {
        return Err(Failure::unreadable(format!(
            "the log is damaged after {after}: the state is known up to there only (`ringkeeper-log verify` \
             shows the damage; naming a zxid up to {after} shows the state before it)"
        )));
    }
    own_records::for_each(&log, span, Damaged::Refuse, &mut |record| {
        state.apply(record)?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(state)
}

/// The newest snapshot at or below `through` that can be read and from which the log goes on.
fn base(dir: &OwnDir, log: &OwnLog, through: Option<Zxid>) -> anyhow::Result<State> {
    let reaches = log_reaches_back_to(log);
    let mut failures = Vec::new();
    let fitting = dir
        .usable_snapshots()
        .rev()
        .filter(|file| through.is_none_or(|through| file.zxid <= through));
    for file in fitting {
        match load_snapshot(&file.path) {
            Ok(tree) if reaches.is_none_or(|reaches| reaches <= tree.zxid()) => {
                let zxid = tree.zxid();
                return Ok(State::new(tree, Some(zxid)));
            }
            Ok(tree) => failures.push(format!(
                "the log does not reach back to the snapshot at {}",
                tree.zxid()
            )),
            Err(error) if live::is_gone(&error) => return Err(error),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if log.begins_empty && reaches == Some(Zxid::ZERO) || is_new(dir, log) {
        return Ok(State::new(Tree::new(), None));
    }
    if failures.is_empty() {
        failures.push(
            "there is no snapshot at or below it, and the log does not reach back to the beginning"
                .into(),
        );
    }
    Err(Failure::unreadable(format!(
        "the state at {} cannot be told: {}",
        through.map_or_else(|| "the end".to_owned(), |zxid| zxid.to_string()),
        failures.join("; ")
    )))
}

/// Whether nothing was ever written.
fn is_new(dir: &OwnDir, log: &OwnLog) -> bool {
    let never = dir.info().is_some_and(|info| info.sequence_before == 0);
    never && log.runs().next().is_none() && dir.snapshots.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_snapshot_is_told_from_one_that_was_purged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot-0000000000000009");
        std::fs::write(&path, [0; 500]).unwrap();
        let damaged = load_snapshot(&path).unwrap_err();
        assert!(!live::is_gone(&damaged), "{damaged:#}");
        std::fs::remove_file(&path).unwrap();
        let purged = load_snapshot(&path).unwrap_err();
        assert!(live::is_gone(&purged), "{purged:#}");
    }
}
