//! A data directory of Apache ZooKeeper, or logs and snapshots of it named one by one.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Context as _;
use indicatif::ProgressBar;
use ringkeeper_proto::Zxid;

use crate::apache_log::{FaultKind, LogScan, name_zxid, scan};
use crate::finding::Finding;
use crate::record::{RecordAt, Span, Visit};
use crate::segment_scan::follows;

/// Apache ZooKeeper's folder in a data directory.
pub(crate) const APACHE_FOLDER: &str = "version-2";

/// Apache's files to read.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApacheDir {
    /// Where the snapshots are; `None` when files were named one by one.
    pub(crate) data: Option<PathBuf>,
    /// Logs by the zxid in their names, ascending.
    pub(crate) logs: Vec<(Zxid, PathBuf)>,
    /// Snapshots by the zxid in their names, ascending.
    pub(crate) snapshots: Vec<(Zxid, PathBuf)>,
    /// `acceptedEpoch` and `currentEpoch`, where they are.
    pub(crate) epochs: [Option<u64>; 2],
    /// What is neither.
    pub(crate) strangers: Vec<PathBuf>,
}

/// A log and what is wrong with it.
#[derive(Debug)]
pub(crate) struct ApacheLog {
    pub(crate) files: Vec<LogScan>,
    pub(crate) findings: Vec<Finding>,
    /// Whether the newest file ends in an unfinished write.
    pub(crate) is_torn: bool,
    /// Where transactions are damaged or missing: the last zxid before, the first behind.
    pub(crate) breaks: Vec<(Zxid, Option<Zxid>)>,
}

impl ApacheLog {
    pub(crate) fn records(&self) -> u64 {
        self.files.iter().map(|file| file.records).sum()
    }

    pub(crate) fn zxids(&self) -> Option<(Zxid, Zxid)> {
        let ranges = self.files.iter().filter_map(|file| file.zxids);
        ranges.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }
}

