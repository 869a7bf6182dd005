//! Purge: giving back the space of snapshots and log that nothing needs any more.
//!
//! Invariants:
//! - Only verified snapshots count as kept (the manifest lists no other).
//! - The log keeps every record above the oldest kept snapshot.
//! - The manifest says so durably before the first file goes, or becomes a spare.

use std::io;

use ringkeeper_proto::Zxid;

use crate::{
    disk::Disk,
    error::StorageError,
    manifest::LogStart,
    scan::Spares,
    segment::{SegmentMeta, spare_path},
    snapshot::{snapshot_path, spare_snapshot_path},
    store::{Store, remove, sync},
    txn_log::needed_from,
};

/// Spares that are kept even where space is short.
const SPARES_FEW: usize = 2;

/// What a purge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Snapshots removed.
    pub snapshots: usize,
    /// Log segments recycled or removed.
    pub segments: usize,
    /// The oldest snapshot kept; records up to its zxid may be gone from the log.
    pub oldest: Option<Zxid>,
}

impl<D: Disk> Store<D> {
    /// Keeps the `keep` newest verified snapshots (at least one) and the log from the oldest of them on.
    /// Does nothing to the log while there is no snapshot.
    ///
    /// Where there is room, one of the snapshots' files stays as a spare that the next snapshot is written over.
    pub async fn purge(&self, keep: usize) -> Result<Purged, StorageError> {
        let inner = &*self.inner;
        let is_short = self.is_short()?;
        if is_short {
            self.remove_spare_snapshot().await?;
        }
        let mut manifest = inner.manifest.lock().await;
        let mut kept = manifest.contents().snapshots.clone();
        let excess = kept.len().saturating_sub(keep.max(1));
        let gone: Vec<_> = kept.drain(..excess).collect();
        let Some(oldest) = kept.first().map(|info| info.zxid) else {
            return Ok(Purged::default());
        };
        let start = self.log_start_for(oldest);
        let log_start = start.unwrap_or_else(|| manifest.contents().log_start);
        if gone.is_empty() && log_start.segment == manifest.contents().log_start.segment {
            return Ok(Purged {
                oldest: Some(oldest),
                ..Purged::default()
            });
        }
        manifest
            .update(|contents| {
                contents.snapshots = kept;
                contents.log_start = log_start;
            })
            .await?;
        for (at, info) in gone.iter().enumerate() {
            let path = snapshot_path(&inner.data, info.zxid);
            if at == 0 && !is_short {
                let spare = spare_snapshot_path(&inner.data);
                let renamed = inner.disk.rename(&path, &spare).await;
                renamed.map_err(|error| StorageError::io("rename", &path, None, error))?;
            } else {
                remove(&inner.disk, &path).await?;
            }
        }
        if !gone.is_empty() {
            sync(&inner.disk, &inner.data).await?;
        }
        let segments = self.recycle_before(log_start.segment).await?;
        Ok(Purged {
            snapshots: gone.len(),
            segments,
            oldest: Some(oldest),
        })
    }

    /// Removes the file that the next snapshot would be written over, if there is one.
    pub async fn remove_spare_snapshot(&self) -> Result<(), StorageError> {
        let path = spare_snapshot_path(&self.inner.data);
        match self.inner.disk.remove(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StorageError::io("remove", path, None, error))
            }
            _ => Ok(()),
        }
    }

    /// Where the log may begin when a snapshot at `oldest` is the oldest.
    fn log_start_for(&self, oldest: Zxid) -> Option<LogStart> {
        let state = self.inner.log.state.borrow();
        let meta = state.segments.get(needed_from(&state.segments, oldest)?)?;
        Some(LogStart {
            segment: meta.number,
            before: meta.before?,
        })
    }

    async fn recycle_before(&self, first: u64) -> Result<usize, StorageError> {
        let gone: Vec<SegmentMeta> = {
            let mut state = self.inner.log.state.borrow_mut();
            let count = state
                .segments
                .iter()
                .take_while(|meta| meta.number < first)
                .count();
            state.segments.drain(..count).collect()
        };
        self.recycle(&gone).await?;
        Ok(gone.len())
    }

    /// Makes segments that the manifest no longer counts spares, or removes them.
    pub(crate) async fn recycle(&self, gone: &[SegmentMeta]) -> Result<(), StorageError> {
        let log = &*self.inner.log;
        if gone.is_empty() {
            return Ok(());
        }
        let wanted = self.spares_wanted()?;
        let mut spares = Spares::new(&log.disk, &log.dir, &log.options);
        for meta in gone {
            // Those that wait already count; the log may take one at any moment, which only makes room.
            let waiting = log.state.borrow().spares.len();
            if waiting < wanted {
                spares.take(meta.number, meta.bytes).await?;
                log.state.borrow_mut().spares.append(&mut spares.kept);
            } else {
                remove(&log.disk, &meta.path).await?;
            }
        }
        while log.state.borrow().spares.len() > wanted {
            let Some(number) = log.state.borrow_mut().spares.pop() else {
                break;
            };
            remove(&log.disk, &spare_path(&log.dir, number)).await?;
        }
        sync(&log.disk, &log.dir).await
    }

    /// How many spares are to be kept: few where they could take what others need.
    fn spares_wanted(&self) -> Result<usize, StorageError> {
        let all = self.inner.log.options.spares_max;
        Ok(if self.is_short()? {
            all.min(SPARES_FEW)
        } else {
            all
        })
    }

    /// Whether there is so little space that spares could take what others need.
    fn is_short(&self) -> Result<bool, StorageError> {
        let log = &*self.inner.log;
        let available = log.disk.available(&log.dir);
        let available = available
            .map_err(|error| StorageError::io("measure free space", &log.dir, None, error))?;
        let spares = log.options.spares_max as u64;
        let room = log.options.segment_bytes.saturating_mul(spares);
        Ok(available < room.saturating_add(log.options.free_bytes_min))
    }
}
