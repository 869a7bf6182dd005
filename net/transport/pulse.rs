//! The pulse of each executor: a timer that never stops, and looks whether anything stood still that could have run (see
//! [`executor`](crate::executor)).
//!
//! A pulse beats every few milliseconds while there is work and rarely when there is none. *Work* is
//! what the server says by [`busy`], and any traffic through this crate's connections, mailboxes, chains
//! and doorbells; the fast beat outlives it by `HOLD_BEATS`. A beat does two things:
//! - by its timer it wakes its own executor, and all that was left runnable there runs;
//! - it looks at the other executors: where a wake was posted `KICK_AFTER_NS` ago, has not been run
//!   for, and the thread sleeps in the kernel all the same, it kicks (wakes that executor's pulse).
//!   So an idle executor, with its slow beat, is guarded by the one that waits for its answer.
//!
//! A **rescue** is a beat that found work which should have run: a kick as above, or, on its own
//! executor, a wake posted `LATE_NS` or more before the beat was due, whose task ran only when the
//! beat did, where the time between is not explained by the kernel's books (the thread was neither on a
//! CPU nor waiting for one) and is no longer than two periods (so a
//! hypervisor that withholds the CPU from a sleeping thread is mostly told apart). Rescues count in [`counters`], with the
//! longest stall. Work that no wake of this crate announced (a task made runnable by I/O) is rescued
//! in the same way, but not counted.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::run_loop::Sleep;
use crate::thread_clock::ThreadClock;
use crate::wake::{WakeSlot, now_ns};

/// Beats without work after which a pulse slows down.
const HOLD_BEATS: u32 = 16;

/// A wake unanswered for so long makes another executor's beat look closer.
const KICK_AFTER_NS: u64 = 1_000_000;

/// A task that ran so long after its wake, and only with the beat, was stuck.
const LATE_NS: u64 = 300_000;

/// The two periods of a pulse.
#[derive(Clone, Copy, Debug)]
pub struct PulseSpec {
    /// While work is outstanding: 1 to 5 ms. 1 ms costs about 3 % of a core, 5 ms 1 %.
    pub busy: Duration,
    /// While idle.
    pub idle: Duration,
}

impl Default for PulseSpec {
    fn default() -> Self {
        Self {
            busy: Duration::from_millis(2),
            idle: Duration::from_millis(100),
        }
    }
}

/// What the pulses of this process counted. All only grow.
#[derive(Debug, Default)]
pub struct PulseCounters {
    /// Beats.
    pub beats: AtomicU64,
    /// Beats that found work which should have run.
    pub rescues: AtomicU64,
    /// Those among them by the pulse of another executor.
    pub kicks: AtomicU64,
    /// The longest stall that a rescue ended, in nanoseconds.
    pub stall_max_ns: AtomicU64,
    /// Work that came late for another reason: its thread was running, waited for a CPU, or was denied
    /// one by the hypervisor.
    pub suspicions: AtomicU64,
}

static COUNTERS: PulseCounters = PulseCounters {
    beats: AtomicU64::new(0),
    rescues: AtomicU64::new(0),
    kicks: AtomicU64::new(0),
    stall_max_ns: AtomicU64::new(0),
    suspicions: AtomicU64::new(0),
};

/// The counters of all pulses in this process.
pub fn counters() -> &'static PulseCounters {
    &COUNTERS
}

fn count_rescue(stall_ns: u64) {
    COUNTERS.rescues.fetch_add(1, Ordering::Relaxed);
    COUNTERS.stall_max_ns.fetch_max(stall_ns, Ordering::Relaxed);
}

/// What other threads see of an executor.
#[derive(Debug)]
struct Heart {
    id: usize,
    /// The pulse task, for a kick.
    kicker: AtomicWaker,
    /// `/proc` path of the thread's state.
    stat_path: String,
    /// Where this executor's tasks sleep.
    slots: Mutex<Vec<Weak<WakeSlot>>>,
}

impl Heart {
    /// Whether the kernel has the thread asleep. Read only when something is suspected.
    fn is_parked(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(&self.stat_path) else {
            return false;
        };
        // "tid (name) S ...": the name may hold anything, parentheses included.
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|rest| rest.starts_with('S'))
    }

    /// When the oldest wake was posted that its task has not run for.
    fn oldest_posted_ns(&self) -> Option<u64> {
        let Ok(slots) = self.slots.try_lock() else {
            return None;
        };
        let own = slots.iter().filter_map(Weak::upgrade);
        own.filter(|slot| slot.heart() == self.id)
            .filter_map(|slot| slot.posted_ns())
            .min()
    }
}

static HEARTS: Mutex<Vec<Arc<Heart>>> = Mutex::new(Vec::new());
static HEART_IDS: AtomicUsize = AtomicUsize::new(1);

