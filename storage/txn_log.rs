//! The transaction log: preallocated segments of batches, each one durable write.
//!
//! Invariants:
//! - `durable_sequence < next_sequence`, and both only grow; batches become durable in order, whatever order
//!   the disk answers in.
//! - A record is acknowledged only when its batch's sequence is at most `durable_sequence`.
//! - No two batches share a block, and no write touches a block that holds a batch of the present chain.
//! - After the first failed write nothing succeeds any more.
//! - The hot path grows no file: the next segment is made ready by [`TxnLog::maintenance`], and where that
//!   is late a write waits.
//! - `durable_through` and `durable_generation` are those of one batch, the last durable one.
//! - While the log is being replaced nothing is handed over: a batch belongs to one history or to the other.
//!
//! Knows nothing of Zab: it keeps what it is given, in the order given.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, poll_fn},
    mem,
    path::PathBuf,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use ringkeeper_proto::Zxid;

use crate::{
    batch::{Batch, BatchHeader, BatchKind, BatchLimits, Content, SealedBatch},
    disk::{BLOCK_BYTES, Disk, round_up},
    error::{Damage, StorageError},
    reader::LogReader,
    recovery::{Chain, CleanEnd, Void},
    segment::{FIRST_BATCH, Segment, SegmentMeta, Turn},
    stats::LogStats,
    store::LogOptions,
};

/// Batch memory kept for reuse; more in flight than this allocates.
const POOL_MAX: usize = 16;

/// The log of one server.
///
/// Owned by one task, which appends; the futures that it returns may run in others.
pub struct TxnLog<D: Disk> {
    shared: Rc<Shared<D>>,
}

/// What the log, its writes in flight, its readers and its maintenance share.
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pub(crate) dir: PathBuf,
    pub(crate) options: LogOptions,
    /// The store's number, in every segment.
    pub(crate) store: u64,
    pub(crate) state: RefCell<State<D>>,
    pub(crate) turn: Turn,
    pool: RefCell<Vec<Rc<Content<D::Buffer>>>>,
    pub(crate) stats: RefCell<LogStats>,
}

/// The log's moving parts.
pub(crate) struct State<D: Disk> {
    pub(crate) latched: Option<StorageError>,
    /// Acknowledged history is damaged: nothing is appended to it.
    pub(crate) damage: Option<Damage>,
    pub(crate) closed: bool,
    /// Sequence of the next batch.
    pub(crate) next_sequence: u64,
    /// Checksum of the last batch handed over.
    pub(crate) previous: u32,
    /// The lowest incarnation that this run may use.
    pub(crate) run: u64,
    /// The incarnation of the next prepared segment.
    pub(crate) next_incarnation: u64,
    /// The log's last zxid, durable or not.
    pub(crate) last_zxid: Zxid,
    /// The caller's number for what is handed over now.
    pub(crate) generation: u64,
    /// The highest zxid that the caller said is committed.
    pub(crate) committed: Zxid,
    /// What the last batch says of it.
    pub(crate) committed_written: Zxid,
    /// Every batch up to this is durable.
    pub(crate) durable_sequence: u64,
    pub(crate) durable_through: Zxid,
    pub(crate) durable_generation: u64,
    /// A snapshot is taking the log's place; see [`crate::Store::install_snapshot`].
    pub(crate) is_replaced: bool,
    /// Whether the last batch attests all before it.
    pub(crate) sealed: bool,
    /// Batches handed over and not yet durable in order; the front is `durable_sequence + 1`.
    pub(crate) in_flight: VecDeque<InFlight<D::Buffer>>,
    pub(crate) active: Rc<Segment<D>>,
    pub(crate) offset: u64,
    pub(crate) next: Option<Rc<Segment<D>>>,
    /// Segments that are to be made ready, in order of their numbers.
    pub(crate) unready: VecDeque<Rc<Segment<D>>>,
    /// Segments with batches, oldest first; the last is `active`.
    pub(crate) segments: VecDeque<SegmentMeta>,
    /// Spare files' numbers.
    pub(crate) spares: Vec<u64>,
    /// How many segments the last purge that freed any has freed: the log will need as many until the next.
    pub(crate) freed: usize,
    /// Truncations and resets, in order of their sequence.
    pub(crate) voids: Vec<Void>,
    /// Voids of lower sequences are not in `voids`: recovery did not read that far back.
    pub(crate) voids_known_from: u64,
    /// Set while no segment can be prepared for want of space.
    pub(crate) no_space: Option<StorageError>,
    pub(crate) maintenance: Option<Waker>,
}

