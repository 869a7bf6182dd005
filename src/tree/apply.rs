//! Applies transactions to a tree (`DataTree.processTxn`).
//!
//! Invariants:
//! - Applying is idempotent where a fuzzy snapshot needs it: a transaction whose effect (or a later
//!   one's) is already there leaves the tree as the whole sequence would.
//! - A transaction that fails here changes at most what Apache changes too: the ACL of a znode that
//!   exists already, `cversion` and `pzxid` of a parent.
//! - Events are in Apache's order; nothing that failed has any.

use ringkeeper_proto::reply::{EventType, WriteReply};
use ringkeeper_proto::txn::CreateKind;
use ringkeeper_proto::{AclList, OpCode, SessionId, Stat, Txn, TxnHeader, ZkError, Zxid};

use crate::events::Events;
use crate::map::Key;
use crate::node::{
    CONTAINER_OWNER, Child, Inner, Node, NodeArc, NodeFields, NodeKind, Record, node_mut, node_of,
    set_data,
};
use crate::path;
use crate::quota::{LIMIT_NODE, QUOTA_ROOT, STAT_NODE, StatsTrack};
use crate::tree::{Session, Tree, len_of, quota_path, session_key, size_of};

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Applied {
    /// What its reply shows, or the code of its error. A failed multi is not an error but a
    /// [`WriteReply::Multi`] of errors.
    pub outcome: Result<WriteReply, i32>,
}

impl Tree {
    /// Applies a transaction and adds its events. The tree's zxid is the transaction's afterwards,
    /// unless it was larger already.
    pub fn apply(&mut self, header: &TxnHeader, txn: &Txn<'_>, events: &mut Events) -> Applied {
        let outcome = match txn {
            Txn::Multi(parts) => self.apply_multi(header, parts, events),
            single => self.apply_part(header, header.op, single, events),
        };
        self.zxid = self.zxid.max(header.zxid);
        Applied { outcome }
    }

    /// Puts the text of the ensemble's configuration into its znode, without a transaction: each server does so
    /// by itself (`ZKDatabase.initConfigInZKDatabase`). `version` is the zxid that established it.
    pub fn set_config(&mut self, text: &str, version: Zxid, time_ms: i64) {
        if self.find(path::CONFIG).is_none() {
            self.put_config_node();
        }
        let mut step = Step {
            tree: self,
            zxid: version,
            time_ms,
            events: &mut Events::new(),
        };
        let set = step.set_data(path::CONFIG, Some(text.as_bytes()), -1);
        set.expect("it is there");
    }

    /// The text in the znode of the ensemble's configuration, if there is one.
    pub fn config(&self) -> Option<&str> {
        let data = self.get(path::CONFIG)?.data()?;
        std::str::from_utf8(data)
            .ok()
            .filter(|text| !text.is_empty())
    }

