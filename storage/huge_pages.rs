//! Batches of the log on huge pages.
//!
//! A durable write past the page cache hands the device one piece of memory per run of adjacent pages. A batch of 1 MiB is
//! 256 pages that lie anywhere, and one run on a huge page: the device takes it in two thirds of the time
//! (docs/performance.md). Everything else is better off without them: a tree leaves parts of each unused.
#![expect(
    unsafe_code,
    reason = "an allocator that maps memory cannot be anything else"
)]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};

use crate::disk::BLOCK_BYTES;

/// The size of a huge page: 2 MiB wherever io_uring runs on x86-64 and, with pages of 4 KiB, on ARM.
const HUGE_BYTES: usize = 2 << 20;
/// Blocks from this length on are put on huge pages: batches are, with the default limit.
const LEN_MIN: usize = 1 << 20;

/// An allocator that puts what is long and has to start on a page, as buffers for O_DIRECT do, on huge pages of its own,
/// and leaves the rest to another allocator.
///
/// A process may have huge pages disabled for all else (`PR_SET_THP_DISABLE`): they are enabled for as long as it takes
/// to get such a block.
#[derive(Debug)]
pub struct HugePages<A>(pub A);

/// How many bytes of huge pages a block takes that belongs on some.
fn on_huge_pages(layout: Layout) -> Option<usize> {
    let is_apt = layout.align() >= BLOCK_BYTES && layout.align() <= HUGE_BYTES;
    (is_apt && layout.size() >= LEN_MIN).then(|| layout.size().next_multiple_of(HUGE_BYTES))
}

/// Maps memory, on huge pages if there are any: without, it is slower and no less right. Null when there is no memory.
fn map(len: usize) -> *mut u8 {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: where nothing is asked for, a mapping takes nothing away.
    let Ok(start) = (unsafe { mmap_anonymous(ptr::null_mut(), len + HUGE_BYTES, access, flags) })
    else {
        return ptr::null_mut();
    };
    let before = start.align_offset(HUGE_BYTES).min(HUGE_BYTES);
    let block = start.wrapping_byte_add(before);
    // What lies before and behind goes back; should that fail, address space is lost, no memory.
    for (slack, slack_len) in [
        (start, before),
        (block.wrapping_byte_add(len), HUGE_BYTES - before),
    ] {
        if slack_len > 0 {
            // SAFETY: nobody knows of it yet.
            _ = unsafe { munmap(slack, slack_len) };
        }
    }
    let were_disabled = transparent_huge_pages_are_disabled().unwrap_or(false);
    if were_disabled {
        _ = disable_transparent_huge_pages(false);
    }
    // SAFETY: it is ours, and advice changes nothing in it.
    _ = unsafe { madvise(block, len, Advice::LinuxHugepage) };
    for at in (0..len).step_by(HUGE_BYTES) {
        // SAFETY: it is within the mapping, which nobody else knows of. The kernel finds its page now.
        unsafe { block.cast::<u8>().wrapping_add(at).write_volatile(0) };
    }
    if were_disabled {
        _ = disable_transparent_huge_pages(true);
    }
    block.cast()
}

// SAFETY: a block comes from `map` or from the inner allocator and goes back to where it came from: which of the two it is
// depends on nothing but the layout. What is mapped is at least as long and as aligned as asked for.
unsafe impl<A: GlobalAlloc> GlobalAlloc for HugePages<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match on_huge_pages(layout) {
            Some(len) => map(len),
            // SAFETY: the caller's promise.
            None => unsafe { self.0.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match on_huge_pages(layout) {
            // SAFETY: the caller's promise: it came from `map` with this length, and is not used any more.
            Some(len) => _ = unsafe { munmap(block.cast(), len) },
            // SAFETY: the caller's promise.
            None => unsafe { self.0.dealloc(block, layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match on_huge_pages(layout) {
            Some(len) => map(len),
            // SAFETY: the caller's promise.
            None => unsafe { self.0.alloc_zeroed(layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // SAFETY: the caller promises that it is a valid layout.
        let new = unsafe { Layout::from_size_align_unchecked(len, layout.align()) };
        if on_huge_pages(layout).is_none() && on_huge_pages(new).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { self.0.realloc(block, layout, len) };
        }
        // SAFETY: the caller's promise.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both are that long, and the new one is nobody else's.
            unsafe { moved.copy_from_nonoverlapping(block, layout.size().min(len)) };
            // SAFETY: the caller's promise; nothing looks at it any more.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::System;
    use std::{fs, slice};

    use super::*;

    const ALLOCATOR: HugePages<System> = HugePages(System);

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BLOCK_BYTES).unwrap()
    }

    /// Whether the kernel was advised to back `address` with huge pages (`hg` in `/proc/self/smaps`).
    fn is_advised(address: usize) -> bool {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
                && let Ok(start) = usize::from_str_radix(start, 16)
                && let Ok(end) = usize::from_str_radix(end, 16)
            {
                inside = (start..end).contains(&address);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().any(|flag| flag == "hg");
            }
        }
        false
    }

    #[test]
    fn what_is_long_lies_on_huge_pages_and_keeps_its_bytes_when_it_grows() {
        let len = LEN_MIN;
        // SAFETY: the layouts are valid, each block is used within its length, and given back with the layout it has.
        let block = unsafe { ALLOCATOR.alloc_zeroed(layout(len)) };
        assert!((block as usize).is_multiple_of(HUGE_BYTES));
        assert!(is_advised(block as usize));
        // SAFETY: as above.
        let bytes = unsafe { slice::from_raw_parts_mut(block, len) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes.fill(7);
        // SAFETY: as above.
        let grown = unsafe { ALLOCATOR.realloc(block, layout(len), 5 * len) };
        assert!((grown as usize).is_multiple_of(HUGE_BYTES));
        // SAFETY: as above.
        let shrunk = unsafe { ALLOCATOR.realloc(grown, layout(5 * len), BLOCK_BYTES) };
        assert!(!is_advised(shrunk as usize));
        // SAFETY: as above.
        let bytes = unsafe { slice::from_raw_parts(shrunk, BLOCK_BYTES) };
        assert!(bytes.iter().all(|byte| *byte == 7));
        // SAFETY: as above.
        unsafe { ALLOCATOR.dealloc(shrunk, layout(BLOCK_BYTES)) };
    }

    #[test]
    fn what_need_not_start_on_a_page_is_left_alone() {
        let words = Layout::array::<u64>(LEN_MIN).unwrap();
        assert_eq!(on_huge_pages(words), None);
        assert_eq!(on_huge_pages(layout(LEN_MIN - 1)), None);
        assert!(on_huge_pages(layout(LEN_MIN)).is_some());
    }
}
