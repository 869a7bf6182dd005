//! The following side: from connecting to a leader to losing it.
//!
//! ```text
//!   Connecting -> Introduced -> Promising -> Promised -> [Installing ->] Receiving
//!      -> TakingOver -> Taken -> Serving
//! ```
//!
//! Invariants:
//! - no acknowledgement leaves before the flush it speaks of, and none before that of NEWLEADER;
//! - each PROPOSAL gets one ACK, in order, except those that the leader said were committed before
//!   NEWLEADER; a leader that understands more gets one for all that became durable together;
//! - nothing is delivered before UPTODATE: until then no quorum need have what the leader sends, though
//!   it sends COMMIT for its own log's tail too;
//! - every packet is defined in every phase: what is not expected closes the link.

use std::collections::VecDeque;

use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::{Epochs, Output, Role};
use crate::core_state::{CoreState, request_flush};
use crate::discovery::Summary;
use crate::election::Elected;
use crate::log::LogGeneration;
use crate::message::{LinkId, Message, Proposal};
use crate::synchronization::Takeover;
use crate::timer::Moment;
use crate::violation::Violation;

#[derive(Debug)]
pub(crate) struct Learner {
    leader: ServerId,
    observer: bool,
    link: Option<LinkId>,
    phase: Phase,
    /// The leader understands more than Apache's.
    extended: bool,
    /// Whatever a torn write took from the log, the leader's history has it, or it was not committed.
    assured: bool,
    heard_at: Moment,
    lost: bool,
    /// The leader has handed over: who leads next, and the round of the election that this stands for.
    successor: Option<(ServerId, u64)>,
    /// Since when it was to serve again, when the leader before has handed over to this one.
    moving_since: Option<Moment>,
    /// The leader begins another epoch, and leads on.
    new_epoch: Option<NewEpoch>,
}

/// How far this server, which serves, is with its leader's next epoch.
#[derive(Debug)]
enum NewEpoch {
    /// It is being saved as accepted.
    Promising { epoch: Epoch },
    /// ACKEPOCH is sent; waiting for NEWLEADER.
    Promised { epoch: Epoch },
    /// History and epoch are being made durable. The epoch's proposals may come already.
    TakingOver { epoch: Epoch, takeover: Takeover },
}

#[derive(Debug)]
enum Phase {
    /// No connection yet.
    Connecting,
    /// Waiting for LEADERINFO.
    Introduced,
    /// The leader's epoch is being saved as accepted.
    Promising { epoch: Epoch },
    /// ACKEPOCH is sent; waiting for DIFF, TRUNC or SNAP.
    Promised { epoch: Epoch },
    /// A snapshot is coming in and being made durable.
    Installing {
        epoch: Epoch,
        zxid: Zxid,
        generation: LogGeneration,
    },
    /// The leader's history is coming in; waiting for NEWLEADER.
    Receiving { epoch: Epoch, stream: Stream },
    /// NEWLEADER came: history and epoch are being made durable.
    TakingOver {
        epoch: Epoch,
        takeover: Takeover,
        stream: Stream,
    },
    /// NEWLEADER is acknowledged; waiting for UPTODATE.
    Taken { epoch: Epoch, stream: Stream },
    /// Synchronized.
    Serving { epoch: Epoch, stream: Stream },
}

/// The leader's proposals and commits, in order.
#[derive(Debug)]
struct Stream {
    /// Proposals at or below came with the snapshot.
    snapshot: Zxid,
    /// The last one the leader said is committed, or that its DIFF, TRUNC or SNAP began with.
    committed: Zxid,
    /// Proposals in the log that are to be acknowledged, in order.
    to_ack: VecDeque<Zxid>,
    /// Where SYNC packets came: after the commit of these.
    syncs: VecDeque<Zxid>,
    /// ACK and COMMIT speak of runs.
    runs: bool,
}

impl Stream {
    const fn after(committed: Zxid, runs: bool) -> Self {
        Self {
            runs,
            snapshot: Zxid::ZERO,
            committed,
            to_ack: VecDeque::new(),
            syncs: VecDeque::new(),
        }
    }

