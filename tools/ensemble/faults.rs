//! Faults that an ensemble must survive, one at a time: of one member, of the network, and of all members.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::damage::{Place, damage_log};
use crate::ensemble::{Ensemble, Role};
use crate::load::Load;
use crate::namespaces::Hosts;

/// How long the rest of an ensemble may take until it acknowledges writes again, and a member until it
/// serves again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Steps that must be acknowledged between two faults.
const STEPS: u64 = 50;

/// Longer than peers wait for each other: syncLimit ticks.
const SILENCE: Duration = Duration::from_secs(3);

/// What a slow link adds to each packet, and a slow disk to each durable write.
const SLOWNESS: Duration = Duration::from_millis(40);

const LOOK_PAUSE: Duration = Duration::from_millis(5);

const DISK_DELAY: &str = "ringkeeper.test.diskDelayMs";

/// What a host's links carry while they are slow, in kilobits a second.
const SLOW_KILOBITS: u32 = 400;

/// A fault, of one member if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// kill -9, and later a start.
    Kill,
    /// SIGSTOP for a while.
    Pause,
    /// SIGTERM, and a start.
    Restart,
    /// kill -9, and before the start a byte in the middle of its log is flipped (one of Ringkeeper's servers).
    Damage,
    /// The same with a byte of its last write, as if that was torn.
    Tear,
    /// All members are killed at once, started, and killed again before they are ready.
    Storm,
    /// For a while its durable writes take long (one of Ringkeeper's servers).
    SlowDisk,
    /// Nothing gets to it or from it.
    Isolated,
    /// It does not hear the others, who hear it.
    Deaf,
    /// The others do not hear it, and it hears them.
    Mute,
    /// It and the next member do not hear each other; all others hear both.
    Bridge,
    /// It and less than half of the others are a half of their own, which the rest does not hear.
    Split,
    /// The others are two halves that do not hear each other, and it hears both.
    Between,
    /// All that it sends and gets takes longer.
    SlowLinks,
    /// Its host's cables are pulled: clients too hear nothing of it, and no connection ends.
    Unplugged,
    /// Its host loses power: no connection ends, and when it is back it knows none of them.
    HostLost,
}

impl Fault {
    /// One of them, of member `id`.
    pub fn choose(rng: &mut SmallRng, ensemble: &Ensemble, id: u64) -> Self {
        let mut kinds = vec![Self::Kill, Self::Kill, Self::Pause, Self::Restart];
        if !ensemble.is_apache(id) {
            kinds.extend([Self::Damage, Self::Tear]);
        }
        let can_fail = ensemble.network().is_some() || ensemble.hosts().is_some();
        if can_fail {
            kinds.extend([
                Self::Isolated,
                Self::Isolated,
                Self::Deaf,
                Self::Mute,
                Self::Bridge,
                Self::Split,
                Self::Between,
                Self::SlowLinks,
                Self::Storm,
            ]);
        }
        if ensemble.hosts().is_some() {
            kinds.extend([Self::Unplugged, Self::HostLost, Self::HostLost]);
        }
        if !ensemble.is_apache(id) {
            kinds.push(Self::Damage);
            kinds.extend(can_fail.then_some(Self::SlowDisk));
        }
        let at = rng.random_range(0..kinds.len());
        kinds.get(at).copied().unwrap_or(Self::Kill)
    }

