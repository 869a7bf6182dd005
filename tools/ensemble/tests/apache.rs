//! The tool itself, on Apache's servers. Takes half a minute and a Java, so it runs only when named:
//! `cargo test -p ringkeeper-ensemble --test apache`.

use std::time::Duration;

use ringkeeper_ensemble::check::check;
use ringkeeper_ensemble::faults::{Fault, inflict};
use ringkeeper_ensemble::load::{Load, LoadPlan, path};
use ringkeeper_ensemble::{Ensemble, Plan, apache};
use ringkeeper_harness::Session;
use ringkeeper_proto::Request;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn apache_loses_nothing_and_a_loss_would_be_found() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::alike(&apache().unwrap(), 3);
    let mut ensemble = Ensemble::new(&plan, dir.path()).unwrap();
    ensemble.start(PATIENCE).unwrap();
    let addresses: Vec<_> = (1..=3).map(|id| ensemble.address(id).unwrap()).collect();
    let plan = LoadPlan {
        writers: 2,
        depth: 4,
        ..LoadPlan::default()
    };
    let load = Load::start(&addresses, plan).unwrap();
    load.wait_for(100, PATIENCE).unwrap();
    let leader = ensemble.leader().unwrap();
    inflict(&mut ensemble, &load, leader, Fault::Kill).unwrap();
    let (written, _) = load.stop().unwrap();
    let found = check(&addresses, &written).unwrap();
    assert_eq!(found.members, 3);
    assert!(found.steps >= 200, "{found:?}");

    // What the check would say if one acknowledged step were not there, ...
    let mut session = Session::open(addresses[0], 10_000).unwrap();
    let (step, _) = written[0].steps[written[0].steps.len() / 2];
    let lost = path(written[0].writer, step);
    let delete = Request::Delete {
        path: &lost,
        version: -1,
    };
    session.call(&delete).unwrap().ok().unwrap();
    let error = format!("{:#}", check(&addresses, &written).unwrap_err());
    assert!(error.contains("LOST"), "{error}");
    // ... or had happened later than the next one.
    let create = Request::Create {
        op: ringkeeper_proto::OpCode::Create2,
        create: ringkeeper_proto::request::CreateRequest {
            path: &lost,
            data: None,
            acl: Some(ringkeeper_proto::AclList::new(
                &ringkeeper_proto::Acl::open(),
            )),
            flags: 0,
            ttl_ms: None,
        },
    };
    session.call(&create).unwrap().ok().unwrap();
    let mut forgotten = written;
    forgotten[0]
        .steps
        .iter_mut()
        .for_each(|(_, zxid)| *zxid = None);
    let error = format!("{:#}", check(&addresses, &forgotten).unwrap_err());
    assert!(error.contains("ORDER"), "{error}");
}
