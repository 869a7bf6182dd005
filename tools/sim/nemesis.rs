//! What goes wrong: each fault is drawn from a stream of its own, and counted when it happens.

use ringkeeper_storage::HEADER_BYTES;

use crate::member::Trap;
use crate::random::Random;
use crate::world::{Event, World};

const SECOND: u64 = 1_000_000;

/// What is to be undone later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Everything passes again.
    Partition,
    Slowness,
    SlowDisk(usize),
    Pause(usize, u64),
    Start(usize),
    /// This one has fallen behind: everybody is started again.
    Laggard(usize),
}

/// Moments at which a member is struck: those at which the order of things matters.
const TRAPS: [Trap; 14] = [
    Trap::Works,
    Trap::Works,
    Trap::Sends("ACK"),
    Trap::Sends("ACK"),
    Trap::Sends("ACKEPOCH"),
    Trap::Sends("NEWLEADER"),
    Trap::Sends("UPTODATE"),
    Trap::Sends("TRUNC"),
    Trap::Sends("DIFF"),
    Trap::Sends("SNAP"),
    Trap::Sends("PROPOSAL"),
    Trap::Sends("COMMIT"),
    Trap::Sends("LEADERINFO"),
    Trap::Sends("HANDOVER"),
];

impl World {
    pub(crate) fn strike(&mut self) {
        let next = self.now + self.faults.around(self.plan.fault_every);
        if next < self.plan.duration {
            self.schedule(next, Event::Strike);
        }
        let servers = self.plan.servers;
        let member = self.faults.index(servers) + 1;
        match self.faults.below(100) {
            0..12 => self.crash(member),
            12..18 => {
                // Whoever leads is worth more than others.
                let leader = self.leader().unwrap_or(member);
                self.crash(leader);
            }
            18..21 => self.crash_all(),
            21..26 => self.wipe_one(member),
            26..40 => self.set_trap(member),
            40..43 => self.break_word(member),
            43..46 => self.leave_behind(member),
            46..60 => self.partition(),
            60..64 => self.break_one_link(),
            64..70 => self.slow_disk(member),
            70..77 => self.pause(member),
            77..82 => self.slow_network(),
            82..88 => self.hand_over(),
            88..94 => {
                let client = self.faults.index(self.clients.len());
                self.count_fault("client connection breaks");
                self.break_connection(client);
            }
            _ => {
                let client = self.faults.index(self.clients.len());
                self.count_fault("client goes away");
                self.put_to_sleep(client);
            }
        }
    }

    fn count_fault(&mut self, what: &'static str) {
        self.trace.fault(self.now, what);
        self.counts.fault(what);
    }

    /// Who leads, as far as anybody says so.
    pub(crate) fn leader(&self) -> Option<usize> {
        let mut members = 1..=self.plan.servers;
        members.find(|member| {
            let standing = self.members[*member].standing();
            standing.is_some_and(ringkeeper_member::Standing::proposes)
        })
    }

    fn downtime(&mut self) -> u64 {
        match self.faults.chance(500) {
            true => self.faults.below(SECOND / 2),
            false => self.faults.around(8 * SECOND),
        }
    }

    fn crash(&mut self, member: usize) {
        if self.members[member].is_down() {
            return;
        }
        match self.faults.chance(250) {
            true => {
                self.count_fault("process killed");
                self.stop(member, 1000);
            }
            false => {
                self.count_fault("power cut");
                let kept = self.faults.pick(&[0, 0, 200, 500, 800]);
                self.stop(member, kept);
            }
        }
        let at = self.now + self.downtime();
        self.schedule(at, Event::Undo(Undo::Start(member)));
    }

    fn crash_all(&mut self) {
        self.count_fault("power cut everywhere");
        for member in 1..=self.plan.servers {
            self.stop(member, 0);
            let at = self.now + self.downtime() / 4;
            self.schedule(at, Event::Undo(Undo::Start(member)));
        }
    }

    /// One disk at a time may be lost: a second one before the first is made good would be more than a majority
    /// of three can bear.
    fn wipe_one(&mut self, member: usize) {
        let is_bearable = self.members.iter().skip(1).all(|member| !member.is_blank);
        if !is_bearable {
            return;
        }
        self.count_fault("disk wiped");
        self.stop(member, 0);
        self.wipe(member);
        let at = self.now + self.downtime();
        self.schedule(at, Event::Undo(Undo::Start(member)));
        // Now is the time at which the others are needed.
        if self.faults.chance(600) {
            let other = self.leader().unwrap_or_else(|| {
                let others = self.plan.servers;
                self.faults.index(others) + 1
            });
            self.crash(other);
        }
    }

