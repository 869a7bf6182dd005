//! Settings as typed: an ordered list of key, value and origin, before anything is understood.
//!
//! Invariant: what stands later wins, so `--set` wins over the file, as the last of two equal lines does in
//! `java.util.Properties`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::properties;
use crate::report::{Notice, Origin, Problem};
use crate::table;

/// One setting as typed, trimmed as `QuorumPeerConfig.parseProperties` trims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key in its canonical spelling: without the `zookeeper.` of a Java system property.
    pub key: String,
    /// Value as written.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
}

/// A configuration as typed.
#[derive(Clone, Debug)]
pub struct RawConfig {
    entries: Vec<Entry>,
    /// For each key the index of the entry that counts.
    last: BTreeMap<String, usize>,
    /// Stands for the configuration as a whole, for what is missing from it.
    whole: Origin,
    notices: Vec<Notice>,
}

/// The configuration of `ringkeeper` without a file: for trying it out, so it listens on loopback and answers all words.
const EMBEDDED: &str = "\
dataDir=./data
clientPort=2181
clientPortAddress=127.0.0.1
4lw.commands.whitelist=*
";

impl RawConfig {
    /// Reads the bytes of a `zoo.cfg`; `name` is how messages call the file.
    ///
    /// # Errors
    /// The first line that `java.util.Properties` would refuse.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let name: Arc<str> = name.into();
        let at = |line| Origin::File {
            name: Arc::clone(&name),
            line,
        };
        let properties = properties::parse(bytes).map_err(|error| {
            Problem::new(
                &at(error.line),
                error.to_string(),
                "Write a backslash as \\\\",
            )
        })?;
        let mut raw = Self::empty(at(0));
        if let Some(index) = bytes.iter().position(|byte| !byte.is_ascii()) {
            let line = 1 + bytes
                .iter()
                .take(index)
                .filter(|&&byte| byte == b'\n')
                .count();
            raw.notices.push(Notice::warning(
                &at(u32::try_from(line).unwrap_or(u32::MAX)),
                "bytes outside ASCII are read as ISO-8859-1, as Java does; write such characters as \\uXXXX",
            ));
        }
        for property in properties {
            raw.push(&property.key, &property.value, at(property.line));
        }
        Ok(raw)
    }

    /// The settings that hold when there is no file.
    ///
    /// # Panics
    /// Never: the text is a constant, and a test parses it.
    #[must_use]
    pub fn embedded() -> Self {
        let mut raw = Self::empty(Origin::Embedded);
        for property in properties::parse(EMBEDDED.as_bytes()).unwrap_or_default() {
            raw.push(&property.key, &property.value, Origin::Embedded);
        }
        raw
    }

    fn empty(whole: Origin) -> Self {
        Self {
            entries: Vec::new(),
            last: BTreeMap::new(),
            whole,
            notices: Vec::new(),
        }
    }

    /// Adds one `key=value` of the command line; it wins over what is there.
    ///
    /// # Errors
    /// When there is no `=` or nothing before it.
    pub fn set(&mut self, assignment: &str) -> Result<(), Problem> {
        match assignment.split_once('=') {
            Some((key, value)) if !java_trim(key).is_empty() => {
                self.push(key, value, Origin::CommandLine);
                Ok(())
            }
            _ => Err(Problem::new(
                &Origin::CommandLine,
                format!("\"{assignment}\" is not of the form key=value"),
                "Write for example --set snapCount=200000",
            )),
        }
    }

    fn push(&mut self, key: &str, value: &str, origin: Origin) {
        let entry = Entry {
            key: table::canonical(java_trim(key)).to_owned(),
            value: java_trim(value).to_owned(),
            origin,
        };
        self.last.insert(entry.key.clone(), self.entries.len());
        self.entries.push(entry);
    }

    /// The settings in force, in the order written: of several lines with one key only the last.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(index, entry)| self.last.get(&entry.key) == Some(index))
            .map(|(_, entry)| entry)
    }

    /// The setting in force for a key.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.last
            .get(key)
            .and_then(|&index| self.entries.get(index))
    }

    /// Where to look for `myid`; `None` when `dataDir` is not set.
    #[must_use]
    pub fn data_dir(&self) -> Option<PathBuf> {
        self.entry("dataDir")
            .map(|entry| PathBuf::from(&entry.value))
    }

    /// The file with the `server.N` lines, when they are kept apart.
    #[must_use]
    pub fn dynamic_config_file(&self) -> Option<PathBuf> {
        self.entry("dynamicConfigFile")
            .map(|entry| PathBuf::from(&entry.value))
    }

    /// Stands for the configuration as a whole.
    #[must_use]
    pub fn whole(&self) -> &Origin {
        &self.whole
    }

    /// Where a key is set, or the configuration as a whole when it is not.
    #[must_use]
    pub fn at(&self, key: &str) -> Origin {
        self.entry(key)
            .map_or_else(|| self.whole.clone(), |entry| entry.origin.clone())
    }

    /// What reading found worth a log line: unusual bytes, and lines that a later one of the same file overrides.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        let mut notices = self.notices.clone();
        for entry in &self.entries {
            if let Some(later) = self.entry(&entry.key)
                && entry.origin != Origin::Embedded
                && later.origin != Origin::CommandLine
                && later.value != entry.value
            {
                let text = format!(
                    "{} is set again at {}, and that one counts",
                    entry.key, later.origin
                );
                notices.push(Notice::warning(&entry.origin, text));
            }
        }
        notices
    }
}

