//! A znode of a tree as people and machines read it.

use ringkeeper_tree::{Node, NodeKind, Tree};
use serde_json::{Value, json};

use crate::render;

/// Its stat and ACL, one line each, with the names that zkCli prints.
pub(crate) fn lines(tree: &Tree, node: Node<'_>) -> Vec<String> {
    let stat = node.stat();
    vec![
        format!("cZxid = {:#x}", stat.czxid),
        format!("ctime = {}", render::time(stat.ctime)),
        format!("mZxid = {:#x}", stat.mzxid),
        format!("mtime = {}", render::time(stat.mtime)),
        format!("pZxid = {:#x}", stat.pzxid),
        format!("cversion = {}", stat.cversion),
        format!("dataVersion = {}", stat.version),
        format!("aclVersion = {}", stat.aversion),
        format!("ephemeralOwner = {:#x}", stat.ephemeral_owner),
        format!("kind = {}", kind(node)),
        format!("acl = {}", render::acl(tree.acl_of(node).list())),
        format!("dataLength = {}", stat.data_length),
        format!("numChildren = {}", stat.num_children),
    ]
}

/// Everything about it, for machines.
pub(crate) fn json(tree: &Tree, path: &str, node: Node<'_>, with_data: bool) -> Value {
    let stat = node.stat();
    let mut value = json!({
        "path": path,
        "kind": kind(node),
        "czxid": format!("{:#x}", stat.czxid),
        "mzxid": format!("{:#x}", stat.mzxid),
        "pzxid": format!("{:#x}", stat.pzxid),
        "ctime_ms": stat.ctime,
        "mtime_ms": stat.mtime,
        "version": stat.version,
        "cversion": stat.cversion,
        "aversion": stat.aversion,
        "ephemeral_owner": format!("{:#x}", stat.ephemeral_owner),
        "acl": render::acl_json(tree.acl_of(node).list()),
        "data_bytes": stat.data_length,
        "children": stat.num_children,
    });
    if let (true, Some(map)) = (with_data, value.as_object_mut()) {
        map.insert("data_base64".into(), render::data_json(node.data()));
    }
    value
}

/// Its kind in a word or two.
pub(crate) fn kind(node: Node<'_>) -> String {
    match node.kind() {
        NodeKind::Persistent => "persistent".to_owned(),
        NodeKind::Ephemeral => "ephemeral".to_owned(),
        NodeKind::Container => "container".to_owned(),
        NodeKind::Ttl(ms) => format!("ttl {ms} ms"),
    }
}

/// Children of a znode in the order of their names.
pub(crate) fn sorted_children(node: Node<'_>) -> Vec<Node<'_>> {
    let mut children: Vec<_> = node.children().collect();
    children.sort_unstable_by_key(|child| child.name());
    children
}

/// The path of a child.
pub(crate) fn join(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

/// The deepest nesting that a walk follows; a path has at most a MiB.
pub(crate) const DEPTH_MAX: usize = 1 << 20;

/// Walks a subtree in depth-first order, children by name, with an explicit stack: a deep tree must not overflow
/// ours. `visit` gets path, depth and znode, and says whether to go below it.
pub(crate) fn walk<'t>(
    root: Node<'t>,
    path: &str,
    visit: &mut dyn FnMut(&str, usize, Node<'t>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut stack = vec![(path.to_owned(), 0_usize, root)];
    while let Some((path, depth, node)) = stack.pop() {
        if !visit(&path, depth, node)? || depth >= DEPTH_MAX {
            continue;
        }
        for child in sorted_children(node).into_iter().rev() {
            stack.push((join(&path, child.name()), depth + 1, child));
        }
    }
    Ok(())
}
