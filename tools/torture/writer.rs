//! A connection that writes until the server dies, and knows what must be there afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use ringkeeper_harness::{Closed, Reply, Resume, Session, SessionKey};
use ringkeeper_proto::request::{CreateRequest, MultiHeader};
use ringkeeper_proto::{Acl, AclList, OpCode, Reader, Request, Stat, Zxid};

use crate::model::{self, EPHEMERAL_SLOTS, Model, Op, SLOTS, Seen, Token};

/// Session time-out of the writers: far above any down-time, so their sessions must survive.
pub(crate) const WRITER_TIMEOUT_MS: i32 = 30_000;

/// A writer, over all lives of the server.
#[derive(Debug)]
pub(crate) struct Writer {
    id: u32,
    session: Option<Session>,
    key: SessionKey,
    /// After every acknowledged operation.
    acked: Model,
    /// After every operation sent: `acked`, then `pending`.
    head: Model,
    pending: VecDeque<Op>,
    token: Token,
    /// The largest zxid acknowledged to this writer.
    zxid: i64,
    rng: SmallRng,
}

/// What a burst of writes saw.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    /// The zxids of the acknowledged writes, in order.
    pub(crate) zxids: Vec<i64>,
    /// Answers that were wrong.
    pub(crate) violations: Vec<String>,
}

/// What was found after a restart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settled {
    /// Writes that were never acknowledged and are there.
    pub(crate) survived: usize,
    /// Writes that were never acknowledged and are not.
    pub(crate) gone: usize,
    /// The largest zxid among what is there.
    pub(crate) zxid_max: i64,
}

impl Writer {
    /// A writer with a new session and its parent znode.
    pub(crate) fn new(id: u32, seed: u64, address: SocketAddr) -> Result<Self> {
        let mut session = Session::open(address, WRITER_TIMEOUT_MS)?;
        create(&mut session, &parent(id), b"", 0)?;
        Ok(Self {
            id,
            key: session.key(),
            session: Some(session),
            acked: Model::default(),
            head: Model::default(),
            pending: VecDeque::new(),
            token: 0,
            zxid: 0,
            rng: SmallRng::seed_from_u64(seed ^ (u64::from(id) << 32)),
        })
    }

    /// Writes with up to `depth` operations in flight until the connection ends. It must not end
    /// before `killing` is set.
    pub(crate) fn burst(&mut self, depth: usize, killing: &AtomicBool) -> Burst {
        let mut burst = Burst::default();
        if let Err(error) = self.write_on(depth, &mut burst) {
            // A wrong answer is wrong also when the server is killed a moment later.
            let connection_ended = error.is::<std::io::Error>() || error.is::<Closed>();
            if !(connection_ended && killing.load(Ordering::SeqCst)) {
                burst
                    .violations
                    .push(format!("writer {}: {error:#}", self.id));
            }
        }
        self.session = None;
        burst
    }

    fn write_on(&mut self, depth: usize, burst: &mut Burst) -> Result<()> {
        let mut session = self.session.take().context("the writer has no session")?;
        loop {
            while self.pending.len() < depth {
                let op = self.head.choose(self.token, &mut self.rng);
                self.token += 1;
                self.head.apply(&op, None);
                // From here on it may happen, whatever becomes of the connection.
                self.pending.push_back(op);
                send(&mut session, self.id, &op);
            }
            session.flush()?;
            loop {
                let reply = session.receive()?;
                self.acknowledge(&reply, burst)?;
                if !session.has_reply() {
                    break;
                }
            }
        }
    }

    fn acknowledge(&mut self, reply: &Reply, burst: &mut Burst) -> Result<()> {
        let op = self.pending.pop_front().context("a reply to nothing")?;
        let zxid = reply.header.zxid.to_wire();
        self.check_reply(&op, reply, zxid).with_context(|| {
            format!("{op:?} of writer {} answered with zxid {zxid:#x}", self.id)
        })?;
        ensure!(
            zxid > self.zxid,
            "zxid {zxid:#x} after {:#x}: {op:?}",
            self.zxid
        );
        self.zxid = zxid;
        self.acked.apply(&op, Some(zxid));
        burst.zxids.push(zxid);
        Ok(())
    }

    /// The reply must say what the operation did.
    fn check_reply(&self, op: &Op, reply: &Reply, zxid: i64) -> Result<()> {
        let mut body = reply.ok()?;
        let version_after = |slot| self.acked.node(slot).map(|node| node.version + 1);
        match *op {
            Op::Create { slot, .. } => {
                let path = body.ustring()?;
                ensure!(path == Some(&model::path(self.id, slot)), "path {path:?}");
                let stat = Stat::decode(&mut body)?;
                ensure!(
                    (stat.czxid, stat.mzxid, stat.version) == (zxid, zxid, 0),
                    "{stat:?}"
                );
            }
            Op::Set { slot, .. } => {
                let stat = Stat::decode(&mut body)?;
                ensure!(
                    stat.mzxid == zxid && Some(stat.version) == version_after(slot),
                    "{stat:?}"
                );
            }
            Op::Delete { .. } => {}
            Op::SetTwo { slots, .. } => {
                for slot in slots {
                    let header = MultiHeader::decode(&mut body)?;
                    ensure!(header.op == OpCode::SetData.code(), "{header:?}");
                    let stat = Stat::decode(&mut body)?;
                    ensure!(
                        stat.mzxid == zxid && Some(stat.version) == version_after(slot),
                        "{stat:?}"
                    );
                }
            }
        }
        Ok(())
    }

