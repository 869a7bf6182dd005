//! Tests of the replica: what one member does, input by input.

use ringkeeper_proto::election::{Ballot, PeerState, Vote};
use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::{Config, Epochs, Input, Output, Recovered, Role, SyncOrigin};
use crate::history::History;
use crate::log::LogGeneration;
use crate::message::{LinkId, Message, Notification};
use crate::quorum::Ensemble;
use crate::replica::Replica;
use crate::violation::Violation;

const GENERATION: LogGeneration = LogGeneration(0);

fn zxid(epoch: u32, counter: u32) -> Zxid {
    Zxid::new(Epoch(epoch), counter)
}

fn standalone(last_logged: Zxid, committed: Zxid) -> Replica<&'static str> {
    let mut history = History::starting_at(committed);
    history.recover(last_logged);
    let recovered = Recovered {
        history,
        committed,
        ..Recovered::default()
    };
    Replica::new(Config::standalone(ServerId(1)), recovered)
}

fn step(
    replica: &mut Replica<&'static str>,
    input: Input<&'static str>,
) -> Vec<Output<&'static str>> {
    let mut outputs = Vec::new();
    replica.step(input, &mut outputs).unwrap();
    outputs
}

#[test]
fn a_server_alone_leads_at_once_and_continues_its_epoch() {
    let mut replica = standalone(zxid(0, 7), zxid(0, 6));
    assert_eq!(replica.next_zxid(), None);
    let role = Role::Leading { epoch: Epoch(0) };
    let through = zxid(0, 7);
    let outputs = step(&mut replica, Input::Tick);
    assert_eq!(
        outputs,
        [Output::Commit { through }, Output::ChangeRole { role }]
    );
    assert_eq!(replica.next_zxid(), Some(zxid(0, 8)));
    assert_eq!(step(&mut replica, Input::Tick), []);
}

#[test]
fn a_write_is_committed_when_it_is_flushed_and_not_before() {
    let mut replica = standalone(Zxid::ZERO, Zxid::ZERO);
    step(&mut replica, Input::Tick);
    for counter in 1..=3 {
        let zxid = zxid(0, counter);
        let outputs = step(
            &mut replica,
            Input::Proposed {
                zxid,
                payload: "set",
            },
        );
        assert_eq!(outputs, [Output::Flush]);
    }
    let flushed = |through| Input::Flushed {
        through,
        generation: GENERATION,
    };
    let through = zxid(0, 2);
    assert_eq!(
        step(&mut replica, flushed(through)),
        [Output::Commit { through }]
    );
    assert_eq!(step(&mut replica, flushed(through)), []);
    assert_eq!(replica.delivered(), through);
    let through = zxid(0, 3);
    assert_eq!(
        step(&mut replica, flushed(through)),
        [Output::Commit { through }]
    );
}

#[test]
fn the_counter_rolls_over_into_the_next_epoch() {
    let mut replica = standalone(zxid(4, u32::MAX), zxid(4, u32::MAX));
    step(&mut replica, Input::Tick);
    assert_eq!(replica.next_zxid(), Some(zxid(5, 1)));
    step(
        &mut replica,
        Input::Proposed {
            zxid: zxid(5, 1),
            payload: "set",
        },
    );
    let through = zxid(5, 1);
    let outputs = step(
        &mut replica,
        Input::Flushed {
            through,
            generation: GENERATION,
        },
    );
    assert_eq!(outputs, [Output::Commit { through }]);
    assert_eq!(replica.next_zxid(), Some(zxid(5, 2)));
}

#[test]
fn a_sync_waits_for_what_was_proposed_before_it() {
    let mut replica = standalone(Zxid::ZERO, Zxid::ZERO);
    step(&mut replica, Input::Tick);
    let sync = |tag| Input::Sync {
        origin: SyncOrigin::Own(tag),
    };
    assert_eq!(step(&mut replica, sync(1)), [Output::Synced { tag: 1 }]);
    step(
        &mut replica,
        Input::Proposed {
            zxid: zxid(0, 1),
            payload: "set",
        },
    );
    assert_eq!(step(&mut replica, sync(2)), []);
    let through = zxid(0, 1);
    let outputs = step(
        &mut replica,
        Input::Flushed {
            through,
            generation: GENERATION,
        },
    );
    assert_eq!(
        outputs,
        [Output::Commit { through }, Output::Synced { tag: 2 }]
    );
}

#[test]
#[should_panic(expected = "zxids are assigned by next_zxid")]
fn a_zxid_of_the_callers_making_is_refused() {
    let mut replica = standalone(Zxid::ZERO, Zxid::ZERO);
    step(&mut replica, Input::Tick);
    step(
        &mut replica,
        Input::Proposed {
            zxid: zxid(0, 2),
            payload: "set",
        },
    );
}

