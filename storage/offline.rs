//! Own files seen from outside: what tools need to read them offline, or beside a running server.
//!
//! Nothing here opens, locks or writes a file: bytes go in, their meaning comes out. The bytes are drawn in
//! `segment.rs`, `batch.rs`, `record.rs` and `manifest.rs`.
#![deny(clippy::indexing_slicing)]

use ringkeeper_proto::{Epoch, Zxid};
use zerocopy::IntoBytes as _;

use crate::{
    batch::{BatchHeader, BatchKind, HEADER_BYTES, Parsed},
    manifest::{self, Contents, Copy, Phase, SnapshotInfo},
    record::Records,
    segment::{self, SegmentHeader},
    snapshot,
};

/// How a log segment begins.
pub const SEGMENT_MAGIC: [u8; 4] = *b"RKSG";
/// How a snapshot begins.
pub const SNAPSHOT_MAGIC: [u8; 4] = *b"RKSS";
/// How a copy of the manifest begins.
pub const MANIFEST_MAGIC: [u8; 4] = *b"RKMF";
/// The file that a running server holds locked, in each of its directories.
pub const LOCK_NAME: &str = crate::store::LOCK;
/// The two copies of the manifest.
pub const MANIFEST_NAMES: [&str; 2] = manifest::NAMES;
/// The place of a segment's first batch.
pub const FIRST_BATCH_OFFSET: u64 = segment::FIRST_BATCH;

/// A file of a data directory, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    /// `log-NUMBER`.
    Log(u64),
    /// `spare-NUMBER`.
    Spare(u64),
    /// `snapshot-ZXID`.
    Snapshot(Zxid),
    /// A snapshot that is being written, or was left unfinished.
    UnfinishedSnapshot,
    /// A snapshot's file that the next one is written over.
    SpareSnapshot,
    /// One of the two copies of the manifest.
    Manifest,
    /// The lock file.
    Lock,
}

impl FileName {
    /// What `name` names; `None` when it is none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let number = |prefix: &str| {
            let digits = name.strip_prefix(prefix)?;
            let plain = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        if name == LOCK_NAME {
            Some(Self::Lock)
        } else if MANIFEST_NAMES.contains(&name) {
            Some(Self::Manifest)
        } else if let Some(log) = number(segment::LOG_PREFIX) {
            Some(Self::Log(log))
        } else if let Some(spare) = number(segment::SPARE_PREFIX) {
            Some(Self::Spare(spare))
        } else if let Some(zxid) = number(snapshot::PREFIX) {
            Some(Self::Snapshot(Zxid(zxid)))
        } else if snapshot::is_spare(name) {
            Some(Self::SpareSnapshot)
        } else {
            snapshot::is_snapshot(name).then_some(Self::UnfinishedSnapshot)
        }
    }
}

/// A segment's first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number, which its name repeats.
    pub number: u64,
    /// No batch of a lower incarnation counts in it.
    pub incarnation: u64,
    /// The store that it belongs to.
    pub store: u64,
    /// The length of its file.
    pub bytes: u64,
}

impl SegmentInfo {
    /// Reads a first block; `None` when it is not one of a format that this release knows.
    pub fn read(block: &[u8]) -> Option<Self> {
        SegmentHeader::read(block).map(|header| Self {
            number: header.number,
            incarnation: header.incarnation,
            store: header.store,
            bytes: header.bytes,
        })
    }

    /// Bytes of it that its checksum covers, or that are compared; behind them the block is zeros.
    pub const LEN: usize = segment::HEADER_LEN;
}

/// What the first block of a place in a segment looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderAt {
    /// Never written.
    Zeros,
    /// No header whose checksum holds.
    Garbage,
    /// A header whose checksum holds, of a format (or kind) that this release does not know.
    Newer(u16),
    /// A header. The length it names still has to be held against the segment's size.
    Header(BatchHeader),
}

/// Reads the batch header at the start of `block`, a whole block or what there is of it.
pub fn header_at(block: &[u8]) -> HeaderAt {
    match BatchHeader::read(block) {
        Parsed::Zeros => HeaderAt::Zeros,
        Parsed::Garbage => HeaderAt::Garbage,
        Parsed::NewerFormat(format) => HeaderAt::Newer(format),
        Parsed::Header(header) => HeaderAt::Header(header),
    }
}

/// Reads a header where only a whole one counts; cheap on blocks that hold something else.
pub fn whole_header_at(block: &[u8]) -> Option<BatchHeader> {
    BatchHeader::read_whole(block)
}

/// Why a batch's body is not the one that its header promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyFault {
    /// The record that is bad, counted from 0; `None` when each is whole and they are not the right ones.
    pub record: Option<u32>,
    /// Where it begins, in bytes from the start of the batch.
    pub offset: usize,
    /// The last whole record before it.
    pub after: Option<Zxid>,
    /// What is wrong.
    pub what: &'static str,
}

