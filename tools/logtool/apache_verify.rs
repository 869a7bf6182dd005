//! `verify` on Apache ZooKeeper's files.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ringkeeper_apache_files::{
    Compression, Directory, LogReport, LogScan, Replay, Snapshot, SnapshotDigest, read_snapshot,
};
use ringkeeper_proto::{TxnDigest, Zxid};
use serde_json::{Value, json};

use crate::apache_state::{apply, read_logs};
use crate::exit::Exit;
use crate::finding::{Finding, has_damage};
use crate::output::Output;
use crate::progress::bytes_bar;
use crate::record::Span;
use crate::verify;

/// What was found in Apache's files.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) log: LogReport,
    /// Ascending.
    pub(crate) snapshots: Vec<SnapshotCheck>,
    pub(crate) replay: Option<verify::Replay>,
    pub(crate) findings: Vec<Finding>,
}

/// One snapshot, checked.
#[derive(Debug)]
pub(crate) struct SnapshotCheck {
    pub(crate) path: PathBuf,
    /// The zxid in its name.
    pub(crate) zxid: Zxid,
    /// What is in it, when it is whole.
    pub(crate) content: Option<Content>,
}

/// The figures of a whole snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) compression: Compression,
    pub(crate) znodes: u64,
    /// That of its tree.
    pub(crate) digest: u64,
    /// What it says.
    pub(crate) named: Option<SnapshotDigest>,
    pub(crate) fuzzy_through: Zxid,
}

impl Report {
    /// The newest whole snapshot.
    pub(crate) fn newest(&self) -> Option<&SnapshotCheck> {
        let mut newest_first = self.snapshots.iter().rev();
        newest_first.find(|check| check.content.is_some())
    }
}

pub(crate) fn run(
    dir: &Directory,
    threads: usize,
    replay: bool,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let report = check(dir, threads, replay, out.quiet)?;
    if out.json {
        out.value(&to_json(&report))?;
    } else {
        print(&report, out)?;
    }
    Ok(if has_damage(&report.findings) {
        Exit::Found
    } else {
        Exit::Ok
    })
}

/// Checks everything.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn check(
    dir: &Directory,
    threads: usize,
    replay: bool,
    quiet: bool,
) -> anyhow::Result<Report> {
    let log = read_logs(dir, threads, "verify", quiet)?;
    let mut report = Report {
        findings: log.problems.iter().cloned().map(Finding::from).collect(),
        log,
        snapshots: Vec::new(),
        replay: None,
    };
    let base = check_snapshots(dir, &mut report, quiet);
    let base = match base {
        _ if !replay => None,
        None if report.log.begins_at_the_beginning() => Some(Replay::from_nothing()),
        base => base,
    };
    if let Some(base) = base.filter(|_| report.log.records() > 0) {
        let (replay, findings) = compare_digests(dir, &report, base, quiet)?;
        report.replay = Some(replay);
        report.findings.extend(findings);
    }
    Ok(report)
}

/// Reads every snapshot; returns the oldest from which the log goes on.
fn check_snapshots(dir: &Directory, report: &mut Report, quiet: bool) -> Option<Replay> {
    let bar = bytes_bar("snapshots", dir.snapshot_bytes(), quiet);
    let mut base = None;
    for (zxid, path) in &dir.snapshots {
        let mut check = SnapshotCheck {
            path: path.clone(),
            zxid: *zxid,
            content: None,
        };
        match read_snapshot(path, &mut |bytes| bar.inc(bytes)) {
            Ok(snapshot) => {
                check.content = Some(content(&snapshot));
                judge(&snapshot, &mut report.findings);
                let from = snapshot.tree.zxid();
                let starts = report.log.first_break(from, Span::ALL.through);
                let goes_on = starts.is_none_or(|(after, _)| after > from);
                if base.is_none() && goes_on {
                    base = Some(Replay::from_snapshot(snapshot));
                }
            }
            Err(error) => {
                let text = format!("the snapshot cannot be used: {error}");
                let finding = Finding::damage("snapshot", path, text);
                report.findings.push(finding.between(None, Some(*zxid)));
            }
        }
        report.snapshots.push(check);
    }
    bar.finish_and_clear();
    base
}

