//! Snapshots: containers of the caller's chunks, written once and verified before they count.
//!
//! ```text
//!  header   0 magic  4 checksum  8 format  10 zeros  16 zxid  24 zeros
//!  chunks   the caller's bytes, one after the other
//!  index    per chunk: kind, stored length, checksum of what is stored, encoding
//!  trailer  magic, checksum, zxid, digest, 4 counts, chunk count, index checksum, index offset, file length
//! ```
//!
//! All numbers are big-endian; checksums are CRC32C, of a chunk over its bytes, of the index over its
//! entries, of header and trailer over everything behind the checksum. The trailer comes last, so a file
//! that was cut anywhere has none.
//!
//! Encoding 0 is plain. Encoding 1 is an LZ4 block behind 4 bytes that tell its decoded length; a chunk that does not get
//! shorter by it is stored plain.
//!
//! A file that a purge has taken off the list is kept as `snapshot-spare`, and the next snapshot is written over it: to free
//! a big file and to allocate another keeps the file system's journal and the device busy, and with them the log.
//!
//! Invariants:
//! - A file gets its name `snapshot-ZXID` only when all of it is on stable storage.
//! - [`SnapshotWriter::finish`] returns only after it has read everything back and found it right; the
//!   manifest lists only such files.
//! - A chunk is handed out only if its checksum holds.
//!
//! Everything here blocks: it is meant for plain threads, not for an executor.

use std::{
    io::{self, Write},
    mem::size_of,
    path::{Path, PathBuf},
    time::Instant,
};

use ringkeeper_proto::Zxid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U32, U64},
};

use crate::{
    error::StorageError,
    manifest::SnapshotInfo,
    pace::{LogActivity, Pace},
    snapshot_files::{PIECE_BYTES, ReadFile, SnapshotFiles, StdFiles, WriteFile as _},
    stats::FlushTimes,
};