    /// Applies one operation, alone or within a multi, without moving the tree's zxid. `op` is its
    /// type; `header` is the whole transaction's.
    ///
    /// # Errors
    /// The code of what is wrong, or the one that an error transaction carries.
    pub fn apply_part(
        &mut self,
        header: &TxnHeader,
        op: OpCode,
        txn: &Txn<'_>,
        events: &mut Events,
    ) -> Result<WriteReply, i32> {
        let mut step = Step {
            tree: self,
            zxid: header.zxid,
            time_ms: header.time_ms,
            events,
        };
        match txn {
            Txn::Create {
                path,
                data,
                acl,
                kind,
                parent_cversion,
            } => {
                let new = New {
                    path,
                    data: *data,
                    acl,
                    owner: owner_of(*kind, header.session),
                    parent_cversion: *parent_cversion,
                };
                let stat = step.create(&new).map_err(ZkError::code)?;
                Ok(match op {
                    OpCode::Create => WriteReply::Path(path.clone().into_owned()),
                    _ => WriteReply::PathStat(path.clone().into_owned(), stat),
                })
            }
            Txn::Delete { path } => {
                step.delete(path).map_err(ZkError::code)?;
                Ok(WriteReply::Empty)
            }
            Txn::SetData {
                path,
                data,
                version,
            } => {
                let stat = step
                    .set_data(path, *data, *version)
                    .map_err(ZkError::code)?;
                Ok(match op {
                    OpCode::Reconfig => {
                        WriteReply::DataStat(data.unwrap_or_default().to_vec(), stat)
                    }
                    _ => WriteReply::Stat(stat),
                })
            }
            Txn::SetAcl { path, acl, version } => {
                let stat = step.set_acl(path, acl, *version);
                stat.map(WriteReply::Stat).map_err(ZkError::code)
            }
            Txn::Check { .. } => Ok(WriteReply::Empty),
            Txn::CreateSession { timeout_ms } => {
                let (id, timeout_ms) = (header.session, *timeout_ms);
                step.tree.sessions.insert(Session { id, timeout_ms });
                Ok(WriteReply::Empty)
            }
            Txn::CloseSession { paths } => {
                let paths = paths.as_deref().unwrap_or(&[]);
                step.close_session(header.session, paths.iter().map(AsRef::as_ref));
                Ok(WriteReply::Empty)
            }
            Txn::Error { code } => Err(*code),
            // ZK: a multi within a multi is not a valid type of op.
            Txn::Multi(_) => Err(ZkError::MarshallingError.code()),
        }
    }

    fn apply_multi(
        &mut self,
        header: &TxnHeader,
        parts: &[(OpCode, Txn<'_>)],
        events: &mut Events,
    ) -> Result<WriteReply, i32> {
        let failed = parts
            .iter()
            .any(|(_, part)| matches!(part, Txn::Error { .. }));
        let mut results = Vec::with_capacity(parts.len());
        let mut after_failure = false;
        for (op, part) in parts {
            let result = match part {
                Txn::Error { code } => {
                    after_failure = true;
                    Err(*code)
                }
                _ if failed && after_failure => Err(ZkError::RuntimeInconsistency.code()),
                _ if failed => Err(0),
                part => self.apply_part(header, *op, part, events),
            };
            // ZK: FinalRequestProcessor closes the connection of a session that has moved.
            if result == Err(ZkError::SessionMoved.code()) {
                return Err(ZkError::SessionMoved.code());
            }
            let shown = match (op, &result) {
                (_, Err(_)) => OpCode::Error,
                (OpCode::CreateTtl | OpCode::CreateContainer, _) => OpCode::Create2,
                (OpCode::DeleteContainer, _) => OpCode::Delete,
                (op, _) => *op,
            };
            results.push((shown, result));
        }
        Ok(WriteReply::Multi(results))
    }
}

/// A transaction being applied.
struct Step<'t> {
    tree: &'t mut Tree,
    zxid: Zxid,
    time_ms: i64,
    events: &'t mut Events,
}

/// A znode to be created.
struct New<'a> {
    path: &'a str,
    data: Option<&'a [u8]>,
    acl: &'a AclList<'a>,
    owner: i64,
    parent_cversion: i32,
}

