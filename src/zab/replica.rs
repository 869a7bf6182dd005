//! The state machine: one `step` for every input.

use std::collections::BTreeSet;

use ringkeeper_proto::election::{Ballot, PeerState, Vote};
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::{Config, Epochs, Input, Mode, Output, Recovered, Role};
use crate::core_state::CoreState;
use crate::election::{Elected, Election};
use crate::leader::Leader;
use crate::leader::NoHandOver;
use crate::learner::Learner;
use crate::log::LogGeneration;
use crate::message::{LinkId, Message, Notification, Proposal};
use crate::observer_master::{Following, ObserverMaster};
use crate::progress::Introduction;
use crate::quorum::Ensemble;
use crate::timer::Moment;
use crate::violation::Violation;

/// One member of an ensemble, or a server alone.
///
/// `P` is the handle of a proposal's bytes; it is cloned once per learner, so it should be cheap.
#[derive(Debug)]
pub struct Replica<P> {
    core: CoreState,
    phase: Phase<P>,
    /// The election round, and what the last election found.
    round: u64,
    vote: Option<Vote>,
    /// Links of learners that were told of another leader, until they close them.
    leaving: BTreeSet<LinkId>,
    left_at: Moment,
    /// As follower: the observers that it serves.
    observers: ObserverMaster<P>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a replica has one of it")]
enum Phase<P> {
    /// Built, not started.
    New,
    Looking(Looking),
    Leading(Leader<P>),
    Learning(Learner),
}

#[derive(Debug)]
struct Looking {
    election: Election,
    /// Learners whose election was over sooner, one connection for each, until this server's is.
    early: Vec<(LinkId, Introduction)>,
}

/// How many early learners wait.
const EARLY_MAX: usize = 64;

impl<P: Clone> Replica<P> {
    /// A replica of what storage holds. It does nothing before the first [`Input::Tick`].
    pub fn new(config: Config, recovered: Recovered) -> Self {
        Self {
            core: CoreState::new(config, recovered),
            phase: Phase::New,
            round: 0,
            vote: None,
            leaving: BTreeSet::new(),
            left_at: Moment(0),
            observers: ObserverMaster::new(),
        }
    }

    /// Takes one input, and appends to `outputs` what is to be done.
    ///
    /// # Errors
    /// A peer broke the protocol. The outputs are valid and deal with it; the error is for the log.
    ///
    /// # Panics
    /// When the caller breaks its side: a zxid that was not assigned here, or a completion of
    /// something that was never asked for. Nothing that a peer sends does that.
    pub fn step(&mut self, input: Input<P>, outputs: &mut Vec<Output<P>>) -> Result<(), Violation> {
        if let Input::Oracle { grants } = input {
            self.core.oracle_grants = grants;
        }
        self.heed_oracle();
        let from = outputs.len();
        let result = match input {
            Input::Tick => self.tick(outputs),
            Input::Received { link, message } => self.received(link, message, outputs),
            other => {
                self.notice(other, outputs);
                Ok(())
            }
        };
        let (over, next) = match &self.phase {
            Phase::Leading(leader) => (leader.has_resigned(), leader.handed_to()),
            Phase::Learning(learner) => (learner.is_lost(), learner.successor()),
            Phase::New | Phase::Looking(_) => (false, None),
        };
        match next {
            Some((leader, round)) => self.succeed(leader, round, outputs),
            None if over => self.look(outputs),
            None => {}
        }
        if self.core.config.serves_observers {
            let following = match &self.phase {
                Phase::Learning(learner) if !learner.is_observer() => learner
                    .serving_epoch()
                    .map_or(Following::NotYet, Following::In),
                _ => Following::No,
            };
            self.observers.attend(&self.core, following, from, outputs);
        }
        result
    }

