//! Golden scenarios: each file of `testdata` is a script above `----` and the cluster's outputs below,
//! once or several times. `UPDATE=1` rewrites the outputs; the difference is the review.
//!
//! ```text
//! ensemble 2 oracle=1       two voters, one of which an oracle may let decide alone
//! oracle 1 [grants=1]       the oracle tells server 1 to go on alone, or not to
//! ensemble 3 [observers=1]  three voters, and observers after them; all are down
//!   [counters=2]            an epoch has so many counters
//!   [masters=1]             followers serve observers, which go to the first of them
//! start 1 2 3               start servers
//! settle [hold=2]           everything happens but time; the disks of the held do nothing
//! tick 10                   ten ticks, settling after each
//! propose 1 [3]             server 1 proposes, once or three times
//! flush 2, save 2           the disk of a held server completes a flush, or one save of epochs
//! complete 2                its completions so far reach the server
//! deliver 1 2               what server 1 sent to server 2 arrives, nothing else happens
//! crash 2 [keep=1]          server 2 ends; the first unflushed write survives
//! crash 2 torn=1            it ends in a torn write, with which the last durable record goes
//! wipe 2                    the disk of a server that is down is replaced by a blank one
//! part 1 2, heal 1 2        two servers lose each other, or find each other again
//! purge 1                   server 1 takes a snapshot and drops its log
//! handover 1 [2]            server 1 is asked to hand over, to server 2 or whom it likes
//! status                    roles, logs and what is shown
//! ```

mod cluster;

use std::fmt::Write as _;
use std::path::Path;

use ringkeeper_proto::ServerId;
use ringkeeper_zab::{Ensemble, Input, Role, Timing};

use cluster::Cluster;

const RULE: &str = "----\n";

#[test]
fn scenarios_come_out_as_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let files = std::fs::read_dir(folder).expect("testdata");
    let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "the scenarios are gone");
    let mut wrong = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a scenario");
        let now = play(&text);
        if update {
            std::fs::write(&path, &now).expect("write the scenario");
        } else if now != text {
            wrong.push(format!("{}:\n{}", path.display(), difference(&text, &now)));
        }
    }
    assert!(
        wrong.is_empty(),
        "scenarios differ (UPDATE=1 accepts):\n{}",
        wrong.join("\n")
    );
}

fn difference(old: &str, new: &str) -> String {
    let at = old
        .lines()
        .zip(new.lines())
        .take_while(|(a, b)| a == b)
        .count();
    let show = |text: &str| {
        text.lines()
            .skip(at)
            .take(6)
            .collect::<Vec<_>>()
            .join("\n  ")
    };
    format!(
        "line {}, expected\n  {}\nbut got\n  {}",
        at + 1,
        show(old),
        show(new)
    )
}

/// Runs a file's scripts, and gives the file with the outputs of now.
fn play(text: &str) -> String {
    let mut scenario = Scenario {
        cluster: None,
        held: Vec::new(),
    };
    let mut result = String::new();
    // Scripts and outputs take turns.
    for (at, block) in text.split(RULE).enumerate() {
        if at % 2 == 1 {
            continue;
        }
        result.push_str(block);
        let mut said = String::new();
        for line in block
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            scenario.command(line, &mut said);
        }
        if !block.is_empty() {
            result.push_str(RULE);
            result.push_str(if said.is_empty() {
                "(nothing)\n"
            } else {
                &said
            });
            result.push_str(RULE);
        }
    }
    result
}

struct Scenario {
    cluster: Option<Cluster>,
    held: Vec<ServerId>,
}

