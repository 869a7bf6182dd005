//! One znode: its metadata, name and data in a single allocation.
//!
//! Invariants:
//! - A znode that is shared between trees is never changed: [`node_mut`] copies it first.
//! - Only a znode that has or had children, whose ACL was changed, or that has data above [`INLINE_MAX`],
//!   has [`Extra`]; for all others `pzxid = czxid` and `cversion = aversion = 0`.
//! - `descendants` and `bytes_below` are the sums over everything below the znode.
//! - Dropping a tree takes a bounded stack however deep it is: see [`Extra`]'s `Drop`.

use std::mem;
use std::sync;

use ringkeeper_proto::Stat;
use triomphe::{Arc, HeaderSlice};

use crate::digest;
use crate::map::{Entry, Iter, Key, Map, copied, head_of};

/// Data up to this length stands in the znode's own allocation, and is copied with it when a change of
/// a shared znode copies it. Longer data is shared instead.
const INLINE_MAX: usize = 4096;

/// The owner of a container (`EphemeralType.CONTAINER_EPHEMERAL_OWNER`).
pub const CONTAINER_OWNER: i64 = i64::MIN;
/// The longest time to live, in milliseconds (`EphemeralType.TTL.maxValue`).
pub const TTL_MS_MAX: i64 = (1 << 40) - 1;
/// The high 24 bits of the owner of a TTL znode; the rest is the time to live.
const TTL_OWNER: i64 = 0xff << 56;
const OWNER_KIND_MASK: i64 = !TTL_MS_MAX;

/// What `ephemeralOwner` says of a znode (`EphemeralType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// It stays until it is deleted.
    Persistent,
    /// It goes with its session.
    Ephemeral,
    /// It goes some time after its last child.
    Container,
    /// It goes when it has no children and was not changed for this many milliseconds.
    Ttl(i64),
}

impl NodeKind {
    /// What `owner` means. A session id of server 255 could be taken for a TTL for a few minutes every
    /// 34 years; Apache forbids such ids together with TTL znodes, and so does the configuration.
    pub const fn of_owner(owner: i64) -> Self {
        match owner {
            0 => Self::Persistent,
            CONTAINER_OWNER => Self::Container,
            _ if owner & OWNER_KIND_MASK == TTL_OWNER => Self::Ttl(owner & TTL_MS_MAX),
            _ => Self::Ephemeral,
        }
    }

    /// The owner of a TTL znode; `ttl_ms` is cut to 40 bits.
    pub const fn ttl_owner(ttl_ms: i64) -> i64 {
        TTL_OWNER | (ttl_ms & TTL_MS_MAX)
    }
}

/// A znode in a tree.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    inner: &'a Inner,
}

impl<'a> Node<'a> {
    pub(crate) const fn new(inner: &'a Inner) -> Self {
        Self { inner }
    }

