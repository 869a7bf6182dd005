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
///
/// Among those that promise may be some whose log ends in a torn write, and which may have acknowledged more than
/// it shows. What such a member may have lost, and the leader lacks, can only have been committed by a quorum of that
/// member and of voters that have not spoken: every other one that has would show it, as long as no more than one
/// disk breaks its word at a time. So the promises are enough when there is no such quorum. Where the leader's
/// history reaches as far as the doubt there is nothing to lose. A voter that cannot show its log, blank or damaged,
/// has spoken: then the one broken disk is its own, or it never acknowledged anything.
#[derive(Debug)]
pub(crate) struct Promises {
    from: BTreeSet<ServerId>,
    refused: BTreeSet<ServerId>,
    /// Those that have no log to show.
    mute: BTreeSet<ServerId>,
    /// Of those that promised: who may have acknowledged what the leader lacks.
    doubtful: BTreeSet<ServerId>,
    ours: Summary,
    /// There is a quorum of promises, and only the doubts are waited for.
    in_doubt: bool,
}

impl Promises {
    /// The leader has promised by saving the epoch. `doubt` is how new its own history may have been.
    pub(crate) fn begin(me: ServerId, ours: Summary, doubt: Option<Summary>) -> Self {
        let mut promises = Self {
            from: BTreeSet::new(),
            refused: BTreeSet::new(),
            mute: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            ours,
            in_doubt: false,
        };
        promises.note(me, doubt);
        promises
    }

    fn note(&mut self, from: ServerId, doubt: Option<Summary>) {
        self.from.insert(from);
        match doubt {
            Some(doubt) if doubt > self.ours => self.doubtful.insert(from),
            _ => self.doubtful.remove(&from),
        };
    }

    /// Notes a voter's promise, and how new its history may have been; false if what it has is newer than the
    /// leader's, which then must not lead.
    #[must_use]
    pub(crate) fn promise(
        &mut self,
        from: ServerId,
        theirs: Summary,
        doubt: Option<Summary>,
    ) -> bool {
        self.note(from, doubt);
        theirs <= self.ours
    }

    /// Notes a voter that has promised the epoch before, or may not promise. False if too few are left
    /// for a quorum, so that there is nothing to wait for.
    #[must_use]
    pub(crate) fn refuse(&mut self, from: ServerId, ensemble: &Ensemble) -> bool {
        self.refused.insert(from);
        ensemble.is_quorum(|id| self.from.contains(&id) || !self.refused.contains(&id))
    }

    /// Notes a voter that has no log to show.
    pub(crate) fn hear_mute(&mut self, from: ServerId) {
        self.mute.insert(from);
    }

    pub(crate) fn are_enough(&mut self, ensemble: &Ensemble) -> bool {
        let is_quorum = ensemble.is_quorum(|id| self.from.contains(&id));
        self.in_doubt = is_quorum && self.may_lose(ensemble);
        is_quorum && !self.in_doubt
    }

    pub(crate) const fn are_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Whether something may be committed that only doubtful members and such as have not spoken ever had.
    fn may_lose(&self, ensemble: &Ensemble) -> bool {
        let silent = |id| !self.from.contains(&id) && !self.mute.contains(&id);
        // Nobody is left who could say more.
        let is_silent = ensemble.voters().iter().any(|id| silent(*id));
        is_silent
            && self
                .doubtful
                .iter()
                .any(|doubtful| ensemble.may_have_decided(|id| id == *doubtful || silent(id)))
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
        let mut promises = Promises::begin(ServerId(1), summary(3, 5), None);
        assert!(promises.promise(ServerId(2), summary(2, 9), None));
        assert!(promises.promise(ServerId(2), summary(3, 5), None));
        assert!(!promises.promise(ServerId(2), summary(3, 6), None));
        assert!(!promises.promise(ServerId(2), summary(4, 0), None));
    }

    /// For all sets of voters, of doubtful ones among them, and of those that promise: nothing is given up that one
    /// disk may have lost and a voter that has not spoken may have, and no leader waits without that reason.
    #[test]
    fn what_one_torn_log_may_have_lost_is_waited_for() {
        let summary = |counter| Summary {
            current_epoch: Epoch(2),
            last_logged: Zxid::new(Epoch(2), counter),
        };
        let (ours, lost) = (summary(7), summary(9));
        for voters in 1_u64..=5 {
            let ensemble = Ensemble::majority((1..=voters).map(ServerId), []).unwrap();
            let quorums: Vec<u32> = (0..1_u32 << voters)
                .filter(|set| u64::from(set.count_ones()) > voters / 2)
                .collect();
            // Server 1 leads.
            for promised in (1..1_u32 << voters).filter(|set| set & 1 == 1) {
                for doubtful in (0..1_u32 << voters).filter(|set| set & !promised == 0) {
                    let has = |set: u32, id: u64| set & (1 << (id - 1)) != 0;
                    let doubt = |id| has(doubtful, id).then_some(lost);
                    let mut promises = Promises::begin(ServerId(1), ours, doubt(1));
                    for id in (2..=voters).filter(|id| has(promised, *id)) {
                        assert!(promises.promise(ServerId(id), ours, doubt(id)));
                    }
                    // A quorum acknowledged it: one that lost it, and voters that have not spoken.
                    let loses = quorums.iter().any(|quorum| {
                        let spoke = quorum & promised;
                        let is_silent = quorum & !promised != 0;
                        spoke & !doubtful == 0 && spoke.count_ones() == 1 && is_silent
                    });
                    let expected = quorums.contains(&promised) && !loses;
                    assert_eq!(
                        promises.are_enough(&ensemble),
                        expected,
                        "{voters} voters, {promised:b} promised, {doubtful:b} doubtful"
                    );
                }
            }
        }
    }

    #[test]
    fn a_voter_without_a_log_is_not_waited_for() {
        let ensemble = Ensemble::majority([1, 2, 3].map(ServerId), []).unwrap();
        let summary = |counter| Summary {
            current_epoch: Epoch(2),
            last_logged: Zxid::new(Epoch(2), counter),
        };
        let mut promises = Promises::begin(ServerId(1), summary(3), None);
        assert!(promises.promise(ServerId(2), summary(3), Some(summary(4))));
        // It has promised this epoch before: what it has it does not say.
        assert!(promises.refuse(ServerId(3), &ensemble));
        assert!(!promises.are_enough(&ensemble));
        promises.hear_mute(ServerId(3));
        assert!(promises.are_enough(&ensemble));
    }

    #[test]
    fn a_history_that_reaches_the_doubt_is_enough() {
        let ensemble = Ensemble::majority([1, 2, 3].map(ServerId), []).unwrap();
        let summary = |epoch, counter| Summary {
            current_epoch: Epoch(epoch),
            last_logged: Zxid::new(Epoch(2), counter),
        };
        let enough = |ours, doubt| {
            let mut promises = Promises::begin(ServerId(1), ours, None);
            assert!(promises.promise(ServerId(2), summary(2, 3), Some(doubt)));
            promises.are_enough(&ensemble)
        };
        assert!(!enough(summary(2, 6), summary(2, 7)));
        assert!(enough(summary(2, 7), summary(2, 7)));
        // What is newer was not committed in the older epoch, or the leader of the later one would have had it.
        assert!(enough(summary(3, 3), summary(2, 7)));
    }
}
