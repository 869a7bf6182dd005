//! The replica core's state, and what it does in every role: the log's writes, Zab's outputs, and
//! publications.
//!
//! A write's way where this server orders writes (`proposing.rs`): a message from a shard, or a request
//! that a learner has forwarded, is executed against `head` and encoded straight into the open log batch; a
//! batch goes to the log when fewer than [`WRITES_IN_FLIGHT_MAX`] are on their way, so under load the next
//! one fills while one is written: group commit without a delay. Zab hears of the flush and of the learners'
//! acknowledgements, and says what is committed; what is committed is published to the shards.
//!
//! At a learner (`learning.rs`) a client's write goes to the leader, comes back as a proposal, goes to the
//! log, and is applied to `head` and answered when it is committed.
//!
//! Invariants:
//! - Where this server orders writes: `published <= committed <= flushed`, and `head` is the log's end.
//! - Else `published <= head <= committed <= flushed`; `tail` is what the log has above `head`.
//! - Batches are written, committed and published in the order in which they were filled.
//! - Replies exist only in publications.

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ringkeeper_peers::PeerCommand;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Batch, Disk, Durable, EpochState, StorageError, Store, TxnLog};
use ringkeeper_transport::Chain;
use ringkeeper_tree::{Events, Tree};
use ringkeeper_zab::{Epochs, Input, LogGeneration, Output, Proposal, Replica, Role, SyncOrigin};

use crate::core_report::CoreStats;
use crate::errand::{Done, Errand};
use crate::learning::Learning;
use crate::limping::Measuring;
use crate::messages::{ClientMessage, ClientNotice, Now};
use crate::moving::Moving;
use crate::peer_traffic::PeerTraffic;
use crate::publication::{Answer, Publication, ShardSet, Step};
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::standing::{Standing, StandingChange};

/// How many log writes may be on their way at once: one, and a second that fills the device's queue
/// while the first completes.
pub const WRITES_IN_FLIGHT_MAX: usize = 2;

/// Batches under full load: those on their way, one that waits for its turn, and the one that is open.
const BATCHES: usize = WRITES_IN_FLIGHT_MAX + 2;

/// What a transaction may take beside its request's bytes: header, digest, and an ACL that fix-up has
/// expanded. Only decides when a batch is closed early; a longer one still fits.
const TXN_BYTES_BESIDE_BODY: usize = 512;

/// How much of what was committed last is kept in memory.
const RECENT_BYTES_MAX: usize = 16 << 20;

/// What a step counts for when the lag of a shard is measured, in bytes.
const STEP_BYTES: usize = 256;

/// A filled batch until it is published.
#[derive(Debug)]
struct Sealed {
    /// Its last zxid; of a batch without transactions, the last one before it.
    through: Zxid,
    /// The last sync in it or before it.
    sync: u64,
    publication: Publication,
}

/// A transaction in the log that the published tree does not show.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) zxid: Zxid,
    pub(crate) bytes: Bytes,
}

impl Record {
    pub(crate) fn proposal(&self) -> Proposal<Bytes> {
        Proposal {
            zxid: self.zxid,
            payload: self.bytes.clone(),
        }
    }
}

/// Committed transactions, without a gap, up to a bound in bytes.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    records: VecDeque<Record>,
    bytes: usize,
    /// The transaction before the first of them; `None` while there has been none.
    after: Option<Zxid>,
}

impl Recent {
    /// Notes what is committed next.
    pub(crate) fn push(&mut self, record: Record) {
        self.bytes += record.bytes.len();
        self.records.push_back(record);
        while self.bytes > RECENT_BYTES_MAX
            && let Some(record) = self.records.pop_front()
        {
            self.bytes -= record.bytes.len();
            self.after = Some(record.zxid);
        }
    }

    /// Begins anew after `zxid`.
    pub(crate) fn restart(&mut self, zxid: Zxid) {
        *self = Self {
            after: Some(zxid),
            ..Self::default()
        };
    }

    /// Whether all that comes after `zxid` is here.
    pub(crate) fn reaches(&self, zxid: Zxid) -> bool {
        self.after.is_some_and(|after| after <= zxid)
    }

