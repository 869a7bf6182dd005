//! What a place in the log means after a restart: the decision table, and the walk that feeds it.
//!
//! A log is read as a chain of batches. Where the chain cannot be continued, [`decide`] says whether the
//! log simply ends there, whether a write was torn, or whether acknowledged history is damaged. The
//! difference is *attestation*: a batch names the last batch that was durable when it was written. When
//! something that lies further on names the missing batch (or a later one) as durable, that batch had been
//! acknowledged and its loss is damage, which is reported and never cut.
//!
//! Invariants:
//! - Nothing here writes.
//! - Every length is held against the segment's size before it is used.
#![deny(clippy::indexing_slicing)]

use std::{io, path::PathBuf};

use futures_util::future::join_all;
use ringkeeper_proto::Zxid;

use crate::{
    batch::{BatchHeader, BatchKind, FORMAT, HEADER_BYTES, Parsed},
    disk::{BLOCK_BYTES, Disk},
    error::{Damage, DamageKind, StorageError},
    holdings::{DamagedBatch, Holdings, Survey},
    record::Records,
    segment::{FIRST_BATCH, SegmentMeta},
};

/// One window of sequential reading in bytes.
const READ_BYTES: usize = 2 << 20;
/// A window is read in pieces of this size, all at once: one large read at a time leaves a fast device idle.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(READ_BYTES.is_multiple_of(PIECE_BYTES));

/// What the header at a place looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderState {
    /// Zeros: preallocated and never written.
    Zeros,
    /// A whole header from before the segment was recycled or the tail was cut.
    Foreign,
    /// A whole header of this log, or bytes that are no header at all.
    Ours,
}

/// All that a decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What the header looks like.
    pub header: HeaderState,
    /// Whether header and body have their checksums.
    pub whole: bool,
    /// Whether it is the successor of the last good batch, in the place where it was meant to be.
    pub chains: bool,
    /// Whether something further on says that the successor of the last good batch was durable.
    pub attested: bool,
}

/// What to do at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The normal batch: go on.
    Keep,
    /// The log ends here; nothing was being written.
    End,
    /// The log ends here; a write was under way. It is cut; a member of an ensemble may have acknowledged it, and
    /// keeps in mind how far ([`crate::EpochState::doubted_through`]).
    Torn,
    /// Acknowledged history is damaged or missing: report, never cut.
    Rot(DamageKind),
}

/// The decision table. `docs/internals/txn-log.md` explains each row.
pub const fn decide(place: Place) -> Decision {
    let Place {
        header,
        whole,
        chains,
        attested,
    } = place;
    match (header, whole, chains, attested) {
        // @C The normal batch. Whether it is attested does not matter: it is there.
        (HeaderState::Ours, true, true, _) => Decision::Keep,
        // @A Preallocated and never written.
        (HeaderState::Zeros, _, _, false) => Decision::End,
        // @B What the segment held before.
        (HeaderState::Foreign, _, _, false) => Decision::End,
        // @G The write was acknowledged and is not there: lost, or directed elsewhere.
        (HeaderState::Zeros | HeaderState::Foreign, _, _, true) => {
            Decision::Rot(DamageKind::Missing)
        }
        // @D A torn write: nothing later proves that it had finished.
        (HeaderState::Ours, false, _, false) => Decision::Torn,
        // @E The same bytes, but a later batch proves that the write had finished.
        (HeaderState::Ours, false, _, true) => Decision::Rot(DamageKind::Checksum),
        // @H Several batches were in flight, this one made it and the one before did not.
        (HeaderState::Ours, true, false, false) => Decision::Torn,
        // @F The one before it had been durable: lost, or this one is misdirected.
        (HeaderState::Ours, true, false, true) => Decision::Rot(DamageKind::Chain),
    }
}

/// Where the chain stands: the last good batch, or what the manifest says came before the log start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) sequence: u64,
    pub(crate) checksum: u32,
    pub(crate) incarnation: u64,
    pub(crate) last_zxid: Zxid,
    pub(crate) committed: Zxid,
}

