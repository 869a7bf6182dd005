//! A client's or peer's connection: a half that receives frames and a half that sends bytes.
//!
//! Both halves belong to one executor and may be used by different tasks of it.
//!
//! Receiving: [`ReadHalf::recv`] waits for readability with no buffer, then does one `recv`, and
//! [`ReadHalf::next_frame`] cuts slices from what came. Sending: any task appends to
//! [`WriteHalf::queue`]; one [`WriteHalf::flush`] per batch does one non-blocking `send`; what the
//! socket did not take is sent by a task that exists only as long as there is some.
//!
//! Invariants:
//! - The output pending after a flush is at most `pending_bytes_max`, or the connection is dropped.
//! - Bytes leave in the order in which they were queued.
//! - After [`WriteHalf::close`] everything queued before leaves, unless the peer does not take it within
//!   the linger time; nothing is received any more.

use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use std::{io, mem};

use bytes::{Buf, Bytes, BytesMut};
use socket2::{SockRef, Socket};

use crate::chunk::with_chunk;
use crate::executor::{sleep, spawn_local};
use crate::frame::{FrameDecoder, FrameError, LENGTH_BYTES};
use crate::pulse;
use crate::socket::StreamSocket;

/// Bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// The longest frame body that is accepted, in bytes.
    pub frame_bytes_max: usize,
    /// The most output, in bytes, that may wait for a peer that does not read. Larger than the largest
    /// reply.
    pub pending_bytes_max: usize,
    /// How long a closing connection waits for the peer to take the rest and to close.
    pub linger: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 1024 * 1024,
            pending_bytes_max: 16 * 1024 * 1024,
            linger: Duration::from_secs(1),
        }
    }
}

/// An accepted connection, before it is split. Dropping it ends it.
#[derive(Debug)]
pub struct Connection {
    shared: Rc<Shared>,
    limits: ConnectionLimits,
}

#[derive(Debug)]
struct Shared {
    socket: StreamSocket,
    peer: SocketAddr,
    output: RefCell<Output>,
    pending_bytes_max: usize,
    linger: Duration,
    bytes_received: Cell<u64>,
    bytes_sent: Cell<u64>,
}

#[derive(Debug, Default)]
struct Output {
    /// Queued and not yet taken by the socket.
    pending: BytesMut,
    /// Waits for room in the socket and sends `pending`; nobody else sends meanwhile.
    has_writer: bool,
    /// Those that wait for `pending` to shrink.
    waiters: Vec<Waker>,
    phase: Phase,
}

/// Only ever moves down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// To be shut down once `pending` has left.
    Closing,
    /// Nothing is sent any more.
    Closed,
}

impl Connection {
    /// Takes over a connected socket on the current executor.
    ///
    /// # Errors
    /// When the system's limit of watched descriptors is reached (`fs.epoll.max_user_watches`).
    pub fn new(socket: Socket, peer: SocketAddr, limits: ConnectionLimits) -> io::Result<Self> {
        Ok(Self::over(StreamSocket::new(socket)?, peer, limits))
    }

    pub(crate) fn over(socket: StreamSocket, peer: SocketAddr, limits: ConnectionLimits) -> Self {
        let shared = Shared {
            socket,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            output: RefCell::default(),
            pending_bytes_max: limits.pending_bytes_max,
            linger: limits.linger,
            bytes_received: Cell::new(0),
            bytes_sent: Cell::new(0),
        };
        Self {
            shared: Rc::new(shared),
            limits,
        }
    }

    /// The two halves.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        let write = WriteHalf {
            shared: Rc::clone(&self.shared),
        };
        let read = ReadHalf {
            shared: self.shared,
            frames: FrameDecoder::new(self.limits.frame_bytes_max),
        };
        (read, write)
    }

    /// The peer's address; an IPv4 peer of a dual-stack listener by its IPv4 address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.shared.peer
    }
}

/// The receiving half. Dropping it ends the connection: at once and with the loss of pending output,
/// or, after [`WriteHalf::close`], when that has left.
#[derive(Debug)]
pub struct ReadHalf {
    shared: Rc<Shared>,
    frames: FrameDecoder,
}

impl ReadHalf {
    /// Waits for bytes, and returns how many came: 16 to 64 KiB at most, 0 at the end of the stream or
    /// once the connection was closed on this side. May be cancelled without losing bytes.
    ///
    /// Take all frames out before the next call.
    ///
    /// # Errors
    /// What the socket says; a reset by the peer is one.
    pub async fn recv(&mut self) -> io::Result<usize> {
        self.frames.settle();
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        with_chunk(|chunk| {
            loop {
                let received = ready!(self.shared.socket.poll_recv(cx, chunk.room()))?;
                if received > 0 && self.shared.output.borrow().phase != Phase::Open {
                    // Unread bytes would turn the close into a reset, which can overtake the output.
                    continue;
                }
                pulse::touch();
                let total = self.shared.bytes_received.get() + received as u64;
                self.shared.bytes_received.set(total);
                if self.frames.buffered() == 0 {
                    self.frames.push(chunk.split(received));
                } else {
                    self.frames.extend(chunk.peek(received));
                }
                return Poll::Ready(Ok(received));
            }
        })
    }

