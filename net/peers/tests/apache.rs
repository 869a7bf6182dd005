//! The links, with the real Zab, among Apache's servers. Needs Java and takes a minute, so it runs only
//! when named: `cargo test -p ringkeeper-peers --test apache`. `RINGKEEPER_APACHE_CLASSPATH` says
//! which of Apache's versions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod member;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use member::{Disk, FakeMember, Seen};
use ringkeeper_ensemble::check::check;
use ringkeeper_ensemble::load::{Load, LoadPlan};
use ringkeeper_ensemble::{Ensemble, Plan, Role as Mode, apache};
use ringkeeper_proto::txn::{Txn, decode_record};
use ringkeeper_proto::{ServerId, Zxid};
use ringkeeper_zab::Role;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Apache's servers but for member `ours`, which the test plays.
fn ensemble(voters: usize, observers: usize, ours: u64, dir: &TempDir) -> Ensemble {
    let apache = apache().unwrap();
    let plan = Plan {
        observers: vec![apache.clone(); observers],
        absent: BTreeSet::from([ours]),
        // A learner that lacks more than the last hundred txns gets a snapshot.
        settings: vec!["commitLogCount=100".into(), "snapshotSizeFactor=-1".into()],
        ..Plan::alike(&apache, voters)
    };
    Ensemble::new(&plan, dir.path()).unwrap()
}

fn start_load(ensemble: &Ensemble) -> Load {
    let ids = ensemble.ids();
    let addresses: Vec<_> = ids
        .iter()
        .map(|id| ensemble.address(*id).unwrap())
        .collect();
    let plan = LoadPlan {
        writers: 2,
        depth: 4,
        ..LoadPlan::default()
    };
    Load::start(&addresses, plan).unwrap()
}

fn is_following(seen: &Seen) -> bool {
    matches!(seen.role, Some(Role::Following { .. }))
}

fn count(seen: &Seen, name: &str) -> u64 {
    seen.received.get(name).copied().unwrap_or(0)
}

/// The paths that the log's txns create.
fn created(disk: &Disk) -> Vec<String> {
    let mut paths = Vec::new();
    for (zxid, payload) in &disk.log {
        let (header, txn, _) = decode_record(payload).unwrap();
        assert_eq!(header.zxid, *zxid);
        if let Txn::Create { path, .. } = txn {
            paths.push(path.into_owned());
        }
    }
    paths
}

#[test]
fn a_follower_of_apache_is_synchronized_in_every_way_and_counts_for_the_quorum() {
    let dir = tempfile::tempdir().unwrap();
    let mut ensemble = ensemble(3, 0, 1, &dir);
    ensemble.start(PATIENCE).unwrap();
    let load = start_load(&ensemble);
    load.wait_for(600, PATIENCE).unwrap();

    // Blank, and far behind: a snapshot.
    let ours = FakeMember::start(1, ensemble.ports(), Disk::default());
    let seen = ours.wait("following", is_following);
    assert_eq!((count(&seen, "SNAP"), count(&seen, "UPTODATE")), (1, 1));
    assert!(seen.snapshot.windows(9).any(|it| it == b"n00000001"));
    assert!(seen.disk.epochs.member);

    // A little behind: the missing txns.
    let stopped = ours.stop();
    load.wait_for(3, PATIENCE).unwrap();
    let last = stopped.disk.last();
    let ours = FakeMember::start(1, ensemble.ports(), stopped.disk);
    let seen = ours.wait("following again", is_following);
    assert_eq!((count(&seen, "SNAP"), count(&seen, "DIFF")), (0, 1));
    assert!(seen.disk.last() > last);

    // One of Apache's two dies: nothing is committed without our acknowledgements.
    let follower = if ensemble.role(2) == Some(Mode::Leader) {
        3
    } else {
        2
    };
    ensemble.kill(follower).unwrap();
    load.wait_for(200, PATIENCE).unwrap();
    ensemble.spawn(follower).unwrap();
    ensemble.wait_until_serving(PATIENCE).unwrap();
    load.wait_for(50, PATIENCE).unwrap();

    // Its leader dies: the other one is elected with our vote.
    let leader = ensemble.leader().unwrap();
    ensemble.kill(leader).unwrap();
    load.wait_for(200, PATIENCE).unwrap();
    let next = ServerId(5 - leader);
    let seen = ours.wait(
        "following the next",
        |seen| matches!(seen.role, Some(Role::Following { leader, .. }) if leader == next),
    );
    assert_eq!(ensemble.leader(), Some(next.0));
    assert!(seen.reachable.contains(&next));
    ensemble.spawn(leader).unwrap();
    ensemble.wait_until_serving(PATIENCE).unwrap();

    // What was acknowledged is in our log too, in order, and committed.
    let (written, _) = load.stop().unwrap();
    let addresses: Vec<_> = [2, 3].map(|id| ensemble.address(id).unwrap()).into();
    check(&addresses, &written).unwrap();
    let last = written
        .iter()
        .flat_map(|it| it.steps.last())
        .filter_map(|(_, zxid)| *zxid);
    let last = Zxid::from_wire(last.max().unwrap());
    let seen = ours.wait("the last commit", |seen| seen.disk.committed >= last);
    let paths = created(&seen.disk);
    for writer in &written {
        let (step, _) = writer.steps.last().unwrap();
        let path = ringkeeper_ensemble::load::path(writer.writer, *step);
        assert!(paths.contains(&path), "{path}");
    }

    // More than the leader has, never committed: cut off.
    let mut disk = ours.stop().disk;
    let end = disk.last();
    let (zxid, payload) = disk
        .log
        .last_key_value()
        .map(|(z, p)| (*z, p.clone()))
        .unwrap();
    for more in 1..=2000_u32 {
        let zxid = Zxid::new(zxid.epoch(), zxid.counter() + more);
        disk.log.insert(zxid, Bytes::clone(&payload));
    }
    let ours = FakeMember::start(1, ensemble.ports(), disk);
    let seen = ours.wait("following after a cut", is_following);
    assert_eq!(count(&seen, "TRUNC"), 1);
    assert!(seen.disk.log.range(end..).count() < 1000);
    ours.stop();
}

