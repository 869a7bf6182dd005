//! A shard: the connections of one executor, their watches, and the reads they ask for.
//!
//! Invariants:
//! - The shard shows the state of the last publication it has walked, and walks to the end of the
//!   chain before it answers a read, takes a setWatches or a connect request. So no client of this
//!   server reads anything older than a reply that any client of it has got.
//! - Within a publication each step is, in order: the reads of that session that waited before it, its
//!   watch events, its reply. A client sees the event before it can read the change.
//! - What a batch makes for a connection leaves in one send.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use ringkeeper_member::{
    Answer, Attached, ClientKey, ClientMessage, ClientNotice, Publication, Settings, Standing,
    StandingChange, Step,
};
use ringkeeper_proto::connect::ConnectResponse;
use ringkeeper_proto::jute::{WriteJute, put_frame};
use ringkeeper_proto::reply::{ReplyHeader, WriteReply, put_header_only, put_watch_event};
use ringkeeper_proto::{LossyText, OpCode, Reader, Request, SessionId, Xid, ZkError, Zxid};
use ringkeeper_transport::{Cursor, SendError, WriteHalf};
use ringkeeper_tree::session::password_of;
use ringkeeper_tree::watch::{WatchTable, Watcher};
use ringkeeper_tree::{Event, Tree, acl};

use crate::client::{Client, ClientStats, Pending, Stage, WaitingRead};
use crate::clients::Clients;
use crate::clock;
use crate::counts::SharedCounts;
use crate::link::Links;
use crate::messages::{CoreMessage, ShardMessage};
use crate::outbox::Outbox;

use crate::read_path::ReadContext;
use crate::report::{ConnectionReport, ShardReport, Wanted};
use crate::stats::ShardStats;

/// Bytes that may wait for a connection's peer before the shard stops reading its requests.
pub(crate) const UNSENT_BYTES_PAUSE: usize = 1 << 20;

/// Requests of one connection that may wait for the replica core before the shard stops reading.
const PENDING_MAX: usize = 4096;

/// What a reader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Receive more.
    Receive,
    /// Wait until [`Shard::ready_to_read`], then look at what has been received.
    Pause,
    /// Answer the four-letter word, then close.
    FourLetterWord([u8; 4]),
    /// End the connection; what is queued for it is still sent.
    End,
}

/// The state of a shard, shared by the tasks of its executor.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) index: u32,
    pub(crate) settings: Arc<Settings>,
    pub(crate) tree: Tree,
    /// Taken out only while the chain is walked.
    cursor: Option<Cursor<Publication>>,
    /// Whether it is rung for publications in which nobody here is answered.
    eager: bool,
    pub(crate) clients: Clients,
    pub(crate) watches: WatchTable,
    pub(crate) core: Outbox<CoreMessage>,
    others: Vec<Outbox<ShardMessage>>,
    /// Connections with something to send.
    pub(crate) dirty: Vec<ClientKey>,
    /// Connections whose first waiting request is a read that the batch has freed.
    freed: Vec<ClientKey>,
    /// Connections whose reader waits.
    paused: Vec<ClientKey>,
    pub(crate) stats: ShardStats,
    pub(crate) counts: Arc<SharedCounts>,
    /// Requests that wait, less those that were answered, since the shared count was told.
    pub(crate) outstanding: isize,
    /// What the server is; without a leader it takes no clients.
    pub(crate) standing: Standing,
    stopping: bool,
    /// When the walk of the present publication began, in microseconds of the monotonic clock.
    walk_us: u64,
}

/// What a shard is made of.
#[derive(Debug)]
pub(crate) struct ShardParts {
    pub(crate) index: u32,
    pub(crate) settings: Arc<Settings>,
    pub(crate) tree: Tree,
    pub(crate) cursor: Cursor<Publication>,
    pub(crate) links: Links,
    pub(crate) standing: Standing,
    /// Decides how watched paths are spread; not to be guessed by a client.
    pub(crate) seed: u64,
}