/// A batch handed over.
pub(crate) struct InFlight<B> {
    pub(crate) batch: SealedBatch<B>,
    last_zxid: Zxid,
    generation: u64,
    /// When it was handed over, by the disk's clock.
    since: Duration,
    written: bool,
    /// Who waits for it: as a rule one task, which then costs no allocation.
    waker: Option<Waker>,
    more_wakers: Vec<Waker>,
}

impl<B> InFlight<B> {
    fn wait(&mut self, waker: &Waker) {
        let mut others = self.waker.iter().chain(&self.more_wakers);
        if others.any(|other| other.will_wake(waker)) {
            return;
        }
        if self.waker.is_none() {
            self.waker = Some(waker.clone());
        } else {
            self.more_wakers.push(waker.clone());
        }
    }

    fn wake(&mut self) {
        let all = self.waker.take().into_iter();
        all.chain(self.more_wakers.drain(..)).for_each(Waker::wake);
    }
}

/// How much of the log is durable, and by which of the caller's generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The log's last durable zxid: everything up to it that was not truncated is on stable storage.
    pub through: Zxid,
    /// The generation of the last durable batch, see [`TxnLog::begin_generation`]. A report of an older one
    /// says nothing about zxids that have been used again since.
    pub generation: u64,
}

/// Where a log goes on after recovery.
pub(crate) struct Resume<D: Disk> {
    pub(crate) chain: Chain,
    pub(crate) committed: Zxid,
    pub(crate) run: u64,
    pub(crate) active: Rc<Segment<D>>,
    pub(crate) offset: u64,
    pub(crate) segments: VecDeque<SegmentMeta>,
    pub(crate) spares: Vec<u64>,
    pub(crate) voids: Vec<Void>,
    pub(crate) voids_known_from: u64,
    pub(crate) damage: Option<Damage>,
}

