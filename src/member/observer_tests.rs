//! A follower between observers and the leader: what goes up, what comes down, and to whom.

use bytes::{Bytes, BytesMut};
use ringkeeper_peers::{Packet, PeerCommand, Rider};
use ringkeeper_proto::quorum::{
    Capabilities, ForwardedRequest, Revalidated, Revalidation, Touch, TouchTable,
};
use ringkeeper_proto::{Epoch, OpCode, ServerId, SessionId, Zxid};
use ringkeeper_zab::{LinkId, Message};

use crate::core_report::Metric;
use crate::member_tests::{Member, THREE};
use crate::messages::{ClientMessage, ClientNotice};
use crate::publication::ClientKey;

const LEADER: LinkId = LinkId(1);

/// Links of two observers.
const FIRST: LinkId = LinkId(5);
const SECOND: LinkId = LinkId(6);

const SESSION: SessionId = SessionId(0x0400_0001);

const TIMEOUT_MS: i32 = 4_000;

/// What was sent on a link.
fn sent(commands: &[PeerCommand], to: LinkId) -> Vec<Message<Bytes>> {
    let sent = commands.iter().filter_map(|command| match command {
        PeerCommand::Send { link, packet } if *link == to => Some(packet.message.clone()),
        _ => None,
    });
    sent.collect()
}

/// Server 1 follows server 2, and two observers have come.
fn follower() -> Member {
    let mut member = Member::with(&format!("observerMasterPort=9\n{THREE}"), true);
    member.follow(LEADER);
    let commands: Vec<_> = member.core.commands().collect();
    assert!(commands.contains(&PeerCommand::ServeObservers { open: true }));

    for (id, link) in [(4, FIRST), (5, SECOND)] {
        let introduction = Message::LearnerInfo {
            id: ServerId(id),
            observer: true,
            accepted_epoch: Epoch(0),
            config_version: 0,
            capabilities: Capabilities::NONE,
        };
        member.receive(link, introduction);
        let answer = Message::AckEpoch {
            current_epoch: Some(Epoch(0)),
            last_logged: Some(Zxid::ZERO),
            snapshot: false,
            doubted: None,
        };
        member.receive(link, answer);
        let zxid = Zxid::new(Epoch(2), 0);
        member.receive(link, Message::Ack { zxid });
        let commands: Vec<_> = member.core.commands().collect();
        assert_eq!(sent(&commands, link).last(), Some(&Message::UpToDate));
    }
    member
}

fn request(session: SessionId, op: OpCode) -> Message<Bytes> {
    Message::Request(ForwardedRequest::encode(session, 1, op.code(), b"", &[]))
}

fn question(session: SessionId) -> Message<Bytes> {
    let timeout_ms = TIMEOUT_MS;
    let question = Revalidation {
        session,
        timeout_ms,
    };
    Message::Revalidate(question.encode())
}

fn answer(session: SessionId, is_valid: bool) -> Message<Bytes> {
    Message::Revalidate(Revalidated { session, is_valid }.encode())
}

fn come_back(member: &mut Member, from: ClientKey) {
    member.hear(ClientMessage::Reconnect {
        from,
        session: SESSION,
        timeout_ms: TIMEOUT_MS,
    });
}

#[test]
fn observers_are_counted_at_the_follower_that_serves_them() {
    let member = follower();
    let report = member.core.report();
    let count = ("synced_observers", Metric::Integer(2));
    assert!(report.metrics.contains(&count), "{:?}", report.metrics);
}

#[test]
fn the_leader_hears_of_the_sessions_at_observers() {
    let mut member = follower();
    let mut table = BytesMut::new();
    let touch = Touch {
        session: SESSION,
        timeout_ms: TIMEOUT_MS,
    };
    TouchTable::put(&mut table, touch);
    let message = Message::Ping { round: 0 };
    let rider = Rider::Touches(table.clone().freeze());
    member.receive(FIRST, Packet { message, rider });
    member.core.commands().for_each(drop);

    let message = Message::Ping { round: 7 };
    member.receive(LEADER, message.clone());
    let told = PeerCommand::Send {
        link: LEADER,
        packet: Packet {
            message,
            rider: Rider::Touches(table.freeze()),
        },
    };
    assert_eq!(member.core.commands().collect::<Vec<_>>(), [told]);
}

#[test]
fn each_sync_is_answered_to_whom_it_is_of() {
    let mut member = follower();
    let from = member.client();
    member.receive(FIRST, request(SESSION, OpCode::Sync));
    let own = (from, SessionId(7));
    assert_eq!(member.ask(own, OpCode::Sync, Bytes::new()), []);
    member.receive(SECOND, request(SESSION, OpCode::Sync));
    let commands: Vec<_> = member.core.commands().collect();
    assert_eq!(sent(&commands, LEADER).len(), 3);

    let mut answered = Vec::new();
    for _ in 0..3 {
        member.receive(LEADER, Message::Sync);
        let commands: Vec<_> = member.core.commands().collect();
        answered.push([FIRST, SECOND].map(|link| sent(&commands, link)));
    }
    let (sync, nothing) = (|| vec![Message::Sync], Vec::new);
    let expect = [
        [sync(), nothing()],
        [nothing(), nothing()],
        [nothing(), sync()],
    ];
    assert_eq!(answered, expect);
}

#[test]
fn a_session_that_moves_is_asked_for_and_left_behind() {
    let mut member = follower();
    // A client of this server, then the same at an observer.
    let from = member.client();
    come_back(&mut member, from);
    member.receive(FIRST, question(SESSION));
    let commands: Vec<_> = member.core.commands().collect();
    let asked = [question(SESSION), question(SESSION)];
    assert_eq!(sent(&commands, LEADER), asked);
    member.receive(LEADER, answer(SESSION, true));
    let notices = member.notices();
    assert!(
        matches!(notices.as_slice(), [ClientNotice::Attach { to, .. }] if *to == from),
        "{notices:?}"
    );
    member.receive(LEADER, answer(SESSION, true));
    let commands: Vec<_> = member.core.commands().collect();
    assert_eq!(sent(&commands, FIRST), [answer(SESSION, true)]);
    let notices = member.notices();
    assert!(
        matches!(notices.as_slice(), [ClientNotice::Drop { client }] if *client == from),
        "{notices:?}"
    );

    let passes = |member: &mut Member, link| {
        member.receive(link, request(SESSION, OpCode::Create));
        let commands: Vec<_> = member.core.commands().collect();
        let mut sent = sent(&commands, LEADER).into_iter();
        sent.any(|it| matches!(it, Message::Request(_)))
    };
    assert!(passes(&mut member, FIRST));
    // To another observer: what comes of the first one is late.
    member.receive(SECOND, question(SESSION));
    member.receive(LEADER, answer(SESSION, true));
    assert!(!passes(&mut member, FIRST));
    assert!(passes(&mut member, SECOND));
    // And back to this server.
    let from = member.client();
    come_back(&mut member, from);
    member.receive(LEADER, answer(SESSION, true));
    assert!(!passes(&mut member, SECOND));
}

#[test]
fn a_session_that_does_not_live_any_more_moves_nowhere() {
    let mut member = follower();
    let from = member.client();
    come_back(&mut member, from);
    member.receive(LEADER, answer(SESSION, true));
    drop(member.notices());
    member.receive(FIRST, question(SESSION));
    member.receive(LEADER, answer(SESSION, false));
    let commands: Vec<_> = member.core.commands().collect();
    assert_eq!(sent(&commands, FIRST), [answer(SESSION, false)]);
    assert_eq!(member.notices().len(), 0);
}
