//! `doctor` on Apache ZooKeeper's directories.

use ringkeeper_apache_files::{Directory, Epoch, FOLDER};
use ringkeeper_import::{SourceDirs, check_source};
use ringkeeper_proto::Zxid;

use crate::apache_verify::{self, Report, compression_name};
use crate::doctor::{Diagnosis, Options, judge_space, named};
use crate::finding::{Finding, Severity};
use crate::own_log::default_threads;
use crate::record::Span;

/// Judges `version-2`.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn judge(options: &Options, has_own: bool, quiet: bool) -> anyhow::Result<Diagnosis> {
    let log = options.log_dir.as_deref().unwrap_or(&options.dir);
    let dir = Directory::open(&options.dir, log)?;
    let report = apache_verify::check(&dir, default_threads(), !options.no_replay, quiet)?;
    let mut diagnosis = Diagnosis::default();
    facts(&dir, &report, &mut diagnosis);
    judge_log(&report, options, &mut diagnosis);
    judge_snapshots(&dir, &report, options, &mut diagnosis);
    judge_epochs(&dir, &report, &mut diagnosis);
    judge_rest(&dir, &report, &mut diagnosis);
    judge_space(&options.dir, &mut diagnosis);
    if has_own {
        judge_grown(options, &mut diagnosis)?;
    } else if diagnosis.problems.is_empty() {
        diagnosis.notes.push(
            "Ringkeeper imports it when it starts here, and leaves it as it is (`ringkeeper-log import` does the same by \
             hand)"
                .to_owned(),
        );
    }
    diagnosis.findings = report.findings;
    diagnosis
        .problems
        .sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    Ok(diagnosis)
}

/// Whether Apache has gone on writing since Ringkeeper imported its files.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn judge_grown(options: &Options, diagnosis: &mut Diagnosis) -> anyhow::Result<()> {
    let log = options.log_dir.as_ref().unwrap_or(&options.dir);
    let dirs = SourceDirs {
        data: options.dir.clone(),
        log: log.clone(),
    };
    if let Some(grown) = check_source(&dirs, &options.dir, None)? {
        diagnosis.damage(
            format!(
                "Apache ZooKeeper has written to {} since it was imported ({}), so a server refuses to start: it would go \
                 on from an outdated state",
                grown.folder.display(),
                grown.what
            ),
            format!(
                "decide which of the two histories to keep. Ringkeeper's: move {} away. Apache's: move {} away (and its \
                 counterpart in dataLogDir) and start, which imports anew",
                grown.folder.display(),
                grown.own.display()
            ),
        );
    }
    Ok(())
}

fn facts(dir: &Directory, report: &Report, diagnosis: &mut Diagnosis) {
    let facts = &mut diagnosis.facts;
    let place = dir.data.clone().unwrap_or_default();
    facts.push(format!("{}: Apache ZooKeeper's data", place.display()));
    let epoch = |epoch: Epoch| match epoch {
        Epoch::Present(epoch) => epoch.to_string(),
        Epoch::Absent => "none".to_owned(),
        Epoch::Unreadable => "UNREADABLE".to_owned(),
    };
    facts.push(format!(
        "epochs: accepted {}, current {}",
        epoch(dir.epochs.accepted),
        epoch(dir.epochs.current)
    ));
    for check in &report.snapshots {
        facts.push(match check.content {
            Some(content) => format!(
                "snapshot at {}: {}, {} znodes, whole",
                check.zxid,
                compression_name(content.compression),
                content.znodes
            ),
            None => format!("snapshot at {}: DAMAGED", check.zxid),
        });
    }
    let zxids = report.log.zxids().map_or_else(
        || "no transactions".to_owned(),
        |(low, high)| format!("transactions {low} to {high}"),
    );
    facts.push(format!(
        "log: {} files, {} bytes, {zxids}; {}",
        report.log.files.len(),
        dir.log_bytes(),
        if report.log.is_torn {
            "it ends in an unfinished write"
        } else {
            "it ends cleanly"
        }
    ));
}

fn has(report: &Report, kinds: &[&str]) -> usize {
    let of_kind =
        |finding: &&Finding| finding.severity == Severity::Damage && kinds.contains(&finding.kind);
    report.findings.iter().filter(of_kind).count()
}

fn judge_log(report: &Report, options: &Options, diagnosis: &mut Diagnosis) {
    if report.log.is_torn {
        diagnosis.notes.push(
            "the log ends in an unfinished write, as a crash leaves it; nobody was told that it had succeeded, and Apache \
             ignores it (an empty newest log must be removed by hand before releases below 3.9.3 start)"
                .to_owned(),
        );
    }
    if has(report, &["header"]) > 0 {
        diagnosis.damage(
            "the first bytes of a log are damaged; its transactions can be read, but Apache refuses the file",
            format!(
                "run `ringkeeper-log repair {}`: it writes a new directory with all of them",
                named(options)
            ),
        );
    }
    if has(report, &["padding"]) > 0 {
        diagnosis.damage(
            "something stands behind the last transaction of a log, where zeros should be; no transaction is concerned",
            "bits change on this device: look at its health, and move the data to another one while all is whole",
        );
    }
    let newest = report.newest().map_or(Zxid::ZERO, |check| check.zxid);
    let Some((after, _)) = report.log.first_break(Zxid::ZERO, Span::ALL.through) else {
        return;
    };
    let places = report.log.breaks.len() + has(report, &["order"]);
    if places == 0 {
        return;
    }
    let apache = "Do not start Apache on it: it stops at some of such damage and takes other for the end of the log, goes on \
                  from there, and the transactions behind are lost";
    match report.log.first_break(newest, Span::ALL.through) {
        None => diagnosis.damage(
            format!(
                "acknowledged transactions in the log are damaged or missing, in {places} places; the snapshot at {newest} \
                 holds all of them, so nothing is lost"
            ),
            format!(
                "run `ringkeeper-log repair {}`, which writes a whole directory, or start Ringkeeper, which needs only \
                 what comes after the snapshot; and look at the device's health",
                named(options)
            ),
        ),
        Some((last, before)) => diagnosis.damage(
            format!(
                "acknowledged transactions in the log are damaged or missing, in {places} places, the first after {}{}. \
                 {apache}",
                last.max(after),
                before.map_or_else(String::new, |before| format!(" and before {before}")),
            ),
            format!(
                "in an ensemble, move this directory away and start the member: it fetches everything from the others. A \
                 standalone server: restore a backup, or run `ringkeeper-log repair {}`, which shows what is lost and \
                 asks. Keep the damaged directory until then, and look at the device's health",
                named(options)
            ),
        ),
    }
}

