//! The leading side: from being elected to giving up.
//!
//! ```text
//!   Gathering -> SavingEpoch -> Promised -> Establishing -> Established
//!   (discovery: a new epoch, promised by a quorum)  (synchronization)  (broadcast)
//! ```
//!
//! Learners come and go at any time; each has a [`Progress`] of its own, and what it is sent next
//! depends on that and on the leader's phase alone.

mod hand_over;
mod new_epoch;
mod packets;

use std::collections::{BTreeMap, BTreeSet};

use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::broadcast::Outstanding;
use crate::contract::{Epochs, Mode, Output, Role, SyncOrigin};
use crate::core_state::{CoreState, request_flush};
use crate::discovery::{Gathering, Promises};
use crate::message::{LinkId, Message, Proposal};
use crate::progress::{Progress, Stage};
use crate::quorum::Ensemble;
use crate::synchronization::{SyncPlan, Takeover, plan};
use crate::timer::Moment;
use crate::violation::Violation;

pub use hand_over::NoHandOver;

use hand_over::HandOver;
use new_epoch::NewEpoch;

/// How many learners a leader takes: strangers may come too, to be added to the ensemble later.
pub(crate) const LEARNERS_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Leader<P> {
    phase: Phase,
    learners: BTreeMap<LinkId, Progress>,
    outstanding: Outstanding<P>,
    /// The last one that is committed, while not all learners are told.
    run: Option<Zxid>,
    /// Members that get a snapshot, since the log turned out not to reach back to them.
    needs_snapshot: BTreeSet<ServerId>,
    /// Voters that are in a later election, and have not come back.
    disloyal: BTreeSet<ServerId>,
    phase_since: Moment,
    ping_at: Moment,
    /// Rounds of PINGs that were begun, and the last that a quorum has answered: it followed this leader
    /// after the round began.
    round: u64,
    confirmed: u64,
    upkeep_at: Moment,
    resigned: bool,
    /// Leadership is being handed over.
    hand_over: Option<HandOver>,
    /// The epoch's counter is used up, and another epoch begins.
    new_epoch: Option<NewEpoch>,
    /// Since when it was to be established, when another leader has handed over to this one.
    moving_since: Option<Moment>,
}

#[derive(Debug)]
enum Phase {
    /// Waiting for a quorum to say which epochs it has accepted.
    Gathering(Gathering),
    /// The new epoch is being saved as accepted.
    SavingEpoch { epoch: Epoch },
    /// Waiting for a quorum to accept it.
    Promised { epoch: Epoch, promises: Promises },
    /// Waiting for a quorum, itself included, to take over the history.
    Establishing {
        epoch: Epoch,
        /// This server's own; `None` when done, and then it counts.
        takeover: Option<Takeover>,
        acks: BTreeSet<ServerId>,
    },
    /// A quorum has the history: proposes.
    Established { epoch: Epoch },
}

impl Phase {
    const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Gathering(_) | Self::SavingEpoch { .. } => None,
            Self::Promised { epoch, .. }
            | Self::Establishing { epoch, .. }
            | Self::Established { epoch } => Some(*epoch),
        }
    }
}

impl<P: Clone> Leader<P> {
    /// A server that needs nobody: its log is what a quorum has, and no epoch begins.
    pub(crate) fn alone(core: &mut CoreState, outputs: &mut Vec<Output<P>>) -> Self {
        let epoch = core.epochs.current;
        let mut leader = Self::new(core, Phase::Established { epoch });
        leader.established(core, epoch, outputs);
        leader
    }

    /// A server that was elected.
    pub(crate) fn elected(core: &mut CoreState, outputs: &mut Vec<Output<P>>) -> Self {
        let gathering = Gathering::begin(core.id(), core.accepted_asked());
        let mut leader = Self::new(core, Phase::Gathering(gathering));
        leader.choose_epoch(core, outputs);
        leader
    }

    /// A server to which another one has handed over.
    pub(crate) fn succeeding(core: &mut CoreState, outputs: &mut Vec<Output<P>>) -> Self {
        let mut leader = Self::elected(core, outputs);
        leader.moving_since = Some(core.now);
        leader
    }

