//! The sessions of this server: who holds each, and when it expires.
//!
//! Invariants:
//! - A session is here from the moment its creation is proposed until its close is proposed or, after
//!   a restart, from recovery on. The replicated tree says what is committed; this says what is true
//!   for the next request.
//! - A session is due only when its time-out has passed since it was last heard of; the expiry queue
//!   rounds up to the next tick, and a due session that was touched meanwhile is queued again.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use ringkeeper_proto::SessionId;
use ringkeeper_tree::session::ExpiryQueue;

use crate::publication::{Attached, ClientKey, Touch};

/// A session id has the server's id in its highest byte.
const SERVER_SHIFT: u32 = 56;

/// What the replica core knows of a session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) timeout_ms: i32,
    pub(crate) touch: Arc<Touch>,
    /// The connection that holds it, if one does.
    pub(crate) owner: Option<ClientKey>,
    /// The batch that its last write went into.
    last_batch: u64,
}

/// All sessions, and the order in which they are due.
#[derive(Debug)]
pub struct Sessions {
    sessions: HashMap<SessionId, Session>,
    expiry: ExpiryQueue,
    next_id: SessionId,
}

impl Sessions {
    /// No sessions yet; ids are given from `first_id` on, one after another.
    pub fn new(tick_ms: u64, first_id: SessionId) -> Self {
        Self {
            sessions: HashMap::new(),
            expiry: ExpiryQueue::new(tick_ms),
            next_id: first_id,
        }
    }

    /// A new id and its session, held by `owner`.
    pub(crate) fn open(&mut self, timeout_ms: i32, owner: ClientKey, now_ms: u64) -> Attached {
        let session = self.next_id;
        self.next_id = SessionId(session.0.wrapping_add(1));
        self.insert(session, timeout_ms, Some(owner), now_ms)
    }

    /// A session that was recovered: it gets its full time-out again, as under a new leader.
    pub fn recovered(&mut self, session: SessionId, timeout_ms: i32, now_ms: u64) {
        self.insert(session, timeout_ms, None, now_ms);
        let same_server = session.0 >> SERVER_SHIFT == self.next_id.0 >> SERVER_SHIFT;
        if same_server && session.0 >= self.next_id.0 {
            self.next_id = SessionId(session.0.wrapping_add(1));
        }
    }

    fn insert(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        owner: Option<ClientKey>,
        now_ms: u64,
    ) -> Attached {
        let touch = Arc::new(Touch::at(now_ms));
        self.expiry.schedule(session, now_ms, duration(timeout_ms));
        self.sessions.insert(
            session,
            Session {
                timeout_ms,
                touch: Arc::clone(&touch),
                owner,
                last_batch: 0,
            },
        );
        Attached {
            session,
            timeout_ms,
            touch,
        }
    }

    /// Gives `session` to the connection `owner`, with a new time-out; answers with the connection that
    /// held it. `None`: there is no such session.
    pub(crate) fn reattach(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        owner: ClientKey,
        now_ms: u64,
    ) -> Option<(Attached, Option<ClientKey>)> {
        let entry = self.sessions.get_mut(&session)?;
        entry.touch.touch(now_ms);
        entry.timeout_ms = timeout_ms;
        let before = entry.owner.replace(owner);
        self.expiry.schedule(session, now_ms, duration(timeout_ms));
        let attached = Attached {
            session,
            timeout_ms,
            touch: Arc::clone(&entry.touch),
        };
        Some((attached, before))
    }

    /// The connection `from` has ended; its session lives on without a connection.
    pub(crate) fn detach(&mut self, session: SessionId, from: ClientKey) {
        if let Some(entry) = self.sessions.get_mut(&session)
            && entry.owner == Some(from)
        {
            entry.owner = None;
        }
    }

    /// Takes a session out: its close is proposed.
    pub(crate) fn close(&mut self, session: SessionId) -> Option<Session> {
        self.expiry.remove(session);
        self.sessions.remove(&session)
    }

    /// Notes that a write of a session goes into `batch`; answers with the batch of the one before, or
    /// `None` when the session may not ask for anything any more.
    pub(crate) fn note_write(&mut self, session: SessionId, batch: u64) -> Option<u64> {
        let entry = self.sessions.get_mut(&session)?;
        Some(mem::replace(&mut entry.last_batch, batch))
    }

    /// The sessions that have expired by `now_ms`. They stay until [`Sessions::close`].
    pub(crate) fn expired(&mut self, now_ms: u64) -> Vec<SessionId> {
        let mut expired = Vec::new();
        while let Some(session) = self.expiry.pop_due(now_ms) {
            let Some(entry) = self.sessions.get(&session) else {
                continue;
            };
            let (last_ms, timeout_ms) = (entry.touch.last_ms(), duration(entry.timeout_ms));
            if self.expiry.due(last_ms, timeout_ms) > now_ms {
                self.expiry.schedule(session, last_ms, timeout_ms);
            } else {
                expired.push(session);
            }
        }
        expired
    }

    /// When [`Sessions::expired`] has something to look at next.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.expiry.next_due_ms()
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The sessions by the time they are due, which is in so many milliseconds from `now_ms`: for the
    /// four-letter word `dump`.
    pub(crate) fn by_deadline(&self, now_ms: u64) -> Vec<(i64, Vec<SessionId>)> {
        self.expiry
            .buckets()
            .map(|(due_ms, sessions)| {
                (
                    due_ms.cast_signed() - now_ms.cast_signed(),
                    sessions.collect(),
                )
            })
            .collect()
    }
}

fn duration(timeout_ms: i32) -> u64 {
    u64::try_from(timeout_ms).unwrap_or(0)
}
