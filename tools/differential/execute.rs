//! Runs a script on one server and writes down what its clients see.
//!
//! Determinism comes from doing one thing at a time: a step ends when its replies are there and every
//! other open connection has answered a ping, which events of the step have overtaken. Before and
//! after, a control session with the super user's rights makes the script's root and removes all that
//! the script has left, sessions included, so that nothing of it ends in the background later.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use ringkeeper_proto::acl::{Acl, AclList};
use ringkeeper_proto::connect::{ConnectRequest, ConnectResponse, PASSWORD_LEN};
use ringkeeper_proto::reply::ReplyHeader;
use ringkeeper_proto::request::{CreateRequest, RequestHeader};
use ringkeeper_proto::{OpCode, Reader, Request, SessionId, Xid, ZkError, Zxid};

use crate::client::{Arrival, Connection, PATIENCE};
use crate::decode::Lens;
use crate::observation::{Data, Offset, Seen, StepSeen, Transcript};
use crate::script::{Call, Hello, LastSeen, Password, SLOTS, Script, SessionOf, Since, Step};
use crate::servers::{SUPER_PASSWORD, Server, TICK_MS};

/// The znodes that no script makes or removes, but many look at.
const LASTING: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
/// A session may live two ticks longer than its time-out, and the machine may be slow.
const EXPIRY_SLACK: Duration = Duration::from_millis(2 * TICK_MS as u64 + 1_500);

/// How long something may take that the servers do of their own accord.
const AWAIT_LIMIT: Duration = Duration::from_secs(5);
/// How long a close may follow its reply.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Session {
    id: i64,
    password: [u8; PASSWORD_LEN],
    timeout_ms: i32,
}

#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    /// Its last session, in [`Run::sessions`].
    session: Option<usize>,
    xid: i32,
}

/// Runs scripts on one server.
#[derive(Debug)]
pub(crate) struct Executor {
    server: SocketAddr,
    control: Control,
}

impl Executor {
    pub(crate) fn new(server: SocketAddr) -> Result<Self> {
        Ok(Self {
            server,
            control: Control::open(server)?,
        })
    }

    /// Runs `script` and cleans up behind it.
    ///
    /// # Errors
    /// When the server cannot be reached or does not serve the control session: it is of no use any more.
    pub(crate) fn run(&mut self, server: &mut Server, script: &Script) -> Result<Transcript> {
        self.control.create(&script.root)?;
        let mut lens = Lens {
            start_ms: now_ms(),
            ..Lens::default()
        };
        for path in LASTING {
            let (cversion, num_children) = self.control.child_counters(path)?;
            lens.lasting
                .insert(path.to_owned(), (cversion, num_children));
        }
        lens.start = self.control.last_zxid()?;
        let mut run = Run {
            server: self.server,
            lens,
            slots: Default::default(),
            sessions: Vec::new(),
            zxids: Vec::new(),
        };
        let mut transcript = Transcript::default();
        for step in &script.steps {
            let seen = match step {
                Step::Restart => {
                    run.slots.iter_mut().for_each(|slot| slot.connection = None);
                    server.restart()?;
                    self.control.reopen(self.server)?;
                    StepSeen::default()
                }
                Step::Sweep { slot, call, path } => {
                    let mut seen = run.burst(*slot, std::slice::from_ref(call));
                    seen.push(self.control.await_end(path)?);
                    run.look_around(Some(*slot), seen)
                }
                _ => run.step(step)?,
            };
            run.note_zxid(&seen);
            transcript.steps.push(seen);
        }
        run.end()?;
        self.control.clean_up()?;
        Ok(transcript)
    }
}

/// One script on one server.
#[derive(Debug)]
struct Run {
    server: SocketAddr,
    lens: Lens,
    slots: [Slot; SLOTS],
    sessions: Vec<Session>,
    /// The largest zxid shown by the end of each step.
    zxids: Vec<i64>,
}

impl Run {
    fn note_zxid(&mut self, seen: &StepSeen) {
        let mut last = self.zxids.last().copied().unwrap_or(self.lens.start);
        if let Some(Offset::At(offset)) = seen.zxids().max() {
            last = last.max(self.lens.start.wrapping_add(offset));
        }
        self.zxids.push(last);
    }

