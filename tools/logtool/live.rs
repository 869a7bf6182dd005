//! Reading beside a running server: whether there is one, told without touching its lock, and reading again what it
//! has changed under our hands.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};

use crate::exit::Failure;
use crate::own_dir::OwnDir;

/// How often something is read again while a server changes it.
const ATTEMPTS: u32 = 8;
/// How long the server is given in between.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens own files and does `work` on them. Beside a running server it is done again when files went away under it, or when
/// `is_doubtful` says so of the result; the last result counts.
///
/// # Errors
/// Those of opening, and the last one of `work`.
pub(crate) fn settled<T>(
    open: impl Fn() -> anyhow::Result<OwnDir>,
    work: impl Fn(&OwnDir) -> anyhow::Result<T>,
    is_doubtful: impl Fn(&T) -> bool,
) -> anyhow::Result<(OwnDir, T)> {
    let mut attempt = 1;
    loop {
        let dir = open()?;
        let result = work(&dir);
        let again = match &result {
            Ok(result) => is_doubtful(result),
            Err(error) => is_gone(error),
        };
        if !again || !dir.is_live || attempt == ATTEMPTS {
            return Ok((dir, result?));
        }
        thread::sleep(PAUSE);
        attempt += 1;
    }
}

/// Whether a file was purged, or recycled, between listing and reading.
pub(crate) fn is_gone(error: &anyhow::Error) -> bool {
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    error.downcast_ref().is_some_and(is_missing)
        || matches!(error.downcast_ref(), Some(Failure::Changed(_)))
}

/// Whether some process holds the lock file at `path`, as far as the kernel's list of locks tells.
///
/// Trying the lock would tell for sure, and would keep a server that starts in this very moment from starting.
pub(crate) fn is_locked(path: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    lists(&locks, metadata.ino())
}

/// Whether `locks` (the text of `/proc/locks`) has an exclusive lock on inode `inode`. The device is not compared:
/// layered file systems show another one there.
fn lists(locks: &str, inode: u64) -> bool {
    locks.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().filter(|word| *word != "->");
        let is_flock = words.nth(1) == Some("FLOCK");
        let is_write = words.nth(1) == Some("WRITE");
        let place = words.nth(1).unwrap_or_default();
        let found = place
            .rsplit(':')
            .next()
            .and_then(|inode| inode.parse().ok());
        is_flock && is_write && found == Some(inode)
    })
}

/// The processes, this one aside, that have one of `files` open, with that file. Processes of other users tell it
/// to root only.
pub(crate) fn users_of<'f>(files: impl Iterator<Item = &'f Path>) -> Vec<(u32, &'f Path)> {
    // By inode and not by name: a process may see the file system under another path.
    let inode = |path: &Path| Some(fs::metadata(path).ok()?).map(|m| (m.dev(), m.ino()));
    let files: HashMap<_, _> = files
        .filter_map(|path| Some((inode(path)?, path)))
        .collect();
    let mut users = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let open = fs::read_dir(process.path().join("fd"));
        let open = open.into_iter().flatten().flatten();
        let mut open = open.filter_map(|entry| files.get(&inode(&entry.path())?).copied());
        users.extend(open.next().map(|path| (pid, path)));
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list() {
        let locks = "1: FLOCK  ADVISORY  WRITE 711 fe:00:1234 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 712 fe:00:99 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 1 fe:00:77 0 EOF\n3: FLOCK ADVISORY READ 5 fe:00:55 0 EOF\n";
        assert!(lists(locks, 1234));
        assert!(lists(locks, 99));
        assert!(!lists(locks, 77) && !lists(locks, 55) && !lists(locks, 123));
        assert!(!lists("garbage\n\n", 1));
    }

    #[test]
    fn a_lock_of_our_own_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = fs::File::create(&path).unwrap();
        assert!(!is_locked(&path));
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(&path));
    }
}
