//! A tree from what another program has stored of one: sessions, ACLs and znodes, one by one.
//!
//! Invariants:
//! - Znodes come in depth-first order, each behind its parent, as Apache's snapshots have them.
//! - What cannot be in a tree is an error, never a panic.
//! - A tree may lack nothing but ACLs: a snapshot that was written while transactions were applied can
//!   name one that was made after its list of ACLs was written. Such a znode is in nobody's reach until
//!   the transactions that follow say what its ACL is.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringkeeper_proto::{Acl, AclList, Id, Perms, SessionId, Zxid};

use crate::acl_table::AclTable;
use crate::apply::is_quota_limit;
use crate::map::Map;
use crate::node::{Child, Record, needs_extra, node_of};
use crate::quota::{LIMIT_NODE, QUOTA_ROOT, STAT_NODE};
use crate::snapshot::{SnapshotError, Unfinished, order};
use crate::tree::{Session, Tree, len_of, quota_path, size_of};

/// The id of the ACL that allows everything to everybody; it stands in no list
/// (`ReferenceCountedACLCache.OPEN_UNSAFE_ACL_ID`).
const OPEN_ACL: i64 = -1;

/// A znode as it was stored (`DataNode`).
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of zookeeper.jute")]
pub struct StoredNode<'a> {
    /// From the root on; the root's own is "".
    pub path: &'a str,
    pub data: Option<&'a [u8]>,
    /// An id that [`Restore::acl`] has been told of, or -1 for the one that allows everything.
    pub acl: i64,
    pub czxid: i64,
    pub mzxid: i64,
    pub ctime: i64,
    pub mtime: i64,
    pub version: i32,
    /// The children ever created.
    pub cversion: i32,
    pub aversion: i32,
    pub owner: i64,
    pub pzxid: i64,
}

/// Puts a tree together.
#[derive(Debug)]
pub struct Restore {
    sessions: Vec<Session>,
    /// The lists that were told, and their ids in the table once a znode has them.
    lists: BTreeMap<i64, (AclList<'static>, Option<u32>)>,
    acls: AclTable,
    nodes: Unfinished,
    /// The path of the last znode, and how long the paths of its ancestors and its own are.
    path: String,
    lens: Vec<usize>,
    digest: u64,
    data_size: i64,
    quotas: usize,
    owned: Vec<(Arc<str>, i64)>,
    without_acl: Vec<String>,
    newest: i64,
}

/// A tree that was put together.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The tree.
    pub tree: Tree,
    /// The largest zxid that any znode's stat shows. Above the tree's own when the snapshot was written
    /// while transactions were applied.
    pub newest_zxid: Zxid,
    /// Znodes whose ACL was not stored. See [`Restored::still_without_acl`].
    pub without_acl: Vec<String>,
}

impl Restored {
    /// A znode that has not got its ACL from the transactions applied since.
    pub fn still_without_acl(tree: &Tree, without_acl: &[String]) -> Option<String> {
        let unknown = unknown_acl();
        let is_unknown = |path: &&String| {
            let node = tree.get(path);
            node.is_some_and(|node| *tree.acl_of(node).list() == unknown)
        };
        without_acl.iter().find(is_unknown).cloned()
    }
}

impl Restore {
    /// Nothing yet.
    pub fn new() -> Self {
        let open = AclList::new(&Acl::open());
        Self {
            sessions: Vec::new(),
            lists: BTreeMap::from([(OPEN_ACL, (open, None))]),
            acls: AclTable::default(),
            nodes: Unfinished::default(),
            path: String::new(),
            lens: Vec::new(),
            digest: 0,
            data_size: 0,
            quotas: 0,
            owned: Vec::new(),
            without_acl: Vec::new(),
            newest: 0,
        }
    }

    /// Adds a session.
    pub fn session(&mut self, id: SessionId, timeout_ms: i32) {
        self.sessions.push(Session { id, timeout_ms });
    }

    /// Adds an ACL; a later one with the same id takes its place.
    pub fn acl(&mut self, id: i64, list: AclList<'static>) {
        self.lists.insert(id, (list, None));
    }

    /// Adds a znode.
    ///
    /// # Errors
    /// When its parent is not the last znode, nor one of that one's ancestors.
    pub fn node(&mut self, node: &StoredNode<'_>) -> Result<(), SnapshotError> {
        let name = self.enter(node.path)?;
        let acl = self.acl_of(node);
        let record = Record {
            name,
            data: node.data,
            czxid: node.czxid,
            mzxid: node.mzxid,
            pzxid: node.pzxid,
            ctime: node.ctime,
            mtime: node.mtime,
            version: node.version,
            cversion: node.cversion,
            aversion: node.aversion,
            owner: node.owner,
            acl,
        };
        let made = node_of(node.path, &record);
        self.digest = self.digest.wrapping_add(made.header.digest.into());
        // ZK: "/" is an alias of "" in the map that Apache sums up.
        let alias = i64::from(node.path.is_empty());
        self.data_size += alias + size_of(node.path, len_of(node.data));
        self.quotas += usize::from(is_quota_limit(node.path, name));
        if node.owner != 0 {
            self.owned.push((node.path.into(), node.owner));
        }
        let zxids = [node.czxid, node.mzxid, node.pzxid];
        self.newest = zxids.into_iter().fold(self.newest, i64::max);
        self.nodes.push(Child::new(made));
        Ok(())
    }

