//! Segments: the files that the log is made of, their names and their first block.
//!
//! ```text
//!  0 magic  4 header checksum  8 format  10 zeros  16 number  24 incarnation  32 store  40 bytes
//! ```
//!
//! A segment is `log-NUMBER` in the log directory (16 hex digits). It is filled with zeros, or holds what
//! it held before it was recycled; its first block is written anew before it gets its name, so a file with
//! the name has a good first block, and everything in it from before carries a lower incarnation.
//! Files called `spare-NUMBER` are of the right size and have no content that counts.
//!
//! Invariants:
//! - Numbers grow by one and are never used twice.
//! - Incarnations grow with the number.

use std::{
    cell::{Cell, RefCell},
    mem::size_of,
    path::{Path, PathBuf},
    rc::Rc,
    task::Waker,
};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U32, U64},
};

use crate::{
    disk::{BLOCK_BYTES, Disk, DiskBuffer, Entry},
    recovery::Chain,
};

/// `RKSG`.
const MAGIC: u32 = 0x524B_5347;
const FORMAT: u16 = 1;
const CHECKSUM_FROM: usize = 8;
pub(crate) const LOG_PREFIX: &str = "log-";
pub(crate) const SPARE_PREFIX: &str = "spare-";

/// The first batch's place.
pub(crate) const FIRST_BATCH: u64 = BLOCK_BYTES as u64;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    header_checksum: U32,
    format: U16,
    reserved: [u8; 6],
    number: U64,
    incarnation: U64,
    store: U64,
    bytes: U64,
}

/// Bytes of the header; the rest of its block is zeros.
pub(crate) const HEADER_LEN: usize = size_of::<RawHeader>();
const _: () = assert!(HEADER_LEN == 48);

/// A segment's first block, as meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    pub(crate) incarnation: u64,
    /// The store that it belongs to.
    pub(crate) store: u64,
    pub(crate) bytes: u64,
}

impl SegmentHeader {
    /// The block to write.
    pub(crate) fn block<B: DiskBuffer>(&self) -> B {
        let mut raw = RawHeader {
            magic: U32::new(MAGIC),
            header_checksum: U32::ZERO,
            format: U16::new(FORMAT),
            reserved: [0; 6],
            number: U64::new(self.number),
            incarnation: U64::new(self.incarnation),
            store: U64::new(self.store),
            bytes: U64::new(self.bytes),
        };
        raw.header_checksum = U32::new(raw.digest());
        let mut buffer = B::with_capacity(BLOCK_BYTES);
        let bytes = buffer.bytes_mut();
        bytes.fill(0);
        bytes[..size_of::<RawHeader>()].copy_from_slice(raw.as_bytes());
        buffer
    }

    /// Reads a first block; `None` when it is not one.
    pub(crate) fn read(block: &[u8]) -> Option<Self> {
        let (raw, _) = RawHeader::read_from_prefix(block).ok()?;
        let known = raw.magic.get() == MAGIC && raw.format.get() == FORMAT;
        (known && raw.header_checksum.get() == raw.digest()).then(|| Self {
            number: raw.number.get(),
            incarnation: raw.incarnation.get(),
            store: raw.store.get(),
            bytes: raw.bytes.get(),
        })
    }
}

impl RawHeader {
    fn digest(&self) -> u32 {
        crc32c::crc32c(self.as_bytes().get(CHECKSUM_FROM..).unwrap_or_default())
    }
}

/// The path of segment `number`.
pub(crate) fn log_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{LOG_PREFIX}{number:016x}"))
}

/// The path of a spare file.
pub(crate) fn spare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{SPARE_PREFIX}{number:016x}"))
}

/// The segments and spares among a directory's entries.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Segment numbers and file lengths, ascending.
    pub(crate) logs: Vec<(u64, u64)>,
    /// Spare numbers and file lengths, ascending.
    pub(crate) spares: Vec<(u64, u64)>,
}

impl Listing {
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let numbered = |prefix: &str| {
            let mut found: Vec<_> = entries
                .iter()
                .filter_map(|entry| {
                    let digits = entry.name.strip_prefix(prefix)?;
                    let number = u64::from_str_radix(digits, 16).ok()?;
                    (digits.len() == 16 && !entry.is_dir).then_some((number, entry.bytes))
                })
                .collect();
            found.sort_unstable();
            found
        };
        Self {
            logs: numbered(LOG_PREFIX),
            spares: numbered(SPARE_PREFIX),
        }
    }
}

/// A segment that the log knows about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMeta {
    pub(crate) number: u64,
    pub(crate) incarnation: u64,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
    /// What came before its first batch; no earlier record that still counts is above its zxid. `None` when
    /// it has no batch.
    pub(crate) before: Option<Chain>,
}

/// A segment that is written, or made ready for it.
pub(crate) struct Segment<D: Disk> {
    pub(crate) number: u64,
    pub(crate) incarnation: u64,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
    /// The file, once it is ready.
    pub(crate) file: RefCell<Option<D::File>>,
}

impl<D: Disk> Segment<D> {
    pub(crate) fn new(dir: &Path, number: u64, incarnation: u64, bytes: u64) -> Rc<Self> {
        let path = log_path(dir, number);
        Rc::new(Self {
            number,
            incarnation,
            bytes,
            path,
            file: RefCell::new(None),
        })
    }

    pub(crate) fn ready(&self) -> Option<D::File> {
        self.file.borrow().clone()
    }
}

/// Whose turn it is to make segments ready.
///
/// One at a time and in order of their numbers: a name that is durable before its predecessor's would
/// leave a gap after a crash, which looks like a lost segment.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    taken: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Turn {
    /// Takes the turn, or `None` when somebody else has it.
    pub(crate) fn take(&self) -> Option<TurnTaken<'_>> {
        // Lazily: a guard made in vain would end somebody else's turn when it is dropped.
        (!self.taken.replace(true)).then(|| TurnTaken(self))
    }

    /// Whether nobody has the turn; if somebody has, `waker` is woken when that changes.
    pub(crate) fn is_free(&self, waker: &Waker) -> bool {
        if self.taken.get() {
            self.waiting.borrow_mut().push(waker.clone());
        }
        !self.taken.get()
    }

    /// Makes all who wait look again.
    pub(crate) fn wake_waiting(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// The turn; dropped, even half-way, it lets the next one try.
#[derive(Debug)]
pub(crate) struct TurnTaken<'a>(&'a Turn);

impl Drop for TurnTaken<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.wake_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip_and_damage() {
        let header = SegmentHeader {
            number: 7,
            incarnation: 9,
            store: 11,
            bytes: 1 << 20,
        };
        let block: Vec<u8> = header.block();
        assert_eq!(SegmentHeader::read(&block), Some(header));
        for bit in 0..size_of::<RawHeader>() * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::read(&bad), None, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn listing_takes_only_whole_names() {
        let entry = |name: &str| Entry {
            name: name.to_owned(),
            bytes: 1,
            is_dir: false,
        };
        let names = [
            "log-000000000000000a",
            "log-1",
            "spare-0000000000000002",
            "log-000000000000000g",
        ];
        let listing = Listing::of(&names.map(entry));
        assert_eq!(
            (listing.logs, listing.spares),
            (vec![(10, 1)], vec![(2, 1)])
        );
    }
}