    /// Decides alone as long as the oracle says so and the other voter is not there (ZK: `needOracle`).
    fn heed_oracle(&mut self) {
        let core = &mut self.core;
        if !core.config.ensemble.heeds_oracle() {
            return;
        }
        let is_alone = match &self.phase {
            Phase::Looking(looking) => looking.election.is_left_alone(core),
            Phase::Leading(leader) => !leader.has_voter(core),
            Phase::New | Phase::Learning(_) => false,
        };
        let alone = is_alone && core.oracle_grants;
        let me = core.id();
        core.config.ensemble.let_alone(alone.then_some(me));
    }

    /// Inputs that cannot violate anything.
    fn notice(&mut self, input: Input<P>, outputs: &mut Vec<Output<P>>) {
        let core = &mut self.core;
        match (input, &mut self.phase) {
            (Input::Proposed { zxid, payload }, Phase::Leading(leader)) => {
                leader.propose(core, Proposal { zxid, payload }, outputs);
            }
            (Input::Proposed { .. }, _) => panic!("proposed without being the leader"),
            (Input::Configuration { zxid, ensemble }, _) => {
                core.config.ensemble.set_next(zxid, ensemble);
            }
            (Input::Adopt { ensemble }, phase) => {
                let version = ensemble.version();
                if matches!(phase, Phase::Looking(_))
                    && version > core.config.ensemble.version()
                    && core.config.ensemble.set_next(Zxid(version), ensemble)
                {
                    core.config.ensemble.activate_next();
                    outputs.push(Output::Activate);
                    self.look(outputs);
                }
            }
            (
                Input::Flushed {
                    through,
                    generation,
                },
                phase,
            ) => {
                if core.log.flushed_through(through, generation) {
                    match phase {
                        Phase::Leading(leader) => leader.flushed(core, outputs),
                        Phase::Learning(learner) => learner.flushed(core, outputs),
                        Phase::New | Phase::Looking(_) => {}
                    }
                }
            }
            (Input::EpochSaved { epochs }, phase) => {
                let was_blank = core.blank;
                core.epoch_saved(epochs);
                match phase {
                    // It calls itself blank, and is not any more: two that do could begin anew.
                    Phase::Looking(_) if was_blank && !core.blank => self.look(outputs),
                    Phase::Leading(leader) => leader.epoch_saved(core, epochs, outputs),
                    Phase::Learning(learner) => learner.epoch_saved(core, epochs, outputs),
                    Phase::New | Phase::Looking(_) => {}
                }
            }
            (Input::SnapshotInstalled { generation }, Phase::Learning(learner)) => {
                learner.snapshot_done(core, generation, true);
            }
            (Input::SnapshotFailed { generation }, Phase::Learning(learner)) => {
                learner.snapshot_done(core, generation, false);
            }
            (Input::SnapshotSent { link, zxid }, Phase::Leading(leader)) => {
                leader.snapshot_sent(core, link, zxid, outputs);
            }
            (Input::HistoryRead { link, proposals }, Phase::Leading(leader)) => {
                leader.history_read(core, link, proposals, outputs);
            }
            (Input::HistoryGone { link }, Phase::Leading(leader)) => {
                leader.history_gone(link, outputs);
            }
            (Input::SnapshotSent { link, zxid }, Phase::Learning(_)) => {
                self.observers.snapshot_sent(core, link, zxid, outputs);
            }
            (Input::HistoryRead { link, proposals }, Phase::Learning(_)) => {
                self.observers.history_read(core, link, proposals, outputs);
            }
            (Input::HistoryGone { link }, Phase::Learning(_)) => {
                self.observers.history_gone(link, outputs);
            }
            (Input::HistoryPurged { through }, _) => core.log.purge(through.min(core.delivered)),
            (Input::Notified { from, notification }, _) => {
                self.notified(from, notification, outputs);
            }
            (Input::Reachable { peer, reachable }, _) => {
                self.reachable(peer, reachable, outputs);
            }
            (Input::Connected { leader, link }, Phase::Learning(learner)) => {
                learner.connected(core, leader, link, outputs);
            }
            (Input::Connected { link, .. }, _) => outputs.push(Output::Close { link }),
            (Input::ConnectFailed { leader }, Phase::Learning(learner)) => {
                learner.connect_failed(leader);
            }
            (Input::Disconnected { link }, phase) => match phase {
                _ if self.leaving.remove(&link) || self.observers.disconnected(link) => {}
                Phase::Leading(leader) => leader.disconnected(link, outputs),
                Phase::Learning(learner) => learner.disconnected(link),
                Phase::Looking(looking) => looking.early.retain(|(early, _)| *early != link),
                Phase::New => {}
            },
            (Input::Sync { origin }, Phase::Leading(leader)) => {
                leader.sync(core, origin, outputs);
            }
            (Input::HandOver { to, patient }, Phase::Leading(leader)) => {
                let round = self.round.saturating_add(1);
                leader.hand_over(core, to, patient, round, outputs);
            }
            (Input::HandOver { .. }, _) => {
                let outcome = Err(NoHandOver::NotLeading);
                outputs.push(Output::HandedOver { outcome });
            }
            (Input::GiveUp { resynchronize }, phase) => {
                core.wants_snapshot |= resynchronize;
                match phase {
                    Phase::Leading(leader) => leader.give_up(),
                    Phase::Learning(learner) => learner.give_up(),
                    Phase::New | Phase::Looking(_) => {}
                }
            }
            // What was asked for in a role that is gone.
            (
                Input::SnapshotInstalled { .. }
                | Input::SnapshotFailed { .. }
                | Input::SnapshotSent { .. }
                | Input::HistoryRead { .. }
                | Input::HistoryGone { .. }
                | Input::ConnectFailed { .. }
                | Input::Sync { .. },
                _,
            ) => {}
            (Input::Tick | Input::Received { .. } | Input::Oracle { .. }, _) => {}
        }
    }