    /// Its name, without its parent's path; "" for the root.
    pub fn name(self) -> &'a str {
        self.inner.name()
    }

    /// Its data; `None` is null.
    pub fn data(self) -> Option<&'a [u8]> {
        self.inner.data()
    }

    /// Bytes of data; 0 for null.
    pub fn data_len(self) -> usize {
        self.data().map_or(0, <[u8]>::len)
    }

    /// What clients are shown: `cversion` counts changes of the children, and only a session's id is
    /// an owner.
    pub fn stat(self) -> Stat {
        let head = &self.inner.header;
        let children = wrapping_i32(self.num_children());
        Stat {
            czxid: head.czxid,
            mzxid: head.mzxid,
            ctime: head.ctime,
            mtime: head.mtime,
            version: head.version,
            cversion: self.cversion_raw().wrapping_mul(2).wrapping_sub(children),
            aversion: self.aversion(),
            ephemeral_owner: match self.kind() {
                NodeKind::Ephemeral => head.owner,
                _ => 0,
            },
            data_length: wrapping_i32(self.data_len()),
            num_children: children,
            pzxid: self.pzxid(),
        }
    }

    /// What kind of znode it is.
    pub fn kind(self) -> NodeKind {
        NodeKind::of_owner(self.inner.header.owner)
    }

    /// Whether a session owns it.
    pub fn is_ephemeral(self) -> bool {
        self.kind() == NodeKind::Ephemeral
    }

    /// Whether it is a container.
    pub fn is_container(self) -> bool {
        self.kind() == NodeKind::Container
    }

    /// Its time to live in milliseconds, if it has one.
    pub fn ttl(self) -> Option<i64> {
        match self.kind() {
            NodeKind::Ttl(ttl_ms) => Some(ttl_ms),
            _ => None,
        }
    }

    /// The stored owner: a session, 0, or the marks of containers and TTL znodes.
    pub fn ephemeral_owner_raw(self) -> i64 {
        self.inner.header.owner
    }

    /// Children.
    pub fn num_children(self) -> usize {
        self.inner.extra().map_or(0, |extra| extra.children.len())
    }

    /// Whether it has a child of this name.
    pub fn has_child(self, name: &str) -> bool {
        self.inner.child(name).is_some()
    }

    /// Everything below it: children, their children and so on.
    pub fn all_children_number(self) -> u64 {
        self.inner.extra().map_or(0, |extra| extra.descendants)
    }

    /// Bytes of data of the znode and everything below it.
    pub fn subtree_bytes(self) -> u64 {
        self.inner.extra().map_or(0, |extra| extra.bytes_below) + self.data_len() as u64
    }

    /// The children's names, in an order that is the same on all servers but means nothing.
    pub fn child_names(self) -> impl ExactSizeIterator<Item = &'a str> {
        self.inner.children().map(|child| child.node.name())
    }

    /// The children.
    pub fn children(self) -> impl ExactSizeIterator<Item = Node<'a>> {
        self.inner.children().map(|child| Node::new(&child.node))
    }

    /// How many children were ever created here; sequential names count it. Deletes do not change it.
    pub fn cversion_raw(self) -> i32 {
        self.inner.cversion()
    }

    /// Changes of the data.
    pub fn version(self) -> i32 {
        self.inner.header.version
    }

    /// Changes of the ACL.
    pub fn aversion(self) -> i32 {
        self.inner.aversion()
    }

    /// zxid of the creation.
    pub fn czxid(self) -> i64 {
        self.inner.header.czxid
    }

    /// zxid of the last change of the data.
    pub fn mzxid(self) -> i64 {
        self.inner.header.mzxid
    }

    /// zxid of the last change of the children.
    pub fn pzxid(self) -> i64 {
        self.inner.pzxid()
    }

    /// Milliseconds since 1970 of the last change of the data.
    pub fn mtime_ms(self) -> i64 {
        self.inner.header.mtime
    }

    /// The id of its ACL among [`Tree::acls`](crate::Tree::acls).
    pub fn acl_id(self) -> u32 {
        self.inner.header.acl
    }
}

/// A shared znode.
pub(crate) type NodeArc = Arc<HeaderSlice<Head, [u8]>>;

/// The znode's one allocation: [`Head`], then its name, then its data unless that is long.
pub(crate) type Inner = HeaderSlice<Head, [u8]>;

/// The fixed part of a znode.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) czxid: i64,
    pub(crate) mzxid: i64,
    pub(crate) ctime: i64,
    pub(crate) mtime: i64,
    pub(crate) owner: i64,
    pub(crate) version: i32,
    /// The id of the ACL in the tree's table.
    pub(crate) acl: u32,
    /// The znode's part of the tree's digest; 0 where it has none.
    pub(crate) digest: u32,
    name_len: NameLen,
    extra: Option<Box<Extra>>,
}

/// The length of a znode's name, and whether it has data: in four bytes, for every znode has them.
#[derive(Clone, Copy, Debug)]
struct NameLen(u32);

impl NameLen {
    fn new(len: usize, has_data: bool) -> Self {
        let len = u32::try_from(len).ok().filter(|len| *len < 1 << 31);
        let len = len.expect("paths are bounded by the size of a frame, far below 2 GiB");
        Self(len << 1 | u32::from(has_data))
    }

    const fn len(self) -> usize {
        (self.0 >> 1) as usize
    }

    const fn has_data(self) -> bool {
        self.0 & 1 == 1
    }
}

/// What most znodes do not have.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    pub(crate) pzxid: i64,
    pub(crate) cversion: i32,
    pub(crate) aversion: i32,
    /// CRC32 of path and data, from which the digest is computed when only the stat changes: a create
    /// under a parent with much data must not read that data.
    content_crc: u32,
    pub(crate) descendants: u64,
    pub(crate) bytes_below: u64,
    pub(crate) children: Map<Child>,
    long_data: Option<sync::Arc<[u8]>>,
}

/// A child as its parent holds it.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    head: u64,
    pub(crate) node: NodeArc,
}

impl Child {
    pub(crate) fn new(node: NodeArc) -> Self {
        Self {
            head: head_of(node.name_bytes()),
            node,
        }
    }
}

impl Entry for Child {
    fn head(&self) -> u64 {
        self.head
    }

    fn name(&self) -> &[u8] {
        self.node.name_bytes()
    }
}

/// What a new znode is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) name: &'a str,
    pub(crate) data: Option<&'a [u8]>,
    pub(crate) czxid: i64,
    pub(crate) mzxid: i64,
    pub(crate) pzxid: i64,
    pub(crate) ctime: i64,
    pub(crate) mtime: i64,
    pub(crate) version: i32,
    pub(crate) cversion: i32,
    pub(crate) aversion: i32,
    pub(crate) owner: i64,
    pub(crate) acl: u32,
}