impl Step<'_> {
    fn create(&mut self, new: &New<'_>) -> Result<Stat, ZkError> {
        let (parent_path, name) = split(new.path)?;
        let parent = self.tree.find(parent_path).ok_or(ZkError::NoNode)?;
        let parent_acl = parent.header.acl;
        let acl = self.tree.acls.intern(new.acl);
        let node = node_of(new.path, &self.record(new, name, acl));
        let stat = Node::new(&node).stat();
        let bytes = len_of(new.data);
        if !self.insert(parent_path, node, new.parent_cversion, bytes) {
            self.create_again(new, acl, parent_path);
            return Err(ZkError::NodeExists);
        }
        self.tree.data_size += size_of(new.path, bytes);
        self.tree.enlist(new.path, new.owner);
        self.count_new_quota(parent_path, name);
        self.count_in_quota(new.path, bytes, 1);
        self.fire(EventType::Created, new.path, acl);
        self.fire_children_changed(parent_acl);
        Ok(stat)
    }

    /// A create of a znode that exists: the effect of a later transaction was in the snapshot already.
    fn create_again(&mut self, new: &New<'_>, acl: u32, parent_path: &str) {
        // ZK: DataTree.createNode (3.9.4 on) takes the ACL over, since the znode that exists may be one
        // that a later delete and create have made.
        let node = node_mut(self.tree.find_mut(new.path, 0, 0));
        let before = std::mem::replace(&mut node.header.acl, acl);
        self.tree.acls.release(before);
        let zxid = self.zxid;
        self.tree.change(parent_path, |parent| {
            raise_cversion(parent, parent_path, new.parent_cversion, zxid);
        });
    }

    fn record<'n>(&self, new: &'n New<'_>, name: &'n str, acl: u32) -> Record<'n> {
        let zxid = self.zxid.to_wire();
        Record {
            name,
            data: new.data,
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: self.time_ms,
            mtime: self.time_ms,
            version: 0,
            cversion: 0,
            aversion: 0,
            owner: new.owner,
            acl,
        }
    }

    /// Puts `node` below its parent, which is there. False, and nothing has changed, if there is a znode in its place.
    fn insert(&mut self, parent_path: &str, node: NodeArc, cversion: i32, bytes: i64) -> bool {
        let digest = node.header.digest;
        let parent = node_mut(self.tree.find_mut(parent_path, 1, bytes));
        let before = parent.header.digest;
        let extra = parent.extra_mut(parent_path);
        if extra.children.insert_new(Child::new(node)).is_err() {
            self.tree.count_above(parent_path, -1, -bytes);
            return false;
        }
        extra.count(1, bytes);
        raise_cversion(parent, parent_path, cversion, self.zxid);
        parent.header.digest = parent.digest_at(parent_path);
        let after = parent.header.digest;
        self.tree.replace_digest(before, after);
        self.tree.replace_digest(0, digest);
        true
    }

    fn delete(&mut self, path: &str) -> Result<(), ZkError> {
        let (parent_path, name) = split(path)?;
        let parent = self.tree.find(parent_path).ok_or(ZkError::NoNode)?;
        let parent_acl = parent.header.acl;
        let Some(node) = parent.child(name).cloned() else {
            // ZK: the child may be gone from a fuzzy snapshot whose parent does not know it yet.
            let zxid = self.zxid.to_wire();
            if zxid > parent.pzxid() {
                self.tree.change(parent_path, |parent| {
                    parent.extra_mut(parent_path).pzxid = zxid;
                });
            }
            return Err(ZkError::NoNode);
        };
        // Before the last use of the ACL may end.
        self.fire(EventType::Deleted, path, node.header.acl);
        self.fire_children_changed(parent_acl);
        self.remove(parent_path, &node);
        let bytes = len_of(node.data());
        self.forget(path, &node);
        self.count_in_quota(path, -bytes, -1);
        Ok(())
    }

    fn remove(&mut self, parent_path: &str, node: &NodeArc) {
        let shown = Node::new(node);
        let nodes = -1 - i64::try_from(shown.all_children_number()).unwrap_or(0);
        let bytes = -i64::try_from(shown.subtree_bytes()).unwrap_or(0);
        let zxid = self.zxid.to_wire();
        let parent = node_mut(self.tree.find_mut(parent_path, nodes, bytes));
        let before = parent.header.digest;
        let extra = parent.extra_mut(parent_path);
        extra.count(nodes, bytes);
        extra.pzxid = extra.pzxid.max(zxid);
        extra.children.remove(&Key::named(node.name()));
        parent.header.digest = parent.digest_at(parent_path);
        let after = parent.header.digest;
        self.tree.replace_digest(before, after);
    }

    /// Takes what is gone out of everything that is counted: the znode and, after a delete that replays
    /// over a fuzzy snapshot, what was below it.
    fn forget(&mut self, path: &str, node: &NodeArc) {
        let mut path = path.to_owned();
        // Characters of the path, counted once for each znode on it: paths can be long.
        let mut size = size_of(&path, 0);
        self.forget_one(&path, size, node);
        let mut open = vec![node.children()];
        while let Some(children) = open.last_mut() {
            if let Some(child) = children.next() {
                let name = child.node.name();
                path.push('/');
                path.push_str(name);
                size += size_of(name, 1);
                self.forget_one(&path, size, &child.node);
                open.push(child.node.children());
            } else {
                open.pop();
                let at = path.rfind('/').unwrap_or(0);
                size -= size_of(&path[at..], 0);
                path.truncate(at);
            }
        }
    }

    fn forget_one(&mut self, path: &str, path_size: i64, node: &NodeArc) {
        let tree = &mut *self.tree;
        tree.replace_digest(node.header.digest, 0);
        tree.acls.release(node.header.acl);
        tree.data_size -= path_size + len_of(node.data());
        tree.quotas -= usize::from(is_quota_limit(path, node.name()));
        if node.header.owner != 0 {
            tree.strike(path, node.header.owner);
        }
    }

    fn set_data(&mut self, path: &str, data: Option<&[u8]>, version: i32) -> Result<Stat, ZkError> {
        let node = self.tree.get_mut(path).ok_or(ZkError::NoNode)?;
        let acl = node.header.acl;
        let grown = len_of(data) - len_of(node.data());
        let node = set_data(node, path, data);
        let before = node.header.digest;
        node.header.mzxid = self.zxid.to_wire();
        node.header.mtime = self.time_ms;
        node.header.version = version;
        node.header.digest = node.digest_at(path);
        let after = node.header.digest;
        let stat = Node::new(node).stat();
        self.tree.replace_digest(before, after);
        self.tree.count_above(path, 0, grown);
        self.tree.data_size += grown;
        self.count_in_quota(path, grown, 0);
        self.fire(EventType::DataChanged, path, acl);
        Ok(stat)
    }

    fn set_acl(&mut self, path: &str, acl: &AclList<'_>, version: i32) -> Result<Stat, ZkError> {
        self.tree.find(path).ok_or(ZkError::NoNode)?;
        let acl = self.tree.acls.intern(acl);
        let mut before = acl;
        self.tree.change(path, |node| {
            before = std::mem::replace(&mut node.header.acl, acl);
            node.extra_mut(path).aversion = version;
        });
        self.tree.acls.release(before);
        self.stat(path)
    }

    fn stat(&self, path: &str) -> Result<Stat, ZkError> {
        Ok(self.tree.get(path).ok_or(ZkError::NoNode)?.stat())
    }

    /// Deletes the ephemerals that the transaction lists, then those it does not know of (its maker had
    /// `closeSessionTxn.enabled=false`, or was older).
    fn close_session<'p>(&mut self, session: SessionId, listed: impl Iterator<Item = &'p str>) {
        for path in listed {
            // ZK: DataTree.deleteNodes passes over what is missing.
            let _missing = self.delete(path);
        }
        let key = session_key(session);
        if let Some(owner) = self.tree.owners.get(&key) {
            for entry in owner.paths.clone().iter() {
                let _missing = self.delete(&entry.path);
            }
        }
        self.tree.sessions.remove(&key);
    }

    /// After a create below `/zookeeper/quota`: a quota may have come into force, or its statistics may
    /// have to be filled in.
    fn count_new_quota(&mut self, parent_path: &str, name: &str) {
        let Some(prefix) = parent_path.strip_prefix(QUOTA_ROOT) else {
            return;
        };
        if name == LIMIT_NODE {
            self.tree.quotas += 1;
        }
        if name == STAT_NODE {
            self.tree.recount_quota(prefix);
        }
    }

    /// Counts a change at `path` in the statistics of its quota, if it has one
    /// (`DataTree.updateQuotaStat`).
    fn count_in_quota(&mut self, path: &str, bytes: i64, nodes: i64) {
        let Some(prefix) = self.tree.quota_prefix(path) else {
            return;
        };
        let stat_path = quota_path(prefix, STAT_NODE);
        let Some(node) = self.tree.get(&stat_path) else {
            return;
        };
        // Apache fails on statistics that a client has overwritten with something else; here they
        // stay as they are.
        let Some(mut track) = StatsTrack::parse(node.data().unwrap_or(&[])) else {
            return;
        };
        track.set_count(track.count().wrapping_add(nodes));
        track.set_bytes(track.bytes().wrapping_add(bytes));
        let data = track.to_bytes();
        self.tree.put_data(&stat_path, &data);
    }

    fn fire(&mut self, kind: EventType, path: &str, acl: u32) {
        let acl = self.tree.acl_handle(acl);
        self.events.push(kind, path, acl, self.zxid);
    }

    /// Follows the event of a child that was created or deleted.
    fn fire_children_changed(&mut self, parent_acl: u32) {
        let acl = self.tree.acl_handle(parent_acl);
        self.events.push_children_changed(acl, self.zxid);
    }
}