    /// What comes after `zxid`.
    pub(crate) fn since(&self, zxid: Zxid) -> impl Iterator<Item = &Record> {
        let from = self.records.partition_point(|record| record.zxid <= zxid);
        self.records.range(from..)
    }
}

/// The replica core.
#[derive(Debug)]
pub struct Core<D: Disk> {
    pub(crate) settings: Arc<Settings>,
    pub(crate) zab: Replica<Bytes>,
    inputs: VecDeque<Input<Bytes>>,
    outputs: Vec<Output<Bytes>>,
    pub(crate) store: Store<D>,
    /// [`Store::history`] of what is published: storage is ahead of it until an installed tree is shown.
    pub(crate) history: u64,
    pub(crate) log: TxnLog<D>,
    /// Whether there is no ensemble.
    pub(crate) alone: bool,
    pub(crate) standing: Standing,
    standing_changed: bool,
    /// When the election began that is under way, in milliseconds.
    pub(crate) electing_since_ms: Option<u64>,
    /// Whether clients were kept through all changes since the last that was told.
    keeps_clients: bool,
    pub(crate) moving: Moving,
    pub(crate) measuring: Measuring,
    pub(crate) head: Tree,
    /// At a learner: whether `head` is not what is published.
    pub(crate) unpublished: bool,
    /// The batch that is being filled: its records, steps and events.
    pub(crate) batch: Batch<D::Buffer>,
    pub(crate) steps: Vec<Step>,
    pub(crate) events: Events,
    /// Its number; the first is 1.
    pub(crate) batches: u64,
    /// Closed batches that wait for their turn to be written.
    to_write: VecDeque<Batch<D::Buffer>>,
    pub(crate) writes_in_flight: usize,
    flush_wanted: bool,
    /// Epochs that are to be saved one after the other; the first is being saved.
    saving: VecDeque<Epochs>,
    sealed: VecDeque<Sealed>,
    /// Empty in a server without an ensemble, which never needs it.
    pub(crate) tail: VecDeque<Record>,
    /// The last transactions that `tail` had, for learners that lack only these.
    pub(crate) recent: Recent,
    /// Where the bytes of proposals come from.
    pub(crate) payloads: BytesMut,
    /// Syncs of this server's own clients that were asked for while it leads, and how many of them are done: a
    /// quorum has said that it still follows.
    syncs: u64,
    synced: u64,
    pub(crate) committed: Zxid,
    pub(crate) published: Tree,
    pub(crate) sessions: Sessions,
    pub(crate) learning: Learning,
    pub(crate) traffic: PeerTraffic,
    pub(crate) errands: VecDeque<Errand>,
    chain: Chain<Publication>,
    /// Publications that every shard has left behind, until they are disposed of.
    freed: Vec<Publication>,
    pub(crate) notices: Vec<ClientNotice>,
    pub(crate) stats: CoreStats,
    /// The time of the turn.
    pub(crate) now: Now,
}

/// What a core is made of.
#[derive(Debug)]
pub struct CoreParts<D: Disk> {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Zab, before its first tick.
    pub zab: Replica<Bytes>,
    /// Whether there is an ensemble.
    pub alone: bool,
    /// The data directory.
    pub store: Store<D>,
    /// The log.
    pub log: TxnLog<D>,
    /// What recovery found: the state at the last transaction known to be committed.
    pub tree: Tree,
    /// What the log has above it.
    pub tail: Vec<(Zxid, Bytes)>,
    /// No sessions yet: those of `tree` are taken from there when a reign begins.
    pub sessions: Sessions,
    /// Where publications go; each shard has a cursor.
    pub chain: Chain<Publication>,
    /// The time of the first turn.
    pub now: Now,
}

