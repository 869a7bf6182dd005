//! Synchronization: how a learner's history becomes the leader's, and when it may say so.
//!
//! [`plan`] decides what a learner needs, from the shape of the leader's log and the end of the
//! learner's alone.
//!
//! Then both sides, leader and learner, take over the epoch in one order:
//!
//! ```text
//!   HistoryFlush -- history durable -->  EpochSave  -- epoch durable -->  EpochTaken  -->  ACK NEWLEADER
//! ```
//!
//! Each step is a type that only the step before can make, and only `EpochTaken` makes the
//! acknowledgement: another order cannot be written down. (A server whose epoch is durable before its
//! history is, wins elections with a stale log, and committed transactions are cut off:
//! ZOOKEEPER-3911, 4643, 4646, 4685, 4785.)

use ringkeeper_proto::{Epoch, Zxid};

use crate::contract::{Epochs, Output};
use crate::core_state::{CoreState, request_flush};
use crate::history::History;
use crate::message::Message;

/// What a learner needs before the leader's proposals can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPlan {
    /// It has a prefix of the leader's history: send what follows.
    Diff,
    /// It has a prefix of it, and something else after: cut that off, then send what follows.
    Truncate {
        /// The end of the common prefix.
        to: Zxid,
    },
    /// Nothing is known in common that the leader's log reaches back to.
    Snapshot,
}

/// Decides how to bring a learner to the leader's history through `through`, which is the end of the
/// leader's log while it is being established, and what is committed afterwards. (What is above is
/// sent as ordinary proposals; a learner that has some of it gets it again, since Apache's learners
/// do not take a COMMIT for a proposal of an earlier connection.)
///
/// `learner` is where the learner's log ends; `None` asks for a snapshot.
///
/// Why the end of the learner's log is enough: histories agree up to the last zxid that both contain,
/// because an epoch has one leader, whose proposals follow its own history in order; and when an
/// epoch's leader proposed at all, a quorum had taken over its history before, so every later leader
/// has that as a prefix.
pub fn plan(history: &History, through: Zxid, learner: Option<Zxid>) -> SyncPlan {
    let Some(last) = learner else {
        return SyncPlan::Snapshot;
    };
    if history.contains(last) {
        return match last <= through {
            true => SyncPlan::Diff,
            false => SyncPlan::Truncate { to: through },
        };
    }
    if last.counter() == 0 {
        // An Apache learner's snapshot, taken over from a leader whose history is not known here. It
        // may contain what no quorum has, and its log has nothing to cut.
        return SyncPlan::Snapshot;
    }
    match history.floor(last).map(|floor| floor.min(through)) {
        // ZK: a TRUNC does not cross epochs, except to the end of the leader's history.
        Some(to) if to.epoch() == last.epoch() || to == history.last().min(through) => {
            SyncPlan::Truncate { to }
        }
        _ => SyncPlan::Snapshot,
    }
}

/// The epoch of a leader is being taken over by this server.
#[derive(Debug)]
pub(crate) enum Takeover {
    HistoryFlush(HistoryFlush),
    EpochSave(EpochSave),
}

impl Takeover {
    /// Begins with the flush of the history, which ends where the log ends now.
    pub(crate) fn begin<P>(core: &CoreState, epoch: Epoch, outputs: &mut Vec<Output<P>>) -> Self {
        request_flush(outputs);
        Self::HistoryFlush(HistoryFlush {
            epoch,
            through: core.log.last(),
        })
    }

    /// More of the log is durable.
    pub(crate) fn flushed<P>(self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) -> Self {
        match self {
            Self::HistoryFlush(flush) => flush.flushed(core, outputs),
            Self::EpochSave(_) => self,
        }
    }

    /// Epochs are durable.
    pub(crate) fn saved(self, epochs: Epochs) -> Result<EpochTaken, Self> {
        match self {
            Self::EpochSave(save) if epochs.current >= save.epoch => Ok(EpochTaken(save)),
            other => Err(other),
        }
    }
}

/// The leader's history is in the log, but not known to be durable.
#[derive(Debug)]
pub(crate) struct HistoryFlush {
    epoch: Epoch,
    through: Zxid,
}

impl HistoryFlush {
    fn flushed<P>(self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) -> Takeover {
        if !core.log.is_durable_through(self.through) {
            return Takeover::HistoryFlush(self);
        }
        core.enter_epoch(self.epoch, outputs);
        Takeover::EpochSave(EpochSave { epoch: self.epoch })
    }
}

/// The history is durable; the epoch is not yet.
#[derive(Debug)]
pub(crate) struct EpochSave {
    epoch: Epoch,
}

/// History and epoch are durable: the only proof with which NEWLEADER can be acknowledged.
#[derive(Debug)]
pub(crate) struct EpochTaken(EpochSave);

impl EpochTaken {
    /// The learner's acknowledgement.
    pub(crate) const fn ack<P>(&self) -> Message<P> {
        Message::Ack {
            zxid: Zxid::new(self.0.epoch, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zxid(epoch: u32, counter: u32) -> Zxid {
        Zxid::new(Epoch(epoch), counter)
    }

    fn check(through: (u32, u32), learner: (u32, u32), expect: SyncPlan) {
        // The log has 1:3..=1:5 after a snapshot at 1:2, then 3:1 and 3:2.
        let mut ours = History::starting_at(zxid(1, 2));
        for (epoch, counter) in [(1, 3), (1, 4), (1, 5), (3, 1), (3, 2)] {
            ours.append(zxid(epoch, counter));
        }
        let learner = Some(zxid(learner.0, learner.1));
        let through = zxid(through.0, through.1);
        assert_eq!(plan(&ours, through, learner), expect, "{learner:?}");
    }

    #[test]
    fn each_case_has_its_plan() {
        let end = (3, 2);
        let truncate = |epoch, counter| SyncPlan::Truncate {
            to: zxid(epoch, counter),
        };
        check(end, (3, 2), SyncPlan::Diff);
        check(end, (1, 2), SyncPlan::Diff);
        check(end, (1, 4), SyncPlan::Diff);
        check(end, (3, 0), SyncPlan::Diff);
        // Below what the log reaches back to.
        check(end, (1, 1), SyncPlan::Snapshot);
        check(end, (0, 0), SyncPlan::Snapshot);
        // It has what nobody else has: of a later epoch, of the same, of one in between.
        check(end, (4, 7), truncate(3, 2));
        check(end, (3, 9), truncate(3, 2));
        check(end, (1, 9), truncate(1, 5));
        check(end, (2, 1), SyncPlan::Snapshot);
        // A snapshot of an epoch that is unknown here.
        check(end, (2, 0), SyncPlan::Snapshot);
        check(end, (4, 0), SyncPlan::Snapshot);
        // Part of the log is not committed yet.
        check((3, 1), (3, 2), truncate(3, 1));
        check((3, 1), (3, 7), truncate(3, 1));
        check((3, 1), (3, 1), SyncPlan::Diff);
        check((1, 5), (3, 2), truncate(1, 5));
    }

    #[test]
    fn a_learner_can_insist_on_a_snapshot() {
        let ours = History::starting_at(Zxid::ZERO);
        assert_eq!(plan(&ours, Zxid::ZERO, None), SyncPlan::Snapshot);
        assert_eq!(plan(&ours, Zxid::ZERO, Some(Zxid::ZERO)), SyncPlan::Diff);
    }
}
