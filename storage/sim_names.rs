//! The names on a [`SimDisk`](crate::SimDisk): files and directories, and the changes to them that are not flushed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Names as programs see them, or as a power cut leaves them.
#[derive(Clone, Default)]
pub(crate) struct Names {
    /// The files' inodes.
    pub(crate) files: BTreeMap<PathBuf, u64>,
    pub(crate) dirs: BTreeSet<PathBuf>,
}

/// What a name is of.
#[derive(Clone, Copy)]
pub(crate) enum Named {
    /// A file, by its inode.
    File(u64),
    /// A directory; with its name go those of all that is in it.
    Dir,
}

/// A change of names that is not flushed.
#[derive(Clone)]
pub(crate) struct NameChange {
    operation: u64,
    from: Option<PathBuf>,
    to: Option<PathBuf>,
    what: Named,
}

impl Names {
    /// Whether there is a file or directory of that name.
    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.files.contains_key(path) || self.dirs.contains(path)
    }

    /// The files and directories in `dir`, at any depth.
    pub(crate) fn below(&self, dir: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let is_below = |path: &&PathBuf| path.starts_with(dir) && path.as_path() != dir;
        let files = self.files.keys().filter(is_below).cloned().collect();
        let dirs = self.dirs.iter().filter(is_below).cloned().collect();
        (files, dirs)
    }

    fn remove_dir(&mut self, dir: &Path) {
        self.files.retain(|path, _| !path.starts_with(dir));
        self.dirs.retain(|path| !path.starts_with(dir));
    }

    fn rename_dir(&mut self, from: &Path, to: &Path) {
        if !self.dirs.contains(from) {
            return;
        }
        self.remove_dir(to);
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_path_buf(),
            Ok(rest) => to.join(rest),
            Err(_) => path.to_path_buf(),
        };
        let files = std::mem::take(&mut self.files);
        self.files = files
            .into_iter()
            .map(|(path, inode)| (moved(&path), inode))
            .collect();
        let dirs = std::mem::take(&mut self.dirs);
        self.dirs = dirs.iter().map(|path| moved(path)).collect();
    }
}

impl NameChange {
    pub(crate) fn new(operation: u64, from: Option<&Path>, to: Option<&Path>, what: Named) -> Self {
        Self {
            operation,
            from: from.map(Path::to_path_buf),
            to: to.map(Path::to_path_buf),
            what,
        }
    }

    /// Whether it was asked for before operation `id`.
    pub(crate) const fn is_before(&self, id: u64) -> bool {
        self.operation < id
    }

    /// The directory whose flush makes it durable: where the name comes to, else where it was. A rename from one directory
    /// to another is one change, as in a file system with a journal.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.to.as_ref().or(self.from.as_ref())?.parent()
    }

    /// The directory that it removes.
    pub(crate) fn removed_dir(&self) -> Option<&Path> {
        match (self.what, &self.to) {
            (Named::Dir, None) => self.from.as_deref(),
            _ => None,
        }
    }

    /// Whether it is of a name in `dir`.
    pub(crate) fn is_below(&self, dir: &Path) -> bool {
        self.dir().is_some_and(|own| own.starts_with(dir))
    }

    pub(crate) fn apply(&self, names: &mut Names) {
        match self.what {
            Named::File(inode) => {
                if let Some(from) = &self.from {
                    names.files.remove(from);
                }
                if let Some(to) = &self.to {
                    names.files.insert(to.clone(), inode);
                }
            }
            Named::Dir => match (&self.from, &self.to) {
                (Some(from), Some(to)) => names.rename_dir(from, to),
                (Some(dir), None) => names.remove_dir(dir),
                (None, Some(dir)) => {
                    names.dirs.insert(dir.clone());
                }
                (None, None) => {}
            },
        }
    }
}
