//! From what storage found to the tree: the newest snapshot that can be read, then the log after it.

use std::time::Instant;

use anyhow::{Context as _, bail};
use ringkeeper_proto::TxnDigest;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_storage::{Disk, Recovered, Store, TxnLog};
use ringkeeper_tree::Tree;

use crate::snapshots;

/// Builds the tree.
///
/// # Errors
/// When there are snapshots and none can be read, when the log does not reach back to the one that
/// can, or when a record cannot be what was logged.
pub(crate) async fn load<D: Disk>(
    store: &Store<D>,
    log: &mut TxnLog<D>,
    recovered: &Recovered,
) -> anyhow::Result<Tree> {
    let started = Instant::now();
    let mut tree = newest_snapshot(store, recovered)?;
    let (from, snapshot_ms) = (tree.zxid(), started.elapsed().as_millis());
    let mut events = Vec::new();
    let mut mismatches = 0_u64;
    let count = log
        .replay(from, |_, record| {
            let (header, txn, digest) = decode_record(record)?;
            events.clear();
            // A transaction that failed when it was first applied fails again: that is its outcome.
            let _applied = tree.apply(&header, &txn, &mut events);
            if let Some(TxnDigest { version: TxnDigest::VERSION, tree_digest }) = digest
                && tree_digest != tree.digest_to_wire()
            {
                mismatches += 1;
                if mismatches == 1 {
                    tracing::error!(zxid = %header.zxid, logged = tree_digest,
                        replayed = tree.digest_to_wire(), "tree digest differs from the logged one");
                }
            }
            Ok::<_, ringkeeper_proto::DecodeError>(())
        })
        .await
        .context("replay the transaction log")?;
    if mismatches > 0 {
        bail!(
            "the tree that the log at {} replays to is not the one that was logged ({mismatches} of \
             {count} digests differ): nothing is served from it; keep the directory for diagnosis",
            store.snapshot_dir().display()
        );
    }
    if tree.zxid() > recovered.last_zxid {
        log.reset(tree.zxid())
            .await
            .context("continue the log after the snapshot")?;
    }
    tracing::info!(zxid = %tree.zxid(), znodes = tree.node_count(), sessions = tree.sessions().len(),
        snapshot_zxid = %from, snapshot_ms, replayed = count,
        total_ms = started.elapsed().as_millis(), "data loaded");
    Ok(tree)
}

fn newest_snapshot<D: Disk>(store: &Store<D>, recovered: &Recovered) -> anyhow::Result<Tree> {
    let mut failure = None;
    for info in &recovered.snapshots {
        match snapshots::load(store.snapshot_dir(), info.zxid) {
            Ok(tree) => return Ok(tree),
            Err(error) => {
                tracing::error!(zxid = %info.zxid, error = format!("{error:#}"),
                    "snapshot cannot be read; trying the one before it");
                failure = Some(error);
            }
        }
    }
    match failure {
        Some(error) => Err(error.context("none of the snapshots can be read")),
        None => Ok(Tree::new()),
    }
}