impl Chain {
    /// The chain once `header`'s batch counts.
    pub(crate) fn after(header: &BatchHeader) -> Self {
        Self {
            sequence: header.sequence,
            checksum: header.checksum,
            incarnation: header.incarnation,
            last_zxid: header.last_zxid,
            committed: header.committed,
        }
    }

    /// What `header`, the first batch of a segment, says about the batch before it. The zxid is an upper
    /// bound of the records before that still count.
    pub(crate) fn before(header: &BatchHeader) -> Self {
        let last_zxid = match header.kind {
            BatchKind::Records => Zxid(header.first_zxid.0.saturating_sub(1)),
            BatchKind::Seal | BatchKind::Truncation | BatchKind::Reset => header.last_zxid,
        };
        Self {
            sequence: header.sequence.saturating_sub(1),
            checksum: header.previous,
            incarnation: 0,
            last_zxid,
            committed: Zxid::ZERO,
        }
    }
}

/// The last batch of a log that was closed in order; the manifest keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CleanEnd {
    pub(crate) sequence: u64,
    pub(crate) checksum: u32,
}

/// A void: earlier records that no longer count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Void {
    /// The batch that made it; it concerns lower sequences only.
    pub(crate) sequence: u64,
    /// Records above this are void.
    pub(crate) above: Zxid,
}

impl Void {
    /// The void that `header` makes, if it makes one.
    pub(crate) fn of(header: &BatchHeader) -> Option<Self> {
        match header.kind {
            BatchKind::Records | BatchKind::Seal => None,
            BatchKind::Truncation => Some(Self {
                sequence: header.sequence,
                above: header.last_zxid,
            }),
            BatchKind::Reset => Some(Self {
                sequence: header.sequence,
                above: Zxid::ZERO,
            }),
        }
    }
}

/// How a walk ended.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    /// The decision; never [`Decision::Keep`].
    pub(crate) decision: Decision,
    /// The segment in which the log goes on, as an index of the walk's segments.
    pub(crate) index: usize,
    /// Where in it.
    pub(crate) offset: u64,
    /// The segment and the offset that were judged: there, or at the beginning of the next one.
    pub(crate) judged: (usize, u64),
    /// The first zxid that is whole again behind a damaged place.
    pub(crate) resumes_at: Option<Zxid>,
    /// Behind a torn place: the last zxid that was being written, where the headers there tell.
    pub(crate) torn_through: Option<Zxid>,
}

/// Reads segments in order, batch by batch.
pub(crate) struct Walk<D: Disk> {
    disk: D,
    segments: Vec<SegmentMeta>,
    chain: Chain,
    index: usize,
    offset: u64,
    /// Batches up to this were durable, whatever the log itself attests.
    known_durable: u64,
    /// The batch that the walk is at, and its offset in the present segment.
    current: Option<(u64, BatchHeader)>,
    window: Option<Window<D>>,
}

/// Bytes of one segment held in memory.
struct Window<D: Disk> {
    index: usize,
    file: D::File,
    offset: u64,
    bytes: Vec<u8>,
}

impl<D: Disk> Walk<D> {
    /// A walk over `segments`, consecutive and not empty, from the first batch of the first.
    pub(crate) fn new(disk: D, segments: Vec<SegmentMeta>, chain: Chain) -> Self {
        Self {
            disk,
            segments,
            chain,
            index: 0,
            offset: FIRST_BATCH,
            known_durable: 0,
            current: None,
            window: None,
        }
    }

    /// Notes what the manifest attests.
    pub(crate) fn attest(&mut self, durable_sequence: u64) {
        self.known_durable = durable_sequence;
    }

    /// The last good batch.
    pub(crate) fn chain(&self) -> Chain {
        self.chain
    }

    pub(crate) fn segment(&self, index: usize) -> Option<&SegmentMeta> {
        self.segments.get(index)
    }

