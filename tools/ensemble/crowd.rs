//! Thousands of idle sessions in one process, all of which lose a server at once: how long it takes until every one of
//! them is taken up again somewhere.
//!
//! A client that loses its connection tries the next server at once, and after each refusal waits a little, as real
//! ones do; so the crowd comes as one wave, which is the hardest for the servers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringkeeper_harness::SessionKey;
use ringkeeper_proto::connect::{ConnectRequest, ConnectResponse, PASSWORD_LEN};
use ringkeeper_proto::{Reader, Request, SessionId, Xid, Zxid};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// The sessions' time-out, and the line of `zoo.cfg` that allows it.
const TIMEOUT_MS: i32 = 40_000;

/// Lines of `zoo.cfg` for a crowd.
pub const SETTINGS: [&str; 2] = ["maxSessionTimeout=40000", "globalOutstandingLimit=20000"];

/// Between two attempts, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 50..150;

/// An attempt that takes longer is given up.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);

/// Sessions that are opened at once while the crowd gathers.
const GATHER_AT_ONCE: usize = 500;

const PATIENCE: Duration = Duration::from_secs(120);

/// What a loss came to.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Clients that lost their connection.
    pub lost: usize,
    /// Attempts to connect.
    pub attempts: u64,
    /// From the loss until half of those, 99 of 100, and all had their session again.
    pub after: [Duration; 3],
}

/// The crowd.
#[derive(Debug)]
pub struct Crowd {
    epoll: OwnedFd,
    addresses: Vec<SocketAddr>,
    clients: Vec<Client>,
    rng: SmallRng,
    attempts: u64,
}

#[derive(Debug)]
struct Client {
    key: SessionKey,
    /// The server that it is at, or tries next.
    at: usize,
    stage: Stage,
    received: Vec<u8>,
    /// It has a connection that was answered lately.
    answered: bool,
    /// It got a session after the last loss then.
    back: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// Not begun, or it waits to try again.
    Away {
        until: Instant,
    },
    Trying {
        stream: TcpStream,
        since: Instant,
        asked: bool,
    },
    Connected {
        stream: TcpStream,
    },
}

/// Allows this process, and the servers that it starts, so many connections.
///
/// # Errors
/// When the system does not.
pub fn allow(count: usize) -> Result<()> {
    let wanted = count as u64 + 1_000;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum.map(|maximum| maximum.max(wanted)),
        };
        setrlimit(Resource::Nofile, raised)
            .with_context(|| format!("allow {wanted} open files (ulimit -n)"))?;
    }
    Ok(())
}

