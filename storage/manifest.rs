//! The manifest: the few facts that must be right before anything else can be read.
//!
//! It is one block, kept twice (`manifest-a`, `manifest-b`). A save writes the first copy durably, then the
//! second: once it returns, both hold it, so the loss of either copy loses nothing, and a crash in between
//! leaves at least one whole copy of the state before or after.
//!
//! ```text
//!   0 magic         4 checksum      8 format      10 phase      11 snapshots
//!  12 1 if member  13 zeros
//!  16 generation   24 store        32 starts      40 accepted   44 current
//!  48 first segment                56 sequence before           64 checksum before   68 zeros
//!  72 incarnation before           80 zxid before
//!  88 sequence at the clean end        96 checksum there       100 1 if the log was closed in order
//! 104 snapshots: 63 x (zxid, bytes, digest)
//! 1616 durable sequence          1624 doubted zxid    1632 zeros
//! ```
//!
//! All numbers are big-endian. The checksum is CRC32C over everything behind it in the block.
//!
//! Invariants:
//! - `current epoch <= accepted epoch`.
//! - The log holds every record above the zxid of the oldest snapshot listed.
//! - A clean end is taken back, durably, before the log is written again.
//! - Snapshots are listed in ascending order of zxid, and only once verified.

use std::{
    io,
    mem::size_of,
    path::{Path, PathBuf},
};

use ringkeeper_proto::{Epoch, Zxid};
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U32, U64},
};

use crate::{
    disk::{BLOCK_BYTES, Disk, DiskBuffer as _, Urgency},
    error::StorageError,
    recovery::{Chain, CleanEnd},
    stats::FlushTimes,
};

/// `RKMF`.
const MAGIC: u32 = 0x524B_4D46;
pub(crate) const FORMAT: u16 = 1;
const CHECKSUM_FROM: usize = 8;
/// The most snapshots that can be listed.
pub const SNAPSHOTS_MAX: usize = 63;
pub(crate) const NAMES: [&str; 2] = ["manifest-a", "manifest-b"];

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSnapshot {
    zxid: U64,
    bytes: U64,
    digest: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawManifest {
    magic: U32,
    checksum: U32,
    format: U16,
    phase: u8,
    snapshot_count: u8,
    is_member: u8,
    reserved: [u8; 3],
    generation: U64,
    store: U64,
    starts: U64,
    accepted_epoch: U32,
    current_epoch: U32,
    first_segment: U64,
    sequence_before: U64,
    checksum_before: U32,
    reserved_after: [u8; 4],
    incarnation_before: U64,
    zxid_before: U64,
    clean_sequence: U64,
    clean_checksum: U32,
    is_clean: U32,
    snapshots: [RawSnapshot; SNAPSHOTS_MAX],
    durable_sequence: U64,
    doubted_through: U64,
    reserved_at_end: U64,
}

const _: () = assert!(size_of::<RawManifest>() == 104 + SNAPSHOTS_MAX * 24 + 24);
const _: () = assert!(size_of::<RawManifest>() <= BLOCK_BYTES);

/// How far the making of a store has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing has been acknowledged; whatever else lies in the directory may be made anew.
    Making,
    /// In service.
    Made,
}

/// Where the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogStart {
    /// The first segment that counts.
    pub(crate) segment: u64,
    /// What came before its first batch.
    pub(crate) before: Chain,
}

/// A snapshot that has been verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The state it holds is that of this zxid.
    pub zxid: Zxid,
    /// Length of its file.
    pub bytes: u64,
    /// The digest of the tree that it holds.
    pub digest: u64,
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) phase: Phase,
    pub(crate) generation: u64,
    /// A number that no other store has.
    pub(crate) store: u64,
    /// How often the store was opened.
    pub(crate) starts: u64,
    pub(crate) accepted_epoch: Epoch,
    pub(crate) current_epoch: Epoch,
    /// As the caller says; see [`crate::Store::save_epochs`].
    pub(crate) is_member: bool,
    /// See [`crate::EpochState::doubted_through`].
    pub(crate) doubted_through: Option<Zxid>,
    /// The last batch that was durable when epochs were saved last: what a member has said since rests on it.
    pub(crate) durable_sequence: u64,
    pub(crate) log_start: LogStart,
    /// Where the log ended, if it was closed in order and not opened since.
    pub(crate) clean_end: Option<CleanEnd>,
    pub(crate) snapshots: Vec<SnapshotInfo>,
}

impl Contents {
    /// The first contents of a new store.
    pub(crate) fn new(store: u64) -> Self {
        Self {
            phase: Phase::Making,
            generation: 0,
            store,
            starts: 0,
            accepted_epoch: Epoch(0),
            current_epoch: Epoch(0),
            is_member: false,
            doubted_through: None,
            durable_sequence: 0,
            log_start: LogStart {
                segment: 1,
                before: Chain::default(),
            },
            clean_end: None,
            snapshots: Vec::new(),
        }
    }

