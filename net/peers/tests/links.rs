//! Links among servers of one executor, over loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringkeeper_harness::free_port;
use ringkeeper_peers::{
    BoundPeers, Member, MemberAddress, Packet, PeerCommand, PeerEvent, PeerLinks, PeerSettings,
    Rider,
};
use ringkeeper_proto::election::{Ballot, PeerState, Vote};
use ringkeeper_proto::{Epoch, ServerId, Zxid};
use ringkeeper_transport::executor::ExecutorSpec;
use ringkeeper_transport::{run_executor, timeout};
use ringkeeper_zab::{LinkId, Message, Notification, Proposal};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server's links and the events that have come and were not looked for yet.
struct Server {
    id: ServerId,
    links: PeerLinks,
    events: Vec<PeerEvent>,
}

impl Server {
    fn start(settings: &PeerSettings, id: u64) -> Self {
        let settings = PeerSettings {
            id: ServerId(id),
            ..settings.clone()
        };
        let bound = BoundPeers::bind(settings).unwrap();
        Self {
            id: ServerId(id),
            links: bound.start().unwrap(),
            events: Vec::new(),
        }
    }

    /// Waits for an event that `pick` takes; others stay.
    async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&PeerEvent) -> Option<T>) -> T {
        loop {
            let found = self.events.iter().position(|event| pick(event).is_some());
            if let Some(at) = found {
                let event = self.events.remove(at);
                return pick(&event).unwrap();
            }
            let mut events = Vec::new();
            if timeout(PATIENCE, self.links.events(&mut events))
                .await
                .is_none()
            {
                panic!(
                    "{}: {what} does not come; there is {:?}",
                    self.id, self.events
                );
            }
            self.events.append(&mut events);
        }
    }

    async fn reachable(&mut self, id: u64, expected: bool) {
        self.wait("reachable", |event| match event {
            PeerEvent::Reachable { peer, reachable } => {
                (*peer == ServerId(id) && *reachable == expected).then_some(())
            }
            _ => None,
        })
        .await;
    }

    async fn received(&mut self) -> (LinkId, Packet) {
        self.wait("a packet", |event| match event {
            PeerEvent::Received { link, packet } => Some((*link, packet.clone())),
            _ => None,
        })
        .await
    }

    async fn connect(&mut self, leader: ServerId) -> LinkId {
        self.links.carry_out(PeerCommand::Connect { leader });
        self.wait("connected", |event| match event {
            PeerEvent::Connected { link, .. } => Some(*link),
            _ => None,
        })
        .await
    }

    async fn disconnected(&mut self, link: LinkId) {
        self.wait("disconnected", |event| {
            (*event == PeerEvent::Disconnected { link }).then_some(())
        })
        .await;
    }

    fn send(&self, link: LinkId, packet: impl Into<Packet>) {
        let packet = packet.into();
        self.links.carry_out(PeerCommand::Send { link, packet });
    }
}

/// Settings of servers 1 to `count`, each at two free ports of loopback.
fn settings(count: u64) -> PeerSettings {
    let members = (1..=count).map(|id| {
        let address = MemberAddress {
            host: "127.0.0.1".to_owned(),
            quorum_port: free_port().unwrap(),
            election_port: free_port().unwrap(),
        };
        let member = Member {
            votes: true,
            addresses: vec![address],
        };
        (ServerId(id), member)
    });
    let members: BTreeMap<_, _> = members.collect();
    PeerSettings::new(ServerId(0), members, Arc::from("the configuration"))
}

fn notification(leader: u64, round: u64) -> Notification {
    Notification {
        state: PeerState::Looking,
        ballot: Ballot::For(Vote {
            peer_epoch: Epoch(1),
            zxid: Zxid(0x0001_0000_0002),
            leader: ServerId(leader),
        }),
        round,
    }
}

fn on_executor(test: impl Future<Output = ()> + 'static) {
    run_executor(&ExecutorSpec::new("t", None), test).unwrap();
}

#[test]
fn servers_reach_each_other_once_each_way_and_again_after_a_restart() {
    on_executor(async {
        let settings = settings(2);
        let mut first = Server::start(&settings, 1);
        first.reachable(2, false).await;
        // The last one waits, and only it.
        for round in [6, 7] {
            first.links.carry_out(PeerCommand::Notify {
                to: ServerId(2),
                notification: notification(1, round),
            });
        }
        for incarnation in 0..3 {
            let mut second = Server::start(&settings, 2);
            first.reachable(2, true).await;
            second.reachable(1, true).await;
            if incarnation == 0 {
                let heard = second
                    .wait("a notification", |event| match event {
                        PeerEvent::Notified {
                            from,
                            notification,
                            config,
                        } => {
                            assert_eq!(
                                (*from, config.as_str()),
                                (ServerId(1), "the configuration")
                            );
                            Some(*notification)
                        }
                        _ => None,
                    })
                    .await;
                assert_eq!(heard, notification(1, 7));
            }
            second.links.carry_out(PeerCommand::Notify {
                to: ServerId(1),
                notification: notification(2, 9),
            });
            first
                .wait("a notification", |event| match event {
                    PeerEvent::Notified { from, .. } => (*from == ServerId(2)).then_some(()),
                    _ => None,
                })
                .await;
            second.links.stop();
            first.reachable(2, false).await;
        }
        first.links.stop();
    });
}

