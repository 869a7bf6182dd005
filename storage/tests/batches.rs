//! Where batches get their memory.
#![expect(
    unsafe_code,
    reason = "what is allocated is seen by an allocator, which cannot be anything else"
)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use ringkeeper_proto::Zxid;
use ringkeeper_storage::BLOCK_BYTES;

use support::{on_executor, open, small, temp_dir};

/// Blocks that start on a page, as only memory for the disk has to.
static PAGES_ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: it counts, and is `System` otherwise.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() >= BLOCK_BYTES {
            PAGES_ALLOCATED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn batches_that_were_made_are_used() {
    let dir = temp_dir();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let mut opened = open(&path, small()).await.expect("make a store");
        opened.log.make_batches(3);
        let before = PAGES_ALLOCATED.load(Ordering::Relaxed);
        let mut begin = || {
            let mut batch = opened.log.new_batch();
            batch.append(Zxid(1), 1, |_| ()).expect("append");
            batch
        };
        let _three = [begin(), begin(), begin()];
        assert_eq!(PAGES_ALLOCATED.load(Ordering::Relaxed), before);
        let _fourth = begin();
        assert_eq!(PAGES_ALLOCATED.load(Ordering::Relaxed), before + 1);
    });
}
