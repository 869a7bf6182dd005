//! The counter of an epoch is used up, again and again (`ringkeeper.test.counterMax` makes that soon). Among members of
//! Ringkeeper's alone the leader begins another epoch and leads on; with one of Apache's connected, which does
//! not know that packet, the leader gives up and all elect one, as Apache's does.
//!
//! It begins on data whose last transaction has the last counter there is, so the first epoch has to be another one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringkeeper_apache_files::{
    ACCEPTED_EPOCH, CURRENT_EPOCH, Compression, FOLDER, write_epoch, write_snapshot,
};
use ringkeeper_proto::quorum::PacketKind;
use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_tree::Tree;

use crate::ensemble::Ensemble;
use crate::load::Load;
use crate::succession::{go_on, lead, network};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Steps of the load after each change.
const STEPS: u64 = 50;

/// Lines of `zoo.cfg`: an epoch of Ringkeeper's has so many transactions, which take longer than a member of
/// Apache's needs to join.
pub const SETTINGS: [&str; 1] = ["ringkeeper.test.counterMax=6000"];

/// The last transaction of the data that members begin with.
pub const FIRST: Zxid = Zxid(0x1_ffff_fffe);

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Epochs that a leader began without an election.
    pub in_place: u32,
    /// Elections because a counter was used up.
    pub elections: u32,
}

/// Gives every member, before its first start, data of Apache's that ends with [`FIRST`].
///
/// # Errors
/// When it cannot be written.
pub fn seed(ensemble: &Ensemble) -> Result<()> {
    for id in ensemble.ids() {
        let folder = ensemble.member(id)?.dir().join("data").join(FOLDER);
        seed_member(&folder).with_context(|| format!("write {}", folder.display()))?;
    }
    Ok(())
}

fn seed_member(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut tree = Tree::new();
    tree.set_zxid(FIRST);
    write_snapshot(&tree, folder, Compression::Plain, &mut |_| {})?;
    for name in [ACCEPTED_EPOCH, CURRENT_EPOCH] {
        write_epoch(folder, name, FIRST.epoch().0)?;
    }
    Ok(())
}

/// How often a leader may begin its next epoch itself before Apache's members are taken to have followed it.
const TRIES_MAX: u32 = 5;

/// Has `times` epochs used up by leaders of Ringkeeper's: with all members, and before that without Apache's if the
/// others are a quorum.
///
/// # Errors
/// When the ensemble does not go on, or goes on in another way.
pub fn provoke(
    ensemble: &mut Ensemble,
    load: &Load,
    times: u32,
    mut report: impl FnMut(&str),
) -> Result<Seen> {
    let mut ids = ensemble.ids();
    ids.retain(|id| ensemble.votes(*id));
    let voters = ids.len();
    ids.retain(|id| !ensemble.is_apache(*id));
    let own = ids;
    let first = *own.first().context("there is no voter of Ringkeeper's")?;
    let mut all = ensemble.ids();
    all.retain(|id| ensemble.is_apache(*id));
    let apaches = all;
    let mut seen = Seen::default();
    if own.len() * 2 > voters {
        lead(ensemble, load, first)?;
        for id in &apaches {
            ensemble.kill(*id)?;
        }
        in_place(ensemble, load, first, times, &mut report)?;
        seen.in_place = times;
        for id in &apaches {
            ensemble.spawn(*id)?;
        }
        ensemble.wait_until_serving(PATIENCE)?;
        load.wait_for(STEPS, PATIENCE)?;
    }
    if !apaches.is_empty() {
        for leader in own.iter().cycle().take(times as usize) {
            let mut tries = 0;
            while !by_election(ensemble, load, *leader, &mut report)? {
                tries += 1;
                ensure!(
                    tries < TRIES_MAX,
                    "member {leader} has sent NEWEPOCH {tries} times, and Apache's members were to follow it"
                );
            }
            seen.elections += 1;
        }
    }
    network(ensemble)?.tap().check()?;
    Ok(seen)
}

/// The leader begins `times` epochs and leads on, and everybody stays with it.
fn in_place(
    ensemble: &Ensemble,
    load: &Load,
    leader: u64,
    times: u32,
    report: &mut impl FnMut(&str),
) -> Result<()> {
    let first = epoch_of(ensemble, leader)?;
    let told = new_epochs(ensemble, leader)?;
    wait_for_epoch(ensemble, load, leader, Epoch(first.0 + times))?;
    load.wait_for(STEPS, PATIENCE)?;
    let now = ensemble.leader();
    ensure!(
        now == Some(leader),
        "{now:?} leads, and member {leader} did"
    );
    let told = new_epochs(ensemble, leader)? - told;
    ensure!(
        told >= u64::from(times),
        "{told} NEWEPOCH packets for {times} epochs"
    );
    report(&format!(
        "member {leader} led on through {times} epochs from {} on, {told} NEWEPOCH packets",
        first.0
    ));
    Ok(())
}

/// A leader of Ringkeeper's uses up its epoch among members of Apache's. False if it began another one itself, as it may
/// while none of Apache's happens to follow it.
fn by_election(
    ensemble: &mut Ensemble,
    load: &Load,
    leader: u64,
    report: &mut impl FnMut(&str),
) -> Result<bool> {
    lead(ensemble, load, leader)?;
    let told = new_epochs(ensemble, leader)?;
    let used_up = count_used_up(ensemble, leader)?;
    let first = epoch_of(ensemble, leader)?;
    wait_for_epoch(ensemble, load, leader, Epoch(first.0 + 1))?;
    ensemble.wait_until_serving(PATIENCE)?;
    go_on(load)?;
    if new_epochs(ensemble, leader)? != told {
        return Ok(false);
    }
    ensure!(
        count_used_up(ensemble, leader)? > used_up,
        "epoch {} of member {leader} has ended, and not because its counter was used up",
        first.0
    );
    report(&format!(
        "epoch {} of member {leader} was used up, and all went on in another",
        first.0
    ));
    Ok(true)
}

/// NEWEPOCH packets of a member to all others.
fn new_epochs(ensemble: &Ensemble, leader: u64) -> Result<u64> {
    let tap = network(ensemble)?.tap();
    let ids = ensemble.ids().into_iter();
    Ok(ids
        .map(|to| tap.packets(leader, to, PacketKind::NewEpoch))
        .sum())
}

fn count_used_up(ensemble: &Ensemble, id: u64) -> Result<usize> {
    let path = ensemble.member(id)?.dir().join("server.log");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.matches("the counter of this epoch is used up").count())
}

/// The epoch of what a member has committed last.
fn epoch_of(ensemble: &Ensemble, id: u64) -> Result<Epoch> {
    let zxid = ensemble.committed(id);
    Ok(zxid
        .with_context(|| format!("member {id} does not answer"))?
        .epoch())
}

fn wait_for_epoch(ensemble: &Ensemble, load: &Load, id: u64, epoch: Epoch) -> Result<()> {
    let deadline = Instant::now() + PATIENCE * 2;
    while ensemble.committed(id).is_none_or(|it| it.epoch() < epoch) {
        ensure!(!load.has_failed(), "a writer has given up");
        ensure!(
            Instant::now() < deadline,
            "member {id} is not in epoch {}",
            epoch.0
        );
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