/// Checks the body of `header`'s batch, which begins at `stored`, and hands each whole record to `each` on the
/// way, also those of a batch that turns out to be bad further on.
pub fn check_body(
    header: &BatchHeader,
    stored: &[u8],
    mut each: impl FnMut(Zxid, &[u8]),
) -> Result<(), BodyFault> {
    let end = HEADER_BYTES.saturating_add(header.body_len());
    let body = stored.get(HEADER_BYTES..end).ok_or(BodyFault {
        record: None,
        offset: stored.len(),
        after: None,
        what: "the file ends within the batch",
    })?;
    let mut records = Records::new(body);
    let mut sum = 0;
    let mut count = 0_u32;
    let mut zxids: Option<(Zxid, Zxid)> = None;
    let mut at = HEADER_BYTES;
    let after = |zxids: Option<(Zxid, Zxid)>| zxids.map(|(_, last)| last);
    while let Some((frame, zxid, payload)) = records.next_framed() {
        if zxid <= after(zxids).unwrap_or(Zxid::ZERO) {
            return Err(BodyFault {
                record: Some(count),
                offset: at,
                after: after(zxids),
                what: "its zxid does not come after the one before it",
            });
        }
        each(zxid, payload);
        sum = crc32c::crc32c_append(sum, frame.as_bytes());
        count = count.saturating_add(1);
        zxids = Some((zxids.map_or(zxid, |(first, _)| first), zxid));
        at += frame.as_bytes().len() + payload.len();
    }
    if records.is_broken() {
        return Err(BodyFault {
            record: Some(count),
            offset: at,
            after: after(zxids),
            what: "its checksum does not hold",
        });
    }
    let promised = zxids.is_none_or(|zxids| zxids == (header.first_zxid, header.last_zxid))
        && (header.kind == BatchKind::Records) == (count > 0)
        && (sum, count) == (header.body_checksum, header.count);
    if promised {
        return Ok(());
    }
    Err(BodyFault {
        record: None,
        offset: HEADER_BYTES,
        after: None,
        what: "its records are not those that its header promises",
    })
}

/// Walks `body`, the framed records behind a batch's header, or any bytes that begin with a frame.
pub fn records(body: &[u8]) -> Records<'_> {
    Records::new(body)
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestInfo {
    /// Whether the store has been made; before that nothing has been acknowledged.
    pub is_made: bool,
    /// Grows with each save; the newer copy counts.
    pub generation: u64,
    /// The store's own random number, repeated by each segment.
    pub store: u64,
    /// How often the store was opened.
    pub starts: u64,
    /// The last epoch that the server promised to follow.
    pub accepted_epoch: Epoch,
    /// The last epoch whose history the server has.
    pub current_epoch: Epoch,
    /// Whether the server has taken over a leader's history.
    pub is_member: bool,
    /// The first segment that counts.
    pub first_segment: u64,
    /// The sequence of the batch before the log's first.
    pub sequence_before: u64,
    /// The header checksum of that batch.
    pub checksum_before: u32,
    /// An upper bound of the zxids before the log's start.
    pub zxid_before: Zxid,
    /// Sequence and header checksum of the last batch, if the log was closed in order and not opened since.
    pub clean_end: Option<(u64, u32)>,
    /// The last batch that was durable when epochs were saved last.
    pub durable_sequence: u64,
    /// Through where a torn write may have taken acknowledged transactions, if no leader has settled it yet;
    /// `Zxid(u64::MAX)` where that is not known.
    pub doubted_through: Option<Zxid>,
    /// The verified snapshots, in ascending order of zxid.
    pub snapshots: Vec<SnapshotInfo>,
}

/// One copy of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestCopy {
    /// A whole copy.
    Good(ManifestInfo),
    /// Of a format that this release does not know.
    Newer(u16),
    /// Torn or damaged.
    Damaged,
}

/// Reads one copy of the manifest, the first block of its file.
pub fn manifest_copy(block: &[u8]) -> ManifestCopy {
    match Contents::read(block) {
        Copy::Good(contents) => ManifestCopy::Good(contents.into()),
        Copy::Newer(format) => ManifestCopy::Newer(format),
        Copy::Damaged => ManifestCopy::Damaged,
    }
}

impl From<Contents> for ManifestInfo {
    fn from(contents: Contents) -> Self {
        let start = contents.log_start;
        Self {
            is_made: contents.phase == Phase::Made,
            generation: contents.generation,
            store: contents.store,
            starts: contents.starts,
            accepted_epoch: contents.accepted_epoch,
            current_epoch: contents.current_epoch,
            is_member: contents.is_member,
            first_segment: start.segment,
            sequence_before: start.before.sequence,
            checksum_before: start.before.checksum,
            zxid_before: start.before.last_zxid,
            clean_end: contents.clean_end.map(|end| (end.sequence, end.checksum)),
            durable_sequence: contents.durable_sequence,
            doubted_through: contents.doubted_through,
            snapshots: contents.snapshots,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |name: &str, expected| assert_eq!(FileName::parse(name), expected, "{name}");
        check("lock", Some(FileName::Lock));
        check("manifest-b", Some(FileName::Manifest));
        check("manifest-c", None);
        check("log-000000000000001f", Some(FileName::Log(31)));
        check("log-1f", None);
        check("log-+00000000000001f", None);
        check("spare-0000000000000002", Some(FileName::Spare(2)));
        check("snapshot-spare", Some(FileName::SpareSnapshot));
        check(
            "snapshot-0000000000000003",
            Some(FileName::Snapshot(Zxid(3))),
        );
        check(
            "snapshot-0000000000000003.tmp",
            Some(FileName::UnfinishedSnapshot),
        );
        check("log.1", None);
    }

    #[test]
    fn bytes_of_any_kind_are_answered() {
        for len in [0, 1, 40, 88, 4096] {
            for byte in [0, 1, 0xff] {
                let block = vec![byte; len];
                assert_eq!(SegmentInfo::read(&block), None);
                assert!(!matches!(header_at(&block), HeaderAt::Header(_)));
                assert_eq!(manifest_copy(&block), ManifestCopy::Damaged);
            }
        }
    }
}
