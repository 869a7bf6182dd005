//! Makes leaders synchronize learners in each of the three ways: DIFF after a short absence, SNAP after one
//! that outlasts the leader's log, TRUNC of what a leader logged that could reach nobody any more. That it has
//! happened is read from the wire ([`tap`](crate::tap)), and the members' own logs must say the same.
//!
//! A TRUNC needs care. Apache's leaders cut a learner of an earlier epoch only as long as nothing is committed in
//! their own: later they send a snapshot. So the load pauses, and the one that is to lead gets a last proposal that
//! no other member gets, which makes it win the election.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::{Request, ZkError};

use crate::ensemble::Ensemble;
use crate::load::Load;
use crate::succession::{Ahead, go_on, lead, network, others, wait_for_leader};
pub use crate::tap::By;
use crate::tap::Synchronized;

const PATIENCE: Duration = Duration::from_secs(60);
const SESSION_MS: i32 = 20_000;

/// Steps of a short absence: fewer transactions than an Apache leader keeps in memory (500).
const STEPS: u64 = 50;

/// Steps that outlast what an Apache leader keeps, with [`SETTINGS`].
const APACHE_STEPS: u64 = 500;

/// What is logged of a long absence at a leader of Ringkeeper's, in bytes: more than it keeps with [`SETTINGS`], in
/// memory or on disk.
const LOG_BYTES: u64 = 48 << 20;

/// Writes that only an isolated leader logs.
const LOST_WRITES: usize = 40;

/// Lines of `zoo.cfg` that make a log short.
pub const SETTINGS: [&str; 6] = [
    "snapCount=500",
    "ringkeeper.snapshotLogSizeInKb=256",
    "preAllocSize=8192",
    "autopurge.snapRetainCount=3",
    "commitLogCount=500",
    // Apache: no learner is sent history from the log on disk.
    "snapshotSizeFactor=-1",
];

/// How one member was synchronized by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Synchronization {
    /// Whether the leader was one of Apache's.
    pub apache_leads: bool,
    /// Whether the learner was.
    pub apache_learns: bool,
    /// Whether the learner is an observer.
    pub observes: bool,
    /// How.
    pub by: By,
}

impl fmt::Display for Synchronization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |is_apache| match is_apache {
            true => "Apache",
            false => "Ringkeeper",
        };
        let (leads, learns) = (name(self.apache_leads), name(self.apache_learns));
        let role = match self.observes {
            true => " observer",
            false => " follower",
        };
        write!(f, "{leads} leader to {learns}{role} by {:?}", self.by)
    }
}

/// Provokes each synchronization that there can be between the kinds of members, with up to `attempts` for
/// each; how often each was seen, wanted or not.
///
/// # Errors
/// When the ensemble does not go on, or one was not seen.
pub fn provoke(
    ensemble: &mut Ensemble,
    load: &Load,
    step_bytes: usize,
    attempts: u32,
    mut report: impl FnMut(&str),
) -> Result<BTreeMap<Synchronization, usize>> {
    let mut lost = Vec::new();
    for (leader, learner, wanted) in wanted(ensemble) {
        let mut seen = None;
        for _ in 0..attempts {
            seen = match wanted.by {
                By::Trunc => cut(ensemble, load, (leader, learner), &mut lost)?,
                By::Diff => Some(absent(ensemble, load, (leader, learner), STEPS)?),
                By::Snap => {
                    let steps = match wanted.apache_leads {
                        true => APACHE_STEPS,
                        false => LOG_BYTES / step_bytes.max(1) as u64,
                    };
                    Some(absent(ensemble, load, (leader, learner), steps)?)
                }
            };
            match &seen {
                Some(seen) => report(&format!(
                    "member {learner} at leader {leader}: {:?}, its log ended with {}, the leader says {}, epoch {}",
                    seen.by, seen.from, seen.to, seen.epoch.0
                )),
                None => report(&format!("member {leader} was not elected")),
            }
            if seen.is_some_and(|seen| seen.by == wanted.by) {
                break;
            }
        }
        ensure!(
            seen.is_some_and(|seen| seen.by == wanted.by),
            "not seen: {wanted} (member {learner} at leader {leader})"
        );
    }
    ensure_gone(ensemble, &lost)?;
    let network = network(ensemble)?;
    network.tap().check()?;
    let all = network.tap().synchronized();
    compare_with_logs(ensemble, &all)?;
    let mut seen = BTreeMap::new();
    for one in all {
        let one = kind(ensemble, one.leader, one.learner, one.by);
        *seen.entry(one).or_insert(0) += 1;
    }
    Ok(seen)
}

/// All ways between all kinds of members that there are, where one of them is Ringkeeper's, each with a pair of
/// members: leader and learner.
fn wanted(ensemble: &Ensemble) -> Vec<(u64, u64, Synchronization)> {
    let mut known = BTreeSet::new();
    let mut wanted = Vec::new();
    for leader in ensemble.ids().into_iter().filter(|id| ensemble.votes(*id)) {
        for learner in ensemble.ids().into_iter().filter(|id| *id != leader) {
            if ensemble.is_apache(leader) && ensemble.is_apache(learner) {
                continue;
            }
            for by in [By::Trunc, By::Diff, By::Snap] {
                let one = kind(ensemble, leader, learner, by);
                // An observer logs what is committed, so there is nothing to cut.
                if !(one.observes && by == By::Trunc) && known.insert(one) {
                    wanted.push((leader, learner, one));
                }
            }
        }
    }
    wanted
}

