//! A follower that serves observers: what it sends to one, whatever that one has.

use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::{Config, Epochs, Output, Recovered};
use crate::core_state::CoreState;
use crate::history::History;
use crate::message::{LinkId, Message, Proposal};
use crate::observer_master::{Following, ObserverMaster};
use crate::progress::Introduction;
use crate::quorum::Ensemble;
use crate::timer::Timing;
use crate::violation::Violation;

const LINK: LinkId = LinkId(7);

const OBSERVER: ServerId = ServerId(9);

fn zxid(epoch: u32, counter: u32) -> Zxid {
    Zxid::new(Epoch(epoch), counter)
}

/// A follower of the leader of `epoch`, with this log, of which it has delivered a part.
struct Follower {
    core: CoreState,
    master: ObserverMaster<u32>,
    epoch: Epoch,
}

impl Follower {
    fn new(epoch: u32, base: Zxid, log: &[Zxid], delivered: Zxid) -> Self {
        let mut history = History::starting_at(base);
        log.iter().for_each(|zxid| history.recover(*zxid));
        let epoch = Epoch(epoch);
        let epochs = Epochs {
            accepted: epoch,
            current: epoch,
            member: true,
            doubted: None,
        };
        let recovered = Recovered {
            epochs,
            history,
            committed: delivered,
            ..Recovered::default()
        };
        let ensemble = Ensemble::majority([1, 2, 3].map(ServerId), [OBSERVER]).unwrap();
        let mut core = CoreState::new(
            Config::member(ServerId(1), ensemble, Timing::default()),
            recovered,
        );
        core.log.begin_epoch(epoch);
        let mut follower = Self {
            core,
            master: ObserverMaster::new(),
            epoch,
        };
        assert_eq!(follower.attend(Vec::new()), []);
        follower
    }

    /// The learner's outputs of a step, and what the observers are told with them.
    fn attend(&mut self, mut outputs: Vec<Output<u32>>) -> Vec<Output<u32>> {
        let following = Following::In(self.epoch);
        self.master.attend(&self.core, following, 0, &mut outputs);
        outputs
    }

    fn hear(&mut self, message: Message<u32>) -> (Vec<Output<u32>>, Result<(), Violation>) {
        let mut outputs = Vec::new();
        let result = self
            .master
            .received(&self.core, LINK, message, &mut outputs);
        (self.attend(outputs), result)
    }

    /// An observer comes whose log ends there.
    fn come(&mut self, last_logged: Option<Zxid>) -> (Vec<Output<u32>>, Result<(), Violation>) {
        let who = Introduction {
            id: OBSERVER,
            observer: true,
            accepted_epoch: Epoch(0),
            config_version: 0,
            capabilities: Capabilities::NONE,
        };
        let mut outputs = Vec::new();
        let introduced = self.master.introduced(&self.core, LINK, who, &mut outputs);
        introduced.unwrap();
        let (link, epoch, extended) = (LINK, self.epoch, true);
        let message = Message::LeaderInfo { epoch, extended };
        assert_eq!(outputs, [Output::Send { link, message }]);
        self.hear(Message::AckEpoch {
            current_epoch: Some(Epoch(1)),
            last_logged,
            snapshot: false,
            doubted: None,
        })
    }

    fn appended(&mut self, counter: u32) -> Output<u32> {
        let zxid = Zxid::new(self.epoch, counter);
        self.core.log.append(zxid);
        let payload = counter;
        Output::Append {
            proposal: Proposal { zxid, payload },
        }
    }

    fn delivered(&mut self, counter: u32) -> Output<u32> {
        let through = Zxid::new(self.epoch, counter);
        self.core.delivered = through;
        Output::Commit { through }
    }
}

fn send(message: Message<u32>) -> Output<u32> {
    let link = LINK;
    Output::Send { link, message }
}

fn proposal(zxid: Zxid) -> Proposal<u32> {
    let payload = zxid.counter();
    Proposal { zxid, payload }
}

fn new_leader(epoch: u32) -> Output<u32> {
    let (epoch, config) = (Epoch(epoch), "".into());
    send(Message::NewLeader { epoch, config })
}

