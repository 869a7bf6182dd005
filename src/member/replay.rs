//! From a snapshot's tree and the log after it to the tree that the server had.

use std::mem;

use bytes::Bytes;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{DecodeError, TxnDigest, Zxid};
use ringkeeper_storage::{Disk, StorageError, TxnLog};
use ringkeeper_tree::{Event, Tree};

/// What a replay found.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// How many transactions were applied.
    pub count: u64,
    /// The zxids of all records after the snapshot, applied or not.
    pub zxids: Vec<Zxid>,
    /// The records that were not applied, since nobody knows yet whether they are committed.
    pub suffix: Vec<(Zxid, Bytes)>,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log cannot be read, or a record is none.
    #[error(transparent)]
    Log(#[from] StorageError),
    /// The tree that the log replays to is not the one that was logged.
    #[error(
        "the tree that the log replays to is not the one that was logged ({differ} of {count} digests \
         differ): nothing is served from it; keep the directory for diagnosis"
    )]
    Digests {
        /// How many digests differ.
        differ: u64,
        /// How many records were replayed.
        count: u64,
    },
}

/// Applies the records of a log, one after the other, to a snapshot's tree.
#[derive(Debug)]
pub struct Replay {
    tree: Tree,
    through: Zxid,
    replayed: Replayed,
    events: Vec<Event>,
    differ: u64,
}

impl Replay {
    /// Nothing yet. Records up to `through` will be applied; what lies above is kept as it is.
    pub fn new(tree: Tree, through: Zxid) -> Self {
        Self {
            tree,
            through,
            replayed: Replayed::default(),
            events: Vec::new(),
            differ: 0,
        }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// When it cannot be what was logged.
    pub fn record(&mut self, zxid: Zxid, record: &[u8]) -> Result<(), DecodeError> {
        if self.through != Zxid(u64::MAX) {
            self.replayed.zxids.push(zxid);
        }
        if zxid > self.through {
            // Whoever applies it later relies on that.
            decode_record(record)?;
            let record = Bytes::copy_from_slice(record);
            self.replayed.suffix.push((zxid, record));
            return Ok(());
        }
        self.replayed.count += 1;
        let (header, txn, digest) = decode_record(record)?;
        self.events.clear();
        // A transaction that failed when it was first applied fails again: that is its outcome.
        let _applied = self.tree.apply(&header, &txn, &mut self.events);
        if !digest.is_none_or(|digest| agrees(&self.tree, digest)) {
            self.differ += 1;
            if self.differ == 1 {
                tracing::error!(%zxid, replayed = self.tree.digest_to_wire(),
                    "tree digest differs from the logged one");
            }
        }
        Ok(())
    }

    /// The tree, and what was found.
    ///
    /// # Errors
    /// When the digests say that the tree is not the one that was.
    pub fn finish(self) -> Result<(Tree, Replayed), ReplayError> {
        match (self.differ, self.replayed.count) {
            (0, _) => Ok((self.tree, self.replayed)),
            (differ, count) => Err(ReplayError::Digests { differ, count }),
        }
    }
}

/// Applies what the log holds after `tree` up to `through`; what lies above is kept as it is.
///
/// # Errors
/// When the log does not reach back to the tree, when a record cannot be what was logged, or when the
/// digests say that the tree is not the one that was.
pub async fn replay<D: Disk>(
    log: &TxnLog<D>,
    tree: &mut Tree,
    through: Zxid,
) -> Result<Replayed, ReplayError> {
    let from = tree.zxid();
    let mut replay = Replay::new(mem::take(tree), through);
    log.replay(from, |zxid, record| replay.record(zxid, record))
        .await?;
    let replayed;
    (*tree, replayed) = replay.finish()?;
    Ok(replayed)
}

/// Whether the digest that a transaction carries is the tree's, as far as it can be compared.
pub(crate) const fn agrees(tree: &Tree, digest: TxnDigest) -> bool {
    digest.version != TxnDigest::VERSION || digest.tree_digest == tree.digest_to_wire()
}