/// A znode of `record`, at `path`, with its digest.
pub(crate) fn node_of(path: &str, record: &Record<'_>) -> NodeArc {
    let head = Head {
        czxid: record.czxid,
        mzxid: record.mzxid,
        ctime: record.ctime,
        mtime: record.mtime,
        owner: record.owner,
        version: record.version,
        acl: record.acl,
        digest: 0,
        name_len: NameLen::new(record.name.len(), record.data.is_some()),
        extra: None,
    };
    let data = record.data.unwrap_or(&[]);
    let is_long = data.len() > INLINE_MAX;
    let inline = if is_long { &[] } else { data };
    let mut node = allocate(head, record.name.as_bytes(), inline);
    let own = Arc::get_mut(&mut node).expect("it is new");
    if is_long || record.pzxid != record.czxid || record.cversion != 0 || record.aversion != 0 {
        let mut extra = Extra::new(record.pzxid, path, data);
        extra.cversion = record.cversion;
        extra.aversion = record.aversion;
        extra.long_data = is_long.then(|| data.into());
        own.header.extra = Some(Box::new(extra));
    }
    own.header.digest = own.digest_at(path);
    node
}

/// Copies name and data into one allocation behind `head`, by way of the stack when they are short.
fn allocate(head: Head, name: &[u8], data: &[u8]) -> NodeArc {
    let len = name.len() + data.len();
    let mut short = [0_u8; 256];
    if let Some(place) = short.get_mut(..len) {
        let (front, back) = place.split_at_mut(name.len());
        front.copy_from_slice(name);
        back.copy_from_slice(data);
        return Arc::from_header_and_slice(head, place);
    }
    let mut long = Vec::with_capacity(len);
    long.extend_from_slice(name);
    long.extend_from_slice(data);
    Arc::from_header_and_vec(head, long)
}

/// `node` for changing: a copy takes its place first if it is shared.
pub(crate) fn node_mut(node: &mut NodeArc) -> &mut Inner {
    if !node.is_unique() {
        copied::node();
        *node = Arc::from_header_and_slice(node.header.clone(), &node.slice);
    }
    Arc::get_mut(node).expect("it was just found or made to be unshared")
}

/// Replaces the data of `node`, which is at `path`, in place when the length allows it. The digest is
/// for the caller to renew.
pub(crate) fn set_data<'n>(
    node: &'n mut NodeArc,
    path: &str,
    data: Option<&[u8]>,
) -> &'n mut Inner {
    let bytes = data.unwrap_or(&[]);
    let is_long = bytes.len() > INLINE_MAX;
    let inline = if is_long { &[] } else { bytes };
    let name_len = node.header.name_len.len();
    if node.slice.len() == name_len + inline.len() {
        node_mut(node).slice[name_len..].copy_from_slice(inline);
    } else {
        let head = match Arc::get_mut(node) {
            Some(own) => own.header.take(),
            None => {
                copied::node();
                node.header.clone()
            }
        };
        *node = allocate(head, &node.slice[..name_len], inline);
    }
    let own = Arc::get_mut(node).expect("it was just made to be unshared");
    own.header.name_len = NameLen::new(name_len, data.is_some());
    if is_long || own.header.extra.is_some() {
        let extra = own.extra_mut(path);
        extra.long_data = is_long.then(|| bytes.into());
        extra.content_crc = digest::content_crc(path, bytes);
    }
    own
}

/// Gives `node`, which is new and at `path`, the extra part that every parent has.
pub(crate) fn needs_extra(node: &mut NodeArc, path: &str) {
    node_mut(node).extra_mut(path);
}

/// Gives `node`, which is new and has an extra part, its children, in the order of their keys; they and what is below
/// them come to so many znodes and bytes. False if it has no extra part.
pub(crate) fn adopt_children(
    node: &mut NodeArc,
    children: Vec<Child>,
    descendants: u64,
    bytes_below: u64,
) -> bool {
    let Some(extra) = node_mut(node).own_extra() else {
        return false;
    };
    extra.descendants = descendants;
    extra.bytes_below = bytes_below;
    extra.children = Map::from_sorted(children);
    true
}

impl Head {
    /// The head of a znode that is about to be replaced; the extra part moves.
    fn take(&mut self) -> Self {
        let extra = self.extra.take();
        let mut head = self.clone();
        head.extra = extra;
        head
    }
}

