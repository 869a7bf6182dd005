//! [`DmaDisk`]: O_DIRECT files by the disk's ring.

use std::{
    cell::Cell,
    fs, io,
    ops::Deref,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::{
    aligned::{self, AlignedBuffer},
    disk::{BLOCK_BYTES, Disk, DiskBuffer as _, Entry, Urgency},
    disk_ring::{self, DiskRing},
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
/// A gentle removal gives back so much at a time, and rests so long in between: where the device is told to discard what is
/// free, a log write then waits some milliseconds behind it at the most, and not the 60 that a segment takes.
const GIVE_BACK_BYTES: u64 = 1 << 20;
const GIVE_BACK_REST: Duration = Duration::from_millis(100);
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

/// A disk reached by O_DIRECT through the ring of the thread that it is used on.
#[derive(Clone, Debug)]
pub struct DmaDisk {
    ring: Rc<DiskRing>,
    variant: Rc<Cell<DurableVariant>>,
    /// What a durable write takes longer than it would.
    handicap: Rc<Cell<Duration>>,
    started: Instant,
}

/// An open O_DIRECT file.
#[derive(Clone, Debug)]
pub struct DmaHandle {
    file: Rc<fs::File>,
    variant: DurableVariant,
}

/// Bytes read from a file.
#[derive(Debug)]
pub struct DmaRead(AlignedBuffer);

impl Deref for DmaRead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl DmaDisk {
    /// A disk on the current thread, with the `O_DSYNC` variant until [`DmaDisk::set_variant`].
    ///
    /// # Errors
    /// When the thread has no ring, see [`disk_ring::start`].
    pub fn new() -> io::Result<Self> {
        let ring = disk_ring::current().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "this thread has no ring for a disk: its executor was made without one",
            )
        })?;
        Ok(Self {
            ring,
            variant: Rc::default(),
            handicap: Rc::default(),
            started: Instant::now(),
        })
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

    async fn handicap(&self) -> io::Result<()> {
        let handicap = self.handicap.get();
        match handicap.is_zero() {
            true => Ok(()),
            false => self.ring.sleep(handicap).await,
        }
    }

    /// Writes `buffer`, all of it or it is an error, with what the file's flags say of durability.
    async fn write(
        &self,
        file: &Rc<fs::File>,
        offset: u64,
        buffer: &AlignedBuffer,
    ) -> io::Result<()> {
        let len = buffer.bytes().len();
        let written = self.ring.write(file, buffer.share(), len, offset).await?;
        if written == len {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            format!("{written} of {len} bytes written"),
        ))
    }
}

impl Disk for DmaDisk {
    type File = DmaHandle;
    type Buffer = AlignedBuffer;
    type Read = DmaRead;
    type Lock = fs::File;

    async fn open(&self, path: &Path) -> io::Result<DmaHandle> {
        let variant = self.variant.get();
        let flags = match variant {
            DurableVariant::Dsync => libc::O_DSYNC,
            DurableVariant::WriteThenFlush => 0,
        };
        let file = self.ring.open(path, flags, 0).await?;
        Ok(DmaHandle { file, variant })
    }

    async fn create_zeroed(
        &self,
        path: &Path,
        bytes: u64,
        urgency: impl Fn(u64) -> Urgency,
    ) -> io::Result<DmaHandle> {
        let flags = libc::O_CREAT | libc::O_TRUNC;
        let file = self.ring.open(path, flags, 0o640).await?;
        let filled = self.fill(&file, bytes, urgency).await;
        self.ring.close(file).await;
        filled?;
        self.open(path).await
    }

    async fn size(&self, file: &DmaHandle) -> io::Result<u64> {
        Ok(file.file.metadata()?.len())
    }

    async fn read_at(&self, file: &DmaHandle, offset: u64, len: usize) -> io::Result<DmaRead> {
        let mut memory = aligned::allocate(len);
        let mut filled = 0;
        while filled < len {
            let first = filled / BLOCK_BYTES;
            let from = offset + filled as u64;
            let count = self.ring.read(&file.file, &mut memory, first, from).await?;
            filled += count;
            // Where it is not whole blocks that were read, the file ends.
            if count == 0 || !count.is_multiple_of(BLOCK_BYTES) {
                break;
            }
        }
        Ok(DmaRead(AlignedBuffer::new(memory, filled.min(len))))
    }

    async fn write_durable_at(
        &self,
        file: &DmaHandle,
        offset: u64,
        buffer: &AlignedBuffer,
    ) -> io::Result<()> {
        self.write(&file.file, offset, buffer).await?;
        self.handicap().await?;
        match file.variant {
            DurableVariant::Dsync => Ok(()),
            DurableVariant::WriteThenFlush => self.ring.flush(&file.file).await,
        }
    }

    async fn flush(&self, file: &DmaHandle) -> io::Result<()> {
        self.handicap().await?;
        self.ring.flush(&file.file).await
    }

    async fn close(&self, file: DmaHandle) {
        self.ring.close(file.file).await;
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ring.rename(from, to).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.ring.remove(path).await
    }

    async fn remove_gently(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = self.ring.open(path, 0, 0).await?;
        let mut left = bytes;
        while left > 0 {
            let offset = left.saturating_sub(GIVE_BACK_BYTES);
            match self.ring.give_back(&file, offset, left - offset).await {
                Ok(()) => {}
                // The file system cannot: it goes as a whole.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => break,
                Err(error) => return Err(error),
            }
            left = offset;
            self.ring.sleep(GIVE_BACK_REST).await?;
        }
        self.ring.close(file).await;
        self.ring.remove(path).await
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
        self.ring.sync_dir(dir).await
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
        if let Err(error) = self.ring.sleep(duration).await {
            tracing::warn!(%error, "wait by the disk's ring");
        }
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

impl DmaDisk {
    /// Writes zeros over the first `bytes` bytes and flushes: afterwards no write changes an extent, which
    /// `fallocate` alone does not give (the first write into an unwritten extent commits metadata).
    ///
    /// The place is reserved first: writes that grow a file go one after the other, whatever their number. And when
    /// somebody waits, what is reserved is enough: slower to write than what is filled, and much sooner there.
    async fn fill(
        &self,
        file: &Rc<fs::File>,
        bytes: u64,
        urgency: impl Fn(u64) -> Urgency,
    ) -> io::Result<()> {
        let is_reserved = match self.ring.reserve(file, bytes).await {
            Ok(()) => true,
            // The file system cannot.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => false,
            Err(error) => return Err(error),
        };
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
                .map(|at| self.write(file, at, &buffer));
            for written in join_all(writes).await {
                written.map_err(|error| match error.kind() {
                    // So a full disk ends a write that has begun.
                    io::ErrorKind::WriteZero => {
                        io::Error::new(io::ErrorKind::StorageFull, "no space left to fill the file")
                    }
                    _ => error,
                })?;
                offset += len as u64;
            }
            if urgency == Urgency::Gentle {
                self.sleep(started.elapsed() * FILL_REST).await;
            }
        }
        self.ring.flush(file).await
    }
}
