//! Outgoing connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::select_ok;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::connection::{Connection, ConnectionLimits};
use crate::executor::timeout;
use crate::socket::StreamSocket;

/// How an outgoing connection is set up.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// How long to wait for the peer's answer.
    pub patience: Duration,
    /// Idle time before the kernel asks whether the peer is still there; `None` never asks.
    pub keepalive: Option<Duration>,
    /// Bounds of the connection.
    pub limits: ConnectionLimits,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(5),
            keepalive: None,
            limits: ConnectionLimits::default(),
        }
    }
}

/// Connects to the first of `addrs` that answers, all being asked at once. May be cancelled.
///
/// # Errors
/// What the system says of the last one that failed; of the kind `TimedOut` when none has answered in
/// time, `InvalidInput` without any address.
pub async fn connect_any(addrs: &[SocketAddr], options: ConnectOptions) -> io::Result<Connection> {
    if addrs.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let attempts = addrs.iter().map(|addr| Box::pin(connect(*addr, options)));
    select_ok(attempts).await.map(|(connection, _)| connection)
}

/// Connects on the current executor, with `TCP_NODELAY`. May be cancelled.
///
/// # Errors
/// What the system says; of the kind `TimedOut` when there was no answer in time.
pub async fn connect(addr: SocketAddr, options: ConnectOptions) -> io::Result<Connection> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(idle) = options.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    match socket.connect(&SockAddr::from(addr)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let socket = StreamSocket::new(socket)?;
    match timeout(options.patience, socket.connected()).await {
        Some(outcome) => outcome?,
        None => return Err(io::ErrorKind::TimedOut.into()),
    }
    Ok(Connection::over(socket, addr, options.limits))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::acceptor::{ListenOptions, Listener};
    use crate::executor::{ExecutorSpec, run_executor, spawn_local};

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A port of loopback at which nobody listens.
    fn closed_port() -> SocketAddr {
        let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
        listener.local_addr().unwrap()
    }

    #[test]
    fn connects_and_carries_bytes_both_ways() {
        run_executor(&ExecutorSpec::new("t", None), async {
            let mut listener = Listener::bind(LOOPBACK, ListenOptions::default()).unwrap();
            let addr = listener.local_addr();
            let server = spawn_local(async move {
                let (mut read, write) = listener.accept().await.unwrap().split();
                while read.recv().await.unwrap() > 0 {
                    let bytes = read.frames().take_rest();
                    write.queue().extend_from_slice(&bytes);
                    write.flush().unwrap();
                }
            });
            let options = ConnectOptions::default();
            let connection = connect_any(&[closed_port(), addr], options).await.unwrap();
            assert_eq!(connection.peer_addr(), addr);
            let (mut read, write) = connection.split();
            assert!(write.socket_options().tcp_nodelay().unwrap());
            let unanswered = Duration::from_secs(3);
            write.give_up_after(unanswered).unwrap();
            let set = write.socket_options().tcp_user_timeout().unwrap();
            assert_eq!(set, Some(unanswered));
            for round in 0..10_u8 {
                write.queue().extend_from_slice(&[round; 3]);
                write.flush().unwrap();
                assert_eq!(read.recv().await.unwrap(), 3);
                assert_eq!(&read.frames().take_rest()[..], &[round; 3]);
            }
            drop(read);
            server.await;
        })
        .unwrap();
    }

    #[test]
    fn a_refusal_is_an_error_at_once_and_silence_in_time() {
        run_executor(&ExecutorSpec::new("t", None), async {
            let options = ConnectOptions {
                patience: Duration::from_millis(50),
                ..ConnectOptions::default()
            };
            let error = connect(closed_port(), options).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            let error = connect_any(&[], options).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            // A listener whose backlog is full does not answer.
            let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            full.bind(&SockAddr::from(LOOPBACK)).unwrap();
            full.listen(0).unwrap();
            let addr = full.local_addr().unwrap().as_socket().unwrap();
            let mut held = Vec::new();
            let error = loop {
                match connect(addr, options).await {
                    Ok(connection) => held.push(connection),
                    Err(error) => break error,
                }
                assert!(held.len() < 100, "the backlog is never full");
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        })
        .unwrap();
    }
}
