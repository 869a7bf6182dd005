//! `doctor`: one look at a data directory, and what to do about it, in words.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{DOCTOR, FOLDER};
use serde_json::{Value, json};

use crate::apache_doctor;
use crate::exit::{Exit, Failure};
use crate::finding::{Finding, Severity};
use crate::input::{Format, Input, Kind, kind_of};
use crate::output::Output;
use crate::own_dir::{Manifest, OwnDir, folder_of};
use crate::own_log::{self, Ending};
use crate::repair;
use crate::state::log_reaches_back_to;
use crate::verify::{self, Report};

/// Below this many free bytes a server soon refuses writes.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// Judge a data directory: what is wrong with it, and what to do next
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The data directory
    #[arg(value_name = "DATADIR")]
    pub(crate) dir: PathBuf,
    /// The directory of the log, where dataLogDir is configured
    #[arg(long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Which data to judge where a directory holds both
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Leave out the replay that compares digests
    #[arg(long)]
    pub(crate) no_replay: bool,
}

/// The judgement.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// What is there, line by line.
    pub(crate) facts: Vec<String>,
    /// What is wrong, the worst first, each with what to do.
    pub(crate) problems: Vec<Problem>,
    /// What is normal and still worth saying.
    pub(crate) notes: Vec<String>,
    /// Where each problem was found.
    pub(crate) findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) next: String,
}

impl Diagnosis {
    pub(crate) fn damage(&mut self, what: impl Into<String>, next: impl Into<String>) {
        self.push(Severity::Damage, what.into(), next.into());
    }

    pub(crate) fn warning(&mut self, what: impl Into<String>, next: impl Into<String>) {
        self.push(Severity::Warning, what.into(), next.into());
    }

    fn push(&mut self, severity: Severity, what: String, next: String) {
        self.problems.push(Problem {
            severity,
            what,
            next,
        });
    }

    fn verdict(&self) -> &'static str {
        match self.problems.iter().map(|problem| problem.severity).max() {
            Some(Severity::Damage) => "damaged",
            Some(_) => "needs attention",
            None => "healthy",
        }
    }
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let dir = &options.dir;
    let kind = kind_of(dir)?;
    let diagnosis = match (kind, options.format) {
        (Kind::EmptyDir, _) => empty(dir),
        (Kind::OtherDir, _) => other(dir),
        (Kind::OwnDir, _) | (Kind::BothDir, None | Some(Format::Own)) => {
            own(options, kind == Kind::BothDir, out.quiet)?
        }
        (Kind::ApacheDir, _) | (Kind::BothDir, Some(Format::Apache)) => {
            apache_doctor::judge(options, kind == Kind::BothDir, out.quiet)?
        }
        (other, _) => {
            return Err(Failure::unreadable(format!(
                "{} is {}: doctor judges data directories (verify looks at single files)",
                dir.display(),
                other.name()
            )));
        }
    };
    show(dir, &diagnosis, out)?;
    Ok(if diagnosis.problems.is_empty() {
        Exit::Ok
    } else {
        Exit::Found
    })
}

fn show(dir: &Path, diagnosis: &Diagnosis, out: &mut Output) -> anyhow::Result<()> {
    if out.json {
        let problems = diagnosis.problems.iter().map(|problem| {
            json!({"severity": problem.severity.name(), "what": problem.what, "next": problem.next})
        });
        out.value(&json!({
            "directory": dir.display().to_string(),
            "verdict": diagnosis.verdict(),
            "facts": diagnosis.facts,
            "problems": problems.collect::<Vec<_>>(),
            "notes": diagnosis.notes,
            "findings": diagnosis.findings.iter().map(Finding::to_json).collect::<Vec<Value>>(),
        }))?;
        return Ok(());
    }
    for fact in &diagnosis.facts {
        out.line(fact)?;
    }
    for note in &diagnosis.notes {
        out.line(format!("note: {note}"))?;
    }
    for finding in &diagnosis.findings {
        out.line(format!("  {finding}"))?;
    }
    for problem in &diagnosis.problems {
        out.line("")?;
        out.line(format!("WRONG: {}", problem.what))?;
        out.line(format!("NEXT:  {}", problem.next))?;
    }
    out.line("")?;
    out.line(format!("{}: {}", dir.display(), diagnosis.verdict()))?;
    Ok(())
}

