//! `diff`: which znodes two states have differently, and since which transaction.

use std::path::PathBuf;

use clap::Args;
use ringkeeper_proto::Zxid;
use ringkeeper_tree::{Node, Tree};
use serde_json::{Map, Value, json};

use crate::exit::Exit;
use crate::filter::parse_zxid;
use crate::input::{Format, Input};
use crate::output::Output;
use crate::state;
use crate::znode::{join, sorted_children};

/// Compare two snapshots or data directories: which znodes differ, and since which zxid (status 1 if any does)
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// A data directory or a snapshot
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// Another one
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// OLD's state at this zxid, not its newest
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    old_at: Option<Zxid>,
    /// NEW's state at this zxid, not its newest
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    new_at: Option<Zxid>,
    /// Both states at this zxid
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid, conflicts_with_all = ["old_at", "new_at"])]
    at: Option<Zxid>,
    /// Only znodes at or below this path
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// Leave out znodes below /zookeeper, whose statistics may differ between servers
    #[arg(long)]
    skip_system: bool,
    /// Do not list znodes but subtrees whose sizes differ, down to this many levels
    #[arg(long, value_name = "LEVELS")]
    by_subtree: Option<usize>,
    /// With --by-subtree: only those that differ by so many bytes of data
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 1,
        requires = "by_subtree"
    )]
    bytes_min: u64,
    /// With --by-subtree: or by so many znodes
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 1,
        requires = "by_subtree"
    )]
    znodes_min: u64,
    /// The directory of OLD's log, where dataLogDir is configured
    #[arg(long, value_name = "DIR")]
    old_log_dir: Option<PathBuf>,
    /// The directory of NEW's log
    #[arg(long, value_name = "DIR")]
    new_log_dir: Option<PathBuf>,
    /// Which data to read where a directory holds both formats
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Which data to read of OLD, where it holds both formats
    #[arg(long, value_enum)]
    old_format: Option<Format>,
    /// Which data to read of NEW, where it holds both formats
    #[arg(long, value_enum)]
    new_format: Option<Format>,
}

/// What is different about a znode.
#[derive(Debug)]
struct Difference {
    path: String,
    /// Which parts: `added`, `removed`, or `data`, `acl`, `stat`, `children`, `kind`.
    parts: Vec<&'static str>,
    /// The transaction since which it is so, where the znodes tell.
    since: Option<Zxid>,
    /// Whether it may be so since earlier.
    since_at_latest: bool,
}

/// How much differs.
#[derive(Debug, Default)]
struct Totals {
    added: u64,
    removed: u64,
    changed: u64,
    first: Option<Zxid>,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let old = Input::of(
        &options.old,
        options.old_log_dir.as_deref(),
        options.old_format.or(options.format),
    );
    let new = Input::of(
        &options.new,
        options.new_log_dir.as_deref(),
        options.new_format.or(options.format),
    );
    let old = state::of_input(&old, options.old_at.or(options.at), out.quiet)?.tree;
    let new = state::of_input(&new, options.new_at.or(options.at), out.quiet)?.tree;
    if let Some(levels) = options.by_subtree {
        return compare_sizes(&old, &new, levels, options, out);
    }
    let mut totals = Totals::default();
    compare(&old, &new, options, &mut |difference| {
        totals.count(&difference);
        show(&difference, out)
    })?;
    let sessions = session_differences(&old, &new);
    for line in &sessions {
        if !out.json {
            out.line(line)?;
        }
    }
    let same = totals.added + totals.removed + totals.changed == 0 && sessions.is_empty();
    if out.json {
        out.value(&json!({
            "old_zxid": old.zxid().to_string(),
            "new_zxid": new.zxid().to_string(),
            "old_digest": format!("{:#x}", old.digest()),
            "new_digest": format!("{:#x}", new.digest()),
            "added": totals.added,
            "removed": totals.removed,
            "changed": totals.changed,
            "sessions": sessions,
            "since": totals.first.map(|zxid| zxid.to_string()),
            "equal": same,
        }))?;
    } else {
        let verdict = if same {
            "equal".to_owned()
        } else {
            let since = totals
                .first
                .map_or_else(String::new, |zxid| format!(", the first since {zxid}"));
            format!(
                "{} added, {} removed, {} changed{since}",
                totals.added, totals.removed, totals.changed
            )
        };
        out.line(format!("{} to {}: {verdict}", old.zxid(), new.zxid()))?;
    }
    Ok(if same { Exit::Ok } else { Exit::Found })
}

