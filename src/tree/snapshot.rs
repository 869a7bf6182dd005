//! A tree as bytes, in chunks that can be decoded independently of each other, and so in parallel.
//!
//! | chunk | content, big-endian |
//! |---|---|
//! | 0 header | `u32` format, zxid, digest, znodes, sessions, ACLs (`u64` each), `i64` data size; of a fuzzy tree one byte 1 more |
//! | 1 sessions | `u32` count, then per session: `i64` id, `i32` timeout in milliseconds |
//! | 2 ACLs | `u32` count, then per list: `u32` id, the list as in jute |
//! | 3 znodes | `u32` count, jute string: the path of the first znode's parent, then the znodes |
//!
//! A znode is: varint depth (the root has 0), a byte of flags, varint and name, varint and data (0 is
//! null, else one more than its length), `i64` czxid and ctime, `u32` ACL id, then what the flags do
//! not spare: `i64` mzxid, pzxid, mtime, owner, `i32` version, cversion, aversion. Znodes stand in
//! depth-first order, a parent before its children.
//!
//! Invariants:
//! - A chunk is at most [`CHUNK_LEN`] long, unless a single znode needs more.
//! - A tree that comes back is equal in everything, or it does not come back: digest and counts are
//!   compared. Damaged chunks are errors, never panics; whether bytes are what was written is for the
//!   checksum around them to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BufMut;
use ringkeeper_proto::{AclList, DecodeError, Reader, SessionId, WriteJute, Zxid};

use crate::acl_table::AclTable;
use crate::apply::is_quota_limit;
use crate::map::{Entry, Key, Map};
use crate::node::{
    Child, ChildIter, Inner, Node, NodeArc, NodeFields, Record, adopt_children, needs_extra,
    node_of,
};
use crate::tree::{Session, Tree};

/// The format that is written; others are refused.
pub const FORMAT: u32 = 1;
/// The length that chunks have at most, in bytes, unless one znode is longer. To make one is a turn of the thread that
/// writes a snapshot, some 150 us: others may have to wait for its CPU so long.
pub const CHUNK_LEN: usize = 64 << 10;

const HEADER: u8 = 0;
const SESSIONS: u8 = 1;
const ACLS: u8 = 2;
const NODES: u8 = 3;

const SAME_MZXID: u8 = 1;
const SAME_PZXID: u8 = 2;
const SAME_MTIME: u8 = 4;
const NO_VERSION: u8 = 8;
const NO_CVERSION: u8 = 16;
const NO_AVERSION: u8 = 32;
const NO_OWNER: u8 = 64;
/// It is followed by children.
const IS_PARENT: u8 = 128;

/// The most bytes of a znode's record beside its name and data.
const RECORD_LEN_MAX: usize = 96;
/// The least bytes of a znode's record.
const RECORD_LEN_MIN: usize = 24;

/// Why bytes are not a snapshot of a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A chunk cannot be read.
    #[error("a chunk cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// The snapshot has a format that this program does not know.
    #[error("the snapshot has format {0}, this program reads format {FORMAT}")]
    Format(u32),
    /// A chunk or a znode stands where it cannot.
    #[error("{0}")]
    Order(&'static str),
    /// What was read is not what was written.
    #[error("the snapshot says {what} {expected:#x}, its content {found:#x}")]
    Mismatch {
        /// Which figure.
        what: &'static str,
        /// The header's.
        expected: u64,
        /// That of the tree that was read.
        found: u64,
    },
}

/// Writes a tree chunk by chunk. Borrow it from a clone of the tree: it never blocks a writer.
#[derive(Debug)]
pub struct SnapshotEncoder<'t> {
    tree: &'t Tree,
    stage: u8,
    /// How many sessions or ACLs are written.
    written: usize,
    /// The children still to be written, from the root's down.
    open: Vec<ChildIter<'t>>,
    /// The path of the znode whose children the last of `open` are.
    path: String,
    /// The next znode.
    next: Option<&'t Inner>,
}

