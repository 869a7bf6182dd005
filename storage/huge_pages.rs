//! Batches of the log on huge pages.
//!
//! A durable write past the page cache hands the device one piece of memory per run of adjacent pages. A batch of 1 MiB is
//! 256 pages that lie anywhere, and one run on a huge page: the device takes it in two thirds of the time
//! (docs/performance.md). Everything else is better off without them: a tree leaves parts of each unused.
#![expect(
    unsafe_code,
    reason = "an allocator, the advice about its memory and a switch of the kernel that no library has"
)]

use std::alloc::{GlobalAlloc, Layout};
use std::fs;

use rustix::mm::{Advice, madvise};

use crate::disk::BLOCK_BYTES;

/// The size of a huge page: 2 MiB wherever io_uring runs on x86-64 and, with pages of 4 KiB, on ARM.
const HUGE_BYTES: usize = 2 << 20;
/// Blocks from this length on are put on huge pages: batches are, with the default limit.
const LEN_MIN: usize = 1 << 20;

/// An allocator that puts what is long and has to start on a page, as buffers for O_DIRECT do, on huge pages of its own,
/// and leaves the rest to another allocator.
#[derive(Debug)]
pub struct HugePages<A>(pub A);

/// The huge pages for a block that belongs on some.
fn on_huge_pages(layout: Layout) -> Option<Layout> {
    if layout.align() < BLOCK_BYTES || layout.size() < LEN_MIN {
        return None;
    }
    Layout::from_size_align(layout.size().next_multiple_of(HUGE_BYTES), HUGE_BYTES).ok()
}

// SAFETY: every block comes from the inner allocator, with a layout that is at least as large and as aligned as what was
// asked for, and goes back to it with the same one: `on_huge_pages` depends on nothing but the layout. `realloc` and
// `alloc_zeroed` of a block on huge pages are the trait's own, which are made of `alloc` and `dealloc`.
unsafe impl<A: GlobalAlloc> GlobalAlloc for HugePages<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(huge) = on_huge_pages(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { self.0.alloc(layout) };
        };
        // SAFETY: it is no smaller than the caller's layout, whose size is not zero.
        let block = unsafe { self.0.alloc(huge) };
        if !block.is_null() {
            // Without huge pages it is slower, and no less right.
            // SAFETY: advice about how to back memory that was just allocated changes nothing in it.
            _ = unsafe { madvise(block.cast(), huge.size(), Advice::LinuxHugepage) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the layout that the inner allocator was asked for.
        unsafe {
            self.0
                .dealloc(block, on_huge_pages(layout).unwrap_or(layout))
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if on_huge_pages(layout).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { self.0.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block is that long.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
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
            unsafe {
                moved.copy_from_nonoverlapping(block, layout.size().min(len));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

/// Has the kernel use huge pages for this process only where [`HugePages`] asks for them.
///
/// Linux can be told so from 6.18 on. Before that it can be told to use none at all, which is done where it would use
/// them everywhere (`/sys/kernel/mm/transparent_hugepage/enabled` is `always`).
pub fn use_huge_pages_where_advised() {
    // `PR_THP_DISABLE_EXCEPT_ADVISED` of `linux/prctl.h`.
    const EXCEPT_ADVISED: libc::c_ulong = 1 << 1;
    let set = |flags: libc::c_ulong| {
        // SAFETY: it takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1_u64, flags, 0_u64, 0_u64) == 0 }
    };
    if set(EXCEPT_ADVISED) {
        return;
    }
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if enabled.is_ok_and(|enabled| enabled.contains("[always]")) {
        set(0);
    }
}
