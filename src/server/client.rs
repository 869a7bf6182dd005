//! One client's connection as its shard sees it.
//!
//! Invariants:
//! - Replies leave in the order of the requests: what waits for the replica core is in `pending`, with
//!   the reads that came after it; the front of `pending` is always a write.
//! - A request is counted in `outstanding` from its arrival to its reply.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use ringkeeper_member::{ClientKey, Touch};
use ringkeeper_proto::{Id, OpCode, SessionId, Xid, Zxid};
use ringkeeper_transport::WriteHalf;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its connect request has not come yet.
    Opened,
    /// The replica core has its connect request.
    Connecting,
    /// It has a session.
    Attached,
    /// What is queued is still sent, then it is closed; nothing more is read.
    Closing,
}

/// What waits for the replica core's answer, or behind something that does.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A write, or a sync, on its way; of a sync its body, which the reply repeats.
    Write {
        op: OpCode,
        sync: Option<Bytes>,
        /// Its bytes, if it counts as large, else 0.
        large_bytes: usize,
        arrived_us: u64,
    },
    /// A read behind it.
    Read(WaitingRead),
}

/// A request with what is needed to answer it later.
#[derive(Debug)]
pub(crate) struct WaitingRead {
    pub(crate) xid: Xid,
    pub(crate) op: OpCode,
    pub(crate) body: Bytes,
    /// Who the connection had proved to be when it asked.
    pub(crate) identities: Arc<[Id]>,
    pub(crate) arrived_us: u64,
}

/// A connection and its session.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) key: ClientKey,
    pub(crate) output: WriteHalf,
    pub(crate) peer: SocketAddr,
    pub(crate) stage: Stage,
    pub(crate) session: SessionId,
    pub(crate) timeout_ms: i32,
    pub(crate) touch: Option<Arc<Touch>>,
    /// Whether the connect request had the `readOnly` field, so that the response has it too.
    pub(crate) knows_read_only: bool,
    pub(crate) identities: Arc<[Id]>,
    pub(crate) pending: VecDeque<Pending>,
    /// Whether it stands in the shard's list of connections with something to send.
    pub(crate) dirty: bool,
    /// Set while its reader waits for room.
    pub(crate) paused: Option<Waker>,
    pub(crate) stats: ClientStats,
}

/// What the four-letter word `cons` shows of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientStats {
    pub(crate) established_ms: i64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) last_op: Option<OpCode>,
    pub(crate) last_xid: i32,
    pub(crate) last_zxid: Zxid,
    /// Milliseconds of the monotonic clock.
    pub(crate) last_response_ms: u64,
    pub(crate) last_latency_ms: u64,
    pub(crate) latency_min_ms: Option<u64>,
    pub(crate) latency_max_ms: u64,
    pub(crate) latency_sum_ms: u64,
    pub(crate) replies: u64,
}

impl Client {
    /// Requests that have arrived and are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        self.pending.len()
    }

    /// Whether the last request that waits is a read: a write after it needs the state before itself.
    pub(crate) fn ends_with_read(&self) -> bool {
        matches!(self.pending.back(), Some(Pending::Read(_)))
    }

    /// Adds what an auth packet has proved, each identity once.
    pub(crate) fn prove(&mut self, proved: Vec<Id>) {
        let mut identities = self.identities.to_vec();
        for id in proved {
            if !identities.contains(&id) {
                identities.push(id);
            }
        }
        self.identities = identities.into();
    }

    /// Lets its reader look again.
    pub(crate) fn resume(&mut self) {
        if let Some(waker) = self.paused.take() {
            waker.wake();
        }
    }
}

impl ClientStats {
    /// Counts a reply.
    pub(crate) fn replied(&mut self, op: OpCode, xid: Xid, zxid: Zxid, latency_us: u64) {
        let latency_ms = latency_us / 1000;
        self.sent += 1;
        self.replies += 1;
        self.last_op = Some(op);
        self.last_xid = xid.0;
        self.last_zxid = zxid;
        self.last_latency_ms = latency_ms;
        self.latency_min_ms = Some(
            self.latency_min_ms
                .map_or(latency_ms, |min| min.min(latency_ms)),
        );
        self.latency_max_ms = self.latency_max_ms.max(latency_ms);
        self.latency_sum_ms += latency_ms;
    }

    /// The average latency in milliseconds.
    pub(crate) const fn latency_avg_ms(&self) -> u64 {
        match self.latency_sum_ms.checked_div(self.replies) {
            Some(average) => average,
            None => 0,
        }
    }

    /// What `cons` calls the last operation (ZK: FinalRequestProcessor.lastOp).
    pub(crate) const fn last_op_name(&self) -> &'static str {
        match self.last_op {
            Some(OpCode::Ping) => "PING",
            Some(OpCode::CreateSession) => "SESS",
            Some(OpCode::Multi) => "MULT",
            Some(OpCode::MultiRead) => "MLTR",
            Some(
                OpCode::Create | OpCode::Create2 | OpCode::CreateTtl | OpCode::CreateContainer,
            ) => "CREA",
            Some(OpCode::Delete | OpCode::DeleteContainer) => "DELE",
            Some(OpCode::SetData) => "SETD",
            Some(OpCode::Reconfig) => "RECO",
            Some(OpCode::SetAcl) => "SETA",
            Some(OpCode::CloseSession) => "CLOS",
            Some(OpCode::Sync) => "SYNC",
            Some(OpCode::Exists) => "EXIS",
            Some(OpCode::GetData) => "GETD",
            Some(OpCode::SetWatches) => "SETW",
            Some(OpCode::SetWatches2) => "STW2",
            Some(OpCode::AddWatch) => "ADDW",
            Some(OpCode::GetAcl) => "GETA",
            Some(OpCode::GetChildren | OpCode::GetChildren2) => "GETC",
            Some(OpCode::GetAllChildrenNumber) => "GETACN",
            Some(OpCode::CheckWatches) => "CHKW",
            Some(OpCode::RemoveWatches) => "REMW",
            Some(OpCode::WhoAmI) => "HOMI",
            Some(OpCode::GetEphemerals) => "GETE",
            _ => "NA",
        }
    }

    /// Back to zero (`crst`).
    pub(crate) fn reset(&mut self) {
        *self = Self {
            established_ms: self.established_ms,
            ..Self::default()
        };
    }
}
