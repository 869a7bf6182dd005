//! `verify`: whether every byte that counts is what was written.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use clap::Args;
use ringkeeper_proto::Zxid;
use ringkeeper_tree::Tree;
use serde_json::{Value, json};

use crate::apache_verify;
use crate::exit::{Exit, Failure};
use crate::finding::{Finding, has_damage};
use crate::input::{Input, Source};
use crate::live;
use crate::output::Output;
use crate::own_dir::{OwnDir, SnapshotFile};
use crate::own_log::{self, Ending, OwnLog};
use crate::own_records::{self, Damaged};
use crate::progress::bytes_bar;
use crate::record::Span;
use crate::segment_scan::{Depth, SegmentScan};
use crate::state::{State, load_snapshot, log_reaches_back_to};

/// Check checksums, the chain of batches, zxid order, snapshots, and digests by replay
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    input: Input,
    /// Leave out the replay that compares digests (and needs memory for the tree)
    #[arg(long)]
    no_replay: bool,
    /// Threads that read and sum; as many as there are cores unless given
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
}

/// What was found in own files.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) log: OwnLog,
    pub(crate) snapshots: Vec<SnapshotCheck>,
    /// What the replay compared; `None` when it was left out or could not begin.
    pub(crate) replay: Option<Replay>,
    pub(crate) findings: Vec<Finding>,
}

/// One snapshot, checked.
#[derive(Debug)]
pub(crate) struct SnapshotCheck {
    pub(crate) file: SnapshotFile,
    pub(crate) is_whole: bool,
    pub(crate) znodes: u64,
    pub(crate) digest: u64,
}

/// A replay of the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    /// The snapshot it began with.
    pub(crate) from: Option<Zxid>,
    /// The last transaction.
    pub(crate) through: Zxid,
    pub(crate) transactions: u64,
    pub(crate) mismatches: u64,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let threads = options
        .threads
        .unwrap_or_else(own_log::default_threads)
        .max(1);
    if let Source::Apache(dir) = options.input.open()? {
        return apache_verify::run(&dir, threads, !options.no_replay, out);
    }
    let (dir, report) = check_input(&options.input, threads, !options.no_replay, out.quiet)?;
    if out.json {
        out.value(&to_json(&dir, &report))?;
    } else {
        print(&report, out)?;
    }
    Ok(if has_damage(&report.findings) {
        Exit::Found
    } else {
        Exit::Ok
    })
}

/// Checks everything that `input` names; what a running server was just writing is looked at again.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn check_input(
    input: &Input,
    threads: usize,
    replay: bool,
    quiet: bool,
) -> anyhow::Result<(OwnDir, Report)> {
    live::settled(
        || own(input),
        |dir| check(dir, threads, replay, quiet),
        |report| has_damage(&report.findings),
    )
}

fn own(input: &Input) -> anyhow::Result<OwnDir> {
    match input.open()? {
        Source::Own(dir) => Ok(*dir),
        Source::Apache(_) => Err(Failure::usage("these are Apache ZooKeeper's files")),
    }
}

fn check(dir: &OwnDir, threads: usize, replay: bool, quiet: bool) -> anyhow::Result<Report> {
    let bar = bytes_bar("verify", dir.log_bytes(), quiet);
    let log = dir.read_log(Depth::Full, threads, &bar)?;
    bar.finish_and_clear();
    let mut findings = dir.judge_manifest();
    findings.extend(log.findings.iter().cloned());
    let mut snapshots = Vec::new();
    let mut oldest: Option<Tree> = None;
    for file in &dir.snapshots {
        if dir.is_live && !file.path.exists() {
            // Purged since it was listed.
            continue;
        }
        let (check, tree) = check_snapshot(file, &mut findings);
        snapshots.push(check);
        if let (None, Some(tree)) = (&oldest, tree) {
            oldest = Some(tree);
        }
    }
    for info in &dir.missing {
        let name = format!("snapshot-{:016x}", info.zxid.0);
        let path = dir
            .data
            .as_deref()
            .unwrap_or_else(|| Path::new(""))
            .join(name);
        let text = "the manifest lists this snapshot, and it is not there";
        findings
            .push(Finding::damage("snapshot-missing", &path, text).between(None, Some(info.zxid)));
    }
    let replay = if replay && log.records() > 0 {
        match compare_digests(&log, oldest, &snapshots, &mut findings) {
            // A purge was faster.
            Err(error) if dir.is_live && live::is_gone(&error) => None,
            compared => compared?,
        }
    } else {
        None
    };
    Ok(Report {
        log,
        snapshots,
        replay,
        findings,
    })
}

