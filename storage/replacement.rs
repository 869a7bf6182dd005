//! A snapshot takes the place of the whole log: [`Store::install_snapshot`](crate::Store::install_snapshot).
//!
//! Invariant: a batch belongs to one history or to the other; nothing is handed over between the two.

use std::{collections::VecDeque, mem, rc::Rc};

use ringkeeper_proto::Zxid;

use crate::{
    disk::Disk,
    error::StorageError,
    manifest::LogStart,
    recovery::Chain,
    segment::{FIRST_BATCH, SegmentMeta},
    txn_log::Shared,
};

/// A replacement of the log under way. Dropped before it is finished it latches the log: whether the manifest
/// names the old history or the new one is unknown then.
pub(crate) struct Replacement<D: Disk> {
    shared: Rc<Shared<D>>,
    finished: bool,
}

impl<D: Disk> Drop for Replacement<D> {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.latch(StorageError::Abandoned);
        }
    }
}

impl<D: Disk> Shared<D> {
    /// Waits until nothing is in flight and the segment after the active one is ready, then says where the log
    /// begins once a snapshot at `zxid` has taken its place. Nothing is handed over until
    /// [`Shared::finish_replacement`]; the guard latches the log when that does not come.
    pub(crate) async fn begin_replacement(
        self: &Rc<Self>,
        zxid: Zxid,
    ) -> Result<(Replacement<D>, LogStart), StorageError> {
        let last = {
            let mut state = self.state.borrow_mut();
            if let Some(error) = &state.latched {
                return Err(error.clone());
            }
            if mem::replace(&mut state.is_replaced, true) {
                return Err(StorageError::Replaced);
            }
            state.next_sequence - 1
        };
        let guard = Replacement {
            shared: Rc::clone(self),
            finished: false,
        };
        self.durable(last).await?;
        let next = {
            let mut state = self.state.borrow_mut();
            match &state.next {
                Some(next) => Rc::clone(next),
                None => {
                    let next = state.new_segment(&self.dir, self.options.segment_bytes);
                    state.next = Some(Rc::clone(&next));
                    next
                }
            }
        };
        self.file_of(&next).await?;
        let before = Chain {
            last_zxid: zxid,
            ..self.state.borrow().chain()
        };
        let start = LogStart {
            segment: next.number,
            before,
        };
        Ok((guard, start))
    }

    /// The manifest says durably that the log begins at `start`: goes on there. Returns the segments that nothing
    /// needs any more.
    pub(crate) fn finish_replacement(
        &self,
        mut guard: Replacement<D>,
        start: LogStart,
    ) -> Vec<SegmentMeta> {
        guard.finished = true;
        let mut state = self.state.borrow_mut();
        let next = state.next.take().expect("it was made ready for this");
        let meta = SegmentMeta {
            number: next.number,
            incarnation: next.incarnation,
            bytes: next.bytes,
            path: next.path.clone(),
            before: Some(start.before),
        };
        let gone = mem::replace(&mut state.segments, VecDeque::from([meta]));
        state.active = next;
        state.offset = FIRST_BATCH;
        state.last_zxid = start.before.last_zxid;
        state.committed = state.committed.min(state.last_zxid);
        state.committed_written = state.committed;
        state.durable_through = state.last_zxid;
        state.durable_generation = state.generation;
        // No batch of the new history is there that could be taken for torn.
        state.sealed = true;
        state.voids.clear();
        state.voids_known_from = 0;
        state.is_replaced = false;
        state.damage = None;
        if let Some(waker) = state.maintenance.take() {
            waker.wake();
        }
        gone.into()
    }
}
