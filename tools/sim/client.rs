//! Clients: each has a session, asks for writes, reads and syncs, and goes from server to server.
//!
//! A client believes nothing: replies must come in its order, and no reply may show an older state than the one
//! before it, whichever server it comes from.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, SessionId, Xid, Zxid};

use crate::check::Violation;
use crate::random::Random;
use crate::shard::{Reply, ToClient, ToServer};
use crate::world::{Event, World};

/// How long a message between a client and a server takes on average.
const DELAY: u64 = 300;

/// Znodes that all clients write.
const SHARED_PATHS: u64 = 24;

/// Ephemerals of each session.
const OWN_PATHS: u64 = 6;

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    random: Random,
    timeout_ms: u64,
    session: Option<SessionId>,
    connection: Option<u64>,
    connected: bool,
    next_xid: i32,
    last_zxid: Zxid,
    /// Requests under way.
    outstanding: VecDeque<i32>,
    heard_at: u64,
    sent_at: u64,
    /// It does nothing before, so that its session may expire.
    sleeps_until: u64,
    closing: bool,
    /// Whether it may be told that its session has expired: not while nothing goes wrong.
    must_live: bool,
}

/// A connection of a client.
#[derive(Debug)]
pub(crate) struct Connection {
    client: usize,
    member: usize,
    life: u64,
    /// When the last message arrives, each way.
    last_at: [u64; 2],
}

/// The connections by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: BTreeMap<u64, Connection>,
    last: u64,
}

impl Client {
    pub(crate) fn new(seed: u64, number: usize, tick_ms: u64) -> Self {
        let mut random = Random::stream(seed, &format!("client {number}"));
        let timeout_ms = tick_ms * random.between(2, 10);
        Self {
            random,
            timeout_ms,
            session: None,
            connection: None,
            connected: false,
            next_xid: 1,
            last_zxid: Zxid::ZERO,
            outstanding: VecDeque::new(),
            heard_at: 0,
            sent_at: 0,
            sleeps_until: 0,
            closing: false,
            must_live: false,
        }
    }

    /// From now on it must keep its session, if it has one now.
    pub(crate) const fn expect_to_live(&mut self) {
        self.must_live = self.connected && !self.closing;
    }

    fn path(&mut self) -> String {
        format!("/z{}", self.random.below(SHARED_PATHS))
    }

    fn own_path(&mut self) -> String {
        let session = self.session.map_or(0, |session| session.0);
        format!("/e{session:x}-{}", self.random.below(OWN_PATHS))
    }

    /// What it asks for next.
    fn wish(&mut self) -> ToServer {
        let xid = self.next_xid;
        self.next_xid += 1;
        let data: Vec<u8> = (0..self.random.below(200))
            .map(|byte| byte.to_be_bytes()[7])
            .collect();
        let data = Some(&data[..]);
        let (path, own, other) = (self.path(), self.own_path(), self.path());
        let write = |op, request: &Request<'_>| ToServer::Write {
            xid,
            op,
            body: body_of(request),
        };
        match self.random.below(100) {
            0..25 => ToServer::Read { xid },
            25..30 => ToServer::Write {
                xid,
                op: OpCode::Sync,
                body: body_of(&Request::Sync { path: &path }),
            },
            30..45 => write(OpCode::Create, &create(&path, data, 0)),
            45..65 => write(
                OpCode::SetData,
                &Request::SetData {
                    path: &path,
                    data,
                    version: -1,
                },
            ),
            65..75 => {
                let path = match self.random.chance(500) {
                    true => &own,
                    false => &path,
                };
                write(OpCode::Delete, &Request::Delete { path, version: -1 })
            }
            75..90 => write(OpCode::Create, &create(&own, data, 1)),
            90..99 => {
                let delete = Request::Delete {
                    path: &other,
                    version: -1,
                };
                let parts = vec![create(&path, data, 0), delete, create(&own, data, 1)];
                let kept = self.random.index(parts.len()) + 1;
                let parts = parts.into_iter().take(kept).collect();
                write(OpCode::Multi, &Request::Multi(parts))
            }
            _ => {
                self.closing = true;
                write(OpCode::CloseSession, &Request::CloseSession)
            }
        }
    }
}

