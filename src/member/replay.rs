//! From a snapshot's tree and the log after it to the tree that the server had.

use std::mem;

use bytes::Bytes;
use ringkeeper_config::LoggedSince;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{DecodeError, TxnDigest, Zxid};
use ringkeeper_storage::{Disk, StorageError, TxnLog};
use ringkeeper_tree::{Events, Tree};

/// What a replay found.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// How many transactions were applied.
    pub count: u64,
    /// All records after the snapshot, applied or not.
    pub logged: LoggedSince,
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
    events: Events,
    differ: u64,
}

impl Replay {
    /// Nothing yet. Records up to `through` will be applied; what lies above is kept as it is.
    pub fn new(tree: Tree, through: Zxid) -> Self {
        Self {
            tree,
            through,
            replayed: Replayed::default(),
            events: Events::new(),
            differ: 0,
        }
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// When it cannot be what was logged.
    pub fn record(&mut self, zxid: Zxid, record: &[u8]) -> Result<(), DecodeError> {
        self.replayed.logged.add(record.len());
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
        let agree = digest.and_then(|digest| agrees(&self.tree, digest));
        if agree == Some(true) {
            self.tree.set_fuzzy(false);
        }
        if agree == Some(false) && !self.tree.is_fuzzy() {
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

/// Whether the digest that a transaction carries is the tree's; `None` if it cannot be compared.
pub(crate) fn agrees(tree: &Tree, digest: TxnDigest) -> Option<bool> {
    let is_known = digest.version == TxnDigest::VERSION;
    is_known.then(|| digest.tree_digest == tree.digest_to_wire())
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::txn::{CreateKind, encode_record};
    use ringkeeper_proto::{Acl, AclList, OpCode, SessionId, Txn, TxnHeader};

    use super::*;

    /// A leader's tree after each of ten creates, and the records of these.
    fn history() -> (Vec<Tree>, Vec<(Zxid, Vec<u8>)>) {
        let mut tree = Tree::new();
        let (mut trees, mut records) = (vec![tree.clone()], Vec::new());
        for number in 1..=10 {
            let header = TxnHeader {
                session: SessionId(1),
                cxid: 0,
                zxid: Zxid(number),
                time_ms: 5,
                op: OpCode::Create,
            };
            let path = format!("/n{number}");
            let txn = Txn::Create {
                path: path.as_str().into(),
                data: Some(b"data"),
                acl: AclList::new(&Acl::open()),
                kind: CreateKind::Plain { ephemeral: false },
                parent_cversion: i32::try_from(number).unwrap(),
            };
            let applied = tree.apply(&header, &txn, &mut Events::new());
            assert!(applied.outcome.is_ok());
            let digest = TxnDigest {
                version: TxnDigest::VERSION,
                tree_digest: tree.digest_to_wire(),
            };
            let mut record = Vec::new();
            encode_record(&header, &txn, Some(&digest), &mut record);
            records.push((Zxid(number), record));
            trees.push(tree.clone());
        }
        (trees, records)
    }

    fn replay_of(
        tree: &Tree,
        records: &[(Zxid, Vec<u8>)],
    ) -> Result<(Tree, Replayed), ReplayError> {
        let mut replay = Replay::new(tree.clone(), Zxid(u64::MAX));
        for (zxid, record) in records.iter().filter(|(zxid, _)| *zxid > tree.zxid()) {
            replay.record(*zxid, record).unwrap();
        }
        replay.finish()
    }

    #[test]
    fn a_fuzzy_tree_becomes_whole_and_is_held_to_it() {
        let (trees, mut records) = history();
        // Written as of 2, while 3, 4 and 5 were applied.
        let mut fuzzy = trees[5].clone();
        fuzzy.set_zxid(Zxid(2));
        let error = replay_of(&fuzzy, &records).unwrap_err();
        assert!(
            matches!(error, ReplayError::Digests { differ: 2, .. }),
            "{error}"
        );
        fuzzy.set_fuzzy(true);
        let (tree, replayed) = replay_of(&fuzzy, &records).unwrap();
        assert_eq!(replayed.count, 8);
        assert_eq!(tree.digest(), trees[10].digest());
        assert!(!tree.is_fuzzy());
        // The log may end before it is whole.
        let (tree, _) = replay_of(&fuzzy, &records[..4]).unwrap();
        assert!(tree.is_fuzzy());
        // What differs later is damage.
        records.remove(7);
        let error = replay_of(&fuzzy, &records).unwrap_err();
        assert!(
            matches!(error, ReplayError::Digests { differ: 2, .. }),
            "{error}"
        );
    }
}
