//! The replica core's state: it orders every write, and no reply leaves before its write is durable.
//!
//! A write's way: a message from a shard is executed against `head` and encoded straight into the
//! open log batch; a batch goes to the log when fewer than [`WRITES_IN_FLIGHT_MAX`] are on their way,
//! so under load the next one fills while one is written: group commit without a delay. Zab hears of
//! the flush and says what is committed; what is committed is published to the shards.
//!
//! Invariants:
//! - `published <= committed <= flushed <= head.zxid()`.
//! - Batches are written, committed and published in the order in which they were filled.
//! - Replies exist only in publications.

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::sync::Arc;

use ringkeeper_config::ContainersConfig;
use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::txn::{encode_record, record_len};
use ringkeeper_proto::{LossyText, OpCode, Request, SessionId, ZkError, Zxid};
use ringkeeper_storage::{Batch, Disk, StorageError, TxnLog};
use ringkeeper_transport::Chain;
use ringkeeper_tree::execute::{
    Executed, execute, execute_bytes, execute_close_session, execute_create_session,
};
use ringkeeper_tree::{Context, Event, Node, SessionState, Tree, sweep};
use ringkeeper_zab::{Input, Output, Replica};

use crate::core_report::CoreStats;
use crate::messages::{ClientMessage, ClientNotice, Now, WriteMessage};
use crate::publication::{Answer, ClientKey, Publication, ShardSet, Step};
use crate::sessions::Sessions;
use crate::settings::Settings;

/// How many log writes may be on their way at once: one, and a second that fills the device's queue
/// while the first completes.
pub const WRITES_IN_FLIGHT_MAX: usize = 2;

/// What a transaction may take beside its request's bytes: header, digest, and an ACL that fix-up has
/// expanded. Only decides when a batch is closed early; a longer one still fits.
const TXN_BYTES_BESIDE_BODY: usize = 512;

/// What a step counts for when the lag of a shard is measured, in bytes.
const STEP_BYTES: usize = 256;

/// A filled batch until it is published.
#[derive(Debug)]
struct Sealed {
    /// Its last zxid; of a batch without transactions, the last one before it.
    through: Zxid,
    publication: Publication,
}

