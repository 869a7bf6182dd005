//! A file read in pieces from front to back, with what lies ahead in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::Advice;

/// Bytes of a file held in memory. Its memory is bounded by `ahead` and the longest piece asked for, never by
/// the file.
#[derive(Debug)]
pub struct Window {
    file: File,
    /// The file's length when it was opened.
    len: u64,
    offset: u64,
    bytes: Vec<u8>,
    ahead: usize,
}

impl Window {
    /// Opens `path`; reads come in pieces of `ahead` bytes.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, ahead: usize) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        if ahead > 64 << 10 {
            // Advice: the kernel then reads further ahead, so that the device is busy while we sum.
            rustix::fs::fadvise(&file, 0, None, Advice::Sequential).unwrap_or_default();
        }
        Ok(Self {
            file,
            len,
            offset: 0,
            bytes: Vec::new(),
            ahead,
        })
    }

    /// The file's length when it was opened.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty file is no special case"
    )]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Reads everything anew from now on.
    pub fn forget(&mut self) {
        self.bytes.clear();
    }

    /// Up to `len` bytes at `at`; fewer only at the end of the file.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn get(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let end = self.len.min(at.saturating_add(len as u64));
        if at >= end {
            return Ok(&[]);
        }
        let held = self.offset + self.bytes.len() as u64;
        if at < self.offset || end > held {
            self.fill(at, end)?;
        }
        let from = usize::try_from(at - self.offset).unwrap_or(usize::MAX);
        let to = usize::try_from(end - self.offset).unwrap_or(usize::MAX);
        let held = self.bytes.len();
        Ok(self
            .bytes
            .get(from.min(held)..to.min(held))
            .unwrap_or_default())
    }

    /// Moves the window to `at`, keeping what it already holds from there on.
    fn fill(&mut self, at: u64, end: u64) -> io::Result<()> {
        let held = self.offset + self.bytes.len() as u64;
        if at >= self.offset && at < held {
            let skip = usize::try_from(at - self.offset).unwrap_or(usize::MAX);
            self.bytes.drain(..skip);
        } else {
            self.bytes.clear();
        }
        self.offset = at;
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .max(self.ahead);
        let left = usize::try_from(self.len - at).unwrap_or(usize::MAX);
        let mut filled = self.bytes.len();
        self.bytes.resize(want.min(left), 0);
        while let Some(room) = self.bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.file.read_at(room, at + filled as u64) {
                // It was cut while we read it.
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.truncate(filled);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        for ahead in [1, 100, 4096, 20_000] {
            let mut window = Window::open(&path, ahead).unwrap();
            for (at, len) in [
                (0, 10),
                (5, 300),
                (200, 4000),
                (9_990, 100),
                (3, 3),
                (10_000, 1),
            ] {
                let end = content.len().min(at + len);
                assert_eq!(window.get(at as u64, len).unwrap(), &content[at..end]);
            }
        }
    }
}
