//! Members of Ringkeeper's whose log is damaged, at leaders of Apache's, which know nothing of doubts. A log with a hole
//! is hidden: the member asks for a snapshot and promises nothing. One whose last write is torn may have lost what it had
//! acknowledged, and is synchronized from where it ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringkeeper_proto::Zxid;

use crate::damage::{Place, damage_log};
use crate::ensemble::Ensemble;
use crate::load::Load;
use crate::succession::{go_on, lead, network};
use crate::tap::{By, Synchronized};

const PATIENCE: Duration = Duration::from_secs(60);

/// Steps between two faults, so that the log has a middle.
const STEPS: u64 = 200;

/// A log with nothing to show, on the wire.
const HIDDEN: Zxid = Zxid(u64::MAX);

/// Damages the log of each voter of Ringkeeper's, in each way, and lets it come back: to a leader of Apache's that is
/// there, then in an election of all. Returns how often it was synchronized by Apache's.
///
/// # Errors
/// When the ensemble does not go on, or a log that has a hole is shown.
pub fn provoke(
    ensemble: &mut Ensemble,
    load: &Load,
    mut report: impl FnMut(&str),
) -> Result<usize> {
    let mut voters = ensemble.ids();
    voters.retain(|id| ensemble.votes(*id));
    let apache = voters.iter().find(|id| ensemble.is_apache(**id));
    let apache = *apache.context("there is no voter of Apache's")?;
    let mut seen = 0;
    for id in voters {
        if ensemble.is_apache(id) {
            continue;
        }
        for place in [Place::Middle, Place::End] {
            let one = returns(ensemble, load, apache, id, place)?;
            seen += 1;
            report(&tell(ensemble, id, place, one, "at a leader"));
            let one = restarts(ensemble, load, apache, id, place)?;
            seen += usize::from(ensemble.is_apache(one.leader));
            report(&tell(ensemble, id, place, one, "in an election"));
        }
    }
    network(ensemble)?.tap().check()?;
    Ok(seen)
}

fn tell(ensemble: &Ensemble, id: u64, place: Place, one: Synchronized, when: &str) -> String {
    let kind = match ensemble.is_apache(one.leader) {
        true => "Apache's",
        false => "Ringkeeper's",
    };
    format!(
        "member {id}, {place:?} of its log damaged, {when}: {:?} by {kind} member {}, its log ends with {}",
        one.by, one.leader, one.from
    )
}

/// One member comes back, and the leader has been there all the time.
fn returns(
    ensemble: &mut Ensemble,
    load: &Load,
    leader: u64,
    id: u64,
    place: Place,
) -> Result<Synchronized> {
    lead(ensemble, load, leader)?;
    load.wait_for(STEPS, PATIENCE)?;
    ensemble.kill(id)?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("without member {id}"))?;
    damage_log(ensemble, id, place)?;
    let seen = network(ensemble)?.tap().synchronized().len();
    ensemble.spawn(id)?;
    ensemble.wait_until_serving(PATIENCE)?;
    let one = await_learner(ensemble, leader, id, seen)?;
    judge(one, place)?;
    load.wait_for(STEPS, PATIENCE)
        .with_context(|| format!("with member {id} back"))?;
    Ok(one)
}

/// All members are killed, and the damaged one takes part in the election.
fn restarts(
    ensemble: &mut Ensemble,
    load: &Load,
    leader: u64,
    id: u64,
    place: Place,
) -> Result<Synchronized> {
    lead(ensemble, load, leader)?;
    load.wait_for(STEPS, PATIENCE)?;
    let ids = ensemble.ids();
    ids.iter().try_for_each(|id| ensemble.kill(*id))?;
    damage_log(ensemble, id, place)?;
    let seen = network(ensemble)?.tap().synchronized().len();
    ids.iter().try_for_each(|id| ensemble.spawn(*id))?;
    ensemble.wait_until_serving(PATIENCE)?;
    let leader = ensemble.leader().context("there is no leader")?;
    ensure!(
        leader != id || place == Place::End,
        "member {id} leads, and its log has a hole"
    );
    go_on(load)?;
    if leader == id {
        // Nobody has more than what is left of its log: it leads, and the others are synchronized.
        let all = network(ensemble)?.tap().synchronized();
        let own = all.iter().skip(seen).rfind(|it| it.leader == id);
        return own.copied().context("nobody was synchronized");
    }
    let one = await_learner(ensemble, leader, id, seen)?;
    judge(one, place)?;
    Ok(one)
}

fn await_learner(ensemble: &Ensemble, leader: u64, id: u64, seen: usize) -> Result<Synchronized> {
    let tap = network(ensemble)?.tap();
    tap.wait_for_synchronized((leader, id), seen, PATIENCE)
}

/// A log with a hole is hidden, and nothing but a snapshot helps. (Hiding more than that costs time and is safe.)
fn judge(one: Synchronized, place: Place) -> Result<()> {
    let is_hidden = place == Place::Middle || one.from == HIDDEN;
    ensure!(
        !is_hidden || one.by == By::Snap && one.from == HIDDEN,
        "the log of member {} has a hole; it showed {}, and was synchronized by {:?}",
        one.learner,
        one.from,
        one.by
    );
    Ok(())
}
