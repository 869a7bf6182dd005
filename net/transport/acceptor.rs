//! Listening sockets: one port, one socket per shard, the kernel spreads connections over them.
//!
//! `SO_REUSEPORT` also lets a *second server* of the same user take the port, silently, and half of the
//! connections. So binding begins with a probe that shares with nobody: it finds a socket of another
//! server that listens, and one that is bound and about to listen, for ours allow the reuse of their
//! address (which a probe relies on to pass over connections in `TIME_WAIT`) only once they listen.
//!
//! A server that was killed gives its port back some tens of milliseconds later, when the kernel has
//! torn down its rings (seconds, on a busy machine); binding therefore tries for `BIND_RETRY`.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{io, thread};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::connection::{Connection, ConnectionLimits};
use crate::executor::{reactor_turn, sleep};
use crate::port_owner;
use crate::readiness::Watched;

/// How long binding waits for a predecessor that was killed and that the kernel is still taking down.
const BIND_RETRY: Duration = Duration::from_secs(60);

/// How long it waits while a process that lives has the port: that one may be about to end.
const BIND_RETRY_OWNED: Duration = Duration::from_secs(2);
const BIND_RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Connections accepted without a wait between them, before others get a turn.
const ACCEPT_BURST: u32 = 64;

/// How long to wait when the system has no descriptor or memory for a connection.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// How often that is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Binds `addr` for `shards` listeners (at least one), not listening yet: clients are refused until
/// [`BoundSocket::listen`]. Port 0 takes a free port, the same for all. `[::]` takes IPv4 too.
///
/// Blocks for up to two seconds while another process has the port, and for up to a minute while it is
/// that of a process that was killed; for the main thread, before the executors.
///
/// # Errors
/// [`BindError`], with a remedy.
pub fn bind(addr: SocketAddr, shards: usize) -> Result<Vec<BoundSocket>, BindError> {
    bind_within(addr, shards, BIND_RETRY)
}

fn bind_within(
    addr: SocketAddr,
    shards: usize,
    patience: Duration,
) -> Result<Vec<BoundSocket>, BindError> {
    let started = Instant::now();
    loop {
        match try_bind(addr, shards) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let waited = started.elapsed();
                if waited >= patience
                    || waited >= BIND_RETRY_OWNED && port_owner::is_alive(addr.port())
                {
                    return Err(BindError { addr, error });
                }
                thread::sleep(BIND_RETRY_PAUSE);
            }
            outcome => return outcome.map_err(|error| BindError { addr, error }),
        }
    }
}

fn try_bind(addr: SocketAddr, shards: usize) -> io::Result<Vec<BoundSocket>> {
    let mut addr = addr;
    if addr.port() != 0 {
        let probe = new_socket(addr)?;
        probe.set_reuse_address(true)?;
        probe.bind(&SockAddr::from(addr))?;
        // Some conflicts show only here.
        probe.listen(1)?;
    }
    let mut sockets = Vec::with_capacity(shards.max(1));
    for _ in 0..shards.max(1) {
        let socket = new_socket(addr)?;
        socket.set_reuse_port(true)?;
        match socket.bind(&SockAddr::from(addr)) {
            // The probe says that nobody has it: what is left in TIME_WAIT is another program's (the server
            // that this one replaces), which did not allow the port's reuse, only the address's.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && addr.port() != 0 => {
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(addr))?;
            }
            outcome => outcome?,
        }
        let bound = socket.local_addr()?.as_socket();
        addr = bound.ok_or(io::ErrorKind::AddrNotAvailable)?;
        sockets.push(BoundSocket { socket, addr });
    }
    Ok(sockets)
}

fn new_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

/// A listening address could not be had.
#[derive(Debug, thiserror::Error)]
#[error("bind {addr}: {error}. {}", self.remedy())]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// What the system said.
    pub error: io::Error,
}

impl BindError {
    /// What the operator can do.
    pub fn remedy(&self) -> String {
        let port = self.addr.port();
        match self.error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "Another process has this port: find it with `ss -ltnp 'sport = :{port}'`, stop it, or \
                 set another port"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "Port {port} needs a privilege: take one of 1024 or more, or grant CAP_NET_BIND_SERVICE"
            ),
            io::ErrorKind::AddrNotAvailable => {
                "No interface of this machine has this address: see `ip address`".into()
            }
            _ => "See the system's message".into(),
        }
    }
}

