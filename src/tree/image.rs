//! A whole tree as ZooKeeper's servers store and send it (`SerializeUtils.serializeSnapshot`): what follows a
//! SNAP packet, and what stands in the middle of a snapshot's file.
//!
//! ```text
//! int count | per session: long id, int timeout
//! int count | per ACL:     long id, vector<ACL>
//! per znode: ustring path | buffer data | long acl | StatPersisted (68 bytes)
//! ustring "/"                                                             (the end)
//! ```
//! Znodes stand in depth-first order, the root ("") first. On a link the string `BenWasHere` follows.
//!
//! Invariants:
//! - [`ImageReader`] keeps no more than one record that has not come whole, and what it has made of the
//!   rest. A record longer than a length that it was given is refused when its length is seen.
//! - Bytes that are no image are errors, never panics.

use bytes::{BufMut, Bytes, BytesMut};
use ringkeeper_proto::quorum::SNAPSHOT_END;
use ringkeeper_proto::{AclList, DecodeError, Reader, SessionId, WriteJute, Zxid};

use crate::node::{ChildIter, Inner, Node, NodeFields};
use crate::restore::{Restore, Restored, StoredNode};
use crate::snapshot::SnapshotError;
use crate::tree::Tree;

/// Chunks are filled to this length; a longer znode makes a longer one.
pub const CHUNK_LEN: usize = 256 << 10;

/// What a znode, or an ACL, may take at most. Data has `jute.maxbuffer`, which operators raise to some
/// megabytes; a length beyond this is a stranger's.
const RECORD_LEN_MAX: usize = 256 << 20;

/// The path that stands behind the last znode.
const END: &str = "/";

/// Writes a tree in chunks. Borrow it from a clone of the tree: it never blocks a writer.
#[derive(Debug)]
pub struct ImageEncoder<'t> {
    tree: &'t Tree,
    stage: Stage,
    /// How many sessions or ACLs are written.
    written: usize,
    /// The children still to be written, from the root's down.
    open: Vec<ChildIter<'t>>,
    /// The path of the next znode.
    path: String,
    next: Option<&'t Inner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Sessions,
    Acls,
    Nodes,
    Done,
}

impl<'t> ImageEncoder<'t> {
    /// An encoder at the first chunk of `tree`.
    pub fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            stage: Stage::Sessions,
            written: 0,
            open: Vec::new(),
            path: String::new(),
            next: Some(&tree.root),
        }
    }

    /// Appends the next chunk to `out`. False when there was none left.
    pub fn next_chunk(&mut self, out: &mut (impl BufMut + AsRef<[u8]>)) -> bool {
        if self.stage == Stage::Done {
            return false;
        }
        let begin = out.as_ref().len();
        let is_full = |out: &dyn AsRef<[u8]>| out.as_ref().len() - begin >= CHUNK_LEN;
        if self.stage == Stage::Sessions {
            let sessions = self.tree.sessions();
            if self.written == 0 {
                out.put_i32(wire_count(sessions.len()));
            }
            for (id, timeout_ms) in sessions.skip(self.written) {
                if is_full(out) {
                    return true;
                }
                out.put_i64(id.0);
                out.put_i32(timeout_ms);
                self.written += 1;
            }
            (self.stage, self.written) = (Stage::Acls, 0);
        }
        if self.stage == Stage::Acls {
            let acls = self.tree.acls();
            if self.written == 0 {
                out.put_i32(wire_count(acls.len()));
            }
            for (id, acl) in acls.skip(self.written) {
                if is_full(out) {
                    return true;
                }
                out.put_i64(id.into());
                acl.list().encode(out);
                self.written += 1;
            }
            self.stage = Stage::Nodes;
        }
        while let Some(node) = self.next {
            if is_full(out) {
                return true;
            }
            put_node(&self.path, Node::new(node), out);
            self.advance(node);
        }
        out.put_ustring(END);
        self.stage = Stage::Done;
        true
    }

    /// Goes from `node` to the znode that follows it.
    fn advance(&mut self, node: &'t Inner) {
        self.open.push(node.children());
        self.next = None;
        while let Some(siblings) = self.open.last_mut() {
            if let Some(child) = siblings.next() {
                let child = &*child.node;
                self.path.push('/');
                self.path.push_str(Node::new(child).name());
                self.next = Some(child);
                return;
            }
            self.open.pop();
            self.path.truncate(self.path.rfind('/').unwrap_or(0));
        }
    }
}

