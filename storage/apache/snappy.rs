//! Streams of snappy-java's `SnappyOutputStream`, which are not the framing of snappy's own format.
//!
//! ```text
//! stream  0x82 "SNAPPY" 0  version (4 bytes)  lowest compatible version (4)  chunks ...
//! chunk   length (4 bytes, big-endian)  a snappy block
//! ```
//!
//! A second stream may follow the first: its magic stands where a chunk's length would.

use std::io::{self, Read, Write};

use snap::raw::{Decoder, Encoder, decompress_len, max_compress_len};

/// How a stream begins.
pub(crate) const MAGIC: [u8; 8] = *b"\x82SNAPPY\0";
/// Behind the magic: the version of the format, and the lowest that a reader must know.
const VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// The highest version that can be read.
const VERSION_KNOWN: i32 = 1;
/// Uncompressed bytes of a chunk, as `SnappyOutputStream` fills it.
const CHUNK_BYTES: usize = 32 << 10;
/// The longest chunk that is believed.
const CHUNK_BYTES_MAX: usize = 64 << 20;
/// No byte of a block stands for more bytes than this: the shortest copy has two for up to 64.
const EXPANSION_MAX: usize = 64;

/// Reads a stream.
#[derive(Debug)]
pub(crate) struct SnappyReader<R> {
    inner: R,
    block: Vec<u8>,
    chunk: Vec<u8>,
    /// How much of `chunk` has been read.
    done: usize,
}

impl<R: Read> SnappyReader<R> {
    /// A reader whose `inner` stands behind the magic.
    pub(crate) fn behind_magic(mut inner: R) -> io::Result<Self> {
        read_versions(&mut inner)?;
        Ok(Self {
            inner,
            block: Vec::new(),
            chunk: Vec::new(),
            done: 0,
        })
    }

    /// Uncompresses the next chunk; false at the end of the file.
    fn next_chunk(&mut self) -> io::Result<bool> {
        let mut start = [0; 4];
        loop {
            if !fill_or_end(&mut self.inner, &mut start)? {
                return Ok(false);
            }
            if start != MAGIC[..4] {
                break;
            }
            let mut rest = [0; 4];
            self.inner.read_exact(&mut rest)?;
            if rest != MAGIC[4..] {
                return Err(bad("a chunk's length is not possible"));
            }
            read_versions(&mut self.inner)?;
        }
        let len = usize::try_from(i32::from_be_bytes(start)).unwrap_or(usize::MAX);
        if len > CHUNK_BYTES_MAX {
            return Err(bad("a chunk's length is not possible"));
        }
        self.block.clear();
        let read = (&mut self.inner)
            .take(len as u64)
            .read_to_end(&mut self.block)?;
        if read < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let uncompressed = decompress_len(&self.block).map_err(io::Error::other)?;
        if uncompressed > CHUNK_BYTES_MAX.min(self.block.len().saturating_mul(EXPANSION_MAX)) {
            return Err(bad("a chunk says that it is longer than it can be"));
        }
        self.chunk.resize(uncompressed, 0);
        let made = Decoder::new()
            .decompress(&self.block, &mut self.chunk)
            .map_err(io::Error::other)?;
        self.chunk.truncate(made);
        self.done = 0;
        Ok(true)
    }
}

impl<R: Read> Read for SnappyReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.done >= self.chunk.len() {
            if !self.next_chunk()? {
                return Ok(0);
            }
        }
        let mut rest = self.chunk.get(self.done..).unwrap_or_default();
        let read = rest.read(out)?;
        self.done += read;
        Ok(read)
    }
}

fn read_versions(inner: &mut impl Read) -> io::Result<()> {
    let mut word = [0; 4];
    inner.read_exact(&mut word)?;
    inner.read_exact(&mut word)?;
    if i32::from_be_bytes(word) > VERSION_KNOWN {
        return Err(bad("the stream's version is not known"));
    }
    Ok(())
}

/// Fills `bytes`; false when the file ends before the first of them.
fn fill_or_end(inner: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    let Some((first, rest)) = bytes.split_first_mut() else {
        return Ok(true);
    };
    let first = std::slice::from_mut(first);
    loop {
        match inner.read(first) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    inner.read_exact(rest)?;
    Ok(true)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Writes a stream.
#[derive(Debug)]
pub(crate) struct SnappyWriter<W: Write> {
    inner: W,
    chunk: Vec<u8>,
}

impl<W: Write> SnappyWriter<W> {
    pub(crate) fn new(mut inner: W) -> io::Result<Self> {
        inner.write_all(&MAGIC)?;
        inner.write_all(&VERSIONS)?;
        Ok(Self {
            inner,
            chunk: Vec::with_capacity(CHUNK_BYTES),
        })
    }

    /// Writes what is left and returns what was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.put_chunk()?;
        Ok(self.inner)
    }

    fn put_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut block = vec![0; max_compress_len(self.chunk.len())];
        let len = Encoder::new()
            .compress(&self.chunk, &mut block)
            .map_err(io::Error::other)?;
        block.truncate(len);
        let len = i32::try_from(len).map_err(io::Error::other)?;
        self.inner.write_all(&len.to_be_bytes())?;
        self.inner.write_all(&block)?;
        self.chunk.clear();
        Ok(())
    }
}

impl<W: Write> Write for SnappyWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.chunk.len();
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.chunk.extend_from_slice(taken);
        if self.chunk.len() == CHUNK_BYTES {
            self.put_chunk()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.put_chunk()?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(content: &[u8]) -> Vec<u8> {
        let mut writer = SnappyWriter::new(Vec::new()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn read(stream: &[u8]) -> io::Result<Vec<u8>> {
        let behind = stream.strip_prefix(&MAGIC).expect("the magic");
        let mut content = Vec::new();
        SnappyReader::behind_magic(behind)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn streams_come_back_one_by_one_and_in_a_row() {
        for len in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 7] {
            let content: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
            let mut stream = written(&content);
            assert_eq!(read(&stream).unwrap(), content);
            stream.extend(written(b"more"));
            assert_eq!(read(&stream).unwrap(), [&content[..], b"more"].concat());
            if len > 1 {
                assert!(read(&stream[..stream.len() - 1]).is_err());
            }
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_it_is_allocated() {
        let header = [&MAGIC[..], &VERSIONS].concat();
        // A chunk of 2 GiB; one of 5 bytes that says it holds 60 MiB; a negative one.
        for chunk in [
            &[0x7f, 0xff, 0xff, 0xff][..],
            &[0, 0, 0, 5, 0x80, 0x80, 0x80, 0x1e, 0],
            &[0xff, 0xff, 0xff, 0xfe],
        ] {
            assert!(read(&[&header, chunk].concat()).is_err());
        }
        let newer = [&MAGIC[..], &[0, 0, 0, 9, 0, 0, 0, 9]].concat();
        assert!(read(&newer).is_err());
    }
}