impl ApacheDir {
    /// Looks at `data/version-2` and `log/version-2`.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(crate) fn open(data: &Path, log: &Path) -> anyhow::Result<Self> {
        let (data, log) = (folder_of(data), folder_of(log));
        let mut dir = Self::default();
        let mut folders = vec![&data];
        if log != data {
            folders.push(&log);
        }
        for folder in folders {
            dir.list(folder)
                .with_context(|| format!("list {}", folder.display()))?;
        }
        dir.epochs = ["acceptedEpoch", "currentEpoch"].map(|name| {
            let text = fs::read_to_string(data.join(name)).ok()?;
            text.trim().parse().ok()
        });
        dir.data = Some(data);
        dir.sort();
        Ok(dir)
    }

    /// Files named one by one.
    pub(crate) fn of_files(logs: Vec<PathBuf>, snapshots: Vec<PathBuf>) -> Self {
        let named = |paths: Vec<PathBuf>, prefix| {
            let zxid = |path: &Path| name_zxid(path, prefix).unwrap_or_default();
            paths.into_iter().map(|path| (zxid(&path), path)).collect()
        };
        let mut dir = Self {
            logs: named(logs, "log."),
            snapshots: named(snapshots, "snapshot."),
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
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            if let Some(zxid) = name_zxid(&path, "log.") {
                self.logs.push((zxid, path));
            } else if let Some(zxid) = name_zxid(&path, "snapshot.") {
                self.snapshots.push((zxid, path));
            } else if !matches!(name.as_str(), "acceptedEpoch" | "currentEpoch") {
                self.strangers.push(path);
            }
        }
        Ok(())
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        let bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.logs.iter().map(|(_, path)| bytes(path)).sum()
    }

    /// Reads and judges all logs.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn read_log(&self, threads: usize, bar: &ProgressBar) -> anyhow::Result<ApacheLog> {
        let scanned = self.scan_all(threads, bar);
        let mut log = ApacheLog {
            files: scanned.into_iter().collect::<anyhow::Result<_>>()?,
            findings: Vec::new(),
            is_torn: false,
            breaks: Vec::new(),
        };
        self.judge(&mut log);
        Ok(log)
    }

    fn scan_all(&self, threads: usize, bar: &ProgressBar) -> Vec<anyhow::Result<LogScan>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(self.logs.len()));
        let work = || {
            while let Some((at, (_, path))) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                self.logs.get(at).map(|file| (at, file))
            } {
                let scanned = scan(path, &mut |bytes| bar.inc(bytes), &mut |_| Ok(true));
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
        let mut done = done.into_inner().expect("no thread panics with the lock");
        done.sort_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, scanned)| scanned).collect()
    }

    fn judge(&self, log: &mut ApacheLog) {
        let mut last: Option<Zxid> = None;
        let mut ends_broken = false;
        let count = log.files.len();
        for at in 0..count {
            let Some(file) = log.files.get(at).cloned() else {
                continue;
            };
            let is_explained = ends_broken
                || file
                    .faults
                    .iter()
                    .any(|fault| fault.after.is_none() && fault.kind.is_break());
            ends_broken = file
                .faults
                .last()
                .is_some_and(|fault| fault.before.is_none() && fault.kind.is_break());
            self.judge_seam(log, &file, last.filter(|_| !is_explained));
            let next = log
                .files
                .get(at + 1)
                .and_then(|next| next.zxids)
                .map(|(low, _)| low);
            self.judge_file(log, &file, (last, next), at + 1 == count);
            last = file.zxids.map(|(_, high)| high).or(last);
        }
    }

    /// Whether a file goes on where the one before it ended.
    fn judge_seam(&self, log: &mut ApacheLog, file: &LogScan, last: Option<Zxid>) {
        let first = file.zxids.map(|(low, _)| low);
        if let (Some(last), Some(first)) = (last, first)
            && !follows(last, first)
            && self.data.is_some()
        {
            if first <= last {
                let text = "it begins before the file before it ends";
                log.findings.push(
                    Finding::warning("order", &file.path, text).between(Some(last), Some(first)),
                );
            } else {
                self.report_gap(log, &file.path, 16, last, first);
            }
        }
        let is_misnamed = match (file.named, first) {
            (Some(named), Some(first)) => named != first && file.faults.is_empty(),
            _ => false,
        };
        if is_misnamed {
            let text = format!(
                "its name says that it begins with {}, and it does not",
                file.named.unwrap_or_default()
            );
            log.findings
                .push(Finding::warning("name", &file.path, text));
        }
    }

    /// Zxids that are left out: nothing is lost where a snapshot holds them.
    fn report_gap(&self, log: &mut ApacheLog, path: &Path, offset: u64, after: Zxid, before: Zxid) {
        let is_covered = self
            .snapshots
            .iter()
            .any(|(zxid, _)| zxid.0 + 1 >= before.0);
        let finding = if is_covered {
            Finding::note(
                "zxid-gap",
                path,
                "zxids are left out; a snapshot holds them",
            )
        } else if before.epoch() > after.epoch() {
            Finding::note(
                "zxid-gap",
                path,
                "an epoch does not begin with its first zxid",
            )
        } else {
            log.breaks.push((after, Some(before)));
            Finding::damage(
                "zxid-gap",
                path,
                "zxids of an epoch are left out: transactions are missing",
            )
        };
        log.findings
            .push(finding.at(offset).between(Some(after), Some(before)));
    }

    fn judge_file(
        &self,
        log: &mut ApacheLog,
        file: &LogScan,
        around: (Option<Zxid>, Option<Zxid>),
        is_last: bool,
    ) {
        for fault in &file.faults {
            let before = fault.before.or(around.1);
            let claims = fault
                .claims
                .map_or_else(String::new, |zxid| format!(", which calls itself {zxid}"));
            let after = fault.after.or(around.0);
            let mut finding = match fault.kind {
                FaultKind::Header => {
                    Finding::damage("header", &file.path, "the file's header is damaged")
                }
                FaultKind::Checksum => Finding::damage(
                    "checksum",
                    &file.path,
                    format!("the record's checksum does not hold{claims}"),
                ),
                FaultKind::Broken => Finding::damage(
                    "broken",
                    &file.path,
                    "no entry stands here, and whole ones further on: Apache would take this for the end of the log",
                ),
                FaultKind::Frame => Finding::damage(
                    "frame",
                    &file.path,
                    "the entry's length or end mark is damaged, its record is whole: Apache would take this for the end \
                     of the log",
                ),
                FaultKind::Order => Finding::damage(
                    "order",
                    &file.path,
                    format!("its zxid does not come after the one before it{claims}"),
                ),
                FaultKind::Padding => Finding::damage(
                    "padding",
                    &file.path,
                    "something stands behind the last transaction, where zeros should be",
                ),
                FaultKind::Gap => {
                    let (after, before) = (after.unwrap_or_default(), before.unwrap_or_default());
                    self.report_gap(log, &file.path, fault.offset, after, before);
                    continue;
                }
                FaultKind::Torn => {
                    log.is_torn |= is_last;
                    let text = "the file ends in an unfinished write, as a crash leaves it; Apache ignores it";
                    Finding::note("torn", &file.path, text)
                }
            };
            finding = finding.at(fault.offset).between(after, before);
            if fault.kind != FaultKind::Header && fault.kind != FaultKind::Padding {
                finding = finding.in_record(fault.index);
            }
            if fault.kind.is_break() {
                log.breaks.push((after.unwrap_or_default(), before));
            }
            log.findings.push(finding);
        }
    }

    /// Hands every whole record of `span` to `visit`.
    ///
    /// # Errors
    /// Those of `visit`, and when a file cannot be read.
    pub(crate) fn for_each(&self, span: Span, visit: Visit<'_>) -> anyhow::Result<Vec<Finding>> {
        let mut log = ApacheLog {
            files: Vec::new(),
            findings: Vec::new(),
            is_torn: false,
            breaks: Vec::new(),
        };
        for (at, (_, path)) in self.logs.iter().enumerate() {
            // A file ends where the next one begins; one that lies before the span is not read.
            let next = self.logs.get(at + 1).map(|(zxid, _)| *zxid);
            let is_before = next.is_some_and(|next| next <= span.after && next > Zxid::ZERO);
            if is_before {
                continue;
            }
            let mut ended = false;
            let scanned = scan(path, &mut |_| (), &mut |entry| {
                if entry.zxid <= span.after {
                    return Ok(true);
                }
                if entry.zxid > span.through {
                    ended = true;
                    return Ok(false);
                }
                let record = RecordAt {
                    zxid: entry.zxid,
                    bytes: entry.bytes,
                    file: path,
                    offset: entry.offset,
                    batch: None,
                    index: entry.index,
                    is_void: false,
                };
                let flow: ControlFlow<()> = visit(&record)?;
                ended = flow.is_break();
                Ok(!ended)
            })?;
            log.files.push(scanned);
            if ended {
                break;
            }
        }
        self.judge(&mut log);
        Ok(log.findings)
    }
}

/// Apache's folder in a configured directory, or the directory itself when it is that folder.
pub(crate) fn folder_of(dir: &Path) -> PathBuf {
    let folder = dir.join(APACHE_FOLDER);
    if folder.is_dir() {
        folder
    } else {
        dir.to_owned()
    }
}
