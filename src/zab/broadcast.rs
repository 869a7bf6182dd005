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
    /// Waiting syncs, each with the zxid that must be committed first, in order.
    syncs: VecDeque<(Zxid, SyncOrigin)>,
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

    /// A sync waits for what is proposed now.
    pub(crate) fn sync(&mut self, origin: SyncOrigin) {
        self.syncs.push_back((self.last(), origin));
    }

    /// Takes out the next sync of a learner whose wait is over at `committed`, or of a client of this
    /// server whose wait is over at `delivered`.
    pub(crate) fn sync_done(&mut self, delivered: Zxid) -> Option<SyncOrigin> {
        let done = |(after, origin): &(Zxid, SyncOrigin)| match origin {
            SyncOrigin::Own(_) => *after <= delivered,
            SyncOrigin::Learner(_) => *after <= self.committed,
        };
        let at = self.syncs.iter().position(done)?;
        self.syncs.remove(at).map(|(_, origin)| origin)
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
}