    fn to_raw(&self) -> RawManifest {
        let mut raw = RawManifest::new_zeroed();
        raw.magic = U32::new(MAGIC);
        raw.format = U16::new(FORMAT);
        raw.phase = match self.phase {
            Phase::Making => 1,
            Phase::Made => 2,
        };
        raw.is_member = self.is_member.into();
        // A doubt lies above a zxid, so it is never zero.
        raw.doubted_through = U64::new(self.doubted_through.map_or(0, |zxid| zxid.0));
        raw.durable_sequence = U64::new(self.durable_sequence);
        raw.generation = U64::new(self.generation);
        raw.store = U64::new(self.store);
        raw.starts = U64::new(self.starts);
        raw.accepted_epoch = U32::new(self.accepted_epoch.0);
        raw.current_epoch = U32::new(self.current_epoch.0);
        raw.first_segment = U64::new(self.log_start.segment);
        let before = self.log_start.before;
        raw.sequence_before = U64::new(before.sequence);
        raw.checksum_before = U32::new(before.checksum);
        raw.incarnation_before = U64::new(before.incarnation);
        raw.zxid_before = U64::new(before.last_zxid.0);
        if let Some(end) = self.clean_end {
            raw.clean_sequence = U64::new(end.sequence);
            raw.clean_checksum = U32::new(end.checksum);
            raw.is_clean = U32::new(1);
        }
        // Registration keeps the list within the maximum.
        raw.snapshot_count =
            u8::try_from(self.snapshots.len().min(SNAPSHOTS_MAX)).unwrap_or(u8::MAX);
        for (slot, info) in raw.snapshots.iter_mut().zip(&self.snapshots) {
            slot.zxid = U64::new(info.zxid.0);
            slot.bytes = U64::new(info.bytes);
            slot.digest = U64::new(info.digest);
        }
        raw.checksum = U32::new(raw.digest());
        raw
    }

    pub(crate) fn read(block: &[u8]) -> Copy {
        let Ok((raw, _)) = RawManifest::read_from_prefix(block) else {
            return Copy::Damaged;
        };
        if raw.magic.get() != MAGIC || raw.checksum.get() != raw.digest() {
            return Copy::Damaged;
        }
        if raw.format.get() != FORMAT {
            return Copy::Newer(raw.format.get());
        }
        let phase = if raw.phase == 1 {
            Phase::Making
        } else {
            Phase::Made
        };
        let snapshots = raw.snapshots.iter().take(usize::from(raw.snapshot_count));
        Copy::Good(Self {
            phase,
            generation: raw.generation.get(),
            store: raw.store.get(),
            starts: raw.starts.get(),
            accepted_epoch: Epoch(raw.accepted_epoch.get()),
            current_epoch: Epoch(raw.current_epoch.get()),
            is_member: raw.is_member == 1,
            doubted_through: Some(Zxid(raw.doubted_through.get())).filter(|zxid| zxid.0 > 0),
            durable_sequence: raw.durable_sequence.get(),
            log_start: LogStart {
                segment: raw.first_segment.get(),
                before: Chain {
                    sequence: raw.sequence_before.get(),
                    checksum: raw.checksum_before.get(),
                    incarnation: raw.incarnation_before.get(),
                    last_zxid: Zxid(raw.zxid_before.get()),
                    committed: Zxid::ZERO,
                },
            },
            clean_end: (raw.is_clean.get() == 1).then(|| CleanEnd {
                sequence: raw.clean_sequence.get(),
                checksum: raw.clean_checksum.get(),
            }),
            snapshots: snapshots
                .map(|raw| SnapshotInfo {
                    zxid: Zxid(raw.zxid.get()),
                    bytes: raw.bytes.get(),
                    digest: raw.digest.get(),
                })
                .collect(),
        })
    }
}

impl RawManifest {
    fn digest(&self) -> u32 {
        crc32c::crc32c(self.as_bytes().get(CHECKSUM_FROM..).unwrap_or_default())
    }
}

/// One copy as read.
pub(crate) enum Copy {
    Good(Contents),
    Newer(u16),
    Damaged,
}

/// What a directory says about its manifest.
#[derive(Debug)]
pub(crate) enum Reading {
    /// Neither copy has ever been written.
    Empty,
    /// The newest whole copy.
    Present(Contents),
    /// There are copies, and none is whole.
    Unreadable,
}

/// Reads both copies.
pub(crate) async fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Reading, StorageError> {
    let mut newest: Option<Contents> = None;
    let mut damaged = false;
    for name in NAMES {
        let path = dir.join(name);
        let block = match read_copy(disk, &path).await {
            Ok(block) => block,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StorageError::io("read manifest", path, None, error)),
        };
        match Contents::read(&block) {
            Copy::Good(copy) => {
                if newest
                    .as_ref()
                    .is_none_or(|newest| copy.generation > newest.generation)
                {
                    newest = Some(copy);
                }
            }
            Copy::Newer(found) => {
                return Err(StorageError::NewerFormat {
                    file: path,
                    found,
                    supported: FORMAT,
                });
            }
            Copy::Damaged => {
                tracing::warn!(file = %path.display(), "a manifest copy is torn or damaged");
                damaged = true;
            }
        }
    }
    Ok(match newest {
        Some(contents) => Reading::Present(contents),
        None if damaged => Reading::Unreadable,
        None => Reading::Empty,
    })
}

