//! A member: its disk, and while it runs the production core on it, driven as the server drives it.
//!
//! A process ends by `kill` (what it handed to the disk is written) or with the power (any of it, sector by
//! sector, may be lost). Recovery takes its time and can be cut off like everything else.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ringkeeper_member::{
    Core, CoreParts, Done, Errand, Loaded, Now, Publication, Sessions, Standing, StandingChange,
    replay, zab_of_member,
};
use ringkeeper_peers::PeerEvent;
use ringkeeper_proto::{ServerId, SessionId, Zxid};
use ringkeeper_storage::{
    Dirs, LogOptions, Opened, Recovered, SimDisk, StorageError, Store, TxnLog,
};
use ringkeeper_transport::{Chain, Cursor};
use ringkeeper_tree::session::initialize_next_session;
use ringkeeper_zab::LinkId;

use crate::check::{Shown, Violation};
use crate::network::sessions_of;
use crate::plan::Plan;
use crate::shard::Shard;
use crate::snapshots::{Snapshots, chunks_of, newest_snapshot};
use crate::world::{Event, World};

/// After so many milliseconds without a write the log is sealed.
const SEAL_AFTER_MS: u64 = 20;

/// The virtual wall clock begins here, in milliseconds since 1970.
const WALL_BEGIN_MS: i64 = 1_700_000_000_000;

/// One member.
pub(crate) struct Member {
    number: usize,
    pub(crate) disk: SimDisk,
    /// Counts its processes.
    pub(crate) life: u64,
    pub(crate) state: State,
    pub(crate) paused: bool,
    /// What happened to it while it was paused.
    pub(crate) deferred: Vec<Event>,
    /// Whether the end of an operation of its disk is under way.
    disk_is_busy: bool,
    pub(crate) disk_slowness: u64,
    /// How far its wall clock is off, in milliseconds.
    pub(crate) clock_skew_ms: i64,
    /// Its disk was wiped or has broken its word, and it has not served since.
    pub(crate) is_blank: bool,
    pub(crate) trap: Option<(Trap, u64)>,
    attempt: u64,
}

/// What a member does that something else is to happen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// It sends a packet of this name.
    Sends(&'static str),
    /// It asks for a truncation, an installation or a save.
    Works,
}

pub(crate) enum State {
    Down,
    /// Its directories are being opened and loaded.
    Recovering(Rc<RefCell<Option<Result<Recovery, String>>>>),
    Running(Box<Process>),
}

/// What was recovered.
pub(crate) struct Recovery {
    store: Store<SimDisk>,
    log: TxnLog<SimDisk>,
    recovered: Recovered,
    loaded: Loaded,
    /// The records that were applied.
    applied: Vec<(Zxid, Bytes)>,
}

/// What the disk has done for the core.
pub(crate) enum Completion {
    Written(Result<Zxid, StorageError>),
    Worked(Result<Done, StorageError>),
    Registered(Result<(), StorageError>),
    Ignored(Result<Zxid, StorageError>),
}

pub(crate) type Completions = Rc<RefCell<VecDeque<Completion>>>;

/// A running process.
pub(crate) struct Process {
    pub(crate) core: Core<SimDisk>,
    pub(crate) store: Store<SimDisk>,
    pub(crate) cursor: Cursor<Publication>,
    pub(crate) shard: Shard,
    pub(crate) completions: Completions,
    inbox: VecDeque<PeerEvent>,
    turn_is_due: bool,
    closed: BTreeSet<LinkId>,
    pub(crate) snapshots: Snapshots,
    /// The last transaction that was compared.
    compared: Zxid,
    shown: Zxid,
    standing: Standing,
    idle_since_ms: u64,
    next_tick: u64,
    mismatches: u64,
}

impl Member {
    pub(crate) fn new(number: usize, seed: u64, skew_ms: i64) -> Self {
        Self {
            number,
            disk: SimDisk::new(seed ^ number as u64),
            life: 0,
            state: State::Down,
            paused: false,
            deferred: Vec::new(),
            disk_is_busy: false,
            disk_slowness: 1,
            clock_skew_ms: skew_ms,
            is_blank: true,
            trap: None,
            attempt: 0,
        }
    }

    pub(crate) const fn next_attempt(&mut self) -> u64 {
        self.attempt += 1;
        self.attempt
    }