fn content(snapshot: &Snapshot) -> Content {
    Content {
        compression: snapshot.compression,
        znodes: snapshot.tree.node_count(),
        digest: snapshot.tree.digest(),
        named: snapshot.digest,
        fuzzy_through: snapshot.fuzzy_through,
    }
}

fn judge(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let zxid = snapshot.tree.zxid();
    if snapshot.digest_matches() == Some(false) {
        let text = "the tree in it does not have the digest that it names";
        findings.push(Finding::warning("digest", &snapshot.path, text));
    }
    if snapshot.fuzzy_through > zxid {
        let text = format!(
            "it was written while transactions were applied and may show those up to {}: only with the log after it it \
             is whole",
            snapshot.fuzzy_through
        );
        findings.push(Finding::note("fuzzy", &snapshot.path, text).between(Some(zxid), None));
    }
}

/// Replays the log up to the first damage.
fn compare_digests(
    dir: &Directory,
    report: &Report,
    mut replay: Replay,
    quiet: bool,
) -> anyhow::Result<(verify::Replay, Vec<Finding>)> {
    let from = replay.tree.zxid();
    let through = report
        .log
        .first_break(from, Span::ALL.through)
        .map_or(Span::ALL.through, |(after, _)| after);
    let bar = bytes_bar("replay", dir.log_bytes(), quiet);
    let mut findings = Vec::new();
    dir.for_each(from, through, &mut |file, entry| {
        bar.inc(entry.bytes.len() as u64);
        let earlier = replay.mismatches;
        if let Err(error) = apply(&mut replay, file, entry) {
            let finding = Finding::damage("undecodable", file, format!("{error:#}"));
            findings.push(finding.at(entry.offset).in_record(entry.index));
            return Ok(ControlFlow::Break(()));
        }
        if replay.mismatches == 1 && earlier == 0 {
            let text = format!(
                "after transaction {} the tree's digest is not the one that was logged; some requests make Apache's own \
                 digest wrong",
                entry.zxid
            );
            let finding = Finding::warning("digest", file, text);
            findings.push(finding.at(entry.offset).in_record(entry.index));
        }
        findings.extend(compare_snapshots(report, &replay));
        Ok::<_, anyhow::Error>(ControlFlow::Continue(()))
    })?;
    bar.finish_and_clear();
    if !replay.is_settled() && through == Span::ALL.through {
        findings.push(unsettled(report, &replay));
    }
    let done = verify::Replay {
        from: replay.from,
        through: replay.tree.zxid(),
        transactions: replay.applied,
        mismatches: replay.mismatches,
    };
    Ok((done, findings))
}

/// Whether the tree is that of the snapshots which name a digest for its zxid.
fn compare_snapshots(report: &Report, replay: &Replay) -> Vec<Finding> {
    let tree = &replay.tree;
    if !replay.is_settled() {
        return Vec::new();
    }
    let named = report.snapshots.iter().filter_map(|check| {
        let digest = check.content?.named?;
        Some((&check.path, digest))
    });
    let differing = named.filter(|(_, digest)| {
        digest.zxid == tree.zxid()
            && digest.version == TxnDigest::VERSION
            && digest.digest != tree.digest_to_wire()
    });
    let text = "the log replays to another tree than the one whose digest this snapshot names";
    differing
        .map(|(path, _)| Finding::warning("digest", path, text))
        .collect()
}

fn unsettled(report: &Report, replay: &Replay) -> Finding {
    let path = report
        .newest()
        .map_or_else(|| Path::new(""), |check| check.path.as_path());
    let text = "the snapshot shows transactions that the log does not hold";
    Finding::damage("missing", path, text)
        .between(Some(replay.tree.zxid()), Some(replay.fuzzy_through))
}