impl<D: Disk> TxnLog<D> {
    pub(crate) fn resume(
        disk: D,
        dir: PathBuf,
        options: LogOptions,
        store: u64,
        resume: Resume<D>,
    ) -> Self {
        let unready = resume
            .active
            .ready()
            .is_none()
            .then(|| Rc::clone(&resume.active));
        let unready = unready.into_iter().collect();
        let state = State {
            latched: None,
            damage: resume.damage,
            closed: false,
            next_sequence: resume.chain.sequence + 1,
            previous: resume.chain.checksum,
            run: resume.run,
            next_incarnation: resume.run + 1,
            last_zxid: resume.chain.last_zxid,
            generation: 0,
            committed: resume.committed,
            committed_written: resume.committed,
            durable_sequence: resume.chain.sequence,
            durable_through: resume.chain.last_zxid,
            durable_generation: 0,
            is_replaced: false,
            sealed: false,
            in_flight: VecDeque::with_capacity(POOL_MAX),
            active: resume.active,
            offset: resume.offset,
            next: None,
            unready,
            segments: resume.segments,
            spares: resume.spares,
            freed: 0,
            voids: resume.voids,
            voids_known_from: resume.voids_known_from,
            no_space: None,
            maintenance: None,
        };
        let shared = Shared {
            disk,
            dir,
            options,
            store,
            state: RefCell::new(state),
            turn: Turn::default(),
            pool: RefCell::default(),
            stats: RefCell::default(),
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// Makes the memory of `count` batches now. Where it lies on huge pages the kernel clears two megabytes for each, which
    /// takes a virtual machine up to 10 ms, and is no work for a turn that clients wait for.
    pub fn make_batches(&mut self, count: usize) {
        let batches: Vec<_> = (0..count).map(|_| self.shared.new_batch()).collect();
        for batch in batches {
            self.shared.recycle(batch.into_sealed());
        }
    }

    /// An empty batch, in memory that an earlier one has left where there is some.
    pub fn new_batch(&mut self) -> Batch<D::Buffer> {
        self.shared.new_batch()
    }

    /// Writes `batch` durably; resolves to the zxid through which the log is durable then.
    ///
    /// `committed` is the last zxid known committed; it is stored for recovery. The batch has its place in
    /// the log when this returns, so calls define the order. Several writes may be in flight; their futures
    /// resolve in that order. The future must be run to its end by a task that nobody cancels: dropped
    /// early it latches the log with [`StorageError::Abandoned`], since nobody knows then what was written.
    /// After the first failure every call resolves to that failure. An empty batch writes nothing and
    /// resolves when everything before it is durable.
    ///
    /// A batch whose first zxid does not come after the log's last is refused with
    /// [`StorageError::OutOfOrder`] and leaves the log as it was.
    pub fn write(
        &mut self,
        batch: Batch<D::Buffer>,
        committed: Zxid,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        let (_, written) = self.write_shared(batch, committed);
        written
    }

    /// As [`TxnLog::write`], and also returns the batch's bytes, to be sent on from the same memory.
    pub fn write_shared(
        &mut self,
        batch: Batch<D::Buffer>,
        committed: Zxid,
    ) -> (
        SealedBatch<D::Buffer>,
        impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D>,
    ) {
        let last = batch.last_zxid();
        let (sealed, job) = if batch.is_empty() {
            (batch.into_sealed(), Ok(Job::wait_for_all(&self.shared)))
        } else {
            self.shared
                .hand_over(batch, BatchKind::Records, last, committed)
        };
        (sealed, async move { job?.run().await })
    }

    /// Writes a seal: nothing but the attestation that all before it is durable. Without it, damage to the
    /// last batch of an idle log could not be told from a torn write. See [`TxnLog::needs_seal`].
    pub fn seal(
        &mut self,
        committed: Zxid,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        let last = self.last_zxid();
        self.mark(BatchKind::Seal, last, committed)
    }

    /// What is handed over from now on belongs to `generation`, a number of the caller's that grows with each
    /// truncation or replacement. To be called right before [`TxnLog::truncate`], [`TxnLog::reset`] or
    /// [`Store::install_snapshot`](crate::Store::install_snapshot): since zxids are used again after those, a
    /// flush that was under way before must not be taken for one of what came after. [`TxnLog::durable`] tells.
    pub fn begin_generation(&mut self, generation: u64) {
        let mut state = self.shared.state.borrow_mut();
        assert!(generation >= state.generation, "generations only grow");
        state.generation = generation;
    }

    /// Notes that everything through `zxid` is committed. Batches say so to the next start; where none follows,
    /// [`TxnLog::needs_seal`] asks for a seal that does.
    pub fn note_committed(&mut self, zxid: Zxid) {
        let mut state = self.shared.state.borrow_mut();
        state.committed = state.committed.max(zxid.min(state.last_zxid));
    }

    /// Makes all records above `after` void, by appending a truncation; history is never overwritten.
    /// The log's last zxid is `after` when this returns, and durably so when the future resolves.
    /// Records may be appended at once, before that: they become durable after the truncation.
    pub fn truncate(
        &mut self,
        after: Zxid,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        let after = after.min(self.last_zxid());
        let committed = self.shared.state.borrow().committed;
        self.mark(BatchKind::Truncation, after, committed)
    }

    /// Makes all records void and lets history go on after `zxid`, which a snapshot holds.
    pub fn reset(
        &mut self,
        zxid: Zxid,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        self.mark(BatchKind::Reset, zxid, zxid)
    }

    fn mark(
        &self,
        kind: BatchKind,
        last: Zxid,
        committed: Zxid,
    ) -> impl Future<Output = Result<Zxid, StorageError>> + 'static + use<D> {
        let batch = self.shared.new_batch();
        let (_, job) = self.shared.hand_over(batch, kind, last, committed);
        async move { job?.run().await }
    }

    /// Keeps the next segment ready. To be run in the background as long as the log is open; it ends when
    /// the log is dropped or fails.
    pub fn maintenance(&self) -> impl Future<Output = ()> + 'static + use<D> {
        let shared = Rc::clone(&self.shared);
        async move { shared.maintain().await }
    }

