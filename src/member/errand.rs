//! What the core asks its caller to do beside the log's writes, and what comes of it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::StorageError;
use ringkeeper_tree::Tree;
use ringkeeper_zab::{Epochs, LinkId, Proposal};

/// Work on the disk; to be run to its end by a task that nobody cancels. An error ends the process.
pub type Work = Pin<Box<dyn Future<Output = Result<Done, StorageError>>>>;

/// Something to be done. Errands are begun in the order in which they are given.
pub enum Errand {
    /// Run it, then hand its result to [`Core::done`](crate::Core::done).
    Run(Work),
    /// Write a snapshot of the tree, which a leader sent, and verify it; then
    /// [`Core::snapshot_kept`](crate::Core::snapshot_kept).
    KeepSnapshot(Tree),
    /// Write down a configuration that has become active, where an operator and the next start look for it.
    KeepConfiguration {
        /// Its text.
        text: Arc<str>,
        /// The transaction that established it.
        version: Zxid,
    },
    /// Get ready to send the tree on a link, in chunks of its [`ImageEncoder`](ringkeeper_tree::image::ImageEncoder).
    SendTree {
        /// The link.
        link: LinkId,
        /// The tree.
        tree: Tree,
    },
    /// Make the next chunk for the link, then [`Core::tree_chunk`](crate::Core::tree_chunk).
    NextChunk(LinkId),
    /// The tree need not be sent any more.
    StopTree(LinkId),
}

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run(_) => "Run",
            Self::KeepSnapshot(_) => "KeepSnapshot",
            Self::KeepConfiguration { .. } => "KeepConfiguration",
            Self::SendTree { .. } => "SendTree",
            Self::NextChunk(_) => "NextChunk",
            Self::StopTree(_) => "StopTree",
        })
    }
}

/// What came of [`Errand::Run`].
#[derive(Debug)]
pub enum Done {
    /// Something has been written to the log.
    Written,
    /// Epochs are saved.
    EpochsSaved(Epochs),
    /// Part of the log, as a learner lacks it; none when the log does not reach back that far.
    Read {
        /// The learner's link.
        link: LinkId,
        /// The records.
        proposals: Vec<Proposal<Bytes>>,
    },
    /// A snapshot from the leader is what a restart would find.
    Installed,
}