/// A server in an election learns that server 3 leads, and connects to it.
fn join(replica: &mut Replica<&'static str>, link: LinkId) {
    let leader = ServerId(3);
    for from in [2, 3] {
        let vote = Vote {
            peer_epoch: Epoch(4),
            zxid: zxid(4, 7),
            leader,
        };
        let state = if from == 3 {
            PeerState::Leading
        } else {
            PeerState::Following
        };
        let notification = Notification {
            state,
            ballot: Ballot::For(vote),
            round: 1,
        };
        step(
            replica,
            Input::Notified {
                from: ServerId(from),
                notification,
            },
        );
    }
    step(replica, Input::Connected { leader, link });
}

/// Its answer to the leader's epoch.
fn promise(
    replica: &mut Replica<&'static str>,
    link: u64,
    epoch: u32,
) -> Option<Message<&'static str>> {
    let (link, epoch) = (LinkId(link), Epoch(epoch));
    join(replica, link);
    let message = Message::LeaderInfo {
        epoch,
        extended: true,
    };
    let mut outputs = step(replica, Input::Received { link, message });
    if let Some(Output::SaveEpoch { epochs }) = outputs.first() {
        outputs = step(replica, Input::EpochSaved { epochs: *epochs });
    }
    outputs.into_iter().find_map(|output| match output {
        Output::Send { message, .. } => Some(message),
        _ => None,
    })
}

/// One of three members, which has lived in epoch 4.
fn member_of_epoch_4() -> (Config, Epochs) {
    let ensemble = Ensemble::majority([1, 2, 3].map(ServerId), []).unwrap();
    let config = Config::member(ServerId(1), ensemble, crate::timer::Timing::default());
    let epochs = Epochs {
        accepted: Epoch(4),
        current: Epoch(4),
        member: true,
        doubted: None,
    };
    (config, epochs)
}

#[test]
fn an_epoch_is_promised_once() {
    let (config, epochs) = member_of_epoch_4();
    let recovered = Recovered {
        epochs,
        ..Recovered::default()
    };
    let mut replica = Replica::new(config, recovered);
    step(&mut replica, Input::Tick);
    let answer = |current_epoch| {
        Some(Message::AckEpoch {
            current_epoch,
            last_logged: Some(Zxid::ZERO),
            snapshot: false,
            doubted: None,
        })
    };
    assert_eq!(promise(&mut replica, 1, 5), answer(Some(Epoch(4))));
    // The link breaks. To promise epoch 5 again could make a second leader of it.
    step(&mut replica, Input::Disconnected { link: LinkId(1) });
    assert_eq!(promise(&mut replica, 2, 5), answer(None));
    // An older leader is not followed.
    step(&mut replica, Input::Disconnected { link: LinkId(2) });
    let (link, epoch, accepted) = (LinkId(3), Epoch(4), Epoch(5));
    join(&mut replica, link);
    let message = Message::LeaderInfo {
        epoch,
        extended: true,
    };
    let mut outputs = Vec::new();
    let result = replica.step(Input::Received { link, message }, &mut outputs);
    assert_eq!(result, Err(Violation::StaleEpoch { epoch, accepted }));
    assert!(outputs.contains(&Output::Close { link }));
}

#[test]
fn a_damaged_log_is_not_shown() {
    let (config, epochs) = member_of_epoch_4();
    let mut history = History::starting_at(Zxid::ZERO);
    history.recover(zxid(4, 1));
    let recovered = Recovered {
        epochs,
        history,
        damaged: true,
        ..Recovered::default()
    };
    let mut replica = Replica::new(config, recovered);
    // It does not vote, and is not taken for blank.
    for output in step(&mut replica, Input::Tick) {
        if let Output::Notify { notification, .. } = output {
            assert_eq!(notification.ballot, Ballot::None);
        }
    }
    let answer = Message::AckEpoch {
        current_epoch: None,
        last_logged: None,
        snapshot: false,
        doubted: None,
    };
    assert_eq!(promise(&mut replica, 1, 5), Some(answer));
    let (link, message) = (LinkId(1), Message::Diff { zxid: zxid(4, 1) });
    let refused = replica.step(Input::Received { link, message }, &mut Vec::new());
    assert!(refused.is_err(), "only a snapshot helps");
}