fn empty(dir: &Path) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    diagnosis.facts.push(format!("{} is empty", dir.display()));
    diagnosis.notes.push(
        "a server that starts here makes a new, empty database. If there should be data, the disk may not be mounted, \
         or dataDir names another directory: look at that before a server starts"
            .to_owned(),
    );
    diagnosis
}

fn other(dir: &Path) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let folder = folder_of(dir);
    let strangers = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let inside = strangers(&folder);
    diagnosis.facts.push(format!(
        "{} holds no data of Ringkeeper or Apache ZooKeeper",
        dir.display()
    ));
    if inside.is_empty() {
        diagnosis.notes.push(format!(
            "a server that starts here makes a new, empty database in {FOLDER}, beside what is there ({}). If there \
             should be data, the disk may not be mounted, or dataDir names another directory",
            strangers(dir).join(", ")
        ));
    } else {
        diagnosis.warning(
            format!("{} holds files that are not ours: {}", folder.display(), inside.join(", ")),
            "a server refuses to start on them. Find out whose they are and move them away, or name another dataDir",
        );
    }
    diagnosis
}

fn own(options: &Options, has_apache: bool, quiet: bool) -> anyhow::Result<Diagnosis> {
    let mut diagnosis = Diagnosis::default();
    let input = Input::of(&options.dir, options.log_dir.as_deref(), Some(Format::Own));
    let dir = input.open_data_dir()?;
    if matches!(dir.manifest, Manifest::Newer) {
        diagnosis.damage(
            "a newer release wrote the manifest",
            "use the ringkeeper-log and the server of that release, or a newer one",
        );
        diagnosis.findings = dir.judge_manifest();
        return Ok(diagnosis);
    }
    let threads = own_log::default_threads();
    let (dir, report) = verify::check_input(&input, threads, !options.no_replay, quiet)?;
    facts(&dir, &report, &mut diagnosis);
    judge_manifest(&dir, options, &mut diagnosis);
    judge_log(&dir, &report, options, &mut diagnosis);
    judge_snapshots(&dir, &report, options, &mut diagnosis);
    judge_bits(&report, &mut diagnosis);
    judge_replay(&report, &mut diagnosis);
    let apache_beside = has_apache.then_some(options);
    judge_surroundings(&dir, &report, apache_beside, &mut diagnosis)?;
    diagnosis.findings = report.findings;
    diagnosis
        .problems
        .sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    Ok(diagnosis)
}

fn facts(dir: &OwnDir, report: &Report, diagnosis: &mut Diagnosis) {
    let facts = &mut diagnosis.facts;
    let place = dir.data.as_deref().unwrap_or_else(|| Path::new(""));
    let running = if dir.is_live {
        "a server runs on it"
    } else {
        "no server runs on it"
    };
    facts.push(format!("{}: Ringkeeper's data; {running}", place.display()));
    if let Some(info) = dir.info() {
        facts.push(format!(
            "manifest: store {:#x}, started {} times, accepted epoch {}, current epoch {}",
            info.store, info.starts, info.accepted_epoch, info.current_epoch
        ));
    }
    for check in &report.snapshots {
        let state = if check.is_whole { "whole" } else { "DAMAGED" };
        facts.push(format!(
            "snapshot at {}: {} znodes, {state}",
            check.file.zxid, check.znodes
        ));
    }
    let zxids = report.log.zxids();
    let zxids = zxids.map_or_else(
        || "no transactions".to_owned(),
        |(low, high)| format!("transactions {low} to {high}"),
    );
    facts.push(format!(
        "log: {} segments, {} bytes, {zxids}; {}",
        report.log.segments.len(),
        dir.log_bytes(),
        verify::ending_text(report.log.ending)
    ));
}

/// How the commands in an advice name the directory.
pub(crate) fn named(options: &Options) -> String {
    let mut text = options.dir.display().to_string();
    if let Some(log) = &options.log_dir {
        text.push_str(" --log-dir ");
        text.push_str(&log.display().to_string());
    }
    text
}

