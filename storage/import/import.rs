//! The import itself.

use std::ops::ControlFlow;
use std::path::Path;

use ringkeeper_apache_files::{Directory, Entry, LogReport, Replay};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    BlockingDisk, Dirs, LogOptions, Opened, SnapshotInfo, SnapshotWriter, StdDisk, Store,
};
use ringkeeper_tree::Tree;
use ringkeeper_tree::snapshot::{CHUNK_LEN, SnapshotEncoder};

use crate::appender::Appender;
use crate::error::ImportError;
use crate::note::{Note, epochs_of};
use crate::place::Place;
use crate::progress::{Progress, Stage};
use crate::source::{Seen, SourceDirs, epochs, shown};
use crate::summary::{DigestCheck, Summary};

/// What the container calls the chunks of a tree.
const TREE_CHUNK: u32 = 1;
/// Threads that check the logs.
const THREADS_MAX: usize = 4;

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How the own log is laid out.
    pub log: LogOptions,
    /// Take a snapshot whose last transactions are in no log, as Apache does with a warning.
    pub accept_fuzzy: bool,
}

/// Imports `source` into `target`, whose own folder must not have data.
///
/// # Errors
/// When there is nothing to import, what there is is damaged, or the new store cannot be made. Nothing has changed then.
pub fn import(
    source: &SourceDirs,
    target: &Dirs,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Summary, ImportError> {
    import_onto(&StdDisk::new(), source, target, options, progress)
}

/// As [`import`], with the target on `disk`.
///
/// # Errors
/// As [`import`].
pub fn import_onto<D: BlockingDisk>(
    disk: &D,
    source: &SourceDirs,
    target: &Dirs,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Summary, ImportError> {
    let dir = source.open()?;
    if dir.is_empty() {
        return Err(ImportError::Nothing(shown(source)));
    }
    let newest = Seen::of(dir.logs.last())?;
    let mut notes = Vec::new();
    let base = base(&dir, progress, &mut notes)?;
    let logs = dir.with_logs_after(base.tree.zxid());
    let report = check_logs(&logs, &base, progress)?;
    if report.is_torn {
        let text = "Apache's log ends in an unfinished write, as a crash leaves it: it was never acknowledged and is not \
                    taken over";
        notes.push(text.to_owned());
    }
    let work = Work {
        disk,
        source,
        dir: &dir,
        logs: &logs,
        newest,
        options,
        progress,
    };
    work.run(base, target, notes)
}

/// The newest snapshot that can be used, or the beginning.
fn base(
    dir: &Directory,
    progress: &dyn Progress,
    notes: &mut Vec<String>,
) -> Result<Replay, ImportError> {
    progress.begin(Stage::ReadSnapshot, dir.snapshot_bytes());
    let base = dir.base(None, &mut |bytes| progress.advance(bytes));
    let failures = base.failures.iter().map(ToString::to_string);
    match base.replay {
        Some(replay) => {
            notes.extend(
                failures.map(|failure| {
                    format!("{failure}; an older snapshot and the log make up for it")
                }),
            );
            Ok(replay)
        }
        None if base.failures.is_empty() => Ok(Replay::from_nothing()),
        None => Err(ImportError::Snapshots(failures.collect())),
    }
}

/// Reads the logs that the base needs, and refuses what is damaged.
fn check_logs(
    logs: &Directory,
    base: &Replay,
    progress: &dyn Progress,
) -> Result<LogReport, ImportError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    progress.begin(Stage::CheckLogs, logs.log_bytes());
    let report = logs.read_logs(threads.min(THREADS_MAX), &|bytes| progress.advance(bytes))?;
    if base.from.is_none() && !report.begins_at_the_beginning() {
        return Err(ImportError::NoBase);
    }
    let from = base.tree.zxid();
    // Damage to what the snapshot holds anyway is no loss.
    let concerns = |before: Option<Zxid>| before.is_none_or(|before| before > from);
    let damage = report.problems.iter().find(|problem| {
        problem.severity == ringkeeper_apache_files::Severity::Damage && concerns(problem.before)
    });
    if let Some(problem) = damage {
        return Err(ImportError::Damaged(Box::new(problem.clone())));
    }
    match report.first_break(from, Zxid(u64::MAX)) {
        Some((after, before)) => Err(ImportError::Missing { after, before }),
        None => Ok(report),
    }
}

/// An import that has found its source whole.
struct Work<'w, D> {
    disk: &'w D,
    source: &'w SourceDirs,
    dir: &'w Directory,
    logs: &'w Directory,
    newest: Option<Seen>,
    options: &'w Options,
    progress: &'w dyn Progress,
}

