//! What the core of a member tells its links, and what they tell it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ringkeeper_proto::ServerId;
use ringkeeper_zab::{LinkId, Message, Notification};

use crate::settings::Member;

/// A packet on a learner's link: what Zab knows of it, and what rides along.
///
/// The bytes of a payload (`Message<Bytes>`):
/// - `Proposal`, `Inform`: txn header, record and digest, as in the log;
/// - `Request`: a [`ForwardedRequest`](ringkeeper_proto::quorum::ForwardedRequest), identities included;
/// - `Revalidate`: a [`Revalidation`](ringkeeper_proto::quorum::Revalidation) from a learner, a
///   [`Revalidated`](ringkeeper_proto::quorum::Revalidated) from a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What Zab knows.
    pub message: Message<Bytes>,
    /// What it does not.
    pub rider: Rider,
}

impl From<Message<Bytes>> for Packet {
    fn from(message: Message<Bytes>) -> Self {
        Self {
            message,
            rider: Rider::None,
        }
    }
}

/// What rides along in a packet and does not concern Zab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rider {
    /// Nothing.
    #[default]
    None,
    /// With a learner's `Ping`: which sessions were heard of, a
    /// [`TouchTable`](ringkeeper_proto::quorum::TouchTable).
    Touches(Bytes),
}

/// What the links are to do. Nothing of it waits; what was queued leaves at the end of the turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerCommand {
    /// Open a link to the leader, trying again for a while; answered by [`PeerEvent::Connected`] or
    /// [`PeerEvent::ConnectFailed`]. An attempt under way for another one is given up, unanswered.
    Connect {
        /// The leader.
        leader: ServerId,
    },
    /// Send a packet. On a link that is gone it is dropped.
    Send {
        /// The link.
        link: LinkId,
        /// The packet.
        packet: Packet,
    },
    /// Send bytes of a snapshot, which follow a `Snap` packet. As they are many, ask for room before each
    /// ([`PeerCommand::WantRoom`]).
    SendStream {
        /// The link.
        link: LinkId,
        /// The next of them.
        bytes: Bytes,
    },
    /// Say when the link takes more of what is many: answered by [`PeerEvent::Writable`], at once if it has room
    /// now, or by `Disconnected`.
    WantRoom {
        /// The link.
        link: LinkId,
    },
    /// Deliver the next bytes of the snapshot that follows a `Snap` packet: answered by one
    /// [`PeerEvent::StreamBytes`], or by `Disconnected`. After `Snap` nothing is read off the link
    /// but by this.
    ReadStream {
        /// The link.
        link: LinkId,
    },
    /// The snapshot has ended; packets follow again.
    EndStream {
        /// The link.
        link: LinkId,
        /// What was delivered behind the snapshot's end.
        rest: Bytes,
    },
    /// Send what is queued and close the link. Nothing more is heard of it.
    Close {
        /// The link.
        link: LinkId,
    },
    /// Whether observers are taken that come to `observerMasterPort`; they are at first. Where there is no such port it
    /// means nothing.
    ServeObservers {
        /// Whether they are.
        open: bool,
    },
    /// Who the members are from now on, and the text of the configuration. Links to servers that are no
    /// members any more are left alone; nobody calls them any more.
    Configure {
        /// Every member, of the configuration in force and of one that is to follow.
        members: BTreeMap<ServerId, Member>,
        /// The text that notifications carry.
        config: Arc<str>,
    },
    /// Send a message of the election. While the peer cannot be reached, the last one waits.
    Notify {
        /// The peer.
        to: ServerId,
        /// What to say.
        notification: Notification,
    },
}

/// What happened on the links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// A message of the election came, perhaps from a server that is not a member.
    Notified {
        /// The sender.
        from: ServerId,
        /// What it says.
        notification: Notification,
        /// The text of the sender's configuration, "" if it sent none.
        config: String,
    },
    /// An election connection came up, or went down, or could not be made. Told again for each new
    /// connection, since who came back has heard nothing yet.
    Reachable {
        /// The peer.
        peer: ServerId,
        /// Whether there is a connection.
        reachable: bool,
    },
    /// The link that [`PeerCommand::Connect`] asked for is there.
    Connected {
        /// Whom it reaches.
        leader: ServerId,
        /// Its number.
        link: LinkId,
    },
    /// It could not be made.
    ConnectFailed {
        /// Whom it should have reached.
        leader: ServerId,
    },
    /// A packet came. The first one of a link that was not asked for is a learner's introduction.
    Received {
        /// The link.
        link: LinkId,
        /// The packet.
        packet: Packet,
    },
    /// The answer to [`PeerCommand::ReadStream`]: at least one byte.
    StreamBytes {
        /// The link.
        link: LinkId,
        /// The bytes.
        bytes: Bytes,
    },
    /// The answer to [`PeerCommand::WantRoom`].
    Writable {
        /// The link.
        link: LinkId,
    },
    /// A link is gone: the peer closed it, was silent for too long, did not read, or sent what is no
    /// packet.
    Disconnected {
        /// The link.
        link: LinkId,
    },
}
