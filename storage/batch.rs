//! Batches: what one durable write carries, a header and whole records, padded with zeros to blocks.
//!
//! ```text
//!   0 magic            4  header checksum    8 body checksum   12 previous checksum
//!  16 format  18 kind  19 flags (0)         20 record count
//!  24 incarnation                           32 sequence
//!  40 durable sequence                      48 first zxid
//!  56 last zxid                             64 durable through
//!  72 committed                             80 body bytes      84 block in the segment
//!  88 body: framed records ... zeros to the end of the block
//! ```
//!
//! All numbers are big-endian. The header checksum is CRC32C over bytes 4+4.. of the header. The body
//! checksum is CRC32C over the records' frames, each of which carries its payload's checksum: so every
//! byte but the padding is covered, and no payload is summed twice.
//!
//! Invariants of a written log, for batches `a` and then `b`:
//! - `b.sequence == a.sequence + 1`, `b.previous == a.header_checksum`, `b.incarnation >= a.incarnation`.
//! - `b.durable_sequence <= a.sequence`: every batch up to `durable_sequence` was on stable storage when
//!   `b` was written, so a later loss of one of them is damage and not a torn write.
//! - `committed <= last_zxid` and `durable_through <= last_zxid` at the time of writing.

use std::{fmt, mem::size_of, rc::Rc};

use ringkeeper_proto::Zxid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U32, U64},
};

use crate::{
    disk::{BLOCK_BYTES, DiskBuffer, round_up},
    error::StorageError,
    record::{FRAME_BYTES, Frame, Records},
};

/// `RKBT`.
const MAGIC: u32 = 0x524B_4254;
/// The version of this layout.
pub(crate) const FORMAT: u16 = 1;
const CHECKSUM_FROM: usize = 8;

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// Carries records.
    Records,
    /// Carries nothing: attests what came before.
    Seal,
    /// Every earlier record above `last_zxid` is void.
    Truncation,
    /// Every earlier record is void; history goes on after `last_zxid` (a snapshot holds what is below).
    Reset,
}

impl BatchKind {
    const fn code(self) -> u8 {
        match self {
            Self::Records => 1,
            Self::Seal => 2,
            Self::Truncation => 3,
            Self::Reset => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Records,
            2 => Self::Seal,
            3 => Self::Truncation,
            4 => Self::Reset,
            _ => return None,
        })
    }
}

/// The header as stored.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    header_checksum: U32,
    body_checksum: U32,
    previous: U32,
    format: U16,
    kind: u8,
    flags: u8,
    count: U32,
    incarnation: U64,
    sequence: U64,
    durable_sequence: U64,
    first_zxid: U64,
    last_zxid: U64,
    durable_through: U64,
    committed: U64,
    body_bytes: U32,
    block: U32,
}

/// Bytes of a batch's header.
pub const HEADER_BYTES: usize = size_of::<RawHeader>();
const _: () = assert!(HEADER_BYTES == 88);
const _: () = assert!(HEADER_BYTES < BLOCK_BYTES);

/// A batch's header, as meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// This header's checksum; the next batch repeats it.
    pub checksum: u32,
    /// CRC32C over the records' frames.
    pub body_checksum: u32,
    /// The checksum of the batch before.
    pub previous: u32,
    /// What the batch is for.
    pub kind: BatchKind,
    /// How many records it carries.
    pub count: u32,
    /// Which use of the log wrote it; grows with each start and each prepared segment.
    pub incarnation: u64,
    /// Its number; grows by one.
    pub sequence: u64,
    /// Every batch up to this sequence was durable when this one was written.
    pub durable_sequence: u64,
    /// The zxid of its first record; `last_zxid` when it has none.
    pub first_zxid: Zxid,
    /// The log's last zxid once this batch counts.
    pub last_zxid: Zxid,
    /// The last zxid known durable when it was written.
    pub durable_through: Zxid,
    /// The last zxid known committed when it was written.
    pub committed: Zxid,
    /// Bytes of its body.
    pub body_bytes: u32,
    /// The block of the segment where it was meant to be.
    pub block: u32,
}

impl BatchHeader {
    /// Bytes that the batch takes on disk.
    pub fn stored_bytes(&self) -> usize {
        round_up(HEADER_BYTES + self.body_len())
    }

    pub(crate) fn body_len(&self) -> usize {
        usize::try_from(self.body_bytes).expect("32 bits fit the address space")
    }