impl Shard {
    /// A shard without connections.
    pub(crate) fn new(parts: ShardParts) -> Self {
        Self {
            index: parts.index,
            settings: parts.settings,
            tree: parts.tree,
            cursor: Some(parts.cursor),
            eager: true,
            clients: Clients::new(parts.index),
            watches: WatchTable::new(parts.seed),
            core: Outbox::new(parts.links.core),
            others: parts.links.shards.into_iter().map(Outbox::new).collect(),
            dirty: Vec::new(),
            freed: Vec::new(),
            paused: Vec::new(),
            stats: ShardStats::new(),
            counts: parts.links.counts,
            outstanding: 0,
            standing: parts.standing,
            stopping: false,
            walk_us: 0,
        }
    }

    /// Takes in a new connection.
    pub(crate) fn admit(&mut self, output: WriteHalf, peer: SocketAddr) -> ClientKey {
        self.clients.insert(|key| Client {
            key,
            output,
            peer,
            stage: Stage::Opened,
            session: SessionId::NONE,
            timeout_ms: 0,
            touch: None,
            knows_read_only: true,
            identities: [acl::ip_identity(peer.ip())].into(),
            pending: VecDeque::new(),
            dirty: false,
            paused: None,
            stats: ClientStats {
                established_ms: clock::wall_ms(),
                ..ClientStats::default()
            },
        })
    }

    /// Walks the chain to its end: replies, events and the new state.
    pub(crate) fn catch_up(&mut self) {
        let Some(mut cursor) = self.cursor.take() else {
            return;
        };
        let mut walked = false;
        while let Some(publication) = cursor.next() {
            self.walk(publication);
            walked = true;
        }
        self.cursor = Some(cursor);
        if walked {
            self.tell_outstanding();
            self.resume_paused();
        }
    }

    fn walk(&mut self, publication: &Publication) {
        self.walk_us = clock::monotonic_us();
        let mut events = publication.events.iter();
        let mut events_start = 0;
        for step in &publication.steps {
            let mine = match step.answer.to() {
                Some(key) if key.shard == self.index => Some(key),
                _ => None,
            };
            if let (Some(key), Some(before)) = (mine, &step.before) {
                self.answer_waiting_reads(key, before);
            }
            let count = step.events_end - events_start;
            for event in events.by_ref().take(count) {
                self.tell_watchers(&event);
            }
            events_start = step.events_end;
            if let Some(key) = mine {
                self.answer(key, step);
            }
        }
        self.tree = publication.tree.clone();
        while let Some(key) = self.freed.pop() {
            self.answer_waiting_reads(key, &publication.tree);
        }
    }

