//! A connection that sends any bytes and reads frames, with a time limit on everything.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A frame larger than this is taken for garbage: nothing that is asked for is near it.
const FRAME_LEN_MAX: usize = 8 << 20;
const READ_LEN: usize = 64 << 10;
/// How long a server may take to answer before its silence counts as the answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What came next on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A frame, without its length.
    Frame(Vec<u8>),
    /// The server closed the connection.
    Closed,
    /// Nothing, for as long as one waits.
    Silence,
    /// A length that no frame has.
    Nonsense(i32),
}

/// One TCP connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Bytes that have arrived and were not yet handed out start at `taken`.
    received: Vec<u8>,
    taken: usize,
}

impl Connection {
    pub(crate) fn open(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            received: Vec::new(),
            taken: 0,
        })
    }

    /// Sends `bytes`. A connection that the server has closed swallows them: the next read tells.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _closed_is_seen_by_the_next_read = self.stream.write_all(bytes);
    }

    /// Tells the server that nothing more comes.
    pub(crate) fn end_of_stream(&self) {
        let _closed_is_seen_by_the_next_read = self.stream.shutdown(Shutdown::Write);
    }

    /// Waits for the next frame for as long as [`PATIENCE`].
    pub(crate) fn next(&mut self) -> Arrival {
        loop {
            if let Some(arrival) = self.take_frame() {
                return arrival;
            }
            match self.fill() {
                Ok(0) => return Arrival::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Arrival::Silence;
                }
                // A reset is how a close looks when the server had not read everything.
                Err(_) => return Arrival::Closed,
            }
        }
    }

    /// Waits for the next frame for as long as `limit`.
    pub(crate) fn next_within(&mut self, limit: Duration) -> io::Result<Arrival> {
        self.stream.set_read_timeout(Some(limit))?;
        let arrival = self.next();
        self.stream.set_read_timeout(Some(PATIENCE))?;
        Ok(arrival)
    }

    /// Everything until the server closes, unframed; `None` when it does not.
    pub(crate) fn read_to_close(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.fill() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return None;
                }
                Err(_) => break,
            }
        }
        let bytes = self.received.split_off(self.taken);
        self.received.clear();
        self.taken = 0;
        Some(bytes)
    }

    fn take_frame(&mut self) -> Option<Arrival> {
        let rest = self.received.get(self.taken..)?;
        let (length, body) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let Some(len) = usize::try_from(length)
            .ok()
            .filter(|len| *len <= FRAME_LEN_MAX)
        else {
            return Some(Arrival::Nonsense(length));
        };
        let frame = body.get(..len)?.to_vec();
        self.taken += 4 + len;
        if self.taken == self.received.len() {
            self.received.clear();
            self.taken = 0;
        }
        Some(Arrival::Frame(frame))
    }

    fn fill(&mut self) -> io::Result<usize> {
        let filled = self.received.len();
        self.received.resize(filled + READ_LEN, 0);
        let outcome = self.stream.read(&mut self.received[filled..]);
        self.received
            .truncate(filled + outcome.as_ref().copied().unwrap_or(0));
        outcome
    }
}
