//! A snapshot's bytes on their way in and out: compression, the running checksum, jute's fields.
//!
//! Invariants:
//! - The checksum is that of everything before the place, uncompressed, seals included.
//! - Memory grows with bytes that are there, never with a length that they tell.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Chain, Cursor, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use simd_adler32::Adler32;

use crate::LEN_MAX;
use crate::snappy::{self, SnappyReader, SnappyWriter};

/// Read in pieces of this size.
const PIECE: usize = 256 << 10;

/// How a snapshot is compressed (`snapshot.compression.method`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    Plain,
    /// gzip.
    Gz,
    /// snappy, in snappy-java's framing.
    Snappy,
}

impl Compression {
    /// How names of such snapshots end. Apache tells them apart by that alone.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gz => ".gz",
            Self::Snappy => ".snappy",
        }
    }
}

/// Counts bytes as they are read from the file.
struct Counted<'t> {
    file: File,
    tick: &'t mut dyn FnMut(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(out)?;
        (self.tick)(read as u64);
        Ok(read)
    }
}

/// The uncompressed bytes of a file.
pub(crate) struct Source<'t> {
    inner: Box<dyn Read + 't>,
    /// Bytes from `base` on, of which those before `from` are taken and those before `summed` are summed.
    bytes: Vec<u8>,
    base: u64,
    from: usize,
    summed: usize,
    sum: Adler32,
}

impl<'t> Source<'t> {
    /// Opens `path`. What compresses it is told by how it begins.
    pub(crate) fn open(
        path: &Path,
        tick: &'t mut dyn FnMut(u64),
    ) -> io::Result<(Self, Compression)> {
        let file = File::open(path)?;
        let mut reader = BufReader::with_capacity(PIECE, Counted { file, tick });
        let mut start = Vec::new();
        (&mut reader).take(8).read_to_end(&mut start)?;
        let again = |start| -> Chain<Cursor<Vec<u8>>, _> { Cursor::new(start).chain(reader) };
        let (inner, compression): (Box<dyn Read + 't>, _) = match start.as_slice() {
            [0x1f, 0x8b, ..] => (Box::new(MultiGzDecoder::new(again(start))), Compression::Gz),
            magic if *magic == snappy::MAGIC => (
                // What is chained before is the magic, which is known.
                Box::new(SnappyReader::behind_magic(again(Vec::new()))?),
                Compression::Snappy,
            ),
            _ => (Box::new(again(start)), Compression::Plain),
        };
        let source = Self {
            inner,
            bytes: Vec::new(),
            base: 0,
            from: 0,
            summed: 0,
            sum: Adler32::new(),
        };
        Ok((source, compression))
    }

    /// Where the next byte stands, uncompressed.
    pub(crate) const fn at(&self) -> u64 {
        self.base + self.from as u64
    }

    /// The next `len` bytes, which stay where they are.
    pub(crate) fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.held() < len && !self.fill(len)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self
            .bytes
            .get(self.from..self.from + len)
            .unwrap_or_default())
    }

    /// Passes over `len` bytes that were peeked at.
    pub(crate) fn pass(&mut self, len: usize) {
        self.from = self.bytes.len().min(self.from + len);
    }

    /// The checksum of everything passed.
    pub(crate) fn sum(&mut self) -> u32 {
        if let Some(passed) = self.bytes.get(self.summed..self.from) {
            self.sum.write(passed);
        }
        self.summed = self.from;
        self.sum.finish()
    }

    pub(crate) fn int(&mut self) -> io::Result<i32> {
        let value = int_of(self.peek(4)?);
        self.pass(4);
        Ok(value)
    }

    pub(crate) fn long(&mut self) -> io::Result<i64> {
        let value = long_of(self.peek(8)?);
        self.pass(8);
        Ok(value)
    }

    /// A string that is not null.
    pub(crate) fn ustring(&mut self) -> io::Result<String> {
        let len = self.len_at(0)?.ok_or_else(|| bad("a string is null"))?;
        let text = String::from_utf8_lossy(self.peek(4 + len)?.get(4..).unwrap_or_default());
        let text = text.into_owned();
        self.pass(4 + len);
        Ok(text)
    }

    /// The length that stands `ahead` bytes from here; `None` is null.
    pub(crate) fn len_at(&mut self, ahead: usize) -> io::Result<Option<usize>> {
        let len = int_of(self.peek(ahead + 4)?.get(ahead..).unwrap_or_default());
        if len == -1 {
            return Ok(None);
        }
        match usize::try_from(len) {
            Ok(len) if len <= LEN_MAX => Ok(Some(len)),
            _ => Err(bad("a length is not possible")),
        }
    }

    /// What is left, at most `len` bytes of it, without passing over it.
    pub(crate) fn rest(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.held() < len {
            self.fill(len)?;
        }
        let to = self.bytes.len().min(self.from + len);
        Ok(self.bytes.get(self.from..to).unwrap_or_default())
    }

    const fn held(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Reads on until `len` bytes are held; false when the file ends before.
    fn fill(&mut self, len: usize) -> io::Result<bool> {
        self.sum();
        self.bytes.drain(..self.from);
        self.base += self.from as u64;
        (self.from, self.summed) = (0, 0);
        while self.bytes.len() < len {
            let read = (&mut self.inner)
                .take(PIECE as u64)
                .read_to_end(&mut self.bytes)?;
            if read == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

pub(crate) fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The `int` that `bytes` begin with; 0 when they are too short.
pub(crate) fn int_of(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |b| i32::from_be_bytes(*b))
}

/// The `long` that `bytes` begin with; 0 when they are too short.
pub(crate) fn long_of(bytes: &[u8]) -> i64 {
    bytes.first_chunk().map_or(0, |b| i64::from_be_bytes(*b))
}

/// A file being written.
pub(crate) struct Sink {
    inner: Compressor,
    sum: Adler32,
}

enum Compressor {
    Plain(BufWriter<File>),
    Gz(GzEncoder<BufWriter<File>>),
    Snappy(SnappyWriter<BufWriter<File>>),
}

impl Sink {
    pub(crate) fn create(path: &Path, compression: Compression) -> io::Result<Self> {
        let file = BufWriter::with_capacity(PIECE, File::create(path)?);
        let inner = match compression {
            Compression::Plain => Compressor::Plain(file),
            Compression::Gz => Compressor::Gz(GzEncoder::new(file, flate2::Compression::default())),
            Compression::Snappy => Compressor::Snappy(SnappyWriter::new(file)?),
        };
        Ok(Self {
            inner,
            sum: Adler32::new(),
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.write(bytes);
        match &mut self.inner {
            Compressor::Plain(file) => file.write_all(bytes),
            Compressor::Gz(file) => file.write_all(bytes),
            Compressor::Snappy(file) => file.write_all(bytes),
        }
    }

    /// The checksum of everything written.
    pub(crate) fn sum(&self) -> u32 {
        self.sum.finish()
    }

    /// Brings everything to stable storage.
    pub(crate) fn finish(self) -> io::Result<()> {
        let file = match self.inner {
            Compressor::Plain(file) => file,
            Compressor::Gz(encoder) => encoder.finish()?,
            Compressor::Snappy(writer) => writer.finish()?,
        };
        file.into_inner()
            .map_err(|error| error.into_error())?
            .sync_all()
    }
}
