//! What a leader knows of one learner.
//!
//! Invariant: `acked <= sent`, and `sent` is a zxid of the leader's history.

use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::Output;
use crate::history::{History, follows};
use crate::message::{LinkId, Message, Proposal};
use crate::timer::Moment;
use crate::violation::Violation;

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) id: ServerId,
    /// Gets INFORM instead of PROPOSAL and COMMIT, and its acknowledgements do not count.
    pub(crate) observer: bool,
    pub(crate) capabilities: Capabilities,
    pub(crate) stage: Stage,
    /// The end of what it was sent, or had before.
    pub(crate) sent: Zxid,
    /// The end of what it said is durable; counts from [`Stage::Synced`] on.
    acked: Zxid,
    pub(crate) heard_at: Moment,
    /// The last round of PINGs that it has answered.
    ponged: u64,
    /// Since when the proposal after `acked` waits, if one does.
    unacked_since: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has said who it is; the epoch is not known yet.
    Introduced,
    /// It was told the epoch.
    Told,
    /// It has answered; discovery is not over.
    Answered { last_logged: Option<Zxid> },
    /// A snapshot is on its way.
    Snapshot,
    /// The log is read for it, up to what is committed.
    Reading,
    /// It was sent all there is, and NEWLEADER; what is proposed from now on goes to it.
    Live,
    /// It has acknowledged NEWLEADER, so its log is the leader's.
    Synced,
    /// It was told to follow another leader: what it says does not matter any more.
    Leaving,
}

impl Progress {
    pub(crate) const fn introduced(id: ServerId, observer: bool, now: Moment) -> Self {
        Self {
            id,
            observer,
            capabilities: Capabilities::NONE,
            stage: Stage::Introduced,
            sent: Zxid::ZERO,
            acked: Zxid::ZERO,
            heard_at: now,
            ponged: 0,
            unacked_since: None,
        }
    }

    /// Whether proposals go to it as they are made.
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Live | Stage::Synced)
    }

    /// Whether ACK and COMMIT may speak of more than one proposal.
    pub(crate) const fn takes_runs(&self) -> bool {
        self.capabilities.has(Capabilities::RUNS)
    }

    /// NEWLEADER is sent. What it is told is committed by then it need not acknowledge.
    pub(crate) const fn go_live(&mut self, committed: Zxid) {
        self.stage = Stage::Live;
        self.acked = committed;
    }

    /// It has acknowledged NEWLEADER.
    pub(crate) fn synced(&mut self, now: Moment) {
        self.stage = Stage::Synced;
        self.unacked_since = (self.acked < self.sent).then_some(now);
    }

    /// Sends it history, each transaction as committed.
    pub(crate) fn send_history<P>(
        &mut self,
        link: LinkId,
        proposals: Vec<Proposal<P>>,
        now: Moment,
        outputs: &mut Vec<Output<P>>,
    ) {
        self.heard_at = now;
        for proposal in proposals {
            let zxid = proposal.zxid;
            // ZOOKEEPER-4925: a hole in what is sent becomes a hole in the learner's log.
            assert!(
                follows(zxid, self.sent),
                "storage read {zxid:?} after {:?}",
                self.sent
            );
            self.sent = zxid;
            let message = Message::Proposal(proposal);
            outputs.push(Output::Send { link, message });
            let message = Message::Commit { zxid };
            outputs.push(Output::Send { link, message });
        }
    }

    /// The snapshot that was asked for is sent, as of `zxid`.
    pub(crate) fn snapshot_sent(&mut self, zxid: Zxid, now: Moment) {
        assert!(
            zxid <= self.sent,
            "a snapshot of {zxid:?} was sent, but {:?} was asked for at most",
            self.sent
        );
        self.sent = zxid;
        self.heard_at = now;
    }

    /// A proposal is sent.
    pub(crate) fn sent(&mut self, zxid: Zxid, now: Moment) {
        self.sent = zxid;
        self.unacked_since.get_or_insert(now);
    }

    /// It acknowledges a proposal, or with [`Capabilities::RUNS`] all through it. From others acknowledgements are
    /// not cumulative: one that leaves out a proposal which is not committed yet tells of a hole in its log.
    pub(crate) fn ack(
        &mut self,
        zxid: Zxid,
        committed: Zxid,
        history: &History,
        now: Moment,
    ) -> Result<(), Violation> {
        if zxid <= self.acked {
            return Ok(());
        }
        // What is committed may have been purged here since.
        let is_next = zxid <= committed
            || match self.takes_runs() {
                true => history.contains(zxid),
                false => history.successor(self.acked.max(committed)) == Some(zxid),
            };
        if zxid > self.sent || !is_next {
            return Err(Violation::AckOrder {
                from: self.id,
                zxid,
                sent: self.sent,
                acked: self.acked,
            });
        }
        self.acked = zxid;
        self.unacked_since = (zxid < self.sent).then_some(now);
        Ok(())
    }

    /// It answers the PING of `round`.
    pub(crate) fn pong(&mut self, round: u64) {
        self.ponged = self.ponged.max(round);
    }

    /// The last round in which it has said that it follows, as far as that counts.
    pub(crate) fn follows_through(&self) -> Option<u64> {
        (self.stage == Stage::Synced && !self.observer).then_some(self.ponged)
    }

    /// How far it counts towards a quorum.
    pub(crate) fn counts_through(&self) -> Option<Zxid> {
        (self.stage == Stage::Synced && !self.observer).then_some(self.acked)
    }

    /// Whether it has left a proposal without acknowledgement for too long.
    pub(crate) fn is_late(&self, now: Moment, limit: u64) -> bool {
        self.stage == Stage::Synced
            && !self.observer
            && self
                .unacked_since
                .is_some_and(|since| now.exceeds(since, limit))
    }
}

