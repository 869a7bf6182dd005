//! Reads: answered on the shard from the published tree, with no lock and no hop.

use bytes::{BufMut, BytesMut};
use ringkeeper_proto::acl::Perms;
use ringkeeper_proto::jute::{WriteJute, put_frame, wire_len};
use ringkeeper_proto::reply::{ReplyHeader, put_multi_error, put_watch_event};
use ringkeeper_proto::request::{MultiHeader, Request, SetWatchesRequest};
use ringkeeper_proto::{Id, OpCode, SessionId, Xid, ZkError};
use ringkeeper_tree::settings::Settings;
use ringkeeper_tree::watch::{self, WatchKind, WatchMode, WatchTable, Watcher};
use ringkeeper_tree::{AclHandle, Node, Tree, acl};

/// What a read needs to know of its shard and its client.
#[derive(Debug)]
pub(crate) struct ReadContext<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) settings: &'a Settings,
    pub(crate) watches: &'a mut WatchTable,
    pub(crate) watcher: Watcher,
    pub(crate) session: SessionId,
    pub(crate) identities: &'a [Id],
}

impl ReadContext<'_> {
    /// Appends the reply to `request`, after the events that a setWatches makes. Returns the outcome
    /// for the statistics.
    pub(crate) fn reply(
        &mut self,
        xid: Xid,
        request: &Request<'_>,
        out: &mut BytesMut,
    ) -> Result<(), ZkError> {
        if let Request::SetWatches { watches, .. } = request {
            self.set_watches(watches, out);
        }
        let mut outcome = Ok(());
        let zxid = self.tree.zxid();
        put_frame(out, |out| {
            let start = out.len();
            ReplyHeader::new(xid, zxid, Ok(())).encode(out);
            outcome = self.body(request, out);
            if outcome.is_err() {
                out.truncate(start);
                ReplyHeader::new(xid, zxid, outcome).encode(out);
            }
        });
        outcome
    }

    fn body(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<(), ZkError> {
        match request {
            Request::Exists { path, watch } => self.exists(path, *watch, out),
            Request::GetData { path, watch } => self.get_data(path, *watch, out),
            Request::GetChildren { op, path, watch } => {
                self.get_children(path, *watch, *op == OpCode::GetChildren2, out)
            }
            Request::GetAcl { path } => self.get_acl(path, out),
            Request::GetAllChildrenNumber { path } => {
                // ZK: it counts the paths that begin with the path and a slash; for "" that is "/" too.
                let count = self.readable(path)?.all_children_number() + u64::from(path.is_empty());
                out.put_i32(i32::try_from(count).unwrap_or(i32::MAX));
                Ok(())
            }
            Request::GetEphemerals { prefix } => {
                self.get_ephemerals(prefix, out);
                Ok(())
            }
            Request::MultiRead(ops) => {
                self.multi_read(ops, out);
                Ok(())
            }
            Request::WhoAmI => {
                put_who_am_i(self.identities, self.settings, out);
                Ok(())
            }
            Request::AddWatch { path, mode } => {
                self.watches
                    .add(path, self.watcher, WatchMode::from_add_watch(*mode)?);
                // ZK: the reply is an ErrorResponse of 0.
                out.put_i32(0);
                Ok(())
            }
            Request::CheckWatches { path, kind } => {
                let kind = WatchKind::from_code(*kind)?;
                let is_there = self.watches.contains(path, self.watcher, kind);
                if is_there {
                    Ok(())
                } else {
                    Err(ZkError::NoWatcher)
                }
            }
            Request::RemoveWatches { path, kind } => {
                self.watches
                    .remove(path, self.watcher, WatchKind::from_code(*kind)?)
            }
            Request::Ping | Request::SetWatches { .. } => Ok(()),
            _ => Err(ZkError::Unimplemented),
        }
    }

    fn readable(&self, path: &str) -> Result<Node<'_>, ZkError> {
        let node = self.tree.get(path).ok_or(ZkError::NoNode)?;
        self.allow(node, Perms::READ)?;
        Ok(node)
    }

    fn allow(&self, node: Node<'_>, perms: Perms) -> Result<(), ZkError> {
        if acl::allows(
            self.tree.acl_of(node),
            perms,
            self.identities,
            self.settings,
        ) {
            Ok(())
        } else {
            Err(ZkError::NoAuth)
        }
    }

    fn exists(&mut self, path: &str, watch: bool, out: &mut BytesMut) -> Result<(), ZkError> {
        if path.contains('\0') {
            return Err(ZkError::BadArguments);
        }
        let node = self.tree.get(path);
        if let Some(node) = node {
            self.allow(node, Perms::READ)?;
        }
        if watch {
            self.watches.add(path, self.watcher, WatchMode::Data);
        }
        node.ok_or(ZkError::NoNode)?.stat().encode(out);
        Ok(())
    }

    fn get_data(&mut self, path: &str, watch: bool, out: &mut BytesMut) -> Result<(), ZkError> {
        let node = self.readable(path)?;
        out.put_buffer(node.data());
        node.stat().encode(out);
        if watch {
            self.watches.add(path, self.watcher, WatchMode::Data);
        }
        Ok(())
    }

    fn get_children(
        &mut self,
        path: &str,
        watch: bool,
        with_stat: bool,
        out: &mut BytesMut,
    ) -> Result<(), ZkError> {
        let node = self.readable(path)?;
        out.put_i32(wire_len(node.num_children()));
        for name in node.child_names() {
            out.put_ustring(name);
        }
        if with_stat {
            node.stat().encode(out);
        }
        if watch {
            self.watches.add(path, self.watcher, WatchMode::Child);
        }
        Ok(())
    }

    fn get_acl(&self, path: &str, out: &mut BytesMut) -> Result<(), ZkError> {
        let node = self.tree.get(path).ok_or(ZkError::NoNode)?;
        self.allow(node, Perms::READ.union(Perms::ADMIN))?;
        let entries: &AclHandle = self.tree.acl_of(node);
        if self.allow(node, Perms::ADMIN).is_ok() {
            entries.list().encode(out);
        } else {
            acl::redacted(entries.list()).encode(out);
        }
        node.stat().encode(out);
        Ok(())
    }

    fn get_ephemerals(&self, prefix: &str, out: &mut BytesMut) {
        // ZK: String.trim takes every control character for white space.
        let trimmed = prefix.trim_matches(|character| character <= ' ');
        let all = trimmed.is_empty() || trimmed == "/";
        let count_at = out.len();
        out.put_i32(0);
        let mut count = 0;
        for path in self.tree.ephemerals(self.session) {
            if all || path.starts_with(prefix) {
                out.put_ustring(path);
                count += 1;
            }
        }
        if let Some(place) = out.get_mut(count_at..count_at + 4) {
            place.copy_from_slice(&wire_len(count).to_be_bytes());
        }
    }

    fn multi_read(&mut self, ops: &[Request<'_>], out: &mut BytesMut) {
        for op in ops {
            let start = out.len();
            MultiHeader {
                op: op.op().code(),
                done: false,
                error: 0,
            }
            .encode(out);
            // ZK: a multi keeps the path of a read only, not its watch flag.
            let read = match op {
                Request::GetData { path, .. } => self.get_data(path, false, out),
                Request::GetChildren { path, .. } => self.get_children(path, false, false, out),
                _ => Err(ZkError::Unimplemented),
            };
            if let Err(error) = read {
                out.truncate(start);
                put_multi_error(error.code(), out);
            }
        }
        MultiHeader::END.encode(out);
    }

    fn set_watches(&mut self, request: &SetWatchesRequest<'_>, out: &mut BytesMut) {
        watch::set_watches(
            self.tree,
            self.watches,
            self.watcher,
            request,
            |kind, path| {
                put_watch_event(kind, path, None, out);
            },
        );
    }
}

// ZK: WhoAmIResponse lists scheme and user; of a digest id only the name (AuthUtil.getUser).
fn put_who_am_i(identities: &[Id], settings: &Settings, out: &mut BytesMut) {
    out.put_i32(wire_len(identities.len()));
    for id in identities {
        out.put_ustring(&id.scheme);
        out.put_ustring(acl::user_name(id, settings));
    }
}