impl Scenario {
    fn command(&mut self, line: &str, said: &mut String) {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a command");
        let (options, plain): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
        let numbers: Vec<u64> = plain
            .iter()
            .map(|word| word.parse().expect("a number"))
            .collect();
        let option = |name: &str| {
            let found = options
                .iter()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.map(|value| value.parse::<u64>().expect("a number"))
        };
        if name == "ensemble" {
            let (voters, observers) = (numbers[0], option("observers").unwrap_or(0));
            let mut cluster = new_cluster(voters, observers);
            if option("oracle").is_some() {
                cluster.config = cluster.config.with_oracle();
                cluster.has_oracle = true;
            }
            if option("masters").is_some() {
                cluster.masters = Some(0);
            }
            if let Some(counters) = option("counters") {
                cluster.counter_max = u32::try_from(counters).expect("a counter");
            }
            self.cluster = Some(cluster);
            return;
        }
        if name == "settle" {
            self.held = option("hold").map(ServerId).into_iter().collect();
        }
        let held = self.held.clone();
        let cluster = self.cluster.as_mut().expect("`ensemble` comes first");
        let ids: Vec<ServerId> = numbers.iter().copied().map(ServerId).collect();
        match name {
            "start" => ids.iter().for_each(|id| cluster.start(*id)),
            "settle" => cluster.settle(&held),
            "tick" => {
                for _ in 0..numbers[0] {
                    for id in cluster.nodes.keys().copied().collect::<Vec<_>>() {
                        cluster.tick(id);
                    }
                    cluster.settle(&held);
                }
            }
            "propose" => {
                for _ in 0..numbers.get(1).copied().unwrap_or(1) {
                    cluster.propose(ids[0]).expect("a leader that may propose");
                }
            }
            "flush" if !cluster.flush(ids[0], usize::MAX) => said.push_str("(nothing to flush)\n"),
            "save" if !cluster.save(ids[0]) => said.push_str("(nothing to save)\n"),
            "flush" | "save" => {}
            "complete" => while cluster.complete(ids[0]) {},
            "deliver" => deliver(cluster, ids[0], ids[1]),
            "crash" if option("torn").is_some() => {
                let lost = usize::try_from(option("torn").unwrap_or(0)).expect("small");
                cluster.crash_torn(ids[0], lost, true);
            }
            "crash" => {
                let keep = usize::try_from(option("keep").unwrap_or(0)).expect("small");
                cluster.crash(ids[0], keep, 0);
            }
            "oracle" => {
                let grants = option("grants") == Some(1);
                cluster.step(ids[0], Input::Oracle { grants });
            }
            "wipe" => cluster.node(ids[0]).disk.wipe(),
            "part" => cluster.part(ids[0], ids[1]),
            "heal" => cluster.heal(ids[0], ids[1]),
            "purge" => cluster.purge(ids[0]),
            "handover" => {
                let patient = option("patient") == Some(1);
                cluster.hand_over(ids[0], ids.get(1).copied(), patient);
            }
            "status" => status(cluster, said),
            other => panic!("no command {other}"),
        }
        let trace = cluster.trace.replace(Vec::new()).unwrap_or_default();
        for line in trace.into_iter().filter(|line| !line.contains("PING")) {
            said.push_str(&line);
            said.push('\n');
        }
    }
}

fn new_cluster(voters: u64, observers: u64) -> Cluster {
    let config = Ensemble::majority(
        (1..=voters).map(ServerId),
        (voters + 1..=voters + observers).map(ServerId),
    )
    .expect("voters");
    let timing = Timing {
        tick_time: 10,
        init_limit: 100,
        sync_limit: 50,
        election_wait: 4,
        notification_min: 4,
        notification_max: 16,
    };
    let mut cluster = Cluster::new(config, timing);
    cluster.trace = Some(Vec::new());
    cluster
}

fn deliver(cluster: &mut Cluster, from: ServerId, to: ServerId) {
    let links: Vec<_> = cluster
        .links
        .iter()
        .filter_map(|(link, found)| match (found.learner, found.leader) {
            (learner, leader) if (learner, leader) == (from, to) => Some((*link, true)),
            (learner, leader) if (leader, learner) == (from, to) => Some((*link, false)),
            _ => None,
        })
        .collect();
    for (link, to_leader) in links {
        while cluster.deliver(link, to_leader) {}
    }
}

fn status(cluster: &Cluster, said: &mut String) {
    for node in cluster.nodes.values() {
        let role = match node.role {
            _ if node.replica.is_none() => "down".to_owned(),
            Role::Looking => "looking".to_owned(),
            Role::Moving => "moving".to_owned(),
            Role::Leading { epoch } => format!("leads epoch {epoch}"),
            Role::Following { leader, epoch } => format!("follows {leader} in epoch {epoch}"),
            Role::Observing { leader, epoch } => format!("observes {leader} in epoch {epoch}"),
        };
        let durable = node.disk.durable.last();
        let logged = node.disk.view.last();
        let shown = node
            .applied
            .last()
            .map_or_else(|| "nothing".to_owned(), |(zxid, _)| format!("{zxid:?}"));
        let id = node.id;
        writeln!(
            said,
            "{id}: {role}, durable {durable:?}, logged {logged:?}, shows {shown}"
        )
        .expect("a string");
    }
}
