//! Sockets on their executor.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};
use std::time::Duration;

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

    /// One `send` now; an error of the kind `WouldBlock` when there is no room.
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
