//! `import`: a Ringkeeper data directory of an Apache ZooKeeper one.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use ringkeeper_import::{
    DigestCheck, ImportError, Options as ImportOptions, Progress, SourceDirs, Stage, Summary,
    import,
};
use ringkeeper_storage::{Dirs, LogOptions};
use serde_json::{Value, json};
use std::sync::Mutex;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::progress::bytes_bar;
use crate::writing::options_of;

/// Make a Ringkeeper data directory of an Apache ZooKeeper one; the source is left as it is
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Apache's data directory (dataDir); its server must be stopped
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The new data directory; may be the same, Ringkeeper's data then lies beside Apache's
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// Apache's dataLogDir, where one is configured
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// The new dataLogDir; the new data directory unless given
    #[arg(long, value_name = "DIR")]
    target_log_dir: Option<PathBuf>,
    /// Take a snapshot whose last transactions are in no log, as Apache does with a warning
    #[arg(long)]
    accept_fuzzy: bool,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let source = SourceDirs {
        data: options.source.clone(),
        log: options
            .log_dir
            .clone()
            .unwrap_or_else(|| options.source.clone()),
    };
    let target_log = options.target_log_dir.as_ref();
    let target = Dirs {
        data: options.target.clone(),
        log: target_log.unwrap_or(&options.target).clone(),
    };
    let import_options = ImportOptions {
        log: options_of(LogOptions::default().segment_bytes),
        accept_fuzzy: options.accept_fuzzy,
    };
    let bars = Bars {
        quiet: out.quiet,
        bar: Mutex::new(ProgressBar::hidden()),
    };
    let imported = import(&source, &target, &import_options, &bars);
    bars.end();
    let summary = imported.map_err(failure)?;
    if out.json {
        out.value(&to_json(&summary))?;
    } else {
        for line in summary.lines() {
            out.line(line)?;
        }
        out.line(format!("{} is written", target.data_folder().display()))?;
    }
    Ok(match summary.digest_check {
        DigestCheck::Differs { .. } => Exit::Found,
        DigestCheck::Equal | DigestCheck::Absent => Exit::Ok,
    })
}

fn failure(error: ImportError) -> anyhow::Error {
    let text = format!("{error}; nothing was changed");
    match error {
        ImportError::Exists(_) | ImportError::Busy(_) | ImportError::Changed(_) => {
            Failure::refused(text)
        }
        _ => Failure::unreadable(text),
    }
}

fn to_json(summary: &Summary) -> Value {
    let digest = match summary.digest_check {
        DigestCheck::Equal => "equal",
        DigestCheck::Differs { .. } => "differs",
        DigestCheck::Absent => "absent",
    };
    json!({
        "znodes": summary.znodes,
        "sessions": summary.sessions,
        "ephemerals": summary.ephemerals,
        "last_zxid": summary.last.to_string(),
        "from_snapshot": summary.from.map(|zxid| zxid.to_string()),
        "snapshot": summary.snapshot.to_string(),
        "logged": summary.logged,
        "accepted_epoch": summary.accepted_epoch.0,
        "current_epoch": summary.current_epoch.0,
        "digest": format!("{:#x}", summary.digest),
        "digest_check": digest,
        "notes": summary.notes,
    })
}

/// A bar per stage.
struct Bars {
    quiet: bool,
    bar: Mutex<ProgressBar>,
}

impl Bars {
    fn end(&self) {
        if let Ok(bar) = self.bar.lock() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn begin(&self, stage: Stage, total: u64) {
        self.end();
        if let Ok(mut bar) = self.bar.lock() {
            *bar = bytes_bar(stage.name(), total, self.quiet);
        }
    }

    fn advance(&self, amount: u64) {
        if let Ok(bar) = self.bar.lock() {
            bar.inc(amount);
        }
    }
}