    /// Answers the reads at the front of a connection's queue, on `tree`.
    fn answer_waiting_reads(&mut self, key: ClientKey, tree: &Tree) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        while matches!(client.pending.front(), Some(Pending::Read(_)))
            && let Some(Pending::Read(read)) = client.pending.pop_front()
        {
            self.outstanding -= 1;
            let mut answering = Answering {
                tree,
                settings: &self.settings,
                watches: &mut self.watches,
                stats: &mut self.stats,
                dirty: &mut self.dirty,
            };
            answering.read(client, &read);
        }
    }

    /// Answers a read at once, on the state that the shard shows.
    pub(crate) fn answer_read(&mut self, key: ClientKey, read: &WaitingRead) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let mut answering = Answering {
            tree: &self.tree,
            settings: &self.settings,
            watches: &mut self.watches,
            stats: &mut self.stats,
            dirty: &mut self.dirty,
        };
        answering.read(client, read);
    }

    fn tell_watchers(&mut self, event: &Event<'_>) {
        let Self {
            watches,
            clients,
            dirty,
            settings,
            stats,
            ..
        } = self;
        watches.fire(event.kind, event.path, |watcher, kind, path| {
            let Some(client) = clients.watcher_mut(watcher) else {
                return;
            };
            if event.may_be_told(&client.identities, &settings.tree) {
                put_watch_event(kind, path, Some(event.zxid), &mut client.output.queue());
                client.stats.sent += 1;
                stats.event(kind);
                mark_dirty(client, dirty);
            }
        });
    }

    fn answer(&mut self, key: ClientKey, step: &Step) {
        match &step.answer {
            Answer::Nobody => {}
            Answer::Write { xid, outcome, .. } => self.answer_write(key, *xid, step.zxid, outcome),
            Answer::Session { session, .. } => self.attach(key, session),
            Answer::Dropped { .. } => self.end(key),
        }
    }

    fn answer_write(
        &mut self,
        key: ClientKey,
        xid: Xid,
        zxid: Zxid,
        outcome: &Result<WriteReply, ZkError>,
    ) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let Some(Pending::Write {
            op,
            sync,
            large_bytes,
            arrived_us,
        }) = client.pending.pop_front()
        else {
            return;
        };
        self.counts.finished_large(large_bytes);
        self.outstanding -= 1;
        let synced = sync.map(|body| read_sync(&body));
        let failed = match (outcome, &synced) {
            (Err(error), _) | (Ok(_), Some(Err(error))) => Err(*error),
            (Ok(_), _) => Ok(()),
        };
        put_frame(&mut client.output.queue(), |out| {
            ReplyHeader::new(xid, zxid, failed).encode(out);
            match (outcome, &synced) {
                // A SyncResponse is a SyncRequest: the path.
                (Ok(_), Some(Ok(path))) => out.put_buffer(path.as_ref().map(String::as_bytes)),
                (Ok(reply), None) => reply.encode(out),
                (Err(_), _) | (Ok(_), Some(Err(_))) => {}
            }
        });
        let latency_us = self.walk_us.saturating_sub(arrived_us);
        self.stats
            .replied(&mut client.stats, op, xid, zxid, latency_us);
        mark_dirty(client, &mut self.dirty);
        let is_last = self.stopping && client.pending.is_empty();
        if op == OpCode::CloseSession || is_last {
            self.end(key);
        } else if matches!(client.pending.front(), Some(Pending::Read(_))) {
            self.freed.push(key);
        }
    }

    /// A connection has its session: it is told, and may ask.
    pub(crate) fn attach(&mut self, key: ClientKey, session: &Attached) {
        let Some(client) = self.clients.get_mut(key) else {
            // It ended meanwhile; the core heard so before it had a session to detach.
            self.ask(ClientMessage::Disconnected {
                from: key,
                session: session.session,
            });
            return;
        };
        if client.stage != Stage::Connecting {
            return;
        }
        let is_read_only = self.standing == Standing::ReadOnly;
        client.stage = Stage::Attached;
        client.session = session.session;
        client.timeout_ms = session.timeout_ms;
        client.touch = Some(Arc::clone(&session.touch));
        ConnectResponse {
            timeout_ms: session.timeout_ms,
            session: session.session,
            password: password_of(session.session),
            read_only: client.knows_read_only.then_some(is_read_only),
        }
        .encode_frame(&mut client.output.queue());
        client.stats.sent += 1;
        self.stats.sent += 1;
        mark_dirty(client, &mut self.dirty);
        client.resume();
    }

    /// The session a connection came back for does not exist: it is told so and closed.
    pub(crate) fn refuse_session(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let is_read_only = self.standing == Standing::ReadOnly;
        let read_only = client.knows_read_only.then_some(is_read_only);
        ConnectResponse::expired(read_only).encode_frame(&mut client.output.queue());
        client.stats.sent += 1;
        self.stats.sent += 1;
        self.end(key);
    }

    /// Takes what the replica core (or another shard) says.
    pub(crate) fn hear(&mut self, message: ShardMessage) {
        self.catch_up();
        match message {
            ShardMessage::Standing(change) => self.take_standing(change),
            ShardMessage::Notice(notice) => self.take_notice(notice),
            // The shard's loop takes these; one that comes when it has ended is closed.
            ShardMessage::Adopt(accepted) => drop(accepted),
            ShardMessage::Report { wanted, to } => {
                // Who asked has gone when this fails.
                _ = to.send(self.report(wanted));
            }
            ShardMessage::ResetStatistics { connections } => {
                if connections {
                    self.clients
                        .iter_mut()
                        .for_each(|client| client.stats.reset());
                } else {
                    self.stats = ShardStats::new();
                }
            }
            ShardMessage::Stop => {
                self.stopping = true;
                let idle = self
                    .clients
                    .iter()
                    .filter(|client| client.pending.is_empty());
                let keys: Vec<_> = idle.map(|client| client.key).collect();
                keys.into_iter().for_each(|key| self.end(key));
            }
        }
        self.flush();
    }

    /// Whatever role ends, its clients have to look for a server again, unless another leader takes over by plan.
    fn take_standing(&mut self, change: StandingChange) {
        self.standing = change.standing;
        if change.keeps_clients {
            return;
        }
        let with_session = |client: &&Client| client.stage != Stage::Opened;
        let clients = self.clients.iter().filter(with_session);
        let keys: Vec<_> = clients.map(|client| client.key).collect();
        for key in keys {
            self.forget_watches(key);
            self.end(key);
        }
    }

    fn take_notice(&mut self, notice: ClientNotice) {
        match notice {
            ClientNotice::Drop { client } => self.end(client),
            ClientNotice::Attach { to, session } => self.attach(to, &session),
            ClientNotice::Expired { to } => self.refuse_session(to),
            ClientNotice::Detach {
                client,
                then,
                session,
            } => {
                self.forget_watches(client);
                self.end(client);
                self.flush();
                let attach = ClientNotice::Attach { to: then, session };
                self.send_to_shard(then.shard, ShardMessage::Notice(attach));
            }
        }
    }

    /// Whether a connection has its session.
    pub(crate) fn has_session(&self, key: ClientKey) -> bool {
        self.clients
            .watcher(Watcher(key.index))
            .is_some_and(|client| client.stage == Stage::Attached)
    }

    /// Whether everything under way is answered and sent: the end of a stop.
    pub(crate) fn is_drained(&self) -> bool {
        self.clients
            .iter()
            .all(|client| client.stage == Stage::Closing && client.output.pending() == 0)
    }

    fn send_to_shard(&mut self, shard: u32, message: ShardMessage) {
        if shard == self.index {
            self.hear(message);
        } else if let Some(other) = self.others.get_mut(shard as usize) {
            other.send(message);
        }
    }

    fn forget_watches(&mut self, key: ClientKey) {
        if self.clients.get_mut(key).is_some() {
            self.watches.remove_watcher(Watcher(key.index));
        }
    }

    /// Ends a connection: nothing more is read, what is queued is sent, then it is closed.
    pub(crate) fn end(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.stage = Stage::Closing;
        mark_dirty(client, &mut self.dirty);
        client.resume();
    }

    /// A connection is gone: its watches go with it, its session stays until it expires.
    pub(crate) fn forget(&mut self, key: ClientKey) {
        self.forget_watches(key);
        let Some(client) = self.clients.remove(key) else {
            return;
        };
        for pending in &client.pending {
            self.outstanding -= 1;
            if let Pending::Write { large_bytes, .. } = pending {
                self.counts.finished_large(*large_bytes);
            }
        }
        self.tell_outstanding();
        if client.session != SessionId::NONE {
            self.ask(ClientMessage::Disconnected {
                from: key,
                session: client.session,
            });
        }
    }

    /// Hands a client's wish to the replica core.
    pub(crate) fn ask(&mut self, message: ClientMessage) {
        self.core.send(CoreMessage::Client(message));
    }

    /// Asks to be woken for every publication while one of them may mean something here: an event to a
    /// watch, room to a reader that waits. The others are walked in passing; waking an executor that has
    /// nothing to do would cost a lone client of another more CPU than its write.
    fn settle_eagerness(&mut self) {
        let eager = self.watches.watch_count() > 0 || !self.paused.is_empty();
        if eager == self.eager {
            return;
        }
        self.eager = eager;
        if self
            .cursor
            .as_ref()
            .is_some_and(|cursor| cursor.set_eager(eager))
            && eager
        {
            self.catch_up();
        }
    }

    /// Brings the shared count up to date.
    pub(crate) fn tell_outstanding(&mut self) {
        self.counts
            .add_outstanding(mem::take(&mut self.outstanding));
    }

    /// Whether there are publications that have not been walked.
    pub(crate) fn is_behind(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::has_next)
    }

    /// Sends what is queued: one send per connection, one wake-up per mailbox.
    pub(crate) fn flush(&mut self) {
        self.settle_eagerness();
        while let Some(key) = self.dirty.pop() {
            let Some(client) = self.clients.get_mut(key) else {
                continue;
            };
            client.dirty = false;
            if let Err(SendError::TooSlow { .. }) = client.output.flush() {
                self.stats.dropped_slow += 1;
                tracing::warn!(peer = %client.peer, session = %client.session,
                    "dropped a client that does not read what it is sent");
            }
            if client.stage == Stage::Closing {
                client.output.close();
            }
        }
        self.core.flush();
        self.others.iter_mut().for_each(Outbox::flush);
    }

    /// Whether a connection's next request may be read now.
    pub(crate) fn ready_to_read(&mut self, key: ClientKey) -> bool {
        let is_full = self.core.is_full();
        let (counts, untold) = (&self.counts, self.outstanding);
        let Some(client) = self.clients.get_mut(key) else {
            return true;
        };
        match client.stage {
            Stage::Closing => true,
            Stage::Connecting => false,
            Stage::Opened => !is_full,
            Stage::Attached => {
                !is_full
                    && !self.stopping
                    && client.output.pending() < UNSENT_BYTES_PAUSE
                    && client.pending.len() < PENDING_MAX
                    && (client.pending.is_empty() || !counts.over_limit(untold))
                    && !counts.is_throttled(untold)
            }
        }
    }

    /// Waits until [`Shard::ready_to_read`].
    pub(crate) async fn wait_ready(shard: &Rc<RefCell<Self>>, key: ClientKey) {
        poll_fn(|context| {
            let mut this = shard.borrow_mut();
            if this.ready_to_read(key) {
                return Poll::Ready(());
            }
            if let Some(client) = this.clients.get_mut(key) {
                client.paused = Some(context.waker().clone());
                this.paused.push(key);
                this.settle_eagerness();
            }
            Poll::Pending
        })
        .await;
    }

    /// Lets readers go on whose wait is over.
    pub(crate) fn resume_paused(&mut self) {
        for key in mem::take(&mut self.paused) {
            if self.ready_to_read(key) {
                if let Some(client) = self.clients.get_mut(key) {
                    client.resume();
                }
            } else {
                self.paused.push(key);
            }
        }
    }

    /// What this shard says of itself.
    fn report(&self, wanted: Wanted) -> ShardReport {
        let connections = if wanted.connections {
            self.clients.iter().map(ConnectionReport::of).collect()
        } else {
            Vec::new()
        };
        let watches = if wanted.watches {
            let sessions = |watchers: &mut dyn Iterator<Item = Watcher>| {
                let clients = watchers.filter_map(|watcher| self.clients.watcher(watcher));
                clients.map(|client| client.session).collect()
            };
            let by_path = self.watches.by_path();
            by_path
                .map(|(path, mut watchers)| (path.to_owned(), sessions(&mut watchers)))
                .collect()
        } else {
            Vec::new()
        };
        ShardReport {
            stats: self.stats.clone(),
            tree: self.tree.clone(),
            connections,
            watches,
            watch_count: self.watches.watch_count(),
        }
    }
}

