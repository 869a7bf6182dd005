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

/// A snapshot is written and read back this many times as fast as the log is written, within its bounds: the log that a
/// restart would replay grows by at most half of the snapshot's bytes meanwhile.
const TIMES_THE_LOG: u64 = 4;

/// The highest rate divided by this a snapshot has in any case.
const LEAST_SHARE: u64 = 2;

/// How long the log is watched for its rate.
const WINDOW: Duration = Duration::from_millis(250);

/// What may be made up for at once of a time in which less was done than the rate allows.
const CREDIT_MAX: Duration = Duration::from_millis(100);

/// Keeps work below a rate by sleeping, while there is a log that is written. The more is written to the log the higher the
/// rate is, up to a limit.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The highest rate; `None` for as fast as can be.
    bytes_per_second_max: Option<u64>,
    /// Since when `due` counts.
    started: Instant,
    /// How long what was done should have taken.
    due: Duration,
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
    /// What was noted when the rate was last looked at, and when that was.
    counted: u64,
    counted_at: Instant,
    bytes_per_second: u64,
}

impl Pace {
    /// At most `bytes_per_second`; `None` and 0 stand for no limit.
    pub(crate) fn new(bytes_per_second_max: Option<u64>) -> Self {
        Self {
            bytes_per_second_max: bytes_per_second_max.filter(|rate| *rate > 0),
            started: Instant::now(),
            due: Duration::ZERO,
            log: None,
            was_quiet: false,
        }
    }

    /// Holds the limit only while that log is written.
    pub(crate) fn hold_beside(&mut self, activity: &LogActivity) {
        let (noted, now) = (activity.noted(), Instant::now());
        self.log = Some(Watched {
            noted,
            at: now,
            counted: noted,
            counted_at: now,
            bytes_per_second: 0,
            activity: activity.clone(),
        });
    }

    /// Whether there is a limit that held when something was spent last.
    pub(crate) fn is_held(&self) -> bool {
        self.is_limited() && !self.was_quiet
    }

    /// Whether there is a limit.
    pub(crate) fn is_limited(&self) -> bool {
        self.bytes_per_second_max.is_some()
    }

    /// So many bytes were made, written or read: sleeps until the rate allows more, and for [`REST`] in any case.
    pub(crate) fn spend(&mut self, bytes: usize) {
        let pause = self.pause_after(bytes, Instant::now());
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }

    fn pause_after(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(max) = self.bytes_per_second_max else {
            return Duration::ZERO;
        };
        let mut rate = max;
        if let Some(log) = &mut self.log {
            log.look(now);
            self.was_quiet = log.is_quiet(now);
            if self.was_quiet {
                // What was free is not to be paid for later.
                (self.started, self.due) = (now, Duration::ZERO);
                return Duration::ZERO;
            }
            let wanted = log.bytes_per_second.saturating_mul(TIMES_THE_LOG);
            rate = wanted.clamp(max.div_ceil(LEAST_SHARE), max);
        }
        self.due += Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
        let took = now.saturating_duration_since(self.started);
        let credit = took.saturating_sub(self.due);
        self.started += credit.saturating_sub(CREDIT_MAX);
        self.due.saturating_sub(took).max(REST)
    }
}

impl Watched {
    fn look(&mut self, now: Instant) {
        let noted = self.activity.noted();
        if noted != self.noted {
            (self.noted, self.at) = (noted, now);
        }
        let since = now.saturating_duration_since(self.counted_at);
        if since >= WINDOW {
            let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            let bytes = noted.saturating_sub(self.counted);
            self.bytes_per_second = bytes.saturating_mul(1000) / millis;
            (self.counted, self.counted_at) = (noted, now);
        }
    }

    fn is_quiet(&self, now: Instant) -> bool {
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
        // As far as it was not much too long.
        assert_eq!(pace.pause_after(MIB, start + ms(9_400)), REST);
        assert_eq!(pace.pause_after(2 * MIB, start + ms(9_400)), ms(100));
        for none in [None, Some(0)] {
            let mut pace = Pace::new(none);
            assert_eq!(pace.pause_after(1000 * MIB, start), ms(0));
            assert!(!pace.is_held());
        }
    }

    /// Bytes that are spent all the time, in ms for each MiB, while the log gets so many in a second.
    fn pause_beside(log_bytes: u64) -> Duration {
        let activity = LogActivity::default();
        let mut pace = Pace::new(Some(10 << 20));
        pace.hold_beside(&activity);
        let (start, mut spent_ms) = (pace.started, 0);
        let mut pause = ms(0);
        while spent_ms < 2000 {
            activity.note(1 + log_bytes * spent_ms / 1000);
            pause = pace.pause_after(MIB / 8, start + ms(spent_ms));
            spent_ms += u64::try_from(pause.as_millis()).expect("it is short");
        }
        pause
    }

    #[test]
    fn the_rate_follows_the_log_s_between_half_and_all_of_the_limit() {
        let [half, all] = [ms(25), Duration::from_micros(12_500)];
        for (log_bytes, expect) in [
            (10, half),
            (MIB as u64, half),
            (2 * MIB as u64, Duration::from_micros(15_625)),
            (5 * MIB as u64, all),
            (1000 * MIB as u64, all),
        ] {
            let pause = pause_beside(log_bytes);
            assert!(pause.abs_diff(expect) < ms(2), "{log_bytes}: {pause:?}");
        }
    }

    #[test]
    fn a_quiet_log_leaves_the_disk_and_gets_it_back_with_its_first_write() {
        let activity = LogActivity::default();
        activity.note(1);
        let mut pace = Pace::new(Some(20 << 20));
        pace.hold_beside(&activity);
        let start = pace.started;
        // It was written just now for all one knows, and not much.
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
