//! [`StdDisk`]: ordinary blocking files, for tools: what they write goes through the code that serves.
//!
//! Speed does not matter here, so a durable write is a write and a flush. Futures are ready at once, and no
//! executor is needed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::disk::{Disk, Entry, Urgency};

/// Zeros are written in pieces of this size.
const FILL_BYTES: usize = 1 << 20;

/// The system's files, blocking.
#[derive(Clone, Debug)]
pub struct StdDisk {
    started: Instant,
}

impl StdDisk {
    /// The disk.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for StdDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk for StdDisk {
    type File = Rc<File>;
    type Buffer = Vec<u8>;
    type Read = Vec<u8>;
    type Lock = File;

    async fn open(&self, path: &Path) -> io::Result<Rc<File>> {
        Ok(Rc::new(
            OpenOptions::new().read(true).write(true).open(path)?,
        ))
    }

    async fn create_zeroed(
        &self,
        path: &Path,
        bytes: u64,
        _urgency: impl Fn(u64) -> Urgency,
    ) -> io::Result<Rc<File>> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640);
        let mut file = options.open(path)?;
        let zeros = vec![0; FILL_BYTES];
        let mut left = bytes;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(FILL_BYTES).min(FILL_BYTES);
            file.write_all(zeros.get(..len).unwrap_or_default())?;
            left -= len as u64;
        }
        file.sync_all()?;
        Ok(Rc::new(file))
    }

    async fn size(&self, file: &Rc<File>) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    async fn read_at(&self, file: &Rc<File>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            match file.read_at(room, offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    async fn write_durable_at(
        &self,
        file: &Rc<File>,
        offset: u64,
        buffer: &Vec<u8>,
    ) -> io::Result<()> {
        file.write_all_at(buffer, offset)?;
        file.sync_data()
    }

    async fn flush(&self, file: &Rc<File>) -> io::Result<()> {
        file.sync_data()
    }

    async fn close(&self, file: Rc<File>) {
        drop(file);
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let entries = fs::read_dir(dir)?.map(|entry| {
            let entry = entry?;
            let metadata = entry.metadata()?;
            Ok(Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                bytes: metadata.len(),
                is_dir: metadata.is_dir(),
            })
        });
        entries.collect()
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<PathBuf> = dir
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.is_dir())
            .map(Path::to_path_buf)
            .collect();
        fs::create_dir_all(dir)?;
        for made in missing {
            let parent = made
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn available(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn unique(&self) -> u64 {
        use std::hash::{BuildHasher as _, RandomState};
        // The standard hasher's keys come from the system's random source.
        RandomState::new().hash_one((std::process::id(), Instant::now()))
    }
}