fn judge_manifest(dir: &OwnDir, options: &Options, diagnosis: &mut Diagnosis) {
    let repair = format!(
        "run `ringkeeper-log repair {}`: it makes a new one from the snapshots and the log",
        named(options)
    );
    match dir.manifest {
        Manifest::Absent => diagnosis.damage(
            "the manifest is missing, so a server refuses to start on this directory",
            repair,
        ),
        Manifest::Unreadable => diagnosis.damage(
            "both copies of the manifest are damaged, so a server refuses to start on this directory",
            repair,
        ),
        Manifest::Newer => {}
        Manifest::Present(_) => {
            let damaged = dir.judge_manifest();
            if !damaged.is_empty() {
                diagnosis.warning(
                    "one of the two copies of the manifest is damaged or missing; the other one is whole",
                    "start the server: it writes both copies anew. If a crash is no explanation, look at the device's \
                     health",
                );
            }
        }
    }
}

fn judge_log(dir: &OwnDir, report: &Report, options: &Options, diagnosis: &mut Diagnosis) {
    let log = &report.log;
    let heads = report
        .findings
        .iter()
        .filter(|f| f.kind == "segment-header" || f.kind == "foreign-segment");
    let heads = heads.count();
    if log.breaks.is_empty() {
        if log.ending == Ending::Torn {
            diagnosis.notes.push(
                "the log ends in an unfinished write, as a crash leaves it; nobody was told that it had succeeded. The \
                 next start cuts it off"
                    .to_owned(),
            );
        }
        if heads > 0 {
            diagnosis.damage(
                "the first block of a log segment is damaged; its transactions are whole, but a server refuses it",
                format!("run `ringkeeper-log repair {}`: nothing is lost", named(options)),
            );
        }
        return;
    }
    let places = log.breaks.len();
    let what =
        format!("acknowledged transactions in the log are damaged or missing, in {places} places");
    let repair = format!("`ringkeeper-log repair {}`", named(options));
    match repair::plan(dir, log, false) {
        Ok(plan) if plan.is_lossless() => diagnosis.damage(
            format!("{what}; all of them are also in a whole snapshot or could be read singly, so nothing is lost"),
            format!("run {repair}, and look at the device's health"),
        ),
        Ok(plan) => {
            let lines = plan.lines();
            let lost: Vec<_> = lines.iter().filter(|line| line.starts_with("lost")).cloned().collect();
            diagnosis.damage(
                format!("{what}. A repair here alone means: {}", lost.join("; ")),
                format!(
                    "in an ensemble, move this directory away and start the member: it fetches everything from the \
                     others. A standalone server: restore a backup, or run {repair}, which shows what is lost and asks. \
                     Keep the damaged directory until then, and look at the device's health"
                ),
            );
        }
        Err(error) => diagnosis.damage(
            format!("{what}: {error:#}"),
            "fetch the data from another member of the ensemble, or restore a backup",
        ),
    }
}

fn judge_snapshots(dir: &OwnDir, report: &Report, options: &Options, diagnosis: &mut Diagnosis) {
    let bad: Vec<Zxid> = report
        .snapshots
        .iter()
        .filter(|check| !check.is_whole)
        .map(|check| check.file.zxid)
        .chain(dir.missing.iter().map(|info| info.zxid))
        .collect();
    if bad.is_empty() {
        judge_reach(dir, report, diagnosis);
        return;
    }
    let names: Vec<String> = bad.iter().map(Zxid::to_string).collect();
    let what = format!(
        "the snapshots at {} are damaged or missing",
        names.join(", ")
    );
    let reaches = log_reaches_back_to(&report.log);
    let whole = report.snapshots.iter().filter(|check| check.is_whole);
    let can_start = |zxid: Zxid| reaches.is_none_or(|reaches| reaches <= zxid);
    let base = whole
        .map(|check| check.file.zxid)
        .filter(|zxid| can_start(*zxid))
        .max();
    let from_beginning = report.log.begins_empty && reaches == Some(Zxid::ZERO);
    if !report.log.breaks.is_empty() {
        diagnosis.damage(
            what,
            "see to the log first (below or above); a repair uses only whole snapshots",
        );
    } else if let Some(base) = base {
        diagnosis.damage(
            format!("{what}; the one at {base} is whole, and the log after it is there, so nothing is lost"),
            "start the server: it uses the whole one and takes a new one in time. Look at the device's health",
        );
    } else if from_beginning {
        diagnosis.damage(
            format!("{what}; the log reaches back to the beginning, so nothing is lost"),
            format!(
                "run `ringkeeper-log repair {}`: it replays the log from the beginning",
                named(options)
            ),
        );
    } else {
        diagnosis.damage(
            format!("{what}, and the log does not reach back far enough to do without them"),
            "fetch the data from another member of the ensemble, or restore a backup",
        );
    }
}