#[test]
fn packets_arrive_in_order_and_links_are_never_numbered_twice() {
    on_executor(async {
        let settings = settings(2);
        let (mut leader, mut learner) = (Server::start(&settings, 1), Server::start(&settings, 2));
        let mut numbers = Vec::new();
        for _ in 0..3 {
            let link = learner.connect(leader.id).await;
            numbers.push(link);
            let introduction = Message::LearnerInfo {
                capabilities: ringkeeper_proto::quorum::Capabilities::NONE,
                id: learner.id,
                observer: false,
                accepted_epoch: Epoch(3),
                config_version: 0,
            };
            learner.send(link, introduction.clone());
            learner.links.flush();
            let (theirs, packet) = leader.received().await;
            assert_eq!(packet.message, introduction);
            let payload = Bytes::from(vec![7; 100_000]);
            for counter in 1..=50 {
                let zxid = Zxid::new(Epoch(4), counter);
                let payload = payload.clone();
                leader.send(theirs, Message::Proposal(Proposal { zxid, payload }));
            }
            leader.links.flush();
            for counter in 1..=50 {
                let (from, packet) = learner.received().await;
                let Message::Proposal(proposal) = packet.message else {
                    panic!("{packet:?}");
                };
                assert_eq!(from, link);
                assert_eq!(proposal.zxid, Zxid::new(Epoch(4), counter));
                assert_eq!(proposal.payload, payload);
            }
            let touches = Packet {
                message: Message::Ping { round: 1 },
                rider: Rider::Touches(Bytes::from_static(b"0123456789ab")),
            };
            learner.send(link, touches.clone());
            // What is queued leaves before the end.
            learner.links.carry_out(PeerCommand::Close { link });
            assert_eq!(leader.received().await, (theirs, touches));
            leader.disconnected(theirs).await;
        }
        assert!(numbers.is_sorted() && numbers[0] != numbers[1]);
        assert!(
            learner
                .events
                .iter()
                .all(|it| matches!(it, PeerEvent::Reachable { .. }))
        );
    });
}

#[test]
fn a_snapshot_passes_as_raw_bytes_between_packets() {
    on_executor(async {
        let settings = settings(2);
        let (mut leader, mut learner) = (Server::start(&settings, 1), Server::start(&settings, 2));
        let link = learner.connect(leader.id).await;
        learner.send(link, Message::Ack { zxid: Zxid(1) });
        learner.links.flush();
        let (theirs, _) = leader.received().await;
        let zxid = Zxid(0x0003_0000_0000);
        leader.send(theirs, Message::Snap { zxid });
        // Many chunks, so that the link has no room in between.
        let chunk: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        const CHUNKS: usize = 40;
        let mut waited = 0;
        let mut sent = 0;
        let mut stream = Vec::new();
        let (_, snap) = {
            leader.links.flush();
            learner.received().await
        };
        assert_eq!(snap.message, Message::Snap { zxid });
        let total = CHUNKS * chunk.len();
        let want_room = PeerCommand::WantRoom { link: theirs };
        leader.links.carry_out(want_room.clone());
        while stream.len() < total {
            let is_room =
                |event: &PeerEvent| matches!(event, PeerEvent::Writable { .. }).then_some(());
            while sent < CHUNKS
                && timeout(Duration::from_millis(5), leader.wait("room", is_room))
                    .await
                    .is_some()
            {
                let bytes = Bytes::from(chunk.clone());
                leader.links.carry_out(PeerCommand::SendStream {
                    link: theirs,
                    bytes,
                });
                sent += 1;
                if sent == CHUNKS {
                    leader.send(theirs, Message::UpToDate);
                }
                leader.links.flush();
                leader.links.carry_out(want_room.clone());
            }
            if sent < CHUNKS {
                waited += 1;
            }
            learner.links.carry_out(PeerCommand::ReadStream { link });
            let bytes = learner
                .wait("bytes", |event| match event {
                    PeerEvent::StreamBytes { bytes, .. } => Some(bytes.clone()),
                    _ => None,
                })
                .await;
            stream.extend_from_slice(&bytes);
        }
        assert!(waited > 0, "the link always had room");
        let rest = Bytes::from(stream.split_off(total));
        assert_eq!(stream, chunk.repeat(CHUNKS));
        learner
            .links
            .carry_out(PeerCommand::EndStream { link, rest });
        assert_eq!(learner.received().await.1.message, Message::UpToDate);
        leader
            .wait("room", |event| {
                matches!(event, PeerEvent::Writable { .. }).then_some(())
            })
            .await;
    });
}

