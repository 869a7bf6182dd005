//! Whether a leader limps: a disk or a network that is so slow that the ensemble would do better under another.
//!
//! [`Limping`] decides from measurements alone. It is slow to decide, for a hand-over too costs a pause, and the next
//! leader may be no better: what is measured must be bad for some time; a reign that has just begun is left alone; and
//! when nobody can take over, it asks again after ever longer pauses. Nobody is ever left without a leader.
//!
//! A disk limps when its durable writes take longer than a bound *and* several times as long as a quorum of the others
//! takes for the same transactions, the way there and back included: where all are slow nobody is better. A network
//! limps when a quorum's answers to PING, for which nobody waits on a disk, take longer than a bound.

use ringkeeper_config::LimpingConfig;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::Disk;

use crate::core::Core;
use crate::standing::Standing;

/// A disk limps when others, network included, are this many times as fast.
const FACTOR: u64 = 4;

/// Fewer measurements decide nothing.
const SAMPLES_MIN: u32 = 5;

/// So many of ten must be bad.
const BAD_OF_TEN: u32 = 8;

/// Pauses after refusals double this often at most.
const DOUBLINGS_MAX: u32 = 6;

/// A measurement that takes longer than this is given up.
const PROBE_US_MAX: u64 = 30_000_000;

/// What limps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limp {
    Disk,
    Network,
}

/// Measurements of one kind since some moment.
#[derive(Debug, Default)]
struct Window {
    since_ms: Option<u64>,
    bad: u32,
    all: u32,
}

impl Window {
    fn add(&mut self, is_bad: bool, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
        self.all += 1;
        self.bad += u32::from(is_bad);
    }

    /// Whether it was bad for long enough; afterwards it begins anew.
    fn is_bad(&mut self, now_ms: u64, sustained_ms: u64) -> bool {
        let is_over = self
            .since_ms
            .is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= sustained_ms);
        if !is_over {
            return false;
        }
        let is_bad = self.all >= SAMPLES_MIN && self.bad * 10 >= self.all * BAD_OF_TEN;
        *self = Self::default();
        is_bad
    }
}

/// The decision.
#[derive(Debug)]
pub(crate) struct Limping {
    bounds: LimpingConfig,
    disk: Window,
    network: Window,
    /// Nothing is decided before.
    quiet_until_ms: u64,
    refusals: u32,
}

impl Limping {
    pub(crate) fn new(bounds: LimpingConfig) -> Self {
        Self {
            bounds,
            disk: Window::default(),
            network: Window::default(),
            quiet_until_ms: 0,
            refusals: 0,
        }
    }

    /// This server leads from now on.
    pub(crate) fn begin_reign(&mut self, now_ms: u64) {
        self.disk = Window::default();
        self.network = Window::default();
        self.refusals = 0;
        self.quiet_until_ms = now_ms.saturating_add(self.bounds.pause_ms);
    }

    /// Transactions were durable here after `own_us`, and at a quorum if this server is counted after `others_us`.
    pub(crate) fn disk(&mut self, own_us: u64, others_us: u64, now_ms: u64) {
        let is_bad = own_us >= self.bounds.disk_ms.saturating_mul(1000)
            && own_us >= others_us.saturating_mul(FACTOR);
        self.disk.add(is_bad, now_ms);
    }

    /// A quorum has answered a PING after so long.
    pub(crate) fn network(&mut self, round_us: u64, now_ms: u64) {
        let is_bad = round_us >= self.bounds.network_ms.saturating_mul(1000);
        self.network.add(is_bad, now_ms);
    }

    /// What limps, if leadership is to be handed over now.
    pub(crate) fn decide(&mut self, now_ms: u64) -> Option<Limp> {
        let sustained_ms = self.bounds.sustained_ms;
        let disk = self.disk.is_bad(now_ms, sustained_ms) && self.bounds.disk_ms > 0;
        let network = self.network.is_bad(now_ms, sustained_ms) && self.bounds.network_ms > 0;
        let limp = match (disk, network) {
            (true, _) => Limp::Disk,
            (false, true) => Limp::Network,
            (false, false) => return None,
        };
        if now_ms < self.quiet_until_ms {
            return None;
        }
        // Until it is known what becomes of it.
        self.quiet_until_ms = now_ms.saturating_add(self.bounds.pause_ms);
        Some(limp)
    }

