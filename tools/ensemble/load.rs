//! Writers that go on through the deaths of members, and know what must be there afterwards.
//!
//! A writer owns its znodes: with each step it creates one and writes the step's number into its
//! parent, both pipelined on one connection. When the connection ends it takes its session up again at
//! another member, syncs, and looks what of its unacknowledged requests has happened: it must be a
//! front part of what it sent.
//!
//! Each writer also owns an ephemeral znode, which must be there as long as its session is, and must be
//! gone when that is closed. Beside the writers there are mayflies (`mayflies.rs`).

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::{Resume, Session, SessionKey};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, Zxid};

use crate::check::open_patiently;
use crate::mayflies::mayflies;

/// The znode above all writers.
pub const ROOT: &str = "/load";

/// The writers' session time-out: far above what an ensemble takes to find a leader.
pub(crate) const SESSION_MS: i32 = 20_000;

/// How long a reply may take before the writer looks for another member.
pub(crate) const REPLY_PATIENCE: Duration = Duration::from_secs(4);

/// How long a writer looks for a member that takes its session.
const FIND_PATIENCE: Duration = Duration::from_secs(60);

/// How often a writer that pauses is heard of.
const IDLE_TOUCH: Duration = Duration::from_secs(1);

pub(crate) const FIND_PAUSE: Duration = Duration::from_millis(10);

/// How the load is.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    /// Writers, each with a session.
    pub writers: u32,
    /// Steps that each keeps in flight.
    pub depth: usize,
    /// Length of what each step writes into the parent, at least that of the step's number: the log grows, the tree
    /// does not.
    pub bytes: usize,
    /// Whether there are mayflies too.
    pub mayflies: bool,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            writers: 4,
            depth: 8,
            bytes: 0,
            mayflies: true,
        }
    }
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    control: Arc<Control>,
    paces: Vec<Arc<Pace>>,
    writers: Vec<JoinHandle<Result<Written>>>,
    mayflies: Option<JoinHandle<Result<u32>>>,
}

/// What the threads of a load share.
#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    pause: AtomicBool,
    /// Writers that have made their znodes.
    begun: AtomicU32,
    /// Writers that have nothing in flight and keep it so.
    idle: AtomicU32,
    acknowledged: AtomicU64,
}

/// How one writer gets on.
#[derive(Debug, Default)]
struct Pace {
    acknowledged: AtomicU64,
    /// The longest time between two acknowledgements since it was asked for, in microseconds.
    pause_us: AtomicU64,
}

/// What one writer knows.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Its number.
    pub writer: u32,
    /// Steps that are known to have happened, in order, with the zxid of the create if it was told.
    pub steps: Vec<(u64, Option<i64>)>,
    /// How often it lost its connection.
    pub reconnects: u32,
    /// How often it got no reply, and gave the connection up.
    pub silences: u32,
    /// The longest time between two acknowledgements.
    pub pause_max: Duration,
}

