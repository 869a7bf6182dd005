//! A snapshot, read and checked.
//!
//! ```text
//! file      "ZKSN"  version (4 bytes)  dbid (8)  sessions  ACLs  znodes  "/"  seal
//!           [ digest  seal ]  [ last zxid (8)  seal ]
//! sessions  count (4)  then each: id (8)  timeout (4)
//! ACLs      count (4)  then each: id (8)  list
//! znode     path  data  ACL's id (8)  czxid mzxid ctime mtime (8 each)
//!           version cversion aversion (4 each)  owner pzxid (8 each)
//! digest    zxid (8)  version (4)  digest (8; a hex string below version 2)
//! seal      Adler-32 of everything before it (8)  "/"
//! ```
//!
//! A snapshot is written while transactions are applied, so it can show effects of transactions behind the
//! one that it is named after: applying the log from there on, again, makes it whole.

use std::io;
use std::path::{Path, PathBuf};

use ringkeeper_proto::{Acl, AclList, Id, Perms, SessionId, TxnDigest, Zxid};
use ringkeeper_tree::Tree;
use ringkeeper_tree::restore::{Restore, Restored, StoredNode};

use crate::error::FileError;
use crate::log::name_zxid;
use crate::stream::{Compression, Source, bad, int_of, long_of};
use crate::{SNAPSHOT_MAGIC, SNAPSHOT_PREFIX, VERSION};

/// Bytes of a znode behind its data.
const STAT_BYTES: usize = 68;
/// Bytes of a seal.
const SEAL_BYTES: usize = 13;
/// Bytes of a digest whose version is at least 2.
const DIGEST_BYTES: usize = 20;
/// More than the longest trailer: digest and zxid with their seals, the digest as a string.
const TRAILER_BYTES_MAX: usize = 256;

/// The digest that a snapshot names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotDigest {
    /// The last transaction that was applied when the snapshot had been written.
    pub zxid: Zxid,
    /// How the digest was computed.
    pub version: i32,
    /// The digest after that transaction.
    pub digest: i64,
}

/// A snapshot that is whole.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The file.
    pub path: PathBuf,
    /// How it is compressed.
    pub compression: Compression,
    /// What it holds. Its zxid is the one in the file's name; of a file without one the last it tells of.
    pub tree: Tree,
    /// The last transaction that it may show an effect of. The log up to here must be applied before its
    /// tree is one that once was.
    pub fuzzy_through: Zxid,
    /// The digest that it names, if it does: releases before 3.6 do not.
    pub digest: Option<SnapshotDigest>,
    /// Znodes whose ACL is not in it; the log behind it must tell.
    pub without_acl: Vec<String>,
}

impl Snapshot {
    /// Whether the tree of an unfuzzy snapshot has the digest that the snapshot names; `None` where there is
    /// nothing to compare.
    pub fn digest_matches(&self) -> Option<bool> {
        let digest = self.digest?;
        let is_known = digest.version == TxnDigest::VERSION
            && digest.zxid == self.tree.zxid()
            && self.fuzzy_through == self.tree.zxid();
        is_known.then(|| digest.digest == self.tree.digest_to_wire())
    }
}

/// Reads the snapshot at `path` and checks all of it; `tick` is told of bytes as they are read.
///
/// # Errors
/// When the file cannot be read, or is not what was written.
pub fn read_snapshot(path: &Path, tick: &mut dyn FnMut(u64)) -> Result<Snapshot, FileError> {
    let (mut source, compression) =
        Source::open(path, tick).map_err(FileError::io("open", path))?;
    let read = read(&mut source);
    let (restore, trailer) = read.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            FileError::content(path, "the snapshot ends before it is complete")
        }
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            let at = source.at();
            FileError::content(
                path,
                format!("the snapshot is damaged at byte {at}: {error}"),
            )
        }
        _ => FileError::io("read", path)(error),
    })?;
    let told = [trailer.digest.map(|digest| digest.zxid), trailer.last_zxid];
    let told = told.into_iter().flatten().max().unwrap_or_default();
    let zxid = name_zxid(path, SNAPSHOT_PREFIX).unwrap_or(told);
    let Restored {
        tree,
        newest_zxid,
        without_acl,
    } = restore
        .finish(zxid)
        .map_err(|error| FileError::content(path, error.to_string()))?;
    Ok(Snapshot {
        path: path.to_owned(),
        compression,
        tree,
        fuzzy_through: zxid.max(told).max(newest_zxid),
        digest: trailer.digest,
        without_acl,
    })
}

#[derive(Clone, Copy, Debug, Default)]
struct Trailer {
    digest: Option<SnapshotDigest>,
    last_zxid: Option<Zxid>,
}