/// How a listener and its connections are set up.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted; the kernel's `somaxconn` caps it.
    pub backlog: i32,
    /// Idle time before the kernel asks whether the peer is still there; `None` never asks.
    pub keepalive: Option<Duration>,
    /// Bounds of each connection.
    pub limits: ConnectionLimits,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: 4096,
            keepalive: None,
            limits: ConnectionLimits::default(),
        }
    }
}

/// A bound socket on its way to its shard.
#[derive(Debug)]
pub struct BoundSocket {
    socket: Socket,
    addr: SocketAddr,
}

impl BoundSocket {
    /// The address, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens, on the executor that is to accept.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen(self, options: ListenOptions) -> io::Result<Listener> {
        let socket = self.socket;
        // Connections inherit these, which saves a call for each.
        socket.set_tcp_nodelay(true)?;
        if let Some(idle) = options.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        socket.set_nonblocking(true)?;
        socket.listen(options.backlog)?;
        // Only now, see the module. Connections inherit it, so that what is left of them in
        // TIME_WAIT does not keep the next start from binding.
        socket.set_reuse_address(true)?;
        Ok(Listener {
            inner: Rc::new(Inner {
                socket: Watched::new(socket)?,
                addr: self.addr,
                is_closed: Cell::new(false),
            }),
            limits: options.limits,
            burst: 0,
            reported: None,
        })
    }
}

#[derive(Debug)]
struct Inner {
    socket: Watched,
    addr: SocketAddr,
    is_closed: Cell<bool>,
}

/// A listening socket on its executor. Dropping it closes it.
#[derive(Debug)]
pub struct Listener {
    inner: Rc<Inner>,
    limits: ConnectionLimits,
    /// Accepted since the last wait or turn.
    burst: u32,
    /// When a shortage was last logged.
    reported: Option<Instant>,
}

impl Listener {
    /// Binds and listens in one step, for a single listener. Blocks as [`bind`] does.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(addr: SocketAddr, options: ListenOptions) -> Result<Self, BindError> {
        let error = |error| BindError { addr, error };
        let Some(bound) = bind(addr, 1)?.pop() else {
            return Err(error(io::ErrorKind::AddrNotAvailable.into()));
        };
        bound.listen(options).map_err(error)
    }

    /// Waits for a connection. `None` once the listener is closed. When the system is short of
    /// descriptors or memory, clients wait in the backlog until it is not. May be cancelled.
    pub async fn accept(&mut self) -> Option<Connection> {
        loop {
            match self.accept_detached().await?.attach() {
                Ok(connection) => return Some(connection),
                Err(error) => self.report(&error),
            }
        }
    }

    /// As [`Self::accept`], for a connection that may be served on another executor.
    pub async fn accept_detached(&mut self) -> Option<Accepted> {
        loop {
            if self.burst >= ACCEPT_BURST {
                self.burst = 0;
                reactor_turn().await;
            }
            if self.inner.is_closed.get() {
                return None;
            }
            match self.inner.socket.socket().accept() {
                Ok((socket, peer)) => {
                    self.burst += 1;
                    if let Some(peer) = peer.as_socket() {
                        return Some(Accepted {
                            socket,
                            peer,
                            limits: self.limits,
                        });
                    }
                }
                Err(error) => self.wait_after(error).await,
            }
        }
    }

    async fn wait_after(&mut self, error: io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.burst = 0;
            return poll_fn(|cx| self.inner.socket.poll_readable(cx)).await;
        }
        match error.raw_os_error() {
            // The client has gone again, or the like: the next may be there.
            Some(
                libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH,
            ) => self.burst += 1,
            _ if self.inner.is_closed.get() => {}
            _ => {
                self.report(&error);
                sleep(SHORTAGE_PAUSE).await;
            }
        }
    }

    /// Logs a shortage, but not ten times a second.
    fn report(&mut self, error: &io::Error) {
        let now = Instant::now();
        if self
            .reported
            .is_none_or(|last| now - last >= REPORT_INTERVAL)
        {
            self.reported = Some(now);
            tracing::warn!(addr = %self.inner.addr, %error, "accept connection: clients wait");
        }
    }

    /// A handle that closes this listener from another task of its executor.
    pub fn closer(&self) -> ListenerCloser {
        ListenerCloser {
            inner: Rc::clone(&self.inner),
        }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.addr
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.inner.close();
    }
}

