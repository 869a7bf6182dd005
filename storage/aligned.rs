//! A reusable aligned buffer over glommio's `DmaBuffer`.
#![expect(
    unsafe_code,
    reason = "glommio writes a whole DmaBuffer, whose length can only shrink: without giving the length \
              back, each batch would need a fresh allocation"
)]

use std::{fmt, mem::MaybeUninit, ptr, rc::Rc};

use glommio::io::DmaBuffer;

use crate::disk::DiskBuffer;

/// Memory for O_DIRECT writes whose length in use can shrink and grow again up to its capacity.
///
/// Invariant: `full` is a bitwise copy of the value in `shared` as it was allocated. It is never dropped
/// and never used as a buffer; it only serves to put the original length back.
pub struct AlignedBuffer {
    shared: Rc<DmaBuffer>,
    full: MaybeUninit<DmaBuffer>,
    capacity: usize,
}

impl AlignedBuffer {
    /// The buffer for a write that outlives this call; until it is dropped, the bytes cannot change.
    pub(crate) fn share(&self) -> Rc<DmaBuffer> {
        Rc::clone(&self.shared)
    }

    fn unique(&mut self) -> &mut DmaBuffer {
        Rc::get_mut(&mut self.shared).expect("a buffer is changed only while no write holds it")
    }
}

impl DiskBuffer for AlignedBuffer {
    /// Must be called on a glommio executor.
    fn with_capacity(capacity: usize) -> Self {
        let mut buffer = glommio::allocate_dma_buffer(capacity);
        buffer.as_bytes_mut().fill(0);
        // SAFETY: the source is a valid, aligned value; reading it as `MaybeUninit` makes no second owner,
        // because a `MaybeUninit` is never dropped (invariant of the struct).
        let full = unsafe { ptr::read(ptr::from_ref(&buffer).cast::<MaybeUninit<DmaBuffer>>()) };
        Self {
            shared: Rc::new(buffer),
            full,
            capacity,
        }
    }

    fn bytes(&self) -> &[u8] {
        self.shared.as_bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.unique().as_bytes_mut()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a length in use within the capacity");
        if self.shared.len() < len {
            let full = &raw const self.full;
            let target = ptr::from_mut(self.unique()).cast::<MaybeUninit<DmaBuffer>>();
            // SAFETY: both point to valid, distinct memory of the same type. `target` still owns the
            // allocation that `full` describes (nothing but the length in use has changed since `full`
            // was taken), so overwriting it without a drop leaves exactly one owner. No write holds the
            // buffer, since `unique` succeeded.
            unsafe { ptr::copy_nonoverlapping(full, target, 1) };
        }
        self.unique().trim_to_size(len);
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer")
            .field("len", &self.shared.len())
            .field("capacity", &self.capacity)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_shrinks_and_grows_back() {
        glommio::LocalExecutorBuilder::default()
            .io_memory(64 << 10)
            .spawn(|| async {
                let mut buffer = AlignedBuffer::with_capacity(16 << 10);
                buffer.bytes_mut()[12 << 10] = 7;
                for len in [4096, 8192, 4096, 16384, 12288, 16384] {
                    buffer.set_len(len);
                    assert_eq!(buffer.bytes().len(), len);
                }
                assert_eq!(buffer.bytes()[12 << 10], 7);
                let held = buffer.share();
                assert_eq!(held.len(), 16 << 10);
                drop(held);
                buffer.set_len(4096);
            })
            .expect("start an executor")
            .join()
            .expect("run the test");
    }
}
