//! What storage measures about itself: the log, and what else is flushed.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

const LATENCY_US_MAX: u64 = 60_000_000;
const COUNT_MAX: u64 = 1 << 32;

/// Counters and histograms of a log since it was opened. Recording allocates nothing.
#[derive(Clone)]
pub struct LogStats {
    /// Durable write latency in microseconds, from hand-over to the disk until the disk's answer.
    pub write_us: Histogram<u64>,
    /// Commit latency in microseconds: from a batch's hand-over to the log until it, and all before it, is durable.
    /// What it takes longer than the write is the wait for others, and for a segment.
    pub commit_us: Histogram<u64>,
    /// Records per batch (seals and truncations not counted).
    pub batch_records: Histogram<u64>,
    /// Bytes per batch on disk, padding included (seals and truncations not counted).
    pub batch_bytes: Histogram<u64>,
    /// Durable writes finished.
    pub writes: u64,
    /// Records written.
    pub records: u64,
    /// Bytes of the records' payloads.
    pub txn_bytes: u64,
    /// Bytes written to the log: headers, framing, padding, seals and segment headers; not the zeros that
    /// preallocation writes.
    pub written_bytes: u64,
    /// Segments begun.
    pub rolls: u64,
    /// Rolls that found no prepared segment and had to wait for one.
    pub rolls_unprepared: u64,
}

impl Default for LogStats {
    fn default() -> Self {
        Self {
            write_us: histogram(LATENCY_US_MAX),
            commit_us: histogram(LATENCY_US_MAX),
            batch_records: histogram(COUNT_MAX),
            batch_bytes: histogram(COUNT_MAX),
            writes: 0,
            records: 0,
            txn_bytes: 0,
            written_bytes: 0,
            rolls: 0,
            rolls_unprepared: 0,
        }
    }
}

impl LogStats {
    pub(crate) fn batch_written(
        &mut self,
        records: u64,
        payload: u64,
        stored: u64,
        took: Duration,
    ) {
        self.writes += 1;
        self.records += records;
        self.txn_bytes += payload;
        self.written_bytes += stored;
        record(&mut self.write_us, took);
        if records > 0 {
            self.batch_records.saturating_record(records);
            self.batch_bytes.saturating_record(stored);
        }
    }

    pub(crate) fn batch_durable(&mut self, took: Duration) {
        record(&mut self.commit_us, took);
    }

    /// Bytes written for each payload byte, or `None` before the first record.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
    pub fn write_amplification(&self) -> Option<f64> {
        (self.txn_bytes > 0).then(|| self.written_bytes as f64 / self.txn_bytes as f64)
    }
}

impl fmt::Debug for LogStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStats")
            .field("writes", &self.writes)
            .field("records", &self.records)
            .field("txn_bytes", &self.txn_bytes)
            .field("written_bytes", &self.written_bytes)
            .field("write_us_p50", &self.write_us.value_at_quantile(0.5))
            .field("write_us_p99", &self.write_us.value_at_quantile(0.99))
            .finish_non_exhaustive()
    }
}

fn histogram(max: u64) -> Histogram<u64> {
    Histogram::new_with_max(max, 2).expect("a valid range and precision")
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
}

/// How long what is brought to stable storage beside the log takes, in microseconds. Clones are the same; the writer and
/// whoever looks may be on different threads.
#[derive(Clone, Debug)]
pub struct FlushTimes(Arc<Mutex<Histogram<u64>>>);

impl FlushTimes {
    /// None yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(histogram(LATENCY_US_MAX))))
    }

    /// A copy of the histogram.
    pub fn histogram(&self) -> Histogram<u64> {
        self.lock().clone()
    }

    pub(crate) fn record(&self, took: Duration) {
        record(&mut self.lock(), took);
    }

    fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        // A histogram is whole between any two records.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for FlushTimes {
    fn default() -> Self {
        Self::new()
    }
}
