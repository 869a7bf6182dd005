//! When the machine did not run a thread that was due: what is below every figure of a tail.
//!
//! On each CPU a thread of a real-time priority sleeps for half a millisecond again and again. No other thread goes before
//! it, so when it is late, the machine itself was away: its hypervisor, an interrupt, a part of the kernel that does not give way.

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
/// A pause that counts.
const PAUSE_MIN: Duration = Duration::from_millis(1);

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

/// The pauses of all CPUs.
#[derive(Debug)]
pub struct Pauses(Vec<Pause>);

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
        let by_cpu = seen.collect::<Option<Vec<_>>>()?;
        Some(Pauses(by_cpu.concat()))
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
        let to = Instant::now();
        if to.saturating_duration_since(from) >= PAUSE_MIN {
            pauses.push(Pause { from, to });
        }
    }
    pauses
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
        self.0.iter().map(|pause| pause.to - pause.from)
    }

    /// How much of what began at `since` and took so long the longest of them took.
    pub fn share(&self, since: Instant, took: Duration) -> Duration {
        let until = since + took;
        let shares = self.0.iter().map(|pause| {
            let (from, to) = (pause.from.max(since), pause.to.min(until));
            to.saturating_duration_since(from)
        });
        shares.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_its_share_of_what_was_under_way() {
        let at = Instant::now();
        let ms = Duration::from_millis;
        let pauses = Pauses(
            [(10, 12), (20, 26)]
                .map(|(from, to)| Pause {
                    from: at + ms(from),
                    to: at + ms(to),
                })
                .to_vec(),
        );
        assert_eq!(pauses.longest(), ms(6));
        assert_eq!(pauses.longer_than(ms(2)), 1);
        for (since, took, share) in [
            (0, 10, 0),
            (0, 11, 1),
            (11, 10, 1),
            (11, 11, 2),
            (12, 8, 0),
            (15, 10, 5),
            (21, 1, 1),
            (0, 100, 6),
            (26, 1, 0),
        ] {
            assert_eq!(pauses.share(at + ms(since), ms(took)), ms(share), "{since}");
        }
    }

    #[test]
    fn watching_ends() {
        let seen = Watch::start().end();
        assert!(seen.is_none_or(|pauses| pauses.0.len() < 1000));
    }
}