    fn new(core: &CoreState, phase: Phase) -> Self {
        let timing = core.config.timing;
        Self {
            phase,
            learners: BTreeMap::new(),
            outstanding: Outstanding::after(core.log.last()),
            run: None,
            needs_snapshot: BTreeSet::new(),
            disloyal: BTreeSet::new(),
            phase_since: core.now,
            ping_at: core.now.after(timing.tick_time.div_ceil(2)),
            round: 0,
            confirmed: 0,
            upkeep_at: core.now.after(timing.tick_time),
            resigned: false,
            hand_over: None,
            new_epoch: None,
            moving_since: None,
        }
    }

    fn enter(&mut self, core: &CoreState, phase: Phase) {
        self.phase = phase;
        self.phase_since = core.now;
    }

    // Discovery.

    fn choose_epoch(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let Phase::Gathering(gathering) = &self.phase else {
            return;
        };
        let Some(epoch) = gathering.epoch(&core.config.ensemble) else {
            return;
        };
        core.accept_epoch(epoch, outputs);
        self.enter(core, Phase::SavingEpoch { epoch });
    }

    /// Epochs are durable: the leader's own promise, or its own takeover.
    pub(crate) fn epoch_saved(
        &mut self,
        core: &mut CoreState,
        saved: Epochs,
        outputs: &mut Vec<Output<P>>,
    ) {
        self.new_epoch_saved(core, saved, outputs);
        match &mut self.phase {
            Phase::SavingEpoch { epoch } if saved.accepted >= *epoch => {
                let epoch = *epoch;
                let promises = Promises::begin(core.id(), core.summary(), core.doubt());
                self.enter(core, Phase::Promised { epoch, promises });
                for (link, progress) in &mut self.learners {
                    tell_epoch(*link, progress, epoch, outputs);
                }
                self.count_promises(core, outputs);
            }
            Phase::Establishing { takeover, acks, .. } => {
                let Some(pending) = takeover.take() else {
                    return;
                };
                match pending.saved(saved) {
                    Ok(_taken) => {
                        acks.insert(core.config.id);
                    }
                    Err(pending) => *takeover = Some(pending),
                }
                self.count_takeovers(core, outputs);
            }
            _ => {}
        }
    }

    fn count_promises(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let Phase::Promised { epoch, promises } = &mut self.phase else {
            return;
        };
        if !promises.are_enough(&core.config.ensemble) {
            return;
        }
        let epoch = *epoch;
        let takeover = Some(Takeover::begin(core, epoch, outputs));
        let acks = BTreeSet::new();
        self.enter(
            core,
            Phase::Establishing {
                epoch,
                takeover,
                acks,
            },
        );
        // What is durable already need not wait for a flush to say so again.
        self.flushed(core, outputs);
        let answered: Vec<_> = self
            .learners
            .iter()
            .filter_map(|(link, progress)| match progress.stage {
                Stage::Answered { last_logged } => Some((*link, last_logged)),
                _ => None,
            })
            .collect();
        for (link, last_logged) in answered {
            self.synchronize(core, link, last_logged, outputs);
        }
    }

    // Synchronization.

    /// Through where learners are synchronized: see [`plan`].
    const fn sync_point(&self) -> Zxid {
        self.outstanding.committed()
    }

    fn synchronize(
        &mut self,
        core: &CoreState,
        link: LinkId,
        last_logged: Option<Zxid>,
        outputs: &mut Vec<Output<P>>,
    ) {
        let through = self.sync_point();
        let established = matches!(self.phase, Phase::Established { .. });
        let Some(progress) = self.learners.get_mut(&link) else {
            return;
        };
        let last_logged = last_logged.filter(|_| !self.needs_snapshot.contains(&progress.id));
        let message = match (plan(core.log.history(), through, last_logged), last_logged) {
            (SyncPlan::Diff, Some(last)) => {
                progress.sent = last;
                Message::Diff { zxid: through }
            }
            (SyncPlan::Truncate { to }, _) => {
                progress.sent = to;
                Message::Trunc { zxid: to }
            }
            (SyncPlan::Diff, None) | (SyncPlan::Snapshot, _) => {
                // All of the history at the leader's election, lest the learner be set back.
                let through = if established { core.delivered } else { through };
                progress.sent = through;
                progress.stage = Stage::Snapshot;
                outputs.push(Output::SendSnapshot { link, through });
                return;
            }
        };
        outputs.push(Output::Send { link, message });
        self.feed(core, link, outputs);
    }

