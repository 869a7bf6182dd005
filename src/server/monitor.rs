//! `mntr`: one metric a line, named as Apache names them where they mean the same.
//!
//! A metric of Apache's that is not measured here is left out and listed in docs/compatibility.md.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use ringkeeper_transport::pulse;

use crate::clock;
use crate::four_letter::version;
use crate::link::Links;
use crate::logging;
use crate::report::{Metric, Report};

/// The text of the answer.
pub(crate) fn answer(report: &Report, links: &Links) -> String {
    let mut lines = Lines(String::new());
    lines.text("version", &version());
    lines.text("server_state", report.core.standing.name());
    let stats = report.stats();
    let latency = stats.latency();
    lines.float("avg_latency", latency.avg_ms);
    lines.integer("max_latency", latency.max_ms);
    lines.integer("min_latency", latency.min_ms);
    lines.integer("packets_received", stats.received);
    lines.integer("packets_sent", stats.sent);
    lines.integer("num_alive_connections", links.counts.connections() as u64);
    lines.integer("outstanding_requests", links.counts.outstanding() as u64);
    lines.integer("uptime", clock::monotonic_ms());
    if let Some(tree) = report.tree() {
        lines.integer("znode_count", tree.node_count());
        lines.integer("ephemerals_count", tree.ephemerals_count() as u64);
        lines.integer(
            "approximate_data_size",
            tree.approximate_data_size().unsigned_abs(),
        );
    }
    let watches: usize = report.shards.iter().map(|shard| shard.watch_count).sum();
    lines.integer("watch_count", watches as u64);
    lines.integer("global_sessions", report.core.global_sessions as u64);
    lines.integer("local_sessions", report.core.local_sessions as u64);
    if let Some(count) = descriptors_open() {
        lines.integer("open_file_descriptor_count", count);
    }
    if let Some(limit) = descriptors_max() {
        lines.integer("max_file_descriptor_count", limit);
    }
    lines.histogram("readlatency", &stats.read_us, 1000.0);
    lines.histogram("updatelatency", &stats.write_us, 1000.0);
    lines.integer("node_created_watch_count", stats.events.created);
    lines.integer("node_deleted_watch_count", stats.events.deleted);
    lines.integer("node_changed_watch_count", stats.events.changed);
    lines.integer("node_children_watch_count", stats.events.children);
    lines.integer("stale_sessions_expired", report.core.sessions_expired);
    lines.integer("slow_connections_dropped", stats.dropped_slow);
    // The pulse counts for the whole process.
    let pulse = pulse::counters();
    lines.integer("pulse_rescues", pulse.rescues.load(Ordering::Relaxed));
    let stall_max_us = pulse.stall_max_ns.load(Ordering::Relaxed) / 1000;
    lines.integer("pulse_stall_max_us", stall_max_us);
    lines.integer("log_lines_dropped", logging::dropped_lines());
    for (name, latencies) in &report.core.latencies {
        lines.histogram(name, latencies, 1000.0);
    }
    for (name, metric) in &report.core.metrics {
        match metric {
            Metric::Integer(value) => lines.integer(name, *value),
            Metric::Float(value) => lines.float(name, *value),
        }
    }
    lines.0
}

struct Lines(String);

impl Lines {
    fn text(&mut self, name: &str, value: &str) {
        _ = writeln!(self.0, "zk_{name}\t{value}");
    }

    fn integer(&mut self, name: &str, value: u64) {
        _ = writeln!(self.0, "zk_{name}\t{value}");
    }

    fn float(&mut self, name: &str, value: f64) {
        _ = writeln!(self.0, "zk_{name}\t{value:?}");
    }

    /// A summary, as Apache's AvgMinMaxPercentileCounter shows it; `unit` of the histogram's make one of
    /// the metric's.
    fn histogram(&mut self, name: &str, histogram: &Histogram<u64>, unit: f64) {
        let value = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / unit;
        self.float(&format!("avg_{name}"), histogram.mean() / unit);
        self.float(&format!("min_{name}"), histogram.min() as f64 / unit);
        self.float(&format!("max_{name}"), histogram.max() as f64 / unit);
        self.integer(&format!("cnt_{name}"), histogram.len());
        self.float(
            &format!("sum_{name}"),
            histogram.mean() * histogram.len() as f64 / unit,
        );
        self.float(&format!("p50_{name}"), value(0.5));
        self.float(&format!("p95_{name}"), value(0.95));
        self.float(&format!("p99_{name}"), value(0.99));
        self.float(&format!("p999_{name}"), value(0.999));
    }
}

fn descriptors_open() -> Option<u64> {
    let directory = "/proc/self/fd";
    match fs::metadata(directory).ok()?.len() {
        // Before Linux 6.2 it does not say.
        0 => Some(fs::read_dir(directory).ok()?.count() as u64),
        // To list ten thousand would hold up this thread's clients for milliseconds.
        count => Some(count),
    }
}

fn descriptors_max() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