/// `String.trim`: everything up to and including the blank goes, control characters too.
fn java_trim(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(raw: &RawConfig) -> Vec<(&str, &str)> {
        raw.entries()
            .map(|entry| (entry.key.as_str(), entry.value.as_str()))
            .collect()
    }

    #[test]
    fn the_last_line_counts_and_the_first_is_reported() {
        let raw =
            RawConfig::parse("zoo.cfg", b"tickTime=1000\nsnapCount=5\ntickTime = 2000 \n").unwrap();
        assert_eq!(pairs(&raw), [("snapCount", "5"), ("tickTime", "2000")]);
        let notices: Vec<_> = raw.notices().iter().map(ToString::to_string).collect();
        assert_eq!(
            notices,
            ["zoo.cfg:1: tickTime is set again at zoo.cfg:3, and that one counts"]
        );
    }

    #[test]
    fn the_command_line_wins_without_a_word() {
        let mut raw = RawConfig::parse("zoo.cfg", b"tickTime=1000").unwrap();
        raw.set("tickTime=500").unwrap();
        raw.set("zookeeper.snapCount=7").unwrap();
        assert_eq!(pairs(&raw), [("tickTime", "500"), ("snapCount", "7")]);
        assert!(raw.notices().is_empty());
        assert!(raw.set("tickTime").is_err());
        assert!(raw.set("=1").is_err());
    }

    #[test]
    fn the_prefix_of_system_properties_goes_and_others_stay() {
        let text = b"zookeeper.snapCount=1\nzookeeper.dataDir=/x\nzookeeper.ssl.protocol=y\nzookeeper.nonsense=2";
        let raw = RawConfig::parse("zoo.cfg", text).unwrap();
        let keys: Vec<_> = raw.entries().map(|entry| entry.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "snapCount",
                "zookeeper.dataDir",
                "ssl.protocol",
                "zookeeper.nonsense"
            ]
        );
    }

    #[test]
    fn embedded_settings_parse() {
        let raw = RawConfig::embedded();
        assert_eq!(raw.entries().count(), 4);
        assert_eq!(raw.data_dir(), Some("./data".into()));
    }

    #[test]
    fn bytes_outside_ascii_are_reported_with_their_line() {
        let raw = RawConfig::parse("zoo.cfg", b"# a\ndataDir=/d\xc3\xa4ta").unwrap();
        assert_eq!(raw.entries().next().unwrap().value, "/dÃ¤ta");
        assert!(
            raw.notices()[0]
                .to_string()
                .starts_with("zoo.cfg:2: bytes outside ASCII")
        );
    }

    #[test]
    fn a_malformed_escape_is_a_problem_with_its_line() {
        let problem = RawConfig::parse("zoo.cfg", b"a=1\ndataDir=C:\\users").unwrap_err();
        assert!(
            problem
                .to_string()
                .starts_with("zoo.cfg:2: malformed \\uXXXX escape"),
            "{problem}"
        );
    }
}
