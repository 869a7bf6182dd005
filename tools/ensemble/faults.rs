//! Faults that an ensemble must survive: kills and pauses of members, one at a time.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::ensemble::Ensemble;
use crate::load::Load;

/// How long the rest of an ensemble may take until it acknowledges writes again, and a member until it
/// serves again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Steps that must be acknowledged between two faults.
const STEPS: u64 = 50;

/// A fault of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and later a start.
    Kill,
    /// SIGSTOP for a while.
    Pause,
    /// SIGTERM, and a start.
    Restart,
}

impl Fault {
    /// One of them.
    pub fn choose(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..4) {
            0 | 1 => Self::Kill,
            2 => Self::Pause,
            _ => Self::Restart,
        }
    }
}

/// Does it to member `id` under `load`: the others must go on, and the member must come back.
///
/// # Errors
/// When writes are not acknowledged any more, or the member does not come back.
pub fn inflict(ensemble: &mut Ensemble, load: &Load, id: u64, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill => ensemble.kill(id)?,
        Fault::Pause => ensemble.pause(id)?,
        Fault::Restart => ensemble.terminate(id, Duration::from_secs(10))?,
    }
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("without member {id} ({fault:?})"))?;
    match fault {
        Fault::Kill | Fault::Restart => ensemble.spawn(id)?,
        Fault::Pause => {
            // Longer than its peers wait for it: syncLimit ticks.
            thread::sleep(Duration::from_secs(3));
            ensemble.resume(id)?;
        }
    }
    ensemble
        .wait_until_serving(PATIENCE)
        .with_context(|| format!("member {id} is back ({fault:?})"))?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("with member {id} back ({fault:?})"))
}