/// A connection that no executor has taken over yet. Dropping it closes it.
#[derive(Debug)]
pub struct Accepted {
    socket: Socket,
    peer: SocketAddr,
    limits: ConnectionLimits,
}

impl Accepted {
    /// The connection, on the current executor from now on.
    ///
    /// # Errors
    /// See [`Connection::new`].
    pub fn attach(self) -> io::Result<Connection> {
        Connection::new(self.socket, self.peer, self.limits)
    }
}

/// Closes a [`Listener`].
#[derive(Clone, Debug)]
pub struct ListenerCloser {
    inner: Rc<Inner>,
}

impl ListenerCloser {
    /// Stops listening at once: new clients are refused, those in the backlog are reset, and
    /// [`Listener::accept`] returns `None`.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        if !self.is_closed.replace(true) {
            // Wakes who waits to accept, too. It fails only where it does not listen, which is what is
            // wanted.
            let _ = self.socket.socket().shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;
    use crate::executor::{ExecutorSpec, run_executor};

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    const PATIENCE: Duration = Duration::from_millis(100);

    fn on_executor(test: impl Future<Output = ()> + 'static) {
        run_executor(&ExecutorSpec::new("t", None), test).unwrap();
    }

    #[test]
    fn what_another_program_left_in_time_wait_is_no_obstacle() {
        use std::io::Read as _;
        // Its sockets allow the reuse of the address and not of the port, as Java's do.
        let before = std::net::TcpListener::bind(LOOPBACK).unwrap();
        let addr = before.local_addr().unwrap();
        let mut near = TcpStream::connect(addr).unwrap();
        let (far, _) = before.accept().unwrap();
        // Who closes first keeps the connection in TIME_WAIT.
        drop(far);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        drop((near, before));
        assert_eq!(bind_within(addr, 2, PATIENCE).unwrap().len(), 2);
    }

    #[test]
    fn shards_share_a_port_but_no_second_server_does() {
        on_executor(async {
            let first = bind(LOOPBACK, 3).unwrap();
            let addr = first[0].local_addr();
            assert!(first.iter().all(|bound| bound.local_addr() == addr));
            // Bound and not listening yet, then listening.
            let start = Instant::now();
            let error = bind_within(addr, 2, PATIENCE).unwrap_err();
            assert!(start.elapsed() >= PATIENCE);
            assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains("ss -ltnp"), "{error}");
            let options = ListenOptions::default();
            let listeners: Vec<_> = first
                .into_iter()
                .map(|bound| bound.listen(options).unwrap())
                .collect();
            assert!(bind_within(addr, 2, PATIENCE).is_err());
            drop(listeners);
            assert_eq!(bind(addr, 2).unwrap().len(), 2);
        });
    }

    #[test]
    fn a_port_in_use_by_an_ordinary_listener_is_found() {
        let other = std::net::TcpListener::bind(LOOPBACK).unwrap();
        let error = bind_within(other.local_addr().unwrap(), 1, PATIENCE).unwrap_err();
        assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_port_can_be_bound_again_while_old_connections_linger() {
        on_executor(async {
            let mut listener = Listener::bind(LOOPBACK, ListenOptions::default()).unwrap();
            let addr = listener.local_addr();
            let client = TcpStream::connect(addr).unwrap();
            let (read, _write) = listener.accept().await.unwrap().split();
            // The server closes first, which leaves its end in TIME_WAIT.
            drop(read);
            drop(client);
            drop(listener);
            // At the first try.
            try_bind(addr, 1).unwrap();
        });
    }

    #[test]
    fn connections_inherit_what_was_set_on_the_listener() {
        on_executor(async {
            let options = ListenOptions {
                keepalive: Some(Duration::from_secs(77)),
                ..ListenOptions::default()
            };
            let mut listener = Listener::bind(LOOPBACK, options).unwrap();
            let client = TcpStream::connect(listener.local_addr()).unwrap();
            let (_read, write) = listener.accept().await.unwrap().split();
            assert_eq!(write.peer_addr(), client.local_addr().unwrap());
            assert_eq!(write.local_addr().unwrap(), listener.local_addr());
            let socket = write.socket_options();
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(
                socket.tcp_keepalive_time().unwrap(),
                Duration::from_secs(77)
            );
        });
    }

    #[test]
    fn an_address_of_another_machine_is_told() {
        let error = bind("192.0.2.1:0".parse().unwrap(), 1).unwrap_err();
        assert!(error.remedy().contains("ip address"), "{error}");
    }
}
