//! The network: links between members, with delays, partitions and breaks.
//!
//! A link is a connection of TCP: what is sent arrives in order and once, or the link breaks; a partition holds
//! it up. Links do not wait for each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ringkeeper_member::Standing;
use ringkeeper_peers::{Packet, PeerCommand, PeerEvent, Rider};
use ringkeeper_proto::election::Ballot;
use ringkeeper_proto::quorum::{Revalidation, TouchTable};
use ringkeeper_proto::{ServerId, SessionId};
use ringkeeper_zab::{LinkId, Message, Notification};

use crate::member::Trap;
use crate::random::Random;
use crate::world::{Event, World};

/// Bytes on their way with which a link has no room, and again with less than the second.
const ROOM_BYTES: usize = 8 << 10;
const ROOM_AGAIN_BYTES: usize = 2 << 10;

/// Between two calls for an election connection; doubles from the first to the second.
const CALL_PAUSE_MIN: u64 = 20_000;
const CALL_PAUSE_MAX: u64 = 1_000_000;

/// How long a learner waits before it tries a leader again that refused it, and how often it does.
const CONNECT_PAUSE: u64 = 100_000;
const CONNECT_TRIES_MAX: u64 = 5;

#[derive(Debug)]
enum Item {
    Packet(Box<Packet>),
    Stream(Bytes),
    Notification(Notification),
    /// The other end has closed.
    Fin,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Packet(packet) => match &packet.message {
                Message::Proposal(proposal) | Message::Inform(proposal) => {
                    proposal.payload.len() + 40
                }
                _ => 40,
            },
            Self::Stream(bytes) => bytes.len(),
            Self::Notification(_) | Self::Fin => 40,
        }
    }
}

/// How a receiver takes a link's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Packets,
    /// A snapshot follows, and is taken in when it is asked for.
    Stream {
        wanted: bool,
    },
}

#[derive(Debug)]
struct Direction {
    queue: VecDeque<(u64, Item)>,
    bytes: usize,
    /// When the last item arrives.
    last_at: u64,
    wants_room: bool,
    reading: Reading,
}

#[derive(Clone, Copy, Debug)]
struct End {
    member: usize,
    life: u64,
    open: bool,
}

#[derive(Debug)]
struct Link {
    is_election: bool,
    ends: [End; 2],
    /// From each end to the other.
    ways: [Direction; 2],
}

/// The election connection of two members.
#[derive(Debug, Default)]
struct Pair {
    link: Option<u64>,
    pause: u64,
    /// Counts calls, so that an old one is told from the present one.
    call: u64,
}

#[derive(Debug)]
pub(crate) struct Network {
    random: Random,
    links: BTreeMap<u64, Link>,
    last_link: u64,
    pairs: BTreeMap<(usize, usize), Pair>,
    /// The last message of an election that waits for a connection, by sender and receiver.
    waiting: BTreeMap<(usize, usize), Notification>,
    /// Who was told that whom cannot be reached.
    told_unreachable: BTreeSet<(usize, usize)>,
    /// From whom to whom nothing passes.
    pub(crate) blocked: BTreeSet<(usize, usize)>,
    delay: u64,
    /// All delays are so many times longer.
    pub(crate) slowness: u64,
}

impl Network {
    pub(crate) fn new(seed: u64, delay: u64) -> Self {
        Self {
            random: Random::stream(seed, "network"),
            links: BTreeMap::new(),
            last_link: 0,
            pairs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            told_unreachable: BTreeSet::new(),
            blocked: BTreeSet::new(),
            delay,
            slowness: 1,
        }
    }

    fn delay(&mut self) -> u64 {
        self.random.around(self.delay) * self.slowness
    }

    fn passes_both_ways(&self, a: usize, b: usize) -> bool {
        !self.blocked.contains(&(a, b)) && !self.blocked.contains(&(b, a))
    }

    /// The links between members, to be broken.
    pub(crate) fn open_links(&self) -> Vec<u64> {
        self.links.keys().copied().collect()
    }
}

impl World {
    /// Begins to call everybody.
    pub(crate) fn start_calls(&mut self) {
        for a in 1..=self.plan.servers {
            for b in a + 1..=self.plan.servers {
                self.network.pairs.insert((a, b), Pair::default());
                self.call_again(a, b, CALL_PAUSE_MIN);
            }
        }
    }

