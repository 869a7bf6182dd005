//! What the replica core and the shards say to each other, besides the chain of publications.

use std::sync::Arc;

use bytes::Bytes;
use ringkeeper_proto::{Id, OpCode, SessionId, Xid};
use ringkeeper_transport::Accepted;
use ringkeeper_transport::mailbox::Sender;

use crate::publication::{Attached, ClientKey};
use crate::report::{CoreReport, ShardReport, Wanted};
use crate::snapshots::SnapshotTaken;

/// From a shard (or the signal thread, or the snapshot thread) to the replica core.
#[derive(Debug)]
pub(crate) enum CoreMessage {
    /// A client wants a new session.
    NewSession { from: ClientKey, timeout_ms: i32 },
    /// A client comes back for its session; its password has been checked.
    Reconnect {
        from: ClientKey,
        session: SessionId,
        timeout_ms: i32,
    },
    /// A client's write, or its sync: both take their place in the order.
    Write(WriteMessage),
    /// A connection with a session has ended.
    Disconnected { from: ClientKey, session: SessionId },
    /// The snapshot thread has finished.
    SnapshotTaken(Result<SnapshotTaken, String>),
    /// Somebody asks for the core's part of a report.
    Report(Sender<CoreReport>),
    /// Statistics are set back to zero (`srst`).
    ResetStatistics,
    /// A shard has stopped; when all have, so does the core.
    ShardStopped,
}

/// A write on its way to the replica core.
#[derive(Debug)]
pub(crate) struct WriteMessage {
    pub(crate) from: ClientKey,
    pub(crate) session: SessionId,
    pub(crate) xid: Xid,
    pub(crate) op: OpCode,
    /// The request's body; a slice of the frame it came in.
    pub(crate) body: Bytes,
    /// Who the connection has proved to be.
    pub(crate) identities: Arc<[Id]>,
    /// Whether reads of the same session wait between the write before this one and this one.
    pub(crate) keep_before: bool,
    /// Microseconds of the monotonic clock.
    pub(crate) arrived_us: u64,
}

/// From the replica core (or another shard) to a shard.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    /// A reconnected client has its session again.
    Attach { to: ClientKey, session: Attached },
    /// The session a client came back for does not exist.
    Expired { to: ClientKey },
    /// The session of a client has gone to another connection: this one is closed, and then, not
    /// earlier, the new one is told.
    Detach {
        client: ClientKey,
        then: ClientKey,
        session: Attached,
    },
    /// A connection that another shard has accepted is to be served here.
    Adopt(Accepted),
    /// Somebody asks for this shard's part of a report.
    Report {
        wanted: Wanted,
        to: Sender<ShardReport>,
    },
    /// Statistics of the server and, where asked, of connections are set back to zero.
    ResetStatistics { connections: bool },
    /// The server stops: no new connections, no new requests.
    Stop,
}
