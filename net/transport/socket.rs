//! The one place where descriptors are handed to glommio, which takes them only as raw numbers.
#![expect(
    unsafe_code,
    reason = "glommio takes descriptors over only by FromRawFd, and lends none back as BorrowedFd"
)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::{fmt, io};

use futures_util::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use socket2::{SockRef, Socket};

/// A connected TCP socket on the current executor.
///
/// glommio's stream asks the kernel for readability (a poll request on the ring) when it is made and
/// after each read that emptied the socket, and does a plain non-blocking `recv` when that has come.
/// So a wait needs no buffer, and writability can be awaited at the same time.
pub(crate) struct StreamSocket {
    stream: RefCell<TcpStream>,
    fd: RawFd,
}

impl StreamSocket {
    /// Takes the socket over.
    pub(crate) fn new(socket: Socket) -> Self {
        let stream = adopt(socket.into());
        let fd = stream.as_raw_fd();
        Self {
            stream: RefCell::new(stream),
            fd,
        }
    }

    /// One `recv` when the socket is readable.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, room)
    }

    /// One `send`, now or else when the socket is writable.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, bytes)
    }

    /// Waits until a connection that was begun is there, or has failed.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        // Until then a send, though it be of nothing, finds no room; the failure is its error.
        poll_fn(|cx| self.poll_send(cx, &[])).await?;
        let socket = SockRef::from(self);
        match socket.take_error()? {
            Some(error) => Err(error),
            None => socket.peer_addr().map(drop),
        }
    }

    /// One `send` now, without the ring; an error of the kind `WouldBlock` when there is no room.
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        SockRef::from(self).send_with_flags(bytes, flags)
    }

    /// Ends one or both directions, at once for the peer and for polls of this socket. (Closing the
    /// descriptor does neither while a poll request on the ring still refers to the file.)
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // It fails when the peer was faster: then there is nothing to end.
        let _ = SockRef::from(self).shutdown(how);
    }
}

impl AsFd for StreamSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self.stream` owns `fd`, lives as long as `self`, and is never replaced.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl fmt::Debug for StreamSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSocket")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

/// Waits until a listening socket has a connection to accept or has failed. A hint: try to accept.
///
/// glommio would submit an accept request to its latency ring, one of the things that make an
/// executor park with tasks left, and accept one connection per request. A stream over a duplicate of
/// the descriptor instead makes the poll request that every stream makes, on the main ring.
pub(crate) async fn acceptable(listener: &Socket) -> io::Result<()> {
    let mut stream = adopt(OwnedFd::from(listener.try_clone()?));
    // The read itself fails, for a listening socket is not connected; it is tried once the poll
    // request has completed, and that is what was waited for.
    let _ = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [])).await;
    Ok(())
}

fn adopt(fd: OwnedFd) -> TcpStream {
    let fd = fd.into_raw_fd();
    // SAFETY: the descriptor is open, and given up by the line above: the stream is its only owner.
    unsafe { TcpStream::from_raw_fd(fd) }
}