impl<'t> SnapshotEncoder<'t> {
    /// An encoder at the first chunk of `tree`.
    pub fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            stage: HEADER,
            written: 0,
            open: Vec::new(),
            path: String::new(),
            next: Some(&tree.root),
        }
    }

    /// Puts the next chunk into `out`, in place of what is there. False when there is none left.
    pub fn next_chunk(&mut self, out: &mut Vec<u8>) -> bool {
        out.clear();
        loop {
            match self.stage {
                HEADER => self.put_header(out),
                SESSIONS => self.put_sessions(out),
                ACLS => self.put_acls(out),
                _ => return self.put_nodes(out),
            }
            if !out.is_empty() {
                return true;
            }
        }
    }

    fn put_header(&mut self, out: &mut Vec<u8>) {
        let tree = self.tree;
        out.put_u8(HEADER);
        out.put_u32(FORMAT);
        out.put_u64(tree.zxid.0);
        out.put_u64(tree.digest);
        out.put_u64(tree.root().all_children_number() + 1);
        out.put_u64(tree.sessions.len() as u64);
        out.put_u64(tree.acls.iter().len() as u64);
        out.put_i64(tree.data_size);
        if tree.fuzzy {
            out.put_u8(1);
        }
        self.stage = SESSIONS;
    }

    fn put_sessions(&mut self, out: &mut Vec<u8>) {
        const COUNT_MAX: usize = (CHUNK_LEN - 5) / 12;
        let sessions = self.tree.sessions.iter().skip(self.written);
        let left = self.tree.sessions.len() - self.written;
        if left == 0 {
            self.stage = ACLS;
            self.written = 0;
            return;
        }
        let count = left.min(COUNT_MAX);
        put_start(SESSIONS, count, out);
        for session in sessions.take(count) {
            out.put_i64(session.id.0);
            out.put_i32(session.timeout_ms);
        }
        self.written += count;
    }

    fn put_acls(&mut self, out: &mut Vec<u8>) {
        let mut count = 0;
        for (id, handle, _) in self.tree.acls.iter().skip(self.written) {
            let len = 8 + handle.list().as_bytes().len();
            if count == 0 {
                put_start(ACLS, 0, out);
            } else if out.len() + len > CHUNK_LEN {
                break;
            }
            out.put_u32(id);
            handle.list().encode(out);
            count += 1;
        }
        if count == 0 {
            self.stage = NODES;
        } else {
            set_count(count, out);
        }
        self.written += count;
    }

    fn put_nodes(&mut self, out: &mut Vec<u8>) -> bool {
        let mut count = 0;
        while let Some(node) = self.next {
            let len = RECORD_LEN_MAX + node.name_bytes().len() + node.data().map_or(0, <[u8]>::len);
            if count == 0 {
                put_start(NODES, 0, out);
                out.put_ustring(&self.path);
            } else if out.len() + len > CHUNK_LEN {
                break;
            }
            put_node(self.open.len(), node, out);
            count += 1;
            self.advance(node);
        }
        if count > 0 {
            set_count(count, out);
        }
        count > 0
    }

    /// Goes from `node` to the znode that follows it.
    fn advance(&mut self, node: &'t Inner) {
        let is_root = self.open.is_empty();
        let mut children = node.children();
        self.next = children.next().map(|child| &*child.node);
        if self.next.is_some() {
            self.open.push(children);
            if !is_root {
                self.path.push('/');
                self.path.push_str(node.name());
            }
            return;
        }
        while let Some(siblings) = self.open.last_mut() {
            self.next = siblings.next().map(|child| &*child.node);
            if self.next.is_some() {
                return;
            }
            self.open.pop();
            self.path.truncate(self.path.rfind('/').unwrap_or(0));
        }
    }
}

/// A chunk, decoded but not yet part of a tree.
#[derive(Debug)]
pub struct Chunk(Content);