    fn propose<P>(
        &mut self,
        core: &mut CoreState,
        epoch: Epoch,
        proposal: Proposal<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let (zxid, last_logged) = (proposal.zxid, core.log.last());
        if zxid <= self.snapshot {
            // Apache's snapshots are taken while proposals are already queued; it shows these.
            return Ok(());
        }
        if zxid.epoch() > epoch {
            return Err(Violation::ProposalOrder { zxid, last_logged });
        }
        if zxid != last_logged {
            if !core.log.history().continues_with(zxid) {
                return Err(Violation::ProposalOrder { zxid, last_logged });
            }
            core.log.append(zxid);
            outputs.push(Output::Append { proposal });
            request_flush(outputs);
        }
        // An Apache leader may send a zxid again (an error txn's): not logged twice, but acknowledged.
        self.to_ack.push_back(zxid);
        Ok(())
    }

    fn commit(&mut self, core: &CoreState, zxid: Zxid) -> Result<(), Violation> {
        if zxid <= self.committed || zxid <= self.snapshot {
            return Ok(());
        }
        let history = core.log.history();
        let is_next = match self.runs {
            true => history.contains(zxid),
            false => history.successor(self.committed) == Some(zxid),
        };
        if !is_next {
            return Err(Violation::CommitOrder {
                zxid,
                committed: self.committed,
                last_logged: core.log.last(),
            });
        }
        self.committed = zxid;
        Ok(())
    }

    /// Acknowledges what has become durable, of epochs that are.
    fn ack_flushed<P>(&mut self, core: &CoreState, link: LinkId, outputs: &mut Vec<Output<P>>) {
        while let Some(zxid) = self.to_ack.front().copied()
            && core.log.is_durable_through(zxid)
            && zxid.epoch() <= core.epochs.current
        {
            self.to_ack.pop_front();
            let next = self.to_ack.front();
            let is_last = next.is_none_or(|next| {
                !core.log.is_durable_through(*next) || next.epoch() != zxid.epoch()
            });
            if is_last || !self.runs {
                let message = Message::Ack { zxid };
                outputs.push(Output::Send { link, message });
            }
        }
    }

    /// Tells what is committed and durable here, each SYNC in its place: what was committed after it, though durable
    /// at the same time, is told after it.
    fn deliver<P>(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        core.note_committed(self.committed);
        while let Some(after) = self.syncs.front().copied()
            && core.deliver_until(after, outputs)
        {
            self.syncs.pop_front();
            outputs.push(Output::SyncDone);
        }
        core.commit_through(self.committed, outputs);
    }
}

/// How many unanswered SYNC packets or acknowledgements a leader may cause before it is not believed.
const QUEUE_LEN_MAX: usize = 1 << 20;

impl Learner {
    pub(crate) fn connect<P>(
        core: &CoreState,
        elected: Elected,
        outputs: &mut Vec<Output<P>>,
    ) -> Self {
        let vote = elected.vote;
        let leader = vote.leader;
        outputs.push(Output::Connect { leader });
        let voted_for = Summary {
            current_epoch: vote.peer_epoch,
            last_logged: vote.zxid,
        };
        let reaches = core.doubt().is_none_or(|doubt| doubt <= voted_for);
        Self {
            leader,
            observer: core.config.ensemble.observers().contains(&core.id()),
            link: None,
            phase: Phase::Connecting,
            extended: false,
            assured: reaches || elected.assured,
            heard_at: core.now,
            lost: false,
            successor: None,
            moving_since: None,
            new_epoch: None,
        }
    }

    /// The leader before has handed over to this one.
    pub(crate) fn follow<P>(
        core: &CoreState,
        elected: Elected,
        outputs: &mut Vec<Output<P>>,
    ) -> Self {
        let mut learner = Self::connect(core, elected, outputs);
        learner.moving_since = Some(core.now);
        learner
    }

