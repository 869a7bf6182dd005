//! How late the core's executor is with what is due while a snapshot is under way, and why.
//!
//! A stall has three causes: the core itself was busy, its thread waited for its CPU while another ran there, or neither,
//! which is a timer that came late. The kernel's own figures of the thread tell. What a hypervisor takes is in all three:
//! a CPU that is not there makes whatever happens on it longer.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringkeeper_member::Metric;
use ringkeeper_transport::{sleep, spawn_local};
use rustix::time::{ClockId, clock_gettime};

/// How often is looked.
const PROBE_PAUSE: Duration = Duration::from_millis(1);

/// A stall that counts.
const STALL: Duration = Duration::from_millis(5);

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    is_under_way: Cell<bool>,
    /// A probe runs; it may have to notice yet that a snapshot has ended, and perhaps the next one begun.
    is_probed: Cell<bool>,
    longest: Cell<Duration>,
    /// The most of one delay that the core ran itself.
    longest_busy: Cell<Duration>,
    /// The most of one delay that it waited for its CPU.
    longest_wait: Cell<Duration>,
    over_limit: Cell<u64>,
}

impl Stalls {
    /// Looks, as a task of this executor, until [`Stalls::end`].
    pub(crate) fn begin(self: &Rc<Self>) {
        self.is_under_way.set(true);
        if !self.is_probed.replace(true) {
            spawn_local(Rc::clone(self).probe()).detach();
        }
    }

    pub(crate) fn end(&self) {
        self.is_under_way.set(false);
    }

    async fn probe(self: Rc<Self>) {
        let thread = ThreadTimes::open();
        while self.is_under_way.get() {
            let (started, before) = (Instant::now(), thread.now());
            sleep(PROBE_PAUSE).await;
            let late = started.elapsed().saturating_sub(PROBE_PAUSE);
            self.note(late, thread.now().since(before));
        }
        self.is_probed.set(false);
    }

    /// Takes note of a delay, during which the thread had `spent` so much.
    fn note(&self, late: Duration, spent: Spent) {
        let raise = |most: &Cell<Duration>, now: Duration| most.set(most.get().max(now));
        raise(&self.longest, late);
        raise(&self.longest_busy, late.min(spent.ran));
        raise(&self.longest_wait, late.min(spent.waited));
        if late > STALL {
            self.over_limit.set(self.over_limit.get() + 1);
            tracing::debug!(
                late_us = late.as_micros(),
                busy_us = spent.ran.as_micros(),
                waited_us = spent.waited.as_micros(),
                "the core was late"
            );
        }
    }

    /// What `mntr` shows of it.
    pub(crate) fn metrics(&self) -> [(&'static str, Metric); 4] {
        let micros = |most: &Cell<Duration>| {
            Metric::Integer(u64::try_from(most.get().as_micros()).unwrap_or(u64::MAX))
        };
        let over_limit = Metric::Integer(self.over_limit.get());
        [
            ("snapshot_core_stall_max_us", micros(&self.longest)),
            ("snapshot_core_busy_max_us", micros(&self.longest_busy)),
            ("snapshot_core_wait_max_us", micros(&self.longest_wait)),
            ("snapshot_core_stalls_over_5ms", over_limit),
        ]
    }
}

/// What the kernel counts of the current thread.
struct ThreadTimes(Option<File>);

/// What a thread has spent its time with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    /// On a CPU.
    ran: Duration,
    /// Ready to run, while the CPU was another's.
    waited: Duration,
}

impl Spent {
    fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

impl ThreadTimes {
    /// A kernel without those figures tells of no waiting.
    fn open() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    fn now(&self) -> Spent {
        // The file's own figure of what the thread ran is as old as the last tick.
        let ran = clock_gettime(ClockId::ThreadCPUTime);
        Spent {
            ran: Duration::try_from(ran).unwrap_or_default(),
            waited: self.waited().unwrap_or_default(),
        }
    }

    fn waited(&self) -> Option<Duration> {
        let mut line = [0; 80];
        let count = self.0.as_ref()?.read_at(&mut line, 0).ok()?;
        let line = str::from_utf8(line.get(..count)?).ok()?;
        // Nanoseconds that it ran, nanoseconds that it waited, and how often it ran.
        let nanos = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread;

    use ringkeeper_transport::{ExecutorSpec, run_executor};

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_delay_is_told_by_its_causes() {
        let stalls = Stalls::default();
        for (late, ran, waited) in [(9, 2, 1), (4, 7, 0), (5, 0, 5), (6, 0, 0)] {
            let spent = Spent {
                ran: ms(ran),
                waited: ms(waited),
            };
            stalls.note(ms(late), spent);
        }
        let expect = [9000, 4000, 5000, 2].map(Metric::Integer);
        assert_eq!(stalls.metrics().map(|(_, metric)| metric), expect);
    }

    #[test]
    fn snapshots_in_quick_succession_are_watched_by_one_probe() {
        let watching = async {
            let stalls = Rc::<Stalls>::default();
            for _ in 0..5 {
                stalls.begin();
                sleep(Duration::ZERO).await;
                stalls.end();
            }
            stalls.begin();
            assert_eq!(Rc::strong_count(&stalls), 2);
            stalls.end();
            while Rc::strong_count(&stalls) > 1 {
                sleep(PROBE_PAUSE).await;
            }
            // And by another one once it has gone.
            stalls.begin();
            assert_eq!(Rc::strong_count(&stalls), 2);
            stalls.end();
        };
        run_executor(&ExecutorSpec::new("test", None), watching).expect("an executor");
    }

    /// Of two threads that want one CPU each works for a part of the time and waits for the rest; one that sleeps does neither.
    #[test]
    fn the_kernel_tells_work_from_waiting() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let all = sched_getaffinity(None).expect("ask for the CPUs");
        let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu));
        let mut one = CpuSet::new();
        one.set(first.expect("this thread runs somewhere"));
        let both = Arc::new(Barrier::new(2));
        let burn = || {
            let both = Arc::clone(&both);
            thread::spawn(move || {
                sched_setaffinity(None, &one).expect("choose a CPU");
                let times = ThreadTimes::open();
                both.wait();
                let before = times.now();
                loop {
                    let spent = times.now().since(before);
                    if spent.ran > ms(50) {
                        return spent.waited;
                    }
                }
            })
        };
        let waited = [burn(), burn()].map(|thread| thread.join().expect("both end"));
        let times = ThreadTimes::open();
        if times.0.is_some() {
            assert!(waited.iter().any(|waited| *waited > ms(20)), "{waited:?}");
        }
        let before = times.now();
        thread::sleep(ms(100));
        assert!(times.now().since(before).ran < ms(50));
    }
}
