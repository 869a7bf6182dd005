//! Records: the caller's bytes, framed with length, checksum and zxid.
//!
//! ```text
//!  0        4          8          16           16 + length
//!  +--------+----------+----------+------------+
//!  | length | checksum | zxid     | payload    |
//!  +--------+----------+----------+------------+
//! ```
//!
//! All numbers are big-endian. The checksum is CRC32C over length, zxid and payload. A zxid is at least 1.
//! What the payload means is the caller's business.

use std::mem::size_of;

use ringkeeper_proto::Zxid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    byteorder::big_endian::{U32, U64},
};

/// The frame before a record's payload. In memory it is aligned, for then it is summed by words.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub(crate) struct Frame {
    length: U32,
    checksum: U32,
    zxid: U64,
}

/// What the checksum covers of it.
#[derive(IntoBytes, Immutable)]
#[repr(C, align(4))]
struct Summed {
    length: U32,
    zxid: U64,
}

/// Bytes that framing adds to a record.
pub const FRAME_BYTES: usize = size_of::<Frame>();
const _: () = assert!(FRAME_BYTES == 16);

impl Frame {
    /// Frames the record whose payload lies in `slot` behind [`FRAME_BYTES`] that are free, and returns the frame. The payload's
    /// length fits 32 bits (the record maximum is far below).
    pub(crate) fn put(zxid: Zxid, slot: &mut [u8]) -> Self {
        let length = slot.len() - FRAME_BYTES;
        let length = u32::try_from(length).expect("records are bounded far below 4 GiB");
        let mut frame = Self {
            length: U32::new(length),
            checksum: U32::ZERO,
            zxid: U64::new(zxid.0),
        };
        // What the checksum covers is moved together for a moment: two calls cost more than the bytes of a small record.
        let (summed_from, payload_from) = (size_of::<U32>(), FRAME_BYTES);
        slot[summed_from..payload_from].copy_from_slice(frame.summed().as_bytes());
        frame.checksum = U32::new(crc32c::crc32c(&slot[summed_from..]));
        slot[..payload_from].copy_from_slice(frame.as_bytes());
        frame
    }

    /// Frames a copy of `payload` at the end of `body`.
    pub(crate) fn push(body: &mut Vec<u8>, zxid: Zxid, payload: &[u8]) {
        let start = body.len();
        body.extend_from_slice(&[0; FRAME_BYTES]);
        body.extend_from_slice(payload);
        Self::put(zxid, &mut body[start..]);
    }

    fn summed(&self) -> Summed {
        Summed {
            length: self.length,
            zxid: self.zxid,
        }
    }

    fn digest(&self, payload: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(self.summed().as_bytes()), payload)
    }
}

/// The records of a batch's body, in order; stops at the first that is not whole.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    broken: bool,
}

impl<'a> Records<'a> {
    /// Walks `body`, the concatenated framed records of one batch.
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self {
            rest: body,
            broken: false,
        }
    }

    /// Whether something that is not a whole record was met.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn split(&mut self) -> Option<(Frame, &'a [u8])> {
        let (frame, rest) = Frame::read_from_prefix(self.rest).ok()?;
        let length = usize::try_from(frame.length.get()).ok()?;
        let (payload, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some((frame, payload))
    }

    /// The next frame and payload, checked.
    pub(crate) fn next_framed(&mut self) -> Option<(Frame, Zxid, &'a [u8])> {
        if self.rest.is_empty() || self.broken {
            return None;
        }
        let whole = self
            .split()
            .filter(|(frame, payload)| frame.checksum == frame.digest(payload));
        self.broken = whole.is_none();
        whole.map(|(frame, payload)| (frame, Zxid(frame.zxid.get()), payload))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (Zxid, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_framed().map(|(_, zxid, payload)| (zxid, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(records: &[(u64, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (zxid, payload) in records {
            Frame::push(&mut body, Zxid(*zxid), payload);
        }
        body
    }

    #[test]
    fn round_trip() {
        let body = framed(&[(1, b"one"), (2, b""), (0x1_0000_0001, b"three")]);
        let mut records = Records::new(&body);
        let read: Vec<_> = records.by_ref().collect();
        let expect: [(Zxid, &[u8]); 3] = [
            (Zxid(1), b"one"),
            (Zxid(2), b""),
            (Zxid(0x1_0000_0001), b"three"),
        ];
        assert_eq!(read, expect);
        assert!(!records.is_broken());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let body = framed(&[(7, b"payload"), (8, b"more")]);
        for bit in 0..body.len() * 8 {
            let mut bad = body.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut records = Records::new(&bad);
            let read = records.by_ref().count();
            assert!(records.is_broken() && read < 2, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn every_short_body_is_noticed() {
        let body = framed(&[(7, b"payload"), (8, b"more")]);
        let whole = [0, FRAME_BYTES + 7, body.len()];
        for len in 0..=body.len() {
            let mut records = Records::new(&body[..len]);
            records.by_ref().for_each(drop);
            assert_eq!(records.is_broken(), !whole.contains(&len), "length {len}");
        }
    }
}
