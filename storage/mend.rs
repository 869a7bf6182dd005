//! Putting damaged records back in their place, when another server has sent them.
//!
//! Only what was there is ever written: the header that is still whole names the checksum of what it had, so records
//! that are not the very same are refused. Nothing else of the log changes, and the chain is as it was.

use ringkeeper_proto::Zxid;

use crate::{
    batch::{BatchHeader, HEADER_BYTES},
    disk::{Disk, DiskBuffer as _},
    error::StorageError,
    holdings::{DamagedBatch, FaultyRange},
    record::Frame,
    store::Store,
};

impl<D: Disk> Store<D> {
    /// Writes the records of a damaged batch anew, durably; `records` are all of [`FaultyRange`], in order, as they
    /// were logged. Answers `false`, and writes nothing, when they are not what was there, or when the
    /// range is not of one batch with a whole header ([`FaultyRange::is_mendable`]).
    ///
    /// The log is read anew by the next [`Store::open_as_member`]: once all of it is mended it is as whole as any.
    pub async fn mend<'r>(
        &self,
        range: &FaultyRange,
        records: impl IntoIterator<Item = (Zxid, &'r [u8])>,
    ) -> Result<bool, StorageError> {
        let Some(DamagedBatch {
            file: path,
            offset,
            header,
        }) = &range.batch
        else {
            return Ok(false);
        };
        let mut body = Vec::with_capacity(header.body_len());
        for (zxid, payload) in records {
            // What others sent has no bound of its own.
            if body.len() + payload.len() > header.body_len() {
                return Ok(false);
            }
            Frame::push(&mut body, zxid, payload);
        }
        let disk = &self.inner.disk;
        let failed = |operation| {
            move |error| StorageError::io(operation, path.clone(), Some(*offset), error)
        };
        let file = disk.open(path).await.map_err(failed("open log segment"))?;
        let stored = header.stored_bytes();
        let read = disk
            .read_at(&file, *offset, stored)
            .await
            .map_err(failed("read log segment"))?;
        let mut buffer = D::Buffer::with_capacity(stored);
        let bytes = buffer.bytes_mut();
        bytes.fill(0);
        let end = HEADER_BYTES + body.len();
        let there = read.get(..HEADER_BYTES).unwrap_or_default();
        let is_same = BatchHeader::read_whole(there) == Some(*header) && end <= stored;
        if is_same {
            bytes[..HEADER_BYTES].copy_from_slice(there);
            bytes[HEADER_BYTES..end].copy_from_slice(&body);
        }
        let is_mended = is_same && body.len() == header.body_len() && header.matches_body(bytes);
        let mut written = Ok(());
        if is_mended {
            written = disk.write_durable_at(&file, *offset, &buffer).await;
        }
        disk.close(file).await;
        written.map_err(failed("mend log batch"))?;
        Ok(is_mended)
    }
}
