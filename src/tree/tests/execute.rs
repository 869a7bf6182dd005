//! What [`execute`] adds to Apache's rules, and what Apache 3.9 does otherwise than the 3.8 that
//! `apache_prepare.rs` compares with.
#![expect(
    clippy::unwrap_used,
    reason = "in a test a surprise is a failure, also in its helpers"
)]

use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, SeedableRng};

use ringkeeper_proto::reply::{EventType, WriteReply};
use ringkeeper_proto::request::{CreateRequest, SetWatchesRequest};
use ringkeeper_proto::txn::{CreateKind, decode_record, encode_record, record_len};
use ringkeeper_proto::{
    Acl, AclList, Id, LossyText, OpCode, Perms, Request, SessionId, Txn, TxnHeader, Xid, ZkError,
    Zxid,
};
use ringkeeper_tree::execute::{
    Executed, execute, execute_bytes, execute_close_session, execute_create_session,
};
use ringkeeper_tree::watch::{WatchKind, WatchTable, Watcher, set_watches};
use ringkeeper_tree::{Context, Events, NodeKind, SessionState, Settings, Tree, sweep};

struct World {
    head: Tree,
    settings: Settings,
    identities: Vec<Id>,
    session: SessionId,
    state: SessionState,
    time_ms: i64,
    events: Events,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            head: Tree::new(),
            settings,
            identities: vec![Id::new("ip", "10.0.0.1")],
            session: SessionId(7),
            state: SessionState::Live,
            time_ms: 1_000,
            events: Events::new(),
        }
    }

    fn with_context<T>(
        &mut self,
        run: impl FnOnce(&mut Tree, Zxid, &Context<'_>, &mut Events) -> T,
    ) -> T {
        let context = Context {
            session: self.session,
            session_state: self.state,
            cxid: 1,
            time_ms: self.time_ms,
            identities: &self.identities,
            settings: &self.settings,
        };
        let zxid = self.head.zxid().next().unwrap();
        run(&mut self.head, zxid, &context, &mut self.events)
    }

    fn run<'a>(&mut self, request: &Request<'a>) -> Executed<'a> {
        let before = self.head.clone();
        let events_before = self.events.len();
        let executed = self.with_context(|head, zxid, context, events| {
            execute(head, zxid, request, context, events)
        });
        assert_eq!(self.head.zxid(), executed.header.zxid, "each takes a zxid");
        assert!(record_len(&executed.txn, true) <= self.settings.txn_len_max);
        if executed.outcome.is_err() {
            assert_eq!(executed.header.op, OpCode::Error);
            assert_eq!(self.head.digest(), before.digest());
            assert_eq!(self.events.len(), events_before);
        }
        executed
    }

    fn outcome(&mut self, request: &Request<'_>) -> Result<WriteReply, ZkError> {
        self.run(request).outcome
    }

    fn create(&mut self, path: &str, flags: i32) -> Result<WriteReply, ZkError> {
        self.outcome(&create(OpCode::Create, path, flags))
    }

    fn count(&self, path: &str) -> usize {
        self.head.get(path).unwrap().num_children()
    }
}

fn create(op: OpCode, path: &str, flags: i32) -> Request<'_> {
    Request::Create {
        op,
        create: CreateRequest {
            path,
            data: Some(b"data"),
            acl: Some(AclList::new(&Acl::open())),
            flags,
            ttl_ms: None,
        },
    }
}

fn create_ttl(path: &str, flags: i32, ttl_ms: i64) -> Request<'_> {
    match create(OpCode::CreateTtl, path, flags) {
        Request::Create { op, create } => Request::Create {
            op,
            create: CreateRequest {
                ttl_ms: Some(ttl_ms),
                ..create
            },
        },
        other => other,
    }
}

fn plain() -> World {
    World::new(Settings::default())
}

const EPHEMERAL: i32 = 1;
const SEQUENTIAL: i32 = 2;