    fn call_again(&mut self, a: usize, b: usize, pause: u64) {
        let key = (a.min(b), a.max(b));
        let at = self.now + 1 + self.network.random.below(pause);
        if let Some(pair) = self.network.pairs.get_mut(&key) {
            pair.call += 1;
            pair.pause = pause;
            let call = pair.call;
            self.schedule(at, Event::Call { pair: key, call });
        }
    }

    pub(crate) fn call(&mut self, key: (usize, usize), call: u64) {
        let (a, b) = key;
        let Some(pair) = self.network.pairs.get(&key) else {
            return;
        };
        if pair.call != call || pair.link.is_some() {
            return;
        }
        let pause = pair.pause;
        if self.is_up(a) && self.is_up(b) && self.network.passes_both_ways(a, b) {
            let link = self.new_link(true, a, b);
            if let Some(pair) = self.network.pairs.get_mut(&key) {
                pair.link = Some(link);
            }
            for (me, other) in [(a, b), (b, a)] {
                self.network.told_unreachable.remove(&(me, other));
                self.tell_reachable(me, other, true);
                if let Some(notification) = self.network.waiting.remove(&(me, other)) {
                    self.put(link, me, Item::Notification(notification));
                }
            }
            return;
        }
        for (me, other) in [(a, b), (b, a)] {
            if self.is_up(me) && self.network.told_unreachable.insert((me, other)) {
                self.tell_reachable(me, other, false);
            }
        }
        self.call_again(a, b, (pause * 2).min(CALL_PAUSE_MAX));
    }

    fn tell_reachable(&mut self, me: usize, other: usize, reachable: bool) {
        let peer = ServerId(other as u64);
        self.tell(me, PeerEvent::Reachable { peer, reachable });
    }

    fn new_link(&mut self, is_election: bool, from: usize, to: usize) -> u64 {
        self.network.last_link += 1;
        let id = self.network.last_link;
        let way = || Direction {
            queue: VecDeque::new(),
            bytes: 0,
            last_at: 0,
            wants_room: false,
            reading: Reading::Packets,
        };
        let end = |member: usize| End {
            member,
            life: self.members[member].life,
            open: true,
        };
        let link = Link {
            is_election,
            ends: [end(from), end(to)],
            ways: [way(), way()],
        };
        self.network.links.insert(id, link);
        id
    }

    /// Does what a member's core says.
    pub(crate) fn carry_out(&mut self, member: usize, command: PeerCommand) {
        match command {
            PeerCommand::Connect { leader } => {
                let attempt = self.members[member].next_attempt();
                let leader = usize::try_from(leader.0).unwrap_or(0);
                let at = self.now + 2 * self.network.delay();
                let life = self.members[member].life;
                let connect = Connect {
                    member,
                    life,
                    attempt,
                    leader,
                    tries: 1,
                };
                self.schedule(at, Event::Connect(connect));
            }
            // Every member knows every other one from the start.
            PeerCommand::Configure { .. } => {}
            // Who leads is passed over, see `master_of`.
            PeerCommand::ServeObservers { .. } => {}
            PeerCommand::Send { link, packet } => {
                self.note_packet(member, link, &packet);
                self.put(link.0, member, Item::Packet(Box::new(packet)));
            }
            PeerCommand::SendStream { link, bytes } => {
                // Where a stream is cut into pieces is the network's affair.
                let cut = self.network.random.index(bytes.len() + 1);
                for piece in [bytes.slice(..cut), bytes.slice(cut..)] {
                    if !piece.is_empty() {
                        self.put(link.0, member, Item::Stream(piece));
                    }
                }
            }
            PeerCommand::WantRoom { link } => self.want_room(link, member),
            PeerCommand::ReadStream { link } => {
                self.read_stream(link.0, member, Reading::Stream { wanted: true });
            }
            PeerCommand::EndStream { link, rest } => {
                assert!(rest.is_empty(), "packets are not put into streams here");
                self.read_stream(link.0, member, Reading::Packets);
            }
            PeerCommand::Close { link } => self.close(link.0, member),
            PeerCommand::Notify { to, notification } => {
                let to = usize::try_from(to.0).unwrap_or(0);
                self.note_notification(member, to, &notification);
                let key = (member.min(to), member.max(to));
                let link = self.network.pairs.get(&key).and_then(|pair| pair.link);
                match link {
                    Some(link) => self.put(link, member, Item::Notification(notification)),
                    None => _ = self.network.waiting.insert((member, to), notification),
                }
            }
        }
    }

