//! The core of an ensemble's member: what it is to clients without a leader, and whose sessions are whose.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ringkeeper_config::{Beside, LoggedSince, RawConfig};
use ringkeeper_peers::{Packet, PeerCommand, PeerEvent, Rider};
use ringkeeper_proto::election::{Ballot, PeerState, Vote};
use ringkeeper_proto::quorum::{ForwardedRequest, Revalidated, Revalidation};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::txn::{Txn, decode_record, encode_record};
use ringkeeper_proto::{
    Acl, AclList, Epoch, OpCode, Request, ServerId, SessionId, TxnHeader, Xid, ZkError, Zxid,
};
use ringkeeper_storage::{Dirs, LogOptions, Opened, SimDisk, Store};
use ringkeeper_transport::{Chain, Cursor};
use ringkeeper_tree::Tree;
use ringkeeper_zab::{LinkId, Message, Notification, Proposal};

use crate::core::{Core, CoreParts};
use crate::messages::{ClientMessage, ClientNotice, Now, WriteMessage};
use crate::publication::{Answer, ClientKey, Publication};
use crate::restart::{Loaded, zab_of_member};
use crate::sessions::{Holder, Sessions};
use crate::settings::Settings;
use crate::standing::Standing;

/// One of Zab's ticks, in milliseconds.
const TICK_MS: u64 = 10;

/// `tickTime`; an election makes a server read-only after 2000.
const CONFIG: &str = "dataDir=/data\nclientPort=1\ntickTime=500\ninitLimit=10\nsyncLimit=5\n";

pub(crate) const THREE: &str = "server.1=a:1:2\nserver.2=b:1:2\nserver.3=c:1:2\n";

const LOCAL: &str = "localSessionsEnabled=true\n";

/// The core of server 1 and the place of a shard in its chain.
pub(crate) struct Member {
    disk: SimDisk,
    pub(crate) core: Core<SimDisk>,
    cursor: Cursor<Publication>,
    now: Now,
    clients: u32,
}

impl Member {
    fn new(config: &str) -> Self {
        Self::with(config, false)
    }

    /// With `initialize` a blank disk has lost nothing.
    pub(crate) fn with(config: &str, initialize: bool) -> Self {
        let disk = SimDisk::new(7);
        let opening = {
            let disk = disk.clone();
            async move {
                let options = LogOptions {
                    segment_bytes: 16 << 20,
                    ..LogOptions::default()
                };
                Store::open(disk, &Dirs::single("/data"), options)
                    .await
                    .expect("a new directory")
            }
        };
        let opened = disk.run(opening).expect("nothing is held yet");
        let Opened {
            store,
            log,
            recovered,
        } = opened;
        disk.spawn(log.maintenance());
        let raw = RawConfig::parse("zoo.cfg", format!("{CONFIG}{config}").as_bytes());
        let beside = Beside {
            my_id: Some("1".to_owned()),
            dynamic: None,
        };
        let loaded = ringkeeper_config::Loaded::new(&raw.expect("it is text"), &beside);
        let settings = Settings::new(loaded.expect("it is ours").config);
        let data = Loaded {
            tree: Tree::new(),
            base: Zxid::ZERO,
            logged: LoggedSince::default(),
            zxids: Vec::new(),
            tail: Vec::new(),
        };
        let peers = settings.config.peers.clone().expect("it is a member");
        let zab = zab_of_member(&settings, &peers, &recovered, &data, initialize, TICK_MS);
        let mut chain = Chain::new();
        let cursor = chain.cursor();
        let core = Core::new(CoreParts {
            zab: zab.expect("an ensemble"),
            alone: false,
            store,
            log,
            tree: data.tree,
            tail: data.tail,
            sessions: Sessions::new(500, SessionId(0x100)),
            chain,
            settings: Arc::new(settings),
            now: Now::default(),
        });
        Self {
            disk,
            core,
            cursor,
            now: Now::default(),
            clients: 0,
        }
    }