impl<D: BlockingDisk> Work<'_, D> {
    fn run(
        &self,
        mut replay: Replay,
        target: &Dirs,
        mut notes: Vec<String>,
    ) -> Result<Summary, ImportError> {
        self.settle(&mut replay, &mut notes)?;
        self.go_on()?;
        let place = Place::take(self.disk, target)?;
        let made = self.make(&mut replay, place.work(), notes);
        let summary = match made {
            Ok(summary) => summary,
            Err(error) => {
                // The space is better used otherwise; should this fail too, the next import does it.
                let _left = place.clear();
                return Err(error);
            }
        };
        place.publish(self.progress)?;
        Ok(summary)
    }

    /// Applies the log up to where the snapshot is no longer fuzzy.
    fn settle(&self, replay: &mut Replay, notes: &mut Vec<String>) -> Result<(), ImportError> {
        let (from, through) = (replay.tree.zxid(), replay.fuzzy_through);
        self.logs.for_each(from, through, &mut |file, entry| {
            apply(replay, file, entry)?;
            Ok::<_, ImportError>(ControlFlow::Continue(()))
        })?;
        if !replay.is_settled() {
            let end = replay.tree.zxid();
            if !self.options.accept_fuzzy {
                return Err(ImportError::Fuzzy {
                    snapshot: from,
                    shows: through,
                    end,
                });
            }
            notes.push(format!(
                "the snapshot shows transactions up to {through}, which no log holds: the state is a mix of moments"
            ));
        }
        if let Some(path) = replay.without_acl() {
            let what = format!("the ACL of {path} is not in it, nor in the log");
            if !self.options.accept_fuzzy {
                return Err(ImportError::Snapshots(vec![what]));
            }
            notes.push(format!(
                "{what}: nobody but a superuser can reach the znode"
            ));
        }
        Ok(())
    }

    /// Makes the whole store in `work`.
    fn make(
        &self,
        replay: &mut Replay,
        work: &Dirs,
        notes: Vec<String>,
    ) -> Result<Summary, ImportError> {
        let wait = |what| ImportError::io(what, &work.data);
        let open = Store::open(self.disk.clone(), work, self.options.log.clone());
        let mut opened = self.disk.wait(open).map_err(wait("make a store in"))??;
        let snapshot = replay.tree.zxid();
        let info = self.write_snapshot(&replay.tree, opened.store.snapshot_dir())?;
        let register = opened.store.register_snapshot(info);
        self.disk
            .wait(register)
            .map_err(wait("list a snapshot in"))??;
        let reset = opened.log.reset(snapshot);
        self.disk.wait(reset).map_err(wait("begin a log in"))??;
        let logged = self.copy_log(replay, &mut opened)?;
        let last = replay.tree.zxid();
        let (accepted, current) = epochs(self.dir, last)?;
        let save = opened.store.save_epochs(accepted, current);
        self.disk.wait(save).map_err(wait("save epochs in"))??;
        let close = opened.store.close();
        self.disk
            .wait(close)
            .map_err(wait("close the store in"))??;
        let note = Note {
            log: self.newest.clone(),
            last,
            epochs: epochs_of(self.dir),
        };
        note.write(self.disk, &work.data_folder())?;
        self.check_unchanged()?;
        let tree = &replay.tree;
        Ok(Summary {
            znodes: tree.node_count(),
            sessions: tree.sessions().len(),
            ephemerals: tree.ephemerals_count(),
            last,
            from: replay.from,
            snapshot,
            logged,
            accepted_epoch: accepted,
            current_epoch: current,
            digest: tree.digest(),
            digest_check: digest_check(replay),
            notes,
        })
    }

    fn write_snapshot(&self, tree: &Tree, folder: &Path) -> Result<SnapshotInfo, ImportError> {
        self.progress.begin(Stage::WriteSnapshot, 0);
        let files = self.disk.files();
        let mut writer = SnapshotWriter::create_with(files, folder, tree.zxid(), None)?;
        let mut encoder = SnapshotEncoder::new(tree);
        let mut chunk = Vec::with_capacity(CHUNK_LEN);
        while encoder.next_chunk(&mut chunk) {
            self.go_on()?;
            writer.push_chunk(TREE_CHUNK, &chunk)?;
            self.progress.advance(chunk.len() as u64);
        }
        let counts = [tree.node_count(), tree.sessions().len() as u64, 0, 0];
        Ok(writer.finish(tree.digest(), counts)?)
    }

    /// Takes over what the log holds above the snapshot, as it is: whether it is committed is for Zab to say.
    fn copy_log(&self, replay: &mut Replay, opened: &mut Opened<D>) -> Result<u64, ImportError> {
        let from = replay.tree.zxid();
        self.progress.begin(Stage::CopyLog, 0);
        let mut appender = Appender::new(self.disk, opened, from);
        self.logs
            .for_each(from, Zxid(u64::MAX), &mut |file, entry| {
                // A zxid that stands twice is taken once.
                if entry.zxid <= replay.tree.zxid() {
                    return Ok(ControlFlow::Continue(()));
                }
                apply(replay, file, entry)?;
                if appender.append(entry.zxid, entry.bytes)? {
                    self.go_on()?;
                }
                self.progress.advance(1);
                Ok::<_, ImportError>(ControlFlow::Continue(()))
            })?;
        self.go_on()?;
        Ok(appender.finish()?)
    }

    /// Whether the source is still what was read: Apache takes no lock that could be looked at.
    fn check_unchanged(&self) -> Result<(), ImportError> {
        let now = self.source.open()?;
        let is_same = (&now.logs, &now.snapshots, now.epochs)
            == (&self.dir.logs, &self.dir.snapshots, self.dir.epochs)
            && Seen::of(now.logs.last())? == self.newest;
        if is_same {
            Ok(())
        } else {
            Err(ImportError::Changed(shown(self.source)))
        }
    }

    fn go_on(&self) -> Result<(), ImportError> {
        if self.progress.is_cancelled() {
            Err(ImportError::Cancelled)
        } else {
            Ok(())
        }
    }
}

fn apply(replay: &mut Replay, file: &Path, entry: &Entry<'_>) -> Result<(), ImportError> {
    replay
        .apply(entry.zxid, entry.bytes)
        .map_err(|error| ImportError::Undecodable {
            file: file.to_owned(),
            zxid: entry.zxid,
            what: error.to_string(),
        })
}

fn digest_check(replay: &Replay) -> DigestCheck {
    match (replay.last_matches, replay.snapshot_matches) {
        (Some(true), _) | (None, Some(true)) => DigestCheck::Equal,
        (Some(false), _) => DigestCheck::Differs {
            since: replay.first_mismatch,
        },
        (None, Some(false)) => DigestCheck::Differs { since: None },
        (None, None) => DigestCheck::Absent,
    }
}