fn kind(ensemble: &Ensemble, leader: u64, learner: u64, by: By) -> Synchronization {
    Synchronization {
        apache_leads: ensemble.is_apache(leader),
        apache_learns: ensemble.is_apache(learner),
        observes: !ensemble.votes(learner),
        by,
    }
}

/// Kills a learner, lets the load make `steps` steps, and starts it again.
fn absent(
    ensemble: &mut Ensemble,
    load: &Load,
    (leader, learner): (u64, u64),
    steps: u64,
) -> Result<Synchronized> {
    lead(ensemble, load, leader)?;
    ensemble.kill(learner)?;
    load.wait_for(steps, PATIENCE * 4)
        .with_context(|| format!("without member {learner}"))?;
    // An absence that does not last longer because a process takes long to start.
    load.pause(PATIENCE)?;
    let seen = network(ensemble)?.tap().synchronized().len();
    ensemble.spawn(learner)?;
    ensemble.wait_until_serving(PATIENCE)?;
    let tap = network(ensemble)?.tap();
    let one = tap.wait_for_synchronized((leader, learner), seen, PATIENCE)?;
    go_on(load)?;
    Ok(one)
}

/// Makes `learner` the leader, cuts it off, lets it log what nobody else gets, and lets it back when `leader` leads.
/// `None` when another one was elected.
fn cut(
    ensemble: &mut Ensemble,
    load: &Load,
    (leader, learner): (u64, u64),
    lost: &mut Vec<String>,
) -> Result<Option<Synchronized>> {
    lead(ensemble, load, learner)?;
    load.pause(PATIENCE)?;
    let mut ahead = Ahead::prepare(ensemble, learner)?;
    ahead.put(ensemble, leader)?;
    let network = network(ensemble)?;
    let others = others(ensemble, learner);
    for other in &others {
        network.hold(learner, *other);
        network.hold(*other, learner);
    }
    for _ in 0..LOST_WRITES {
        lost.push(ahead.send());
    }
    ahead.flush();
    let elected = wait_for_leader(ensemble, &others)?;
    let seen = network.tap().synchronized().len();
    network.heal();
    ensemble.wait_until_serving(PATIENCE)?;
    let tap = crate::succession::network(ensemble)?.tap();
    let one = tap.wait_for_synchronized((elected, learner), seen, PATIENCE)?;
    go_on(load)?;
    Ok((elected == leader).then_some(one))
}

/// What was cut off must be nowhere.
fn ensure_gone(ensemble: &Ensemble, lost: &[String]) -> Result<()> {
    for id in ensemble.ids() {
        let mut session = Session::open(ensemble.address(id)?, SESSION_MS)?;
        session.call(&Request::Sync { path: "/" })?.ok()?;
        for path in lost {
            let reply = session.call(&Request::Exists { path, watch: false })?;
            ensure!(
                reply.header.error == ZkError::NoNode.code(),
                "CUT: {path} was never acknowledged, and is there at member {id}"
            );
        }
        session.close()?;
    }
    Ok(())
}

/// The members' own words, where they log: a line for each synchronization at least.
fn compare_with_logs(ensemble: &Ensemble, seen: &[Synchronized]) -> Result<()> {
    for id in ensemble.ids() {
        let path = ensemble.member(id)?.dir().join("server.log");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let is_apache = ensemble.is_apache(id);
        if is_apache && !text.contains(" INFO ") {
            continue;
        }
        for by in [By::Diff, By::Trunc, By::Snap] {
            let seen = seen.iter().filter(|it| it.learner == id && it.by == by);
            let (seen, told) = (seen.count(), told(&text, is_apache, by));
            ensure!(
                told >= seen,
                "member {id} tells of {told} synchronizations by {by:?}, the wire of {seen}"
            );
        }
    }
    Ok(())
}

/// How many synchronizations a learner's log tells of.
fn told(text: &str, is_apache: bool, by: By) -> usize {
    let (what, how) = match (is_apache, by) {
        (false, By::Diff) => (": being synchronized ", "by=\"DIFF\""),
        (false, By::Trunc) => (": being synchronized ", "by=\"TRUNC\""),
        (false, By::Snap) => (": being synchronized ", "by=\"SNAP\""),
        (true, By::Diff) => ("Getting a diff from the leader", ""),
        (true, By::Trunc) => ("Truncating log to get in sync with the leader", ""),
        (true, By::Snap) => ("Getting a snapshot from leader", ""),
    };
    let lines = text.lines();
    lines
        .filter(|line| line.contains(what) && line.contains(how))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_tells_how_it_was_synchronized() {
        let own = "x: being synchronized leader=3 by=\"SNAP\"\nx: being synchronized leader=3 by=\"DIFF\"\n\
                   x: synchronizing learner=2 by=\"SNAP\"";
        assert_eq!(told(own, false, By::Snap), 1);
        assert_eq!(told(own, false, By::Diff), 1);
        assert_eq!(told(own, false, By::Trunc), 0);
        let apache = "INFO Truncating log to get in sync with the leader 0x100000005";
        assert_eq!(told(apache, true, By::Trunc), 1);
    }
}
