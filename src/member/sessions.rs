//! The sessions of this server: who holds each, and when it expires.
//!
//! Invariants:
//! - Where this server orders writes (alone or as leader) all sessions are here: from the moment its
//!   creation is proposed until its close is proposed or, under a new leader, from the start of its reign
//!   on. The replicated tree says what is committed; this says what is true for the next request.
//! - At a learner those are here that its own clients hold, and none of them expires here.
//! - A local session is known to this server alone, in no tree and no log. It is here from its creation until it is
//!   closed, expires, or this server's standing ends, and expires wherever it is.
//! - A session is due only when its time-out has passed since it was last heard of; the expiry queue
//!   rounds up to the next tick, and a due session that was touched meanwhile is queued again.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use ringkeeper_proto::SessionId;
use ringkeeper_tree::SessionState;
use ringkeeper_tree::session::ExpiryQueue;
use ringkeeper_zab::LinkId;

use crate::publication::{Attached, ClientKey, Touch};

/// A session id has the server's id in its highest byte.
const SERVER_SHIFT: u32 = 56;

/// Whose client holds a session (ZK: `SessionTracker.setOwner`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody's, as far as is known; the first that asks for something has it.
    Nobody,
    /// A client of this server.
    Client(ClientKey),
    /// Its client has left this server, and has not come anywhere yet: what it asked of another server before it
    /// came here is older than what it asked here, and comes too late.
    Left,
    /// A client of a learner, on this link.
    Learner(LinkId),
}

impl Holder {
    /// The connection here that has it.
    pub(crate) const fn client(self) -> Option<ClientKey> {
        match self {
            Self::Client(client) => Some(client),
            Self::Nobody | Self::Left | Self::Learner(_) => None,
        }
    }
}

/// Which servers know of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of them: its creation is a transaction.
    Global,
    /// This one alone (`localSessionsEnabled`).
    Local,
}

/// What the replica core knows of a session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) timeout_ms: i32,
    pub(crate) touch: Arc<Touch>,
    pub(crate) holder: Holder,
    scope: Scope,
    /// The batch that its last write went into.
    last_batch: u64,
}

/// All sessions, and the order in which they are due.
#[derive(Debug)]
pub struct Sessions {
    sessions: HashMap<SessionId, Session>,
    expiry: ExpiryQueue,
    /// That of the local ones.
    local_expiry: ExpiryQueue,
    tick_ms: u64,
    next_id: SessionId,
}

impl Sessions {
    /// No sessions yet; ids are given from `first_id` on, one after another.
    pub fn new(tick_ms: u64, first_id: SessionId) -> Self {
        Self {
            sessions: HashMap::new(),
            expiry: ExpiryQueue::new(tick_ms),
            local_expiry: ExpiryQueue::new(tick_ms),
            tick_ms,
            next_id: first_id,
        }
    }

    /// A new id for a session.
    pub(crate) const fn next_id(&mut self) -> SessionId {
        let session = self.next_id;
        self.next_id = SessionId(session.0.wrapping_add(1));
        session
    }

    /// Takes all sessions there are, each with its full time-out: a reign begins. Those that clients of this server
    /// hold stay theirs; others that were here are forgotten.
    pub(crate) fn restart(&mut self, all: impl Iterator<Item = (SessionId, i32)>, now_ms: u64) {
        let mut own = mem::take(&mut self.sessions);
        self.clear();
        for (session, timeout_ms) in all {
            if self.is_numbered_here(session) && session.0 >= self.next_id.0 {
                self.next_id = SessionId(session.0.wrapping_add(1));
            }
            if let Some(entry) = own.remove(&session) {
                // Its client's connection goes on touching what it was given.
                entry.touch.touch(now_ms);
                let timeout_ms = duration(entry.timeout_ms);
                self.expiry.schedule(session, now_ms, timeout_ms);
                self.sessions.insert(session, entry);
                continue;
            }
            self.insert(session, timeout_ms, Holder::Nobody, now_ms);
        }
    }

    /// Forgets the sessions that no client of this server holds: another one leads now.
    pub(crate) fn keep_own(&mut self) {
        let expiry = &mut self.expiry;
        self.sessions.retain(|session, entry| {
            let is_own = entry.holder.client().is_some();
            if !is_own {
                expiry.remove(*session);
            }
            is_own
        });
    }

    /// Forgets every session.
    pub(crate) fn clear(&mut self) {
        self.sessions.clear();
        self.expiry = ExpiryQueue::new(self.tick_ms);
        self.local_expiry = ExpiryQueue::new(self.tick_ms);
    }