fn create<'a>(path: &'a str, data: Option<&'a [u8]>, flags: i32) -> Request<'a> {
    let create = CreateRequest {
        path,
        data,
        acl: Some(AclList::new(&Acl::open())),
        flags,
        ttl_ms: None,
    };
    Request::Create {
        op: OpCode::Create,
        create,
    }
}

fn body_of(request: &Request<'_>) -> Bytes {
    let mut frame = BytesMut::new();
    request.encode_frame(Xid(0), &mut frame);
    // Length, number and operation stand before it.
    frame.freeze().slice(12..)
}

impl World {
    /// A client looks what there is to do, and will again.
    pub(crate) fn act(&mut self, number: usize) {
        let (now, think, pipeline) = (self.now, self.plan.think, self.plan.pipeline);
        let patience = self.clients[number].timeout_ms * 1000 * 2 / 3;
        let client = &mut self.clients[number];
        let pause = client.random.around(think).min(patience / 3);
        let at = (now + pause).max(client.sleeps_until);
        self.schedule(at, Event::Act { client: number });
        let client = &mut self.clients[number];
        if client.connection.is_none() {
            self.open_connection(number);
            return;
        }
        if now - client.heard_at > patience {
            // Its server is silent: perhaps another one is not.
            self.leave(number);
            return;
        }
        if !client.connected {
            return;
        }
        let may_ask = client.outstanding.len() < pipeline && !client.closing;
        let message = if may_ask {
            client.wish()
        } else if now - client.sent_at > patience / 2 && client.outstanding.len() < 3 * pipeline {
            let xid = client.next_xid;
            client.next_xid += 1;
            ToServer::Read { xid }
        } else {
            return;
        };
        let (ToServer::Write { xid, .. } | ToServer::Read { xid }) = message else {
            return;
        };
        client.outstanding.push_back(xid);
        client.sent_at = now;
        let what = match &message {
            ToServer::Write { op, .. } => op.code(),
            _ => 0,
        };
        let (xid, what) = (
            u64::from(xid.unsigned_abs()),
            u64::from(what.unsigned_abs()),
        );
        self.trace
            .note(now, 0, "request", number as u64, xid << 8 | what);
        let client = &self.clients[number];
        let connection = client.connection;
        if let Some(connection) = connection {
            self.send_to_server(connection, message);
        }
    }

    fn open_connection(&mut self, number: usize) {
        let servers = self.plan.servers;
        let now = self.now;
        let client = &mut self.clients[number];
        let member = client.random.index(servers) + 1;
        if !matches!(self.members[member].state, crate::member::State::Running(_)) {
            return;
        }
        self.connections.last += 1;
        let id = self.connections.last;
        let connection = Connection {
            client: number,
            member,
            life: self.members[member].life,
            last_at: [now; 2],
        };
        self.connections.open.insert(id, connection);
        let client = &mut self.clients[number];
        client.connection = Some(id);
        client.connected = false;
        client.heard_at = now;
        client.sent_at = now;
        let connect = ToServer::Connect {
            session: client.session,
            timeout_ms: i32::try_from(client.timeout_ms).unwrap_or(i32::MAX),
            last_zxid: client.last_zxid,
        };
        self.send_to_server(id, connect);
    }

    /// A client closes its connection.
    fn leave(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.connected = false;
        client.outstanding.clear();
        if std::mem::take(&mut client.closing) {
            client.session = None;
            client.last_zxid = Zxid::ZERO;
        }
        if let Some(id) = client.connection.take() {
            self.send_to_server(id, ToServer::Fin);
        }
    }

    fn send_to_server(&mut self, id: u64, message: ToServer) {
        let delay = self.client_delays.around(DELAY);
        let Some(connection) = self.connections.open.get_mut(&id) else {
            return;
        };
        let at = connection.last_at[0].max(self.now + delay);
        connection.last_at[0] = at;
        let (member, life) = (connection.member, connection.life);
        let event = Event::ToServer {
            member,
            life,
            connection: id,
            message,
        };
        self.schedule(at, event);
    }