    /// Goes on to the next good batch, or returns `None` where the chain stops.
    pub(crate) async fn advance(&mut self) -> Result<Option<BatchHeader>, StorageError> {
        // The rest of a segment that a roll left unused is skipped when the next segment goes on.
        for (index, offset) in [(self.index, self.offset), (self.index + 1, FIRST_BATCH)] {
            let Some(header) = self.header_at(index, offset).await? else {
                continue;
            };
            if !self.is_next(index, offset, &header) {
                continue;
            }
            let len = header.stored_bytes();
            let stored = self.bytes_at(index, offset, len).await?;
            if stored.len() < len || !header.matches_body(stored) {
                continue;
            }
            self.index = index;
            self.offset = offset + len as u64;
            self.chain = Chain::after(&header);
            self.current = Some((offset, header));
            return Ok(Some(header));
        }
        Ok(None)
    }

    /// The records of the batch that [`Walk::advance`] went on to.
    pub(crate) async fn current(&mut self) -> Result<Records<'_>, StorageError> {
        let Some((offset, header)) = self.current else {
            return Ok(Records::new(&[]));
        };
        let stored = self
            .bytes_at(self.index, offset, header.stored_bytes())
            .await?;
        let body = stored
            .get(HEADER_BYTES..HEADER_BYTES + header.body_len())
            .unwrap_or_default();
        Ok(Records::new(body))
    }

    /// Starts again from the first segment, before which `chain` stands.
    pub(crate) fn rewind(&mut self, chain: Chain) {
        self.chain = chain;
        self.index = 0;
        self.offset = FIRST_BATCH;
        self.current = None;
    }

    /// Judges the place where the chain stopped. `closed` is where it ended when it was last closed.
    pub(crate) async fn ending(
        &mut self,
        closed: Option<CleanEnd>,
    ) -> Result<Ending, StorageError> {
        let (index, offset) = (self.index, self.offset);
        let here = CleanEnd {
            sequence: self.chain.sequence,
            checksum: self.chain.checksum,
        };
        if closed == Some(here) {
            // Nothing was written since, so nothing behind needs to be looked at.
            return Ok(Ending {
                decision: Decision::End,
                index,
                offset,
                judged: (index, offset),
                resumes_at: None,
                torn_through: None,
            });
        }
        let (attested, resumes_at) = self.attestation(index, offset).await?;
        let known_durable = closed.map_or(0, |end| end.sequence);
        let attested = attested || known_durable.max(self.known_durable) > here.sequence;
        let judged = self.place_of_next(index, offset).await?;
        let place = self.place(judged.0, judged.1, attested).await?;
        let decision = decide(place);
        let torn_through = match decision {
            Decision::Torn => self.torn_through(index, offset).await?,
            _ => None,
        };
        Ok(Ending {
            decision,
            index,
            offset,
            judged,
            resumes_at,
            torn_through,
        })
    }

    /// Where the batch is, or should be, that follows the last good one: at `offset`, unless a roll left the rest of the
    /// segment unused and there is something at the beginning of the next one that may be it.
    async fn place_of_next(
        &mut self,
        index: usize,
        offset: u64,
    ) -> Result<(usize, u64), StorageError> {
        let (here, next) = ((index, offset), (index + 1, FIRST_BATCH));
        if self.place(index, offset, false).await?.header == HeaderState::Ours {
            return Ok(here);
        }
        let lowest = self.incarnation_at(index + 1);
        let follows = self.chain.sequence + 1;
        let block = self.bytes_at(next.0, next.1, BLOCK_BYTES).await?;
        let may_be_it = !block.is_empty()
            && match BatchHeader::read(block) {
                Parsed::Zeros => false,
                Parsed::Garbage | Parsed::NewerFormat(_) => true,
                Parsed::Header(header) => {
                    header.incarnation >= lowest && header.sequence == follows
                }
            };
        Ok(if may_be_it { next } else { here })
    }

    /// The last zxid that the headers behind a torn place name. `None` when what stands behind the last of them, or in
    /// place of any, is no header: then nothing tells how much there was.
    async fn torn_through(
        &mut self,
        index: usize,
        offset: u64,
    ) -> Result<Option<Zxid>, StorageError> {
        let chain = self.chain;
        let (mut through, mut end) = (chain.last_zxid, (index, offset));
        for index in index..self.segments.len() {
            let mut at = if index == self.index {
                offset
            } else {
                FIRST_BATCH
            };
            while at < self.bytes_of(index) {
                if let Some(header) = self.header_at(index, at).await?
                    && header.sequence > chain.sequence
                    && header.incarnation >= self.incarnation_at(index)
                {
                    through = through.max(header.last_zxid);
                    end = (index, at + header.stored_bytes() as u64);
                }
                at += BLOCK_BYTES as u64;
            }
        }
        for (index, at) in [end, (end.0 + 1, FIRST_BATCH)] {
            if at < self.bytes_of(index)
                && self.place(index, at, false).await?.header == HeaderState::Ours
            {
                return Ok(None);
            }
        }
        Ok(Some(through))
    }

    /// The damage that a [`Decision::Rot`] at `ending` means.
    pub(crate) fn damage(&self, ending: &Ending, kind: DamageKind) -> Damage {
        let (index, offset) = ending.judged;
        Damage {
            file: self
                .segment(index)
                .map_or_else(PathBuf::new, |meta| meta.path.clone()),
            offset,
            kind,
            after: self.chain.last_zxid,
            before: ending.resumes_at,
        }
    }

    /// Looks for all that is whole behind the damaged place at which the chain stopped, and for what makes earlier
    /// records void. Ends behind the last of it.
    /// `is_missing`: a segment cannot be read at all, so something is lost even where nothing further on shows it.
    pub(crate) async fn survey(
        &mut self,
        damage: Damage,
        closed: Option<CleanEnd>,
        is_missing: bool,
    ) -> Result<(Holdings, Vec<Void>), StorageError> {
        let mut voids = Vec::new();
        let mut survey = Survey::behind(self.chain);
        let (mut end_index, mut end_offset) = (self.index, self.offset);
        for index in self.index..self.segments.len() {
            let mut at = if index == self.index {
                self.offset
            } else {
                FIRST_BATCH
            };
            while at < self.bytes_of(index) {
                let found = self.header_at(index, at).await?;
                let of_segment = self.segment(index).map_or(0, |meta| meta.incarnation);
                let Some(header) = found
                    .filter(|header| survey.counts(header) && header.incarnation >= of_segment)
                else {
                    at += BLOCK_BYTES as u64;
                    continue;
                };
                let len = header.stored_bytes();
                let is_whole = header.matches_body(self.bytes_at(index, at, len).await?);
                let damaged = (!is_whole).then(|| DamagedBatch {
                    file: self
                        .segment(index)
                        .map_or_else(PathBuf::new, |meta| meta.path.clone()),
                    offset: at,
                    header,
                });
                survey.found(&header, damaged);
                voids.extend(Void::of(&header));
                at += len as u64;
                (end_index, end_offset) = (index, at);
            }
        }
        self.chain = survey.chain();
        (self.index, self.offset) = (end_index, end_offset);
        self.current = None;
        let ending = self.ending(closed).await?;
        let is_rot = matches!(ending.decision, Decision::Rot(_));
        let has_lost_more = is_rot || is_missing && survey.has_no_gap();
        let may_have_had_more = ending.decision == Decision::Torn;
        let holdings = survey.finish(damage, has_lost_more, may_have_had_more);
        Ok((holdings, voids))
    }

    async fn place(
        &mut self,
        index: usize,
        offset: u64,
        attested: bool,
    ) -> Result<Place, StorageError> {
        let block = self.bytes_at(index, offset, BLOCK_BYTES).await?;
        let parsed = if block.is_empty() {
            Parsed::Zeros
        } else {
            BatchHeader::read(block)
        };
        let (header, whole, chains) = match parsed {
            Parsed::Zeros => (HeaderState::Zeros, false, false),
            Parsed::Garbage => (HeaderState::Ours, false, false),
            // Never cut what a newer release wrote and this one cannot judge.
            Parsed::NewerFormat(found) => {
                let file = self
                    .segment(index)
                    .map_or_else(PathBuf::new, |meta| meta.path.clone());
                return Err(StorageError::NewerFormat {
                    file,
                    found,
                    supported: FORMAT,
                });
            }
            Parsed::Header(header) if header.incarnation < self.incarnation_at(index) => {
                (HeaderState::Foreign, false, false)
            }
            Parsed::Header(header) => {
                let chains = self.is_next(index, offset, &header);
                let fits = self.fits(index, offset, &header);
                let len = if fits { header.stored_bytes() } else { 0 };
                let stored = self.bytes_at(index, offset, len).await?;
                (
                    HeaderState::Ours,
                    fits && header.matches_body(stored),
                    chains,
                )
            }
        };
        Ok(Place {
            header,
            whole,
            chains,
            attested,
        })
    }

    /// Looks behind `offset` for anything that proves the successor of the last good batch durable, and
    /// for the first zxid that is whole again.
    async fn attestation(
        &mut self,
        index: usize,
        offset: u64,
    ) -> Result<(bool, Option<Zxid>), StorageError> {
        let last_good = self.chain.sequence;
        let mut attested = false;
        let mut resumes_at = None;
        for index in index..self.segments.len() {
            let mut at = if index == self.index {
                offset
            } else {
                FIRST_BATCH
            };
            while at < self.bytes_of(index) {
                if let Some(header) = self.header_at(index, at).await? {
                    let later = header.sequence > last_good
                        && header.incarnation >= self.incarnation_at(index);
                    attested |= later && header.durable_sequence > last_good;
                    // The successor itself is what is damaged here.
                    let beyond = later && header.sequence > last_good + 1;
                    if beyond && header.count > 0 && resumes_at.is_none() {
                        resumes_at = Some(header.first_zxid);
                    }
                }
                at += BLOCK_BYTES as u64;
            }
        }
        Ok((attested, resumes_at))
    }

    /// The lowest incarnation that counts in a segment.
    fn incarnation_at(&self, index: usize) -> u64 {
        let chain = self.chain.incarnation;
        self.segment(index)
            .map_or(chain, |meta| meta.incarnation.max(chain))
    }

    /// A whole header at a place where it was meant to be and which its batch fits.
    async fn header_at(
        &mut self,
        index: usize,
        offset: u64,
    ) -> Result<Option<BatchHeader>, StorageError> {
        let block = self.bytes_at(index, offset, BLOCK_BYTES).await?;
        let Some(header) = BatchHeader::read_whole(block) else {
            return Ok(None);
        };
        let meant = u64::from(header.block) * BLOCK_BYTES as u64 == offset;
        Ok((meant && self.fits(index, offset, &header)).then_some(header))
    }

    fn fits(&self, index: usize, offset: u64, header: &BatchHeader) -> bool {
        offset.saturating_add(header.stored_bytes() as u64) <= self.bytes_of(index)
    }

    fn bytes_of(&self, index: usize) -> u64 {
        self.segment(index).map_or(0, |meta| meta.bytes)
    }

    fn is_next(&self, index: usize, offset: u64, header: &BatchHeader) -> bool {
        let meant = u64::from(header.block) * BLOCK_BYTES as u64 == offset;
        let chains = header.sequence.checked_sub(1) == Some(self.chain.sequence)
            && header.previous == self.chain.checksum;
        meant && chains && header.incarnation >= self.incarnation_at(index)
    }

    /// Up to `len` bytes of a segment; empty past its end.
    async fn bytes_at(
        &mut self,
        index: usize,
        offset: u64,
        len: usize,
    ) -> Result<&[u8], StorageError> {
        let segment_bytes = self.bytes_of(index);
        let end = segment_bytes.min(offset.saturating_add(len as u64));
        let Some(meta) = self.segments.get(index).filter(|_| offset < end) else {
            return Ok(&[]);
        };
        if self
            .window
            .as_ref()
            .is_none_or(|window| window.index != index)
        {
            let file =
                self.disk.open(&meta.path).await.map_err(|error| {
                    StorageError::io("open log segment", &meta.path, None, error)
                })?;
            let old = self.window.take();
            let mut bytes = Vec::new();
            if let Some(old) = old {
                bytes = old.bytes;
                bytes.clear();
                self.disk.close(old.file).await;
            }
            self.window = Some(Window {
                index,
                file,
                offset: 0,
                bytes,
            });
        }
        let Some(window) = self.window.as_mut() else {
            return Ok(&[]);
        };
        if !window.covers(offset, end) {
            // A batch is needed in one piece, so a window begins where it is asked for.
            let want = (segment_bytes - offset).min(len.max(READ_BYTES) as u64);
            let want = usize::try_from(want).unwrap_or(READ_BYTES);
            let read = window.fill(&self.disk, offset, want).await;
            read.map_err(|error| {
                StorageError::io("read log segment", &meta.path, Some(offset), error)
            })?;
        }
        Ok(window.slice(offset, end))
    }

    /// Closes what is open.
    pub(crate) async fn close(mut self) {
        if let Some(window) = self.window.take() {
            self.disk.close(window.file).await;
        }
    }
}

