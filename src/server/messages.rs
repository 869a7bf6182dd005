//! What the replica core and the shards say to each other, besides the chain of publications.

use ringkeeper_member::{ClientMessage, ClientNotice, CoreReport};
use ringkeeper_transport::Accepted;
use ringkeeper_transport::mailbox::Sender;

use crate::report::{ShardReport, Wanted};
use crate::snapshots::SnapshotTaken;

/// From a shard (or the signal thread, or the snapshot thread) to the replica core.
#[derive(Debug)]
pub(crate) enum CoreMessage {
    /// A client asks for something.
    Client(ClientMessage),
    /// The snapshot thread has finished.
    SnapshotTaken(Result<SnapshotTaken, String>),
    /// Somebody asks for the core's part of a report.
    Report(Sender<CoreReport>),
    /// Statistics are set back to zero (`srst`).
    ResetStatistics,
    /// A shard has stopped; when all have, so does the core.
    ShardStopped,
}

/// From the replica core (or another shard) to a shard.
#[derive(Debug)]
pub(crate) enum ShardMessage {
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
