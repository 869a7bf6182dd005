//! `acceptedEpoch` and `currentEpoch`: a decimal number in a file of its own.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::error::FileError;

/// The file of the last epoch that the server promised to follow.
pub const ACCEPTED_EPOCH: &str = "acceptedEpoch";
/// The file of the last epoch whose history the server has.
pub const CURRENT_EPOCH: &str = "currentEpoch";

/// What an epoch's file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Epoch {
    /// There is no file: the server was never a member of an ensemble.
    #[default]
    Absent,
    /// The epoch.
    Present(u32),
    /// Something that is no epoch.
    Unreadable,
}

impl Epoch {
    /// The epoch, where the file tells one.
    pub const fn value(self) -> Option<u32> {
        match self {
            Self::Present(epoch) => Some(epoch),
            Self::Absent | Self::Unreadable => None,
        }
    }
}

/// Reads the epoch file `name` in `folder`.
///
/// # Errors
/// When the system cannot read it.
pub fn read_epoch(folder: &Path, name: &str) -> Result<Epoch, FileError> {
    // An epoch has ten digits at most.
    const LEN_MAX: u64 = 32;
    let path = folder.join(name);
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(LEN_MAX).read_to_end(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Epoch::Absent),
        Err(error) => return Err(FileError::io("read", &path)(error)),
    }
    let number = str::from_utf8(&text).ok().and_then(|text| {
        // ZK: BufferedReader.readLine, then Long.parseLong.
        text.lines().next()?.parse().ok()
    });
    Ok(number.map_or(Epoch::Unreadable, Epoch::Present))
}

/// Writes the epoch file `name` in `folder` durably: beside it, flushed, renamed.
///
/// # Errors
/// When the system cannot write it.
pub fn write_epoch(folder: &Path, name: &str, epoch: u32) -> Result<(), FileError> {
    let path = folder.join(name);
    // The name that Apache gives to its own, and looks for when a write was interrupted.
    let beside = folder.join(format!("{name}.tmp"));
    let mut file = File::create(&beside).map_err(FileError::io("create", &beside))?;
    let written = file
        .write_all(epoch.to_string().as_bytes())
        .and_then(|()| file.sync_all());
    written.map_err(FileError::io("write", &beside))?;
    fs::rename(&beside, &path).map_err(FileError::io("rename", &beside))?;
    sync_folder(folder)
}

/// Makes the names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(FileError::io("flush", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_come_back_and_what_is_none_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let read = || read_epoch(dir.path(), CURRENT_EPOCH).unwrap();
        assert_eq!(read(), Epoch::Absent);
        write_epoch(dir.path(), CURRENT_EPOCH, 17).unwrap();
        assert_eq!(read(), Epoch::Present(17));
        for (text, epoch) in [
            ("3\n", Epoch::Present(3)),
            ("", Epoch::Unreadable),
            ("-1", Epoch::Unreadable),
            ("x", Epoch::Unreadable),
            ("4294967296", Epoch::Unreadable),
            ("\u{e9}", Epoch::Unreadable),
        ] {
            fs::write(dir.path().join(CURRENT_EPOCH), text).unwrap();
            assert_eq!(read(), epoch, "{text:?}");
        }
        fs::write(dir.path().join(CURRENT_EPOCH), [0xff; 100]).unwrap();
        assert_eq!(read(), Epoch::Unreadable);
    }
}