    fn tick(&mut self, outputs: &mut Vec<Output<P>>) -> Result<(), Violation> {
        self.core.now = self.core.now.after(1);
        self.close_leaving(outputs);
        match (&mut self.phase, self.core.config.mode) {
            (Phase::New, Mode::Standalone) => {
                self.phase = Phase::Leading(Leader::alone(&mut self.core, outputs));
            }
            (Phase::New, Mode::Ensemble) => self.look(outputs),
            (Phase::Looking(looking), _) => {
                let elected = looking.election.tick(&self.core, outputs);
                self.settle(elected, outputs);
            }
            (Phase::Leading(leader), _) => return leader.tick(&mut self.core, outputs),
            (Phase::Learning(learner), _) => {
                learner.tick(&self.core);
                self.observers.tick(&self.core, outputs);
            }
        }
        Ok(())
    }

    /// Leaves the role and begins an election. A server alone leads on: there is nobody else.
    fn look(&mut self, outputs: &mut Vec<Output<P>>) {
        let was = self.role();
        match std::mem::replace(&mut self.phase, Phase::New) {
            Phase::Leading(leader) => self.leave_behind(leader, outputs),
            Phase::Learning(learner) => learner.leave(outputs),
            Phase::Looking(looking) => {
                self.round = looking.election.round();
                let links = looking.early.into_iter();
                outputs.extend(links.map(|(link, _)| Output::Close { link }));
            }
            Phase::New => {}
        }
        if was != Role::Looking {
            let role = Role::Looking;
            outputs.push(Output::ChangeRole { role });
        }
        if self.core.config.mode == Mode::Standalone {
            self.phase = Phase::Leading(Leader::alone(&mut self.core, outputs));
            return;
        }
        self.core.new_ensemble = false;
        // The other one has to have had its chance first.
        self.core.config.ensemble.let_alone(None);
        let mut election = Election::begin(&self.core, self.round, outputs);
        let elected = election.tick(&self.core, outputs);
        self.phase = Phase::Looking(Looking {
            election,
            early: Vec::new(),
        });
        self.settle(elected, outputs);
    }