    pub(crate) const fn is_attempt(&self, attempt: u64) -> bool {
        self.attempt == attempt
    }

    pub(crate) fn process(&mut self) -> Option<&mut Process> {
        match &mut self.state {
            State::Running(process) => Some(process),
            State::Down | State::Recovering(_) => None,
        }
    }

    pub(crate) fn standing(&self) -> Option<Standing> {
        match &self.state {
            State::Running(process) => Some(process.core.standing()),
            State::Down | State::Recovering(_) => None,
        }
    }

    pub(crate) const fn is_down(&self) -> bool {
        matches!(self.state, State::Down)
    }

    /// The virtual time of what its wall clock said, in milliseconds.
    fn time_of(&self, wall_ms: i64) -> u64 {
        let ms = wall_ms - WALL_BEGIN_MS - self.clock_skew_ms;
        u64::try_from(ms).unwrap_or(0)
    }

    pub(crate) fn now(&self, now_us: u64) -> Now {
        let ms = i64::try_from(now_us / 1000).unwrap_or(i64::MAX);
        Now {
            // Anything before the first start is no time at all.
            monotonic_us: now_us + 1_000_000,
            wall_ms: WALL_BEGIN_MS + ms + self.clock_skew_ms,
        }
    }
}

impl World {
    /// Whether a member's ports answer.
    pub(crate) fn is_up(&self, member: usize) -> bool {
        matches!(self.members[member].state, State::Running(_))
    }

    // Life and death.

    /// Starts a member's process: the directories are opened, and what they hold is loaded.
    pub(crate) fn start(&mut self, number: usize) {
        let settings = self.plan.settings(number);
        let options = Plan::log_options(&settings);
        let member = &mut self.members[number];
        if !member.is_down() {
            return;
        }
        member.life += 1;
        member.paused = false;
        member.disk_is_busy = false;
        let disk = member.disk.clone();
        let slot = Rc::new(RefCell::new(None));
        member.state = State::Recovering(Rc::clone(&slot));
        let task = {
            let disk = disk.clone();
            async move {
                let recovery = recover(&disk, options).await;
                *slot.borrow_mut() = Some(recovery);
            }
        };
        disk.spawn(task);
        self.trace.note(self.now, number, "start", 0, 0);
        self.go_on(number);
    }

    fn recovered(&mut self, number: usize, recovery: Recovery) -> Result<(), Violation> {
        let Recovery {
            store,
            log,
            recovered,
            loaded,
            applied,
        } = recovery;
        // It may be the first to say so: a leader notes in the log what is committed before it tells anybody.
        for (zxid, record) in &applied {
            self.compare_record(number, *zxid, record)?;
        }
        let settings = self.plan.settings(number);
        let config = settings.config.peers.clone().expect("it is a member");
        let tick_ms = self.plan.core_tick_ms;
        if recovered.holdings.damage.is_some() {
            self.counts.add("started with a damaged log");
        }
        if recovered.doubted_through.is_some() {
            self.counts.add("started in doubt");
        }
        let zab = zab_of_member(&settings, &config, &recovered, &loaded, false, tick_ms);
        let zab = zab.expect("the server lines are an ensemble");
        let (tail, tree) = (loaded.tail, loaded.tree);
        self.trace.note(
            self.now,
            number,
            "recovered",
            tree.zxid().0,
            tail.len() as u64,
        );
        let member = &mut self.members[number];
        let now = member.now(self.now);
        let shown = tree.zxid();
        let digest = tree.digest();
        let mut chain = Chain::new();
        let cursor = chain.cursor();
        let started_ms = u64::try_from(now.wall_ms).unwrap_or(0);
        let first = initialize_next_session(number as u64, started_ms);
        let core = Core::new(CoreParts {
            sessions: Sessions::new(self.plan.tick_ms, first),
            settings,
            zab,
            alone: false,
            store: store.clone(),
            log,
            tree: tree.clone(),
            tail,
            chain,
            now,
        });
        member.disk.spawn(core.log().maintenance());
        let process = Process {
            core,
            store,
            cursor,
            shard: Shard::new(tree),
            completions: Rc::default(),
            inbox: VecDeque::new(),
            turn_is_due: false,
            closed: BTreeSet::new(),
            snapshots: Snapshots::default(),
            compared: shown,
            shown,
            standing: Standing::Looking,
            idle_since_ms: now.monotonic_ms(),
            next_tick: self.now,
            mismatches: 0,
        };
        member.state = State::Running(Box::new(process));
        let shown = Shown {
            zxid: shown,
            digest,
            serves: false,
        };
        self.checks.shows(number, shown)?;
        self.links_of_born(number);
        let life = self.members[number].life;
        self.schedule(
            self.now,
            Event::Tick {
                member: number,
                life,
            },
        );
        self.after_turn(number)
    }

