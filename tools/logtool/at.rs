//! `at`: a znode as it was after a transaction.

use clap::Args;
use ringkeeper_proto::Zxid;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::filter::parse_zxid;
use crate::input::Input;
use crate::output::Output;
use crate::render;
use crate::state;
use crate::znode;

/// Show a znode as of a zxid: its data, stat and ACL (status 1 if there was none)
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The state after this transaction
    #[arg(value_name = "ZXID", value_parser = parse_zxid)]
    zxid: Zxid,
    /// The znode
    #[arg(value_name = "PATH")]
    path: String,
    #[command(flatten)]
    input: Input,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    if !options.path.starts_with('/') {
        return Err(Failure::usage("a znode's path begins with /"));
    }
    let state = state::of_input(&options.input, Some(options.zxid), out.quiet)?;
    let tree = &state.tree;
    let Some(node) = tree.get(&options.path) else {
        if out.json {
            out.value(
                &json!({"path": options.path, "zxid": tree.zxid().to_string(), "exists": false}),
            )?;
        } else {
            out.line(format!(
                "{} does not exist at {}",
                options.path,
                tree.zxid()
            ))?;
        }
        return Ok(Exit::Found);
    };
    if out.json {
        let mut value = znode::json(tree, &options.path, node, true);
        if let Some(map) = value.as_object_mut() {
            map.insert("zxid".into(), json!(tree.zxid().to_string()));
            map.insert("exists".into(), json!(true));
        }
        out.value(&value)?;
    } else {
        out.line(format!("{} at {}", options.path, tree.zxid()))?;
        for line in znode::lines(tree, node) {
            out.line(line)?;
        }
        out.line(format!("data = {}", render::data(node.data(), true)))?;
    }
    Ok(Exit::Ok)
}