impl<D: Disk> Window<D> {
    /// Moves the window to `offset` and reads `want` bytes, or what there is of them.
    async fn fill(&mut self, disk: &D, offset: u64, want: usize) -> io::Result<()> {
        self.bytes.clear();
        self.offset = offset;
        let pieces = (0..want).step_by(PIECE_BYTES).map(|at| {
            let len = PIECE_BYTES.min(want - at);
            let read = disk.read_at(&self.file, offset + at as u64, len);
            async move { read.await.map(|read| (len, read)) }
        });
        for piece in join_all(pieces).await {
            let (len, read) = piece?;
            self.bytes.extend_from_slice(&read);
            if read.len() < len {
                break;
            }
        }
        Ok(())
    }

    fn covers(&self, from: u64, to: u64) -> bool {
        let held = self.bytes.len() as u64;
        held > 0 && self.offset <= from && to <= self.offset + held
    }

    /// The bytes `from..to`, or those of them that are there.
    fn slice(&self, from: u64, to: u64) -> &[u8] {
        let bytes = &self.bytes;
        let start = usize::try_from(from.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let end = usize::try_from(to.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        bytes.get(start..end.min(bytes.len())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination, with the row of `docs/internals/txn-log.md` that it belongs to.
    #[test]
    fn decision_table_is_complete() {
        let mut seen = std::collections::BTreeMap::new();
        for header in [HeaderState::Zeros, HeaderState::Foreign, HeaderState::Ours] {
            for bits in 0..8 {
                let (whole, chains, attested) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                let place = Place {
                    header,
                    whole,
                    chains,
                    attested,
                };
                let (row, expect) = match (header, whole && chains, whole, attested) {
                    (HeaderState::Ours, true, _, _) => ('C', Decision::Keep),
                    (HeaderState::Ours, _, false, false) => ('D', Decision::Torn),
                    (HeaderState::Ours, _, false, true) => {
                        ('E', Decision::Rot(DamageKind::Checksum))
                    }
                    (HeaderState::Ours, _, true, true) => ('F', Decision::Rot(DamageKind::Chain)),
                    (HeaderState::Ours, _, true, false) => ('H', Decision::Torn),
                    (HeaderState::Zeros, _, _, false) => ('A', Decision::End),
                    (HeaderState::Foreign, _, _, false) => ('B', Decision::End),
                    (_, _, _, true) => ('G', Decision::Rot(DamageKind::Missing)),
                };
                assert_eq!(decide(place), expect, "row @{row}: {place:?}");
                *seen.entry(row).or_insert(0) += 1;
            }
        }
        let rows: String = seen.keys().collect();
        assert_eq!(
            (rows.as_str(), seen.values().sum::<i32>()),
            ("ABCDEFGH", 24)
        );
        // What must never happen: attested history cut, or a batch kept that does not chain.
        for header in [HeaderState::Zeros, HeaderState::Foreign, HeaderState::Ours] {
            for bits in 0..4 {
                let (whole, chains) = (bits & 1 != 0, bits & 2 != 0);
                let decision = decide(Place {
                    header,
                    whole,
                    chains,
                    attested: true,
                });
                assert!(!matches!(decision, Decision::End | Decision::Torn));
            }
        }
    }
}
