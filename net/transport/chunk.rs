//! The receive buffer that the connections of an executor share.
//!
//! A `recv` fills the free end of a 64 KiB chunk, and the bytes are split off it without a copy. So an
//! idle connection has no buffer at all, a busy one gets its frames as slices of what `recv` wrote, and
//! a chunk is used again once its slices are gone.
//!
//! What stays with a connection over the next wait, the beginning of a frame, is copied out by
//! [`FrameDecoder::settle`](crate::frame::FrameDecoder): a stranger who sends a byte and waits must
//! not keep 64 KiB from being used again.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes of a chunk, and the most that one `recv` takes.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// With less room than this left, the next `recv` starts a new chunk.
const ROOM_BYTES_MIN: usize = 16 * 1024;

thread_local! {
    static CHUNK: RefCell<Chunk> = const { RefCell::new(Chunk { free: None }) };
}

/// Runs `f` on this thread's chunk. Not to be nested.
pub(crate) fn with_chunk<R>(f: impl FnOnce(&mut Chunk) -> R) -> R {
    CHUNK.with_borrow_mut(f)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The free end, zeroed or written by an earlier `recv` that was not split off.
    free: Option<BytesMut>,
}

impl Chunk {
    /// Room for a `recv`, 16 to 64 KiB.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let free = self.free.get_or_insert_with(BytesMut::new);
        if free.len() < ROOM_BYTES_MIN {
            // Takes the same memory again if no slice of it is left, new memory otherwise.
            free.clear();
            free.reserve(CHUNK_BYTES);
            free.resize(CHUNK_BYTES, 0);
        }
        free
    }

    /// The first `len` bytes of the room, to keep.
    pub(crate) fn split(&mut self, len: usize) -> BytesMut {
        match &mut self.free {
            Some(free) => free.split_to(len),
            None => BytesMut::new(),
        }
    }

    /// The first `len` bytes of the room, to copy.
    pub(crate) fn peek(&self, len: usize) -> &[u8] {
        self.free
            .as_ref()
            .and_then(|free| free.get(..len))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_without_copy_and_takes_memory_again() {
        let mut chunk = Chunk { free: None };
        let start = chunk.room().as_ptr();
        assert_eq!(chunk.room().len(), CHUNK_BYTES);
        chunk.room()[..3].copy_from_slice(b"abc");
        assert_eq!(chunk.peek(3), b"abc");
        let kept = chunk.split(3);
        assert_eq!((&kept[..], kept.as_ptr()), (&b"abc"[..], start));
        assert_eq!(chunk.room().len(), CHUNK_BYTES - 3);
        drop(chunk.split(60_000));
        drop(kept);
        // Nothing of the first chunk is in use: the same memory.
        assert_eq!(chunk.room().as_ptr(), start);
        let kept = chunk.split(60_000);
        assert_ne!(chunk.room().as_ptr(), start);
        assert_eq!(chunk.room().len(), CHUNK_BYTES);
        drop(kept);
    }
}
