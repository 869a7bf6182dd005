//! Faults that an ensemble must survive, one at a time: of one member, of the network, and of all members.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::damage::{Place, damage_log};
use crate::ensemble::Ensemble;
use crate::load::Load;

/// How long the rest of an ensemble may take until it acknowledges writes again, and a member until it
/// serves again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Steps that must be acknowledged between two faults.
const STEPS: u64 = 50;

/// Longer than peers wait for each other: syncLimit ticks.
const SILENCE: Duration = Duration::from_secs(3);

/// What a slow link adds to each packet, and a slow disk to each durable write.
const SLOWNESS: Duration = Duration::from_millis(40);

const DISK_DELAY: &str = "ringkeeper.test.diskDelayMs";

/// A fault, of one member if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// It and this other member do not hear each other; all others hear both.
    Bridge(u64),
    /// All that it sends and gets takes longer.
    SlowLinks,
}

impl Fault {
    /// One of them, of member `id`.
    pub fn choose(rng: &mut SmallRng, ensemble: &Ensemble, id: u64) -> Self {
        let others: Vec<u64> = ensemble.ids().into_iter().filter(|it| *it != id).collect();
        let mut kinds = vec![Self::Kill, Self::Kill, Self::Pause, Self::Restart];
        if !ensemble.is_apache(id) {
            kinds.extend([Self::Damage, Self::Tear]);
        }
        if ensemble.network().is_some() {
            let bridge = others.choose(rng).map(|other| Self::Bridge(*other));
            kinds.extend([
                Self::Isolated,
                Self::Isolated,
                Self::Deaf,
                Self::Mute,
                Self::SlowLinks,
                Self::Storm,
            ]);
            kinds.extend(bridge);
            if !ensemble.is_apache(id) {
                kinds.push(Self::SlowDisk);
            }
        }
        let at = rng.random_range(0..kinds.len());
        kinds.get(at).copied().unwrap_or(Self::Kill)
    }
}

/// Does it to member `id` under `load`: the others must go on, and the member must come back.
///
/// # Errors
/// When writes are not acknowledged any more, or the member does not come back.
pub fn inflict(ensemble: &mut Ensemble, load: &Load, id: u64, fault: Fault) -> Result<()> {
    begin(ensemble, id, fault)?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("without member {id} ({fault:?})"))?;
    end(ensemble, id, fault)?;
    ensemble
        .wait_until_serving(PATIENCE)
        .with_context(|| format!("member {id} is back ({fault:?})"))?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("with member {id} back ({fault:?})"))
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
        _ => {
            let network = ensemble.network().context("there is no proxied network")?;
            for other in ensemble.ids().into_iter().filter(|it| *it != id) {
                match fault {
                    Fault::Bridge(cut) if cut != other => {}
                    Fault::Deaf => network.hold(other, id),
                    Fault::Mute => network.hold(id, other),
                    Fault::SlowLinks => {
                        network.delay(id, other, SLOWNESS);
                        network.delay(other, id, SLOWNESS);
                    }
                    _ => {
                        network.hold(id, other);
                        network.hold(other, id);
                    }
                }
            }
        }
    }
    Ok(())
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
        _ => {
            thread::sleep(SILENCE);
            if let Some(network) = ensemble.network() {
                network.heal();
            }
        }
    }
    Ok(())
}
