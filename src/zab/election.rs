//! Fast leader election, by ZooKeeper's rules (`FastLeaderElection`).
//!
//! Every voter proposes itself, adopts the best vote it hears of, and tells all voters whenever its
//! vote changes. The election of a round ends when a quorum votes alike. It only finds a candidate
//! that is likely to succeed: that the leader has the newest history of a quorum is checked again in
//! discovery, and nothing here needs to be durable.
//!
//! Invariants:
//! - the round only grows, over all elections of a process; votes of other rounds are not counted;
//! - within a round the proposal only grows in the order of [`Vote`];
//! - a blank server sends no vote and counts for no leader, unless a quorum is blank.
//!
//! What differs from ZooKeeper: when every voter that can be reached has voted alike there is nothing
//! to wait for, and the election ends without the 200 ms of quiet.

use std::collections::{BTreeMap, BTreeSet};

use ringkeeper_proto::election::{Ballot, PeerState, Vote};
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::Output;
use crate::core_state::CoreState;
use crate::message::Notification;
use crate::quorum::Ensemble;
use crate::timer::Moment;

/// How an election ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elected {
    /// Who leads and why.
    pub(crate) vote: Vote,
    /// In which round.
    pub(crate) round: u64,
    /// All voters have voted so but for such as could have decided nothing without others than this server. So what
    /// a torn write may have taken from it is in the leader's history, or was not committed.
    pub(crate) assured: bool,
}

/// An election that is going on.
#[derive(Debug)]
pub(crate) struct Election {
    me: ServerId,
    round: u64,
    standing: Standing,
    /// The votes of this round.
    votes: BTreeMap<ServerId, Vote>,
    /// What servers say that are not in an election: whom they follow, in which state and round.
    settled: BTreeMap<ServerId, Settled>,
    /// Voters known to have no history.
    blank: BTreeSet<ServerId>,
    /// When the waiting for a better vote ends; set while a quorum agrees.
    decide_at: Option<Moment>,
    resend_at: Moment,
    resend_after: u64,
}

/// What this server brings to the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It votes: its own claim, and the best that it has heard of.
    Voter { own: Vote, proposal: Vote },
    /// Its storage is blank, and a quorum is not known to be.
    Blank,
    /// It has no vote.
    Observer,
}

#[derive(Clone, Copy, Debug)]
struct Settled {
    vote: Vote,
    state: PeerState,
    round: u64,
}

impl Election {
    /// Begins an election in the round after `round`.
    pub(crate) fn begin<P>(core: &CoreState, round: u64, outputs: &mut Vec<Output<P>>) -> Self {
        let me = core.id();
        let own = own_vote(core);
        let standing = match core.config.ensemble.is_voter(me) {
            false => Standing::Observer,
            // It is not blank: two such servers must not begin anew.
            true if core.damaged => Standing::Observer,
            true if core.blank => Standing::Blank,
            true => Standing::Voter { own, proposal: own },
        };
        let resend_after = core.config.timing.notification_min;
        let mut election = Self {
            me,
            round: round.saturating_add(1),
            standing,
            votes: BTreeMap::new(),
            settled: BTreeMap::new(),
            blank: BTreeSet::new(),
            decide_at: None,
            resend_at: core.now.after(resend_after),
            resend_after,
        };
        match standing {
            Standing::Voter { own, .. } => {
                election.votes.insert(me, own);
            }
            Standing::Blank => {
                election.note_blank(core, me);
                // The only voter there is hears from no other.
                election.take_vote_if_new(core);
            }
            Standing::Observer => {}
        }
        election.tell_all(core, outputs);
        election
    }

    /// Takes a notification from a member.
    pub(crate) fn notified<P>(
        &mut self,
        core: &CoreState,
        from: ServerId,
        notification: Notification,
        outputs: &mut Vec<Output<P>>,
    ) -> Option<Elected> {
        let ensemble = &core.config.ensemble;
        if !ensemble.is_voter(from) {
            // ZK: a server without a vote gets an answer at once, and is not counted. (One that has its
            // leader asks nothing; to answer it too would never stop.)
            if notification.state == PeerState::Looking {
                self.tell(from, outputs);
            }
            return None;
        }
        match (notification.state, notification.ballot) {
            (PeerState::Looking, Ballot::For(vote)) if ensemble.is_voter(vote.leader) => {
                self.looking(core, from, vote, notification.round, outputs);
            }
            (PeerState::Looking, Ballot::Blank(_)) => {
                self.note_blank(core, from);
                self.vote_if_new(core, outputs);
                self.answer_late(from, notification.round, outputs);
            }
            (PeerState::Following | PeerState::Leading, Ballot::For(vote))
                if ensemble.is_voter(vote.leader) =>
            {
                let settled = Settled {
                    vote,
                    state: notification.state,
                    round: notification.round,
                };
                return self.settled(core, from, settled);
            }
            _ => return None,
        }
        self.decide(core)
    }

