//! Discovery, the leader's side: how a candidate finds an epoch that nobody has used, and makes sure
//! that no quorum has a newer history than it.
//!
//! ```text
//!   Gathering  -- a quorum said which epochs it accepted -->  the new epoch is larger than all of them
//!              -- saved -->  Promised  -- a quorum has accepted it, none of it newer -->  synchronization
//! ```
//!
//! Invariant: two leaders of one epoch cannot both leave discovery, since a server promises an epoch at
//! most once, and only what moves its accepted epoch counts as a promise.

use std::collections::BTreeSet;

use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::quorum::Ensemble;

/// Gathers the accepted epochs of a quorum (ZK: `Leader.getEpochToPropose`).
#[derive(Debug)]
pub(crate) struct Gathering {
    heard: BTreeSet<ServerId>,
    highest: Epoch,
}

impl Gathering {
    pub(crate) fn begin(me: ServerId, accepted: Epoch) -> Self {
        Self {
            heard: BTreeSet::from([me]),
            highest: accepted,
        }
    }

    /// Notes a voter's accepted epoch.
    pub(crate) fn hear(&mut self, from: ServerId, accepted: Epoch) {
        self.heard.insert(from);
        self.highest = self.highest.max(accepted);
    }

    /// The new epoch, once a quorum was heard.
    pub(crate) fn epoch(&self, ensemble: &Ensemble) -> Option<Epoch> {
        ensemble
            .is_quorum(|id| self.heard.contains(&id))
            .then(|| Epoch(self.highest.0.saturating_add(1)))
    }
}

/// How new a history is: ordered as in ZooKeeper's `StateSummary.isMoreRecentThan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Summary {
    pub(crate) current_epoch: Epoch,
    pub(crate) last_logged: Zxid,
}

/// Gathers the promises of a quorum to follow no older epoch (ZK: `Leader.waitForEpochAck`).
#[derive(Debug)]
pub(crate) struct Promises {
    from: BTreeSet<ServerId>,
    refused: BTreeSet<ServerId>,
    ours: Summary,
}

impl Promises {
    /// The leader has promised by saving the epoch.
    pub(crate) fn begin(me: ServerId, ours: Summary) -> Self {
        Self {
            from: BTreeSet::from([me]),
            refused: BTreeSet::new(),
            ours,
        }
    }

    /// Notes a voter's promise; false if its history is newer than the leader's, which then must not
    /// lead.
    #[must_use]
    pub(crate) fn promise(&mut self, from: ServerId, theirs: Summary) -> bool {
        self.from.insert(from);
        theirs <= self.ours
    }

    /// Notes a voter that has promised the epoch before, or may not promise. False if too few are left
    /// for a quorum, so that there is nothing to wait for.
    #[must_use]
    pub(crate) fn refuse(&mut self, from: ServerId, ensemble: &Ensemble) -> bool {
        self.refused.insert(from);
        ensemble.is_quorum(|id| self.from.contains(&id) || !self.refused.contains(&id))
    }

    pub(crate) fn are_enough(&self, ensemble: &Ensemble) -> bool {
        ensemble.is_quorum(|id| self.from.contains(&id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_epoch_is_larger_than_all_heard_of() {
        let ensemble = Ensemble::majority([1, 2, 3].map(ServerId), []).unwrap();
        let mut gathering = Gathering::begin(ServerId(1), Epoch(4));
        assert_eq!(gathering.epoch(&ensemble), None);
        gathering.hear(ServerId(2), Epoch(9));
        assert_eq!(gathering.epoch(&ensemble), Some(Epoch(10)));
    }

    #[test]
    fn a_newer_history_is_recognised() {
        let summary = |epoch, counter| Summary {
            current_epoch: Epoch(epoch),
            last_logged: Zxid::new(Epoch(2), counter),
        };
        let mut promises = Promises::begin(ServerId(1), summary(3, 5));
        assert!(promises.promise(ServerId(2), summary(2, 9)));
        assert!(promises.promise(ServerId(2), summary(3, 5)));
        assert!(!promises.promise(ServerId(2), summary(3, 6)));
        assert!(!promises.promise(ServerId(2), summary(4, 0)));
    }
}