#[test]
fn an_observer_of_apache_is_informed() {
    let dir = tempfile::tempdir().unwrap();
    let mut ensemble = ensemble(2, 1, 3, &dir);
    ensemble.start(PATIENCE).unwrap();
    let load = start_load(&ensemble);
    load.wait_for(20, PATIENCE).unwrap();
    let ours = FakeMember::start(3, ensemble.ports(), Disk::default());
    ours.wait("observing", |seen| {
        matches!(seen.role, Some(Role::Observing { .. }))
    });
    load.wait_for(100, PATIENCE).unwrap();
    let (written, _) = load.stop().unwrap();
    let last = written
        .iter()
        .flat_map(|it| it.steps.last())
        .filter_map(|(_, zxid)| *zxid);
    let last = Zxid::from_wire(last.max().unwrap());
    let seen = ours.wait("the last txn", |seen| seen.disk.committed >= last);
    assert!(count(&seen, "INFORM") >= 200, "{:?}", seen.received);
    let paths = created(&seen.disk);
    for writer in &written {
        let (step, _) = writer.steps.last().unwrap();
        let path = ringkeeper_ensemble::load::path(writer.writer, *step);
        assert!(paths.contains(&path), "{path}");
    }
    ours.stop();
}

#[test]
fn apache_follows_a_leader_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let mut ensemble = ensemble(3, 0, 3, &dir);
    for id in [1, 2] {
        ensemble.spawn(id).unwrap();
    }
    let disk = Disk {
        initialize: true,
        ..Disk::default()
    };
    let ours = FakeMember::start(3, ensemble.ports(), disk);
    let seen = ours.wait("leading", |seen| {
        matches!(seen.role, Some(Role::Leading { .. }))
    });
    assert!(count(&seen, "FOLLOWERINFO") >= 1, "{:?}", seen.received);
    let deadline = std::time::Instant::now() + PATIENCE;
    while [1, 2]
        .iter()
        .any(|id| ensemble.role(*id) != Some(Mode::Follower))
    {
        assert!(
            std::time::Instant::now() < deadline,
            "Apache does not follow"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    // They stay: pings are answered, with touches.
    let pings = ours.seen();
    let seen = ours.wait("pings", |seen| {
        count(seen, "PING") >= count(&pings, "PING") + 20
    });
    assert!(matches!(seen.role, Some(Role::Leading { .. })));
    assert_eq!(
        [1, 2].map(|id| ensemble.role(id)),
        [Some(Mode::Follower); 2]
    );
    ours.stop();
}