    /// Ends a member's process. Of what the disk had not finished, `kept` in a thousand sectors are there
    /// afterwards.
    pub(crate) fn stop(&mut self, number: usize, kept: u64) {
        let member = &mut self.members[number];
        if member.is_down() {
            return;
        }
        let unflushed = member.disk.unflushed();
        self.trace
            .note(self.now, number, "stop", kept, unflushed as u64);
        if unflushed > 0 && kept < 1000 {
            self.counts.add("unflushed sectors at a power cut");
        }
        let random = &mut self.sectors;
        let after = member.disk.after_power_cut(|_| random.chance(kept));
        member.disk.kill_tasks();
        member.state = State::Down;
        member.disk = after;
        member.life += 1;
        member.paused = false;
        member.trap = None;
        member.deferred.clear();
        self.checks.role_changed(number);
        self.links_of_dead(number);
        self.clients_of_dead(number);
    }

    /// A new disk in the place of the old one.
    pub(crate) fn wipe(&mut self, number: usize) {
        let seed = self.sectors.next();
        let member = &mut self.members[number];
        assert!(member.is_down(), "a disk is changed when nobody uses it");
        member.disk = SimDisk::new(seed);
        member.is_blank = true;
        self.trace.note(self.now, number, "wipe", 0, 0);
    }

    // The disk.

    /// Lets a member's tasks go on, and sees to it that its disk does too.
    fn go_on(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.disk.settle();
        if member.disk.in_flight() > 0 && !member.disk_is_busy {
            member.disk_is_busy = true;
            let delay = self.disks.around(self.plan.disk_delay) * member.disk_slowness;
            let life = member.life;
            let event = Event::DiskDone {
                member: number,
                life,
            };
            self.schedule(self.now + delay, event);
        }
    }

    pub(crate) fn disk_done(&mut self, number: usize) -> Result<(), Violation> {
        let member = &mut self.members[number];
        member.disk_is_busy = false;
        member.disk.advance_to(Duration::from_micros(self.now));
        let in_flight = member.disk.in_flight();
        if in_flight > 0 {
            // A disk with several to do does any of them.
            let pick = match self.disks.chance(self.plan.disk_disorder) {
                true => self.disks.index(in_flight),
                false => 0,
            };
            member.disk.finish_one(pick);
        }
        self.go_on(number);
        let recovery = match &self.members[number].state {
            State::Recovering(slot) => slot.borrow_mut().take(),
            State::Down | State::Running(_) => None,
        };
        match recovery {
            Some(Ok(recovery)) => return self.recovered(number, recovery),
            Some(Err(error)) => return Err(format!("member {number} cannot start: {error}")),
            None => {}
        }
        self.after_turn(number)
    }

    // Turns.

    /// Something has happened on a member's links.
    pub(crate) fn tell(&mut self, number: usize, event: PeerEvent) {
        let now = self.now;
        let member = &mut self.members[number];
        let life = member.life;
        let Some(process) = member.process() else {
            return;
        };
        process.inbox.push_back(event);
        if !std::mem::replace(&mut process.turn_is_due, true) {
            let event = Event::Turn {
                member: number,
                life,
            };
            self.schedule(now, event);
        }
    }

    pub(crate) fn turn(&mut self, number: usize) -> Result<(), Violation> {
        let member = &mut self.members[number];
        let now = member.now(self.now);
        let Some(process) = member.process() else {
            return Ok(());
        };
        process.turn_is_due = false;
        process.core.start_turn(now);
        let mut heard = Vec::new();
        while let Some(event) = process.inbox.pop_front() {
            let link = match &event {
                PeerEvent::Received { link, .. }
                | PeerEvent::StreamBytes { link, .. }
                | PeerEvent::Writable { link }
                | PeerEvent::Disconnected { link } => Some(*link),
                _ => None,
            };
            // What a link said before it was closed concerns nobody any more.
            if link.is_none_or(|link| !process.closed.contains(&link)) {
                if let PeerEvent::Received { packet, .. } = &event
                    && process.core.standing().proposes()
                {
                    heard.extend(sessions_of(packet));
                }
                process.core.hear_peer(event);
                for command in process.core.commands().collect::<Vec<_>>() {
                    if let ringkeeper_peers::PeerCommand::Close { link } = command {
                        process.closed.insert(link);
                    }
                    process.shard.commands.push(command);
                }
            }
        }
        self.heard_of(number, heard);
        self.after_turn(number)
    }