    /// After a restart: takes the session up again and compares every znode.
    pub(crate) fn settle(&mut self, address: SocketAddr) -> Result<Settled> {
        let resumed = Session::resume(
            address,
            WRITER_TIMEOUT_MS,
            self.key,
            Zxid::from_wire(self.zxid),
        );
        let mut session = match resumed.with_context(|| format!("session of writer {}", self.id))? {
            Resume::Alive(session) => session,
            Resume::Expired => bail!(
                "session {} of writer {} is gone, well within its time-out",
                self.key.id,
                self.id
            ),
        };
        let seen = self.read_all(&mut session)?;
        let (id, owner, zxid) = (self.id, self.key.id.0, self.zxid);
        let settled = model::settle(&self.acked, &self.pending, |model| {
            model.differences(id, owner, zxid, &seen)
        });
        let (survived, mut state) = settled.map_err(|differences| {
            anyhow::anyhow!(
                "writer {id}, last acknowledged zxid {zxid:#x}, {} operations in flight:\n{differences}",
                self.pending.len()
            )
        })?;
        state.learn(&seen);
        let result = Settled {
            survived,
            gone: self.pending.len() - survived,
            zxid_max: seen.values().map(|seen| seen.stat.mzxid).max().unwrap_or(0),
        };
        self.zxid = self.zxid.max(result.zxid_max);
        self.pending.clear();
        self.head.clone_from(&state);
        self.acked = state;
        self.session = Some(session);
        Ok(result)
    }

    fn read_all(&self, session: &mut Session) -> Result<BTreeMap<model::Slot, Seen>> {
        let children = children(session, &parent(self.id))?;
        let slots: Option<Vec<_>> = children.iter().map(|child| model::slot_of(child)).collect();
        let Some(slots) = slots else {
            bail!(
                "{} has children that nobody made: {children:?}",
                parent(self.id)
            );
        };
        for slot in &slots {
            session.send(&Request::GetData {
                path: &model::path(self.id, *slot),
                watch: false,
            });
        }
        session.flush()?;
        let mut seen = BTreeMap::new();
        for slot in slots {
            let reply = session.receive()?;
            let mut body = reply
                .ok()
                .with_context(|| format!("{} is listed", model::path(self.id, slot)))?;
            let data = body.buffer()?.unwrap_or_default().to_vec();
            let stat = Stat::decode(&mut body)?;
            seen.insert(slot, Seen { data, stat });
        }
        Ok(seen)
    }
}

/// Creates a znode and waits for it; the reply's zxid.
pub(crate) fn create(session: &mut Session, path: &str, data: &[u8], flags: i32) -> Result<i64> {
    let reply = session.call(&create_request(path, data, flags))?;
    reply.ok().with_context(|| format!("create {path}"))?;
    Ok(reply.header.zxid.to_wire())
}

/// The children of a znode.
pub(crate) fn children(session: &mut Session, path: &str) -> Result<Vec<String>> {
    let reply = session.call(&Request::GetChildren {
        op: OpCode::GetChildren,
        path,
        watch: false,
    })?;
    let mut body: Reader<'_> = reply.ok().with_context(|| format!("children of {path}"))?;
    Ok(body.strings()?.into_iter().map(str::to_owned).collect())
}

fn create_request<'a>(path: &'a str, data: &'a [u8], flags: i32) -> Request<'a> {
    Request::Create {
        op: OpCode::Create2,
        create: CreateRequest {
            path,
            data: Some(data),
            acl: Some(AclList::new(&Acl::open())),
            flags,
            ttl_ms: None,
        },
    }
}

fn send(session: &mut Session, writer: u32, op: &Op) {
    match *op {
        Op::Create { slot, token } => {
            let flags = i32::from(slot < EPHEMERAL_SLOTS);
            let data = model::data(writer, token);
            session.send(&create_request(&model::path(writer, slot), &data, flags));
        }
        Op::Set {
            slot,
            token,
            version,
        } => {
            session.send(&set_request(
                &model::path(writer, slot),
                &model::data(writer, token),
                version,
            ));
        }
        Op::Delete { slot, version } => {
            session.send(&Request::Delete {
                path: &model::path(writer, slot),
                version,
            });
        }
        Op::SetTwo { slots, token } => {
            let paths = slots.map(|slot| model::path(writer, slot));
            let data = model::data(writer, token);
            let parts = paths.iter().map(|path| set_request(path, &data, -1));
            session.send(&Request::Multi(parts.collect()));
        }
    }
}

fn set_request<'a>(path: &'a str, data: &'a [u8], version: i32) -> Request<'a> {
    Request::SetData {
        path,
        data: Some(data),
        version,
    }
}

fn parent(writer: u32) -> String {
    format!("/torture/w{writer}")
}

// A slot is found by its three digits.
const _: () = assert!(SLOTS <= 1_000 && EPHEMERAL_SLOTS < SLOTS);
