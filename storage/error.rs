//! What can go wrong, each with the file, the place and the remedy.

use std::{fmt, io, path::PathBuf, sync::Arc};

use ringkeeper_proto::Zxid;

/// The tool that judges and repairs a data directory; named in remedies.
pub const DOCTOR: &str = "ringkeeper-log doctor";

/// A failure while serving. After the first failed write or flush the log latches: every later call
/// returns that first error, and the process must end (a failed flush is never tried again, because
/// the kernel may have dropped what it could not write).
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// The disk refused an operation.
    #[error("{operation} {}{}: {source}", .path.display(), At(*.offset))]
    Io {
        /// A verb phrase: "write log batch".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Byte offset in the file, where there is one.
        offset: Option<u64>,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// No space for the next log segment. Not latched: it goes away when space returns.
    #[error(
        "no space for the next log segment in {}: {available} bytes free, {needed} needed \
         (writes are refused until space is freed; purge snapshots and logs or grow the disk)",
        .path.display()
    )]
    DiskFull {
        /// The log directory.
        path: PathBuf,
        /// Bytes that the segment and the reserve need.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// The future of a durable write was dropped before it finished, so what is on disk is unknown.
    #[error("a durable write was abandoned before it finished; what reached the disk is unknown")]
    Abandoned,
    /// A snapshot is taking the log's place, and nothing is appended until it has.
    #[error("the log is being replaced by a snapshot")]
    Replaced,
    /// The log was closed in order.
    #[error("the log is closed")]
    Closed,
    /// Stored bytes are wrong.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// A snapshot file is not whole.
    #[error(
        "{} at offset {offset}: {what}; an older snapshot and the log may still hold everything (they \
         are tried), and `{DOCTOR}` shows what each file holds",
        .file.display()
    )]
    SnapshotDamaged {
        /// The file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A record is larger than the configured maximum.
    #[error("a record of {len} bytes exceeds the maximum of {max} bytes")]
    RecordTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// A record does not come after the one before it.
    #[error("record {zxid} does not come after {last}")]
    OutOfOrder {
        /// The record's zxid.
        zxid: Zxid,
        /// The last one before it.
        last: Zxid,
    },
    /// Written by a newer release.
    #[error("{} has format version {found}; this release reads up to {supported}: upgrade it", .file.display())]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// Its format version.
        found: u16,
        /// The newest that this release knows.
        supported: u16,
    },
    /// History before this point has been purged.
    #[error("the log starts after {start}; records after {wanted} are gone")]
    Purged {
        /// The zxid after which records were asked for.
        wanted: Zxid,
        /// The zxid after which records exist.
        start: Zxid,
    },
    /// The caller's own refusal of a record, carried through a replay.
    #[error("record {zxid} refused: {reason}")]
    Refused {
        /// The record.
        zxid: Zxid,
        /// The caller's reason.
        reason: String,
    },
}

impl StorageError {
    /// Wraps a system error with its context.
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        offset: Option<u64>,
        source: io::Error,
    ) -> Self {
        Self::Io {
            operation,
            path: path.into(),
            offset,
            source: Arc::new(source),
        }
    }

    /// Whether the device or the file system is out of space (or out of quota).
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => is_no_space(source),
            _ => false,
        }
    }
}

/// Whether `error` says that space or quota has run out.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Prints " at offset N", or nothing.
struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at offset {offset}"),
            None => Ok(()),
        }
    }
}

/// Acknowledged history is lost or unreadable at one place of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: {kind} at offset {offset}: transactions after {after}{} are damaged or missing although a \
     later write proves that they were acknowledged; nothing was changed; run `{DOCTOR}` on the data \
     directory, or restore it from a backup or another server",
    .file.display(), Until(*.before)
)]
pub struct Damage {
    /// The log segment.
    pub file: PathBuf,
    /// Byte offset of the first bad batch in it.
    pub offset: u64,
    /// What is wrong there.
    pub kind: DamageKind,
    /// The last zxid that is whole; what is lost lies above it.
    pub after: Zxid,
    /// The first zxid that is whole again, if any.
    pub before: Option<Zxid>,
}

/// Prints " and before ZXID", or nothing.
struct Until(Option<Zxid>);

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(zxid) => write!(f, " and before {zxid}"),
            None => Ok(()),
        }
    }
}

/// What the damaged place looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// Zeros, or content from before the segment was recycled: the write is missing.
    Missing,
    /// A checksum does not match.
    Checksum,
    /// The batch is whole but belongs elsewhere, or the one before it is missing.
    Chain,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "a batch is missing",
            Self::Checksum => "a batch fails its checksum",
            Self::Chain => "a batch does not follow the one before it",
        })
    }
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds it.
    #[error("{} is in use by another process; stop that server or configure another dataDir", .0.display())]
    Locked(PathBuf),
    /// Apache ZooKeeper's data and nothing of ours.
    #[error(
        "{} holds Apache ZooKeeper data (version-2) and no Ringkeeper data; starting would hide that \
         history: import it first with `ringkeeper-log import`, or configure an empty dataDir",
        .0.display()
    )]
    ApacheData(PathBuf),
    /// Files that are not ours, and no manifest.
    #[error(
        "{} is not empty and has no readable manifest ({}); refusing to start over it: configure \
         another dataDir, restore the manifest, or run `{DOCTOR}`",
        .dir.display(), .found.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the files that should not be there.
        found: PathBuf,
    },
    /// Both manifest copies are damaged.
    #[error(
        "neither copy of the manifest in {} can be read; epochs and log start are unknown; run \
         `{DOCTOR}`, or restore the directory from a backup or another server",
        .0.display()
    )]
    ManifestUnreadable(PathBuf),
    /// A log segment between the log start and the end is not there or is not this store's.
    #[error(
        "{}: this log segment is missing or its header is damaged; run `{DOCTOR}`, or restore the \
         directory from a backup or another server",
        .0.display()
    )]
    Segment(PathBuf),
    /// The file system has no O_DIRECT.
    #[error(
        "{}: the file system does not support O_DIRECT ({source}); put dataDir and dataLogDir on a \
         file system that does (ext4, xfs, btrfs; not tmpfs or overlay)",
        .dir.display()
    )]
    NoDirectIo {
        /// The directory.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Options that contradict each other.
    #[error("storage options: {0}")]
    Options(&'static str),
    /// Acknowledged history is damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The disk refused an operation.
    #[error(transparent)]
    Storage(StorageError),
}

impl From<StorageError> for OpenError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Damaged(damage) => Self::Damaged(damage),
            other => Self::Storage(other),
        }
    }
}