    fn zxid_of(&self, since: Since) -> i64 {
        match since {
            Since::Nothing => 0,
            Since::Step(step) => {
                let left = step.min(self.zxids.len().saturating_sub(1));
                self.zxids.get(left).copied().unwrap_or(self.lens.start)
            }
            Since::Future => i64::MAX,
        }
    }

    fn step(&mut self, step: &Step) -> Result<StepSeen> {
        let (acting, seen) = match step {
            Step::Connect { slot, hello } => (Some(*slot), self.connect(*slot, hello)?),
            Step::Burst { slot, calls } => {
                let seen = self.burst(*slot, calls);
                if calls.iter().all(Call::is_quiet) {
                    return Ok(StepSeen {
                        slots: vec![(*slot, seen)],
                    });
                }
                (Some(*slot), seen)
            }
            Step::Raw {
                slot, bytes, end, ..
            } => (Some(*slot), self.raw(*slot, bytes, *end)),
            Step::Stranger { bytes, .. } => (None, self.stranger(bytes)?),
            Step::Drop { slot } => {
                self.slots[*slot].connection = None;
                (Some(*slot), Vec::new())
            }
            Step::Restart | Step::Sweep { .. } => (None, Vec::new()),
            Step::Expire {
                slot,
                watcher,
                hang_up,
            } => return self.expire(*slot, *watcher, *hang_up),
        };
        Ok(self.look_around(acting, seen))
    }

    /// Adds what the other connections see to what the acting one saw.
    fn look_around(&mut self, acting: Option<usize>, seen: Vec<Seen>) -> StepSeen {
        let mut slots = vec![(acting.unwrap_or(SLOTS), seen)];
        for slot in (0..SLOTS).filter(|slot| Some(*slot) != acting) {
            if self.slots[slot].connection.is_some() {
                let seen = self.ping(slot);
                slots.push((slot, seen));
            }
        }
        StepSeen { slots }
    }

    fn connect(&mut self, slot: usize, hello: &Hello) -> Result<Vec<Seen>> {
        let claimed = match hello.session {
            SessionOf::Slot(slot) => self.slots[slot].session,
            SessionOf::Nobody | SessionOf::Unknown(_) => None,
        };
        let frame = self.connect_frame(hello, claimed);
        let mut connection = Connection::open(self.server).context("connect")?;
        connection.send(&frame);
        let mut seen = Vec::new();
        match connection.next() {
            Arrival::Frame(frame) => match ConnectResponse::decode(&mut Reader::new(&frame)) {
                Ok(response) if response.session != SessionId::NONE => {
                    self.adopt(slot, &response);
                    seen.push(Seen::Welcome(self.lens.welcome(&response)));
                    self.slots[slot].connection = Some(connection);
                    self.slots[slot].xid = 0;
                }
                Ok(response) => {
                    seen.push(Seen::Welcome(self.lens.welcome(&response)));
                    seen.extend(rest_to_close(&mut connection));
                    self.slots[slot].connection = None;
                }
                Err(_) => {
                    seen.push(Seen::Frame(Data(Some(frame))));
                    self.slots[slot].connection = None;
                }
            },
            other => {
                seen.push(end_of(other));
                self.slots[slot].connection = None;
            }
        }
        Ok(seen)
    }