impl<D: Disk> Core<D> {
    /// A core whose tree is what recovery found.
    pub fn new(parts: CoreParts<D>) -> Self {
        let mut log = parts.log;
        log.make_batches(BATCHES);
        let batch = log.new_batch();
        let tail = parts.tail.into_iter();
        let limping = parts.settings.config.limping;
        let mut core = Self {
            settings: parts.settings,
            zab: parts.zab,
            inputs: VecDeque::new(),
            outputs: Vec::new(),
            history: parts.store.history(),
            store: parts.store,
            log,
            alone: parts.alone,
            standing: Standing::Looking,
            standing_changed: true,
            electing_since_ms: None,
            keeps_clients: false,
            moving: Moving::default(),
            measuring: Measuring::new(limping),
            committed: parts.tree.zxid(),
            published: parts.tree.clone(),
            head: parts.tree,
            unpublished: false,
            batch,
            steps: Vec::new(),
            events: Events::new(),
            batches: 1,
            to_write: VecDeque::new(),
            writes_in_flight: 0,
            flush_wanted: false,
            saving: VecDeque::new(),
            sealed: VecDeque::new(),
            syncs: 0,
            synced: 0,
            tail: tail.map(|(zxid, bytes)| Record { zxid, bytes }).collect(),
            recent: Recent::default(),
            payloads: BytesMut::new(),
            sessions: parts.sessions,
            learning: Learning::default(),
            traffic: PeerTraffic::default(),
            errands: VecDeque::new(),
            chain: parts.chain,
            freed: Vec::new(),
            notices: Vec::new(),
            stats: CoreStats::default(),
            now: parts.now,
        };
        core.recent.restart(core.head.zxid());
        if !core.alone {
            core.show_configuration();
            core.published = core.head.clone();
            core.configure_links();
            core.hear_recovered_configurations();
        }
        // The first tick makes a server without an ensemble the leader of itself.
        core.tick();
        core
    }

    /// Before anything else of a turn: all of it happens at one time.
    pub const fn start_turn(&mut self, now: Now) {
        self.now = now;
    }

    /// Some time has passed: one of Zab's ticks. Without an ensemble nothing waits for it.
    pub fn tick(&mut self) {
        self.input(Input::Tick);
        self.watch_itself();
        self.watch_election();
    }

    /// What the oracle says, when that is new.
    pub fn hear_oracle(&mut self, grants: bool) {
        self.input(Input::Oracle { grants });
    }

    /// Takes one message.
    pub fn hear(&mut self, message: ClientMessage) {
        self.hear_or_hold(message);
    }

    pub(crate) fn hear_now(&mut self, message: ClientMessage) {
        match self.standing {
            // Its connection is being closed.
            Standing::Looking => {}
            Standing::ReadOnly => self.hear_read_only(message),
            standing if standing.proposes() => self.hear_as_proposer(message),
            _ => self.hear_as_learner(message),
        }
    }

    pub(crate) fn step(&mut self, zxid: Zxid, before: Option<Box<Tree>>, answer: Answer) {
        let events_end = self.events.len();
        // What nobody is told here is most of what there is in an ensemble, and only its events count.
        if matches!(answer, Answer::Nobody)
            && let Some(last) = self.steps.last_mut()
            && matches!(last.answer, Answer::Nobody)
        {
            (last.zxid, last.events_end) = (zxid, events_end);
            return;
        }
        self.steps.push(Step {
            zxid,
            events_end,
            before,
            answer,
        });
    }

    // The log.

    /// Closes the open batch when a transaction of about `body_bytes` might not fit it.
    pub(crate) fn make_room(&mut self, body_bytes: usize) {
        if !self.batch.has_room(body_bytes + TXN_BYTES_BESIDE_BODY) {
            self.seal();
        }
    }

    /// Closes the open batch.
    fn seal(&mut self) {
        if self.standing.proposes() && !self.steps.is_empty() {
            self.batches += 1;
            let publication = self.take_publication();
            self.sealed.push_back(Sealed {
                through: self.head.zxid(),
                sync: self.syncs,
                publication,
            });
        }
        if !self.batch.is_empty() {
            let next = self.log.new_batch();
            self.to_write.push_back(mem::replace(&mut self.batch, next));
        }
    }

    /// The next log write, when one may be on its way now.
    pub fn next_write(
        &mut self,
    ) -> Option<impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D>> {
        self.release_held();
        if self.writes_in_flight >= WRITES_IN_FLIGHT_MAX {
            return None;
        }
        if self.to_write.is_empty() {
            self.seal();
            // A batch of nothing but refusals needs no write, only its turn.
            self.publish();
        }
        let batch = self.to_write.pop_front()?;
        Some(self.write_batch(batch))
    }