#[test]
fn the_state_of_the_session_decides_first() {
    let cases = [
        (SessionState::Live, 0, Ok(())),
        (SessionState::Live, EPHEMERAL, Ok(())),
        (SessionState::Local, 0, Ok(())),
        (
            SessionState::Local,
            EPHEMERAL,
            Err(ZkError::EphemeralOnLocalSession),
        ),
        (SessionState::LocalElsewhere, 0, Ok(())),
        (
            SessionState::LocalElsewhere,
            EPHEMERAL,
            Err(ZkError::SessionExpired),
        ),
        (SessionState::Closing, 0, Err(ZkError::SessionExpired)),
        (
            SessionState::Closing,
            EPHEMERAL,
            Err(ZkError::SessionExpired),
        ),
        (SessionState::Unknown, 0, Err(ZkError::UnknownSession)),
        (
            SessionState::Unknown,
            EPHEMERAL,
            Err(ZkError::SessionExpired),
        ),
        (SessionState::Moved, 0, Err(ZkError::SessionMoved)),
        (SessionState::Moved, EPHEMERAL, Err(ZkError::SessionMoved)),
    ];
    for (state, flags, expect) in cases {
        let mut world = plain();
        world.state = state;
        let outcome = world.create("/a", flags).map(|_| ());
        assert_eq!(outcome, expect, "{state:?} {flags}");
    }
    let mut world = plain();
    world.state = SessionState::Moved;
    let multi = Request::Multi(vec![create(OpCode::Create, "/a", 0)]);
    let executed = world
        .with_context(|head, zxid, context, events| execute(head, zxid, &multi, context, events));
    // The transaction is the multi's; the reply is the one that closes the connection.
    assert_eq!(executed.header.op, OpCode::Multi);
    assert_eq!(executed.outcome, Err(ZkError::SessionMoved));
}

#[test]
fn a_multi_sees_its_own_operations_and_leaves_nothing_when_it_fails() {
    let mut world = plain();
    let good = [
        create(OpCode::Create, "/a", 0),
        create(OpCode::Create2, "/a/s-", SEQUENTIAL),
        create(OpCode::Create, "/a/s-", SEQUENTIAL),
        Request::SetData {
            path: "/a",
            data: None,
            version: 0,
        },
        Request::Check {
            path: "/a",
            version: 1,
        },
    ];
    let Ok(WriteReply::Multi(replies)) = world.outcome(&Request::Multi(good.to_vec())) else {
        panic!("a multi has parts");
    };
    let shown: Vec<OpCode> = replies.iter().map(|(op, _)| *op).collect();
    let expect = [
        OpCode::Create,
        OpCode::Create2,
        OpCode::Create,
        OpCode::SetData,
        OpCode::Check,
    ];
    assert_eq!(shown, expect);
    assert!(matches!(&replies[2].1, Ok(WriteReply::Path(path)) if path == "/a/s-0000000001"));

    let digest = world.head.digest();
    world.events.clear();
    let bad = Request::Multi(vec![
        create(OpCode::Create, "/b", 0),
        create(OpCode::Create, "/a", 0),
        create(OpCode::Create, "/c", 0),
    ]);
    let executed = world.run(&bad);
    let codes = [0, -110, -2];
    let errors = codes.map(|code| (OpCode::Error, Err(code)));
    assert_eq!(executed.outcome, Ok(WriteReply::Multi(errors.to_vec())));
    let parts = codes.map(|code| (OpCode::Error, Txn::Error { code }));
    assert_eq!(executed.txn, Txn::Multi(parts.to_vec()));
    assert_eq!(executed.header.op, OpCode::Multi);
    assert_eq!(world.head.digest(), digest);
    assert!(world.events.is_empty() && world.head.get("/b").is_none());
}

// ZK: MultiOperationRecord of 3.9; 3.8 differs in each of these.
#[test]
fn creates_within_a_multi_are_classified_as_in_3_9() {
    let mut world = plain();
    let kinds = [
        (create(OpCode::Create2, "/create2", 0), NodeKind::Persistent),
        (create(OpCode::Create, "/container", 4), NodeKind::Container),
        (
            create(OpCode::CreateContainer, "/other", 0),
            NodeKind::Container,
        ),
        (create_ttl("/no-ttl", 0, 5), NodeKind::Persistent),
        (create_ttl("/ttl-container", 4, 5), NodeKind::Container),
    ];
    for (part, kind) in kinds {
        let Request::Create { create, .. } = &part else {
            panic!("all are creates");
        };
        let path = create.path.to_owned();
        world.outcome(&Request::Multi(vec![part])).unwrap();
        assert_eq!(world.head.get(&path).unwrap().kind(), kind, "{path}");
    }
    let mut no_acl = create(OpCode::Create, "/x", 0);
    if let Request::Create { create, .. } = &mut no_acl {
        create.acl = None;
    }
    for (part, takes_zxid) in [
        (create(OpCode::Create, "/x", 7), true),
        (create(OpCode::Create, "/x", 5), true),
        (no_acl, false),
    ] {
        let mut frame = BytesMut::new();
        Request::Multi(vec![create(OpCode::Create, "/ok", 0), part])
            .encode_frame(Xid(1), &mut frame);
        let before = world.head.zxid();
        let text = LossyText::new();
        let result = world.with_context(|head, zxid, context, events| {
            let executed = execute_bytes(
                head,
                zxid,
                OpCode::Multi,
                &frame[12..],
                &text,
                context,
                events,
            );
            executed.map(|executed| executed.outcome)
        });
        if takes_zxid {
            assert_eq!(result, Ok(Err(ZkError::MarshallingError)));
            assert_eq!(world.head.zxid(), before.next().unwrap());
        } else {
            assert_eq!(result, Err(ZkError::MarshallingError));
            assert_eq!(world.head.zxid(), before);
        }
    }
    // Alone, a flag that is no mode is a bad argument.
    assert_eq!(world.create("/x", 7), Err(ZkError::BadArguments));
}