fn read(source: &mut Source<'_>) -> io::Result<(Restore, Trailer)> {
    if source.peek(4)? != SNAPSHOT_MAGIC {
        return Err(bad("it does not begin as a snapshot does"));
    }
    source.pass(4);
    if source.int()? != VERSION {
        return Err(bad("its version is not known"));
    }
    let _dbid = source.long()?;
    let mut restore = Restore::new();
    // Counts are not believed: each turn reads bytes that must be there.
    for _ in 0..source.int()? {
        let id = SessionId(source.long()?);
        restore.session(id, source.int()?);
    }
    for _ in 0..source.int()? {
        let id = source.long()?;
        restore.acl(id, read_acl(source)?);
    }
    while read_node(source, &mut restore)? {}
    read_seal(source)?;
    let trailer = read_trailer(source)?;
    Ok((restore, trailer))
}

fn read_acl(source: &mut Source<'_>) -> io::Result<AclList<'static>> {
    let mut entries = Vec::new();
    for _ in 0..source.int()? {
        entries.push(Acl {
            perms: Perms(source.int()?),
            id: Id::new(source.ustring()?, source.ustring()?),
        });
    }
    Ok(AclList::new(&entries))
}

/// Reads a znode; false at the mark behind the last one.
fn read_node(source: &mut Source<'_>, restore: &mut Restore) -> io::Result<bool> {
    let path_len = source.len_at(0)?.ok_or_else(|| bad("a path is null"))?;
    let path_end = 4 + path_len;
    if path_len == 1 && source.peek(path_end)?.ends_with(b"/") {
        source.pass(path_end);
        return Ok(false);
    }
    let data_len = source.len_at(path_end)?;
    let data_end = path_end + 4 + data_len.unwrap_or(0);
    let record = source.peek(data_end + STAT_BYTES)?;
    let part = |from, to| record.get(from..to).unwrap_or_default();
    let path = str::from_utf8(part(4, path_end)).map_err(|_| bad("a path is not UTF-8"))?;
    let long = |at: usize| long_of(part(data_end + at, record.len()));
    let int = |at: usize| int_of(part(data_end + at, record.len()));
    let node = StoredNode {
        path,
        data: data_len.map(|_| part(path_end + 4, data_end)),
        acl: long(0),
        czxid: long(8),
        mzxid: long(16),
        ctime: long(24),
        mtime: long(32),
        version: int(40),
        cversion: int(44),
        aversion: int(48),
        owner: long(52),
        pzxid: long(60),
    };
    restore.node(&node).map_err(io::Error::other)?;
    let len = record.len();
    source.pass(len);
    Ok(true)
}

fn read_seal(source: &mut Source<'_>) -> io::Result<()> {
    let sum = source.sum();
    let seal = source.peek(SEAL_BYTES)?;
    if long_of(seal) != i64::from(sum) || seal.get(8..) != Some(&b"\0\0\0\x01/"[..]) {
        return Err(bad("its checksum does not hold"));
    }
    source.pass(SEAL_BYTES);
    Ok(())
}

/// What follows the first seal, told apart by its length: with `digest.enabled=false` the zxid stands where
/// the digest would.
fn read_trailer(source: &mut Source<'_>) -> io::Result<Trailer> {
    const ZXID_BYTES: usize = 8;
    let mut trailer = Trailer::default();
    let len = source.rest(TRAILER_BYTES_MAX)?.len();
    if len == 0 {
        return Ok(trailer);
    }
    if len != ZXID_BYTES + SEAL_BYTES {
        trailer.digest = read_digest(source)?;
        read_seal(source)?;
        if source.rest(1)?.is_empty() {
            return Ok(trailer);
        }
    }
    trailer.last_zxid = Some(Zxid::from_wire(source.long()?));
    read_seal(source)?;
    if !source.rest(1)?.is_empty() {
        return Err(bad("something stands behind its end"));
    }
    Ok(trailer)
}

/// The digest; `None` when it is empty.
fn read_digest(source: &mut Source<'_>) -> io::Result<Option<SnapshotDigest>> {
    let start = source.peek(DIGEST_BYTES)?;
    let (zxid, version) = (long_of(start), int_of(start.get(8..).unwrap_or_default()));
    let digest = if version < TxnDigest::VERSION {
        source.pass(12);
        let text = source.ustring()?;
        i64::from_str_radix(&text, 16).map_err(|_| bad("its digest is not a number"))?
    } else {
        let digest = long_of(start.get(12..).unwrap_or_default());
        source.pass(DIGEST_BYTES);
        digest
    };
    Ok((zxid > 0).then_some(SnapshotDigest {
        zxid: Zxid::from_wire(zxid),
        version,
        digest,
    }))
}