#[derive(Debug)]
enum Content {
    Header(Header),
    Sessions(Vec<Session>),
    Acls(Vec<(u32, AclList<'static>)>),
    Nodes(Nodes),
}

#[derive(Clone, Copy, Debug)]
struct Header {
    zxid: Zxid,
    digest: u64,
    nodes: u64,
    sessions: u64,
    acls: u64,
    data_size: i64,
    fuzzy: bool,
}

#[derive(Debug)]
struct Nodes {
    /// The path of the first znode's parent.
    parent_path: String,
    /// What is complete, for one ancestor after the other, from below upwards.
    runs: Vec<Run>,
    /// The znodes whose children may go on in the next chunk, the first a child of the last run's parent.
    open: Vec<Open>,
    digest: u64,
    quotas: usize,
    acl_uses: BTreeMap<u32, u64>,
    /// Ephemerals, containers and TTL znodes, with their owners.
    owned: Vec<(Arc<str>, i64)>,
}

impl Chunk {
    /// Decodes a chunk; may be called on several threads at once.
    ///
    /// # Errors
    /// When the bytes are not a chunk of [`FORMAT`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.byte()?;
        let content = match u8::from_be_bytes(kind.to_be_bytes()) {
            HEADER => Content::Header(read_header(&mut reader)?),
            SESSIONS => Content::Sessions(read_sessions(&mut reader)?),
            ACLS => Content::Acls(read_acls(&mut reader)?),
            NODES => Content::Nodes(read_nodes(&mut reader)?),
            _ => {
                return Err(value("chunk type", kind.into()));
            }
        };
        if reader.is_empty() {
            Ok(Self(content))
        } else {
            Err(SnapshotError::Order("a chunk is longer than its content"))
        }
    }
}

/// Puts decoded chunks together to a tree.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    header: Option<Header>,
    sessions: Vec<Session>,
    acls: AclTable,
    nodes: Unfinished,
    digest: u64,
    quotas: usize,
    owned: Vec<(Arc<str>, i64)>,
}

impl SnapshotBuilder {
    /// A builder that waits for the first chunk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next chunk; they come in the order in which they were written.
    ///
    /// # Errors
    /// When the chunk cannot stand here. The builder is of no use afterwards.
    pub fn push(&mut self, chunk: Chunk) -> Result<(), SnapshotError> {
        if self.header.is_none() != matches!(chunk.0, Content::Header(_)) {
            return Err(SnapshotError::Order(
                "the header is not the first chunk, or not the only header",
            ));
        }
        match chunk.0 {
            Content::Header(header) => self.header = Some(header),
            Content::Sessions(mut sessions) => self.sessions.append(&mut sessions),
            Content::Acls(acls) => {
                for (id, list) in acls {
                    if !self.acls.restore(id, list) {
                        return Err(SnapshotError::Order("an ACL's id stands twice"));
                    }
                }
            }
            Content::Nodes(nodes) => self.push_nodes(nodes)?,
        }
        Ok(())
    }

    /// The tree.
    ///
    /// # Errors
    /// When something is missing, or digest or counts are not those of the header.
    pub fn finish(mut self) -> Result<Tree, SnapshotError> {
        let (Some(header), Some(root)) = (self.header, self.nodes.finish()?) else {
            return Err(SnapshotError::Order("the header or the root is missing"));
        };
        self.sessions.sort_by(order);
        self.sessions.dedup_by_key(|session| session.id);
        let mut tree = Tree {
            root,
            zxid: header.zxid,
            digest: self.digest,
            fuzzy: header.fuzzy,
            data_size: header.data_size,
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
        expect("digest", header.digest, tree.digest)?;
        let nodes = tree.root().all_children_number() + 1;
        expect("number of znodes", header.nodes, nodes)?;
        let sessions = tree.sessions.len() as u64;
        expect("number of sessions", header.sessions, sessions)?;
        expect("number of ACLs", header.acls, tree.acls.iter().len() as u64)?;
        if !tree.acls.all_used() {
            return Err(SnapshotError::Order("an ACL belongs to no znode"));
        }
        Ok(tree)
    }

    fn push_nodes(&mut self, nodes: Nodes) -> Result<(), SnapshotError> {
        for (id, uses) in nodes.acl_uses {
            if !self.acls.add_uses(id, uses) {
                return Err(SnapshotError::Order("a znode's ACL is missing"));
            }
        }
        let mut parent_path = Some(nodes.parent_path);
        for run in nodes.runs {
            self.nodes.close_to(run.depth)?;
            // Digests and ephemerals were made from the path that the chunk told.
            if let Some(told) = parent_path.take()
                && !self.nodes.is_at(&told)
            {
                return Err(SnapshotError::Order("a chunk is of another place"));
            }
            self.nodes.adopt(run.below);
        }
        self.nodes.reopen(nodes.open);
        self.digest = self.digest.wrapping_add(nodes.digest);
        self.quotas += nodes.quotas;
        self.owned.extend(nodes.owned);
        Ok(())
    }
}

/// A tree's znodes while they come in depth-first order.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    /// The znodes whose children may still come, from the root down.
    open: Vec<Open>,
    has_root: bool,
    root: Option<NodeArc>,
}

