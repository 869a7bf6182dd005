//! How long clients wait for their next write when the leader hands over by plan, and that none of them loses its
//! connection.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::Request;

use crate::ensemble::Ensemble;
use crate::load::{Load, create};

const SESSION_MS: i32 = 20_000;
const PROBE: &str = "/hand-over";

/// Writes of each client that are acknowledged before a hand-over.
const WRITES: u64 = 100;

/// The same after it.
const WRITES_AFTER: u64 = 20;

/// The same of each writer of the load.
const LOAD_STEPS: u64 = 50;

const PATIENCE: Duration = Duration::from_secs(60);

/// The clients of one hand-over.
#[derive(Clone, Copy, Debug)]
pub struct HandOver {
    /// Who led.
    pub from: u64,
    /// Who leads.
    pub to: u64,
    /// The longest that a client waited for a write, of those at the old leader, at the new one and at the others.
    pub pauses: [Duration; 3],
    /// What the command took.
    pub command: Duration,
    /// The longest that a writer of the load was without an acknowledgement, and the same in a time as long
    /// before.
    pub load: Duration,
    /// See `load`.
    pub load_before: Duration,
}

impl HandOver {
    /// The longest wait of any client.
    pub fn longest(&self) -> Duration {
        self.pauses.into_iter().max().unwrap_or_default()
    }
}

/// Has the leader hand over to the next Ringkeeper member after it, with a client that writes at each of these.
///
/// # Errors
/// When the command fails, when the successor does not lead, or when a client loses its connection.
pub fn once(ensemble: &Ensemble, load: Option<&Load>) -> Result<HandOver> {
    let from = ensemble.leader().context("there is no leader")?;
    let mut ids = ensemble.ids();
    ids.retain(|id| !ensemble.is_apache(*id));
    let votes = |id: &u64| {
        let at = usize::try_from(*id).unwrap_or(0).wrapping_sub(1);
        ensemble.ports().get(at).is_some_and(|ports| ports.votes)
    };
    let voters: Vec<u64> = ids.iter().copied().filter(votes).collect();
    let at = voters.iter().position(|id| *id == from).unwrap_or(0);
    let to = voters.iter().cycle().nth(at + 1).copied();
    let to = to.context("there is no other member")?;
    for id in ensemble
        .ids()
        .into_iter()
        .filter(|id| ensemble.is_apache(*id))
    {
        refuses(ensemble, from, id)?;
    }
    let clients = ids.iter().map(|id| Client::start(ensemble.address(*id)?));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    for client in &clients {
        client.wait_for(WRITES)?;
    }
    let load_before = load.map(|load| {
        load.take_pause();
        load.wait_for_each(LOAD_STEPS, PATIENCE)?;
        anyhow::Ok(load.take_pause())
    });
    for client in &clients {
        client.take_longest();
    }
    let asked = Instant::now();
    let answer = ask(ensemble, from, to)?;
    let command = asked.elapsed();
    // Not for longer: other things take their time too.
    let during = load.map(|load| {
        load.wait_for_each(LOAD_STEPS, PATIENCE)?;
        anyhow::Ok(load.take_pause())
    });
    for client in &clients {
        client.wait_for(WRITES_AFTER)?;
    }
    let mut pauses = [Duration::ZERO; 3];
    for (id, client) in ids.into_iter().zip(clients) {
        let longest = client.take_longest();
        client
            .stop()
            .with_context(|| format!("the client of member {id}, {answer}"))?;
        let role = match id {
            _ if id == from => 0,
            _ if id == to => 1,
            _ => 2,
        };
        pauses[role] = longest.max(pauses[role]);
    }
    let leader = ensemble.leader();
    ensure!(leader == Some(to), "{answer}, but the leader is {leader:?}");
    Ok(HandOver {
        from,
        to,
        pauses,
        command,
        load: during.transpose()?.unwrap_or_default(),
        load_before: load_before.transpose()?.unwrap_or_default(),
    })
}

/// That the leader `from` does not hand over to Apache's member `id`, and says why.
fn refuses(ensemble: &Ensemble, from: u64, id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let refused = ask(ensemble, from, id).err().map(|error| error.to_string());
        let says = |what| refused.as_ref().is_some_and(|it| it.contains(what));
        if says("not a Ringkeeper server") {
            return Ok(());
        }
        // Apache's members need an election after each hand-over, and may still be at it.
        ensure!(
            says("not synchronized") && Instant::now() < deadline,
            "handing over to Apache's member {id}: {refused:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes what the clients write.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(ensemble: &Ensemble) -> Result<()> {
    let leader = ensemble.leader().context("there is no leader")?;
    let mut session = Session::open(ensemble.address(leader)?, SESSION_MS)?;
    session.call(&create(PROBE, b""))?.ok()?;
    session.close()
}

/// The operator's command, at member `from`.
///
/// # Errors
/// What it says when it fails.
pub fn ask(ensemble: &Ensemble, from: u64, to: u64) -> Result<String> {
    let member = ensemble.member(from)?;
    let config = member.dir().join("zoo.cfg");
    let output = Command::new(member.launch().program())
        .arg("hand-over")
        .arg(&config)
        .args(["--to", &to.to_string()])
        .output()
        .context("run the command")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => bail!("{}", text(&output.stderr)),
    }
}

/// A client that writes one write after the other on one connection.
struct Client {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<Result<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    written: AtomicU64,
    longest_us: AtomicU64,
}

impl Client {
    fn start(address: SocketAddr) -> Result<Self> {
        let mut session = Session::open(address, SESSION_MS)?;
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let set = Request::SetData {
                path: PROBE,
                data: Some(b"x"),
                version: -1,
            };
            while !its.stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                session.call(&set)?.ok()?;
                let took = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
                its.longest_us.fetch_max(took, Ordering::Relaxed);
                its.written.fetch_add(1, Ordering::Relaxed);
            }
            session.close()
        });
        Ok(Self { shared, thread })
    }

    fn wait_for(&self, more: u64) -> Result<()> {
        let wanted = self.shared.written.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.shared.written.load(Ordering::Relaxed) < wanted && !self.thread.is_finished() {
            ensure!(Instant::now() < deadline, "a client cannot write");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The longest wait that has ended since the last call.
    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::Relaxed))
    }

    fn stop(self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("the client panicked"),
        }
    }
}
