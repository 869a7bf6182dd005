//! The file operations of a snapshot, so that a simulated disk can stand in for the system's.

use std::{fs, io, io::Write, num::NonZeroU64, path::Path};

use rustix::fs::Advice;

/// Where snapshots are written and read, blocking.
pub trait SnapshotFiles {
    /// A file being written.
    type Write: WriteFile;
    /// A file being read.
    type Read: ReadFile;

    /// Makes or empties a file.
    fn create(&self, path: &Path) -> io::Result<Self::Write>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Self::Read>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Brings the directory's entries to stable storage.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file being written.
pub trait WriteFile: Write {
    /// Brings what was written to stable storage.
    fn flush_durably(&mut self) -> io::Result<()>;
}

/// A file being read.
pub trait ReadFile {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from `offset`; a short file is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Tells the system that these bytes will be read.
    fn read_ahead(&self, offset: u64, len: u64);
    /// Drops what the system holds of it in memory, so that the next read asks the device.
    fn forget_cached(&self);
}

/// The system's files.
#[derive(Clone, Copy, Debug)]
pub struct StdFiles;

impl SnapshotFiles for StdFiles {
    type Write = fs::File;
    type Read = fs::File;

    fn create(&self, path: &Path) -> io::Result<fs::File> {
        fs::File::create(path)
    }

    fn open(&self, path: &Path) -> io::Result<fs::File> {
        fs::File::open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

impl WriteFile for fs::File {
    fn flush_durably(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl ReadFile for fs::File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }

    fn read_ahead(&self, offset: u64, len: u64) {
        // Advice only, as below.
        rustix::fs::fadvise(self, offset, NonZeroU64::new(len), Advice::WillNeed)
            .unwrap_or_default();
    }

    fn forget_cached(&self) {
        // Advice only; a file system that ignores it costs the check some of its worth, nothing else.
        rustix::fs::fadvise(self, 0, None, Advice::DontNeed).unwrap_or_default();
    }
}
