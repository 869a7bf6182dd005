//! The leader's proposals between being proposed and being committed, and the syncs that wait for them.
//!
//! Invariants:
//! - `committed < first outstanding <= last outstanding == last proposed`; without outstanding ones
//!   `committed == last proposed`;
//! - proposals are committed in the order in which they were proposed.

use std::collections::VecDeque;

use ringkeeper_proto::Zxid;

use crate::contract::SyncOrigin;
use crate::message::Proposal;

#[derive(Debug)]
pub(crate) struct Outstanding<P> {
    proposals: VecDeque<Proposal<P>>,
    committed: Zxid,
    /// Waiting syncs, in order.
    syncs: VecDeque<Waiting>,
}

/// A sync that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// What must be committed first.
    after: Zxid,
    /// The round of PINGs in which a quorum must have said that it still follows.
    round: u64,
    origin: SyncOrigin,
}

impl<P: Clone> Outstanding<P> {
    /// None outstanding after a history that ends at `committed`.
    pub(crate) const fn after(committed: Zxid) -> Self {
        Self {
            proposals: VecDeque::new(),
            committed,
            syncs: VecDeque::new(),
        }
    }

    pub(crate) fn propose(&mut self, proposal: Proposal<P>) {
        assert!(
            proposal.zxid > self.last(),
            "{:?} proposed after {:?}",
            proposal.zxid,
            self.last()
        );
        self.proposals.push_back(proposal);
    }

    /// The next one to be committed.
    pub(crate) fn first(&self) -> Option<Zxid> {
        Some(self.proposals.front()?.zxid)
    }

    /// Takes out the next proposal if it is at or below `through`, which a quorum has logged.
    pub(crate) fn commit_next(&mut self, through: Zxid) -> Option<Proposal<P>> {
        if self.proposals.front()?.zxid > through {
            return None;
        }
        let proposal = self.proposals.pop_front()?;
        self.committed = proposal.zxid;
        Some(proposal)
    }

    /// A sync waits for what is proposed now, and for a round of PINGs.
    pub(crate) fn sync(&mut self, origin: SyncOrigin, round: u64) {
        let after = self.last();
        self.syncs.push_back(Waiting {
            after,
            round,
            origin,
        });
    }

    /// Takes out the next sync of a learner whose wait is over at `committed`, or of a client of this
    /// server whose wait is over at `delivered`, if its round is among those that are `confirmed`.
    pub(crate) fn sync_done(&mut self, delivered: Zxid, confirmed: u64) -> Option<SyncOrigin> {
        let done = |it: &Waiting| {
            let through = match it.origin {
                SyncOrigin::Own(_) => delivered,
                SyncOrigin::Learner(_) => self.committed,
            };
            it.after <= through && it.round <= confirmed
        };
        let at = self.syncs.iter().position(done)?;
        self.syncs.remove(at).map(|it| it.origin)
    }

    /// What was proposed before the first learner's sync whose round is not confirmed. That learner must hear of
    /// it before it hears that anything behind it is committed.
    pub(crate) fn held_at(&self, confirmed: u64) -> Option<Zxid> {
        let mut held = self.syncs.iter().filter(|it| it.round > confirmed);
        let first = held.find(|it| matches!(it.origin, SyncOrigin::Learner(_)))?;
        Some(first.after)
    }

    /// The last round that a sync waits for.
    pub(crate) fn round_wanted(&self) -> u64 {
        self.syncs.back().map_or(0, |it| it.round)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Proposal<P>> {
        self.proposals.iter()
    }

    /// The last one proposed.
    pub(crate) fn last(&self) -> Zxid {
        self.proposals
            .back()
            .map_or(self.committed, |proposal| proposal.zxid)
    }

    pub(crate) const fn committed(&self) -> Zxid {
        self.committed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.proposals.is_empty()
    }

    /// Whether no proposal and no sync waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.proposals.is_empty() && self.syncs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::Epoch;

    use super::*;
    use crate::message::LinkId;

    #[test]
    fn a_sync_waits_for_its_round_and_for_what_was_proposed_before_it() {
        let zxid = |counter| Zxid::new(Epoch(1), counter);
        let mut outstanding = Outstanding::after(zxid(1));
        outstanding.propose(Proposal {
            zxid: zxid(2),
            payload: (),
        });
        let (own, learner) = (SyncOrigin::Own(1), SyncOrigin::Learner(LinkId(7)));
        outstanding.sync(own, 3);
        outstanding.sync(learner, 4);
        assert_eq!(outstanding.round_wanted(), 4);
        assert_eq!(
            (outstanding.held_at(3), outstanding.held_at(4)),
            (Some(zxid(2)), None)
        );
        assert_eq!(outstanding.sync_done(zxid(1), 9), None, "not committed");
        assert!(outstanding.commit_next(zxid(2)).is_some());
        assert_eq!(
            outstanding.sync_done(zxid(1), 2),
            None,
            "nobody confirmed it"
        );
        assert_eq!(outstanding.sync_done(zxid(1), 4), Some(learner));
        assert_eq!(
            outstanding.sync_done(zxid(1), 4),
            None,
            "not delivered here"
        );
        assert_eq!(outstanding.sync_done(zxid(2), 3), Some(own));
    }
}