    /// Takes the place that a hand-over gives, as if an election had.
    fn succeed(&mut self, leader: ServerId, round: u64, outputs: &mut Vec<Output<P>>) {
        match std::mem::replace(&mut self.phase, Phase::New) {
            Phase::Leading(leader) => self.leave_behind(leader, outputs),
            Phase::Learning(learner) => learner.leave(outputs),
            Phase::New | Phase::Looking(_) => {}
        }
        let core = &mut self.core;
        core.new_ensemble = false;
        self.round = self.round.max(round);
        let vote = Vote {
            peer_epoch: core.epochs.current,
            zxid: core.log.last(),
            leader,
        };
        self.vote = Some(vote);
        let elected = Elected {
            vote,
            round,
            assured: false,
        };
        let role = Role::Moving;
        outputs.push(Output::ChangeRole { role });
        self.phase = match leader == core.id() {
            true => Phase::Leading(Leader::succeeding(core, outputs)),
            false => Phase::Learning(Learner::follow(core, elected, outputs)),
        };
    }

    fn leave_behind(&mut self, leader: Leader<P>, outputs: &mut Vec<Output<P>>) {
        self.leaving.extend(leader.leave(outputs));
        self.left_at = self.core.now;
    }

    /// Who was told to leave has had the time for it.
    fn close_leaving(&mut self, outputs: &mut Vec<Output<P>>) {
        let limit = self.core.config.timing.tick_time;
        if self.core.now.exceeds(self.left_at, limit) {
            let links = std::mem::take(&mut self.leaving).into_iter();
            outputs.extend(links.map(|link| Output::Close { link }));
        }
    }

    /// Takes the role that an election gave, if it is over.
    fn settle(&mut self, elected: Option<Elected>, outputs: &mut Vec<Output<P>>) {
        let Some(elected) = elected else { return };
        let Elected { vote, round, .. } = elected;
        let Phase::Looking(looking) = std::mem::replace(&mut self.phase, Phase::New) else {
            return;
        };
        let core = &mut self.core;
        core.new_ensemble = looking.election.votes();
        self.round = round;
        self.vote = Some(vote);
        if vote.leader != core.id() {
            let learner = Learner::connect(core, elected, outputs);
            for (link, introduction) in looking.early {
                if core.config.serves_observers && !learner.is_observer() {
                    // A refused one is closed; that it came early changes nothing.
                    let _ = self.observers.introduced(core, link, introduction, outputs);
                } else {
                    outputs.push(Output::Close { link });
                }
            }
            self.phase = Phase::Learning(learner);
            return;
        }
        let mut leader = Leader::elected(core, outputs);
        for (link, introduction) in looking.early {
            // A refused one is closed; that it came early changes nothing.
            let _ = leader.introduced(core, link, introduction, outputs);
        }
        self.phase = Phase::Leading(leader);
    }

    fn notified(
        &mut self,
        from: ServerId,
        notification: Notification,
        outputs: &mut Vec<Output<P>>,
    ) {
        let core = &self.core;
        if let Phase::Looking(looking) = &mut self.phase {
            let elected = looking.election.notified(core, from, notification, outputs);
            self.settle(elected, outputs);
            return;
        }
        if notification.state != PeerState::Looking {
            return;
        }
        let voter = core.config.ensemble.is_voter(from);
        if let (Phase::Leading(leader), true) = (&mut self.phase, voter)
            && notification.round > self.round
        {
            leader.disloyal(core, from);
        }
        self.tell_vote(from, outputs);
    }

