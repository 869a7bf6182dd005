//! The replica core in its server: what it says goes to the shards, its tree to the snapshot thread.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use ringkeeper_member::{Core, Errand, Now, Work};
use ringkeeper_peers::{PeerCommand, PeerLinks};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::Disk;

use crate::clock;
use crate::config_file;
use crate::control::Ask;
use crate::fatal::{self, Reason};
use crate::hand_over::HandOvers;
use crate::messages::{CoreMessage, ShardMessage};
use crate::outbox::Outbox;
use crate::snapshots::{SnapshotTaken, Snapshots};
use crate::tree_sender::TreeSenders;

/// The replica core, and the server around it.
pub(crate) struct Replica<D: Disk> {
    pub(crate) core: Core<D>,
    shards: Vec<Outbox<ShardMessage>>,
    /// The links to other members, if there are any.
    links: Option<PeerLinks>,
    senders: TreeSenders,
    snapshots: Snapshots,
    /// A snapshot that is written and not registered yet, and who waits for one.
    taken: Option<SnapshotTaken>,
    taken_waker: Option<Waker>,
    hand_overs: HandOvers,
    shards_stopped: usize,
}

impl<D: Disk> Replica<D> {
    /// `core` in a server with these shards.
    pub(crate) fn new(
        core: Core<D>,
        shards: Vec<Outbox<ShardMessage>>,
        links: Option<PeerLinks>,
        senders: TreeSenders,
        snapshots: Snapshots,
    ) -> Self {
        Self {
            core,
            shards,
            links,
            senders,
            snapshots,
            taken: None,
            taken_waker: None,
            hand_overs: HandOvers::default(),
            shards_stopped: 0,
        }
    }

    /// Before anything else of a turn.
    pub(crate) fn start_turn(&mut self) {
        self.core.start_turn(now());
    }

    /// Takes one message.
    pub(crate) fn hear(&mut self, message: CoreMessage) {
        match message {
            CoreMessage::Client(message) => self.core.hear(message),
            CoreMessage::SnapshotTaken(taken) => self.snapshot_taken(taken),
            CoreMessage::SnapshotKept(Ok(info)) => self.core.snapshot_kept(info),
            CoreMessage::SnapshotKept(Err(error)) => {
                fatal::exit(Reason::Storage, &error);
            }
            CoreMessage::TreeChunk { link, bytes } => self.core.tree_chunk(link, bytes),
            // Who asked has gone when this fails.
            CoreMessage::Report { wanted, to } => {
                let mut report = match wanted.sessions {
                    true => self.core.report_with_sessions(),
                    false => self.core.report(),
                };
                report.metrics.extend(self.snapshots.metrics());
                report.latencies.extend(self.snapshots.latencies());
                _ = to.send(report);
            }
            CoreMessage::Asked {
                ask: Ask::HandOver { to: successor },
                to,
            } => self.hand_overs.ask(&mut self.core, successor, to),
            CoreMessage::ResetStatistics => self.core.stats_mut().reset(),
            CoreMessage::ShardStopped => self.shards_stopped += 1,
        }
    }

    /// Does the next errand, if the caller need not.
    pub(crate) fn next_work(&mut self) -> Option<Work> {
        loop {
            match self.core.next_errand()? {
                Errand::Run(work) => return Some(work),
                Errand::KeepConfiguration { text, version } => {
                    self.keep_configuration(text, version);
                }
                Errand::KeepSnapshot(tree) => self.snapshots.keep(tree),
                Errand::SendTree { link, tree } => self.senders.begin(link, tree),
                Errand::NextChunk(link) => self.senders.next(link),
                Errand::StopTree(link) => self.senders.stop(link),
            }
        }
    }

    /// Writes down who the members are, where the next start looks. It knows without that too, from the
    /// tree; so it is no more than a warning when it fails.
    fn keep_configuration(&self, text: Arc<str>, version: Zxid) {
        let config = &self.core.settings().config;
        let Some(file) = config.files.config_file.clone() else {
            return;
        };
        if !config.ensemble.reconfig || version == Zxid::ZERO {
            return;
        }
        let keep = move || {
            if let Err(error) = config_file::keep_membership(&file, &text, version.0) {
                tracing::warn!(error = format!("{error:#}"), "write down the membership");
            }
        };
        if let Err(error) = thread::Builder::new().name("config".into()).spawn(keep) {
            tracing::warn!(%error, "write down the membership");
        }
    }

    /// After a turn: what was said goes out, what is left behind is disposed of.
    pub(crate) fn end_turn(&mut self) {
        self.core.end_turn();
        self.hand_overs.look(&mut self.core);
        if let Some(change) = self.core.take_standing() {
            let shards = self.shards.iter_mut();
            shards.for_each(|shard| shard.send(ShardMessage::Standing(change)));
        }
        for notice in self.core.notices() {
            if let Some(shard) = self.shards.get_mut(notice.shard() as usize) {
                shard.send(ShardMessage::Notice(notice));
            }
        }
        self.shards.iter_mut().for_each(Outbox::flush);
        if let Some(links) = &self.links {
            for command in self.core.commands() {
                if let PeerCommand::Send { link, packet } = &command {
                    tracing::trace!(link = link.0, packet = packet.message.name(), "sent");
                }
                links.carry_out(command);
            }
            links.flush();
        }
        let mut since = self.core.stats_mut().since_snapshot;
        let (tree, history) = (self.core.published_tree(), self.core.history());
        self.snapshots.start_if_due(tree, history, &mut since);
        self.core.stats_mut().since_snapshot = since;
    }

    /// Ends every link to other members.
    pub(crate) fn close_links(&self) {
        if let Some(links) = &self.links {
            links.stop();
        }
    }

    fn snapshot_taken(&mut self, taken: Result<SnapshotTaken, String>) {
        self.snapshots.ended(taken.as_ref().ok());
        let stats = self.core.stats_mut();
        match taken {
            Ok(taken) => {
                stats.snapshots_taken += 1;
                stats.last_snapshot_ms = taken.ms;
                self.taken = Some(taken);
                if let Some(waker) = self.taken_waker.take() {
                    waker.wake();
                }
            }
            Err(error) => {
                stats.snapshot_errors += 1;
                tracing::error!(
                    error,
                    "snapshot failed; the log keeps everything until one succeeds"
                );
            }
        }
    }

    /// A snapshot that has been written and is to be registered.
    pub(crate) fn poll_taken(&mut self, context: &Context<'_>) -> Poll<SnapshotTaken> {
        match self.taken.take() {
            Some(taken) => Poll::Ready(taken),
            None => {
                self.taken_waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Whether every shard has stopped: nobody asks for anything any more.
    pub(crate) fn shards_have_stopped(&self) -> bool {
        self.shards_stopped == self.shards.len()
    }
}

/// What the clocks say.
pub(crate) fn now() -> Now {
    Now {
        monotonic_us: clock::monotonic_us(),
        wall_ms: clock::wall_ms(),
    }
}
