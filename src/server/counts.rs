//! What all shards count together: connections and where they are served, outstanding requests,
//! connect tokens.
//!
//! Requests are counted with one relaxed atomic, which a shard touches once for all that it takes or
//! answers in one go; the lock is taken only when a connection comes or goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ringkeeper_member::Settings;

use crate::connection_throttle::ConnectionThrottle;

/// Counters and limits of the whole server.
#[derive(Debug)]
pub(crate) struct SharedCounts {
    /// Never below zero once all shards have told.
    outstanding: AtomicIsize,
    outstanding_max: usize,
    requests_max: usize,
    connections: Mutex<Connections>,
    /// Connections by the shard that serves them.
    served: Vec<AtomicUsize>,
    /// So many connections are served on the first shard before any is on another: what they write
    /// need not hop between executors, which is what a lone client waits for most.
    first_shard_few: usize,
    per_address_max: usize,
    total_max: usize,
    throttle: Option<ConnectionThrottle>,
    /// Bytes of large requests that wait.
    large_bytes: AtomicUsize,
    large_min: usize,
    large_max: usize,
}

#[derive(Debug, Default)]
struct Connections {
    total: usize,
    per_address: HashMap<IpAddr, usize>,
}

impl SharedCounts {
    /// Nothing yet, with the limits of `settings`; a limit of 0 is no limit.
    pub(crate) fn new(settings: &Settings, shards: usize) -> Self {
        let limits = &settings.config.throttle;
        Self {
            outstanding: AtomicIsize::new(0),
            outstanding_max: limits.outstanding_max as usize,
            requests_max: limits.requests_max.map_or(usize::MAX, |max| max as usize),
            connections: Mutex::default(),
            served: (0..shards).map(|_| AtomicUsize::new(0)).collect(),
            first_shard_few: settings.config.placement.clients_beside_core as usize,
            per_address_max: settings.config.clients.per_address_max.unwrap_or(0) as usize,
            total_max: settings.config.clients.total_max.unwrap_or(0) as usize,
            throttle: ConnectionThrottle::new(
                &settings.config.connection_throttle,
                settings.local_sessions(),
            ),
            large_bytes: AtomicUsize::new(0),
            large_min: limits
                .large_request_bytes_min
                .map_or(usize::MAX, |bytes| bytes as usize),
            large_max: limits.large_requests_bytes_max as usize,
        }
    }

    /// So many requests more wait for the replica core, or behind one that does; fewer, when more of them
    /// were answered or lost their connection.
    pub(crate) fn add_outstanding(&self, more: isize) {
        if more != 0 {
            self.outstanding.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// How many wait.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding_with(0)
    }

    /// How many wait, with `untold` that are not counted yet.
    fn outstanding_with(&self, untold: isize) -> usize {
        let told = self.outstanding.load(Ordering::Relaxed);
        usize::try_from(told + untold).unwrap_or(0)
    }

    /// Whether so many wait, with `untold` that are not counted yet, that a connection that waits itself
    /// should not be read (`globalOutstandingLimit`).
    pub(crate) fn over_limit(&self, untold: isize) -> bool {
        self.outstanding_with(untold) > self.outstanding_max
    }

    /// Whether so many wait, with `untold` that are not counted yet, that no further request is taken
    /// (`request_throttle_max_requests`).
    pub(crate) fn is_throttled(&self, untold: isize) -> bool {
        self.outstanding_with(untold) >= self.requests_max
    }

    /// Counts a write of `bytes` as large if it is, until [`SharedCounts::finished_large`] with the bytes
    /// returned (`largeRequestThreshold`).
    ///
    /// # Errors
    /// When too many bytes of large requests wait already (`largeRequestMaxBytes`).
    pub(crate) fn started_large(&self, bytes: usize) -> Result<usize, &'static str> {
        if bytes <= self.large_min {
            return Ok(0);
        }
        let before = self.large_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.large_max {
            self.finished_large(bytes);
            return Err("largeRequestMaxBytes");
        }
        Ok(bytes)
    }

    /// A large write is answered, or its connection is gone.
    pub(crate) fn finished_large(&self, bytes: usize) {
        if bytes > 0 {
            self.large_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Which shard is to serve a connection that came to the shard `accepted_on`: the first while it
    /// has few, then whichever has the fewest.
    pub(crate) fn place(&self, accepted_on: u32) -> u32 {
        let load = |shard: &AtomicUsize| shard.load(Ordering::Relaxed);
        if self.served.first().map_or(0, load) < self.first_shard_few {
            return 0;
        }
        let here = self.served.get(accepted_on as usize).map_or(0, load);
        let others = (0..).zip(&self.served).map(|(at, shard)| (load(shard), at));
        match others.min() {
            // Two that place at once may be one off; a hand-over for that is not worth it.
            Some((least, shard)) if least + 1 < here => shard,
            _ => accepted_on,
        }
    }

    /// A shard begins to serve a connection, or one is on its way to it.
    pub(crate) fn serving(&self, shard: u32) {
        if let Some(served) = self.served.get(shard as usize) {
            served.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// That connection is gone, or did not get there.
    pub(crate) fn served(&self, shard: u32) {
        if let Some(served) = self.served.get(shard as usize) {
            served.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection in, unless there are too many of them (`maxClientCnxns`, `maxCnxns`).
    ///
    /// # Errors
    /// Which limit it would exceed.
    pub(crate) fn connected(&self, address: IpAddr) -> Result<(), &'static str> {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.total_max > 0 && connections.total >= self.total_max {
            return Err("maxCnxns");
        }
        let here = connections.per_address.entry(address).or_default();
        if self.per_address_max > 0 && *here >= self.per_address_max {
            return Err("maxClientCnxns");
        }
        *here += 1;
        connections.total += 1;
        Ok(())
    }

    /// Whether a connect request is taken (`connection_throttle_*`).
    pub(crate) fn takes_connect(&self, is_new: bool) -> bool {
        self.throttle
            .as_ref()
            .is_none_or(|throttle| throttle.take(is_new))
    }

    /// Counts a connection out.
    pub(crate) fn disconnected(&self, address: IpAddr) {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.total = connections.total.saturating_sub(1);
        if let Some(here) = connections.per_address.get_mut(&address) {
            *here -= 1;
            if *here == 0 {
                connections.per_address.remove(&address);
            }
        }
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .total
    }
}
