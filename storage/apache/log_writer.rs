//! Transaction logs as Apache reads them.
//!
//! They are not preallocated: Apache takes the end of the file for the end of the log, and pads a file only
//! when it writes to it, which it never does to one that it did not make in the same run.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use ringkeeper_proto::Zxid;

use crate::epochs::sync_folder;
use crate::error::FileError;
use crate::log::END_OF_RECORD;
use crate::{LOG_MAGIC, LOG_PREFIX};

/// A new file is begun when the last one has this many bytes.
const FILE_BYTES: u64 = 256 << 20;

/// Writes logs into a folder.
#[derive(Debug)]
pub struct LogWriter {
    folder: PathBuf,
    file: Option<(BufWriter<File>, PathBuf)>,
    /// Bytes of the file.
    bytes: u64,
    bytes_max: u64,
    /// Entries written.
    count: u64,
}

impl LogWriter {
    /// A writer into `folder` (`version-2`). It makes a file when there is a record for it.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            file: None,
            bytes: 0,
            bytes_max: FILE_BYTES,
            count: 0,
        }
    }

    /// The same with shorter files.
    #[must_use]
    pub const fn files_of(mut self, bytes: u64) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// Appends a record: `TxnHeader`, body and digest. Records come in the order of their zxids.
    ///
    /// # Errors
    /// When the system cannot write it.
    pub fn append(&mut self, zxid: Zxid, record: &[u8]) -> Result<(), FileError> {
        if self.bytes >= self.bytes_max {
            self.end_file()?;
        }
        if self.file.is_none() {
            self.begin_file(zxid)?;
        }
        let Some((file, path)) = &mut self.file else {
            return Ok(());
        };
        let len = i32::try_from(record.len())
            .map_err(|_| FileError::content(path, "a record is longer than any can be"))?;
        let sum = u64::from(simd_adler32::adler32(&record));
        file.write_all(&sum.to_be_bytes())
            .and_then(|()| file.write_all(&len.to_be_bytes()))
            .and_then(|()| file.write_all(record))
            .and_then(|()| file.write_all(&[END_OF_RECORD]))
            .map_err(FileError::io("write", path))?;
        self.bytes += 13 + record.len() as u64;
        self.count += 1;
        Ok(())
    }

    /// Brings everything to stable storage; returns how many entries there are.
    ///
    /// # Errors
    /// When the system cannot write it.
    pub fn finish(mut self) -> Result<u64, FileError> {
        self.end_file()?;
        sync_folder(&self.folder)?;
        Ok(self.count)
    }

    fn begin_file(&mut self, zxid: Zxid) -> Result<(), FileError> {
        let path = self.folder.join(format!("{LOG_PREFIX}{:x}", zxid.0));
        let created = OpenOptions::new().write(true).create_new(true).open(&path);
        let mut file = BufWriter::new(created.map_err(FileError::io("create", &path))?);
        // Magic, version 2, and the dbid that Apache's logs have.
        let header = [&LOG_MAGIC[..], &[0, 0, 0, 2], &[0; 8]].concat();
        file.write_all(&header)
            .map_err(FileError::io("write", &path))?;
        self.file = Some((file, path));
        self.bytes = header.len() as u64;
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), FileError> {
        let Some((file, path)) = self.file.take() else {
            return Ok(());
        };
        file.into_inner()
            .map_err(|error| error.into_error())
            .and_then(|file| file.sync_all())
            .map_err(FileError::io("flush", &path))
    }
}
