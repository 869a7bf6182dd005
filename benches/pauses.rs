//! When the machine did not run a thread that was due: what is below every figure of a tail.
//!
//! On each CPU a thread of a real-time priority sleeps for half a millisecond and then counts for some microseconds, again
//! and again. No other thread goes before it, so when it is late with that, the machine itself was away: its hypervisor,
//! an interrupt, or a part of the kernel that does not give way. It counts because being woken in time does not tell: a
//! CPU that its hypervisor takes away may still answer each interrupt, and get nowhere in between.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// How long a watching thread sleeps.
const SLEEP: Duration = Duration::from_micros(500);
/// How far it counts then, which takes some ten microseconds.
const COUNT: u32 = 20_000;
/// A pause that counts: nothing that a kernel does with its hands tied takes so long.
const PAUSE_MIN: Duration = Duration::from_micros(300);
/// Pauses with no more than this between them, which is one sleep, are one.
const GAP_MAX: Duration = Duration::from_millis(1);

/// Threads that watch, one for each CPU, until [`Watch::end`].
#[derive(Debug)]
pub struct Watch {
    is_over: Arc<AtomicBool>,
    watching: Vec<JoinHandle<Option<Vec<Pause>>>>,
}

/// From when until when a CPU did not run what was due.
#[derive(Clone, Copy, Debug)]
struct Pause {
    from: Instant,
    to: Instant,
}

/// The pauses of each CPU.
#[derive(Debug)]
pub struct Pauses(Vec<Vec<Pause>>);

impl Watch {
    /// Begins to watch the CPUs that this process may use.
    pub fn start() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let cpus = sched_getaffinity(None).unwrap_or_default();
        let start = |cpu| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                be_first_on(cpu)?;
                Some(watch(&is_over))
            })
        };
        let watching = (0..CpuSet::MAX_CPU)
            .filter(|cpu| cpus.is_set(*cpu))
            .map(start);
        Self {
            watching: watching.collect(),
            is_over,
        }
    }

    /// What was seen; `None` where this process may not have threads of real-time priority.
    pub fn end(self) -> Option<Pauses> {
        self.is_over.store(true, Ordering::Relaxed);
        let seen = self.watching.into_iter().map(|thread| thread.join().ok()?);
        seen.collect::<Option<Vec<_>>>().map(Pauses)
    }
}

/// Makes the current thread the first on `cpu`.
fn be_first_on(cpu: usize) -> Option<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).ok()?;
    let middle = ThreadPriority::Crossplatform(50.try_into().ok()?);
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), middle, policy).ok()
}

fn watch(is_over: &AtomicBool) -> Vec<Pause> {
    let mut pauses = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let from = Instant::now() + SLEEP;
        thread::sleep(SLEEP);
        (0..COUNT).for_each(|number| _ = black_box(number));
        let to = Instant::now();
        note(&mut pauses, Pause { from, to });
    }
    pauses
}

/// Adds `late` to the pauses before it, if it counts.
fn note(pauses: &mut Vec<Pause>, late: Pause) {
    if late.to.saturating_duration_since(late.from) < PAUSE_MIN {
        return;
    }
    match pauses.last_mut() {
        Some(last) if late.from.saturating_duration_since(last.to) <= GAP_MAX => last.to = late.to,
        _ => pauses.push(late),
    }
}

impl Pauses {
    /// The longest.
    pub fn longest(&self) -> Duration {
        self.lengths().max().unwrap_or_default()
    }

    /// How many are longer than `limit`.
    pub fn longer_than(&self, limit: Duration) -> usize {
        self.lengths().filter(|length| *length > limit).count()
    }

    fn lengths(&self) -> impl Iterator<Item = Duration> {
        let all = self.0.iter().flatten();
        all.map(|pause| pause.to - pause.from)
    }

    /// How much of what began at `since` and took so long the pauses of one CPU took: that CPU which took most.
    pub fn share(&self, since: Instant, took: Duration) -> Duration {
        let until = since + took;
        let share = |pause: &Pause| {
            let (from, to) = (pause.from.max(since), pause.to.min(until));
            to.saturating_duration_since(from)
        };
        let by_cpu = self.0.iter().map(|cpu| cpu.iter().map(share).sum());
        by_cpu.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_its_share_of_what_was_under_way() {
        let at = Instant::now();
        let ms = Duration::from_millis;
        let pause = |(from, to)| Pause {
            from: at + ms(from),
            to: at + ms(to),
        };
        let pauses = Pauses(vec![
            vec![pause((10, 12)), pause((20, 26))],
            vec![pause((21, 24))],
        ]);
        assert_eq!(pauses.longest(), ms(6));
        assert_eq!(pauses.longer_than(ms(2)), 2);
        for (since, took, share) in [
            (0, 10, 0),
            (0, 11, 1),
            (11, 10, 2),
            (11, 11, 3),
            (12, 8, 0),
            (15, 10, 5),
            (21, 1, 1),
            (0, 100, 8),
            (26, 1, 0),
        ] {
            assert_eq!(pauses.share(at + ms(since), ms(took)), ms(share), "{since}");
        }
    }

    #[test]
    fn pauses_with_a_sleep_between_them_are_one() {
        let at = Instant::now();
        let us = |us| at + Duration::from_micros(us);
        let mut pauses = Vec::new();
        for (from, to) in [(0, 200), (1000, 2000), (2600, 3600), (5000, 5400)] {
            let (from, to) = (us(from), us(to));
            note(&mut pauses, Pause { from, to });
        }
        let seen: Vec<_> = pauses.iter().map(|pause| (pause.from, pause.to)).collect();
        assert_eq!(seen, [(us(1000), us(3600)), (us(5000), us(5400))]);
    }

    #[test]
    fn watching_ends() {
        let seen = Watch::start().end();
        assert!(seen.is_none_or(|pauses| pauses.lengths().count() < 1000));
    }
}