    fn write_batch(
        &mut self,
        batch: Batch<D::Buffer>,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        self.writes_in_flight += 1;
        self.log.write(batch, self.zab.committed())
    }

    /// Hands everything that waits to the log, whatever is on its way: what comes next must find it there.
    pub(crate) fn write_all(&mut self) {
        self.seal();
        while let Some(batch) = self.to_write.pop_front() {
            let written = self.write_batch(batch);
            let work = async move { written.await.map(|_| Done::Written) };
            self.errands.push_back(Errand::Run(Box::pin(work)));
        }
    }

    /// A write has completed.
    pub fn flushed(&mut self) {
        self.writes_in_flight -= 1;
        let flushed = self.durable();
        self.input(flushed);
        self.watch_itself();
    }

    fn durable(&self) -> Input<Bytes> {
        let Durable {
            through,
            generation,
        } = self.log.durable();
        let generation = LogGeneration(generation);
        Input::Flushed {
            through,
            generation,
        }
    }

    /// Attests the last batch of the log, so that damage to it can be told from a torn write.
    pub fn seal_log(
        &mut self,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        self.log.seal(self.zab.committed())
    }

    /// Cuts the log. No snapshot shows more than what was committed, which is never cut.
    fn truncate(&mut self, to: Zxid, generation: LogGeneration) {
        self.write_all();
        self.tail.retain(|record| record.zxid <= to);
        self.log.begin_generation(generation.0);
        self.writes_in_flight += 1;
        let cut = self.log.truncate(to);
        let work = async move { cut.await.map(|_| Done::Written) };
        self.errands.push_back(Errand::Run(Box::pin(work)));
    }

    // Zab.

    /// Lets Zab take one input, and carries out what it says.
    pub(crate) fn input(&mut self, input: Input<Bytes>) {
        self.inputs.push_back(input);
        loop {
            while let Some(input) = self.inputs.pop_front() {
                let mut outputs = mem::take(&mut self.outputs);
                if let Err(violation) = self.zab.step(input, &mut outputs) {
                    tracing::warn!(%violation, "a peer broke the protocol");
                    self.stats.history_violations += u64::from(violation.is_of_history());
                }
                for output in outputs.drain(..) {
                    self.carry_out(output);
                }
                self.outputs = outputs;
            }
            if !mem::take(&mut self.flush_wanted) || self.has_unwritten() {
                break;
            }
            // Nothing is on its way that would report.
            self.inputs.push_back(self.durable());
        }
        if self.standing.proposes() {
            self.publish();
        }
    }

    /// A sync of one of this server's own clients takes its place among the writes: what its batch tells waits
    /// until a quorum has said that it still follows.
    pub(crate) fn sync(&mut self) {
        self.syncs += 1;
        let origin = SyncOrigin::Own(self.syncs);
        self.input(Input::Sync { origin });
    }

    /// Another input, to be taken when the outputs of this one are carried out.
    pub(crate) fn input_next(&mut self, input: Input<Bytes>) {
        self.inputs.push_back(input);
    }

    fn carry_out(&mut self, output: Output<Bytes>) {
        match output {
            Output::SaveEpoch { epochs } => {
                self.saving.push_back(epochs);
                if self.saving.len() == 1 {
                    self.save_epochs(epochs);
                }
            }
            Output::Append { proposal } => self.append(proposal.zxid, proposal.payload),
            Output::Flush => self.flush_wanted = true,
            Output::Truncate { to, generation } => self.truncate(to, generation),
            Output::Commit { through } => {
                self.committed = through;
                if !self.standing.proposes() {
                    self.apply_through(through);
                }
            }
            Output::SyncDone => self.sync_done(),
            Output::Activate => self.configuration_activated(),
            Output::ChangeRole { role } => self.change_role(role),
            Output::Synced { tag } => self.synced = self.synced.max(tag),
            Output::HandedOver { outcome } => self.handed_over(outcome),
            output => self.carry_out_at_peers(output),
        }
    }