fn check_snapshot(
    file: &SnapshotFile,
    findings: &mut Vec<Finding>,
) -> (SnapshotCheck, Option<Tree>) {
    let mut check = SnapshotCheck {
        file: file.clone(),
        is_whole: false,
        znodes: 0,
        digest: 0,
    };
    let tree = match load_snapshot(&file.path) {
        Ok(tree) => tree,
        Err(error) => {
            let text = format!("the snapshot is damaged: {error:#}");
            findings.push(Finding::damage("snapshot", &file.path, text));
            return (check, None);
        }
    };
    check.znodes = tree.node_count();
    check.digest = tree.digest();
    check.is_whole = true;
    if file.zxid != Zxid::ZERO && file.zxid != tree.zxid() {
        let text = format!("its name says {}, its content {}", file.zxid, tree.zxid());
        findings.push(Finding::damage("snapshot", &file.path, text));
        check.is_whole = false;
    }
    if file.listed.is_some_and(|info| info.digest != tree.digest()) {
        let text = "it is not the snapshot that the manifest lists";
        findings.push(Finding::damage("snapshot", &file.path, text));
        check.is_whole = false;
    }
    (check, Some(tree))
}

/// Replays the log from the oldest snapshot, or from the beginning, up to the first damage.
fn compare_digests(
    log: &OwnLog,
    oldest: Option<Tree>,
    snapshots: &[SnapshotCheck],
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Option<Replay>> {
    let Some(reaches) = log_reaches_back_to(log) else {
        return Ok(None);
    };
    let fitting = oldest.filter(|tree| tree.zxid() >= reaches);
    let mut state = match fitting {
        _ if log.begins_empty && reaches == Zxid::ZERO => State::new(Tree::new(), None),
        Some(tree) => {
            let zxid = tree.zxid();
            State::new(tree, Some(zxid))
        }
        None => return Ok(None),
    };
    let start = state.tree.zxid();
    let broken = log
        .breaks
        .iter()
        .find(|(_, before)| before.is_none_or(|b| b > start));
    let span = Span {
        after: start,
        through: broken.map_or(Span::ALL.through, |(after, _)| *after),
    };
    let mut differing = Vec::new();
    let mut undecodable = None;
    own_records::for_each(log, span, Damaged::Refuse, &mut |record| {
        let earlier = state.mismatches;
        if let Err(error) = state.apply(record) {
            undecodable = Some(
                Finding::damage("undecodable", record.file, format!("{error:#}"))
                    .at(record.offset)
                    .between(Some(Zxid(record.zxid.0 - 1)), None),
            );
            return Ok(ControlFlow::Break(()));
        }
        if state.mismatches == 1 && earlier == 0 {
            let text = format!(
                "after transaction {} the tree's digest is not the one that was logged",
                record.zxid
            );
            let mut finding = Finding::damage("digest", record.file, text).at(record.offset);
            finding.batch = record.batch;
            finding.record = Some(record.index);
            differing.push(finding);
        }
        let same = snapshots
            .iter()
            .find(|s| s.is_whole && s.file.zxid == record.zxid && !record.is_void);
        if let Some(snapshot) = same.filter(|s| s.digest != state.tree.digest()) {
            let text = "the log replays to another tree than the one in this snapshot";
            differing.push(Finding::damage("digest", &snapshot.file.path, text));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    findings.extend(differing);
    findings.extend(undecodable);
    Ok(Some(Replay {
        from: state.base,
        through: state.tree.zxid(),
        transactions: state.replayed,
        mismatches: state.mismatches,
    }))
}

fn print(report: &Report, out: &mut Output) -> io::Result<()> {
    for segment in &report.log.segments {
        out.line(segment_line(segment, report))?;
    }
    for snapshot in &report.snapshots {
        out.line(snapshot_line(snapshot))?;
    }
    for finding in &report.findings {
        out.line(finding.to_string())?;
    }
    out.line(summary(report))
}

fn segment_line(segment: &SegmentScan, report: &Report) -> String {
    let zxids = segment.runs.iter().filter_map(|run| run.zxids);
    let zxids = zxids.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)));
    let zxids = zxids.map_or_else(
        || "no records".to_owned(),
        |(low, high)| format!("zxid {low} to {high}"),
    );
    let mine = report
        .findings
        .iter()
        .filter(|finding| finding.file == segment.path)
        .cloned();
    let verdict = if has_damage(&mine.collect::<Vec<_>>()) {
        "DAMAGED"
    } else {
        "ok"
    };
    format!(
        "{}: {} bytes, {} batches, {} records, {zxids}: {verdict}",
        segment.name(),
        segment.bytes,
        segment.batches(),
        segment.records()
    )
}

fn snapshot_line(check: &SnapshotCheck) -> String {
    let name = check
        .file
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    if !check.is_whole {
        return format!("{name}: DAMAGED");
    }
    format!(
        "{name}: zxid {}, {} znodes, digest {:#x}: ok",
        check.file.zxid, check.znodes, check.digest
    )
}

/// The last line.
fn summary(report: &Report) -> String {
    let damages = report
        .findings
        .iter()
        .filter(|f| has_damage(std::slice::from_ref(f)))
        .count();
    let zxids = report.log.zxids().map_or_else(
        || "none".to_owned(),
        |(low, high)| format!("{low} to {high}"),
    );
    let replay = match &report.replay {
        None => "not replayed".to_owned(),
        Some(replay) => format!(
            "{} replayed from {}, {} digests differ",
            replay.transactions,
            replay.from.map_or_else(
                || "the beginning".to_owned(),
                |zxid| format!("the snapshot at {zxid}")
            ),
            replay.mismatches
        ),
    };
    let ending = ending_text(report.log.ending);
    let verdict = match damages {
        0 => "ok".to_owned(),
        1 => "DAMAGED: 1 place".to_owned(),
        more => format!("DAMAGED: {more} places"),
    };
    format!(
        "{verdict}; {} segments, {} snapshots, {} records (zxids {zxids}), {replay}; {ending}",
        report.log.segments.len(),
        report.snapshots.len(),
        report.log.records(),
    )
}

/// How a log ends, in words.
pub(crate) const fn ending_text(ending: Ending) -> &'static str {
    match ending {
        Ending::Clean => "the log ends cleanly",
        Ending::Torn => "the log ends in an unfinished write",
        Ending::Damaged => "the end of the log is damaged",
    }
}

