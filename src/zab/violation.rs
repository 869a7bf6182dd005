//! What a peer did that Zab does not allow.

use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::message::LinkId;

/// A peer broke the protocol. The core has already drawn the consequence (closed the link, or given
/// up its role) in the outputs of the same step; this says why, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A packet that cannot come now.
    #[error("{packet} on link {} while {phase}", link.0)]
    Unexpected {
        /// Where it came from.
        link: LinkId,
        /// What came.
        packet: &'static str,
        /// What this side was doing.
        phase: &'static str,
    },
    /// A proposal that does not follow the log's end.
    #[error("proposal {zxid} does not follow {last_logged}, the end of the log")]
    ProposalOrder {
        /// What came.
        zxid: Zxid,
        /// The end of the log.
        last_logged: Zxid,
    },
    /// A commit that is not for the next proposal.
    #[error("commit {zxid} is not for the proposal after {committed} (log ends at {last_logged})")]
    CommitOrder {
        /// What came.
        zxid: Zxid,
        /// The last one before.
        committed: Zxid,
        /// The end of the log.
        last_logged: Zxid,
    },
    /// An acknowledgement for something not sent, or one that leaves out a proposal.
    #[error("server {from} acknowledged {zxid}, but was sent {sent} and had acknowledged {acked}")]
    AckOrder {
        /// The learner.
        from: ServerId,
        /// What it acknowledged.
        zxid: Zxid,
        /// The last proposal sent to it.
        sent: Zxid,
        /// The last that it had acknowledged.
        acked: Zxid,
    },
    /// A leader with an older epoch than one accepted before.
    #[error("leader's epoch {epoch} is older than {accepted}, which this server accepted")]
    StaleEpoch {
        /// The leader's.
        epoch: Epoch,
        /// This server's.
        accepted: Epoch,
    },
    /// A learner whose history is more recent than the leader's, before the leader was established.
    #[error("server {from} is ahead: epoch {current_epoch}, {last_logged}")]
    LearnerAhead {
        /// The learner.
        from: ServerId,
        /// The epoch that it follows.
        current_epoch: Epoch,
        /// The end of its log.
        last_logged: Zxid,
    },
    /// A leader that asks to drop what is known to be committed.
    #[error("the leader's history ends at {to}, but {committed} is committed")]
    LosesCommitted {
        /// The end of what would remain.
        to: Zxid,
        /// What this server knows as committed.
        committed: Zxid,
    },
    /// A leader that asks to cut the log at a zxid that it does not have, or where a snapshot covers it.
    /// The next leader is asked for a snapshot.
    #[error("the log cannot be cut at {to} (it ends at {last_logged})")]
    TruncateUnknown {
        /// Where to cut.
        to: Zxid,
        /// The end of the log.
        last_logged: Zxid,
    },
    /// A learner that has activated a newer configuration than the leader.
    #[error("server {from} has configuration {theirs:#x}, this leader {ours:#x}")]
    NewerConfig {
        /// The learner.
        from: ServerId,
        /// Its configuration's version.
        theirs: u64,
        /// The leader's.
        ours: u64,
    },
    /// A learner that did not acknowledge a proposal in time.
    #[error("server {from} has not acknowledged a proposal within the sync limit")]
    AckTimeout {
        /// The learner.
        from: ServerId,
    },
}

impl Violation {
    /// Whether the peer's history, or what it says of ours, contradicts what is here: among servers of this software
    /// that never happens, whatever becomes of links and processes.
    pub const fn is_of_history(&self) -> bool {
        matches!(
            self,
            Self::ProposalOrder { .. }
                | Self::CommitOrder { .. }
                | Self::AckOrder { .. }
                | Self::LosesCommitted { .. }
        )
    }
}