    /// A proposal of the leader's goes to the log.
    fn append(&mut self, zxid: Zxid, bytes: Bytes) {
        self.make_room(bytes.len());
        self.batch
            .append(zxid, bytes.len(), |place| place.copy_from_slice(&bytes))
            .expect("its length was checked when it came, and Zab takes no zxid twice");
        self.stats.since_snapshot.add(bytes.len());
        self.tail.push_back(Record { zxid, bytes });
    }

    fn save_epochs(&mut self, epochs: Epochs) {
        let store = self.store.clone();
        let work = async move {
            let state = EpochState {
                accepted: epochs.accepted,
                current: epochs.current,
                is_member: epochs.member,
                doubted_through: epochs.doubted,
            };
            store.save_epoch_state(state).await?;
            Ok(Done::EpochsSaved(epochs))
        };
        self.errands.push_back(Errand::Run(Box::pin(work)));
    }

    /// An errand is done.
    pub fn done(&mut self, done: Done) {
        match done {
            Done::Written => self.flushed(),
            Done::EpochsSaved(epochs) => {
                self.saving.pop_front();
                if let Some(next) = self.saving.front() {
                    self.save_epochs(*next);
                }
                self.input(Input::EpochSaved { epochs });
            }
            Done::Read { link, proposals } => self.history_read(link, proposals),
            Done::Installed => self.snapshot_installed(),
        }
        self.take_forwarded();
    }

    fn change_role(&mut self, role: Role) {
        // What is committed is told before its clients are.
        let had_led = self.standing.proposes();
        let standing = Standing::of(role, self.alone);
        if self.standing.goes_on_as(standing) {
            tracing::info!(?standing, committed = %self.committed, "another epoch, the same leader");
            self.stand(standing, true);
            return;
        }
        let moves = standing == Standing::Moving;
        if had_led {
            if moves {
                self.seal();
            }
            self.publish();
        } else {
            self.publish_applied();
        }
        // Who waits for an answer that can no longer be given here has to look for a server again.
        let keeps_clients = match moves {
            true => self.sealed.is_empty(),
            false => self.standing == Standing::Moving && standing.is_serving(),
        };
        // Sessions that only this server knows would not outlive the change unharmed.
        let keeps_clients = keeps_clients && !self.settings.local_sessions();
        let epoch = match standing {
            Standing::Leading(epoch) => Some(epoch.0),
            _ => None,
        };
        tracing::info!(standing = standing.name(), leads_epoch = epoch, committed = %self.committed,
            "{}", if standing.is_serving() { "serving" } else { "looking for a leader" });
        if had_led {
            // What of it is in the log waits there for the next leader to settle.
            self.write_all();
            self.sealed.clear();
            self.head = self.published.clone();
        }
        self.stand(standing, keeps_clients);
        self.synced = self.syncs;
        if moves {
            self.begin_to_move();
        }
        if keeps_clients && !moves {
            self.end_to_move();
        }
        if !keeps_clients {
            // Clients are told by the end of their connections.
            self.steps.clear();
            self.events.clear();
            self.forget_held();
        }
        if !(keeps_clients && moves) {
            self.learning.clear();
        }
        self.traffic.forget_requests();
        if self.serves_observers() {
            // Observers are to leave the leader alone.
            let open = !standing.proposes();
            self.send_command(PeerCommand::ServeObservers { open });
        }
        if had_led {
            self.apply_through(self.committed);
        }
        if standing.proposes() {
            assert!(
                self.tail.is_empty(),
                "a leader's history is committed before it leads"
            );
            self.publish_applied();
            let now_ms = self.now.monotonic_ms();
            if !keeps_clients {
                self.sessions.clear();
            }
            self.sessions.restart(self.head.sessions(), now_ms);
            self.measuring.begin_reign(now_ms);
        } else if keeps_clients {
            self.sessions.keep_own();
        } else {
            self.sessions.clear();
        }
    }

    /// Whoever serves clients hears of it at the end of the turn.
    pub(crate) const fn stand(&mut self, standing: Standing, keeps_clients: bool) {
        self.keeps_clients &= keeps_clients;
        self.standing = standing;
        self.standing_changed = true;
    }

    // Publications.

