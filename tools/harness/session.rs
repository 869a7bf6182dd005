//! A plain blocking client: one session, one connection, requests pipelined as far as the caller
//! sends before it receives.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use ringkeeper_proto::connect::{ConnectRequest, ConnectResponse, PASSWORD_LEN};
use ringkeeper_proto::reply::ReplyHeader;
use ringkeeper_proto::{Reader, Request, SessionId, Xid, ZkError, Zxid};

/// The longest frame that is read; far above what any request here asks for.
const FRAME_LEN_MAX: usize = 64 << 20;

/// How long a reply may take unless the caller says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it takes to take a session up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// The session.
    pub id: SessionId,
    /// Its password.
    pub password: [u8; PASSWORD_LEN],
}

/// A connection with an established session.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    key: SessionKey,
    timeout_ms: i32,
    xid: i32,
    out: BytesMut,
    input: Vec<u8>,
    /// Bytes of `input` that are handed out already; `read <= input.len()`.
    read: usize,
}

/// A reply: its header and the bytes behind it.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The header.
    pub header: ReplyHeader,
    /// The record, empty when the request failed.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body, when the request succeeded.
    ///
    /// # Errors
    /// The server's error.
    pub fn ok(&self) -> Result<Reader<'_>> {
        match self.header.error {
            0 => Ok(Reader::new(&self.body)),
            code => match ZkError::from_code(code) {
                Some(error) => Err(error.into()),
                None => bail!("the server answers the unknown error {code}"),
            },
        }
    }
}

/// The server closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server closed the connection")
    }
}

impl std::error::Error for Closed {}

/// What became of an attempt to take a session up again.
#[derive(Debug)]
pub enum Resume {
    /// It goes on.
    Alive(Session),
    /// The server says that it does not exist any more.
    Expired,
}