/// No code that may panic runs under these locks, and their contents hold at every point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An executor's own side of its pulse.
#[derive(Debug)]
pub(crate) struct Pulse {
    spec: PulseSpec,
    heart: Arc<Heart>,
    /// Live [`Busy`] guards.
    outstanding: Cell<usize>,
    /// Something came or went since the last beat.
    touched: Cell<bool>,
    /// The pulse task sleeps for the idle period.
    slow: Cell<bool>,
    /// The slowest task that ran since the last beat: when its wake was posted, and when it ran.
    latest_run: Cell<Option<(u64, u64)>>,
    clock: ThreadClock,
}

impl Pulse {
    fn has_work(&self) -> bool {
        self.touched.get() || self.outstanding.get() > 0
    }

    /// Called when work appears: a slow pulse starts over as a fast one.
    fn quicken(&self) {
        if self.slow.replace(false) {
            self.heart.kicker.wake();
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Pulse>>> = const { RefCell::new(None) };
}

fn with_current<R>(f: impl FnOnce(&Rc<Pulse>) -> R) -> Option<R> {
    CURRENT.with_borrow(|current| current.as_ref().map(f))
}

/// Makes the pulse of the current thread's executor.
pub(crate) fn start(spec: PulseSpec) -> Rc<Pulse> {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let heart = Arc::new(Heart {
        id: HEART_IDS.fetch_add(1, Ordering::Relaxed),
        kicker: AtomicWaker::new(),
        stat_path: format!("/proc/{}/stat", thread.display()),
        slots: Mutex::new(Vec::new()),
    });
    lock(&HEARTS).push(Arc::clone(&heart));
    let pulse = Rc::new(Pulse {
        spec,
        heart,
        outstanding: Cell::new(0),
        touched: Cell::new(true),
        slow: Cell::new(false),
        latest_run: Cell::new(None),
        clock: ThreadClock::open(),
    });
    CURRENT.set(Some(Rc::clone(&pulse)));
    pulse
}

/// Ends it: nobody kicks this executor any more.
pub(crate) fn stop(pulse: &Pulse) {
    lock(&HEARTS).retain(|heart| heart.id != pulse.heart.id);
    CURRENT.set(None);
}

/// Beats until it is cancelled.
pub(crate) async fn beat(pulse: Rc<Pulse>) {
    let mut hold = HOLD_BEATS;
    loop {
        hold = if pulse.has_work() {
            HOLD_BEATS
        } else {
            hold.saturating_sub(1)
        };
        pulse.touched.set(false);
        pulse.slow.set(hold == 0);
        let period = if hold == 0 {
            pulse.spec.idle
        } else {
            pulse.spec.busy
        };
        let period_ns = nanos(period);
        let due_ns = now_ns().saturating_add(period_ns);
        wait(&pulse, period).await;
        COUNTERS.beats.fetch_add(1, Ordering::Relaxed);
        let now = now_ns();
        let accounted_ns = pulse.clock.lap_ns();
        if let (Some(run), Some(accounted_ns)) = (pulse.latest_run.take(), accounted_ns) {
            match judge(run, accounted_ns, due_ns, period_ns) {
                Verdict::InTime => {}
                Verdict::Rescue { stall_ns } => count_rescue(stall_ns),
                Verdict::Suspicion => _ = COUNTERS.suspicions.fetch_add(1, Ordering::Relaxed),
            }
        }
        if hold > 0 {
            kick_stalled(&pulse, now);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Sleeps for `period`, or until a slow pulse is quickened.
async fn wait(pulse: &Pulse, period: Duration) {
    let started_slow = pulse.slow.get();
    let mut timer = pin!(Sleep::new(period));
    poll_fn(|cx| {
        pulse.heart.kicker.register(cx.waker());
        if started_slow && !pulse.slow.get() {
            return Poll::Ready(());
        }
        timer.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

/// What a beat makes of the latest task that ran for a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing had to wait for the beat.
    InTime,
    /// It ran only because the beat was due.
    Rescue { stall_ns: u64 },
    /// It came with the beat, and was late for longer than a parked executor sleeps.
    Suspicion,
}

/// Judges the latest run of a task of this executor: when its wake was posted and when it ran, with the time that the
/// thread was on a CPU or waited for one since the beat before. The beat was due at `due_ns`.
fn judge((posted, ran): (u64, u64), accounted_ns: u64, due_ns: u64, period_ns: u64) -> Verdict {
    let came_with_beat = ran >= due_ns && posted.saturating_add(LATE_NS) <= due_ns;
    let unexplained_ns = (ran - posted).saturating_sub(accounted_ns);
    if !came_with_beat || unexplained_ns < LATE_NS {
        return Verdict::InTime;
    }
    let parked_ns_max = period_ns.saturating_mul(2).saturating_add(LATE_NS);
    if unexplained_ns <= parked_ns_max {
        let stall_ns = ran - posted;
        Verdict::Rescue { stall_ns }
    } else {
        Verdict::Suspicion
    }
}

/// Wakes the executors that sleep on a wake.
fn kick_stalled(own: &Pulse, now_ns: u64) {
    for heart in suspects(own, now_ns) {
        let Some(posted) = heart.oldest_posted_ns() else {
            continue;
        };
        if heart.is_parked() && heart.oldest_posted_ns() == Some(posted) {
            heart.kicker.wake();
            COUNTERS.kicks.fetch_add(1, Ordering::Relaxed);
            count_rescue(now_ns.saturating_sub(posted));
        } else {
            COUNTERS.suspicions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The other executors that have a wake which is overdue. Usually none, and then no allocation.
fn suspects(own: &Pulse, now_ns: u64) -> Vec<Arc<Heart>> {
    // An executor that waited here for a lock would look parked to the one that holds it.
    let Ok(hearts) = HEARTS.try_lock() else {
        return Vec::new();
    };
    let is_suspect = |heart: &&Arc<Heart>| {
        let posted = heart.oldest_posted_ns();
        heart.id != own.heart.id
            && posted.is_some_and(|posted| now_ns.saturating_sub(posted) >= KICK_AFTER_NS)
    };
    hearts.iter().filter(is_suspect).cloned().collect()
}

/// A task ran for a wake that was posted at `posted_ns`.
pub(crate) fn note_run(posted_ns: u64) {
    with_current(|pulse| {
        pulse.touched.set(true);
        pulse.quicken();
        let ran = now_ns();
        if ran.saturating_sub(posted_ns) < LATE_NS {
            return;
        }
        let earlier = pulse.latest_run.get().map(|(posted, _)| posted);
        if earlier.is_none_or(|earlier| posted_ns < earlier) {
            pulse.latest_run.set(Some((posted_ns, ran)));
        }
    });
}

/// Something came or went on this executor.
pub(crate) fn touch() {
    with_current(|pulse| {
        pulse.touched.set(true);
        pulse.quicken();
    });
}

/// Puts `slot` under the eyes of the current executor's pulse.
pub(crate) fn watch(slot: &Arc<WakeSlot>) {
    with_current(|pulse| {
        if slot.heart() == pulse.heart.id {
            return;
        }
        slot.give_to(pulse.heart.id);
        let mut slots = lock(&pulse.heart.slots);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(slot));
    });
}

/// Says that work is outstanding on this executor until the guard is dropped, so that its pulse
/// beats fast. Costs a counter; outside an executor it does nothing.
#[must_use = "the work counts as done when this is dropped"]
#[derive(Debug)]
pub struct Busy {
    pulse: Option<Rc<Pulse>>,
}

/// See [`Busy`].
pub fn busy() -> Busy {
    let pulse = CURRENT.with_borrow(Clone::clone);
    if let Some(pulse) = &pulse {
        pulse.outstanding.set(pulse.outstanding.get() + 1);
        pulse.quicken();
    }
    Busy { pulse }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(pulse) = &self.pulse {
            pulse.outstanding.set(pulse.outstanding.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_parked_thread_counts_as_stalled() {
        const MS: u64 = 1_000_000;
        // A wake at 1 s, and a beat that was due 1 ms later.
        let posted = 1000 * MS;
        let verdict = |ran_after, accounted, period| {
            judge((posted, posted + ran_after), accounted, posted + MS, period)
        };
        let stall_ns = 5 * MS;
        let rescue = Verdict::Rescue { stall_ns };
        assert_eq!(verdict(stall_ns, 0, 10_000 * MS), rescue);
        assert_eq!(verdict(stall_ns, stall_ns - LATE_NS, 10_000 * MS), rescue);
        // It was on a CPU, or waited for one.
        let accounted = stall_ns - LATE_NS + 1;
        assert_eq!(verdict(stall_ns, accounted, 10_000 * MS), Verdict::InTime);
        // The timers of a parked executor would have gone off long before.
        assert_eq!(verdict(stall_ns, 0, MS), Verdict::Suspicion);
        // Something else woke the thread before the beat was due.
        assert_eq!(verdict(MS - 1, 0, 10_000 * MS), Verdict::InTime);
        // It was posted just before the beat.
        let just_before = posted + MS - LATE_NS + 1;
        let run = (just_before, posted + stall_ns);
        assert_eq!(judge(run, 0, posted + MS, 10_000 * MS), Verdict::InTime);
    }
}
