//! Many connections: how fast they get a session when all come at once, and what they cost while
//! they only ping.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use hdrhistogram::Histogram;
use ringkeeper_harness::process;
use ringkeeper_proto::connect::{ConnectRequest, ConnectResponse, PASSWORD_LEN};
use ringkeeper_proto::{Reader, Request, SessionId, Xid, Zxid};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::load::histogram;
use crate::subject::Subject;

/// Session time-out of the crowd; each connection pings three times in it.
const TIMEOUT_MS: i32 = 30_000;
/// A crowd that is not together after so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of a ping's reply with its length.
const PING_REPLY_LEN: u64 = 20;

/// Connections with sessions.
#[derive(Debug)]
pub(crate) struct Crowd {
    epoll: OwnedFd,
    members: Vec<Member>,
    /// From the first connect to the last session.
    pub(crate) assembled_in: Duration,
    /// Nanoseconds from each connect to its session.
    pub(crate) latency: Histogram<u64>,
}

/// What holding a crowd came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) elapsed: Duration,
    pub(crate) server_cpu: Duration,
    pub(crate) own_cpu: Duration,
    pub(crate) pings: u64,
}

#[derive(Debug)]
struct Member {
    stream: TcpStream,
    began: Instant,
    stage: Stage,
    received: Vec<u8>,
    ping_bytes: u64,
    pings: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Requested,
    Established,
}

impl Crowd {
    /// Connects `count` clients, at most `at_once` of them at the same time.
    pub(crate) fn assemble(subject: &Subject, count: usize, at_once: usize) -> Result<Self> {
        allow_files(count)?;
        let addresses = subject.addresses();
        let mut crowd = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            members: Vec::with_capacity(count),
            assembled_in: Duration::ZERO,
            latency: histogram()?,
        };
        let began = Instant::now();
        let mut established = 0;
        while established < count {
            while crowd.members.len() < count && crowd.members.len() - established < at_once {
                let address = addresses[crowd.members.len() % addresses.len()];
                crowd.add(address)?;
            }
            established += crowd.step(Duration::from_secs(1))?;
            ensure!(
                began.elapsed() < PATIENCE,
                "{established} of {count} clients have a session after {PATIENCE:?}"
            );
        }
        crowd.assembled_in = began.elapsed();
        Ok(crowd)
    }

    fn add(&mut self, address: SocketAddr) -> Result<()> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let began = Instant::now();
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => other?,
        }
        let stream = TcpStream::from(socket);
        let data = epoll::EventData::new_u64(self.members.len() as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::OUT)?;
        self.members.push(Member {
            stream,
            began,
            stage: Stage::Connecting,
            received: Vec::new(),
            ping_bytes: 0,
            pings: 0,
        });
        Ok(())
    }

    /// Carries every connection on that can be; returns how many got their session.
    fn step(&mut self, patience: Duration) -> Result<usize> {
        let mut events = Vec::with_capacity(1024);
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs())?,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut established = 0;
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            let Some(member) = self.members.get_mut(index) else {
                continue;
            };
            match member.stage {
                Stage::Connecting => {
                    member.request()?;
                    let data = epoll::EventData::new_u64(event.data.u64());
                    epoll::modify(&self.epoll, &member.stream, data, epoll::EventFlags::IN)?;
                }
                Stage::Requested => {
                    if member.receive_session()? {
                        established += 1;
                        let nanos = u64::try_from(member.began.elapsed().as_nanos())?;
                        self.latency.saturating_record(nanos);
                    }
                }
                Stage::Established => member.receive_pings()?,
            }
        }
        Ok(established)
    }

    /// Keeps the sessions alive for `time`; every ping must be answered.
    pub(crate) fn hold(&mut self, subject: &Subject, time: Duration) -> Result<Held> {
        let mut ping = BytesMut::new();
        Request::Ping.encode_frame(Xid::PING, &mut ping);
        let every = Duration::from_millis(u64::try_from(TIMEOUT_MS)? / 3);
        let per_second = self.members.len() as f64 / every.as_secs_f64();
        let (began, server, own) = (Instant::now(), subject.usage()?, process::own_usage()?);
        let mut sent = 0_u64;
        while began.elapsed() < time {
            // The pings are spread evenly, as those of clients that came over time are.
            let due = began.elapsed().as_secs_f64() * per_second;
            while (sent as f64) < due {
                let index = usize::try_from(sent)? % self.members.len();
                let member = &mut self.members[index];
                member.stream.write_all(&ping).context("send a ping")?;
                member.pings += 1;
                sent += 1;
            }
            self.step(Duration::from_millis(5))?;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.members.iter().any(|member| !member.answered()) {
            ensure!(Instant::now() < deadline, "pings are not answered");
            self.step(Duration::from_millis(100))?;
        }
        let elapsed = began.elapsed();
        Ok(Held {
            elapsed,
            server_cpu: subject.usage()?.cpu.saturating_sub(server.cpu),
            own_cpu: process::own_usage()?.cpu.saturating_sub(own.cpu),
            pings: sent,
        })
    }

    /// Closes every session, so that none is left to expire during what comes next.
    pub(crate) fn dismiss(self) -> Result<()> {
        let mut close = BytesMut::new();
        Request::CloseSession.encode_frame(Xid(1), &mut close);
        for chunk in self.members.chunks(200) {
            for mut member in chunk.iter().map(|member| &member.stream) {
                member.set_nonblocking(false)?;
                member.write_all(&close)?;
            }
            for mut member in chunk.iter().map(|member| &member.stream) {
                let mut reply = [0; 20];
                member.read_exact(&mut reply).context("close a session")?;
            }
        }
        Ok(())
    }
}

impl Member {
    fn request(&mut self) -> Result<()> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error).context("connect");
        }
        let mut frame = BytesMut::new();
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: Zxid::ZERO,
            timeout_ms: TIMEOUT_MS,
            session: SessionId::NONE,
            password: &[0; PASSWORD_LEN],
            read_only: Some(false),
        };
        request.encode_frame(&mut frame);
        // A fresh connection has room for these few bytes.
        self.stream.write_all(&frame)?;
        self.stage = Stage::Requested;
        Ok(())
    }

    /// Whether the session is there.
    fn receive_session(&mut self) -> Result<bool> {
        let mut buffer = [0; 256];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the server closed the connection of a client that asks for a session"),
            Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("wait for a session"),
        }
        let Some((len, body)) = self.received.split_first_chunk::<4>() else {
            return Ok(false);
        };
        if body.len() < usize::try_from(i32::from_be_bytes(*len))? {
            return Ok(false);
        }
        let response = ConnectResponse::decode(&mut Reader::new(body))?;
        ensure!(
            response.session != SessionId::NONE,
            "the server gave no session"
        );
        self.received = Vec::new();
        self.stage = Stage::Established;
        Ok(true)
    }

    fn receive_pings(&mut self) -> Result<()> {
        let mut buffer = [0; 256];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the server closed an idle connection"),
            Ok(count) => self.ping_bytes += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("wait for a ping"),
        }
        Ok(())
    }

    const fn answered(&self) -> bool {
        self.ping_bytes == self.pings * PING_REPLY_LEN
    }
}

/// Raises the limit of open files, for this process and the servers it starts, as far as needed.
pub(crate) fn allow_files(connections: usize) -> Result<()> {
    let wanted = connections as u64 + 200;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        ensure!(
            limit.maximum.is_none_or(|maximum| maximum >= wanted),
            "{connections} connections need a limit of {wanted} open files (ulimit -Hn)"
        );
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}
