//! Decides who leads: the one whose log is longer than all others' wins an election, and the network can see to that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::Zxid;

use crate::ensemble::{Ensemble, Role};
use crate::load::{Load, create};
use crate::network::Network;

const PATIENCE: Duration = Duration::from_secs(60);
const SESSION_MS: i32 = 20_000;
const PAUSE: Duration = Duration::from_millis(20);

/// How often an election may have another result than wanted.
const ELECTIONS: u32 = 5;

/// Steps with all members, after each change.
const STEPS: u64 = 50;

/// Makes a member the leader.
pub(crate) fn lead(ensemble: &mut Ensemble, load: &Load, wanted: u64) -> Result<()> {
    for _ in 0..ELECTIONS {
        if wait_for_leader(ensemble, &ensemble.ids())? == wanted {
            return Ok(());
        }
        load.pause(PATIENCE)?;
        // Until the load stood still there may have been an election.
        let current = wait_for_leader(ensemble, &ensemble.ids())?;
        if current != wanted {
            Ahead::prepare(ensemble, current)?.put(ensemble, wanted)?;
            ensemble.kill(current)?;
            // What is held back must not get to the others before they have voted.
            wait_for_leader(ensemble, &others(ensemble, current))?;
            network(ensemble)?.heal();
            ensemble.spawn(current)?;
            ensemble.wait_until_serving(PATIENCE)?;
        }
        go_on(load)?;
    }
    bail!("member {wanted} was not elected, {ELECTIONS} times");
}

/// Ends a pause of the load.
pub(crate) fn go_on(load: &Load) -> Result<()> {
    load.resume();
    load.wait_for(STEPS, PATIENCE).context("with all members")
}

pub(crate) fn network(ensemble: &Ensemble) -> Result<&Network> {
    ensemble.network().context("there is no proxied network")
}

/// All members but one.
pub(crate) fn others(ensemble: &Ensemble, id: u64) -> Vec<u64> {
    let mut ids = ensemble.ids();
    ids.retain(|other| *other != id);
    ids
}

pub(crate) fn wait_for_leader(ensemble: &Ensemble, ids: &[u64]) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leads = |id: &&u64| ensemble.role(**id) == Some(Role::Leader);
        if let Some(id) = ids.iter().find(leads) {
            return Ok(*id);
        }
        ensure!(Instant::now() < deadline, "none of {ids:?} leads");
        std::thread::sleep(PAUSE);
    }
}

/// A client of the leader that makes one member's log longer than all others'.
pub(crate) struct Ahead {
    leader: u64,
    session: Session,
    count: usize,
    /// What every member has or will have.
    last: Zxid,
}

impl Ahead {
    pub(crate) fn prepare(ensemble: &Ensemble, leader: u64) -> Result<Self> {
        let session = Session::open(ensemble.address(leader)?, SESSION_MS)?;
        let last = Zxid::ZERO;
        let mut ahead = Self {
            leader,
            session,
            count: 0,
            last,
        };
        ahead.send();
        ahead.session.flush()?;
        let reply = ahead.session.receive()?;
        reply.ok()?;
        ahead.last = reply.header.zxid;
        Ok(ahead)
    }

    /// Sends a write, when it is flushed; its path.
    pub(crate) fn send(&mut self) -> String {
        let path = format!("/only-{:x}-{}", self.session.key().id.0, self.count);
        self.count += 1;
        self.session.send(&create(&path, b""));
        path
    }

    /// Sends what waits. The leader may give up before it has read all of it.
    pub(crate) fn flush(&mut self) {
        _ = self.session.flush();
    }

    /// From now on the leader's packets get to `member` alone, and that has one more transaction than the others.
    pub(crate) fn put(&mut self, ensemble: &Ensemble, member: u64) -> Result<()> {
        let network = network(ensemble)?;
        for other in others(ensemble, self.leader) {
            if other != member {
                network.hold(self.leader, other);
            }
        }
        self.send();
        self.session.flush()?;
        let way = (member, self.leader);
        network.tap().wait_for_ack(way, self.last, PATIENCE)?;
        Ok(())
    }
}
