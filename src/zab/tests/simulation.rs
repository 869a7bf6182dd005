//! Random runs of a cluster: crashes that lose unflushed writes, partitions, cut links, lost
//! notifications, purged logs, a wiped disk. Each step is checked; when the faults cease, a write must
//! commit everywhere.
//!
//! A failure names its seed. `SIM_SEED=<n>` runs that one alone, `SIM_SEEDS=<n>` and `SIM_STEPS=<n>`
//! widen the search, `SIM_PRINT=1` prints every input and output.

mod cluster;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{RefUnwindSafe, catch_unwind, resume_unwind};

use ringkeeper_proto::ServerId;
use ringkeeper_zab::{Ensemble, LinkId, Role, Timing};

use cluster::Cluster;
use cluster::disk::Disk;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len())).copied()
    }
}

struct Simulation {
    cluster: Cluster,
    random: Random,
    ids: Vec<ServerId>,
    /// How often faults come: 1 rarely, 3 often.
    faults: usize,
    weather: Weather,
}

/// What a run is like. Rare orders of events come about where one kind of trouble is common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Mixed,
    /// Links break and servers part, all the time; nobody crashes.
    Network,
    /// Servers end and start, all the time.
    Crashes,
    /// Disks report late.
    SlowDisks,
}

fn timing() -> Timing {
    Timing {
        tick_time: 4,
        init_limit: 60,
        sync_limit: 24,
        election_wait: 4,
        notification_min: 4,
        notification_max: 32,
    }
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let voters = [3, 5][random.below(2)];
        let observers = u64::from(random.chance(3));
        let config = Ensemble::majority(
            (1..=voters).map(ServerId),
            (voters + 1..=voters + observers).map(ServerId),
        )
        .expect("voters");
        let mut cluster = Cluster::new(config, timing());
        if random.chance(2) {
            cluster.counter_max = 1 + u32::try_from(random.below(8)).expect("small");
        }
        let ids = cluster.nodes.keys().copied().collect();
        let faults = 1 + random.below(3);
        let kinds = [
            Weather::Mixed,
            Weather::Network,
            Weather::Crashes,
            Weather::SlowDisks,
        ];
        let weather = random.pick(&kinds).expect("kinds");
        Self {
            cluster,
            random,
            ids,
            faults,
            weather,
        }
    }

    /// Three voters, and two observers that go to followers.
    fn with_observers(seed: u64) -> Self {
        let config =
            Ensemble::majority([1, 2, 3].map(ServerId), [4, 5].map(ServerId)).expect("voters");
        let mut cluster = Cluster::new(config, timing());
        cluster.masters = Some(0);
        let mut simulation = Self {
            ids: cluster.nodes.keys().copied().collect(),
            cluster,
            faults: 1,
            weather: Weather::Mixed,
            ..Self::new(seed)
        };
        if simulation.random.chance(2) {
            simulation.cluster.counter_max = 2 + u32::try_from(seed % 8).expect("small");
        }
        simulation
    }

    /// An observer goes, comes, loses its link, or prefers another follower.
    fn trouble_an_observer(&mut self) {
        let observer = ServerId(4 + u64::from(self.random.chance(2)));
        match self.random.below(8) {
            0 => self.cluster.crash(observer, 1, 1),
            1..=3 => self.cluster.start(observer),
            4 => {
                let links = self.cluster.links.iter();
                let own = |(_, link): &(&LinkId, &cluster::Link)| link.learner == observer;
                let own = links.filter(own).map(|(id, _)| *id).next();
                own.into_iter().for_each(|link| self.cluster.cut(link));
            }
            5 => self.cluster.purge(ServerId(1 + self.random.next() % 3)),
            _ => self.cluster.masters = Some(self.random.below(2)),
        }
    }

    /// Much is written, and everybody gets to do what there is to do, now and then but for one disk.
    fn run_with_observers(&mut self, rounds: usize) {
        for id in self.ids.clone() {
            self.cluster.start(id);
        }
        for _ in 0..rounds {
            let held = self.random.chance(3).then(|| self.random.pick(&self.ids));
            let held: Vec<ServerId> = held.flatten().into_iter().collect();
            for _ in 0..self.random.below(60) {
                self.act();
            }
            self.trouble_an_observer();
            if self.random.chance(12) {
                self.fault();
            }
            if self.random.chance(40) {
                self.hand_over();
            }
            for _ in 0..self.random.below(3) {
                for id in self.ids.clone() {
                    self.cluster.tick(id);
                }
                self.cluster.settle(&held);
            }
            let leads = |id: &ServerId| matches!(self.cluster.nodes[id].role, Role::Leading { .. });
            if let Some(leader) = self.ids.iter().copied().find(leads) {
                for _ in 0..self.random.below(4) {
                    self.cluster.propose(leader);
                }
            }
            self.cluster.check_applied();
        }
    }

    fn run(&mut self, steps: usize) {
        for id in self.ids.clone() {
            self.cluster.start(id);
        }
        for step in 0..steps {
            // Calm spells let work get done between storms.
            let calm = step % 1_500 < 500;
            self.act();
            let rarity = match self.weather {
                Weather::Network | Weather::Crashes => 40,
                Weather::Mixed | Weather::SlowDisks => 120,
            };
            if self.random.chance(240 / self.faults) {
                self.hand_over();
            }
            if !calm && self.random.chance(rarity / self.faults) {
                self.fault();
            }
            if step % 16 == 0 {
                self.cluster.check_applied();
            }
        }
    }

    /// Something that is due happens.
    fn act(&mut self) {
        let id = self.random.pick(&self.ids).expect("members");
        let slow = self.weather == Weather::SlowDisks && self.random.below(10) < 8;
        match self.random.below(20) {
            0 => self.cluster.tick(id),
            1..=6 if slow => {}
            1..=2 => {
                let count = 1 + self
                    .random
                    .below(self.cluster.nodes[&id].disk.unflushed().max(1));
                self.cluster.flush(id, count);
            }
            3 => drop(self.cluster.save(id)),
            4 => drop(self.cluster.install(id)),
            5..=6 => drop(self.cluster.complete(id)),
            7 => drop(self.cluster.is_up(id) && self.cluster.connect(id)),
            8 => {
                let leads =
                    |id: &ServerId| matches!(self.cluster.nodes[id].role, Role::Leading { .. });
                if let Some(leader) = self.ids.iter().copied().find(leads) {
                    self.cluster.propose(leader);
                }
            }
            9..=11 => {
                let to = self.random.pick(&self.ids).expect("members");
                let lose = self.faults > 1 && self.random.chance(20);
                self.cluster.notify(id, to, lose);
            }
            _ => {
                let links: Vec<LinkId> = self.cluster.links.keys().copied().collect();
                if let Some(link) = self.random.pick(&links) {
                    for _ in 0..=self.random.below(4) {
                        let to_leader = self.random.chance(2);
                        self.cluster.deliver(link, to_leader);
                    }
                }
            }
        }
    }

    fn fault(&mut self) {
        let id = self.random.pick(&self.ids).expect("members");
        let other = self.random.pick(&self.ids).expect("members");
        let kind = match self.weather {
            Weather::Mixed | Weather::SlowDisks => self.random.below(16),
            Weather::Network => 6 + self.random.below(5),
            Weather::Crashes => match self.random.below(8) {
                6 => 14,
                7 => 15,
                kind => kind,
            },
        };
        match kind {
            0..=1 => {
                let ops = self
                    .random
                    .below(self.cluster.nodes[&id].disk.unflushed() + 1);
                let saves = self.random.below(2);
                self.cluster.count("crash");
                self.cluster.crash(id, ops, saves);
            }
            2..=5 => self.cluster.start(id),
            6 => self.cluster.part(id, other),
            7..=8 => self.cluster.heal(id, other),
            9 => {
                let links: Vec<LinkId> = self.cluster.links.keys().copied().collect();
                if let Some(link) = self.random.pick(&links) {
                    self.cluster.cut(link);
                }
            }
            10 => self.cluster.purge(id),
            11 => self.wipe(id),
            14 => self.tear(id),
            15 if self.random.chance(4) => self.tear_all(),
            15 => {}
            _ => self.isolate_leader(),
        }
    }

    /// A leader is asked to hand over, to anybody or to somebody.
    fn hand_over(&mut self) {
        let leads = |id: &ServerId| matches!(self.cluster.nodes[id].role, Role::Leading { .. });
        let Some(leader) = self.ids.iter().copied().find(leads) else {
            return;
        };
        let to = match self.random.chance(2) {
            true => self.random.pick(&self.ids),
            false => None,
        };
        self.cluster.hand_over(leader, to, to.is_none());
    }

    /// A leader that nobody hears goes on proposing: what it logs then is to be cut off later.
    fn isolate_leader(&mut self) {
        let leads = |id: &ServerId| matches!(self.cluster.nodes[id].role, Role::Leading { .. });
        let Some(leader) = self.ids.iter().copied().find(leads) else {
            return;
        };
        for other in self.ids.clone() {
            self.cluster.part(leader, other);
        }
        for _ in 0..=self.random.below(3) {
            self.cluster.propose(leader);
        }
        self.cluster.flush(leader, self.random.below(4));
        self.cluster.count("leader isolated");
    }

    /// A server ends in a torn write. If all other disks have kept their word, what it has acknowledged may go too.
    fn tear(&mut self, id: ServerId) {
        let honest = |disk: &Disk| !disk.is_blank() && !disk.broke_its_word;
        let mut nodes = self.cluster.nodes.values();
        let lost = match nodes.all(|node| node.id == id || honest(&node.disk)) {
            true if self.random.chance(2) => 1 + self.random.below(2),
            _ => 0,
        };
        let known = self.random.chance(2);
        self.cluster.crash_torn(id, lost, known);
        let what = match self.cluster.nodes[&id].disk.broke_its_word {
            true => "acknowledged and torn",
            false => "torn",
        };
        self.cluster.count(what);
    }

    /// The power fails, and all come back with what they were writing torn.
    fn tear_all(&mut self) {
        for id in self.ids.clone() {
            let known = self.random.chance(2);
            self.cluster.crash_torn(id, 0, known);
        }
        for id in self.ids.clone() {
            self.cluster.start(id);
        }
        self.cluster.count("all torn");
    }

    /// A disk is replaced by a blank one, unless another one still is blank: what two of three have
    /// forgotten is gone. Nor if a quorum were blank then, servers that never joined included: that is
    /// how a new ensemble looks.
    fn wipe(&mut self, id: ServerId) {
        let honest = |disk: &Disk| !disk.wiped && !disk.broke_its_word;
        let enough = self.cluster.nodes.values().all(|node| honest(&node.disk));
        let blank = |other| other == id || self.cluster.nodes[&other].disk.is_blank();
        let new = self.cluster.config.is_quorum(blank);
        if enough && !new && !self.cluster.committed.is_empty() {
            self.cluster.crash(id, 0, 0);
            self.cluster.node(id).disk.wipe();
            self.cluster.count("wiped");
        }
    }

    /// Faults cease: within a bounded time every server shows a new write.
    fn recover(&mut self) {
        for a in self.ids.clone() {
            for b in self.ids.clone() {
                self.cluster.heal(a, b);
            }
        }
        for id in self.ids.clone() {
            self.cluster.start(id);
        }
        let mut written = None;
        for _ in 0..600 {
            self.cluster.settle(&[]);
            for id in self.ids.clone() {
                // What a former leader had not committed may be gone; then another write follows it.
                let node = &self.cluster.nodes[&id];
                let known = node
                    .disk
                    .view
                    .entries()
                    .any(|(_, value)| Some(*value) == written);
                if matches!(node.role, Role::Leading { .. }) && !known {
                    written = self.cluster.propose(id);
                }
                self.cluster.tick(id);
            }
            let shown = |id: &ServerId| {
                let applied = &self.cluster.nodes[id].applied;
                applied.last().map(|(_, value)| *value) == written
            };
            if written.is_some() && self.ids.iter().all(shown) {
                self.cluster.check_applied();
                return;
            }
        }
        let phases: Vec<_> = self
            .cluster
            .nodes
            .values()
            .map(|node| {
                let replica = node.replica.as_ref().expect("started");
                format!(
                    "{} {} {:?} {:?}\n",
                    node.id,
                    replica.phase_name(),
                    replica.epochs(),
                    replica.last_logged()
                )
            })
            .collect();
        panic!(
            "no write commits after the faults ceased:\n{}",
            phases.concat()
        );
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn random_runs_keep_the_invariants_and_recover() {
    let (first, seeds) = match number("SIM_SEED", 0) {
        0 => (1, number("SIM_SEEDS", 300)),
        seed => (seed, 1),
    };
    let steps = usize::try_from(number("SIM_STEPS", 6_000)).unwrap();
    let replay = format!("SIM_STEPS={steps} cargo test -p ringkeeper-zab --test simulation");
    let totals = run_seeds(first..first + seeds, &replay, |seed| {
        let mut simulation = Simulation::new(seed);
        simulation.cluster.print = number("SIM_PRINT", 0) > 0;
        simulation.run(steps);
        simulation.recover();
        simulation.cluster.stats
    });
    eprintln!("{seeds} runs of {steps} steps: {totals:?}");
    // A run in which nothing happens proves nothing.
    if seeds >= 100 {
        let needed = [
            "committed",
            "leader",
            "crash",
            "wiped",
            "torn",
            "acknowledged and torn",
            "all torn",
            "truncated",
            "snapshot installed",
            "history read",
            "link cut",
            "handed over",
            "led on",
            "moved",
            "new epoch",
        ];
        for what in needed {
            assert!(
                totals.get(what).copied().unwrap_or(0) >= seeds / 10,
                "{what} hardly happened"
            );
        }
    }
}

/// Runs each seed, and adds up what happened. The first that fails says how it is replayed.
fn run_seeds(
    seeds: Range<u64>,
    replay: &str,
    run: impl Fn(u64) -> BTreeMap<&'static str, u64> + RefUnwindSafe,
) -> BTreeMap<&'static str, u64> {
    let mut totals = BTreeMap::new();
    for seed in seeds {
        let stats = catch_unwind(|| run(seed)).unwrap_or_else(|cause| {
            eprintln!("SIM_SEED={seed} {replay}");
            resume_unwind(cause)
        });
        for (what, count) in stats {
            *totals.entry(what).or_default() += count;
        }
    }
    totals
}

/// What [`cluster`] checks at every step holds for observers that are served by followers as well. (TRUNC they need too
/// rarely: `observer_master_tests.rs` has it.)
#[test]
fn observers_at_followers_show_what_is_committed() {
    let (first, seeds) = match number("SIM_SEED", 0) {
        0 => (1, number("SIM_SEEDS", 120)),
        seed => (seed, 1),
    };
    let replay = "cargo test -p ringkeeper-zab --test simulation observers";
    let totals = run_seeds(first..first + seeds, replay, |seed| {
        let mut simulation = Simulation::with_observers(seed);
        simulation.cluster.print = number("SIM_PRINT", 0) > 0;
        simulation.run_with_observers(300);
        simulation.recover();
        simulation.cluster.stats
    });
    eprintln!("{seeds} runs: {totals:?}");
    if seeds >= 100 {
        let needed = [
            "DIFF by a follower",
            "SNAP by a follower",
            "INFORM by a follower",
        ];
        for what in needed {
            assert!(totals.contains_key(what), "{what} did not happen");
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let run = || {
        let mut simulation = Simulation::new(7);
        simulation.cluster.trace = Some(Vec::new());
        simulation.run(3_000);
        simulation.cluster.trace
    };
    assert_eq!(run(), run());
}