#[test]
fn a_leader_is_not_left_while_its_snapshot_is_installed() {
    let ensemble = Ensemble::majority([1, 2, 3].map(ServerId), []).unwrap();
    let config = Config::member(ServerId(1), ensemble, crate::timer::Timing::default());
    let mut replica = Replica::new(config, Recovered::default());
    step(&mut replica, Input::Tick);
    promise(&mut replica, 1, 5).unwrap();
    let link = LinkId(1);
    let message = Message::Snap { zxid: zxid(4, 7) };
    let outputs = step(&mut replica, Input::Received { link, message });
    let Some(Output::InstallSnapshot { generation, .. }) = outputs.first() else {
        panic!("{outputs:?}");
    };
    let generation = *generation;
    // Packets come behind the snapshot only when it is installed; this one breaks the protocol.
    let message = Message::UpToDate;
    let mut outputs = Vec::new();
    let result = replica.step(Input::Received { link, message }, &mut outputs);
    assert!(result.is_err());
    assert_eq!(outputs, [Output::Close { link }]);
    // No other snapshot and no proposal can come before storage has answered.
    assert_eq!(replica.phase_name(), "installing a snapshot");
    step(&mut replica, Input::SnapshotInstalled { generation });
    assert_eq!(replica.phase_name(), "electing a leader");
}

/// Lets storage complete at once whatever is asked of it; returns what was sent on `link`.
fn run(
    replica: &mut Replica<&'static str>,
    input: Input<&'static str>,
    link: LinkId,
) -> Vec<Message<&'static str>> {
    let (mut inputs, mut sent) = (std::collections::VecDeque::from([input]), Vec::new());
    let mut through = Zxid::ZERO;
    while let Some(input) = inputs.pop_front() {
        for output in step(replica, input) {
            match output {
                Output::SaveEpoch { epochs } => inputs.push_back(Input::EpochSaved { epochs }),
                Output::Append { proposal } => through = proposal.zxid,
                Output::Flush => inputs.push_back(Input::Flushed {
                    through,
                    generation: GENERATION,
                }),
                Output::Send { link: to, message } if to == link => sent.push(message),
                _ => {}
            }
        }
    }
    sent
}

#[test]
fn a_learners_sync_is_answered_between_the_commits_that_it_was_asked_between() {
    let ensemble = Ensemble::majority([1, 2].map(ServerId), []).unwrap();
    let config = Config::member(ServerId(2), ensemble, crate::timer::Timing::default());
    let recovered = Recovered {
        epochs: Epochs {
            accepted: Epoch(0),
            current: Epoch(0),
            member: true,
            doubted: None,
        },
        ..Recovered::default()
    };
    let mut replica = Replica::new(config, recovered);
    let (link, follower) = (LinkId(1), ServerId(1));
    run(&mut replica, Input::Tick, link);
    let vote = Vote {
        peer_epoch: Epoch(0),
        zxid: Zxid::ZERO,
        leader: ServerId(2),
    };
    let notification = Notification {
        state: PeerState::Looking,
        ballot: Ballot::For(vote),
        round: 1,
    };
    let from = follower;
    run(&mut replica, Input::Notified { from, notification }, link);
    (0..30).for_each(|_| drop(run(&mut replica, Input::Tick, link)));
    let mut hear = |message| run(&mut replica, Input::Received { link, message }, link);
    hear(Message::LearnerInfo {
        id: follower,
        observer: false,
        accepted_epoch: Epoch(0),
        config_version: 0,
        capabilities: Capabilities::NONE,
    });
    hear(Message::AckEpoch {
        current_epoch: Some(Epoch(0)),
        last_logged: Some(Zxid::ZERO),
        snapshot: false,
        doubted: None,
    });
    hear(Message::Ack { zxid: zxid(1, 0) });
    let propose = |replica: &mut Replica<&'static str>, counter| {
        let zxid = zxid(1, counter);
        assert_eq!(replica.next_zxid(), Some(zxid));
        // Its own flush comes later, so that one acknowledgement commits both.
        step(
            replica,
            Input::Proposed {
                zxid,
                payload: "set",
            },
        );
    };
    propose(&mut replica, 1);
    let origin = SyncOrigin::Learner(link);
    let ping = Message::Ping { round: 1 };
    let message = ping.clone();
    assert_eq!(
        step(&mut replica, Input::Sync { origin }),
        [Output::Send { link, message }],
        "a quorum is asked whether it still follows"
    );
    propose(&mut replica, 2);
    for counter in 1..=2 {
        let message = Message::Ack {
            zxid: zxid(1, counter),
        };
        run(&mut replica, Input::Received { link, message }, link);
    }
    let flushed = Input::Flushed {
        through: zxid(1, 2),
        generation: GENERATION,
    };
    let commit = |counter| Message::Commit {
        zxid: zxid(1, counter),
    };
    // What is behind the sync waits for it, and it for the answer.
    assert_eq!(run(&mut replica, flushed, link), [commit(1)]);
    let message = ping;
    assert_eq!(
        run(&mut replica, Input::Received { link, message }, link),
        [Message::Sync, commit(2)]
    );
}
