//! From a snapshot's tree and the log after it to the tree that the server had.

use bytes::Bytes;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{DecodeError, TxnDigest, Zxid};
use ringkeeper_storage::{Disk, StorageError, TxnLog};
use ringkeeper_tree::Tree;

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
    let mut replayed = Replayed::default();
    let (mut events, mut differ) = (Vec::new(), 0);
    let keep_zxids = through != Zxid(u64::MAX);
    let read = log
        .replay(tree.zxid(), |zxid, record| {
            if keep_zxids {
                replayed.zxids.push(zxid);
            }
            if zxid > through {
                replayed.suffix.push((zxid, Bytes::copy_from_slice(record)));
                return Ok(());
            }
            replayed.count += 1;
            let (header, txn, digest) = decode_record(record)?;
            events.clear();
            // A transaction that failed when it was first applied fails again: that is its outcome.
            let _applied = tree.apply(&header, &txn, &mut events);
            if !digest.is_none_or(|digest| agrees(tree, digest)) {
                differ += 1;
                if differ == 1 {
                    tracing::error!(%zxid, replayed = tree.digest_to_wire(),
                        "tree digest differs from the logged one");
                }
            }
            Ok::<_, DecodeError>(())
        })
        .await;
    read?;
    match (differ, replayed.count) {
        (0, _) => Ok(replayed),
        (differ, count) => Err(ReplayError::Digests { differ, count }),
    }
}

/// Whether the digest that a transaction carries is the tree's, as far as it can be compared.
pub(crate) const fn agrees(tree: &Tree, digest: TxnDigest) -> bool {
    digest.version != TxnDigest::VERSION || digest.tree_digest == tree.digest_to_wire()
}
