//! `stats`: what a log is made of.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;

use clap::Args;
use hdrhistogram::Histogram;
use ringkeeper_proto::{OpCode, Txn};
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::filter::Filter;
use crate::input::Input;
use crate::output::Output;
use crate::record::RecordAt;
use crate::records;
use crate::render::{Decoded, for_each_path, op_name, session, time};

/// Different prefixes or sessions counted; what comes beyond is counted together, so that memory stays bounded.
const GROUPS_MAX: usize = 100_000;
/// Rows that the rate over time has at most; buckets are merged in pairs beyond.
const BUCKETS_MAX: usize = 2_000;
/// Sizes that the histogram tells apart, in bytes.
const SIZE_MAX: u64 = 1 << 30;

/// Count a log's transactions by type, path, session, size and time
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    filter: Filter,
    /// Components of a path that make a prefix
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    prefix_depth: usize,
    /// Rows of each table
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    top: usize,
    /// Seconds that a row of the rate over time covers
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(i64).range(1..))]
    bucket: i64,
}

/// A count and a sum.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    transactions: u64,
    bytes: u64,
}

impl Group {
    fn add(&mut self, bytes: u64) {
        self.transactions += 1;
        self.bytes += bytes;
    }
}

#[derive(Debug)]
struct Stats {
    all: Group,
    void: u64,
    undecodable: u64,
    multi_parts: u64,
    errors: BTreeMap<i32, u64>,
    by_type: BTreeMap<&'static str, Group>,
    by_prefix: BTreeMap<String, Group>,
    by_session: BTreeMap<i64, Group>,
    other_prefixes: Group,
    other_sessions: Group,
    sizes: Histogram<u64>,
    rate: Rate,
    first: Option<String>,
    last: Option<String>,
}

/// Transactions over time, in buckets whose width doubles when there are too many.
#[derive(Debug)]
struct Rate {
    width_ms: i64,
    buckets: BTreeMap<i64, Group>,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let mut stats = Stats::new(options)?;
    let damage = records::for_each(&options.input, options.filter.span(), &mut |record| {
        stats.count(record, options);
        Ok(ControlFlow::Continue(()))
    })?;
    for finding in &damage {
        eprintln!("{finding}");
    }
    if out.json {
        out.value(&stats.json(options))?;
    } else {
        stats.print(options, out)?;
    }
    Ok(if damage.is_empty() && stats.undecodable == 0 {
        Exit::Ok
    } else {
        Exit::Found
    })
}

