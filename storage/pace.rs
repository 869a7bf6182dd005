//! How fast a snapshot is written and read back beside a log that needs the same disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A log that was not written for that long leaves the disk to the snapshot.
const QUIET: Duration = Duration::from_millis(100);

/// The least rest between two turns of a snapshot's thread. Meanwhile the CPU is free for the kernel's threads that carry the
/// log's writes: the lowest priority does not make way for those of another group.
pub const REST: Duration = Duration::from_micros(50);

/// How much of the log was written, for whoever writes a snapshot on another thread. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct LogActivity(Arc<AtomicU64>);

impl LogActivity {
    /// Notes how many bytes there are by now. Only whether this changes matters.
    pub fn note(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    fn noted(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keeps work below a rate by sleeping, while there is a log that is written.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// Since when `spent` counts.
    started: Instant,
    spent: u64,
    log: Option<Watched>,
    /// Nothing was seen to be written to the log.
    was_quiet: bool,
}

/// A log, and when something was last seen to be written to it.
#[derive(Debug)]
struct Watched {
    activity: LogActivity,
    noted: u64,
    at: Instant,
}

impl Pace {
    /// At most `bytes_per_second`; `None` and 0 stand for no limit.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            started: Instant::now(),
            spent: 0,
            log: None,
            was_quiet: false,
        }
    }

    /// Holds the limit only while that log is written.
    pub(crate) fn hold_beside(&mut self, activity: &LogActivity) {
        self.log = Some(Watched {
            noted: activity.noted(),
            activity: activity.clone(),
            at: Instant::now(),
        });
    }

    /// Whether there is a limit.
    pub(crate) fn is_limited(&self) -> bool {
        self.bytes_per_second.is_some()
    }

    /// Whether there is a limit that held when something was spent last.
    pub(crate) fn is_held(&self) -> bool {
        self.is_limited() && !self.was_quiet
    }

    /// So many bytes were made, written or read: sleeps until the rate allows more, and for [`REST`] in any case.
    pub(crate) fn spend(&mut self, bytes: usize) {
        let pause = self.pause_after(bytes, Instant::now());
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }

    fn pause_after(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else {
            return Duration::ZERO;
        };
        self.was_quiet = self.log.as_mut().is_some_and(|log| log.is_quiet(now));
        if self.was_quiet {
            // What was free is not to be paid for later.
            (self.started, self.spent) = (now, 0);
            return Duration::ZERO;
        }
        self.spent += bytes as u64;
        let due = Duration::from_micros(self.spent.saturating_mul(1_000_000) / rate);
        let early = due.saturating_sub(now.saturating_duration_since(self.started));
        early.max(REST)
    }
}

impl Watched {
    fn is_quiet(&mut self, now: Instant) -> bool {
        let noted = self.activity.noted();
        if noted != self.noted {
            (self.noted, self.at) = (noted, now);
        }
        now.saturating_duration_since(self.at) >= QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_a_log_the_rate_is_held_on_average() {
        let mut pace = Pace::new(Some(10 << 20));
        let start = pace.started;
        assert_eq!(pace.pause_after(MIB, start), ms(100));
        // A pause that was too long is made up for.
        assert_eq!(pace.pause_after(MIB, start + ms(150)), ms(50));
        assert_eq!(pace.pause_after(MIB, start + ms(400)), REST);
        for none in [None, Some(0)] {
            let mut pace = Pace::new(none);
            assert_eq!(pace.pause_after(1000 * MIB, start), ms(0));
            assert!(!pace.is_held());
        }
    }

    #[test]
    fn a_quiet_log_leaves_the_disk_and_gets_it_back_with_its_first_write() {
        let activity = LogActivity::default();
        activity.note(1);
        let mut pace = Pace::new(Some(10 << 20));
        pace.hold_beside(&activity);
        let start = pace.started;
        // It was written just now for all one knows.
        assert_eq!(pace.pause_after(MIB, start), ms(100));
        assert!(pace.is_held());
        assert_eq!(pace.pause_after(100 * MIB, start + ms(200)), ms(0));
        assert!(!pace.is_held());
        activity.note(2);
        assert_eq!(pace.pause_after(MIB, start + ms(200)), ms(100));
        assert!(pace.is_held());
        activity.note(3);
        assert_eq!(pace.pause_after(MIB, start + ms(250)), ms(150));
        assert_eq!(pace.pause_after(MIB, start + ms(349)), ms(151));
        assert_eq!(pace.pause_after(MIB, start + ms(350)), ms(0));
    }
}
