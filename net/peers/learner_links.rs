//! Links between learners and their leader: a listener on the quorum port, one for observers that a follower serves,
//! the one link that this server opens as a learner, and packets on all of them.
//!
//! The listener is open whatever the role: a learner that comes early waits for this server's
//! election instead of being refused, and a role change opens and closes no port.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{fmt, io, mem};

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::quorum::packet_len;
use ringkeeper_proto::{DecodeError, ServerId};
use ringkeeper_transport::{
    ConnectOptions, Connection, ConnectionLimits, Listener, ReadHalf, SendError, Sent, Task,
    WriteHalf, connect_any, resolve, sleep, spawn_local, timeout,
};
use ringkeeper_zab::{LinkId, Message};

use crate::contract::{Packet, PeerEvent};
use crate::events::{EventQueue, Signal, Source};
use crate::settings::{Member, MemberAddress, PeerSettings, Roster};
use crate::wire::{self, Peer};

/// Links at most; beyond, new ones are closed at once.
const LINKS_MAX: usize = 1024;

/// With more output than this pending a link has no room, and again with less than the second.
const ROOM_BYTES: usize = 1024 * 1024;
const ROOM_AGAIN_BYTES: usize = 256 * 1024;

/// What is queued beyond this leaves before the turn ends.
const FLUSH_BYTES: usize = 256 * 1024;

/// ZK: `Learner.connectToLeader` tries five times, 100 ms apart: a leader opens its port only when its
/// election is over.
const CONNECT_ATTEMPTS_MAX: u32 = 5;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Idle time before the kernel asks whether a peer is still there.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);

/// All links of this server.
#[derive(Debug)]
pub(crate) struct LearnerLinks {
    shared: Rc<Shared>,
    connecting: RefCell<Option<Task<()>>>,
    accepting: RefCell<Vec<Task<()>>>,
}

#[derive(Debug)]
struct Shared {
    settings: Rc<PeerSettings>,
    roster: Roster,
    queue: Rc<EventQueue>,
    links: RefCell<BTreeMap<LinkId, Rc<Link>>>,
    /// The number of the last link.
    last: Cell<u64>,
    /// Where the next search for a follower that serves observers begins.
    next_master: Cell<usize>,
    /// Whether observers are taken that come to `observerMasterPort`.
    serves_observers: Cell<bool>,
    /// Those with packets queued since the last flush.
    dirty: RefCell<Vec<Rc<Link>>>,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    peer: Peer,
    write: WriteHalf,
    source: Rc<Source>,
    is_dirty: Cell<bool>,
    is_full: Cell<bool>,
    wants_room: Cell<bool>,
    /// What the core wants of a snapshot's stream.
    wish: RefCell<Option<StreamWish>>,
    wished: Signal,
}

#[derive(Debug)]
enum StreamWish {
    More,
    End(Bytes),
}

/// The limits of a connection to a peer.
pub(crate) fn connection_limits(settings: &PeerSettings) -> ConnectionLimits {
    ConnectionLimits {
        frame_bytes_max: ringkeeper_proto::election::NOTIFICATION_LEN_MAX,
        pending_bytes_max: settings.queue_bytes_max,
        linger: Duration::from_secs(1),
    }
}

impl LearnerLinks {
    pub(crate) fn new(settings: Rc<PeerSettings>, roster: Roster, queue: Rc<EventQueue>) -> Self {
        Self {
            shared: Rc::new(Shared {
                settings,
                roster,
                queue,
                links: RefCell::default(),
                last: Cell::new(0),
                next_master: Cell::new(std::process::id() as usize),
                serves_observers: Cell::new(true),
                dirty: RefCell::default(),
            }),
            connecting: RefCell::default(),
            accepting: RefCell::default(),
        }
    }

    /// Takes learners that come to `listener`.
    pub(crate) fn accept_from(&self, listener: Listener) {
        let task = spawn_local(accept(Rc::clone(&self.shared), listener));
        self.accepting.borrow_mut().push(task);
    }

    /// Takes observers that come to `listener`, while any are taken.
    pub(crate) fn accept_observers_from(&self, mut listener: Listener) {
        let shared = Rc::clone(&self.shared);
        let task = spawn_local(async move {
            while let Some(connection) = listener.accept().await {
                if shared.serves_observers.get() {
                    shared.adopt(connection, Peer::Learner, None);
                } else {
                    tracing::debug!(peer = %connection.peer_addr(), "no observers are served");
                }
            }
        });
        self.accepting.borrow_mut().push(task);
    }