#[test]
fn what_cannot_be_decoded_takes_a_zxid_only_as_a_multi() {
    let mut world = plain();
    for (op, takes_zxid) in [
        (OpCode::Create, false),
        (OpCode::Delete, false),
        (OpCode::SetData, false),
        (OpCode::Multi, true),
    ] {
        let before = world.head.zxid();
        let text = LossyText::new();
        let result = world.with_context(|head, zxid, context, events| {
            execute_bytes(head, zxid, op, &[0, 0], &text, context, events).map(|done| done.outcome)
        });
        match result {
            Ok(outcome) => assert_eq!(outcome, Err(ZkError::MarshallingError)),
            Err(error) => assert_eq!(error, ZkError::MarshallingError),
        }
        assert_eq!(world.head.zxid() != before, takes_zxid, "{op:?}");
    }
}

#[test]
fn ttls_need_the_setting_and_a_sound_time() {
    let mut world = plain();
    assert_eq!(
        world.outcome(&create_ttl("/a", 5, 1)),
        Err(ZkError::Unimplemented)
    );
    assert_eq!(world.create("/a", 5), Err(ZkError::Unimplemented));
    let mut world = World::new(Settings {
        extended_types: true,
        ..Settings::default()
    });
    for (ttl_ms, is_valid) in [
        (0, false),
        (-1, false),
        (1, true),
        ((1 << 40) - 1, true),
        (1 << 40, false),
    ] {
        let outcome = world.outcome(&create_ttl("/t", 5, ttl_ms));
        assert_eq!(outcome.is_ok(), is_valid, "{ttl_ms}");
        if is_valid {
            assert_eq!(world.head.get("/t").unwrap().ttl(), Some(ttl_ms));
            let delete = Request::Delete {
                path: "/t",
                version: -1,
            };
            world.outcome(&delete).unwrap();
        } else {
            assert_eq!(outcome, Err(ZkError::BadArguments));
        }
    }
    // Apache logs this one, cannot apply it, and stops.
    assert_eq!(
        world.outcome(&create_ttl("/t", 0, -1)),
        Err(ZkError::BadArguments)
    );
    assert_eq!(world.create("/t", 5), Err(ZkError::BadArguments));
}

#[test]
fn the_flag_of_a_container_needs_its_operation() {
    let mut world = plain();
    world.create("/flag", 4).unwrap();
    assert_eq!(
        world.head.get("/flag").unwrap().kind(),
        NodeKind::Persistent
    );
    let executed = world.run(&create(OpCode::CreateContainer, "/real", 0));
    assert!(matches!(
        executed.txn,
        Txn::Create {
            kind: CreateKind::Container,
            ..
        }
    ));
    assert!(matches!(executed.outcome, Ok(WriteReply::PathStat(..))));
    assert_eq!(world.head.get("/real").unwrap().kind(), NodeKind::Container);
}