#[test]
fn a_peer_that_does_not_read_or_sends_garbage_is_dropped() {
    on_executor(async {
        let settings = PeerSettings {
            queue_bytes_max: 3_000_000,
            ..settings(2)
        };
        let (mut leader, mut learner) = (Server::start(&settings, 1), Server::start(&settings, 2));
        let link = learner.connect(leader.id).await;
        learner.send(link, Message::Ack { zxid: Zxid(1) });
        learner.links.flush();
        let (theirs, _) = leader.received().await;
        leader.send(theirs, Message::Snap { zxid: Zxid(5) });
        // Nobody asks for the stream: the queue fills up.
        let bytes = Bytes::from(vec![0; 1_000_000]);
        for _ in 0..40 {
            let bytes = bytes.clone();
            leader.links.carry_out(PeerCommand::SendStream {
                link: theirs,
                bytes,
            });
        }
        leader.disconnected(theirs).await;
        learner.links.carry_out(PeerCommand::Close { link });

        let link = learner.connect(leader.id).await;
        let bytes = Bytes::from_static(&[0x7f; 64]);
        learner
            .links
            .carry_out(PeerCommand::SendStream { link, bytes });
        learner.links.flush();
        learner.disconnected(link).await;
    });
}

#[test]
fn a_leader_that_is_not_there_is_told() {
    on_executor(async {
        let mut only = Server::start(&settings(2), 1);
        for leader in [ServerId(2), ServerId(9)] {
            only.links.carry_out(PeerCommand::Connect { leader });
            only.wait("a failure", |event| {
                (*event == PeerEvent::ConnectFailed { leader }).then_some(())
            })
            .await;
        }
    });
}

/// Three servers at addresses of their own; the last one is an observer.
fn settings_with_observer() -> PeerSettings {
    let mut settings = settings(3);
    for (id, member) in &mut settings.members {
        member.votes = id.0 < 3;
        member.addresses[0].host = format!("127.0.0.{}", id.0);
    }
    let free = TcpListener::bind("127.0.0.2:0").unwrap();
    settings.observer_master_port = Some(free.local_addr().unwrap().port());
    // No link ends here for want of packets.
    settings.silence_max = 4 * PATIENCE;
    settings
}

#[test]
fn an_observer_learns_from_a_follower_and_from_the_leader_when_there_is_none() {
    on_executor(async {
        let settings = settings_with_observer();
        let mut leader = Server::start(&settings, 1);
        let mut follower = Server::start(&settings, 2);
        let mut observer = Server::start(&settings, 3);
        let link = observer.connect(leader.id).await;
        observer.send(link, Message::UpToDate);
        observer.links.flush();
        follower.received().await;
        // A voter goes to the leader.
        let link = follower.connect(leader.id).await;
        follower.send(link, Message::UpToDate);
        follower.links.flush();
        leader.received().await;
        // The follower does not serve observers any more.
        let closed = PeerCommand::ServeObservers { open: false };
        follower.links.carry_out(closed);
        let link = observer.connect(leader.id).await;
        observer.disconnected(link).await;

        follower.links.stop();
        let link = observer.connect(leader.id).await;
        observer.send(link, Message::UpToDate);
        observer.links.flush();
        leader.received().await;
    });
}

#[test]
fn an_observer_that_does_not_read_is_dropped_sooner_than_a_follower() {
    on_executor(async {
        let settings = PeerSettings {
            observer_queue_bytes_max: 3_000_000,
            queue_bytes_max: 1_000_000_000,
            ..settings_with_observer()
        };
        let leader = Server::start(&settings, 1);
        let mut follower = Server::start(&settings, 2);
        let mut observer = Server::start(&settings, 3);
        let link = observer.connect(leader.id).await;
        observer.send(link, Message::Ack { zxid: Zxid(1) });
        observer.links.flush();
        let (theirs, _) = follower.received().await;
        follower.send(theirs, Message::Snap { zxid: Zxid(5) });
        // Nobody asks for the stream: the queue fills up.
        let bytes = Bytes::from(vec![0; 1_000_000]);
        for _ in 0..40 {
            let (link, bytes) = (theirs, bytes.clone());
            let command = PeerCommand::SendStream { link, bytes };
            follower.links.carry_out(command);
        }
        follower.disconnected(theirs).await;
    });
}