    /// Answers a server that looks for a leader.
    fn tell_vote(&self, to: ServerId, outputs: &mut Vec<Output<P>>) {
        let (state, epoch) = match &self.phase {
            Phase::Leading(leader) => (PeerState::Leading, leader.established_epoch()),
            Phase::Learning(learner) if !learner.is_observer() => {
                (PeerState::Following, learner.serving_epoch())
            }
            // What an observer says counts for nothing.
            Phase::Learning(_) | Phase::New | Phase::Looking(_) => return,
        };
        let Some(vote) = self.vote else { return };
        // ZK: `updateElectionVote`. All members of an established ensemble name the same epoch.
        let vote = Vote {
            peer_epoch: epoch.unwrap_or(vote.peer_epoch),
            ..vote
        };
        let notification = Notification {
            state,
            ballot: Ballot::For(vote),
            round: self.round,
        };
        outputs.push(Output::Notify { to, notification });
    }

    fn reachable(&mut self, peer: ServerId, reachable: bool, outputs: &mut Vec<Output<P>>) {
        let core = &mut self.core;
        if !core.config.ensemble.is_voter(peer) {
            return;
        }
        if reachable {
            core.unreachable.remove(&peer);
        } else {
            core.unreachable.insert(peer);
        }
        if let Phase::Looking(looking) = &mut self.phase {
            if reachable {
                looking.election.reachable(peer, outputs);
            }
            let elected = looking.election.decide(core);
            self.settle(elected, outputs);
        }
    }

    fn received(
        &mut self,
        link: LinkId,
        message: Message<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        if self.leaving.contains(&link) {
            return Ok(());
        }
        let core = &mut self.core;
        if let Message::LearnerInfo {
            id,
            observer,
            accepted_epoch,
            config_version,
            capabilities,
        } = message
        {
            let introduction = Introduction {
                id,
                observer,
                accepted_epoch,
                config_version,
                capabilities,
            };
            match &mut self.phase {
                Phase::Leading(leader) if !leader.has_learner(link) => {
                    return leader.introduced(core, link, introduction, outputs);
                }
                Phase::Looking(looking) => looking.introduced(link, introduction, outputs),
                Phase::Learning(learner)
                    if core.config.serves_observers
                        && !learner.is_observer()
                        && !self.observers.has(link) =>
                {
                    return self.observers.introduced(core, link, introduction, outputs);
                }
                _ => outputs.push(Output::Close { link }),
            }
            return Ok(());
        }
        match &mut self.phase {
            Phase::Leading(leader) => leader.received(core, link, message, outputs),
            Phase::Learning(_) if self.observers.has(link) => {
                self.observers.received(core, link, message, outputs)
            }
            Phase::Learning(learner) => {
                if let (Message::CommitAndActivate { zxid, leader }, true) =
                    (&message, core.config.serves_observers)
                {
                    self.observers.note_activation(*zxid, *leader);
                }
                learner.received(core, link, message, outputs)
            }
            Phase::New | Phase::Looking(_) => {
                // Late: the link was closed when the role ended.
                outputs.push(Output::Close { link });
                Ok(())
            }
        }
    }

    /// The zxid that the next proposal must have; `None` when this server may not propose.
    pub fn next_zxid(&self) -> Option<Zxid> {
        match &self.phase {
            Phase::Leading(leader) => leader.next_zxid(&self.core),
            _ => None,
        }
    }

    /// As leader: whether nothing can be proposed for a while, and requests are to wait, since leadership is being
    /// handed over. Who waits is to look again after each input.
    pub const fn is_paused(&self) -> bool {
        match &self.phase {
            Phase::Leading(leader) => leader.is_paused(),
            _ => false,
        }
    }

    /// What this replica is to its clients.
    pub fn role(&self) -> Role {
        match &self.phase {
            Phase::New | Phase::Looking(_) => Role::Looking,
            Phase::Leading(leader) => match leader.established_epoch() {
                Some(epoch) => Role::Leading { epoch },
                None if leader.is_moving() => Role::Moving,
                None => Role::Looking,
            },
            Phase::Learning(learner) => learner.role(),
        }
    }

    /// Whether it looks for a leader and knows of none yet.
    pub const fn is_electing(&self) -> bool {
        matches!(self.phase, Phase::Looking(_))
    }