    /// See [`PeerCommand::ServeObservers`](crate::PeerCommand::ServeObservers).
    pub(crate) fn serve_observers(&self, open: bool) {
        self.shared.serves_observers.set(open);
    }

    /// See [`PeerCommand::Connect`](crate::PeerCommand::Connect).
    pub(crate) fn connect(&self, leader: ServerId) {
        drop(self.connecting.take());
        let shared = Rc::clone(&self.shared);
        let source = Rc::new(Source::default());
        let task = spawn_local(async move {
            match reach(&shared, leader).await {
                Ok(connection) => shared.adopt(connection, Peer::Leader, Some(leader)),
                Err(error) => {
                    tracing::warn!(%leader, %error, "connect to the leader");
                    let event = PeerEvent::ConnectFailed { leader };
                    shared.queue.push(&source, event, 0);
                }
            }
        });
        *self.connecting.borrow_mut() = Some(task);
    }

    /// Queues a packet.
    pub(crate) fn send(&self, id: LinkId, packet: &Packet) {
        let Some(link) = self.shared.link(id) else {
            return;
        };
        let queued = {
            let mut out = link.write.queue();
            out.reserve(wire::encoded_len(packet));
            wire::encode(packet, link.peer, &mut out);
            out.len()
        };
        self.shared.queued(&link, queued);
    }

    /// Queues bytes of a snapshot.
    pub(crate) fn send_stream(&self, id: LinkId, bytes: &[u8]) {
        let Some(link) = self.shared.link(id) else {
            return;
        };
        let queued = {
            let mut out = link.write.queue();
            out.extend_from_slice(bytes);
            out.len()
        };
        self.shared.queued(&link, queued);
    }

    pub(crate) fn read_stream(&self, id: LinkId) {
        self.wish(id, StreamWish::More);
    }

    pub(crate) fn end_stream(&self, id: LinkId, rest: Bytes) {
        self.wish(id, StreamWish::End(rest));
    }

    fn wish(&self, id: LinkId, wish: StreamWish) {
        if let Some(link) = self.shared.link(id) {
            *link.wish.borrow_mut() = Some(wish);
            link.wished.set();
        }
    }

    /// Sends what is queued, and closes.
    pub(crate) fn close(&self, id: LinkId) {
        let link = self.shared.links.borrow_mut().remove(&id);
        if let Some(link) = link {
            link.source.close();
            link.wished.set();
            link.write.close();
        }
    }

    /// Tells when the link takes more of what is many.
    pub(crate) fn want_room(&self, id: LinkId) {
        let Some(link) = self.shared.link(id) else {
            return;
        };
        link.wants_room.set(true);
        if !link.is_full.get() {
            self.shared.tell_room(&link);
        }
    }

    pub(crate) fn peer_addr(&self, id: LinkId) -> Option<SocketAddr> {
        self.shared.link(id).map(|link| link.write.peer_addr())
    }

    /// One send for each link with packets queued.
    pub(crate) fn flush(&self) {
        let dirty = mem::take(&mut *self.shared.dirty.borrow_mut());
        for link in dirty {
            link.is_dirty.set(false);
            self.shared.flush(&link);
        }
    }

    /// Ends everything at once.
    pub(crate) fn stop(&self) {
        drop(self.connecting.take());
        drop(self.accepting.take());
        let links = mem::take(&mut *self.shared.links.borrow_mut());
        for link in links.into_values() {
            link.source.close();
            link.wished.set();
            link.write.abort();
        }
    }
}

impl Shared {
    fn link(&self, id: LinkId) -> Option<Rc<Link>> {
        self.links.borrow().get(&id).cloned()
    }

    fn queued(self: &Rc<Self>, link: &Rc<Link>, bytes: usize) {
        if bytes >= FLUSH_BYTES {
            self.flush(link);
        } else if !link.is_dirty.replace(true) {
            self.dirty.borrow_mut().push(Rc::clone(link));
        }
    }

    fn flush(self: &Rc<Self>, link: &Rc<Link>) {
        match link.write.flush() {
            Ok(Sent::Pending { bytes }) if bytes > ROOM_BYTES => {
                if !link.is_full.replace(true) {
                    let (link, shared) = (Rc::clone(link), Rc::clone(self));
                    spawn_local(async move {
                        link.write.drained_to(ROOM_AGAIN_BYTES).await;
                        link.is_full.set(false);
                        shared.tell_room(&link);
                    })
                    .detach();
                }
            }
            // The reader finds the end of the connection, and tells it.
            Ok(_) | Err(SendError::Closed | SendError::Io(_)) => {}
            Err(error @ SendError::TooSlow { .. }) => {
                tracing::warn!(link = link.id.0, peer = %link.write.peer_addr(), %error, "close link");
            }
        }
    }

