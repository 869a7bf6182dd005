//! Sessions: their numbers and passwords, the timeouts they get, and when they expire
//! (`SessionTrackerImpl`, `ExpiryQueue`, `ZooKeeperServer`).
//!
//! Nothing here reads a clock: the caller says what time it is.

use std::collections::{BTreeMap, VecDeque};

use ringkeeper_proto::SessionId;

use crate::acl::equal_in_constant_time;

/// Bytes of a session's password.
pub const PASSWORD_LEN: usize = 16;

/// The first session id of a server (`SessionTrackerImpl.initializeNextSessionId`): the server's id
/// in the highest byte, the time in the next five, zeros to count up. A standalone server is 1.
///
/// `now_ms` must have grown by the next start, or ids are given twice.
pub const fn initialize_next_session(server_id: u64, now_ms: u64) -> SessionId {
    let id = ((now_ms << 24) >> 8) | (server_id << 56);
    // The one number that marks containers.
    let id = if id == 1 << 63 { id + 1 } else { id };
    #[expect(
        clippy::cast_possible_wrap,
        reason = "the protocol's type is a signed long"
    )]
    SessionId(id as i64)
}

/// The password of a session, which any server of an ensemble can compute
/// (`ZooKeeperServer.generatePasswd`).
pub fn password_of(session: SessionId) -> [u8; PASSWORD_LEN] {
    let mut random = JavaRandom::new(session.0 ^ 0xb341_5c00);
    let mut password = [0; PASSWORD_LEN];
    for chunk in password.chunks_mut(4) {
        let [a, b, c, d] = random.next_int().to_be_bytes();
        // Java takes the lowest byte first.
        chunk.copy_from_slice(&[d, c, b, a]);
    }
    password
}

/// Whether `password` is that of `session`; session 0 has none (`ZooKeeperServer.checkPasswd`).
pub fn check_password(session: SessionId, password: &[u8]) -> bool {
    session != SessionId::NONE && equal_in_constant_time(&password_of(session), password)
}

/// The timeout that a client gets which asks for `wanted_ms`.
pub const fn negotiate(wanted_ms: i32, min_ms: i32, max_ms: i32) -> i32 {
    let at_least = if wanted_ms < min_ms {
        min_ms
    } else {
        wanted_ms
    };
    if at_least > max_ms { max_ms } else { at_least }
}

/// When sessions are to be looked at next, in buckets of one tick.
///
/// A touch does not come here: it is noted with the session, and when the session's bucket comes up,
/// [`ExpiryQueue::pop_due`] gives it to the caller, who either schedules it again by its last touch or
/// lets it expire. So a session costs a few steps per timeout, however often it is touched, and still
/// expires at the very tick at which it would if every touch moved it.
///
/// Invariants:
/// - Every scheduled session is in exactly one bucket that counts, the one that `scheduled` names;
///   what lies in other buckets is left over and is skipped.
/// - A session comes up at the first tick that is later than its deadline.
#[derive(Clone, Debug)]
pub struct ExpiryQueue {
    tick_ms: u64,
    /// By the time at which they come up, a multiple of `tick_ms`.
    buckets: BTreeMap<u64, VecDeque<SessionId>>,
    scheduled: BTreeMap<SessionId, u64>,
}

impl ExpiryQueue {
    /// An empty queue. `tick_ms` is at least 1.
    pub fn new(tick_ms: u64) -> Self {
        Self {
            tick_ms: tick_ms.max(1),
            buckets: BTreeMap::new(),
            scheduled: BTreeMap::new(),
        }
    }

    /// Sets when a session that was last heard of at `touched_ms` comes up, and returns it: the first
    /// tick after `touched_ms + timeout_ms`.
    pub fn schedule(&mut self, session: SessionId, touched_ms: u64, timeout_ms: u64) -> u64 {
        let due_ms = self.due(touched_ms, timeout_ms);
        if self.scheduled.insert(session, due_ms) != Some(due_ms) {
            self.buckets.entry(due_ms).or_default().push_back(session);
        }
        due_ms
    }

    /// Forgets a session.
    pub fn remove(&mut self, session: SessionId) {
        self.scheduled.remove(&session);
    }

    /// A session whose time has come, which is no longer scheduled then; `None` when there is none.
    /// One at a time, so that the caller can do other work between.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<SessionId> {
        loop {
            let mut bucket = self
                .buckets
                .first_entry()
                .filter(|bucket| *bucket.key() <= now_ms)?;
            let due_ms = *bucket.key();
            let Some(session) = bucket.get_mut().pop_front() else {
                bucket.remove();
                continue;
            };
            if self.scheduled.get(&session) == Some(&due_ms) {
                self.scheduled.remove(&session);
                return Some(session);
            }
        }
    }

    /// When the next bucket comes up.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.buckets.keys().next().copied()
    }

    /// The time at which a session touched at `touched_ms` comes up.
    pub const fn due(&self, touched_ms: u64, timeout_ms: u64) -> u64 {
        let deadline = touched_ms.saturating_add(timeout_ms);
        (deadline / self.tick_ms)
            .saturating_add(1)
            .saturating_mul(self.tick_ms)
    }

    /// How many sessions are scheduled.
    pub fn len(&self) -> usize {
        self.scheduled.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.scheduled.is_empty()
    }

    /// The buckets in the order of their times, each with its sessions, as the `dump` command shows
    /// them. With sessions that have been touched since, which Apache would show in later buckets.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, impl Iterator<Item = SessionId>)> {
        self.buckets.iter().map(move |(&due_ms, sessions)| {
            let counting = move |session: &SessionId| self.scheduled.get(session) == Some(&due_ms);
            (due_ms, sessions.iter().copied().filter(counting))
        })
    }
}

/// `java.util.Random`.
struct JavaRandom(u64);

impl JavaRandom {
    #[expect(clippy::cast_sign_loss, reason = "its bits are meant")]
    const fn new(seed: i64) -> Self {
        Self((seed as u64 ^ 0x5_deec_e66d) & Self::MASK)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the 32 bits above the lowest 16"
    )]
    const fn next_int(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(0x5_deec_e66d).wrapping_add(0xb) & Self::MASK;
        (self.0 >> 16) as u32
    }

    const MASK: u64 = (1 << 48) - 1;
}
