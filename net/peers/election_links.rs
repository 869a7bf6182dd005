//! Connections for elections: one with each peer that can be reached.
//!
//! Of two servers the one with the larger number opens the connection. The other one may open one too,
//! says hello, and closes it: then the larger one calls back. So there is never more than one
//! (ZooKeeper: `QuorumCnxManager`).
//!
//! Voters are called all the time, with pauses that grow; observers only when there is something to
//! say, for they call themselves. Servers that are no members may call too: they may be about to join.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, mem};

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::ServerId;
use ringkeeper_proto::election::{Hello, Notification as Record};
use ringkeeper_transport::{
    ConnectOptions, Connection, Listener, ReadHalf, Task, WriteHalf, connect_any, spawn_local,
    timeout,
};
use ringkeeper_zab::Notification;

use crate::contract::PeerEvent;
use crate::events::{EventQueue, Signal, Source};
use crate::learner_links::{KEEPALIVE, addresses_of, connection_limits};
use crate::settings::{MemberAddress, PeerSettings, Roster};
use crate::wire;

/// Callers that have not said who they are, at most.
const GREETINGS_MAX: usize = 64;

/// Connections with servers that are no members, at most.
const STRANGERS_MAX: usize = 64;

/// Between two calls that fail; doubles from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A connection that lived for so long was a good one: the next call need not wait.
const GOOD_AFTER: Duration = Duration::from_secs(2);

/// All election connections of this server.
#[derive(Debug)]
pub(crate) struct ElectionLinks {
    shared: Rc<Shared>,
    tasks: RefCell<Vec<Task<()>>>,
}

#[derive(Debug)]
struct Shared {
    settings: Rc<PeerSettings>,
    roster: Roster,
    queue: Rc<EventQueue>,
    peers: RefCell<BTreeMap<ServerId, Rc<Peer>>>,
    /// The text of the configuration.
    config: RefCell<Arc<str>>,
    greetings: Cell<usize>,
    /// Observers without a number that have called.
    nameless: Cell<u64>,
}

#[derive(Debug)]
struct Peer {
    id: ServerId,
    /// `None`: not a member.
    votes: Cell<Option<bool>>,
    /// Whether there is a task that calls it.
    is_called: Cell<bool>,
    addresses: RefCell<Vec<MemberAddress>>,
    source: Rc<Source>,
    connection: RefCell<Option<WriteHalf>>,
    /// Counts connections, so that the end of an old one is not taken for that of the present one.
    incarnation: Cell<u64>,
    since: Cell<Option<Instant>>,
    /// What waits for a connection.
    waiting: RefCell<Option<Bytes>>,
    /// It has called, and waits for this server's call.
    call_back: Cell<bool>,
    /// A connection came or went, or it is to be called.
    changed: Signal,
    /// What was last told about it.
    told: Cell<Option<bool>>,
}

impl ElectionLinks {
    /// Begins to call the members.
    pub(crate) fn start(settings: Rc<PeerSettings>, roster: Roster, queue: Rc<EventQueue>) -> Self {
        let shared = Rc::new(Shared {
            config: RefCell::new(Arc::clone(&settings.config)),
            settings,
            roster,
            queue,
            peers: RefCell::default(),
            greetings: Cell::new(0),
            nameless: Cell::new(0),
        });
        let links = Self {
            shared: Rc::clone(&shared),
            tasks: RefCell::default(),
        };
        links.call_members();
        links
    }

    /// The members are others from now on.
    pub(crate) fn configure(&self, config: Arc<str>) {
        self.shared.config.replace(config);
        self.call_members();
    }

    /// Calls whoever is a member, and nobody else.
    fn call_members(&self) {
        let shared = &self.shared;
        let roster = shared.roster.borrow();
        for peer in shared.peers.borrow().values() {
            if !roster.contains_key(&peer.id) {
                peer.votes.set(None);
            }
        }
        for (id, member) in roster.iter().filter(|(id, _)| **id != shared.settings.id) {
            let peer = {
                let mut peers = shared.peers.borrow_mut();
                let new = || Rc::new(Peer::new(*id, None, Vec::new()));
                Rc::clone(peers.entry(*id).or_insert_with(new))
            };
            peer.votes.set(Some(member.votes));
            peer.addresses.replace(member.addresses.clone());
            peer.changed.set();
            if !peer.is_called.replace(true) {
                let task = spawn_local(keep_connected(Rc::clone(shared), peer));
                self.tasks.borrow_mut().push(task);
            }
        }
    }