    /// Sends a learner what it lacks: from the log while that is committed, then the outstanding
    /// proposals and NEWLEADER.
    fn feed(&mut self, core: &CoreState, link: LinkId, outputs: &mut Vec<Output<P>>) {
        let (through, now) = (self.sync_point(), core.now);
        let (Some(epoch), Some(progress)) = (self.phase.epoch(), self.learners.get_mut(&link))
        else {
            return;
        };
        let (after, history) = (progress.sent, core.log.history());
        if after < history.base() {
            // Purged since the last read. To go on here would leave a hole.
            self.history_gone(link, outputs);
            return;
        }
        if history.successor(after).is_some_and(|next| next <= through) {
            progress.stage = Stage::Reading;
            outputs.push(Output::ReadHistory {
                link,
                after,
                through,
            });
            return;
        }
        if !progress.observer {
            for proposal in self.outstanding.iter() {
                progress.sent(proposal.zxid, now);
                let message = Message::Proposal(proposal.clone());
                outputs.push(Output::Send { link, message });
            }
        }
        progress.go_live(through);
        let config = core.config.ensemble.newest_text().clone();
        let message = Message::NewLeader { epoch, config };
        outputs.push(Output::Send { link, message });
    }

    pub(crate) fn history_read(
        &mut self,
        core: &CoreState,
        link: LinkId,
        proposals: Vec<Proposal<P>>,
        outputs: &mut Vec<Output<P>>,
    ) {
        let reading = |progress: &&mut Progress| progress.stage == Stage::Reading;
        let Some(progress) = self.learners.get_mut(&link).filter(reading) else {
            return;
        };
        progress.send_history(link, proposals, core.now, outputs);
        self.feed(core, link, outputs);
    }

    pub(crate) fn history_gone(&mut self, link: LinkId, outputs: &mut Vec<Output<P>>) {
        if let Some(progress) = self.learners.remove(&link) {
            self.needs_snapshot.insert(progress.id);
            outputs.push(Output::Close { link });
        }
    }

    pub(crate) fn snapshot_sent(
        &mut self,
        core: &CoreState,
        link: LinkId,
        zxid: Zxid,
        outputs: &mut Vec<Output<P>>,
    ) {
        let sending = |progress: &&mut Progress| progress.stage == Stage::Snapshot;
        if let Some(progress) = self.learners.get_mut(&link).filter(sending) {
            progress.snapshot_sent(zxid, core.now);
            self.needs_snapshot.remove(&progress.id);
            self.feed(core, link, outputs);
        }
    }

    fn count_takeovers(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let Phase::Establishing { epoch, acks, .. } = &self.phase else {
            return;
        };
        // The leader's own log must be there too: it is what `delivered` is cut at.
        let (me, epoch) = (core.id(), *epoch);
        let enough = core.config.ensemble.is_quorum(|id| acks.contains(&id));
        if enough && acks.contains(&me) {
            self.established(core, epoch, outputs);
        }
    }

    fn established(&mut self, core: &mut CoreState, epoch: Epoch, outputs: &mut Vec<Output<P>>) {
        self.enter(core, Phase::Established { epoch });
        self.moving_since = None;
        self.upkeep_at = core.now.after(core.config.timing.tick_time);
        core.commit_through(self.outstanding.committed(), outputs);
        let me = core.id();
        self.resigned |=
            core.config.mode == Mode::Ensemble && !core.config.ensemble.is_active_voter(me);
        let role = Role::Leading { epoch };
        outputs.push(Output::ChangeRole { role });
        for (link, progress) in &self.learners {
            if progress.stage == Stage::Synced {
                let (link, message) = (*link, Message::UpToDate);
                outputs.push(Output::Send { link, message });
            }
        }
    }

    // Broadcast.