    fn note_notification(&mut self, member: usize, to: usize, notification: &Notification) {
        let what = match notification.ballot {
            Ballot::For(_) => "vote",
            Ballot::Blank(_) => "blank",
            Ballot::None => "asks",
        };
        let leader = match notification.ballot {
            Ballot::For(vote) => vote.leader.0,
            Ballot::Blank(_) | Ballot::None => 0,
        };
        let round = notification.round << 8 | leader;
        self.trace.note(self.now, member, what, to as u64, round);
    }

    fn note_packet(&mut self, member: usize, link: LinkId, packet: &Packet) {
        let (name, detail) = (packet.message.name(), zxid_of(&packet.message));
        self.counts.add(name);
        let is_quiet = matches!(packet.message, Message::Ping { .. });
        if !is_quiet {
            self.trace.note(self.now, member, name, link.0, detail);
        }
        if let Message::Ack { zxid } = packet.message {
            self.check_ack(member, zxid);
        }
        self.spring_trap(member, Trap::Sends(name));
    }

    /// Which end of a link a member has, if it is open.
    fn side(&self, id: u64, member: usize) -> Option<usize> {
        let link = self.network.links.get(&id)?;
        let life = self.members[member].life;
        let mine = |end: &End| end.open && end.member == member && end.life == life;
        link.ends.iter().position(mine)
    }

    fn put(&mut self, id: u64, from: usize, item: Item) {
        let Some(side) = self.side(id, from) else {
            return;
        };
        let delay = self.network.delay();
        let now = self.now;
        let Some(link) = self.network.links.get_mut(&id) else {
            return;
        };
        let way = &mut link.ways[side];
        let at = way.last_at.max(now + delay);
        way.last_at = at;
        way.bytes += item.bytes();
        way.queue.push_back((at, item));
        if way.queue.len() == 1 {
            self.schedule(at, Event::Pump { link: id, side });
        }
    }

    /// The link that a member has opened to its leader.
    pub(crate) fn link_to_leader(&self, member: usize) -> Option<u64> {
        let mut links = self.network.links.iter();
        let found = links.find(|(_, link)| {
            !link.is_election && link.ends[0].open && link.ends[0].member == member
        });
        found.map(|(id, _)| *id)
    }

    fn want_room(&mut self, link: LinkId, member: usize) {
        let Some(side) = self.side(link.0, member) else {
            return;
        };
        let Some(it) = self.network.links.get_mut(&link.0) else {
            return;
        };
        if it.ways[side].bytes < ROOM_BYTES {
            self.tell(member, PeerEvent::Writable { link });
        } else {
            it.ways[side].wants_room = true;
        }
    }

    fn read_stream(&mut self, id: u64, member: usize, reading: Reading) {
        let Some(side) = self.side(id, member) else {
            return;
        };
        if let Some(link) = self.network.links.get_mut(&id) {
            link.ways[1 - side].reading = reading;
            let pump = Event::Pump {
                link: id,
                side: 1 - side,
            };
            self.schedule(self.now, pump);
        }
    }

    fn close(&mut self, id: u64, member: usize) {
        if let Some(side) = self.side(id, member) {
            self.put(id, member, Item::Fin);
            if let Some(link) = self.network.links.get_mut(&id) {
                link.ends[side].open = false;
            }
        }
    }

    /// Who would get what a link delivers, and in which life.
    pub(crate) fn receiver(&self, id: u64, side: usize) -> Option<usize> {
        let link = self.network.links.get(&id)?;
        Some(link.ends[1 - side].member)
    }

