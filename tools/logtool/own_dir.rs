//! An own data directory, or own files named one by one, as found: manifest, snapshots, segments and the rest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::ProgressBar;
use ringkeeper_import::NOTE_NAME;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::offline::{
    self, FileName, LOCK_NAME, MANIFEST_NAMES, ManifestCopy, ManifestInfo,
};
use ringkeeper_storage::{BLOCK_BYTES, FOLDER, SnapshotInfo};

use crate::finding::Finding;
use crate::live::is_locked;
use crate::own_log::{self, Chain, Frame, OwnLog, SegmentFile};
use crate::segment_scan::Depth;

/// What the manifest's two copies say.
#[derive(Clone, Debug)]
pub(crate) enum Manifest {
    /// There is none.
    Absent,
    /// The newer whole copy.
    Present(ManifestInfo),
    /// There are copies, and none is whole.
    Unreadable,
    /// A newer release wrote it.
    Newer,
}

/// A snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotFile {
    pub(crate) zxid: Zxid,
    pub(crate) path: PathBuf,
    /// What the manifest says of it, if it lists it.
    pub(crate) listed: Option<SnapshotInfo>,
}

/// Own files to read.
#[derive(Clone, Debug)]
pub(crate) struct OwnDir {
    /// Where the manifest and the snapshots are; `None` when files were named one by one.
    pub(crate) data: Option<PathBuf>,
    /// Where the segments are.
    pub(crate) log: Option<PathBuf>,
    pub(crate) manifest: Manifest,
    /// Each copy of the manifest that is there.
    pub(crate) copies: Vec<(PathBuf, ManifestCopy)>,
    /// Ascending; those that the manifest lists and those that it does not.
    pub(crate) snapshots: Vec<SnapshotFile>,
    /// Snapshots that the manifest lists and that are not there.
    pub(crate) missing: Vec<SnapshotInfo>,
    /// Ascending.
    pub(crate) segments: Vec<SegmentFile>,
    pub(crate) spares: Vec<PathBuf>,
    /// Snapshots that were left unfinished, or are being written.
    pub(crate) unfinished: Vec<PathBuf>,
    /// What is none of ours.
    pub(crate) strangers: Vec<PathBuf>,
    /// Whether a server holds the lock.
    pub(crate) is_live: bool,
}

impl OwnDir {
    /// Looks at `data/ringkeeper` and `log/ringkeeper`.
    pub(crate) fn open(data: &Path, log: &Path) -> anyhow::Result<Self> {
        let (data, log) = (folder_of(data), folder_of(log));
        let mut dir = Self::empty();
        dir.read_manifest(&data)?;
        let mut folders = vec![&data];
        if log != data {
            folders.push(&log);
        }
        for folder in folders {
            dir.list(folder)
                .with_context(|| format!("list {}", folder.display()))?;
            dir.is_live |= is_locked(&folder.join(LOCK_NAME));
        }
        dir.segments.sort_by_key(|file| file.number);
        dir.snapshots.sort_by_key(|file| file.zxid);
        if let Manifest::Present(info) = &dir.manifest {
            let there = |info: &SnapshotInfo| dir.snapshots.iter().any(|f| f.zxid == info.zxid);
            dir.missing = info
                .snapshots
                .iter()
                .filter(|i| !there(i))
                .copied()
                .collect();
        }
        dir.data = Some(data);
        dir.log = Some(log);
        Ok(dir)
    }

    /// Segments and snapshots named one by one.
    pub(crate) fn of_files(
        segments: Vec<PathBuf>,
        snapshots: Vec<PathBuf>,
    ) -> anyhow::Result<Self> {
        let mut dir = Self::empty();
        for path in segments {
            dir.push_segment(&path)?;
        }
        dir.segments.sort_by_key(|file| file.number);
        for path in snapshots {
            let zxid = match name_of(&path) {
                Some(FileName::Snapshot(zxid)) => zxid,
                _ => Zxid::ZERO,
            };
            dir.snapshots.push(SnapshotFile {
                zxid,
                path,
                listed: None,
            });
        }
        Ok(dir)
    }

    const fn empty() -> Self {
        Self {
            data: None,
            log: None,
            manifest: Manifest::Absent,
            copies: Vec::new(),
            snapshots: Vec::new(),
            missing: Vec::new(),
            segments: Vec::new(),
            spares: Vec::new(),
            unfinished: Vec::new(),
            strangers: Vec::new(),
            is_live: false,
        }
    }

    fn push_segment(&mut self, path: &Path) -> anyhow::Result<()> {
        let number = match name_of(path) {
            Some(FileName::Log(number) | FileName::Spare(number)) => number,
            _ => 0,
        };
        let bytes = fs::metadata(path)
            .with_context(|| format!("look at {}", path.display()))?
            .len();
        self.segments.push(SegmentFile {
            number,
            path: path.to_owned(),
            bytes,
        });
        Ok(())
    }

    fn read_manifest(&mut self, folder: &Path) -> anyhow::Result<()> {
        let mut newest: Option<ManifestInfo> = None;
        let mut newer = None;
        for name in MANIFEST_NAMES {
            let path = folder.join(name);
            let block = match read_block(&path) {
                Ok(block) => block,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            };
            let copy = offline::manifest_copy(&block);
            match &copy {
                ManifestCopy::Good(info) => {
                    if newest
                        .as_ref()
                        .is_none_or(|n| info.generation > n.generation)
                    {
                        newest = Some(info.clone());
                    }
                }
                ManifestCopy::Newer(_) => newer = Some(()),
                ManifestCopy::Damaged => {}
            }
            self.copies.push((path, copy));
        }
        self.manifest = match (newer, newest) {
            (Some(()), _) => Manifest::Newer,
            (None, Some(info)) => Manifest::Present(info),
            (None, None) if self.copies.is_empty() => Manifest::Absent,
            (None, None) => Manifest::Unreadable,
        };
        Ok(())
    }