    /// Tells that a link has room, where that was asked for. One that has ended has said its last word.
    fn tell_room(&self, link: &Link) {
        if !link.write.is_closed() && link.wants_room.take() {
            let event = PeerEvent::Writable { link: link.id };
            self.queue.push(&link.source, event, 0);
        }
    }

    /// Numbers a connection and begins to read from it.
    fn adopt(self: &Rc<Self>, connection: Connection, peer: Peer, leader: Option<ServerId>) {
        let (read, write) = connection.split();
        if self.links.borrow().len() >= LINKS_MAX {
            tracing::warn!(peer = %write.peer_addr(), "refuse link: there are {LINKS_MAX}");
            write.abort();
            return;
        }
        self.last.set(self.last.get() + 1);
        let link = Rc::new(Link {
            id: LinkId(self.last.get()),
            peer,
            write,
            source: Rc::default(),
            is_dirty: Cell::new(false),
            is_full: Cell::new(false),
            wants_room: Cell::new(false),
            wish: RefCell::default(),
            wished: Signal::default(),
        });
        self.links.borrow_mut().insert(link.id, Rc::clone(&link));
        if let Some(leader) = leader {
            let event = PeerEvent::Connected {
                leader,
                link: link.id,
            };
            self.queue.push(&link.source, event, 0);
        }
        spawn_local(read_link(Rc::clone(self), link, read)).detach();
    }
}

async fn accept(shared: Rc<Shared>, mut listener: Listener) {
    while let Some(connection) = listener.accept().await {
        shared.adopt(connection, Peer::Learner, None);
    }
}

/// A connection to whom this server learns from: the leader, or for an observer a follower that serves such.
async fn reach(shared: &Shared, leader: ServerId) -> io::Result<Connection> {
    match reach_master(shared, leader).await {
        Some(connection) => Ok(connection),
        None => reach_leader(shared, leader).await,
    }
}

/// As an observer: a connection to a follower that serves observers (ZK: `QuorumPeer.findLearnerMaster`). Each time the
/// search begins with the next one, and where with is left to chance, lest all observers go to the same.
async fn reach_master(shared: &Shared, leader: ServerId) -> Option<Connection> {
    let settings = &shared.settings;
    let port = settings.observer_master_port?;
    let masters: Vec<(ServerId, Member)> = {
        let roster = shared.roster.borrow();
        if roster.get(&settings.id).is_none_or(|own| own.votes) {
            return None;
        }
        let voters = roster.iter().filter(|(id, it)| it.votes && **id != leader);
        voters.map(|(id, it)| (*id, it.clone())).collect()
    };
    let first = shared.next_master.get();
    shared.next_master.set(first.wrapping_add(1));
    for at in 0..masters.len() {
        let (id, master) = &masters[first.wrapping_add(at) % masters.len()];
        let options = ConnectOptions {
            patience: settings.connect_patience,
            keepalive: Some(KEEPALIVE),
            limits: connection_limits(settings),
        };
        let reached = match addresses_of(&master.addresses, |_| port).await {
            Ok(addrs) => connect_any(&addrs, options).await,
            Err(error) => Err(error),
        };
        match reached {
            Ok(connection) => {
                tracing::info!(master = %id, addr = %connection.peer_addr(), "learn from a follower");
                return Some(connection);
            }
            Err(error) => tracing::debug!(master = %id, %error, "connect to a follower"),
        }
    }
    None
}

/// A connection to one of the leader's addresses.
async fn reach_leader(shared: &Shared, leader: ServerId) -> io::Result<Connection> {
    let started = Instant::now();
    let settings = &shared.settings;
    let member = shared.roster.borrow().get(&leader).cloned();
    let Some(member) = member else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "it is not in the configuration",
        ));
    };
    let mut attempt = 1;
    loop {
        let left = settings.leader_patience.saturating_sub(started.elapsed());
        let options = ConnectOptions {
            patience: settings.connect_patience.min(left),
            keepalive: Some(KEEPALIVE),
            limits: connection_limits(settings),
        };
        let outcome = match addresses_of(&member.addresses, |address| address.quorum_port).await {
            Ok(addrs) => connect_any(&addrs, options).await,
            Err(error) => Err(error),
        };
        match outcome {
            Err(_)
                if attempt < CONNECT_ATTEMPTS_MAX
                    && started.elapsed() + CONNECT_PAUSE < settings.leader_patience => {}
            outcome => return outcome,
        }
        attempt += 1;
        sleep(CONNECT_PAUSE).await;
    }
}