/// What a learner says when it introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) id: ServerId,
    pub(crate) observer: bool,
    pub(crate) accepted_epoch: Epoch,
    pub(crate) config_version: u64,
    pub(crate) capabilities: Capabilities,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_count_one_by_one() {
        let zxid = |counter| Zxid::new(Epoch(1), counter);
        let mut history = History::starting_at(Zxid::ZERO);
        for counter in 1..=5 {
            history.append(zxid(counter));
        }
        let now = Moment(7);
        let mut progress = Progress::introduced(ServerId(2), false, now);
        progress.go_live(zxid(1));
        progress.sent(zxid(2), now);
        progress.sent(zxid(4), now);
        let mut ack = |counter, committed| {
            let result = progress.ack(zxid(counter), zxid(committed), &history, now);
            (result.is_ok(), progress.acked)
        };
        assert_eq!(ack(1, 1), (true, zxid(1)), "known");
        assert_eq!(ack(3, 1), (false, zxid(1)), "2 is left out");
        assert_eq!(ack(2, 1), (true, zxid(2)));
        assert_eq!(ack(2, 1), (true, zxid(2)), "again");
        assert_eq!(ack(4, 3), (true, zxid(4)), "3 is left out but committed");
        assert_eq!(ack(5, 4), (false, zxid(4)), "was never sent");
    }

    #[test]
    fn an_acknowledgement_of_a_run_speaks_of_what_was_sent() {
        let zxid = |counter| Zxid::new(Epoch(1), counter);
        let mut history = History::starting_at(Zxid::ZERO);
        for counter in 1..=5 {
            history.append(zxid(counter));
        }
        let now = Moment(7);
        let mut progress = Progress::introduced(ServerId(2), false, now);
        progress.capabilities = Capabilities::RUNS;
        progress.go_live(zxid(1));
        progress.sent(zxid(4), now);
        let mut ack = |zxid| {
            let result = progress.ack(zxid, Zxid::ZERO, &history, now);
            (result.is_ok(), progress.acked)
        };
        assert_eq!(ack(zxid(3)), (true, zxid(3)));
        assert_eq!(ack(Zxid::new(Epoch(0), 9)), (true, zxid(3)), "known");
        assert_eq!(ack(zxid(5)), (false, zxid(3)), "was never sent");
        assert_eq!(ack(zxid(4)), (true, zxid(4)));

        history.purge(zxid(5));
        progress.acked = zxid(1);
        let late = progress.ack(zxid(3), zxid(5), &history, now);
        assert!(late.is_ok(), "committed, and purged here");
    }

    #[test]
    fn only_a_synced_voter_counts_and_is_late() {
        let now = Moment(1);
        let mut progress = Progress::introduced(ServerId(2), false, now);
        progress.go_live(Zxid(3));
        progress.sent(Zxid(4), now);
        assert_eq!(progress.counts_through(), None);
        assert!(!progress.is_late(Moment(99), 10));
        progress.stage = Stage::Synced;
        assert_eq!(progress.counts_through(), Some(Zxid(3)));
        assert!(progress.is_late(Moment(99), 10));
        assert!(!progress.is_late(Moment(9), 10));
        progress.observer = true;
        assert_eq!(progress.counts_through(), None);
    }
}
