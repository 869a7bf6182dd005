//! Where an import works, and how its result comes to its place.
//!
//! ```text
//! dataDir/ringkeeper.import/      lock, ringkeeper/ ...   while it works
//! dataLogDir/ringkeeper.import/   ringkeeper/ ...         when that is another directory
//! ```
//!
//! Two directories cannot be renamed at once. The log's comes first, with a mark in it; the data's makes the
//! import valid, and the mark goes. Whoever finds the mark without data beside removes what has it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ringkeeper_storage::offline::{LOCK_NAME, MANIFEST_NAMES};
use ringkeeper_storage::{Dirs, Disk as _, StdDisk};

use crate::error::ImportError;
use crate::progress::Progress;

/// Where an import works, in each of the directories.
pub const WORK_FOLDER: &str = "ringkeeper.import";
/// The mark on a log whose data has not come to its place yet. The store passes over such names.
pub const MARK_NAME: &str = ".import-unfinished";

/// An import's place, held by a lock.
pub(crate) struct Place {
    target: Dirs,
    work: Dirs,
    _lock: <StdDisk as ringkeeper_storage::Disk>::Lock,
}

impl Place {
    /// Takes the place, and removes what an interrupted import has left.
    pub(crate) fn take(target: &Dirs) -> Result<Self, ImportError> {
        let work = Dirs {
            data: target.data.join(WORK_FOLDER),
            log: target.log.join(WORK_FOLDER),
        };
        if MANIFEST_NAMES
            .iter()
            .any(|name| target.data_folder().join(name).exists())
        {
            return Err(ImportError::Exists(target.data_folder()));
        }
        fs::create_dir_all(&work.data).map_err(ImportError::io("make", &work.data))?;
        let lock_path = work.data.join(LOCK_NAME);
        let lock = StdDisk::new()
            .lock(&lock_path)
            .map_err(ImportError::io("lock", &lock_path))?
            .ok_or_else(|| ImportError::Busy(work.data.clone()))?;
        let place = Self {
            target: target.clone(),
            work,
            _lock: lock,
        };
        place.clear()?;
        Ok(place)
    }

    /// The directories to make the store in.
    pub(crate) const fn work(&self) -> &Dirs {
        &self.work
    }

    /// Removes the work of this import or of one before.
    pub(crate) fn clear(&self) -> Result<(), ImportError> {
        remove_all(&self.work.data_folder())?;
        remove_all(&self.work.log_folder())?;
        let log = self.target.log_folder();
        if log.join(MARK_NAME).exists() {
            remove_all(&log)?;
        }
        Ok(())
    }

    /// Brings the finished store to its place.
    pub(crate) fn publish(self, progress: &dyn Progress) -> Result<(), ImportError> {
        let step = |from: &Path, to: &Path| {
            if progress.is_cancelled() {
                return Err(ImportError::Cancelled);
            }
            make_way(to)?;
            fs::rename(from, to).map_err(ImportError::io("rename", from))?;
            sync(to.parent())
        };
        let (data, log) = (self.target.data_folder(), self.target.log_folder());
        let is_split = self.target.data != self.target.log;
        if is_split {
            let mark = self.work.log_folder().join(MARK_NAME);
            File::create(&mark)
                .and_then(|file| file.sync_all())
                .map_err(ImportError::io("create", &mark))?;
            sync(mark.parent())?;
            step(&self.work.log_folder(), &log)?;
        }
        step(&self.work.data_folder(), &data)?;
        if is_split {
            let mark = log.join(MARK_NAME);
            fs::remove_file(&mark).map_err(ImportError::io("remove", &mark))?;
            sync(mark.parent())?;
            remove_all(&self.work.log)?;
        }
        remove_all(&self.work.data)?;
        sync(self.work.data.parent())
    }
}

/// Removes what may lie at the target without being data: an empty folder, or one with a lock file only.
fn make_way(folder: &Path) -> Result<(), ImportError> {
    let lock = folder.join(LOCK_NAME);
    if lock.exists() {
        fs::remove_file(&lock).map_err(ImportError::io("remove", &lock))?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Err(ImportError::Exists(folder.to_owned()))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImportError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn remove_all(folder: &PathBuf) -> Result<(), ImportError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImportError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn sync(folder: Option<&Path>) -> Result<(), ImportError> {
    let folder = folder.unwrap_or_else(|| Path::new("."));
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(ImportError::io("flush", folder))
}
