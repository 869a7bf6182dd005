//! Making the log's next segment ready: a spare, or a new file of zeros, with its first block and its name.
//!
//! Invariants:
//! - Segments become ready one at a time and in order of their numbers.
//! - The name comes last: a crash leaves a spare, never a segment with somebody else's first block.
//! - A lack of space is waited out; any other failure latches the log.

use std::{
    future::poll_fn,
    path::{Path, PathBuf},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use crate::{
    disk::{BLOCK_BYTES, Disk, Urgency},
    error::{StorageError, is_no_space},
    segment::{Segment, SegmentHeader, spare_path},
    txn_log::{Shared, State},
};

/// How long to wait before looking for space again.
const SPACE_RETRY: Duration = Duration::from_secs(1);

impl<D: Disk> Shared<D> {
    /// Keeps the next segment ready until the log is closed or fails.
    pub(crate) async fn maintain(&self) {
        loop {
            let wanted = {
                let mut state = self.state.borrow_mut();
                if state.closed || state.latched.is_some() {
                    return;
                }
                if state.next.is_none() {
                    state.next = Some(state.new_segment(&self.dir, self.options.segment_bytes));
                }
                state.unready.back().cloned()
            };
            match wanted {
                // A failure is latched, and ends the loop above.
                Some(segment) => drop(self.file_of(&segment).await),
                None => self.maintenance_wanted().await,
            }
        }
    }

    /// Resolves when the next segment has been taken, or the log closed or failed.
    async fn maintenance_wanted(&self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.closed || state.latched.is_some() || state.next.is_none() {
                return Poll::Ready(());
            }
            state.maintenance = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The segment's file, made ready here unless somebody else is at it. Waits for space where there is
    /// none: what was admitted has its place in the log, and nothing behind it can go first.
    pub(crate) async fn file_of(&self, segment: &Segment<D>) -> Result<D::File, StorageError> {
        loop {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            if let Some(file) = segment.ready() {
                return Ok(file);
            }
            let Some(_turn) = self.turn.take() else {
                poll_fn(
                    |context| match self.turn.is_free(context.waker()) || self.is_latched() {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    },
                )
                .await;
                continue;
            };
            let Some(first) = self.state.borrow().unready.front().cloned() else {
                continue;
            };
            match self.prepare(&first).await {
                Ok(file) => {
                    *first.file.borrow_mut() = Some(file);
                    let mut state = self.state.borrow_mut();
                    state.unready.pop_front();
                    state.no_space = None;
                }
                Err(error @ StorageError::DiskFull { .. }) => {
                    if self
                        .state
                        .borrow_mut()
                        .no_space
                        .replace(error.clone())
                        .is_none()
                    {
                        tracing::warn!(%error, "log writes will be refused");
                    }
                    self.disk.sleep(SPACE_RETRY).await;
                    if self.state.borrow().closed {
                        return Err(error);
                    }
                }
                Err(error) => return Err(self.latch(error)),
            }
        }
    }

    /// Makes a segment from a spare, or a new file. The name comes last, and is durable before use: a crash
    /// leaves a spare, never a segment with somebody else's first block.
    async fn prepare(&self, segment: &Segment<D>) -> Result<D::File, StorageError> {
        let (file, spare) = self.spare_file(segment).await?;
        let header = SegmentHeader {
            number: segment.number,
            incarnation: segment.incarnation,
            store: self.store,
            bytes: segment.bytes,
        };
        let block: D::Buffer = header.block();
        self.disk
            .write_durable_at(&file, 0, &block)
            .await
            .map_err(|error| StorageError::io("write segment header", &spare, Some(0), error))?;
        self.disk
            .rename(&spare, &segment.path)
            .await
            .map_err(|error| StorageError::io("name log segment", &segment.path, None, error))?;
        self.disk
            .sync_dir(&self.dir)
            .await
            .map_err(|error| StorageError::io("flush log directory", &self.dir, None, error))?;
        self.stats.borrow_mut().written_bytes += BLOCK_BYTES as u64;
        Ok(file)
    }

    async fn spare_file(&self, segment: &Segment<D>) -> Result<(D::File, PathBuf), StorageError> {
        let spare = self.state.borrow_mut().spares.pop();
        if let Some(spare) = spare {
            let path = spare_path(&self.dir, spare);
            let file = self.disk.open(&path).await;
            return match file {
                Ok(file) => Ok((file, path)),
                Err(error) => Err(StorageError::io("open spare segment", path, None, error)),
            };
        }
        let path = spare_path(&self.dir, segment.number);
        let needed = segment.bytes + self.options.free_bytes_min;
        let available = self
            .disk
            .available(&self.dir)
            .map_err(|error| StorageError::io("measure free space", &self.dir, None, error))?;
        let full = StorageError::DiskFull {
            path: self.dir.clone(),
            needed,
            available,
        };
        if available < needed {
            return Err(full);
        }
        let urgency = |filled| self.state.borrow().urgency(segment, filled);
        match self.disk.create_zeroed(&path, segment.bytes, urgency).await {
            Ok(file) => Ok((file, path)),
            Err(error) if is_no_space(&error) => {
                // Give back what the attempt took. Left behind it would be removed at the next start.
                drop(self.disk.remove(&path).await);
                Err(full)
            }
            Err(error) => Err(StorageError::io("fill log segment", path, None, error)),
        }
    }
}

impl<D: Disk> State<D> {
    /// How much `segment`, which is filled this far, is wanted: it is to be ready when the active one is half full.
    ///
    /// A member that takes a snapshot in its log's place waits for it too, and serves nobody before it is there.
    ///
    /// A store's first one is filled whole though its seal waits for it: nobody is served yet, and what will be written
    /// to it is the faster for it.
    fn urgency(&self, segment: &Segment<D>, filled: u64) -> Urgency {
        let share = |part: u64, whole: u64| u128::from(part) * u128::from(whole);
        let is_first = self.durable_sequence == 0;
        if self.is_replaced || (self.active.ready().is_none() && !is_first) {
            Urgency::Waiting
        } else if is_first
            || share(filled, self.active.bytes) < 2 * share(self.offset, segment.bytes)
        {
            Urgency::Soon
        } else {
            Urgency::Gentle
        }
    }

    pub(crate) fn new_segment(&mut self, dir: &Path, bytes: u64) -> Rc<Segment<D>> {
        let incarnation = self.next_incarnation;
        self.next_incarnation += 1;
        let segment = Segment::new(dir, self.active.number + 1, incarnation, bytes);
        self.unready.push_back(Rc::clone(&segment));
        segment
    }
}
