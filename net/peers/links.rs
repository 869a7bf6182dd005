//! All links of a server, as its core uses them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;

use ringkeeper_transport::acceptor::{self, BindError, BoundSocket};
use ringkeeper_transport::{ListenOptions, Listener};
use ringkeeper_zab::LinkId;

use crate::contract::{PeerCommand, PeerEvent};
use crate::election_links::ElectionLinks;
use crate::events::EventQueue;
use crate::learner_links::{KEEPALIVE, LearnerLinks, connection_limits};
use crate::settings::{PeerSettings, Roster};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The ports of a server, bound and not listening yet: on the way to its executor.
#[derive(Debug)]
pub struct BoundPeers {
    settings: PeerSettings,
    quorum: Vec<BoundSocket>,
    election: Vec<BoundSocket>,
    observers: Vec<BoundSocket>,
}

impl BoundPeers {
    /// Binds the ports of this server. Blocks, also for the lookup of its own names; for the main
    /// thread.
    ///
    /// # Errors
    /// When the server is not among the members, a name is not known, or a port cannot be had.
    pub fn bind(settings: PeerSettings) -> io::Result<Self> {
        let Some(own) = settings.members.get(&settings.id) else {
            let text = format!("server {} is not among the members", settings.id);
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        };
        let (mut quorum, mut election, mut observers) = (Vec::new(), Vec::new(), Vec::new());
        let observer_port = settings.observer_master_port.filter(|_| own.votes);
        for address in &own.addresses {
            for (port, sockets) in [
                (Some(address.quorum_port), &mut quorum),
                (Some(address.election_port), &mut election),
                (observer_port, &mut observers),
            ] {
                let Some(port) = port else {
                    continue;
                };
                let bound = match settings.listen_on_all {
                    true => bind_everywhere(port),
                    false => bind_at(&address.host, port),
                }?;
                sockets.extend(bound);
            }
            if settings.listen_on_all {
                // The other addresses are other interfaces of the same ports, as with ZooKeeper.
                break;
            }
        }
        Ok(Self {
            settings,
            quorum,
            election,
            observers,
        })
    }

    /// Listens and begins to call the members, on the executor of the core.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(self) -> io::Result<PeerLinks> {
        let options = ListenOptions {
            backlog: BACKLOG,
            keepalive: Some(KEEPALIVE),
            limits: connection_limits(&self.settings),
        };
        let listen = |sockets: Vec<BoundSocket>, options| -> io::Result<Vec<Listener>> {
            sockets.into_iter().map(|it| it.listen(options)).collect()
        };
        let quorum = listen(self.quorum, options)?;
        let election = listen(self.election, options)?;
        let mut options = options;
        options.limits.pending_bytes_max = self.settings.observer_queue_bytes_max;
        let observers = listen(self.observers, options)?;
        let settings = Rc::new(self.settings);
        let queue = Rc::new(EventQueue::default());
        let roster: Roster = Rc::new(RefCell::new(settings.members.clone()));
        let learners =
            LearnerLinks::new(Rc::clone(&settings), Rc::clone(&roster), Rc::clone(&queue));
        for listener in quorum {
            learners.accept_from(listener);
        }
        for listener in observers {
            learners.accept_observers_from(listener);
        }
        let elections = ElectionLinks::start(settings, Rc::clone(&roster), Rc::clone(&queue));
        for listener in election {
            elections.accept_from(listener);
        }
        Ok(PeerLinks {
            inner: Rc::new(Inner {
                roster,
                queue,
                learners,
                elections,
            }),
        })
    }
}

fn bind_at(host: &str, port: u16) -> io::Result<Vec<BoundSocket>> {
    let unknown = |error: &dyn std::fmt::Display| {
        let text = format!("look up {host}, an address of this server: {error}");
        io::Error::new(io::ErrorKind::NotFound, text)
    };
    let mut addrs = (host, port)
        .to_socket_addrs()
        .map_err(|error| unknown(&error))?;
    // ZK: the first one that the name has.
    let addr = addrs.next().ok_or_else(|| unknown(&"it has none"))?;
    acceptor::bind(addr, 1).map_err(bind_failed)
}

fn bind_everywhere(port: u16) -> io::Result<Vec<BoundSocket>> {
    let six = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    match acceptor::bind(six, 1) {
        // A machine without IPv6.
        Err(error) if error.error.kind() != io::ErrorKind::AddrInUse => {
            acceptor::bind(SocketAddr::from(([0, 0, 0, 0], port)), 1).map_err(bind_failed)
        }
        outcome => outcome.map_err(bind_failed),
    }
}

fn bind_failed(error: BindError) -> io::Error {
    io::Error::new(error.error.kind(), error)
}

/// The links of a server. Clones are handles to the same ones; for one executor.
#[derive(Clone, Debug)]
pub struct PeerLinks {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    roster: Roster,
    queue: Rc<EventQueue>,
    learners: LearnerLinks,
    elections: ElectionLinks,
}

impl PeerLinks {
    /// Does what the core says. Packets wait for [`Self::flush`], unless they have become many.
    pub fn carry_out(&self, command: PeerCommand) {
        let learners = &self.inner.learners;
        match command {
            PeerCommand::Connect { leader } => learners.connect(leader),
            PeerCommand::Send { link, packet } => learners.send(link, &packet),
            PeerCommand::SendStream { link, bytes } => learners.send_stream(link, &bytes),
            PeerCommand::ServeObservers { open } => learners.serve_observers(open),
            PeerCommand::WantRoom { link } => learners.want_room(link),
            PeerCommand::ReadStream { link } => learners.read_stream(link),
            PeerCommand::EndStream { link, rest } => learners.end_stream(link, rest),
            PeerCommand::Configure { members, config } => {
                self.inner.roster.replace(members);
                self.inner.elections.configure(config);
            }
            PeerCommand::Close { link } => learners.close(link),
            PeerCommand::Notify { to, notification } => {
                self.inner.elections.notify(to, &notification);
            }
        }
    }

    /// Sends what is queued: one send for each link. To be called at the end of each turn.
    pub fn flush(&self) {
        self.inner.learners.flush();
    }

    /// Waits for events and moves them to the end of `into`. May be cancelled. For one task.
    pub async fn events(&self, into: &mut Vec<PeerEvent>) {
        poll_fn(|cx| self.inner.queue.poll_take(cx, into)).await;
    }

    /// Who is at the other end of a link, while it lives.
    pub fn peer_addr(&self, link: LinkId) -> Option<SocketAddr> {
        self.inner.learners.peer_addr(link)
    }

    /// Closes ports and links at once.
    pub fn stop(&self) {
        self.inner.learners.stop();
        self.inner.elections.stop();
    }
}
