//! A shared chain of immutable batches: one writer appends, each reader walks at its own pace.
//!
//! ```text
//!   start -> batch 1 -> batch 2 -> batch 3 -> batch 4      (writer's tail: 4)
//!            ^ retained from here  ^ cursor A  ^ cursor B
//! ```
//!
//! Invariants:
//! - A link, once appended, never changes, save that its `next` is set, once, by the writer.
//! - `cursor.index <= appended`, both only grow; a reader publishes its index after it let go of the
//!   link before. So what lies below every cursor belongs to the writer alone, which hands the values
//!   back (`freed`) for disposal where it hurts nobody; no reader ever drops a batch.
//! - The writer never waits for a reader. It reads the [`Lag`], and admission must obey it.
//! - A reader that is not eager need not be woken for a batch that is of no use to it. It walks such
//!   batches when it is rung for another, or looks by itself, or is [`LAG_MAX_QUIET`] behind.
//! - Dropping a chain, however long, does not recurse.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crate::doorbell::Doorbell;
use crate::pulse;
use crate::wake::WakeSlot;

/// Values that one append hands back at most, so that a reader which leaps forward costs the writer
/// a little for a while rather than much at once.
const FREED_PER_APPEND_MAX: usize = 8;

/// Batches that a reader may be behind before it is rung for whatever comes: what it has not walked
/// cannot be disposed of.
pub const LAG_MAX_QUIET: u64 = 32;

#[derive(Debug)]
struct Link<T> {
    /// 0 for the start of the chain, then 1, 2, 3, ...
    index: u64,
    /// Bytes of all batches up to and with this one.
    bytes_through: u64,
    /// `None` only in the start, and once the writer has taken it back.
    value: Option<T>,
    next: OnceLock<Arc<Self>>,
}

impl<T> Drop for Link<T> {
    fn drop(&mut self) {
        // Dropping `next` would drop its `next`, and so on, one stack frame per link.
        let mut next = self.next.take();
        while let Some(link) = next {
            next = match Arc::into_inner(link) {
                Some(mut link) => link.next.take(),
                // Somebody else still holds the rest.
                None => None,
            };
        }
    }
}

/// What the writer knows of a reader.
#[derive(Debug)]
struct ReaderState {
    /// The number of cursors made before it.
    id: usize,
    slot: Arc<WakeSlot>,
    /// Whether it is to be rung for every batch.
    eager: AtomicBool,
    /// The link the reader holds. Moved by the reader, after it let go of the one before.
    index: AtomicU64,
    bytes_through: AtomicU64,
    gone: AtomicBool,
}

/// The writer's end of a chain.
#[derive(Debug)]
pub struct Chain<T> {
    tail: Arc<Link<T>>,
    /// Links that a reader may still hold or reach, oldest first.
    retained: VecDeque<Arc<Link<T>>>,
    readers: Vec<Arc<ReaderState>>,
    /// Cursors made so far.
    cursors: usize,
    /// Counts [`Self::ring`].
    rings: Arc<AtomicU64>,
}

impl<T> Default for Chain<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Chain<T> {
    /// An empty chain without readers.
    pub fn new() -> Self {
        let start = Link {
            index: 0,
            bytes_through: 0,
            value: None,
            next: OnceLock::new(),
        };
        Self {
            tail: Arc::new(start),
            retained: VecDeque::new(),
            readers: Vec::new(),
            cursors: 0,
            rings: Arc::new(AtomicU64::new(0)),
        }
    }

    /// A reader that sees what is appended from now on, and is eager. The first one has the number 0,
    /// the next 1, and so on.
    pub fn cursor(&mut self) -> Cursor<T> {
        let id = self.cursors;
        self.cursors += 1;
        let state = Arc::new(ReaderState {
            id,
            slot: WakeSlot::new(),
            eager: AtomicBool::new(true),
            index: AtomicU64::new(self.tail.index),
            bytes_through: AtomicU64::new(self.tail.bytes_through),
            gone: AtomicBool::new(false),
        });
        self.readers.push(Arc::clone(&state));
        Cursor {
            current: Arc::clone(&self.tail),
            state,
            rings: Arc::clone(&self.rings),
        }
    }

    /// Appends a batch that counts for `bytes`, and returns its index. Readers can see it at once;
    /// those that sleep do so until [`Self::ring`].
    ///
    /// Pushes values that every reader has left behind onto `freed` (a few per call): dispose of
    /// them where it hurts nobody.
    pub fn append(&mut self, value: T, bytes: usize, freed: &mut Vec<T>) -> u64 {
        let link = Arc::new(Link {
            index: self.tail.index + 1,
            bytes_through: self.tail.bytes_through + bytes as u64,
            value: Some(value),
            next: OnceLock::new(),
        });
        let is_first = self.tail.next.set(Arc::clone(&link)).is_ok();
        assert!(is_first, "only the writer appends, and only to its tail");
        self.retained.push_back(Arc::clone(&link));
        self.tail = link;
        self.reclaim(FREED_PER_APPEND_MAX, freed);
        self.tail.index
    }

