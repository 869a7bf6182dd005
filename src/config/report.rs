//! What reading a configuration tells the operator: where a setting stands, what is wrong with it, what to do.

use std::fmt;
use std::sync::Arc;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    File {
        /// Name of the file, as the operator gave it.
        name: Arc<str>,
        /// Line on which the setting begins, from 1; 0 speaks of the file as a whole.
        line: u32,
    },
    /// `--set key=value` on the command line.
    CommandLine,
    /// What `ringkeeper` without a file starts from.
    Embedded,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line: 0 } => write!(f, "{name}"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::CommandLine => f.write_str("--set"),
            Self::Embedded => f.write_str("built-in defaults"),
        }
    }
}

/// A reason not to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting at fault, or the file in which one is missing.
    pub origin: Origin,
    /// What is wrong, naming key and value.
    pub what: String,
    /// What the operator can do about it.
    pub remedy: String,
}

impl Problem {
    pub(crate) fn new(origin: &Origin, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            origin: origin.clone(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. {}", self.origin, self.what, self.remedy)
    }
}

/// Every reason not to start that was found, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for problem in &self.0 {
            write!(f, "{separator}{problem}")?;
            separator = "\n";
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// How much a [`Notice`] should stand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Good to know: the setting has no effect here, and nothing is missing for it.
    Info,
    /// Probably not what the operator means: an unknown key, a value that was changed.
    Warning,
}

/// Something to log about a setting that does not keep the server from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The setting it speaks of.
    pub origin: Origin,
    /// How much it should stand out.
    pub weight: Weight,
    /// What the operator should know, naming the key.
    pub text: String,
}

impl Notice {
    pub(crate) fn info(origin: &Origin, text: impl Into<String>) -> Self {
        Self {
            origin: origin.clone(),
            weight: Weight::Info,
            text: text.into(),
        }
    }

    pub(crate) fn warning(origin: &Origin, text: impl Into<String>) -> Self {
        Self {
            origin: origin.clone(),
            weight: Weight::Warning,
            text: text.into(),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}
