//! What the paths on the command line are: told by how files begin, not by their names.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use ringkeeper_apache_files::{self as apache, Directory, LOG_PREFIX, SNAPSHOT_PREFIX, name_zxid};
use ringkeeper_storage::FOLDER;
use ringkeeper_storage::offline::{FileName, MANIFEST_MAGIC, SEGMENT_MAGIC, SNAPSHOT_MAGIC};

use crate::exit::Failure;
use crate::own_dir::{OwnDir, configured, folder_of};

/// What to read.
#[derive(Args, Clone, Debug)]
pub(crate) struct Input {
    /// A data directory, or log and snapshot files of one format
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// The directory of the log, where dataLogDir is configured
    #[arg(long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Which data to read where a directory holds both
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
}

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Ringkeeper's
    Own,
    /// Apache ZooKeeper's
    Apache,
}

/// What was opened.
#[derive(Debug)]
pub(crate) enum Source {
    /// Ringkeeper's.
    Own(Box<OwnDir>),
    /// Apache ZooKeeper's.
    Apache(Directory),
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory with own files.
    OwnDir,
    /// A directory with Apache's files.
    ApacheDir,
    /// A directory with both.
    BothDir,
    /// A directory without anything.
    EmptyDir,
    /// A directory with neither.
    OtherDir,
    OwnSegment,
    OwnSnapshot,
    OwnManifest,
    ApacheLog,
    /// Plain or compressed.
    ApacheSnapshot,
    EmptyFile,
    OtherFile,
}

impl Kind {
    /// In words.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OwnDir => "a Ringkeeper data directory",
            Self::ApacheDir => "an Apache ZooKeeper data directory",
            Self::BothDir => "a data directory of both Ringkeeper and Apache ZooKeeper",
            Self::EmptyDir => "an empty directory",
            Self::OtherDir => "a directory without data of Ringkeeper or Apache ZooKeeper",
            Self::OwnSegment => "a Ringkeeper log segment",
            Self::OwnSnapshot => "a Ringkeeper snapshot",
            Self::OwnManifest => "a Ringkeeper manifest",
            Self::ApacheLog => "an Apache ZooKeeper transaction log",
            Self::ApacheSnapshot => "an Apache ZooKeeper snapshot",
            Self::EmptyFile => "an empty file",
            Self::OtherFile => "a file of another kind",
        }
    }
}

/// Looks at `path`.
///
/// # Errors
/// When it is missing or cannot be read.
pub(crate) fn kind_of(path: &Path) -> anyhow::Result<Kind> {
    let metadata = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if metadata.is_dir() {
        return kind_of_dir(path).with_context(|| format!("list {}", path.display()));
    }
    kind_of_file(path).with_context(|| format!("read {}", path.display()))
}

fn kind_of_dir(dir: &Path) -> io::Result<Kind> {
    let own = holds(&folder_of(dir), |path| {
        path.file_name()
            .and_then(|name| FileName::parse(name.to_str()?))
            .is_some()
    })?;
    let inside = dir.join(apache::FOLDER);
    let apache_folder = if inside.is_dir() {
        inside
    } else {
        dir.to_owned()
    };
    let apache = holds(&apache_folder, |path| {
        path.is_file()
            && matches!(
                kind_of_file(path),
                Ok(Kind::ApacheLog | Kind::ApacheSnapshot)
            )
    })?;
    Ok(match (own, apache) {
        (true, true) => Kind::BothDir,
        (true, false) => Kind::OwnDir,
        (false, true) => Kind::ApacheDir,
        (false, false) if fs::read_dir(dir)?.next().is_none() => Kind::EmptyDir,
        (false, false) => Kind::OtherDir,
    })
}

