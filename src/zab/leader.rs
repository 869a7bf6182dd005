//! The leading side.

use ringkeeper_proto::Zxid;

use crate::broadcast::Outstanding;
use crate::contract::{Output, Role, SyncOrigin};
use crate::core_state::CoreState;
use crate::message::Proposal;

/// A leader whose history a quorum has.
#[derive(Debug)]
pub(crate) struct Leader<P> {
    outstanding: Outstanding<P>,
    /// Waiting syncs with the zxid that each waits for, in order.
    syncs: Vec<(Zxid, u64)>,
}

impl<P: Clone> Leader<P> {
    /// A server that needs nobody: its log is what a quorum has.
    pub(crate) fn alone(core: &mut CoreState, outputs: &mut Vec<Output<P>>) -> Self {
        let last = core.log.last();
        core.committed = last;
        core.deliver(outputs);
        outputs.push(Output::ChangeRole {
            role: Role::Leading {
                epoch: core.epochs.current,
            },
        });
        Self {
            outstanding: Outstanding::after(last),
            syncs: Vec::new(),
        }
    }

    pub(crate) fn next_zxid(&self, core: &CoreState) -> Option<Zxid> {
        let last = core.log.last();
        // The first counter of an epoch is 1: counter 0 names the epoch's start.
        Some(last.next().unwrap_or_else(|| {
            Zxid::new(ringkeeper_proto::Epoch(last.epoch().0.saturating_add(1)), 1)
        }))
    }

    pub(crate) fn propose(
        &mut self,
        core: &mut CoreState,
        proposal: Proposal<P>,
        outputs: &mut Vec<Output<P>>,
    ) {
        assert_eq!(
            Some(proposal.zxid),
            self.next_zxid(core),
            "zxids are assigned by next_zxid"
        );
        core.log.append(proposal.zxid);
        self.outstanding.propose(proposal);
        request_flush(outputs);
    }

    /// The leader's own log is durable through `core.log.flushed()`.
    pub(crate) fn flushed(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        self.commit(core, outputs);
    }

    /// Confirms what was proposed before now, once it is committed.
    pub(crate) fn sync(
        &mut self,
        core: &CoreState,
        origin: SyncOrigin,
        outputs: &mut Vec<Output<P>>,
    ) {
        let SyncOrigin::Own(tag) = origin else { return };
        self.syncs.push((self.outstanding.last(), tag));
        self.release_syncs(core, outputs);
    }

    fn commit(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let (me, flushed) = (core.id(), core.log.flushed());
        let reached = core
            .config
            .ensemble
            .reached_by_quorum(|id| (id == me).then_some(flushed));
        let Some(through) = reached else { return };
        while self.outstanding.commit_next(through).is_some() {}
        core.committed = core.committed.max(self.outstanding.committed());
        core.deliver(outputs);
        self.release_syncs(core, outputs);
    }

    fn release_syncs(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let done = self
            .syncs
            .partition_point(|(after, _)| *after <= core.delivered);
        let released = self.syncs.drain(..done);
        outputs.extend(released.map(|(_, tag)| Output::Synced { tag }));
    }
}

/// Asks for a flush, once for a run of appends.
pub(crate) fn request_flush<P>(outputs: &mut Vec<Output<P>>) {
    if !matches!(outputs.last(), Some(Output::Flush)) {
        outputs.push(Output::Flush);
    }
}
