//! `ringkeeper-ensemble`: starts an ensemble on loopback, writes, and makes trouble: faults of one member at
//! a time, of the network between them or of all; replacement of every member by another kind of server;
//! every kind of synchronization; kills of the leader with a clock running. Afterwards it checks that
//! nothing acknowledged is lost, that each session's writes have their order, that no session expired, that
//! ephemeral znodes lived as long as their sessions, and that no epoch had two leaders.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a tool's report")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use ringkeeper_ensemble::check::{check, check_epochs};
use ringkeeper_ensemble::faults::{Fault, inflict};
use ringkeeper_ensemble::load::{Load, LoadPlan};
use ringkeeper_ensemble::replace::replace_all;
use ringkeeper_ensemble::{
    Ensemble, Plan, apache, crowd, debian, doubt, failover, hand_over, limping, namespaces,
    networks, oracle, rolling, rollover, synchronize,
};
use ringkeeper_harness::Launch;

const PATIENCE: Duration = Duration::from_secs(60);

/// Length of a step's data where synchronizations are provoked: few steps fill a log.
const STEP_BYTES: usize = 4096;

const FAULTS: u32 = 6;

/// Exit status when the machine lacks what was asked for, as other test tools have it.
const LEFT_OUT: u8 = 77;

/// Runs an ensemble under load and faults, and checks that nothing acknowledged is lost
#[derive(Debug, Parser)]
#[command(name = "ringkeeper-ensemble", version)]
struct Options {
    #[command(subcommand)]
    trouble: Option<Trouble>,
    /// A voter: `apache`, `debian`, or a command line ({config} in it stands for the zoo.cfg); repeated
    #[arg(long = "voter", global = true)]
    voters: Vec<String>,
    /// An observer, in the same way
    #[arg(long = "observer", global = true)]
    observers: Vec<String>,
    /// Faults, one after the other; two of each --fault, or 6, when not given
    #[arg(long)]
    faults: Option<u32>,
    /// Only these faults, in this order, again and again, of the leader and of another member in turn
    #[arg(long = "fault")]
    kinds: Vec<Fault>,
    /// Put proxies between the members: faults of the network too, slow disks, and kills of all at once
    #[arg(long, conflicts_with = "hosts")]
    network: bool,
    /// Give each member a host of its own (a network namespace), with so many networks among them: faults of the
    /// network as with --network, and hosts that fall silent. Ends with status 77 where no namespaces can be made
    #[arg(long, global = true, value_name = "NETWORKS", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    hosts: Option<u8>,
    /// Seed of what is random; printed, and different each time when not given
    #[arg(long)]
    seed: Option<u64>,
    /// Sessions that write
    #[arg(long, default_value_t = 4, global = true)]
    writers: u32,
    /// Steps that each keeps in flight
    #[arg(long, default_value_t = 8, global = true)]
    depth: usize,
    /// A line for every zoo.cfg (key=value); may be repeated
    #[arg(long = "set", global = true)]
    settings: Vec<String>,
    /// Each member at an address of its own, 127.0.0.N, as `observerMasterPort` needs it; not with --network
    #[arg(long, global = true)]
    own_addresses: bool,
    /// Where data lies; kept. Default: a temporary directory, kept only when something is wrong
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

/// Instead of faults
#[derive(Clone, Debug, Subcommand)]
enum Trouble {
    /// Replace every member by a server of another kind, under load, and then back
    Replace {
        /// The other kind, as for --voter
        #[arg(long)]
        by: String,
        /// Leave the others in place
        #[arg(long)]
        one_way: bool,
    },
    /// See DIFF, TRUNC and SNAP between all kinds of members that there are
    Synchronize {
        /// Attempts for each
        #[arg(long, default_value_t = 3)]
        attempts: u32,
    },
    /// Kill the leader again and again, and measure how long a client of another member cannot write
    Failover {
        /// How often
        #[arg(long, default_value_t = 20)]
        kills: u32,
        /// Znodes of 100 bytes that are there
        #[arg(long, default_value_t = 100)]
        znodes: u64,
    },
    /// Damage the logs of Ringkeeper's members while one of Apache's leads
    Doubt,
    /// Use up the counters of epochs, which begin with the last zxid that there is
    Rollover {
        /// How many epochs, without Apache's members where that is possible, and with them
        #[arg(long, default_value_t = 4)]
        times: u32,
    },
    /// Have the leader hand over by command, again and again, and measure how long clients of all members wait
    HandOver {
        /// How often
        #[arg(long, default_value_t = 20)]
        times: u32,
        /// Meanwhile others write too, and everything is checked afterwards
        #[arg(long)]
        under_load: bool,
    },
    /// Open thousands of sessions, kill the leader and a follower in turn, and measure how long it takes until all
    /// have their session again; fails when one has expired
    Crowd {
        /// How many
        #[arg(long, default_value_t = 10_000)]
        sessions: usize,
        /// How often
        #[arg(long, default_value_t = 4)]
        kills: u32,
    },
    /// Restart the members one by one, the leader last: it has to hand over when it is stopped, so that nobody looks for
    /// a leader
    Rolling {
        /// How often
        #[arg(long, default_value_t = 2)]
        times: u32,
    },
    /// Cut one of several networks among the members, again and again, and measure how long writers wait (--hosts=2)
    Networks {
        /// How often
        #[arg(long, default_value_t = 4)]
        times: u32,
    },
    /// Two members, each with an oracle: one is killed, and the other goes on when its oracle says so, not before
    Oracle {
        /// How often
        #[arg(long, default_value_t = 4)]
        times: u32,
    },
    /// Slow down what the leader sends until it gives up leadership by itself, again and again (--hosts)
    Limping {
        /// How often
        #[arg(long, default_value_t = 3)]
        times: u32,
        /// What its link carries, in kilobits a second
        #[arg(long, default_value_t = 1000)]
        kilobits: u32,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.hosts.is_some()
        && let Err(unavailable) = namespaces::enter()
    {
        eprintln!("left out: {unavailable}");
        return ExitCode::from(LEFT_OUT);
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let temporary = tempfile::Builder::new()
        .prefix("ringkeeper-ensemble-")
        .tempdir()?;
    let dir = options.dir.clone();
    let dir = dir.unwrap_or_else(|| temporary.path().to_owned());
    let mut settings = Vec::new();
    match options.trouble {
        Some(Trouble::Synchronize { .. }) => {
            settings.extend(synchronize::SETTINGS.map(str::to_owned));
        }
        Some(Trouble::Rollover { .. }) => settings.extend(rollover::SETTINGS.map(str::to_owned)),
        _ => {}
    }
    if matches!(options.trouble, Some(Trouble::Limping { .. })) {
        settings.extend(limping::SETTINGS.map(str::to_owned));
    }
    if let Some(Trouble::Crowd { sessions, .. }) = &options.trouble {
        settings.extend(crowd::SETTINGS.map(str::to_owned));
        crowd::allow(*sessions)?;
    }
    let chooses_leaders = matches!(
        options.trouble,
        Some(Trouble::Synchronize { .. } | Trouble::Doubt | Trouble::Rollover { .. })
    );
    settings.extend_from_slice(&options.settings);
    let plan = Plan {
        voters: launches(&options.voters)?,
        observers: launches(&options.observers)?,
        settings,
        absent: BTreeSet::new(),
        proxied: options.network || chooses_leaders,
        own_addresses: options.own_addresses,
        networks: options.hosts,
    };
    let mut ensemble = Ensemble::new(&plan, &dir)?;
    if matches!(options.trouble, Some(Trouble::Rollover { .. })) {
        rollover::seed(&ensemble)?;
    }
    println!("in {}", dir.display());
    if matches!(options.trouble, Some(Trouble::Oracle { .. })) {
        oracle::prepare(&mut ensemble)?;
    }
    let outcome = run_in(options, &mut ensemble);
    if outcome.is_err() && options.dir.is_none() {
        let kept = temporary.keep();
        return outcome
            .with_context(|| format!("FAILED, the directory is kept: {}", kept.display()));
    }
    outcome
}

fn run_in(options: &Options, ensemble: &mut Ensemble) -> Result<()> {
    let began = Instant::now();
    ensemble.start(PATIENCE)?;
    println!(
        "serving after {:.1?}, leader {:?}",
        began.elapsed(),
        ensemble.leader()
    );
    if let Some(Trouble::Crowd { sessions, kills }) = &options.trouble {
        return lose_server(ensemble, *sessions, *kills);
    }
    if let Some(Trouble::Failover { kills, znodes }) = &options.trouble {
        return fail_over(ensemble, *kills, *znodes);
    }
    if let Some(Trouble::HandOver {
        times,
        under_load: false,
    }) = &options.trouble
    {
        return hand_over(ensemble, None, *times);
    }
    let ids = ensemble.ids();
    let addresses = ids.iter().map(|id| ensemble.address(*id));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let is_synchronize = matches!(options.trouble, Some(Trouble::Synchronize { .. }));
    let is_large = is_synchronize || matches!(options.trouble, Some(Trouble::Limping { .. }));
    let plan = LoadPlan {
        writers: options.writers,
        depth: options.depth.max(1),
        bytes: if is_large { STEP_BYTES } else { 0 },
        // Their ends would be written in an epoch in which nothing must be.
        mayflies: !is_synchronize,
    };
    let load = Load::start(&addresses, plan)?;
    let made = make_trouble(options, ensemble, &load);
    if let Err(error) = &made {
        // With a member down the check may find nothing else to say.
        eprintln!("{error:#}");
    }
    let checked = stop_and_check(ensemble, load, &addresses);
    // What a writer saw says more than that it does not write any more.
    match (checked, made) {
        (Err(checked), Err(made)) => return Err(checked.context(format!("{made:#}; then"))),
        (checked, made) => checked.and(made)?,
    }
    println!("nothing lost, {:.1?}", began.elapsed());
    Ok(())
}

fn make_trouble(options: &Options, ensemble: &mut Ensemble, load: &Load) -> Result<()> {
    load.wait_for(100, PATIENCE)?;
    match &options.trouble {
        Some(Trouble::Replace { by, one_way }) => {
            let back = ensemble.member(1)?.launch().clone();
            replace_each(ensemble, load, &launch(by)?)?;
            if !one_way {
                replace_each(ensemble, load, &back)?;
            }
            Ok(())
        }
        Some(Trouble::Synchronize { attempts }) => {
            let say = |line: &str| println!("{line}");
            let seen = synchronize::provoke(ensemble, load, STEP_BYTES, *attempts, say)?;
            for (one, times) in seen {
                println!("{one}: {times}");
            }
            Ok(())
        }
        Some(Trouble::Doubt) => {
            let seen = doubt::provoke(ensemble, load, |line| println!("{line}"))?;
            println!("{seen} damaged members were synchronized by Apache's");
            Ok(())
        }
        Some(Trouble::Rollover { times }) => {
            let seen = rollover::provoke(ensemble, load, *times, |line| println!("{line}"))?;
            let rollover::Seen {
                in_place,
                elections,
            } = seen;
            println!("{in_place} epochs without an election, {elections} elections");
            Ok(())
        }
        Some(Trouble::HandOver { times, .. }) => hand_over(ensemble, Some(load), *times),
        Some(Trouble::Rolling { times }) => (0..*times).try_for_each(|_| {
            rolling::restart_each(ensemble, load, |it| {
                let successor = it
                    .successor
                    .map_or(String::new(), |id| format!(", {id} leads"));
                println!(
                    "member {} stopped{successor}: longest wait of a writer {:.1?}",
                    it.id, it.pause
                );
            })
        }),
        Some(Trouble::Networks { times }) => {
            networks::lose_each(ensemble, load, *times, |at, it| {
                println!(
                    "{at:3}. network {} lost: longest wait of a writer {:.1?}, leader {:?} then {:?}; back: {:.1?}",
                    it.network, it.pause, it.leaders[0], it.leaders[1], it.pause_back
                );
            })
        }
        Some(Trouble::Oracle { times }) => oracle::lose_each(ensemble, load, *times, |at, it| {
            println!(
                "{at:3}. member {} killed (led: {}): the other one waited, and went on {:.1?} after its oracle's word",
                it.killed, it.led, it.resumed
            );
        }),
        Some(Trouble::Limping { times, kilobits }) => limp(ensemble, load, *times, *kilobits),
        _ => inflict_all(options, ensemble, load),
    }
}

fn replace_each(ensemble: &mut Ensemble, load: &Load, by: &Launch) -> Result<()> {
    replace_all(ensemble, load, by, |id, took| {
        println!(
            "member {id} is {} after {took:.1?}, {} steps",
            by.name,
            load.acknowledged()
        );
    })
}

fn fail_over(ensemble: &mut Ensemble, kills: u32, znodes: u64) -> Result<()> {
    let began = Instant::now();
    failover::populate(ensemble, znodes)?;
    println!("{znodes} znodes made in {:.1?}", began.elapsed());
    let mut pauses = failover::measure(ensemble, kills)?;
    println!("each: {pauses:.1?}");
    pauses.sort_unstable();
    let at = |part: usize| pauses.get((pauses.len() - 1) * part / 100).copied();
    println!(
        "leader killed to next write at a surviving client, {} kills, {znodes} znodes: p50 {:.1?}, p90 {:.1?}, max {:.1?}",
        pauses.len(),
        at(50).unwrap_or_default(),
        at(90).unwrap_or_default(),
        at(100).unwrap_or_default()
    );
    Ok(())
}

fn lose_server(ensemble: &mut Ensemble, sessions: usize, kills: u32) -> Result<()> {
    let ids = ensemble.ids();
    let addresses = ids.iter().map(|id| ensemble.address(*id));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let mut crowd = crowd::Crowd::gather(&addresses, sessions)?;
    println!("{sessions} sessions opened in {:.1?}", began.elapsed());
    for at in 1..=kills {
        let leader = ensemble.leader().context("there is no leader")?;
        // The follower that has most of them.
        let followers = ids.iter().enumerate().filter(|(_, id)| **id != leader);
        let follower = followers.max_by_key(|(at, _)| crowd.count_at(*at));
        let (_, follower) = follower.context("nobody follows")?;
        let id = if at % 2 == 1 { leader } else { *follower };
        crowd.confirm()?;
        crowd.begin_loss();
        let killed = Instant::now();
        ensemble.kill(id)?;
        crowd.confirm()?;
        // A follower may not have noticed yet, and answer all the same.
        ensemble.wait_until_serving(PATIENCE)?;
        crowd.confirm()?;
        let it = crowd.settled(killed);
        let [half, most, all] = it.after;
        println!(
            "{at:3}. member {id} killed (leader {leader}): {} clients back, half after {half:.1?}, 99 of 100 after {most:.1?}, \
             all after {all:.1?}; {} attempts",
            it.lost, it.attempts
        );
        ensemble.spawn(id)?;
        ensemble.wait_until_serving(PATIENCE)?;
    }
    Ok(())
}

fn limp(ensemble: &mut Ensemble, load: &Load, times: u32, kilobits: u32) -> Result<()> {
    for at in 1..=times {
        let it = limping::once(ensemble, load, kilobits)?;
        println!(
            "{at:3}. member {} on {kilobits} kbit/s: {} leads after {:.1?}; longest wait of a writer {:.1?}",
            it.from, it.to, it.after, it.pause
        );
    }
    Ok(())
}

fn hand_over(ensemble: &Ensemble, load: Option<&Load>, times: u32) -> Result<()> {
    hand_over::prepare(ensemble)?;
    let (mut all, mut commands, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for at in 1..=times {
        let done = hand_over::once(ensemble, load)?;
        let [old, new, other] = done.pauses;
        println!(
            "{at:3}. {} to {}: longest wait {old:.1?} at the old leader, {new:.1?} at the new one, {other:.1?} elsewhere",
            done.from, done.to
        );
        all.push(done.longest());
        commands.push(done.command);
        if load.is_some() {
            println!(
                "     the load's writers: {:.1?}, and {:.1?} without a hand-over",
                done.load, done.load_before
            );
            loads.push(done.load);
        }
    }
    let line = |mut of: Vec<Duration>| {
        of.sort_unstable();
        let at = |part: usize| of.get((of.len() - 1) * part / 100).copied();
        let [p50, p90, max] = [50, 90, 100].map(|part| at(part).unwrap_or_default());
        format!("p50 {p50:.1?}, p90 {p90:.1?}, max {max:.1?}")
    };
    println!(
        "longest wait of a client for a write while leadership is handed over, {times} times, no connection lost: {}",
        line(all)
    );
    println!("the command: {}", line(commands));
    if load.is_some() {
        println!("the load's writers: {}", line(loads));
    }
    Ok(())
}

fn stop_and_check(ensemble: &Ensemble, load: Load, addresses: &[SocketAddr]) -> Result<()> {
    let (written, mayflies) = load.stop()?;
    let epochs = check_epochs(ensemble)?;
    let found = check(addresses, &written)?;
    let sum = |count: fn(&ringkeeper_ensemble::load::Written) -> u32| -> u32 {
        written.iter().map(count).sum()
    };
    let pause = written.iter().map(|it| it.pause_max).max();
    println!(
        "{} acknowledged steps there at each of {} members; {} reconnects, {} of them after a silence, longest pause {:.1?}; \
         {mayflies} mayflies; {epochs} epochs led by Ringkeeper",
        found.steps,
        found.members,
        sum(|it| it.reconnects),
        sum(|it| it.silences),
        pause.unwrap_or_default()
    );
    Ok(())
}

fn inflict_all(options: &Options, ensemble: &mut Ensemble, load: &Load) -> Result<()> {
    let seed = options.seed.unwrap_or_else(seed_of_now);
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let ids = ensemble.ids();
    let kinds = u32::try_from(options.kinds.len()).unwrap_or(0);
    let faults = match kinds {
        0 => options.faults.unwrap_or(FAULTS),
        _ => options.faults.unwrap_or(2 * kinds),
    };
    for at in 1..=faults {
        let leader = ensemble.leader();
        let wants_leader = match options.kinds.is_empty() {
            true => rng.random_bool(0.5),
            false => at % 2 == 1,
        };
        let others: Vec<u64> = ids
            .iter()
            .copied()
            .filter(|id| Some(*id) != leader)
            .collect();
        let id = match leader {
            Some(leader) if wants_leader => leader,
            _ => *others
                .choose(&mut rng)
                .context("there is no other member")?,
        };
        let turn = options.kinds.iter().cycle().nth((at as usize - 1) / 2);
        let fault = turn.map_or_else(|| Fault::choose(&mut rng, ensemble, id), |kind| *kind);
        let began = Instant::now();
        let role = ensemble.role(id);
        inflict(ensemble, load, id, fault)?;
        println!(
            "{at:3}. {fault:?} of member {id} ({role:?}): back after {:.1?}, {} steps",
            began.elapsed(),
            load.acknowledged()
        );
    }
    Ok(())
}

fn launches(texts: &[String]) -> Result<Vec<Launch>> {
    texts.iter().map(|text| launch(text)).collect()
}

fn launch(text: &str) -> Result<Launch> {
    match text {
        "apache" => apache(),
        "debian" => debian(),
        command => Launch::parse(command),
    }
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() << 20 ^ u64::from(now.subsec_nanos()))
}
