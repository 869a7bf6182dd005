//! The one exit for "stopping is the answer", with a status per reason.
//!
//! `exit` and not a panic: on a thread-per-core server the other threads would go on half alive after a panic of one, and
//! destructors that run then could touch the disk that just failed. What is acknowledged is on disk, so a process that
//! ends here loses nothing.
//!
//! A start that fails carries its [`Reason`] as the context of its error (`.context(Reason::Address)`), so that supervisors
//! see the same statuses.

use std::error::Error;
use std::fmt;
use std::process;
use std::time::Duration;

use crate::logging;

/// Why the process ends. The first four statuses are those that Apache's server ends with for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Anything without a status of its own.
    Unexpected,
    /// The command line or the configuration is wrong.
    Configuration,
    /// The data directory cannot be used: missing, unreadable, in use, or not ours.
    DataDirectory,
    /// The system lacks what the server needs: io_uring, locked memory, direct I/O.
    System,
    /// A port cannot be listened on: clients' or other members'.
    Address,
    /// A write or flush of the log failed; nothing may be written after it.
    Storage,
    /// Stored bytes are not what was written.
    Corrupt,
    /// An executor could not be started, or ended while the server ran.
    Executor,
}

impl Reason {
    /// The exit status.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Unexpected => 1,
            Self::Configuration => 2,
            Self::DataDirectory => 3,
            Self::System => 4,
            Self::Address => 5,
            Self::Storage => 10,
            Self::Corrupt => 11,
            Self::Executor => 12,
        }
    }

    /// The status that an error asks for.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error.downcast_ref().copied().unwrap_or(Self::Unexpected)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unexpected => "unexpected failure",
            Self::Configuration => "the configuration cannot be started",
            Self::DataDirectory => "the data directory cannot be used",
            Self::System => "the system lacks what the server needs",
            Self::Address => "a port cannot be listened on",
            Self::Storage => "the log could not be written",
            Self::Corrupt => "stored data is damaged",
            Self::Executor => "an executor failed",
        })
    }
}

impl Error for Reason {}

/// The causes of a failure in one line, from the outermost in. A cause that the one before it already tells is left out, as
/// messages of some crates contain those of their sources.
pub(crate) fn causes<'a>(chain: impl Iterator<Item = &'a (dyn Error + 'static)>) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in chain.map(ToString::to_string) {
        if !told.last().is_some_and(|last| last.contains(&cause)) {
            told.push(cause);
        }
    }
    told.join(": ")
}

/// How long the log may take to reach standard error before the process ends without it.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// Logs why and ends the process at once, without running destructors.
pub(crate) fn exit(reason: Reason, error: &dyn fmt::Display) -> ! {
    tracing::error!(%error, status = reason.status(), "{reason}; the server stops");
    logging::flush(FLUSH_LIMIT);
    process::exit(i32::from(reason.status()))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow!("disk full")
            .context("write the log: disk full")
            .context(Reason::Storage);
        assert_eq!(
            causes(error.chain()),
            "the log could not be written: write the log: disk full"
        );
    }

    #[test]
    fn a_reason_is_found_below_other_context() {
        let error = anyhow!("refused")
            .context(Reason::Address)
            .context("start the server");
        assert_eq!(Reason::of(&error), Reason::Address);
        assert_eq!(Reason::of(&anyhow!("other")), Reason::Unexpected);
        let result: Result<(), _> = Err(anyhow!("bad magic")).context(Reason::Corrupt);
        assert_eq!(Reason::of(&result.unwrap_err()).status(), 11);
    }
}
