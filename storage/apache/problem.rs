//! What is wrong with Apache's files, place by place.

use std::path::{Path, PathBuf};

use ringkeeper_proto::Zxid;

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Normal, and worth knowing.
    Note,
    /// Nothing is lost, but somebody should look.
    Warning,
    /// Bytes that were acknowledged are damaged or missing.
    Damage,
}

/// One place that is not what it should be.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// A word for machines: `checksum`, `frame`, `torn`, ...
    pub kind: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: Option<u64>,
    /// The record within the file, from 0.
    pub record: Option<u64>,
    /// The last whole zxid before the place.
    pub after: Option<Zxid>,
    /// The first whole one behind it.
    pub before: Option<Zxid>,
    /// In words.
    pub text: String,
}

impl Problem {
    pub(crate) fn new(
        severity: Severity,
        kind: &'static str,
        file: &Path,
        text: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            kind,
            file: file.to_owned(),
            offset: None,
            record: None,
            after: None,
            before: None,
            text: text.into(),
        }
    }

    pub(crate) const fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    pub(crate) const fn in_record(mut self, record: u64) -> Self {
        self.record = Some(record);
        self
    }

    pub(crate) const fn between(mut self, after: Option<Zxid>, before: Option<Zxid>) -> Self {
        self.after = after;
        self.before = before;
        self
    }
}
