//! What the replica core counts, and its part of a report.

use std::collections::VecDeque;

use bytes::Bytes;
use hdrhistogram::Histogram;
use ringkeeper_config::LoggedSince;
use ringkeeper_proto::{SessionId, Zxid};
use ringkeeper_storage::Disk;
use ringkeeper_tree::QuotaWarning;
use ringkeeper_zab::Message;

use crate::core::Core;
use crate::standing::Standing;

/// Transactions between two digests that `hash` lists.
const DIGEST_INTERVAL: u64 = 128;

/// Digests that `hash` lists.
const DIGESTS_MAX: usize = 1024;

/// How often an exceeded soft quota is logged, in milliseconds.
const QUOTA_WARNING_INTERVAL_MS: u64 = 60_000;

/// What the core says of itself.
#[derive(Debug, Default)]
pub struct CoreReport {
    /// What the server is.
    pub standing: Standing,
    /// Sessions by when they are due, in milliseconds from now; where this server orders writes, all but the local
    /// ones. Empty unless they were asked for, as the local ones are.
    pub due: Vec<(i64, Vec<SessionId>)>,
    /// The local ones, where there may be some.
    pub local_due: Option<Vec<(i64, Vec<SessionId>)>>,
    /// How many sessions all servers know of.
    pub global_sessions: usize,
    /// How many only this server knows of.
    pub local_sessions: usize,
    /// How many have expired.
    pub sessions_expired: u64,
    /// Tree digests, one per 128 transactions, the newest last.
    pub digests: Vec<(Zxid, u64)>,
    /// Metrics of the log and the snapshots, by their names.
    pub metrics: Vec<(&'static str, Metric)>,
    /// Latencies of the devices in microseconds, by their names.
    pub latencies: Vec<(&'static str, Histogram<u64>)>,
}

/// A metric's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// A count, or a time in whole units.
    Integer(u64),
    /// Anything else.
    Float(f64),
}

/// What the replica core has counted.
#[derive(Debug, Default)]
pub struct CoreStats {
    /// Sessions that expired.
    pub sessions_expired: u64,
    /// What was logged since the last snapshot was begun.
    pub since_snapshot: LoggedSince,
    /// Snapshots that succeeded.
    pub snapshots_taken: u64,
    /// Snapshots that failed.
    pub snapshot_errors: u64,
    /// How long the last one took.
    pub last_snapshot_ms: u64,
    /// Transactions after which the tree's digest was not that of the leader.
    pub digest_mismatches: u64,
    /// Proposals, commits, acknowledgements and cuts of peers that contradicted what is here.
    pub history_violations: u64,
    /// How learners were brought in line by this server as their leader.
    pub(crate) synchronized: Synchronizations,
    /// How this server was, as a learner.
    pub(crate) was_synchronized: Synchronizations,
    /// Hand-overs of this server's leadership, and those that came to nothing.
    pub(crate) hand_overs: u64,
    pub(crate) hand_overs_refused: u64,
    /// How often this server, as leader, found that it limps.
    pub(crate) limps: u64,
    /// How often this server was moved from one leader to another with its clients, and how long they waited last.
    pub(crate) moves: u64,
    pub(crate) last_move_ms: u64,
    pub(crate) throttled: u64,
    pub(crate) refused: u64,
    transactions: u64,
    digests: VecDeque<(Zxid, u64)>,
    quota_warned_ms: Option<u64>,
}

/// How often a learner was sent what it lacked, told to cut its log, or sent the whole tree.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Synchronizations {
    diff: u64,
    trunc: u64,
    snap: u64,
}

impl Synchronizations {
    /// Counts a packet if it begins a synchronization.
    pub(crate) const fn count<P>(&mut self, message: &Message<P>) -> bool {
        match message {
            Message::Diff { .. } => self.diff += 1,
            Message::Trunc { .. } => self.trunc += 1,
            Message::Snap { .. } => self.snap += 1,
            _ => return false,
        }
        true
    }
}

impl CoreStats {
    /// Counts a transaction after which the tree has `digest`.
    pub fn applied(&mut self, zxid: Zxid, digest: u64) {
        self.transactions += 1;
        if self.transactions.is_multiple_of(DIGEST_INTERVAL) {
            self.digests.push_back((zxid, digest));
            if self.digests.len() > DIGESTS_MAX {
                self.digests.pop_front();
            }
        }
    }

