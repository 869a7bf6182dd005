//! What a seed decides before anything happens: how large the ensemble is, its time-outs, how much goes wrong.

use std::sync::Arc;

use ringkeeper_config::{Beside, Loaded, RawConfig};
use ringkeeper_member::Settings;
use ringkeeper_storage::LogOptions;

use crate::random::Random;

const SECOND: u64 = 1_000_000;

/// The parameters of a run. Times in microseconds of virtual time unless they say otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// All members; the first ones vote, the others observe.
    pub(crate) servers: usize,
    pub(crate) voters: usize,
    /// Observers go to followers (`observerMasterPort`), as long as there are any.
    pub(crate) masters: bool,
    /// `tickTime`.
    pub(crate) tick_ms: u64,
    pub(crate) init_limit: u64,
    pub(crate) sync_limit: u64,
    /// One of Zab's ticks.
    pub(crate) core_tick_ms: u64,
    pub(crate) clients: usize,
    /// How long a client thinks between two requests, on average.
    pub(crate) think: u64,
    /// Requests of a client under way at most.
    pub(crate) pipeline: usize,
    /// A snapshot is taken after so many transactions.
    pub(crate) snapshot_txns: u64,
    pub(crate) snapshots_kept: usize,
    pub(crate) net_delay: u64,
    pub(crate) disk_delay: u64,
    /// Between two faults, on average.
    pub(crate) fault_every: u64,
    /// How long faults go on.
    pub(crate) duration: u64,
    /// How often, in a thousand, a disk with several things to do finishes any of them and not the first.
    pub(crate) disk_disorder: u64,
    /// The last counter of an epoch; 0 for the protocol's.
    pub(crate) counter_max: u64,
    /// How long a leader's disk or network must be slow until it hands over, in milliseconds.
    pub(crate) limping_ms: u64,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::stream(seed, "plan");
        let tick_ms = random.pick(&[200, 500, 1000, 2000]);
        let voters = random.pick(&[3, 3, 5]);
        // A stream of its own: it shifts nothing of a run without observers.
        let mut observers = Random::stream(seed, "observers");
        Self {
            servers: voters + observers.pick(&[0, 0, 0, 0, 1, 2]),
            voters,
            masters: observers.chance(800),
            tick_ms,
            init_limit: random.between(5, 10),
            sync_limit: random.between(2, 5),
            core_tick_ms: random.pick(&[10, 20, 20, 50]),
            clients: random.index(5) + 3,
            think: random.between(50_000, 800_000),
            pipeline: random.index(4) + 1,
            snapshot_txns: random.between(30, 600),
            snapshots_kept: random.index(2) + 2,
            net_delay: random.between(30, 1000),
            disk_delay: random.between(50, 3000),
            fault_every: random.between(SECOND, 12 * SECOND),
            duration: random.between(300 * SECOND, 900 * SECOND),
            disk_disorder: random.pick(&[0, 300, 900]),
            counter_max: random.pick(&[0, 0, 200, 2000]),
            limping_ms: random.pick(&[500, 2000, 5000]),
        }
    }

    /// The configuration of a member, as its file would have it.
    pub(crate) fn settings(&self, member: usize) -> Arc<Settings> {
        let mut text = format!(
            "dataDir=/data\nclientPort=2181\ntickTime={}\ninitLimit={}\nsyncLimit={}\n\
             jute.maxbuffer=8192\njute.maxbuffer.extrasize=8192\nringkeeper.test.counterMax={}\n\
             ringkeeper.limping.sustainedMs={}\nringkeeper.limping.pauseMs=5000\n\
             ringkeeper.limping.diskMs=20\nringkeeper.limping.networkMs=20\n",
            self.tick_ms, self.init_limit, self.sync_limit, self.counter_max, self.limping_ms
        );
        for id in 1..=self.servers {
            let role = if id > self.voters { ":observer" } else { "" };
            text.push_str(&format!("server.{id}=n{id}:2888:3888{role}\n"));
        }
        if self.masters {
            text.push_str("observerMasterPort=2889\n");
        }
        let raw = RawConfig::parse("sim", text.as_bytes()).expect("the text is well-formed");
        let beside = Beside {
            my_id: Some(member.to_string()),
            dynamic: None,
        };
        let loaded = Loaded::new(&raw, &beside).expect("the settings are valid");
        Arc::new(Settings::new(loaded.config))
    }

    /// Small files, so that segments are changed often.
    pub(crate) fn log_options(settings: &Settings) -> LogOptions {
        LogOptions {
            segment_bytes: 96 << 10,
            batch_bytes_max: 16 << 10,
            record_bytes_max: settings.tree.txn_len_max,
            free_bytes_min: 0,
            spares_kept: 1,
        }
    }
}