/// `RKSS`.
const HEADER_MAGIC: u32 = 0x524B_5353;
/// `RKSE`.
const TRAILER_MAGIC: u32 = 0x524B_5345;
const FORMAT: u16 = 1;
const CHECKSUM_FROM: usize = 8;
pub(crate) const PREFIX: &str = "snapshot-";
const UNFINISHED: &str = ".tmp";
/// A file that is to be written over.
const SPARE: &str = "snapshot-spare";
/// Written in pieces of this size,
const WRITE_BYTES: usize = PIECE_BYTES;
/// and written and read in pieces of this size while a budget holds: a log write then waits hardly longer for the device than
/// without.
const GENTLE_BYTES: usize = 64 << 10;
const PLAIN: u32 = 0;
const LZ4: u32 = 1;
/// Bytes before an LZ4 block: its decoded length.
const LZ4_PREFIX: usize = 4;
/// An LZ4 block never decodes to more times its length than this.
const LZ4_RATIO_MAX: u64 = 255;
/// The longest chunk.
pub const CHUNK_BYTES_MAX: usize = 1 << 30;
/// How many counts a snapshot carries for its owner.
pub const SNAPSHOT_COUNTS: usize = 4;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    checksum: U32,
    format: U16,
    reserved: [u8; 6],
    zxid: U64,
    reserved_after: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawChunk {
    kind: U32,
    bytes: U32,
    checksum: U32,
    encoding: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTrailer {
    magic: U32,
    checksum: U32,
    zxid: U64,
    digest: U64,
    counts: [U64; SNAPSHOT_COUNTS],
    chunks: U32,
    index_checksum: U32,
    index_offset: U64,
    bytes: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 32);
const _: () = assert!(size_of::<RawChunk>() == 16);
const _: () = assert!(size_of::<RawTrailer>() == 80);

/// CRC32C of a fixed-size part behind its own checksum field.
fn checksum_of(part: &[u8]) -> u32 {
    crc32c::crc32c(part.get(CHECKSUM_FROM..).unwrap_or_default())
}

/// The name of the snapshot at `zxid`.
pub(crate) fn file_name(zxid: Zxid) -> String {
    format!("{PREFIX}{:016x}", zxid.0)
}

/// The path of the snapshot at `zxid`.
pub(crate) fn snapshot_path(dir: &Path, zxid: Zxid) -> PathBuf {
    dir.join(file_name(zxid))
}

/// The path of the file that the next snapshot is written over.
pub(crate) fn spare_snapshot_path(dir: &Path) -> PathBuf {
    dir.join(SPARE)
}

/// Whether `name` is that file's.
pub(crate) fn is_spare(name: &str) -> bool {
    name == SPARE
}

/// Whether `name` is a snapshot's, finished or not, or the spare's.
pub(crate) fn is_snapshot(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// How chunks are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// By LZ4, each by itself, so that they can still be loaded in parallel.
    Lz4,
}

/// Writes one snapshot. Dropped before [`SnapshotWriter::finish`], it removes what it wrote.
#[derive(Debug)]
pub struct SnapshotWriter<F: SnapshotFiles = StdFiles> {
    files: F,
    dir: PathBuf,
    zxid: Zxid,
    temporary: PathBuf,
    file: F::Write,
    buffer: Vec<u8>,
    /// Bytes handed over so far, those in `buffer` included.
    offset: u64,
    index: Vec<RawChunk>,
    pace: Pace,
    times: Option<FlushTimes>,
    compression: Compression,
    /// Where chunks are compressed to.
    compressed: Vec<u8>,
    named: bool,
}

impl SnapshotWriter {
    /// Begins the snapshot at `zxid` in `dir` (see [`Store::snapshot_dir`](crate::Store::snapshot_dir)).
    /// With `bytes_per_second` the writer, and the check at its end, sleep to stay below that rate.
    pub fn create(
        dir: &Path,
        zxid: Zxid,
        bytes_per_second: Option<u64>,
    ) -> Result<Self, StorageError> {
        Self::create_with(StdFiles, dir, zxid, bytes_per_second)
    }
}

impl<F: SnapshotFiles> SnapshotWriter<F> {
    /// As [`SnapshotWriter::create`], on other files than the system's.
    pub fn create_with(
        files: F,
        dir: &Path,
        zxid: Zxid,
        bytes_per_second: Option<u64>,
    ) -> Result<Self, StorageError> {
        let temporary = dir.join(format!("{}{UNFINISHED}", file_name(zxid)));
        let file = new_file(&files, dir, &temporary)
            .map_err(|error| StorageError::io("create snapshot", &temporary, None, error))?;
        let mut header = RawHeader {
            magic: U32::new(HEADER_MAGIC),
            checksum: U32::ZERO,
            format: U16::new(FORMAT),
            reserved: [0; 6],
            zxid: U64::new(zxid.0),
            reserved_after: U64::ZERO,
        };
        header.checksum = U32::new(checksum_of(header.as_bytes()));
        let mut writer = Self {
            files,
            dir: dir.to_path_buf(),
            zxid,
            temporary,
            file,
            buffer: Vec::with_capacity(WRITE_BYTES),
            offset: 0,
            index: Vec::new(),
            pace: Pace::new(bytes_per_second),
            times: None,
            compression: Compression::None,
            compressed: Vec::new(),
            named: false,
        };
        writer.put(header.as_bytes())?;
        Ok(writer)
    }

    /// Stores the chunks that are added from now on so.
    #[must_use]
    pub fn compressed_by(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Counts its flushes there.
    #[must_use]
    pub fn timed_by(mut self, times: &FlushTimes) -> Self {
        self.times = Some(times.clone());
        self
    }

    /// Keeps to its rate only while that log is written.
    #[must_use]
    pub fn beside(mut self, log: &LogActivity) -> Self {
        self.pace.hold_beside(log);
        self
    }

    /// Adds a chunk. `kind` is the caller's; so is the chunk's size, of which some hundred KiB suit parallel
    /// loading best.
    pub fn push_chunk(&mut self, kind: u32, bytes: &[u8]) -> Result<(), StorageError> {
        let max = CHUNK_BYTES_MAX;
        let len = bytes.len();
        let Some(short) = u32::try_from(len).ok().filter(|_| len <= max) else {
            return Err(StorageError::RecordTooLarge { len, max });
        };
        if self.compression == Compression::Lz4 {
            let mut compressed = std::mem::take(&mut self.compressed);
            let is_shorter = compress(bytes, short, &mut compressed);
            let mut put = Ok(false);
            if is_shorter {
                put = self.put_chunk(kind, LZ4, &compressed).map(|()| true);
            }
            self.compressed = compressed;
            if put? {
                return Ok(());
            }
        }
        self.put_chunk(kind, PLAIN, bytes)
    }

    fn put_chunk(&mut self, kind: u32, encoding: u32, stored: &[u8]) -> Result<(), StorageError> {
        let len = u32::try_from(stored.len()).expect("a chunk is bounded far below 4 GiB");
        self.index.push(RawChunk {
            kind: U32::new(kind),
            bytes: U32::new(len),
            checksum: U32::new(crc32c::crc32c(stored)),
            encoding: U32::new(encoding),
        });
        self.put(stored)?;
        self.pace.spend(stored.len());
        Ok(())
    }

    /// Ends the snapshot: makes it durable, gives it its name, reads it back and checks it.
    ///
    /// `digest` is the tree's at the snapshot's zxid; what `counts` count is the caller's business. The
    /// result is to be given to [`Store::register_snapshot`](crate::Store::register_snapshot).
    pub fn finish(
        mut self,
        digest: u64,
        counts: [u64; SNAPSHOT_COUNTS],
    ) -> Result<SnapshotInfo, StorageError> {
        let index = std::mem::take(&mut self.index);
        let index_offset = self.offset;
        self.put(index.as_bytes())?;
        let mut trailer = RawTrailer {
            magic: U32::new(TRAILER_MAGIC),
            checksum: U32::ZERO,
            zxid: U64::new(self.zxid.0),
            digest: U64::new(digest),
            counts: counts.map(U64::new),
            chunks: U32::new(u32::try_from(index.len()).unwrap_or(u32::MAX)),
            index_checksum: U32::new(crc32c::crc32c(index.as_bytes())),
            index_offset: U64::new(index_offset),
            bytes: U64::new(self.offset + size_of::<RawTrailer>() as u64),
        };
        trailer.checksum = U32::new(checksum_of(trailer.as_bytes()));
        self.put(trailer.as_bytes())?;
        self.write_out()?;
        self.flush()?;
        let path = snapshot_path(&self.dir, self.zxid);
        // The bytes are durable before the name is, and the name before anybody relies on it.
        self.files
            .rename(&self.temporary, &path)
            .map_err(|error| StorageError::io("name snapshot", &path, None, error))?;
        self.named = true;
        self.files
            .sync_dir(&self.dir)
            .map_err(|error| StorageError::io("flush data directory", &self.dir, None, error))?;
        let info = SnapshotInfo {
            zxid: self.zxid,
            bytes: self.offset,
            digest,
        };
        let file = self.files.open_uncached(&path);
        let file = file.map_err(|error| StorageError::io("open snapshot", &path, None, error))?;
        let reader = SnapshotReader::of_file(&path, file)?.listed_as(info)?;
        reader.verify(&mut self.pace)?;
        Ok(info)
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        self.offset += bytes.len() as u64;
        while !bytes.is_empty() {
            let most = match self.pace.is_held() {
                true => GENTLE_BYTES,
                false => WRITE_BYTES,
            };
            let room = most.saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= most {
                self.write_out()?;
            }
        }
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), StorageError> {
        let started = Instant::now();
        self.file
            .write_all(&self.buffer)
            .and_then(|()| self.file.pass_on(!self.pace.is_held()))
            .map_err(|error| StorageError::io("write snapshot", &self.temporary, None, error))?;
        self.count(started);
        self.buffer.clear();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let started = Instant::now();
        self.file
            .flush_durably()
            .map_err(|error| StorageError::io("flush snapshot", &self.temporary, None, error))?;
        self.count(started);
        Ok(())
    }

    fn count(&self, started: Instant) {
        if let Some(times) = &self.times {
            times.record(started.elapsed());
        }
    }
}

/// The spare under the name `temporary`, or an empty file where there is none.
fn new_file<F: SnapshotFiles>(files: &F, dir: &Path, temporary: &Path) -> io::Result<F::Write> {
    match files.rename(&spare_snapshot_path(dir), temporary) {
        Ok(()) => {
            // No cut may bring back a name that says that the old bytes are still there.
            files.sync_dir(dir)?;
            files.overwrite(temporary)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => files.create(temporary),
        Err(error) => Err(error),
    }
}

impl<F: SnapshotFiles> Drop for SnapshotWriter<F> {
    fn drop(&mut self) {
        if !self.named {
            // Left behind it is removed at the next start.
            drop(self.files.remove(&self.temporary));
        }
    }
}

/// Compresses `bytes`, whose length is `len`; false when that does not make them shorter.
fn compress(bytes: &[u8], len: u32, out: &mut Vec<u8>) -> bool {
    let most = LZ4_PREFIX + lz4_flex::block::get_maximum_output_size(bytes.len());
    if out.len() < most {
        out.resize(most, 0);
    }
    let (prefix, block) = out.split_at_mut(LZ4_PREFIX);
    prefix.copy_from_slice(&len.to_be_bytes());
    match lz4_flex::block::compress_into(bytes, block) {
        Ok(stored) if LZ4_PREFIX + stored < bytes.len() => {
            out.truncate(LZ4_PREFIX + stored);
            true
        }
        _ => false,
    }
}

/// Decompresses what [`compress`] made. The length that it names is held against what a block can become before
/// anything is allocated.
fn decompress(stored: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (prefix, block) = stored.split_first_chunk::<LZ4_PREFIX>()?;
    let len = u32::from_be_bytes(*prefix);
    let most = (block.len() as u64).saturating_mul(LZ4_RATIO_MAX);
    let len = usize::try_from(len)
        .ok()
        .filter(|len| *len as u64 <= most && *len <= CHUNK_BYTES_MAX)?;
    out.resize(len, 0);
    let decoded = lz4_flex::block::decompress_into(block, out).ok()?;
    (decoded == len).then_some(())
}

/// A chunk of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What the writer called it.
    pub kind: u32,
    /// Its length in the file in bytes.
    pub bytes: usize,
    offset: u64,
    checksum: u32,
    is_compressed: bool,
}

/// An open snapshot. Chunks may be read by several threads at a time.
#[derive(Debug)]
pub struct SnapshotReader<R = std::fs::File> {
    path: PathBuf,
    file: R,
    info: SnapshotInfo,
    counts: [u64; SNAPSHOT_COUNTS],
    chunks: Vec<Chunk>,
}

impl SnapshotReader {
    /// Opens the snapshot that the manifest lists as `info` in `dir`. Reads and checks everything but the
    /// chunks.
    pub fn open(dir: &Path, info: SnapshotInfo) -> Result<Self, StorageError> {
        Self::open_with(&StdFiles, dir, info)
    }

    /// Opens any snapshot file.
    pub fn open_file(path: &Path) -> Result<Self, StorageError> {
        Self::open_path(&StdFiles, path)
    }
}

impl<R: ReadFile> SnapshotReader<R> {
    /// As [`SnapshotReader::open_file`], on other files than the system's.
    pub fn open_file_with<F: SnapshotFiles<Read = R>>(
        files: &F,
        path: &Path,
    ) -> Result<Self, StorageError> {
        Self::open_path(files, path)
    }

    /// As [`SnapshotReader::open`], on other files than the system's.
    pub fn open_with<F: SnapshotFiles<Read = R>>(
        files: &F,
        dir: &Path,
        info: SnapshotInfo,
    ) -> Result<Self, StorageError> {
        let path = snapshot_path(dir, info.zxid);
        Self::open_path(files, &path)?.listed_as(info)
    }

    fn listed_as(self, info: SnapshotInfo) -> Result<Self, StorageError> {
        if self.info == info {
            Ok(self)
        } else {
            let what = "not the snapshot that the manifest lists";
            Err(damaged(&self.path, 0, what))
        }
    }

    fn open_path<F: SnapshotFiles<Read = R>>(files: &F, path: &Path) -> Result<Self, StorageError> {
        let file = files.open(path);
        Self::of_file(
            path,
            file.map_err(|error| StorageError::io("open snapshot", path, None, error))?,
        )
    }

    fn of_file(path: &Path, file: R) -> Result<Self, StorageError> {
        let failed = |error| StorageError::io("open snapshot", path, None, error);
        let len = file.size().map_err(failed)?;
        let parts = Parts {
            path,
            file: &file,
            len,
        };
        let header: RawHeader = parts.part(0)?;
        if header.magic.get() != HEADER_MAGIC
            || header.checksum.get() != checksum_of(header.as_bytes())
        {
            return Err(damaged(path, 0, "its header fails its checksum"));
        }
        if header.format.get() != FORMAT {
            let (file, found) = (path.to_path_buf(), header.format.get());
            return Err(StorageError::NewerFormat {
                file,
                found,
                supported: FORMAT,
            });
        }
        let trailer = parts.trailer()?;
        if trailer.zxid.get() != header.zxid.get() {
            return Err(damaged(path, 0, "header and trailer disagree"));
        }
        let chunks = parts.chunks(&trailer)?;
        let info = SnapshotInfo {
            zxid: Zxid(trailer.zxid.get()),
            bytes: len,
            digest: trailer.digest.get(),
        };
        let counts = trailer.counts.map(U64::get);
        Ok(Self {
            path: path.to_path_buf(),
            file,
            info,
            counts,
            chunks,
        })
    }

    /// Its zxid, length and digest.
    pub fn info(&self) -> SnapshotInfo {
        self.info
    }

    /// The counts that the writer gave it.
    pub fn counts(&self) -> [u64; SNAPSHOT_COUNTS] {
        self.counts
    }

    /// Its chunks, in the order written.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Has a chunk brought into memory while others are being read.
    pub fn read_ahead(&self, chunk: &Chunk) {
        self.file.read_ahead(chunk.offset, chunk.bytes as u64);
    }

    /// Reads a chunk into `bytes` (replacing what is there), checks it and decompresses it if it is compressed.
    pub fn read_chunk(&self, chunk: &Chunk, bytes: &mut Vec<u8>) -> Result<(), StorageError> {
        self.read_paced(chunk, bytes, &mut Pace::new(None))
    }

    fn read_paced(
        &self,
        chunk: &Chunk,
        bytes: &mut Vec<u8>,
        pace: &mut Pace,
    ) -> Result<(), StorageError> {
        if !chunk.is_compressed {
            return self.read_stored(chunk, bytes, pace);
        }
        let mut stored = Vec::new();
        self.read_stored(chunk, &mut stored, pace)?;
        let what = "a compressed chunk cannot be decompressed";
        decompress(&stored, bytes).ok_or_else(|| damaged(&self.path, chunk.offset, what))
    }

    /// Reads and checks what is stored of a chunk.
    fn read_stored(
        &self,
        chunk: &Chunk,
        bytes: &mut Vec<u8>,
        pace: &mut Pace,
    ) -> Result<(), StorageError> {
        // The length was held against the file's when the snapshot was opened.
        bytes.resize(chunk.bytes, 0);
        let mut offset = chunk.offset;
        let piece_bytes = if pace.is_limited() {
            GENTLE_BYTES
        } else {
            CHUNK_BYTES_MAX
        };
        for piece in bytes.chunks_mut(piece_bytes) {
            self.file.read_exact_at(piece, offset).map_err(|error| {
                StorageError::io("read snapshot", &self.path, Some(offset), error)
            })?;
            offset += piece.len() as u64;
            pace.spend(piece.len());
        }
        if crc32c::crc32c(bytes) == chunk.checksum {
            Ok(())
        } else {
            Err(damaged(
                &self.path,
                chunk.offset,
                "a chunk fails its checksum",
            ))
        }
    }

    fn verify(&self, pace: &mut Pace) -> Result<(), StorageError> {
        self.file.forget_cached();
        let mut bytes = Vec::new();
        for chunk in &self.chunks {
            self.read_paced(chunk, &mut bytes, pace)?;
        }
        // Neither what was written nor what was just read shall push out somebody else's pages.
        self.file.forget_cached();
        Ok(())
    }
}

fn damaged(path: &Path, offset: u64, what: &'static str) -> StorageError {
    StorageError::SnapshotDamaged {
        file: path.to_path_buf(),
        offset,
        what,
    }
}

/// A snapshot file as its parts are read.
struct Parts<'a, R> {
    path: &'a Path,
    file: &'a R,
    len: u64,
}

impl<R: ReadFile> Parts<'_, R> {
    fn part<T: FromBytes + IntoBytes>(&self, offset: u64) -> Result<T, StorageError> {
        let mut part = T::new_zeroed();
        match self.file.read_exact_at(part.as_mut_bytes(), offset) {
            Ok(()) => Ok(part),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(self.path, offset, "it is too short"))
            }
            Err(error) => Err(StorageError::io(
                "read snapshot",
                self.path,
                Some(offset),
                error,
            )),
        }
    }

    fn trailer(&self) -> Result<RawTrailer, StorageError> {
        let offset = self.len.saturating_sub(size_of::<RawTrailer>() as u64);
        let trailer: RawTrailer = self.part(offset)?;
        let good = trailer.magic.get() == TRAILER_MAGIC
            && trailer.checksum.get() == checksum_of(trailer.as_bytes())
            && trailer.bytes.get() == self.len;
        if good {
            Ok(trailer)
        } else {
            Err(damaged(self.path, offset, "it has no whole trailer"))
        }
    }

    fn chunks(&self, trailer: &RawTrailer) -> Result<Vec<Chunk>, StorageError> {
        let offset = trailer.index_offset.get();
        let bad = || damaged(self.path, offset, "its index is damaged");
        let index_bytes = u64::from(trailer.chunks.get()) * size_of::<RawChunk>() as u64;
        let end = offset
            .checked_add(index_bytes)
            .and_then(|end| end.checked_add(80));
        // Before the allocation: the index lies in the file, between the chunks and the trailer.
        if end != Some(self.len) || offset < size_of::<RawHeader>() as u64 {
            return Err(bad());
        }
        let mut index = vec![0; usize::try_from(index_bytes).map_err(|_| bad())?];
        self.file
            .read_exact_at(&mut index, offset)
            .map_err(|error| StorageError::io("read snapshot", self.path, Some(offset), error))?;
        if crc32c::crc32c(&index) != trailer.index_checksum.get() {
            return Err(bad());
        }
        let raw = <[RawChunk]>::ref_from_bytes(&index).map_err(|_| bad())?;
        let mut at = size_of::<RawHeader>() as u64;
        let mut chunks = Vec::with_capacity(raw.len());
        for chunk in raw {
            let bytes = usize::try_from(chunk.bytes.get()).map_err(|_| bad())?;
            let checksum = chunk.checksum.get();
            let encoding = chunk.encoding.get();
            chunks.push(Chunk {
                kind: chunk.kind.get(),
                bytes,
                offset: at,
                checksum,
                is_compressed: encoding == LZ4,
            });
            at += u64::from(chunk.bytes.get());
            if !matches!(encoding, PLAIN | LZ4) || at > offset || bytes > CHUNK_BYTES_MAX {
                return Err(bad());
            }
        }
        if at == offset { Ok(chunks) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, time::Duration};

    use super::*;

    fn write(dir: &Path, chunks: &[(u32, Vec<u8>)]) -> SnapshotInfo {
        write_by(Compression::None, dir, chunks)
    }

    fn write_by(compression: Compression, dir: &Path, chunks: &[(u32, Vec<u8>)]) -> SnapshotInfo {
        let writer = SnapshotWriter::create(dir, Zxid(9), None).expect("create");
        let mut writer = writer.compressed_by(compression);
        for (kind, bytes) in chunks {
            writer.push_chunk(*kind, bytes).expect("push a chunk");
        }
        writer.finish(0xD16E57, [1, 2, 3, 4]).expect("finish")
    }

    fn read(dir: &Path, info: SnapshotInfo) -> Result<Vec<(u32, Vec<u8>)>, StorageError> {
        let reader = SnapshotReader::open(dir, info)?;
        reader
            .chunks()
            .iter()
            .map(|chunk| {
                let mut bytes = Vec::new();
                reader
                    .read_chunk(chunk, &mut bytes)
                    .map(|()| (chunk.kind, bytes))
            })
            .collect()
    }

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().expect("make a directory");
        let chunks = vec![
            (1, vec![7; 3 << 20]),
            (2, Vec::new()),
            (u32::MAX, vec![1, 2, 3]),
        ];
        let info = write(dir.path(), &chunks);
        assert_eq!(read(dir.path(), info).expect("read"), chunks);
        let reader = SnapshotReader::open(dir.path(), info).expect("open");
        assert_eq!((reader.info(), reader.counts()), (info, [1, 2, 3, 4]));
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        assert_eq!(names, ["snapshot-0000000000000009"]);
    }

    #[test]
    fn a_spare_is_written_over_whatever_its_length() {
        let chunks = vec![(1, vec![7; 700_000]), (2, vec![1, 2, 3])];
        let inode = |path: &Path| std::fs::metadata(path).expect("it is there").ino();
        for len in [0, 5000, 700_000, 2_000_000] {
            let dir = tempfile::tempdir().expect("make a directory");
            let spare = spare_snapshot_path(dir.path());
            std::fs::write(&spare, vec![0xA5; len]).expect("write");
            let before = inode(&spare);
            let info = write(dir.path(), &chunks);
            let path = snapshot_path(dir.path(), info.zxid);
            assert_eq!(inode(&path), before, "{len} bytes: the same file");
            assert_eq!(read(dir.path(), info).expect("read"), chunks);
            let left = std::fs::metadata(&path).expect("it is there").len();
            assert_eq!(left, info.bytes, "{len} bytes");
            assert!(!spare.exists());
        }
    }

    #[test]
    fn compressed_round_trip() {
        let dir = tempfile::tempdir().expect("make a directory");
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut noise = Vec::new();
        for _ in 0..200 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend_from_slice(&state.to_be_bytes());
        }
        let chunks = vec![
            (1, vec![7; 3 << 20]),
            (2, Vec::new()),
            (3, b"abcabcabcabcabcabcabcabcabc".repeat(9)),
            (4, noise),
        ];
        let plain = write(dir.path(), &chunks);
        let info = write_by(Compression::Lz4, dir.path(), &chunks);
        assert!(info.bytes < plain.bytes / 10, "{}", info.bytes);
        assert_eq!(read(dir.path(), info).expect("read"), chunks);
        let reader = SnapshotReader::open(dir.path(), info).expect("open");
        let compressed = reader.chunks().iter().map(|chunk| chunk.is_compressed);
        assert_eq!(compressed.collect::<Vec<_>>(), [true, false, true, false]);
    }

    #[test]
    fn no_block_makes_it_allocate_more_than_it_can_hold() {
        let mut out = Vec::new();
        let mut stored = Vec::new();
        assert!(compress(&[9; 4000], 4000, &mut stored));
        assert!(decompress(&stored, &mut out).is_some() && out == [9; 4000]);
        for len in [0, 3999, 4001, 1 << 29, u32::MAX] {
            let mut bad = stored.clone();
            bad[..4].copy_from_slice(&u32::to_be_bytes(len));
            out = Vec::new();
            assert_eq!(decompress(&bad, &mut out), None, "{len}");
            assert!(out.capacity() <= bad.len() * 255, "{len}");
        }
        for len in 0..stored.len() {
            assert_eq!(decompress(&stored[..len], &mut out), None, "cut at {len}");
        }
    }

    #[test]
    fn an_unfinished_one_leaves_nothing() {
        let dir = tempfile::tempdir().expect("make a directory");
        let mut writer = SnapshotWriter::create(dir.path(), Zxid(9), None).expect("create");
        writer.push_chunk(1, &[0; 100]).expect("push a chunk");
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().expect("make a directory");
        let info = write_by(
            Compression::Lz4,
            dir.path(),
            &[(1, vec![3; 70]), (2, vec![4; 5])],
        );
        let path = snapshot_path(dir.path(), info.zxid);
        let good = std::fs::read(&path).expect("read the file");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).expect("write the file");
            assert!(read(dir.path(), info).is_err(), "byte {at} went unnoticed");
            std::fs::write(&path, &good[..at]).expect("write the file");
            assert!(
                read(dir.path(), info).is_err(),
                "a cut at {at} went unnoticed"
            );
        }
    }

    /// A log that is written waits for little at a time; nobody waits for what is not held to a rate.
    #[test]
    fn pieces_are_small_while_a_budget_holds() {
        let dir = tempfile::tempdir().expect("make a directory");
        for (rate, pieces) in [(None, [0, 0, 0, 4]), (Some(1 << 40), [1, 2, 3, 4])] {
            let mut writer = SnapshotWriter::create(dir.path(), Zxid(1), rate).expect("create");
            for expect in pieces {
                let chunk = vec![7; GENTLE_BYTES];
                writer.push_chunk(1, &chunk).expect("push a chunk");
                let len = std::fs::metadata(&writer.temporary)
                    .expect("it is there")
                    .len();
                assert_eq!(len, expect * GENTLE_BYTES as u64, "{rate:?}");
            }
        }
    }

    #[test]
    fn a_budget_slows_it_down() {
        let dir = tempfile::tempdir().expect("make a directory");
        let started = Instant::now();
        let mut writer =
            SnapshotWriter::create(dir.path(), Zxid(1), Some(40 << 20)).expect("create");
        writer
            .push_chunk(1, &vec![0; 2 << 20])
            .expect("push a chunk");
        writer.finish(0, [0; 4]).expect("finish");
        // 2 MiB written and 2 MiB read back at 40 MiB/s.
        assert!(started.elapsed() >= Duration::from_millis(95));
    }
}