    /// As learner: the link to the leader.
    pub const fn leader_link(&self) -> Option<LinkId> {
        match &self.phase {
            Phase::Learning(learner) => learner.link(),
            _ => None,
        }
    }

    /// As leader: whether a quorum of `ensemble` is synchronized, so that it can become the active one.
    pub fn is_synced_quorum(&self, ensemble: &Ensemble) -> bool {
        match &self.phase {
            Phase::Leading(leader) => leader.is_synced_quorum(self.core.id(), ensemble),
            _ => false,
        }
    }

    /// As leader: whether a quorum has all through `zxid`, if this server, which may not have it yet, is counted.
    pub fn others_have(&self, zxid: Zxid) -> bool {
        match &self.phase {
            Phase::Leading(leader) => leader.others_have(&self.core, zxid),
            _ => false,
        }
    }

    /// Whether all through `zxid` is durable here.
    pub fn is_flushed(&self, zxid: Zxid) -> bool {
        self.core.log.is_durable_through(zxid)
    }

    /// As leader: how many rounds of PINGs were begun, and the last that a quorum has answered.
    pub const fn ping_rounds(&self) -> (u64, u64) {
        match &self.phase {
            Phase::Leading(leader) => leader.ping_rounds(),
            _ => (0, 0),
        }
    }

    /// Who is at the other end of a link, once it has said so.
    pub fn peer_at(&self, link: LinkId) -> Option<ServerId> {
        match &self.phase {
            Phase::Leading(leader) => leader.learner_at(link),
            Phase::Learning(learner) if learner.link() == Some(link) => Some(learner.leader()),
            Phase::Learning(_) => self.observers.observer_at(link),
            _ => None,
        }
    }

    /// As leader: the learners, each with whether it only observes and whether it is synchronized. As follower: the
    /// observers that it serves.
    pub fn learners(&self) -> Vec<(ServerId, bool, bool)> {
        match &self.phase {
            Phase::Leading(leader) => leader.learners().collect(),
            _ => self.observers.observers().collect(),
        }
    }

    /// What it is doing, in words, for an operator.
    pub const fn phase_name(&self) -> &'static str {
        match &self.phase {
            Phase::New => "starting",
            Phase::Looking(_) => "electing a leader",
            Phase::Leading(leader) => leader.phase_name(),
            Phase::Learning(learner) => learner.phase_name(),
        }
    }

    /// The members.
    pub const fn ensemble(&self) -> &Ensemble {
        &self.core.config.ensemble
    }

    /// The epochs as they are durable.
    pub const fn epochs(&self) -> Epochs {
        self.core.epochs
    }

    /// The epoch whose history this server has taken over.
    pub const fn current_epoch(&self) -> Epoch {
        self.core.epochs.current
    }

    /// The end of the log, durable or not.
    pub const fn last_logged(&self) -> Zxid {
        self.core.log.last()
    }

    /// The largest zxid known to be committed: what [`Recovered::committed`] is to say after a restart.
    pub const fn committed(&self) -> Zxid {
        self.core.committed
    }

    /// What the tree shows: the last zxid given out with [`Output::Commit`], or that of a snapshot. It
    /// can be above [`Replica::committed`] after a snapshot from a leader that was never established.
    pub const fn delivered(&self) -> Zxid {
        self.core.delivered
    }

    /// What a flush issued now, after all outputs so far have been carried out, reports.
    pub const fn log_generation(&self) -> LogGeneration {
        self.core.log.generation()
    }
}

impl Looking {
    fn introduced<P>(
        &mut self,
        link: LinkId,
        introduction: Introduction,
        outputs: &mut Vec<Output<P>>,
    ) {
        let same = |(_, other): &(LinkId, Introduction)| other.id == introduction.id;
        if let Some(at) = self.early.iter().position(same) {
            let (link, _) = self.early.remove(at);
            outputs.push(Output::Close { link });
        }
        if self.early.len() < EARLY_MAX {
            self.early.push((link, introduction));
        } else {
            outputs.push(Output::Close { link });
        }
    }
}
