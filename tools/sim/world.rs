//! Everything in one place: virtual time, and the events that are to come, one after the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use ringkeeper_zab::LinkId;

use crate::check::{Checks, Violation};
use crate::client::{Client, Connections};
use crate::member::Member;
use crate::nemesis::Undo;
use crate::network::{Connect, Network};
use crate::plan::Plan;
use crate::random::Random;
use crate::shard::{ToClient, ToServer};
use crate::trace::Trace;

const SECOND: u64 = 1_000_000;

/// Writes flow while one was acknowledged in a span of this length.
const FLOW_SPAN: u64 = 10 * SECOND;

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    Tick {
        member: usize,
        life: u64,
    },
    Turn {
        member: usize,
        life: u64,
    },
    DiskDone {
        member: usize,
        life: u64,
    },
    TakeSnapshot {
        member: usize,
        life: u64,
    },
    KeepSnapshot {
        member: usize,
        life: u64,
    },
    SendChunk {
        member: usize,
        life: u64,
        link: LinkId,
    },
    Sprung {
        member: usize,
        life: u64,
    },
    ToServer {
        member: usize,
        life: u64,
        connection: u64,
        message: ToServer,
    },
    Connect(Connect),
    Pump {
        link: u64,
        side: usize,
    },
    Call {
        pair: (usize, usize),
        call: u64,
    },
    ToClient {
        connection: u64,
        message: ToClient,
    },
    Act {
        client: usize,
    },
    LoseLeader {
        member: usize,
        life: u64,
    },
    Strike,
    Undo(Undo),
}

struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// How often what happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Faults that fired.
    pub faults: BTreeMap<&'static str, u64>,
    /// Everything else.
    pub others: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(crate) fn add(&mut self, what: &'static str) {
        *self.others.entry(what).or_insert(0) += 1;
    }

    pub(crate) fn fault(&mut self, what: &'static str) {
        *self.faults.entry(what).or_insert(0) += 1;
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in [
            (&mut self.faults, &other.faults),
            (&mut self.others, &other.others),
        ] {
            for (what, count) in theirs {
                *ours.entry(what).or_insert(0) += count;
            }
        }
    }
}

/// A run.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    events: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    pub(crate) trace: Trace,
    pub(crate) network: Network,
    /// By their numbers; the first place is nobody's.
    pub(crate) members: Vec<Member>,
    pub(crate) clients: Vec<Client>,
    pub(crate) connections: Connections,
    pub(crate) checks: Checks,
    pub(crate) counts: Counts,
    pub(crate) faults: Random,
    pub(crate) disks: Random,
    pub(crate) sectors: Random,
    pub(crate) client_delays: Random,
    pub(crate) reigns: u64,
    /// A violation that was found where none can be returned.
    pub(crate) found: Option<Violation>,
    acknowledged: u64,
    /// The end of the last span that counts.
    flowed_until: u64,
    flowed: u64,
}

impl Drop for World {
    /// The tasks of a disk hold the disk, and it holds them: without this no run would ever be freed.
    fn drop(&mut self) {
        self.members
            .iter()
            .for_each(|member| member.disk.kill_tasks());
    }
}

impl World {
    pub(crate) fn new(seed: u64, print: bool) -> Self {
        let plan = Plan::of(seed);
        let mut clocks = Random::stream(seed, "clocks");
        let members = (0..=plan.servers)
            .map(|number| {
                let skew_ms = i64::try_from(clocks.below(4000)).unwrap_or(0) - 2000;
                Member::new(number, seed, skew_ms)
            })
            .collect();
        let clients = (0..plan.clients)
            .map(|number| Client::new(seed, number, plan.tick_ms))
            .collect();
        Self {
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            trace: Trace::new(print),
            network: Network::new(seed, plan.net_delay),
            members,
            clients,
            connections: Connections::default(),
            checks: Checks::new(),
            counts: Counts::default(),
            faults: Self::faults_of(seed),
            disks: Random::stream(seed, "disks"),
            sectors: Random::stream(seed, "sectors"),
            client_delays: Random::stream(seed, "client delays"),
            reigns: 0,
            found: None,
            acknowledged: 0,
            flowed_until: 0,
            flowed: 0,
            plan,
        }
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let sequence = self.sequence;
        let at = at.max(self.now);
        self.events.push(Reverse(Scheduled {
            at,
            sequence,
            event,
        }));
    }

    /// A write was acknowledged.
    pub(crate) fn acknowledged(&mut self) {
        self.acknowledged += 1;
        let span = self.now - self.now % FLOW_SPAN;
        if span + FLOW_SPAN > self.flowed_until {
            self.flowed_until = span + FLOW_SPAN;
            self.flowed += FLOW_SPAN;
        }
    }

    /// Virtual time in which writes were acknowledged, in seconds.
    pub(crate) const fn flowed_seconds(&self) -> u64 {
        self.flowed / SECOND
    }

