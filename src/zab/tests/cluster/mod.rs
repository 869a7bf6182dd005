//! A cluster of replicas on disks and links of the test: carries out outputs, keeps what is under way,
//! and checks the invariants at every step. Which thing happens next is for the test to say.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod disk;

use std::collections::{BTreeMap, VecDeque};

use ringkeeper_proto::{Epoch, ServerId, Zxid};
use ringkeeper_zab::{
    Config, Ensemble, Input, LinkId, LogGeneration, Message, Notification, Output, Proposal,
    Replica, Role, Timing, Violation,
};

use disk::{Disk, Entry};

/// What goes over a learner's link.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Packet(Message<u32>),
    Snapshot { zxid: Zxid, entries: Vec<Entry> },
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) learner: ServerId,
    pub(crate) leader: ServerId,
    pub(crate) to_leader: VecDeque<Frame>,
    pub(crate) to_learner: VecDeque<Frame>,
    /// Closed by (or lost at) this end; the other end finds out when it has read the rest.
    learner_open: bool,
    leader_open: bool,
    broken: bool,
}

#[derive(Debug)]
struct Installing {
    link: LinkId,
    generation: LogGeneration,
    /// `None` until the stream has come.
    stream: Option<(Zxid, Vec<Entry>)>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: ServerId,
    pub(crate) replica: Option<Replica<u32>>,
    pub(crate) disk: Disk,
    /// What the tree shows: every transaction applied, in order.
    pub(crate) applied: Vec<Entry>,
    /// Completions on their way to the replica.
    pub(crate) completions: VecDeque<Input<u32>>,
    connecting: Option<ServerId>,
    installing: Option<Installing>,
    pub(crate) role: Role,
    /// While it is moved from one leader to another: the epoch that it leaves, and the end of its log then.
    moving_from: Option<(Epoch, Zxid)>,
}

pub(crate) struct Cluster {
    pub(crate) config: Ensemble,
    pub(crate) timing: Timing,
    /// One of two servers may decide alone.
    pub(crate) has_oracle: bool,
    /// Followers serve observers, and these go to one of them: to the first that can be reached, or after so many
    /// others.
    pub(crate) masters: Option<usize>,
    pub(crate) nodes: BTreeMap<ServerId, Node>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    /// Notifications under way, by sender and receiver.
    pub(crate) notifications: BTreeMap<(ServerId, ServerId), VecDeque<Notification>>,
    /// Pairs that cannot reach each other, smaller id first.
    pub(crate) parted: std::collections::BTreeSet<(ServerId, ServerId)>,
    next_link: u64,
    /// See [`Config::counter_max`].
    pub(crate) counter_max: u32,
    next_value: u32,
    /// What was committed anywhere, in order. Nothing of it may ever change.
    pub(crate) committed: Vec<Entry>,
    leaders: BTreeMap<Epoch, ServerId>,
    /// Epochs whose leaders have handed over, and where they ended.
    closed: BTreeMap<Epoch, Zxid>,
    /// Outputs and violations in words, when someone reads them.
    pub(crate) trace: Option<Vec<String>>,
    /// Whether the trace is printed as it grows.
    pub(crate) print: bool,
    pub(crate) stats: BTreeMap<&'static str, u64>,
}

