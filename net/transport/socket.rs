//! Sockets on their executor, and the one place where a descriptor is handed to glommio, which takes
//! them only as raw numbers.
#![expect(
    unsafe_code,
    reason = "glommio takes descriptors over only by FromRawFd"
)]

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::AsyncRead;
use glommio::net::TcpStream;
use rustix::net::RecvFlags;
use socket2::{SockRef, Socket};

use crate::readiness::Watched;

/// A connected TCP socket on the current executor.
///
/// A wait needs no buffer: the socket is told to be readable, and then there is a plain non-blocking
/// `recv`. Writability can be awaited at the same time.
#[derive(Debug)]
pub(crate) struct StreamSocket(Watched);

impl StreamSocket {
    /// Takes the socket over.
    ///
    /// # Errors
    /// See [`Watched::new`].
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        Watched::new(socket).map(Self)
    }

    /// One `recv` when the socket is readable.
    pub(crate) fn poll_recv(&self, cx: &Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_read(cx, room.len(), || {
            let (count, _) = rustix::net::recv(&self.0, &mut *room, RecvFlags::DONTWAIT)?;
            Ok(count)
        })
    }

    /// One `send`, now or else when the socket is writable.
    pub(crate) fn poll_send(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.send_now(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.0.wake_writer(cx);
                    return Poll::Pending;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// Waits until a connection that was begun is there, or has failed.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        poll_fn(|cx| self.0.poll_begun(cx)).await;
        match self.0.socket().take_error()? {
            Some(error) => Err(error),
            None => self.0.socket().peer_addr().map(drop),
        }
    }

    /// One `send` now, without the ring; an error of the kind `WouldBlock` when there is no room.
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        SockRef::from(self).send_with_flags(bytes, flags)
    }

    /// Has the kernel end the connection when the peer has not acknowledged what was sent for so long.
    pub(crate) fn give_up_after(&self, unanswered: Duration) -> io::Result<()> {
        self.0.socket().set_tcp_user_timeout(Some(unanswered))
    }

    /// Ends one or both directions, at once for the peer and for who waits here.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // It fails when the peer was faster: then there is nothing to end.
        let _ = SockRef::from(self).shutdown(how);
    }
}

impl AsFd for StreamSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd`, a duplicate which is used up, can be read.
///
/// glommio has no such wait for any descriptor, but each of its streams makes a poll request on the
/// main ring when it is made, and tries to read when that has completed.
pub(crate) async fn readable(fd: OwnedFd) {
    let mut stream = adopt(fd);
    // What is not a connected socket cannot be read: that the read was tried is what was waited for.
    let _ = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [])).await;
}

fn adopt(fd: OwnedFd) -> TcpStream {
    let fd = fd.into_raw_fd();
    // SAFETY: the descriptor is open, and given up by the line above: the stream is its only owner.
    unsafe { TcpStream::from_raw_fd(fd) }
}
