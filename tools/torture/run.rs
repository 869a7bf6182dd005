//! The loop: load, kill, restart, compare.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringkeeper_harness::{Launch, Server, Session};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, Stat};

use crate::holders::{self, Abandoned, Holders};
use crate::writer::{Writer, children, create};

/// How long a start may take.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// A start that takes longer is told, with what the server printed.
const START_LONG: Duration = Duration::from_secs(3);
const FILLER: &str = "/torture/filler";
const FILLER_DATA: [u8; 100] = [b'f'; 100];

/// What to do, as the command line says.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) cycles: u32,
    pub(crate) seed: u64,
    pub(crate) writers: u32,
    pub(crate) depth: usize,
    pub(crate) load_ms_max: u64,
    pub(crate) filler: u32,
    pub(crate) expiry_every: u32,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) killed_under_load: u32,
    pub(crate) killed_while_starting: u32,
    pub(crate) terminated: u32,
    pub(crate) acks: u64,
    pub(crate) survived: u64,
    pub(crate) gone: u64,
    pub(crate) sessions: u64,
    pub(crate) ephemerals: u64,
    pub(crate) expiries: u32,
    pub(crate) bursts_without_ack: u32,
    pub(crate) starts: u32,
    pub(crate) start_time: Duration,
    pub(crate) start_time_max: Duration,
}

impl Tally {
    fn started(&mut self, took: Duration) {
        self.starts += 1;
        self.start_time += took;
        self.start_time_max = self.start_time_max.max(took);
    }
}

/// The loop's state between cycles.
#[derive(Debug)]
struct Torture {
    plan: Plan,
    server: Server,
    writers: Vec<Writer>,
    holders: Holders,
    abandoned: Option<Abandoned>,
    rng: SmallRng,
    /// The largest zxid that any reply or znode has shown.
    zxid_max: i64,
    /// What the last start took; kills while starting aim into that time.
    start_took: Duration,
    /// When the process began, and when it served.
    started: (Instant, Instant),
    tally: Tally,
}

/// Runs all cycles in `dir`. The error says what was lost, with the cycle it was found in.
pub(crate) fn run(plan: &Plan, launch: Launch, dir: &Path) -> Result<Tally> {
    let mut torture = Torture::new(plan.clone(), launch, dir)?;
    for cycle in 1..=plan.cycles {
        torture
            .cycle(cycle)
            .with_context(|| format!("cycle {cycle}, seed {}", plan.seed))?;
        if cycle % 50 == 0 {
            let tally = &torture.tally;
            eprintln!("{cycle} cycles, {} acknowledged writes", tally.acks);
        }
    }
    torture.server.kill()?;
    Ok(torture.tally)
}

impl Torture {
    fn new(plan: Plan, launch: Launch, dir: &Path) -> Result<Self> {
        let mut server = Server::new(launch, dir)?;
        let start_took = server.start(START_PATIENCE)?;
        let address = server.address();
        let mut session = Session::open(address, 30_000)?;
        for path in ["/torture", holders::PARENT, FILLER] {
            create(&mut session, path, b"", 0)?;
        }
        fill(&mut session, plan.filler)?;
        session.close()?;
        let writers = (0..plan.writers)
            .map(|id| Writer::new(id, plan.seed, address))
            .collect::<Result<_>>()?;
        Ok(Self {
            rng: SmallRng::seed_from_u64(plan.seed),
            plan,
            server,
            writers,
            holders: Holders::default(),
            abandoned: None,
            zxid_max: 0,
            start_took,
            started: (Instant::now(), Instant::now()),
            tally: Tally::default(),
        })
    }

    fn cycle(&mut self, cycle: u32) -> Result<()> {
        let mut zxids = self.load_and_end()?;
        self.restart()?;
        zxids.sort_unstable();
        if let (Some(first), Some(last)) = (zxids.first(), zxids.last()) {
            ensure!(
                *first > self.zxid_max,
                "zxid {first:#x} was given although {:#x} had been",
                self.zxid_max
            );
            if let Some(pair) = zxids.windows(2).find(|pair| pair.first() == pair.last()) {
                bail!("two writes were acknowledged with one zxid: {pair:x?}");
            }
            self.zxid_max = *last;
        } else {
            self.tally.bursts_without_ack += 1;
        }
        self.tally.acks += zxids.len() as u64;
        self.settle()?;
        if self.plan.expiry_every > 0 && cycle.is_multiple_of(self.plan.expiry_every) {
            self.abandoned = Some(Abandoned::new(self.server.address())?);
        }
        Ok(())
    }

