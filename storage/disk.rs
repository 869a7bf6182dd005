//! The few things that the log, the manifest and the purge ask of a disk.
//!
//! `DmaDisk` (io_uring, O_DIRECT) serves; `SimDisk` (feature `sim`) keeps pending and durable sectors
//! apart and breaks them in every way a real disk may. Both run the same log code.
//!
//! Invariants that every implementation keeps:
//! - What [`Disk::write_durable_at`] wrote is on stable storage once it returned `Ok`, and may be there,
//!   in whole or in part, from the moment it was called.
//! - A file's name is on stable storage only after [`Disk::sync_dir`] on its directory.
//! - Offsets and lengths of reads and writes are multiples of [`BLOCK_BYTES`].
//!
//! Futures are `!Send`: a disk belongs to one executor.

use std::{future::Future, io, ops::Deref, path::Path, time::Duration};

/// The unit of every read and write in bytes; no two batches share a block.
pub const BLOCK_BYTES: usize = 4096;

/// `len` rounded up to whole blocks.
pub(crate) const fn round_up(len: usize) -> usize {
    len.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Memory that a disk writes from without copying.
pub trait DiskBuffer: 'static {
    /// A buffer of `capacity` bytes (a multiple of [`BLOCK_BYTES`]), all of it in use; its content is
    /// unspecified but initialized.
    fn with_capacity(capacity: usize) -> Self;
    /// The bytes in use.
    fn bytes(&self) -> &[u8];
    /// The bytes in use, to fill.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// The most that can be in use.
    fn capacity(&self) -> usize;
    /// Puts the first `len <= capacity` bytes in use.
    fn set_len(&mut self, len: usize);
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file's name; names that are not UTF-8 appear with replacement characters.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// How much a file is wanted while it is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Not yet: most of the device's time is left to others.
    Gentle,
    /// Soon: as fast as the device can.
    Soon,
    /// Somebody waits for it.
    Waiting,
}

/// A disk, as the storage code sees it.
pub trait Disk: Clone + 'static {
    /// An open file; cheap to clone.
    type File: Clone + 'static;
    /// What is written from.
    type Buffer: DiskBuffer;
    /// What a read returns.
    type Read: Deref<Target = [u8]> + 'static;
    /// Holds a directory for one process until dropped.
    type Lock: 'static;

    /// Opens an existing file for reads and durable writes.
    fn open(&self, path: &Path) -> impl Future<Output = io::Result<Self::File>>;
    /// Makes (or replaces) a file of `bytes` zeros that is itself on stable storage, so that no later
    /// write grows it or changes an extent. The name is not: see [`Disk::sync_dir`].
    ///
    /// `urgency` is asked, with the bytes filled so far, from time to time. Where it says that somebody waits, what is
    /// left may be given its place without being filled, if that is faster: it reads as zeros, and the first write to it
    /// costs more.
    fn create_zeroed(
        &self,
        path: &Path,
        bytes: u64,
        urgency: impl Fn(u64) -> Urgency,
    ) -> impl Future<Output = io::Result<Self::File>>;
    /// The file's length in bytes.
    fn size(&self, file: &Self::File) -> impl Future<Output = io::Result<u64>>;
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    fn read_at(
        &self,
        file: &Self::File,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = io::Result<Self::Read>>;
    /// Writes the whole buffer at `offset`. `Ok` means that it is on stable storage. The future must run
    /// to its end: dropped early, the write may or may not happen.
    fn write_durable_at(
        &self,
        file: &Self::File,
        offset: u64,
        buffer: &Self::Buffer,
    ) -> impl Future<Output = io::Result<()>>;
    /// Brings everything written to the file so far to stable storage.
    fn flush(&self, file: &Self::File) -> impl Future<Output = io::Result<()>>;
    /// Closes the file; other clones keep it open.
    fn close(&self, file: Self::File) -> impl Future<Output = ()>;
    /// Renames a file within one file system, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;
    /// Removes a file of so many bytes that nobody wants, and takes its time: a device that gives back much space at once
    /// keeps what is written meanwhile waiting. Interrupted, it leaves the file with whatever content.
    fn remove_gently(&self, path: &Path, _bytes: u64) -> impl Future<Output = io::Result<()>> {
        self.remove(path)
    }
    /// Removes a file.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;
    /// The entries of a directory in unspecified order.
    fn list(&self, dir: &Path) -> impl Future<Output = io::Result<Vec<Entry>>>;
    /// Makes a directory and its parents, each entry on stable storage.
    fn create_dir_all(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;
    /// Brings the directory's entries to stable storage.
    fn sync_dir(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;
    /// Bytes that an unprivileged process may still write in the directory's file system.
    fn available(&self, dir: &Path) -> io::Result<u64>;
    /// Takes the lock file at `path`, or `None` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Self::Lock>>;
    /// Waits.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;
    /// Time since an arbitrary moment; never goes back.
    fn now(&self) -> Duration;
    /// A number that no earlier store had.
    fn unique(&self) -> u64;
}

/// Plain memory, for disks that need no alignment.
impl DiskBuffer for Vec<u8> {
    fn with_capacity(capacity: usize) -> Self {
        vec![0; capacity]
    }

    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn capacity(&self) -> usize {
        Self::capacity(self)
    }

    fn set_len(&mut self, len: usize) {
        assert!(
            len <= Self::capacity(self),
            "a length in use within the capacity"
        );
        self.resize(len, 0);
    }
}