#[test]
fn versions_wrap_as_in_3_9_3() {
    let mut world = plain();
    world.create("/a", 0).unwrap();
    for (current, next) in [(i32::MAX, i32::MIN), (-2, -1), (5, 6)] {
        let header = TxnHeader {
            session: world.session,
            cxid: 0,
            zxid: world.head.zxid().next().unwrap(),
            time_ms: 0,
            op: OpCode::SetData,
        };
        let txn = Txn::SetData {
            path: "/a".into(),
            data: None,
            version: current,
        };
        world
            .head
            .apply(&header, &txn, &mut Events::new())
            .outcome
            .unwrap();
        for (version, expect) in [(current - 1, false), (current, true)] {
            let outcome = world.outcome(&Request::SetData {
                path: "/a",
                data: None,
                version,
            });
            // -1 is any version.
            assert_eq!(outcome.is_ok(), expect || version == -1, "{version}");
        }
        assert_eq!(world.head.get("/a").unwrap().version(), next);
    }
}

#[test]
fn a_session_cannot_own_more_than_its_end_can_list() {
    let mut world = World::new(Settings {
        txn_len_max: 2_000,
        ..Settings::default()
    });
    let mut made = 0;
    let refused = loop {
        let path = format!("/{made:0100}");
        match world.create(&path, EPHEMERAL) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, ZkError::QuotaExceeded);
    // 48 bytes of header, count and digest; 105 for each path.
    assert_eq!(made, (2_000 - 48) / 105);
    assert!(world.create("/not-ephemeral", 0).is_ok());
    let gone = format!("/{:0100}", 3);
    world
        .outcome(&Request::Delete {
            path: &gone,
            version: -1,
        })
        .unwrap();
    assert!(
        world.create(&gone, EPHEMERAL).is_ok(),
        "a delete makes room"
    );

    world.events.clear();
    let closed = world.with_context(execute_close_session);
    assert!(record_len(&closed.txn, true) <= 2_000);
    let Txn::CloseSession { paths: Some(paths) } = closed.txn else {
        panic!("the paths are listed");
    };
    assert_eq!(paths.len(), made);
    assert_eq!(world.events.len(), 2 * made);
    assert_eq!(world.count("/"), 2);

    // More than fit, from elsewhere: then the list is left out, and they go all the same.
    for number in 0..30 {
        world.settings.txn_len_max = usize::MAX;
        world.create(&format!("/{number:0100}"), EPHEMERAL).unwrap();
    }
    world.settings.txn_len_max = 2_000;
    let closed = world.with_context(execute_close_session);
    assert_eq!(closed.txn, Txn::CloseSession { paths: None });
    assert_eq!(world.count("/"), 2);
}

