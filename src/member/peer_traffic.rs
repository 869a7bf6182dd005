//! What goes to and comes from the other members: packets, history for learners that lack some, and
//! whole trees.
//!
//! Invariant: what is much (history, trees) waits for room on its link, chunk by chunk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

use bytes::{Bytes, BytesMut};
use ringkeeper_peers::{Packet, PeerCommand, PeerEvent, Rider};
use ringkeeper_proto::quorum::{ForwardedRequest, Revalidated, Revalidation, Touch, TouchTable};
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{ServerId, SessionId, Zxid};
use ringkeeper_storage::{Disk, LogReader, SnapshotInfo};
use ringkeeper_tree::image::ImageReader;
use ringkeeper_tree::restore::Restored;
use ringkeeper_tree::snapshot::SnapshotError;
use ringkeeper_tree::{Events, Tree};
use ringkeeper_zab::{Input, LinkId, LogGeneration, Message, Output, Proposal};

use crate::core::{Core, Record};
use crate::errand::{Done, Errand};
use crate::observers::Passing;
use crate::reconfiguration::configuration_text;

/// How much history is read for a learner at once, in bytes.
const HISTORY_BYTES: usize = 1 << 20;

/// What is on its way to and from the other members.
#[derive(Debug, Default)]
pub(crate) struct PeerTraffic {
    pub(crate) commands: Vec<PeerCommand>,
    /// Requests of learners that have not been executed yet.
    pub(crate) forwarded: VecDeque<(LinkId, ForwardedRequest)>,
    installing: Option<Installing>,
    /// The zxid of the tree that is being sent on each link.
    sending: BTreeMap<LinkId, Zxid>,
    /// History that waits for room on its link.
    history: BTreeMap<LinkId, Vec<Proposal<Bytes>>>,
    /// Links that were asked for room.
    wants_room: BTreeSet<LinkId>,
    /// When the leader was last told which sessions live, in milliseconds.
    told_ms: u64,
    /// Sessions whose clients have left since, and their time-outs: what they said last counts too. And those that
    /// observers have told of.
    left: Vec<(SessionId, i32)>,
    /// As follower: between the observers that it serves and the leader.
    pub(crate) passing: Passing,
}

/// A tree that comes from the leader.
#[derive(Debug)]
struct Installing {
    link: LinkId,
    zxid: Zxid,
    generation: LogGeneration,
    state: InstallState,
}

#[derive(Debug)]
enum InstallState {
    /// It is coming in.
    Reading(Box<ImageReader>),
    /// All of it is here, and becomes what a restart would find. `rest` came behind it, and is a packet's
    /// beginning.
    Keeping { tree: Box<Tree>, rest: Bytes },
}

impl PeerTraffic {
    /// The role has changed: nobody waits for an answer any more.
    pub(crate) fn forget_requests(&mut self) {
        self.forwarded.clear();
        self.left.clear();
        self.passing = Passing::default();
    }
}