    /// Runs to the end: first with faults, then without.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        for member in 1..=self.plan.servers {
            self.start(member);
        }
        self.start_calls();
        for client in 0..self.clients.len() {
            self.schedule(0, Event::Act { client });
        }
        self.schedule(self.faults_begin(), Event::Strike);
        let duration = self.plan.duration;
        self.run_until(duration)?;
        self.make_good();
        self.trace.note(self.now, 0, "no more faults", 0, 0);
        self.recover()
    }

    const fn faults_begin(&self) -> u64 {
        3 * SECOND
    }

    fn run_until(&mut self, end: u64) -> Result<(), Violation> {
        while self.events.peek().is_some_and(|Reverse(it)| it.at <= end) {
            let Some(Reverse(Scheduled { at, event, .. })) = self.events.pop() else {
                break;
            };
            self.now = at;
            self.happen(event)?;
            if let Some(violation) = self.found.take() {
                return Err(violation);
            }
        }
        self.now = end;
        Ok(())
    }

    /// After the faults a write commits on every member, within the time that an election and a synchronization
    /// may take; and then nobody loses a session.
    fn recover(&mut self) -> Result<(), Violation> {
        let limit = self.plan.tick_ms * 1000 * (2 * self.plan.init_limit + 10) + 60 * SECOND;
        let last = self.checks.last();
        let deadline = self.now + limit;
        let mut target = None;
        while target.is_none_or(|target| !self.everybody_shows(target)) {
            if self.now > deadline {
                let committed = self.checks.last();
                let standings: Vec<_> = (1..=self.plan.servers)
                    .map(|member| self.describe(member))
                    .collect();
                return Err(format!(
                    "no write commits on every member within {} s after the last fault: {committed:?} is committed, {last:?} \
                     was then; {}",
                    limit / SECOND,
                    standings.join("; ")
                ));
            }
            self.run_until(self.now + SECOND / 2)?;
            let committed = self.checks.last();
            if target.is_none() && committed > last {
                target = Some(committed);
            }
        }
        // Sessions that faults have ended are found out meanwhile.
        self.run_until(self.now + 50 * self.plan.tick_ms * 1000)?;
        for client in &mut self.clients {
            client.expect_to_live();
        }
        self.run_until(self.now + 30 * self.plan.tick_ms * 1000)
    }

    fn everybody_shows(&mut self, zxid: ringkeeper_proto::Zxid) -> bool {
        let members = self.members.iter_mut().skip(1);
        members.map(Member::process).all(|process| {
            process.is_some_and(|process| process.core.published_tree().zxid() >= zxid)
        })
    }

    fn describe(&mut self, member: usize) -> String {
        match self.members[member].process() {
            None => format!("member {member} is not there"),
            Some(process) => {
                let (zab, tree) = (process.core.zab(), process.core.published_tree().zxid());
                let (phase, end) = (zab.phase_name(), zab.last_logged());
                format!("member {member}: {phase}, log to {end:?}, shows {tree:?}")
            }
        }
    }

    /// Whose process an event is for, and in which life.
    fn target(&self, event: &Event) -> Option<(usize, Option<u64>)> {
        match event {
            Event::Tick { member, life }
            | Event::Turn { member, life }
            | Event::DiskDone { member, life }
            | Event::TakeSnapshot { member, life }
            | Event::KeepSnapshot { member, life }
            | Event::SendChunk { member, life, .. }
            | Event::Sprung { member, life }
            | Event::LoseLeader { member, life }
            | Event::ToServer { member, life, .. } => Some((*member, Some(*life))),
            Event::Connect(connect) => Some((connect.member, Some(connect.life))),
            Event::Pump { link, side } => Some((self.receiver(*link, *side)?, None)),
            _ => None,
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        if let Some((member, life)) = self.target(&event) {
            let member = &mut self.members[member];
            if life.is_some_and(|life| life != member.life) {
                return Ok(());
            }
            if member.paused && !matches!(event, Event::Sprung { .. }) {
                member.deferred.push(event);
                return Ok(());
            }
        }
        match event {
            Event::Tick { member, .. } => self.tick(member),
            Event::Turn { member, .. } => self.turn(member),
            Event::DiskDone { member, .. } => self.disk_done(member),
            Event::TakeSnapshot { member, .. } => self.take_snapshot(member),
            Event::KeepSnapshot { member, .. } => self.keep_snapshot(member),
            Event::SendChunk { member, link, .. } => self.send_chunk(member, link),
            Event::ToServer {
                member,
                connection,
                message,
                ..
            } => self.served(member, connection, message),
            Event::ToClient {
                connection,
                message,
            } => self.heard(connection, message),
            other => {
                match other {
                    Event::Sprung { member, .. } => self.sprung(member),
                    Event::Connect(connect) => self.connect(connect),
                    Event::Pump { link, side } => self.pump(link, side),
                    Event::Call { pair, call } => self.call(pair, call),
                    Event::Act { client } => self.act(client),
                    Event::LoseLeader { member, .. } => self.lose_leader(member),
                    Event::Strike => self.strike(),
                    Event::Undo(undo) => self.undo(undo),
                    _ => {}
                }
                Ok(())
            }
        }
    }
}