#[test]
fn what_could_not_be_logged_is_refused() {
    let mut world = World::new(Settings {
        txn_len_max: 500,
        ..Settings::default()
    });
    world.create("/a", 0).unwrap();
    let data = [0; 500];
    let set = |len: usize| Request::SetData {
        path: "/a",
        data: Some(&data[..len]),
        version: -1,
    };
    // Header 32, path 6, data 4, version 4, digest 12.
    assert!(world.outcome(&set(500 - 58)).is_ok());
    assert_eq!(world.outcome(&set(500 - 57)), Err(ZkError::BadArguments));
    // Three operations that fit one by one.
    let executed = world.run(&Request::Multi(vec![set(150), set(150), set(150)]));
    let errors = [0, 0, ZkError::BadArguments.code()];
    let Txn::Multi(parts) = &executed.txn else {
        panic!("a multi");
    };
    let codes: Vec<i32> = parts
        .iter()
        .map(|(_, part)| match part {
            Txn::Error { code } => *code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, errors);
    assert_eq!(world.head.get("/a").unwrap().data_len(), 500 - 58);
    // One that fits alone, but not with what a multi adds.
    let version = world.head.get("/a").unwrap().version();
    let executed = world.run(&Request::Multi(vec![set(500 - 58)]));
    let errors = [(OpCode::Error, Err(ZkError::BadArguments.code()))];
    assert_eq!(executed.outcome, Ok(WriteReply::Multi(errors.to_vec())));
    assert_eq!(world.head.get("/a").unwrap().version(), version);
    // Identities that `auth` stands for count as well.
    for user in 0..20 {
        world
            .identities
            .push(Id::new("digest", format!("user{user}:{user:020}")));
    }
    let acl = AclList::new(&[Acl {
        perms: Perms::ALL,
        id: Id::new("auth", ""),
    }]);
    let set_acl = Request::SetAcl {
        path: "/a",
        acl: Some(acl),
        version: -1,
    };
    assert_eq!(world.outcome(&set_acl), Err(ZkError::InvalidAcl));
}

#[test]
fn a_multi_of_more_operations_than_its_answer_could_carry_stays_within_bounds() {
    let mut world = World::new(Settings {
        txn_len_max: 300,
        ..Settings::default()
    });
    // Each operation's error takes 12 bytes of the transaction: 100 of them are too many.
    let checks = vec![
        Request::Check {
            path: "/missing",
            version: -1,
        };
        100
    ];
    assert_eq!(
        world.outcome(&Request::Multi(checks)),
        Err(ZkError::BadArguments)
    );
}

#[test]
fn hard_quotas_hold_against_a_multi() {
    let mut world = World::new(Settings {
        enforce_quota: true,
        ..Settings::default()
    });
    world.create("/a", 0).unwrap();
    world.create("/zookeeper/quota/a", 0).unwrap();
    for (name, text) in [
        ("limits", "count=2,bytes=-1=;countHardLimit=3"),
        ("stats", "count=0,bytes=0"),
    ] {
        let path = format!("/zookeeper/quota/a/zookeeper_{name}");
        let mut request = create(OpCode::Create, &path, 0);
        if let Request::Create { create, .. } = &mut request {
            create.data = Some(text.as_bytes());
        }
        world.outcome(&request).unwrap();
    }
    let two = ["/a/b", "/a/c", "/a/d"].map(|path| create(OpCode::Create, path, 0));
    let executed = world.run(&Request::Multi(two.to_vec()));
    let codes = [0, 0, ZkError::QuotaExceeded.code()];
    let errors = codes.map(|code| (OpCode::Error, Err(code)));
    assert_eq!(executed.outcome, Ok(WriteReply::Multi(errors.to_vec())));
    assert!(world.create("/a/b", 0).is_ok());
    assert!(world.create("/a/c", 0).is_ok());
    assert_eq!(world.create("/a/d", 0), Err(ZkError::QuotaExceeded));
    world.settings.enforce_quota = false;
    assert!(world.create("/a/d", 0).is_ok());
}

#[test]
fn soft_quotas_warn() {
    let mut world = World::new(Settings {
        enforce_quota: true,
        ..Settings::default()
    });
    world.create("/zookeeper/quota/a", 0).unwrap();
    for (name, text) in [("limits", "count=-1,bytes=6"), ("stats", "count=0,bytes=0")] {
        let path = format!("/zookeeper/quota/a/zookeeper_{name}");
        let mut request = create(OpCode::Create, &path, 0);
        if let Request::Create { create, .. } = &mut request {
            create.data = Some(text.as_bytes());
        }
        world.outcome(&request).unwrap();
    }
    assert!(
        world
            .run(&create(OpCode::Create, "/a", 0))
            .warnings
            .is_empty()
    );
    let executed = world.run(&create(OpCode::Create, "/a/b", 0));
    assert!(executed.outcome.is_ok());
    let shown: Vec<String> = executed.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["soft bytes quota of /a exceeded: 8 of 6"]);
}

#[test]
fn the_sweep_takes_what_is_over_and_nothing_else() {
    let mut world = World::new(Settings {
        extended_types: true,
        ..Settings::default()
    });
    for path in ["/used", "/unused", "/busy"] {
        world
            .outcome(&create(OpCode::CreateContainer, path, 4))
            .unwrap();
    }
    for path in ["/used/x", "/busy/x"] {
        world.create(path, 0).unwrap();
    }
    world
        .outcome(&Request::Delete {
            path: "/used/x",
            version: -1,
        })
        .unwrap();
    world.outcome(&create_ttl("/ttl", 5, 100)).unwrap();
    world.outcome(&create_ttl("/parent", 5, 100)).unwrap();
    world.create("/parent/x", 0).unwrap();
    let at = |world: &World, now_ms, never_used_ms_max| {
        let mut paths: Vec<String> = sweep::expired(&world.head, now_ms, never_used_ms_max)
            .map(str::to_owned)
            .collect();
        paths.sort_unstable();
        paths
    };
    assert_eq!(at(&world, 1_100, 0), ["/used"]);
    assert_eq!(at(&world, 1_101, 0), ["/ttl", "/used"]);
    assert_eq!(at(&world, 1_101, 100), ["/ttl", "/unused", "/used"]);

    let sweep = |world: &mut World, path: &str, time_ms: i64| {
        let settings = world.settings.clone();
        let zxid = world.head.zxid().next().unwrap();
        let request = Request::DeleteContainer { path };
        let context = Context::internal(time_ms, &settings);
        let executed = execute(&mut world.head, zxid, &request, &context, &mut world.events);
        executed.outcome
    };
    assert_eq!(sweep(&mut world, "/used", 1_101), Ok(WriteReply::Empty));
    assert_eq!(sweep(&mut world, "/used", 1_101), Err(ZkError::NoNode));
    assert_eq!(sweep(&mut world, "/busy", 1_101), Err(ZkError::NotEmpty));
    assert_eq!(
        sweep(&mut world, "/busy/x", 1_101),
        Err(ZkError::BadVersion)
    );
    // Written to since the sweep found it.
    assert_eq!(sweep(&mut world, "/ttl", 1_100), Err(ZkError::BadVersion));
    assert_eq!(sweep(&mut world, "/ttl", 1_101), Ok(WriteReply::Empty));
    assert_eq!(
        sweep(&mut world, "/zookeeper", 1_101),
        Err(ZkError::BadArguments)
    );
}

