//! What is imported: the directories, and how to tell whether they have changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ringkeeper_apache_files::{
    Directory, Epoch, FOLDER, FileError, LOG_MAGIC, LOG_PREFIX, Listed, SNAPSHOT_PREFIX, folder_of,
    name_zxid,
};
use ringkeeper_proto::{Epoch as ZabEpoch, Zxid};

use crate::error::ImportError;

/// Apache's configured directories.
#[derive(Clone, Debug)]
pub struct SourceDirs {
    /// `dataDir`.
    pub data: PathBuf,
    /// `dataLogDir`; the same as `data` unless configured.
    pub log: PathBuf,
}

impl SourceDirs {
    pub(crate) fn open(&self) -> Result<Directory, FileError> {
        Directory::open(&self.data, &self.log)
    }
}

/// Whether `version-2` in one of `dirs` holds a log or a snapshot. A folder without any is what a server that never
/// ran has left.
///
/// # Errors
/// When a directory cannot be listed.
pub fn has_apache_data(dirs: &SourceDirs) -> io::Result<bool> {
    for dir in [&dirs.data, &dirs.log] {
        let entries = match fs::read_dir(dir.join(FOLDER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let is_data = name_zxid(&path, LOG_PREFIX).is_some()
                || name_zxid(&path, SNAPSHOT_PREFIX).is_some();
            if is_data {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A file as it was: its name, length, and when it was last written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) written_ns: u128,
}

impl Seen {
    pub(crate) fn of(file: Option<&Listed>) -> io::Result<Option<Self>> {
        let Some((_, path)) = file else {
            return Ok(None);
        };
        let metadata = fs::metadata(path)?;
        let written = metadata.modified()?.duration_since(UNIX_EPOCH);
        Ok(Some(Self {
            name: name_of(path),
            bytes: metadata.len(),
            written_ns: written.map_or(0, |since| since.as_nanos()),
        }))
    }
}

pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The two epochs of a member whose last transaction is `last`.
///
/// # Errors
/// When they cannot be, as Apache would refuse them too.
pub(crate) fn epochs(dir: &Directory, last: Zxid) -> Result<(ZabEpoch, ZabEpoch), ImportError> {
    let value = |name: &str, epoch: Epoch| match epoch {
        Epoch::Present(epoch) => Ok(ZabEpoch(epoch)),
        // ZK: QuorumPeer takes that of the last transaction where a server from before 3.4 has none.
        Epoch::Absent => Ok(last.epoch()),
        Epoch::Unreadable => Err(ImportError::Epochs(format!(
            "{name} does not hold an epoch: restore it, or remove it if this server was never a member of an ensemble"
        ))),
    };
    let current = value("currentEpoch", dir.epochs.current)?;
    let accepted = match dir.epochs.accepted {
        Epoch::Absent => current.max(last.epoch()),
        other => value("acceptedEpoch", other)?,
    };
    // ZK: QuorumPeer.loadDataBase goes on from an interrupted change of currentEpoch.
    let was_interrupted = dir
        .data
        .as_deref()
        .is_some_and(|data| data.join("currentEpoch.tmp").exists());
    let current = if current < last.epoch() && was_interrupted {
        last.epoch()
    } else {
        current
    };
    if current < last.epoch() || accepted < current {
        return Err(ImportError::Epochs(format!(
            "the epochs cannot be: accepted {accepted}, current {current}, and the last transaction is {last}; fetch \
             the data from another member of the ensemble"
        )));
    }
    Ok((accepted, current))
}

/// Whether the file begins as a log does; an empty one has never been one.
pub(crate) fn is_begun(path: &Path) -> io::Result<bool> {
    use io::Read as _;
    let mut start = Vec::new();
    fs::File::open(path)?.take(4).read_to_end(&mut start)?;
    Ok(start == LOG_MAGIC)
}

/// Where `version-2` of `dirs` is, for messages.
pub(crate) fn shown(dirs: &SourceDirs) -> PathBuf {
    folder_of(&dirs.data)
}
