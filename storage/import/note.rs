//! What was imported, noted in the new data directory: Apache's server, started again on its own files, would
//! write a history that this one does not have. Going on from either would lose the other without a word.
//!
//! ```text
//! ringkeeper-import 1
//! log log.100000259 67108880 1764341234567890123      name, bytes, last write; absent without logs
//! last 0x1000003ee
//! epochs 3 3                                            accepted, current
//! sum 1f2e3d4c                                          CRC32C of everything before
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ringkeeper_apache_files::{Directory, Entry};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{BlockingDisk, FOLDER, SnapshotFiles as _};

use crate::error::ImportError;
use crate::source::{Seen, SourceDirs, has_apache_data, is_begun, name_of, shown};

/// The note's name in the own folder of the data directory.
pub const NOTE_NAME: &str = "imported";
/// How a note begins.
const TITLE: &str = "ringkeeper-import 1";
/// Longer than any.
const LEN_MAX: u64 = 4096;

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The newest log.
    pub(crate) log: Option<Seen>,
    /// The last transaction.
    pub(crate) last: Zxid,
    /// The accepted and the current epoch as Apache's files tell them; 0 without such files.
    pub(crate) epochs: (u32, u32),
}

/// What Apache has done since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Where.
    pub folder: PathBuf,
    /// What.
    pub what: String,
    /// The own data.
    pub own: PathBuf,
}

impl fmt::Display for Grown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folder, own) = (self.folder.display(), self.own.display());
        write!(
            f,
            "Apache ZooKeeper has written to {folder} since it was imported into {own}: {}. The two histories differ, and \
             only one can be gone on with. To keep Ringkeeper's, move {folder} away; to keep Apache's, move {own} away (and \
             its counterpart in dataLogDir) and start again, which imports anew. `ringkeeper-log diff --old-format own --new-format apache` shows how they \
             differ",
            self.what
        )
    }
}

impl Note {
    /// What the note of `folder` says; `None` when nothing was imported into it.
    ///
    /// # Errors
    /// When the note is damaged or cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, ImportError> {
        let path = folder.join(NOTE_NAME);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(LEN_MAX).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                return Err(ImportError::io("read", &path)(error));
            }
            Err(_) => text.clear(),
        }
        match Self::parse(&text) {
            Some(note) => Ok(Some(note)),
            None => Err(ImportError::io("read", &path)(io::Error::new(
                io::ErrorKind::InvalidData,
                "the note of what was imported is damaged; if Apache's server has not run since, remove the note",
            ))),
        }
    }

    /// Writes the note durably into `folder`, where nothing of its name is yet.
    pub(crate) fn write(&self, disk: &impl BlockingDisk, folder: &Path) -> Result<(), ImportError> {
        let path = folder.join(NOTE_NAME);
        disk.write_file(&path, self.to_string().as_bytes())
            .and_then(|()| disk.files().sync_dir(folder))
            .map_err(ImportError::io("write", &path))
    }

    fn parse(text: &str) -> Option<Self> {
        let (content, sum) = text.rsplit_once("sum ")?;
        let sum = u32::from_str_radix(sum.trim_end(), 16).ok()?;
        if crc32c::crc32c(content.as_bytes()) != sum {
            return None;
        }
        let mut lines = content.lines();
        if lines.next()? != TITLE {
            return None;
        }
        let mut note = Self::default();
        for line in lines {
            let mut words = line.split(' ');
            match words.next()? {
                "log" => {
                    note.log = Some(Seen {
                        name: words.next()?.to_owned(),
                        bytes: words.next()?.parse().ok()?,
                        written_ns: words.next()?.parse().ok()?,
                    });
                }
                "last" => {
                    let digits = words.next()?.strip_prefix("0x")?;
                    note.last = Zxid(u64::from_str_radix(digits, 16).ok()?);
                }
                "epochs" => {
                    note.epochs = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                }
                // Of a later release of the same format.
                _ => {}
            }
        }
        Some(note)
    }

    /// What Apache has done in `dir` since this note.
    fn changes(&self, dir: &Directory) -> Result<Option<String>, ImportError> {
        if Seen::of(dir.logs.last())? != self.log
            && let Some(log) = log_above(dir, self.last)?
        {
            return Ok(Some(log));
        }
        if let Some((zxid, path)) = dir.snapshots.last().filter(|(zxid, _)| *zxid > self.last) {
            let name = name_of(path);
            return Ok(Some(format!(
                "{name} is of {zxid}, and {} was the last transaction",
                self.last
            )));
        }
        let epochs = epochs_of(dir);
        if epochs.0 > self.epochs.0 || epochs.1 > self.epochs.1 {
            return Ok(Some(format!(
                "it has taken part in epoch {}, and {} was the last one",
                epochs.0.max(epochs.1),
                self.epochs.0
            )));
        }
        Ok(None)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut content = format!("{TITLE}\n");
        if let Some(log) = &self.log {
            content += &format!("log {} {} {}\n", log.name, log.bytes, log.written_ns);
        }
        content += &format!("last {:#x}\n", self.last.0);
        content += &format!("epochs {} {}\n", self.epochs.0, self.epochs.1);
        let sum = crc32c::crc32c(content.as_bytes());
        writeln!(f, "{content}sum {sum:08x}")
    }
}