fn holds(dir: &Path, is_wanted: impl Fn(&Path) -> bool) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                if is_wanted(&entry?.path()) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn kind_of_file(path: &Path) -> io::Result<Kind> {
    let mut start = Vec::new();
    File::open(path)?.take(10).read_to_end(&mut start)?;
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let by_name = name.as_deref().and_then(FileName::parse);
    let is_snapshot_name = name_zxid(path, SNAPSHOT_PREFIX).is_some();
    let is_log_name = name_zxid(path, LOG_PREFIX).is_some();
    Ok(match start.get(..4) {
        None if start.is_empty() => Kind::EmptyFile,
        Some(magic) if magic == SEGMENT_MAGIC => Kind::OwnSegment,
        Some(magic) if magic == SNAPSHOT_MAGIC => Kind::OwnSnapshot,
        Some(magic) if magic == MANIFEST_MAGIC => Kind::OwnManifest,
        Some(b"ZKLG") => Kind::ApacheLog,
        Some(b"ZKSN") => Kind::ApacheSnapshot,
        // gzip and snappy; many other files begin so too.
        Some([0x1f, 0x8b, ..] | [0x82, b'S', b'N', b'A']) if is_snapshot_name => {
            Kind::ApacheSnapshot
        }
        // Its magic may be what is damaged.
        _ => match by_name {
            Some(FileName::Log(_)) => Kind::OwnSegment,
            Some(FileName::Snapshot(_)) => Kind::OwnSnapshot,
            Some(FileName::Manifest) => Kind::OwnManifest,
            _ if is_log_name => Kind::ApacheLog,
            _ if is_snapshot_name => Kind::ApacheSnapshot,
            _ => Kind::OtherFile,
        },
    })
}

impl Input {
    /// A single directory or file.
    pub(crate) fn of(path: &Path, log_dir: Option<&Path>, format: Option<Format>) -> Self {
        Self {
            paths: vec![path.to_owned()],
            log_dir: log_dir.map(Path::to_owned),
            format,
        }
    }

    /// Opens what the paths name.
    ///
    /// # Errors
    /// When something is missing, or they are not of one kind.
    pub(crate) fn open(&self) -> anyhow::Result<Source> {
        let mut files: [Vec<PathBuf>; 4] = Default::default();
        let [segments, snapshots, apache_logs, apache_snapshots] = &mut files;
        for path in &self.paths {
            let kind = kind_of(path)?;
            let is_dir = matches!(kind, Kind::OwnDir | Kind::ApacheDir | Kind::BothDir);
            if is_dir && self.paths.len() > 1 {
                return Err(Failure::usage("name one data directory, or files"));
            }
            match (kind, self.format) {
                (Kind::OwnDir, _) | (Kind::BothDir, Some(Format::Own)) => {
                    return Ok(Source::Own(Box::new(self.open_own(path)?)));
                }
                (Kind::ApacheDir, _) | (Kind::BothDir, Some(Format::Apache)) => {
                    let log = self.log_dir.as_deref().unwrap_or(path);
                    return Ok(Source::Apache(Directory::open(path, log)?));
                }
                (Kind::BothDir, None) => {
                    return Err(Failure::usage(format!(
                        "{} holds data of both formats: say --format own or --format apache",
                        path.display()
                    )));
                }
                (Kind::OwnSegment, _) => segments.push(path.clone()),
                (Kind::OwnSnapshot, _) => snapshots.push(path.clone()),
                (Kind::ApacheLog, _) => apache_logs.push(path.clone()),
                (Kind::ApacheSnapshot, _) => apache_snapshots.push(path.clone()),
                (other, _) => {
                    return Err(Failure::unreadable(format!(
                        "{} is {}",
                        path.display(),
                        other.name()
                    )));
                }
            }
        }
        let [segments, snapshots, apache_logs, apache_snapshots] = files;
        let is_own = !segments.is_empty() || !snapshots.is_empty();
        let is_apache = !apache_logs.is_empty() || !apache_snapshots.is_empty();
        match (is_own, is_apache) {
            (true, true) => Err(Failure::usage("name files of one format")),
            (_, true) => Ok(Source::Apache(Directory::of_files(
                apache_logs,
                apache_snapshots,
            ))),
            _ => Ok(Source::Own(Box::new(OwnDir::of_files(
                segments, snapshots,
            )?))),
        }
    }

    /// Opens the one own data directory that the path must be.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn open_data_dir(&self) -> anyhow::Result<OwnDir> {
        match self.open()? {
            Source::Own(dir) if dir.data.is_some() => Ok(*dir),
            Source::Own(_) => Err(Failure::usage("name a data directory, not a file in it")),
            Source::Apache(_) => Err(Failure::usage(
                "these are Apache ZooKeeper's files, and this works on Ringkeeper's only",
            )),
        }
    }

    fn open_own(&self, path: &Path) -> anyhow::Result<OwnDir> {
        let data = configured(path);
        let log = self
            .log_dir
            .as_deref()
            .map_or_else(|| data.clone(), configured);
        if !folder_of(&log).is_dir() {
            return Err(Failure::unreadable(format!(
                "{} has no folder {FOLDER}",
                log.display()
            )));
        }
        OwnDir::open(&data, &log)
    }
}