    /// Logs that a soft quota is exceeded, not too often.
    pub fn warn_of_quota(&mut self, warning: &QuotaWarning, now_ms: u64) {
        let is_due = self
            .quota_warned_ms
            .is_none_or(|last_ms| now_ms - last_ms >= QUOTA_WARNING_INTERVAL_MS);
        if is_due {
            self.quota_warned_ms = Some(now_ms);
            tracing::warn!(%warning, "quota exceeded");
        }
    }

    /// Back to zero (`srst`), save what decides when a snapshot is due.
    pub fn reset(&mut self) {
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
    /// The transactions after `after` that this server knows to be committed, with their bytes, as far as memory
    /// reaches back: for whoever compares members.
    pub fn committed_since(&self, after: Zxid) -> impl Iterator<Item = (Zxid, &Bytes)> {
        let records = self.recent.since(after);
        records.map(|record| (record.zxid, &record.bytes))
    }

    /// The transactions of this server's log that it does not know to be committed, the newest first: for whoever
    /// compares members.
    pub fn not_committed(&self) -> impl Iterator<Item = (Zxid, &Bytes)> {
        let records = self.tail.iter().rev();
        records.map(|record| (record.zxid, &record.bytes))
    }

    /// What the core says of itself and of each session, of which there may be many.
    pub fn report_with_sessions(&self) -> CoreReport {
        let now_ms = self.now.monotonic_ms();
        let local = self.settings.local_sessions();
        CoreReport {
            due: self.sessions.by_deadline(now_ms),
            local_due: local.then(|| self.sessions.local_by_deadline(now_ms)),
            ..self.report()
        }
    }

    /// What the core says of itself.
    pub fn report(&self) -> CoreReport {
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
            (
                "digest_mismatches_count",
                Metric::Integer(stats.digest_mismatches),
            ),
        ];
        if !self.alone {
            let (sent, taken) = (stats.synchronized, stats.was_synchronized);
            metrics.extend([
                ("diff_count", Metric::Integer(sent.diff)),
                ("trunc_count", Metric::Integer(sent.trunc)),
                ("snap_count", Metric::Integer(sent.snap)),
                ("diff_received_count", Metric::Integer(taken.diff)),
                ("trunc_received_count", Metric::Integer(taken.trunc)),
                ("snap_received_count", Metric::Integer(taken.snap)),
                ("hand_overs_count", Metric::Integer(stats.hand_overs)),
                (
                    "hand_overs_refused_count",
                    Metric::Integer(stats.hand_overs_refused),
                ),
                ("leader_moves_count", Metric::Integer(stats.moves)),
                ("last_leader_move_ms", Metric::Integer(stats.last_move_ms)),
            ]);
        }
        let learners = self.zab.learners();
        let count = |observer: bool, synced: Option<bool>| {
            let is_one = |(_, observes, is_synced): &&(_, bool, bool)| {
                *observes == observer && synced.is_none_or(|synced| *is_synced == synced)
            };
            Metric::Integer(learners.iter().filter(is_one).count() as u64)
        };
        if matches!(self.standing, Standing::Following(_)) && self.serves_observers() {
            metrics.push(("synced_observers", count(true, Some(true))));
        }
        if matches!(self.standing, Standing::Leading(_)) {
            metrics.extend([
                ("limping_count", Metric::Integer(stats.limps)),
                (
                    "own_write_ms",
                    Metric::Float(self.measuring.own_us as f64 / 1000.0),
                ),
                (
                    "quorum_write_ms",
                    Metric::Float(self.measuring.others_us as f64 / 1000.0),
                ),
                (
                    "quorum_ping_ms",
                    Metric::Float(self.measuring.round_us as f64 / 1000.0),
                ),
                ("learners", Metric::Integer(learners.len() as u64)),
                ("synced_followers", count(false, Some(true))),
                ("synced_observers", count(true, Some(true))),
            ]);
        }
        let mut latencies = vec![(
            "manifest_fsynctime",
            self.store.manifest_times().histogram(),
        )];
        self.log.with_stats(|log| {
            metrics.extend([
                ("log_bytes_written", Metric::Integer(log.written_bytes)),
                ("log_txn_bytes", Metric::Integer(log.txn_bytes)),
            ]);
            latencies.extend([
                ("fsynctime", log.write_us.clone()),
                ("log_commit_time", log.commit_us.clone()),
            ]);
        });
        CoreReport {
            standing: self.standing,
            due: Vec::new(),
            local_due: None,
            global_sessions: self.published.sessions().len(),
            local_sessions: self.sessions.local_len(),
            sessions_expired: stats.sessions_expired,
            digests: stats.digests.iter().copied().collect(),
            metrics,
            latencies,
        }
    }
}