    pub(crate) fn turn(&mut self) {
        loop {
            if let Some(errand) = self.core.next_errand() {
                if let crate::Errand::Run(work) = errand {
                    let done = self.disk.run(work).expect("nothing is held");
                    self.core.done(done.expect("no fault"));
                }
            } else if let Some(write) = self.core.next_write() {
                let written = self.disk.run(write).expect("nothing is held");
                written.expect("no fault");
                self.core.flushed();
            } else {
                break;
            }
        }
        self.core.end_turn();
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.now.monotonic_us += TICK_MS * 1000;
            self.core.start_turn(self.now);
            self.core.tick();
            self.core.expire_sessions();
            self.turn();
        }
    }

    pub(crate) fn hear(&mut self, message: ClientMessage) {
        self.core.hear(message);
        self.turn();
    }

    pub(crate) fn notices(&mut self) -> Vec<ClientNotice> {
        self.core.notices().collect()
    }

    pub(crate) fn client(&mut self) -> ClientKey {
        self.clients += 1;
        ClientKey {
            shard: 0,
            index: self.clients,
            generation: 1,
        }
    }

    /// A client with a new session, which it gets at once because it is local.
    fn local_client(&mut self, timeout_ms: i32) -> (ClientKey, SessionId) {
        let from = self.client();
        self.hear(ClientMessage::NewSession { from, timeout_ms });
        match self.notices().as_slice() {
            [ClientNotice::Attach { to, session }] => {
                assert_eq!((*to, session.timeout_ms), (from, timeout_ms));
                (from, session.session)
            }
            other => panic!("{other:?}"),
        }
    }

    /// What comes of asking for something.
    pub(crate) fn ask(
        &mut self,
        (from, session): (ClientKey, SessionId),
        op: OpCode,
        body: Bytes,
    ) -> Vec<Result<(), ZkError>> {
        self.hear(ClientMessage::Write(WriteMessage {
            from,
            session,
            xid: Xid(1),
            op,
            body,
            identities: [].into(),
            keep_before: false,
            arrived_us: 0,
        }));
        let answers = self.answers().into_iter();
        let outcomes = answers.map(|(to, _, outcome)| {
            assert_eq!(to, from);
            outcome
        });
        outcomes.collect()
    }

    /// Servers 2 and 3 say that 2 leads.
    pub(crate) fn hear_of_a_leader(&mut self) {
        let vote = Vote {
            peer_epoch: Epoch(1),
            zxid: Zxid(1),
            leader: ServerId(2),
        };
        for (id, state) in [(2, PeerState::Leading), (3, PeerState::Following)] {
            let notification = Notification {
                state,
                ballot: Ballot::For(vote),
                round: 1,
            };
            self.core.hear_peer(PeerEvent::Notified {
                from: ServerId(id),
                notification,
                config: "".into(),
            });
        }
        self.turn();
    }

    pub(crate) fn receive(&mut self, link: LinkId, packet: impl Into<Packet>) {
        let packet = packet.into();
        self.core.hear_peer(PeerEvent::Received { link, packet });
        self.turn();
    }

    /// Server 2 leads, with no history, and is reached by `link`.
    pub(crate) fn follow(&mut self, link: LinkId) {
        self.hear_of_a_leader();
        let leader = ServerId(2);
        let connected = PeerEvent::Connected { leader, link };
        self.core.hear_peer(connected);
        let (epoch, extended) = (Epoch(2), true);
        self.receive(link, Message::LeaderInfo { epoch, extended });
        self.receive(link, Message::Diff { zxid: Zxid::ZERO });
        let config = "".into();
        self.receive(link, Message::NewLeader { epoch, config });
        self.receive(link, Message::UpToDate);
        assert_eq!(self.core.standing(), Standing::Following(leader));
    }

    /// The answers to requests that are published by now, in their order.
    fn answers(&mut self) -> Vec<(ClientKey, Xid, Result<(), ZkError>)> {
        let mut answers = Vec::new();
        while let Some(publication) = self.cursor.next() {
            for step in &publication.steps {
                if let Answer::Write { to, xid, outcome } = &step.answer {
                    answers.push((*to, *xid, outcome.as_ref().map(|_| ()).map_err(|it| *it)));
                }
            }
        }
        answers
    }
}

fn read_only(config: &str) -> Member {
    let mut member = Member::new(&format!("readonlymode.enabled=true\n{THREE}{config}"));
    member.pass(1_990);
    assert_eq!(member.core.standing(), Standing::Looking);
    member.pass(10 + TICK_MS);
    assert_eq!(member.core.standing(), Standing::ReadOnly);
    member
}

