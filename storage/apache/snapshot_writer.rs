//! A snapshot as Apache reads it: everything that it validates is there, and what older releases do not
//! know stands behind what they read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::BufMut as _;
use ringkeeper_proto::{TxnDigest, WriteJute as _};
use ringkeeper_tree::Tree;
use ringkeeper_tree::image::put_node;

use crate::epochs::sync_folder;
use crate::error::FileError;
use crate::stream::{Compression, Sink};
use crate::{SNAPSHOT_MAGIC, SNAPSHOT_PREFIX, VERSION};

/// What Apache writes into every snapshot's header.
const DBID: i64 = -1;
/// Written in pieces of about this size.
const PIECE: usize = 64 << 10;

/// Writes `tree` as a snapshot into `folder` (`version-2`), durably: beside its place, flushed, renamed.
/// Returns its path. `tick` is told of znodes as they are written.
///
/// # Errors
/// When the system cannot write it.
pub fn write_snapshot(
    tree: &Tree,
    folder: &Path,
    compression: Compression,
    tick: &mut dyn FnMut(u64),
) -> Result<PathBuf, FileError> {
    let name = format!(
        "{SNAPSHOT_PREFIX}{:x}{}",
        tree.zxid().0,
        compression.suffix()
    );
    let path = folder.join(&name);
    // Apache would take what begins with "snapshot." for one.
    let beside = folder.join(format!("unfinished-{name}"));
    let mut sink = Sink::create(&beside, compression).map_err(FileError::io("create", &beside))?;
    write(tree, &mut sink, tick)
        .and_then(|()| sink.finish())
        .map_err(FileError::io("write", &beside))?;
    fs::rename(&beside, &path).map_err(FileError::io("rename", &beside))?;
    sync_folder(folder)?;
    Ok(path)
}

fn write(tree: &Tree, sink: &mut Sink, tick: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut out = Vec::with_capacity(2 * PIECE);
    out.put_slice(&SNAPSHOT_MAGIC);
    out.put_i32(VERSION);
    out.put_i64(DBID);
    let sessions = tree.sessions();
    out.put_i32(count(sessions.len())?);
    for (id, timeout_ms) in sessions {
        out.put_i64(id.0);
        out.put_i32(timeout_ms);
        put_piece(&mut out, sink, PIECE)?;
    }
    let acls = tree.acls();
    out.put_i32(count(acls.len())?);
    for (id, acl) in acls {
        out.put_i64(id.into());
        acl.list().encode(&mut out);
        put_piece(&mut out, sink, PIECE)?;
    }
    put_nodes(tree, &mut out, sink, tick)?;
    out.put_ustring("/");
    put_seal(&mut out, sink)?;
    out.put_i64(tree.zxid().to_wire());
    out.put_i32(TxnDigest::VERSION);
    out.put_i64(tree.digest_to_wire());
    put_seal(&mut out, sink)?;
    out.put_i64(tree.zxid().to_wire());
    put_seal(&mut out, sink)
}

/// Writes all znodes in depth-first order, with an explicit stack: a deep tree must not overflow ours.
fn put_nodes(
    tree: &Tree,
    out: &mut Vec<u8>,
    sink: &mut Sink,
    tick: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut path = String::new();
    put_node(&path, tree.root(), out);
    tick(1);
    let mut open = vec![tree.root().children()];
    while let Some(children) = open.last_mut() {
        let Some(child) = children.next() else {
            open.pop();
            path.truncate(path.rfind('/').unwrap_or(0));
            continue;
        };
        path.push('/');
        path.push_str(child.name());
        put_node(&path, child, out);
        put_piece(out, sink, PIECE)?;
        tick(1);
        open.push(child.children());
    }
    Ok(())
}

fn put_seal(out: &mut Vec<u8>, sink: &mut Sink) -> io::Result<()> {
    put_piece(out, sink, 0)?;
    out.put_i64(sink.sum().into());
    out.put_ustring("/");
    put_piece(out, sink, 0)
}

/// Writes `out` when it is longer than `len`.
fn put_piece(out: &mut Vec<u8>, sink: &mut Sink, len: usize) -> io::Result<()> {
    if out.len() > len {
        sink.write(out)?;
        out.clear();
    }
    Ok(())
}

fn count(len: usize) -> io::Result<i32> {
    i32::try_from(len).map_err(io::Error::other)
}