    /// Publishes every batch that is committed.
    fn publish(&mut self) {
        let mut published = false;
        let mut told = ShardSet::default();
        while let Some(sealed) = self.sealed.front()
            && sealed.through <= self.committed
            && sealed.sync <= self.synced
            && let Some(Sealed {
                publication,
                through,
                ..
            }) = self.sealed.pop_front()
        {
            while self.tail.front().is_some_and(|it| it.zxid <= through)
                && let Some(record) = self.tail.pop_front()
            {
                self.recent.push(record);
            }
            told.add_all(&publication);
            self.append_publication(publication);
            published = true;
        }
        if published {
            self.chain.ring_some(|shard| told.contains(shard));
        }
    }

    /// Publishes what a learner has applied since the last time.
    pub(crate) fn publish_applied(&mut self) {
        if self.steps.is_empty() && !mem::take(&mut self.unpublished) {
            return;
        }
        self.unpublished = false;
        let publication = self.take_publication();
        let mut told = ShardSet::default();
        told.add_all(&publication);
        self.batches += 1;
        self.append_publication(publication);
        self.chain.ring_some(|shard| told.contains(shard));
    }

    /// The state, and what has happened since the last publication.
    fn take_publication(&mut self) -> Publication {
        // The next one is about as large as this one; growing its vectors step by step would copy them.
        let steps = Vec::with_capacity(self.steps.len().next_power_of_two());
        let events = Events::with_room_of(&self.events);
        Publication {
            tree: self.head.clone(),
            steps: mem::replace(&mut self.steps, steps),
            events: mem::replace(&mut self.events, events),
        }
    }

    fn append_publication(&mut self, publication: Publication) {
        let bytes = publication.steps.len() * STEP_BYTES;
        self.published = publication.tree.clone();
        self.chain.append(publication, bytes, &mut self.freed);
    }

    /// After a turn: what was applied is published, what every shard has left behind is disposed of.
    pub fn end_turn(&mut self) {
        self.watch_election();
        if !self.standing.proposes() {
            self.publish_applied();
        }
        self.freed.clear();
    }

    /// What connections are to be told, oldest first; to be delivered at the end of the turn.
    pub fn notices(&mut self) -> impl Iterator<Item = ClientNotice> + '_ {
        self.notices.drain(..)
    }

    /// What this server is, if that has changed. Shards hear of it after the publications of the turn and
    /// before its notices.
    pub fn take_standing(&mut self) -> Option<StandingChange> {
        let keeps_clients = mem::replace(&mut self.keeps_clients, true);
        mem::take(&mut self.standing_changed).then_some(StandingChange {
            standing: self.standing,
            keeps_clients,
        })
    }

    /// What the links to other members are to do, in order; to be done at the end of the turn.
    pub fn commands(&mut self) -> impl Iterator<Item = PeerCommand> + '_ {
        self.traffic.commands.drain(..)
    }

    /// What else is to be done, in order.
    pub fn next_errand(&mut self) -> Option<Errand> {
        self.errands.pop_front()
    }

    // What others look at.

    /// What this server is.
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// What has been counted.
    pub const fn stats_mut(&mut self) -> &mut CoreStats {
        &mut self.stats
    }

    /// The configuration.
    pub const fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The log.
    pub const fn log(&self) -> &TxnLog<D> {
        &self.log
    }

    /// Which history the state that is published belongs to: to be noted when a snapshot of it begins, and given to
    /// [`Store::register_snapshot_of`] when it is written.
    pub const fn history(&self) -> u64 {
        self.history
    }

    /// The state that is published.
    pub const fn published_tree(&self) -> &Tree {
        &self.published
    }

    /// Zab's part.
    pub const fn zab(&self) -> &Replica<Bytes> {
        &self.zab
    }

    /// Gives up the role: the server stops.
    pub fn retire(&mut self) {
        if !self.alone {
            let resynchronize = false;
            self.input(Input::GiveUp { resynchronize });
        }
    }

    /// Whether nothing waits to be written or published.
    pub fn is_idle(&self) -> bool {
        !self.has_unwritten() && self.steps.is_empty() && self.sealed.is_empty()
    }

    fn has_unwritten(&self) -> bool {
        self.writes_in_flight > 0 || !self.batch.is_empty() || !self.to_write.is_empty()
    }
}