/// The replica core.
#[derive(Debug)]
pub struct Core<D: Disk> {
    pub(crate) settings: Arc<Settings>,
    zab: Replica<()>,
    outputs: Vec<Output<()>>,
    pub(crate) log: TxnLog<D>,
    head: Tree,
    /// The batch that is being filled: its records, steps and events.
    batch: Batch<D::Buffer>,
    steps: Vec<Step>,
    events: Vec<Event>,
    /// Its number; the first is 1.
    batches: u64,
    /// Closed batches that wait for their turn to be written.
    to_write: VecDeque<Batch<D::Buffer>>,
    writes_in_flight: usize,
    sealed: VecDeque<Sealed>,
    committed: Zxid,
    published: Tree,
    pub(crate) sessions: Sessions,
    chain: Chain<Publication>,
    /// Publications that every shard has left behind, until they are disposed of.
    freed: Vec<Publication>,
    notices: Vec<ClientNotice>,
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
    pub zab: Replica<()>,
    /// The log.
    pub log: TxnLog<D>,
    /// What recovery found.
    pub tree: Tree,
    /// The sessions of `tree`.
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
        let batch = log.new_batch();
        let mut core = Self {
            settings: parts.settings,
            zab: parts.zab,
            outputs: Vec::new(),
            log,
            committed: parts.tree.zxid(),
            published: parts.tree.clone(),
            head: parts.tree,
            batch,
            steps: Vec::new(),
            events: Vec::new(),
            batches: 1,
            to_write: VecDeque::new(),
            writes_in_flight: 0,
            sealed: VecDeque::new(),
            sessions: parts.sessions,
            chain: parts.chain,
            freed: Vec::new(),
            notices: Vec::new(),
            stats: CoreStats::default(),
            now: parts.now,
        };
        // The first tick makes a server without an ensemble the leader of itself.
        core.input(Input::Tick);
        core
    }

    /// Before anything else of a turn: all of it happens at one time.
    pub const fn start_turn(&mut self, now: Now) {
        self.now = now;
    }

    /// Takes one message.
    pub fn hear(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::NewSession { from, timeout_ms } => self.new_session(from, timeout_ms),
            ClientMessage::Reconnect {
                from,
                session,
                timeout_ms,
            } => {
                self.reconnect(from, session, timeout_ms);
            }
            ClientMessage::Write(write) => self.write(&write),
            ClientMessage::Disconnected { from, session } => self.sessions.detach(session, from),
        }
    }

    fn new_session(&mut self, to: ClientKey, timeout_ms: i32) {
        let session = self.sessions.open(timeout_ms, to, self.now.monotonic_ms());
        self.own(
            session.session,
            Answer::Session { to, session },
            |head, zxid, context, _| execute_create_session(head, zxid, timeout_ms, context),
        );
    }

    fn reconnect(&mut self, from: ClientKey, session: SessionId, timeout_ms: i32) {
        let now_ms = self.now.monotonic_ms();
        match self.sessions.reattach(session, timeout_ms, from, now_ms) {
            None => self.notices.push(ClientNotice::Expired { to: from }),
            Some((session, None)) => {
                self.notices
                    .push(ClientNotice::Attach { to: from, session });
            }
            Some((session, Some(client))) => {
                self.notices.push(ClientNotice::Detach {
                    client,
                    then: from,
                    session,
                });
            }
        }
    }

    fn write(&mut self, write: &WriteMessage) {
        let &WriteMessage {
            from: to,
            session,
            xid,
            op,
            keep_before,
            ..
        } = write;
        self.make_room(write.body.len());
        let last_batch = self.sessions.note_write(session, self.batches);
        // Reads that wait behind a write of an earlier batch are answered when that is published.
        let keep_before = keep_before && last_batch == Some(self.batches);
        let before = keep_before.then(|| self.head.clone());
        if op == OpCode::Sync {
            // Its place in the order is its meaning: everything before it is committed when it is
            // answered.
            let answer = Answer::Write {
                to,
                xid,
                outcome: Ok(WriteReply::Empty),
            };
            self.step(self.head.zxid(), before, answer);
            return;
        }
        if let Err(error) = self.admit(write) {
            let answer = Answer::Write {
                to,
                xid,
                outcome: Err(error),
            };
            self.step(self.head.zxid(), before, answer);
            return;
        }
        let settings = Arc::clone(&self.settings);
        let context = Context {
            session,
            session_state: if last_batch.is_some() {
                SessionState::Live
            } else {
                SessionState::Closing
            },
            cxid: xid.0,
            time_ms: self.now.wall_ms,
            identities: &write.identities,
            settings: &settings.tree,
        };
        let zxid = self.next_zxid();
        let (head, events) = (&mut self.head, &mut self.events);
        let text = LossyText::new();
        let executed = match execute_bytes(head, zxid, op, &write.body, &text, &context, events) {
            Ok(executed) => executed,
            Err(error) => {
                let answer = Answer::Write {
                    to,
                    xid,
                    outcome: Err(error),
                };
                self.step(self.head.zxid(), before, answer);
                return;
            }
        };
        if op == OpCode::CloseSession {
            self.sessions.close(session);
        }
        self.record(executed, before, |outcome| Answer::Write {
            to,
            xid,
            outcome,
        });
    }

    /// Whether a write may be executed now.
    ///
    /// # Errors
    /// When the disk is full, or when the write has waited too long (`throttled_op_wait_time`).
    fn admit(&mut self, write: &WriteMessage) -> Result<(), ZkError> {
        if write.op == OpCode::CloseSession {
            return Ok(());
        }
        let wait_ms_max = self.settings.config.throttle.op_wait_ms_max;
        if let Some(wait_ms_max) = wait_ms_max
            && self.now.monotonic_us - write.arrived_us > u64::from(wait_ms_max) * 1000
        {
            self.stats.throttled += 1;
            return Err(ZkError::ThrottledOp);
        }
        let Err(error) = self.log.admits() else {
            return Ok(());
        };
        self.stats.refused += 1;
        if self.stats.refused.is_power_of_two() {
            tracing::error!(%error, refused = self.stats.refused, "writes are refused");
        }
        // Nothing of it is in Apache's protocol; -1 is what its clients show as a system error.
        Err(ZkError::SystemError)
    }

    /// Executes a transaction of the server's own, in the name of `session`.
    fn own<'x>(
        &mut self,
        session: SessionId,
        answer: Answer,
        execute: impl FnOnce(&mut Tree, Zxid, &Context<'_>, &mut Vec<Event>) -> Executed<'x>,
    ) {
        self.make_room(0);
        let settings = Arc::clone(&self.settings);
        let context = Context {
            session,
            ..Context::internal(self.now.wall_ms, &settings.tree)
        };
        let zxid = self.next_zxid();
        let executed = execute(&mut self.head, zxid, &context, &mut self.events);
        self.record(executed, None, |_| answer);
    }

    fn next_zxid(&self) -> Zxid {
        self.zab
            .next_zxid()
            .expect("a server without an ensemble always leads")
    }

    /// Encodes a transaction into the open batch.
    fn record(
        &mut self,
        executed: Executed<'_>,
        before: Option<Tree>,
        answer: impl FnOnce(Result<WriteReply, ZkError>) -> Answer,
    ) {
        let Executed {
            header,
            txn,
            outcome,
            digest,
            warnings,
        } = executed;
        for warning in warnings {
            self.stats.warn_of_quota(&warning, self.now.monotonic_ms());
        }
        let digest = self.settings.config.ensemble.tree_digest.then_some(&digest);
        let len = record_len(&txn, digest.is_some());
        self.batch
            .append(header.zxid, len, |mut place| {
                encode_record(&header, &txn, digest, &mut place)
            })
            .expect("execute keeps transactions within the limit, and zxids grow");
        self.stats.logged(header.zxid, self.head.digest(), len);
        self.input(Input::Proposed {
            zxid: header.zxid,
            payload: (),
        });
        self.step(header.zxid, before, answer(outcome));
    }

    fn step(&mut self, zxid: Zxid, before: Option<Tree>, answer: Answer) {
        self.steps.push(Step {
            zxid,
            events_end: self.events.len(),
            before,
            answer,
        });
    }

    /// Closes the open batch when a transaction of about `body_bytes` might not fit it.
    fn make_room(&mut self, body_bytes: usize) {
        if !self.batch.has_room(body_bytes + TXN_BYTES_BESIDE_BODY) {
            self.seal();
        }
    }

    /// Closes the open batch.
    fn seal(&mut self) {
        if self.steps.is_empty() {
            return;
        }
        self.batches += 1;
        // The next batch is about as large as this one; growing its vectors step by step would copy them.
        let steps = Vec::with_capacity(self.steps.len());
        let events = Vec::with_capacity(self.events.len());
        let publication = Publication {
            tree: self.head.clone(),
            steps: mem::replace(&mut self.steps, steps),
            events: mem::replace(&mut self.events, events),
        };
        self.sealed.push_back(Sealed {
            through: self.head.zxid(),
            publication,
        });
        if !self.batch.is_empty() {
            let next = self.log.new_batch();
            self.to_write.push_back(mem::replace(&mut self.batch, next));
        }
    }

    /// The next log write, when one may be on its way now.
    pub fn next_write(
        &mut self,
    ) -> Option<impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D>> {
        if self.writes_in_flight >= WRITES_IN_FLIGHT_MAX {
            return None;
        }
        if self.to_write.is_empty() {
            self.seal();
            // A batch of nothing but refusals needs no write, only its turn.
            self.publish();
        }
        let batch = self.to_write.pop_front()?;
        self.writes_in_flight += 1;
        Some(self.log.write(batch, self.committed))
    }

    /// A write has completed: everything up to `through` is durable.
    pub fn flushed(&mut self, through: Zxid) {
        self.writes_in_flight -= 1;
        self.input(Input::Flushed {
            through,
            generation: self.zab.log_generation(),
        });
        self.publish();
    }

    fn input(&mut self, input: Input<()>) {
        let mut outputs = mem::take(&mut self.outputs);
        self.zab
            .step(input, &mut outputs)
            .expect("a server without an ensemble has no peer that could break the protocol");
        let mut flush_wanted = false;
        for output in outputs.drain(..) {
            match output {
                Output::Commit { through } => self.committed = through,
                Output::Flush => flush_wanted = true,
                _ => {}
            }
        }
        self.outputs = outputs;
        // What is recovered is durable; everything else is answered when its batch is written.
        if flush_wanted && self.batch.is_empty() && self.sealed.is_empty() && self.steps.is_empty()
        {
            let through = self.log.durable_through().max(self.committed);
            if through == self.head.zxid() && self.zab.delivered() < through {
                self.input(Input::Flushed {
                    through,
                    generation: self.zab.log_generation(),
                });
            }
        }
    }

    /// Publishes every batch that is committed.
    fn publish(&mut self) {
        let mut published = false;
        let mut told = ShardSet::default();
        while let Some(sealed) = self.sealed.front()
            && sealed.through <= self.committed
            && let Some(Sealed { publication, .. }) = self.sealed.pop_front()
        {
            let bytes = publication.steps.len() * STEP_BYTES;
            told.add_all(&publication);
            self.published = publication.tree.clone();
            self.chain.append(publication, bytes, &mut self.freed);
            published = true;
        }
        if published {
            self.chain.ring_some(|shard| told.contains(shard));
        }
    }

    /// What connections are to be told, oldest first; to be delivered at the end of the turn.
    pub fn notices(&mut self) -> impl Iterator<Item = ClientNotice> + '_ {
        self.notices.drain(..)
    }

    /// After a turn: what every shard has left behind is disposed of.
    pub fn end_turn(&mut self) {
        self.freed.clear();
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

    /// When [`Core::expire_sessions`] has something to look at next, in milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.sessions.next_due_ms()
    }

    /// The state that is published.
    pub const fn published_tree(&self) -> &Tree {
        &self.published
    }

    /// Attests the last batch of the log, so that damage to it can be told from a torn write.
    pub fn seal_log(
        &mut self,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        self.log.seal(self.committed)
    }

    /// Whether nothing waits to be written or published.
    pub fn is_idle(&self) -> bool {
        self.writes_in_flight == 0
            && self.steps.is_empty()
            && self.to_write.is_empty()
            && self.sealed.is_empty()
    }

    /// Closes the sessions that have expired.
    pub fn expire_sessions(&mut self) {
        for session in self.sessions.expired(self.now.monotonic_ms()) {
            tracing::info!(%session, "session expired");
            self.stats.sessions_expired += 1;
            let Some(closed) = self.sessions.close(session) else {
                continue;
            };
            let answer = closed
                .owner
                .map_or(Answer::Nobody, |to| Answer::Dropped { to });
            self.own(session, answer, execute_close_session);
        }
    }

    /// Containers that are empty and TTL znodes that have expired.
    pub fn deletable_containers(&self) -> Vec<String> {
        let never_used_ms_max = self.containers().never_used_ms_max.unwrap_or(0);
        let never_used_ms_max = i64::try_from(never_used_ms_max).unwrap_or(i64::MAX);
        sweep::expired(&self.published, self.now.wall_ms, never_used_ms_max)
            .map(str::to_owned)
            .collect()
    }

    /// Deletes a container or a TTL znode, unless it has become used meanwhile.
    pub fn delete_container(&mut self, path: &str) {
        // The sweep looked at what is published, and this znode may be on its way out already.
        let is_empty = |node: Node<'_>| node.num_children() == 0;
        if !self.head.get(path).is_some_and(is_empty) {
            return;
        }
        self.own(
            SessionId::NONE,
            Answer::Nobody,
            |head, zxid, context, events| {
                execute(
                    head,
                    zxid,
                    &Request::DeleteContainer { path },
                    context,
                    events,
                )
            },
        );
    }

    /// How containers are to be deleted.
    pub fn containers(&self) -> &ContainersConfig {
        &self.settings.config.containers
    }
}
