//! A queue from any number of producers, on any threads, to one consumer on an executor.
//!
//! A ring of fixed capacity: no allocation after it is made, no lock on the way, and a producer wakes
//! the consumer only when it sleeps, so a batch costs one wake-up. On one executor a wake-up is a
//! push onto its run queue; from another thread it is an eventfd write.
//!
//! Order: what one producer sends arrives in the order it was sent.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crossbeam_queue::ArrayQueue;

use crate::pulse;
use crate::wake::WakeSlot;

/// The most items that one receive hands over, so that a poll of the consumer stays bounded.
pub const BATCH_MAX: usize = 1024;

/// Makes a mailbox for at most `capacity` items (at least 1).
pub fn bounded<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        slot: WakeSlot::new(),
        senders: AtomicUsize::new(1),
        closed: AtomicBool::new(false),
        room_wanted: AtomicBool::new(false),
        room_waiters: Mutex::new(Vec::new()),
    });
    let sender = Sender {
        shared: Arc::clone(&shared),
    };
    (sender, Receiver { shared })
}

#[derive(Debug)]
struct Shared<T> {
    queue: ArrayQueue<T>,
    slot: Arc<WakeSlot>,
    /// Live senders. At 0 the receiver sees the end once the queue is empty.
    senders: AtomicUsize,
    /// The receiver has gone.
    closed: AtomicBool,
    /// Somebody waits for room.
    room_wanted: AtomicBool,
    /// Producers that found it full. Locked only by them and by the receiver while `room_wanted`.
    room_waiters: Mutex<Vec<Waker>>,
}

impl<T> Shared<T> {
    fn release_room_waiters(&self) {
        // Orders the removal from the queue before the load; `send_wait` has the other half.
        fence(Ordering::SeqCst);
        if !self.room_wanted.load(Ordering::Relaxed) {
            return;
        }
        let waiters = {
            let mut waiters = self
                .room_waiters
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.room_wanted.store(false, Ordering::SeqCst);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters {
            waiter.wake();
        }
    }
}

/// The producer's side.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.slot.post();
        }
    }
}

impl<T: Send> Sender<T> {
    /// Sends without waiting.
    ///
    /// # Errors
    /// [`MailboxError::Full`] or [`MailboxError::Closed`], with the item.
    pub fn send(&self, item: T) -> Result<(), MailboxError<T>> {
        self.send_quietly(item)?;
        self.wake();
        Ok(())
    }

    /// Sends without waking the consumer, for a batch that one [`Self::wake`] follows.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_quietly(&self, item: T) -> Result<(), MailboxError<T>> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(MailboxError::Closed(item));
        }
        self.shared.queue.push(item).map_err(MailboxError::Full)
    }

    /// Wakes the consumer if it sleeps.
    pub fn wake(&self) {
        pulse::touch();
        self.shared.slot.post();
    }

    /// Sends, waiting for room. Must not be awaited by the task that empties the mailbox.
    ///
    /// # Errors
    /// [`MailboxError::Closed`], with the item.
    pub async fn send_wait(&self, item: T) -> Result<(), MailboxError<T>> {
        let mut unsent = Some(item);
        poll_fn(|cx| {
            let Some(item) = unsent.take() else {
                return Poll::Ready(Ok(()));
            };
            let item = match self.send(item) {
                Err(MailboxError::Full(item)) => item,
                outcome => return Poll::Ready(outcome),
            };
            self.shared
                .room_waiters
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(cx.waker().clone());
            self.shared.room_wanted.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // The consumer may have made room, and gone to sleep, before it could see the wish.
            match self.send(item) {
                Err(MailboxError::Full(item)) => {
                    unsent = Some(item);
                    Poll::Pending
                }
                outcome => Poll::Ready(outcome),
            }
        })
        .await
    }

    /// Items waiting. Exact only when nobody sends or receives; good enough for admission.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// The most items it holds.
    pub fn capacity(&self) -> usize {
        self.shared.queue.capacity()
    }

    /// Whether the receiver has gone.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }
}

/// The consumer's side. One task of one executor awaits it at a time.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> Receiver<T> {
    /// Waits for items and appends at most [`BATCH_MAX`] of them, in order. Returns how many; 0 when
    /// all senders have gone and nothing is left. Nothing is lost when it is cancelled.
    pub async fn recv_batch(&mut self, batch: &mut Vec<T>) -> usize {
        let shared = &self.shared;
        poll_fn(|cx| {
            shared.slot.poll_wait(cx, || {
                !shared.queue.is_empty() || shared.senders.load(Ordering::Acquire) == 0
            })
        })
        .await;
        self.try_recv_batch(batch)
    }

    /// Appends what is there now, at most [`BATCH_MAX`] items, and returns how many.
    pub fn try_recv_batch(&mut self, batch: &mut Vec<T>) -> usize {
        let mut received = 0;
        while received < BATCH_MAX {
            let Some(item) = self.shared.queue.pop() else {
                break;
            };
            batch.push(item);
            received += 1;
        }
        if received > 0 {
            self.shared.release_room_waiters();
        }
        received
    }

    /// Waits for one item; `None` when all senders have gone and nothing is left.
    pub async fn recv(&mut self) -> Option<T> {
        let shared = &self.shared;
        poll_fn(|cx| {
            shared.slot.poll_wait(cx, || {
                !shared.queue.is_empty() || shared.senders.load(Ordering::Acquire) == 0
            })
        })
        .await;
        let item = shared.queue.pop();
        if item.is_some() {
            shared.release_room_waiters();
        }
        item
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Items would keep alive what they hold (a sender of the way back, say) until the last
        // sender goes.
        while self.shared.queue.pop().is_some() {}
        self.shared.release_room_waiters();
    }
}

/// Why an item was not sent; it comes back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError<T> {
    /// As many items wait as it holds.
    #[error("the mailbox is full")]
    Full(T),
    /// The receiver has gone.
    #[error("the mailbox has no receiver")]
    Closed(T),
}