    /// Takes peers that come to `listener`.
    pub(crate) fn accept_from(&self, listener: Listener) {
        let task = spawn_local(accept(Rc::clone(&self.shared), listener));
        self.tasks.borrow_mut().push(task);
    }

    /// Sends a message, or lets it wait for a connection; an older one that waits is dropped.
    pub(crate) fn notify(&self, to: ServerId, notification: &Notification) {
        let peer = self.shared.peers.borrow().get(&to).cloned();
        let Some(peer) = peer else {
            return;
        };
        let mut out = BytesMut::new();
        wire::put_notification(notification, &self.shared.config.borrow(), &mut out);
        peer.say(out.freeze());
    }

    /// Ends everything at once.
    pub(crate) fn stop(&self) {
        drop(self.tasks.take());
        let peers = mem::take(&mut *self.shared.peers.borrow_mut());
        for peer in peers.into_values() {
            peer.source.close();
            peer.hang_up();
        }
    }
}

impl Peer {
    fn new(id: ServerId, votes: Option<bool>, addresses: Vec<MemberAddress>) -> Self {
        Self {
            id,
            votes: Cell::new(votes),
            is_called: Cell::new(false),
            addresses: RefCell::new(addresses),
            source: Rc::default(),
            connection: RefCell::default(),
            incarnation: Cell::new(0),
            since: Cell::new(None),
            waiting: RefCell::default(),
            call_back: Cell::new(false),
            changed: Signal::default(),
            told: Cell::new(None),
        }
    }

    fn is_connected(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// Whether it is to be called now.
    fn is_wanted(&self) -> bool {
        !self.is_connected()
            && (self.votes.get() == Some(true)
                || self.call_back.get()
                || self.waiting.borrow().is_some())
    }

    fn say(&self, message: Bytes) {
        let write = self.connection.borrow().clone();
        match write {
            Some(write) => send(&write, &message),
            None => {
                *self.waiting.borrow_mut() = Some(message);
                self.changed.set();
            }
        }
    }

    fn hang_up(&self) {
        let connection = self.connection.take();
        if let Some(connection) = connection {
            connection.abort();
        }
    }
}

fn send(write: &WriteHalf, message: &[u8]) {
    write.queue().extend_from_slice(message);
    // When it fails the reader finds the end of the connection.
    let _ = write.flush();
}

impl Shared {
    fn peer(&self, id: ServerId) -> Option<Rc<Peer>> {
        self.peers.borrow().get(&id).cloned()
    }

    /// The peer of this number; one that is no member is added if there is room.
    fn peer_or_stranger(&self, id: ServerId) -> Option<Rc<Peer>> {
        if let Some(peer) = self.peer(id) {
            return Some(peer);
        }
        let mut peers = self.peers.borrow_mut();
        let strangers = peers
            .values()
            .filter(|peer| peer.votes.get().is_none())
            .count();
        if strangers >= STRANGERS_MAX {
            return None;
        }
        let peer = Rc::new(Peer::new(id, None, Vec::new()));
        peers.insert(id, Rc::clone(&peer));
        Some(peer)
    }

    fn forget_stranger(&self, peer: &Peer) {
        if peer.votes.get().is_none() && !peer.is_connected() {
            self.peers.borrow_mut().remove(&peer.id);
        }
    }

    /// Says whether the peer can be reached. A new connection is always told: who came back has heard
    /// nothing yet.
    fn tell(&self, peer: &Peer, reachable: bool) {
        if peer.told.replace(Some(reachable)) == Some(false) && !reachable {
            return;
        }
        let event = PeerEvent::Reachable {
            peer: peer.id,
            reachable,
        };
        self.queue.push(&peer.source, event, 0);
    }