#[test]
fn without_the_setting_nothing_is_served_without_a_leader() {
    let mut member = Member::new(THREE);
    member.pass(10_000);
    assert_eq!(member.core.standing(), Standing::Looking);
}

#[test]
fn a_long_tick_makes_the_wait_for_a_leader_longer() {
    let mut member = Member::new(&format!(
        "readonlymode.enabled=true\n{}",
        THREE.replace("server.1", "tickTime=3000\nserver.1")
    ));
    member.pass(2_990);
    assert_eq!(member.core.standing(), Standing::Looking);
    member.pass(10 + TICK_MS);
    assert_eq!(member.core.standing(), Standing::ReadOnly);
}

#[test]
fn a_read_only_server_refuses_what_is_no_read() {
    let mut member = read_only(LOCAL);
    let client = member.local_client(4_000);
    let body = || Bytes::from_static(b"whatever it says");
    for op in [OpCode::Create, OpCode::Multi, OpCode::Sync, OpCode::Delete] {
        let outcomes = member.ask(client, op, body());
        assert_eq!(outcomes, [Err(ZkError::NotReadOnly)], "{op:?}");
    }
    assert_eq!(
        member.ask(client, OpCode::CloseSession, Bytes::new()),
        [Ok(())]
    );
    let (session, timeout_ms) = (client.1, 4_000);
    let from = member.client();
    member.hear(ClientMessage::Reconnect {
        from,
        session,
        timeout_ms,
    });
    let notices = member.notices();
    assert!(
        matches!(notices.as_slice(), [ClientNotice::Expired { to }] if *to == from),
        "{notices:?}"
    );
    assert_eq!(member.core.published_tree().zxid(), Zxid::ZERO);
}

#[test]
fn a_session_of_a_read_only_server_expires_there() {
    let mut member = read_only(LOCAL);
    let (client, _) = member.local_client(4_000);
    assert_eq!(member.core.report().local_sessions, 1);
    member.pass(4_000);
    assert_eq!(member.notices().len(), 0);
    // ZK: at the first tick after its deadline.
    member.pass(500 + TICK_MS);
    let notices = member.notices();
    assert!(
        matches!(notices.as_slice(), [ClientNotice::Drop { client: it }] if *it == client),
        "{notices:?}"
    );
    let report = member.core.report();
    assert_eq!((report.local_sessions, report.sessions_expired), (0, 1));
}

#[test]
fn a_leader_that_is_found_ends_what_was_read_only() {
    let mut member = read_only(LOCAL);
    let (_, session) = member.local_client(4_000);
    assert_eq!(
        member.core.take_standing().map(|it| it.standing),
        Some(Standing::ReadOnly)
    );
    member.hear_of_a_leader();
    assert_eq!(
        member.core.take_standing().map(|it| it.standing),
        Some(Standing::Looking)
    );
    assert_eq!(member.core.report().local_sessions, 0);
    // It cannot be reached, and the wait begins anew.
    let leader = ServerId(2);
    member.core.hear_peer(PeerEvent::ConnectFailed { leader });
    member.turn();
    member.pass(1_990);
    assert_eq!(member.core.standing(), Standing::Looking);
    member.pass(8_000);
    assert_eq!(member.core.standing(), Standing::ReadOnly);
    let (_, next) = member.local_client(4_000);
    assert_ne!(next, session, "no number is given twice");
}

const ONE: &str = "standaloneEnabled=false\nserver.1=a:1:2\n";

const EPHEMERAL: i32 = 1;

fn leading(config: &str) -> Member {
    let mut member = Member::new(&format!("{ONE}{config}"));
    member.pass(1_000);
    let standing = member.core.standing();
    assert!(matches!(standing, Standing::Leading(_)), "{standing:?}");
    member
}

fn create(path: &str, flags: i32) -> Bytes {
    let create = CreateRequest {
        path,
        data: Some(b"data"),
        acl: Some(AclList::new(&Acl::open())),
        flags,
        ttl_ms: None,
    };
    let mut frame = BytesMut::new();
    let op = OpCode::Create;
    Request::Create { op, create }.encode_frame(Xid(1), &mut frame);
    frame.freeze().slice(12..)
}

