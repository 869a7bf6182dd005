//! Requests at a learner: they go to the leader, and are answered when they come back committed.
//!
//! ZK: FollowerRequestProcessor and CommitProcessor. A session's requests are answered in their order. What
//! has come back is told by its session and the client's number for it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ringkeeper_proto::quorum::{ForwardedRequest, Revalidated, Revalidation};
use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{Id, LossyText, OpCode, Request, SessionId, TxnHeader, Xid, ZkError, Zxid};
use ringkeeper_storage::Disk;
use ringkeeper_zab::{Input, LinkId, Message};

use crate::core::{Core, Record};
use crate::messages::{ClientMessage, ClientNotice, Now, WriteMessage};
use crate::observers::Place;
use crate::publication::{Answer, Attached, ClientKey};
use crate::replay::agrees;
use crate::sessions::Holder;

/// How long a learner waits before it lets itself be brought in line once more, in milliseconds. An
/// Apache leader's digest may be wrong itself, and then it does not help.
const RESYNCHRONIZE_PAUSE_MS: u64 = 600_000;

/// What waits for the leader.
#[derive(Debug, Default)]
pub(crate) struct Learning {
    /// The requests of each session, in their order.
    waiting: BTreeMap<SessionId, VecDeque<Waiting>>,
    /// The sessions whose syncs are on their way, in the order in which they were sent.
    syncs: VecDeque<Syncing>,
    /// The sessions that clients have come back with.
    returning: BTreeMap<SessionId, Returning>,
    /// When this learner last let itself be brought in line, in milliseconds.
    resynchronized_ms: Option<u64>,
}

/// A session that a client has come back with, and of which the leader is asked.
#[derive(Clone, Copy, Debug)]
struct Returning {
    /// The last connection that did.
    from: ClientKey,
    timeout_ms: i32,
    /// Each connection asks; it is served when the last answer is there. A question that the leader hears after the client
    /// has gone on elsewhere would make this server the session's holder again, and late requests be carried out.
    unanswered: u32,
}

/// Whose sync is on its way.
#[derive(Clone, Copy, Debug)]
enum Syncing {
    /// A client's of this server.
    Session(SessionId),
    /// An observer's that this follower serves.
    Observer(LinkId),
    /// Somebody's who is answered already.
    Nobody,
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    to: ClientKey,
    cxid: i32,
    /// Whether reads of the same session wait between what is before it and this.
    keep_before: bool,
    /// What the client is told if the leader refuses it, whatever the reason.
    refused_as: Option<ZkError>,
    kind: Kind,
    /// As it was forwarded, or would have been ([`ForwardedRequest`]).
    request: Bytes,
}

#[derive(Debug)]
enum Kind {
    /// The leader has it.
    Forwarded,
    /// As well.
    Sync,
    /// Nobody has it; it waits for its turn to be refused.
    Refused(ZkError),
    /// As well, to be told that it is done.
    Closes,
    /// The leader is to create the session.
    NewSession { timeout_ms: i32 },
}

impl Kind {
    /// What its client is told once it is its turn; `None` if that comes from the leader.
    const fn outcome(&self) -> Option<Result<WriteReply, ZkError>> {
        match self {
            Self::Refused(error) => Some(Err(*error)),
            Self::Closes => Some(Ok(WriteReply::Empty)),
            Self::Forwarded | Self::Sync | Self::NewSession { .. } => None,
        }
    }
}

