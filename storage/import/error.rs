//! Why an import cannot be done.

use std::io;
use std::path::{Path, PathBuf};

use ringkeeper_apache_files::{FileError, Problem};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{DOCTOR, OpenError, StorageError};

/// Why an import cannot be done. The source is as it was, and nothing has come to the target's place.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is nothing to import.
    #[error("{} holds no data of Apache ZooKeeper", .0.display())]
    Nothing(PathBuf),
    /// The target has data.
    #[error("{} is there already: an import makes it anew, and takes nothing away", .0.display())]
    Exists(PathBuf),
    /// Another import is under way.
    #[error("another import works in {}", .0.display())]
    Busy(PathBuf),
    /// There are snapshots and none can be used.
    #[error("none of Apache's snapshots can be used ({}); run `{DOCTOR}` on the directory", .0.join("; "))]
    Snapshots(Vec<String>),
    /// Neither a snapshot nor the whole history is there.
    #[error(
        "Apache's logs do not reach back to the first transaction, and there is no snapshot: fetch the data from \
         another member of the ensemble, or restore a backup"
    )]
    NoBase,
    /// Acknowledged transactions are damaged.
    #[error(
        "Apache's log is damaged: {}{}: {} (transactions after {}); run `{DOCTOR}` on the directory",
        .0.file.display(), at(.0.offset), .0.text, shown(.0.after)
    )]
    Damaged(Box<Problem>),
    /// Transactions between the snapshot and the log, or between two logs, are not there.
    #[error(
        "transactions after {after} are missing from Apache's logs{}; run `{DOCTOR}` on the directory",
        until(*.before)
    )]
    Missing {
        /// The last one that is there.
        after: Zxid,
        /// The next one.
        before: Option<Zxid>,
    },
    /// The snapshot shows what the log does not hold.
    #[error(
        "Apache's snapshot at {snapshot} shows transactions up to {shows}, and the logs end with {end}: the state is \
         a mix of moments. Restore the logs as well, or take it as Apache does with `ringkeeper-log import --accept-fuzzy`"
    )]
    Fuzzy {
        /// The snapshot's own.
        snapshot: Zxid,
        /// The last that it shows.
        shows: Zxid,
        /// The last that the logs have.
        end: Zxid,
    },
    /// A whole record is no transaction that is known.
    #[error("{}: record {zxid} is whole and is no transaction that this release knows: {what}", .file.display())]
    Undecodable {
        /// The log.
        file: PathBuf,
        /// Its zxid.
        zxid: Zxid,
        /// Why.
        what: String,
    },
    /// The epochs cannot be.
    #[error("{0}")]
    Epochs(String),
    /// The source was written to meanwhile.
    #[error("{} has changed while it was read: stop the server that writes it", .0.display())]
    Changed(PathBuf),
    /// Somebody ended it.
    #[error("the import was interrupted; nothing has changed")]
    Cancelled,
    /// One of Apache's files cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system says no.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The log of one of Apache's files cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The new store cannot be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ImportError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// Whether what Apache has stored is damaged or incomplete.
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Snapshots(_)
                | Self::NoBase
                | Self::Damaged(_)
                | Self::Missing { .. }
                | Self::Fuzzy { .. }
                | Self::Undecodable { .. }
        )
    }
}

fn at(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at offset {offset}"))
}

fn shown(zxid: Option<Zxid>) -> String {
    zxid.map_or_else(|| "the beginning".to_owned(), |zxid| zxid.to_string())
}

fn until(zxid: Option<Zxid>) -> String {
    zxid.map_or_else(String::new, |zxid| format!(" (the next one is {zxid})"))
}
