//! Makes leaders synchronize learners in each of the three ways, and takes from what the members of
//! Ringkeeper log that it has happened: DIFF after a short absence, SNAP after one that outlasts the
//! leader's log, TRUNC of what a leader logged that could reach nobody any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringkeeper_harness::Session;

use crate::ensemble::{Ensemble, Role};
use crate::load::{Load, create};

const PATIENCE: Duration = Duration::from_secs(60);
const SESSION_MS: i32 = 20_000;

/// Steps of a short absence.
const STEPS: u64 = 50;

/// What is logged of a long absence, in bytes: more than a leader of either kind keeps with [`SETTINGS`],
/// in memory or on disk.
const LOG_BYTES: u64 = 48 << 20;

/// Writes that only an isolated leader logs.
const LOST_WRITES: usize = 40;

/// Lines of `zoo.cfg` that make a log short.
pub const SETTINGS: [&str; 6] = [
    "snapCount=500",
    "ringkeeper.snapshotLogSizeInKb=256",
    "preAllocSize=8192",
    "autopurge.snapRetainCount=3",
    "commitLogCount=100",
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
    /// How.
    pub by: By,
}

/// The three ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The proposals that the learner lacks.
    Diff,
    /// The end of its log is cut first.
    Trunc,
    /// The whole tree.
    Snap,
}

impl fmt::Display for Synchronization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |is_apache| match is_apache {
            true => "Apache",
            false => "Ringkeeper",
        };
        let (leads, learns) = (name(self.apache_leads), name(self.apache_learns));
        write!(f, "{leads} to {learns} by {:?}", self.by)
    }
}

/// Provokes synchronizations until each wanted one has been seen, or `rounds` are over; how often each
/// was seen.
///
/// # Errors
/// When the ensemble does not go on, or one was not seen.
pub fn provoke(
    ensemble: &mut Ensemble,
    load: &Load,
    step_bytes: usize,
    rounds: u32,
    mut report: impl FnMut(&str),
) -> Result<BTreeMap<Synchronization, usize>> {
    let wanted = wanted(ensemble);
    let mut seen = BTreeMap::new();
    for _ in 0..rounds {
        for id in ensemble.ids() {
            let leader = ensemble.leader().context("there is no leader")?;
            if id == leader {
                continue;
            }
            absent(ensemble, load, id, STEPS)?;
            let long = LOG_BYTES / step_bytes.max(1) as u64;
            absent(ensemble, load, id, long)?;
            report(&format!(
                "member {id} was absent for {STEPS} and {long} steps"
            ));
        }
        let leader = isolate_leader(ensemble, load)?;
        report(&format!("leader {leader} was isolated"));
        seen = read_logs(ensemble)?;
        if wanted.iter().all(|it| seen.contains_key(it)) {
            return Ok(seen);
        }
    }
    let missing: Vec<_> = wanted.iter().filter(|it| !seen.contains_key(it)).collect();
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    ensure!(missing.is_empty(), "not seen: {}", missing.join(", "));
    Ok(seen)
}

/// All ways between all kinds of members that there are, where one of them is Ringkeeper's: Apache's say
/// nothing of it.
fn wanted(ensemble: &Ensemble) -> BTreeSet<Synchronization> {
    let kinds: Vec<bool> = ensemble
        .ids()
        .iter()
        .map(|id| ensemble.is_apache(*id))
        .collect();
    let mut wanted = BTreeSet::new();
    for (leads, apache_leads) in kinds.iter().enumerate() {
        for (learns, apache_learns) in kinds.iter().enumerate() {
            if leads != learns && !(*apache_leads && *apache_learns) {
                wanted.extend([By::Diff, By::Trunc, By::Snap].map(|by| Synchronization {
                    apache_leads: *apache_leads,
                    apache_learns: *apache_learns,
                    by,
                }));
            }
        }
    }
    wanted
}

fn absent(ensemble: &mut Ensemble, load: &Load, id: u64, steps: u64) -> Result<()> {
    ensemble.kill(id)?;
    load.wait_for(steps, PATIENCE * 4)
        .with_context(|| format!("without member {id}"))?;
    ensemble.spawn(id)?;
    ensemble.wait_until_serving(PATIENCE)?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("with member {id} back"))
}

/// Cuts the leader off, lets it log what nobody else gets, and lets it back when another leads.
fn isolate_leader(ensemble: &mut Ensemble, load: &Load) -> Result<u64> {
    let leader = ensemble.leader().context("there is no leader")?;
    let mut session = Session::open(ensemble.address(leader)?, SESSION_MS)?;
    let network = ensemble.network().context("there is no proxied network")?;
    let others: Vec<_> = ensemble
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    for other in &others {
        network.hold(leader, *other);
        network.hold(*other, leader);
    }
    for number in 0..LOST_WRITES {
        let path = format!("/lost-{leader}-{number}-{}", session.key().id);
        session.send(&create(&path, b""));
    }
    // It may give up before it has read them all.
    _ = session.flush();
    let deadline = Instant::now() + PATIENCE;
    while !others
        .iter()
        .any(|id| ensemble.role(*id) == Some(Role::Leader))
    {
        ensure!(Instant::now() < deadline, "no other member leads");
        std::thread::sleep(Duration::from_millis(20));
    }
    load.wait_for(STEPS, PATIENCE)
        .context("with another leader")?;
    if let Some(network) = ensemble.network() {
        network.heal();
    }
    ensemble.wait_until_serving(PATIENCE)?;
    load.wait_for(STEPS, PATIENCE)
        .context("with the old leader back")?;
    Ok(leader)
}

/// What the members of Ringkeeper have logged. Between two of them the learner's word counts.
fn read_logs(ensemble: &Ensemble) -> Result<BTreeMap<Synchronization, usize>> {
    let mut seen = BTreeMap::new();
    for id in ensemble
        .ids()
        .into_iter()
        .filter(|id| !ensemble.is_apache(*id))
    {
        let path = ensemble.member(id)?.dir().join("server.log");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        for line in String::from_utf8_lossy(&text).lines() {
            let (other, leads) = match (field(line, "learner="), field(line, "leader=")) {
                (Some(learner), _) if line.contains(": synchronizing ") => (learner, true),
                (_, Some(leader)) if line.contains(": being synchronized ") => (leader, false),
                _ => continue,
            };
            let other_is_apache = other.parse().is_ok_and(|other| ensemble.is_apache(other));
            let by = match field(line, "by=") {
                Some("\"DIFF\"") => By::Diff,
                Some("\"TRUNC\"") => By::Trunc,
                Some("\"SNAP\"") => By::Snap,
                _ => continue,
            };
            if !leads || other_is_apache {
                let one = Synchronization {
                    apache_leads: !leads && other_is_apache,
                    apache_learns: leads && other_is_apache,
                    by,
                };
                *seen.entry(one).or_insert(0) += 1;
            }
        }
    }
    Ok(seen)
}

/// The value behind `name` in a log line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(name)?;
    rest.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_end_at_a_blank() {
        let line = "peer_traffic: synchronizing learner=3 by=\"SNAP\"";
        assert_eq!(field(line, "learner="), Some("3"));
        assert_eq!(field(line, "by="), Some("\"SNAP\""));
        assert_eq!(field(line, "leader="), None);
    }
}