    fn list(&mut self, folder: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match name_of(&path).filter(|_| !path.is_dir()) {
                Some(FileName::Log(_)) => match self.push_segment(&path) {
                    // Purged in this moment.
                    Err(_) if !path.exists() => {}
                    other => other?,
                },
                Some(FileName::Spare(_) | FileName::SpareSnapshot) => self.spares.push(path),
                Some(FileName::Snapshot(zxid)) => {
                    let listed = self.listed(zxid);
                    self.snapshots.push(SnapshotFile { zxid, path, listed });
                }
                Some(FileName::UnfinishedSnapshot) => self.unfinished.push(path),
                Some(FileName::Manifest | FileName::Lock) => {}
                // What an import has noted.
                None if path.file_name().is_some_and(|name| name == NOTE_NAME) => {}
                None => self.strangers.push(path),
            }
        }
        self.strangers.sort();
        Ok(())
    }

    fn listed(&self, zxid: Zxid) -> Option<SnapshotInfo> {
        let infos = self.info().map_or(&[][..], |info| &info.snapshots);
        infos.iter().find(|info| info.zxid == zxid).copied()
    }

    /// The manifest, if it can be read.
    pub(crate) const fn info(&self) -> Option<&ManifestInfo> {
        match &self.manifest {
            Manifest::Present(info) => Some(info),
            _ => None,
        }
    }

    /// The snapshots that may be used: those that the manifest lists, or all where there is no manifest.
    pub(crate) fn usable_snapshots(&self) -> impl DoubleEndedIterator<Item = &SnapshotFile> {
        let all = self.info().is_none();
        self.snapshots
            .iter()
            .filter(move |file| all || file.listed.is_some())
    }

    /// Bytes of segments that count.
    pub(crate) fn log_bytes(&self) -> u64 {
        let first = self.info().map_or(0, |info| info.first_segment);
        let counting = self.segments.iter().filter(|file| file.number >= first);
        counting.map(|file| file.bytes).sum()
    }

    /// Reads and judges the log.
    pub(crate) fn read_log(
        &self,
        depth: Depth,
        threads: usize,
        bar: &ProgressBar,
    ) -> io::Result<OwnLog> {
        let frame = || {
            let mut now = Self::empty();
            if let (Some(data), true) = (&self.data, self.is_live) {
                now.read_manifest(data).map_err(io::Error::other)?;
            }
            Ok(self.frame(now.info().or_else(|| self.info())))
        };
        own_log::read(&self.segments, frame, depth, threads, bar)
    }

    fn frame(&self, info: Option<&ManifestInfo>) -> Frame {
        Frame {
            start: info.map(|info| {
                let chain = Chain {
                    sequence: info.sequence_before,
                    checksum: info.checksum_before,
                    last_zxid: info.zxid_before,
                };
                (info.first_segment, chain)
            }),
            // The manifest of a server that runs says nothing of an end.
            clean_end: info.and_then(|info| info.clean_end),
            durable_sequence: info.map_or(0, |info| info.durable_sequence),
            store: info.map(|info| info.store),
            is_whole: self.log.is_some(),
            dir: self.log.clone().unwrap_or_default(),
        }
    }

    /// What is wrong with the manifest.
    pub(crate) fn judge_manifest(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (path, copy) in &self.copies {
            match copy {
                ManifestCopy::Good(_) => {}
                ManifestCopy::Newer(format) => {
                    let text =
                        format!("it has format version {format}, which this release does not know");
                    findings.push(Finding::damage("newer-format", path, text).at(0));
                }
                ManifestCopy::Damaged => {
                    let text = "this copy of the manifest is torn or damaged";
                    findings.push(match self.manifest {
                        Manifest::Present(_) => Finding::damage(
                            "manifest",
                            path,
                            format!("{text}; the other one is whole"),
                        )
                        .at(0),
                        _ => Finding::damage("manifest", path, text).at(0),
                    });
                }
            }
        }
        if let (Some(data), false) = (&self.data, self.copies.is_empty()) {
            for name in MANIFEST_NAMES {
                let path = data.join(name);
                if !self.copies.iter().any(|(there, _)| *there == path) {
                    let text = "this copy of the manifest is missing; the other one is there";
                    findings.push(Finding::warning("manifest", &path, text));
                }
            }
        }
        findings
    }
}

/// The folder of ours in a configured directory, or the directory itself when it is that folder.
pub(crate) fn folder_of(dir: &Path) -> PathBuf {
    let folder = dir.join(FOLDER);
    let is_inside = !folder.is_dir() && dir.file_name().is_some_and(|name| name == FOLDER);
    if is_inside { dir.to_owned() } else { folder }
}

/// The configured directory that `folder_of` was asked about.
pub(crate) fn configured(dir: &Path) -> PathBuf {
    let folder = folder_of(dir);
    folder
        .parent()
        .map_or_else(|| folder.clone(), Path::to_owned)
}

fn name_of(path: &Path) -> Option<FileName> {
    FileName::parse(path.file_name()?.to_str()?)
}

fn read_block(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut block = Vec::new();
    let limit = BLOCK_BYTES as u64;
    fs::File::open(path)?.take(limit).read_to_end(&mut block)?;
    Ok(block)
}
