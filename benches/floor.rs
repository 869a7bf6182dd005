//! The raw floor: what a durable write costs with nothing around it. No server acknowledges a lone write faster.
//!
//! The file is filled with zeros and flushed first: a block that was only allocated costs a change of metadata
//! when it is first written, and a growing file one with every write.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ringkeeper_storage::BLOCK_BYTES;
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

use crate::latency::Latencies;

/// Bytes of the file that writes go to, round and round.
pub const FILE_BYTES: u64 = 16 << 20;

/// A way to make a write durable, by system calls alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawWay {
    /// `pwrite` on a descriptor with `O_DSYNC`.
    Descriptor,
    /// `pwritev2` with `RWF_DSYNC`.
    Flag,
    /// `pwrite`, then `fdatasync`.
    Flush,
}

impl RawWay {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Descriptor, Self::Flag, Self::Flush];

    /// What figures call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Descriptor => "raw O_DSYNC",
            Self::Flag => "raw RWF_DSYNC",
            Self::Flush => "raw write + fdatasync",
        }
    }
}

/// A file of zeros, written by O_DIRECT.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    way: RawWay,
    /// The bytes to write begin at the first aligned one.
    memory: Vec<u8>,
    len: usize,
    at: u64,
}

impl RawFile {
    /// Opens the file that [`zero_fill`] made, for writes of `len` bytes.
    ///
    /// # Errors
    /// When it cannot be opened so.
    pub fn open(path: &Path, way: RawWay, len: usize) -> io::Result<Self> {
        let flags = match way {
            RawWay::Descriptor => OFlags::DIRECT | OFlags::DSYNC,
            RawWay::Flag | RawWay::Flush => OFlags::DIRECT,
        };
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        Ok(Self {
            file,
            way,
            memory: vec![b'x'; len + BLOCK_BYTES],
            len,
            at: 0,
        })
    }

    /// Writes the next blocks durably.
    ///
    /// # Errors
    /// When the disk refuses, or writes less than all.
    pub fn write(&mut self) -> io::Result<()> {
        // The memory never moves while it is written from, and has room for any alignment.
        let start = self.memory.as_ptr().align_offset(BLOCK_BYTES);
        let bytes = self.memory.get(start..start + self.len);
        let bytes = bytes.unwrap_or_default();
        let flags = match self.way {
            RawWay::Flag => ReadWriteFlags::DSYNC,
            RawWay::Descriptor | RawWay::Flush => ReadWriteFlags::empty(),
        };
        let written = rustix::io::pwritev2(&self.file, &[IoSlice::new(bytes)], self.at, flags)?;
        if written != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if self.way == RawWay::Flush {
            self.file.sync_data()?;
        }
        self.at = next_offset(self.at, bytes.len());
        Ok(())
    }
}

/// Where the write of `len` bytes after that at `at` goes.
pub const fn next_offset(at: u64, len: usize) -> u64 {
    (at + len as u64) % FILE_BYTES
}

/// Makes the file that [`RawFile`] writes to.
///
/// # Errors
/// When the disk refuses.
pub fn zero_fill(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}

/// Latencies of durable writes of one block below `dir`, for `time`: of `writers` that each write to a file of
/// their own, as the servers of an ensemble on one disk do, one write at a time each.
///
/// # Errors
/// When the disk refuses.
///
/// # Panics
/// When a writer's thread cannot be started.
pub fn measure(dir: &Path, writers: usize, time: Duration) -> io::Result<Latencies> {
    let paths: Vec<_> = (0..writers)
        .map(|it| dir.join(format!("floor-{it}")))
        .collect();
    let mut files = Vec::with_capacity(writers);
    for path in &paths {
        zero_fill(path)?;
        files.push(RawFile::open(path, RawWay::Descriptor, BLOCK_BYTES)?);
    }
    let began = Instant::now();
    let mut all = Latencies::new();
    thread::scope(|scope| {
        let writers = files.into_iter().map(|mut file| {
            scope.spawn(move || {
                let mut latencies = Latencies::new();
                while began.elapsed() < time || latencies.count() == 0 {
                    let started = Instant::now();
                    file.write()?;
                    latencies.record(started.elapsed());
                }
                Ok::<_, io::Error>(latencies)
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            all.add(&writer.join().expect("a writer does not panic")?);
        }
        Ok::<_, io::Error>(())
    })?;
    for path in &paths {
        std::fs::remove_file(path)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_writes_what_it_says() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        for way in RawWay::ALL {
            zero_fill(&path).unwrap();
            let mut file = RawFile::open(&path, way, 2 * BLOCK_BYTES).unwrap();
            file.write().unwrap();
            file.write().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, FILE_BYTES, "{way:?}");
            let end = bytes.iter().position(|byte| *byte != b'x');
            assert_eq!(end, Some(4 * BLOCK_BYTES), "{way:?}");
        }
        assert_eq!(next_offset(FILE_BYTES - 4096, BLOCK_BYTES), 0);
    }
}
