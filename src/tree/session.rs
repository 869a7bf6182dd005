//! Sessions: their numbers and passwords, the timeouts they get, and when they expire
//! (`SessionTrackerImpl`, `ExpiryQueue`, `ZooKeeperServer`).
//!
//! Nothing here reads a clock: the caller says what time it is.

use std::collections::{BTreeMap, BTreeSet};

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
/// - Every scheduled session is in exactly one bucket, the one that `scheduled` names; no bucket is
///   empty.
/// - A session comes up at the first tick that is later than its deadline.
#[derive(Clone, Debug)]
pub struct ExpiryQueue {
    tick_ms: u64,
    /// By the time at which they come up, a multiple of `tick_ms`.
    buckets: BTreeMap<u64, BTreeSet<SessionId>>,
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
        if self.scheduled.get(&session) != Some(&due_ms) {
            self.remove(session);
            self.scheduled.insert(session, due_ms);
            self.buckets.entry(due_ms).or_default().insert(session);
        }
        due_ms
    }

    /// Forgets a session.
    pub fn remove(&mut self, session: SessionId) {
        if let Some(due_ms) = self.scheduled.remove(&session)
            && let Some(bucket) = self.buckets.get_mut(&due_ms)
        {
            bucket.remove(&session);
            if bucket.is_empty() {
                self.buckets.remove(&due_ms);
            }
        }
    }

    /// A session whose time has come, which is no longer scheduled then; `None` when there is none.
    /// One at a time, so that the caller can do other work between.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<SessionId> {
        let (due_ms, bucket) = self.buckets.first_key_value()?;
        if *due_ms > now_ms {
            return None;
        }
        let session = bucket.first().copied()?;
        self.remove(session);
        Some(session)
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
        let buckets = self.buckets.iter();
        buckets.map(|(&due_ms, sessions)| (due_ms, sessions.iter().copied()))
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

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    // The results of Apache's SessionTrackerImpl.
    #[test]
    fn the_first_ids_are_apaches() {
        let cases = [
            (1, 0, 0x100_0000_0000_0000_u64),
            (1, 0x11f_71fb_04cb, 0x11f_71fb_04cb_0000),
            (0, 5, 0x5_0000),
            (128, 0, 0x8000_0000_0000_0001),
            (255, 0xffff_ffff_ffff, 0xffff_ffff_ffff_0000),
            (3, 0x123_4567_89ab_cdef, 0x367_89ab_cdef_0000),
        ];
        for (server_id, now_ms, expect) in cases {
            let session = initialize_next_session(server_id, now_ms);
            assert_eq!(session.0.cast_unsigned(), expect, "{server_id} {now_ms}");
        }
    }

    // The results of java.util.Random.
    #[test]
    fn passwords_are_apaches() {
        let cases = [
            (1_u64, 0x054c_c74a_3732_7db2_15e7_02e2_0c73_f005_u128),
            (
                0x100_0000_0000_0000,
                0xf22a_cd4a_97e6_9d6d_20a4_9bb6_38ea_db38,
            ),
            (
                0x100_0123_4567_89ab,
                0x2377_10bc_62d7_7989_a42e_8da7_7022_789d,
            ),
            (u64::MAX, 0x20f6_2cb5_648d_c2d7_7147_1c8a_2486_a9ee),
            (
                0x8000_0000_0000_0001,
                0x054c_c74a_3732_7db2_15e7_02e2_0c73_f005,
            ),
            (
                0xff00_abcd_ef01_2345,
                0xf795_7c6b_f479_0204_2961_099b_f018_9b16,
            ),
            (0xb341_5c00, 0x60b4_20bb_3851_d9d4_7acb_933d_be70_399b),
        ];
        for (id, expect) in cases {
            let session = SessionId(id.cast_signed());
            assert_eq!(password_of(session), expect.to_be_bytes(), "{session}");
            assert!(check_password(session, &expect.to_be_bytes()));
            assert!(!check_password(session, &(expect ^ 1).to_be_bytes()));
            assert!(!check_password(session, &expect.to_be_bytes()[..15]));
        }
        assert!(!check_password(
            SessionId::NONE,
            &password_of(SessionId::NONE)
        ));
    }

    #[test]
    fn timeouts_are_clamped() {
        let cases = [
            (0, 4_000),
            (-1, 4_000),
            (4_000, 4_000),
            (9_999, 9_999),
            (i32::MAX, 40_000),
        ];
        for (wanted, expect) in cases {
            assert_eq!(negotiate(wanted, 4_000, 40_000), expect);
        }
        // ZK: the maximum is looked at last.
        assert_eq!(negotiate(5, 10, 3), 3);
    }

    #[test]
    fn a_session_comes_up_at_the_tick_after_its_deadline() {
        let mut queue = ExpiryQueue::new(1_000);
        assert_eq!(queue.schedule(SessionId(1), 500, 2_000), 3_000);
        // ZK: a deadline on a tick is rounded up to the next one.
        assert_eq!(queue.schedule(SessionId(2), 0, 2_000), 3_000);
        assert_eq!(queue.schedule(SessionId(3), 1_000, 2_000), 4_000);
        assert_eq!(queue.next_due_ms(), Some(3_000));
        assert_eq!(queue.pop_due(2_999), None);
        queue.remove(SessionId(2));
        assert_eq!(queue.pop_due(3_000), Some(SessionId(1)));
        assert_eq!(queue.pop_due(3_000), None);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.pop_due(100_000), Some(SessionId(3)));
        assert!(queue.is_empty());
        assert_eq!(queue.next_due_ms(), None);
    }

    #[test]
    fn moved_sessions_come_up_once() {
        let mut queue = ExpiryQueue::new(10);
        let session = SessionId(1);
        for (touched_ms, timeout_ms) in [(0, 95), (0, 15), (0, 95), (3, 92)] {
            queue.schedule(session, touched_ms, timeout_ms);
        }
        let buckets: Vec<(u64, Vec<SessionId>)> = queue
            .buckets()
            .map(|(due_ms, sessions)| (due_ms, sessions.collect()))
            .collect();
        assert_eq!(buckets, [(100, vec![session])]);
        assert_eq!(queue.pop_due(99), None);
        assert_eq!(queue.pop_due(100), Some(session));
        assert_eq!(queue.pop_due(100), None);
    }

    // Sessions are touched at random; only the last touch is noted, and read when they come up.
    #[test]
    fn lazy_touches_expire_at_the_same_tick_as_eager_ones() {
        let mut random = SmallRng::seed_from_u64(7);
        let mut queue = ExpiryQueue::new(100);
        let timeouts: Vec<u64> = (0..50).map(|_| random.random_range(1..2_000)).collect();
        let mut touched = vec![0_u64; timeouts.len()];
        let mut alive = vec![true; timeouts.len()];
        for (session, &timeout_ms) in timeouts.iter().enumerate() {
            queue.schedule(SessionId(session as i64), 0, timeout_ms);
        }
        for now_ms in (0..10_000).step_by(10) {
            while let Some(session) = queue.pop_due(now_ms) {
                let at = usize::try_from(session.0).unwrap();
                if queue.due(touched[at], timeouts[at]) > now_ms {
                    queue.schedule(session, touched[at], timeouts[at]);
                } else {
                    assert!(alive[at], "{session} expires once");
                    alive[at] = false;
                }
            }
            for (at, timeout_ms) in timeouts.iter().enumerate() {
                let is_due = (touched[at] + timeout_ms) / 100 * 100 + 100 <= now_ms;
                assert_eq!(alive[at], !is_due, "session {at} at {now_ms}");
                if alive[at] && random.random_range(0..40) == 0 {
                    touched[at] = now_ms;
                }
            }
        }
        assert!(alive.iter().any(|alive| !alive));
        assert_eq!(queue.len(), alive.iter().filter(|alive| **alive).count());
    }
}