    pub(crate) fn connected<P>(
        &mut self,
        core: &CoreState,
        leader: ServerId,
        link: LinkId,
        outputs: &mut Vec<Output<P>>,
    ) {
        if leader != self.leader || !matches!(self.phase, Phase::Connecting) {
            outputs.push(Output::Close { link });
            return;
        }
        self.link = Some(link);
        self.phase = Phase::Introduced;
        self.heard_at = core.now;
        let message = Message::LearnerInfo {
            id: core.id(),
            observer: self.observer,
            accepted_epoch: core.accepted_asked(),
            config_version: core.config.ensemble.version(),
            capabilities: Capabilities::OF_LEARNER,
        };
        outputs.push(Output::Send { link, message });
    }

    pub(crate) fn connect_failed(&mut self, leader: ServerId) {
        self.lost |= leader == self.leader && matches!(self.phase, Phase::Connecting);
    }

    pub(crate) fn disconnected(&mut self, link: LinkId) {
        if self.link == Some(link) {
            self.link = None;
            // Until storage has answered it is not known what the log is.
            self.lost |= !matches!(self.phase, Phase::Installing { .. });
        }
    }

    /// A packet of the leader's.
    pub(crate) fn received<P>(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        message: Message<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let unexpected = Violation::Unexpected {
            link,
            packet: message.name(),
            phase: self.phase_name(),
        };
        if self.link != Some(link) {
            outputs.push(Output::Close { link });
            return Err(unexpected);
        }
        self.heard_at = core.now;
        let result = match self.handle(core, link, message, outputs) {
            Ok(true) => Ok(()),
            Ok(false) => Err(unexpected),
            Err(violation) => Err(violation),
        };
        if result.is_err() {
            self.link = None;
            outputs.push(Output::Close { link });
            // Until storage has answered it is not known what the log is.
            self.lost |= !matches!(self.phase, Phase::Installing { .. });
        }
        result
    }