    /// Pushes up to `limit` values that every reader has left behind onto `freed`.
    pub fn reclaim(&mut self, limit: usize, freed: &mut Vec<T>) {
        let horizon = self.slowest().0;
        for _ in 0..limit {
            match self.retained.front() {
                Some(front) if front.index < horizon => {}
                _ => return,
            }
            let Some(mut link) = self.retained.pop_front().and_then(Arc::into_inner) else {
                continue;
            };
            freed.extend(link.value.take());
        }
    }

    /// Wakes the readers that sleep at their doorbell. Called after what they go by (a published
    /// zxid, say) was stored: a reader that is rung sees it.
    pub fn ring(&self) {
        self.ring_some(|_| true);
    }

    /// As [`Self::ring`], for the readers that are eager or far behind, and those whose number is
    /// `wanted`.
    pub fn ring_some(&self, wanted: impl Fn(usize) -> bool) {
        pulse::touch();
        // Orders the appends before the loads of `eager`; `set_eager` has the other half.
        self.rings.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for reader in &self.readers {
            let behind = self.tail.index - reader.index.load(Ordering::Relaxed);
            if behind > LAG_MAX_QUIET || reader.eager.load(Ordering::Relaxed) || wanted(reader.id) {
                reader.slot.post();
            }
        }
    }

    /// How far the slowest reader is behind; nothing without readers.
    pub fn lag(&mut self) -> Lag {
        let (index, bytes_through) = self.slowest();
        Lag {
            batches: self.tail.index - index,
            bytes: self.tail.bytes_through - bytes_through,
        }
    }

    /// The index of the last batch appended; 0 before the first.
    pub fn index(&self) -> u64 {
        self.tail.index
    }

    /// Links held for readers.
    pub fn retained_len(&self) -> usize {
        self.retained.len()
    }

    fn slowest(&mut self) -> (u64, u64) {
        self.readers
            .retain(|reader| !reader.gone.load(Ordering::Acquire));
        let mut slowest = (self.tail.index, self.tail.bytes_through);
        for reader in &self.readers {
            let index = reader.index.load(Ordering::Acquire);
            let bytes_through = reader.bytes_through.load(Ordering::Acquire);
            slowest.0 = slowest.0.min(index);
            slowest.1 = slowest.1.min(bytes_through);
        }
        slowest
    }
}

/// How far behind the writer a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Batches appended that it has not come to.
    pub batches: u64,
    /// Their bytes, as given to [`Chain::append`].
    pub bytes: u64,
}

/// A reader's place in a chain.
#[derive(Debug)]
pub struct Cursor<T> {
    /// The batch last returned, or the place where reading started.
    current: Arc<Link<T>>,
    state: Arc<ReaderState>,
    rings: Arc<AtomicU64>,
}

impl<T> Cursor<T> {
    /// Steps to the next batch, if there is one. Lets go of the one before.
    #[expect(
        clippy::should_implement_trait,
        reason = "it lends from the cursor, which an iterator cannot"
    )]
    pub fn next(&mut self) -> Option<&T> {
        let next = Arc::clone(self.current.next.get()?);
        self.current = next;
        // After the assignment has dropped the former link: below the published index, the writer
        // is the only owner. The index goes last, so bytes may only look more behind than it is.
        self.state
            .bytes_through
            .store(self.current.bytes_through, Ordering::Release);
        self.state
            .index
            .store(self.current.index, Ordering::Release);
        self.current.value.as_ref()
    }

    /// Whether [`Self::next`] would return a batch.
    pub fn has_next(&self) -> bool {
        self.current.next.get().is_some()
    }

    /// Says whether this reader is to be rung for every batch, and returns whether one is there that
    /// it has not walked: one that was appended just before it became eager may not have been rung for.
    #[must_use = "a batch that is there already is not rung for"]
    pub fn set_eager(&self, eager: bool) -> bool {
        self.state.eager.store(eager, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.has_next()
    }

    /// The batch that [`Self::next`] last returned.
    pub fn current(&self) -> Option<&T> {
        self.current.value.as_ref()
    }

    /// Its index, or that of the last batch appended before this reader came.
    pub fn index(&self) -> u64 {
        self.current.index
    }

    /// This reader's bell, rung by [`Chain::ring`]. One task awaits it: make one.
    pub fn doorbell(&self) -> Doorbell {
        Doorbell::new(Arc::clone(&self.rings), Arc::clone(&self.state.slot))
    }
}

impl<T> Drop for Cursor<T> {
    fn drop(&mut self) {
        self.state.gone.store(true, Ordering::Release);
    }
}