    /// Delivers what has arrived.
    pub(crate) fn pump(&mut self, id: u64, side: usize) {
        loop {
            let Some(link) = self.network.links.get_mut(&id) else {
                return;
            };
            let (sender, receiver) = (link.ends[side], link.ends[1 - side]);
            let way = &mut link.ways[side];
            let Some((at, item)) = way.queue.front() else {
                return;
            };
            if *at > self.now {
                let at = *at;
                self.schedule(at, Event::Pump { link: id, side });
                return;
            }
            if self
                .network
                .blocked
                .contains(&(sender.member, receiver.member))
            {
                // When the partition ends all links are looked at.
                return;
            }
            let is_stream = matches!(item, Item::Stream(_));
            match way.reading {
                Reading::Stream { wanted: false } if !matches!(item, Item::Fin) => return,
                Reading::Stream { wanted: true } if is_stream => {
                    way.reading = Reading::Stream { wanted: false };
                }
                Reading::Stream { .. } | Reading::Packets => {}
            }
            let Some((_, item)) = way.queue.pop_front() else {
                return;
            };
            way.bytes -= item.bytes();
            if way.wants_room && way.bytes < ROOM_AGAIN_BYTES && sender.open {
                way.wants_room = false;
                self.tell(sender.member, PeerEvent::Writable { link: LinkId(id) });
            }
            if !receiver.open || self.members[receiver.member].life != receiver.life {
                if matches!(item, Item::Fin) {
                    self.end_of(id, 1 - side);
                    return;
                }
                continue;
            }
            self.deliver(id, side, receiver.member, item);
        }
    }

    fn deliver(&mut self, id: u64, side: usize, to: usize, item: Item) {
        let link = LinkId(id);
        let Some(it) = self.network.links.get_mut(&id) else {
            return;
        };
        match item {
            Item::Packet(packet) => {
                // The first end is the learner's, and only a leader sends snapshots.
                if side == 1 && matches!(packet.message, Message::Snap { .. }) {
                    it.ways[side].reading = Reading::Stream { wanted: false };
                }
                let packet = *packet;
                self.tell(to, PeerEvent::Received { link, packet });
            }
            Item::Stream(bytes) => self.tell(to, PeerEvent::StreamBytes { link, bytes }),
            Item::Notification(notification) => {
                let from = ServerId(it.ends[side].member as u64);
                let config = String::new();
                let event = PeerEvent::Notified {
                    from,
                    notification,
                    config,
                };
                self.tell(to, event);
            }
            Item::Fin => self.end_of(id, 1 - side),
        }
    }

    /// One end of a link finds that it is gone.
    fn end_of(&mut self, id: u64, side: usize) {
        let Some(link) = self.network.links.get_mut(&id) else {
            return;
        };
        let end = link.ends[side];
        let is_election = link.is_election;
        link.ends[side].open = false;
        let (a, b) = (link.ends[0].member, link.ends[1].member);
        if link.ends.iter().all(|end| !end.open) {
            self.network.links.remove(&id);
        }
        if is_election {
            let key = (a.min(b), a.max(b));
            if let Some(pair) = self.network.pairs.get_mut(&key)
                && pair.link == Some(id)
            {
                pair.link = None;
                self.network.links.remove(&id);
                self.call_again(a, b, CALL_PAUSE_MIN);
            }
        } else if end.open && self.members[end.member].life == end.life {
            self.tell(end.member, PeerEvent::Disconnected { link: LinkId(id) });
        }
    }

    /// A link breaks: what is on its way is lost, both ends find out.
    pub(crate) fn break_link(&mut self, id: u64) {
        self.end_of(id, 0);
        self.end_of(id, 1);
    }

    /// A process has ended: what it sent last may still arrive, then its peers find the ends of their links.
    pub(crate) fn links_of_dead(&mut self, member: usize) {
        let ids = self.network.open_links();
        let mut pumps = Vec::new();
        for id in ids {
            let delay = self.network.delay();
            let keep = self.network.random.next();
            let Some(link) = self.network.links.get_mut(&id) else {
                continue;
            };
            for side in 0..2 {
                if link.ends[side].member != member || !link.ends[side].open {
                    continue;
                }
                link.ends[side].open = false;
                let way = &mut link.ways[side];
                let kept = usize::try_from(keep % (way.queue.len() as u64 + 1)).unwrap_or(0);
                way.queue.truncate(kept);
                way.bytes = way.queue.iter().map(|(_, item)| item.bytes()).sum();
                let at = way.last_at.max(self.now + delay);
                way.last_at = at;
                way.bytes += Item::Fin.bytes();
                way.queue.push_back((at, Item::Fin));
                pumps.push((at, Event::Pump { link: id, side }));
            }
        }
        for (at, pump) in pumps {
            self.schedule(at, pump);
        }
        self.network.waiting.retain(|(from, _), _| *from != member);
        self.network
            .told_unreachable
            .retain(|(me, _)| *me != member);
    }

