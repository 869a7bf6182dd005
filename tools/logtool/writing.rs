//! What subcommands that write have in common: the lock, the question, the store.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use futures_lite::future::block_on;
use ringkeeper_storage::{
    BLOCK_BYTES, Dirs, LogOptions, OpenError, Opened, StdDisk, StorageError, Store,
};

use crate::exit::Failure;
use crate::own_dir::OwnDir;

/// The smallest segments that leave room for a batch and a record.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The largest record that is taken over.
const RECORD_BYTES_MAX: usize = 256 << 20;

/// Opens the store in `dirs` for writing, with its lock; a damaged or foreign one is left as it is.
///
/// # Errors
/// When another process has it, or what is in it cannot be gone on with.
pub(crate) fn open_store(dirs: &Dirs, options: LogOptions) -> anyhow::Result<Opened<StdDisk>> {
    block_on(Store::open(StdDisk::new(), dirs, options)).map_err(|error| match error {
        OpenError::Locked(dir) => Failure::refused(format!(
            "a server (or another tool) has {}: stop it first; nothing was changed",
            dir.display()
        )),
        OpenError::Damaged(damage) => Failure::unreadable(format!("{damage}; nothing was changed")),
        other => other.into(),
    })
}

/// How a store is opened that goes on from `dir`: segments of the same size, records as large as they allow.
pub(crate) fn options_for(dir: &OwnDir) -> LogOptions {
    let sizes = dir.segments.iter().map(|file| file.bytes);
    let known = sizes
        .filter(|bytes| bytes.is_multiple_of(BLOCK_BYTES as u64))
        .max();
    let segment_bytes = known.filter(|bytes| *bytes >= SEGMENT_BYTES_MIN);
    options_of(segment_bytes.unwrap_or_else(|| LogOptions::default().segment_bytes))
}

/// How a store is opened with segments of `segment_bytes`.
pub(crate) fn options_of(segment_bytes: u64) -> LogOptions {
    let defaults = LogOptions::default();
    let part = |divisor| usize::try_from(segment_bytes / divisor).unwrap_or(usize::MAX);
    LogOptions {
        segment_bytes,
        batch_bytes_max: part(8).min(defaults.batch_bytes_max),
        record_bytes_max: part(2).min(RECORD_BYTES_MAX),
        free_bytes_min: 0,
        ..defaults
    }
}

/// Ends work on a store in order, so that the next start finds a clean end.
///
/// # Errors
/// When the manifest cannot be written.
pub(crate) fn close_store(opened: Opened<StdDisk>) -> Result<(), StorageError> {
    let Opened { store, log, .. } = opened;
    block_on(store.close())?;
    drop(log);
    Ok(())
}

/// Asks before something is changed. `yes` answers for the user.
///
/// # Errors
/// When the answer is no, or there is nobody to ask.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::refused(
            "nothing was changed: say --yes, or answer at a terminal",
        ));
    }
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::refused("nothing was changed")),
    }
}

/// Refuses a target that has something in it.
///
/// # Errors
/// When it exists and is not an empty directory.
pub(crate) fn check_target(target: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::refused(format!(
                "{} is not empty; nothing was changed",
                target.display()
            ))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::unreadable(format!(
            "{}: {error}",
            target.display()
        ))),
    }
}
