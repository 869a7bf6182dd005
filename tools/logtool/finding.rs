//! What is wrong with stored bytes, as a value that prints as a line and as JSON.

use std::fmt;
use std::path::{Path, PathBuf};

use ringkeeper_apache_files as apache;
use ringkeeper_proto::Zxid;
use serde_json::{Map, Value, json};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Normal, and worth knowing.
    Note,
    /// Nothing is lost, but somebody should look.
    Warning,
    /// Bytes that were acknowledged are damaged or missing.
    Damage,
}

impl Severity {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Damage => "damage",
        }
    }
}

/// One thing found.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// A word for machines: `checksum`, `missing`, `torn`, ...
    pub(crate) kind: &'static str,
    pub(crate) file: PathBuf,
    /// Where in the file, in bytes.
    pub(crate) offset: Option<u64>,
    /// The sequence of the batch concerned.
    pub(crate) batch: Option<u64>,
    /// The record within the batch (own logs) or the file (Apache's), from 0.
    pub(crate) record: Option<u64>,
    /// The last whole zxid before the place.
    pub(crate) after: Option<Zxid>,
    /// The first whole zxid behind it.
    pub(crate) before: Option<Zxid>,
    /// In words.
    pub(crate) text: String,
}

impl Finding {
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
            batch: None,
            record: None,
            after: None,
            before: None,
            text: text.into(),
        }
    }

    pub(crate) fn damage(kind: &'static str, file: &Path, text: impl Into<String>) -> Self {
        Self::new(Severity::Damage, kind, file, text)
    }

    pub(crate) fn warning(kind: &'static str, file: &Path, text: impl Into<String>) -> Self {
        Self::new(Severity::Warning, kind, file, text)
    }

    pub(crate) fn note(kind: &'static str, file: &Path, text: impl Into<String>) -> Self {
        Self::new(Severity::Note, kind, file, text)
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    pub(crate) fn in_batch(mut self, sequence: u64) -> Self {
        self.batch = Some(sequence);
        self
    }

    pub(crate) fn in_record(mut self, record: impl Into<u64>) -> Self {
        self.record = Some(record.into());
        self
    }

    pub(crate) fn between(mut self, after: Option<Zxid>, before: Option<Zxid>) -> Self {
        self.after = after;
        self.before = before;
        self
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("severity".into(), json!(self.severity.name()));
        map.insert("kind".into(), json!(self.kind));
        map.insert("file".into(), json!(self.file.display().to_string()));
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(name.into(), value);
            }
        };
        put("offset", self.offset.map(|v| json!(v)));
        put("batch", self.batch.map(|v| json!(v)));
        put("record", self.record.map(|v| json!(v)));
        put("after_zxid", self.after.map(|v| json!(v.to_string())));
        put("before_zxid", self.before.map(|v| json!(v.to_string())));
        map.insert("text".into(), json!(self.text));
        Value::Object(map)
    }
}

impl From<apache::Problem> for Finding {
    fn from(problem: apache::Problem) -> Self {
        let severity = match problem.severity {
            apache::Severity::Note => Severity::Note,
            apache::Severity::Warning => Severity::Warning,
            apache::Severity::Damage => Severity::Damage,
        };
        Self {
            offset: problem.offset,
            record: problem.record,
            after: problem.after,
            before: problem.before,
            ..Self::new(severity, problem.kind, &problem.file, problem.text)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity.name(), self.file.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": ")?;
        match (self.batch, self.record) {
            (Some(batch), Some(record)) => write!(f, "batch {batch}, record {record}: ")?,
            (Some(batch), None) => write!(f, "batch {batch}: ")?,
            (None, Some(record)) => write!(f, "record {record}: ")?,
            (None, None) => {}
        }
        write!(f, "{}", self.text)?;
        match (self.after, self.before) {
            (Some(after), Some(before)) => {
                write!(f, " (zxids after {after} and before {before})")
            }
            (Some(after), None) => write!(f, " (zxids after {after})"),
            (None, Some(before)) => write!(f, " (zxids before {before})"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether any of `findings` is damage.
pub(crate) fn has_damage(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Damage)
}