    /// The records above `after`, oldest first, as they are durable now. Voided records are left out.
    ///
    /// Fails with [`StorageError::Purged`] when the log starts later.
    pub fn read_from(&self, after: Zxid) -> Result<LogReader<D>, StorageError> {
        LogReader::new(&self.shared, after, Zxid(u64::MAX))
    }

    /// The records in `(after, through]`, oldest first, durable or not: what is still being written is read from
    /// memory. What was voided is left out, and nothing that is handed over later is seen.
    ///
    /// Fails with [`StorageError::Purged`] when the log does not reach back to `after`: the records may be in
    /// a snapshot. Records of the batch that the caller is still filling are not in the log.
    pub fn read_history(&self, after: Zxid, through: Zxid) -> Result<LogReader<D>, StorageError> {
        let mut reader = LogReader::new(&self.shared, after, through)?;
        reader.read_in_flight(&self.shared);
        Ok(reader)
    }

    /// The lowest zxid after which all records that count can be read: what [`StorageError::Purged`] would name.
    pub fn starts_after(&self) -> Zxid {
        starts_after(&self.shared.state.borrow().segments)
    }

    /// Hands every durable record above `after` to `each`, oldest first; memory stays bounded by the
    /// largest batch. Returns how many there were. An error of `each` ends it as
    /// [`StorageError::Refused`].
    pub async fn replay<E: std::fmt::Display>(
        &self,
        after: Zxid,
        mut each: impl FnMut(Zxid, &[u8]) -> Result<(), E>,
    ) -> Result<u64, StorageError> {
        let mut reader = self.read_from(after)?;
        let mut count = 0;
        while let Some(batch) = reader.next_batch().await? {
            for (zxid, payload) in batch {
                each(zxid, payload).map_err(|error| StorageError::Refused {
                    zxid,
                    reason: error.to_string(),
                })?;
                count += 1;
            }
        }
        reader.close().await;
        Ok(count)
    }

    /// Whether new records may be admitted now: the latched failure, or [`StorageError::DiskFull`] while
    /// there is no space for the next segment and the rest of this one is kept for what was already
    /// admitted. The latter goes away by itself when space returns.
    pub fn admits(&self) -> Result<(), StorageError> {
        self.shared.admits()
    }

    /// Whether nothing is in flight and the last batch is not attested yet, or does not say what is committed:
    /// the moment for a seal.
    pub fn needs_seal(&self) -> bool {
        let state = self.shared.state.borrow();
        let may_write = state.latched.is_none() && state.damage.is_none() && !state.is_replaced;
        may_write
            && state.in_flight.is_empty()
            && (!state.sealed || state.committed > state.committed_written)
    }

    /// The damage for which nothing is appended, until a snapshot takes the log's place; see
    /// [`Store::open_as_member`](crate::Store::open_as_member).
    pub fn damage(&self) -> Option<Damage> {
        self.shared.state.borrow().damage.clone()
    }

    /// How many batches are handed over and not yet durable.
    pub fn in_flight(&self) -> usize {
        self.shared.state.borrow().in_flight.len()
    }

    /// The log's last zxid, durable or not.
    pub fn last_zxid(&self) -> Zxid {
        self.shared.state.borrow().last_zxid
    }

    /// The zxid through which the log is durable.
    pub fn durable_through(&self) -> Zxid {
        self.shared.state.borrow().durable_through
    }

    /// How much is durable, and by which generation. To be asked when a write's future has resolved: unlike what
    /// that resolves to, it says of which generation the zxid is.
    pub fn durable(&self) -> Durable {
        let state = self.shared.state.borrow();
        Durable {
            through: state.durable_through,
            generation: state.durable_generation,
        }
    }

    /// The last zxid that is known to be committed, by what was found at the start and what was noted since.
    pub fn committed(&self) -> Zxid {
        self.shared.state.borrow().committed
    }