    /// A tick: votes are sent again, or the waiting ends.
    pub(crate) fn tick<P>(
        &mut self,
        core: &CoreState,
        outputs: &mut Vec<Output<P>>,
    ) -> Option<Elected> {
        if core.now >= self.resend_at {
            // A server that only waits for a leader to name itself asks at an even pace.
            if matches!(self.standing, Standing::Voter { .. }) {
                let max = core.config.timing.notification_max;
                self.resend_after = self.resend_after.saturating_mul(2).min(max);
            }
            self.resend_at = core.now.after(self.resend_after);
            self.tell_all(core, outputs);
        }
        self.decide(core)
    }

    /// Whether it has asked the other voter more than once, and got no vote (ZK: `revalidateVoteset`).
    pub(crate) fn is_left_alone(&self, core: &CoreState) -> bool {
        let asked_again = self.resend_after > core.config.timing.notification_min;
        let others = self.votes.keys().chain(self.settled.keys());
        self.votes() && asked_again && others.into_iter().all(|id| *id == self.me)
    }

    /// A peer came, and has not heard of this election.
    pub(crate) fn reachable<P>(&self, peer: ServerId, outputs: &mut Vec<Output<P>>) {
        self.tell(peer, outputs);
    }

    /// ZK: `lookForLeader`, a notification of a server that is in an election too.
    fn looking<P>(
        &mut self,
        core: &CoreState,
        from: ServerId,
        vote: Vote,
        round: u64,
        outputs: &mut Vec<Output<P>>,
    ) {
        if vote.zxid == Zxid::ZERO && vote.peer_epoch == Epoch(0) {
            // Who votes for an empty history has none itself.
            self.note_blank(core, from);
            self.vote_if_new(core, outputs);
        } else {
            self.blank.remove(&from);
        }
        if round < self.round {
            self.answer_late(from, round, outputs);
            return;
        }
        let newer = round > self.round;
        if newer {
            self.round = round;
            self.votes.clear();
            self.decide_at = None;
        }
        if let Standing::Voter { own, proposal } = &mut self.standing {
            if newer {
                *proposal = *own;
            }
            let better = supersedes(&core.config.ensemble, vote, *proposal);
            if better {
                *proposal = vote;
                self.decide_at = None;
            }
            self.votes.insert(core.id(), *proposal);
            if newer || better {
                self.tell_all(core, outputs);
            } else if supersedes(&core.config.ensemble, *proposal, vote) {
                // It may have heard of this vote before it began to look itself, and then it did not count. To
                // wait until votes are sent again would cost more than the whole election.
                self.tell(from, outputs);
            }
        }
        self.votes.insert(from, vote);
    }

    /// Tells a server in an earlier round of this one. Not by an observer: voters answer it at once, so
    /// that the two would never stop.
    fn answer_late<P>(&self, from: ServerId, round: u64, outputs: &mut Vec<Output<P>>) {
        if round < self.round && self.standing != Standing::Observer {
            self.tell(from, outputs);
        }
    }

    /// A server that is not in an election names its leader (ZK: `receivedFollowingNotification`).
    fn settled(&mut self, core: &CoreState, from: ServerId, settled: Settled) -> Option<Elected> {
        let vote = settled.vote;
        let elected = Elected {
            vote,
            round: settled.round,
            assured: false,
        };
        self.settled.insert(from, settled);
        if settled.round == self.round {
            // It was in this election, and is ahead of us.
            self.votes.insert(from, vote);
            let agree = |id| self.votes.get(&id) == Some(&vote);
            if core.config.ensemble.is_quorum(agree) && self.may_follow(core, elected) {
                return Some(elected);
            }
        }
        // Out of the election the zxid may differ between servers (ZK: `Vote.equals`).
        let same = |other: &Settled| {
            other.vote.leader == vote.leader && other.vote.peer_epoch == vote.peer_epoch
        };
        // This server's own wish to follow counts too: else one of three that lost its link, with
        // another one down, would wait for the leader to give up (as ZooKeeper does).
        let votes = matches!(self.standing, Standing::Voter { .. });
        let wishes = |id| votes && id == core.id() && vote.leader != id;
        let agree = |id| wishes(id) || self.settled.get(&id).is_some_and(same);
        (core.config.ensemble.is_quorum(agree) && self.may_follow(core, elected)).then_some(elected)
    }