    pub(crate) fn tick(&mut self, number: usize) -> Result<(), Violation> {
        let tick = self.plan.core_tick_ms * 1000;
        let now_us = self.now;
        let snapshot_txns = self.plan.snapshot_txns;
        let member = &mut self.members[number];
        let life = member.life;
        let now = member.now(now_us);
        member.disk.advance_to(Duration::from_micros(now_us));
        let Some(process) = member.process() else {
            return Ok(());
        };
        process.core.start_turn(now);
        // As the server does: a process that was stopped has not been waiting for its peers.
        process.next_tick = process.next_tick.max(now_us.saturating_sub(3 * tick));
        while process.next_tick <= now_us {
            process.core.tick();
            process.next_tick += tick;
        }
        let next_tick = process.next_tick;
        let due = process.core.next_expiry_ms();
        if due.is_some_and(|due_ms| due_ms <= now.monotonic_ms()) {
            let before = process.core.zab().last_logged();
            process.core.expire_sessions();
            let after = process.core.zab().last_logged();
            if after > before {
                self.checks.expiring(number, (before, after), now_us / 1000);
            }
        }
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        if !process.core.is_idle() || !process.core.log().needs_seal() {
            process.idle_since_ms = now.monotonic_ms();
        } else if now.monotonic_ms() - process.idle_since_ms >= SEAL_AFTER_MS {
            let (seal, completions) = (process.core.seal_log(), Rc::clone(&process.completions));
            let disk = self.members[number].disk.clone();
            disk.spawn(async move {
                let sealed = seal.await;
                completions
                    .borrow_mut()
                    .push_back(Completion::Ignored(sealed));
            });
        }
        let event = Event::Tick {
            member: number,
            life,
        };
        self.schedule(next_tick, event);
        self.take_snapshot_if_due(number, snapshot_txns);
        self.after_turn(number)
    }

    /// What follows whatever the core was told: its work and writes go to the disk, what it says goes out, and what
    /// it shows is checked.
    pub(crate) fn after_turn(&mut self, number: usize) -> Result<(), Violation> {
        loop {
            self.start_work(number);
            let Some(process) = self.members[number].process() else {
                return Ok(());
            };
            process.core.end_turn();
            self.start_work(number);
            self.go_on(number);
            self.say(number)?;
            let now = self.members[number].now(self.now);
            let Some(process) = self.members[number].process() else {
                return Ok(());
            };
            let Some(completion) = process.completions.borrow_mut().pop_front() else {
                return Ok(());
            };
            process.core.start_turn(now);
            let result = match completion {
                Completion::Written(written) => written.map(|_| process.core.flushed()),
                Completion::Worked(done) => done.map(|done| process.core.done(done)),
                Completion::Registered(registered) => {
                    process.snapshots.registers = false;
                    registered
                }
                Completion::Ignored(sealed) => sealed.map(|_| ()),
            };
            if let Err(error) = result {
                return Err(format!("member {number} ends by itself: {error}"));
            }
            self.register_snapshot(number);
        }
    }