#[test]
fn each_observer_is_brought_to_what_is_delivered_and_no_further() {
    // 1:1..=1:3 and 3:1..=3:4 after a snapshot at 1:1; epoch 3 is that of the leader.
    let log = [(1, 2), (1, 3), (3, 1), (3, 2), (3, 3), (3, 4)].map(|(e, c)| zxid(e, c));
    let through = zxid(3, 2);
    let diff = || send(Message::Diff { zxid: through });
    let trunc = |to| send(Message::Trunc { zxid: to });
    let read = |after| Output::ReadHistory {
        link: LINK,
        after,
        through,
    };
    let snap = || Output::SendSnapshot {
        link: LINK,
        through,
    };
    let cases = [
        (Some(through), vec![diff(), new_leader(3)]),
        (Some(zxid(3, 1)), vec![diff(), read(zxid(3, 1))]),
        (Some(zxid(1, 2)), vec![diff(), read(zxid(1, 2))]),
        (Some(zxid(1, 1)), vec![diff(), read(zxid(1, 1))]),
        // Below what the log reaches back to, not to be told, and of a leader that is not known here.
        (Some(Zxid::ZERO), vec![snap()]),
        (None, vec![snap()]),
        (Some(zxid(2, 1)), vec![snap()]),
        // The tail of a leader that was never established.
        (Some(zxid(1, 9)), vec![trunc(zxid(1, 3)), read(zxid(1, 3))]),
        // It is ahead, and waits: of this epoch observers have only what is committed.
        (Some(zxid(3, 3)), vec![]),
        (Some(zxid(3, 9)), vec![]),
    ];
    for (last, expect) in cases {
        let mut follower = Follower::new(3, zxid(1, 1), &log, through);
        assert_eq!(follower.come(last), (expect, Ok(())), "{last:?}");
    }
    // It has seen the epoch begin, and nothing is delivered in it.
    let through = zxid(1, 3);
    let mut follower = Follower::new(3, zxid(1, 1), &log[..3], through);
    let expect = vec![send(Message::Diff { zxid: through }), new_leader(3)];
    assert_eq!(follower.come(Some(zxid(3, 0))), (expect, Ok(())));
    // It has a later leader's.
    let mut follower = Follower::new(3, zxid(1, 1), &log, zxid(3, 2));
    let (outputs, result) = follower.come(Some(zxid(4, 1)));
    assert_eq!(outputs, [Output::Close { link: LINK }]);
    assert!(matches!(result, Err(Violation::LearnerAhead { .. })));
}

#[test]
fn an_observer_that_is_ahead_is_served_when_the_follower_is_as_far() {
    let log = [zxid(3, 1), zxid(3, 2), zxid(3, 3)];
    let mut follower = Follower::new(3, Zxid::ZERO, &log, zxid(3, 1));
    assert_eq!(follower.come(Some(zxid(3, 3))).0, []);
    let commit = follower.delivered(2);
    assert_eq!(follower.attend(vec![commit.clone()]), [commit]);
    let commit = follower.delivered(3);
    let expect = [
        commit.clone(),
        send(Message::Diff { zxid: zxid(3, 3) }),
        new_leader(3),
    ];
    assert_eq!(follower.attend(vec![commit]), expect);
}

#[test]
fn what_is_delivered_is_told_in_its_place() {
    let mut follower = Follower::new(3, Zxid::ZERO, &[zxid(3, 1)], zxid(3, 1));
    follower.come(Some(zxid(3, 1))).1.unwrap();
    let ack = Message::Ack { zxid: zxid(3, 0) };
    let up_to_date = send(Message::UpToDate);
    assert_eq!(follower.hear(ack.clone()), (vec![up_to_date], Ok(())));
    assert_eq!(follower.hear(ack), (vec![], Ok(())));

    let logged = [2, 3, 4].map(|counter| follower.appended(counter));
    assert_eq!(follower.attend(logged.to_vec()), logged, "not committed");
    follower.master.note_activation(zxid(3, 3), ServerId(2));
    let (two, four) = (follower.delivered(2), follower.delivered(4));
    let expect = [
        two.clone(),
        send(Message::Inform(proposal(zxid(3, 2)))),
        Output::SyncDone,
        four.clone(),
        send(Message::InformAndActivate {
            proposal: proposal(zxid(3, 3)),
            leader: ServerId(2),
        }),
        send(Message::Inform(proposal(zxid(3, 4)))),
    ];
    assert_eq!(follower.attend(vec![two, Output::SyncDone, four]), expect);
}

