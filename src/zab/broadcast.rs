//! The leader's proposals between being proposed and being committed.
//!
//! Invariants:
//! - `committed < first outstanding <= last outstanding == last proposed`; without outstanding ones
//!   `committed == last proposed`;
//! - proposals are committed in the order in which they were proposed.

use std::collections::VecDeque;

use ringkeeper_proto::Zxid;

use crate::message::Proposal;

#[derive(Debug)]
pub(crate) struct Outstanding<P> {
    proposals: VecDeque<Proposal<P>>,
    committed: Zxid,
}

impl<P: Clone> Outstanding<P> {
    /// None outstanding after a history that ends at `committed`.
    pub(crate) const fn after(committed: Zxid) -> Self {
        Self {
            proposals: VecDeque::new(),
            committed,
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

    /// Takes out the next proposal if it is at or below `through`, which a quorum has logged.
    pub(crate) fn commit_next(&mut self, through: Zxid) -> Option<Proposal<P>> {
        if self.proposals.front()?.zxid > through {
            return None;
        }
        let proposal = self.proposals.pop_front()?;
        self.committed = proposal.zxid;
        Some(proposal)
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
