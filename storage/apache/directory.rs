//! A data directory of Apache ZooKeeper, or logs and snapshots of it named one by one.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ringkeeper_proto::Zxid;

use crate::epochs::{ACCEPTED_EPOCH, CURRENT_EPOCH, Epoch, read_epoch};
use crate::error::FileError;
use crate::judge::LogReport;
use crate::log::{Entry, LogScan, name_zxid, scan};
use crate::problem::Problem;
use crate::{LOG_PREFIX, SNAPSHOT_PREFIX};

/// Apache ZooKeeper's folder in a data directory.
pub const FOLDER: &str = "version-2";

/// A file with the zxid in its name.
pub type Listed = (Zxid, PathBuf);

/// Is handed entries one by one with the file they stand in, and may end the walk.
pub type Visit<'v, E> = &'v mut dyn FnMut(&Path, &Entry<'_>) -> Result<ControlFlow<()>, E>;

/// Apache's files to read.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Where the snapshots and epochs are; `None` when files were named one by one.
    pub data: Option<PathBuf>,
    /// Logs by the zxid in their names, ascending.
    pub logs: Vec<Listed>,
    /// Snapshots by the zxid in their names, ascending.
    pub snapshots: Vec<Listed>,
    /// What a member of an ensemble keeps beside them.
    pub epochs: Epochs,
    /// What is none of these.
    pub strangers: Vec<PathBuf>,
}

/// The epochs of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    /// The last epoch that it promised to follow.
    pub accepted: Epoch,
    /// The last epoch whose history it has.
    pub current: Epoch,
}

impl Directory {
    /// Looks at `data/version-2` and `log/version-2`, or at the folders themselves.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn open(data: &Path, log: &Path) -> Result<Self, FileError> {
        let (data, log) = (folder_of(data), folder_of(log));
        let mut dir = Self::default();
        let mut folders = vec![&data];
        if log != data {
            folders.push(&log);
        }
        for folder in folders {
            dir.list(folder).map_err(FileError::io("list", folder))?;
        }
        dir.epochs = Epochs {
            accepted: read_epoch(&data, ACCEPTED_EPOCH)?,
            current: read_epoch(&data, CURRENT_EPOCH)?,
        };
        dir.data = Some(data);
        dir.sort();
        Ok(dir)
    }

    /// Files named one by one.
    pub fn of_files(logs: Vec<PathBuf>, snapshots: Vec<PathBuf>) -> Self {
        let named = |paths: Vec<PathBuf>, prefix| {
            let zxid = |path: &Path| name_zxid(path, prefix).unwrap_or_default();
            paths.into_iter().map(|path| (zxid(&path), path)).collect()
        };
        let mut dir = Self {
            logs: named(logs, LOG_PREFIX),
            snapshots: named(snapshots, SNAPSHOT_PREFIX),
            ..Self::default()
        };
        dir.sort();
        dir
    }

    fn sort(&mut self) {
        self.logs.sort();
        self.snapshots.sort();
        self.strangers.sort();
    }

    fn list(&mut self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if let Some(zxid) = name_zxid(&path, LOG_PREFIX) {
                self.logs.push((zxid, path));
            } else if let Some(zxid) = name_zxid(&path, SNAPSHOT_PREFIX) {
                self.snapshots.push((zxid, path));
            } else if name != ACCEPTED_EPOCH && name != CURRENT_EPOCH {
                self.strangers.push(path);
            }
        }
        Ok(())
    }

    /// Whether there is neither a log nor a snapshot.
    pub const fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.snapshots.is_empty()
    }

    /// Bytes of all logs, padding included.
    pub fn log_bytes(&self) -> u64 {
        self.logs.iter().map(|(_, path)| bytes_of(path)).sum()
    }

    /// Bytes of all snapshots.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshots.iter().map(|(_, path)| bytes_of(path)).sum()
    }

    /// The same without the logs that end before anything above `after` begins.
    #[must_use]
    pub fn with_logs_after(&self, after: Zxid) -> Self {
        let needed = self.logs.iter().enumerate().filter(|(at, _)| {
            // A file ends where the next one begins.
            let next = self.logs.get(at + 1).map(|(zxid, _)| *zxid);
            next.is_none_or(|next| next.0 > after.0.saturating_add(1))
        });
        Self {
            logs: needed.map(|(_, file)| file.clone()).collect(),
            ..self.clone()
        }
    }

    /// Reads and judges all logs, on `threads` threads; `tick` is told of bytes as they are done.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read_logs(&self, threads: usize, tick: &(dyn Fn(u64) + Sync)) -> io::Result<LogReport> {
        let mut report = LogReport {
            files: self.scan_all(threads, tick)?,
            ..LogReport::default()
        };
        self.judge(&mut report);
        Ok(report)
    }

    fn scan_all(&self, threads: usize, tick: &(dyn Fn(u64) + Sync)) -> io::Result<Vec<LogScan>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(self.logs.len()));
        let work = || {
            while let Some((at, (_, path))) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                self.logs.get(at).map(|file| (at, file))
            } {
                let scanned = scan(path, &mut |bytes| tick(bytes), &mut |_| Ok(true));
                done.lock()
                    .expect("no thread panics with the lock")
                    .push((at, scanned));
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.min(self.logs.len()).max(1) {
                scope.spawn(work);
            }
            work();
        });
        let mut done: Vec<(usize, io::Result<LogScan>)> =
            done.into_inner().expect("no thread panics with the lock");
        done.sort_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, scanned)| scanned).collect()
    }

    /// Hands every whole entry above `after` and up to `through` to `visit`, until it says stop; returns what
    /// is wrong with what was read.
    ///
    /// # Errors
    /// Those of `visit`, and when a file cannot be read.
    pub fn for_each<E: From<io::Error>>(
        &self,
        after: Zxid,
        through: Zxid,
        visit: Visit<'_, E>,
    ) -> Result<Vec<Problem>, E> {
        let dir = self.with_logs_after(after);
        let mut report = LogReport::default();
        for (_, path) in &dir.logs {
            let mut ended = false;
            let scanned = scan(path, &mut |_| (), &mut |entry| {
                if entry.zxid <= after {
                    return Ok(true);
                }
                if entry.zxid > through {
                    ended = true;
                    return Ok(false);
                }
                ended = visit(path, entry)?.is_break();
                Ok::<bool, E>(!ended)
            })?;
            report.files.push(scanned);
            if ended {
                break;
            }
        }
        dir.judge(&mut report);
        Ok(report.problems)
    }
}

/// Apache's folder in a configured directory, or the directory itself when it is that folder.
pub fn folder_of(dir: &Path) -> PathBuf {
    let folder = dir.join(FOLDER);
    if folder.is_dir() {
        folder
    } else {
        dir.to_owned()
    }
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