    /// Makes this the peer's connection, instead of an older one.
    fn adopt(self: &Rc<Self>, peer: &Rc<Peer>, write: WriteHalf, read: ReadHalf) {
        // A network may be lost while a connection over it is up, and the peer be reachable by another address: the
        // election must not wait for what TCP does by itself, which is a quarter of an hour. (ZK: it probes the
        // address, `multiAddress.reachabilityCheckEnabled`.)
        if let Err(error) = write.give_up_after(self.settings.unanswered_max) {
            tracing::warn!(peer = %peer.id, %error, "bound the time for which a peer may not answer");
        }
        peer.hang_up();
        peer.incarnation.set(peer.incarnation.get() + 1);
        peer.since.set(Some(Instant::now()));
        peer.call_back.set(false);
        if let Some(message) = peer.waiting.take() {
            send(&write, &message);
        }
        *peer.connection.borrow_mut() = Some(write);
        self.tell(peer, true);
        peer.changed.set();
        spawn_local(listen(Rc::clone(self), Rc::clone(peer), read)).detach();
    }

    fn hello(&self, out: &mut BytesMut) {
        let roster = self.roster.borrow();
        let own = roster.get(&self.settings.id);
        let addresses = own.map_or(&[][..], |own| &own.addresses);
        let told = match self.settings.tell_all_addresses {
            true => addresses,
            false => addresses.get(..1).unwrap_or_default(),
        };
        let texts: Vec<String> = told.iter().map(MemberAddress::election_text).collect();
        let hello = Hello {
            id: self.settings.id,
            addresses: texts.iter().map(String::as_str).collect(),
        };
        hello.encode(out);
    }
}

/// Calls a member whenever it is wanted and not connected.
async fn keep_connected(shared: Rc<Shared>, peer: Rc<Peer>) {
    let mut pause = PAUSE_MIN;
    loop {
        while !peer.is_wanted() {
            peer.changed.wait().await;
        }
        let was_good = peer
            .since
            .take()
            .is_some_and(|since| since.elapsed() > GOOD_AFTER);
        if was_good {
            pause = PAUSE_MIN;
        }
        peer.call_back.set(false);
        if let Err(error) = call(&shared, &peer).await {
            tracing::debug!(peer = %peer.id, %error, "call for the election");
            shared.tell(&peer, false);
        }
        peer.source.has_room().await;
        // A peer that has called meanwhile waits for no pause.
        let until = Instant::now() + pause;
        while !peer.call_back.get() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || timeout(left, peer.changed.wait()).await.is_none() {
                break;
            }
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One call: connects and says hello; to a larger number, also hangs up and waits to be called.
async fn call(shared: &Rc<Shared>, peer: &Rc<Peer>) -> io::Result<()> {
    let settings = &shared.settings;
    let options = ConnectOptions {
        patience: settings.connect_patience,
        keepalive: Some(KEEPALIVE),
        limits: connection_limits(settings),
    };
    let addresses = peer.addresses.borrow().clone();
    let addrs = addresses_of(&addresses, |address| address.election_port).await?;
    let (read, write) = connect_any(&addrs, options).await?.split();
    if peer.is_connected() {
        // It was faster.
        return Ok(());
    }
    shared.hello(&mut write.queue());
    write.flush().map_err(io::Error::other)?;
    if peer.id < settings.id {
        shared.adopt(peer, write, read);
        return Ok(());
    }
    write.close();
    let deadline = Instant::now() + settings.connect_patience;
    while !peer.is_connected() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || timeout(left, peer.changed.wait()).await.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it answers and does not call back",
            ));
        }
    }
    Ok(())
}

async fn accept(shared: Rc<Shared>, mut listener: Listener) {
    while let Some(connection) = listener.accept().await {
        if shared.greetings.get() >= GREETINGS_MAX {
            tracing::warn!(peer = %connection.peer_addr(), "refuse caller: too many have not said who they are");
            continue;
        }
        spawn_local(greet(Rc::clone(&shared), connection)).detach();
    }
}

