//! How long a thread had a CPU or waited for one, by the kernel's books. What is left of a span of
//! time, the thread spent asleep.
#![expect(
    unsafe_code,
    reason = "clock_gettime has no safe wrapper among the dependencies"
)]

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The clock of the thread that opened it; to be read on that thread.
#[derive(Debug)]
pub(crate) struct ThreadClock {
    /// Nanoseconds on a CPU (which lag behind by up to a tick, so they are not taken from here),
    /// nanoseconds of waiting for one, and more.
    schedstat: Option<File>,
    last_ns: Cell<u64>,
}

impl ThreadClock {
    /// The calling thread's.
    pub(crate) fn open() -> Self {
        let clock = Self {
            schedstat: File::open("/proc/thread-self/schedstat").ok(),
            last_ns: Cell::new(0),
        };
        clock.lap_ns();
        clock
    }

    /// Nanoseconds on a CPU or waiting for one since the last call; `None` where the kernel keeps no
    /// books.
    pub(crate) fn lap_ns(&self) -> Option<u64> {
        let waited_ns = self.schedstat.as_ref().and_then(read_waited_ns)?;
        let total_ns = on_cpu_ns()?.saturating_add(waited_ns);
        Some(total_ns.saturating_sub(self.last_ns.replace(total_ns)))
    }
}

fn read_waited_ns(file: &File) -> Option<u64> {
    let mut text = [0; 96];
    let len = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..len)?).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn on_cpu_ns() -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the one timespec that the call writes.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if outcome != 0 {
        return None;
    }
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u64::try_from(time.tv_nsec).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn running_is_in_the_books_and_sleeping_is_not() {
        let clock = ThreadClock::open();
        // However long it takes where others run too.
        let mut run_ns = 0;
        while run_ns < 2_000_000 {
            run_ns += clock.lap_ns().unwrap();
        }
        let began = Instant::now();
        clock.lap_ns();
        let asleep = Duration::from_millis(20);
        sleep(asleep);
        let accounted = Duration::from_nanos(clock.lap_ns().unwrap());
        // The kernel's books and the clock may differ a little.
        let least = asleep.mul_f64(0.75);
        assert!(began.elapsed() >= accounted + least, "{accounted:?}");
    }
}