/// Looks up all addresses of a member; an error only when nothing is found.
pub(crate) async fn addresses_of(
    addresses: &[MemberAddress],
    port: impl Fn(&MemberAddress) -> u16,
) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    let mut failure = None;
    for address in addresses {
        match resolve(&address.host, port(address)).await {
            Ok(addrs) => found.extend(addrs),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Why a link has ended.
#[derive(Debug)]
enum End {
    /// This side closed it.
    Closed,
    /// The peer did.
    Peer,
    Silent,
    Io(io::Error),
    Bytes(DecodeError),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed here"),
            Self::Peer => f.write_str("the peer closed it"),
            Self::Silent => f.write_str("the peer is silent"),
            Self::Io(error) => error.fmt(f),
            Self::Bytes(error) => write!(f, "the peer sent what is no packet: {error}"),
        }
    }
}

async fn read_link(shared: Rc<Shared>, link: Rc<Link>, mut read: ReadHalf) {
    let Err(end) = read_packets(&shared, &link, &mut read).await;
    if !link.source.is_closed() {
        shared.links.borrow_mut().remove(&link.id);
        tracing::info!(link = link.id.0, peer = %link.write.peer_addr(), %end, "link ended");
        link.write.abort();
        let event = PeerEvent::Disconnected { link: link.id };
        shared.queue.push(&link.source, event, 0);
    }
}

/// Reads until the end, which comes as an error.
async fn read_packets(
    shared: &Shared,
    link: &Link,
    read: &mut ReadHalf,
) -> Result<std::convert::Infallible, End> {
    let settings = &shared.settings;
    // ZK: the leader calls learners without a number -1, -2, ...
    let nameless = ServerId(u64::MAX - link.id.0);
    let mut held = BytesMut::new();
    loop {
        while let Some(len) = packet_len(&held, settings.packet_bytes_max).map_err(End::Bytes)? {
            let bytes = held.split_to(len).freeze();
            let Some(packet) = wire::decode(&bytes, nameless).map_err(End::Bytes)? else {
                tracing::warn!(link = link.id.0, "pass over a packet of an unknown kind");
                continue;
            };
            let is_snapshot =
                link.peer == Peer::Leader && matches!(packet.message, Message::Snap { .. });
            let event = PeerEvent::Received {
                link: link.id,
                packet,
            };
            shared.queue.push(&link.source, event, len);
            if is_snapshot {
                held = read_stream(shared, link, read, held).await?;
            }
        }
        link.source.has_room().await;
        receive(shared, link, read, &mut held).await?;
    }
}

/// Delivers raw bytes, as the core asks for them, until it says that packets follow; returns what came
/// behind the stream.
async fn read_stream(
    shared: &Shared,
    link: &Link,
    read: &mut ReadHalf,
    mut held: BytesMut,
) -> Result<BytesMut, End> {
    loop {
        link.wished.wait().await;
        let wish = link.wish.borrow_mut().take();
        match wish {
            None if link.source.is_closed() => return Err(End::Closed),
            None => {}
            Some(StreamWish::End(rest)) => return Ok(BytesMut::from(rest)),
            Some(StreamWish::More) => {
                if held.is_empty() {
                    receive(shared, link, read, &mut held).await?;
                }
                let bytes = mem::take(&mut held).freeze();
                let payload = bytes.len();
                let event = PeerEvent::StreamBytes {
                    link: link.id,
                    bytes,
                };
                shared.queue.push(&link.source, event, payload);
            }
        }
    }
}

/// Waits for bytes.
async fn receive(
    shared: &Shared,
    link: &Link,
    read: &mut ReadHalf,
    held: &mut BytesMut,
) -> Result<(), End> {
    let received = loop {
        let sent = link.write.bytes_sent();
        let received = timeout(shared.settings.silence_max, read.recv()).await;
        // A learner says nothing while it takes in a long history or a large tree.
        if received.is_some() || link.write.bytes_sent() == sent {
            break received;
        }
    };
    match received {
        None => Err(End::Silent),
        Some(Err(error)) => Err(End::Io(error)),
        Some(Ok(0)) if link.source.is_closed() => Err(End::Closed),
        Some(Ok(0)) => Err(End::Peer),
        Some(Ok(_)) => {
            let bytes = read.frames().take_rest();
            match held.is_empty() {
                true => *held = bytes,
                false => held.extend_from_slice(&bytes),
            }
            Ok(())
        }
    }
}
