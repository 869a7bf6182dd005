//! What a learner and its leader tell each other: packets on the quorum port.
//!
//! ```text
//! int type | long zxid | buffer data | vector<Id> authinfo      (no length in front)
//! ```
//! All fields are there in every packet; most have null (-1) for the last two. Only REQUEST carries
//! identities. What stands in `data` is in [`bodies`]. After SNAP comes no packet but the tree itself,
//! as a jute stream without a length, up to the string [`SNAPSHOT_END`].

pub mod bodies;

use bytes::{BufMut, Bytes};

pub use bodies::{
    AuthInfo, Capabilities, ForwardedRequest, LearnerInfo, Revalidated, Revalidation, Touch,
    TouchTable,
};

use crate::ids::Zxid;
use crate::jute::{DecodeError, Reader, WriteJute};

/// The string that ends the stream after a SNAP packet.
pub const SNAPSHOT_END: &str = "BenWasHere";

/// The version of the learners' protocol since ZooKeeper 3.3, in LearnerInfo and LEADERINFO.
pub const PROTOCOL_VERSION: i32 = 0x10000;

/// Bytes of type and zxid, in front of data and authinfo.
pub const HEAD_LEN: usize = 12;

/// What a packet is for (`Leader`'s constants).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum PacketKind {
    /// A client's write that a learner forwards.
    Request = 1,
    /// A txn to log and acknowledge.
    Proposal = 2,
    /// A proposal, or the epoch's start, is durable at the learner.
    Ack = 3,
    /// A proposal is committed.
    Commit = 4,
    /// Alive; a learner adds the sessions that it heard of.
    Ping = 5,
    /// Does this session live?
    Revalidate = 6,
    /// What was proposed before a `sync` has been sent.
    Sync = 7,
    /// A committed txn, for an observer.
    Inform = 8,
    /// A reconfiguration is committed.
    CommitAndActivate = 9,
    /// The end of the leader's history when it began.
    NewLeader = 10,
    /// A voting learner introduces itself.
    FollowerInfo = 11,
    /// The learner may serve.
    UpToDate = 12,
    /// Synchronization by txns.
    Diff = 13,
    /// Synchronization by cutting the log.
    Trunc = 14,
    /// Synchronization by a snapshot.
    Snap = 15,
    /// A learner without a vote introduces itself.
    ObserverInfo = 16,
    /// The leader's epoch.
    LeaderInfo = 17,
    /// The learner promises to follow no older epoch.
    AckEpoch = 18,
    /// A committed reconfiguration, for an observer.
    InformAndActivate = 19,
    /// Ringkeeper's own, far from Apache's numbers: another server leads from now on.
    HandOver = 0x524b_0001,
    /// As well: the leader begins another epoch, and leads on.
    NewEpoch = 0x524b_0002,
}

impl PacketKind {
    /// Every kind, by number.
    pub const ALL: [Self; 21] = [
        Self::Request,
        Self::Proposal,
        Self::Ack,
        Self::Commit,
        Self::Ping,
        Self::Revalidate,
        Self::Sync,
        Self::Inform,
        Self::CommitAndActivate,
        Self::NewLeader,
        Self::FollowerInfo,
        Self::UpToDate,
        Self::Diff,
        Self::Trunc,
        Self::Snap,
        Self::ObserverInfo,
        Self::LeaderInfo,
        Self::AckEpoch,
        Self::InformAndActivate,
        Self::HandOver,
        Self::NewEpoch,
    ];

    /// Its number on the wire.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The kind of a number.
    pub fn from_code(code: i32) -> Result<Self, DecodeError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.code() == code)
            .ok_or_else(|| DecodeError::Value {
                field: "type",
                value: code.into(),
            })
    }
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumPacket {
    /// What it is for.
    pub kind: PacketKind,
    /// What it is about; `Zxid(u64::MAX)` is the wire's -1.
    pub zxid: Zxid,
    /// Data and authinfo as they stand on the wire.
    body: Bytes,
}

impl QuorumPacket {
    /// Reads one packet, whose end was found by [`packet_len`]. Shares `bytes`' memory.
    ///
    /// # Errors
    /// When the bytes are no packet, or its kind is not known.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.int()?;
        let zxid = Zxid::from_wire(reader.long()?);
        let mut rest = reader.clone();
        rest.buffer()?;
        skip_ids(&mut rest)?;
        if !rest.is_empty() {
            return Err(DecodeError::Value {
                field: "bytes behind a packet",
                value: i64::try_from(rest.rest().len()).unwrap_or(i64::MAX),
            });
        }
        Ok(Self {
            kind: PacketKind::from_code(kind)?,
            zxid,
            body: bytes.slice(HEAD_LEN..),
        })
    }

    /// Its data; `None` is null.
    pub fn data(&self) -> Option<Bytes> {
        data_of(&self.body).ok().flatten()
    }

    /// Data and authinfo as they stand on the wire: what [`ForwardedRequest`] is read from.
    pub fn into_body(self) -> Bytes {
        self.body
    }
}

/// The `data` at the start of a packet's body.
pub(crate) fn data_of(body: &Bytes) -> Result<Option<Bytes>, DecodeError> {
    let data = Reader::new(body).buffer()?;
    Ok(data.map(|data| body.slice(4..4 + data.len())))
}

/// Appends a packet without identities.
pub fn put_packet(
    out: &mut (impl BufMut + ?Sized),
    kind: PacketKind,
    zxid: Zxid,
    data: Option<&[u8]>,
) {
    put_head(out, kind, zxid);
    out.put_buffer(data);
    out.put_i32(-1);
}

