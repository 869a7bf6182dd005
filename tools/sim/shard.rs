//! The connections of a member's clients, as the server's shards keep them: replies leave in the order of the
//! requests, and a read is answered from what is published.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use ringkeeper_member::{
    Answer, Attached, ClientKey, ClientMessage, ClientNotice, Touch, WriteMessage,
};
use ringkeeper_peers::PeerCommand;
use ringkeeper_proto::{OpCode, SessionId, Xid, Zxid};
use ringkeeper_tree::Tree;

use crate::check::Violation;
use crate::world::World;

/// From a client to its server.
#[derive(Clone, Debug)]
pub(crate) enum ToServer {
    Connect {
        session: Option<SessionId>,
        timeout_ms: i32,
        last_zxid: Zxid,
    },
    Write {
        xid: i32,
        op: OpCode,
        body: Bytes,
    },
    /// A read, or a ping.
    Read {
        xid: i32,
    },
    Fin,
}

/// From a server to its client.
#[derive(Clone, Debug)]
pub(crate) enum ToClient {
    Connected { session: SessionId },
    Expired,
    Reply(Reply),
    Fin,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    pub(crate) xid: i32,
    pub(crate) zxid: Zxid,
    pub(crate) is_write: bool,
    /// 0, or why not.
    pub(crate) error: i32,
}

#[derive(Debug)]
enum Pending {
    Write { op: OpCode },
    Read { xid: i32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opened,
    Connecting,
    Attached,
}

#[derive(Debug)]
struct Client {
    /// The connection's number.
    connection: u64,
    stage: Stage,
    session: SessionId,
    touch: Option<Arc<Touch>>,
    pending: VecDeque<Pending>,
}

/// A member's clients.
#[derive(Debug)]
pub(crate) struct Shard {
    clients: BTreeMap<u32, Client>,
    last_index: u32,
    tree: Tree,
    /// What the core said in the middle of a turn.
    pub(crate) commands: Vec<PeerCommand>,
}

impl Shard {
    pub(crate) const fn new(tree: Tree) -> Self {
        Self {
            clients: BTreeMap::new(),
            last_index: 0,
            tree,
            commands: Vec::new(),
        }
    }

    fn find(&self, connection: u64) -> Option<u32> {
        let mut clients = self.clients.iter();
        let found = clients.find(|(_, client)| client.connection == connection);
        found.map(|(index, _)| *index)
    }

    /// Answers the reads that nothing is before any more.
    fn answer_reads(&mut self, index: u32, zxid: Zxid, out: &mut Vec<(u64, ToClient)>) {
        let Some(client) = self.clients.get_mut(&index) else {
            return;
        };
        while let Some(Pending::Read { xid }) = client.pending.front() {
            let reply = Reply {
                xid: *xid,
                zxid,
                is_write: false,
                error: 0,
            };
            out.push((client.connection, ToClient::Reply(reply)));
            client.pending.pop_front();
        }
    }
}

const fn key(index: u32) -> ClientKey {
    ClientKey {
        shard: 0,
        index,
        generation: 1,
    }
}

impl World {
    /// A client's message arrives at its server.
    pub(crate) fn served(
        &mut self,
        number: usize,
        connection: u64,
        message: ToServer,
    ) -> Result<(), Violation> {
        self.walk(number)?;
        let now = self.now_of(number);
        let at_ms = now.monotonic_ms();
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        process.core.start_turn(now);
        let index = process.shard.find(connection);
        if let Some(client) = index.and_then(|index| process.shard.clients.get(&index))
            && let Some(touch) = &client.touch
        {
            touch.touch(at_ms);
            let session = client.session;
            self.heard_of(number, vec![session]);
        }
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        match (message, index) {
            (
                ToServer::Connect {
                    session,
                    timeout_ms,
                    last_zxid,
                },
                None,
            ) => {
                let behind = last_zxid > process.shard.tree.zxid();
                if behind || !process.core.standing().is_serving() {
                    self.hang_up(connection);
                    return Ok(());
                }
                process.shard.last_index += 1;
                let from = key(process.shard.last_index);
                process.shard.clients.insert(
                    from.index,
                    Client {
                        connection,
                        stage: Stage::Connecting,
                        session: SessionId::NONE,
                        touch: None,
                        pending: VecDeque::new(),
                    },
                );
                process.core.hear(match session {
                    None => ClientMessage::NewSession { from, timeout_ms },
                    Some(session) => ClientMessage::Reconnect {
                        from,
                        session,
                        timeout_ms,
                    },
                });
                self.heard_of(number, session.into_iter().collect());
            }
            (ToServer::Write { xid, op, body }, Some(index)) => {
                let Some(client) = process.shard.clients.get_mut(&index) else {
                    return Ok(());
                };
                if client.stage != Stage::Attached {
                    return Ok(());
                }
                let keep_before = matches!(client.pending.back(), Some(Pending::Read { .. }));
                client.pending.push_back(Pending::Write { op });
                let write = WriteMessage {
                    from: key(index),
                    session: client.session,
                    xid: Xid(xid),
                    op,
                    body,
                    identities: [].into(),
                    keep_before,
                    arrived_us: now.monotonic_us,
                };
                process.core.hear(ClientMessage::Write(write));
            }
            (ToServer::Read { xid }, Some(index)) => {
                let zxid = process.shard.tree.zxid();
                let mut out = Vec::new();
                if let Some(client) = process.shard.clients.get_mut(&index)
                    && client.stage == Stage::Attached
                {
                    let is_first = client.pending.is_empty();
                    client.pending.push_back(Pending::Read { xid });
                    if is_first {
                        process.shard.answer_reads(index, zxid, &mut out);
                    }
                }
                self.send_to_clients(out);
                return Ok(());
            }
            (ToServer::Fin, Some(index)) => self.forget_client(number, index),
            (_, _) => return Ok(()),
        }
        self.after_turn(number)
    }

