//! The choice between DIFF, TRUNC and SNAP against an oracle that knows every record: whatever histories
//! elections, crashes and unequal replication leave behind, what the plan keeps of a learner's log is a
//! prefix of the leader's history, the longest there is, and nothing committed is cut.

use std::collections::BTreeSet;

use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_zab::History;
use ringkeeper_zab::synchronization::{SyncPlan, plan};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % bound.max(1) as u64).expect("below a usize")
    }
}

#[derive(Clone, Default)]
struct Server {
    current: u32,
    log: Vec<Zxid>,
}

/// Epochs of five servers. In each, a quorum elects its newest member, takes over its history, and
/// then logs unequal parts of what it proposes.
fn histories(random: &mut Random) -> (Vec<Server>, Vec<Zxid>) {
    let mut servers = vec![Server::default(); 5];
    let mut committed = Vec::new();
    for epoch in 1..=6 {
        let quorum = quorum(random);
        let leader = newest(&servers, &quorum);
        let begin = servers[leader].log.clone();
        // An epoch may be over before it is established: then it makes no proposals.
        let established = random.below(4) > 0;
        let took_over: Vec<usize> = match established {
            true => quorum.iter().copied().collect(),
            false => vec![leader],
        };
        for id in &took_over {
            servers[*id] = Server {
                current: epoch,
                log: begin.clone(),
            };
        }
        if !established {
            continue;
        }
        committed.clone_from(&begin);
        let mut reached = Vec::new();
        for id in took_over {
            let count = u32::try_from(random.below(5)).expect("small");
            servers[id]
                .log
                .extend((1..=count).map(|at| Zxid::new(Epoch(epoch), at)));
            reached.push(count);
        }
        // What the slowest of the quorum has is committed.
        let least = reached.into_iter().min().unwrap_or(0);
        committed.extend((1..=least).map(|at| Zxid::new(Epoch(epoch), at)));
    }
    (servers, committed)
}

fn quorum(random: &mut Random) -> BTreeSet<usize> {
    let mut quorum = BTreeSet::new();
    while quorum.len() < 3 {
        quorum.insert(random.below(5));
    }
    quorum
}

fn newest(servers: &[Server], quorum: &BTreeSet<usize>) -> usize {
    let key = |id: &usize| (servers[*id].current, servers[*id].log.last().copied());
    quorum.iter().copied().max_by_key(key).expect("not empty")
}

fn shape(log: &[Zxid], base: usize) -> History {
    let at = base.checked_sub(1).map_or(Zxid::ZERO, |at| log[at]);
    let mut history = History::starting_at(at);
    for zxid in &log[base..] {
        history.recover(*zxid);
    }
    history
}

#[test]
fn the_plan_keeps_the_common_prefix_and_no_more() {
    let mut plans = [0_u32; 3];
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let (servers, committed) = histories(&mut random);
        let leader = newest(&servers, &quorum(&mut random));
        let ours = &servers[leader].log;
        assert!(
            ours.starts_with(&committed),
            "seed {seed}: the generator elects properly"
        );
        let history = shape(ours, random.below(ours.len() + 1));
        for (id, learner) in servers.iter().enumerate() {
            let theirs = &learner.log;
            let last = theirs.last().copied().unwrap_or(Zxid::ZERO);
            let kept = match plan(&history, history.last(), Some(last)) {
                SyncPlan::Diff => {
                    plans[0] += 1;
                    theirs.len()
                }
                SyncPlan::Truncate { to } => {
                    plans[1] += 1;
                    assert!(to >= history.base(), "seed {seed}");
                    theirs.iter().filter(|zxid| **zxid <= to).count()
                }
                SyncPlan::Snapshot => {
                    plans[2] += 1;
                    continue;
                }
            };
            let kept = &theirs[..kept];
            let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            assert_eq!(
                kept,
                &ours[..common],
                "seed {seed}: leader {leader} has {ours:?}, {id} has {theirs:?}"
            );
            let end = kept.last().copied().unwrap_or(Zxid::ZERO);
            assert!(
                end >= history.base() || end == Zxid::ZERO,
                "seed {seed}: the log reaches back"
            );
        }
    }
    assert!(
        plans.iter().all(|count| *count > 500),
        "each plan was made: {plans:?}"
    );
}
