//! Keeps a server's data on disk: the transaction log, snapshots, and the manifest that names them.
//!
//! What is acknowledged is on stable storage, and what is damaged is reported, never passed over. Bytes
//! that come back from a disk are checked before they are believed; none can make this crate panic or
//! allocate more than the file they came from allows.
//!
//! It never looks into a record or a snapshot chunk (both are the caller's bytes), knows nothing of
//! sessions, trees or elections, and repairs nothing by itself.
//!
//! Start with [`Store::open`]. `docs/internals/txn-log.md` and `docs/internals/snapshot.md` describe the
//! disk's view: the crash orders, what is assumed of a disk, and the recovery table.
#![warn(missing_docs)]

mod aligned;
mod batch;
mod blocking_disk;
mod disk;
pub mod disk_ring;
mod dma_disk;
mod error;
mod holdings;
mod huge_pages;
mod manifest;
mod mend;
pub mod offline;
mod pace;
mod preparation;
mod probe;
mod purge;
mod reader;
mod record;
mod recovery;
mod replacement;
mod scan;
mod segment;
#[cfg(feature = "sim")]
mod sim_disk;
#[cfg(feature = "sim")]
mod sim_files;
#[cfg(feature = "sim")]
mod sim_names;
mod snapshot;
mod snapshot_files;
mod stats;
mod std_disk;
mod store;
mod txn_log;

pub use aligned::AlignedBuffer;
pub use batch::{Batch, BatchHeader, BatchKind, HEADER_BYTES, SealedBatch};
pub use blocking_disk::BlockingDisk;
pub use disk::{BLOCK_BYTES, Disk, DiskBuffer, Entry, Urgency};
pub use dma_disk::{DmaDisk, DmaHandle, DmaRead, DurableVariant};
pub use error::{DOCTOR, Damage, DamageKind, OpenError, StorageError};
pub use holdings::{FaultyRange, Holding, Holdings};
pub use huge_pages::HugePages;
pub use manifest::{SNAPSHOTS_MAX, SnapshotInfo};
pub use pace::{LogActivity, REST};
pub use probe::{ProbeReport, check_direct_io, choose_variant, probe};
pub use purge::Purged;
pub use reader::{LiveRecords, LogReader};
pub use record::{FRAME_BYTES, Records};
pub use recovery::{Decision, HeaderState, Place, decide};
#[cfg(feature = "sim")]
pub use sim_disk::{Fault, SECTOR_BYTES, SimDisk, SimFile, SimLock};
#[cfg(feature = "sim")]
pub use sim_files::{SimRead, SimWrite};
pub use snapshot::{
    CHUNK_BYTES_MAX, Chunk, Compression, SNAPSHOT_COUNTS, SnapshotReader, SnapshotWriter,
};
pub use snapshot_files::{DurableFile, ReadFile, SnapshotFiles, StdFiles, UncachedFile, WriteFile};
pub use stats::{FlushTimes, LogStats};
pub use std_disk::StdDisk;
pub use store::{Dirs, EpochState, FOLDER, LogOptions, Opened, Recovered, Store, Tail};
pub use txn_log::{Durable, TxnLog};