    /// Adds a session, or replaces what is known of it.
    pub(crate) fn insert(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        holder: Holder,
        now_ms: u64,
    ) -> Attached {
        self.insert_scoped(session, timeout_ms, (holder, Scope::Global), now_ms)
    }

    /// Adds a session that nobody else is to know of.
    pub(crate) fn insert_local(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        client: ClientKey,
        now_ms: u64,
    ) -> Attached {
        let holder = Holder::Client(client);
        self.insert_scoped(session, timeout_ms, (holder, Scope::Local), now_ms)
    }

    fn insert_scoped(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        (holder, scope): (Holder, Scope),
        now_ms: u64,
    ) -> Attached {
        let touch = Arc::new(Touch::at(now_ms));
        self.queue_of(scope)
            .schedule(session, now_ms, duration(timeout_ms));
        let replaced = self.sessions.insert(
            session,
            Session {
                timeout_ms,
                touch: Arc::clone(&touch),
                holder,
                scope,
                last_batch: 0,
            },
        );
        if let Some(replaced) = replaced.filter(|it| it.scope != scope) {
            self.queue_of(replaced.scope).remove(session);
        }
        Attached {
            session,
            timeout_ms,
            touch,
        }
    }

    /// Gives `session` to `holder`, with a new time-out; answers with who held it. `None`: there is no
    /// such session.
    pub(crate) fn reattach(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        holder: Holder,
        now_ms: u64,
    ) -> Option<(Attached, Holder)> {
        let entry = self.sessions.get_mut(&session)?;
        entry.touch.touch(now_ms);
        entry.timeout_ms = timeout_ms;
        let before = mem::replace(&mut entry.holder, holder);
        let attached = Attached {
            session,
            timeout_ms,
            touch: Arc::clone(&entry.touch),
        };
        let scope = entry.scope;
        self.queue_of(scope)
            .schedule(session, now_ms, duration(timeout_ms));
        Some((attached, before))
    }

    /// Whether a session is a local one of this server.
    pub(crate) fn is_local(&self, session: SessionId) -> bool {
        // Asked with every write, and most servers have none.
        if self.local_expiry.is_empty() {
            return false;
        }
        let entry = self.sessions.get(&session);
        entry.is_some_and(|entry| entry.scope == Scope::Local)
    }

    /// Whether this server gave a session its number.
    pub(crate) const fn is_numbered_here(&self, session: SessionId) -> bool {
        session.0 >> SERVER_SHIFT == self.next_id.0 >> SERVER_SHIFT
    }

    /// Makes a local session one that is to be known to all, and answers with its time-out in milliseconds.
    pub(crate) fn upgrade(&mut self, session: SessionId) -> Option<i32> {
        let entry = self.sessions.get_mut(&session)?;
        if entry.scope == Scope::Global {
            return None;
        }
        entry.scope = Scope::Global;
        let (last_ms, timeout_ms) = (entry.touch.last_ms(), entry.timeout_ms);
        self.local_expiry.remove(session);
        self.expiry.schedule(session, last_ms, duration(timeout_ms));
        Some(timeout_ms)
    }

    /// The connection `from` has ended; its session lives on without one. False if it had none.
    pub(crate) fn detach(&mut self, session: SessionId, from: ClientKey) -> bool {
        let entry = self.sessions.get_mut(&session);
        let Some(entry) = entry.filter(|entry| entry.holder == Holder::Client(from)) else {
            return false;
        };
        entry.holder = Holder::Left;
        true
    }

    /// A learner has heard of a session.
    pub(crate) fn touch(&self, session: SessionId, now_ms: u64) {
        if let Some(entry) = self.sessions.get(&session) {
            entry.touch.touch(now_ms);
        }
    }

    /// The sessions of this server's clients, without the local ones, that were heard of since `since_ms`, and their
    /// time-outs.
    pub(crate) fn touched_since(&self, since_ms: u64) -> impl Iterator<Item = (SessionId, i32)> {
        let sessions = self.sessions.iter();
        sessions
            .filter(move |(_, entry)| {
                entry.scope == Scope::Global && entry.touch.last_ms() >= since_ms
            })
            .map(|(session, entry)| (*session, entry.timeout_ms))
    }

    /// The time-out of a session that was heard of since `since_ms`.
    pub(crate) fn timeout_if_touched(&self, session: SessionId, since_ms: u64) -> Option<i32> {
        let entry = self.sessions.get(&session)?;
        (entry.touch.last_ms() >= since_ms).then_some(entry.timeout_ms)
    }