/// The parent's path and the name. The root cannot be created or deleted, nor can anything without a
/// name.
fn split(path: &str) -> Result<(&str, &str), ZkError> {
    match path::split(path) {
        Some((parent, name)) if !name.is_empty() => Ok((parent, name)),
        _ => Err(ZkError::BadArguments),
    }
}

/// Whether the znode at `path`, called `name`, puts a quota in force.
pub(crate) fn is_quota_limit(path: &str, name: &str) -> bool {
    name == LIMIT_NODE && path.starts_with(QUOTA_ROOT)
}

const fn owner_of(kind: CreateKind, session: SessionId) -> i64 {
    match kind {
        CreateKind::Plain { ephemeral: true } => session.0,
        CreateKind::Plain { ephemeral: false } => 0,
        CreateKind::Container => CONTAINER_OWNER,
        CreateKind::Ttl(ttl_ms) => NodeKind::ttl_owner(ttl_ms),
    }
}

/// Counts a create in its parent, unless the parent has a later one counted already. -1 stands for one
/// more than there are.
fn raise_cversion(parent: &mut Inner, path: &str, cversion: i32, zxid: Zxid) {
    let known = parent.cversion();
    let cversion = match cversion {
        -1 => known.wrapping_add(1),
        cversion => cversion,
    };
    if cversion > known {
        let extra = parent.extra_mut(path);
        extra.cversion = cversion;
        extra.pzxid = zxid.to_wire();
    }
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::Acl;

    use super::*;
    use crate::map::copied;

    fn header(zxid: u64, op: OpCode) -> TxnHeader {
        TxnHeader {
            session: SessionId(7),
            cxid: 0,
            zxid: Zxid(zxid),
            time_ms: 5,
            op,
        }
    }

    fn create(tree: &mut Tree, path: &str, data: &[u8]) -> Events {
        let txn = Txn::Create {
            path: path.into(),
            data: Some(data),
            acl: AclList::new(&Acl::open()),
            kind: CreateKind::Plain { ephemeral: false },
            parent_cversion: -1,
        };
        let mut events = Events::new();
        let header = header(tree.zxid().0 + 1, OpCode::Create);
        let applied = tree.apply(&header, &txn, &mut events);
        assert_eq!(applied.outcome, Ok(WriteReply::Path(path.to_owned())));
        events
    }

    fn set(tree: &mut Tree, path: &str, data: &[u8]) -> Events {
        let txn = Txn::SetData {
            path: path.into(),
            data: Some(data),
            version: 1,
        };
        let mut events = Events::new();
        let header = header(tree.zxid().0 + 1, OpCode::SetData);
        assert!(tree.apply(&header, &txn, &mut events).outcome.is_ok());
        events
    }

    fn delete(tree: &mut Tree, path: &str) -> (Events, Applied) {
        let mut events = Events::new();
        let header = header(tree.zxid().0 + 1, OpCode::Delete);
        let applied = tree.apply(&header, &Txn::Delete { path: path.into() }, &mut events);
        (events, applied)
    }

    #[test]
    fn the_first_write_after_a_clone_copies_one_path_and_later_ones_only_what_is_shared() {
        let mut tree = Tree::new();
        create(&mut tree, "/a", b"");
        for i in 0..50_000 {
            create(&mut tree, &format!("/a/{}", i * 7919 % 50_000), b"x");
        }
        let old = tree.clone();
        copied::take();
        set(&mut tree, "/a/12345", b"y");
        let (leaves, inners, nodes) = copied::take();
        // "/", "/a" and the znode; one leaf below each of the first two, the blocks above the second.
        assert_eq!((leaves, nodes), (2, 3));
        assert!((1..=7).contains(&inners), "{inners} inner blocks copied");
        set(&mut tree, "/a/12345", b"a longer text");
        assert_eq!(copied::take(), (0, 0, 0));
        create(&mut tree, "/a/12345/b", b"");
        // Only the table of ACLs is still shared.
        assert_eq!(copied::take(), (1, 0, 0));
        let _deleted = delete(&mut tree, "/a/12345/b");
        assert_eq!(copied::take(), (0, 0, 0));
        assert_eq!(old.get("/a/12345").and_then(Node::data), Some(&b"x"[..]));
    }

    #[test]
    fn long_data_is_shared_and_not_copied_with_its_znode() {
        let mut tree = Tree::new();
        let long = vec![b'x'; 100_000];
        create(&mut tree, "/a", &long);
        let old = tree.clone();
        create(&mut tree, "/a/b", b"");
        let data = |tree: &Tree| tree.get("/a").and_then(Node::data).map(<[u8]>::as_ptr);
        assert_eq!(data(&old), data(&tree));
        set(&mut tree, "/a", b"short");
        assert_eq!(tree.get("/a").and_then(Node::data), Some(&b"short"[..]));
        assert_eq!(old.get("/a").and_then(Node::data), Some(&long[..]));
    }

    #[test]
    fn a_deep_path_is_written_read_deleted_and_dropped_on_a_small_stack() {
        // One frame of two bytes for each part would be too much.
        let stack = std::thread::Builder::new().stack_size(96 << 10);
        let thread = stack.spawn(|| use_deep_path(50_000)).unwrap();
        thread.join().unwrap();
    }

    fn use_deep_path(depth: u64) {
        let mut tree = Tree::new();
        // A create costs the whole path, so the chain is grafted, not created top down.
        let record = Record {
            name: "a",
            data: None,
            czxid: 1,
            mzxid: 1,
            pzxid: 1,
            ctime: 0,
            mtime: 0,
            version: 0,
            cversion: 0,
            aversion: 0,
            owner: 0,
            acl: tree.acls.intern(&AclList::new(&Acl::open())),
        };
        assert!(tree.acls.add_uses(record.acl, depth));
        let mut path = "/a".repeat(usize::try_from(depth).unwrap());
        let mut node = node_of("/a", &record);
        for below in 1..depth {
            let mut parent = node_of("/a", &record);
            crate::node::needs_extra(&mut parent, "/a");
            assert!(crate::node::adopt_children(
                &mut parent,
                vec![Child::new(node)],
                below,
                0
            ));
            node = parent;
        }
        let extra = node_mut(&mut tree.root).own_extra().unwrap();
        extra.count(depth.cast_signed(), 0);
        extra.children.insert(Child::new(node));
        let old = tree.clone();
        assert_eq!(tree.root().all_children_number(), depth + 3);
        assert!(tree.get(&path).is_some());
        path.push_str("/b");
        create(&mut tree, &path, b"");
        assert_eq!(tree.root().all_children_number(), depth + 4);
        set(&mut tree, &path, b"x");
        let (events, applied) = delete(&mut tree, "/a");
        assert_eq!(applied.outcome, Ok(WriteReply::Empty));
        assert_eq!(events.len(), 2);
        assert_eq!(tree.root().all_children_number(), 3);
        drop(tree);
        assert_eq!(old.root().all_children_number(), depth + 3);
    }

    #[test]
    fn events_come_in_apaches_order_with_the_acls_to_check() {
        let mut tree = Tree::new();
        let shown = |events: Events| -> Vec<String> {
            events.iter().map(|event| format!("{event:?}")).collect()
        };
        let events = create(&mut tree, "/a", b"");
        assert_eq!(
            shown(events),
            [r#"0:1 Created "/a""#, r#"0:1 ChildrenChanged "/""#]
        );
        let events = create(&mut tree, "/a/b", b"");
        assert_eq!(
            shown(events),
            [r#"0:2 Created "/a/b""#, r#"0:2 ChildrenChanged "/a""#]
        );
        assert_eq!(
            shown(set(&mut tree, "/a", b"x")),
            [r#"0:3 DataChanged "/a""#]
        );
        assert_eq!(shown(set(&mut tree, "/", b"x")), [r#"0:4 DataChanged "/""#]);
        let (events, _) = delete(&mut tree, "/a/b");
        assert_eq!(
            shown(events),
            [r#"0:5 Deleted "/a/b""#, r#"0:5 ChildrenChanged "/a""#]
        );
        let (events, applied) = delete(&mut tree, "/a/b");
        assert_eq!(applied.outcome, Err(ZkError::NoNode.code()));
        assert_eq!(shown(events), Vec::<String>::new());
        assert_eq!(tree.zxid(), Zxid(6));
    }

    #[test]
    fn a_failed_multi_shows_every_part_as_an_error_and_changes_nothing() {
        let mut tree = Tree::new();
        let before = tree.digest();
        let parts = [0, -101, -2].map(|code| (OpCode::Error, Txn::Error { code }));
        let applied = tree.apply(
            &header(1, OpCode::Multi),
            &Txn::Multi(parts.to_vec()),
            &mut Events::new(),
        );
        let wanted = [0, -101, -2].map(|code| (OpCode::Error, Err(code)));
        assert_eq!(applied.outcome, Ok(WriteReply::Multi(wanted.to_vec())));
        assert_eq!((tree.digest(), tree.zxid()), (before, Zxid(1)));
    }

    #[test]
    fn statistics_of_a_quota_follow_without_a_trace_in_the_stat() {
        let mut tree = Tree::new();
        create(&mut tree, "/q", b"abc");
        create(&mut tree, "/q/x", b"12");
        create(&mut tree, "/zookeeper/quota/q", b"");
        let limits = b"count=10,bytes=20=;countHardLimit=5";
        create(&mut tree, "/zookeeper/quota/q/zookeeper_limits", limits);
        let stats_path = "/zookeeper/quota/q/zookeeper_stats";
        create(&mut tree, stats_path, b"count=0,bytes=0");
        let stats = |tree: &Tree| {
            let node = tree.get(stats_path).unwrap();
            (
                String::from_utf8_lossy(node.data().unwrap()).into_owned(),
                node.stat(),
            )
        };
        let (text, stat) = stats(&tree);
        assert_eq!(text, "count=2,bytes=5");
        create(&mut tree, "/q/y", b"1234");
        set(&mut tree, "/q", b"");
        let _deleted = delete(&mut tree, "/q/x");
        let (text, after) = stats(&tree);
        assert_eq!(text, "count=2,bytes=4");
        assert_eq!((after.version, after.mzxid), (stat.version, stat.mzxid));
        let quota = tree.quota_limit_for("/q/y/z").unwrap();
        assert_eq!(quota.prefix, "/q");
        assert_eq!(
            quota.limits.map(|limits| limits.count_hard_limit()),
            Some(5)
        );
        assert_eq!(quota.usage.map(|usage| usage.bytes()), Some(4));
        assert_eq!(tree.quota_prefix("/qq"), None);
        let _deleted = delete(&mut tree, "/zookeeper/quota/q/zookeeper_limits");
        assert_eq!(tree.quota_prefix("/q/y"), None);
        assert_eq!(tree.subtree_usage("/q"), Some((2, 4)));
    }

    #[test]
    fn trees_can_be_sent_and_shared() {
        fn check<T: Send + Sync + Clone>() {}
        check::<Tree>();
        check::<Events>();
    }
}
