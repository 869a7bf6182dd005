//! Two servers and an oracle that decides which of them may go on without the other: one is killed, the other must wait
//! until it may go on, and then has everything.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::ensemble::Ensemble;
use crate::load::Load;

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Steps of each writer that must be acknowledged by one server, and by both.
const STEPS: u64 = 20;

/// How long a server that may not go on is watched: several ticks.
const DENIED: Duration = Duration::from_secs(3);

/// What came of one loss.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Who was killed.
    pub killed: u64,
    /// Whether it led.
    pub led: bool,
    /// From the oracle's word until every writer had a step acknowledged.
    pub resumed: Duration,
}

/// Gives each member an oracle of its own, which denies. Before the start.
///
/// # Errors
/// When there are not two members, or files cannot be written.
pub fn prepare(ensemble: &mut Ensemble) -> Result<()> {
    let ids = ensemble.ids();
    ensure!(ids.len() == 2, "an oracle is for two members");
    for id in ids {
        say(ensemble, id, "0")?;
        let path = oracle(ensemble, id)?.display().to_string();
        ensemble.relaunch(id, |launch| launch.set("oraclePath", &path))?;
    }
    Ok(())
}

/// Kills the leader and the follower in turn, `times` in all. `report` hears of each.
///
/// # Errors
/// When one goes on alone that may not, or does not though it may.
pub fn lose_each(
    ensemble: &mut Ensemble,
    load: &Load,
    times: u32,
    mut report: impl FnMut(u32, Loss),
) -> Result<()> {
    for at in 1..=times {
        load.wait_for_each(STEPS, PATIENCE)?;
        let leader = ensemble.leader().context("there is no leader")?;
        let mut ids = ensemble.ids().into_iter();
        let led = at % 2 == 1;
        let killed = ids.find(|id| (*id == leader) == led);
        let killed = killed.context("there is no other member")?;
        let mut ids = ensemble.ids().into_iter();
        let left = ids.find(|id| *id != killed).context("nobody is left")?;
        ensemble.kill(killed)?;
        wait_for_nobody(ensemble, left)?;
        let before = load.acknowledged();
        thread::sleep(DENIED);
        let after = load.acknowledged();
        ensure!(
            before == after && ensemble.role(left).is_none(),
            "member {left} goes on alone, and its oracle denies: {} steps",
            after - before
        );
        say(ensemble, left, "1")?;
        let granted = Instant::now();
        load.wait_for_each(1, PATIENCE)
            .with_context(|| format!("member {left} alone, with its oracle's word"))?;
        let resumed = granted.elapsed();
        load.wait_for_each(STEPS, PATIENCE)?;
        // As long as the other one lacks something the word stays with this one.
        ensemble.spawn(killed)?;
        ensemble
            .wait_until_serving(PATIENCE)
            .with_context(|| format!("member {killed} is back"))?;
        say(ensemble, left, "0")?;
        load.wait_for_each(STEPS, PATIENCE)
            .context("both again, and no oracle grants anything")?;
        let loss = Loss {
            killed,
            led,
            resumed,
        };
        report(at, loss);
    }
    Ok(())
}

/// Until `id` serves no more.
fn wait_for_nobody(ensemble: &Ensemble, id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while ensemble.role(id).is_some() {
        ensure!(
            Instant::now() < deadline,
            "member {id} serves alone, and its oracle denies"
        );
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn oracle(ensemble: &Ensemble, id: u64) -> Result<PathBuf> {
    Ok(ensemble.member(id)?.dir().join("oracle"))
}

fn say(ensemble: &Ensemble, id: u64, word: &str) -> Result<()> {
    let path = oracle(ensemble, id)?;
    // Whoever reads sees the old word or the new one.
    let new = path.with_extension("new");
    fs::write(&new, word).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))
}