    /// Nobody could take over.
    pub(crate) fn refused(&mut self, now_ms: u64) {
        self.refusals = (self.refusals + 1).min(DOUBLINGS_MAX);
        let pause_ms = self.bounds.pause_ms.saturating_mul(1 << self.refusals);
        self.quiet_until_ms = now_ms.saturating_add(pause_ms);
    }
}

/// What is being measured.
#[derive(Debug)]
pub(crate) struct Measuring {
    pub(crate) limping: Limping,
    probe: Option<Probe>,
    /// The last transaction that was measured.
    probed: Zxid,
    round: Option<Round>,
    /// What was measured last, in microseconds.
    pub(crate) own_us: u64,
    pub(crate) others_us: u64,
    pub(crate) round_us: u64,
}

/// A transaction on its way to the disks.
#[derive(Debug)]
struct Probe {
    zxid: Zxid,
    since_us: u64,
    own_us: Option<u64>,
    others_us: Option<u64>,
    /// While the own disk does not answer: how often that was counted.
    overdue: u64,
}

/// A round of PINGs.
#[derive(Debug)]
struct Round {
    number: u64,
    since_us: u64,
    is_over: bool,
    overdue: u64,
}

impl Measuring {
    pub(crate) fn new(bounds: LimpingConfig) -> Self {
        Self {
            limping: Limping::new(bounds),
            probe: None,
            probed: Zxid::ZERO,
            round: None,
            own_us: 0,
            others_us: 0,
            round_us: 0,
        }
    }

    pub(crate) fn begin_reign(&mut self, now_ms: u64) {
        self.limping.begin_reign(now_ms);
        self.probe = None;
        self.round = None;
    }
}

impl<D: Disk> Core<D> {
    /// Looks at how far everybody is; as leader, hands over when this server limps.
    pub(crate) fn watch_itself(&mut self) {
        if !matches!(self.standing, Standing::Leading(_)) {
            return;
        }
        self.watch_disks();
        self.watch_network();
        if self.zab.is_paused() {
            return;
        }
        let now_ms = self.now.monotonic_ms();
        let Some(limp) = self.measuring.limping.decide(now_ms) else {
            return;
        };
        let ms = |us: u64| us as f64 / 1000.0;
        let measured = &self.measuring;
        match limp {
            Limp::Disk => {
                tracing::warn!(
                    own_ms = ms(measured.own_us),
                    others_ms = ms(measured.others_us),
                    "this leader's disk limps, and the others' do not: handing over"
                );
            }
            Limp::Network => {
                tracing::warn!(
                    ping_ms = ms(measured.round_us),
                    "this leader's network limps: handing over"
                );
            }
        }
        self.stats.limps += 1;
        // Through a network that limps nobody catches up in half a tick.
        self.begin_hand_over(None, limp == Limp::Network);
    }

    fn watch_disks(&mut self) {
        let now_us = self.now.monotonic_us;
        let now_ms = self.now.monotonic_ms();
        let last = self.zab.last_logged();
        let measuring = &mut self.measuring;
        let Some(probe) = &mut measuring.probe else {
            if last > measuring.probed && last > self.committed {
                measuring.probed = last;
                measuring.probe = Some(Probe {
                    zxid: last,
                    since_us: now_us,
                    own_us: None,
                    others_us: None,
                    overdue: 0,
                });
            }
            return;
        };
        let took_us = now_us.saturating_sub(probe.since_us);
        if probe.own_us.is_none() && self.zab.is_flushed(probe.zxid) {
            probe.own_us = Some(took_us);
        }
        if probe.others_us.is_none() && self.zab.others_have(probe.zxid) {
            probe.others_us = Some(took_us);
        }
        let bound_us = measuring.limping.bounds.disk_ms.saturating_mul(1000).max(1);
        match (probe.own_us, probe.others_us) {
            (Some(own_us), Some(others_us)) => {
                (measuring.own_us, measuring.others_us) = (own_us, others_us);
                measuring.limping.disk(own_us, others_us, now_ms);
                measuring.probe = None;
            }
            (None, Some(others_us)) if took_us / bound_us > probe.overdue => {
                probe.overdue = took_us / bound_us;
                (measuring.own_us, measuring.others_us) = (took_us, others_us);
                measuring.limping.disk(took_us, others_us, now_ms);
            }
            _ if took_us > PROBE_US_MAX => measuring.probe = None,
            _ => {}
        }
    }