/// Tells which subtrees differ in size.
fn compare_sizes(
    old: &Tree,
    new: &Tree,
    levels: usize,
    options: &Options,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let size = |node: Option<Node<'_>>| {
        node.map_or((0, 0), |node| {
            (node.subtree_bytes(), node.all_children_number() + 1)
        })
    };
    let top = options.path.trim_end_matches('/');
    let path = if top.is_empty() { "/" } else { top };
    let mut stack = vec![(path.to_owned(), 0, old.get(path), new.get(path))];
    let mut found = false;
    while let Some((path, level, old, new)) = stack.pop() {
        let ((old_bytes, old_znodes), (new_bytes, new_znodes)) = (size(old), size(new));
        let is_large = old_bytes.abs_diff(new_bytes) >= options.bytes_min
            || old_znodes.abs_diff(new_znodes) >= options.znodes_min;
        if !is_large {
            continue;
        }
        found = true;
        if out.json {
            out.value(&json!({
                "path": path,
                "old_bytes": old_bytes, "new_bytes": new_bytes,
                "old_znodes": old_znodes, "new_znodes": new_znodes,
            }))?;
        } else {
            out.line(format!(
                "{path}: bytes {old_bytes} to {new_bytes}, znodes {old_znodes} to {new_znodes}"
            ))?;
        }
        if level < levels {
            for (old, new) in names_of_both(old, new).into_iter().rev() {
                let name = old.or(new).map(Node::name).unwrap_or_default();
                stack.push((join(&path, name), level + 1, old, new));
            }
        }
    }
    Ok(if found { Exit::Found } else { Exit::Ok })
}

impl Totals {
    fn count(&mut self, difference: &Difference) {
        match difference.parts.first() {
            Some(&"added") => self.added += 1,
            Some(&"removed") => self.removed += 1,
            _ => self.changed += 1,
        }
        if let Some(since) = difference.since {
            self.first = Some(self.first.map_or(since, |first| first.min(since)));
        }
    }
}

/// A place to compare: the znode in either tree, if it is there.
struct Pair<'t> {
    path: String,
    old: Option<Node<'t>>,
    new: Option<Node<'t>>,
    /// The last change of children of the nearest ancestor that the new tree has: a removal was then or earlier.
    parent_pzxid: i64,
}

fn compare(
    old: &Tree,
    new: &Tree,
    options: &Options,
    tell: &mut dyn FnMut(Difference) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let top = options.path.trim_end_matches('/');
    let path = if top.is_empty() { "/" } else { top };
    let mut stack = vec![Pair {
        path: path.to_owned(),
        old: old.get(path),
        new: new.get(path),
        parent_pzxid: 0,
    }];
    while let Some(pair) = stack.pop() {
        if let Some(difference) = judge(old, new, &pair) {
            tell(difference)?;
        }
        if options.skip_system && pair.path == "/zookeeper" {
            continue;
        }
        let parent_pzxid = pair.new.map_or(pair.parent_pzxid, Node::pzxid);
        let names = names_of_both(pair.old, pair.new);
        for (old, new) in names.into_iter().rev() {
            let name = old.or(new).map(Node::name).unwrap_or_default();
            stack.push(Pair {
                path: join(&pair.path, name),
                old,
                new,
                parent_pzxid,
            });
        }
    }
    Ok(())
}

/// The children of both, paired by name, in the order of their names.
fn names_of_both<'t>(
    old: Option<Node<'t>>,
    new: Option<Node<'t>>,
) -> Vec<(Option<Node<'t>>, Option<Node<'t>>)> {
    let mut old = old
        .map(sorted_children)
        .unwrap_or_default()
        .into_iter()
        .peekable();
    let mut new = new
        .map(sorted_children)
        .unwrap_or_default()
        .into_iter()
        .peekable();
    let mut pairs = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return pairs,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => a.name().cmp(b.name()),
        };
        pairs.push((
            order.is_le().then(|| old.next()).flatten(),
            order.is_ge().then(|| new.next()).flatten(),
        ));
    }
}