fn to_json(dir: &OwnDir, report: &Report) -> Value {
    let segments = report.log.segments.iter().map(|segment| {
        let zxids = segment.runs.iter().filter_map(|run| run.zxids);
        let zxids = zxids.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)));
        json!({
            "file": segment.path.display().to_string(),
            "number": segment.number,
            "bytes": segment.bytes,
            "batches": segment.batches(),
            "records": segment.records(),
            "first_zxid": zxids.map(|(low, _)| low.to_string()),
            "last_zxid": zxids.map(|(_, high)| high.to_string()),
        })
    });
    let snapshots = report.snapshots.iter().map(|check| {
        json!({
            "file": check.file.path.display().to_string(),
            "zxid": check.file.zxid.to_string(),
            "listed": check.file.listed.is_some(),
            "whole": check.is_whole,
            "znodes": check.znodes,
            "digest": format!("{:#x}", check.digest),
        })
    });
    let findings: Vec<Value> = report.findings.iter().map(Finding::to_json).collect();
    json!({
        "format": "ringkeeper",
        "ok": !has_damage(&report.findings),
        "live": dir.is_live,
        "segments": segments.collect::<Vec<_>>(),
        "snapshots": snapshots.collect::<Vec<_>>(),
        "records": report.log.records(),
        "last_zxid": report.log.last_zxid().map(|zxid| zxid.to_string()),
        "committed": report.log.committed.to_string(),
        "ending": match report.log.ending {
            Ending::Clean => "clean",
            Ending::Torn => "torn",
            Ending::Damaged => "damaged",
        },
        "replay": report.replay.map(|replay| json!({
            "from": replay.from.map(|zxid| zxid.to_string()),
            "through": replay.through.to_string(),
            "transactions": replay.transactions,
            "mismatches": replay.mismatches,
        })),
        "findings": findings,
    })
}