    /// Fills in the checksum and returns the stored form.
    fn seal(&mut self) -> RawHeader {
        let mut raw = RawHeader {
            magic: U32::new(MAGIC),
            header_checksum: U32::ZERO,
            body_checksum: U32::new(self.body_checksum),
            previous: U32::new(self.previous),
            format: U16::new(FORMAT),
            kind: self.kind.code(),
            flags: 0,
            count: U32::new(self.count),
            incarnation: U64::new(self.incarnation),
            sequence: U64::new(self.sequence),
            durable_sequence: U64::new(self.durable_sequence),
            first_zxid: U64::new(self.first_zxid.0),
            last_zxid: U64::new(self.last_zxid.0),
            durable_through: U64::new(self.durable_through.0),
            committed: U64::new(self.committed.0),
            body_bytes: U32::new(self.body_bytes),
            block: U32::new(self.block),
        };
        self.checksum = raw.digest();
        raw.header_checksum = U32::new(self.checksum);
        raw
    }

    /// Reads the header at the start of `block`. Trusts nothing but the checksum; the length it names
    /// still has to be held against the segment's size.
    pub(crate) fn read(block: &[u8]) -> Parsed {
        let Ok((raw, _)) = RawHeader::read_from_prefix(block) else {
            return Parsed::Garbage;
        };
        if raw.magic.get() != MAGIC || raw.header_checksum.get() != raw.digest() {
            let zeros = block.iter().all(|byte| *byte == 0);
            return if zeros {
                Parsed::Zeros
            } else {
                Parsed::Garbage
            };
        }
        let (FORMAT, Some(kind)) = (raw.format.get(), BatchKind::from_code(raw.kind)) else {
            return Parsed::NewerFormat(raw.format.get());
        };
        Parsed::Header(Self {
            checksum: raw.header_checksum.get(),
            body_checksum: raw.body_checksum.get(),
            previous: raw.previous.get(),
            kind,
            count: raw.count.get(),
            incarnation: raw.incarnation.get(),
            sequence: raw.sequence.get(),
            durable_sequence: raw.durable_sequence.get(),
            first_zxid: Zxid(raw.first_zxid.get()),
            last_zxid: Zxid(raw.last_zxid.get()),
            durable_through: Zxid(raw.durable_through.get()),
            committed: Zxid(raw.committed.get()),
            body_bytes: raw.body_bytes.get(),
            block: raw.block.get(),
        })
    }

    /// As [`BatchHeader::read`] where only a whole header counts; does not look at the rest of the block.
    pub(crate) fn read_whole(block: &[u8]) -> Option<Self> {
        match Self::read(block.get(..HEADER_BYTES)?) {
            Parsed::Header(header) => Some(header),
            Parsed::Zeros | Parsed::Garbage | Parsed::NewerFormat(_) => None,
        }
    }

    /// Whether `stored` (the batch from its first byte) holds exactly the body that the header promises.
    pub(crate) fn matches_body(&self, stored: &[u8]) -> bool {
        let Some(body) = stored.get(HEADER_BYTES..HEADER_BYTES + self.body_len()) else {
            return false;
        };
        let mut records = Records::new(body);
        let mut sum = 0;
        let mut count = 0_u32;
        let mut first = None;
        let mut last = Zxid::ZERO;
        while let Some((frame, zxid, _)) = records.next_framed() {
            if zxid <= last {
                return false;
            }
            sum = crc32c::crc32c_append(sum, frame.as_bytes());
            count = count.saturating_add(1);
            first.get_or_insert(zxid);
            last = zxid;
        }
        let zxids = first.is_none_or(|first| (first, last) == (self.first_zxid, self.last_zxid));
        let kind = (self.kind == BatchKind::Records) == (count > 0);
        !records.is_broken() && sum == self.body_checksum && count == self.count && zxids && kind
    }
}

impl RawHeader {
    fn digest(&self) -> u32 {
        crc32c::crc32c(self.as_bytes().get(CHECKSUM_FROM..).unwrap_or_default())
    }
}

/// What the first block of a place in the log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Never written.
    Zeros,
    /// No header whose checksum holds.
    Garbage,
    /// A header whose checksum holds but which this release does not know.
    NewerFormat(u16),
    /// A header.
    Header(BatchHeader),
}

/// What a batch may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    pub(crate) batch_bytes_max: usize,
    pub(crate) record_bytes_max: usize,
}

/// A batch's memory and what has been put into it.
#[derive(Debug)]
pub(crate) struct Content<B> {
    buffer: B,
    /// Header and body so far.
    used: usize,
    count: u32,
    first_zxid: Zxid,
    last_zxid: Zxid,
    /// The frames once more, to be summed in one go: a call for each would cost as much as its payload's.
    frames: Vec<Frame>,
    payload_bytes: usize,
}