    /// Takes a session out: its close is proposed, or its client has left this learner.
    pub(crate) fn close(&mut self, session: SessionId) -> Option<Session> {
        let closed = self.sessions.remove(&session)?;
        self.queue_of(closed.scope).remove(session);
        Some(closed)
    }

    /// Notes that a write of a session, asked for by a client of `from`, goes into `batch`; answers with how
    /// the session stands, and with the batch of its write before.
    pub(crate) fn note_write(
        &mut self,
        session: SessionId,
        from: Holder,
        batch: u64,
    ) -> (SessionState, Option<u64>) {
        let Some(entry) = self.sessions.get_mut(&session) else {
            return (SessionState::Closing, None);
        };
        // ZK: SessionTrackerImpl.checkSession. Within a server a session that has moved is told by the
        // end of its old connection.
        let lives = match entry.scope {
            Scope::Global => SessionState::Live,
            Scope::Local => SessionState::Local,
        };
        let state = match (entry.holder, from) {
            (Holder::Nobody, from) => {
                entry.holder = from;
                lives
            }
            (Holder::Client(_) | Holder::Left, Holder::Client(_)) => lives,
            (holder, from) if holder == from => lives,
            _ => SessionState::Moved,
        };
        (state, Some(mem::replace(&mut entry.last_batch, batch)))
    }

    /// The sessions that have expired by `now_ms`, without the local ones. They stay until [`Sessions::close`].
    pub(crate) fn expired(&mut self, now_ms: u64) -> Vec<SessionId> {
        expired_of(&mut self.expiry, &self.sessions, now_ms)
    }

    /// The local sessions that have expired by `now_ms`, in the same way.
    pub(crate) fn expired_local(&mut self, now_ms: u64) -> Vec<SessionId> {
        expired_of(&mut self.local_expiry, &self.sessions, now_ms)
    }

    /// A session that has expired cannot be closed now: it is looked at again with the next tick.
    pub(crate) fn postpone(&mut self, session: SessionId, now_ms: u64) {
        self.expiry.schedule(session, now_ms, 0);
    }

    /// When [`Sessions::expired`] has something to look at next.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.expiry.next_due_ms()
    }

    /// When [`Sessions::expired_local`] has.
    pub(crate) fn next_local_due_ms(&self) -> Option<u64> {
        self.local_expiry.next_due_ms()
    }

    /// How many local sessions there are.
    pub(crate) fn local_len(&self) -> usize {
        self.local_expiry.len()
    }

    const fn queue_of(&mut self, scope: Scope) -> &mut ExpiryQueue {
        match scope {
            Scope::Global => &mut self.expiry,
            Scope::Local => &mut self.local_expiry,
        }
    }

    /// The sessions by the time they are due, which is in so many milliseconds from `now_ms`: for the
    /// four-letter word `dump`.
    pub(crate) fn by_deadline(&self, now_ms: u64) -> Vec<(i64, Vec<SessionId>)> {
        by_deadline(&self.expiry, now_ms)
    }

    /// The same of the local sessions.
    pub(crate) fn local_by_deadline(&self, now_ms: u64) -> Vec<(i64, Vec<SessionId>)> {
        by_deadline(&self.local_expiry, now_ms)
    }
}

fn by_deadline(queue: &ExpiryQueue, now_ms: u64) -> Vec<(i64, Vec<SessionId>)> {
    queue
        .buckets()
        .map(|(due_ms, sessions)| {
            (
                due_ms.cast_signed() - now_ms.cast_signed(),
                sessions.collect(),
            )
        })
        .collect()
}

fn expired_of(
    queue: &mut ExpiryQueue,
    sessions: &HashMap<SessionId, Session>,
    now_ms: u64,
) -> Vec<SessionId> {
    let mut expired = Vec::new();
    while let Some(session) = queue.pop_due(now_ms) {
        let Some(entry) = sessions.get(&session) else {
            continue;
        };
        let (last_ms, timeout_ms) = (entry.touch.last_ms(), duration(entry.timeout_ms));
        if queue.due(last_ms, timeout_ms) > now_ms {
            queue.schedule(session, last_ms, timeout_ms);
        } else {
            expired.push(session);
        }
    }
    expired
}

fn duration(timeout_ms: i32) -> u64 {
    u64::try_from(timeout_ms).unwrap_or(0)
}
