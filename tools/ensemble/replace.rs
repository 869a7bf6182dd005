//! Replacing the members of an ensemble one by one, under load, by servers of another kind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringkeeper_harness::Launch;

use crate::ensemble::Ensemble;
use crate::load::Load;

const PATIENCE: Duration = Duration::from_secs(120);

/// Steps that must be acknowledged while a member is away, and with the new one.
const STEPS: u64 = 200;

/// Replaces every member: followers first, the leader last, as an operator would. The new server begins
/// without data, and gets all of it from the others. `report` hears of each.
///
/// # Errors
/// When writes are not acknowledged any more, or a new server does not serve.
pub fn replace_all(
    ensemble: &mut Ensemble,
    load: &Load,
    by: &Launch,
    mut report: impl FnMut(u64, Duration),
) -> Result<()> {
    let mut left = ensemble.ids();
    while !left.is_empty() {
        let leader = ensemble.leader();
        // A voter leads whatever happens, so the last one is the leader.
        let at = left.iter().position(|id| Some(*id) != leader).unwrap_or(0);
        let id = left.remove(at);
        let began = Instant::now();
        replace(ensemble, load, id, by)
            .with_context(|| format!("replace member {id} by {}", by.name))?;
        report(id, began.elapsed());
    }
    Ok(())
}

fn replace(ensemble: &mut Ensemble, load: &Load, id: u64, by: &Launch) -> Result<()> {
    ensemble.terminate(id, Duration::from_secs(10))?;
    load.wait_for(STEPS, PATIENCE).context("while it is away")?;
    ensemble.wipe(id)?;
    ensemble.relaunch(id, |launch| launch.become_like(by))?;
    ensemble.spawn(id)?;
    ensemble.wait_until_serving(PATIENCE)?;
    load.wait_for(STEPS, PATIENCE).context("with the new one")
}