impl<B: DiskBuffer> Content<B> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            buffer: B::with_capacity(round_up(capacity)),
            used: HEADER_BYTES,
            count: 0,
            first_zxid: Zxid::ZERO,
            last_zxid: Zxid::ZERO,
            frames: Vec::new(),
            payload_bytes: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.buffer.set_len(self.buffer.capacity());
        self.used = HEADER_BYTES;
        self.count = 0;
        self.first_zxid = Zxid::ZERO;
        self.last_zxid = Zxid::ZERO;
        self.frames.clear();
        self.payload_bytes = 0;
    }

    pub(crate) fn buffer(&self) -> &B {
        &self.buffer
    }

    /// Bytes on disk once finished.
    pub(crate) fn stored_bytes(&self) -> usize {
        round_up(self.used)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    pub(crate) fn count(&self) -> u64 {
        u64::from(self.count)
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Makes room for `len` more bytes, moving what is there when the buffer is too small.
    fn reserve(&mut self, len: usize) {
        let needed = self.used + len;
        if needed <= self.buffer.capacity() {
            return;
        }
        let mut larger = B::with_capacity(round_up(needed.max(self.buffer.capacity() * 2)));
        let used = self.used;
        larger.bytes_mut()[..used].copy_from_slice(&self.buffer.bytes()[..used]);
        self.buffer = larger;
    }

    /// Writes the header, zeroes the padding and cuts the buffer to whole blocks. The caller has set
    /// everything but the fields that the content knows.
    pub(crate) fn finish(&mut self, mut header: BatchHeader) -> BatchHeader {
        header.body_checksum = crc32c::crc32c(self.frames.as_bytes());
        header.count = self.count;
        header.body_bytes =
            u32::try_from(self.used - HEADER_BYTES).expect("a batch fits a segment");
        if self.count > 0 {
            header.first_zxid = self.first_zxid;
            header.last_zxid = self.last_zxid;
        }
        let raw = header.seal();
        let (used, stored) = (self.used, self.stored_bytes());
        self.buffer.set_len(stored);
        let bytes = self.buffer.bytes_mut();
        bytes[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
        bytes[used..stored].fill(0);
        header
    }
}

/// Records on their way to one durable write.
///
/// Filled in place: the bytes that the closure of [`Batch::append`] writes are the bytes that go to disk.
pub struct Batch<B> {
    content: Rc<Content<B>>,
    limits: BatchLimits,
}

impl<B: DiskBuffer> Batch<B> {
    /// Wraps `content`, which nobody else holds.
    pub(crate) fn new(content: Rc<Content<B>>, limits: BatchLimits) -> Self {
        Self { content, limits }
    }

    /// Adds a record of exactly `len` bytes, which `fill` writes in place.
    ///
    /// Fails, and adds nothing, when `len` exceeds the record maximum or `zxid` does not come after the
    /// batch's last one. Does not check [`Batch::has_room`]: a batch over its target still works, and is
    /// one larger write.
    pub fn append(
        &mut self,
        zxid: Zxid,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), StorageError> {
        let max = self.limits.record_bytes_max;
        if len > max {
            return Err(StorageError::RecordTooLarge { len, max });
        }
        let content = unique(&mut self.content);
        if zxid <= content.last_zxid {
            return Err(StorageError::OutOfOrder {
                zxid,
                last: content.last_zxid,
            });
        }
        content.reserve(FRAME_BYTES + len);
        let start = content.used;
        let slot = &mut content.buffer.bytes_mut()[start..start + FRAME_BYTES + len];
        fill(&mut slot[FRAME_BYTES..]);
        content.frames.push(Frame::put(zxid, slot));
        content.used += FRAME_BYTES + len;
        content.payload_bytes += len;
        if content.count == 0 {
            content.first_zxid = zxid;
        }
        content.count += 1;
        content.last_zxid = zxid;
        Ok(())
    }

    /// Whether it carries nothing.
    pub fn is_empty(&self) -> bool {
        self.content.count == 0
    }

    /// Bytes so far, header and framing included, padding not.
    pub fn len(&self) -> usize {
        self.content.used
    }

    /// How many records it carries.
    pub fn record_count(&self) -> usize {
        usize::try_from(self.content.count).expect("32 bits fit the address space")
    }

    /// The zxid of its last record, or zero.
    pub fn last_zxid(&self) -> Zxid {
        self.content.last_zxid
    }

    /// Whether a record of `len` bytes keeps it within the batch maximum; an empty batch takes any record.
    pub fn has_room(&self, len: usize) -> bool {
        self.is_empty() || self.content.used + FRAME_BYTES + len <= self.limits.batch_bytes_max
    }

    /// The records so far, for example to send to learners from the same memory.
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.content.buffer.bytes()[HEADER_BYTES..self.content.used])
    }

    pub(crate) fn first_zxid(&self) -> Zxid {
        self.content.first_zxid
    }

    pub(crate) fn content(&self) -> &Content<B> {
        &self.content
    }

    pub(crate) fn content_mut(&mut self) -> &mut Content<B> {
        unique(&mut self.content)
    }

    pub(crate) fn into_sealed(self) -> SealedBatch<B> {
        SealedBatch(self.content)
    }
}