#[derive(Debug)]
struct Open {
    child: Child,
    below: Below,
}

/// Complete children of a znode, and what they come to.
#[derive(Debug, Default)]
struct Below {
    children: Vec<Child>,
    /// Znodes and bytes of data, the children's own and all below them.
    nodes: u64,
    bytes: u64,
}

/// Complete znodes of one depth, children of one ancestor of a chunk's first znode.
#[derive(Debug)]
struct Run {
    depth: usize,
    below: Below,
}

impl Open {
    fn new(child: Child) -> Self {
        Self {
            child,
            below: Below::default(),
        }
    }

    /// The znode with all its children.
    fn finish(mut self) -> Result<Child, SnapshotError> {
        if !self.below.children.is_empty() {
            let children = in_order(self.below.children)?;
            let (nodes, bytes) = (self.below.nodes, self.below.bytes);
            if !adopt_children(&mut self.child.node, children, nodes, bytes) {
                return Err(SnapshotError::Order("a znode has children, and says no"));
            }
        }
        Ok(self.child)
    }
}

impl Below {
    fn push(&mut self, child: Child) {
        let node = Node::new(&child.node);
        self.nodes += 1 + node.all_children_number();
        self.bytes += node.subtree_bytes();
        self.children.push(child);
    }

    fn append(&mut self, mut other: Self) {
        self.nodes += other.nodes;
        self.bytes += other.bytes;
        match self.children.is_empty() {
            true => self.children = other.children,
            false => self.children.append(&mut other.children),
        }
    }
}

impl Unfinished {
    /// Adds a znode below the last open one. It stays open until [`Unfinished::close_to`].
    pub(crate) fn push(&mut self, child: Child) {
        self.has_root = true;
        self.open.push(Open::new(child));
    }

    /// The last open znode.
    pub(crate) fn last_mut(&mut self) -> Option<&mut NodeArc> {
        Some(&mut self.open.last_mut()?.child.node)
    }

    /// Ends the znodes that are `depth` or deeper, whose children are complete, so that the next znode
    /// can be one of `depth`.
    pub(crate) fn close_to(&mut self, depth: usize) -> Result<(), SnapshotError> {
        if depth > self.open.len() || (depth == 0) == self.has_root {
            return Err(SnapshotError::Order("a znode's parent is missing"));
        }
        self.close(depth)
    }

    /// The root, when there is one.
    pub(crate) fn finish(&mut self) -> Result<Option<NodeArc>, SnapshotError> {
        self.close(0)?;
        Ok(self.root.take())
    }

    /// Adds complete children to the last open znode. There are none of the root's own depth: it stays open.
    fn adopt(&mut self, below: Below) {
        if let Some(parent) = self.open.last_mut() {
            parent.below.append(below);
        }
    }

    /// Adds a znode below the last open one, one below that, and so on.
    fn reopen(&mut self, mut open: Vec<Open>) {
        self.has_root |= !open.is_empty();
        self.open.append(&mut open);
    }

    /// Whether the open znodes lead to `path`.
    fn is_at(&self, path: &str) -> bool {
        let names = self.open.iter().skip(1).map(|open| open.child.node.name());
        match path.strip_prefix('/') {
            Some(rest) => names.eq(rest.split('/')),
            None => path.is_empty() && names.count() == 0,
        }
    }