    fn watch_network(&mut self) {
        let (number, confirmed) = self.zab.ping_rounds();
        let now_us = self.now.monotonic_us;
        let now_ms = self.now.monotonic_ms();
        let measuring = &mut self.measuring;
        let is_known = |round: &&mut Round| !round.is_over || round.number == number;
        let Some(round) = measuring.round.as_mut().filter(is_known) else {
            measuring.round = Some(Round {
                number,
                since_us: now_us,
                is_over: number <= confirmed,
                overdue: 0,
            });
            return;
        };
        if round.is_over {
            return;
        }
        let took_us = now_us.saturating_sub(round.since_us);
        let bound_us = measuring
            .limping
            .bounds
            .network_ms
            .saturating_mul(1000)
            .max(1);
        if confirmed >= round.number {
            round.is_over = true;
        } else if took_us / bound_us > round.overdue {
            round.overdue = took_us / bound_us;
        } else {
            return;
        }
        measuring.round_us = took_us;
        measuring.limping.network(took_us, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: LimpingConfig = LimpingConfig {
        disk_ms: 200,
        network_ms: 300,
        sustained_ms: 5_000,
        pause_ms: 60_000,
    };

    fn limping() -> Limping {
        let mut limping = Limping::new(BOUNDS);
        limping.begin_reign(0);
        limping
    }

    /// Measures the disks every 500 ms, and says when leadership is to be handed over first.
    fn disks(
        limping: &mut Limping,
        from_ms: u64,
        to_ms: u64,
        own: u64,
        others: u64,
    ) -> Option<u64> {
        let mut moments = (from_ms..to_ms).step_by(500);
        moments.find(|now_ms| {
            limping.disk(own * 1000, others * 1000, *now_ms);
            limping.decide(*now_ms).is_some()
        })
    }

    #[test]
    fn a_disk_limps_when_it_is_slow_for_long_and_others_are_not() {
        let decide = |own, others| disks(&mut limping(), 100_000, 120_000, own, others);
        assert_eq!(decide(250, 5), Some(105_000));
        assert_eq!(decide(150, 5), None, "not that slow");
        assert_eq!(decide(250, 100), None, "the others are as slow");
        let mut short = limping();
        assert_eq!(disks(&mut short, 100_000, 104_000, 250, 5), None);
        let later = disks(&mut short, 104_000, 120_000, 2, 5);
        assert_eq!(later, None, "it was over soon");
    }

    #[test]
    fn a_network_limps_when_pings_are_slow_for_long() {
        for (round_ms, expected) in [(350, Some(Limp::Network)), (250, None)] {
            let mut limping = limping();
            let mut decided = None;
            for now_ms in (100_000..106_000).step_by(1000) {
                limping.network(round_ms * 1000, now_ms);
                decided = decided.or_else(|| limping.decide(now_ms));
            }
            assert_eq!(decided, expected, "{round_ms}");
        }
    }

    #[test]
    fn too_few_measurements_decide_nothing() {
        let mut limping = limping();
        for now_ms in [100_000, 103_000, 106_000, 109_000, 112_000] {
            limping.disk(900_000, 1_000, now_ms);
            assert_eq!(limping.decide(now_ms), None);
        }
    }

    #[test]
    fn a_new_reign_is_left_alone_and_refusals_make_patient() {
        let mut limping = limping();
        limping.begin_reign(100_000);
        let first = disks(&mut limping, 100_000, 300_000, 250, 5);
        let first = first.expect("it limps");
        assert!((160_000..170_000).contains(&first), "{first}");
        let mut last = first;
        for doubling in 1..4 {
            limping.refused(last);
            let next = disks(&mut limping, last, last + 2_000_000, 250, 5);
            let next = next.expect("it still limps");
            let pause = 60_000 << doubling;
            assert!((pause..pause + 10_000).contains(&(next - last)), "{next}");
            last = next;
        }
    }

    #[test]
    fn a_bound_of_zero_switches_it_off() {
        let mut limping = Limping::new(LimpingConfig {
            disk_ms: 0,
            ..BOUNDS
        });
        limping.begin_reign(0);
        assert_eq!(disks(&mut limping, 100_000, 120_000, 900, 1), None);
    }
}
