//! Frames: four bytes of big-endian length, then the body.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;

/// Cuts received bytes into frames, without copying their bodies.
///
/// Invariants: nothing is allocated for a length that was announced, only for bytes that arrived; a
/// length out of range is found with its fourth byte.
#[derive(Debug)]
pub struct FrameDecoder {
    /// Received and not yet returned. Starts at the length of a frame.
    buffer: BytesMut,
    /// It is a slice of memory that others share, of which it may be a small part.
    is_shared: bool,
    length_max: usize,
    /// Frames returned so far.
    frames: u64,
}

impl FrameDecoder {
    /// A decoder that refuses bodies longer than `length_max` bytes.
    pub fn new(length_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            is_shared: false,
            length_max,
            frames: 0,
        }
    }

    /// Takes over bytes that were received; no copy when nothing is left of earlier ones.
    pub fn push(&mut self, bytes: BytesMut) {
        if self.buffer.is_empty() {
            self.buffer = bytes;
            self.is_shared = true;
        } else {
            self.extend(&bytes);
        }
    }

    /// Copies bytes that were received.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The body of the next frame, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError`] for a length that is negative or above the maximum. The stream has no further
    /// frames then, and every later call says the same.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(announced) = self.peek_four() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes(announced);
        let body = usize::try_from(length).map_err(|_| FrameError { length })?;
        if body > self.length_max {
            return Err(FrameError { length });
        }
        // `body` is below 2^31, so the sum cannot overflow.
        if self.buffer.len() < LENGTH_BYTES + body {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        self.frames += 1;
        Ok(Some(self.buffer.split_to(body).freeze()))
    }

    /// The next four bytes, which are a length or, on a connection's first frame, may be a four-letter
    /// word. Consumes nothing.
    pub fn peek_four(&self) -> Option<[u8; LENGTH_BYTES]> {
        self.buffer.first_chunk().copied()
    }

    /// Everything received and not returned. For a four-letter word and what follows it.
    pub fn take_rest(&mut self) -> BytesMut {
        std::mem::take(&mut self.buffer)
    }

    /// Bytes received and not returned.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Frames returned so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Changes the longest body that is accepted.
    pub fn set_length_max(&mut self, length_max: usize) {
        self.length_max = length_max;
    }

    /// Prepares for a wait: gives back memory, and copies out what must stay of memory it shares.
    pub fn settle(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        } else if self.is_shared {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        self.is_shared = false;
    }
}

/// A frame's announced length is negative or too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame length {length} is out of range")]
pub struct FrameError {
    /// The length as announced.
    pub length: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(decoder: &mut FrameDecoder) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        frames
    }

    #[test]
    fn frames_come_out_whole_wherever_the_bytes_are_split() {
        let stream = b"\0\0\0\x05hello\0\0\0\0\0\0\0\x02hi";
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut decoder = FrameDecoder::new(5);
                let mut frames = Vec::new();
                for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                    decoder.settle();
                    decoder.push(BytesMut::from(part));
                    frames.extend(decode_all(&mut decoder));
                }
                assert_eq!(frames, [&b"hello"[..], b"", b"hi"], "{first} {second}");
                assert_eq!((decoder.frames(), decoder.buffered()), (3, 0));
            }
        }
    }

    #[test]
    fn lengths_out_of_range_are_refused_for_good() {
        fn check(length: i32, max: usize, is_refused: bool) {
            let mut decoder = FrameDecoder::new(max);
            decoder.extend(&length.to_be_bytes()[..3]);
            assert_eq!(decoder.next_frame(), Ok(None));
            decoder.extend(&length.to_be_bytes()[3..]);
            let expected = if is_refused {
                Err(FrameError { length })
            } else {
                Ok(None)
            };
            assert_eq!(decoder.next_frame(), expected);
            decoder.extend(b"more");
            assert_eq!(decoder.next_frame(), expected);
        }
        check(-1, 100, true);
        check(i32::MIN, usize::MAX, true);
        check(101, 100, true);
        check(100, 100, false);
        check(i32::MAX, usize::MAX, false);
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut decoder = FrameDecoder::new(usize::MAX);
        decoder.push(BytesMut::from(&[0x7f, 0xff, 0xff, 0xff, 1][..]));
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.settle();
        assert!(decoder.buffer.capacity() <= 64);
        // Growth follows what arrived: at most doubling.
        for arrived in (6..100_000).step_by(1000) {
            decoder.extend(&[0; 1000]);
            assert!(decoder.buffer.capacity() <= 2 * (arrived + 1000) + 64);
        }
    }

    #[test]
    fn bodies_are_slices_of_what_was_received() {
        let received = BytesMut::from(&b"\0\0\0\x03abc\0\0\0\x03def\0\0"[..]);
        let range = received.as_ptr_range();
        let mut decoder = FrameDecoder::new(10);
        decoder.push(received);
        for frame in decode_all(&mut decoder) {
            assert!(range.contains(&frame.as_ptr()));
        }
        // The beginning of the next one does not keep that memory.
        decoder.settle();
        assert_eq!(decoder.buffered(), 2);
        assert!(!range.contains(&decoder.buffer.as_ptr()));
    }

    #[test]
    fn four_letters_can_be_looked_at() {
        let mut decoder = FrameDecoder::new(10);
        decoder.extend(b"sta");
        assert_eq!(decoder.peek_four(), None);
        decoder.extend(b"t\n");
        assert_eq!(decoder.peek_four(), Some(*b"stat"));
        assert_eq!(&decoder.take_rest()[..], b"stat\n");
        assert_eq!(decoder.buffered(), 0);
    }
}
