//! `verify` on Apache ZooKeeper's files.

use std::io;
use std::ops::ControlFlow;

use ringkeeper_tree::Tree;
use serde_json::{Value, json};

use crate::apache_dir::{ApacheDir, ApacheLog};
use crate::apache_log::LogScan;
use crate::apache_state::begins_at_the_beginning;
use crate::exit::Exit;
use crate::finding::{Finding, has_damage};
use crate::output::Output;
use crate::progress::bytes_bar;
use crate::record::Span;
use crate::state::State;
use crate::verify::Replay;

/// What was found in Apache's files.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) log: ApacheLog,
    pub(crate) replay: Option<Replay>,
    pub(crate) findings: Vec<Finding>,
}

pub(crate) fn run(
    dir: &ApacheDir,
    threads: usize,
    replay: bool,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let report = check(dir, threads, replay, out.quiet)?;
    if out.json {
        out.value(&to_json(dir, &report))?;
    } else {
        print(dir, &report, out)?;
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
    dir: &ApacheDir,
    threads: usize,
    replay: bool,
    quiet: bool,
) -> anyhow::Result<Report> {
    let bar = bytes_bar("verify", dir.log_bytes(), quiet);
    let log = dir.read_log(threads, &bar)?;
    bar.finish_and_clear();
    let mut findings = log.findings.clone();
    let replay = if replay && begins_at_the_beginning(dir, &log) {
        Some(compare_digests(dir, &log, &mut findings)?)
    } else {
        None
    };
    Ok(Report {
        log,
        replay,
        findings,
    })
}

/// Replays the log up to the first damage.
fn compare_digests(
    dir: &ApacheDir,
    log: &ApacheLog,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Replay> {
    let mut state = State::new(Tree::new(), None);
    let span = Span {
        after: Span::ALL.after,
        through: log
            .breaks
            .first()
            .map_or(Span::ALL.through, |(after, _)| *after),
    };
    let mut undecodable = None;
    dir.for_each(span, &mut |record| {
        if let Err(error) = state.apply(record) {
            let finding = Finding::damage("undecodable", record.file, format!("{error:#}"));
            undecodable = Some(finding.at(record.offset).in_record(record.index));
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    findings.extend(undecodable);
    if let (Some(zxid), Some(file)) = (state.first_mismatch, log.files.first()) {
        let text = format!(
            "after transaction {zxid} the digest is not the one that was logged ({} differ); some requests make Apache's \
             own digest wrong",
            state.mismatches
        );
        findings.push(Finding::warning("digest", &file.path, text));
    }
    Ok(Replay {
        from: state.base,
        through: state.tree.zxid(),
        transactions: state.replayed,
        mismatches: state.mismatches,
    })
}

fn print(dir: &ApacheDir, report: &Report, out: &mut Output) -> io::Result<()> {
    for file in &report.log.files {
        out.line(file_line(file, report))?;
    }
    for finding in &report.findings {
        out.line(finding.to_string())?;
    }
    out.line(summary(dir, report))
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
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "{name}: {} bytes, {} records, {zxids}: {verdict}",
        file.bytes, file.records
    )
}

fn summary(dir: &ApacheDir, report: &Report) -> String {
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
                "{} replayed, {} digests differ",
                replay.transactions, replay.mismatches
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
        dir.snapshots.len(),
        report.log.records(),
    )
}

fn to_json(dir: &ApacheDir, report: &Report) -> Value {
    let files = report.log.files.iter().map(|file| {
        json!({
            "file": file.path.display().to_string(),
            "bytes": file.bytes,
            "records": file.records,
            "first_zxid": file.zxids.map(|(low, _)| low.to_string()),
            "last_zxid": file.zxids.map(|(_, high)| high.to_string()),
        })
    });
    let snapshots = dir
        .snapshots
        .iter()
        .map(|(zxid, path)| json!({"file": path.display().to_string(), "zxid": zxid.to_string()}));
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
