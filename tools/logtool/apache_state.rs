//! The tree that Apache ZooKeeper's files make.

use std::ops::ControlFlow;

use ringkeeper_proto::Zxid;
use ringkeeper_tree::Tree;

use crate::apache_dir::{ApacheDir, ApacheLog};
use crate::exit::Failure;
use crate::finding::has_damage;
use crate::record::Span;
use crate::state::State;

/// Whether the logs hold everything from the first transaction on.
pub(crate) fn begins_at_the_beginning(dir: &ApacheDir, log: &ApacheLog) -> bool {
    let is_first = log
        .files
        .first()
        .and_then(|file| file.zxids)
        .is_some_and(|(low, _)| low.counter() == 1);
    // ZK: a new server takes a snapshot of the empty tree.
    let later = dir
        .snapshots
        .iter()
        .all(|(zxid, _)| *zxid == Zxid::ZERO || *zxid >= first_zxid(log));
    let is_oldest = log
        .files
        .first()
        .and_then(|file| file.zxids)
        .is_some_and(|(low, _)| low.epoch().0 <= 1);
    is_first && later && is_oldest
}

fn first_zxid(log: &ApacheLog) -> Zxid {
    log.zxids().map_or(Zxid::ZERO, |(low, _)| low)
}

/// The state of `dir` at `through`, or its newest.
///
/// # Errors
/// When the logs do not reach back to the beginning, or are damaged.
pub(crate) fn of_dir(dir: &ApacheDir, through: Option<Zxid>) -> anyhow::Result<State> {
    let bar = indicatif::ProgressBar::hidden();
    let log = dir.read_log(crate::own_log::default_threads(), &bar)?;
    if !begins_at_the_beginning(dir, &log) {
        return Err(Failure::unreadable(
            "the logs do not reach back to the first transaction, so the state cannot be told from them alone",
        ));
    }
    let span = Span {
        after: Zxid::ZERO,
        through: through.unwrap_or(Span::ALL.through),
    };
    if let Some((after, _)) = log.breaks.iter().find(|(after, _)| *after < span.through) {
        return Err(Failure::unreadable(format!(
            "the log is damaged after {after}: the state is known up to there only"
        )));
    }
    let mut state = State::new(Tree::new(), None);
    let findings = dir.for_each(span, &mut |record| {
        state.apply(record)?;
        Ok(ControlFlow::Continue(()))
    })?;
    debug_assert!(
        !has_damage(&findings) || !log.breaks.is_empty(),
        "the same files, read twice"
    );
    Ok(state)
}
