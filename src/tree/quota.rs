//! Quotas: limits and statistics of subtrees (`Quotas`, `StatsTrack`).
//!
//! A quota on `/a` is the znode `/zookeeper/quota/a/zookeeper_limits`; beside it stands
//! `zookeeper_stats`, whose data the server itself keeps current, without a transaction, a watch or a
//! change of its stat. There is no separate table of quotas: they are found by walking down
//! `/zookeeper/quota`.

use std::borrow::Cow;
use std::fmt::Write;

/// Where quotas stand.
pub(crate) const QUOTA_ROOT: &str = "/zookeeper/quota";
/// The znode with the limits of a subtree.
pub(crate) const LIMIT_NODE: &str = "zookeeper_limits";
/// The znode with the statistics of a subtree.
pub(crate) const STAT_NODE: &str = "zookeeper_stats";

const COUNT: &str = "count";
const COUNT_HARD_LIMIT: &str = "countHardLimit";
const BYTES: &str = "bytes";
const BYTES_HARD_LIMIT: &str = "byteHardLimit";

/// The numbers in a quota's znodes: limits or usage. -1 is "no limit" or "not known".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsTrack {
    /// In the order of their names, which are unique.
    values: Vec<(String, i64)>,
}

impl StatsTrack {
    /// Reads `count=1,bytes=2=;countHardLimit=3;byteHardLimit=4` and the like. `None` if it is nothing
    /// of the kind.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(data);
        let mut track = Self::default();
        if text.is_empty() {
            return Some(track);
        }
        // ZK: Java's split keeps an empty piece in front and drops empty pieces at the end.
        let separators = [',', ';'];
        if text.starts_with(separators) {
            return None;
        }
        for pair in text.split(separators).filter(|pair| !pair.is_empty()) {
            let mut parts = pair.split('=');
            let name = parts.next()?;
            let value = parts.next()?;
            // ZK: "a=" has no second piece for Java, unless a third follows.
            let value = match value {
                "" => {
                    parts.find(|part| !part.is_empty())?;
                    -1
                }
                _ => value.parse().ok()?,
            };
            track.set(name, value);
        }
        Some(track)
    }

    /// The data of a quota's znode.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{COUNT}={},{BYTES}={}", self.count(), self.bytes());
        let others = self
            .values
            .iter()
            .filter(|(name, _)| name != COUNT && name != BYTES);
        for (i, (name, value)) in others.enumerate() {
            // ZK: the "=" makes parsers older than 3.5 overlook what follows.
            let mark = if i == 0 { "=" } else { "" };
            write!(text, "{mark};{name}={value}").expect("a string takes everything");
        }
        text.into_bytes()
    }

    /// Znodes: how many there are, or how many should be at most.
    pub fn count(&self) -> i64 {
        self.value(COUNT)
    }

    /// Bytes of data: how many there are, or how many should be at most.
    pub fn bytes(&self) -> i64 {
        self.value(BYTES)
    }

    /// How many znodes there can be at most.
    pub fn count_hard_limit(&self) -> i64 {
        self.value(COUNT_HARD_LIMIT)
    }

    /// How many bytes of data there can be at most.
    pub fn bytes_hard_limit(&self) -> i64 {
        self.value(BYTES_HARD_LIMIT)
    }

    /// Sets [`StatsTrack::count`].
    pub fn set_count(&mut self, count: i64) {
        self.set(COUNT, count);
    }

    /// Sets [`StatsTrack::bytes`].
    pub fn set_bytes(&mut self, bytes: i64) {
        self.set(BYTES, bytes);
    }

    fn value(&self, name: &str) -> i64 {
        self.values
            .iter()
            .find(|(known, _)| known == name)
            .map_or(-1, |(_, value)| *value)
    }

    fn set(&mut self, name: &str, value: i64) {
        match self
            .values
            .binary_search_by(|(known, _)| known.as_str().cmp(name))
        {
            Ok(at) => self.values[at].1 = value,
            Err(at) => self.values.insert(at, (name.to_owned(), value)),
        }
    }
}

/// The quota that a path falls under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota<'a> {
    /// The top of the subtree.
    pub prefix: Cow<'a, str>,
    /// What is allowed; `None` if the limits cannot be read.
    pub limits: Option<StatsTrack>,
    /// What there is, as the statistics znode says; `None` if there is none or it cannot be read.
    pub usage: Option<StatsTrack>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<&str>) {
        let track = StatsTrack::parse(text.as_bytes());
        let shown = track.map(|track| String::from_utf8(track.to_bytes()).unwrap());
        assert_eq!(shown.as_deref(), expect, "{text:?}");
    }

    #[test]
    fn statistics_are_read_and_shown_as_apache_does() {
        check("", Some("count=-1,bytes=-1"));
        check("count=5,bytes=12", Some("count=5,bytes=12"));
        check("bytes=12,count=5", Some("count=5,bytes=12"));
        check(
            "count=5,bytes=12=;countHardLimit=3;byteHardLimit=4",
            Some("count=5,bytes=12=;byteHardLimit=4;countHardLimit=3"),
        );
        check("count=-1,bytes=7,,", Some("count=-1,bytes=7"));
        check("count==5", Some("count=-1,bytes=-1"));
        check("count=", None);
        check("count", None);
        check("count=many", None);
        check(",count=1", None);
    }
}