impl Learning {
    /// Nobody waits any more.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.syncs.clear();
        self.returning.clear();
    }

    /// Takes out all that waits, as its clients asked for it: nobody has proposed it, and it is to be asked again.
    pub(crate) fn take_back(&mut self, now: Now) -> VecDeque<ClientMessage> {
        let returning = std::mem::take(&mut self.returning).into_iter();
        let returning = returning.map(|(session, it)| ClientMessage::Reconnect {
            from: it.from,
            session,
            timeout_ms: it.timeout_ms,
        });
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        self.syncs.clear();
        let asked = waiting.filter_map(|it| it.into_message(now));
        returning.chain(asked).collect()
    }

    /// A sync of an observer's goes to the leader.
    pub(crate) fn pass_sync(&mut self, link: LinkId) {
        self.syncs.push_back(Syncing::Observer(link));
    }

    fn push(&mut self, session: SessionId, waiting: Waiting) {
        self.waiting.entry(session).or_default().push_back(waiting);
    }

    /// Takes the first request of `session` that is looked for, and what waits before it.
    fn take(
        &mut self,
        session: SessionId,
        is_looked_for: impl Fn(&Waiting) -> bool,
    ) -> Option<(Vec<Waiting>, Waiting)> {
        let queue = self.waiting.get_mut(&session)?;
        let at = queue.iter().position(is_looked_for)?;
        let earlier = queue.drain(..at).collect();
        Some((earlier, queue.pop_front()?))
    }

    /// The oldest sync of `session` is answered before its SYNC comes, if it comes.
    fn sync_is_answered(&mut self, session: SessionId) {
        let is_its = |it: &&mut Syncing| matches!(it, Syncing::Session(whose) if *whose == session);
        if let Some(syncing) = self.syncs.iter_mut().find(is_its) {
            *syncing = Syncing::Nobody;
        }
    }

    /// Forgets what waits for the session of a transaction that was asked for at another server: the session has gone
    /// there, and its older requests must not be carried out behind the newer. Returns whose they were.
    pub(crate) fn overtaken(&mut self, header: &TxnHeader) -> Vec<ClientKey> {
        // A refusal may be that of another server's late request.
        let is_newer = !matches!(
            header.op,
            OpCode::Error | OpCode::CreateSession | OpCode::CloseSession
        );
        let Entry::Occupied(queue) = self.waiting.entry(header.session) else {
            return Vec::new();
        };
        if !is_newer || queue.get().iter().any(|it| it.is_asked_by(header)) {
            return Vec::new();
        }
        queue.remove().into_iter().map(|it| it.to).collect()
    }
}

impl Waiting {
    /// Whether `header` is the transaction's that comes of it.
    fn is_asked_by(&self, header: &TxnHeader) -> bool {
        match self.kind {
            Kind::Forwarded => self.cxid == header.cxid && header.op != OpCode::CreateSession,
            Kind::NewSession { .. } => header.op == OpCode::CreateSession,
            Kind::Sync | Kind::Refused(_) | Kind::Closes => false,
        }
    }

    /// As its client asked for it.
    fn into_message(self, now: Now) -> Option<ClientMessage> {
        let from = self.to;
        if let Kind::NewSession { timeout_ms } = self.kind {
            return Some(ClientMessage::NewSession { from, timeout_ms });
        }
        let request = ForwardedRequest::decode(&self.request).ok()?;
        let identities = request.auth.iter();
        Some(ClientMessage::Write(WriteMessage {
            from,
            session: request.session,
            xid: Xid(request.cxid),
            op: OpCode::from_code(request.op)?,
            body: request.request,
            identities: identities.map(|(scheme, id)| Id::new(scheme, id)).collect(),
            keep_before: self.keep_before,
            arrived_us: now.monotonic_us,
        }))
    }
}

