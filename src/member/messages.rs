//! What the connections of clients ask of the core, and what it tells them besides publications.

use std::sync::Arc;

use bytes::Bytes;
use ringkeeper_proto::{Id, OpCode, SessionId, Xid};

use crate::publication::{Attached, ClientKey};

/// From a client's connection to the core.
#[derive(Debug)]
pub enum ClientMessage {
    /// A client wants a new session.
    NewSession {
        /// Its connection.
        from: ClientKey,
        /// Its time-out, negotiated, in milliseconds.
        timeout_ms: i32,
    },
    /// A client comes back for its session; its password has been checked.
    Reconnect {
        /// Its connection.
        from: ClientKey,
        /// The session.
        session: SessionId,
        /// Its time-out, negotiated, in milliseconds.
        timeout_ms: i32,
    },
    /// A client's write, or its sync: both take their place in the order.
    Write(WriteMessage),
    /// A connection with a session has ended.
    Disconnected {
        /// The connection.
        from: ClientKey,
        /// Its session.
        session: SessionId,
    },
}

/// A write on its way to the core.
#[derive(Debug)]
pub struct WriteMessage {
    /// The connection that is answered.
    pub from: ClientKey,
    /// Its session.
    pub session: SessionId,
    /// The client's number for the request.
    pub xid: Xid,
    /// What is asked.
    pub op: OpCode,
    /// The request's body; a slice of the frame it came in.
    pub body: Bytes,
    /// Who the connection has proved to be.
    pub identities: Arc<[Id]>,
    /// Whether reads of the same session wait between the write before this one and this one.
    pub keep_before: bool,
    /// When it came, in microseconds of the monotonic clock.
    pub arrived_us: u64,
}

/// From the core to a client's connection, at once: not in order with publications.
#[derive(Debug)]
pub enum ClientNotice {
    /// A reconnected client has its session again.
    Attach {
        /// The connection.
        to: ClientKey,
        /// The session.
        session: Attached,
    },
    /// The session a client came back for does not exist.
    Expired {
        /// The connection.
        to: ClientKey,
    },
    /// The session of a client has gone to another connection: this one is closed, and then, not
    /// earlier, the new one is told.
    Detach {
        /// The connection to close.
        client: ClientKey,
        /// The connection to tell.
        then: ClientKey,
        /// The session.
        session: Attached,
    },
    /// A connection is closed: its session has gone to another server, or an answer to it has got lost.
    Drop {
        /// The connection.
        client: ClientKey,
    },
}

impl ClientNotice {
    /// The shard that is to hear it.
    pub const fn shard(&self) -> u32 {
        match self {
            Self::Attach { to, .. } | Self::Expired { to } => to.shard,
            Self::Detach { client, .. } | Self::Drop { client } => client.shard,
        }
    }
}

/// The time of a turn, as its caller's clocks have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that never goes back.
    pub monotonic_us: u64,
    /// Milliseconds since 1970: the time that transactions carry.
    pub wall_ms: i64,
}

impl Now {
    /// Milliseconds of the clock that never goes back.
    pub const fn monotonic_ms(self) -> u64 {
        self.monotonic_us / 1000
    }
}