impl Stats {
    fn new(options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            all: Group::default(),
            void: 0,
            undecodable: 0,
            multi_parts: 0,
            errors: BTreeMap::new(),
            by_type: BTreeMap::new(),
            by_prefix: BTreeMap::new(),
            by_session: BTreeMap::new(),
            other_prefixes: Group::default(),
            other_sessions: Group::default(),
            sizes: Histogram::new_with_bounds(1, SIZE_MAX, 3)?,
            rate: Rate {
                width_ms: options.bucket.saturating_mul(1000),
                buckets: BTreeMap::new(),
            },
            first: None,
            last: None,
        })
    }

    fn count(&mut self, record: &RecordAt<'_>, options: &Options) {
        if record.is_void {
            self.void += 1;
            return;
        }
        let Ok(decoded) = Decoded::of(record.bytes) else {
            self.undecodable += 1;
            return;
        };
        if !options.filter.takes(&decoded) {
            return;
        }
        let bytes = record.bytes.len() as u64;
        self.all.add(bytes);
        self.by_type
            .entry(op_name(decoded.header.op))
            .or_default()
            .add(bytes);
        match &decoded.txn {
            Txn::Multi(parts) => self.multi_parts += parts.len() as u64,
            Txn::Error { code } => *self.errors.entry(*code).or_default() += 1,
            _ => {}
        }
        let session = decoded.header.session.0;
        group_of(&mut self.by_session, session, &mut self.other_sessions).add(bytes);
        self.count_prefixes(&decoded, bytes, options.prefix_depth);
        self.sizes.saturating_record(bytes.max(1));
        self.rate.add(decoded.header.time_ms, bytes);
        let zxid = decoded.header.zxid.to_string();
        self.first.get_or_insert_with(|| zxid.clone());
        self.last = Some(zxid);
    }

    /// A transaction counts once for each prefix that it touches.
    fn count_prefixes(&mut self, decoded: &Decoded<'_>, bytes: u64, depth: usize) {
        if decoded.header.op == OpCode::CloseSession {
            return;
        }
        let mut prefixes: Vec<String> = Vec::new();
        for_each_path(&decoded.txn, &mut |path| {
            let prefix = prefix_of(path, depth);
            if !prefixes.iter().any(|known| known == prefix) {
                prefixes.push(prefix.to_owned());
            }
        });
        for prefix in prefixes {
            group_of(&mut self.by_prefix, prefix, &mut self.other_prefixes).add(bytes);
        }
    }

    fn print(&self, options: &Options, out: &mut Output) -> anyhow::Result<()> {
        let zxids = match (&self.first, &self.last) {
            (Some(first), Some(last)) => format!(", {first} to {last}"),
            _ => String::new(),
        };
        out.line(format!(
            "{} transactions, {} bytes{zxids}",
            self.all.transactions, self.all.bytes
        ))?;
        if self.void > 0 {
            out.line(format!("{} more are void (truncated)", self.void))?;
        }
        if self.undecodable > 0 {
            out.line(format!("{} more cannot be decoded", self.undecodable))?;
        }
        if self.multi_parts > 0 {
            out.line(format!("{} operations within multi", self.multi_parts))?;
        }
        let types = self
            .by_type
            .iter()
            .map(|(name, group)| ((*name).to_owned(), *group));
        table(
            "type",
            largest(types.collect(), usize::MAX),
            Group::default(),
            out,
        )?;
        let prefixes = self
            .by_prefix
            .iter()
            .map(|(prefix, group)| (prefix.clone(), *group));
        table(
            "path",
            largest(prefixes.collect(), options.top),
            self.other_prefixes,
            out,
        )?;
        table(
            "session",
            largest(self.sessions(), options.top),
            self.other_sessions,
            out,
        )?;
        if !self.errors.is_empty() {
            out.line("")?;
            out.line(format!("{:>14} error", "transactions"))?;
            for (code, count) in &self.errors {
                out.line(format!("{count:>14} {code}"))?;
            }
        }
        self.print_sizes(out)?;
        self.print_rate(out)
    }

    fn sessions(&self) -> Vec<(String, Group)> {
        let name = |id: &i64| session(ringkeeper_proto::SessionId(*id));
        self.by_session
            .iter()
            .map(|(id, group)| (name(id), *group))
            .collect()
    }

    fn print_sizes(&self, out: &mut Output) -> anyhow::Result<()> {
        if self.sizes.is_empty() {
            return Ok(());
        }
        out.line("")?;
        let at = |quantile| self.sizes.value_at_quantile(quantile);
        out.line(format!(
            "record bytes: mean {:.0}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            self.sizes.mean(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            self.sizes.max()
        ))?;
        for (up_to, count) in self.size_classes() {
            out.line(format!("{count:>14} up to {up_to}"))?;
        }
        Ok(())
    }

    /// Records by powers of two, from the first to the last class that is not empty.
    fn size_classes(&self) -> Vec<(u64, u64)> {
        let classes: Vec<_> = self
            .sizes
            .iter_log(16, 2.0)
            .map(|class| {
                (
                    class.value_iterated_to() + 1,
                    class.count_since_last_iteration(),
                )
            })
            .skip_while(|(_, count)| *count == 0)
            .collect();
        let used = classes
            .iter()
            .rposition(|(_, count)| *count > 0)
            .map_or(0, |at| at + 1);
        classes.into_iter().take(used).collect()
    }

    fn print_rate(&self, out: &mut Output) -> anyhow::Result<()> {
        if self.rate.buckets.is_empty() {
            return Ok(());
        }
        out.line("")?;
        let seconds = self.rate.width_ms / 1000;
        out.line(format!(
            "{:>14} {:>14}  in {seconds} s from",
            "transactions", "bytes"
        ))?;
        for (start, group) in self.rate.rows() {
            out.line(format!(
                "{:>14} {:>14}  {}",
                group.transactions,
                group.bytes,
                time(start)
            ))?;
        }
        Ok(())
    }

    fn json(&self, options: &Options) -> Value {
        let rows = |groups: Vec<(String, Group)>| {
            let rows = groups.into_iter().map(|(name, group)| {
                json!({"name": name, "transactions": group.transactions, "bytes": group.bytes})
            });
            Value::Array(rows.collect())
        };
        let types = self
            .by_type
            .iter()
            .map(|(name, group)| ((*name).to_owned(), *group));
        let prefixes = self
            .by_prefix
            .iter()
            .map(|(prefix, group)| (prefix.clone(), *group));
        let classes = self.size_classes();
        let classes = classes
            .iter()
            .map(|(up_to, count)| json!({"up_to": up_to, "records": count}));
        let rate = self.rate.rows().map(|(start, group)| {
            json!({"time": time(start), "time_ms": start, "transactions": group.transactions, "bytes": group.bytes})
        });
        let at = |quantile| self.sizes.value_at_quantile(quantile);
        json!({
            "transactions": self.all.transactions,
            "bytes": self.all.bytes,
            "void": self.void,
            "undecodable": self.undecodable,
            "multi_operations": self.multi_parts,
            "first_zxid": self.first,
            "last_zxid": self.last,
            "types": rows(largest(types.collect(), usize::MAX)),
            "prefixes": rows(largest(prefixes.collect(), options.top)),
            "sessions": rows(largest(self.sessions(), options.top)),
            "errors": self.errors.iter().map(|(code, count)| json!({"code": code, "transactions": count})).collect::<Vec<_>>(),
            "record_bytes": {
                "mean": self.sizes.mean(),
                "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
                "max": self.sizes.max(),
                "classes": classes.collect::<Vec<_>>(),
            },
            "rate": {"seconds": self.rate.width_ms / 1000, "rows": rate.collect::<Vec<_>>()},
        })
    }
}