    /// See [`FrameDecoder::next_frame`].
    ///
    /// # Errors
    /// [`FrameError`] for an announced length that is negative or too large.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        self.frames.next_frame()
    }

    /// See [`FrameDecoder::peek_four`].
    pub fn peek_four(&self) -> Option<[u8; LENGTH_BYTES]> {
        self.frames.peek_four()
    }

    /// What was received and not yet returned, and the limit of frames.
    pub fn frames(&mut self) -> &mut FrameDecoder {
        &mut self.frames
    }

    /// Frames returned so far.
    pub fn frames_received(&self) -> u64 {
        self.frames.frames()
    }

    /// Bytes received so far.
    pub fn bytes_received(&self) -> u64 {
        self.shared.bytes_received.get()
    }

    /// The peer's address; an IPv4 peer of a dual-stack listener by its IPv4 address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.shared.peer
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        let phase = self.shared.output.borrow().phase;
        if phase == Phase::Open {
            self.shared.end();
        }
    }
}

/// The sending half; clones send on the same connection.
#[derive(Clone, Debug)]
pub struct WriteHalf {
    shared: Rc<Shared>,
}

impl WriteHalf {
    /// Ends the connection when the peer has not acknowledged what was sent for so long: its network is gone, and no
    /// packet says so.
    ///
    /// # Errors
    /// What the system says.
    pub fn give_up_after(&self, unanswered: Duration) -> io::Result<()> {
        self.shared.socket.give_up_after(unanswered)
    }

    /// The output buffer, to append to. Nothing leaves before [`Self::flush`], which throws the bytes
    /// away on a connection that is closed.
    pub fn queue(&self) -> RefMut<'_, BytesMut> {
        RefMut::map(self.shared.output.borrow_mut(), |output| {
            if output.pending.capacity() == 0 {
                output.pending = buffers::take();
            }
            &mut output.pending
        })
    }

    /// Sends what is queued: one `send` now, and what the socket does not take, by a task that waits
    /// for room.
    ///
    /// # Errors
    /// [`SendError`]; the connection is over then, and [`ReadHalf::recv`] returns.
    pub fn flush(&self) -> Result<Sent, SendError> {
        let outcome = self.shared.flush_now();
        if let Ok((Sent::Pending { .. }, true)) = outcome {
            spawn_local(write_pending(Rc::clone(&self.shared))).detach();
        }
        outcome.map(|(sent, _)| sent)
    }

    /// Closes the connection after sending what is queued: the peer sees the end of the stream
    /// behind it, what it still sends is thrown away, and [`ReadHalf::recv`] returns 0 when it closes or
    /// when the linger time is over.
    pub fn close(&self) {
        let flushed = self.flush();
        {
            let mut output = self.shared.output.borrow_mut();
            if output.phase != Phase::Open {
                return;
            }
            output.phase = Phase::Closing;
        }
        if matches!(flushed, Ok(Sent::All)) {
            self.shared.socket.shutdown(Shutdown::Write);
        }
        let shared = Rc::downgrade(&self.shared);
        let linger = self.shared.linger;
        spawn_local(async move {
            sleep(linger).await;
            if let Some(shared) = shared.upgrade() {
                shared.end();
            }
        })
        .detach();
    }

    /// Ends the connection at once, without sending what is queued. [`ReadHalf::recv`] returns.
    pub fn abort(&self) {
        self.shared.end();
    }

    /// Waits until at most `bytes` of output are pending, or the connection has ended. A reader that
    /// awaits this before it takes on more work keeps a peer that does not read from filling memory.
    pub async fn drained_to(&self, bytes: usize) {
        poll_fn(|cx| {
            let mut output = self.shared.output.borrow_mut();
            // Without a writer task nothing is waited for: the rest leaves with the next flush.
            if output.pending.len() <= bytes || !output.has_writer {
                return Poll::Ready(());
            }
            output.waiters.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Bytes queued that have not left.
    pub fn pending(&self) -> usize {
        self.shared.output.borrow().pending.len()
    }

    /// Whether nothing more is received or sent, or soon will be: closed or aborted on this side.
    pub fn is_closed(&self) -> bool {
        self.shared.output.borrow().phase != Phase::Open
    }

    /// Bytes that the socket has taken so far.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.get()
    }

    /// The peer's address; an IPv4 peer of a dual-stack listener by its IPv4 address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.shared.peer
    }

    /// The socket's options, to read or change.
    pub fn socket_options(&self) -> SockRef<'_> {
        SockRef::from(&self.shared.socket)
    }

    /// The address on this side.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let addr = self.socket_options().local_addr()?;
        addr.as_socket()
            .map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
    }
}

