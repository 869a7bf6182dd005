//! `show-snapshot`: what a snapshot holds.

use std::path::Path;

use clap::Args;
use ringkeeper_apache_files::{Snapshot, read_snapshot};
use ringkeeper_tree::Tree;
use serde_json::json;

use crate::apache_verify::compression_name;
use crate::exit::{Exit, Failure};
use crate::input::{Input, Source};
use crate::output::Output;
use crate::progress::bytes_bar;
use crate::render;
use crate::state::load_snapshot;
use crate::znode;

/// Show what a snapshot holds: figures, sessions, and with --nodes every znode
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    input: Input,
    /// List every znode with its stat
    #[arg(long)]
    nodes: bool,
    /// List every znode with its data as well
    #[arg(long)]
    data: bool,
    /// List the sessions and their ephemerals
    #[arg(long)]
    sessions: bool,
    /// Only znodes at or below this path
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let tree = match options.input.open()? {
        Source::Own(dir) => {
            let newest = dir.usable_snapshots().next_back();
            let file = newest.ok_or_else(none)?;
            let tree = load_snapshot(&file.path)?;
            show_figures(&file.path, &tree, None, out)?;
            tree
        }
        Source::Apache(dir) => {
            let (_, path) = dir.snapshots.last().ok_or_else(none)?;
            let bar = bytes_bar("read", dir.snapshot_bytes(), out.quiet);
            let snapshot = read_snapshot(path, &mut |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
            show_figures(path, &snapshot.tree, Some(&snapshot), out)?;
            snapshot.tree
        }
    };
    if options.sessions {
        show_sessions(&tree, out)?;
    }
    if options.nodes || options.data {
        show_nodes(&tree, options, out)?;
    }
    Ok(Exit::Ok)
}

fn none() -> anyhow::Error {
    Failure::unreadable("there is no snapshot")
}

fn show_figures(
    path: &Path,
    tree: &Tree,
    apache: Option<&Snapshot>,
    out: &mut Output,
) -> anyhow::Result<()> {
    if out.json {
        let mut value = json!({
            "file": path.display().to_string(),
            "zxid": tree.zxid().to_string(),
            "znodes": tree.node_count(),
            "digest": format!("{:#x}", tree.digest()),
            "sessions": tree.sessions().len(),
            "ephemerals": tree.ephemerals_count(),
            "acls": tree.acl_count(),
            "data_bytes": tree.approximate_data_size(),
        });
        if let (Some(snapshot), Some(map)) = (apache, value.as_object_mut()) {
            let named = snapshot.digest.map(|digest| {
                json!({
                    "zxid": digest.zxid.to_string(),
                    "version": digest.version,
                    "digest": format!("{:#x}", digest.digest),
                })
            });
            let compression = compression_name(snapshot.compression);
            map.insert("compression".into(), json!(compression));
            let through = snapshot.fuzzy_through.to_string();
            map.insert("fuzzy_through".into(), json!(through));
            map.insert("named_digest".into(), json!(named));
        }
        out.value(&value)?;
        return Ok(());
    }
    for line in [
        format!("file = {}", path.display()),
        format!("zxid = {}", tree.zxid()),
        format!("znodes = {}", tree.node_count()),
        format!("digest = {:#x}", tree.digest()),
        format!("sessions = {}", tree.sessions().len()),
        format!("ephemerals = {}", tree.ephemerals_count()),
        format!("acls = {}", tree.acl_count()),
        format!("bytes of paths and data = {}", tree.approximate_data_size()),
    ] {
        out.line(line)?;
    }
    let Some(snapshot) = apache else {
        return Ok(());
    };
    out.line(format!(
        "compression = {}",
        compression_name(snapshot.compression)
    ))?;
    if snapshot.fuzzy_through > tree.zxid() {
        out.line(format!(
            "may show transactions up to = {}",
            snapshot.fuzzy_through
        ))?;
    }
    if let Some(digest) = snapshot.digest {
        out.line(format!(
            "digest named for {} = {:#x}",
            digest.zxid, digest.digest
        ))?;
    }
    Ok(())
}

fn show_sessions(tree: &Tree, out: &mut Output) -> anyhow::Result<()> {
    let mut sessions: Vec<_> = tree.sessions().collect();
    sessions.sort_unstable_by_key(|(id, _)| id.0);
    for (id, timeout_ms) in sessions {
        let mut paths: Vec<_> = tree.ephemerals(id).collect();
        paths.sort_unstable();
        if out.json {
            out.value(&json!({
                "session": render::session(id),
                "timeout_ms": timeout_ms,
                "ephemerals": paths,
            }))?;
        } else {
            let id = render::session(id);
            out.line(format!(
                "session {id} timeout {timeout_ms} ms ephemerals {}",
                paths.len()
            ))?;
            for path in paths {
                out.line(format!("  {path}"))?;
            }
        }
    }
    Ok(())
}

fn show_nodes(tree: &Tree, options: &Options, out: &mut Output) -> anyhow::Result<()> {
    let Some(root) = tree.get(&options.path) else {
        return Err(Failure::unreadable(format!(
            "{} is not in the snapshot",
            options.path
        )));
    };
    let path = options.path.trim_end_matches('/');
    let path = if path.is_empty() { "/" } else { path };
    znode::walk(root, path, &mut |path, _, node| {
        if out.json {
            out.value(&znode::json(tree, path, node, options.data))?;
            return Ok(true);
        }
        out.line("----")?;
        out.line(path)?;
        for line in znode::lines(tree, node) {
            out.line(format!("  {line}"))?;
        }
        if options.data {
            out.line(format!("  data = {}", render::data(node.data(), true)))?;
        }
        Ok(true)
    })
}
