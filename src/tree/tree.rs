//! The replicated state: znodes, sessions, ephemerals and what is counted about them.
//!
//! Invariants:
//! - Cloning a tree copies a few pointers, and a clone never changes. The first write after a clone
//!   copies the znodes on its path and the blocks of the maps between them, later ones only what is
//!   still shared: never more than `O(depth * log children)`.
//! - `digest` is the wrapping sum of the digests of all znodes outside `/zookeeper/`.
//! - An ephemeral is in `owners` of its session, a container in `containers`, a TTL znode in `ttls`, and
//!   nothing else is in these.
//! - Nothing here has a clock or makes a choice: equal transactions make equal trees.

use std::borrow::Cow;
use std::sync::Arc;

use ringkeeper_proto::{Acl, AclList, Id, Perms, SessionId, Zxid};

use crate::acl_table::{AclHandle, AclTable};
use crate::map::{Entry, Key, Map, head_of};
use crate::node::{
    self, Child, Inner, Node, NodeArc, NodeFields, NodeKind, Record, drop_below, node_mut, node_of,
};
use crate::path::{self, Names};
use crate::quota::{LIMIT_NODE, QUOTA_ROOT, Quota, STAT_NODE, StatsTrack};

/// The replicated state at one zxid.
#[derive(Clone, Debug)]
pub struct Tree {
    pub(crate) root: NodeArc,
    pub(crate) zxid: Zxid,
    pub(crate) digest: u64,
    /// See [`Tree::is_fuzzy`].
    pub(crate) fuzzy: bool,
    /// Characters of all paths and bytes of all data, as `DataTree.nodeDataSize` counts them.
    pub(crate) data_size: i64,
    pub(crate) ephemerals: usize,
    /// How many znodes below `/zookeeper/quota` hold limits; 0 makes quotas cost nothing.
    pub(crate) quotas: usize,
    pub(crate) sessions: Map<Session>,
    pub(crate) owners: Map<Owner>,
    pub(crate) containers: Map<PathEntry>,
    pub(crate) ttls: Map<PathEntry>,
    pub(crate) acls: AclTable,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The tree that every server starts from (`DataTree`'s constructor).
    pub fn new() -> Self {
        let mut tree = Self::without_children();
        let open = AclList::new(&Acl::open());
        tree.put_initial("/zookeeper", &open, 0);
        tree.put_initial("/zookeeper/quota", &open, 0);
        tree.put_config_node();
        tree
    }

    /// Drops the tree. `rest` is called after every znode that is let go: what an old clone alone still has can be millions
    /// of blocks, and who drops it may have to leave the CPU to others meanwhile.
    pub fn drop_in_turns(mut self, rest: &mut dyn FnMut()) {
        drop_below(&mut self.root, rest);
    }

    /// The znode of the ensemble's configuration, still empty.
    pub(crate) fn put_config_node(&mut self) {
        let read = AclList::new(&[Acl {
            perms: Perms::READ,
            id: Id::new("world", "anyone"),
        }]);
        // ZK: it gets its ACL by setACL, with version -1.
        self.put_initial(path::CONFIG, &read, -1);
    }

    /// The root alone.
    fn without_children() -> Self {
        let mut acls = AclTable::default();
        let record = initial("", acls.intern(&AclList::new(&Acl::open())), 0);
        let root = node_of("", &record);
        Self {
            digest: root.header.digest.into(),
            root,
            zxid: Zxid::ZERO,
            fuzzy: false,
            // ZK: "/" is an alias of "" in the map that Apache sums up.
            data_size: 1,
            ephemerals: 0,
            quotas: 0,
            sessions: Map::new(),
            owners: Map::new(),
            containers: Map::new(),
            ttls: Map::new(),
            acls,
        }
    }

    fn put_initial(&mut self, path: &str, acl: &AclList<'_>, aversion: i32) {
        let Some((parent, name)) = path.rsplit_once('/') else {
            return;
        };
        let acl = self.acls.intern(acl);
        let node = node_of(path, &initial(name, acl, aversion));
        self.digest = self.digest.wrapping_add(node.header.digest.into());
        self.data_size += size_of(path, 0);
        let parent_node = node_mut(walk_mut(&mut self.root, parent, 1, 0));
        let extra = parent_node.extra_mut(parent);
        extra.count(1, 0);
        extra.children.insert(Child::new(node));
    }

    /// The zxid of the last transaction.
    pub const fn zxid(&self) -> Zxid {
        self.zxid
    }

    /// Sets the zxid of the last transaction, for example at the start of an epoch.
    pub const fn set_zxid(&mut self, zxid: Zxid) {
        self.zxid = zxid;
    }

    /// Whether it may show some of what comes after its zxid, as a tree does that an Apache server has written while
    /// it applied transactions. Applying these makes it whole, since that is idempotent, and the first digest
    /// that agrees says that it is.
    pub const fn is_fuzzy(&self) -> bool {
        self.fuzzy
    }

    /// Says whether it is; snapshots keep it.
    pub const fn set_fuzzy(&mut self, fuzzy: bool) {
        self.fuzzy = fuzzy;
    }

    /// The digest (version 2).
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest as a transaction carries it.
    #[expect(
        clippy::cast_possible_wrap,
        reason = "the wire's type is a signed long"
    )]
    pub const fn digest_to_wire(&self) -> i64 {
        self.digest as i64
    }

    /// Znodes, as `DataTree.getNodeCount` has it: the root counts twice.
    pub fn node_count(&self) -> u64 {
        self.root().all_children_number() + 2
    }

    /// Ephemerals of all sessions.
    pub const fn ephemerals_count(&self) -> usize {
        self.ephemerals
    }

    /// Characters of all paths and bytes of all data, as `approximate_data_size` in `mntr`.
    pub const fn approximate_data_size(&self) -> i64 {
        self.data_size
    }

    /// The root.
    pub fn root(&self) -> Node<'_> {
        Node::new(&self.root)
    }

    /// The znode at `path`; "/" and "" are the root.
    pub fn get(&self, path: &str) -> Option<Node<'_>> {
        Some(Node::new(self.find(path)?))
    }

    /// The ACL of a znode of this tree.
    ///
    /// # Panics
    /// When `node` is of another tree, whose ACLs this one does not have.
    pub fn acl_of(&self, node: Node<'_>) -> &AclHandle {
        self.acl_handle(node.acl_id())
    }

    /// How many different ACLs there are.
    pub fn acl_count(&self) -> usize {
        self.acls.iter().len()
    }

    /// The different ACLs, each with the id that [`Node::acl_id`] names it by.
    pub fn acls(&self) -> impl ExactSizeIterator<Item = (u32, &AclHandle)> {
        self.acls.iter().map(|(id, handle, _)| (id, handle))
    }

    /// The sessions and their timeouts in milliseconds.
    pub fn sessions(&self) -> impl ExactSizeIterator<Item = (SessionId, i32)> {
        self.sessions
            .iter()
            .map(|session| (session.id, session.timeout_ms))
    }

    /// The timeout of a session in milliseconds; `None` if there is no such session.
    pub fn session_timeout(&self, session: SessionId) -> Option<i32> {
        Some(self.sessions.get(&session_key(session))?.timeout_ms)
    }

    /// The paths of a session's ephemerals.
    pub fn ephemerals(&self, session: SessionId) -> impl ExactSizeIterator<Item = &str> {
        static NONE: Map<PathEntry> = Map::new();
        let owner = self.owners.get(&session_key(session));
        let paths = owner.map_or(&NONE, |owner| &owner.paths);
        paths.iter().map(|entry| &*entry.path)
    }

    /// Bytes that the paths of a session's ephemerals take in the transaction that closes it.
    pub fn ephemeral_bytes(&self, session: SessionId) -> usize {
        let owner = self.owners.get(&session_key(session));
        owner.map_or(0, |owner| owner.bytes)
    }

    /// The sessions that have ephemerals, with how many.
    pub fn ephemeral_owners(&self) -> impl ExactSizeIterator<Item = (SessionId, usize)> {
        self.owners
            .iter()
            .map(|owner| (owner.id, owner.paths.len()))
    }

    /// The paths of all containers.
    pub fn containers(&self) -> impl ExactSizeIterator<Item = &str> {
        self.containers.iter().map(|entry| &*entry.path)
    }

    /// The paths of all TTL znodes.
    pub fn ttl_nodes(&self) -> impl ExactSizeIterator<Item = &str> {
        self.ttls.iter().map(|entry| &*entry.path)
    }

    /// Znodes and bytes of data of the subtree at `path`, itself included.
    pub fn subtree_usage(&self, path: &str) -> Option<(u64, u64)> {
        let node = self.get(path)?;
        Some((node.all_children_number() + 1, node.subtree_bytes()))
    }

    /// The innermost subtree with a quota that `path` lies in (`DataTree.getMaxPrefixWithQuota`).
    pub fn quota_prefix<'p>(&self, path: &'p str) -> Option<&'p str> {
        if self.quotas == 0 {
            return None;
        }
        let mut at = self.find(QUOTA_ROOT)?;
        let mut end = 0;
        let mut prefix = None;
        for name in components(path) {
            let Some(next) = at.child(name) else { break };
            end += 1 + name.len();
            if next.child(LIMIT_NODE).is_some() {
                prefix = path.get(..end);
            }
            at = next;
        }
        prefix
    }

    /// The quota that `path` falls under, with its limits and its usage.
    pub fn quota_limit_for<'p>(&self, path: &'p str) -> Option<Quota<'p>> {
        let prefix = self.quota_prefix(path)?;
        let track = |name: &str| {
            let node = self.get(&quota_path(prefix, name))?;
            StatsTrack::parse(node.data()?)
        };
        Some(Quota {
            prefix: Cow::Borrowed(prefix),
            limits: track(LIMIT_NODE),
            usage: track(STAT_NODE),
        })
    }

    /// Counts anew what the quota of `prefix` has used; its znode of statistics must exist.
    pub(crate) fn recount_quota(&mut self, prefix: &str) {
        let (count, bytes) = self.subtree_usage(prefix).unwrap_or((0, 0));
        let mut track = StatsTrack::default();
        track.set_count(i64::try_from(count).unwrap_or(i64::MAX));
        track.set_bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
        let data = track.to_bytes();
        self.put_data(&quota_path(prefix, STAT_NODE), &data);
    }

    pub(crate) fn acl_handle(&self, id: u32) -> &AclHandle {
        self.acls
            .handle(id)
            .expect("the table has the ACL of every znode of its tree")
    }

    pub(crate) fn find(&self, path: &str) -> Option<&NodeArc> {
        if path.is_empty() || path == "/" {
            return Some(&self.root);
        }
        let mut at = &self.root;
        for name in Names::of(path.strip_prefix('/')?) {
            at = at.child(name)?;
        }
        Some(at)
    }

    /// The znode at `path`, which exists, for changing. What changes below its ancestors is counted
    /// in them on the way.
    pub(crate) fn find_mut(&mut self, path: &str, nodes: i64, bytes: i64) -> &mut NodeArc {
        walk_mut(&mut self.root, path, nodes, bytes)
    }

    /// The znode at `path` for changing, if it exists. When it does not, nothing has changed but that
    /// some of what was shared with clones has been copied.
    pub(crate) fn get_mut(&mut self, path: &str) -> Option<&mut NodeArc> {
        let mut at = &mut self.root;
        for name in components(path) {
            let children = &mut node_mut(at).own_extra()?.children;
            at = &mut children.get_mut(&Key::named(name))?.node;
        }
        Some(at)
    }

    /// Counts in all ancestors of the znode at `path`, which exists, what has changed in it.
    pub(crate) fn count_above(&mut self, path: &str, nodes: i64, bytes: i64) {
        if nodes != 0 || bytes != 0 {
            walk_mut(&mut self.root, path, nodes, bytes);
        }
    }

    /// Changes the fields of a znode that exists and renews its digest.
    pub(crate) fn change(&mut self, path: &str, change: impl FnOnce(&mut Inner)) {
        let node = node_mut(walk_mut(&mut self.root, path, 0, 0));
        let before = node.header.digest;
        change(node);
        node.header.digest = node.digest_at(path);
        let after = node.header.digest;
        self.replace_digest(before, after);
    }

    /// Changes the data of a znode that exists, and nothing else of it: no stat, no digest.
    pub(crate) fn put_data(&mut self, path: &str, data: &[u8]) {
        let before = self.find(path).and_then(|node| node.data());
        let grown = len_of(Some(data)) - len_of(before);
        node::set_data(walk_mut(&mut self.root, path, 0, grown), path, Some(data));
    }

    pub(crate) fn replace_digest(&mut self, before: u32, after: u32) {
        self.digest = self
            .digest
            .wrapping_sub(before.into())
            .wrapping_add(after.into());
    }

    /// Enters a new znode in the sets of its kind.
    pub(crate) fn enlist(&mut self, path: &str, owner: i64) {
        match NodeKind::of_owner(owner) {
            NodeKind::Persistent => {}
            NodeKind::Container => {
                self.containers.insert(PathEntry::new(path.into()));
            }
            NodeKind::Ttl(_) => {
                self.ttls.insert(PathEntry::new(path.into()));
            }
            NodeKind::Ephemeral => {
                let session = SessionId(owner);
                let key = session_key(session);
                if self.owners.get(&key).is_none() {
                    self.owners.insert(Owner::new(session));
                }
                if let Some(owner) = self.owners.get_mut(&key)
                    && owner.paths.insert(PathEntry::new(path.into())).is_none()
                {
                    owner.bytes += 4 + path.len();
                    self.ephemerals += 1;
                }
            }
        }
    }

    /// Takes a znode that is gone out of the sets of its kind.
    pub(crate) fn strike(&mut self, path: &str, owner: i64) {
        let entry = Key::named(path);
        match NodeKind::of_owner(owner) {
            NodeKind::Persistent => {}
            NodeKind::Container => {
                self.containers.remove(&entry);
            }
            NodeKind::Ttl(_) => {
                self.ttls.remove(&entry);
            }
            NodeKind::Ephemeral => {
                let key = session_key(SessionId(owner));
                let Some(owner) = self.owners.get_mut(&key) else {
                    return;
                };
                if owner.paths.remove(&entry).is_some() {
                    owner.bytes -= 4 + path.len();
                    self.ephemerals -= 1;
                }
                if owner.paths.is_empty() {
                    self.owners.remove(&key);
                }
            }
        }
    }
}