    /// The zxid of the next proposal; `None` while there can be none.
    pub(crate) fn next_zxid(&self, core: &CoreState) -> Option<Zxid> {
        let Phase::Established { epoch } = self.phase else {
            return None;
        };
        if self.resigned || self.is_paused() {
            return None;
        }
        next_zxid(core, epoch)
    }

    /// Whether nothing is proposed for a while, and requests are to wait.
    pub(crate) const fn is_paused(&self) -> bool {
        self.hand_over.is_some() || self.is_between_epochs()
    }

    pub(crate) fn propose(
        &mut self,
        core: &mut CoreState,
        proposal: Proposal<P>,
        outputs: &mut Vec<Output<P>>,
    ) {
        let zxid = proposal.zxid;
        assert_eq!(
            Some(zxid),
            self.next_zxid(core),
            "zxids are assigned by next_zxid"
        );
        core.log.append(zxid);
        request_flush(outputs);
        for (link, progress) in &mut self.learners {
            if progress.is_live() && !progress.observer {
                progress.sent(zxid, core.now);
                let (link, message) = (*link, Message::Proposal(proposal.clone()));
                outputs.push(Output::Send { link, message });
            }
        }
        self.outstanding.propose(proposal);
        if next_zxid(core, zxid.epoch()).is_none() {
            self.begin_new_epoch(core, outputs);
        }
    }

    /// More of the leader's own log is durable.
    pub(crate) fn flushed(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        match &mut self.phase {
            Phase::Establishing { takeover, .. } => {
                *takeover = takeover
                    .take()
                    .map(|pending| pending.flushed(core, outputs));
            }
            Phase::Established { .. } => {
                self.new_epoch_flushed(core, outputs);
                self.commit(core, outputs);
            }
            _ => {}
        }
    }

    fn commit(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let me = core.id();
        let flushed = core.log.flushed();
        let learners = &self.learners;
        let has = |id| match id == me {
            true => Some(flushed),
            false => {
                let links = learners.values().rev().filter(|it| it.id == id);
                links.filter_map(Progress::counts_through).next()
            }
        };
        // What comes before the transaction that sets the next configuration is decided by the present one
        // alone; that transaction and what follows need both.
        let ensemble = &core.config.ensemble;
        let next = ensemble.next_zxid();
        let before = ensemble.reached_by_active(has);
        let behind = next.and_then(|_| ensemble.reached_by_quorum(has));
        while let Some(zxid) = self.outstanding.first() {
            let held = self.outstanding.held_at(self.confirmed);
            if held.is_some_and(|after| zxid > after) {
                break;
            }
            let is_behind = next.is_some_and(|next| zxid >= next);
            let reached = if is_behind { behind } else { before };
            let Some(proposal) = reached.and_then(|through| self.outstanding.commit_next(through))
            else {
                break;
            };
            match next == Some(zxid) {
                true => self.announce_activation(core, proposal, outputs),
                false => self.announce(proposal, outputs),
            }
            // A learner's sync is answered between the two transactions that it was sent between: an
            // Apache learner takes what comes out of order for another server's, and waits for ever.
            self.release_syncs(core, outputs);
        }
        self.announce_run(outputs);
        core.commit_through(self.outstanding.committed(), outputs);
        self.resigned |= !core.config.ensemble.is_active_voter(me);
        self.release_syncs(core, outputs);
        let epoch = self.phase.epoch();
        let used_up = epoch.is_some_and(|epoch| next_zxid(core, epoch).is_none());
        let stuck = used_up && !self.is_between_epochs();
        self.resigned |= stuck && self.outstanding.is_empty();
        self.choose_new_epoch(core, outputs);
        self.drain(core, outputs);
    }

    /// Tells the learners that a proposal is committed. Who is not live yet reads it from the log.
    fn announce(&mut self, proposal: Proposal<P>, outputs: &mut Vec<Output<P>>) {
        let zxid = proposal.zxid;
        self.run = Some(zxid);
        for (link, progress) in &self.learners {
            if progress.is_live() {
                let message = match progress.observer {
                    true => Message::Inform(proposal.clone()),
                    false if progress.takes_runs() => continue,
                    false => Message::Commit { zxid },
                };
                outputs.push(Output::Send {
                    link: *link,
                    message,
                });
            }
        }
    }

