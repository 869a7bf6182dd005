//! [`DmaDisk`]: O_DIRECT files through glommio.

use std::{
    cell::Cell,
    fs, io,
    ops::Deref,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use glommio::{
    GlommioError,
    io::{Directory, DmaFile, OpenOptions, ReadResult},
    timer::sleep,
};

use crate::{
    aligned::AlignedBuffer,
    disk::{BLOCK_BYTES, Disk, DiskBuffer as _, Entry, Urgency},
};

/// Bytes per write of an urgent fill.
const FILL_BYTES: usize = 256 << 10;
/// Writes of an urgent fill that are on their way together: somebody waits for all of it, and a round of them costs one
/// turn of the executor.
const FILL_DEPTH: u64 = 8;
/// Bytes per write of a fill that is not urgent: little for a log write to wait behind.
const FILL_BYTES_GENTLE: usize = 64 << 10;
/// A fill that is not urgent rests so many times as long as it writes: log writes that wait for the
/// device behind it are few then.
const FILL_REST: u32 = 9;
const _: () = assert!(FILL_BYTES.is_multiple_of(BLOCK_BYTES));

/// How a write reaches stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DurableVariant {
    /// A descriptor opened with `O_DSYNC`: one request per write.
    #[default]
    Dsync,
    /// A plain write, then `fdatasync`: two requests.
    WriteThenFlush,
}

impl DurableVariant {
    /// Its name in the server's log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dsync => "O_DSYNC",
            Self::WriteThenFlush => "write + fdatasync",
        }
    }
}

/// A disk reached by O_DIRECT through the glommio executor that it is used on.
#[derive(Clone, Debug)]
pub struct DmaDisk {
    variant: Rc<Cell<DurableVariant>>,
    /// What a durable write takes longer than it would.
    handicap: Rc<Cell<Duration>>,
    started: Instant,
}

/// An open O_DIRECT file.
#[derive(Clone, Debug)]
pub struct DmaHandle {
    file: Rc<DmaFile>,
    variant: DurableVariant,
}

/// Bytes read from a file.
#[derive(Debug)]
pub struct DmaRead(ReadResult);

impl Deref for DmaRead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DmaDisk {
    /// A disk for files in `dir`, with the `O_DSYNC` variant until [`DmaDisk::set_variant`].
    ///
    /// Must run before any other file of the same device is opened on this executor: glommio probes with
    /// its first file whether reads can be polled, and a file without written blocks misleads it for good.
    /// So this writes one block to a scratch file and opens that first.
    pub async fn start(dir: &Path) -> io::Result<Self> {
        // Always the same name, so that starts that are killed leave one file at most.
        let scratch = dir.join(".polling-probe");
        let result = Self::probe_polling(&scratch).await;
        let removed = fs::remove_file(&scratch);
        result?;
        // Another server that is being started in this directory may have been quicker; the lock will tell.
        removed.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        Ok(Self {
            variant: Rc::default(),
            handicap: Rc::default(),
            started: Instant::now(),
        })
    }

    async fn probe_polling(scratch: &Path) -> io::Result<()> {
        // Without glommio, which reports a refused O_DIRECT with the path lost. And not flushed: a block written past the
        // page cache is in the file at once, and a flush waits behind whatever else is written to the device.
        let mut block = AlignedBuffer::with_capacity(BLOCK_BYTES);
        block.bytes_mut().fill(0xA5);
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(scratch)?
            .write_all_at(block.bytes(), 0)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .dma_open(scratch)
            .await
            .map_err(system)?;
        let read = file.read_at_aligned(0, BLOCK_BYTES).await.map_err(system);
        file.close().await.map_err(system)?;
        read.map(drop)
    }

    /// Chooses the durable-write variant for files opened from now on.
    pub fn set_variant(&self, variant: DurableVariant) {
        self.variant.set(variant);
    }

    /// The durable-write variant of files opened from now on.
    pub fn variant(&self) -> DurableVariant {
        self.variant.get()
    }

    /// For tests of a server whose disk is slow: durable writes take so much longer from now on.
    pub fn slow_down(&self, handicap: Duration) {
        self.handicap.set(handicap);
    }

    async fn handicap(&self) {
        let handicap = self.handicap.get();
        if !handicap.is_zero() {
            sleep(handicap).await;
        }
    }

    async fn open_as(&self, path: &Path, variant: DurableVariant) -> io::Result<DmaHandle> {
        let flags = match variant {
            DurableVariant::Dsync => libc::O_DSYNC,
            DurableVariant::WriteThenFlush => 0,
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        let file = options.dma_open(path).await.map_err(system)?;
        Ok(DmaHandle {
            file: Rc::new(file),
            variant,
        })
    }
}

impl Disk for DmaDisk {
    type File = DmaHandle;
    type Buffer = AlignedBuffer;
    type Read = DmaRead;
    type Lock = fs::File;

