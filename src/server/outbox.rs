//! The sending end of a mailbox with what did not fit into it.
//!
//! A mailbox is bounded, and neither the replica core nor a shard may wait for the other. So what does
//! not fit waits here, in order, and whoever fills it admits no more work meanwhile.

use std::collections::VecDeque;

use ringkeeper_transport::mailbox::{MailboxError, Sender};

/// Sends in order; [`Outbox::flush`] wakes the receiver once for all of it.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    to: Sender<T>,
    waiting: VecDeque<T>,
    sent: bool,
}

impl<T: Send> Outbox<T> {
    /// An outbox for the mailbox of `to`.
    pub(crate) const fn new(to: Sender<T>) -> Self {
        Self {
            to,
            waiting: VecDeque::new(),
            sent: false,
        }
    }

    /// Puts `item` on its way; it arrives after the next [`Outbox::flush`] at the latest, unless the
    /// mailbox stays full.
    pub(crate) fn send(&mut self, item: T) {
        if self.waiting.is_empty() {
            self.push(item);
        } else {
            self.waiting.push_back(item);
        }
    }

    /// Sends what waits, as far as it fits, and wakes the receiver if anything was sent.
    pub(crate) fn flush(&mut self) {
        while let Some(item) = self.waiting.pop_front() {
            if !self.push(item) {
                break;
            }
        }
        if self.sent {
            self.sent = false;
            self.to.wake();
        }
    }

    /// Whether the mailbox is full, so that something waits.
    pub(crate) fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn push(&mut self, item: T) -> bool {
        match self.to.send_quietly(item) {
            Ok(()) => self.sent = true,
            Err(MailboxError::Full(item)) => {
                self.waiting.push_front(item);
                return false;
            }
            // The receiver's executor has ended: the server is stopping, and nobody is left to care.
            Err(MailboxError::Closed(_)) => {}
        }
        true
    }
}