fn judge(old_tree: &Tree, new_tree: &Tree, pair: &Pair<'_>) -> Option<Difference> {
    let difference = |parts, since: Option<i64>, since_at_latest| {
        let since = since.filter(|zxid| *zxid > 0).map(Zxid::from_wire);
        Some(Difference {
            path: pair.path.clone(),
            parts,
            since,
            since_at_latest: since_at_latest && since.is_some(),
        })
    };
    let (old, new) = match (pair.old, pair.new) {
        (None, None) => return None,
        (None, Some(new)) => return difference(vec!["added"], Some(new.czxid()), false),
        (Some(_), None) => return difference(vec!["removed"], Some(pair.parent_pzxid), true),
        (Some(old), Some(new)) => (old, new),
    };
    let (before, after) = (old.stat(), new.stat());
    let mut parts = Vec::new();
    let mut since: Vec<i64> = Vec::new();
    let mut is_bound = false;
    if old.data() != new.data() {
        parts.push("data");
        since.push(first_of(before.mzxid, after.mzxid));
    }
    if old_tree.acl_of(old).list() != new_tree.acl_of(new).list() {
        parts.push("acl");
    }
    if old.ephemeral_owner_raw() != new.ephemeral_owner_raw() {
        parts.push("owner");
    }
    let own =
        |s: &ringkeeper_proto::Stat| (s.czxid, s.mzxid, s.ctime, s.mtime, s.version, s.aversion);
    if own(&before) != own(&after) {
        parts.push("stat");
        if before.czxid != after.czxid {
            since.push(first_of(before.czxid, after.czxid));
        } else if before.mzxid != after.mzxid {
            since.push(first_of(before.mzxid, after.mzxid));
            // It may have been set more than once since.
            is_bound |= before.version.wrapping_add(1) != after.version;
        }
    }
    let below = |s: &ringkeeper_proto::Stat| (s.pzxid, s.cversion, s.num_children);
    if below(&before) != below(&after) {
        parts.push("children");
        since.push(first_of(before.pzxid, after.pzxid));
        is_bound = true;
    }
    if parts.is_empty() {
        return None;
    }
    difference(
        parts,
        since.into_iter().filter(|zxid| *zxid > 0).min(),
        is_bound,
    )
}

/// Of two zxids the later one, when they differ: the state that has it went on from the other.
const fn first_of(old: i64, new: i64) -> i64 {
    if old == new {
        0
    } else if old > new {
        old
    } else {
        new
    }
}

fn show(difference: &Difference, out: &mut Output) -> anyhow::Result<()> {
    let parts = difference.parts.join(",");
    if out.json {
        let mut map = Map::new();
        map.insert("path".into(), json!(difference.path));
        map.insert("differs".into(), json!(difference.parts));
        map.insert(
            "since".into(),
            json!(difference.since.map(|zxid| zxid.to_string())),
        );
        map.insert("since_at_latest".into(), json!(difference.since_at_latest));
        out.value(&Value::Object(map))?;
        return Ok(());
    }
    let since = match (difference.since, difference.since_at_latest) {
        (None, _) => String::new(),
        (Some(zxid), false) => format!(" since {zxid}"),
        (Some(zxid), true) => format!(" since {zxid} or earlier"),
    };
    out.line(format!("{parts} {}{since}", difference.path))?;
    Ok(())
}

fn session_differences(old: &Tree, new: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, timeout_ms) in old.sessions() {
        match new.session_timeout(id) {
            None => lines.push(format!("session {:#x} removed", id.0)),
            Some(other) if other != timeout_ms => {
                lines.push(format!(
                    "session {:#x} timeout {timeout_ms} ms, then {other} ms",
                    id.0
                ));
            }
            Some(_) => {}
        }
    }
    for (id, _) in new.sessions() {
        if old.session_timeout(id).is_none() {
            lines.push(format!("session {:#x} added", id.0));
        }
    }
    lines.sort_unstable();
    lines
}