    /// The same for the run of proposals that was announced since the last time, to learners that take runs.
    fn announce_run(&mut self, outputs: &mut Vec<Output<P>>) {
        let Some(zxid) = self.run.take() else { return };
        for (link, progress) in &self.learners {
            if progress.is_live() && !progress.observer && progress.takes_runs() {
                outputs.push(Output::Send {
                    link: *link,
                    message: Message::Commit { zxid },
                });
            }
        }
    }

    /// Tells them so of the transaction that sets the next configuration. A leader that has no vote in it
    /// designates another, and is left (ZK: `Leader.getDesignatedLeader`).
    fn announce_activation(
        &mut self,
        core: &CoreState,
        proposal: Proposal<P>,
        outputs: &mut Vec<Output<P>>,
    ) {
        self.announce_run(outputs);
        let (me, zxid) = (core.id(), proposal.zxid);
        let voters = core.config.ensemble.next().map(Ensemble::voters);
        let votes = |id: &ServerId| voters.is_some_and(|voters| voters.contains(id));
        let leader = match votes(&me) {
            true => me,
            false => {
                let learners = self.learners.values().filter(|it| votes(&it.id));
                let reached = learners.filter_map(|it| Some((it.counts_through()?, it.id)));
                reached.max().map_or(me, |(_, id)| id)
            }
        };
        for (link, progress) in self.learners.iter().filter(|(_, it)| it.is_live()) {
            let message = match progress.observer {
                true => Message::InformAndActivate {
                    proposal: proposal.clone(),
                    leader,
                },
                false => Message::CommitAndActivate { zxid, leader },
            };
            outputs.push(Output::Send {
                link: *link,
                message,
            });
        }
    }

    /// Whether a quorum of `ensemble` is synchronized with this leader (ZK: `Leader.isQuorumSynced`).
    pub(crate) fn is_synced_quorum(&self, me: ServerId, ensemble: &Ensemble) -> bool {
        let follows = |it: &Progress| it.stage == Stage::Synced && !it.observer;
        let synced = self.learners.values().filter(|it| follows(it));
        let synced: BTreeSet<ServerId> = synced.map(|it| it.id).collect();
        ensemble.is_quorum(|id| id == me || synced.contains(&id))
    }

    /// Whether a quorum has all through `zxid`, if this server is counted.
    pub(crate) fn others_have(&self, core: &CoreState, zxid: Zxid) -> bool {
        let has = |it: &Progress| it.counts_through().is_some_and(|through| through >= zxid);
        core.config.ensemble.is_quorum(|id| {
            id == core.id() || self.learners.values().any(|it| it.id == id && has(it))
        })
    }

    /// How many rounds of PINGs were begun, and the last that a quorum has answered.
    pub(crate) const fn ping_rounds(&self) -> (u64, u64) {
        (self.round, self.confirmed)
    }

    /// Confirms what is proposed now, once it is committed.
    pub(crate) fn sync(
        &mut self,
        core: &mut CoreState,
        origin: SyncOrigin,
        outputs: &mut Vec<Output<P>>,
    ) {
        // One round at a time: what is asked for while one is under way waits for the next together.
        let is_under_way =
            self.round > self.confirmed && self.outstanding.round_wanted() >= self.round;
        self.outstanding.sync(origin, self.round + 1);
        if !is_under_way {
            self.ping(outputs);
        }
        self.count_pongs(core, outputs);
    }

    /// A quorum still follows: what syncs wait for, lest a leader that was replaced and has not noticed
    /// answer from its own past.
    fn count_pongs(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let me = core.id();
        let voters = self.learners.values();
        let ponged: BTreeMap<ServerId, u64> = voters
            .filter_map(|progress| Some((progress.id, progress.follows_through()?)))
            .collect();
        let reached = core.config.ensemble.reached_by_quorum(|id| match id == me {
            true => Some(self.round),
            false => ponged.get(&id).copied(),
        });
        self.confirmed = self.confirmed.max(reached.unwrap_or(0));
        if matches!(self.phase, Phase::Established { .. }) {
            self.release_syncs(core, outputs);
            // What is behind a sync may have waited for it.
            self.commit(core, outputs);
        }
        if self.outstanding.round_wanted() > self.round {
            self.ping(outputs);
        }
    }