impl Cluster {
    pub(crate) fn new(config: Ensemble, timing: Timing) -> Self {
        let members = config.voters().iter().chain(config.observers());
        let nodes = members.map(|id| (*id, Node::new(*id))).collect();
        Self {
            config,
            timing,
            has_oracle: false,
            masters: None,
            nodes,
            links: BTreeMap::new(),
            notifications: BTreeMap::new(),
            parted: std::collections::BTreeSet::new(),
            next_link: 1,
            counter_max: ringkeeper_zab::COUNTER_MAX,
            next_value: 1,
            committed: Vec::new(),
            leaders: BTreeMap::new(),
            closed: BTreeMap::new(),
            trace: None,
            print: false,
            stats: BTreeMap::new(),
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    pub(crate) fn say(&mut self, id: ServerId, text: &str) {
        if self.print {
            eprintln!("{id}: {text}");
        }
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{id}: {text}"));
        }
    }

    pub(crate) fn node(&mut self, id: ServerId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a member")
    }

    pub(crate) fn is_up(&self, id: ServerId) -> bool {
        self.nodes[&id].replica.is_some()
    }

    pub(crate) fn are_parted(&self, a: ServerId, b: ServerId) -> bool {
        self.parted.contains(&(a.min(b), a.max(b)))
    }

    // What happens to servers.

    pub(crate) fn start(&mut self, id: ServerId) {
        let mut config = Config::member(id, self.config.clone(), self.timing);
        config.counter_max = self.counter_max;
        config.serves_observers = self.masters.is_some();
        let node = self.node(id);
        if node.replica.is_some() {
            return;
        }
        let recovered = node.disk.recover();
        let loaded = recovered.committed.max(recovered.history.base());
        node.applied = node
            .disk
            .durable
            .entries()
            .filter(|(zxid, _)| *zxid <= loaded)
            .copied()
            .collect();
        node.replica = Some(Replica::new(config, recovered));
        self.step(id, Input::Tick);
        for other in self.others(id) {
            let reachable = self.is_up(other) && !self.are_parted(id, other);
            self.step(
                id,
                Input::Reachable {
                    peer: other,
                    reachable,
                },
            );
            if reachable {
                self.step(
                    other,
                    Input::Reachable {
                        peer: id,
                        reachable,
                    },
                );
            }
        }
    }

    /// Ends a server; of what was under way to its disk the first `ops` and `saves` survive.
    pub(crate) fn crash(&mut self, id: ServerId, ops: usize, saves: usize) {
        let node = self.node(id);
        if node.replica.take().is_some() {
            node.disk.crash(ops, saves);
            self.gone(id);
        }
    }

    /// Ends a server in a torn write, with which `lost` durable records go.
    pub(crate) fn crash_torn(&mut self, id: ServerId, lost: usize, known: bool) {
        let node = self.node(id);
        if node.replica.take().is_some() {
            node.disk.crash_torn(lost, known);
            self.gone(id);
        }
    }

    fn gone(&mut self, id: ServerId) {
        let node = self.node(id);
        node.completions.clear();
        node.connecting = None;
        node.installing = None;
        node.role = Role::Looking;
        let ends: Vec<_> = self.links.keys().copied().collect();
        for link in ends {
            self.close_end(link, id);
        }
        for ((from, to), queue) in &mut self.notifications {
            if *from == id || *to == id {
                queue.clear();
            }
        }
        for other in self.others(id) {
            if self.is_up(other) && !self.are_parted(id, other) {
                self.step(
                    other,
                    Input::Reachable {
                        peer: id,
                        reachable: false,
                    },
                );
            }
        }
    }

    pub(crate) fn part(&mut self, a: ServerId, b: ServerId) {
        if a == b || !self.parted.insert((a.min(b), a.max(b))) {
            return;
        }
        let between = |link: &Link| {
            [link.learner, link.leader] == [a, b] || [link.learner, link.leader] == [b, a]
        };
        let cut: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| between(link))
            .map(|(id, _)| *id)
            .collect();
        for link in cut {
            self.cut(link);
        }
        for (from, to) in [(a, b), (b, a)] {
            self.notifications.entry((from, to)).or_default().clear();
            if self.is_up(from) {
                self.step(
                    from,
                    Input::Reachable {
                        peer: to,
                        reachable: false,
                    },
                );
            }
        }
    }

    pub(crate) fn heal(&mut self, a: ServerId, b: ServerId) {
        if !self.parted.remove(&(a.min(b), a.max(b))) || !self.is_up(a) || !self.is_up(b) {
            return;
        }
        self.step(
            a,
            Input::Reachable {
                peer: b,
                reachable: true,
            },
        );
        self.step(
            b,
            Input::Reachable {
                peer: a,
                reachable: true,
            },
        );
    }

