//! Statistics of a shard and of its connections; merged when somebody asks.

use hdrhistogram::Histogram;
use ringkeeper_proto::reply::EventType;
use ringkeeper_proto::{OpCode, Xid, Zxid};

use crate::client::ClientStats;

/// Latencies beyond this are counted as this: an hour in microseconds.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Watch events by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EventCounts {
    pub(crate) created: u64,
    pub(crate) deleted: u64,
    pub(crate) changed: u64,
    pub(crate) children: u64,
}

/// What `srvr` shows of latencies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) min_ms: u64,
    pub(crate) avg_ms: f64,
    pub(crate) max_ms: u64,
}

/// What a shard has seen since its start or the last reset.
#[derive(Clone, Debug)]
pub(crate) struct ShardStats {
    /// Frames received, and frames sent (replies and watch events).
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Microseconds from a request's arrival to its reply.
    pub(crate) read_us: Histogram<u64>,
    pub(crate) write_us: Histogram<u64>,
    /// Watch events sent.
    pub(crate) events: EventCounts,
    /// Connections dropped because their client did not read.
    pub(crate) dropped_slow: u64,
}

impl ShardStats {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        let histogram =
            || Histogram::new_with_max(LATENCY_MAX_US, 2).expect("the bounds are constants");
        Self {
            received: 0,
            sent: 0,
            read_us: histogram(),
            write_us: histogram(),
            events: EventCounts::default(),
            dropped_slow: 0,
        }
    }

    /// Counts a reply, for the shard and for its connection.
    pub(crate) fn replied(
        &mut self,
        client: &mut ClientStats,
        op: OpCode,
        xid: Xid,
        zxid: Zxid,
        latency_us: u64,
    ) {
        self.sent += 1;
        let histogram = if op.is_write() {
            &mut self.write_us
        } else {
            &mut self.read_us
        };
        histogram.saturating_record(latency_us);
        client.replied(op, xid, zxid, latency_us);
    }

    /// Counts a watch event.
    pub(crate) fn event(&mut self, kind: EventType) {
        self.sent += 1;
        match kind {
            EventType::Created => self.events.created += 1,
            EventType::Deleted => self.events.deleted += 1,
            EventType::DataChanged => self.events.changed += 1,
            EventType::ChildrenChanged => self.events.children += 1,
        }
    }

    /// Latencies of reads and writes together, in milliseconds.
    pub(crate) fn latency(&self) -> Latency {
        let count = self.read_us.len() + self.write_us.len();
        let least = |histogram: &Histogram<u64>| {
            if histogram.is_empty() {
                u64::MAX
            } else {
                histogram.min()
            }
        };
        let sum = self.read_us.mean() * self.read_us.len() as f64
            + self.write_us.mean() * self.write_us.len() as f64;
        let (min, avg) = if count == 0 {
            (0, 0.0)
        } else {
            (
                least(&self.read_us).min(least(&self.write_us)),
                sum / count as f64,
            )
        };
        Latency {
            min_ms: min / 1000,
            // ZK: rounded to four places.
            avg_ms: (avg / 1000.0 * 10_000.0).round() / 10_000.0,
            max_ms: self.read_us.max().max(self.write_us.max()) / 1000,
        }
    }

    /// Adds what another shard has seen.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.received += other.received;
        self.sent += other.sent;
        self.dropped_slow += other.dropped_slow;
        self.events.created += other.events.created;
        self.events.deleted += other.events.deleted;
        self.events.changed += other.events.changed;
        self.events.children += other.events.children;
        self.read_us
            .add(&other.read_us)
            .expect("both histograms have the same bounds");
        self.write_us
            .add(&other.write_us)
            .expect("both histograms have the same bounds");
    }
}