fn print(report: &Report, out: &mut Output) -> io::Result<()> {
    for file in &report.log.files {
        out.line(file_line(file, report))?;
    }
    for check in &report.snapshots {
        out.line(snapshot_line(check))?;
    }
    for finding in &report.findings {
        out.line(finding.to_string())?;
    }
    out.line(summary(report))
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn file_line(file: &LogScan, report: &Report) -> String {
    let zxids = file.zxids.map_or_else(
        || "no records".to_owned(),
        |(low, high)| format!("zxid {low} to {high}"),
    );
    let mine: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.file == file.path)
        .cloned()
        .collect();
    let verdict = if has_damage(&mine) { "DAMAGED" } else { "ok" };
    format!(
        "{}: {} bytes, {} records, {zxids}: {verdict}",
        name(&file.path),
        file.bytes,
        file.records
    )
}

fn snapshot_line(check: &SnapshotCheck) -> String {
    let name = name(&check.path);
    match check.content {
        None => format!("{name}: DAMAGED"),
        Some(content) => format!(
            "{name}: {}, {} znodes, digest {:#x}: ok",
            compression_name(content.compression),
            content.znodes,
            content.digest
        ),
    }
}

/// In words.
pub(crate) const fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::Plain => "plain",
        Compression::Gz => "gz",
        Compression::Snappy => "snappy",
    }
}

fn summary(report: &Report) -> String {
    let damages = report
        .findings
        .iter()
        .filter(|f| has_damage(std::slice::from_ref(f)))
        .count();
    let verdict = match damages {
        0 => "ok".to_owned(),
        1 => "DAMAGED: 1 place".to_owned(),
        more => format!("DAMAGED: {more} places"),
    };
    let zxids = report.log.zxids().map_or_else(
        || "none".to_owned(),
        |(low, high)| format!("{low} to {high}"),
    );
    let replay = report.replay.map_or_else(
        || "not replayed".to_owned(),
        |replay| {
            format!(
                "{} replayed from {}, {} digests differ",
                replay.transactions,
                replay.from.map_or_else(
                    || "the beginning".to_owned(),
                    |zxid| format!("the snapshot at {zxid}")
                ),
                replay.mismatches
            )
        },
    );
    let ending = if report.log.is_torn {
        "the log ends in an unfinished write"
    } else {
        "the log ends cleanly"
    };
    format!(
        "{verdict}; Apache ZooKeeper's, {} logs, {} snapshots, {} records (zxids {zxids}), {replay}; {ending}",
        report.log.files.len(),
        report.snapshots.len(),
        report.log.records(),
    )
}

fn to_json(report: &Report) -> Value {
    let files = report.log.files.iter().map(|file| {
        json!({
            "file": file.path.display().to_string(),
            "bytes": file.bytes,
            "records": file.records,
            "first_zxid": file.zxids.map(|(low, _)| low.to_string()),
            "last_zxid": file.zxids.map(|(_, high)| high.to_string()),
        })
    });
    let snapshots = report.snapshots.iter().map(|check| {
        json!({
            "file": check.path.display().to_string(),
            "zxid": check.zxid.to_string(),
            "whole": check.content.is_some(),
            "compression": check.content.map(|content| compression_name(content.compression)),
            "znodes": check.content.map(|content| content.znodes),
            "digest": check.content.map(|content| format!("{:#x}", content.digest)),
            "fuzzy_through": check.content.map(|content| content.fuzzy_through.to_string()),
        })
    });
    json!({
        "format": "apache",
        "ok": !has_damage(&report.findings),
        "logs": files.collect::<Vec<_>>(),
        "snapshots": snapshots.collect::<Vec<_>>(),
        "records": report.log.records(),
        "last_zxid": report.log.zxids().map(|(_, high)| high.to_string()),
        "ending": if report.log.is_torn { "torn" } else { "clean" },
        "replay": report.replay.map(|replay| json!({
            "from": replay.from.map(|zxid| zxid.to_string()),
            "through": replay.through.to_string(),
            "transactions": replay.transactions,
            "mismatches": replay.mismatches,
        })),
        "findings": report.findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
    })
}