#[test]
fn sessions_come_and_go() {
    let mut world = plain();
    let created = world
        .with_context(|head, zxid, context, _| execute_create_session(head, zxid, 4_000, context));
    assert_eq!(created.header.op, OpCode::CreateSession);
    assert_eq!(world.head.session_timeout(world.session), Some(4_000));
    world.create("/e", EPHEMERAL).unwrap();
    let closed = world.run(&Request::CloseSession);
    assert_eq!(
        closed.txn,
        Txn::CloseSession {
            paths: Some(vec!["/e".into()])
        }
    );
    assert_eq!(world.head.session_timeout(world.session), None);
    assert!(world.head.get("/e").is_none());
    world.settings.close_session_txn = false;
    assert_eq!(
        world.run(&Request::CloseSession).txn,
        Txn::CloseSession { paths: None }
    );
}

#[test]
fn a_server_alone_does_not_reconfigure() {
    let mut world = plain();
    let reconfig = Request::Reconfig {
        joining: Some("server.2=localhost:2:3"),
        leaving: None,
        new_members: None,
        config_id: -1,
    };
    assert_eq!(world.outcome(&reconfig), Err(ZkError::ReconfigDisabled));
    world.settings.reconfig_enabled = true;
    assert_eq!(world.outcome(&reconfig), Err(ZkError::Unimplemented));
    world.state = SessionState::Closing;
    assert_eq!(world.outcome(&reconfig), Err(ZkError::SessionExpired));
}

#[test]
fn missed_events_are_told_and_the_rest_is_armed() {
    let mut world = plain();
    for path in ["/old", "/new-data", "/new-child", "/there"] {
        world.create(path, 0).unwrap();
    }
    let seen = world.head.zxid();
    world
        .outcome(&Request::SetData {
            path: "/new-data",
            data: None,
            version: -1,
        })
        .unwrap();
    world.create("/new-child/x", 0).unwrap();
    let request = SetWatchesRequest {
        relative_zxid: seen,
        data: vec!["/old", "/new-data", "/new-child", "/gone", ""],
        exist: vec!["/there", "/missing"],
        child: vec!["/old", "/new-data", "/new-child", "/gone"],
        persistent: vec!["/old", "/p"],
        persistent_recursive: vec!["/r"],
    };
    let mut table = WatchTable::new(1);
    let watcher = Watcher(3);
    let mut told = Vec::new();
    set_watches(&world.head, &mut table, watcher, &request, |kind, path| {
        told.push((kind, path.to_owned()));
    });
    let expect = [
        (EventType::DataChanged, "/new-data"),
        (EventType::Deleted, "/gone"),
        (EventType::Created, "/there"),
        (EventType::ChildrenChanged, "/new-child"),
        (EventType::Deleted, "/gone"),
    ];
    assert_eq!(told, expect.map(|(kind, path)| (kind, path.to_owned())));
    let armed = [
        ("/old", WatchKind::Data, true),
        ("/new-data", WatchKind::Data, false),
        ("/new-child", WatchKind::Data, true),
        ("", WatchKind::Data, true),
        ("/missing", WatchKind::Data, true),
        ("/there", WatchKind::Data, false),
        ("/gone", WatchKind::Any, false),
        ("/old", WatchKind::Child, true),
        ("/new-data", WatchKind::Child, true),
        ("/new-child", WatchKind::Child, false),
        ("/old", WatchKind::Persistent, true),
        ("/p", WatchKind::Persistent, true),
        ("/r", WatchKind::PersistentRecursive, true),
    ];
    for (path, kind, expect) in armed {
        assert_eq!(
            table.contains(path, watcher, kind),
            expect,
            "{path} {kind:?}"
        );
    }
    // What a write then does reaches them through its events.
    world.events.clear();
    world.create("/missing", 0).unwrap();
    let mut told = Vec::new();
    for event in world.events.iter() {
        table.fire(event.kind, event.path, |watcher, kind, path| {
            told.push((watcher, kind, path.to_owned()))
        });
    }
    assert_eq!(told, [(watcher, EventType::Created, "/missing".to_owned())]);
}