    /// The power goes, and the last batch that a disk said was there is damaged: nothing attests it, so it looks like a
    /// torn write. One disk at a time, as with wiped ones.
    fn break_word(&mut self, member: usize) {
        let mut others = (1..=self.plan.servers).filter(|other| *other != member);
        let is_bearable = others.all(|other| !self.members[other].is_blank);
        let last = self.members[member].disk.last_write("log-");
        let (Some((path, offset)), false, true) =
            (last, self.members[member].is_down(), is_bearable)
        else {
            return;
        };
        self.count_fault("acknowledged batch torn");
        let kept = self.faults.pick(&[0, 0, 300]);
        self.stop(member, kept);
        let member_of = &mut self.members[member];
        member_of.is_blank = true;
        if member_of.disk.files().contains(&path) {
            member_of.disk.damage(&path, |bytes| {
                if let Some(byte) = bytes.get_mut(offset + HEADER_BYTES + 4) {
                    *byte ^= 0x40;
                }
            });
        }
        let at = self.now + self.downtime();
        self.schedule(at, Event::Undo(Undo::Start(member)));
        // Whoever has what it lost is not to be had.
        if self.faults.chance(700) {
            let other = self.leader().unwrap_or_else(|| {
                let others = self.plan.servers;
                self.faults.index(others) + 1
            });
            self.crash(other);
        }
    }

    fn set_trap(&mut self, member: usize) {
        let trap = self.faults.pick(&TRAPS);
        let count = match self.faults.chance(500) {
            true => 1,
            false => self.faults.between(1, 8),
        };
        self.members[member].trap = Some((trap, count));
        // Somebody has to have something to synchronize.
        if self.faults.chance(500) {
            let victim = match self.faults.chance(500) {
                true => member,
                false => self.leader().unwrap_or(member),
            };
            self.crash(victim);
            self.members[member].trap = Some((trap, count));
        }
    }

    /// A member falls behind; then a power cut has all of them elect a leader and synchronize, and the laggard is struck
    /// while it does.
    fn leave_behind(&mut self, member: usize) {
        self.isolate(member);
        let at = self.now + self.faults.around(4 * SECOND);
        self.schedule(at, Event::Undo(Undo::Laggard(member)));
    }

    fn strike_laggard(&mut self, member: usize) {
        self.undo(Undo::Partition);
        self.counts.fault("laggard among started members");
        self.crash_all();
        let trap = self
            .faults
            .pick(&[Trap::Works, Trap::Sends("ACKEPOCH"), Trap::Sends("ACK")]);
        let count = self.faults.between(1, 4);
        self.members[member].trap = Some((trap, count));
    }

    /// A member does something; if a trap waits for that, it is struck a moment later.
    pub(crate) fn spring_trap(&mut self, member: usize, what: Trap) {
        let Some((trap, count)) = self.members[member].trap else {
            return;
        };
        if trap != what {
            return;
        }
        if count > 1 {
            self.members[member].trap = Some((trap, count - 1));
            return;
        }
        self.members[member].trap = None;
        let delay = match self.faults.chance(300) {
            true => 0,
            false => self.faults.around(2 * self.plan.disk_delay),
        };
        let life = self.members[member].life;
        self.schedule(self.now + delay, Event::Sprung { member, life });
    }

    pub(crate) fn sprung(&mut self, member: usize) {
        self.count_fault("struck at a chosen moment");
        match self.faults.below(10) {
            0..7 => {
                self.crash(member);
                // Whoever it was to learn from may go with it.
                if self.faults.chance(400) {
                    let other = self.faults.index(self.plan.servers) + 1;
                    self.crash(other);
                }
            }
            7..9 => self.isolate(member),
            _ => self.pause(member),
        }
    }

    /// Whoever leads is asked to hand over; that in itself is no fault, but anything may happen meanwhile.
    fn hand_over(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        let servers = self.plan.servers;
        let to = match self.faults.chance(500) {
            true => Some(self.faults.index(servers) + 1),
            false => None,
        };
        self.count_fault("hand-over");
        let trouble = self.faults.below(10);
        if trouble < 2 {
            self.members[leader].disk_slowness = self.faults.pick(&[10, 50]);
            let at = self.now + self.faults.around(2 * SECOND);
            self.schedule(at, Event::Undo(Undo::SlowDisk(leader)));
        }
        self.ask_to_hand_over(leader, to);
        let member = match trouble {
            2 => leader,
            3..5 => to.unwrap_or_else(|| self.faults.index(servers) + 1),
            5 => self.faults.index(servers) + 1,
            _ => return,
        };
        let life = self.members[member].life;
        let at = self.now
            + self
                .faults
                .around(6 * (self.plan.disk_delay + self.plan.net_delay));
        self.schedule(at, Event::Sprung { member, life });
    }

    // Partitions.

    fn block(&mut self, from: usize, to: usize) {
        if from != to {
            self.network.blocked.insert((from, to));
        }
    }

    fn heal_later(&mut self) {
        let at = self.now + self.faults.around(10 * SECOND);
        self.schedule(at, Event::Undo(Undo::Partition));
    }

