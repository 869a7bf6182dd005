//! Requests where this server orders writes: alone, or as leader.

use bytes::Bytes;
use ringkeeper_config::ContainersConfig;
use ringkeeper_proto::quorum::{ForwardedRequest, Revalidated, Revalidation};
use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::txn::{encode_record, record_len};
use ringkeeper_proto::{Id, LossyText, OpCode, Reader, Request, SessionId, ZkError, Zxid};
use ringkeeper_storage::Disk;
use ringkeeper_tree::execute::{
    Executed, execute, execute_bytes, execute_close_session, execute_create_session, execute_error,
};
use ringkeeper_tree::{Context, Events, Node, SessionState, Tree, sweep};
use ringkeeper_zab::{Input, LinkId, Message, SyncOrigin};

use crate::core::{Core, Record};
use crate::messages::{ClientMessage, ClientNotice, WriteMessage};
use crate::publication::{Answer, ClientKey};
use crate::sessions::Holder;

/// Memory for proposals that is got at once.
const PAYLOADS_BYTES: usize = 64 * 1024;

impl<D: Disk> Core<D> {
    pub(crate) fn hear_as_proposer(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::NewSession { from, timeout_ms } => self.new_session(from, timeout_ms),
            ClientMessage::Reconnect {
                from,
                session,
                timeout_ms,
            } => self.reconnect(from, session, timeout_ms),
            ClientMessage::Write(write) => self.write(&write),
            ClientMessage::Disconnected { from, session } => {
                self.sessions.detach(session, from);
            }
        }
    }

    fn new_session(&mut self, to: ClientKey, timeout_ms: i32) {
        if self.settings.local_sessions() {
            self.new_local_session(to, timeout_ms);
            return;
        }
        let (id, now_ms) = (self.sessions.next_id(), self.now.monotonic_ms());
        let holder = Holder::Client(to);
        let session = self.sessions.insert(id, timeout_ms, holder, now_ms);
        self.own(
            id,
            Answer::Session { to, session },
            |head, zxid, context, _| execute_create_session(head, zxid, timeout_ms, context),
        );
    }

    fn reconnect(&mut self, from: ClientKey, session: SessionId, timeout_ms: i32) {
        let (now_ms, holder) = (self.now.monotonic_ms(), Holder::Client(from));
        let reattached = self.sessions.reattach(session, timeout_ms, holder, now_ms);
        self.tell_reattached(from, reattached);
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
        if let Some(Ok(timeout_ms)) = self.upgrade_for(session, op, &write.body) {
            self.own(session, Answer::Nobody, |head, zxid, context, _| {
                execute_create_session(head, zxid, timeout_ms, context)
            });
        }
        self.make_room(write.body.len());
        let from = Holder::Client(to);
        let (state, last_batch) = self.sessions.note_write(session, from, self.batches);
        // Reads that wait behind a write of an earlier batch are answered when that is published.
        let keep_before = keep_before && last_batch == Some(self.batches);
        let before = keep_before.then(|| Box::new(self.head.clone()));
        let answer = |outcome| Answer::Write { to, xid, outcome };
        // A sync's place in the order is its meaning: everything before it is committed when it is
        // answered.
        let refused = match op {
            OpCode::Sync => Some(Ok(WriteReply::Empty)),
            OpCode::CloseSession if state == SessionState::Local => {
                self.sessions.close(session);
                Some(Ok(WriteReply::Empty))
            }
            _ => self.admit(write).err().map(Err),
        };
        if op == OpCode::Sync && !self.alone {
            self.sync();
        }
        if let Some(outcome) = refused {
            self.step(self.head.zxid(), before, answer(outcome));
            return;
        }
        let asked = Asked {
            session,
            state,
            cxid: xid.0,
            op,
            body: &write.body,
            identities: &write.identities,
        };
        self.propose(&asked, before, answer);
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

    /// Executes a request and proposes what comes of it.
    fn propose(
        &mut self,
        asked: &Asked<'_>,
        before: Option<Box<Tree>>,
        answer: impl FnOnce(Result<WriteReply, ZkError>) -> Answer,
    ) {
        if asked.op == OpCode::Reconfig && !self.alone {
            self.propose_reconfiguration(asked, before, answer);
            return;
        }
        let Some(zxid) = self.next_zxid() else {
            return;
        };
        let context = asked.context(self.now.wall_ms, &self.settings.tree);
        let (head, events) = (&mut self.head, &mut self.events);
        let text = LossyText::new();
        let (op, body) = (asked.op, asked.body);
        let executed = match execute_bytes(head, zxid, op, body, &text, &context, events) {
            Ok(executed) => executed,
            Err(error) => {
                self.step(self.head.zxid(), before, answer(Err(error)));
                return;
            }
        };
        if op == OpCode::CloseSession {
            self.sessions.close(asked.session);
        }
        self.record(executed, before, answer);
    }

    /// Executes a transaction of the server's own, in the name of `session`.
    pub(crate) fn own<'x>(
        &mut self,
        session: SessionId,
        answer: Answer,
        execute: impl FnOnce(&mut Tree, Zxid, &Context<'_>, &mut Events) -> Executed<'x>,
    ) {
        self.make_room(0);
        let Some(zxid) = self.next_zxid() else {
            return;
        };
        let context = Context {
            session,
            ..Context::internal(self.now.wall_ms, &self.settings.tree)
        };
        let executed = execute(&mut self.head, zxid, &context, &mut self.events);
        self.record(executed, None, |_| answer);
    }

    /// The zxid of the next transaction. A leader whose counter is used up has none: it gives up, and who
    /// asked is told by the end of its connection.
    pub(crate) fn next_zxid(&mut self) -> Option<Zxid> {
        let zxid = self.zab.next_zxid();
        if zxid.is_none() && !self.zab.is_paused() {
            tracing::info!("the counter of this epoch is used up: another begins");
            let resynchronize = false;
            self.input(Input::GiveUp { resynchronize });
        }
        zxid
    }

    /// Encodes a transaction into the open batch, and proposes it.
    pub(crate) fn record(
        &mut self,
        executed: Executed<'_>,
        before: Option<Box<Tree>>,
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
        let zxid = header.zxid;
        let digest = self.settings.config.ensemble.tree_digest.then_some(&digest);
        let len = record_len(&txn, digest.is_some());
        let mut payload = Bytes::new();
        let appended = if self.alone {
            self.batch.append(zxid, len, |mut place| {
                encode_record(&header, &txn, digest, &mut place);
            })
        } else {
            payload = self.payload(len, |place| encode_record(&header, &txn, digest, place));
            let bytes = payload.clone();
            self.tail.push_back(Record { zxid, bytes });
            self.batch
                .append(zxid, len, |place| place.copy_from_slice(&payload))
        };
        appended.expect("execute keeps transactions within the limit, and zxids grow");
        self.stats.since_snapshot.add(len);
        self.stats.applied(zxid, self.head.digest());
        self.step(zxid, before, answer(outcome));
        self.input(Input::Proposed { zxid, payload });
    }

    /// Bytes of a proposal, in memory that many share.
    fn payload(&mut self, len: usize, fill: impl FnOnce(&mut bytes::BytesMut)) -> Bytes {
        if self.payloads.capacity() < len {
            self.payloads.reserve(len.max(PAYLOADS_BYTES));
        }
        fill(&mut self.payloads);
        self.payloads.split().freeze()
    }

    // Learners.

    /// Executes what learners have forwarded.
    pub(crate) fn take_forwarded(&mut self) {
        while !self.zab.is_paused()
            && let Some((link, request)) = self.traffic.forwarded.pop_front()
        {
            if self.standing.proposes() {
                self.forwarded(link, &request);
            }
        }
    }

    fn forwarded(&mut self, link: LinkId, request: &ForwardedRequest) {
        let (session, cxid) = (request.session, request.cxid);
        let op = OpCode::from_code(request.op);
        if op == Some(OpCode::Sync) {
            let origin = SyncOrigin::Learner(link);
            self.input(Input::Sync { origin });
            return;
        }
        if let Err(error) = self.log.admits() {
            // A learner cannot be told. Another server may have space.
            tracing::error!(%error, "giving up leadership");
            let resynchronize = false;
            self.input(Input::GiveUp { resynchronize });
            return;
        }
        self.make_room(request.request.len());
        let holder = Holder::Learner(link);
        if op == Some(OpCode::CreateSession) {
            let timeout_ms = Reader::new(&request.request).int().unwrap_or(0);
            let now_ms = self.now.monotonic_ms();
            self.sessions.insert(session, timeout_ms, holder, now_ms);
            self.own(session, Answer::Nobody, |head, zxid, context, _| {
                let context = Context { cxid, ..*context };
                execute_create_session(head, zxid, timeout_ms, &context)
            });
            return;
        }
        let state = match self.sessions.note_write(session, holder, self.batches) {
            (SessionState::Closing, _) if self.may_be_local_elsewhere(session) => {
                SessionState::LocalElsewhere
            }
            (state, _) => state,
        };
        let identities: Vec<Id> = request
            .auth
            .iter()
            .map(|(scheme, id)| Id::new(scheme, id))
            .collect();
        let asked = Asked {
            session,
            state,
            cxid,
            op: op.unwrap_or(OpCode::Error),
            body: &request.request,
            identities: &identities,
        };
        // ZK: a learner answers when it sees the transaction, so there has to be one.
        let text = LossyText::new();
        // Opcode 20 is not for clients (docs/compatibility.md), and an Apache learner forwards it.
        let is_write = asked.op.is_write() && asked.op != OpCode::DeleteContainer;
        let error = match Request::decode_lossy(asked.op, asked.body, &text) {
            _ if !is_write => Some(ZkError::Unimplemented),
            Err(_) if asked.op != OpCode::Multi => Some(ZkError::MarshallingError),
            _ => None,
        };
        match error {
            None => self.propose(&asked, None, |_| Answer::Nobody),
            Some(error) => {
                let Some(zxid) = self.next_zxid() else {
                    return;
                };
                let context = asked.context(self.now.wall_ms, &self.settings.tree);
                let executed = execute_error(&mut self.head, zxid, error, &context);
                self.record(executed, None, |_| Answer::Nobody);
            }
        }
    }

    /// A client of a learner has come back with its session.
    pub(crate) fn revalidate(&mut self, link: LinkId, question: Revalidation) {
        let Revalidation {
            session,
            timeout_ms,
        } = question;
        let (now_ms, holder) = (self.now.monotonic_ms(), Holder::Learner(link));
        // ZK: checkIfValidGlobalSession. A local session cannot leave its server.
        let reattached = match self.sessions.is_local(session) {
            true => None,
            false => self.sessions.reattach(session, timeout_ms, holder, now_ms),
        };
        let is_valid = reattached.is_some();
        if let Some((_, Holder::Client(client))) = reattached {
            // It has left this server for another one.
            self.notices.push(ClientNotice::Drop { client });
        }
        let answer = Revalidated { session, is_valid };
        self.send(link, Message::Revalidate(answer.encode()).into());
    }

    // Upkeep.

    /// When [`Core::expire_sessions`] has something to look at next, in milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let local = self.sessions.next_local_due_ms();
        let global = self.sessions.next_due_ms();
        let global = global.filter(|_| self.standing.proposes());
        local.into_iter().chain(global).min()
    }

    /// Closes the sessions that have expired.
    pub fn expire_sessions(&mut self) {
        self.expire_local_sessions();
        // Who has come back may be among those that wait.
        self.release_held();
        if !self.standing.proposes() || self.is_held() {
            return;
        }
        let now_ms = self.now.monotonic_ms();
        for session in self.sessions.expired(now_ms) {
            if self.is_held() {
                // The one before was the last of its epoch.
                self.sessions.postpone(session, now_ms);
                continue;
            }
            tracing::info!(%session, "session expired");
            self.stats.sessions_expired += 1;
            let Some(closed) = self.sessions.close(session) else {
                continue;
            };
            let answer = match closed.holder.client() {
                Some(to) => Answer::Dropped { to },
                None => Answer::Nobody,
            };
            self.own(session, answer, execute_close_session);
        }
    }

    /// Containers that are empty and TTL znodes that have expired; none at a learner, whose leader does it.
    pub fn deletable_containers(&self) -> Vec<String> {
        if !self.standing.proposes() {
            return Vec::new();
        }
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
        if !self.standing.proposes() || self.is_held() || !self.head.get(path).is_some_and(is_empty)
        {
            return;
        }
        self.own(
            SessionId::NONE,
            Answer::Nobody,
            |head, zxid, context, events| {
                let request = Request::DeleteContainer { path };
                execute(head, zxid, &request, context, events)
            },
        );
    }

    /// How containers are to be deleted.
    pub fn containers(&self) -> &ContainersConfig {
        &self.settings.config.containers
    }
}

/// A request that is to be executed.
pub(crate) struct Asked<'a> {
    pub(crate) session: SessionId,
    pub(crate) state: SessionState,
    pub(crate) cxid: i32,
    pub(crate) op: OpCode,
    pub(crate) body: &'a [u8],
    pub(crate) identities: &'a [Id],
}

impl<'a> Asked<'a> {
    pub(crate) const fn context(
        &self,
        time_ms: i64,
        settings: &'a ringkeeper_tree::Settings,
    ) -> Context<'a> {
        Context {
            session: self.session,
            session_state: self.state,
            cxid: self.cxid,
            time_ms,
            identities: self.identities,
            settings,
        }
    }
}
