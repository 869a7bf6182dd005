//! One of several networks among the members is lost without a word, the others carry on: how long writers wait.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ensemble::Ensemble;
use crate::load::Load;

const PATIENCE: Duration = Duration::from_secs(60);

/// Steps of each writer that must be acknowledged without the network, and with it again.
const STEPS: u64 = 20;

/// A network that was lost for a while.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Which, from 1.
    pub network: u8,
    /// The longest that a writer waited when it was lost.
    pub pause: Duration,
    /// The same when it was back.
    pub pause_back: Duration,
    /// Who led before, and without it.
    pub leaders: [Option<u64>; 2],
}

/// Cuts one network after the other, `times` in all. `report` hears of each.
///
/// # Errors
/// When writers are not served any more, or a member does not serve.
pub fn lose_each(
    ensemble: &mut Ensemble,
    load: &Load,
    times: u32,
    mut report: impl FnMut(u32, Loss),
) -> Result<()> {
    let networks = ensemble.hosts().map_or(0, |hosts| hosts.networks());
    ensure!(
        networks > 1,
        "it takes members with several networks: --hosts=2"
    );
    for (at, network) in (1..=times).zip((1..=networks).cycle()) {
        load.wait_for_each(STEPS, PATIENCE)?;
        let before = ensemble.leader();
        load.take_pause();
        hosts(ensemble)?.cut(network)?;
        load.wait_for_each(STEPS, PATIENCE)
            .with_context(|| format!("without network {network}"))?;
        ensemble
            .wait_until_serving(PATIENCE)
            .with_context(|| format!("without network {network}"))?;
        load.wait_for_each(STEPS, PATIENCE)?;
        let (pause, without) = (load.take_pause(), ensemble.leader());
        hosts(ensemble)?.restore(network)?;
        load.wait_for_each(STEPS, PATIENCE)
            .with_context(|| format!("with network {network} back"))?;
        ensemble.wait_until_serving(PATIENCE)?;
        let loss = Loss {
            network,
            pause,
            pause_back: load.take_pause(),
            leaders: [before, without],
        };
        report(at, loss);
    }
    Ok(())
}

fn hosts(ensemble: &Ensemble) -> Result<&crate::namespaces::Hosts> {
    ensemble.hosts().context("the members have no hosts")
}
