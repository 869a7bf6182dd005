//! Writers that go on through the deaths of members, and know what must be there afterwards.
//!
//! A writer owns its znodes: with each step it creates one and writes the step's number into its
//! parent, both pipelined on one connection. When the connection ends it takes its session up again at
//! another member, syncs, and looks what of its unacknowledged requests has happened: it must be a
//! front part of what it sent.
//!
//! Each writer also owns an ephemeral znode, which must be there as long as its session is, and must be
//! gone when that is closed. Beside the writers there are mayflies: sessions that make an ephemeral znode
//! and are left alone. It must be there until the session's time is over, and not for ever.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::{Resume, Session, SessionKey};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, Zxid};

use crate::check::open_patiently;

/// The znode above all writers.
pub const ROOT: &str = "/load";

/// The writers' session time-out: far above what an ensemble takes to find a leader.
const SESSION_MS: i32 = 20_000;

/// How long a reply may take before the writer looks for another member.
const REPLY_PATIENCE: Duration = Duration::from_secs(4);

/// How long a writer looks for a member that takes its session.
const FIND_PATIENCE: Duration = Duration::from_secs(60);

const FIND_PAUSE: Duration = Duration::from_millis(10);

/// A mayfly's session time-out; the ensemble may raise or lower it.
const MAYFLY_MS: i32 = 3_000;

/// How long a mayfly may live: each new leader gives every session its whole time again.
const MAYFLY_PATIENCE: Duration = Duration::from_secs(120);

const MAYFLY_PAUSE: Duration = Duration::from_millis(50);

