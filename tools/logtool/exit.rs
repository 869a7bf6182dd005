//! How the program ends: a status that scripts can rely on.

use std::io;
use std::process::ExitCode;

/// What a subcommand found, when it could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well, or what was asked for is done.
    Ok,
    /// Damage, a difference, or nothing where something was asked for.
    Found,
}

/// Why a subcommand could not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// A file or directory is missing, cannot be read, or is not what it should be.
    #[error("{0}")]
    Unreadable(String),
    /// A file has changed while it was read: a server has purged or recycled it.
    #[error("{0}")]
    Changed(String),
    /// Nothing was changed: a server runs on the directory, the target exists, or the answer was no.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// An error about the arguments.
    pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
        Self::Usage(text.into()).into()
    }

    /// An error about something that cannot be read.
    pub(crate) fn unreadable(text: impl Into<String>) -> anyhow::Error {
        Self::Unreadable(text.into()).into()
    }

    /// A refusal.
    pub(crate) fn refused(text: impl Into<String>) -> anyhow::Error {
        Self::Refused(text.into()).into()
    }
}

/// The status of a result; `docs/log-tools.md` lists them.
pub(crate) fn status(result: &anyhow::Result<Exit>) -> ExitCode {
    ExitCode::from(match result {
        Ok(Exit::Ok) => 0,
        Ok(Exit::Found) => 1,
        Err(error) if is_closed_pipe(error) => 0,
        Err(error) => match error.downcast_ref() {
            Some(Failure::Usage(_)) => 2,
            Some(Failure::Unreadable(_) | Failure::Changed(_)) | None => 3,
            Some(Failure::Refused(_)) => 4,
        },
    })
}

/// Whether whoever read our output has seen enough (`| head`).
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