    fn start_work(&mut self, number: usize) {
        let delay = self.plan.disk_delay;
        loop {
            let disk = self.members[number].disk.clone();
            let life = self.members[number].life;
            let Some(process) = self.members[number].process() else {
                return;
            };
            let Some(errand) = process.core.next_errand() else {
                break;
            };
            let mut later = None;
            match errand {
                Errand::Run(work) => {
                    let completions = Rc::clone(&process.completions);
                    disk.spawn(async move {
                        let done = work.await;
                        completions.borrow_mut().push_back(Completion::Worked(done));
                    });
                    self.spring_trap(number, Trap::Works);
                }
                // The simulated members are the same throughout, and have no configuration file.
                Errand::KeepConfiguration { .. } => {}
                Errand::KeepSnapshot(tree) => {
                    process.snapshots.keeping = Some(tree);
                    later = Some(Event::KeepSnapshot {
                        member: number,
                        life,
                    });
                }
                Errand::SendTree { link, tree } => {
                    process.snapshots.sending.insert(link, chunks_of(&tree));
                }
                Errand::NextChunk(link) => {
                    later = Some(Event::SendChunk {
                        member: number,
                        life,
                        link,
                    });
                }
                Errand::StopTree(link) => _ = process.snapshots.sending.remove(&link),
            }
            if let Some(event) = later {
                let at = self.now + self.disks.around(delay);
                self.schedule(at, event);
            }
        }
        let disk = self.members[number].disk.clone();
        let Some(process) = self.members[number].process() else {
            return;
        };
        while let Some(write) = process.core.next_write() {
            let completions = Rc::clone(&process.completions);
            disk.spawn(async move {
                let written = write.await;
                completions
                    .borrow_mut()
                    .push_back(Completion::Written(written));
            });
        }
    }

    /// Carries out what the core says at the end of a turn.
    fn say(&mut self, number: usize) -> Result<(), Violation> {
        self.compare(number)?;
        self.walk(number)?;
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let mut commands = std::mem::take(&mut process.shard.commands);
        commands.extend(process.core.commands());
        let standing = process.core.take_standing();
        let notices: Vec<_> = process.core.notices().collect();
        for command in &commands {
            if let ringkeeper_peers::PeerCommand::Close { link } = command {
                process.closed.insert(*link);
            }
        }
        if let Some(change) = standing {
            self.take_standing(number, change)?;
        }
        for notice in notices {
            self.take_notice(number, notice);
        }
        for command in commands {
            self.carry_out(number, command);
        }
        Ok(())
    }

    /// Asks a leader to hand over.
    pub(crate) fn ask_to_hand_over(&mut self, number: usize, to: Option<usize>) {
        let now = self.now_of(number);
        if self.members[number].paused {
            return;
        }
        let Some(process) = self.members[number].process() else {
            return;
        };
        process.core.start_turn(now);
        process.core.hand_over(to.map(|to| ServerId(to as u64)));
        self.trace
            .note(self.now, number, "hand over", to.unwrap_or(0) as u64, 0);
        let done = self.after_turn(number);
        self.found = self.found.take().or_else(|| done.err());
    }

    fn take_standing(&mut self, number: usize, change: StandingChange) -> Result<(), Violation> {
        let standing = change.standing;
        let at_ms = self.now / 1000;
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let before = std::mem::replace(&mut process.standing, standing);
        let tree = process.core.published_tree().clone();
        let kind = match standing {
            Standing::Leading(_) => "leading",
            Standing::Following(_) => "following",
            Standing::Moving => "moving",
            _ => "looking",
        };
        self.trace
            .note(self.now, number, kind, tree.zxid().0, tree.digest());
        self.counts.add(kind);
        if let (Standing::Leading(_), Standing::Leading(epoch)) = (before, standing) {
            self.counts.add("new epochs without an election");
            return self.checks.leads_on(number, self.reigns, epoch.0);
        }
        if change.keeps_clients && before != Standing::Moving && standing != Standing::Moving {
            return Ok(());
        }
        self.checks.role_changed(number);
        if let Standing::Leading(epoch) = standing {
            self.reigns += 1;
            let reign = self.reigns;
            let members = &self.members;
            let clock = |leader: usize, wall_ms| members[leader].time_of(wall_ms);
            self.checks
                .leads(number, (reign, epoch.0), &tree, at_ms, clock)?;
        }
        if standing.is_serving() {
            self.members[number].is_blank = false;
        }
        if !change.keeps_clients {
            self.end_clients(number);
        } else if standing != Standing::Moving {
            self.counts.add("moved with clients");
        }
        Ok(())
    }

    /// What a member acknowledges is on its disk, in the log as it is now: by what storage says, not by what Zab
    /// believes.
    pub(crate) fn check_ack(&mut self, number: usize, zxid: Zxid) {
        let Some(process) = self.members[number].process() else {
            return;
        };
        let (durable, generation) = (
            process.core.log().durable(),
            process.core.zab().log_generation(),
        );
        let is_durable = durable.generation == generation.0 && durable.through >= zxid;
        if zxid.counter() > 0 && !is_durable {
            self.found = Some(format!(
                "member {number} acknowledges {zxid:?} before it is durable: the log is so through {:?} of generation {}, and now is {}",
                durable.through, durable.generation, generation.0
            ));
        }
    }