    /// The link breaks with all that was under way on it; each end finds out in its own time.
    pub(crate) fn cut(&mut self, link: LinkId) {
        if let Some(found) = self.links.get_mut(&link) {
            found.to_leader.clear();
            found.to_learner.clear();
            found.broken = true;
            self.count("link cut");
        }
    }

    fn close_end(&mut self, id: LinkId, end: ServerId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if link.learner == end {
            link.learner_open = false;
            link.to_learner.clear();
        }
        if link.leader == end {
            link.leader_open = false;
            link.to_leader.clear();
        }
    }

    // What happens on the network.

    /// Takes the next frame on the link towards its leader or its learner; false if there is none.
    pub(crate) fn deliver(&mut self, id: LinkId, to_leader: bool) -> bool {
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        let broken = link.broken;
        let (end, open, peer_open) = match to_leader {
            true => (link.leader, link.leader_open, link.learner_open),
            false => (link.learner, link.learner_open, link.leader_open),
        };
        let blocked = self.nodes[&end]
            .installing
            .as_ref()
            .is_some_and(|installing| installing.stream.is_some());
        if !open || (blocked && !to_leader) {
            return false;
        }
        let link = self.links.get_mut(&id).expect("just seen");
        let frame = match to_leader {
            true => link.to_leader.pop_front(),
            false => link.to_learner.pop_front(),
        };
        match frame {
            Some(Frame::Packet(message)) => self.step(end, Input::Received { link: id, message }),
            Some(Frame::Snapshot { zxid, entries }) => {
                let message = Message::Snap { zxid };
                self.step(end, Input::Received { link: id, message });
                if let Some(installing) = &mut self.node(end).installing
                    && installing.link == id
                {
                    installing.stream = Some((zxid, entries));
                }
            }
            None if !peer_open || broken => {
                self.close_end(id, end);
                if let Some(installing) = &self.nodes[&end].installing
                    && installing.link == id
                    && installing.stream.is_none()
                {
                    let generation = installing.generation;
                    self.node(end).installing = None;
                    self.step(end, Input::Disconnected { link: id });
                    self.step(end, Input::SnapshotFailed { generation });
                } else {
                    self.step(end, Input::Disconnected { link: id });
                }
            }
            None => return false,
        }
        self.links
            .retain(|_, link| link.learner_open || link.leader_open);
        true
    }

    pub(crate) fn notify(&mut self, from: ServerId, to: ServerId, lose: bool) -> bool {
        let queue = self.notifications.entry((from, to)).or_default();
        let Some(notification) = queue.pop_front() else {
            return false;
        };
        if !lose && self.is_up(to) {
            self.step(to, Input::Notified { from, notification });
        }
        true
    }