    /// Whether a leader to which it happens is one no more.
    const fn deposes(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::Pause
                | Self::Damage
                | Self::Isolated
                | Self::Deaf
                | Self::Mute
                | Self::Split
                | Self::Unplugged
                | Self::HostLost
        )
    }

    /// The ways (from, to) on which nothing arrives, of member `id` among `ids`.
    fn held(self, ids: &[u64], id: u64) -> Vec<(u64, u64)> {
        let after = ids.iter().skip_while(|it| **it != id).skip(1);
        let others: Vec<u64> = after
            .chain(ids.iter().take_while(|it| **it != id))
            .copied()
            .collect();
        let half = others.len() / 2;
        let apart = |from: u64, to: u64| {
            let is_id = from == id || to == id;
            let sides = [from, to].map(|it| others.iter().position(|other| *other == it));
            match self {
                Self::Isolated => is_id,
                Self::Deaf => to == id,
                Self::Mute => from == id,
                Self::Bridge => is_id && sides.contains(&Some(0)),
                // The member comes first on its side.
                Self::Split => {
                    let sides = sides.map(|at| at.is_none_or(|at| at + 1 < half));
                    sides[0] != sides[1]
                }
                Self::Between => {
                    let sides = sides.map(|at| at.map(|at| at < half));
                    !is_id && sides[0] != sides[1]
                }
                _ => false,
            }
        };
        let ways = ids
            .iter()
            .flat_map(|from| ids.iter().map(move |to| (*from, *to)));
        ways.filter(|(from, to)| from != to && apart(*from, *to))
            .collect()
    }
}

/// Does it to member `id` under `load`: the others must go on, and the member must come back.
///
/// # Errors
/// When writes are not acknowledged any more, or the member does not come back.
pub fn inflict(ensemble: &mut Ensemble, load: &Load, id: u64, fault: Fault) -> Result<()> {
    let led = ensemble.role(id) == Some(Role::Leader);
    begin(ensemble, id, fault)?;
    if led && fault.deposes() {
        wait_for_another_leader(ensemble, id)
            .with_context(|| format!("without member {id} ({fault:?})"))?;
    }
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("without member {id} ({fault:?})"))?;
    end(ensemble, id, fault)?;
    ensemble
        .wait_until_serving(PATIENCE)
        .with_context(|| format!("member {id} is back ({fault:?})"))?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("with member {id} back ({fault:?})"))
}

/// Else the fault was none.
fn wait_for_another_leader(ensemble: &Ensemble, id: u64) -> Result<()> {
    let mut others = ensemble.ids();
    others.retain(|other| *other != id);
    let deadline = Instant::now() + PATIENCE;
    while !others
        .iter()
        .any(|other| ensemble.role(*other) == Some(Role::Leader))
    {
        ensure!(Instant::now() < deadline, "no other member leads");
        thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}

fn begin(ensemble: &mut Ensemble, id: u64, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill | Fault::Damage | Fault::Tear => ensemble.kill(id)?,
        Fault::Pause => ensemble.pause(id)?,
        Fault::Restart => ensemble.terminate(id, Duration::from_secs(10))?,
        Fault::Storm => {
            for _ in 0..2 {
                let ids = ensemble.ids();
                ids.iter().try_for_each(|id| ensemble.kill(*id))?;
                ids.iter().try_for_each(|id| ensemble.spawn(*id))?;
                // Somewhere in the middle of reading its data, or of the election.
                thread::sleep(Duration::from_millis(400));
            }
        }
        Fault::SlowDisk => {
            ensemble.terminate(id, Duration::from_secs(10))?;
            let ms = SLOWNESS.as_millis().to_string();
            ensemble.relaunch(id, |launch| launch.set(DISK_DELAY, &ms))?;
            ensemble.spawn(id)?;
            ensemble.wait_until_serving(PATIENCE)?;
        }
        Fault::Unplugged => hosts(ensemble)?.unplug(id)?,
        Fault::HostLost => {
            // In this order nobody is told that the process has ended.
            hosts(ensemble)?.unplug(id)?;
            ensemble.kill(id)?;
            hosts(ensemble)?.tear_down(id)?;
        }
        Fault::SlowLinks => slow_links(ensemble, id)?,
        _ => {
            let ways = fault.held(&ensemble.ids(), id);
            ensure!(!ways.is_empty(), "{fault:?} cuts nothing here");
            for (from, to) in ways {
                match (ensemble.network(), ensemble.hosts()) {
                    (Some(network), _) => network.hold(from, to),
                    (None, Some(hosts)) => hosts.hold(from, to)?,
                    (None, None) => bail!("the network of this ensemble cannot fail"),
                }
            }
        }
    }
    Ok(())
}