    fn forget_client(&mut self, number: usize, index: u32) {
        let Some(process) = self.members[number].process() else {
            return;
        };
        if let Some(client) = process.shard.clients.remove(&index) {
            let session = client.session;
            if client.stage == Stage::Attached {
                let from = key(index);
                process
                    .core
                    .hear(ClientMessage::Disconnected { from, session });
            }
            self.hang_up(client.connection);
        }
    }

    /// A member's role has changed: its clients look for a server again.
    pub(crate) fn end_clients(&mut self, number: usize) {
        let Some(process) = self.members[number].process() else {
            return;
        };
        let stages = process.shard.clients.iter();
        let ended: Vec<u32> = stages
            .filter(|(_, client)| client.stage != Stage::Opened)
            .map(|(index, _)| *index)
            .collect();
        ended
            .into_iter()
            .for_each(|index| self.forget_client(number, index));
    }

    /// Walks what is published: replies, and the state that reads see.
    pub(crate) fn walk(&mut self, number: usize) -> Result<(), Violation> {
        let mut out = Vec::new();
        let mut done = Vec::new();
        let mut ended = Vec::new();
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let shard = &mut process.shard;
        while let Some(publication) = process.cursor.next() {
            let mut freed = Vec::new();
            for step in &publication.steps {
                let Some(to) = step.answer.to() else {
                    continue;
                };
                if let Some(before) = &step.before {
                    shard.answer_reads(to.index, before.zxid(), &mut out);
                }
                match &step.answer {
                    Answer::Nobody => {}
                    Answer::Session { session, .. } => attach(shard, to, session, &mut out),
                    Answer::Dropped { .. } => ended.push(to.index),
                    Answer::Write { xid, outcome, .. } => {
                        let Some(client) = shard.clients.get_mut(&to.index) else {
                            continue;
                        };
                        let op = match client.pending.pop_front() {
                            Some(Pending::Write { op }) => op,
                            other => {
                                return Err(format!(
                                    "member {number} answers request {} of {:?}, and {other:?} is next",
                                    xid.0, client.session
                                ));
                            }
                        };
                        let error = outcome.as_ref().map_or_else(|error| error.code(), |_| 0);
                        let reply = Reply {
                            xid: xid.0,
                            zxid: step.zxid,
                            is_write: op != OpCode::Sync,
                            error,
                        };
                        if error == 0 && op != OpCode::Sync {
                            done.push((client.session, xid.0, step.zxid));
                        }
                        out.push((client.connection, ToClient::Reply(reply)));
                        if op == OpCode::CloseSession {
                            ended.push(to.index);
                        } else {
                            freed.push(to.index);
                        }
                    }
                }
            }
            shard.tree = publication.tree.clone();
            for index in freed {
                shard.answer_reads(index, publication.tree.zxid(), &mut out);
            }
        }
        for (session, xid, zxid) in done {
            self.checks.acknowledged(session, xid, zxid)?;
            self.acknowledged();
        }
        self.send_to_clients(out);
        for index in ended {
            self.forget_client(number, index);
        }
        Ok(())
    }

    pub(crate) fn take_notice(&mut self, number: usize, notice: ClientNotice) {
        let mut out = Vec::new();
        let Some(process) = self.members[number].process() else {
            return;
        };
        let shard = &mut process.shard;
        match notice {
            ClientNotice::Drop { client } => self.forget_client(number, client.index),
            ClientNotice::Attach { to, session } => {
                attach(shard, to, &session, &mut out);
            }
            ClientNotice::Expired { to } => {
                if let Some(client) = shard.clients.get(&to.index) {
                    out.push((client.connection, ToClient::Expired));
                }
                self.send_to_clients(std::mem::take(&mut out));
                self.forget_client(number, to.index);
            }
            ClientNotice::Detach {
                client,
                then,
                session,
            } => {
                self.forget_client(number, client.index);
                if let Some(process) = self.members[number].process() {
                    attach(&mut process.shard, then, &session, &mut out);
                }
            }
        }
        self.send_to_clients(out);
    }
}

fn attach(shard: &mut Shard, to: ClientKey, session: &Attached, out: &mut Vec<(u64, ToClient)>) {
    let Some(client) = shard.clients.get_mut(&to.index) else {
        return;
    };
    if client.stage != Stage::Connecting {
        return;
    }
    client.stage = Stage::Attached;
    client.session = session.session;
    client.touch = Some(Arc::clone(&session.touch));
    let session = session.session;
    out.push((client.connection, ToClient::Connected { session }));
}