    /// Whether the leader itself says so, lest all elect a server again and again that has crashed
    /// (ZK: `checkLeader`). Of ourselves only this round's voters know.
    fn may_follow(&self, core: &CoreState, elected: Elected) -> bool {
        let leader = elected.vote.leader;
        if leader == core.id() {
            return elected.round == self.round && matches!(self.standing, Standing::Voter { .. });
        }
        let says = self.settled.get(&leader);
        says.is_some_and(|settled| settled.state == PeerState::Leading)
    }

    /// Ends the election when a quorum votes as this server does, and either all that can be reached
    /// do, or the waiting is over.
    pub(crate) fn decide(&mut self, core: &CoreState) -> Option<Elected> {
        let Standing::Voter { proposal, .. } = self.standing else {
            return None;
        };
        let ensemble = &core.config.ensemble;
        let agrees = |id: &ServerId| self.votes.get(id) == Some(&proposal);
        if !ensemble.is_quorum(|id| agrees(&id)) || ensemble.weight(proposal.leader) == 0 {
            self.decide_at = None;
            return None;
        }
        let wait = core.config.timing.election_wait;
        let decide_at = *self.decide_at.get_or_insert_with(|| core.now.after(wait));
        let abstains = |id| self.blank.contains(id) && !self.votes.contains_key(id);
        let mut voters = ensemble.voters().iter();
        let unanimous =
            voters.all(|id| agrees(id) || core.unreachable.contains(id) || abstains(id));
        let me = core.id();
        (unanimous || core.now >= decide_at).then_some(Elected {
            vote: proposal,
            round: self.round,
            assured: !ensemble
                .may_have_decided(|id| id == me || !(agrees(&id) || self.blank.contains(&id))),
        })
    }

    fn note_blank(&mut self, core: &CoreState, id: ServerId) {
        if core.config.ensemble.is_voter(id) {
            self.blank.insert(id);
        }
    }

    /// A quorum of blank servers is a new ensemble, in which all may vote.
    fn vote_if_new<P>(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        if self.take_vote_if_new(core) {
            self.tell_all(core, outputs);
        }
    }

    fn take_vote_if_new(&mut self, core: &CoreState) -> bool {
        let new = core
            .config
            .ensemble
            .is_quorum(|id| self.blank.contains(&id));
        if self.standing != Standing::Blank || !new {
            return false;
        }
        let own = own_vote(core);
        self.standing = Standing::Voter { own, proposal: own };
        self.votes.insert(core.id(), own);
        true
    }

    /// Whether this server votes in this election, though its storage may be blank.
    pub(crate) const fn votes(&self) -> bool {
        matches!(self.standing, Standing::Voter { .. })
    }

    pub(crate) const fn round(&self) -> u64 {
        self.round
    }

    fn tell_all<P>(&self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let others = core.config.ensemble.voters().iter();
        for id in others.filter(|id| **id != core.id()) {
            self.tell(*id, outputs);
        }
    }

    fn tell<P>(&self, to: ServerId, outputs: &mut Vec<Output<P>>) {
        let ballot = match self.standing {
            Standing::Voter { proposal, .. } => Ballot::For(proposal),
            Standing::Blank => Ballot::Blank(self.me),
            Standing::Observer => Ballot::None,
        };
        let notification = Notification {
            state: PeerState::Looking,
            ballot,
            round: self.round,
        };
        outputs.push(Output::Notify { to, notification });
    }
}

/// A server's vote for itself.
fn own_vote(core: &CoreState) -> Vote {
    let summary = core.summary();
    Vote {
        peer_epoch: summary.current_epoch,
        zxid: summary.last_logged,
        leader: core.id(),
    }
}

/// ZK: `totalOrderPredicate`; a server of weight 0 never wins.
fn supersedes(ensemble: &Ensemble, new: Vote, current: Vote) -> bool {
    ensemble.weight(new.leader) > 0 && new > current
}
