//! The core's view of its own log: how far it reaches, and how much of it is durable.
//!
//! Invariants:
//! - `flushed <= history.last()`; `flushed` falls only by [`Log::truncate`] and [`Log::replace`].
//! - A report of another generation is not believed: it speaks of records that were cut off since, and
//!   zxids are used again after a truncation.

use ringkeeper_proto::{Epoch, Zxid};

use crate::history::History;

/// How often the log was truncated or replaced since the replica began. A flush that was requested
/// before a truncation reports with the number of then, and acknowledges nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogGeneration(pub u64);

#[derive(Debug)]
pub(crate) struct Log {
    history: History,
    /// `None` after a truncation, until a flush tells that it is durable.
    flushed: Option<Zxid>,
    generation: LogGeneration,
}

impl Log {
    /// What recovery found, which is durable.
    pub(crate) const fn recovered(history: History) -> Self {
        let flushed = Some(history.last());
        Self {
            history,
            flushed,
            generation: LogGeneration(0),
        }
    }

    pub(crate) fn append(&mut self, zxid: Zxid) {
        self.history.append(zxid);
    }

    pub(crate) fn begin_epoch(&mut self, epoch: Epoch) {
        self.history.begin_epoch(epoch);
    }

    /// Takes the report of a flush; false if it is an old generation's.
    pub(crate) fn flushed_through(&mut self, through: Zxid, generation: LogGeneration) -> bool {
        assert!(
            generation <= self.generation,
            "a flush of {generation:?}, which has not begun"
        );
        if generation != self.generation {
            return false;
        }
        assert!(
            through <= self.last(),
            "a flush through {through:?}, but the log ends at {:?}",
            self.last()
        );
        self.flushed = self.flushed.max(Some(through));
        true
    }

    /// Cuts the log; what is durable of the rest stays so once the cut is, which the next flush tells.
    pub(crate) fn truncate(&mut self, to: Zxid) -> LogGeneration {
        self.history.truncate(to);
        self.flushed = None;
        self.next_generation()
    }

    /// Begins a new log after a snapshot that is durable.
    pub(crate) fn replace(&mut self, base: Zxid) {
        self.history = History::starting_at(base);
        self.flushed = Some(base);
    }

    pub(crate) fn purge(&mut self, through: Zxid) {
        self.history.purge(through);
    }

    pub(crate) const fn next_generation(&mut self) -> LogGeneration {
        self.generation = LogGeneration(self.generation.0 + 1);
        self.generation
    }

    pub(crate) const fn history(&self) -> &History {
        &self.history
    }

    pub(crate) const fn last(&self) -> Zxid {
        self.history.last()
    }

    /// The last durable record; zero while that is not known.
    pub(crate) fn flushed(&self) -> Zxid {
        self.flushed.unwrap_or(Zxid::ZERO)
    }

    /// Whether all of the log through `zxid` is durable, a truncation before it included.
    pub(crate) fn is_durable_through(&self, zxid: Zxid) -> bool {
        self.flushed.is_some_and(|flushed| flushed >= zxid)
    }

    pub(crate) const fn generation(&self) -> LogGeneration {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_from_before_a_truncation_is_not_believed() {
        let zxid = |counter| Zxid::new(Epoch(1), counter);
        let mut log = Log::recovered(History::starting_at(Zxid::ZERO));
        log.append(zxid(1));
        log.append(zxid(2));
        let before = log.generation();
        let now = log.truncate(zxid(1));
        log.append(zxid(2));
        assert!(!log.flushed_through(zxid(2), before));
        assert!(!log.is_durable_through(Zxid::ZERO));
        assert!(log.flushed_through(zxid(2), now));
        assert_eq!(log.flushed(), zxid(2));
    }
}
