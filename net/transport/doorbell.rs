//! A bell between executors: rung by producers, awaited by one consumer, wakes it only if it sleeps.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wake::WakeSlot;

/// A bell and what rings it.
pub fn doorbell() -> (Ringer, Doorbell) {
    let rings = Arc::new(AtomicU64::new(0));
    let slot = WakeSlot::new();
    let ringer = Ringer {
        rings: Arc::clone(&rings),
        slot: Arc::clone(&slot),
    };
    (ringer, Doorbell::new(rings, slot))
}

/// Rings a [`Doorbell`], from any thread.
#[derive(Clone, Debug)]
pub struct Ringer {
    rings: Arc<AtomicU64>,
    slot: Arc<WakeSlot>,
}

impl Ringer {
    /// Rings. The consumer's next [`Doorbell::rung`] returns, and sees what was stored before.
    pub fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.slot.post();
    }
}

/// The consumer's side.
#[derive(Debug)]
pub struct Doorbell {
    rings: Arc<AtomicU64>,
    slot: Arc<WakeSlot>,
    /// Rings that [`Self::rung`] has returned for.
    heard: u64,
}

impl Doorbell {
    pub(crate) fn new(rings: Arc<AtomicU64>, slot: Arc<WakeSlot>) -> Self {
        let heard = rings.load(Ordering::SeqCst);
        Self { rings, slot, heard }
    }

    /// Waits until it was rung since the last return; any number of rings count as one. May be
    /// cancelled without losing a ring.
    pub async fn rung(&mut self) {
        poll_fn(|cx| {
            self.slot
                .poll_wait(cx, || self.rings.load(Ordering::SeqCst) != self.heard)
        })
        .await;
        self.heard = self.rings.load(Ordering::SeqCst);
    }

    /// Whether it was rung since [`Self::rung`] last returned.
    pub fn is_ringing(&self) -> bool {
        self.rings.load(Ordering::SeqCst) != self.heard
    }
}