/// A session and its timeout.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) timeout_ms: i32,
}

impl Entry for Session {
    fn head(&self) -> u64 {
        session_key(self.id).head
    }

    fn name(&self) -> &[u8] {
        &[]
    }
}

/// A session's ephemerals.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) id: SessionId,
    pub(crate) paths: Map<PathEntry>,
    bytes: usize,
}

impl Owner {
    fn new(id: SessionId) -> Self {
        Self {
            id,
            paths: Map::new(),
            bytes: 0,
        }
    }
}

impl Entry for Owner {
    fn head(&self) -> u64 {
        session_key(self.id).head
    }

    fn name(&self) -> &[u8] {
        &[]
    }
}

/// A member of a set of paths.
#[derive(Clone, Debug)]
pub(crate) struct PathEntry {
    head: u64,
    pub(crate) path: Arc<str>,
}

impl PathEntry {
    fn new(path: Arc<str>) -> Self {
        Self {
            head: head_of(path.as_bytes()),
            path,
        }
    }
}

impl Entry for PathEntry {
    fn head(&self) -> u64 {
        self.head
    }

    fn name(&self) -> &[u8] {
        self.path.as_bytes()
    }
}

#[expect(
    clippy::cast_sign_loss,
    reason = "only equality and a fixed order matter"
)]
pub(crate) const fn session_key(session: SessionId) -> Key<'static> {
    Key::number(session.0 as u64)
}