fn slow_links(ensemble: &Ensemble, id: u64) -> Result<()> {
    let Some(network) = ensemble.network() else {
        return hosts(ensemble)?.throttle(id, SLOW_KILOBITS);
    };
    for other in ensemble.ids().into_iter().filter(|it| *it != id) {
        network.delay(id, other, SLOWNESS);
        network.delay(other, id, SLOWNESS);
    }
    Ok(())
}

fn hosts(ensemble: &Ensemble) -> Result<&Hosts> {
    let hosts = ensemble.hosts();
    hosts.context("the members of this ensemble have no hosts of their own")
}

fn end(ensemble: &mut Ensemble, id: u64, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill | Fault::Restart => ensemble.spawn(id)?,
        Fault::Damage => {
            damage_log(ensemble, id, Place::Middle)?;
            ensemble.spawn(id)?;
        }
        Fault::Tear => {
            damage_log(ensemble, id, Place::End)?;
            ensemble.spawn(id)?;
        }
        Fault::Storm => {}
        Fault::Pause => {
            thread::sleep(SILENCE);
            ensemble.resume(id)?;
        }
        Fault::SlowDisk => {
            ensemble.terminate(id, Duration::from_secs(10))?;
            ensemble.relaunch(id, |launch| launch.unset(DISK_DELAY))?;
            ensemble.spawn(id)?;
        }
        Fault::HostLost => {
            thread::sleep(SILENCE);
            hosts(ensemble)?.build(id)?;
            ensemble.spawn(id)?;
        }
        Fault::Unplugged => {
            thread::sleep(SILENCE);
            hosts(ensemble)?.plug(id)?;
        }
        _ => {
            thread::sleep(SILENCE);
            if let Some(network) = ensemble.network() {
                network.heal();
            }
            if let Some(hosts) = ensemble.hosts() {
                hosts.heal()?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fault: Fault, ids: &[u64], id: u64, expected: &[(u64, u64)]) {
        assert_eq!(
            fault.held(ids, id),
            expected,
            "{fault:?} of {id} in {ids:?}"
        );
    }

    #[test]
    fn the_ways_that_are_cut() {
        let three = [1, 2, 3];
        check(
            Fault::Isolated,
            &three,
            2,
            &[(1, 2), (2, 1), (2, 3), (3, 2)],
        );
        check(Fault::Deaf, &three, 2, &[(1, 2), (3, 2)]);
        check(Fault::Mute, &three, 2, &[(2, 1), (2, 3)]);
        check(Fault::Bridge, &three, 3, &[(1, 3), (3, 1)]);
        check(Fault::Split, &three, 2, &[(1, 2), (2, 1), (2, 3), (3, 2)]);
        check(Fault::Between, &three, 2, &[(1, 3), (3, 1)]);
        check(Fault::Kill, &three, 2, &[]);
    }

    #[test]
    fn the_halves_of_five() {
        let five = [1, 2, 3, 4, 5];
        // 4 and 5 on one side.
        let split = Fault::Split.held(&five, 4);
        assert_eq!(split.len(), 2 * 2 * 3);
        assert!(split.iter().all(|(from, to)| (*from > 3) != (*to > 3)));
        // 5 and 1, 2 and 3, and 4 hears all.
        let between = Fault::Between.held(&five, 4);
        assert_eq!(between.len(), 2 * 2 * 2);
        assert!(between.iter().all(|(from, to)| *from != 4 && *to != 4));
        assert!(between.contains(&(1, 2)) && between.contains(&(3, 5)));
        assert!(!between.contains(&(1, 5)) && !between.contains(&(2, 3)));
    }
}
