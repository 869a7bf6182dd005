//! `tree`: how many znodes and bytes lie below each path, as a disk-usage tool shows directories.

use clap::Args;
use ringkeeper_proto::Zxid;
use ringkeeper_tree::Node;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::filter::parse_zxid;
use crate::input::Input;
use crate::output::Output;
use crate::state;
use crate::znode::{join, sorted_children};

/// Show how many znodes and bytes lie below each path
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    input: Input,
    /// Begin at this znode
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// How many levels below it to list
    #[arg(long, short, value_name = "LEVELS", default_value_t = 2)]
    depth: usize,
    /// The largest first, by bytes
    #[arg(long)]
    sort: bool,
    /// The state at this zxid, not the newest
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    at: Option<Zxid>,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let state = state::of_input(&options.input, options.at, out.quiet)?;
    let Some(root) = state.tree.get(&options.path) else {
        return Err(Failure::unreadable(format!(
            "{} does not exist at {}",
            options.path,
            state.tree.zxid()
        )));
    };
    if !out.json {
        out.line(format!("state at {}", state.tree.zxid()))?;
        out.line(format!(
            "{:>14} {:>12} {:>10}  path",
            "bytes", "znodes", "children"
        ))?;
    }
    let top = options.path.trim_end_matches('/');
    let mut stack = vec![(
        if top.is_empty() {
            "/".to_owned()
        } else {
            top.to_owned()
        },
        0,
        root,
    )];
    while let Some((path, depth, node)) = stack.pop() {
        show(&path, depth, node, out)?;
        if depth >= options.depth {
            continue;
        }
        let mut children = sorted_children(node);
        if options.sort {
            children.sort_by_key(|child| std::cmp::Reverse(child.subtree_bytes()));
        }
        for child in children.into_iter().rev() {
            stack.push((join(&path, child.name()), depth + 1, child));
        }
    }
    Ok(Exit::Ok)
}

fn show(path: &str, depth: usize, node: Node<'_>, out: &mut Output) -> anyhow::Result<()> {
    let znodes = node.all_children_number() + 1;
    if out.json {
        out.value(&json!({
            "path": path,
            "depth": depth,
            "bytes": node.subtree_bytes(),
            "znodes": znodes,
            "children": node.num_children(),
            "own_bytes": node.data_len(),
        }))?;
    } else {
        out.line(format!(
            "{:>14} {znodes:>12} {:>10}  {path}",
            node.subtree_bytes(),
            node.num_children()
        ))?;
    }
    Ok(())
}
