//! Where an import works, and how its result comes to its place.
//!
//! ```text
//! dataDir/ringkeeper.import/      lock, ringkeeper/ ...   while it works
//! dataLogDir/ringkeeper.import/   ringkeeper/ ...         when that is another directory
//! ```
//!
//! Two directories cannot be renamed at once. The log's comes first, with a mark in it; the data's makes the
//! import valid, and the mark goes. Whoever finds the mark without data beside removes what has it.

use std::io;
use std::path::Path;

use ringkeeper_storage::offline::{LOCK_NAME, MANIFEST_NAMES};
use ringkeeper_storage::{BlockingDisk, Dirs, SnapshotFiles as _};

use crate::error::ImportError;
use crate::progress::Progress;

/// Where an import works, in each of the directories.
pub const WORK_FOLDER: &str = "ringkeeper.import";
/// The mark on a log whose data has not come to its place yet. The store passes over such names.
pub const MARK_NAME: &str = ".import-unfinished";

/// An import's place, held by a lock.
pub(crate) struct Place<D: BlockingDisk> {
    disk: D,
    target: Dirs,
    work: Dirs,
    _lock: D::Lock,
}

impl<D: BlockingDisk> Place<D> {
    /// Takes the place, and removes what an interrupted import has left.
    pub(crate) fn take(disk: &D, target: &Dirs) -> Result<Self, ImportError> {
        let work = Dirs {
            data: target.data.join(WORK_FOLDER),
            log: target.log.join(WORK_FOLDER),
        };
        if MANIFEST_NAMES
            .iter()
            .any(|name| disk.exists(&target.data_folder().join(name)))
        {
            return Err(ImportError::Exists(target.data_folder()));
        }
        disk.wait(disk.create_dir_all(&work.data))
            .and_then(|made| made)
            .map_err(ImportError::io("make", &work.data))?;
        let lock_path = work.data.join(LOCK_NAME);
        let lock = disk
            .lock(&lock_path)
            .map_err(ImportError::io("lock", &lock_path))?
            .ok_or_else(|| ImportError::Busy(work.data.clone()))?;
        let place = Self {
            disk: disk.clone(),
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
        self.remove_all(&self.work.data_folder())?;
        self.remove_all(&self.work.log_folder())?;
        let log = self.target.log_folder();
        if self.disk.exists(&log.join(MARK_NAME)) {
            self.remove_all(&log)?;
        }
        Ok(())
    }

    /// Brings the finished store to its place.
    pub(crate) fn publish(self, progress: &dyn Progress) -> Result<(), ImportError> {
        let step = |from: &Path, to: &Path| {
            if progress.is_cancelled() {
                return Err(ImportError::Cancelled);
            }
            self.make_way(to)?;
            self.disk
                .rename_dir(from, to)
                .map_err(ImportError::io("rename", from))?;
            self.sync(to.parent())
        };
        let (data, log) = (self.target.data_folder(), self.target.log_folder());
        let is_split = self.target.data != self.target.log;
        if is_split {
            let mark = self.work.log_folder().join(MARK_NAME);
            self.disk
                .write_file(&mark, b"")
                .map_err(ImportError::io("create", &mark))?;
            self.sync(mark.parent())?;
            step(&self.work.log_folder(), &log)?;
        }
        step(&self.work.data_folder(), &data)?;
        if is_split {
            let mark = log.join(MARK_NAME);
            self.remove_file(&mark)?;
            self.sync(mark.parent())?;
            self.remove_all(&self.work.log)?;
        }
        self.remove_all(&self.work.data)?;
        self.sync(self.work.data.parent())
    }

    /// Removes what may lie at the target without being data: an empty folder, or one with a lock file only.
    fn make_way(&self, folder: &Path) -> Result<(), ImportError> {
        let lock = folder.join(LOCK_NAME);
        if self.disk.exists(&lock) {
            self.remove_file(&lock)?;
        }
        match self.disk.remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Err(ImportError::Exists(folder.to_owned()))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImportError::io("remove", folder)(error))
            }
            _ => Ok(()),
        }
    }

    fn remove_file(&self, file: &Path) -> Result<(), ImportError> {
        let removed = self.disk.files().remove(file);
        removed.map_err(ImportError::io("remove", file))
    }

    fn remove_all(&self, folder: &Path) -> Result<(), ImportError> {
        let removed = self.disk.remove_dir_all(folder);
        removed.map_err(ImportError::io("remove", folder))
    }

    fn sync(&self, folder: Option<&Path>) -> Result<(), ImportError> {
        let folder = folder.unwrap_or_else(|| Path::new("."));
        let flushed = self.disk.files().sync_dir(folder);
        flushed.map_err(ImportError::io("flush", folder))
    }
}