    fn release_syncs(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        while let Some(origin) = self.outstanding.sync_done(core.delivered, self.confirmed) {
            self.announce_run(outputs);
            match origin {
                SyncOrigin::Own(tag) => outputs.push(Output::Synced { tag }),
                SyncOrigin::Learner(link) if self.learners.contains_key(&link) => {
                    let message = Message::Sync;
                    outputs.push(Output::Send { link, message });
                }
                SyncOrigin::Learner(_) => {}
            }
        }
    }

    // Learners come and go.

    pub(crate) fn disconnected(&mut self, link: LinkId, outputs: &mut Vec<Output<P>>) {
        self.learners.remove(&link);
        self.lost_successor(link, outputs);
    }

    /// A voter is in an election of a later round: it has given up on this leader. If those that have
    /// not are no quorum, a candidate need not wait for a time-out (ZOOKEEPER-3109).
    pub(crate) fn disloyal(&mut self, core: &CoreState, from: ServerId) {
        let connected = self.learners.values().any(|progress| progress.id == from);
        if connected || matches!(self.phase, Phase::Established { .. }) {
            return;
        }
        self.disloyal.insert(from);
        let ensemble = &core.config.ensemble;
        self.resigned |= !ensemble.is_quorum(|id| !self.disloyal.contains(&id));
    }

    // Upkeep.

    pub(crate) fn tick(
        &mut self,
        core: &mut CoreState,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let (now, timing) = (core.now, core.config.timing);
        if !matches!(self.phase, Phase::Established { .. }) {
            self.resigned |= now.exceeds(self.phase_since, timing.init_limit);
            // Clients wait.
            let moving_since = self.moving_since;
            self.resigned |= moving_since.is_some_and(|since| now.exceeds(since, timing.tick_time));
        }
        if now >= self.ping_at {
            self.ping_at = now.after(timing.tick_time.div_ceil(2));
            self.ping(outputs);
        }
        if core.config.ensemble.is_alone() {
            self.go_on_alone(core, outputs);
        }
        if now >= self.upkeep_at {
            self.upkeep_at = now.after(timing.tick_time);
            self.check_quorum(core);
        }
        let dropped = self.drop_silent(core, outputs);
        self.hurry(core, outputs);
        self.hurry_new_epoch(core, outputs);
        dropped
    }

    /// The oracle may have just let this server decide: what waited for the other one goes on (ZK:
    /// `revalidateOutstandingProp`).
    fn go_on_alone(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        self.choose_epoch(core, outputs);
        self.count_promises(core, outputs);
        self.count_takeovers(core, outputs);
        self.count_pongs(core, outputs);
    }

    /// Whether another server that votes is connected.
    pub(crate) fn has_voter(&self, core: &CoreState) -> bool {
        let mut learners = self.learners.values();
        learners.any(|it| !it.observer && core.config.ensemble.is_voter(it.id))
    }

    fn ping(&mut self, outputs: &mut Vec<Output<P>>) {
        self.round += 1;
        let round = self.round;
        for (link, progress) in &self.learners {
            // ZK: a learner that is not synchronized does not expect a PING.
            if progress.is_live() {
                let (link, message) = (*link, Message::Ping { round });
                outputs.push(Output::Send { link, message });
            }
        }
    }

    /// Steps down when no quorum has been heard from lately.
    fn check_quorum(&mut self, core: &CoreState) {
        if !matches!(self.phase, Phase::Established { .. }) {
            return;
        }
        let (me, limit) = (core.id(), core.config.timing.sync_limit);
        let alive: BTreeSet<ServerId> = self
            .learners
            .values()
            .filter(|progress| !progress.observer && progress.stage == Stage::Synced)
            .filter(|progress| !core.now.exceeds(progress.heard_at, limit))
            .map(|progress| progress.id)
            .collect();
        let ensemble = &core.config.ensemble;
        self.resigned |= !ensemble.is_quorum(|id| id == me || alive.contains(&id));
    }