    fn connect_frame(&self, hello: &Hello, claimed: Option<usize>) -> Vec<u8> {
        let claimed = claimed.and_then(|claimed| self.sessions.get(claimed));
        let session = match hello.session {
            SessionOf::Nobody => 0,
            SessionOf::Slot(_) => claimed.map_or(0, |session| session.id),
            SessionOf::Unknown(id) => id,
        };
        let right = claimed.map_or([0; PASSWORD_LEN], |session| session.password);
        let wrong = right.map(|byte| byte ^ 0x55);
        let long = [7; 64];
        let password: &[u8] = match hello.password {
            Password::Right => &right,
            Password::Wrong => &wrong,
            Password::Zeros | Password::Null => &[0; PASSWORD_LEN],
            Password::Empty => &[],
            Password::Long => &long,
        };
        let last_seen = match hello.last_seen {
            LastSeen::Nothing => 0,
            LastSeen::Offset(offset) => self.lens.start.wrapping_add(offset),
            LastSeen::Exactly(zxid) => zxid,
        };
        let mut out = bytes::BytesMut::new();
        ConnectRequest {
            protocol_version: hello.protocol,
            last_zxid_seen: Zxid::from_wire(last_seen),
            timeout_ms: hello.timeout_ms,
            session: SessionId(session),
            password,
            read_only: hello.read_only,
        }
        .encode_frame(&mut out);
        if hello.password != Password::Null {
            return out.to_vec();
        }
        // The password becomes null: its length is -1 and its bytes are gone.
        let tail = usize::from(hello.read_only.is_some());
        let mut body = out[4..out.len() - tail - PASSWORD_LEN - 4].to_vec();
        body.extend((-1_i32).to_be_bytes());
        body.extend(&out[out.len() - tail..]);
        framed(&body)
    }

    fn adopt(&mut self, slot: usize, response: &ConnectResponse) {
        let id = response.session.0;
        let session = match self.sessions.iter().position(|session| session.id == id) {
            Some(session) => session,
            None => {
                self.sessions.push(Session {
                    id,
                    password: response.password,
                    timeout_ms: response.timeout_ms,
                });
                self.lens.sessions.push(id);
                self.sessions.len() - 1
            }
        };
        self.sessions[session].timeout_ms = response.timeout_ms;
        self.slots[slot].session = Some(session);
    }

    fn burst(&mut self, slot: usize, calls: &[Call]) -> Vec<Seen> {
        let mut out = Vec::new();
        for call in calls {
            self.slots[slot].xid += 1;
            let xid = call.xid.unwrap_or(self.slots[slot].xid);
            let since = call.relative.map(|since| self.zxid_of(since));
            append_call(call, xid, since, &mut out);
        }
        let Some(connection) = &mut self.slots[slot].connection else {
            return vec![Seen::Closed];
        };
        connection.send(&out);
        let mut seen = Vec::new();
        for (place, call) in calls.iter().enumerate() {
            if !self.read_reply(slot, place, call, &mut seen) {
                return seen;
            }
        }
        if calls
            .last()
            .is_some_and(|call| may_close(call, seen.last()))
        {
            let is_closing = calls
                .last()
                .is_some_and(|call| must_close(call, seen.last()));
            let mut after = if is_closing {
                self.await_close(slot)
            } else {
                self.ping(slot)
            };
            // Whether it was asked depends on the reply, so being alive leaves no trace.
            if matches!(after.last(), Some(Seen::Pong { .. })) {
                after.pop();
            }
            seen.extend(after);
        }
        seen
    }

    /// Waits for the close that should follow; a ping may overtake it.
    fn await_close(&mut self, slot: usize) -> Vec<Seen> {
        let Some(connection) = &mut self.slots[slot].connection else {
            return Vec::new();
        };
        match connection.next_within(CLOSE_PATIENCE) {
            Ok(Arrival::Silence) => self.ping(slot),
            Ok(Arrival::Closed) | Err(_) => {
                self.slots[slot].connection = None;
                vec![Seen::Closed]
            }
            Ok(other) => vec![end_of(other)],
        }
    }

    /// Reads up to the reply of one call; false when the connection is at its end.
    fn read_reply(&mut self, slot: usize, place: usize, call: &Call, seen: &mut Vec<Seen>) -> bool {
        loop {
            let Some(connection) = &mut self.slots[slot].connection else {
                return false;
            };
            match connection.next() {
                Arrival::Frame(frame) => {
                    let what = self.lens.frame(&frame, place, call, now_ms());
                    let is_event = matches!(what, Seen::Event { .. });
                    seen.push(what);
                    if !is_event {
                        return true;
                    }
                }
                other => {
                    seen.push(end_of(other));
                    self.slots[slot].connection = None;
                    return false;
                }
            }
        }
    }