    async fn open(&self, path: &Path) -> io::Result<DmaHandle> {
        self.open_as(path, self.variant.get()).await
    }

    async fn create_zeroed(
        &self,
        path: &Path,
        bytes: u64,
        urgency: impl Fn(u64) -> Urgency,
    ) -> io::Result<DmaHandle> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640);
        let file = options.dma_open(path).await.map_err(system)?;
        let filled = fill(&file, bytes, urgency).await;
        file.close().await.map_err(system)?;
        filled?;
        self.open(path).await
    }

    async fn size(&self, file: &DmaHandle) -> io::Result<u64> {
        file.file.file_size().await.map_err(system)
    }

    async fn read_at(&self, file: &DmaHandle, offset: u64, len: usize) -> io::Result<DmaRead> {
        file.file
            .read_at_aligned(offset, len)
            .await
            .map(DmaRead)
            .map_err(system)
    }

    async fn write_durable_at(
        &self,
        file: &DmaHandle,
        offset: u64,
        buffer: &AlignedBuffer,
    ) -> io::Result<()> {
        let len = buffer.bytes().len();
        let written = file
            .file
            .write_rc_at(buffer.share(), offset)
            .await
            .map_err(system)?;
        if written != len {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("{written} of {len} bytes written"),
            ));
        }
        self.handicap().await;
        match file.variant {
            DurableVariant::Dsync => Ok(()),
            DurableVariant::WriteThenFlush => file.file.fdatasync().await.map_err(system),
        }
    }

    async fn flush(&self, file: &DmaHandle) -> io::Result<()> {
        self.handicap().await;
        file.file.fdatasync().await.map_err(system)
    }

    async fn close(&self, file: DmaHandle) {
        // A close reports nothing that a durable write has not; the descriptor is gone either way.
        drop(file.file.close_rc().await);
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        glommio::io::rename(from, to).await.map_err(system)
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        glommio::io::remove(path).await.map_err(system)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        fs::read_dir(dir)?
            .map(|entry| {
                let entry = entry?;
                let metadata = entry.metadata()?;
                Ok(Entry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    bytes: metadata.len(),
                    is_dir: metadata.is_dir(),
                })
            })
            .collect()
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<PathBuf> = dir
            .ancestors()
            .take_while(|path| !path.is_dir())
            .map(Path::to_path_buf)
            .collect();
        fs::create_dir_all(dir)?;
        for made in missing {
            if let Some(parent) = made.parent() {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                fs::File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // glommio opens directories relative to descriptor -1, which only an absolute path gets past.
        let dir = std::path::absolute(dir)?;
        let directory = Directory::open(dir).await.map_err(system)?;
        let synced = directory.sync().await.map_err(system);
        directory.close().await.map_err(system)?;
        synced
    }

    fn available(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<fs::File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
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

/// Writes zeros over the first `bytes` bytes and flushes: afterwards no write changes an extent, which
/// `fallocate` alone does not give (the first write into an unwritten extent commits metadata).
///
/// The place is reserved first: writes that grow a file go one after the other, whatever their number. And when somebody
/// waits, what is reserved is enough: slower to write than what is filled, and much sooner there.
async fn fill(file: &DmaFile, bytes: u64, urgency: impl Fn(u64) -> Urgency) -> io::Result<()> {
    let is_reserved = reserve(file, bytes).await?;
    let mut buffer = AlignedBuffer::with_capacity(FILL_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let started = Instant::now();
        let urgency = urgency(offset);
        if urgency == Urgency::Waiting && is_reserved {
            break;
        }
        let (most, depth) = match urgency {
            Urgency::Gentle => (FILL_BYTES_GENTLE, 1),
            Urgency::Soon | Urgency::Waiting => (FILL_BYTES, FILL_DEPTH),
        };
        let len = usize::try_from(bytes - offset).unwrap_or(most).min(most);
        buffer.set_len(len);
        let places = (0..depth).map(|number| offset + number * len as u64);
        let writes = places
            .filter(|at| at + len as u64 <= bytes)
            .map(|at| file.write_rc_at(buffer.share(), at));
        for written in join_all(writes).await {
            if written.map_err(system)? != len {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "no space left to fill the file",
                ));
            }
            offset += len as u64;
        }
        if urgency == Urgency::Gentle {
            sleep(started.elapsed() * FILL_REST).await;
        }
    }
    file.fdatasync().await.map_err(system)
}

/// Reserves the file's place; false where the file system cannot.
async fn reserve(file: &DmaFile, bytes: u64) -> io::Result<bool> {
    match file.pre_allocate(bytes, false).await.map_err(system) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The system's error without glommio's wrapping, so that its code stays readable.
fn system(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } | GlommioError::IoError(source) => source,
        other => other.into(),
    }
}
