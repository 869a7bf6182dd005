//! What the replica core hands to the shards: one [`Publication`] per commit batch, appended to a
//! chain that every shard walks at its own pace.
//!
//! Invariants:
//! - A publication is appended only when all its transactions are committed, and they are in zxid
//!   order; so a shard that has walked the chain to its end shows nothing older than any reply that
//!   any shard of this server has sent.
//! - `tree` is the state after the last step, `Step::before` the state right before that step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::{SessionId, Xid, ZkError, Zxid};
use ringkeeper_tree::{Events, Tree};

/// A client's connection: the shard it is on and its place there. The generation tells it from an
/// earlier connection in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey {
    /// The shard that it is on.
    pub shard: u32,
    /// Its place there.
    pub index: u32,
    /// Which connection in that place.
    pub generation: u32,
}

/// The effects of one commit batch.
#[derive(Debug)]
pub struct Publication {
    /// The state after the batch.
    pub tree: Tree,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// The watch events of all steps, in order; each step says where its own end.
    pub events: Events,
}

/// The shards that answer somebody in some publications. There is room for 64; shards that share a
/// place are both in it or neither.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardSet(u64);

impl ShardSet {
    /// Adds the shards whose clients `publication` answers.
    pub fn add_all(&mut self, publication: &Publication) {
        let answered = publication.steps.iter().filter_map(|step| step.answer.to());
        for client in answered {
            self.0 |= 1 << (client.shard % u64::BITS);
        }
    }

    /// Whether `shard` may be in it.
    pub const fn contains(self, shard: usize) -> bool {
        self.0 >> (shard % u64::BITS as usize) & 1 == 1
    }
}

/// One request of a batch: a transaction, or a request that was refused without one. Those behind one another that nobody
/// is told are one step.
#[derive(Debug)]
pub struct Step {
    /// The (last) transaction's zxid; of a request without a transaction, the last one before it.
    pub zxid: Zxid,
    /// One past its last event in [`Publication::events`].
    pub events_end: usize,
    /// The state right before this step; kept when reads of the same session wait for it. Boxed, for few
    /// steps have it and it would be two thirds of a step.
    pub before: Option<Box<Tree>>,
    /// Who is told what.
    pub answer: Answer,
}

/// Who is told what when a step is published.
#[derive(Debug)]
pub enum Answer {
    /// Nobody: the server's own transaction, or the connection is gone.
    Nobody,
    /// The client that asked for the write (or for a sync).
    Write {
        /// Its connection.
        to: ClientKey,
        /// Its number for the request.
        xid: Xid,
        /// What came of it.
        outcome: Result<WriteReply, ZkError>,
    },
    /// The client that opened its connection for a new session.
    Session {
        /// Its connection.
        to: ClientKey,
        /// Its session.
        session: Attached,
    },
    /// The connection of a session that has expired or was closed from elsewhere: it is dropped.
    Dropped {
        /// The connection.
        to: ClientKey,
    },
}

impl Answer {
    /// The connection that is told.
    pub const fn to(&self) -> Option<ClientKey> {
        match self {
            Self::Nobody => None,
            Self::Write { to, .. } | Self::Session { to, .. } | Self::Dropped { to } => Some(*to),
        }
    }
}

/// A session as its connection needs it.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its id.
    pub session: SessionId,
    /// Its time-out in milliseconds.
    pub timeout_ms: i32,
    /// To be touched with each packet.
    pub touch: Arc<Touch>,
}

/// When a session was last heard of, in milliseconds of the monotonic clock. The shard that holds the
/// connection stores it with each packet; the replica core reads it when the session is due, so no
/// message is needed per packet.
#[derive(Debug, Default)]
pub struct Touch(AtomicU64);

impl Touch {
    /// A session heard of at `now_ms`.
    pub fn at(now_ms: u64) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    /// The session was heard of at `now_ms`.
    pub fn touch(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }

    /// When it was last heard of.
    pub fn last_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