#[test]
fn an_observer_is_left_rather_than_told_with_a_hole() {
    let mut follower = Follower::new(3, Zxid::ZERO, &[zxid(3, 1)], zxid(3, 1));
    follower.come(Some(zxid(3, 1))).1.unwrap();
    // The bytes of 3:2 are not known here.
    drop(follower.appended(2));
    let three = follower.appended(3);
    follower.attend(vec![three]);
    let commit = follower.delivered(3);
    let expect = [commit.clone(), Output::Close { link: LINK }];
    assert_eq!(follower.attend(vec![commit]), expect);
}

#[test]
fn no_link_outlives_the_epoch_or_the_leader() {
    let serve = || {
        let mut follower = Follower::new(3, Zxid::ZERO, &[zxid(3, 1)], zxid(3, 1));
        follower.come(Some(zxid(3, 1))).1.unwrap();
        follower
    };
    let close = Output::Close { link: LINK };
    let mut follower = serve();
    follower.epoch = Epoch(4);
    assert_eq!(follower.attend(vec![]), std::slice::from_ref(&close));

    // The leader's next epoch has begun, and this server has not said yet that it serves in it.
    let mut follower = serve();
    let through = zxid(4, 1);
    follower.core.log.append(through);
    follower.core.delivered = through;
    let commit = Output::Commit { through };
    assert_eq!(
        follower.attend(vec![commit.clone()]),
        [commit, close.clone()]
    );

    // Whoever comes meanwhile waits until it has, and comes again.
    assert_eq!(follower.come(Some(zxid(3, 1))).0, []);
    follower.epoch = Epoch(4);
    assert_eq!(follower.attend(vec![]), std::slice::from_ref(&close));

    for following in [Following::No, Following::NotYet] {
        let mut follower = serve();
        let mut outputs = Vec::new();
        let core = &follower.core;
        follower.master.attend(core, following, 0, &mut outputs);
        assert_eq!(outputs, std::slice::from_ref(&close), "{following:?}");
        assert_eq!(follower.master.observers().count(), 0);
    }
}

#[test]
fn who_votes_is_not_served_and_who_comes_early_waits() {
    let mut follower = Follower::new(3, Zxid::ZERO, &[zxid(3, 1)], zxid(3, 1));
    let introduce = |follower: &mut Follower, observer| {
        let who = Introduction {
            id: OBSERVER,
            observer,
            accepted_epoch: Epoch(0),
            config_version: 0,
            capabilities: Capabilities::NONE,
        };
        let mut outputs = Vec::new();
        let core = &follower.core;
        let introduced = follower.master.introduced(core, LINK, who, &mut outputs);
        introduced.unwrap();
        outputs
    };
    let close = Output::Close { link: LINK };
    assert_eq!(introduce(&mut follower, false), [close]);

    let mut outputs = Vec::new();
    let (core, following) = (&follower.core, Following::NotYet);
    follower.master.attend(core, following, 0, &mut outputs);
    assert_eq!(introduce(&mut follower, true), []);
    let (epoch, extended) = (follower.epoch, true);
    let told = send(Message::LeaderInfo { epoch, extended });
    assert_eq!(follower.attend(vec![]), [told]);
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// A follower's history, what of it is delivered, and an observer's log, as elections leave them behind.
struct Case {
    log: Vec<Zxid>,
    base: usize,
    delivered: usize,
    theirs: Vec<Zxid>,
    /// How much of it is the follower's history too.
    common: usize,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let mut log = Vec::new();
        let mut begin = 0;
        for epoch in [2, 3, 5, 6] {
            begin = log.len();
            let count = u32::try_from(random.below(5)).unwrap();
            log.extend((1..=count).map(|counter| zxid(epoch, counter)));
        }
        let len = log.len() as u64;
        let at = |value| usize::try_from(value).unwrap();
        let delivered = begin + at(random.below(len - begin as u64 + 1));
        let mut common = at(random.below(len + 1));
        let mut theirs = log[..common].to_vec();
        let lost = match random.below(4) {
            // The end of an epoch, which a leader had that was never established.
            0 if common <= begin => theirs.last().and_then(|last| last.next()),
            // All of an epoch; its leader had all that comes before it.
            1 => {
                common = log.iter().filter(|it| it.epoch() < Epoch(4)).count();
                theirs = log[..common].to_vec();
                Some(zxid(4, 1))
            }
            _ => None,
        };
        theirs.extend(lost.filter(|lost| log.get(common) != Some(lost)));
        Self {
            base: at(random.below(delivered as u64 + 1)),
            log,
            delivered,
            theirs,
            common,
        }
    }
}