    /// The tree as of `zxid`, with the usage of its quotas counted anew (`DataTree.setupQuota`).
    ///
    /// # Errors
    /// When there is no root, or a znode stands twice.
    pub fn finish(mut self, zxid: Zxid) -> Result<Restored, SnapshotError> {
        let root = self.nodes.finish()?;
        let root = root.ok_or(SnapshotError::Order("the root is missing"))?;
        // Of a session that stands twice the later one counts, as in a map.
        self.sessions.reverse();
        self.sessions.sort_by(order);
        self.sessions.dedup_by_key(|session| session.id);
        let mut tree = Tree {
            root,
            zxid,
            digest: self.digest,
            fuzzy: false,
            data_size: self.data_size,
            ephemerals: 0,
            quotas: self.quotas,
            sessions: Map::from_sorted(self.sessions),
            owners: Map::new(),
            containers: Map::new(),
            ttls: Map::new(),
            acls: self.acls,
        };
        for (path, owner) in &self.owned {
            tree.enlist(path, *owner);
        }
        recount_quotas(&mut tree);
        Ok(Restored {
            tree,
            newest_zxid: Zxid::from_wire(self.newest),
            without_acl: self.without_acl,
        })
    }

    /// Goes to the znode at `path` and returns its name.
    fn enter<'p>(&mut self, path: &'p str) -> Result<&'p str, SnapshotError> {
        const MISSING: SnapshotError = SnapshotError::Order("a znode's parent is missing");
        let Some((parent, name)) = path.rsplit_once('/') else {
            if !path.is_empty() {
                return Err(SnapshotError::Order("a path does not start at the root"));
            }
            self.nodes.close_to(0)?;
            self.lens.push(0);
            return Ok(path);
        };
        if name.is_empty() {
            return Err(SnapshotError::Order("a path has a part without a name"));
        }
        while self.lens.last().is_some_and(|len| *len > parent.len()) {
            self.lens.pop();
        }
        let is_open = self.lens.last() == Some(&parent.len()) && self.path.starts_with(parent);
        if !is_open {
            return Err(MISSING);
        }
        self.nodes.close_to(self.lens.len())?;
        let parent_node = self.nodes.last_mut().ok_or(MISSING)?;
        needs_extra(parent_node, parent);
        self.path.truncate(parent.len());
        self.path.push('/');
        self.path.push_str(name);
        self.lens.push(path.len());
        Ok(name)
    }

    fn acl_of(&mut self, node: &StoredNode<'_>) -> u32 {
        match self.lists.get_mut(&node.acl) {
            Some((_, Some(id))) => {
                let id = *id;
                if self.acls.add_uses(id, 1) {
                    return id;
                }
                self.acls.intern(&unknown_acl())
            }
            Some((list, known)) => {
                let id = self.acls.intern(list);
                *known = Some(id);
                id
            }
            None => {
                self.without_acl.push(node.path.to_owned());
                self.acls.intern(&unknown_acl())
            }
        }
    }
}

impl Default for Restore {
    fn default() -> Self {
        Self::new()
    }
}

/// What stands for an ACL that was not stored: nobody is allowed anything, and no client can make it.
fn unknown_acl() -> AclList<'static> {
    AclList::new(&[Acl {
        perms: Perms(0),
        id: Id::new("", ""),
    }])
}

fn recount_quotas(tree: &mut Tree) {
    for prefix in quota_prefixes(tree) {
        if tree.find(&quota_path(&prefix, STAT_NODE)).is_some() {
            tree.recount_quota(&prefix);
        }
    }
}