pub(crate) fn epochs_of(dir: &Directory) -> (u32, u32) {
    let (accepted, current) = (dir.epochs.accepted.value(), dir.epochs.current.value());
    (accepted.unwrap_or(0), current.unwrap_or(0))
}

/// Whether Apache's files beside the data of ours in `own` hold what ours do not: by the note, if they were imported
/// from there; else whatever is above `last`, the last transaction of ours.
///
/// # Errors
/// When something cannot be read.
pub fn check_source(
    dirs: &SourceDirs,
    own: &Path,
    last: Option<Zxid>,
) -> Result<Option<Grown>, ImportError> {
    if !has_apache_data(dirs)? {
        return Ok(None);
    }
    let own = own.join(FOLDER);
    let note = Note::read(&own)?;
    let dir = dirs.open()?;
    let changes = match (note, last) {
        (Some(note), _) => note.changes(&dir)?,
        (None, Some(last)) => log_above(&dir, last)?,
        (None, None) => None,
    };
    Ok(changes.map(|what| Grown {
        folder: shown(dirs),
        what,
        own,
    }))
}

/// The first log with a transaction above `last`, in words.
fn log_above(dir: &Directory, last: Zxid) -> Result<Option<String>, ImportError> {
    let mut found = None;
    // The files that end below are not read; the newest may be one that was only just begun.
    let logs = dir.with_logs_after(last);
    for (_, path) in &logs.logs {
        if !is_begun(path)? {
            continue;
        }
        let one = Directory::of_files(vec![path.clone()], Vec::new());
        let mut visit = |path: &Path, entry: &Entry<'_>| {
            found = Some((name_of(path), entry.zxid));
            Ok::<_, io::Error>(std::ops::ControlFlow::Break(()))
        };
        one.for_each(last, Zxid(u64::MAX), &mut visit)?;
        if let Some((name, zxid)) = found {
            return Ok(Some(format!(
                "{name} holds transaction {zxid}, and {last} was the last one"
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_a_changed_one_does_not() {
        let notes = [
            Note::default(),
            Note {
                log: Some(Seen {
                    name: "log.100000001".to_owned(),
                    bytes: 67_108_880,
                    written_ns: 1_764_341_234_567_890_123,
                }),
                last: Zxid(0x1_0000_03ee),
                epochs: (3, 2),
            },
        ];
        for note in notes {
            let text = note.to_string();
            assert_eq!(Note::parse(&text), Some(note.clone()));
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1;
                if let Ok(changed) = String::from_utf8(bytes) {
                    let parsed = Note::parse(&changed);
                    // The end of the line behind the sum means nothing.
                    assert!(parsed.is_none() || at + 1 == text.len(), "{changed}");
                }
            }
        }
        assert_eq!(Note::parse(""), None);
    }
}