/// An observer carries out what it is sent, and in the end has what is delivered, whatever it had. What is common is
/// kept, unless the follower's log does not reach back to it.
#[test]
fn every_observer_ends_with_what_is_delivered() {
    let mut seen = [0_u32; 4];
    for seed in 0..20_000 {
        let Case {
            log,
            base,
            delivered,
            mut theirs,
            common,
        } = Case::random(&mut Random(seed));
        let at = |count: usize| count.checked_sub(1).map_or(Zxid::ZERO, |at| log[at]);
        let mut follower = Follower::new(6, at(base), &log[base..], at(delivered));
        let last = theirs.last().copied().unwrap_or(Zxid::ZERO);
        let (mut outputs, result) = follower.come(Some(last));
        result.unwrap();
        if outputs.is_empty() {
            assert!(
                common > delivered && theirs == log[..common],
                "seed {seed}: waits"
            );
            follower.core.delivered = last;
            outputs = follower.attend(vec![Output::Commit { through: last }]);
            outputs.remove(0);
            seen[3] += 1;
        }
        let through = follower.core.delivered;
        let expect: Vec<_> = log.iter().copied().filter(|it| *it <= through).collect();
        let mut is_live = false;
        while !outputs.is_empty() {
            let mut next = Vec::new();
            for output in outputs {
                match output {
                    Output::Send { message, .. } => match message {
                        Message::Diff { .. } => {
                            seen[0] += 1;
                            assert!(expect.starts_with(&theirs), "seed {seed}: DIFF");
                        }
                        Message::Trunc { zxid } => {
                            seen[1] += 1;
                            theirs.retain(|it| *it <= zxid);
                            assert_eq!(
                                theirs,
                                log[..common.min(expect.len())],
                                "seed {seed}: TRUNC"
                            );
                        }
                        Message::Proposal(proposal) => theirs.push(proposal.zxid),
                        Message::Commit { zxid } => assert_eq!(theirs.last(), Some(&zxid)),
                        Message::NewLeader { .. } => is_live = true,
                        other => panic!("seed {seed}: {other:?}"),
                    },
                    Output::SendSnapshot { through, .. } => {
                        seen[2] += 1;
                        theirs.clone_from(&expect);
                        let core = &follower.core;
                        follower
                            .master
                            .snapshot_sent(core, LINK, through, &mut next);
                    }
                    Output::ReadHistory { after, through, .. } => {
                        assert!(
                            after >= at(base),
                            "seed {seed}: the log does not reach back"
                        );
                        let missing = log.iter().filter(|it| **it > after && **it <= through);
                        let some = missing.take(2).map(|it| proposal(*it)).collect();
                        let core = &follower.core;
                        follower.master.history_read(core, LINK, some, &mut next);
                    }
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
            outputs = next;
        }
        assert!(is_live, "seed {seed}");
        assert_eq!(theirs, expect, "seed {seed}");
    }
    assert!(
        seen.iter().all(|count| *count > 300),
        "DIFF, TRUNC, SNAP, waits: {seen:?}"
    );
}