/// What znodes can be asked and told; the counterpart of [`Node`] within the crate.
pub(crate) trait NodeFields {
    fn name_bytes(&self) -> &[u8];
    fn name(&self) -> &str;
    fn data(&self) -> Option<&[u8]>;
    fn extra(&self) -> Option<&Extra>;
    fn extra_mut(&mut self, path: &str) -> &mut Extra;
    fn own_extra(&mut self) -> Option<&mut Extra>;
    fn pzxid(&self) -> i64;
    fn cversion(&self) -> i32;
    fn aversion(&self) -> i32;
    fn children(&self) -> ChildIter<'_>;
    fn child(&self, name: &str) -> Option<&NodeArc>;
    fn digest_at(&self, path: &str) -> u32;
}

impl NodeFields for Inner {
    fn name_bytes(&self) -> &[u8] {
        &self.slice[..self.header.name_len.len()]
    }

    fn name(&self) -> &str {
        str::from_utf8(self.name_bytes()).expect("names are copied from strings")
    }

    fn data(&self) -> Option<&[u8]> {
        if !self.header.name_len.has_data() {
            return None;
        }
        match self.extra().and_then(|extra| extra.long_data.as_ref()) {
            Some(long) => Some(long),
            None => self.slice.get(self.header.name_len.len()..),
        }
    }

    fn extra(&self) -> Option<&Extra> {
        self.header.extra.as_deref()
    }

    /// The extra part, which the znode gets if it has none; `path` is the znode's.
    fn extra_mut(&mut self, path: &str) -> &mut Extra {
        if self.header.extra.is_none() {
            let data = self.data().unwrap_or(&[]);
            let extra = Extra::new(self.header.czxid, path, data);
            self.header.extra = Some(Box::new(extra));
        }
        self.header.extra.as_mut().expect("it was just made")
    }

    fn own_extra(&mut self) -> Option<&mut Extra> {
        self.header.extra.as_deref_mut()
    }

    fn pzxid(&self) -> i64 {
        self.extra().map_or(self.header.czxid, |extra| extra.pzxid)
    }

    fn cversion(&self) -> i32 {
        self.extra().map_or(0, |extra| extra.cversion)
    }

    fn aversion(&self) -> i32 {
        self.extra().map_or(0, |extra| extra.aversion)
    }

    fn children(&self) -> ChildIter<'_> {
        match self.extra() {
            Some(extra) => extra.children.iter(),
            None => NO_CHILDREN.iter(),
        }
    }

    fn child(&self, name: &str) -> Option<&NodeArc> {
        let child = self.extra()?.children.get(&Key::named(name))?;
        Some(&child.node)
    }

    /// The znode's digest if it is at `path`.
    fn digest_at(&self, path: &str) -> u32 {
        if !digest::counts(path) {
            return 0;
        }
        let crc = match self.extra() {
            Some(extra) => extra.content_crc,
            None => digest::content_crc(path, self.data().unwrap_or(&[])),
        };
        digest::of_stat(crc, self)
    }
}

/// The children of a znode.
pub(crate) type ChildIter<'a> = Iter<'a, Child>;

static NO_CHILDREN: Map<Child> = Map::new();

impl Extra {
    fn new(pzxid: i64, path: &str, data: &[u8]) -> Self {
        Self {
            pzxid,
            cversion: 0,
            aversion: 0,
            content_crc: digest::content_crc(path, data),
            descendants: 0,
            bytes_below: 0,
            children: Map::new(),
            long_data: None,
        }
    }

    /// Counts what has come (or, when negative, gone) below the znode.
    pub(crate) fn count(&mut self, nodes: i64, bytes: i64) {
        self.descendants = self.descendants.wrapping_add_signed(nodes);
        self.bytes_below = self.bytes_below.wrapping_add_signed(bytes);
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        if !self.children.is_empty() {
            drop_children(mem::take(&mut self.children), &mut || ());
        }
    }
}

/// Drops everything below `node` that no other tree has, see [`drop_children`].
pub(crate) fn drop_below(node: &mut NodeArc, each: &mut dyn FnMut()) {
    if let Some(node) = Arc::get_mut(node)
        && let Some(extra) = &mut node.header.extra
    {
        drop_children(mem::take(&mut extra.children), each);
    }
}

/// Drops children and everything below them with a list instead of recursion: a path can have half a million parts. `each`
/// is called after every child that is let go.
fn drop_children(children: Map<Child>, each: &mut dyn FnMut()) {
    let mut pending = vec![children];
    while let Some(children) = pending.pop() {
        children.drop_own(&mut |mut child: Child| {
            // When two threads drop the last two references at once, both may see the other's: then
            // one of them comes back to `Drop`, once for each such meeting, not once for each level.
            if let Some(node) = Arc::get_mut(&mut child.node)
                && let Some(extra) = &mut node.header.extra
                && !extra.children.is_empty()
            {
                pending.push(mem::take(&mut extra.children));
            }
            drop(child);
            each();
        });
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "as Java's int; sizes are bounded far below"
)]
const fn wrapping_i32(value: usize) -> i32 {
    value as i32
}
