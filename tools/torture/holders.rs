//! Sessions that come and go, each with one ephemeral: it must live exactly as long as its session.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::SmallRng;
use ringkeeper_harness::{Resume, Session, SessionKey};
use ringkeeper_proto::{Request, Zxid};

use crate::writer::{WRITER_TIMEOUT_MS, children, create};

/// The parent of the ephemerals.
pub(crate) const PARENT: &str = "/torture/sessions";

/// At most so many sessions are left open per burst.
const LEFT_OPEN_MAX: usize = 20;
const EPHEMERAL: i32 = 1;

/// How far a session had come when the server died.
#[derive(Clone, Debug)]
enum Stage {
    /// The create of its ephemeral was sent.
    Creating,
    /// The create was acknowledged.
    Holding,
    /// The close was sent.
    Closing,
}

#[derive(Clone, Debug)]
struct Holder {
    key: SessionKey,
    name: String,
    stage: Stage,
}

/// The sessions of all bursts since the last check.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    open: Vec<Holder>,
    made: u64,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    /// Sessions that were taken up again.
    pub(crate) resumed: u64,
    /// Ephemerals that had to be there, or had to be gone.
    pub(crate) ephemerals: u64,
}

impl Holders {
    /// Opens sessions, gives each an ephemeral, and closes some, until the connection ends.
    pub(crate) fn burst(
        &mut self,
        address: SocketAddr,
        killing: &AtomicBool,
        rng: &mut SmallRng,
    ) -> Vec<String> {
        while !killing.load(Ordering::SeqCst) {
            if let Err(error) = self.one_session(address, rng)
                && !killing.load(Ordering::SeqCst)
            {
                return vec![format!("session with ephemeral: {error:#}")];
            }
        }
        Vec::new()
    }

    fn one_session(&mut self, address: SocketAddr, rng: &mut SmallRng) -> Result<()> {
        let mut session = Session::open(address, WRITER_TIMEOUT_MS)?;
        self.made += 1;
        let name = format!("e{}", self.made);
        let path = format!("{PARENT}/{name}");
        let index = self.open.len();
        self.open.push(Holder {
            key: session.key(),
            name,
            stage: Stage::Creating,
        });
        create(&mut session, &path, b"", EPHEMERAL)?;
        self.set_stage(index, Stage::Holding);
        if index < LEFT_OPEN_MAX && rng.random_bool(0.3) {
            return Ok(());
        }
        self.set_stage(index, Stage::Closing);
        session.close()?;
        self.open.truncate(index);
        Ok(())
    }

    fn set_stage(&mut self, index: usize, stage: Stage) {
        if let Some(holder) = self.open.get_mut(index) {
            holder.stage = stage;
        }
    }

    /// After a restart: every session and its ephemeral are as they must be; then all are closed.
    pub(crate) fn settle(&mut self, address: SocketAddr, checker: &mut Session) -> Result<Checked> {
        let present: BTreeSet<String> = children(checker, PARENT)?.into_iter().collect();
        let mut checked = Checked::default();
        let mut explained = BTreeSet::new();
        for holder in &self.open {
            let there = present.contains(&holder.name);
            let resumed = Session::resume(address, WRITER_TIMEOUT_MS, holder.key, Zxid::ZERO)?;
            let alive = matches!(resumed, Resume::Alive(_));
            let right = match holder.stage {
                Stage::Creating => alive,
                Stage::Holding => alive && there,
                Stage::Closing => alive == there,
            };
            ensure!(
                right,
                "{holder:?}: session {}, ephemeral {}",
                if alive { "alive" } else { "gone" },
                if there { "there" } else { "gone" }
            );
            checked.ephemerals += 1;
            explained.insert(holder.name.clone());
            if let Resume::Alive(session) = resumed {
                checked.resumed += 1;
                session.close()?;
            }
        }
        let unexplained: Vec<_> = present.difference(&explained).collect();
        ensure!(
            unexplained.is_empty(),
            "ephemerals of closed sessions are there: {unexplained:?}"
        );
        let left = children(checker, PARENT)?;
        ensure!(
            left.is_empty(),
            "ephemerals outlived their sessions: {left:?}"
        );
        self.open.clear();
        Ok(checked)
    }
}

/// A session that nobody continues, to be watched expiring.
#[derive(Debug)]
pub(crate) struct Abandoned {
    timeout: Duration,
    key: SessionKey,
}

impl Abandoned {
    /// Opens a session with the shortest time-out, gives it an ephemeral, and leaves it.
    pub(crate) fn new(address: SocketAddr) -> Result<Self> {
        let mut session = Session::open(address, 1)?;
        create(&mut session, &format!("{PARENT}/abandoned"), b"", EPHEMERAL)?;
        let timeout_ms = u64::try_from(session.timeout_ms()).unwrap_or(0);
        Ok(Self {
            timeout: Duration::from_millis(timeout_ms),
            key: session.key(),
        })
    }

    /// After a restart: the ephemeral is there until the time-out has passed since the process
    /// `began`, and gone soon after the time-out has passed since it served; then so is the session.
    /// (Where in between the server's clock for sessions starts is its own affair.)
    pub(crate) fn settle(
        &self,
        address: SocketAddr,
        checker: &mut Session,
        began: Instant,
        serving_since: Instant,
    ) -> Result<()> {
        let path = format!("{PARENT}/abandoned");
        let patience = self.timeout + Duration::from_secs(5);
        let exists = Request::Exists {
            path: &path,
            watch: false,
        };
        loop {
            let asked = serving_since.elapsed();
            let there = checker.call(&exists)?.header.error == 0;
            if !there {
                let answered = began.elapsed();
                ensure!(
                    answered >= self.timeout,
                    "an ephemeral is gone {answered:?} after the start, time-out {:?}",
                    self.timeout
                );
                break;
            }
            if asked > patience {
                bail!(
                    "an ephemeral is there {asked:?} after the start, time-out {:?}",
                    self.timeout
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        let resumed = Session::resume(address, 1, self.key, Zxid::ZERO)
            .context("take up an expired session")?;
        ensure!(
            matches!(resumed, Resume::Expired),
            "session {} outlived its ephemeral",
            self.key.id
        );
        Ok(())
    }
}