    fn isolate(&mut self, member: usize) {
        self.count_fault("member isolated");
        for other in 1..=self.plan.servers {
            self.block(member, other);
            self.block(other, member);
        }
        self.heal_later();
    }

    fn partition(&mut self) {
        let servers = self.plan.servers;
        let member = self.faults.index(servers) + 1;
        match self.faults.below(4) {
            0 => self.isolate(member),
            1 => {
                self.count_fault("partition");
                let side: Vec<bool> = (0..=servers).map(|_| self.faults.chance(500)).collect();
                for a in 1..=servers {
                    for b in 1..=servers {
                        if side[a] != side[b] {
                            self.block(a, b);
                        }
                    }
                }
                self.heal_later();
            }
            2 => {
                self.count_fault("asymmetric partition");
                let inwards = self.faults.chance(500);
                let all = self.faults.chance(500);
                for other in 1..=servers {
                    if !all && self.faults.chance(400) {
                        continue;
                    }
                    match inwards {
                        true => self.block(other, member),
                        false => self.block(member, other),
                    }
                }
                self.heal_later();
            }
            _ => {
                self.count_fault("bridge");
                // Everybody reaches one member, and no two others each other.
                for a in 1..=servers {
                    for b in 1..=servers {
                        if a != member && b != member && self.faults.chance(800) {
                            self.block(a, b);
                            self.block(b, a);
                        }
                    }
                }
                self.heal_later();
            }
        }
        self.trace.note(
            self.now,
            member,
            "partition",
            self.network.blocked.len() as u64,
            0,
        );
    }

    fn break_one_link(&mut self) {
        let links = self.network.open_links();
        if links.is_empty() {
            return;
        }
        self.count_fault("link breaks");
        let link = links[self.faults.index(links.len())];
        self.trace.note(self.now, 0, "link breaks", link, 0);
        self.break_link(link);
    }

    // Slowness.

    fn slow_disk(&mut self, member: usize) {
        self.count_fault("slow disk");
        self.members[member].disk_slowness = self.faults.pick(&[10, 50, 300]);
        let at = self.now + self.faults.around(8 * SECOND);
        self.schedule(at, Event::Undo(Undo::SlowDisk(member)));
        // One that loses its leader comes back while its log is still being written.
        if self.faults.chance(500) {
            let delay = self.plan.disk_delay * self.members[member].disk_slowness;
            let life = self.members[member].life;
            let at = self.now + self.faults.around(20 * delay);
            self.schedule(at, Event::LoseLeader { member, life });
        }
    }

    /// A learner's link to its leader breaks.
    pub(crate) fn lose_leader(&mut self, member: usize) {
        if let Some(link) = self.link_to_leader(member) {
            self.count_fault("leader lost with a slow disk");
            self.break_link(link);
        }
    }

    fn slow_network(&mut self) {
        self.count_fault("slow network");
        self.network.slowness = self.faults.pick(&[10, 50, 200]);
        let at = self.now + self.faults.around(8 * SECOND);
        self.schedule(at, Event::Undo(Undo::Slowness));
    }

    fn pause(&mut self, member: usize) {
        if !self.is_up(member) || self.members[member].paused {
            return;
        }
        self.count_fault("member paused");
        self.trace.note(self.now, member, "pause", 0, 0);
        self.members[member].paused = true;
        let life = self.members[member].life;
        let at = self.now + self.faults.around(4 * self.plan.tick_ms * 1000);
        self.schedule(at, Event::Undo(Undo::Pause(member, life)));
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Partition => {
                self.trace.note(self.now, 0, "heal", 0, 0);
                self.network.blocked.clear();
                self.pump_all();
            }
            Undo::Slowness => self.network.slowness = 1,
            Undo::SlowDisk(member) => self.members[member].disk_slowness = 1,
            Undo::Pause(member, life) => {
                let it = &mut self.members[member];
                if it.life == life && std::mem::take(&mut it.paused) {
                    let deferred = std::mem::take(&mut it.deferred);
                    let now = self.now;
                    self.trace
                        .note(now, member, "resume", deferred.len() as u64, 0);
                    for event in deferred {
                        self.schedule(now, event);
                    }
                }
            }
            Undo::Start(member) => self.start(member),
            Undo::Laggard(member) => {
                if self.now < self.plan.duration {
                    self.strike_laggard(member);
                }
            }
        }
    }

    /// No more faults: what is broken is made good, and everything must work again.
    pub(crate) fn make_good(&mut self) {
        self.undo(Undo::Partition);
        self.undo(Undo::Slowness);
        for member in 1..=self.plan.servers {
            self.undo(Undo::SlowDisk(member));
            let life = self.members[member].life;
            self.undo(Undo::Pause(member, life));
            self.members[member].trap = None;
            self.start(member);
        }
    }

    pub(crate) fn faults_of(seed: u64) -> Random {
        Random::stream(seed, "faults")
    }
}
