//! A leader whose network limps: what it sends to the others waits for a slow link, and it has to hand over by itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::ensemble::Ensemble;
use crate::load::Load;

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Steps of each writer that must be acknowledged before and afterwards.
const STEPS: u64 = 20;

/// Lines of `zoo.cfg` that make leaders decide soon.
pub const SETTINGS: [&str; 3] = [
    "ringkeeper.limping.networkMs=200",
    "ringkeeper.limping.sustainedMs=2000",
    "ringkeeper.limping.pauseMs=2000",
];

/// What a leader logs when it decides.
const WORD: &str = "this leader's network limps";

/// A leader that gave up.
#[derive(Clone, Copy, Debug)]
pub struct Limped {
    /// Who led.
    pub from: u64,
    /// Who leads.
    pub to: u64,
    /// From the moment when its link became slow until another one led.
    pub after: Duration,
    /// The longest that a writer waited in that time.
    pub pause: Duration,
}

/// Slows down what the leader sends, and waits until another member leads because of that.
///
/// # Errors
/// When none does, or for another reason.
pub fn once(ensemble: &mut Ensemble, load: &Load, kilobits: u32) -> Result<Limped> {
    load.wait_for_each(STEPS, PATIENCE)?;
    let from = ensemble.leader().context("there is no leader")?;
    let hosts = ensemble
        .hosts()
        .context("it takes members with hosts of their own: --hosts")?;
    let said = times_said(ensemble, from)?;
    load.take_pause();
    hosts.throttle(from, kilobits)?;
    let began = Instant::now();
    let to = loop {
        match ensemble.leader() {
            Some(leader) if leader != from => break leader,
            _ if began.elapsed() > PATIENCE => bail!("member {from} leads on for {PATIENCE:?}"),
            _ => thread::sleep(PAUSE),
        }
    };
    let after = began.elapsed();
    ensure!(
        times_said(ensemble, from)? > said,
        "member {from} does not lead any more, but not because its network limps"
    );
    load.wait_for_each(1, PATIENCE)
        .with_context(|| format!("under member {to}"))?;
    let pause = load.take_pause();
    hosts.heal()?;
    ensemble.wait_until_serving(PATIENCE)?;
    load.wait_for_each(STEPS, PATIENCE)?;
    Ok(Limped {
        from,
        to,
        after,
        pause,
    })
}

fn times_said(ensemble: &Ensemble, id: u64) -> Result<usize> {
    let path = ensemble.member(id)?.dir().join("server.log");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).matches(WORD).count())
}
