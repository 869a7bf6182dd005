//! Memory for reads and writes past the page cache.

use std::{fmt, rc::Rc};

use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use crate::disk::{BLOCK_BYTES, DiskBuffer, round_up};

/// A block, which lies where O_DIRECT wants it.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C, align(4096))]
pub(crate) struct Block([u8; BLOCK_BYTES]);

/// What the kernel reads from or writes to.
pub(crate) type Memory = Box<[Block]>;

/// Memory for O_DIRECT whose length in use can shrink and grow again up to its capacity.
pub struct AlignedBuffer {
    memory: Rc<Memory>,
    len: usize,
}

impl AlignedBuffer {
    /// The first `len` bytes of `memory`.
    pub(crate) fn new(memory: Rc<Memory>, len: usize) -> Self {
        assert!(len <= size_of_val(&**memory), "there are so many bytes");
        Self { memory, len }
    }

    /// The memory for a write that outlives this call; until that is dropped, the bytes cannot change.
    pub(crate) fn share(&self) -> Rc<Memory> {
        Rc::clone(&self.memory)
    }
}

/// Zeroed blocks for `len` bytes.
pub(crate) fn allocate(len: usize) -> Rc<Memory> {
    let blocks = <[Block]>::new_box_zeroed_with_elems(round_up(len) / BLOCK_BYTES);
    Rc::new(blocks.expect("memory for a buffer"))
}

impl DiskBuffer for AlignedBuffer {
    fn with_capacity(capacity: usize) -> Self {
        Self::new(allocate(capacity), capacity)
    }

    fn bytes(&self) -> &[u8] {
        &self.memory.as_bytes()[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = Rc::get_mut(&mut self.memory);
        let memory = memory.expect("a buffer is changed only while no write holds it");
        &mut memory.as_mut_bytes()[..self.len]
    }

    fn capacity(&self) -> usize {
        size_of_val(&**self.memory)
    }

    fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "a length in use within the capacity"
        );
        self.len = len;
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_shrinks_and_grows_back() {
        let mut buffer = AlignedBuffer::with_capacity(16 << 10);
        assert!(buffer.bytes().as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        buffer.bytes_mut()[12 << 10] = 7;
        for len in [4096, 8192, 4096, 16384, 12288, 16384] {
            buffer.set_len(len);
            assert_eq!(buffer.bytes().len(), len);
        }
        assert_eq!(buffer.bytes()[12 << 10], 7);
    }

    #[test]
    #[should_panic(expected = "while no write holds it")]
    fn what_is_being_written_does_not_change() {
        let mut buffer = AlignedBuffer::with_capacity(4096);
        let _held = buffer.share();
        buffer.bytes_mut()[0] = 1;
    }
}
