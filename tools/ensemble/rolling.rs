//! A rolling restart under load: the members of Ringkeeper's are stopped by SIGTERM and started again, one by one, the
//! leader last. A leader that is stopped hands over first, so nobody has to look for one.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ensemble::Ensemble;
use crate::load::Load;

const PATIENCE: Duration = Duration::from_secs(60);

/// Steps of each writer that must be acknowledged without the member, and with it again.
const STEPS: u64 = 20;

/// What a member logs when it has no leader.
const LOOKS: &str = "looking for a leader";

/// A member that was restarted.
#[derive(Clone, Copy, Debug)]
pub struct Restart {
    /// Which.
    pub id: u64,
    /// Who led then, if it did before.
    pub successor: Option<u64>,
    /// The longest that a writer waited when it was stopped; some had to find another member.
    pub pause: Duration,
}

/// Restarts each member once. `report` hears of each.
///
/// # Errors
/// When members look for a leader meanwhile, or writers are not served any more.
pub fn restart_each(
    ensemble: &mut Ensemble,
    load: &Load,
    mut report: impl FnMut(Restart),
) -> Result<()> {
    let mut left = ensemble.ids();
    while !left.is_empty() {
        let leader = ensemble.leader();
        let at = left.iter().position(|id| Some(*id) != leader).unwrap_or(0);
        let id = left.remove(at);
        let others: Vec<u64> = ensemble.ids().into_iter().filter(|it| *it != id).collect();
        load.wait_for_each(STEPS, PATIENCE)?;
        let looked = times_looked(ensemble, &others)?;
        load.take_pause();
        ensemble.terminate(id, PATIENCE)?;
        load.wait_for_each(STEPS, PATIENCE)
            .with_context(|| format!("without member {id}"))?;
        let pause = load.take_pause();
        let looks = times_looked(ensemble, &others)? - looked;
        let successor = ensemble.leader().filter(|_| leader == Some(id));
        ensemble.spawn(id)?;
        ensemble.wait_until_serving(PATIENCE)?;
        ensure!(
            looks == 0,
            "{looks} members had to look for a leader when member {id} was stopped (leader: {leader:?})"
        );
        report(Restart {
            id,
            successor,
            pause,
        });
    }
    Ok(())
}

/// Of Apache's members nothing is known.
fn times_looked(ensemble: &Ensemble, ids: &[u64]) -> Result<usize> {
    let mut times = 0;
    for id in ids {
        let path = ensemble.member(*id)?.dir().join("server.log");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        times += String::from_utf8_lossy(&text).matches(LOOKS).count();
    }
    Ok(times)
}
