//! A disk used by a caller that waits for each operation, whole directories included: for the import and tools.
//!
//! [`StdDisk`] is the system's; `SimDisk` (feature `sim`) runs the same code into power cuts.

use std::fs;
use std::future::Future;
use std::io::{self, Write as _};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crate::disk::Disk;
use crate::snapshot_files::{SnapshotFiles, StdFiles, WriteFile as _};
use crate::std_disk::StdDisk;

/// A disk whose caller waits, with what [`Disk`] does not need: directories as wholes.
pub trait BlockingDisk: Disk {
    /// Files that are written from front to back.
    type Files: SnapshotFiles;

    /// Where such files are written and read.
    fn files(&self) -> Self::Files;
    /// Runs `future`, which waits for nothing but this disk, to its end.
    ///
    /// # Errors
    /// When the disk has gone for good: a simulated one whose power is cut.
    fn wait<T>(&self, future: impl Future<Output = T>) -> io::Result<T>;
    /// Whether there is a file or directory of that name.
    fn exists(&self, path: &Path) -> bool;
    /// Renames a directory within one file system; nothing is at `to`. On stable storage after a flush of the directory
    /// that `to` is in.
    fn rename_dir(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes an empty directory. On stable storage after a flush of the directory that it was in.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes a directory and what is in it; none is fine.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes a file of `bytes`, which are on stable storage then; its name is not.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.files().create(path)?;
        file.write_all(bytes)?;
        file.flush_durably()
    }
}

impl BlockingDisk for StdDisk {
    type Files = StdFiles;

    fn files(&self) -> StdFiles {
        StdFiles
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> io::Result<T> {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(result) => return Ok(result),
                Poll::Pending => thread::park(),
            }
        }
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn rename_dir(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