fn quota_prefixes(tree: &Tree) -> Vec<String> {
    let mut prefixes = Vec::new();
    let Some(root) = tree.get(QUOTA_ROOT).filter(|_| tree.quotas > 0) else {
        return prefixes;
    };
    let mut path = String::new();
    let mut open = vec![root.children()];
    while let Some(children) = open.last_mut() {
        let Some(child) = children.next() else {
            open.pop();
            path.truncate(path.rfind('/').unwrap_or(0));
            continue;
        };
        if child.name() == LIMIT_NODE {
            prefixes.push(path.clone());
        }
        path.push('/');
        path.push_str(child.name());
        open.push(child.children());
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::{OpCode, Txn, TxnHeader};

    use super::*;
    use crate::Events;

    fn stored<'a>(path: &'a str, data: &'a [u8], acl: i64) -> StoredNode<'a> {
        StoredNode {
            path,
            data: Some(data),
            acl,
            czxid: 3,
            mzxid: 4,
            ctime: 5,
            mtime: 6,
            version: 1,
            cversion: 2,
            aversion: 0,
            owner: 0,
            pzxid: 7,
        }
    }

    fn restore(paths: &[&str]) -> Result<Restored, SnapshotError> {
        let mut restore = Restore::new();
        for path in paths {
            restore.node(&stored(path, b"x", -1))?;
        }
        restore.finish(Zxid(9))
    }

    #[test]
    fn depth_first_order_is_kept_to() {
        let restored = restore(&["", "/b", "/b/c", "/b/c/d", "/b/e", "/a", "/a/b"]).unwrap();
        let tree = restored.tree;
        assert_eq!(tree.root().all_children_number(), 6);
        assert_eq!(tree.get("/b/c/d").unwrap().data(), Some(&b"x"[..]));
        assert_eq!(tree.get("/a").unwrap().num_children(), 1);
        assert_eq!(
            (tree.zxid(), restored.newest_zxid, tree.acl_count()),
            (Zxid(9), Zxid(7), 1)
        );
        for bad in [
            &["/a"][..],
            &["", ""],
            &["", "a"],
            &["", "/"],
            &["", "/a/b"],
            &["", "/a", "/b", "/a/c"],
            &["", "/a", "/a"],
            &["", "/a", "/ab", "/a/b"],
            &["", "//"],
            &[],
        ] {
            assert!(restore(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_was_stored_of_a_tree_makes_an_equal_one() {
        let mut tree = Tree::new();
        let header = |zxid, op| TxnHeader {
            session: SessionId(7),
            cxid: 0,
            zxid: Zxid(zxid),
            time_ms: 5,
            op,
        };
        for (at, path) in ["/a", "/a/b", "/c"].into_iter().enumerate() {
            let txn = Txn::Create {
                path: path.into(),
                data: Some(b"data"),
                acl: AclList::new(&Acl::open()),
                kind: ringkeeper_proto::txn::CreateKind::Plain { ephemeral: at == 2 },
                parent_cversion: -1,
            };
            let header = header(at as u64 + 1, OpCode::Create);
            let _applied = tree.apply(&header, &txn, &mut Events::new());
        }
        let mut restore = Restore::new();
        for (id, acl) in tree.acls() {
            restore.acl(id.into(), acl.list().clone());
        }
        let mut stack = vec![(String::new(), tree.root())];
        while let Some((path, node)) = stack.pop() {
            let stat = node.stat();
            let stored = StoredNode {
                path: &path,
                data: node.data(),
                acl: node.acl_id().into(),
                czxid: stat.czxid,
                mzxid: stat.mzxid,
                ctime: stat.ctime,
                mtime: stat.mtime,
                version: stat.version,
                cversion: node.cversion_raw(),
                aversion: stat.aversion,
                owner: node.ephemeral_owner_raw(),
                pzxid: stat.pzxid,
            };
            restore.node(&stored).unwrap();
            for child in node.children() {
                stack.push((format!("{path}/{}", child.name()), child));
            }
        }
        let restored = restore.finish(tree.zxid()).unwrap().tree;
        assert_eq!(restored.digest(), tree.digest());
        assert_eq!(
            restored.approximate_data_size(),
            tree.approximate_data_size()
        );
        assert_eq!(restored.ephemerals_count(), 1);
        assert_eq!(restored.acl_count(), tree.acl_count());
    }

    #[test]
    fn a_missing_acl_is_open_to_nobody_until_a_transaction_sets_it() {
        let mut restore = Restore::new();
        restore.node(&stored("", b"", -1)).unwrap();
        restore.node(&stored("/late", b"", 77)).unwrap();
        let Restored {
            mut tree,
            without_acl,
            ..
        } = restore.finish(Zxid(2)).unwrap();
        assert_eq!(without_acl, ["/late"]);
        let late = tree.get("/late").unwrap();
        assert_eq!(tree.acl_of(late).anyone(), Perms(0));
        assert!(!tree.acl_of(late).is_empty());
        let missing = Restored::still_without_acl(&tree, &without_acl);
        assert_eq!(missing.as_deref(), Some("/late"));
        let txn = Txn::Create {
            path: "/late".into(),
            data: Some(b""),
            acl: AclList::new(&Acl::open()),
            kind: ringkeeper_proto::txn::CreateKind::Plain { ephemeral: false },
            parent_cversion: 1,
        };
        let header = TxnHeader {
            session: SessionId(7),
            cxid: 0,
            zxid: Zxid(3),
            time_ms: 5,
            op: OpCode::Create,
        };
        let _exists = tree.apply(&header, &txn, &mut Events::new());
        assert_eq!(Restored::still_without_acl(&tree, &without_acl), None);
    }

    #[test]
    fn quotas_are_counted_anew() {
        let restored = restore(&[
            "",
            "/q",
            "/q/a",
            "/zookeeper",
            "/zookeeper/quota",
            "/zookeeper/quota/q",
            "/zookeeper/quota/q/zookeeper_limits",
            "/zookeeper/quota/q/zookeeper_stats",
        ]);
        let tree = restored.unwrap().tree;
        let stats = tree.get("/zookeeper/quota/q/zookeeper_stats").unwrap();
        assert_eq!(stats.data(), Some(&b"count=2,bytes=2"[..]));
        assert_eq!(tree.quota_prefix("/q/a/b"), Some("/q"));
    }
}