/// How the load is.
#[derive(Clone, Copy, Debug)]
pub struct LoadPlan {
    /// Writers, each with a session.
    pub writers: u32,
    /// Steps that each keeps in flight.
    pub depth: usize,
    /// Length of each step's data, at least that of its number.
    pub bytes: usize,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            writers: 4,
            depth: 8,
            bytes: 0,
        }
    }
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Result<Written>>>,
    mayflies: JoinHandle<Result<u32>>,
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
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers = (0..plan.writers).map(|id| {
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
                written: Written {
                    writer: id,
                    ..Written::default()
                },
                acknowledged: Arc::clone(&acknowledged),
                heard: Instant::now(),
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                writer.run(plan.depth, &stop)?;
                writer.leave()?;
                Ok(writer.written)
            })
        });
        let writers = writers.collect();
        let (flying, addresses) = (Arc::clone(&stop), addresses.to_vec());
        Ok(Self {
            writers,
            mayflies: thread::spawn(move || mayflies(&addresses, &flying)),
            stop,
            acknowledged,
        })
    }

    /// Steps acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether a writer has given up.
    pub fn has_failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished) || self.mayflies.is_finished()
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

    /// Ends the load. Also says how many mayflies there were.
    ///
    /// # Errors
    /// What a writer saw that must not be.
    pub fn stop(self) -> Result<(Vec<Written>, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = Vec::new();
        for writer in self.writers {
            match writer.join() {
                Ok(outcome) => written.push(outcome?),
                Err(_) => bail!("a writer panicked"),
            }
        }
        match self.mayflies.join() {
            Ok(outcome) => Ok((written, outcome?)),
            Err(_) => bail!("the thread of the mayflies panicked"),
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
    written: Written,
    acknowledged: Arc<AtomicU64>,
    heard: Instant,
}

impl Writer {
    fn run(&mut self, depth: usize, stop: &AtomicBool) -> Result<()> {
        self.find_member()?;
        let parent = self.parent();
        self.session()?.call(&create(&parent, b"0"))?.ok()?;
        let ephemeral = ephemeral(self.id);
        self.session()?.call(&create_ephemeral(&ephemeral))?.ok()?;
        self.heard = Instant::now();
        loop {
            let ending = stop.load(Ordering::Relaxed);
            if ending && self.pending.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.turn(if ending { 0 } else { depth }) {
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
            session.send(&create(&path, padded.as_bytes()));
            session.send(&Request::SetData {
                path: &parent,
                data: Some(data.as_bytes()),
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
        self.written.pause_max = self.written.pause_max.max(self.heard.elapsed());
        self.heard = Instant::now();
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
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
            Some((data, _)) => std::str::from_utf8(&data)?.parse::<u64>()?,
            None => bail!("{parent} is gone"),
        };
        let mut is_missing = false;
        let pending: Vec<_> = self.pending.drain(..).collect();
        for step in pending {
            let path = self.path(step);
            match self.read(&path)? {
                Some((_, czxid)) => {
                    ensure!(
                        !is_missing,
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
                    is_missing = true;
                }
            }
        }
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
fn is_connection(error: &anyhow::Error) -> bool {
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

/// Lets mayflies live and die, one after the other, until `stop`; returns how many.
fn mayflies(addresses: &[SocketAddr], stop: &AtomicBool) -> Result<u32> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += u32::from(mayfly(addresses, count, stop)?);
    }
    Ok(count)
}

/// One session that makes an ephemeral znode and is then left alone. False if its member was lost before.
fn mayfly(addresses: &[SocketAddr], number: u32, stop: &AtomicBool) -> Result<bool> {
    let path = format!("{ROOT}/m{number}");
    let address = |at: u32| addresses.get(at as usize % addresses.len().max(1)).copied();
    let home = address(number).context("there is no member")?;
    let Ok(mut session) = Session::open_within(home, MAYFLY_MS, REPLY_PATIENCE) else {
        thread::sleep(FIND_PAUSE);
        return Ok(false);
    };
    let created = Instant::now();
    let timeout = Duration::from_millis(session.timeout_ms().unsigned_abs().into());
    let is_there = session.call(&create_ephemeral(&path)).is_ok_and(|reply| {
        // An earlier one of this number that nobody was told of lives for its own time.
        reply.header.error == 0
    });
    drop(session);
    if !is_there {
        // Whoever has this name has to go first.
        return see_out(addresses, number, &path, None, stop).map(|()| false);
    }
    see_out(addresses, number, &path, Some(created + timeout), stop).map(|()| true)
}

/// Waits until `path` is gone. Before `until` it must not be.
fn see_out(
    addresses: &[SocketAddr],
    number: u32,
    path: &str,
    until: Option<Instant>,
    stop: &AtomicBool,
) -> Result<()> {
    let patience = Instant::now() + MAYFLY_PATIENCE;
    let mut at = number as usize + 1;
    let mut session = None;
    loop {
        let there = match &mut session {
            Some(session) => look(session, path),
            None => {
                at += 1;
                let address = addresses.get(at % addresses.len().max(1));
                let address = address.context("there is no member")?;
                session = Session::open_within(*address, SESSION_MS, REPLY_PATIENCE).ok();
                thread::sleep(MAYFLY_PAUSE);
                continue;
            }
        };
        match there {
            Ok(true) => {}
            Ok(false) => {
                let early = until.and_then(|until| until.checked_duration_since(Instant::now()));
                ensure!(
                    early.is_none(),
                    "{path} is gone {early:?} before its session's time is over"
                );
                if let Some(session) = session {
                    // Its member may be dying; then the session ends by itself.
                    _ = session.close();
                }
                return Ok(());
            }
            Err(error) if is_connection(&error) => session = None,
            Err(error) => return Err(error.context(format!("look for {path}"))),
        }
        let is_ending = stop.load(Ordering::Relaxed);
        ensure!(
            Instant::now() < patience,
            "{path} is there after {MAYFLY_PATIENCE:?}, and its session was left alone (ending: {is_ending})"
        );
        thread::sleep(MAYFLY_PAUSE);
    }
}

/// Whether a znode is there, by the newest state.
fn look(session: &mut Session, path: &str) -> Result<bool> {
    session.call(&Request::Sync { path })?.ok()?;
    let reply = session.call(&Request::Exists { path, watch: false })?;
    if reply.header.error == ringkeeper_proto::ZkError::NoNode.code() {
        return Ok(false);
    }
    reply.ok()?;
    Ok(true)
}

/// A request for an ephemeral znode.
fn create_ephemeral(path: &str) -> Request<'_> {
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