impl Session {
    /// Opens a new session.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub fn open(address: SocketAddr, timeout_ms: i32) -> Result<Self> {
        Self::open_within(address, timeout_ms, PATIENCE)
    }

    /// As [`Session::open`]; neither the server's consent nor any later reply may take longer than
    /// `patience`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub fn open_within(address: SocketAddr, timeout_ms: i32, patience: Duration) -> Result<Self> {
        let key = SessionKey {
            id: SessionId::NONE,
            password: [0; PASSWORD_LEN],
        };
        match Self::connect(address, timeout_ms, key, Zxid::ZERO, patience)? {
            Resume::Alive(session) => Ok(session),
            Resume::Expired => bail!("the server gave no session"),
        }
    }

    /// Takes a session up again. `last_zxid` is what the client has seen.
    ///
    /// # Errors
    /// When the server cannot be reached, or answers with another session.
    pub fn resume(
        address: SocketAddr,
        timeout_ms: i32,
        key: SessionKey,
        last_zxid: Zxid,
    ) -> Result<Resume> {
        Self::resume_within(address, timeout_ms, key, last_zxid, PATIENCE)
    }

    /// As [`Session::resume`], with the patience of [`Session::open_within`].
    ///
    /// # Errors
    /// When the server cannot be reached, or answers with another session.
    pub fn resume_within(
        address: SocketAddr,
        timeout_ms: i32,
        key: SessionKey,
        last_zxid: Zxid,
        patience: Duration,
    ) -> Result<Resume> {
        let resumed = Self::connect(address, timeout_ms, key, last_zxid, patience)?;
        if let Resume::Alive(session) = &resumed {
            ensure!(
                session.key == key,
                "session {} was asked for, {} came back",
                key.id,
                session.key.id
            );
        }
        Ok(resumed)
    }

    fn connect(
        address: SocketAddr,
        timeout_ms: i32,
        key: SessionKey,
        last_zxid_seen: Zxid,
        patience: Duration,
    ) -> Result<Resume> {
        let stream = TcpStream::connect_timeout(&address, patience.min(Duration::from_secs(5)))
            .with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut session = Self {
            stream,
            key,
            timeout_ms,
            xid: 0,
            out: BytesMut::new(),
            input: Vec::new(),
            read: 0,
        };
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen,
            timeout_ms,
            session: key.id,
            password: &key.password,
            read_only: Some(false),
        };
        request.encode_frame(&mut session.out);
        session.flush()?;
        let frame = session.frame()?;
        let response = ConnectResponse::decode(&mut Reader::new(&frame))?;
        if response.session == SessionId::NONE || response.timeout_ms <= 0 {
            return Ok(Resume::Expired);
        }
        session.key = SessionKey {
            id: response.session,
            password: response.password,
        };
        session.timeout_ms = response.timeout_ms;
        Ok(Resume::Alive(session))
    }

    /// Queues a request; [`Session::flush`] sends.
    pub fn send(&mut self, request: &Request<'_>) -> Xid {
        self.xid += 1;
        let xid = Xid(self.xid);
        request.encode_frame(xid, &mut self.out);
        xid
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn flush(&mut self) -> Result<()> {
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        Ok(sent?)
    }

    /// Whether a whole reply has arrived already, so that [`Session::receive`] will not wait.
    pub fn has_reply(&self) -> bool {
        self.buffered().is_some()
    }

    /// The next reply; watch events and pings are passed over.
    ///
    /// # Errors
    /// When the connection is gone, or nothing comes for 30 seconds (or what the caller said).
    pub fn receive(&mut self) -> Result<Reply> {
        loop {
            let frame = self.frame()?;
            let mut reader = Reader::new(&frame);
            let header = ReplyHeader::decode(&mut reader)?;
            if header.xid != Xid::NOTIFICATION && header.xid != Xid::PING {
                return Ok(Reply {
                    header,
                    body: reader.rest().to_vec(),
                });
            }
        }
    }

    /// The bytes of the next watch event: its type, the session's state, and the path. Replies are passed over.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub fn receive_event(&mut self) -> Result<Vec<u8>> {
        loop {
            let frame = self.frame()?;
            let mut reader = Reader::new(&frame);
            if ReplyHeader::decode(&mut reader)?.xid == Xid::NOTIFICATION {
                return Ok(reader.rest().to_vec());
            }
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// When the connection is gone. An error that the server answers is in the reply.
    pub fn call(&mut self, request: &Request<'_>) -> Result<Reply> {
        let xid = self.send(request);
        self.flush()?;
        let reply = self.receive()?;
        ensure!(
            reply.header.xid == xid,
            "reply {} to request {}",
            reply.header.xid.0,
            xid.0
        );
        Ok(reply)
    }

    /// Closes the session, and returns when the server has said so.
    ///
    /// # Errors
    /// When the connection is gone before.
    pub fn close(mut self) -> Result<()> {
        self.call(&Request::CloseSession)?.ok()?;
        Ok(())
    }

    /// The connection, for a caller that goes on by itself. The next reply carries what it sends;
    /// nothing may be outstanding.
    ///
    /// # Errors
    /// When bytes have arrived that nobody has read.
    pub fn into_stream(self) -> Result<TcpStream> {
        ensure!(
            self.read == self.input.len() && self.out.is_empty(),
            "the session has unread or unsent bytes"
        );
        Ok(self.stream)
    }

    /// What it takes to take the session up again.
    pub const fn key(&self) -> SessionKey {
        self.key
    }

    /// The negotiated time-out in milliseconds.
    pub const fn timeout_ms(&self) -> i32 {
        self.timeout_ms
    }

    /// The end and the start of the buffered frame's body.
    fn buffered(&self) -> Option<(usize, usize)> {
        let rest = self.input.get(self.read..)?;
        let (len, _) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(i32::from_be_bytes(*len)).ok()?;
        (rest.len() - 4 >= len).then_some((self.read + 4, self.read + 4 + len))
    }

    fn frame(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some((start, end)) = self.buffered() {
                let frame = self.input.get(start..end).unwrap_or_default().to_vec();
                self.read = end;
                return Ok(frame);
            }
            ensure!(
                self.input.len() - self.read <= FRAME_LEN_MAX,
                "the server sends a frame of more than {FRAME_LEN_MAX} bytes"
            );
            self.input.drain(..self.read);
            self.read = 0;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Closed.into()),
                Ok(count) => self
                    .input
                    .extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("wait for a reply"),
            }
        }
    }
}