    /// Handles a packet; false if it cannot come now.
    fn handle<P>(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        message: Message<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<bool, Violation> {
        let phase = std::mem::replace(&mut self.phase, Phase::Connecting);
        match (phase, message) {
            (Phase::Introduced, Message::LeaderInfo { epoch, extended }) => {
                self.extended = extended;
                self.leader_info(core, link, epoch, outputs)?;
            }
            (Phase::Promised { epoch }, Message::Diff { .. }) if !core.must_install() => {
                let stream = Stream::after(core.log.last(), self.extended);
                self.phase = Phase::Receiving { epoch, stream };
            }
            (Phase::Promised { epoch }, Message::Trunc { zxid }) if !core.must_install() => {
                self.stop_moving(outputs);
                truncate(core, zxid, outputs)?;
                let stream = Stream::after(zxid, self.extended);
                self.phase = Phase::Receiving { epoch, stream };
            }
            (Phase::Promised { epoch }, Message::Snap { zxid }) => {
                self.stop_moving(outputs);
                keeps_committed(core, zxid)?;
                let generation = core.log.next_generation();
                self.phase = Phase::Installing {
                    epoch,
                    zxid,
                    generation,
                };
                outputs.push(Output::InstallSnapshot {
                    link,
                    zxid,
                    generation,
                });
            }
            (Phase::Receiving { epoch, stream }, Message::NewLeader { epoch: named, .. })
                if named == epoch =>
            {
                self.new_leader(core, epoch, stream, outputs)?;
            }
            (Phase::Taken { epoch, stream }, Message::UpToDate) => {
                self.up_to_date(core, link, epoch, stream, outputs);
                self.lost |= !self.fits(core);
            }
            (phase @ Phase::Serving { .. }, Message::NewEpoch { epoch }) => {
                self.phase = phase;
                self.promise_new_epoch(core, epoch, outputs)?;
            }
            (phase @ Phase::Serving { .. }, Message::NewLeader { epoch, .. })
                if self.has_promised(epoch) =>
            {
                self.phase = phase;
                keeps_committed(core, core.log.last())?;
                let takeover = Takeover::begin(core, epoch, outputs);
                self.new_epoch = Some(NewEpoch::TakingOver { epoch, takeover });
                // What is durable already need not wait for a flush to say so again.
                self.flushed(core, outputs);
            }
            (phase @ Phase::Serving { .. }, Message::HandOver { leader, round }) => {
                self.phase = phase;
                self.handed_over(core, link, (leader, round), outputs);
            }
            (phase, message) => {
                self.phase = phase;
                return self.stream(core, link, message, outputs);
            }
        }
        Ok(true)
    }

    /// The leader's counter is used up. A promise moves the accepted epoch, as to any leader.
    fn promise_new_epoch<P>(
        &mut self,
        core: &mut CoreState,
        epoch: Epoch,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let accepted = core.accepted_asked();
        if epoch <= accepted {
            return Err(Violation::StaleEpoch { epoch, accepted });
        }
        core.accept_epoch(epoch, outputs);
        self.new_epoch = Some(NewEpoch::Promising { epoch });
        Ok(())
    }

    fn has_promised(&self, named: Epoch) -> bool {
        matches!(&self.new_epoch, Some(NewEpoch::Promised { epoch }) if *epoch == named)
    }

    /// Epochs are durable, at a server that serves: its promise, or its takeover.
    fn new_epoch_saved<P>(
        &mut self,
        core: &CoreState,
        link: LinkId,
        saved: Epochs,
        outputs: &mut Vec<Output<P>>,
    ) {
        match self.new_epoch.take() {
            Some(NewEpoch::Promising { epoch }) if saved.accepted >= epoch => {
                self.new_epoch = Some(NewEpoch::Promised { epoch });
                let message = Message::AckEpoch {
                    current_epoch: Some(core.epochs.current),
                    last_logged: Some(core.log.last()),
                    snapshot: false,
                    doubted: None,
                };
                outputs.push(Output::Send { link, message });
            }
            Some(NewEpoch::TakingOver { epoch, takeover }) => match takeover.saved(saved) {
                Ok(taken) => {
                    let message = taken.ack();
                    outputs.push(Output::Send { link, message });
                    if let Phase::Serving {
                        epoch: serving,
                        stream,
                    } = &mut self.phase
                    {
                        *serving = epoch;
                        stream.ack_flushed(core, link, outputs);
                    }
                    let role = self.role();
                    outputs.push(Output::ChangeRole { role });
                }
                Err(takeover) => self.new_epoch = Some(NewEpoch::TakingOver { epoch, takeover }),
            },
            other => self.new_epoch = other,
        }
    }

    /// The leader proposes nothing more. If this server is to lead it has everything, and says so; otherwise
    /// nobody leaves, and an election would be better.
    fn handed_over<P>(
        &mut self,
        core: &CoreState,
        link: LinkId,
        (leader, round): (ServerId, u64),
        outputs: &mut Vec<Output<P>>,
    ) {
        let last = core.log.last();
        let has_all = core.log.is_durable_through(last) && core.delivered == last;
        let is_me = leader == core.id();
        let may_lead = core.config.ensemble.is_active_voter(leader) && (has_all || !is_me);
        if may_lead && is_me {
            let message = Message::HandOver { leader, round };
            outputs.push(Output::Send { link, message });
        }
        self.successor = may_lead.then_some((leader, round));
        self.lost |= !may_lead;
    }

    /// What this server knew may be taken back: it is as if it had lost its leader.
    fn stop_moving<P>(&mut self, outputs: &mut Vec<Output<P>>) {
        if self.moving_since.take().is_some() {
            let role = Role::Looking;
            outputs.push(Output::ChangeRole { role });
        }
    }

    fn leader_info<P>(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        epoch: Epoch,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let accepted = core.accepted_asked();
        // What an observer accepted binds nobody: a candidate that came to nothing must not keep it from the leader
        // until the next election.
        let bound = if self.observer {
            core.epochs.current
        } else {
            accepted
        };
        if epoch < bound {
            return Err(Violation::StaleEpoch { epoch, accepted });
        }
        if epoch > accepted {
            // The promise is durable before the answer leaves.
            core.accept_epoch(epoch, outputs);
            self.phase = Phase::Promising { epoch };
        } else {
            // Promised once already: to promise again could elect two leaders for one epoch.
            self.send_ack_epoch(core, link, epoch, None, outputs);
        }
        Ok(())
    }

    fn send_ack_epoch<P>(
        &mut self,
        core: &CoreState,
        link: LinkId,
        epoch: Epoch,
        current_epoch: Option<Epoch>,
        outputs: &mut Vec<Output<P>>,
    ) {
        self.phase = Phase::Promised { epoch };
        // A blank server's promise proves nothing: it has lost what it promised before. One that only
        // wants a snapshot could promise, but there is no way to tell an Apache leader both.
        let withheld = core.hides_log() || (core.wants_snapshot && !self.extended);
        // A leader that is told of the doubt judges it. An Apache leader would count the promise as any other.
        let counts = !withheld && (self.extended || self.assured);
        let message = Message::AckEpoch {
            current_epoch: current_epoch.filter(|_| counts),
            last_logged: Some(core.log.last()).filter(|_| !withheld),
            snapshot: core.wants_snapshot,
            doubted: core
                .doubt()
                .map(|doubt| doubt.last_logged)
                .filter(|_| counts && self.extended),
        };
        outputs.push(Output::Send { link, message });
    }

    fn new_leader<P>(
        &mut self,
        core: &mut CoreState,
        epoch: Epoch,
        mut stream: Stream,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        keeps_committed(core, core.log.last())?;
        // ZK: what was committed before NEWLEADER needs no acknowledgement of its own.
        let committed = stream.committed;
        stream.to_ack.retain(|zxid| *zxid > committed);
        let takeover = Takeover::begin(core, epoch, outputs);
        self.phase = Phase::TakingOver {
            epoch,
            takeover,
            stream,
        };
        // What is durable already need not wait for a flush to say so again.
        self.flushed(core, outputs);
        Ok(())
    }

    fn up_to_date<P>(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        epoch: Epoch,
        mut stream: Stream,
        outputs: &mut Vec<Output<P>>,
    ) {
        let zxid = Zxid::new(epoch, 0);
        let message = Message::Ack { zxid };
        outputs.push(Output::Send { link, message });
        stream.deliver(core, outputs);
        self.phase = Phase::Serving { epoch, stream };
        self.moving_since = None;
        outputs.push(Output::ChangeRole { role: self.role() });
    }

    /// Packets that come once the history flows.
    fn stream<P>(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        message: Message<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<bool, Violation> {
        let (leader, observer) = (self.leader, self.observer);
        let serving = matches!(self.phase, Phase::Serving { .. });
        let taken = serving || matches!(self.phase, Phase::Taken { .. });
        let mut leaving = false;
        let taking_over = match &self.new_epoch {
            Some(NewEpoch::TakingOver { epoch, .. }) => Some(*epoch),
            _ => None,
        };
        let Some((epoch, stream)) = self.phase.stream_mut() else {
            // ZK: a PING before synchronization is done is passed over.
            return Ok(matches!(message, Message::Ping { .. }));
        };
        let epoch = taking_over.unwrap_or(epoch);
        match message {
            Message::Proposal(_) if observer && serving => {} // ZK: "Ignoring proposal"
            Message::Commit { .. } | Message::CommitAndActivate { .. } if observer && serving => {}
            Message::Proposal(proposal) => stream.propose(core, epoch, proposal, outputs)?,
            Message::Commit { zxid } => stream.commit(core, zxid)?,
            Message::CommitAndActivate {
                zxid,
                leader: designated,
            } => {
                stream.commit(core, zxid)?;
                // The leader hands over, and waits to be left.
                leaving = designated != leader;
            }
            Message::InformAndActivate {
                proposal,
                leader: designated,
            } if observer => {
                let zxid = proposal.zxid;
                if zxid > stream.committed {
                    stream.propose(core, epoch, proposal, outputs)?;
                    stream.commit(core, zxid)?;
                }
                leaving = designated != leader;
            }
            Message::Inform(proposal) if observer => {
                let zxid = proposal.zxid;
                if zxid > stream.committed {
                    stream.propose(core, epoch, proposal, outputs)?;
                    stream.commit(core, zxid)?;
                }
            }
            // An Apache leader would take an answer for the acknowledgement of NEWLEADER.
            Message::Ping { .. } if !taken => {}
            Message::Ping { round } => {
                let message = Message::Ping { round };
                outputs.push(Output::Send { link, message });
            }
            Message::Sync if serving => stream.syncs.push_back(stream.committed),
            Message::Revalidate(payload) if serving => outputs.push(Output::Revalidate {
                link,
                from: leader,
                payload,
            }),
            _ => return Ok(false),
        }
        if observer {
            stream.to_ack.clear();
        }
        if serving {
            stream.deliver(core, outputs);
        }
        if taken {
            stream.ack_flushed(core, link, outputs);
        }
        let is_in_bounds = stream.to_ack.len().max(stream.syncs.len()) <= QUEUE_LEN_MAX;
        self.lost |= leaving || (serving && !self.fits(core));
        Ok(is_in_bounds)
    }

    /// Whether this server's role and its leader are those of the active configuration.
    fn fits(&self, core: &CoreState) -> bool {
        let ensemble = &core.config.ensemble;
        ensemble.observers().contains(&core.id()) == self.observer
            && ensemble.is_active_voter(self.leader)
    }

    /// More of the log is durable.
    pub(crate) fn flushed<P>(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let Some(link) = self.link else { return };
        match std::mem::replace(&mut self.phase, Phase::Connecting) {
            Phase::TakingOver {
                epoch,
                takeover,
                stream,
            } => {
                let takeover = takeover.flushed(core, outputs);
                self.phase = Phase::TakingOver {
                    epoch,
                    takeover,
                    stream,
                };
            }
            Phase::Taken { epoch, mut stream } => {
                stream.ack_flushed(core, link, outputs);
                self.phase = Phase::Taken { epoch, stream };
            }
            Phase::Serving { epoch, mut stream } => {
                self.new_epoch = match self.new_epoch.take() {
                    Some(NewEpoch::TakingOver { epoch, takeover }) => {
                        let takeover = takeover.flushed(core, outputs);
                        Some(NewEpoch::TakingOver { epoch, takeover })
                    }
                    other => other,
                };
                stream.ack_flushed(core, link, outputs);
                stream.deliver(core, outputs);
                self.phase = Phase::Serving { epoch, stream };
            }
            other => self.phase = other,
        }
    }

    /// Epochs are durable.
    pub(crate) fn epoch_saved<P>(
        &mut self,
        core: &mut CoreState,
        saved: Epochs,
        outputs: &mut Vec<Output<P>>,
    ) {
        let Some(link) = self.link else { return };
        if matches!(self.phase, Phase::Serving { .. }) {
            self.new_epoch_saved(core, link, saved, outputs);
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Connecting) {
            Phase::Promising { epoch } if saved.accepted >= epoch => {
                let current = Some(core.summary().current_epoch);
                self.send_ack_epoch(core, link, epoch, current, outputs);
            }
            Phase::TakingOver {
                epoch,
                takeover,
                mut stream,
            } => match takeover.saved(saved) {
                Ok(taken) => {
                    core.wants_snapshot = false;
                    let message = taken.ack();
                    outputs.push(Output::Send { link, message });
                    stream.ack_flushed(core, link, outputs);
                    self.phase = Phase::Taken { epoch, stream };
                }
                Err(takeover) => {
                    self.phase = Phase::TakingOver {
                        epoch,
                        takeover,
                        stream,
                    };
                }
            },
            other => self.phase = other,
        }
    }

    /// Storage has answered: log and tree are the snapshot's, or as before.
    pub(crate) fn snapshot_done(
        &mut self,
        core: &mut CoreState,
        generation: LogGeneration,
        installed: bool,
    ) {
        let Phase::Installing {
            epoch,
            zxid,
            generation: ours,
        } = self.phase
        else {
            return;
        };
        assert_eq!(generation, ours, "the snapshot of another generation");
        if installed {
            core.log.replace(zxid);
            core.damaged = false;
            core.delivered = zxid;
            let mut stream = Stream::after(zxid, self.extended);
            stream.snapshot = zxid;
            self.phase = Phase::Receiving { epoch, stream };
        }
        self.lost |= !installed || self.link.is_none();
    }

    pub(crate) const fn tick(&mut self, core: &CoreState) {
        let limit = match self.phase {
            Phase::Taken { .. } | Phase::Serving { .. } => core.config.timing.sync_limit,
            // How long a snapshot takes is between the caller and the connection.
            Phase::Installing { .. } => return,
            _ => core.config.timing.init_limit,
        };
        self.lost |= core.now.exceeds(self.heard_at, limit);
        if let Some(since) = self.moving_since {
            // Clients wait.
            self.lost |= core.now.exceeds(since, core.config.timing.tick_time);
        }
    }

    /// Gives the leader up; not while storage replaces the log, which is awaited.
    pub(crate) const fn give_up(&mut self) {
        self.lost |= !matches!(self.phase, Phase::Installing { .. });
    }

    /// Whether the leader is lost, and only the replica has to be told.
    pub(crate) const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Who leads next, when the leader has said so.
    pub(crate) const fn successor(&self) -> Option<(ServerId, u64)> {
        self.successor
    }

    pub(crate) fn leave<P>(self, outputs: &mut Vec<Output<P>>) {
        outputs.extend(self.link.map(|link| Output::Close { link }));
    }

    pub(crate) const fn is_observer(&self) -> bool {
        self.observer
    }

    /// The leader's epoch once this server serves.
    pub(crate) const fn serving_epoch(&self) -> Option<Epoch> {
        match self.phase {
            Phase::Serving { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    pub(crate) const fn leader(&self) -> ServerId {
        self.leader
    }

    pub(crate) const fn link(&self) -> Option<LinkId> {
        self.link
    }

    pub(crate) fn role(&self) -> Role {
        let leader = self.leader;
        match self.serving_epoch() {
            None if self.moving_since.is_some() => Role::Moving,
            None => Role::Looking,
            Some(epoch) if self.observer => Role::Observing { leader, epoch },
            Some(epoch) => Role::Following { leader, epoch },
        }
    }

    pub(crate) const fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Connecting => "connecting to the leader",
            Phase::Introduced => "waiting for the leader's epoch",
            Phase::Promising { .. } => "saving the leader's epoch",
            Phase::Promised { .. } => "waiting for the leader's choice",
            Phase::Installing { .. } => "installing a snapshot",
            Phase::Receiving { .. } => "receiving the leader's history",
            Phase::TakingOver { .. } => "making the history durable",
            Phase::Taken { .. } => "waiting for a quorum",
            Phase::Serving { .. } => "following",
        }
    }
}

impl Phase {
    const fn stream_mut(&mut self) -> Option<(Epoch, &mut Stream)> {
        match self {
            Self::Receiving { epoch, stream }
            | Self::TakingOver { epoch, stream, .. }
            | Self::Taken { epoch, stream }
            | Self::Serving { epoch, stream } => Some((*epoch, stream)),
            _ => None,
        }
    }
}

/// A leader whose history lacks what is known to be committed must not be followed.
const fn keeps_committed(core: &CoreState, to: Zxid) -> Result<(), Violation> {
    let committed = core.committed;
    match to.0 < committed.0 {
        true => Err(Violation::LosesCommitted { to, committed }),
        false => Ok(()),
    }
}

fn truncate<P>(
    core: &mut CoreState,
    to: Zxid,
    outputs: &mut Vec<Output<P>>,
) -> Result<(), Violation> {
    keeps_committed(core, to)?;
    if !core.log.history().contains(to) {
        // Cut into a snapshot, or at something that is not here: only a snapshot helps.
        core.wants_snapshot = true;
        let last_logged = core.log.last();
        return Err(Violation::TruncateUnknown { to, last_logged });
    }
    let generation = core.truncate(to);
    outputs.push(Output::Truncate { to, generation });
    request_flush(outputs);
    Ok(())
}