impl Load {
    /// Begins to write. `addresses` are where the members serve clients.
    ///
    /// # Errors
    /// When the first session cannot be opened.
    pub fn start(addresses: &[SocketAddr], plan: LoadPlan) -> Result<Self> {
        let first = addresses.first().context("there is no member")?;
        make_root(*first)?;
        let control = Arc::<Control>::default();
        let paces = (0..plan.writers).map(|_| Arc::default());
        let paces: Vec<Arc<Pace>> = paces.collect();
        let writers = (0..plan.writers).zip(&paces).map(|(id, pace)| {
            let mut writer = Writer {
                id,
                addresses: addresses.to_vec(),
                at: id as usize,
                session: None,
                key: None,
                zxid: Zxid::ZERO,
                bytes: plan.bytes,
                next: 1,
                pending: VecDeque::new(),
                is_missing: false,
                written: Written {
                    writer: id,
                    ..Written::default()
                },
                control: Arc::clone(&control),
                pace: Arc::clone(pace),
                heard: Instant::now(),
            };
            thread::spawn(move || {
                writer.run(plan.depth)?;
                writer.leave()?;
                Ok(writer.written)
            })
        });
        let writers = writers.collect();
        let (flying, addresses) = (Arc::clone(&control), addresses.to_vec());
        let mayflies = move || mayflies(&addresses, &flying.stop);
        let load = Self {
            writers,
            mayflies: plan.mayflies.then(|| thread::spawn(mayflies)),
            control,
            paces,
        };
        // What each begins with is not repeated, so nobody must be killed before.
        let deadline = Instant::now() + FIND_PATIENCE;
        while (load.control.begun.load(Ordering::Relaxed) as usize) < load.writers.len() {
            if load.has_failed() || Instant::now() > deadline {
                load.stop()?;
                bail!("the writers have not begun after {FIND_PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(load)
    }

    /// Steps acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.control.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether a writer has given up.
    pub fn has_failed(&self) -> bool {
        let mayflies = self.mayflies.as_ref();
        self.writers.iter().any(JoinHandle::is_finished)
            || mayflies.is_some_and(JoinHandle::is_finished)
    }

    /// Has the writers write nothing more, until [`Load::resume`], and waits until all that they sent is
    /// known. Their sessions stay. (Mayflies go on.)
    ///
    /// # Errors
    /// When something stays unknown for longer than `patience`, or a writer has given up.
    pub fn pause(&self, patience: Duration) -> Result<()> {
        self.control.pause.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        while (self.control.idle.load(Ordering::Relaxed) as usize) < self.writers.len() {
            ensure!(!self.has_failed(), "a writer has given up");
            ensure!(
                Instant::now() < deadline,
                "writers still wait for answers after {patience:?}"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.control.pause.store(false, Ordering::Relaxed);
    }

    /// Waits until `more` steps have been acknowledged.
    ///
    /// # Errors
    /// When they are not within `patience`, or a writer has given up.
    pub fn wait_for(&self, more: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let target = self.acknowledged() + more;
        while self.acknowledged() < target {
            ensure!(!self.has_failed(), "a writer has given up");
            ensure!(
                Instant::now() < deadline,
                "{} of {more} steps acknowledged after {patience:?}",
                more - (target - self.acknowledged())
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until each writer has had `more` steps acknowledged.
    ///
    /// # Errors
    /// When one has not within `patience`, or has given up.
    pub fn wait_for_each(&self, more: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let count = |pace: &Arc<Pace>| pace.acknowledged.load(Ordering::Relaxed);
        let targets: Vec<_> = self.paces.iter().map(|pace| count(pace) + more).collect();
        let is_short = |(pace, target): (&Arc<Pace>, &u64)| count(pace) < *target;
        while self.paces.iter().zip(&targets).any(is_short) {
            ensure!(!self.has_failed(), "a writer has given up");
            ensure!(
                Instant::now() < deadline,
                "a writer has not had {more} steps acknowledged after {patience:?}"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The longest time that any writer was without an acknowledgement since the last call; one that has
    /// not ended yet is of the next.
    pub fn take_pause(&self) -> Duration {
        let paces = self.paces.iter();
        let longest_us = paces.map(|pace| pace.pause_us.swap(0, Ordering::Relaxed));
        Duration::from_micros(longest_us.max().unwrap_or(0))
    }

    /// Ends the load. Also says how many mayflies there were.
    ///
    /// # Errors
    /// What a writer saw that must not be.
    pub fn stop(self) -> Result<(Vec<Written>, u32)> {
        self.control.stop.store(true, Ordering::Relaxed);
        let mut written = Vec::new();
        for writer in self.writers {
            match writer.join() {
                Ok(outcome) => written.push(outcome?),
                Err(_) => bail!("a writer panicked"),
            }
        }
        match self.mayflies.map(JoinHandle::join) {
            None => Ok((written, 0)),
            Some(Ok(outcome)) => Ok((written, outcome?)),
            Some(Err(_)) => bail!("the thread of the mayflies panicked"),
        }
    }
}

#[derive(Debug)]
struct Writer {
    id: u32,
    addresses: Vec<SocketAddr>,
    /// The member that it is at.
    at: usize,
    session: Option<Session>,
    key: Option<SessionKey>,
    /// The largest zxid seen.
    zxid: Zxid,
    bytes: usize,
    next: u64,
    /// Steps sent and not known, oldest first: each is a create and a set.
    pending: VecDeque<u64>,
    /// One of those that are pending no more has not happened, so none of those that are may have.
    is_missing: bool,
    written: Written,
    control: Arc<Control>,
    pace: Arc<Pace>,
    heard: Instant,
}

impl Writer {
    fn run(&mut self, depth: usize) -> Result<()> {
        self.find_member()?;
        let parent = self.parent();
        self.session()?.call(&create(&parent, b"0"))?.ok()?;
        let ephemeral = ephemeral(self.id);
        self.session()?.call(&create_ephemeral(&ephemeral))?.ok()?;
        self.heard = Instant::now();
        self.control.begun.fetch_add(1, Ordering::Relaxed);
        loop {
            let ending = self.control.stop.load(Ordering::Relaxed);
            let pausing = self.control.pause.load(Ordering::Relaxed);
            if ending && self.pending.is_empty() {
                return Ok(());
            }
            let turn = match ending || pausing {
                true if self.pending.is_empty() => self.idle(),
                true => self.turn(0),
                false => self.turn(depth),
            };
            if let Err(error) = turn {
                if !is_connection(&error) {
                    return Err(error.context(format!("writer {}", self.id)));
                }
                self.written.reconnects += 1;
                self.written.silences += u32::from(is_silence(&error));
                self.at += 1;
                self.find_member_and_settle()
                    .with_context(|| format!("writer {} after {error:#}", self.id))?;
            }
        }
    }

    /// Sends up to `depth` steps and takes at least one acknowledgement.
    fn turn(&mut self, depth: usize) -> Result<()> {
        let parent = self.parent();
        while self.pending.len() < depth {
            let step = self.next;
            let (path, data) = (self.path(step), step.to_string());
            let padded = format!("{data:<width$}", width = self.bytes);
            let session = self.session()?;
            session.send(&create(&path, data.as_bytes()));
            session.send(&Request::SetData {
                path: &parent,
                data: Some(padded.as_bytes()),
                version: -1,
            });
            self.next += 1;
            self.pending.push_back(step);
        }
        self.session()?.flush()?;
        let zxid = self.reply()?;
        self.reply()?;
        if let Some(step) = self.pending.pop_front() {
            self.acknowledge(step, Some(zxid.to_wire()));
        }
        Ok(())
    }

    /// Waits for the end of a pause; the session must not end meanwhile.
    fn idle(&mut self) -> Result<()> {
        self.control.idle.fetch_add(1, Ordering::Relaxed);
        let outcome = self.idle_until_called();
        self.control.idle.fetch_sub(1, Ordering::Relaxed);
        self.heard = Instant::now();
        outcome
    }

    fn idle_until_called(&mut self) -> Result<()> {
        let parent = self.parent();
        let mut touched = Instant::now();
        let is_called =
            |it: &Control| it.stop.load(Ordering::Relaxed) || !it.pause.load(Ordering::Relaxed);
        while !is_called(&self.control) {
            if touched.elapsed() > IDLE_TOUCH {
                self.read(&parent)?;
                touched = Instant::now();
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn reply(&mut self) -> Result<Zxid> {
        let reply = self.session()?.receive()?;
        let zxid = reply.header.zxid;
        reply
            .ok()
            .map_err(|error| anyhow::anyhow!("a request failed: {error:#}"))?;
        ensure!(zxid > self.zxid, "zxid {zxid} comes after {}", self.zxid);
        self.zxid = zxid;
        Ok(zxid)
    }

    fn acknowledge(&mut self, step: u64, zxid: Option<i64>) {
        self.written.steps.push((step, zxid));
        let pause = self.heard.elapsed();
        self.written.pause_max = self.written.pause_max.max(pause);
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.pace.pause_us.fetch_max(pause_us, Ordering::Relaxed);
        self.heard = Instant::now();
        self.control.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.pace.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the session up again somewhere, and learns what became of the pending steps.
    fn find_member_and_settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + FIND_PATIENCE;
        loop {
            self.find_member()?;
            match self.settle() {
                Err(error) if is_connection(&error) && Instant::now() < deadline => self.at += 1,
                outcome => return outcome,
            }
        }
    }

    fn settle(&mut self) -> Result<()> {
        // The server executes a connection's requests in their order, and the leader those of all
        // connections of a session: what was forwarded before this sync is decided.
        let parent = self.parent();
        self.session()?
            .call(&Request::Sync { path: &parent })?
            .ok()?;
        let last = match self.read(&parent)? {
            Some((data, _)) => std::str::from_utf8(&data)?.trim_end().parse::<u64>()?,
            None => bail!("{parent} is gone"),
        };
        // A step stays pending until it is known, and what is known stays so: this connection may end in the middle.
        while let Some(&step) = self.pending.front() {
            let path = self.path(step);
            match self.read(&path)? {
                Some((_, czxid)) => {
                    ensure!(
                        !self.is_missing,
                        "step {step} has happened, one before it has not"
                    );
                    // Its set may be missing: then it was the last that happened.
                    self.acknowledge(step, Some(czxid));
                }
                None => {
                    ensure!(
                        step > last,
                        "step {step} has not happened, {parent} says {last}"
                    );
                    self.is_missing = true;
                }
            }
            self.pending.pop_front();
        }
        self.is_missing = false;
        if let Some((step, _)) = self.written.steps.last() {
            let after = self.written.steps.len().checked_sub(2);
            let before = after.and_then(|at| self.written.steps.get(at));
            let least = before.map_or(0, |(step, _)| *step);
            ensure!(
                (least..=*step).contains(&last),
                "{parent} says {last}, and {least} to {step} have happened"
            );
        }
        let ephemeral = ephemeral(self.id);
        ensure!(
            self.read(&ephemeral)?.is_some(),
            "{ephemeral} is gone, and its session is alive"
        );
        Ok(())
    }

    /// Closes the session, on whatever member takes it.
    fn leave(&mut self) -> Result<()> {
        let deadline = Instant::now() + FIND_PATIENCE;
        loop {
            self.find_member_and_settle()?;
            match self.session.take().map_or(Ok(()), Session::close) {
                Err(error) if is_connection(&error) && Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }

    /// Data and czxid of a znode.
    fn read(&mut self, path: &str) -> Result<Option<(Vec<u8>, i64)>> {
        let session = self.session()?;
        let reply = session.call(&Request::GetData { path, watch: false })?;
        if reply.header.error == ringkeeper_proto::ZkError::NoNode.code() {
            return Ok(None);
        }
        let mut body = reply.ok()?;
        let data = body.buffer()?.unwrap_or_default().to_vec();
        let czxid = body.long()?;
        Ok(Some((data, czxid)))
    }

    /// A connection to some member, with this writer's session.
    fn find_member(&mut self) -> Result<()> {
        self.session = None;
        let deadline = Instant::now() + FIND_PATIENCE;
        loop {
            let count = self.addresses.len().max(1);
            let Some(address) = self.addresses.get(self.at % count).copied() else {
                bail!("there is no member");
            };
            let found = match self.key {
                None => {
                    Session::open_within(address, SESSION_MS, REPLY_PATIENCE).map(Resume::Alive)
                }
                Some(key) => {
                    Session::resume_within(address, SESSION_MS, key, self.zxid, REPLY_PATIENCE)
                }
            };
            match found {
                Ok(Resume::Alive(session)) => {
                    self.key = Some(session.key());
                    self.session = Some(session);
                    return Ok(());
                }
                Ok(Resume::Expired) => bail!(
                    "session {:?} has expired after {:?}",
                    self.key,
                    self.heard.elapsed()
                ),
                Err(error) => {
                    ensure!(
                        Instant::now() < deadline,
                        "no member takes the session: {error:#}"
                    );
                    self.at += 1;
                    thread::sleep(FIND_PAUSE);
                }
            }
        }
    }

    fn session(&mut self) -> Result<&mut Session> {
        self.session.as_mut().context("there is no connection")
    }

    fn parent(&self) -> String {
        parent(self.id)
    }

    fn path(&self, step: u64) -> String {
        path(self.id, step)
    }
}

/// The znode of a writer.
pub fn parent(writer: u32) -> String {
    format!("{ROOT}/w{writer}")
}

/// The ephemeral znode of a writer's session.
pub fn ephemeral(writer: u32) -> String {
    format!("{ROOT}/e{writer}")
}

/// The znode of a step.
pub fn path(writer: u32, step: u64) -> String {
    format!("{ROOT}/w{writer}/n{step:08}")
}

/// Whether the connection has ended, or is not answered: nothing that the ensemble promised.
pub(crate) fn is_connection(error: &anyhow::Error) -> bool {
    error.is::<std::io::Error>()
        || error.is::<ringkeeper_harness::Closed>()
        || error.chain().any(|cause| cause.is::<std::io::Error>())
}

/// Makes [`ROOT`]; the first leader of an ensemble may be gone again before it is there.
fn make_root(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + FIND_PATIENCE;
    loop {
        let mut session = open_patiently(address)?;
        match session.call(&create(ROOT, b"")) {
            Ok(reply) if reply.header.error == ringkeeper_proto::ZkError::NodeExists.code() => {}
            Ok(reply) => _ = reply.ok()?,
            Err(_) if Instant::now() < deadline => continue,
            Err(error) => return Err(error),
        }
        return session.close();
    }
}

/// Whether nothing came for as long as a reply may take.
fn is_silence(error: &anyhow::Error) -> bool {
    let kinds = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| kinds.contains(&error.kind()))
}

/// A request for an ephemeral znode.
pub(crate) fn create_ephemeral(path: &str) -> Request<'_> {
    match create(path, b"") {
        Request::Create { op, mut create } => {
            create.flags = 1;
            Request::Create { op, create }
        }
        other => other,
    }
}

/// A request for a persistent znode.
pub(crate) fn create<'a>(path: &'a str, data: &'a [u8]) -> Request<'a> {
    Request::Create {
        op: OpCode::Create2,
        create: CreateRequest {
            path,
            data: Some(data),
            acl: Some(AclList::new(&Acl::open())),
            flags: 0,
            ttl_ms: None,
        },
    }
}
