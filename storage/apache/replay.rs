//! Applying a log to a snapshot, and comparing digests where they mean something.

use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{DecodeError, TxnDigest, Zxid};
use ringkeeper_tree::restore::Restored;
use ringkeeper_tree::{Events, Tree};

use crate::snapshot::{Snapshot, SnapshotDigest};

/// A tree to which a log is applied.
#[derive(Debug)]
pub struct Replay {
    /// The tree.
    pub tree: Tree,
    /// The snapshot it began with.
    pub from: Option<Zxid>,
    /// Up to here the tree can show effects of later transactions, so its digest means nothing.
    pub fuzzy_through: Zxid,
    /// Transactions applied.
    pub applied: u64,
    /// Logged digests compared.
    pub compared: u64,
    /// Transactions after which the digest is not the one that was logged. Where the tree ceases to be fuzzy, one counts
    /// only when the next does not match either.
    pub mismatches: u64,
    /// The first of them.
    pub first_mismatch: Option<Zxid>,
    /// Whether the last digest that was compared was the tree's.
    pub last_matches: Option<bool>,
    /// Whether the tree had the snapshot's digest where the snapshot says.
    pub snapshot_matches: Option<bool>,
    /// The mismatch that the next transaction decides about.
    doubtful: Option<Zxid>,
    digest: Option<SnapshotDigest>,
    without_acl: Vec<String>,
}

impl Replay {
    /// A replay from the first transaction on.
    pub fn from_nothing() -> Self {
        Self::new(Tree::new(), None)
    }

    /// A replay onto `snapshot`.
    pub fn from_snapshot(snapshot: Snapshot) -> Self {
        let snapshot_matches = snapshot.digest_matches();
        let zxid = snapshot.tree.zxid();
        Self {
            fuzzy_through: snapshot.fuzzy_through,
            snapshot_matches,
            last_matches: snapshot_matches,
            digest: snapshot.digest,
            without_acl: snapshot.without_acl,
            ..Self::new(snapshot.tree, Some(zxid))
        }
    }

    fn new(tree: Tree, from: Option<Zxid>) -> Self {
        Self {
            tree,
            from,
            fuzzy_through: Zxid::ZERO,
            applied: 0,
            compared: 0,
            mismatches: 0,
            first_mismatch: None,
            last_matches: None,
            snapshot_matches: None,
            doubtful: None,
            digest: None,
            without_acl: Vec::new(),
        }
    }

    /// Applies a record, unless the tree has it already. Records come in the order of their zxids.
    ///
    /// # Errors
    /// When it is no transaction that is known.
    pub fn apply(&mut self, zxid: Zxid, record: &[u8]) -> Result<(), DecodeError> {
        if zxid <= self.tree.zxid() {
            return Ok(());
        }
        let (header, txn, logged) = decode_record(record)?;
        // What failed when it was first applied fails again, and in the fuzzy part what is there already
        // fails too: either way the tree is as it should be.
        let _outcome = self.tree.apply(&header, &txn, &mut Events::new());
        self.applied += 1;
        if zxid < self.fuzzy_through {
            return Ok(());
        }
        if let Some(snapshot) = self.digest.filter(|digest| digest.zxid == zxid)
            && snapshot.version == TxnDigest::VERSION
        {
            self.snapshot_matches = Some(snapshot.digest == self.tree.digest_to_wire());
        }
        if let Some(logged) = logged.filter(|logged| logged.version == TxnDigest::VERSION) {
            let is_equal = logged.tree_digest == self.tree.digest_to_wire();
            self.compared += 1;
            self.last_matches = Some(is_equal);
            match self.doubtful.take() {
                Some(_) if is_equal => {
                    self.snapshot_matches = self.snapshot_matches.map(|_| true);
                }
                Some(doubtful) => self.count_mismatch(doubtful),
                None => {}
            }
            if !is_equal && zxid == self.fuzzy_through {
                // ZK: DataTree takes a snapshot's digest last, and it is that of the transaction before the one that is
                // being applied, which can show in the znodes: a delete without a trace.
                self.doubtful = Some(zxid);
            } else if !is_equal {
                self.count_mismatch(zxid);
            }
        }
        Ok(())
    }

    fn count_mismatch(&mut self, zxid: Zxid) {
        self.mismatches += 1;
        self.first_mismatch.get_or_insert(zxid);
    }

    /// Whether the tree is one that once was: nothing of later transactions shows in it.
    pub fn is_settled(&self) -> bool {
        self.tree.zxid() >= self.fuzzy_through
    }

    /// A znode whose ACL neither the snapshot nor the log has told.
    pub fn without_acl(&self) -> Option<String> {
        Restored::still_without_acl(&self.tree, &self.without_acl)
    }
}
