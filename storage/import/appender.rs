//! Records appended to a store, batch by batch.

use std::sync::Arc;

use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Batch, BlockingDisk, Opened, StorageError};

/// Appends records to a store, batch by batch.
pub struct Appender<'s, D: BlockingDisk> {
    disk: &'s D,
    opened: &'s mut Opened<D>,
    batch: Batch<D::Buffer>,
    committed: Zxid,
    /// How many records were appended.
    count: u64,
}

impl<'s, D: BlockingDisk> Appender<'s, D> {
    /// Appends to the store `opened` on `disk`. What lies above `committed` is marked as not known committed.
    pub fn new(disk: &'s D, opened: &'s mut Opened<D>, committed: Zxid) -> Self {
        let batch = opened.log.new_batch();
        Self {
            disk,
            opened,
            batch,
            committed,
            count: 0,
        }
    }

    /// Appends a record. Returns whether a batch was written for it.
    ///
    /// # Errors
    /// When the record is too long, or the batch before it cannot be written.
    pub fn append(&mut self, zxid: Zxid, record: &[u8]) -> Result<bool, StorageError> {
        let is_full = !self.batch.has_room(record.len());
        if is_full {
            self.write()?;
        }
        self.batch
            .append(zxid, record.len(), |slot| slot.copy_from_slice(record))?;
        self.count += 1;
        Ok(is_full)
    }

    /// Writes what is left; returns how many records there were.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<u64, StorageError> {
        if self.count > 0 {
            self.write()?;
        }
        Ok(self.count)
    }

    fn write(&mut self) -> Result<(), StorageError> {
        let next = self.opened.log.new_batch();
        let batch = std::mem::replace(&mut self.batch, next);
        let last = batch.last_zxid();
        let write = self.opened.log.write(batch, self.committed.min(last));
        let written = self.disk.wait(write).map_err(|error| StorageError::Io {
            operation: "write log batch",
            path: self.opened.store.snapshot_dir().to_owned(),
            offset: None,
            source: Arc::new(error),
        });
        written?.map(|_| ())
    }
}

impl<D: BlockingDisk> std::fmt::Debug for Appender<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Appender")
            .field("committed", &self.committed)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}
