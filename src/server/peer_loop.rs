//! Drives the part of the replica core that talks to other members: what comes on the links, and Zab's time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringkeeper_peers::{PeerEvent, PeerLinks};
use ringkeeper_storage::Disk;
use ringkeeper_transport::timeout;

use crate::oracle::Oracle;
use crate::replica::Replica;
use crate::replica_loop::turn;

/// One of Zab's ticks.
pub(crate) const TICK_MS: u64 = 10;

/// Ticks that are caught up with at once after a pause. A process that was stopped for longer has not been
/// waiting for its peers meanwhile.
const LATE_TICKS_MAX: u32 = 3;

/// Takes events until it is cancelled.
pub(crate) async fn run<D: Disk>(
    replica: Rc<RefCell<Replica<D>>>,
    links: PeerLinks,
    oracle: Option<Oracle>,
) {
    let mut oracle_grants = false;
    let tick = Duration::from_millis(TICK_MS);
    let mut next_tick = Instant::now();
    let mut events = Vec::new();
    loop {
        let left = next_tick.saturating_duration_since(Instant::now());
        // Without events before the next tick there is only the tick.
        _ = timeout(left, links.events(&mut events)).await;
        {
            let mut replica = replica.borrow_mut();
            replica.start_turn();
            for event in events.drain(..) {
                if let PeerEvent::Received { link, packet } = &event {
                    tracing::trace!(link = link.0, packet = packet.message.name(), "received");
                } else {
                    tracing::debug!(?event, "links");
                }
                replica.core.hear_peer(event);
            }
            let now = Instant::now();
            let earliest = now.checked_sub(tick * LATE_TICKS_MAX);
            next_tick = earliest.map_or(next_tick, |earliest| next_tick.max(earliest));
            let grants = oracle.as_ref().is_some_and(Oracle::grants);
            if grants != oracle_grants {
                oracle_grants = grants;
                tracing::info!(grants, "the oracle");
                replica.core.hear_oracle(grants);
            }
            while next_tick <= now {
                replica.core.tick();
                next_tick += tick;
            }
        }
        turn(&replica);
    }
}