    fn drop_silent(
        &mut self,
        core: &CoreState,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let (now, timing) = (core.now, core.config.timing);
        let mut violation = None;
        self.learners.retain(|link, progress| {
            let limit = match progress.stage {
                Stage::Synced => timing.sync_limit,
                // How long a snapshot takes is between the caller and the connection.
                // Who leaves closes its link itself.
                Stage::Snapshot | Stage::Reading | Stage::Leaving => u64::MAX,
                _ => timing.init_limit,
            };
            let late = progress.is_late(now, timing.sync_limit);
            if late {
                violation = Some(Violation::AckTimeout { from: progress.id });
            }
            let dead = late || now.exceeds(progress.heard_at, limit);
            if dead {
                outputs.push(Output::Close { link: *link });
            }
            !dead
        });
        violation.map_or(Ok(()), Err)
    }

    /// Whether it has given up, and only the replica has to be told.
    pub(crate) const fn has_resigned(&self) -> bool {
        self.resigned
    }

    pub(crate) const fn give_up(&mut self) {
        self.resigned = true;
    }

    pub(crate) fn learners(&self) -> impl Iterator<Item = (ServerId, bool, bool)> {
        let learners = self.learners.values();
        learners.map(|it| (it.id, it.observer, it.stage == Stage::Synced))
    }

    pub(crate) fn learner_at(&self, link: LinkId) -> Option<ServerId> {
        self.learners.get(&link).map(|learner| learner.id)
    }

    pub(crate) fn has_learner(&self, link: LinkId) -> bool {
        self.learners.contains_key(&link)
    }

    /// Closes what is open, but for the links of those who were told to leave: to close these too could overtake
    /// what they were told. They are returned.
    pub(crate) fn leave(self, outputs: &mut Vec<Output<P>>) -> BTreeSet<LinkId> {
        let is_leaving = |(link, it): (LinkId, Progress)| match it.stage {
            Stage::Leaving => Ok(link),
            _ => Err(link),
        };
        let mut leaving = BTreeSet::new();
        for left in self.learners.into_iter().map(is_leaving) {
            match left {
                Ok(link) => drop(leaving.insert(link)),
                Err(link) => outputs.push(Output::Close { link }),
            }
        }
        leaving
    }

    /// Whether another leader has handed over to this one, which is not established yet.
    pub(crate) const fn is_moving(&self) -> bool {
        self.moving_since.is_some()
    }

    /// The epoch once a quorum has taken it over.
    pub(crate) const fn established_epoch(&self) -> Option<Epoch> {
        match self.phase {
            Phase::Established { epoch } => Some(epoch),
            _ => None,
        }
    }

    pub(crate) const fn phase_name(&self) -> &'static str {
        match &self.phase {
            Phase::Gathering(_) | Phase::SavingEpoch { .. } => "gathering accepted epochs",
            Phase::Promised { promises, .. } => match promises.are_in_doubt() {
                true => "gathering promises: a torn log, and too few voters to tell what it lost",
                false => "gathering promises",
            },
            Phase::Establishing { .. } => "synchronizing learners",
            Phase::Established { .. } => "leading",
        }
    }
}

pub(crate) fn tell_epoch<P>(
    link: LinkId,
    progress: &mut Progress,
    epoch: Epoch,
    outputs: &mut Vec<Output<P>>,
) {
    progress.stage = Stage::Told;
    let extended = true;
    let message = Message::LeaderInfo { epoch, extended };
    outputs.push(Output::Send { link, message });
}

/// The zxid of the epoch's next proposal; `None` when its counter is used up.
fn next_zxid(core: &CoreState, epoch: Epoch) -> Option<Zxid> {
    let last = core.log.last();
    match core.config.mode {
        // Counter 0 names an epoch's start, so the first of an epoch is 1.
        Mode::Standalone => Some(
            last.next()
                .unwrap_or_else(|| Zxid::new(Epoch(last.epoch().0.saturating_add(1)), 1)),
        ),
        Mode::Ensemble if last.epoch() < epoch => Some(Zxid::new(epoch, 1)),
        // ZK: the last counter is never used.
        Mode::Ensemble => {
            let max = core.config.counter_max;
            last.next().filter(|next| next.counter() <= max)
        }
    }
}