/// What each transaction after `after` did.
fn logged_since(member: &Member, after: Zxid) -> Vec<(SessionId, OpCode)> {
    let records = member.core.committed_since(after);
    let ops = records.map(|(_, bytes)| {
        let (header, ..) = decode_record(bytes).expect("it was made here");
        (header.session, header.op)
    });
    ops.collect()
}

#[test]
fn a_local_session_is_in_no_log_until_it_wants_an_ephemeral() {
    let mut member = leading(&format!("{LOCAL}localSessionsUpgradingEnabled=true\n"));
    let began = member.core.published_tree().zxid();
    let client = member.local_client(4_000);
    let created = member.ask(client, OpCode::Create, create("/a", 0));
    assert_eq!(created, [Ok(())]);
    assert_eq!(logged_since(&member, began), [(client.1, OpCode::Create)]);
    let report = member.core.report();
    assert_eq!((report.local_sessions, report.global_sessions), (1, 0));

    let before = member.core.published_tree().zxid();
    let created = member.ask(client, OpCode::Create, create("/e", EPHEMERAL));
    assert_eq!(created, [Ok(())]);
    assert_eq!(
        logged_since(&member, before),
        [
            (client.1, OpCode::CreateSession),
            (client.1, OpCode::Create)
        ]
    );
    let tree = member.core.published_tree();
    assert_eq!(tree.session_timeout(client.1), Some(4_000));
    assert_eq!(tree.ephemerals(client.1).collect::<Vec<_>>(), ["/e"]);
    let report = member.core.report();
    assert_eq!((report.local_sessions, report.global_sessions), (0, 1));

    // It expires as one that all know: once, and by a transaction.
    let before = tree.zxid();
    member.pass(4_500 + TICK_MS);
    assert_eq!(
        logged_since(&member, before),
        [(client.1, OpCode::CloseSession)]
    );
    assert_eq!(member.core.report().sessions_expired, 1);
}

#[test]
fn a_local_session_that_may_not_become_global_gets_no_ephemeral() {
    let mut member = leading(LOCAL);
    let client = member.local_client(4_000);
    assert_eq!(
        member.ask(client, OpCode::Create, create("/e", EPHEMERAL)),
        [Err(ZkError::EphemeralOnLocalSession)]
    );
    assert_eq!(member.core.report().local_sessions, 1);
    let before = member.core.published_tree().zxid();
    assert_eq!(
        member.ask(client, OpCode::CloseSession, Bytes::new()),
        [Ok(())]
    );
    assert_eq!(logged_since(&member, before), []);
    assert_eq!(member.core.report().local_sessions, 0);
}

#[test]
fn a_local_session_of_the_leader_is_nothing_to_a_learner() {
    let mut member = leading(LOCAL);
    let (_, session) = member.local_client(4_000);
    let global = SessionId(0x777);
    let holder = Holder::Nobody;
    member.core.sessions.insert(global, 4_000, holder, 0);
    for (session, is_valid) in [(session, false), (global, true)] {
        let timeout_ms = 4_000;
        let question = Revalidation {
            session,
            timeout_ms,
        };
        member.core.revalidate(LinkId(1), question);
        let sent = member.core.commands().last();
        let Some(PeerCommand::Send { packet, .. }) = sent else {
            panic!("{sent:?}");
        };
        let answer = Revalidated { session, is_valid };
        assert_eq!(packet, Packet::from(Message::Revalidate(answer.encode())));
    }
    assert!(member.core.sessions.is_local(session), "it stays here");
}