async fn read_copy<D: Disk>(disk: &D, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path).await?;
    let block = disk
        .read_at(&file, 0, BLOCK_BYTES)
        .await
        .map(|read| read.to_vec());
    disk.close(file).await;
    block
}

/// The open manifest.
pub(crate) struct Manifest<D: Disk> {
    disk: D,
    copies: [(PathBuf, D::File); 2],
    buffer: D::Buffer,
    contents: Contents,
    times: FlushTimes,
    /// The first failed save: what is on disk is unknown since.
    failed: Option<StorageError>,
}

impl<D: Disk> Manifest<D> {
    /// Opens both copies, making those that are missing or short, and brings both to `contents`.
    pub(crate) async fn open(
        disk: D,
        dir: &Path,
        contents: Contents,
    ) -> Result<Self, StorageError> {
        let [first, second] = NAMES.map(|name| dir.join(name));
        let first = (first.clone(), open_copy(&disk, dir, &first).await?);
        let second = (second.clone(), open_copy(&disk, dir, &second).await?);
        let buffer = D::Buffer::with_capacity(BLOCK_BYTES);
        let mut manifest = Self {
            disk,
            copies: [first, second],
            buffer,
            contents,
            times: FlushTimes::new(),
            failed: None,
        };
        manifest.update(|_| ()).await?;
        Ok(manifest)
    }

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// How long each durable write of a copy takes.
    pub(crate) fn times(&self) -> &FlushTimes {
        &self.times
    }

    /// Changes the contents, durably: both copies hold the change when this returns. Dropped half-way, it
    /// leaves the manifest failed: a write that nobody waits for may still land, even over a later one.
    pub(crate) async fn update(
        &mut self,
        change: impl FnOnce(&mut Contents),
    ) -> Result<(), StorageError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut contents = self.contents.clone();
        change(&mut contents);
        contents.generation += 1;
        let raw = contents.to_raw();
        let bytes = self.buffer.bytes_mut();
        bytes.fill(0);
        bytes[..size_of::<RawManifest>()].copy_from_slice(raw.as_bytes());
        self.failed = Some(StorageError::Abandoned);
        // One after the other: while one copy is torn by a crash, the other is whole.
        for (path, file) in &self.copies {
            let started = self.disk.now();
            if let Err(error) = self.disk.write_durable_at(file, 0, &self.buffer).await {
                let error = StorageError::io("write manifest", path, Some(0), error);
                self.failed = Some(error.clone());
                return Err(error);
            }
            self.times.record(self.disk.now().saturating_sub(started));
        }
        self.failed = None;
        self.contents = contents;
        Ok(())
    }
}

async fn open_copy<D: Disk>(disk: &D, dir: &Path, path: &Path) -> Result<D::File, StorageError> {
    let failed = |error| StorageError::io("open manifest", path, None, error);
    match disk.open(path).await {
        Ok(file) if disk.size(&file).await.map_err(failed)? >= BLOCK_BYTES as u64 => Ok(file),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => {
            let file = disk
                .create_zeroed(path, BLOCK_BYTES as u64, |_| Urgency::Soon)
                .await
                .map_err(failed)?;
            disk.sync_dir(dir)
                .await
                .map_err(|error| StorageError::io("flush data directory", dir, None, error))?;
            Ok(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Contents {
        Contents {
            phase: Phase::Made,
            generation: 12,
            starts: 3,
            accepted_epoch: Epoch(5),
            current_epoch: Epoch(4),
            is_member: true,
            doubted_through: Some(Zxid(u64::MAX)),
            durable_sequence: 76,
            log_start: LogStart {
                segment: 9,
                before: Chain {
                    sequence: 77,
                    checksum: 0xABCD,
                    incarnation: 5,
                    last_zxid: Zxid(0x4_0000_0009),
                    committed: Zxid::ZERO,
                },
            },
            clean_end: Some(CleanEnd {
                sequence: 99,
                checksum: 7,
            }),
            snapshots: vec![
                SnapshotInfo {
                    zxid: Zxid(8),
                    bytes: 100,
                    digest: 1,
                },
                SnapshotInfo {
                    zxid: Zxid(9),
                    bytes: 200,
                    digest: u64::MAX,
                },
            ],
            ..Contents::new(42)
        }
    }

    #[test]
    fn round_trip() {
        let contents = sample();
        let raw = contents.to_raw();
        assert!(matches!(Contents::read(raw.as_bytes()), Copy::Good(read) if read == contents));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let raw = sample().to_raw();
        for bit in 0..size_of::<RawManifest>() * 8 {
            let mut bad = raw.as_bytes().to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(Contents::read(&bad), Copy::Damaged),
                "bit {bit} went unnoticed"
            );
        }
    }
}
