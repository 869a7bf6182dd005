//! The events of all links, in one queue, each link with a bound of its own.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::contract::PeerEvent;

/// What one source may have in the queue, in bytes, before it stops reading.
pub(crate) const BACKLOG_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What an event counts for beside its payload, in bytes.
const EVENT_BYTES: usize = 128;

/// The queue. For one consumer.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    entries: RefCell<VecDeque<Entry>>,
    consumer: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Entry {
    event: PeerEvent,
    bytes: usize,
    source: Rc<Source>,
}

/// Where events come from: a link, or a peer's election connections.
#[derive(Debug, Default)]
pub(crate) struct Source {
    is_closed: Cell<bool>,
    /// Bytes of it in the queue.
    backlog: Cell<usize>,
    producer: RefCell<Option<Waker>>,
}

impl EventQueue {
    /// Appends an event with a payload of `payload` bytes.
    pub(crate) fn push(&self, source: &Rc<Source>, event: PeerEvent, payload: usize) {
        if source.is_closed.get() {
            return;
        }
        let bytes = EVENT_BYTES + payload;
        source.backlog.set(source.backlog.get() + bytes);
        self.entries.borrow_mut().push_back(Entry {
            event,
            bytes,
            source: Rc::clone(source),
        });
        let consumer = self.consumer.borrow_mut().take();
        if let Some(waker) = consumer {
            waker.wake();
        }
    }

    /// Moves all events to the end of `into`; ready when there was at least one.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, into: &mut Vec<PeerEvent>) -> Poll<()> {
        let before = into.len();
        loop {
            let Some(entry) = self.entries.borrow_mut().pop_front() else {
                break;
            };
            entry.source.took(entry.bytes);
            // What a link said before it was closed concerns nobody any more.
            if !entry.source.is_closed.get() {
                into.push(entry.event);
            }
        }
        if into.len() > before {
            return Poll::Ready(());
        }
        *self.consumer.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Source {
    /// Nothing of it is told any more.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Waits until the consumer has taken enough of what it said. For one task.
    pub(crate) async fn has_room(&self) {
        poll_fn(|cx| {
            if self.backlog.get() < BACKLOG_BYTES_MAX || self.is_closed.get() {
                return Poll::Ready(());
            }
            *self.producer.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn took(&self, bytes: usize) {
        self.backlog.set(self.backlog.get().saturating_sub(bytes));
        if self.backlog.get() < BACKLOG_BYTES_MAX {
            self.wake();
        }
    }

    fn wake(&self) {
        let producer = self.producer.borrow_mut().take();
        if let Some(waker) = producer {
            waker.wake();
        }
    }
}

/// A flag that one task waits for.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    is_set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    pub(crate) fn set(&self) {
        self.is_set.set(true);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waker) = waiter {
            waker.wake();
        }
    }

    /// Waits until it is set, and takes it back. May be cancelled.
    pub(crate) async fn wait(&self) {
        poll_fn(|cx| {
            if self.is_set.take() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use ringkeeper_zab::LinkId;

    use super::*;

    fn take(queue: &EventQueue) -> Vec<PeerEvent> {
        let mut events = Vec::new();
        let _ = queue.poll_take(&Context::from_waker(Waker::noop()), &mut events);
        events
    }

    #[test]
    fn nothing_is_told_of_what_is_closed() {
        let queue = EventQueue::default();
        let (first, second) = (Rc::new(Source::default()), Rc::new(Source::default()));
        let event = |link| PeerEvent::Writable { link: LinkId(link) };
        queue.push(&first, event(1), 0);
        queue.push(&second, event(2), 0);
        first.close();
        queue.push(&first, event(3), 0);
        assert_eq!(take(&queue), [event(2)]);
        assert!(take(&queue).is_empty());
    }

    #[test]
    fn a_source_waits_while_too_much_of_it_is_queued() {
        let queue = EventQueue::default();
        let source = Rc::new(Source::default());
        let mut cx = Context::from_waker(Waker::noop());
        let has_room = |cx: &mut Context<'_>| {
            let mut room = std::pin::pin!(source.has_room());
            room.as_mut().poll(cx).is_ready()
        };
        assert!(has_room(&mut cx));
        let event = PeerEvent::Writable { link: LinkId(1) };
        queue.push(&source, event, BACKLOG_BYTES_MAX);
        assert!(!has_room(&mut cx));
        take(&queue);
        assert!(has_room(&mut cx));
    }
}