fn unique<B>(content: &mut Rc<Content<B>>) -> &mut Content<B> {
    Rc::get_mut(content).expect("a batch that is being filled has one owner")
}

impl<B> fmt::Debug for Batch<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("records", &self.content.count)
            .field("bytes", &self.content.used)
            .field("last_zxid", &self.content.last_zxid)
            .finish()
    }
}

/// A batch that is being written or has been: its bytes no longer change, and may be shared.
#[derive(Debug)]
pub struct SealedBatch<B>(Rc<Content<B>>);

impl<B> Clone for SealedBatch<B> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<B: DiskBuffer> SealedBatch<B> {
    /// Its records, in order.
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.0.buffer.bytes()[HEADER_BYTES..self.0.used])
    }

    /// The zxid of its last record, or zero.
    pub fn last_zxid(&self) -> Zxid {
        self.0.last_zxid
    }

    pub(crate) fn content(&self) -> &Content<B> {
        &self.0
    }

    pub(crate) fn into_content(self) -> Rc<Content<B>> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        batch_bytes_max: 8192,
        record_bytes_max: 20_000,
    };

    fn blank() -> BatchHeader {
        BatchHeader {
            checksum: 0,
            body_checksum: 0,
            previous: 0xDEAD_BEEF,
            kind: BatchKind::Records,
            count: 0,
            incarnation: 3,
            sequence: 9,
            durable_sequence: 8,
            first_zxid: Zxid::ZERO,
            last_zxid: Zxid::ZERO,
            durable_through: Zxid(1),
            committed: Zxid(1),
            body_bytes: 0,
            block: 1,
        }
    }

    fn batch_of(records: &[(u64, usize)]) -> (BatchHeader, Vec<u8>) {
        let mut batch = Batch::new(Rc::new(Content::<Vec<u8>>::new(4096)), LIMITS);
        for (zxid, len) in records {
            batch
                .append(Zxid(*zxid), *len, |bytes| bytes.fill(0xAB))
                .expect("append");
        }
        let header = batch.content_mut().finish(blank());
        (header, batch.content().buffer().bytes().to_vec())
    }

    #[test]
    fn round_trip_with_growth() {
        let (header, stored) = batch_of(&[(5, 100), (6, 15_000), (9, 0)]);
        assert_eq!(stored.len(), header.stored_bytes());
        assert_eq!(BatchHeader::read(&stored), Parsed::Header(header));
        assert!(header.matches_body(&stored));
        assert_eq!(
            (header.first_zxid, header.last_zxid, header.count),
            (Zxid(5), Zxid(9), 3)
        );
    }

    #[test]
    fn every_flipped_bit_but_padding_is_noticed() {
        let (header, stored) = batch_of(&[(5, 60), (6, 0), (7, 33)]);
        let covered = HEADER_BYTES + header.body_len();
        for bit in 0..covered * 8 {
            let mut bad = stored.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let good = match BatchHeader::read(&bad) {
                Parsed::Header(header) => header.matches_body(&bad),
                _ => false,
            };
            assert!(!good, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn limits_and_order_are_kept() {
        let mut batch = Batch::new(Rc::new(Content::<Vec<u8>>::new(4096)), LIMITS);
        assert!(batch.has_room(20_000));
        batch
            .append(Zxid(5), 8000, |bytes| bytes.fill(1))
            .expect("append");
        assert!(!batch.has_room(200));
        assert!(matches!(
            batch.append(Zxid(5), 1, |_| ()),
            Err(StorageError::OutOfOrder { .. })
        ));
        assert!(matches!(
            batch.append(Zxid(6), 20_001, |_| ()),
            Err(StorageError::RecordTooLarge { .. })
        ));
        assert_eq!((batch.record_count(), batch.last_zxid()), (1, Zxid(5)));
    }
}