impl<D: Disk> Core<D> {
    pub(crate) fn hear_as_learner(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::NewSession { from, timeout_ms } if self.settings.local_sessions() => {
                self.new_local_session(from, timeout_ms);
            }
            ClientMessage::NewSession { from, timeout_ms } => {
                let session = self.sessions.next_id();
                let request = new_session_request(session, timeout_ms);
                let waiting = Waiting {
                    to: from,
                    cxid: 0,
                    keep_before: false,
                    refused_as: None,
                    kind: Kind::NewSession { timeout_ms },
                    request: request.clone(),
                };
                self.learning.push(session, waiting);
                self.forward(request);
            }
            ClientMessage::Reconnect {
                from,
                session,
                timeout_ms,
            } if self.sessions.is_local(session) => {
                let (now_ms, holder) = (self.now.monotonic_ms(), Holder::Client(from));
                let held = self.sessions.reattach(session, timeout_ms, holder, now_ms);
                self.tell_reattached(from, held);
            }
            ClientMessage::Reconnect {
                from,
                session,
                timeout_ms,
            } => self.ask_for_session(from, session, timeout_ms),
            ClientMessage::Write(write) => self.forward_write(&write),
            ClientMessage::Disconnected { from, session } => {
                if self.sessions.detach(session, from) && !self.sessions.is_local(session) {
                    self.remember_touch(session);
                    self.sessions.close(session);
                }
            }
        }
    }

    fn forward_new_session(&mut self, session: SessionId, timeout_ms: i32) {
        self.forward(new_session_request(session, timeout_ms));
    }

    pub(crate) fn forward(&mut self, request: Bytes) {
        // Without a link the role is about to end, and with it the client's connection.
        if let Some(link) = self.zab.leader_link() {
            self.send(link, Message::Request(request).into());
        }
    }

    fn forward_write(&mut self, write: &WriteMessage) {
        let &WriteMessage {
            from: to,
            session,
            xid: Xid(cxid),
            op,
            keep_before,
            ..
        } = write;
        let upgrade = self.upgrade_for(session, op, &write.body);
        if let Some(Ok(timeout_ms)) = upgrade {
            self.forward_new_session(session, timeout_ms);
        }
        // ZK: of a multi each operation tells why it failed, as the leader says.
        let refusal = upgrade.and_then(Result::err);
        let refused_as = refusal.filter(|_| op != OpCode::Multi);
        let text = LossyText::new();
        // What no transaction would come back of is refused here, when it is its turn.
        let is_undecodable = op != OpCode::Multi
            && op != OpCode::Sync
            && Request::decode_lossy(op, &write.body, &text).is_err();
        let kind = match op {
            OpCode::Sync => Kind::Sync,
            OpCode::CloseSession if self.sessions.is_local(session) => {
                self.sessions.close(session);
                Kind::Closes
            }
            _ if is_undecodable => Kind::Refused(ZkError::MarshallingError),
            _ => Kind::Forwarded,
        };
        let is_answered_here = matches!(kind, Kind::Refused(_) | Kind::Closes);
        if op == OpCode::Sync {
            self.learning.syncs.push_back(Syncing::Session(session));
        }
        let request =
            ForwardedRequest::encode(session, cxid, op.code(), &write.body, &write.identities);
        let waiting = Waiting {
            to,
            cxid,
            keep_before,
            refused_as,
            kind,
            request: request.clone(),
        };
        self.learning.push(session, waiting);
        if is_answered_here {
            self.answer_next(session);
        } else {
            self.forward(request);
        }
    }

    /// Answers what the leader does not have, and what has nothing before it any more.
    fn answer_next(&mut self, session: SessionId) {
        while let Some(queue) = self.learning.waiting.get_mut(&session) {
            let Some(next) = queue.front() else {
                self.learning.waiting.remove(&session);
                return;
            };
            let Some(outcome) = next.kind.outcome() else {
                return;
            };
            if let Some(next) = queue.pop_front() {
                self.answer_unwritten(&next, outcome);
            }
        }
    }

    /// Answers what no transaction comes back of.
    fn answer_unwritten(&mut self, waiting: &Waiting, outcome: Result<WriteReply, ZkError>) {
        let answer = Answer::Write {
            to: waiting.to,
            xid: Xid(waiting.cxid),
            outcome,
        };
        let before = waiting.keep_before.then(|| Box::new(self.head.clone()));
        self.step(self.head.zxid(), before, answer);
    }

    /// Answers what a session asked before a request whose turn has come; false when one of these has got lost, and
    /// its client is told by the end of its connection.
    ///
    /// A sync is done by then: its leader had got it before that request, and all that was committed when it came is
    /// committed here. Its SYNC got lost with a leader that has handed over.
    fn answer_earlier(&mut self, session: SessionId, earlier: Vec<Waiting>) -> bool {
        for waiting in earlier {
            if matches!(waiting.kind, Kind::Sync) {
                self.learning.sync_is_answered(session);
                self.answer_unwritten(&waiting, Ok(WriteReply::Empty));
            } else if let Some(outcome) = waiting.kind.outcome() {
                self.answer_unwritten(&waiting, outcome);
            } else {
                self.drop_clients(vec![waiting.to]);
                return false;
            }
        }
        true
    }

    /// The request that `header`'s transaction came of, when it can be answered.
    fn take_asked(&mut self, header: &TxnHeader) -> Option<Waiting> {
        let session = header.session;
        let is_it = |it: &Waiting| it.is_asked_by(header);
        let (earlier, asked) = self.learning.take(session, is_it)?;
        self.answer_earlier(session, earlier).then_some(asked)
    }

    /// SYNC came: the oldest sync is done.
    pub(crate) fn sync_done(&mut self) {
        let session = match self.learning.syncs.pop_front() {
            Some(Syncing::Session(session)) => session,
            Some(Syncing::Observer(link)) => {
                self.send(link, Message::Sync.into());
                return;
            }
            Some(Syncing::Nobody) | None => return,
        };
        let is_sync = |it: &Waiting| matches!(it.kind, Kind::Sync);
        if let Some((earlier, sync)) = self.learning.take(session, is_sync)
            && self.answer_earlier(session, earlier)
        {
            self.answer_unwritten(&sync, Ok(WriteReply::Empty));
            self.answer_next(session);
        }
    }

    /// A request of theirs has got lost: they are told by the end of their connections.
    fn drop_clients(&mut self, lost: Vec<ClientKey>) {
        let drops = lost.into_iter().map(|client| ClientNotice::Drop { client });
        self.notices.extend(drops);
    }

    // Committed transactions.

    /// Applies what is committed, and answers whom it concerns.
    pub(crate) fn apply_through(&mut self, through: Zxid) {
        while self.tail.front().is_some_and(|it| it.zxid <= through)
            && let Some(record) = self.tail.pop_front()
        {
            self.apply(&record);
            self.recent.push(record);
        }
    }

    fn apply(&mut self, record: &Record) {
        let (header, txn, digest) =
            decode_record(&record.bytes).expect("it was decoded once when it came");
        let asked = self.take_asked(&header);
        let wants_before = asked.as_ref().is_some_and(|it| it.keep_before);
        let before = wants_before.then(|| Box::new(self.head.clone()));
        let applied = self.head.apply(&header, &txn, &mut self.events);
        self.unpublished = true;
        if header.op == OpCode::CloseSession {
            self.traffic.passing.forget_session(header.session);
        }
        self.stats.applied(header.zxid, self.head.digest());
        if let Some(agree) = digest.and_then(|digest| agrees(&self.head, digest)) {
            self.compare_digests(header.zxid, agree);
        }
        let outcome = applied
            .outcome
            .map_err(|code| ZkError::from_code(code).unwrap_or(ZkError::SystemError));
        let answer = match asked {
            Some(waiting) => self.answer_of(&header, waiting, outcome),
            None => {
                let overtaken = self.learning.overtaken(&header);
                self.drop_clients(overtaken);
                self.answer_of_others(&header)
            }
        };
        self.step(header.zxid, before, answer);
        self.answer_next(header.session);
    }

    fn answer_of(
        &mut self,
        header: &TxnHeader,
        waiting: Waiting,
        outcome: Result<WriteReply, ZkError>,
    ) -> Answer {
        let to = waiting.to;
        if let Kind::NewSession { timeout_ms } = waiting.kind {
            let (now_ms, holder) = (self.now.monotonic_ms(), Holder::Client(to));
            let session = self
                .sessions
                .insert(header.session, timeout_ms, holder, now_ms);
            return Answer::Session { to, session };
        }
        if header.op == OpCode::CloseSession {
            self.sessions.close(header.session);
        }
        let xid = Xid(header.cxid);
        let outcome = outcome.map_err(|error| waiting.refused_as.unwrap_or(error));
        Answer::Write { to, xid, outcome }
    }

    /// A transaction that nobody here asked for can end a session that somebody here holds.
    fn answer_of_others(&mut self, header: &TxnHeader) -> Answer {
        if header.op != OpCode::CloseSession {
            return Answer::Nobody;
        }
        let closed = self.sessions.close(header.session);
        match closed.and_then(|closed| closed.holder.client()) {
            Some(to) => Answer::Dropped { to },
            None => Answer::Nobody,
        }
    }

    /// A digest that differs, outside of what a snapshot may show too early, means that this server's
    /// tree is not the leader's.
    fn compare_digests(&mut self, zxid: Zxid, agree: bool) {
        if agree {
            self.head.set_fuzzy(false);
            return;
        }
        if self.head.is_fuzzy() {
            return;
        }
        self.stats.digest_mismatches += 1;
        if self.stats.digest_mismatches.is_power_of_two() {
            tracing::error!(%zxid, ours = self.head.digest_to_wire(), count = self.stats.digest_mismatches,
                "the tree's digest is not that of the leader");
        }
        let now_ms = self.now.monotonic_ms();
        let pause_is_over = self
            .learning
            .resynchronized_ms
            .is_none_or(|last_ms| now_ms.saturating_sub(last_ms) >= RESYNCHRONIZE_PAUSE_MS);
        if pause_is_over && self.standing.has_leader() && !self.standing.proposes() {
            tracing::warn!("asking the leader for a snapshot");
            self.learning.resynchronized_ms = Some(now_ms);
            let resynchronize = true;
            self.input_next(Input::GiveUp { resynchronize });
        }
    }

    // Sessions that come back.

    fn ask_for_session(&mut self, from: ClientKey, session: SessionId, timeout_ms: i32) {
        let Some(link) = self.zab.leader_link() else {
            return;
        };
        // Whoever came first with this session is no longer who holds it.
        let earlier = self.learning.returning.get(&session).copied();
        let returning = Returning {
            from,
            timeout_ms,
            unanswered: earlier.map_or(0, |it| it.unanswered) + 1,
        };
        self.learning.returning.insert(session, returning);
        self.drop_clients(earlier.map(|it| it.from).into_iter().collect());
        let question = Revalidation {
            session,
            timeout_ms,
        };
        self.traffic.passing.ask(session, Place::Here);
        self.send(link, Message::Revalidate(question.encode()).into());
    }

    /// The leader's answer to this server's own question.
    pub(crate) fn revalidated(&mut self, answer: Revalidated) {
        let session = answer.session;
        let Entry::Occupied(mut returning) = self.learning.returning.entry(session) else {
            return;
        };
        returning.get_mut().unanswered -= 1;
        if answer.is_valid && returning.get().unanswered > 0 {
            return;
        }
        let Returning {
            from, timeout_ms, ..
        } = returning.remove();
        if !answer.is_valid {
            self.notices.push(ClientNotice::Expired { to: from });
            return;
        }
        let (now_ms, holder) = (self.now.monotonic_ms(), Holder::Client(from));
        let held = self.sessions.reattach(session, timeout_ms, holder, now_ms);
        let attached = held.unwrap_or_else(|| {
            let attached = self.sessions.insert(session, timeout_ms, holder, now_ms);
            (attached, Holder::Nobody)
        });
        self.tell_reattached(from, Some(attached));
    }

    /// Tells a client that it has its session again, when the connection that had it is closed.
    pub(crate) fn tell_reattached(
        &mut self,
        to: ClientKey,
        reattached: Option<(Attached, Holder)>,
    ) {
        let notice = match reattached {
            None => ClientNotice::Expired { to },
            Some((session, Holder::Client(client))) => ClientNotice::Detach {
                client,
                then: to,
                session,
            },
            Some((session, Holder::Nobody | Holder::Left | Holder::Learner(_))) => {
                ClientNotice::Attach { to, session }
            }
        };
        self.notices.push(notice);
    }
}