impl Shared {
    /// One `send`. The flag says that a writer task is to be started for the rest.
    fn flush_now(&self) -> Result<(Sent, bool), SendError> {
        let mut output = self.output.borrow_mut();
        if output.phase != Phase::Open {
            // A writer may still be at what was queued before the close.
            if !output.has_writer {
                output.pending = BytesMut::new();
            }
            return Err(SendError::Closed);
        }
        if !output.has_writer && !output.pending.is_empty() {
            match self.socket.send_now(&output.pending) {
                Ok(sent) => self.took(&mut output, sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    drop(output);
                    self.end();
                    return Err(SendError::Io(error));
                }
            }
        }
        let pending = output.pending.len();
        if pending == 0 {
            return Ok((Sent::All, false));
        }
        if pending > self.pending_bytes_max {
            drop(output);
            self.end();
            return Err(SendError::TooSlow { pending });
        }
        let is_first = !mem::replace(&mut output.has_writer, true);
        Ok((Sent::Pending { bytes: pending }, is_first))
    }

    /// The socket took `sent` bytes.
    fn took(&self, output: &mut Output, sent: usize) {
        self.bytes_sent.set(self.bytes_sent.get() + sent as u64);
        output.pending.advance(sent);
        if output.pending.is_empty() {
            buffers::give(mem::take(&mut output.pending));
        }
    }

    /// Ends both directions at once.
    fn end(&self) {
        let waiters = {
            let mut output = self.output.borrow_mut();
            output.phase = Phase::Closed;
            output.pending = BytesMut::new();
            mem::take(&mut output.waiters)
        };
        self.socket.shutdown(Shutdown::Both);
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Sends until nothing is pending.
    fn poll_write_pending(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut output = self.output.borrow_mut();
            if output.phase == Phase::Closed || output.pending.is_empty() {
                output.has_writer = false;
                return Poll::Ready(Ok(()));
            }
            let sent = ready!(self.socket.poll_send(cx, &output.pending))?;
            self.took(&mut output, sent);
            let waiters = mem::take(&mut output.waiters);
            drop(output);
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Who holds a duplicate of the descriptor does not keep the connection open.
        self.socket.shutdown(Shutdown::Both);
    }
}

/// The task that sends what a flush left.
async fn write_pending(shared: Rc<Shared>) {
    let outcome = poll_fn(|cx| shared.poll_write_pending(cx)).await;
    let phase = shared.output.borrow().phase;
    match outcome {
        // The reader finds out by its own error or end.
        Err(_) => shared.end(),
        Ok(()) if phase == Phase::Closing => shared.socket.shutdown(Shutdown::Write),
        Ok(()) => {}
    }
}

/// What a flush did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing is pending.
    All,
    /// The socket is full; the rest follows as the peer reads.
    Pending {
        /// Bytes that wait.
        bytes: usize,
    },
}

/// Why output cannot be sent. The connection is over.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// More output waits than the limit allows: the peer does not read.
    #[error("the peer does not read: {pending} bytes wait for it")]
    TooSlow {
        /// Bytes that waited.
        pending: usize,
    },
    /// It was closed or aborted before.
    #[error("the connection is closed")]
    Closed,
    /// The socket failed.
    #[error("send: {0}")]
    Io(#[from] io::Error),
}

/// Output buffers of this executor that are not in use: an idle connection keeps none, and a busy one
/// does not allocate for each batch.
mod buffers {
    use std::cell::RefCell;

    use bytes::BytesMut;

    /// A larger buffer is not kept.
    const KEPT_BYTES_MAX: usize = 64 * 1024;
    const KEPT_MAX: usize = 64;
    const FRESH_BYTES: usize = 512;

    thread_local! {
        static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take() -> BytesMut {
        FREE.with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| BytesMut::with_capacity(FRESH_BYTES))
    }

    pub(super) fn give(mut buffer: BytesMut) {
        buffer.clear();
        // What was sent was cut off the front; this takes it back, for no slice of it is left.
        let is_whole = buffer.try_reclaim(FRESH_BYTES);
        FREE.with_borrow_mut(|free| {
            if is_whole && free.len() < KEPT_MAX && buffer.capacity() <= KEPT_BYTES_MAX {
                free.push(buffer);
            }
        });
    }
}
