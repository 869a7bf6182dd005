//! What the members of an ensemble tell each other on a learner's link, apart from its bytes.

use std::sync::Arc;

use ringkeeper_proto::election::{Ballot, PeerState};
use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{Epoch, ServerId, Zxid};

/// One connection between a learner and its leader: a number that the caller never uses again, so
/// that what comes late from a closed connection is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A transaction with its place in the order.
///
/// `P` stands for its bytes (a handle into the log's buffer); Zab never looks inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal<P> {
    /// Its place.
    pub zxid: Zxid,
    /// Its bytes.
    pub payload: P,
}

/// A message of the election. On its way out the caller adds the text of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What the sender is doing.
    pub state: PeerState,
    /// Whom it votes for, or follows.
    pub ballot: Ballot,
    /// Its election round (ZooKeeper: `logicalclock`).
    pub round: u64,
}

/// A packet on a learner's link. The direction of each is given; anything that comes the other way
/// is a [`Violation`](crate::Violation).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<P> {
    /// Learner: who I am (FOLLOWERINFO, OBSERVERINFO). The first packet of a link.
    LearnerInfo {
        /// The learner.
        id: ServerId,
        /// Whether it follows without a vote (OBSERVERINFO).
        observer: bool,
        /// The highest epoch that it promised to.
        accepted_epoch: Epoch,
        /// The version of the configuration that it has activated.
        config_version: u64,
        /// What it understands that Apache's servers do not.
        capabilities: Capabilities,
    },
    /// Leader: the epoch of my reign (LEADERINFO).
    LeaderInfo {
        /// Larger than any that a quorum had accepted.
        epoch: Epoch,
        /// Whether the leader understands what Apache's servers do not (bytes after the packet's four,
        /// which those ignore).
        extended: bool,
    },
    /// Learner: I promised to follow no older leader (ACKEPOCH).
    AckEpoch {
        /// The epoch of the last leader whose history it took over; `None` (-1 on the wire) if the
        /// answer does not count as a promise.
        current_epoch: Option<Epoch>,
        /// The end of its log; `None` (-1 on the wire) makes any leader send a snapshot, and takes the
        /// promise away.
        last_logged: Option<Zxid>,
        /// Send a snapshot whatever the log holds; for an extended leader only.
        snapshot: bool,
        /// It may have acknowledged more than its log shows, through this zxid ([`Epochs::doubted`](crate::Epochs));
        /// for an extended leader only.
        doubted: Option<Zxid>,
    },
    /// Leader: you have a prefix of my history; the rest follows (DIFF).
    Diff {
        /// Through which what follows is committed.
        zxid: Zxid,
    },
    /// Leader: cut your log after this zxid; the rest follows (TRUNC).
    Trunc {
        /// The last zxid to keep.
        zxid: Zxid,
    },
    /// Leader: forget what you have; a snapshot follows on the link (SNAP).
    Snap {
        /// The state that the snapshot shows.
        zxid: Zxid,
    },
    /// Leader: this was my history when I began (NEWLEADER).
    NewLeader {
        /// The epoch of its reign.
        epoch: Epoch,
        /// The text of the configuration that the leader has seen last.
        config: Arc<str>,
    },
    /// Leader: a quorum has my history, serve (UPTODATE).
    UpToDate,
    /// Leader: log this, and say when it is durable (PROPOSAL).
    Proposal(Proposal<P>),
    /// Learner: this is durable here (ACK). With counter 0 it answers NEWLEADER and UPTODATE.
    Ack {
        /// The proposal, or the epoch's start.
        zxid: Zxid,
    },
    /// Leader: a quorum has logged this (COMMIT).
    Commit {
        /// The proposal.
        zxid: Zxid,
    },
    /// Leader: a quorum of the present and of the next configuration has logged this, which sets the
    /// latter: it is active, and `leader` is to lead from now on (COMMITANDACTIVATE).
    CommitAndActivate {
        /// The proposal.
        zxid: Zxid,
        /// The designated leader.
        leader: ServerId,
    },
    /// Leader to observer: this is committed (INFORM).
    Inform(Proposal<P>),
    /// Leader to observer: the same of what sets a configuration (INFORMANDACTIVATE).
    InformAndActivate {
        /// The proposal.
        proposal: Proposal<P>,
        /// The designated leader.
        leader: ServerId,
    },
    /// Both: I am alive (PING). A learner's answer carries session touches, which the caller adds and
    /// takes off: they do not concern Zab.
    Ping {
        /// The leader counts its PINGs; the same back. (An Apache leader sends its last zxid, which nobody
        /// looks at, and gets it back too.)
        round: u64,
    },
    /// Leader: all that was proposed before your sync request has been sent as committed (SYNC).
    Sync,
    /// Learner: a client's write for the leader to propose (REQUEST).
    Request(P),
    /// Both: a question or an answer about a session (REVALIDATE).
    Revalidate(P),
    /// Leader: my epoch's counter is used up, and I begin this one; promise it (NEWEPOCH, Ringkeeper's own: for
    /// learners with [`Capabilities::NEW_EPOCH`] alone). Answered by ACKEPOCH, and followed by NEWLEADER.
    NewEpoch {
        /// Larger than any that this leader knows of.
        epoch: Epoch,
    },
    /// Leader: I propose nothing more, `leader` is to lead from now on. Its answer: I do. (HANDOVER, Ringkeeper's
    /// own: for learners with [`Capabilities::HAND_OVER`] alone.)
    HandOver {
        /// The successor.
        leader: ServerId,
        /// The round of the election that this stands for.
        round: u64,
    },
}

impl<P> Message<P> {
    /// The packet's name in ZooKeeper's sources.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::LearnerInfo {
                observer: false, ..
            } => "FOLLOWERINFO",
            Self::LearnerInfo { observer: true, .. } => "OBSERVERINFO",
            Self::LeaderInfo { .. } => "LEADERINFO",
            Self::AckEpoch { .. } => "ACKEPOCH",
            Self::Diff { .. } => "DIFF",
            Self::Trunc { .. } => "TRUNC",
            Self::Snap { .. } => "SNAP",
            Self::NewLeader { .. } => "NEWLEADER",
            Self::UpToDate => "UPTODATE",
            Self::Proposal(_) => "PROPOSAL",
            Self::Ack { .. } => "ACK",
            Self::Commit { .. } => "COMMIT",
            Self::CommitAndActivate { .. } => "COMMITANDACTIVATE",
            Self::Inform(_) => "INFORM",
            Self::InformAndActivate { .. } => "INFORMANDACTIVATE",
            Self::Ping { .. } => "PING",
            Self::Sync => "SYNC",
            Self::Request(_) => "REQUEST",
            Self::Revalidate(_) => "REVALIDATE",
            Self::NewEpoch { .. } => "NEWEPOCH",
            Self::HandOver { .. } => "HANDOVER",
        }
    }
}