    pub(crate) fn send_to_clients(&mut self, messages: Vec<(u64, ToClient)>) {
        for (id, message) in messages {
            let delay = self.client_delays.around(DELAY);
            let Some(connection) = self.connections.open.get_mut(&id) else {
                continue;
            };
            let at = connection.last_at[1].max(self.now + delay);
            connection.last_at[1] = at;
            let event = Event::ToClient {
                connection: id,
                message,
            };
            self.schedule(at, event);
        }
    }

    /// A server closes a connection, after what it has sent.
    pub(crate) fn hang_up(&mut self, id: u64) {
        self.send_to_clients(vec![(id, ToClient::Fin)]);
    }

    /// The process that had these connections has ended.
    pub(crate) fn clients_of_dead(&mut self, member: usize) {
        let open = self.connections.open.iter();
        let ended: Vec<u64> = open
            .filter(|(_, it)| it.member == member)
            .map(|(id, _)| *id)
            .collect();
        ended.into_iter().for_each(|id| self.hang_up(id));
    }

    /// A message of its server reaches a client.
    pub(crate) fn heard(&mut self, id: u64, message: ToClient) -> Result<(), Violation> {
        let now = self.now;
        let Some(connection) = self.connections.open.get(&id) else {
            return Ok(());
        };
        let number = connection.client;
        let member = connection.member;
        let client = &mut self.clients[number];
        if client.connection != Some(id) {
            if matches!(message, ToClient::Fin) {
                self.connections.open.remove(&id);
            }
            return Ok(());
        }
        client.heard_at = now;
        match message {
            ToClient::Connected { session } => {
                let low = session.0.unsigned_abs() & 0xff_ffff_ffff;
                self.trace.note(now, member, "attached", number as u64, low);
                let client = &mut self.clients[number];
                client.connected = true;
                if client.session.is_none() {
                    client.session = Some(session);
                    self.counts.add("sessions");
                } else if client.session != Some(session) {
                    return Err(format!(
                        "client {number} came back for {:?} and got {session:?}",
                        client.session
                    ));
                }
            }
            ToClient::Expired => {
                self.counts
                    .add("clients told that their session has expired");
                if client.must_live {
                    return Err(format!(
                        "client {number} is told that its session {:?} has expired, and nothing went wrong",
                        client.session
                    ));
                }
                client.session = None;
                client.closing = false;
                client.last_zxid = Zxid::ZERO;
            }
            ToClient::Reply(reply) => self.replied(number, member, reply)?,
            ToClient::Fin => {
                self.connections.open.remove(&id);
                let client = &mut self.clients[number];
                client.connection = None;
                client.connected = false;
                client.outstanding.clear();
                if std::mem::take(&mut client.closing) {
                    // Whether the session is closed is not known: it is left alone.
                    client.session = None;
                    client.must_live = false;
                    client.last_zxid = Zxid::ZERO;
                }
            }
        }
        Ok(())
    }

    fn replied(&mut self, number: usize, member: usize, reply: Reply) -> Result<(), Violation> {
        let client = &mut self.clients[number];
        let expected = client.outstanding.pop_front();
        if expected != Some(reply.xid) {
            return Err(format!(
                "a session's order is broken: client {number} waits for the answer to request {expected:?}, and member \
                 {member} answers {}",
                reply.xid
            ));
        }
        if reply.zxid < client.last_zxid {
            return Err(format!(
                "a session goes back: client {number} has seen {:?}, and member {member} answers request {} at {:?}",
                client.last_zxid, reply.xid, reply.zxid
            ));
        }
        client.last_zxid = reply.zxid;
        let what = match (reply.is_write, reply.error) {
            (true, 0) => "write acknowledged",
            (true, _) => "write refused",
            (false, _) => "read",
        };
        self.trace
            .note(self.now, member, what, number as u64, reply.zxid.0);
        self.counts.add(what);
        Ok(())
    }

    /// A client goes away without a word, perhaps for longer than its session lives.
    pub(crate) fn put_to_sleep(&mut self, number: usize) {
        let now = self.now;
        let client = &mut self.clients[number];
        let longest = client.timeout_ms * 1000 * 4;
        client.sleeps_until = now + client.random.below(longest);
    }

    /// A connection breaks without either side's doing.
    pub(crate) fn break_connection(&mut self, number: usize) {
        let Some(id) = self.clients[number].connection else {
            return;
        };
        self.send_to_server(id, ToServer::Fin);
        self.hang_up(id);
    }
}
