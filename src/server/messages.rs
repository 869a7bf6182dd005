//! What the replica core and the shards say to each other, besides the chain of publications.

use bytes::Bytes;
use ringkeeper_member::{ClientMessage, ClientNotice, CoreReport, StandingChange};
use ringkeeper_storage::SnapshotInfo;
use ringkeeper_transport::Accepted;
use ringkeeper_transport::mailbox::Sender;
use ringkeeper_zab::LinkId;

use crate::control::{AnswerTo, Ask};
use crate::report::{ShardReport, Wanted};
use crate::snapshots::SnapshotTaken;

/// From a shard (or the signal thread, or the snapshot thread) to the replica core.
#[derive(Debug)]
pub(crate) enum CoreMessage {
    /// A client asks for something.
    Client(ClientMessage),
    /// The snapshot thread has finished.
    SnapshotTaken(Result<SnapshotTaken, String>),
    /// The tree that a leader sent is written and verified.
    SnapshotKept(Result<SnapshotInfo, String>),
    /// The next chunk of a tree that goes to a learner; an empty one ends it.
    TreeChunk { link: LinkId, bytes: Bytes },
    /// Somebody asks for the core's part of a report.
    Report {
        wanted: Wanted,
        to: Sender<CoreReport>,
    },
    /// An operator asks for something.
    Asked { ask: Ask, to: AnswerTo },
    /// Statistics are set back to zero (`srst`).
    ResetStatistics,
    /// A shard has stopped; when all have, so does the core.
    ShardStopped,
}

/// From the replica core (or another shard) to a shard.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    /// What this server is has changed.
    Standing(StandingChange),
    /// A connection is told something.
    Notice(ClientNotice),
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