impl<D: Disk> Core<D> {
    /// Takes what has happened on the links.
    pub fn hear_peer(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Notified {
                from,
                notification,
                config,
            } => {
                self.adopt_configuration(&config);
                self.input(Input::Notified { from, notification });
            }
            PeerEvent::Reachable { peer, reachable } => {
                self.input(Input::Reachable { peer, reachable });
            }
            PeerEvent::Connected { leader, link } => self.input(Input::Connected { leader, link }),
            PeerEvent::ConnectFailed { leader } => self.input(Input::ConnectFailed { leader }),
            PeerEvent::Received { link, packet } => self.received(link, packet),
            PeerEvent::StreamBytes { link, bytes } => self.stream_bytes(link, &bytes),
            PeerEvent::Writable { link } => self.writable(link),
            PeerEvent::Disconnected { link } => {
                self.forget_link(link);
                self.input(Input::Disconnected { link });
            }
        }
        self.watch_itself();
        self.take_forwarded();
    }

    fn received(&mut self, link: LinkId, packet: Packet) {
        match &packet.message {
            Message::Proposal(proposal)
            | Message::Inform(proposal)
            | Message::InformAndActivate { proposal, .. } => {
                let zxid = proposal.zxid;
                match self.check_proposal(proposal) {
                    Ok(None) => {}
                    Ok(Some(text)) => self.hear_configuration(Some(zxid), &text),
                    Err(reason) => {
                        tracing::error!(link = link.0, %zxid, reason, "a proposal cannot be taken");
                        self.send_command(PeerCommand::Close { link });
                        self.forget_link(link);
                        self.input(Input::Disconnected { link });
                        return;
                    }
                }
            }
            Message::NewLeader { config, .. } if !config.is_empty() => {
                self.hear_configuration(None, config);
            }
            _ => {}
        }
        if let Rider::Touches(touches) = &packet.rider
            && let Ok(table) = TouchTable::decode(touches)
        {
            let (now_ms, touched) = (self.now.monotonic_ms(), table.iter());
            if self.zab.leader_link().is_some() {
                // The leader hears of them with the next PING.
                let touched = touched.map(|touch| (touch.session, touch.timeout_ms));
                self.traffic.left.extend(touched);
            } else {
                touched.for_each(|touch| self.sessions.touch(touch.session, now_ms));
            }
        }
        // Whoever is leaving for another leader gets no answer, but has heard of the session all the same.
        if let Message::Revalidate(question) = &packet.message
            && self.standing.proposes()
            && let Ok(question) = Revalidation::decode(question)
        {
            let now_ms = self.now.monotonic_ms();
            self.sessions.touch(question.session, now_ms);
        }
        let message = packet.message;
        if self.stats.was_synchronized.count(&message) {
            tracing::info!(
                leader = self.peer_at(link),
                by = message.name(),
                "being synchronized"
            );
        }
        self.input(Input::Received { link, message });
    }

    /// What is logged can be replayed. Returns the configuration that it sets, if it sets one.
    fn check_proposal(&self, proposal: &Proposal<Bytes>) -> Result<Option<String>, String> {
        let len_max = self.settings.tree.txn_len_max;
        if proposal.payload.len() > len_max {
            return Err(format!(
                "it has {} bytes, and the limit is {len_max} (jute.maxbuffer)",
                proposal.payload.len()
            ));
        }
        match decode_record(&proposal.payload) {
            Err(error) => Err(error.to_string()),
            Ok((header, ..)) if header.zxid != proposal.zxid => {
                Err(format!("its transaction is that of {}", header.zxid))
            }
            Ok((header, txn, _)) => Ok(configuration_text(&header, &txn)),
        }
    }

    pub(crate) fn send(&mut self, link: LinkId, packet: Packet) {
        if self.stats.synchronized.count(&packet.message) {
            let by = packet.message.name();
            tracing::info!(learner = self.peer_at(link), by, "synchronizing");
        }
        self.send_command(PeerCommand::Send { link, packet });
    }

    fn peer_at(&self, link: LinkId) -> Option<u64> {
        self.zab.peer_at(link).map(|id| id.0)
    }

    pub(crate) fn send_command(&mut self, command: PeerCommand) {
        self.traffic.commands.push(command);
    }

    /// The outputs of Zab that concern other members.
    pub(crate) fn carry_out_at_peers(&mut self, output: Output<Bytes>) {
        match output {
            Output::Send { link, message } => {
                let rider = match message {
                    Message::Ping { .. } if self.zab.leader_link() == Some(link) => self.touches(),
                    _ => Rider::None,
                };
                self.send(link, Packet { message, rider });
            }
            Output::Notify { to, notification } => {
                self.send_command(PeerCommand::Notify { to, notification });
            }
            Output::Connect { leader } => self.send_command(PeerCommand::Connect { leader }),
            Output::Close { link } => {
                self.forget_link(link);
                self.send_command(PeerCommand::Close { link });
            }
            Output::InstallSnapshot {
                link,
                zxid,
                generation,
            } => {
                self.traffic.installing = Some(Installing {
                    link,
                    zxid,
                    generation,
                    state: InstallState::Reading(Box::default()),
                });
                self.send_command(PeerCommand::ReadStream { link });
            }
            Output::SendSnapshot { link, through } => self.send_tree(link, through),
            Output::ReadHistory {
                link,
                after,
                through,
            } => self.read_history(link, after, through),
            Output::Revalidate {
                link,
                from,
                payload,
            } => self.take_revalidation(link, from, payload),
            Output::Forwarded {
                link,
                from,
                request,
            } => {
                let taken = match self.zab.leader_link() {
                    Some(_) => self.pass_request(link, request),
                    None => ForwardedRequest::decode(&request)
                        .map(|request| self.traffic.forwarded.push_back((link, request))),
                };
                if let Err(error) = taken {
                    tracing::warn!(%from, %error, "a forwarded request cannot be read");
                }
            }
            other => unreachable!("{other:?} does not concern other members"),
        }
    }

    fn take_revalidation(&mut self, link: LinkId, from: ServerId, payload: Bytes) {
        let result = match (self.standing.proposes(), self.zab.leader_link()) {
            (true, _) => {
                Revalidation::decode(&payload).map(|question| self.revalidate(link, question))
            }
            (false, leader) if leader.is_some_and(|leader| leader != link) => {
                self.pass_question(link, payload)
            }
            _ => Revalidated::decode(&payload).map(|answer| self.take_answer(answer)),
        };
        if let Err(error) = result {
            tracing::warn!(%from, %error, "a question or answer about a session cannot be read");
        }
    }

    /// A client of this learner is leaving: the leader has still to be told that its session was heard of.
    pub(crate) fn remember_touch(&mut self, session: SessionId) {
        let timeout_ms = self
            .sessions
            .timeout_if_touched(session, self.traffic.told_ms);
        let left = timeout_ms.map(|timeout_ms| (session, timeout_ms));
        self.traffic.left.extend(left);
    }

    /// The sessions that this learner has heard of since it last told.
    pub(crate) fn touches(&mut self) -> Rider {
        let since_ms = self.traffic.told_ms;
        self.traffic.told_ms = self.now.monotonic_ms();
        let mut touched: Vec<(SessionId, i32)> = self.sessions.touched_since(since_ms).collect();
        touched.append(&mut self.traffic.left);
        touched.sort_unstable();
        touched.dedup();
        let mut table = BytesMut::with_capacity(touched.len() * 12);
        for (session, timeout_ms) in touched {
            TouchTable::put(
                &mut table,
                Touch {
                    session,
                    timeout_ms,
                },
            );
        }
        Rider::Touches(table.freeze())
    }

    fn forget_link(&mut self, link: LinkId) {
        self.traffic.history.remove(&link);
        self.traffic.wants_room.remove(&link);
        self.traffic.passing.forget_link(link);
        if self.traffic.sending.remove(&link).is_some() {
            self.errands.push_back(Errand::StopTree(link));
        }
        // When all of it is here it does not matter what becomes of the link.
        let is_reading =
            |it: &mut Installing| it.link == link && matches!(it.state, InstallState::Reading(_));
        if let Some(installing) = self.traffic.installing.take_if(is_reading) {
            let generation = installing.generation;
            self.log.begin_generation(generation.0);
            self.input_next(Input::SnapshotFailed { generation });
        }
    }

    // History.

    fn read_history(&mut self, link: LinkId, after: Zxid, through: Zxid) {
        // What is in memory goes at once: while the log is read for a learner more is committed, and under
        // load it would never get to the end.
        let mut proposals = self.recent_history(after, through);
        if !proposals.is_empty() && self.zab.leader_link().is_some() {
            // Only so much may wait on an observer's link (`observerMaster.sizeLimit`).
            let mut bytes = 0;
            let fits = |it: &&Proposal<Bytes>| {
                bytes += it.payload.len();
                bytes <= HISTORY_BYTES
            };
            let count = proposals.iter().take_while(fits).count();
            proposals.truncate(count.max(1));
            self.history_read(link, proposals);
            return;
        }
        if !proposals.is_empty() {
            self.input_next(Input::HistoryRead { link, proposals });
            return;
        }
        self.write_all();
        let reader = self.log.read_history(after, through);
        let work = async move {
            let proposals = match reader {
                Ok(reader) => read_some(reader).await,
                Err(error) => {
                    tracing::info!(%after, %error, "a learner gets a snapshot");
                    Vec::new()
                }
            };
            Ok(Done::Read { link, proposals })
        };
        self.errands.push_back(Errand::Run(Box::pin(work)));
    }

    /// All of `(after, through]` from memory, or nothing.
    pub(crate) fn recent_history(&self, after: Zxid, through: Zxid) -> Vec<Proposal<Bytes>> {
        if !self.recent.reaches(after) {
            return Vec::new();
        }
        // The learner may have some of the tail: what a leader did not get committed.
        let records = self.recent.since(after).chain(&self.tail);
        let missing = records.skip_while(|record| record.zxid <= after);
        let wanted = missing.take_while(|record| record.zxid <= through);
        wanted.map(Record::proposal).collect()
    }

    pub(crate) fn history_read(&mut self, link: LinkId, proposals: Vec<Proposal<Bytes>>) {
        if proposals.is_empty() {
            self.input(Input::HistoryGone { link });
            return;
        }
        self.traffic.history.insert(link, proposals);
        self.want_room(link);
    }

    fn want_room(&mut self, link: LinkId) {
        self.traffic.wants_room.insert(link);
        self.send_command(PeerCommand::WantRoom { link });
    }

    fn writable(&mut self, link: LinkId) {
        if !self.traffic.wants_room.remove(&link) {
            return;
        }
        if let Some(proposals) = self.traffic.history.remove(&link) {
            self.input(Input::HistoryRead { link, proposals });
        } else if self.traffic.sending.contains_key(&link) {
            self.errands.push_back(Errand::NextChunk(link));
        }
    }

    // Trees.

    /// Begins to send a tree. While this server is not established, all of its log is in it.
    fn send_tree(&mut self, link: LinkId, through: Zxid) {
        let tree = match self.standing.proposes() {
            true => self.published.clone(),
            false => self.tree_at(through),
        };
        let zxid = tree.zxid().min(through);
        self.send(link, Message::Snap { zxid }.into());
        self.traffic.sending.insert(link, zxid);
        self.errands.push_back(Errand::SendTree { link, tree });
        self.want_room(link);
    }

    fn tree_at(&self, through: Zxid) -> Tree {
        let mut tree = self.head.clone();
        for record in self.tail.iter().take_while(|it| it.zxid <= through) {
            let (header, txn, _) =
                decode_record(&record.bytes).expect("it was decoded once when it came");
            // A transaction that fails does so everywhere.
            let _applied = tree.apply(&header, &txn, &mut Events::new());
        }
        tree
    }

    /// The next chunk of a tree; an empty one ends it.
    pub fn tree_chunk(&mut self, link: LinkId, bytes: Bytes) {
        let Some(zxid) = self.traffic.sending.get(&link).copied() else {
            return;
        };
        if bytes.is_empty() {
            self.traffic.sending.remove(&link);
            self.input(Input::SnapshotSent { link, zxid });
            return;
        }
        self.send_command(PeerCommand::SendStream { link, bytes });
        self.want_room(link);
    }

    fn stream_bytes(&mut self, link: LinkId, bytes: &[u8]) {
        let Some(installing) = self
            .traffic
            .installing
            .as_mut()
            .filter(|it| it.link == link)
        else {
            return;
        };
        let InstallState::Reading(reader) = &mut installing.state else {
            return;
        };
        match reader.feed(bytes) {
            Ok(false) => self.send_command(PeerCommand::ReadStream { link }),
            Ok(true) => self.image_ended(link),
            Err(error) => self.refuse_image(link, &error),
        }
    }

    fn image_ended(&mut self, link: LinkId) {
        let Some(installing) = self.traffic.installing.as_mut() else {
            return;
        };
        let InstallState::Reading(reader) = &mut installing.state else {
            return;
        };
        match mem::take(reader.as_mut()).finish(installing.zxid) {
            Ok((Restored { mut tree, .. }, rest)) => {
                // An Apache leader has written it while it applied what follows.
                tree.set_fuzzy(true);
                tracing::info!(zxid = %tree.zxid(), znodes = tree.node_count(), "snapshot received");
                installing.state = InstallState::Keeping {
                    tree: Box::new(tree.clone()),
                    rest,
                };
                self.errands.push_back(Errand::KeepSnapshot(tree));
            }
            Err(error) => self.refuse_image(link, &error),
        }
    }

    fn refuse_image(&mut self, link: LinkId, error: &SnapshotError) {
        tracing::error!(%error, "the leader's snapshot cannot be taken");
        self.send_command(PeerCommand::Close { link });
        self.forget_link(link);
        self.input(Input::Disconnected { link });
    }

    /// The snapshot of [`Errand::KeepSnapshot`] is written and verified.
    pub fn snapshot_kept(&mut self, info: SnapshotInfo) {
        let Some(installing) = &self.traffic.installing else {
            return;
        };
        let generation = installing.generation;
        self.write_all();
        self.log.begin_generation(generation.0);
        let store = self.store.clone();
        let work = async move {
            store.install_snapshot(info).await?;
            Ok(Done::Installed)
        };
        self.errands.push_back(Errand::Run(Box::pin(work)));
    }

    pub(crate) fn snapshot_installed(&mut self) {
        let Some(installing) = self.traffic.installing.take() else {
            return;
        };
        let Installing {
            link,
            zxid,
            generation,
            ..
        } = installing;
        if let InstallState::Keeping { tree, rest } = installing.state {
            // Packets are read from here on: while the log is replaced none of them could be taken.
            self.send_command(PeerCommand::EndStream { link, rest });
            self.head = *tree;
            self.history = self.store.history();
            self.show_configuration();
            self.unpublished = true;
            self.tail.clear();
            self.recent.restart(zxid);
            self.committed = zxid;
        }
        self.input(Input::SnapshotInstalled { generation });
    }
}

/// As many records as are convenient; none when the log has been purged meanwhile, or is damaged: then a
/// snapshot brings the learner in line.
async fn read_some<D: Disk>(mut reader: LogReader<D>) -> Vec<Proposal<Bytes>> {
    let (mut proposals, mut bytes) = (Vec::new(), 0);
    while bytes < HISTORY_BYTES {
        let records = match reader.next_batch().await {
            Ok(Some(records)) => records,
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "history for a learner cannot be read");
                break;
            }
        };
        for (zxid, record) in records {
            bytes += record.len();
            let payload = Bytes::copy_from_slice(record);
            proposals.push(Proposal { zxid, payload });
        }
    }
    reader.close().await;
    proposals
}