    /// Bytes of log that recovery would read to get from `after` to the end; an upper bound, by segments.
    pub fn bytes_after(&self, after: Zxid) -> u64 {
        let state = self.shared.state.borrow();
        let first = needed_from(&state.segments, after).unwrap_or(0);
        let full = state.segments.len().saturating_sub(first + 1);
        let before: u64 = state
            .segments
            .iter()
            .skip(first)
            .take(full)
            .map(|s| s.bytes)
            .sum();
        before + state.offset
    }

    /// A copy of the counters and histograms.
    pub fn stats(&self) -> LogStats {
        self.shared.stats.borrow().clone()
    }

    /// Looks at the counters and histograms in place.
    pub fn with_stats<T>(&self, look: impl FnOnce(&LogStats) -> T) -> T {
        look(&self.shared.stats.borrow())
    }

    pub(crate) fn shared(&self) -> &Rc<Shared<D>> {
        &self.shared
    }
}

impl<D: Disk> Drop for TxnLog<D> {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        state.closed = true;
        if let Some(waker) = state.maintenance.take() {
            waker.wake();
        }
    }
}

/// The index of the oldest segment that holds a record above `after`, or `None` when the log starts later.
pub(crate) fn needed_from(segments: &VecDeque<SegmentMeta>, after: Zxid) -> Option<usize> {
    segments.iter().rposition(|segment| {
        segment
            .before
            .is_some_and(|before| before.last_zxid <= after)
    })
}

/// The zxid after which all records that count are there.
pub(crate) fn starts_after(segments: &VecDeque<SegmentMeta>) -> Zxid {
    let before = segments.front().and_then(|segment| segment.before);
    before.map_or(Zxid::ZERO, |before| before.last_zxid)
}

