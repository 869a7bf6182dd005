//! What the replica core counts, and its part of a report.

use std::collections::VecDeque;

use ringkeeper_config::LoggedSince;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::Disk;
use ringkeeper_tree::QuotaWarning;

use crate::clock;
use crate::core::Core;
use crate::report::{CoreReport, Metric};

/// Transactions between two digests that `hash` lists.
const DIGEST_INTERVAL: u64 = 128;

/// Digests that `hash` lists.
const DIGESTS_MAX: usize = 1024;

/// How often an exceeded soft quota is logged, in milliseconds.
const QUOTA_WARNING_INTERVAL_MS: u64 = 60_000;

/// What the replica core has counted.
#[derive(Debug, Default)]
pub(crate) struct CoreStats {
    pub(crate) sessions_expired: u64,
    /// What was logged since the last snapshot was begun.
    pub(crate) since_snapshot: LoggedSince,
    pub(crate) snapshots_taken: u64,
    pub(crate) snapshot_errors: u64,
    pub(crate) last_snapshot_ms: u64,
    /// Writes that waited too long, and writes refused for want of disk space.
    pub(crate) throttled: u64,
    pub(crate) refused: u64,
    transactions: u64,
    digests: VecDeque<(Zxid, u64)>,
    quota_warned_ms: Option<u64>,
}

impl CoreStats {
    /// Counts a transaction of `len` bytes, after which the tree has `digest`.
    pub(crate) fn logged(&mut self, zxid: Zxid, digest: u64, len: usize) {
        self.since_snapshot.txns += 1;
        self.since_snapshot.log_bytes += len as u64;
        self.transactions += 1;
        if self.transactions.is_multiple_of(DIGEST_INTERVAL) {
            self.digests.push_back((zxid, digest));
            if self.digests.len() > DIGESTS_MAX {
                self.digests.pop_front();
            }
        }
    }

    /// Logs that a soft quota is exceeded, not too often.
    pub(crate) fn warn_of_quota(&mut self, warning: &QuotaWarning) {
        let now_ms = clock::monotonic_ms();
        let is_due = self
            .quota_warned_ms
            .is_none_or(|last_ms| now_ms - last_ms >= QUOTA_WARNING_INTERVAL_MS);
        if is_due {
            self.quota_warned_ms = Some(now_ms);
            tracing::warn!(%warning, "quota exceeded");
        }
    }

    /// Back to zero (`srst`), save what decides when a snapshot is due.
    pub(crate) fn reset(&mut self) {
        let since_snapshot = self.since_snapshot;
        let digests = std::mem::take(&mut self.digests);
        *self = Self {
            since_snapshot,
            digests,
            ..Self::default()
        };
    }
}

impl<D: Disk> Core<D> {
    /// What the core says of itself.
    pub(crate) fn report(&self) -> CoreReport {
        let stats = &self.stats;
        let mut metrics = vec![
            ("snapshots_taken", Metric::Integer(stats.snapshots_taken)),
            (
                "snapshot_error_count",
                Metric::Integer(stats.snapshot_errors),
            ),
            ("last_snapshottime", Metric::Integer(stats.last_snapshot_ms)),
            ("throttled_ops", Metric::Integer(stats.throttled)),
            ("writes_refused_disk_full", Metric::Integer(stats.refused)),
        ];
        self.log.with_stats(|log| {
            let write_ms = |quantile| log.write_us.value_at_quantile(quantile) as f64 / 1000.0;
            metrics.extend([
                ("cnt_fsynctime", Metric::Integer(log.write_us.len())),
                ("avg_fsynctime", Metric::Float(log.write_us.mean() / 1000.0)),
                (
                    "max_fsynctime",
                    Metric::Float(log.write_us.max() as f64 / 1000.0),
                ),
                ("p50_fsynctime", Metric::Float(write_ms(0.5))),
                ("p99_fsynctime", Metric::Float(write_ms(0.99))),
                ("p999_fsynctime", Metric::Float(write_ms(0.999))),
                ("log_bytes_written", Metric::Integer(log.written_bytes)),
                ("log_txn_bytes", Metric::Integer(log.txn_bytes)),
            ]);
        });
        CoreReport {
            due: self.sessions.by_deadline(clock::monotonic_ms()),
            sessions: self.sessions.len(),
            sessions_expired: stats.sessions_expired,
            digests: stats.digests.iter().copied().collect(),
            metrics,
        }
    }
}