fn new_session_request(session: SessionId, timeout_ms: i32) -> Bytes {
    let (op, body) = (OpCode::CreateSession.code(), timeout_ms.to_be_bytes());
    ForwardedRequest::encode(session, 0, op, &body, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_request_at_another_server_ends_what_waits() {
        let session = SessionId(7);
        let waiting = |cxid, kind| Waiting {
            to: ClientKey {
                shard: 0,
                index: 0,
                generation: 0,
            },
            cxid,
            keep_before: false,
            refused_as: None,
            kind,
            request: Bytes::new(),
        };
        let header = |cxid, op| TxnHeader {
            session,
            cxid,
            zxid: Zxid(1),
            time_ms: 0,
            op,
        };
        let mut learning = Learning::default();
        learning.push(session, waiting(5, Kind::Forwarded));
        learning.push(session, waiting(6, Kind::Sync));
        for (case, header) in [
            ("asked here", header(5, OpCode::SetData)),
            ("a refusal", header(9, OpCode::Error)),
            ("its end", header(9, OpCode::CloseSession)),
            (
                "of another session",
                TxnHeader {
                    session: SessionId(8),
                    ..header(9, OpCode::SetData)
                },
            ),
        ] {
            assert_eq!(learning.overtaken(&header).len(), 0, "{case}");
        }
        assert_eq!(learning.overtaken(&header(9, OpCode::SetData)).len(), 2);
        assert_eq!(learning.take_back(Now::default()).len(), 0);
    }
}