// Sound requests with a few bytes changed, cut or added: whatever is asked, an answer comes out, and a
// transaction that can be read back and applied to the same effect.
#[test]
fn spoilt_requests_do_no_harm() {
    let mut random = SmallRng::seed_from_u64(3);
    let mut world = World::new(Settings {
        extended_types: true,
        enforce_quota: true,
        txn_len_max: 600,
        ..Settings::default()
    });
    world.identities.push(Id::new("digest", "u:h"));
    let auth = AclList::new(&[Acl {
        perms: Perms::ALL,
        id: Id::new("auth", ""),
    }]);
    let sound = [
        create(OpCode::Create, "/a", 0),
        create(OpCode::Create2, "/a/s-", 3),
        create_ttl("/a/t", 6, 77),
        create(OpCode::CreateContainer, "/c", 4),
        Request::Delete {
            path: "/a",
            version: -1,
        },
        Request::SetData {
            path: "/a",
            data: Some(b"0123456789"),
            version: -1,
        },
        Request::SetAcl {
            path: "/a",
            acl: Some(auth),
            version: -1,
        },
        Request::Multi(vec![
            create(OpCode::Create, "/m", 0),
            Request::Check {
                path: "/m",
                version: 0,
            },
            Request::Delete {
                path: "/m",
                version: 0,
            },
        ]),
    ];
    let mut failed = 0;
    for _ in 0..20_000 {
        let request = sound.choose(&mut random).unwrap();
        let mut frame = BytesMut::new();
        request.encode_frame(Xid(1), &mut frame);
        let mut body = frame[12..].to_vec();
        for _ in 0..random.random_range(0..3) {
            match random.random_range(0..6) {
                0 => body.truncate(random.random_range(0..body.len() + 1)),
                1 => body.push(random.random()),
                _ => {
                    if let Some(byte) = body.choose_mut(&mut random) {
                        *byte = *[0, 1, 2, b'/', b'.', 0x7f, 0x80, 0xff]
                            .choose(&mut random)
                            .unwrap();
                    }
                }
            }
        }
        let before = world.head.clone();
        world.events.clear();
        let text = LossyText::new();
        let executed = world.with_context(|head, zxid, context, events| {
            execute_bytes(head, zxid, request.op(), &body, &text, context, events)
        });
        let Ok(executed) = executed else {
            assert_eq!(world.head.zxid(), before.zxid());
            continue;
        };
        failed += usize::from(executed.outcome.is_err());
        check_replay(before, &executed, &world);
    }
    assert!((1_000..19_000).contains(&failed), "{failed} failed");
}

fn check_replay(mut before: Tree, executed: &Executed<'_>, world: &World) {
    let mut record = Vec::new();
    encode_record(
        &executed.header,
        &executed.txn,
        Some(&executed.digest),
        &mut record,
    );
    assert!(record.len() <= world.settings.txn_len_max);
    let (header, txn, digest) = decode_record(&record).unwrap();
    assert_eq!((header, digest), (executed.header, Some(executed.digest)));
    assert_eq!(txn, executed.txn);
    let mut events = Events::new();
    let _shown = before.apply(&header, &txn, &mut events);
    assert_eq!(before.digest_to_wire(), executed.digest.tree_digest);
    assert_eq!(before.zxid(), world.head.zxid());
    assert_eq!(events, world.events);
}

#[test]
fn what_exists_is_not_created_again_wherever_it_stands() {
    let mut world = plain();
    world.create("/a", 0).unwrap();
    world.create("/a/b", 0).unwrap();
    for path in ["/", "/a", "/a/b", "/zookeeper", "/zookeeper/quota"] {
        assert_eq!(world.create(path, 0), Err(ZkError::NodeExists), "{path}");
    }
    assert_eq!(
        world.create("/a/b/c", 0),
        Ok(WriteReply::Path("/a/b/c".into()))
    );
}