/// The path of a sync. Apache looks at it only when it replies, and so does this.
fn read_sync(body: &[u8]) -> Result<Option<String>, ZkError> {
    let text = LossyText::new();
    let path = Reader::new(body).lossy(&text).ustring();
    path.map(|path| path.map(str::to_owned))
        .map_err(|_| ZkError::MarshallingError)
}

/// What it takes to answer a read.
struct Answering<'a> {
    tree: &'a Tree,
    settings: &'a Settings,
    watches: &'a mut WatchTable,
    stats: &'a mut ShardStats,
    dirty: &'a mut Vec<ClientKey>,
}

impl Answering<'_> {
    fn read(&mut self, client: &mut Client, read: &WaitingRead) {
        let xid = if read.op == OpCode::Ping {
            Xid::PING
        } else {
            read.xid
        };
        let mut context = ReadContext {
            tree: self.tree,
            settings: &self.settings.tree,
            watches: &mut *self.watches,
            watcher: Watcher(client.key.index),
            session: client.session,
            identities: &read.identities,
        };
        let mut out = client.output.queue();
        let text = LossyText::new();
        match Request::decode_lossy(read.op, &read.body, &text) {
            Ok(request) => _ = context.reply(xid, &request, &mut out),
            Err(_) => {
                let error = Err(ZkError::MarshallingError);
                put_header_only(ReplyHeader::new(xid, self.tree.zxid(), error), &mut out);
            }
        }
        drop(out);
        let zxid = self.tree.zxid();
        let latency_us = clock::monotonic_us().saturating_sub(read.arrived_us);
        self.stats
            .replied(&mut client.stats, read.op, xid, zxid, latency_us);
        mark_dirty(client, self.dirty);
    }
}

/// Notes that a connection has something to send.
pub(crate) fn mark_dirty(client: &mut Client, dirty: &mut Vec<ClientKey>) {
    if !client.dirty {
        client.dirty = true;
        dirty.push(client.key);
    }
}