/// The path of a quota's znode.
pub(crate) fn quota_path(prefix: &str, name: &str) -> String {
    format!("{QUOTA_ROOT}{prefix}/{name}")
}

/// What a znode adds to the size of the tree: its path in UTF-16 units, as Java has it, and its data.
pub(crate) fn size_of(path: &str, data_len: i64) -> i64 {
    let characters = if path.is_ascii() {
        path.len()
    } else {
        path.chars().map(char::len_utf16).sum()
    };
    to_signed(characters) + data_len
}

pub(crate) fn len_of(data: Option<&[u8]>) -> i64 {
    to_signed(data.map_or(0, <[u8]>::len))
}

fn to_signed(len: usize) -> i64 {
    i64::try_from(len).expect("nothing in memory is that long")
}

/// The parts of a path.
fn components(path: &str) -> impl Iterator<Item = &str> {
    Names::of(path).filter(|name| !name.is_empty())
}

fn walk_mut<'t>(root: &'t mut NodeArc, path: &str, nodes: i64, bytes: i64) -> &'t mut NodeArc {
    let mut at = root;
    for name in components(path) {
        let extra = node_mut(at)
            .own_extra()
            .expect("the caller has found the path, so there are children");
        extra.count(nodes, bytes);
        let child = extra.children.get_mut(&Key::named(name));
        at = &mut child.expect("the caller has found the path").node;
    }
    at
}

const fn initial(name: &str, acl: u32, aversion: i32) -> Record<'_> {
    Record {
        name,
        data: Some(&[]),
        czxid: 0,
        mzxid: 0,
        pzxid: 0,
        ctime: 0,
        mtime: 0,
        version: 0,
        cversion: 0,
        aversion,
        owner: 0,
        acl,
    }
}