    /// Reads everything up to the answer of a ping, which it sends.
    fn ping(&mut self, slot: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        let Some(connection) = &mut self.slots[slot].connection else {
            return seen;
        };
        connection.send(&ping_frame());
        self.read_to_pong(slot, &mut seen);
        seen
    }

    fn read_to_pong(&mut self, slot: usize, seen: &mut Vec<Seen>) {
        while let Some(connection) = &mut self.slots[slot].connection {
            match connection.next() {
                Arrival::Frame(frame) => match ReplyHeader::decode(&mut Reader::new(&frame)) {
                    Ok(header) if header.xid == Xid::PING => {
                        seen.push(Seen::Pong {
                            zxid: self.lens.offset(header.zxid.to_wire()),
                            error: header.error,
                        });
                        return;
                    }
                    Ok(header) if header.xid == Xid::NOTIFICATION => {
                        seen.push(self.lens.event(&frame));
                    }
                    _ => seen.push(Seen::Frame(Data(Some(frame)))),
                },
                other => {
                    seen.push(end_of(other));
                    self.slots[slot].connection = None;
                }
            }
        }
    }

    fn raw(&mut self, slot: usize, bytes: &[u8], end: bool) -> Vec<Seen> {
        let mut seen = Vec::new();
        let Some(connection) = &mut self.slots[slot].connection else {
            return vec![Seen::Closed];
        };
        connection.send(bytes);
        if end {
            connection.end_of_stream();
        } else {
            connection.send(&ping_frame());
        }
        self.read_to_pong(slot, &mut seen);
        seen
    }

    fn stranger(&self, bytes: &[u8]) -> Result<Vec<Seen>> {
        let mut connection = Connection::open(self.server).context("connect")?;
        connection.send(bytes);
        connection.end_of_stream();
        Ok(rest_to_close(&mut connection))
    }

    fn expire(&mut self, slot: usize, watcher: usize, hang_up: bool) -> Result<StepSeen> {
        let timeout_ms = self.slots[slot]
            .session
            .and_then(|session| self.sessions.get(session))
            .map_or(0, |session| session.timeout_ms);
        let timeout = Duration::from_millis(timeout_ms.unsigned_abs().into());
        let start = Instant::now();
        if hang_up {
            self.slots[slot].connection = None;
        }
        let mut seen = self.await_event(watcher, timeout + EXPIRY_SLACK)?;
        // The last request may have touched the session a little before we started to wait.
        let early = timeout.saturating_sub(Duration::from_millis(100));
        seen.insert(
            0,
            Seen::Expired(match start.elapsed() {
                elapsed if elapsed < early => "too early",
                elapsed if elapsed > timeout + EXPIRY_SLACK => "too late",
                _ => "in time",
            }),
        );
        seen.extend(self.ping(watcher));
        Ok(self.look_around(Some(watcher), seen))
    }

    fn await_event(&mut self, watcher: usize, limit: Duration) -> Result<Vec<Seen>> {
        let Some(connection) = &mut self.slots[watcher].connection else {
            return Ok(Vec::new());
        };
        Ok(vec![match connection.next_within(limit)? {
            Arrival::Frame(frame) => self.lens.event(&frame),
            other => end_of(other),
        }])
    }

    /// Closes every session that the script has left.
    fn end(mut self) -> Result<()> {
        self.slots = Default::default();
        for session in &self.sessions {
            let mut connection = Connection::open(self.server).context("connect")?;
            let mut out = bytes::BytesMut::new();
            ConnectRequest {
                protocol_version: 0,
                last_zxid_seen: Zxid::ZERO,
                timeout_ms: session.timeout_ms,
                session: SessionId(session.id),
                password: &session.password,
                read_only: Some(false),
            }
            .encode_frame(&mut out);
            Request::CloseSession.encode_frame(Xid(1), &mut out);
            connection.send(&out);
            let _the_session_is_gone_one_way_or_another = connection.read_to_close();
        }
        Ok(())
    }
}

/// A session with the super user's rights, to prepare and to clean up.
#[derive(Debug)]
struct Control {
    connection: Connection,
    session: SessionId,
    password: [u8; PASSWORD_LEN],
    xid: i32,
}