    /// Settles a connection attempt.
    pub(crate) fn connect(&mut self, id: ServerId) -> bool {
        let Some(leader) = self.node(id).connecting.take() else {
            return false;
        };
        let server = self.master_of(id, leader);
        if !self.nodes.contains_key(&server) || !self.is_up(server) || self.are_parted(id, server) {
            self.step(id, Input::ConnectFailed { leader });
            return true;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.links.insert(
            link,
            Link {
                learner: id,
                leader: server,
                to_leader: VecDeque::new(),
                to_learner: VecDeque::new(),
                learner_open: true,
                leader_open: true,
                broken: false,
            },
        );
        self.step(id, Input::Connected { leader, link });
        true
    }

    /// Where an observer that has found `leader` goes.
    fn master_of(&self, id: ServerId, leader: ServerId) -> ServerId {
        let (true, Some(first)) = (self.config.observers().contains(&id), self.masters) else {
            return leader;
        };
        let voters = self.config.voters().iter().copied();
        let masters: Vec<_> = voters
            .filter(|it| *it != leader && self.is_up(*it) && !self.are_parted(id, *it))
            .collect();
        match masters.len() {
            0 => leader,
            count => masters[first % count],
        }
    }

    // What happens on the disks.

    /// Flushes the first `count` writes; the report is a completion, delivered later.
    pub(crate) fn flush(&mut self, id: ServerId, count: usize) -> bool {
        let node = self.node(id);
        let Some(replica) = &node.replica else {
            return false;
        };
        if !node.disk.flush_wanted() || node.installing.as_ref().is_some() {
            return false;
        }
        let (through, generation) = node.disk.flush(count, replica.committed());
        node.completions.push_back(Input::Flushed {
            through,
            generation,
        });
        true
    }

    pub(crate) fn save(&mut self, id: ServerId) -> bool {
        let node = self.node(id);
        let Some(epochs) = node.disk.complete_save() else {
            return false;
        };
        self.step(id, Input::EpochSaved { epochs });
        true
    }

    /// Completes the installation of a snapshot whose stream has come.
    pub(crate) fn install(&mut self, id: ServerId) -> bool {
        let node = self.node(id);
        if node
            .installing
            .as_ref()
            .is_none_or(|installing| installing.stream.is_none())
        {
            return false;
        }
        let installing = node.installing.take().expect("just seen");
        let (zxid, entries) = installing.stream.expect("just seen");
        node.applied.clone_from(&entries);
        node.disk.install(zxid, entries, installing.generation);
        let generation = installing.generation;
        self.count("snapshot installed");
        self.step(id, Input::SnapshotInstalled { generation });
        true
    }

    /// Takes a snapshot of what is delivered and purges the log below it.
    pub(crate) fn purge(&mut self, id: ServerId) {
        let node = self.node(id);
        let Some(replica) = &node.replica else { return };
        let through = replica.delivered();
        if node.installing.is_some()
            || through <= node.disk.durable.base
            || node.disk.durable.last() < through
        {
            return;
        }
        node.disk.durable.purge(through);
        node.disk.view.purge(through);
        self.count("log purged");
        self.step(id, Input::HistoryPurged { through });
    }

    pub(crate) fn complete(&mut self, id: ServerId) -> bool {
        match self.node(id).completions.pop_front() {
            Some(input) => {
                self.step(id, input);
                true
            }
            None => false,
        }
    }

    /// Proposes a write if the server may; its value.
    pub(crate) fn propose(&mut self, id: ServerId) -> Option<u32> {
        let zxid = self.nodes[&id].replica.as_ref()?.next_zxid()?;
        let payload = self.next_value;
        self.next_value += 1;
        self.node(id).disk.append((zxid, payload));
        self.step(id, Input::Proposed { zxid, payload });
        Some(payload)
    }

    /// Asks a server to hand over.
    pub(crate) fn hand_over(&mut self, id: ServerId, to: Option<ServerId>, patient: bool) {
        self.step(id, Input::HandOver { to, patient });
    }

    pub(crate) fn tick(&mut self, id: ServerId) {
        self.step(id, Input::Tick);
    }

    // The replica and its outputs.

    pub(crate) fn step(&mut self, id: ServerId, input: Input<u32>) {
        let mut outputs = Vec::new();
        if self.print && !matches!(input, Input::Tick) {
            eprintln!("{id}:     <- {input:?}");
        }
        let Some(replica) = &mut self.node(id).replica else {
            return;
        };
        let result = replica.step(input, &mut outputs);
        for output in outputs {
            self.trace_output(id, &output);
            self.carry_out(id, output);
        }
        if let Err(violation) = result {
            self.say(id, &format!("violation: {violation}"));
            self.violated(&violation);
        }
    }

    fn violated(&mut self, violation: &Violation) {
        self.count("violation");
        // These cannot come about among servers that all keep the rules.
        let legal = matches!(
            violation,
            Violation::Unexpected { .. }
                | Violation::StaleEpoch { .. }
                | Violation::LearnerAhead { .. }
                | Violation::AckTimeout { .. }
                | Violation::TruncateUnknown { .. }
        );
        assert!(legal, "{violation}");
    }

    fn carry_out(&mut self, id: ServerId, output: Output<u32>) {
        match output {
            Output::SaveEpoch { epochs } => self.node(id).disk.save(epochs),
            Output::Append { proposal } => {
                self.node(id).disk.append((proposal.zxid, proposal.payload));
            }
            Output::Flush => self.node(id).disk.want_flush(),
            Output::Truncate { to, generation } => {
                self.count("truncated");
                let node = self.node(id);
                assert_ne!(node.role, Role::Moving, "takes back what its clients saw");
                node.disk.truncate(to, generation);
                assert!(
                    node.applied.last().is_none_or(|(zxid, _)| *zxid <= to),
                    "applied what is cut"
                );
            }
            Output::InstallSnapshot {
                link, generation, ..
            } => {
                let stream = None;
                self.node(id).installing = Some(Installing {
                    link,
                    generation,
                    stream,
                });
            }
            Output::SendSnapshot {
                link,
                through: zxid,
            } => {
                let node = self.node(id);
                // The learner may have acknowledged any of a candidate's history.
                let whole = zxid == node.disk.view.last();
                assert!(
                    whole || !matches!(node.role, Role::Looking | Role::Moving),
                    "a snapshot of less than the history"
                );
                let entries = node
                    .disk
                    .view
                    .entries()
                    .filter(|(at, _)| *at <= zxid)
                    .copied()
                    .collect();
                node.completions
                    .push_back(Input::SnapshotSent { link, zxid });
                self.send(id, link, Frame::Snapshot { zxid, entries });
            }
            Output::ReadHistory {
                link,
                after,
                through,
            } => self.read_history(id, link, after, through),
            Output::Send { link, message } => {
                self.check_send(id, &message);
                self.send(id, link, Frame::Packet(message));
            }
            Output::Notify { to, notification } => {
                if self.is_up(to) && !self.are_parted(id, to) {
                    self.notifications
                        .entry((id, to))
                        .or_default()
                        .push_back(notification);
                }
            }
            Output::Connect { leader } => self.node(id).connecting = Some(leader),
            Output::Close { link } => self.close_end(link, id),
            Output::Commit { through } => self.commit(id, through),
            Output::ChangeRole { role } => self.change_role(id, role),
            Output::Synced { .. } | Output::SyncDone => self.count("synced"),
            Output::HandedOver { outcome } => self.count(match outcome {
                Ok(_) => "handed over",
                Err(_) => "led on",
            }),
            Output::Activate => panic!("nobody has proposed a configuration"),
            Output::Revalidate { .. } | Output::Forwarded { .. } => self.count("forwarded"),
        }
    }

    fn send(&mut self, from: ServerId, link: LinkId, frame: Frame) {
        let Some(found) = self.links.get_mut(&link) else {
            return;
        };
        if found.broken {
            return;
        }
        if found.leader == from && matches!(self.nodes[&from].role, Role::Following { .. }) {
            let what = match &frame {
                Frame::Packet(Message::Diff { .. }) => "DIFF by a follower",
                Frame::Packet(Message::Trunc { .. }) => "TRUNC by a follower",
                Frame::Packet(Message::Inform(_)) => "INFORM by a follower",
                Frame::Packet(_) => "packet by a follower",
                Frame::Snapshot { .. } => "SNAP by a follower",
            };
            *self.stats.entry(what).or_default() += 1;
        }
        if found.learner == from && found.leader_open {
            found.to_leader.push_back(frame);
        } else if found.leader == from && found.learner_open {
            found.to_learner.push_back(frame);
        }
    }

    fn read_history(&mut self, id: ServerId, link: LinkId, after: Zxid, through: Zxid) {
        const CHUNK: usize = 3;
        let node = self.node(id);
        let proposals: Vec<_> = node
            .disk
            .view
            .log
            .iter()
            .filter(|(zxid, _)| *zxid > after && *zxid <= through)
            .take(CHUNK)
            .map(|(zxid, payload)| Proposal {
                zxid: *zxid,
                payload: *payload,
            })
            .collect();
        let gone = after < node.disk.view.base || proposals.is_empty();
        node.completions.push_back(match gone {
            true => Input::HistoryGone { link },
            false => Input::HistoryRead { link, proposals },
        });
        self.count(if gone { "history gone" } else { "history read" });
    }

    // Invariants.

    /// An acknowledgement leaves only when what it says is durable.
    fn check_send(&self, id: ServerId, message: &Message<u32>) {
        let disk = &self.nodes[&id].disk;
        match message {
            Message::Ack { zxid } if zxid.counter() == 0 => {
                assert!(
                    disk.epochs.current >= zxid.epoch(),
                    "{id} acknowledges an epoch not saved"
                );
            }
            Message::Ack { zxid } => {
                assert!(
                    disk.keeps(*zxid),
                    "{id} acknowledges {zxid:?}, which is not durable"
                );
            }
            Message::AckEpoch {
                current_epoch: Some(_),
                ..
            } => {
                assert!(!disk.wiped, "{id} promises with a blank disk");
                let saved = !disk.saves_waiting();
                assert!(saved, "{id} promises what is not saved");
            }
            Message::LeaderInfo { epoch, .. } | Message::NewEpoch { epoch } => {
                assert!(
                    disk.epochs.accepted >= *epoch,
                    "{id} leads an epoch not saved"
                );
            }
            _ => {}
        }
    }

    fn commit(&mut self, id: ServerId, through: Zxid) {
        let node = &self.nodes[&id];
        let durable = node.disk.durable.last();
        assert!(
            durable >= through,
            "{id} delivers {through:?} but has flushed {durable:?}"
        );
        let from = node.applied.last().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
        let new: Vec<Entry> = node
            .disk
            .durable
            .entries()
            .filter(|(zxid, _)| *zxid > from && *zxid <= through)
            .copied()
            .collect();
        // Usually all that was applied is known; a snapshot of a leader that was being established may
        // run ahead of that.
        let known = self.committed.len().min(node.applied.len());
        let seen = known.saturating_sub(1);
        let unseen: Vec<Entry> = node.applied[seen..].iter().chain(&new).copied().collect();
        for (at, entry) in (seen..).zip(unseen) {
            match self.committed.get(at) {
                Some(known) => assert_eq!(*known, entry, "{id} commits something else at {at}"),
                None => self.commit_new(id, entry),
            }
        }
        self.node(id).applied.extend(new);
    }

    /// Something is committed for the first time: a quorum must have it, durable.
    fn commit_new(&mut self, id: ServerId, entry: Entry) {
        if let Some((last, _)) = self.committed.last() {
            let next = last.next() == Some(entry.0);
            assert!(
                next || (entry.0.epoch() > last.epoch() && entry.0.counter() == 1),
                "a gap before {entry:?}"
            );
        }
        let end = self.closed.get(&entry.0.epoch());
        assert!(
            end.is_none_or(|end| entry.0 <= *end),
            "{entry:?} is committed in an epoch that ended at {end:?}"
        );
        let has = |server| {
            let disk = &self.nodes[&server].disk;
            let mut all = disk.durable.entries().chain(&disk.forgotten);
            all.any(|found| *found == entry)
        };
        assert!(
            self.config.is_quorum(has) || (self.has_oracle && has(id)),
            "{id} commits {entry:?} without a quorum"
        );
        self.committed.push(entry);
        self.count("committed");
    }

    fn change_role(&mut self, id: ServerId, role: Role) {
        let before = std::mem::replace(&mut self.node(id).role, role);
        let last = self.nodes[&id].disk.view.last();
        if let Role::Leading { epoch }
        | Role::Following { epoch, .. }
        | Role::Observing { epoch, .. } = before
        {
            self.node(id).moving_from = (role == Role::Moving).then_some((epoch, last));
        } else if before == Role::Moving && role != Role::Looking {
            self.close_epoch(id);
        }
        if !matches!(role, Role::Looking | Role::Moving) {
            // What a snapshot showed already is committed with the epoch.
            let known = self.committed.len().min(self.nodes[&id].applied.len());
            let early: Vec<Entry> = self.nodes[&id].applied[known..].to_vec();
            for entry in early {
                self.commit_new(id, entry);
            }
        }
        match role {
            Role::Leading { epoch } => {
                if matches!(before, Role::Leading { .. }) {
                    self.count("new epoch");
                }
                let first = *self.leaders.entry(epoch).or_insert(id);
                assert_eq!(first, id, "two leaders of {epoch:?}");
                let node = &self.nodes[&id];
                let all = node
                    .disk
                    .durable
                    .entries()
                    .zip(&self.committed)
                    .filter(|(a, b)| a == b)
                    .count();
                assert_eq!(
                    all,
                    self.committed.len(),
                    "the leader {id} lacks what was committed"
                );
                self.count("leader");
            }
            Role::Following { .. } | Role::Observing { .. } => {
                self.count("learner");
            }
            Role::Looking => self.count("role lost"),
            Role::Moving => {}
        }
    }

    /// A server that was moved to another leader serves again, and asks again for what it had not seen proposed:
    /// nothing of it may be committed.
    fn close_epoch(&mut self, id: ServerId) {
        let Some((epoch, last)) = self.node(id).moving_from.take() else {
            panic!("{id} moves, and did not serve");
        };
        let closed = *self.closed.entry(epoch).or_insert(last);
        assert_eq!(closed, last, "{id} moves, and lacks what was proposed");
        for (zxid, _) in &self.committed {
            assert!(
                *zxid <= last || zxid.epoch() > epoch,
                "{id} was told that {last:?} is the last of its epoch, and {zxid:?} is committed"
            );
        }
        self.count("moved");
    }

    /// The history of every server agrees with what was committed, as far as it says it is.
    pub(crate) fn check_applied(&self) {
        for node in self.nodes.values().filter(|node| node.replica.is_some()) {
            if matches!(node.role, Role::Looking | Role::Moving) {
                continue;
            }
            for (ours, all) in node.applied.iter().zip(&self.committed) {
                assert_eq!(ours, all, "{} shows something else", node.id);
            }
            assert!(
                node.applied.len() <= self.committed.len(),
                "{} shows what is not committed",
                node.id
            );
        }
    }

    pub(crate) fn others(&self, id: ServerId) -> Vec<ServerId> {
        self.nodes
            .keys()
            .copied()
            .filter(|other| *other != id)
            .collect()
    }

    /// Everything that can happen without time passing, until nothing is left. The disks of `held`
    /// do nothing.
    pub(crate) fn settle(&mut self, held: &[ServerId]) {
        for _ in 0..100_000 {
            let mut busy = false;
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            for from in &ids {
                for to in &ids {
                    busy |= self.notify(*from, *to, false);
                }
            }
            for id in &ids {
                busy |= self.is_up(*id) && self.connect(*id);
            }
            let links: Vec<_> = self.links.keys().copied().collect();
            for link in links {
                busy |= self.deliver(link, true);
                busy |= self.deliver(link, false);
            }
            for id in ids
                .iter()
                .filter(|id| !held.contains(id) && self.is_up(**id))
                .copied()
                .collect::<Vec<_>>()
            {
                busy |= self.flush(id, usize::MAX);
                busy |= self.save(id);
                busy |= self.install(id);
            }
            for id in ids.iter().filter(|id| !held.contains(id)) {
                busy |= self.complete(*id);
            }
            if !busy {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn trace_output(&mut self, id: ServerId, output: &Output<u32>) {
        if self.trace.is_none() && !self.print {
            return;
        }
        let peer = |link: &LinkId| {
            self.links.get(link).map_or_else(
                || "?".to_owned(),
                |found| {
                    (if found.learner == id {
                        found.leader
                    } else {
                        found.learner
                    })
                    .to_string()
                },
            )
        };
        let text = match output {
            Output::SaveEpoch { epochs } => {
                format!(
                    "save accepted {} current {}",
                    epochs.accepted, epochs.current
                )
            }
            Output::Append { proposal } => format!("append {:?}", proposal.zxid),
            Output::Flush => "flush".to_owned(),
            Output::Truncate { to, .. } => format!("truncate to {to:?}"),
            Output::InstallSnapshot { zxid, .. } => format!("install snapshot {zxid:?}"),
            Output::SendSnapshot { link, through } => {
                format!("send SNAP {through:?} -> {}", peer(link))
            }
            Output::ReadHistory {
                after,
                through,
                link,
            } => {
                format!("read ({after:?}, {through:?}] for {}", peer(link))
            }
            Output::Send { link, message } => {
                format!("send {} -> {}", describe(message), peer(link))
            }
            Output::Notify { .. } | Output::Connect { .. } => return,
            Output::Close { link } => format!("close link to {}", peer(link)),
            Output::Activate => "activate the configuration".into(),
            Output::Commit { through } => format!("commit {through:?}"),
            Output::Synced { tag } => format!("synced {tag}"),
            Output::SyncDone => "sync done".to_owned(),
            Output::HandedOver { outcome: Ok(to) } => format!("hands over to {to}"),
            Output::HandedOver {
                outcome: Err(reason),
            } => format!("leads on: {reason}"),
            Output::Revalidate { from, .. } => format!("revalidate from {from}"),
            Output::Forwarded { from, request, .. } => format!("request {request} from {from}"),
            Output::ChangeRole { role } => format!("role {role:?}"),
        };
        self.say(id, &text);
    }
}

impl Node {
    fn new(id: ServerId) -> Self {
        Self {
            id,
            replica: None,
            disk: Disk::default(),
            applied: Vec::new(),
            completions: VecDeque::new(),
            connecting: None,
            installing: None,
            role: Role::Looking,
            moving_from: None,
        }
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.connecting.is_some()
    }

    pub(crate) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }
}

/// A packet in words.
pub(crate) fn describe(message: &Message<u32>) -> String {
    let name = message.name();
    match message {
        Message::LearnerInfo { accepted_epoch, .. } => format!("{name} accepted {accepted_epoch}"),
        Message::LeaderInfo { epoch, .. }
        | Message::NewEpoch { epoch }
        | Message::NewLeader { epoch, .. } => {
            format!("{name} {epoch}")
        }
        Message::AckEpoch {
            current_epoch,
            last_logged,
            snapshot,
            doubted,
        } => {
            let epoch = current_epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
            let last = last_logged.map_or_else(|| "-".to_owned(), |last| format!("{last:?}"));
            let snapshot = if *snapshot { " wants a snapshot" } else { "" };
            let doubt = match doubted {
                None => String::new(),
                Some(Zxid(u64::MAX)) => " doubtful".to_owned(),
                Some(through) => format!(" doubtful through {through:?}"),
            };
            format!("{name} current {epoch} last {last}{snapshot}{doubt}")
        }
        Message::Diff { zxid }
        | Message::Trunc { zxid }
        | Message::Snap { zxid }
        | Message::Ack { zxid }
        | Message::Commit { zxid }
        | Message::CommitAndActivate { zxid, .. } => format!("{name} {zxid:?}"),
        Message::Ping { round } => format!("{name} {round}"),
        Message::HandOver { leader, .. } => format!("{name} {leader}"),
        Message::Proposal(proposal)
        | Message::Inform(proposal)
        | Message::InformAndActivate { proposal, .. } => {
            format!("{name} {:?}", proposal.zxid)
        }
        Message::UpToDate | Message::Sync | Message::Request(_) | Message::Revalidate(_) => {
            name.to_owned()
        }
    }
}