impl Crowd {
    /// Opens `count` sessions, spread over the servers.
    ///
    /// # Errors
    /// When they do not get them.
    pub fn gather(addresses: &[SocketAddr], count: usize) -> Result<Self> {
        ensure!(!addresses.is_empty(), "there is no server");
        let now = Instant::now();
        let clients = (0..count).map(|at| Client {
            key: SessionKey {
                id: SessionId::NONE,
                password: [0; PASSWORD_LEN],
            },
            at,
            stage: Stage::Away { until: now },
            received: Vec::new(),
            answered: false,
            back: None,
        });
        let mut crowd = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            addresses: addresses.to_vec(),
            clients: clients.collect(),
            rng: SmallRng::seed_from_u64(1),
            attempts: 0,
        };
        crowd.run_until_all_are_there(GATHER_AT_ONCE)?;
        Ok(crowd)
    }

    /// How many clients are at the server with this place in the list of addresses.
    pub fn count_at(&self, server: usize) -> usize {
        let servers = self.addresses.len();
        let is_there = |it: &&Client| it.at % servers == server;
        self.clients.iter().filter(is_there).count()
    }

    /// Counts anew: a server is about to be killed.
    pub fn begin_loss(&mut self) {
        self.attempts = 0;
        self.clients.iter_mut().for_each(|it| it.back = None);
    }

    /// Waits until everybody has a session on a connection that is answered.
    ///
    /// # Errors
    /// When one has expired, or they do not come back.
    pub fn confirm(&mut self) -> Result<()> {
        let mut ping = BytesMut::new();
        Request::Ping.encode_frame(Xid::PING, &mut ping);
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            client.answered = false;
            if let Stage::Connected { stream } = &mut client.stage
                && stream.write_all(&ping).is_err()
            {
                self.lose(index);
            }
        }
        self.run_until_all_are_there(usize::MAX)
    }

    /// What came of the loss of a server at that moment.
    pub fn settled(&self, lost_at: Instant) -> Settled {
        let mut back: Vec<_> = self
            .clients
            .iter()
            .filter_map(|it| it.back)
            .map(|back| back.saturating_duration_since(lost_at))
            .collect();
        back.sort_unstable();
        let at = |part: usize| back.get(back.len().saturating_sub(1) * part / 100).copied();
        Settled {
            lost: back.len(),
            attempts: self.attempts,
            after: [50, 99, 100].map(|part| at(part).unwrap_or_default()),
        }
    }

    fn run_until_all_are_there(&mut self, at_once: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_there =
                |it: &&Client| it.answered && matches!(it.stage, Stage::Connected { .. });
            let there = self.clients.iter().filter(is_there).count();
            if there == self.clients.len() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{there} of {} clients have a session after {PATIENCE:?}",
                self.clients.len()
            );
            self.step(at_once, Duration::from_millis(10))?;
        }
    }

    /// Begins what is due, and hears what has come.
    fn step(&mut self, at_once: usize, wait: Duration) -> Result<()> {
        let now = Instant::now();
        let is_trying = |it: &&Client| matches!(it.stage, Stage::Trying { .. });
        let mut trying = self.clients.iter().filter(is_trying).count();
        for index in 0..self.clients.len() {
            match &self.clients[index].stage {
                Stage::Away { until } if *until <= now && trying < at_once => {
                    trying += 1;
                    self.attempt(index, now)?;
                }
                Stage::Trying { since, .. } if now - *since > ATTEMPT_MAX => self.lose(index),
                _ => {}
            }
        }
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let mut events = Vec::with_capacity(1024);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait))?;
        for event in events {
            let index = usize::try_from(event.data.u64())?;
            if self.hear(index)? {
                self.lose(index);
            }
        }
        Ok(())
    }

    fn attempt(&mut self, index: usize, now: Instant) -> Result<()> {
        self.attempts += 1;
        let client = &mut self.clients[index];
        let address = self.addresses[client.at % self.addresses.len()];
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // What fails at once is heard of like what fails later.
        let begun = socket.connect(&address.into());
        let stream = TcpStream::from(socket);
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::IN;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &stream, data, flags)?;
        client.received.clear();
        client.stage = Stage::Trying {
            stream,
            since: now,
            asked: false,
        };
        match begun {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => self.lose(index),
            _ => {}
        }
        Ok(())
    }

    /// Reads and answers; whether the connection is gone.
    fn hear(&mut self, index: usize) -> Result<bool> {
        let client = &mut self.clients[index];
        let (stream, asked) = match &mut client.stage {
            Stage::Away { .. } => return Ok(false),
            Stage::Trying { stream, asked, .. } => (stream, Some(asked)),
            Stage::Connected { stream } => (stream, None),
        };
        if let Some(asked) = asked
            && !*asked
        {
            if stream.take_error()?.is_some() || stream.peer_addr().is_err() {
                return Ok(true);
            }
            let mut out = BytesMut::new();
            let request = ConnectRequest {
                protocol_version: 0,
                last_zxid_seen: Zxid::ZERO,
                timeout_ms: TIMEOUT_MS,
                session: client.key.id,
                password: &client.key.password,
                read_only: Some(false),
            };
            request.encode_frame(&mut out);
            if stream.write_all(&out).is_err() {
                return Ok(true);
            }
            *asked = true;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &*stream, data, epoll::EventFlags::IN)?;
            return Ok(false);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(count) => client.received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(_) => return Ok(true),
        }
        if matches!(client.stage, Stage::Connected { .. }) {
            // The reply to a ping.
            client.answered = true;
            client.received.clear();
            return Ok(false);
        }
        let Some((len, rest)) = client.received.split_first_chunk::<4>() else {
            return Ok(false);
        };
        let len = usize::try_from(i32::from_be_bytes(*len))?;
        let Some(frame) = rest.get(..len) else {
            return Ok(false);
        };
        let response = ConnectResponse::decode(&mut Reader::new(frame))?;
        let known = client.key.id;
        if known != SessionId::NONE && response.session != known {
            bail!("session {known} has expired");
        }
        ensure!(response.timeout_ms > 0, "a server gave no session");
        client.key = SessionKey {
            id: response.session,
            password: response.password,
        };
        client.received.clear();
        client.back = Some(Instant::now());
        client.answered = true;
        let away = Stage::Away {
            until: Instant::now(),
        };
        if let Stage::Trying { stream, .. } = std::mem::replace(&mut client.stage, away) {
            client.stage = Stage::Connected { stream };
        }
        Ok(false)
    }

    /// The connection is gone: the next server, at once if this one was good.
    fn lose(&mut self, index: usize) {
        let pause = self.rng.random_range(PAUSE_MS);
        let client = &mut self.clients[index];
        let pause = match client.stage {
            Stage::Connected { .. } => Duration::ZERO,
            _ => Duration::from_millis(pause),
        };
        client.at += 1;
        // Closing it takes it out of the epoll set as well.
        client.stage = Stage::Away {
            until: Instant::now() + pause,
        };
    }
}