impl Control {
    fn open(server: SocketAddr) -> Result<Self> {
        let mut control = Self {
            connection: Connection::open(server)?,
            session: SessionId::NONE,
            password: [0; PASSWORD_LEN],
            xid: 0,
        };
        control.connect()?;
        Ok(control)
    }

    /// Takes the session up again: a new one would use a zxid, and the old one another at its end.
    fn reopen(&mut self, server: SocketAddr) -> Result<()> {
        self.connection = Connection::open(server)?;
        self.connect()
    }

    fn connect(&mut self) -> Result<()> {
        let mut out = bytes::BytesMut::new();
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: Zxid::ZERO,
            timeout_ms: i32::MAX,
            session: self.session,
            password: &self.password,
            read_only: Some(false),
        }
        .encode_frame(&mut out);
        self.connection.send(&out);
        let frame = match self.connection.next() {
            Arrival::Frame(frame) => frame,
            other => bail!("the control session got {other:?} for its connect request"),
        };
        let response = ConnectResponse::decode(&mut Reader::new(&frame))?;
        if response.session == SessionId::NONE {
            bail!("the control session is gone");
        }
        self.session = response.session;
        self.password = response.password;
        let auth = format!("super:{SUPER_PASSWORD}");
        let replies = self.ask(&[Request::Auth {
            kind: 0,
            scheme: "digest",
            auth: auth.as_bytes(),
        }])?;
        if replies.iter().any(|reply| reply.error != 0) {
            bail!("the control session is not accepted as super user");
        }
        Ok(())
    }

    /// Sends the requests in one write and waits for all replies.
    fn ask(&mut self, requests: &[Request<'_>]) -> Result<Vec<Reply>> {
        let mut replies = Vec::with_capacity(requests.len());
        for some in requests.chunks(100) {
            let mut out = bytes::BytesMut::new();
            for request in some {
                self.xid += 1;
                request.encode_frame(Xid(self.xid), &mut out);
            }
            self.connection.send(&out);
            for request in some {
                match self.connection.next() {
                    Arrival::Frame(frame) => {
                        let mut reader = Reader::new(&frame);
                        let header = ReplyHeader::decode(&mut reader)?;
                        replies.push(Reply {
                            zxid: header.zxid.to_wire(),
                            error: header.error,
                            body: reader.rest().to_vec(),
                        });
                    }
                    other => bail!("the control session got {other:?} for {request:?}"),
                }
            }
        }
        Ok(replies)
    }

    fn create(&mut self, path: &str) -> Result<()> {
        let request = Request::Create {
            op: OpCode::Create,
            create: CreateRequest {
                path,
                data: Some(b""),
                acl: Some(AclList::new(&Acl::open())),
                flags: 0,
                ttl_ms: None,
            },
        };
        match self.ask(&[request])?.first() {
            Some(reply) if reply.error == 0 => Ok(()),
            reply => bail!("create of {path} got {reply:?}"),
        }
    }

    /// Waits until `path` is no more.
    fn await_end(&mut self, path: &str) -> Result<Seen> {
        const NO_NODE: i32 = ZkError::NoNode.code();
        let start = Instant::now();
        while start.elapsed() < AWAIT_LIMIT {
            let replies = self.ask(&[Request::Exists { path, watch: false }])?;
            if replies.iter().any(|reply| reply.error == NO_NODE) {
                return Ok(Seen::Expired("in time"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Seen::Expired("too late"))
    }

    fn last_zxid(&mut self) -> Result<i64> {
        let replies = self.ask(&[Request::Sync { path: "/" }])?;
        Ok(replies.first().map_or(0, |reply| reply.zxid))
    }

    fn child_counters(&mut self, path: &str) -> Result<(i32, i32)> {
        let replies = self.ask(&[Request::Exists { path, watch: false }])?;
        let body = replies.first().map_or(&[][..], |reply| &reply.body);
        // A server without the node answers without a body.
        let stat = ringkeeper_proto::Stat::decode(&mut Reader::new(body)).unwrap_or_default();
        Ok((stat.cversion, stat.num_children))
    }

    /// Deletes everything but ZooKeeper's own znodes.
    fn clean_up(&mut self) -> Result<()> {
        let mut found = Vec::new();
        let mut level: Vec<String> = LASTING[..3].iter().map(ToString::to_string).collect();
        while !level.is_empty() {
            let requests: Vec<Request<'_>> = level
                .iter()
                .map(|path| Request::GetChildren {
                    op: OpCode::GetChildren,
                    path,
                    watch: false,
                })
                .collect();
            let replies = self.ask(&requests)?;
            let mut next = Vec::new();
            for (parent, reply) in level.iter().zip(replies) {
                let parent = parent.trim_end_matches('/');
                for name in Reader::new(&reply.body).strings().unwrap_or_default() {
                    next.push(format!("{parent}/{name}"));
                }
            }
            next.retain(|path| !LASTING.contains(&path.as_str()));
            found.extend(next.iter().cloned());
            level = next;
        }
        found.reverse();
        let requests: Vec<Request<'_>> = found
            .iter()
            .map(|path| Request::Delete { path, version: -1 })
            .collect();
        self.ask(&requests)?;
        Ok(())
    }
}

/// A reply to the control session.
#[derive(Debug)]
struct Reply {
    zxid: i64,
    error: i32,
    body: Vec<u8>,
}

/// Whether the connection may be closed after this reply, so that it has to be asked.
fn may_close(call: &Call, last: Option<&Seen>) -> bool {
    let odd = match last {
        Some(Seen::Reply { error, .. }) => matches!(error, -124 | -115 | -118 | -12 | -6 | -5),
        _ => true,
    };
    odd || matches!(
        call.op(),
        None | Some(OpCode::CloseSession | OpCode::Sasl | OpCode::CreateSession | OpCode::Auth)
    )
}

/// Whether a server closes the connection of its own accord after this reply.
fn must_close(call: &Call, last: Option<&Seen>) -> bool {
    const AUTH_FAILED: i32 = ZkError::AuthFailed.code();
    let is_refused = matches!(
        last,
        Some(Seen::Reply {
            error: AUTH_FAILED,
            ..
        })
    );
    let is_none = matches!(
        call.op(),
        None | Some(OpCode::Notification | OpCode::Error | OpCode::Check | OpCode::CloseSession)
    );
    is_refused || is_none
}

fn append_call(call: &Call, xid: i32, since: Option<i64>, out: &mut Vec<u8>) {
    let mut body = call.body.clone();
    if let (Some(since), Some(place)) = (since, body.get_mut(..8)) {
        place.copy_from_slice(&since.to_be_bytes());
    }
    let len = i32::try_from(body.len() + 8).unwrap_or(i32::MAX);
    out.extend(len.to_be_bytes());
    out.extend(xid.to_be_bytes());
    out.extend(call.op.to_be_bytes());
    out.extend(body);
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut out = i32::try_from(body.len())
        .unwrap_or(i32::MAX)
        .to_be_bytes()
        .to_vec();
    out.extend(body);
    out
}

fn ping_frame() -> Vec<u8> {
    let mut body = Vec::with_capacity(size_of::<RequestHeader>());
    body.extend(Xid::PING.0.to_be_bytes());
    body.extend(OpCode::Ping.code().to_be_bytes());
    framed(&body)
}

fn end_of(arrival: Arrival) -> Seen {
    match arrival {
        Arrival::Frame(frame) => Seen::Frame(Data(Some(frame))),
        Arrival::Closed => Seen::Closed,
        Arrival::Silence => Seen::Silence,
        Arrival::Nonsense(length) => Seen::Frame(Data(Some(length.to_be_bytes().to_vec()))),
    }
}

fn rest_to_close(connection: &mut Connection) -> Vec<Seen> {
    match connection.read_to_close() {
        None => vec![Seen::Silence],
        Some(bytes) if bytes.is_empty() => vec![Seen::Closed],
        Some(bytes) => vec![Seen::Frame(Data(Some(bytes))), Seen::Closed],
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

// A reply that comes after the patience of a step would be taken for that of the next.
const _: () = assert!(PATIENCE.as_millis() > 1_000);