/// Appends a znode as it is stored, `path` in front.
pub fn put_node(path: &str, node: Node<'_>, out: &mut (impl BufMut + ?Sized)) {
    let stat = node.stat();
    out.put_ustring(path);
    out.put_buffer(node.data());
    out.put_i64(node.acl_id().into());
    out.put_i64(stat.czxid);
    out.put_i64(stat.mzxid);
    out.put_i64(stat.ctime);
    out.put_i64(stat.mtime);
    out.put_i32(stat.version);
    out.put_i32(node.cversion_raw());
    out.put_i32(stat.aversion);
    out.put_i64(node.ephemeral_owner_raw());
    out.put_i64(stat.pzxid);
}

fn wire_count(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Makes a tree of the bytes that follow a SNAP packet, as they come.
#[derive(Debug)]
pub struct ImageReader {
    restore: Restore,
    state: State,
    /// What has come of a record that is not whole.
    held: BytesMut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SessionCount,
    Sessions {
        left: i32,
    },
    AclCount,
    Acls {
        left: i32,
    },
    Nodes,
    /// All but the string at the end of a link's stream.
    Mark,
    Done,
}

impl Default for ImageReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageReader {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self {
            restore: Restore::new(),
            state: State::SessionCount,
            held: BytesMut::new(),
        }
    }

    /// Takes the next bytes. True when they ended the image, and nothing more is to be fed.
    ///
    /// # Errors
    /// When they are no image. Nothing more may be fed then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, SnapshotError> {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held).freeze();
        let mut taken = 0;
        while self.state != State::Done {
            let mut reader = Reader::new(held.get(taken..).unwrap_or_default());
            match self.record(&mut reader) {
                Ok(()) => taken += reader.at(),
                Err(SnapshotError::Decode(DecodeError::Short { at, needed })) => {
                    if at.saturating_add(needed) > RECORD_LEN_MAX {
                        return Err(SnapshotError::Order("a record is impossibly long"));
                    }
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.held = BytesMut::from(held.slice(taken..));
        Ok(self.state == State::Done)
    }

    /// The tree, as of `zxid`, and what came behind the image.
    ///
    /// # Errors
    /// When the image has not ended, or is none of a tree.
    pub fn finish(self, zxid: Zxid) -> Result<(Restored, Bytes), SnapshotError> {
        if self.state != State::Done {
            return Err(SnapshotError::Order("the image has not ended"));
        }
        Ok((self.restore.finish(zxid)?, self.held.freeze()))
    }

    /// Takes one record, if all of it is there.
    fn record(&mut self, reader: &mut Reader<'_>) -> Result<(), SnapshotError> {
        self.state = match self.state {
            State::SessionCount => sessions(reader.int()?),
            State::Sessions { left } => {
                let (id, timeout_ms) = (SessionId(reader.long()?), reader.int()?);
                self.restore.session(id, timeout_ms);
                sessions(left - 1)
            }
            State::AclCount => acls(reader.int()?),
            State::Acls { left } => {
                let id = reader.long()?;
                // Decoding takes a count that promises more than there is for a lie; here it may be to come.
                skip_acl(&mut reader.clone())?;
                let list = AclList::decode(reader)?;
                let list = list.unwrap_or_else(|| AclList::new(&[]));
                self.restore.acl(id, list.into_owned());
                acls(left - 1)
            }
            State::Nodes => match reader.ustring()?.unwrap_or_default() {
                END => State::Mark,
                path => {
                    let node = stored_node(path, reader)?;
                    self.restore.node(&node)?;
                    State::Nodes
                }
            },
            State::Mark => match reader.ustring()? {
                Some(SNAPSHOT_END) => State::Done,
                _ => return Err(SnapshotError::Order("the mark at its end is missing")),
            },
            State::Done => State::Done,
        };
        Ok(())
    }
}

// A count is not believed: each turn reads bytes that must be there.
const fn sessions(left: i32) -> State {
    match left > 0 {
        true => State::Sessions { left },
        false => State::AclCount,
    }
}

const fn acls(left: i32) -> State {
    match left > 0 {
        true => State::Acls { left },
        false => State::Nodes,
    }
}

fn skip_acl(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    for _ in 0..reader.int()? {
        reader.int()?;
        reader.buffer()?;
        reader.buffer()?;
    }
    Ok(())
}

fn stored_node<'a>(path: &'a str, reader: &mut Reader<'a>) -> Result<StoredNode<'a>, DecodeError> {
    Ok(StoredNode {
        path,
        data: reader.buffer()?,
        acl: reader.long()?,
        czxid: reader.long()?,
        mzxid: reader.long()?,
        ctime: reader.long()?,
        mtime: reader.long()?,
        version: reader.int()?,
        cversion: reader.int()?,
        aversion: reader.int()?,
        owner: reader.long()?,
        pzxid: reader.long()?,
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use ringkeeper_proto::txn::CreateKind;
    use ringkeeper_proto::{Acl, Id, OpCode, Perms, Txn, TxnHeader};

    use super::*;
    use crate::Events;

    /// A tree with sessions, ephemerals, two ACLs, deep and wide places, and a znode longer than a chunk.
    fn tree() -> Tree {
        let mut tree = Tree::new();
        let mut zxid = 0;
        let mut apply = |tree: &mut Tree, op, txn: Txn<'_>| {
            zxid += 1;
            let header = TxnHeader {
                session: SessionId(7),
                cxid: 1,
                zxid: Zxid(zxid),
                time_ms: 1_000 + zxid.cast_signed(),
                op,
            };
            let applied = tree.apply(&header, &txn, &mut Events::new());
            applied.outcome.unwrap();
        };
        apply(
            &mut tree,
            OpCode::CreateSession,
            Txn::CreateSession { timeout_ms: 9000 },
        );
        let long = vec![3; 2 * CHUNK_LEN];
        let acls = [
            AclList::new(&Acl::open()),
            AclList::new(&[Acl {
                perms: Perms::READ,
                id: Id::new("digest", "a:b"),
            }]),
        ];
        let mut create = |tree: &mut Tree, path: &str, data: Option<&[u8]>, at: usize, kind| {
            let txn = Txn::Create {
                path: Cow::Borrowed(path),
                data,
                acl: acls[at % 2].clone(),
                kind,
                parent_cversion: 1 + i32::try_from(at).unwrap(),
            };
            apply(tree, OpCode::Create, txn);
        };
        create(
            &mut tree,
            "/long",
            Some(&long),
            0,
            CreateKind::Plain { ephemeral: false },
        );
        create(
            &mut tree,
            "/null",
            None,
            1,
            CreateKind::Plain { ephemeral: false },
        );
        let mut path = String::new();
        for at in 0..40 {
            path += "/deep";
            create(
                &mut tree,
                &path,
                Some(b"x"),
                at,
                CreateKind::Plain { ephemeral: false },
            );
        }
        for at in 0..3000 {
            let path = format!("/null/{at}");
            create(
                &mut tree,
                &path,
                Some(&[1; 90]),
                at,
                CreateKind::Plain { ephemeral: false },
            );
        }
        create(
            &mut tree,
            "/gone",
            Some(b""),
            3,
            CreateKind::Plain { ephemeral: true },
        );
        tree
    }

    fn image(tree: &Tree) -> Vec<u8> {
        let mut encoder = ImageEncoder::new(tree);
        let (mut all, mut chunks) = (Vec::new(), 0);
        loop {
            let mut chunk = Vec::new();
            if !encoder.next_chunk(&mut chunk) {
                assert_eq!(chunks > 2, all.len() > 2 * CHUNK_LEN, "{chunks}");
                return all;
            }
            chunks += 1;
            all.extend(chunk);
        }
    }

    #[test]
    fn a_tree_comes_back_however_its_bytes_are_cut() {
        let tree = tree();
        let mut bytes = image(&tree);
        bytes.put_ustring(SNAPSHOT_END);
        let end = bytes.len();
        bytes.extend(b"behind it");
        for step in [bytes.len(), 65_536, 1000, 37] {
            let mut reader = ImageReader::new();
            let mut at = 0;
            loop {
                let next = bytes.len().min(at + step);
                let is_done = reader.feed(&bytes[at..next]).unwrap();
                at = next;
                assert_eq!(is_done, at >= end, "{at} of {end}");
                if is_done {
                    break;
                }
            }
            let (restored, rest) = reader.finish(tree.zxid()).unwrap();
            assert_eq!(rest, bytes[end..at]);
            assert_eq!(restored.tree.digest(), tree.digest());
            assert_eq!(restored.tree.node_count(), tree.node_count());
            assert!(restored.tree.sessions().eq(tree.sessions()));
            assert_eq!(restored.tree.ephemerals_count(), 1);
            assert_eq!(image(&restored.tree), image(&tree));
        }
    }

    #[test]
    fn bytes_that_are_no_image_are_errors() {
        let mut long = vec![0; 8];
        long.extend([0x7f, 0xff, 0xff, 0xff]);
        assert!(ImageReader::new().feed(&long).is_err());
        let mut unmarked = image(&Tree::new());
        unmarked.put_ustring("BenWasNotThere");
        assert!(ImageReader::new().feed(&unmarked).is_err());
        assert!(ImageReader::new().finish(Zxid(1)).is_err());
        // An orphan.
        let mut orphan = vec![0; 8];
        orphan.put_ustring("/a/b");
        orphan.extend([0; 72]);
        assert!(ImageReader::new().feed(&orphan).is_err());
    }
}
