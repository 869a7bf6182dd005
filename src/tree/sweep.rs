//! Containers and TTL znodes whose time is over (`ContainerManager`).

use crate::node::{Node, NodeKind};
use crate::tree::Tree;

/// The paths of the znodes to delete at `now_ms`, by the clock that writes their `mtime`: containers
/// that had children and have none, or that never had any for more than `never_used_ms_max`
/// (0: never), and TTL znodes without children that were not written to for longer than they may.
///
/// Each is then deleted by a [`DeleteContainer`](ringkeeper_proto::Request::DeleteContainer), which
/// looks again.
pub fn expired(tree: &Tree, now_ms: i64, never_used_ms_max: i64) -> impl Iterator<Item = &str> {
    let is_expired = move |path: &&str| {
        let node = tree.get(path).filter(|node| node.num_children() == 0);
        node.is_some_and(|node| is_expired(node, now_ms, never_used_ms_max))
    };
    tree.containers().chain(tree.ttl_nodes()).filter(is_expired)
}

/// Whether the time of a znode without children is over.
pub(crate) fn is_expired(node: Node<'_>, now_ms: i64, never_used_ms_max: i64) -> bool {
    let age_ms = now_ms.saturating_sub(node.mtime_ms());
    match node.kind() {
        // ZK: a container made just before the sweep is given time for its first child.
        NodeKind::Container => {
            node.cversion_raw() > 0 || never_used_ms_max != 0 && age_ms > never_used_ms_max
        }
        NodeKind::Ttl(ttl_ms) => ttl_ms != 0 && age_ms > ttl_ms,
        NodeKind::Persistent | NodeKind::Ephemeral => false,
    }
}