fn judge_snapshots(dir: &Directory, report: &Report, options: &Options, diagnosis: &mut Diagnosis) {
    let bad: Vec<_> = report
        .snapshots
        .iter()
        .filter(|check| check.content.is_none())
        .collect();
    let whole = report.newest().map(|check| check.zxid);
    if dir.snapshots.is_empty() && report.log.records() > 0 {
        diagnosis.warning(
            "there are logs and no snapshot: Apache refuses to start so, unless snapshot.trust.empty=true",
            if report.log.begins_at_the_beginning() {
                "the logs reach back to the first transaction: start Ringkeeper, or Apache with \
                 snapshot.trust.empty=true once"
            } else {
                "fetch the data from another member of the ensemble, or restore a backup"
            },
        );
    }
    if !bad.is_empty() {
        let names: Vec<_> = bad
            .iter()
            .map(|check| check.path.display().to_string())
            .collect();
        let what = format!("snapshots are damaged or unfinished: {}", names.join(", "));
        let reaches =
            whole.is_some_and(|whole| report.log.first_break(whole, Span::ALL.through).is_none());
        if reaches || whole.is_none() && report.log.begins_at_the_beginning() {
            diagnosis.damage(
                format!("{what}; an older one, or the beginning, and the log after it make up for them"),
                "move them away: an unfinished one is what a crash leaves, a damaged one a reason to look at the device's \
                 health",
            );
        } else {
            diagnosis.damage(
                format!("{what}, and the logs do not reach back far enough to do without them"),
                "fetch the data from another member of the ensemble, or restore a backup",
            );
        }
        return;
    }
    if has(report, &["missing"]) > 0 {
        diagnosis.damage(
            "the newest snapshot was written while transactions were applied that no log holds: the state is a mix of \
             moments",
            format!(
                "restore the logs as well, or fetch the data from another member of the ensemble; `ringkeeper-log import \
                 --accept-fuzzy {} NEW` takes it as Apache would",
                named(options)
            ),
        );
    } else if let (Some(whole), Some((low, _))) = (whole, report.log.zxids())
        && report.log.breaks.is_empty()
        && report.log.first_break(whole, Span::ALL.through).is_some()
    {
        diagnosis.damage(
            format!("the logs begin with {low}, and no snapshot holds the state before"),
            "fetch the data from another member of the ensemble, or restore a backup",
        );
    }
}

fn judge_epochs(dir: &Directory, report: &Report, diagnosis: &mut Diagnosis) {
    let (accepted, current) = (dir.epochs.accepted, dir.epochs.current);
    if accepted == Epoch::Unreadable || current == Epoch::Unreadable {
        diagnosis.damage(
            "an epoch file holds no number, so a member refuses to start",
            "fetch the data from another member of the ensemble: a promise to follow an epoch may be lost",
        );
        return;
    }
    let last = report.log.zxids().map_or(Zxid::ZERO, |(_, high)| high);
    let last = report.newest().map_or(last, |check| check.zxid.max(last));
    let is_behind = current
        .value()
        .is_some_and(|current| current < last.epoch().0);
    let is_crossed = matches!((accepted.value(), current.value()), (Some(a), Some(c)) if a < c);
    if is_behind || is_crossed {
        diagnosis.damage(
            format!(
                "the epochs (accepted {}, current {}) and the last transaction {last} contradict each other, so a member \
                 refuses to start",
                accepted.value().unwrap_or(0),
                current.value().unwrap_or(0)
            ),
            "fetch the data from another member of the ensemble",
        );
    }
}

fn judge_rest(dir: &Directory, report: &Report, diagnosis: &mut Diagnosis) {
    let differs = |finding: &&Finding| finding.kind == "digest";
    if report.findings.iter().any(|finding| differs(&finding)) {
        diagnosis.warning(
            "every byte is whole, and yet the log does not replay to a digest that was stored",
            "some requests make Apache's own digest wrong, which it only counts; compare with another member: \
             `ringkeeper-log diff --at ZXID` on both directories",
        );
    }
    if has(report, &["undecodable"]) > 0 {
        diagnosis.damage(
            "a record is whole and is no transaction that this release knows",
            "use the release that wrote it, or a newer one; if it is one of 3.4 to 3.9, report it",
        );
    }
    if !dir.strangers.is_empty() {
        let names: Vec<_> = dir
            .strangers
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        diagnosis.notes.push(format!(
            "files in {FOLDER} that are not Apache's: {}",
            names.join(", ")
        ));
    }
}
