//! Observers that learn from followers: three voters of Ringkeeper's with `observerMasterPort`, an observer of
//! Ringkeeper's, and one of Apache's where its jars are.
//!
//! All clients write at the observers, so that each request, each session and each acknowledgement goes by way of a
//! follower. Then that follower is killed, later the leader.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, thread};

use ringkeeper_ensemble::check::{check, check_epochs};
use ringkeeper_ensemble::load::{Load, LoadPlan};
use ringkeeper_ensemble::{Ensemble, Plan, Role, apache};
use ringkeeper_harness::{Launch, Session, free_port};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request};

const PATIENCE: Duration = Duration::from_secs(90);

const LOOK_PAUSE: Duration = Duration::from_millis(20);

const SESSION_MS: i32 = 20_000;

/// Type 3 is NodeDataChanged.
const DATA_CHANGED: [u8; 4] = [0, 0, 0, 3];

/// The server that was built beside this test.
fn ringkeeper() -> Launch {
    let test = env::current_exe().unwrap();
    let folder: PathBuf = test.ancestors().nth(2).unwrap().into();
    let server = folder.join("ringkeeper");
    assert!(
        server.exists(),
        "{} is not there: cargo build -p ringkeeper",
        server.display()
    );
    Launch::parse(&format!("{} serve", server.display())).unwrap()
}

/// How many observers each member says that it serves.
fn served(ensemble: &Ensemble) -> Option<BTreeMap<u64, u64>> {
    let voters = (1..=3).filter(|id| ensemble.role(*id).is_some());
    let count = |id| Some((id, ensemble.metric(id, "synced_observers").ok()?));
    voters.map(count).collect()
}

/// Waits until `count` observers sit at followers and none at the leader; where they sit.
fn wait_until_served(ensemble: &Ensemble, count: u64) -> BTreeMap<u64, u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (leader, found) = (ensemble.leader(), served(ensemble));
        if let (Some(leader), Some(found)) = (leader, &found)
            && found.get(&leader) == Some(&0)
            && found.values().sum::<u64>() == count
        {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "leader {leader:?}, {found:?}");
        thread::sleep(LOOK_PAUSE);
    }
}

