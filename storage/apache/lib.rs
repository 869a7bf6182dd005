//! Apache ZooKeeper's files: transaction logs, snapshots and epochs of releases 3.4 to 3.9, read and written.
//!
//! What is read is believed only after its checksum holds, no length that a file tells is allocated before
//! the bytes are there, and none can make this crate panic. Reading streams: a log needs constant memory, a
//! snapshot that of its tree. Nothing here ever changes a file that it did not make.
//!
//! `docs/internals/apache-files.md` draws the bytes and says what Apache makes of them.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]
#![warn(missing_docs)]

mod base;
mod directory;
mod epochs;
mod error;
mod judge;
mod log;
mod log_writer;
mod problem;
mod replay;
mod snappy;
mod snapshot;
mod snapshot_writer;
mod stream;
mod window;

pub use base::Base;
pub use directory::{Directory, Epochs, FOLDER, Listed, Visit, folder_of};
pub use epochs::{ACCEPTED_EPOCH, CURRENT_EPOCH, Epoch, read_epoch, write_epoch};
pub use error::FileError;
pub use judge::{Break, LogReport};
pub use log::{Entry, Fault, FaultKind, LogScan, follows, name_zxid, scan};
pub use log_writer::LogWriter;
pub use problem::{Problem, Severity};
pub use replay::Replay;
pub use snapshot::{Snapshot, SnapshotDigest, read_snapshot};
pub use snapshot_writer::write_snapshot;
pub use stream::Compression;
pub use window::Window;

/// How the names of logs begin.
pub const LOG_PREFIX: &str = "log.";
/// How the names of snapshots begin.
pub const SNAPSHOT_PREFIX: &str = "snapshot.";
/// How the content of a log begins.
pub const LOG_MAGIC: [u8; 4] = *b"ZKLG";
/// How the content of a snapshot begins, once it is uncompressed.
pub const SNAPSHOT_MAGIC: [u8; 4] = *b"ZKSN";
/// The version of both that every release has written.
const VERSION: i32 = 2;
/// The longest record, path or data that is believed; Apache's own bound (`jute.maxbuffer`) is far below.
const LEN_MAX: usize = 256 << 20;
