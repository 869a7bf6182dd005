//! Time in ticks of the core: how long each step may take.

/// Durations, all counted in [`Input::Tick`](crate::Input::Tick)s. The caller ticks at a fixed
/// interval that it chooses (10 ms is good); ZooKeeper's `tickTime` is many of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// ZooKeeper's `tickTime`.
    pub tick_time: u64,
    /// How long discovery and synchronization may take (`initLimit` times `tickTime`).
    pub init_limit: u64,
    /// How long a peer may be silent, and a proposal unacknowledged (`syncLimit` times `tickTime`).
    pub sync_limit: u64,
    /// How long an election waits for a better vote when a quorum agrees but not all reachable voters
    /// have said so (ZooKeeper: `finalizeWait`, 200 ms).
    pub election_wait: u64,
    /// The first interval after which votes are sent again (200 ms); it doubles each time.
    pub notification_min: u64,
    /// Its maximum (ZooKeeper: 60 s; less is kinder where packets get lost).
    pub notification_max: u64,
}

impl Timing {
    /// The durations that a `zoo.cfg` asks for, when a tick of the core lasts `core_tick_ms`.
    pub fn new(tick_time_ms: u64, init_limit: u64, sync_limit: u64, core_tick_ms: u64) -> Self {
        let ticks = |ms: u64| ms.div_ceil(core_tick_ms.max(1)).max(1);
        let tick_time = ticks(tick_time_ms);
        Self {
            tick_time,
            init_limit: tick_time.saturating_mul(init_limit.max(1)),
            sync_limit: tick_time.saturating_mul(sync_limit.max(1)),
            election_wait: ticks(200),
            notification_min: ticks(200),
            notification_max: ticks(10_000),
        }
    }
}

impl Default for Timing {
    /// ZooKeeper's sample configuration (tickTime 2000, initLimit 10, syncLimit 5) at 10 ms a tick.
    fn default() -> Self {
        Self::new(2000, 10, 5, 10)
    }
}

/// A moment, in ticks since the replica began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// The moment `ticks` later.
    pub(crate) const fn after(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }

    /// Whether more than `ticks` have passed since `earlier`.
    pub(crate) const fn exceeds(self, earlier: Self, ticks: u64) -> bool {
        self.0.saturating_sub(earlier.0) > ticks
    }
}