    /// Load from all connections, and the end of the server at a random moment of it. Returns the
    /// zxids that were acknowledged.
    fn load_and_end(&mut self) -> Result<Vec<i64>> {
        let max = self.plan.load_ms_max;
        let load_ms = match self.rng.random_range(0..10) {
            0..2 => self.rng.random_range(0..20),
            2..4 => self.rng.random_range(max..2 * max),
            _ => self.rng.random_range(0..max),
        };
        let gently = self.rng.random_range(0..10) == 0;
        let killing = AtomicBool::new(false);
        let address = self.server.address();
        let depth = self.plan.depth;
        let server = &mut self.server;
        let (writers, holders, rng) = (&mut self.writers, &mut self.holders, &mut self.rng);
        let (ended, bursts, complaints) = thread::scope(|scope| {
            let killing = &killing;
            let bursts: Vec<_> = writers
                .iter_mut()
                .map(|writer| scope.spawn(move || writer.burst(depth, killing)))
                .collect();
            let holding = scope.spawn(move || holders.burst(address, killing, rng));
            thread::sleep(Duration::from_millis(load_ms));
            let died = server.ended();
            killing.store(true, Ordering::SeqCst);
            let ended = match died {
                Ok(Some(status)) => Err(anyhow::anyhow!(
                    "the server ended by itself ({status}):\n{}",
                    server.log_tail(20)
                )),
                Ok(None) if gently => server
                    .terminate(Duration::from_secs(30))
                    .and_then(|status| status.context("SIGTERM did not end the server in 30 s"))
                    .map(|_| ()),
                Ok(None) => server.kill(),
                Err(error) => Err(error),
            };
            let bursts: Vec<_> = bursts.into_iter().map(|burst| burst.join()).collect();
            (ended, bursts, holding.join())
        });
        ended?;
        if gently {
            self.tally.terminated += 1;
        } else {
            self.tally.killed_under_load += 1;
        }
        let mut zxids = Vec::new();
        let mut violations = complaints.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        for burst in bursts {
            let burst = burst.map_err(|_| anyhow::anyhow!("a writer panicked"))?;
            zxids.extend(burst.zxids);
            violations.extend(burst.violations);
        }
        ensure!(violations.is_empty(), "{}", violations.join("\n"));
        Ok(zxids)
    }

    /// Starts the server again; sometimes it is killed before it serves, up to three times.
    fn restart(&mut self) -> Result<()> {
        for _ in 0..3 {
            if self.rng.random_range(0..10) != 0 {
                break;
            }
            let micros = u64::try_from(self.start_took.as_micros()).unwrap_or(u64::MAX);
            let micros = self.rng.random_range(0..=micros);
            self.server.spawn()?;
            thread::sleep(Duration::from_micros(micros));
            if let Some(status) = self.server.ended()? {
                bail!(
                    "the server ended while starting ({status}):\n{}",
                    self.server.log_tail(20)
                );
            }
            self.server.kill()?;
            self.tally.killed_while_starting += 1;
        }
        let began = Instant::now();
        self.start_took = self.server.start(START_PATIENCE)?;
        self.started = (began, Instant::now());
        self.tally.started(self.start_took);
        if self.start_took > START_LONG {
            let (took, at) = (self.start_took, self.tally.starts);
            eprintln!("start {at} took {took:.1?}:\n{}", self.server.log_tail(12));
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let address = self.server.address();
        let mut checker = Session::open(address, 30_000)?;
        self.check_zxid(&mut checker)?;
        if let Some(abandoned) = self.abandoned.take() {
            let (began, serving_since) = self.started;
            abandoned.settle(address, &mut checker, began, serving_since)?;
            self.tally.expiries += 1;
        }
        for writer in &mut self.writers {
            let settled = writer.settle(address)?;
            self.tally.survived += settled.survived as u64;
            self.tally.gone += settled.gone as u64;
            self.tally.sessions += 1;
            self.zxid_max = self.zxid_max.max(settled.zxid_max);
        }
        let checked = self.holders.settle(address, &mut checker)?;
        self.tally.sessions += checked.resumed;
        self.tally.ephemerals += checked.ephemerals;
        self.check_filler(&mut checker)?;
        // What the checks themselves wrote counts too.
        let reply = checker.call(&Request::Exists {
            path: "/",
            watch: false,
        })?;
        self.zxid_max = self.zxid_max.max(reply.header.zxid.to_wire());
        checker.close()
    }

    /// The history goes on: what the server has processed is not below anything acknowledged.
    fn check_zxid(&self, checker: &mut Session) -> Result<()> {
        let reply = checker.call(&Request::Exists {
            path: "/",
            watch: false,
        })?;
        let processed = reply.header.zxid.to_wire();
        ensure!(
            processed > self.zxid_max,
            "the server is at zxid {processed:#x} after a new session; {:#x} was acknowledged",
            self.zxid_max
        );
        Ok(())
    }

    fn check_filler(&mut self, checker: &mut Session) -> Result<()> {
        let reply = checker.call(&Request::Exists {
            path: FILLER,
            watch: false,
        })?;
        let stat = Stat::decode(&mut reply.ok().context(FILLER)?)?;
        ensure!(
            u32::try_from(stat.num_children) == Ok(self.plan.filler),
            "{FILLER} has {} children of {}",
            stat.num_children,
            self.plan.filler
        );
        if self.plan.filler > 0 {
            let path = filler_path(self.rng.random_range(0..self.plan.filler));
            let reply = checker.call(&Request::GetData {
                path: &path,
                watch: false,
            })?;
            let data = reply.ok().with_context(|| path.clone())?.buffer()?;
            ensure!(data == Some(&FILLER_DATA), "the data of {path} is {data:?}");
        }
        Ok(())
    }
}

/// Makes the znodes that are never changed; they give snapshots something to write.
fn fill(session: &mut Session, count: u32) -> Result<()> {
    const BATCH: u32 = 500;
    for first in (0..count).step_by(BATCH as usize) {
        let batch = first..count.min(first + BATCH);
        for index in batch.clone() {
            session.send(&Request::Create {
                op: OpCode::Create,
                create: CreateRequest {
                    path: &filler_path(index),
                    data: Some(&FILLER_DATA),
                    acl: Some(AclList::new(&Acl::open())),
                    flags: 0,
                    ttl_ms: None,
                },
            });
        }
        session.flush()?;
        for index in batch {
            session
                .receive()?
                .ok()
                .with_context(|| filler_path(index))?;
        }
    }
    let made = children(session, FILLER)?.len();
    ensure!(
        u32::try_from(made) == Ok(count),
        "{made} of {count} znodes made"
    );
    Ok(())
}

fn filler_path(index: u32) -> String {
    format!("{FILLER}/f{index:07}")
}