impl<D: Disk> Shared<D> {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            batch_bytes_max: self.options.batch_bytes_max,
            record_bytes_max: self.options.record_bytes_max,
        }
    }

    fn new_batch(&self) -> Batch<D::Buffer> {
        let mut pool = self.pool.borrow_mut();
        // A batch that is still being sent to learners has other owners; leave it for later.
        let free = pool
            .iter_mut()
            .position(|content| Rc::get_mut(content).is_some());
        let mut content = free.map_or_else(
            || Rc::new(Content::new(self.options.batch_bytes_max)),
            |index| pool.swap_remove(index),
        );
        if let Some(content) = Rc::get_mut(&mut content) {
            content.clear();
        }
        Batch::new(content, self.limits())
    }

    fn recycle(&self, batch: SealedBatch<D::Buffer>) {
        let mut pool = self.pool.borrow_mut();
        let normal = batch.content().capacity() <= round_up(self.options.batch_bytes_max);
        if pool.len() < POOL_MAX && normal {
            pool.push(batch.into_content());
        }
    }

    /// Gives `batch` its place and its header. Everything but the disk's part is done here, so the order of
    /// calls is the order of the log.
    fn hand_over(
        self: &Rc<Self>,
        mut batch: Batch<D::Buffer>,
        kind: BatchKind,
        last: Zxid,
        committed: Zxid,
    ) -> (SealedBatch<D::Buffer>, Result<Job<D>, StorageError>) {
        let mut state = self.state.borrow_mut();
        let refused = state.latched.clone().or_else(|| {
            if state.is_replaced {
                return Some(StorageError::Replaced);
            }
            if let Some(damage) = &state.damage {
                return Some(damage.clone().into());
            }
            let first = batch.first_zxid();
            let stale = kind == BatchKind::Records && first <= state.last_zxid;
            stale.then_some(StorageError::OutOfOrder {
                zxid: first,
                last: state.last_zxid,
            })
        });
        if let Some(error) = refused {
            return (batch.into_sealed(), Err(error));
        }
        let stored = batch.content().stored_bytes();
        let (segment, offset) = self.place(&mut state, stored);
        state.committed = state.committed.max(committed);
        let sequence = state.next_sequence;
        let header = batch.content_mut().finish(BatchHeader {
            checksum: 0,
            body_checksum: 0,
            previous: state.previous,
            kind,
            count: 0,
            incarnation: state.run.max(segment.incarnation),
            sequence,
            durable_sequence: state.durable_sequence,
            first_zxid: last,
            last_zxid: last,
            durable_through: state.durable_through,
            committed: state.committed.min(last),
            body_bytes: 0,
            block: u32::try_from(offset / BLOCK_BYTES as u64).expect("segments are bounded"),
        });
        state.next_sequence += 1;
        state.previous = header.checksum;
        state.last_zxid = last;
        // What was committed of a history that a truncation or reset ends is not there any more.
        state.committed = header.committed;
        state.committed_written = header.committed;
        state.sealed = kind == BatchKind::Seal && header.durable_sequence + 1 == sequence;
        state.voids.extend(Void::of(&header));
        let sealed = batch.into_sealed();
        let generation = state.generation;
        state.in_flight.push_back(InFlight {
            batch: sealed.clone(),
            last_zxid: last,
            generation,
            since: self.disk.now(),
            written: false,
            waker: None,
            more_wakers: Vec::new(),
        });
        let write = Write {
            batch: sealed.clone(),
            segment,
            offset,
        };
        let job = Job {
            shared: Rc::clone(self),
            sequence,
            write: Some(write),
            finished: false,
        };
        (sealed, Ok(job))
    }

    /// The place of a batch of `stored` bytes, in the next segment when it does not fit this one.
    fn place(&self, state: &mut State<D>, stored: usize) -> (Rc<Segment<D>>, u64) {
        let stored = stored as u64;
        if state.offset + stored > state.active.bytes {
            let prepared = state.next.take();
            let mut stats = self.stats.borrow_mut();
            stats.rolls += 1;
            if prepared
                .as_ref()
                .is_none_or(|segment| segment.ready().is_none())
            {
                stats.rolls_unprepared += 1;
            }
            let next = prepared
                .unwrap_or_else(|| state.new_segment(&self.dir, self.options.segment_bytes));
            state.segments.push_back(SegmentMeta {
                number: next.number,
                incarnation: next.incarnation,
                bytes: next.bytes,
                path: next.path.clone(),
                before: Some(state.chain()),
            });
            state.active = next;
            state.offset = FIRST_BATCH;
            if let Some(waker) = state.maintenance.take() {
                waker.wake();
            }
        }
        let offset = state.offset;
        state.offset += stored;
        (Rc::clone(&state.active), offset)
    }

    fn admits(&self) -> Result<(), StorageError> {
        let state = self.state.borrow();
        if let Some(error) = &state.latched {
            return Err(error.clone());
        }
        if let Some(damage) = &state.damage {
            return Err(damage.clone().into());
        }
        let left = state.active.bytes.saturating_sub(state.offset);
        match &state.no_space {
            Some(error) if left < self.options.admitted_reserve() => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Ends writing, and says where the log ends; `None` while that is not known.
    pub(crate) fn close(&self) -> Option<CleanEnd> {
        let state = self.state.borrow();
        let is_whole = state.latched.is_none() && state.damage.is_none();
        if !is_whole || !state.in_flight.is_empty() {
            return None;
        }
        let end = CleanEnd {
            sequence: state.durable_sequence,
            checksum: state.previous,
        };
        drop(state);
        self.latch(StorageError::Closed);
        Some(end)
    }

    pub(crate) fn is_latched(&self) -> bool {
        self.state.borrow().latched.is_some()
    }

    /// The latched failure, if any.
    pub(crate) fn failure(&self) -> Option<StorageError> {
        self.state.borrow().latched.clone()
    }

    /// Makes `error` the answer to everything from now on, unless an earlier one already is.
    pub(crate) fn latch(&self, error: StorageError) -> StorageError {
        let mut state = self.state.borrow_mut();
        let first = state.latched.get_or_insert(error).clone();
        state.in_flight.iter_mut().for_each(InFlight::wake);
        if let Some(waker) = state.maintenance.take() {
            waker.wake();
        }
        drop(state);
        self.turn.wake_waiting();
        first
    }

    /// Takes the disk's answer to the write of `sequence`.
    fn written(&self, sequence: u64) {
        let mut state = self.state.borrow_mut();
        let first = state.durable_sequence + 1;
        let index = usize::try_from(sequence - first).expect("in flight is bounded by memory");
        if let Some(entry) = state.in_flight.get_mut(index) {
            entry.written = true;
        }
        while state.in_flight.front().is_some_and(|entry| entry.written) {
            let Some(mut entry) = state.in_flight.pop_front() else {
                break;
            };
            state.durable_sequence += 1;
            state.durable_through = entry.last_zxid;
            state.durable_generation = entry.generation;
            let took = self.disk.now().saturating_sub(entry.since);
            self.stats.borrow_mut().batch_durable(took);
            entry.wake();
        }
    }

    /// Every batch up to this is durable.
    pub(crate) fn durable_sequence(&self) -> u64 {
        self.state.borrow().durable_sequence
    }

    /// Resolves once every batch up to `sequence` is durable.
    pub(crate) async fn durable(&self, sequence: u64) -> Result<Zxid, StorageError> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if let Some(error) = &state.latched {
                return Poll::Ready(Err(error.clone()));
            }
            if state.durable_sequence >= sequence {
                return Poll::Ready(Ok(state.durable_through));
            }
            let index =
                usize::try_from(sequence - state.durable_sequence - 1).unwrap_or(usize::MAX);
            if let Some(entry) = state.in_flight.get_mut(index) {
                entry.wait(context.waker());
            }
            Poll::Pending
        })
        .await
    }
}

