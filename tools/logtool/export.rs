//! `export`: an Apache ZooKeeper data directory of a Ringkeeper one.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use ringkeeper_apache_files::{
    ACCEPTED_EPOCH, CURRENT_EPOCH, Compression, Directory, LogWriter, write_epoch, write_snapshot,
};
use ringkeeper_proto::{Epoch, Zxid};
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::filter::parse_zxid;
use crate::finding::has_damage;
use crate::input::{Format, Input};
use crate::output::Output;
use crate::own_dir::{OwnDir, configured};
use crate::own_log::{self, OwnLog};
use crate::own_records::{self, Damaged};
use crate::progress::bytes_bar;
use crate::record::Span;
use crate::segment_scan::Depth;
use crate::state::{self, State};
use crate::{apache_copy, apache_verify};

/// Make an Apache ZooKeeper data directory of a Ringkeeper one; the source is left as it is
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// What to make
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// Ringkeeper's data directory
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The new data directory; it must hold neither Apache's data nor Ringkeeper's
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// The directory of the log, where dataLogDir is configured (the new one holds both)
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// The state at this zxid, and nothing later; the newest unless given
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    at: Option<Zxid>,
    /// How the snapshot is compressed (releases before 3.6 read only plain ones)
    #[arg(long, value_enum, default_value_t = CompressionName::Plain)]
    compression: CompressionName,
}

/// What can be made.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ExportFormat {
    /// Apache ZooKeeper's, for 3.4 to 3.9
    Apache,
}

/// As `snapshot.compression.method` spells them.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CompressionName {
    Plain,
    Gz,
    Snappy,
}

/// What is exported: the state that is known committed, and the log above it.
struct Content {
    state: State,
    log: OwnLog,
    through: Zxid,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    // One format so far; a second one would be told here.
    let ExportFormat::Apache = options.format;
    apache_copy::check_free(&options.target)?;
    let input = Input::of(
        &options.source,
        options.log_dir.as_deref(),
        Some(Format::Own),
    );
    let (dir, content) = crate::live::settled(
        || input.open_data_dir(),
        |dir| read(dir, options.at, out.quiet),
        |_| false,
    )?;
    let tree = &content.state.tree;
    let folder = apache_copy::begin(&options.target)?;
    let bar = bytes_bar("write snapshot", 0, out.quiet);
    let compression = match options.compression {
        CompressionName::Plain => Compression::Plain,
        CompressionName::Gz => Compression::Gz,
        CompressionName::Snappy => Compression::Snappy,
    };
    write_snapshot(tree, &folder, compression, &mut |znodes| bar.inc(znodes))?;
    bar.finish_and_clear();
    let mut writer = LogWriter::new(&folder);
    let mut last = tree.zxid();
    let span = Span {
        after: last,
        through: content.through,
    };
    own_records::for_each(&content.log, span, Damaged::Refuse, &mut |record| {
        if !record.is_void {
            writer.append(record.zxid, record.bytes)?;
            last = last.max(record.zxid);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let logged = writer.finish()?;
    let (accepted, current) = epochs(&dir, last);
    if accepted > Epoch(0) {
        write_epoch(&folder, ACCEPTED_EPOCH, accepted.0)?;
        write_epoch(&folder, CURRENT_EPOCH, current.0)?;
    }
    apache_copy::publish(&options.target)?;
    let id = configured(&options.source).join("myid");
    if id.is_file() {
        let copy = options.target.join("myid");
        fs::copy(&id, &copy).with_context(|| format!("copy {}", id.display()))?;
    }
    check(options, &content, (last, logged), out)
}

fn read(dir: &OwnDir, at: Option<Zxid>, quiet: bool) -> anyhow::Result<Content> {
    let bar = bytes_bar("read", dir.log_bytes(), quiet);
    let log = dir.read_log(Depth::Headers, own_log::default_threads(), &bar)?;
    let newest = dir.usable_snapshots().next_back().map(|file| file.zxid);
    let through = at.unwrap_or(Span::ALL.through);
    // A snapshot is of committed transactions only; what the log has above is for Apache to settle, as it would
    // have been for us.
    let committed = log.committed.max(newest.unwrap_or_default()).min(through);
    let state = state::of_dir(dir, Some(committed), &bar)?;
    bar.finish_and_clear();
    if let Some(at) = at
        && log.last_zxid().max(newest).unwrap_or_default() < at
    {
        return Err(Failure::unreadable(format!(
            "there is no transaction {at}: the last one is {}",
            log.last_zxid().max(newest).unwrap_or_default()
        )));
    }
    Ok(Content {
        state,
        log,
        through,
    })
}

/// The epochs that Apache is to find: it refuses a current one below that of the last transaction.
fn epochs(dir: &OwnDir, last: Zxid) -> (Epoch, Epoch) {
    let none = (Epoch(0), Epoch(0));
    let (accepted, current) = dir
        .info()
        .map_or(none, |info| (info.accepted_epoch, info.current_epoch));
    let current = current.max(last.epoch());
    (accepted.max(current), current)
}

/// Reads what was written as Apache will, and tells.
fn check(
    options: &Options,
    content: &Content,
    (last, logged): (Zxid, u64),
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let dir = Directory::open(&options.target, &options.target)?;
    let report = apache_verify::check(&dir, own_log::default_threads(), true, out.quiet)?;
    let tree = &content.state.tree;
    let is_whole = !has_damage(&report.findings);
    if out.json {
        out.value(&json!({
            "written": options.target.display().to_string(),
            "snapshot": tree.zxid().to_string(),
            "znodes": tree.node_count(),
            "sessions": tree.sessions().len(),
            "digest": format!("{:#x}", tree.digest()),
            "logged": logged,
            "last_zxid": last.to_string(),
            "whole": is_whole,
        }))?;
    } else {
        for finding in &report.findings {
            out.line(finding.to_string())?;
        }
        out.line(format!(
            "a snapshot at {} ({} znodes, {} sessions, digest {:#x}), and {logged} transactions in the log above it, up \
             to {last}",
            tree.zxid(),
            tree.node_count(),
            tree.sessions().len(),
            tree.digest()
        ))?;
        out.line(format!(
            "{} is written: {}",
            options.target.display(),
            if is_whole {
                "verified, whole"
            } else {
                "NOT WHOLE, see above"
            }
        ))?;
    }
    Ok(if is_whole { Exit::Ok } else { Exit::Found })
}