/// A watch of a client of each observer tells what a client of the leader writes.
fn watch_at_observers(ensemble: &Ensemble, observers: &[u64]) {
    let leader = ensemble.address(ensemble.leader().unwrap()).unwrap();
    let mut writer = Session::open(leader, SESSION_MS).unwrap();
    for observer in observers {
        let path = format!("/watched-{observer}");
        let create = CreateRequest {
            path: &path,
            data: Some(b"before"),
            acl: Some(AclList::new(&Acl::open())),
            flags: 0,
            ttl_ms: None,
        };
        let op = OpCode::Create;
        let reply = writer.call(&Request::Create { op, create }).unwrap();
        reply.ok().unwrap();

        let mut session = Session::open(ensemble.address(*observer).unwrap(), SESSION_MS).unwrap();
        let reply = session.call(&Request::Sync { path: &path }).unwrap();
        reply.ok().unwrap();
        let get = Request::GetData {
            path: &path,
            watch: true,
        };
        let reply = session.call(&get).unwrap();
        assert_eq!(reply.ok().unwrap().buffer().unwrap(), Some(&b"before"[..]));
        let set = Request::SetData {
            path: &path,
            data: Some(b"after"),
            version: -1,
        };
        writer.call(&set).unwrap().ok().unwrap();
        let event = session.receive_event().unwrap();
        assert!(event.starts_with(&DATA_CHANGED), "{event:?}");
        assert!(event.ends_with(path.as_bytes()), "{event:?}");
        let reply = session.call(&get).unwrap();
        assert_eq!(reply.ok().unwrap().buffer().unwrap(), Some(&b"after"[..]));
        session.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn observers_live_on_other_followers_when_theirs_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = Plan::alike(&ringkeeper(), 3);
    plan.observers = vec![ringkeeper()];
    plan.observers.extend(apache().ok());
    plan.own_addresses = true;
    let port = free_port().unwrap();
    plan.settings = vec![format!("observerMasterPort={port}")];
    let mut ensemble = Ensemble::new(&plan, dir.path()).unwrap();
    ensemble.start(PATIENCE).unwrap();
    let count = plan.observers.len() as u64;
    let observers: Vec<u64> = (4..4 + count).collect();
    let at = wait_until_served(&ensemble, count);
    eprintln!(
        "leader {:?}, observers at {at:?}",
        ensemble.leader().unwrap()
    );
    let leader = ensemble.leader().unwrap();
    assert_eq!(ensemble.metric(leader, "learners").unwrap(), 2);
    for observer in &observers {
        assert_eq!(ensemble.role(*observer), Some(Role::Observer));
    }
    watch_at_observers(&ensemble, &observers);

    let address = |id: &u64| ensemble.address(*id).unwrap();
    let addresses: Vec<_> = observers.iter().map(address).collect();
    let everywhere: Vec<_> = ensemble.ids().iter().map(address).collect();
    let plan = LoadPlan {
        writers: 3,
        depth: 4,
        ..LoadPlan::default()
    };
    let load = Load::start(&addresses, plan).unwrap();
    load.wait_for(100, PATIENCE).unwrap();

    let busiest = at.iter().max_by_key(|(_, count)| **count).unwrap();
    let master = *busiest.0;
    ensemble.kill(master).unwrap();
    let at = wait_until_served(&ensemble, count);
    eprintln!("member {master} killed, observers at {at:?}");
    assert_eq!(at.get(&master), None);
    load.wait_for(100, PATIENCE).unwrap();
    ensemble.spawn(master).unwrap();
    ensemble.wait_until_serving(PATIENCE).unwrap();

    let leader = ensemble.leader().unwrap();
    ensemble.kill(leader).unwrap();
    let at = wait_until_served(&ensemble, count);
    eprintln!("leader {leader} killed, observers at {at:?}");
    load.wait_for(100, PATIENCE).unwrap();
    ensemble.spawn(leader).unwrap();
    ensemble.wait_until_serving(PATIENCE).unwrap();

    let (written, mayflies) = load.stop().unwrap();
    check_epochs(&ensemble).unwrap();
    let found = check(&everywhere, &written).unwrap();
    eprintln!(
        "{found:?}, {mayflies} mayflies, {:?} reconnects",
        written.iter().map(|it| it.reconnects).collect::<Vec<_>>()
    );
    assert_eq!(found.members, everywhere.len());
    assert!(found.steps >= 300, "{found:?}");
}

/// A reconfiguration that is committed while an observer sits at a follower reaches it there: it leaves that, and votes.
#[test]
fn an_observer_at_a_follower_becomes_a_voter() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = Plan::alike(&ringkeeper(), 3);
    plan.observers = vec![ringkeeper()];
    plan.own_addresses = true;
    let port = free_port().unwrap();
    plan.settings = vec![
        format!("observerMasterPort={port}"),
        "reconfigEnabled=true".to_owned(),
        "skipACL=yes".to_owned(),
    ];
    let mut ensemble = Ensemble::new(&plan, dir.path()).unwrap();
    ensemble.start(PATIENCE).unwrap();
    wait_until_served(&ensemble, 1);

    let observer = ensemble.address(4).unwrap();
    let mut session = Session::open(observer, SESSION_MS).unwrap();
    let ports = ensemble.ports()[3];
    let joining = format!(
        "server.4=127.0.0.4:{}:{}:participant;{observer}",
        ports.quorum, ports.election
    );
    session.send(&Request::Reconfig {
        joining: Some(&joining),
        leaving: None,
        new_members: None,
        config_id: -1,
    });
    session.flush().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while ensemble.role(4) != Some(Role::Follower) {
        assert!(Instant::now() < deadline, "{:?}", ensemble.role(4));
        thread::sleep(LOOK_PAUSE);
    }
    let served = wait_until_served(&ensemble, 0);
    assert!(served.len() >= 3, "{served:?}");
    let leader = ensemble.leader().unwrap();
    assert_eq!(ensemble.metric(leader, "synced_followers").unwrap(), 3);
}
