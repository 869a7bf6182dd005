//! A start on Apache's data directory: it is imported once, and a later start refuses when Apache has gone on
//! writing to it since.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use ringkeeper_import::{
    DigestCheck, ImportError, Options, Progress, SourceDirs, Stage, check_source, has_apache_data,
    import,
};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::offline::MANIFEST_NAMES;
use ringkeeper_storage::{Dirs, LogOptions};

use crate::fatal::Reason;

/// How often the log tells how far an import has come.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// Whether `dirs` hold Apache's data and nothing of ours.
///
/// # Errors
/// When they cannot be looked at.
pub(crate) fn is_due(dirs: &Dirs) -> anyhow::Result<bool> {
    let folder = dirs.data_folder();
    if MANIFEST_NAMES.iter().any(|name| folder.join(name).exists()) {
        return Ok(false);
    }
    has_apache_data(&source_of(dirs)).context("look for data of Apache ZooKeeper")
}

/// Imports Apache's data in `dirs`, which stays as it is. It takes as long as it takes: nothing is served yet.
///
/// # Errors
/// When what is there is damaged, or ours cannot be written. Nothing has changed then.
pub(crate) fn run(dirs: &Dirs, log: LogOptions) -> anyhow::Result<()> {
    let started = Instant::now();
    tracing::info!(directory = %dirs.data.display(), "importing data of Apache ZooKeeper");
    let (source, target) = (source_of(dirs), dirs.clone());
    let options = Options {
        log,
        accept_fuzzy: false,
    };
    // Its files are ordinary ones, its log is written by ordinary blocking calls, and both want no executor.
    let importing = thread::Builder::new()
        .name("import".into())
        .spawn(move || import(&source, &target, &options, &Told::new()))
        .context("start the thread that imports")?;
    let imported = importing
        .join()
        .map_err(|_| anyhow!("the thread that imports has ended"))?;
    let summary = imported.map_err(|error| {
        let reason = reason_of(&error);
        anyhow::Error::from(error)
            .context("import the data of Apache ZooKeeper")
            .context(reason)
    })?;
    for line in summary.lines() {
        match summary.digest_check {
            DigestCheck::Differs { .. } if line.starts_with("digest") => tracing::warn!("{line}"),
            _ if line.starts_with("note") => tracing::warn!("{line}"),
            _ => tracing::info!("{line}"),
        }
    }
    let ms = started.elapsed().as_millis();
    tracing::info!(ms, "imported; Apache's files are left as they are");
    Ok(())
}

/// Refuses to go on beside files of Apache's that hold what ours do not. `last` is the last transaction of ours.
///
/// # Errors
/// When they do.
pub(crate) fn check(dirs: &Dirs, last: Zxid) -> anyhow::Result<()> {
    match check_source(&source_of(dirs), &dirs.data, Some(last)) {
        Ok(None) => Ok(()),
        Ok(Some(grown)) => Err(anyhow!("{grown}").context(Reason::DataDirectory)),
        Err(error) => Err(anyhow::Error::from(error)
            .context("compare with what was imported")
            .context(Reason::DataDirectory)),
    }
}

/// What a check of the machine says of Apache's data in `dirs`: what a start would do, or why it would refuse.
pub(crate) fn outlook(dirs: &Dirs) -> Option<Result<String, String>> {
    match is_due(dirs) {
        Ok(true) => {
            return Some(Ok(format!(
                "{} holds data of Apache ZooKeeper, which a start imports once",
                dirs.data.display()
            )));
        }
        Err(error) => return Some(Err(format!("{error:#}"))),
        Ok(false) => {}
    }
    match check_source(&source_of(dirs), &dirs.data, None) {
        Ok(None) => None,
        Ok(Some(grown)) => Some(Err(grown.to_string())),
        Err(error) => Some(Err(error.to_string())),
    }
}

fn source_of(dirs: &Dirs) -> SourceDirs {
    SourceDirs {
        data: dirs.data.clone(),
        log: dirs.log.clone(),
    }
}

const fn reason_of(error: &ImportError) -> Reason {
    match error {
        _ if error.is_damage() => Reason::Corrupt,
        ImportError::Storage(_) => Reason::Storage,
        _ => Reason::DataDirectory,
    }
}

/// Tells the log how far an import has come.
struct Told(Mutex<Stand>);

struct Stand {
    stage: Option<Stage>,
    done: u64,
    total: u64,
    told: Instant,
}

impl Told {
    fn new() -> Self {
        Self(Mutex::new(Stand {
            stage: None,
            done: 0,
            total: 0,
            told: Instant::now(),
        }))
    }
}

impl Progress for Told {
    fn begin(&self, stage: Stage, total: u64) {
        if let Ok(mut stand) = self.0.lock() {
            stand.stage = Some(stage);
            (stand.done, stand.total) = (0, total);
        }
    }

    fn advance(&self, amount: u64) {
        let Ok(mut stand) = self.0.lock() else {
            return;
        };
        stand.done += amount;
        if stand.told.elapsed() < TOLD_EVERY {
            return;
        }
        stand.told = Instant::now();
        let stage = stand.stage.map_or("", Stage::name);
        let done = stand.done;
        match done.saturating_mul(100).checked_div(stand.total) {
            Some(percent) => tracing::info!(done, percent, "import: {stage}"),
            None => tracing::info!(done, "import: {stage}"),
        }
    }
}
