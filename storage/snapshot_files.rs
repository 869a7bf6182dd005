//! The file operations of a snapshot, so that a simulated disk can stand in for the system's.

use std::{
    fs, io,
    io::{IoSlice, Write},
    num::NonZeroU64,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::{Advice, OFlags};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::disk::{BLOCK_BYTES, round_up};

/// Where snapshots are written and read, blocking.
pub trait SnapshotFiles {
    /// A file being written.
    type Write: WriteFile;
    /// A file being read.
    type Read: ReadFile;
    /// A file being checked.
    type Uncached: ReadFile;

    /// Makes or empties a file.
    fn create(&self, path: &Path) -> io::Result<Self::Write>;
    /// Opens a file that is written over from its start. What is left of it behind that goes with the flush.
    fn overwrite(&self, path: &Path) -> io::Result<Self::Write>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Self::Read>;
    /// Opens a file for reading from the device, whatever the system holds of it in memory.
    fn open_uncached(&self, path: &Path) -> io::Result<Self::Uncached>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Brings the directory's entries to stable storage.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file being written.
pub trait WriteFile: Write {
    /// Brings whole blocks of what was written to the file, and also to stable storage if that is asked; there they come by
    /// [`WriteFile::flush_durably`] at the latest.
    fn pass_on(&mut self, _is_durable: bool) -> io::Result<()> {
        Ok(())
    }

    /// Brings what was written to stable storage, once nothing more will be.
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
    type Write = DurableFile;
    type Read = fs::File;
    type Uncached = UncachedFile;

    fn create(&self, path: &Path) -> io::Result<DurableFile> {
        DurableFile::open(path, true)
    }

    fn overwrite(&self, path: &Path) -> io::Result<DurableFile> {
        DurableFile::open(path, false)
    }

    fn open(&self, path: &Path) -> io::Result<fs::File> {
        fs::File::open(path)
    }

    fn open_uncached(&self, path: &Path) -> io::Result<UncachedFile> {
        let open = |flags: OFlags| {
            let flags = flags.bits().cast_signed();
            fs::File::options()
                .read(true)
                .custom_flags(flags)
                .open(path)
        };
        match open(OFlags::DIRECT) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                open(OFlags::empty()).map(UncachedFile)
            }
            opened => opened.map(UncachedFile),
        }
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

/// A file written past the page cache, in pieces that the writer passes on.
///
/// The system's own writeback comes in bursts of megabytes, from any CPU, and what the log writes meanwhile queues behind
/// them. One piece at a time is all that ever stands in the way of a log write, and the thread that writes it, not the
/// core, pays for it. Nor is much left for the last flush: each piece is durable before the next, or a log is written that
/// flushes the device again and again.
///
/// Invariant: `place..place + used` of `memory` is what was written and is not in the file; `offset` is a multiple of
/// [`BLOCK_BYTES`].
#[derive(Debug)]
pub struct DurableFile {
    file: fs::File,
    memory: Vec<u8>,
    /// Where `memory` is aligned.
    place: usize,
    used: usize,
    offset: u64,
}

/// What is written at a time.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK_BYTES));

impl DurableFile {
    fn open(path: &Path, is_new: bool) -> io::Result<Self> {
        let open = |flags: OFlags| {
            fs::File::options()
                .write(true)
                .create(is_new)
                .truncate(is_new)
                .custom_flags(flags.bits().cast_signed())
                .open(path)
        };
        let file = match open(OFlags::DIRECT) {
            // A file system without direct writes; memory is its disk, or a network.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(OFlags::DSYNC)?,
            opened => opened?,
        };
        let memory = vec![0; PIECE_BYTES + BLOCK_BYTES];
        Ok(Self {
            file,
            place: memory.as_ptr().align_offset(BLOCK_BYTES),
            memory,
            used: 0,
            offset: 0,
        })
    }

    fn piece(&mut self) -> &mut [u8] {
        let piece = self.memory.get_mut(self.place..self.place + PIECE_BYTES);
        piece.expect("the memory has room for a piece and its alignment")
    }
}

impl Write for DurableFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let used = self.used;
        let len = bytes.len().min(PIECE_BYTES - used);
        let (now, _) = bytes.split_at(len);
        self.piece()[used..used + len].copy_from_slice(now);
        self.used += len;
        if self.used == PIECE_BYTES {
            self.pass_on(true)?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for DurableFile {
    fn pass_on(&mut self, is_durable: bool) -> io::Result<()> {
        let rest = self.used % BLOCK_BYTES;
        let end = self.used - rest;
        let flags = match is_durable {
            true => ReadWriteFlags::DSYNC,
            false => ReadWriteFlags::empty(),
        };
        let mut written = 0;
        while written < end {
            let blocks = self.memory.get(self.place + written..self.place + end);
            let blocks = blocks.expect("the memory has room for a piece");
            match pwritev2(&self.file, &[IoSlice::new(blocks)], self.offset, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    written += count;
                    self.offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.piece().copy_within(end..end + rest, 0);
        self.used = rest;
        Ok(())
    }

    fn flush_durably(&mut self) -> io::Result<()> {
        let (used, offset) = (self.used, self.offset);
        let stored = round_up(used);
        self.piece()[used..stored].fill(0);
        let tail = self.memory.get(self.place..self.place + stored);
        let tail = tail.expect("a piece is whole blocks");
        self.file.write_all_at(tail, offset)?;
        // The padding goes, and what was longer before; with it the length becomes durable.
        self.file.set_len(offset + used as u64)?;
        self.file.sync_all()
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

/// A file read past the page cache, where the file system can.
///
/// Reads that fill the page cache are cut and ordered by the system, and a log write waited up to 9 ms behind them.
#[derive(Debug)]
pub struct UncachedFile(fs::File);

impl ReadFile for UncachedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    /// Reads the whole blocks around what is wanted.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let block = BLOCK_BYTES as u64;
        let before = usize::try_from(offset % block).expect("below a block");
        let len = round_up(before + bytes.len());
        let mut memory = vec![0; len + BLOCK_BYTES];
        let place = memory.as_ptr().align_offset(BLOCK_BYTES);
        let blocks = memory.get_mut(place..place + len).unwrap_or_default();
        let (start, wanted) = (offset - before as u64, before..before + bytes.len());
        let mut filled = 0;
        while filled < wanted.end {
            let rest = blocks.get_mut(filled..).unwrap_or_default();
            match self.0.read_at(rest, start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.copy_from_slice(blocks.get(wanted).unwrap_or_default());
        Ok(())
    }

    fn read_ahead(&self, _offset: u64, _len: u64) {}

    fn forget_cached(&self) {
        self.0.forget_cached();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_length_and_the_bytes_that_were_written() {
        let dir = tempfile::tempdir().expect("make a directory");
        let path = dir.path().join("file");
        let piece = PIECE_BYTES;
        for len in [
            0,
            1,
            4095,
            4096,
            4097,
            piece - 1,
            piece,
            piece + 1,
            2 * piece + 5000,
        ] {
            let bytes: Vec<u8> = (0..251).cycle().take(len).collect();
            let mut file = StdFiles.create(&path).expect("create");
            for (number, part) in bytes.chunks(10_007).enumerate() {
                file.write_all(part).expect("write");
                if number % 3 > 0 {
                    file.pass_on(number % 3 == 1).expect("write whole blocks");
                }
            }
            file.flush_durably().expect("flush");
            assert!(fs::read(&path).expect("read") == bytes, "{len} bytes");
            let uncached = StdFiles.open_uncached(&path).expect("open");
            for at in [0, 1, 4095, 4096, 9000] {
                let Some(expect) = bytes.get(at..) else {
                    continue;
                };
                let mut found = vec![0; expect.len()];
                uncached.read_exact_at(&mut found, at as u64).expect("read");
                assert!(found == expect, "{len} bytes from {at}");
                found.push(0);
                let beyond = uncached.read_exact_at(&mut found, at as u64);
                let kind = beyond.expect_err("it is too short").kind();
                assert_eq!(kind, io::ErrorKind::UnexpectedEof);
            }
        }
    }

    /// Both past the page cache where the file system can; where it cannot, each write is durable.
    #[test]
    fn files_are_opened_past_the_page_cache() {
        // On the build's file system: the system's temporary one may be in memory.
        let program = std::env::current_exe().expect("this program has a path");
        let place = program.parent().expect("it lies in a directory");
        let dir = tempfile::tempdir_in(place).expect("make a directory");
        let path = dir.path().join("file");
        fs::write(&path, [0; BLOCK_BYTES]).expect("write");
        let direct = fs::File::options()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(&path);
        let flags_of = |file: &fs::File| rustix::fs::fcntl_getfl(file).expect("ask for the flags");
        let read = StdFiles.open_uncached(&path).expect("open");
        assert_eq!(flags_of(&read.0).contains(OFlags::DIRECT), direct.is_ok());
        let written = StdFiles.create(&path).expect("create");
        let flags = flags_of(&written.file);
        assert_eq!(flags.contains(OFlags::DIRECT), direct.is_ok());
        assert!(direct.is_ok() || flags.contains(OFlags::DSYNC), "{flags:?}");
    }

    /// What a piece fills is in the file before the next one comes; only the rest waits for the flush.
    #[test]
    fn a_full_piece_does_not_wait() {
        let dir = tempfile::tempdir().expect("make a directory");
        let path = dir.path().join("file");
        let mut file = StdFiles.create(&path).expect("create");
        for pieces in 1..=3 {
            file.write_all(&vec![7; PIECE_BYTES]).expect("write");
            let len = fs::metadata(&path).expect("ask for its size").len();
            assert_eq!(len, (pieces * PIECE_BYTES) as u64);
        }
    }
}