impl<D: Disk> State<D> {
    /// The chain as the next batch sees it.
    pub(crate) fn chain(&self) -> Chain {
        Chain {
            sequence: self.next_sequence - 1,
            checksum: self.previous,
            incarnation: self.run.max(self.active.incarnation),
            last_zxid: self.last_zxid,
            committed: self.committed,
        }
    }
}

/// The disk's part of a batch.
struct Write<D: Disk> {
    batch: SealedBatch<D::Buffer>,
    segment: Rc<Segment<D>>,
    offset: u64,
}

/// A write on its way, or a wait for all writes before it.
struct Job<D: Disk> {
    shared: Rc<Shared<D>>,
    sequence: u64,
    write: Option<Write<D>>,
    finished: bool,
}

impl<D: Disk> Job<D> {
    fn wait_for_all(shared: &Rc<Shared<D>>) -> Self {
        let sequence = shared.state.borrow().next_sequence - 1;
        Self {
            shared: Rc::clone(shared),
            sequence,
            write: None,
            finished: true,
        }
    }

    async fn run(mut self) -> Result<Zxid, StorageError> {
        if let Some(write) = self.write.take() {
            let result = self.write(&write).await;
            self.finished = true;
            result?;
            self.shared.recycle(write.batch);
        }
        self.shared.durable(self.sequence).await
    }

    async fn write(&self, write: &Write<D>) -> Result<(), StorageError> {
        let shared = &*self.shared;
        let file = shared.file_of(&write.segment).await?;
        if let Some(error) = shared.failure() {
            return Err(error);
        }
        let content = write.batch.content();
        let started = shared.disk.now();
        let answer = shared
            .disk
            .write_durable_at(&file, write.offset, content.buffer())
            .await;
        let took = shared.disk.now().saturating_sub(started);
        if let Err(error) = answer {
            let path = write.segment.path.clone();
            let error = StorageError::io("write log batch", path, Some(write.offset), error);
            return Err(shared.latch(error));
        }
        shared.stats.borrow_mut().batch_written(
            content.count(),
            content.payload_bytes() as u64,
            content.stored_bytes() as u64,
            took,
        );
        shared.written(self.sequence);
        Ok(())
    }
}

impl<D: Disk> Drop for Job<D> {
    fn drop(&mut self) {
        if !mem::replace(&mut self.finished, true) {
            self.shared.latch(StorageError::Abandoned);
        }
    }
}

impl<D: Disk> std::fmt::Debug for TxnLog<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.borrow();
        f.debug_struct("TxnLog")
            .field("dir", &self.shared.dir)
            .field("last_zxid", &state.last_zxid)
            .field("durable_through", &state.durable_through)
            .field("in_flight", &state.in_flight.len())
            .finish_non_exhaustive()
    }
}