    /// A process has begun: it calls everybody.
    pub(crate) fn links_of_born(&mut self, member: usize) {
        for other in 1..=self.plan.servers {
            let key = (member.min(other), member.max(other));
            let link = self.network.pairs.get(&key).map(|pair| pair.link);
            match link {
                // What its last life left of it.
                Some(Some(link)) => self.break_link(link),
                Some(None) => self.call_again(member, other, CALL_PAUSE_MIN),
                None => {}
            }
        }
    }

    /// Something passes again that did not: all links are looked at.
    pub(crate) fn pump_all(&mut self) {
        for id in self.network.open_links() {
            for side in 0..2 {
                self.schedule(self.now, Event::Pump { link: id, side });
            }
        }
    }

    pub(crate) fn connect(&mut self, connect: Connect) {
        let Connect {
            member,
            life,
            attempt,
            leader,
            tries,
        } = connect;
        if self.members[member].life != life || !self.members[member].is_attempt(attempt) {
            return;
        }
        let id = ServerId(leader as u64);
        let server = self.master_of(member, leader).unwrap_or(leader);
        let passes = self.network.passes_both_ways(member, server);
        if passes && self.is_up(server) {
            if member > self.plan.voters {
                self.counts.add(match server == leader {
                    true => "observer goes to the leader",
                    false => "observer goes to a follower",
                });
            }
            let link = self.new_link(false, member, server);
            let link = LinkId(link);
            self.tell(member, PeerEvent::Connected { leader: id, link });
            return;
        }
        if tries >= CONNECT_TRIES_MAX {
            self.tell(member, PeerEvent::ConnectFailed { leader: id });
            return;
        }
        // A refusal comes at once, silence only after a while.
        let wait = match passes {
            true => CONNECT_PAUSE,
            false => 10 * CONNECT_PAUSE,
        };
        let next = Connect {
            tries: tries + 1,
            ..connect
        };
        self.schedule(self.now + wait, Event::Connect(next));
    }

    /// The follower that an observer goes to. One that leads takes none on that port.
    fn master_of(&mut self, member: usize, leader: usize) -> Option<usize> {
        if member <= self.plan.voters || !self.plan.masters {
            return None;
        }
        let masters: Vec<usize> = (1..=self.plan.voters)
            .filter(|it| *it != leader && self.is_up(*it))
            .filter(|it| self.network.passes_both_ways(member, *it))
            .filter(|it| !self.members[*it].standing().is_some_and(Standing::proposes))
            .collect();
        (!masters.is_empty()).then(|| self.network.random.pick(&masters))
    }
}

/// An attempt of a learner to reach its leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect {
    pub(crate) member: usize,
    pub(crate) life: u64,
    attempt: u64,
    leader: usize,
    tries: u64,
}

/// The sessions that a packet tells a leader of.
pub(crate) fn sessions_of(packet: &Packet) -> Vec<SessionId> {
    if let Rider::Touches(bytes) = &packet.rider
        && let Ok(table) = TouchTable::decode(bytes)
    {
        return table.iter().map(|touch| touch.session).collect();
    }
    if let Message::Revalidate(bytes) = &packet.message
        && let Ok(question) = Revalidation::decode(bytes)
    {
        return vec![question.session];
    }
    Vec::new()
}

/// What the trace shows of a packet.
fn zxid_of(message: &Message<Bytes>) -> u64 {
    match message {
        Message::LearnerInfo { accepted_epoch, .. } => accepted_epoch.0.into(),
        Message::LeaderInfo { epoch, .. }
        | Message::NewEpoch { epoch }
        | Message::NewLeader { epoch, .. } => epoch.0.into(),
        Message::AckEpoch { last_logged, .. } => last_logged.map_or(u64::MAX, |zxid| zxid.0),
        Message::Diff { zxid }
        | Message::Trunc { zxid }
        | Message::Snap { zxid }
        | Message::Ack { zxid }
        | Message::Commit { zxid }
        | Message::CommitAndActivate { zxid, .. } => zxid.0,
        Message::Ping { round } | Message::HandOver { round, .. } => *round,
        Message::Proposal(proposal)
        | Message::Inform(proposal)
        | Message::InformAndActivate { proposal, .. } => proposal.zxid.0,
        Message::UpToDate | Message::Sync | Message::Request(_) | Message::Revalidate(_) => 0,
    }
}