    fn close(&mut self, depth: usize) -> Result<(), SnapshotError> {
        while self.open.len() > depth {
            let Some(done) = self.open.pop() else {
                break;
            };
            let child = done.finish()?;
            match self.open.last_mut() {
                Some(parent) => parent.below.push(child),
                None => self.root = Some(child.node),
            }
        }
        Ok(())
    }
}

/// The znodes of one chunk while they are decoded: what is complete within the chunk is put together here, so that this
/// is done by as many threads as decode.
#[derive(Default)]
struct Piece {
    runs: Vec<Run>,
    open: Vec<Open>,
}

impl Piece {
    /// Adds a znode of `depth`, at most one deeper than the last.
    fn push(&mut self, depth: usize, child: Child) -> Result<(), SnapshotError> {
        let base = self.runs.last().map_or(usize::MAX, |run| run.depth);
        self.close(depth.saturating_sub(base))?;
        if depth < base {
            self.runs.push(Run {
                depth,
                below: Below::default(),
            });
        }
        self.open.push(Open::new(child));
        Ok(())
    }

    /// Ends all open znodes but the first `keep`.
    fn close(&mut self, keep: usize) -> Result<(), SnapshotError> {
        while self.open.len() > keep {
            let (Some(done), Some(run)) = (self.open.pop(), self.runs.last_mut()) else {
                break;
            };
            let parent = self
                .open
                .last_mut()
                .map_or(&mut run.below, |open| &mut open.below);
            parent.push(done.finish()?);
        }
        Ok(())
    }
}

/// Children as a map. They were written in its order; should the order ever have changed since, they
/// are sorted.
fn in_order(mut children: Vec<Child>) -> Result<Vec<Child>, SnapshotError> {
    let is_sorted = |children: &[Child]| children.is_sorted_by(|a, b| order(a, b).is_lt());
    if !is_sorted(&children) {
        children.sort_by(order);
        if !is_sorted(&children) {
            return Err(SnapshotError::Order("a znode stands twice"));
        }
    }
    Ok(children)
}

pub(crate) fn order<E: Entry>(a: &E, b: &E) -> std::cmp::Ordering {
    a.compare(&Key {
        head: b.head(),
        name: b.name(),
    })
}

const fn expect(what: &'static str, expected: u64, found: u64) -> Result<(), SnapshotError> {
    if expected == found {
        Ok(())
    } else {
        Err(SnapshotError::Mismatch {
            what,
            expected,
            found,
        })
    }
}

const fn value(field: &'static str, value: i64) -> SnapshotError {
    SnapshotError::Decode(DecodeError::Value { field, value })
}

fn put_start(kind: u8, count: usize, out: &mut Vec<u8>) {
    out.put_u8(kind);
    out.put_u32(u32::try_from(count).expect("a chunk has no room for more"));
}

/// Fills in the count of a chunk that [`put_start`] has begun.
fn set_count(count: usize, out: &mut [u8]) {
    let count = u32::try_from(count).expect("a chunk has no room for more");
    out[1..5].copy_from_slice(&count.to_be_bytes());
}

fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    loop {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits are meant")]
        let low = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            out.put_u8(low);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

fn put_node(depth: usize, node: &Inner, out: &mut Vec<u8>) {
    let head = &node.header;
    let (pzxid, cversion) = (node.pzxid(), node.cversion());
    let mut flags = 0;
    let mut set = |flag, is_set| flags |= if is_set { flag } else { 0 };
    set(SAME_MZXID, head.mzxid == head.czxid);
    set(SAME_PZXID, pzxid == head.czxid);
    set(SAME_MTIME, head.mtime == head.ctime);
    set(NO_VERSION, head.version == 0);
    set(NO_CVERSION, cversion == 0);
    set(NO_AVERSION, node.aversion() == 0);
    set(NO_OWNER, head.owner == 0);
    set(IS_PARENT, node.children().len() > 0);
    put_varint(depth, out);
    out.put_u8(flags);
    put_varint(node.name_bytes().len(), out);
    out.put_slice(node.name_bytes());
    match node.data() {
        None => put_varint(0, out),
        Some(data) => {
            put_varint(data.len() + 1, out);
            out.put_slice(data);
        }
    }
    out.put_i64(head.czxid);
    out.put_i64(head.ctime);
    out.put_u32(head.acl);
    let longs = [
        (SAME_MZXID, head.mzxid),
        (SAME_PZXID, pzxid),
        (SAME_MTIME, head.mtime),
        (NO_OWNER, head.owner),
    ];
    for (_, long) in longs.into_iter().filter(|(flag, _)| flags & flag == 0) {
        out.put_i64(long);
    }
    let ints = [
        (NO_VERSION, head.version),
        (NO_CVERSION, cversion),
        (NO_AVERSION, node.aversion()),
    ];
    for (_, int) in ints.into_iter().filter(|(flag, _)| flags & flag == 0) {
        out.put_i32(int);
    }
}

fn read_header(reader: &mut Reader<'_>) -> Result<Header, SnapshotError> {
    let format = unsigned(reader)?;
    if format != FORMAT {
        return Err(SnapshotError::Format(format));
    }
    let mut long = || Ok::<u64, DecodeError>(Zxid::from_wire(reader.long()?).0);
    Ok(Header {
        zxid: Zxid(long()?),
        digest: long()?,
        nodes: long()?,
        sessions: long()?,
        acls: long()?,
        data_size: reader.long()?,
        fuzzy: match reader.is_empty() {
            true => false,
            false => match reader.byte()? {
                1 => true,
                other => return Err(value("fuzzy", other.into())),
            },
        },
    })
}

fn read_sessions(reader: &mut Reader<'_>) -> Result<Vec<Session>, SnapshotError> {
    let count = reader.count(12)?.unwrap_or(0);
    let sessions = (0..count).map(|_| {
        Ok(Session {
            id: SessionId(reader.long()?),
            timeout_ms: reader.int()?,
        })
    });
    sessions.collect()
}

fn read_acls(reader: &mut Reader<'_>) -> Result<Vec<(u32, AclList<'static>)>, SnapshotError> {
    let count = reader.count(8)?.unwrap_or(0);
    let acls = (0..count).map(|_| {
        let id = unsigned(reader)?;
        let list = AclList::decode(reader)?.ok_or_else(|| value("ACL", -1))?;
        Ok((id, list.into_owned()))
    });
    acls.collect()
}

fn read_nodes(reader: &mut Reader<'_>) -> Result<Nodes, SnapshotError> {
    let count = reader.count(RECORD_LEN_MIN)?.unwrap_or(0);
    let parent_path = reader.ustring()?.unwrap_or("").to_owned();
    let mut path = OpenPath::new(&parent_path)?;
    let mut nodes = Nodes {
        parent_path,
        runs: Vec::new(),
        open: Vec::new(),
        digest: 0,
        quotas: 0,
        acl_uses: BTreeMap::new(),
        owned: Vec::new(),
    };
    let mut piece = Piece::default();
    // Neighbours mostly have the same ACL.
    let mut acl_run = (0, 0);
    for _ in 0..count {
        let depth = varint(reader)?;
        let (record, is_parent) = read_record(reader)?;
        path.enter(depth, record.name)?;
        let mut node = node_of(&path.text, &record);
        if is_parent {
            needs_extra(&mut node, &path.text);
        }
        nodes.digest = nodes.digest.wrapping_add(node.header.digest.into());
        nodes.quotas += usize::from(is_quota_limit(&path.text, record.name));
        if record.owner != 0 {
            nodes.owned.push((path.text.as_str().into(), record.owner));
        }
        if acl_run.0 != record.acl && acl_run.1 > 0 {
            *nodes.acl_uses.entry(acl_run.0).or_insert(0) += acl_run.1;
            acl_run.1 = 0;
        }
        acl_run = (record.acl, acl_run.1 + 1);
        piece.push(depth, Child::new(node))?;
    }
    (nodes.runs, nodes.open) = (piece.runs, piece.open);
    if acl_run.1 > 0 {
        *nodes.acl_uses.entry(acl_run.0).or_insert(0) += acl_run.1;
    }
    Ok(nodes)
}

/// The path of the znode being read, and how long the paths of its ancestors are.
struct OpenPath {
    text: String,
    /// Of the ancestors that are known, the root first; the znode's own is the last.
    lens: Vec<usize>,
    /// No znode was read yet.
    is_first: bool,
}

impl OpenPath {
    fn new(parent_path: &str) -> Result<Self, SnapshotError> {
        let mut lens = vec![0];
        if let Some(rest) = parent_path.strip_prefix('/') {
            let mut len = 0;
            for name in rest.split('/') {
                if name.is_empty() {
                    return Err(SnapshotError::Order("a path has a part without a name"));
                }
                len += 1 + name.len();
                lens.push(len);
            }
        } else if !parent_path.is_empty() {
            return Err(SnapshotError::Order("a path does not start at the root"));
        }
        Ok(Self {
            text: parent_path.to_owned(),
            lens,
            is_first: true,
        })
    }

    /// Goes to the znode `name` at `depth`.
    fn enter(&mut self, depth: usize, name: &str) -> Result<(), SnapshotError> {
        let is_first = std::mem::replace(&mut self.is_first, false);
        if depth == 0 {
            // Only the root has no name, and only as the very first.
            let is_root = is_first && self.lens.len() == 1 && name.is_empty();
            return is_root
                .then_some(())
                .ok_or(SnapshotError::Order("a root is not the first znode"));
        }
        if depth > self.lens.len() || (is_first && depth != self.lens.len()) {
            return Err(SnapshotError::Order("a znode's parent is missing"));
        }
        if name.is_empty() || name.contains('/') {
            return Err(SnapshotError::Order("a znode's name is not one"));
        }
        self.lens.truncate(depth);
        self.text.truncate(self.lens.last().copied().unwrap_or(0));
        self.text.push('/');
        self.text.push_str(name);
        self.lens.push(self.text.len());
        Ok(())
    }
}

fn read_record<'a>(reader: &mut Reader<'a>) -> Result<(Record<'a>, bool), SnapshotError> {
    let flags = u8::from_be_bytes(reader.byte()?.to_be_bytes());
    let spares = |flag| flags & flag != 0;
    let name_len = varint(reader)?;
    let name = reader.take(name_len)?;
    let name =
        str::from_utf8(name).map_err(|_| SnapshotError::Order("a znode's name is not UTF-8"))?;
    let data = match varint(reader)?.checked_sub(1) {
        None => None,
        Some(len) => Some(reader.take(len)?),
    };
    let czxid = reader.long()?;
    let ctime = reader.long()?;
    let acl = unsigned(reader)?;
    let mut long = |flag, spared| match spares(flag) {
        true => Ok(spared),
        false => reader.long(),
    };
    let mzxid = long(SAME_MZXID, czxid)?;
    let pzxid = long(SAME_PZXID, czxid)?;
    let mtime = long(SAME_MTIME, ctime)?;
    let owner = long(NO_OWNER, 0)?;
    let mut int = |flag| match spares(flag) {
        true => Ok(0),
        false => reader.int(),
    };
    let record = Record {
        name,
        data,
        czxid,
        mzxid,
        pzxid,
        ctime,
        mtime,
        version: int(NO_VERSION)?,
        cversion: int(NO_CVERSION)?,
        aversion: int(NO_AVERSION)?,
        owner,
        acl,
    };
    Ok((record, spares(IS_PARENT)))
}

fn unsigned(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    Ok(u32::from_be_bytes(reader.int()?.to_be_bytes()))
}

fn varint(reader: &mut Reader<'_>) -> Result<usize, SnapshotError> {
    let mut value = 0;
    // Lengths and depths fit into 35 bits by far.
    for shift in (0..35).step_by(7) {
        let byte = u8::from_be_bytes(reader.byte()?.to_be_bytes());
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(SnapshotError::Order("a length has too many bytes"))
}