/// Whether the log goes on from the newest snapshot.
fn judge_reach(dir: &OwnDir, report: &Report, diagnosis: &mut Diagnosis) {
    let newest = report.snapshots.last().map(|check| check.file.zxid);
    let Some(reaches) = log_reaches_back_to(&report.log) else {
        return;
    };
    let is_short = match newest {
        Some(newest) => reaches > newest,
        None => !(report.log.begins_empty && reaches == Zxid::ZERO),
    };
    if is_short && report.log.breaks.is_empty() && dir.info().is_some() {
        diagnosis.damage(
            format!("the log begins after {reaches}, and no snapshot holds the state there"),
            "fetch the data from another member of the ensemble, or restore a backup",
        );
    }
}

fn judge_bits(report: &Report, diagnosis: &mut Diagnosis) {
    let padding = report
        .findings
        .iter()
        .filter(|finding| finding.kind == "padding")
        .count();
    if padding > 0 {
        diagnosis.damage(
            format!("unused bytes have changed in {padding} places; no transaction is concerned"),
            "bits change on this device: look at its health, and move the data to another one while all is whole",
        );
    }
}

fn judge_replay(report: &Report, diagnosis: &mut Diagnosis) {
    let differs = report
        .findings
        .iter()
        .any(|finding| finding.kind == "digest");
    if differs {
        diagnosis.damage(
            "every byte is whole, and yet the log does not replay to the tree whose digest was logged: a server refuses \
             to serve it",
            "keep this directory and report it with the output of `ringkeeper-log verify`; fetch the data from another \
             member of the ensemble, or go back to before the first difference with `ringkeeper-log truncate`",
        );
    }
    if report
        .findings
        .iter()
        .any(|finding| finding.kind == "undecodable")
    {
        diagnosis.damage(
            "a record is whole and is no transaction that this release knows",
            "use the release that wrote it, or a newer one; if it is this one, report it",
        );
    }
}

fn judge_surroundings(
    dir: &OwnDir,
    report: &Report,
    apache_beside: Option<&Options>,
    diagnosis: &mut Diagnosis,
) -> anyhow::Result<()> {
    if !dir.strangers.is_empty() {
        let names: Vec<_> = dir
            .strangers
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        diagnosis
            .notes
            .push(format!("files that are not ours: {}", names.join(", ")));
    }
    if !dir.unfinished.is_empty() && !dir.is_live {
        diagnosis
            .notes
            .push("an unfinished snapshot is left over; the next start removes it".to_owned());
    }
    let unlisted = dir
        .snapshots
        .iter()
        .filter(|file| file.listed.is_none())
        .count();
    if unlisted > 0 && dir.info().is_some() && !dir.is_live {
        diagnosis.notes.push(format!(
            "{unlisted} snapshots are not listed in the manifest (a crash came before); the next start removes them"
        ));
    }
    if let Some(options) = apache_beside {
        diagnosis.notes.push(
            "Apache ZooKeeper's version-2 lies beside it; a server uses our data only (`--format apache` judges the other)"
                .to_owned(),
        );
        apache_doctor::judge_grown(options, diagnosis)?;
    }
    let jumps = report
        .findings
        .iter()
        .filter(|finding| finding.kind == "zxid-gap")
        .count();
    if jumps > 0 {
        diagnosis.notes.push(format!(
            "zxids are left out in {jumps} places; the chain of batches is whole there, so nothing is missing"
        ));
    }
    for place in [&dir.data, &dir.log].into_iter().flatten() {
        judge_space(place, diagnosis);
        if dir.data == dir.log {
            break;
        }
    }
    debug_assert!(
        DOCTOR.ends_with("doctor"),
        "what the server names in its remedies"
    );
    Ok(())
}

/// Whether there is room for a server to write.
pub(crate) fn judge_space(place: &Path, diagnosis: &mut Diagnosis) {
    let Ok(stat) = rustix::fs::statvfs(place) else {
        return;
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < FREE_BYTES_MIN {
        diagnosis.warning(
            format!("{} has only {free} bytes of free space", place.display()),
            "free some (`ringkeeper-log purge` with the server stopped), or grow the disk: a server without space for \
             the next log segment refuses writes",
        );
    }
}