#[test]
fn a_leader_believes_a_learner_that_a_session_is_local_there() {
    let elsewhere = SessionId(2 << 56);
    let here = SessionId(0x999);
    let cases = [
        (LOCAL, elsewhere, 0, OpCode::Create),
        (LOCAL, elsewhere, EPHEMERAL, OpCode::Error),
        (LOCAL, here, 0, OpCode::Error),
        ("", elsewhere, 0, OpCode::Error),
    ];
    for (config, session, flags, expect) in cases {
        let mut member = leading(config);
        let before = member.core.published_tree().zxid();
        let body = create("/a", flags);
        let request = ForwardedRequest::encode(session, 1, OpCode::Create.code(), &body, &[]);
        let request = ForwardedRequest::decode(&request).expect("it was made here");
        let forwarded = &mut member.core.traffic.forwarded;
        forwarded.push_back((LinkId(1), request));
        member.core.take_forwarded();
        member.turn();
        let case = (config, session, flags);
        assert_eq!(
            logged_since(&member, before),
            [(session, expect)],
            "{case:?}"
        );
    }
}

#[test]
fn the_leader_is_not_told_of_local_sessions() {
    let mut member = Member::new(&format!("{THREE}{LOCAL}"));
    let from = member.client();
    let sessions = &mut member.core.sessions;
    sessions.insert_local(SessionId(5), 4_000, from, 10);
    let told = |member: &mut Member| match member.core.touches() {
        Rider::Touches(bytes) => bytes.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&mut member), 0);
    member.core.sessions.upgrade(SessionId(5));
    assert_eq!(told(&mut member), 12);
}

/// A leader that hands over may have answered a sync, and the answer is not told any more: the commit of what the session
/// asked behind it is.
#[test]
fn a_learner_answers_a_sync_before_what_its_session_asked_later() {
    let link = LinkId(1);
    let mut member = Member::with(THREE, true);
    member.follow(link);
    let (from, session) = (member.client(), SessionId(0x0400_0001));
    for (xid, op, body) in [
        (1, OpCode::Sync, Bytes::from_static(b"\0\0\0\x01/")),
        (2, OpCode::Create, create("/a", 0)),
        (3, OpCode::Sync, Bytes::from_static(b"\0\0\0\x01/")),
    ] {
        member.hear(ClientMessage::Write(WriteMessage {
            from,
            session,
            xid: Xid(xid),
            op,
            body,
            identities: [].into(),
            keep_before: false,
            arrived_us: 0,
        }));
    }
    assert_eq!(member.answers(), []);
    let zxid = Zxid::new(Epoch(2), 1);
    let header = TxnHeader {
        session,
        cxid: 2,
        zxid,
        time_ms: 0,
        op: OpCode::Error,
    };
    let error = Txn::Error {
        code: ZkError::NoNode.code(),
    };
    let mut payload = BytesMut::new();
    encode_record(&header, &error, None, &mut payload);
    let payload = payload.freeze();
    member.receive(link, Message::Proposal(Proposal { zxid, payload }));
    member.receive(link, Message::Commit { zxid });
    let refused = Err(ZkError::NoNode);
    assert_eq!(
        member.answers(),
        [(from, Xid(1), Ok(())), (from, Xid(2), refused)]
    );
    // The SYNC of the first, and of the third.
    member.receive(link, Message::Sync);
    assert_eq!(member.answers(), []);
    member.receive(link, Message::Sync);
    assert_eq!(member.answers(), [(from, Xid(3), Ok(()))]);
    assert_eq!(member.notices().len(), 0);
}

/// A leader hears the questions in their order, and takes whoever asked last for the session's holder: before the last
/// answer the client may not go on, or that question overtakes it when it has gone to another server.
#[test]
fn a_client_that_has_come_back_twice_is_served_with_the_second_answer() {
    let link = LinkId(1);
    let mut member = Member::with(THREE, true);
    member.follow(link);
    let (session, timeout_ms) = (SessionId(0x0400_0001), 4_000);
    let clients = [member.client(), member.client()];
    for from in clients {
        member.hear(ClientMessage::Reconnect {
            from,
            session,
            timeout_ms,
        });
    }
    let notices = member.notices();
    assert!(
        matches!(notices.as_slice(), [ClientNotice::Drop { client }] if *client == clients[0]),
        "{notices:?}"
    );
    let answer = |is_valid| Message::Revalidate(Revalidated { session, is_valid }.encode());
    member.receive(link, answer(true));
    assert_eq!(member.notices().len(), 0);
    member.receive(link, answer(true));
    let notices = member.notices();
    assert!(
        matches!(notices.as_slice(), [ClientNotice::Attach { to, .. }] if *to == clients[1]),
        "{notices:?}"
    );
}