/// Hears who calls, and does what its number asks for.
async fn greet(shared: Rc<Shared>, connection: Connection) {
    shared.greetings.set(shared.greetings.get() + 1);
    let addr = connection.peer_addr();
    let (mut read, write) = connection.split();
    let heard = timeout(shared.settings.connect_patience, hear_hello(&mut read)).await;
    shared.greetings.set(shared.greetings.get() - 1);
    let (id, addresses) = match heard {
        Some(Ok(heard)) => heard,
        Some(Err(error)) => {
            tracing::debug!(peer = %addr, %error, "hear who calls");
            return;
        }
        None => {
            tracing::debug!(peer = %addr, "a caller does not say who it is");
            return;
        }
    };
    let id = match id == Hello::ANONYMOUS {
        true => {
            shared.nameless.set(shared.nameless.get() + 1);
            // ZK: observerCounter, -1 and down.
            ServerId(u64::MAX - shared.nameless.get() + 1)
        }
        false => id,
    };
    let own = shared.settings.id;
    if id == own {
        tracing::warn!(peer = %addr, "a server with this server's number calls: one of them is configured wrongly");
        return;
    }
    let Some(peer) = shared.peer_or_stranger(id) else {
        tracing::warn!(peer = %addr, %id, "refuse caller: it is no member, and there are {STRANGERS_MAX} such");
        return;
    };
    if id > own {
        shared.adopt(&peer, write, read);
        return;
    }
    // It may believe that an older connection is up, and this server too; both begin anew.
    peer.hang_up();
    drop((read, write));
    peer.call_back.set(true);
    peer.changed.set();
    if peer.votes.get().is_none() {
        peer.addresses.replace(addresses);
        if call(&shared, &peer).await.is_err() {
            shared.forget_stranger(&peer);
        }
    }
}

/// Reads the hello; what follows it stays in `read`.
async fn hear_hello(read: &mut ReadHalf) -> io::Result<(ServerId, Vec<MemberAddress>)> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut held = BytesMut::new();
    loop {
        let needed = Hello::len_needed(&held).map_err(invalid)?;
        if held.len() >= needed {
            let bytes = held.split_to(needed);
            if !held.is_empty() {
                read.frames().push(held);
            }
            let hello = Hello::decode(&bytes).map_err(invalid)?;
            let addresses = hello.addresses.iter().filter_map(|text| address(text));
            return Ok((hello.id, addresses.collect()));
        }
        if read.recv().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let more = read.frames().take_rest();
        held.extend_from_slice(&more);
    }
}

/// An election address as a hello has it.
fn address(text: &str) -> Option<MemberAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Some(MemberAddress {
        host: host.to_owned(),
        quorum_port: 0,
        election_port: port.parse().ok()?,
    })
}

/// Reads messages until the connection ends.
async fn listen(shared: Rc<Shared>, peer: Rc<Peer>, mut read: ReadHalf) {
    let incarnation = peer.incarnation.get();
    let end = hear_messages(&shared, &peer, &mut read).await;
    if peer.incarnation.get() != incarnation {
        return;
    }
    tracing::debug!(peer = %peer.id, %end, "election connection ended");
    peer.hang_up();
    shared.tell(&peer, false);
    peer.changed.set();
    shared.forget_stranger(&peer);
}

async fn hear_messages(shared: &Shared, peer: &Peer, read: &mut ReadHalf) -> io::Error {
    loop {
        loop {
            let frame = match read.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return io::Error::new(io::ErrorKind::InvalidData, error),
            };
            match Record::decode(&frame) {
                Ok(record) => {
                    let notification = Notification {
                        state: record.state,
                        ballot: record.ballot,
                        round: record.round,
                    };
                    let event = PeerEvent::Notified {
                        from: peer.id,
                        notification,
                        config: record.config.unwrap_or_default().to_owned(),
                    };
                    shared.queue.push(&peer.source, event, frame.len());
                }
                // ZK: FastLeaderElection passes over what it cannot read.
                Err(error) => {
                    tracing::warn!(peer = %peer.id, %error, "pass over a message of the election");
                }
            }
        }
        peer.source.has_room().await;
        match read.recv().await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}