    /// Holds what a member has committed and what it shows against what all others have.
    fn compare(&mut self, number: usize) -> Result<(), Violation> {
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let records: Vec<(Zxid, Bytes)> = process
            .core
            .committed_since(process.compared)
            .map(|(zxid, bytes)| (zxid, bytes.clone()))
            .collect();
        if let Some((zxid, _)) = records.last() {
            process.compared = *zxid;
        }
        self.checks.proposed(process.core.not_committed());
        let tree = process.core.published_tree();
        let (zxid, digest) = (tree.zxid(), tree.digest());
        let serves = process.core.standing().is_serving();
        let is_new = std::mem::replace(&mut process.shown, zxid) != zxid;
        process.compared = process.compared.max(if serves { zxid } else { Zxid::ZERO });
        let (mismatches, contradictions) = {
            let stats = process.core.stats_mut();
            (stats.digest_mismatches, stats.history_violations)
        };
        let mismatched = std::mem::replace(&mut process.mismatches, mismatches) != mismatches;
        let before = self.checks.len();
        for (zxid, record) in &records {
            self.compare_record(number, *zxid, record)?;
        }
        if self.checks.len() > before {
            let (last, digest) = (self.checks.last(), self.checks.tree().digest());
            self.trace
                .note(self.now, number, "committed", last.0, digest);
        }
        if is_new {
            let shown = Shown {
                zxid,
                digest,
                serves,
            };
            self.checks.shows(number, shown)?;
        }
        if contradictions > 0 {
            return Err(format!(
                "member {number} is told what contradicts its history, at {zxid:?} or later"
            ));
        }
        if mismatched {
            return Err(format!(
                "digests differ: member {number} has another tree than the leader's at or before {zxid:?}"
            ));
        }
        Ok(())
    }

    fn compare_record(
        &mut self,
        number: usize,
        zxid: Zxid,
        record: &[u8],
    ) -> Result<(), Violation> {
        let members = &self.members;
        let clock = |leader: usize, wall_ms| members[leader].time_of(wall_ms);
        self.checks.committed(number, zxid, record, clock)
    }

    /// A member has heard of sessions, which counts if it leads.
    pub(crate) fn heard_of(&mut self, number: usize, sessions: Vec<SessionId>) {
        let at_ms = self.now / 1000;
        let leads = self.members[number]
            .standing()
            .is_some_and(Standing::proposes);
        if leads {
            for session in sessions {
                self.checks.heard(number, session, at_ms);
            }
        }
    }

    pub(crate) fn now_of(&self, number: usize) -> Now {
        self.members[number].now(self.now)
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("number", &self.number)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

/// Opens the directories and loads what they hold, as the server does.
async fn recover(disk: &SimDisk, options: LogOptions) -> Result<Recovery, String> {
    let opened = Store::open_as_member(disk.clone(), &Dirs::single("/data"), options).await;
    let Opened {
        store,
        mut log,
        recovered,
    } = opened.map_err(|error| format!("{error:?}: {error}"))?;
    let mut tree = newest_snapshot(disk, &store, &recovered)?;
    let base = tree.zxid();
    let replayed = replay(&log, &mut tree, recovered.committed).await;
    let replayed = replayed.map_err(|error| error.to_string())?;
    let mut applied = Vec::new();
    let all = log.replay(base, |zxid, record| {
        if zxid <= recovered.committed {
            applied.push((zxid, Bytes::copy_from_slice(record)));
        }
        Ok::<(), String>(())
    });
    all.await.map_err(|error| error.to_string())?;
    if tree.zxid() > recovered.last_zxid && recovered.holdings.damage.is_none() {
        let reset = log.reset(tree.zxid()).await;
        reset.map_err(|error| error.to_string())?;
    }
    let loaded = Loaded {
        tree,
        base,
        logged: replayed.logged,
        zxids: replayed.zxids,
        tail: replayed.suffix,
    };
    Ok(Recovery {
        store,
        log,
        recovered,
        loaded,
        applied,
    })
}
