//! Purge: giving back the space of snapshots and log that nothing needs any more.
//!
//! Invariants:
//! - Only verified snapshots count as kept (the manifest lists no other).
//! - The log keeps every record above the oldest kept snapshot.
//! - The manifest says so durably before the first file goes, or becomes a spare.

use std::{io, time::Duration};

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

/// How long from one look for spares that are too many to the next.
const TRIM_PAUSE: Duration = Duration::from_secs(10);

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

    /// Removes all spares, of the log and of snapshots: whoever purges by hand wants the space.
    pub async fn remove_spares(&self) -> Result<(), StorageError> {
        self.remove_spare_snapshot().await?;
        self.remove_spares_beyond(0).await
    }

    async fn remove_spare_snapshot(&self) -> Result<(), StorageError> {
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

    /// Makes segments that the manifest no longer counts spares. What is too many goes later, see [`Store::trim`]; at once
    /// where space is short.
    pub(crate) async fn recycle(&self, gone: &[SegmentMeta]) -> Result<(), StorageError> {
        let log = &*self.inner.log;
        if gone.is_empty() {
            return Ok(());
        }
        let is_short = self.is_short()?;
        let mut spares = Spares::new(&log.disk, &log.dir, &log.options);
        for meta in gone {
            // The log may take a spare at any moment, which only makes room.
            if is_short && log.state.borrow().spares.len() >= SPARES_FEW {
                remove(&log.disk, &meta.path).await?;
            } else {
                spares.take(meta.number, meta.bytes).await?;
                log.state.borrow_mut().spares.append(&mut spares.kept);
            }
        }
        log.state.borrow_mut().freed = gone.len();
        if is_short {
            self.remove_spares_beyond(SPARES_FEW).await?;
        }
        sync(&log.disk, &log.dir).await
    }

    /// Removes the spares that are too many, slowly, as long as the log is open. To be run in the background.
    pub fn trim(&self) -> impl Future<Output = ()> + 'static + use<D> {
        let store = self.clone();
        async move {
            let log = &*store.inner.log;
            while !log.is_latched() {
                if let Err(error) = store.trim_once().await {
                    tracing::warn!(%error, "remove a spare log segment");
                }
                log.disk.sleep(TRIM_PAUSE).await;
            }
        }
    }

    async fn trim_once(&self) -> Result<(), StorageError> {
        let log = &*self.inner.log;
        loop {
            if self.is_short()? {
                return self.remove_spares_beyond(SPARES_FEW).await;
            }
            let Some(number) = self.spare_beyond(self.spares_wanted()) else {
                return Ok(());
            };
            let path = spare_path(&log.dir, number);
            let bytes = log.options.segment_bytes;
            let removed = log.disk.remove_gently(&path, bytes).await;
            removed.map_err(|error| StorageError::io("remove", path, None, error))?;
        }
    }

    async fn remove_spares_beyond(&self, count: usize) -> Result<(), StorageError> {
        let log = &*self.inner.log;
        while let Some(number) = self.spare_beyond(count) {
            remove(&log.disk, &spare_path(&log.dir, number)).await?;
        }
        Ok(())
    }

    /// Takes a spare off the list when there are more than `count`: not the last, which the log takes next.
    fn spare_beyond(&self, count: usize) -> Option<u64> {
        let spares = &mut self.inner.log.state.borrow_mut().spares;
        (spares.len() > count).then(|| spares.remove(0))
    }

    /// How many spares are to be kept where there is room for them.
    fn spares_wanted(&self) -> usize {
        let log = &*self.inner.log;
        let freed = log.state.borrow().freed;
        log.options.spares_kept.max(freed)
    }

    /// Whether there is so little space that spares could take what others need.
    fn is_short(&self) -> Result<bool, StorageError> {
        let log = &*self.inner.log;
        let available = log.disk.available(&log.dir);
        let available = available
            .map_err(|error| StorageError::io("measure free space", &log.dir, None, error))?;
        let spares = log.options.spares_kept as u64;
        let room = log.options.segment_bytes.saturating_mul(spares);
        Ok(available < room.saturating_add(log.options.free_bytes_min))
    }
}
