//! The place where one consumer task sleeps and any number of producers, on any thread, wake it.
//!
//! Invariants:
//! - A producer that published its work before [`WakeSlot::post`] is either seen by the consumer's
//!   check or finds it sleeping and wakes it: one side's store is fenced before its load of the other.
//! - `state` is [`AWAKE`], [`ASLEEP`], [`POSTING`], or the time in nanoseconds at which a wake had been
//!   posted that the consumer has not run for yet. Producers move it from asleep over posting to the
//!   time, the consumer moves it to awake and asleep. A time that grows old is how a pulse finds a
//!   stalled executor; it is stored after the wake, so that a producer which lost its CPU in between
//!   is not taken for one.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::task::AtomicWaker;

use crate::pulse;

const AWAKE: u64 = 0;
const ASLEEP: u64 = 1;
const POSTING: u64 = 2;

/// Nanoseconds since the first call in this process, above all other states of a slot.
pub(crate) fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos())
        .unwrap_or(u64::MAX)
        .max(POSTING + 1)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct WakeSlot {
    state: AtomicU64,
    waker: AtomicWaker,
    /// The executor that watches it: the last one whose task slept here, 0 before.
    heart: AtomicUsize,
}

impl WakeSlot {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU64::new(AWAKE),
            waker: AtomicWaker::new(),
            heart: AtomicUsize::new(0),
        })
    }

    /// Wakes the consumer if it sleeps. What it is to see must have been stored before.
    pub(crate) fn post(&self) {
        // Orders the caller's store before the load below; `poll_wait` has the other half.
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == ASLEEP && self.advance(ASLEEP, POSTING) {
            self.waker.wake();
            // Fails when the consumer has run already.
            self.advance(POSTING, now_ns());
        }
    }

    fn advance(&self, from: u64, to: u64) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Ready when `ready` says so; sleeps otherwise. For one consumer task at a time.
    pub(crate) fn poll_wait(
        self: &Arc<Self>,
        cx: &Context<'_>,
        ready: impl Fn() -> bool,
    ) -> Poll<()> {
        let was = self.state.swap(AWAKE, Ordering::SeqCst);
        if was > POSTING {
            pulse::note_run(was);
        }
        if ready() {
            return Poll::Ready(());
        }
        pulse::watch(self);
        self.waker.register(cx.waker());
        self.state.store(ASLEEP, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if ready() {
            self.state.store(AWAKE, Ordering::SeqCst);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The executor that watches it, 0 for none.
    pub(crate) fn heart(&self) -> usize {
        self.heart.load(Ordering::Relaxed)
    }

    /// Called by the consumer, on the executor that is to watch it.
    pub(crate) fn give_to(&self, heart: usize) {
        self.heart.store(heart, Ordering::Relaxed);
    }

    /// When a wake was posted that the consumer has not run for, if one was.
    pub(crate) fn posted_ns(&self) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        (state > POSTING).then_some(state)
    }
}