impl Rate {
    fn add(&mut self, time_ms: i64, bytes: u64) {
        let bucket = time_ms.div_euclid(self.width_ms);
        self.buckets.entry(bucket).or_default().add(bytes);
        while self.buckets.len() > BUCKETS_MAX {
            self.width_ms = self.width_ms.saturating_mul(2);
            let mut merged: BTreeMap<i64, Group> = BTreeMap::new();
            for (bucket, group) in &self.buckets {
                let into = merged.entry(bucket.div_euclid(2)).or_default();
                into.transactions += group.transactions;
                into.bytes += group.bytes;
            }
            self.buckets = merged;
        }
    }

    /// The start of each bucket in milliseconds, and what is in it.
    fn rows(&self) -> impl Iterator<Item = (i64, Group)> {
        self.buckets
            .iter()
            .map(|(bucket, group)| (bucket.saturating_mul(self.width_ms), *group))
    }
}

/// The group of `key`; `others` when there are too many.
fn group_of<'g, K: Ord>(
    groups: &'g mut BTreeMap<K, Group>,
    key: K,
    others: &'g mut Group,
) -> &'g mut Group {
    let is_full = groups.len() >= GROUPS_MAX;
    match groups.entry(key) {
        Entry::Occupied(group) => group.into_mut(),
        Entry::Vacant(_) if is_full => others,
        Entry::Vacant(place) => place.insert(Group::default()),
    }
}

/// The first `depth` components of a path.
fn prefix_of(path: &str, depth: usize) -> &str {
    let end = path
        .match_indices('/')
        .nth(depth)
        .map_or(path.len(), |(at, _)| at);
    match path.get(..end) {
        None | Some("") => "/",
        Some(prefix) => prefix,
    }
}

fn largest(mut groups: Vec<(String, Group)>, top: usize) -> Vec<(String, Group)> {
    groups.sort_by_key(|(_, group)| std::cmp::Reverse((group.transactions, group.bytes)));
    groups.truncate(top);
    groups
}

fn table(
    name: &str,
    groups: Vec<(String, Group)>,
    others: Group,
    out: &mut Output,
) -> anyhow::Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.line(format!("{:>14} {:>14}  {name}", "transactions", "bytes"))?;
    for (name, group) in groups {
        out.line(format!(
            "{:>14} {:>14}  {name}",
            group.transactions, group.bytes
        ))?;
    }
    if others.transactions > 0 {
        out.line(format!(
            "{:>14} {:>14}  (others)",
            others.transactions, others.bytes
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (path, depth, expected) in [
            ("/a/b/c", 1, "/a"),
            ("/a/b/c", 2, "/a/b"),
            ("/a/b/c", 9, "/a/b/c"),
            ("/a", 1, "/a"),
            ("/", 1, "/"),
            ("/a/b", 0, "/"),
        ] {
            assert_eq!(prefix_of(path, depth), expected, "{path} {depth}");
        }
    }

    #[test]
    fn the_rate_stays_bounded() {
        let mut rate = Rate {
            width_ms: 1000,
            buckets: BTreeMap::new(),
        };
        for second in 0..10_000 {
            rate.add(second * 1000, 1);
        }
        assert!(rate.buckets.len() <= BUCKETS_MAX);
        assert_eq!(
            rate.rows()
                .map(|(_, group)| group.transactions)
                .sum::<u64>(),
            10_000
        );
        assert_eq!(rate.rows().next().map(|(start, _)| start), Some(0));
    }
}