/// Appends a packet whose data and authinfo are encoded already.
pub fn put_packet_with_body(
    out: &mut (impl BufMut + ?Sized),
    kind: PacketKind,
    zxid: Zxid,
    body: &[u8],
) {
    put_head(out, kind, zxid);
    out.put_slice(body);
}

fn put_head(out: &mut (impl BufMut + ?Sized), kind: PacketKind, zxid: Zxid) {
    out.put_i32(kind.code());
    out.put_i64(zxid.to_wire());
}

/// How long the packet at the start of `bytes` is; `None` until all of it has come.
///
/// # Errors
/// When a length in it cannot be, or the packet is longer than `len_max` and its head.
pub fn packet_len(bytes: &[u8], len_max: usize) -> Result<Option<usize>, DecodeError> {
    let mut reader = Reader::new(bytes);
    match walk(&mut reader, len_max) {
        Ok(()) => Ok(Some(reader.at())),
        // What is missing may still come, unless it is too much already.
        Err(DecodeError::Short { at, needed }) => {
            match at.saturating_add(needed) > HEAD_LEN.saturating_add(len_max) {
                true => Err(DecodeError::Length {
                    at: at.saturating_sub(4),
                    length: i32::try_from(needed).unwrap_or(i32::MAX),
                }),
                false => Ok(None),
            }
        }
        Err(error) => Err(error),
    }
}

fn walk(reader: &mut Reader<'_>, len_max: usize) -> Result<(), DecodeError> {
    reader.take(HEAD_LEN)?;
    reader.buffer()?;
    skip_ids(reader)?;
    match reader.at() > HEAD_LEN.saturating_add(len_max) {
        true => Err(DecodeError::Length {
            at: HEAD_LEN,
            length: i32::try_from(reader.at()).unwrap_or(i32::MAX),
        }),
        false => Ok(()),
    }
}

/// Passes over a `vector<Id>`; nothing is allocated for its count.
pub(crate) fn skip_ids(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    let at = reader.at();
    match reader.int()? {
        -1 => Ok(()),
        count if count < 0 => Err(DecodeError::Length { at, length: count }),
        count => (0..count).try_for_each(|_| {
            reader.buffer()?;
            reader.buffer()?;
            Ok(())
        }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn packet(data: Option<&[u8]>) -> Bytes {
        let mut out = BytesMut::new();
        put_packet(&mut out, PacketKind::Proposal, Zxid(0x0007_0000_0001), data);
        out.freeze()
    }

    #[test]
    fn kinds_have_the_numbers_of_the_wire() {
        for (at, kind) in PacketKind::ALL.into_iter().enumerate() {
            let wire = match kind {
                PacketKind::HandOver => 0x524b_0001,
                PacketKind::NewEpoch => 0x524b_0002,
                _ => i32::try_from(at).unwrap() + 1,
            };
            assert_eq!(kind.code(), wire);
            assert_eq!(PacketKind::from_code(kind.code()), Ok(kind));
        }
        assert!(PacketKind::from_code(0).is_err());
        assert!(PacketKind::from_code(20).is_err());
    }

    #[test]
    fn a_packet_is_found_with_its_last_byte_and_shares_memory() {
        for data in [None, Some(&b""[..]), Some(b"some data")] {
            let bytes = packet(data);
            let mut two = bytes.to_vec();
            two.extend_from_slice(&bytes);
            for end in 0..two.len() {
                let expected = (end >= bytes.len()).then_some(bytes.len());
                assert_eq!(packet_len(&two[..end], 9 + 8), Ok(expected), "{end}");
            }
            let read = QuorumPacket::decode(&bytes).unwrap();
            assert_eq!(read.kind, PacketKind::Proposal);
            assert_eq!(read.zxid, Zxid(0x0007_0000_0001));
            assert_eq!(read.data().as_deref(), data);
            if let Some(data) = read.data() {
                assert!(bytes.as_ptr_range().contains(&data.as_ptr()) || data.is_empty());
            }
        }
    }

    #[test]
    fn lengths_that_lie_or_are_too_large_are_refused_early() {
        let head = packet(None)[..HEAD_LEN].to_vec();
        let with = |length: i32| {
            let mut bytes = head.clone();
            bytes.put_i32(length);
            bytes
        };
        assert!(packet_len(&with(-2), 100).is_err());
        assert!(packet_len(&with(i32::MAX), 100).is_err());
        assert!(packet_len(&with(101), 100).is_err());
        assert_eq!(packet_len(&with(80), 100), Ok(None));
        // Identities count too.
        let mut bytes = with(-1);
        bytes.put_i32(i32::MAX);
        assert_eq!(packet_len(&bytes, 100), Ok(None));
        for _ in 0..8 {
            bytes.put_i32(4);
            bytes.put_slice(b"abcd");
        }
        bytes.put_i32(40);
        assert!(packet_len(&bytes, 100).is_err());
        let mut negative = with(-1);
        negative.put_i32(-2);
        assert!(packet_len(&negative, 100).is_err());
    }

    #[test]
    fn bytes_that_are_no_packet_are_errors() {
        let good = packet(Some(b"data"));
        for end in 0..good.len() {
            assert!(QuorumPacket::decode(&good.slice(..end)).is_err(), "{end}");
        }
        let mut longer = good.to_vec();
        longer.push(0);
        assert!(QuorumPacket::decode(&longer.into()).is_err());
        let mut unknown = good.to_vec();
        unknown[3] = 99;
        assert!(QuorumPacket::decode(&unknown.into()).is_err());
    }
}
