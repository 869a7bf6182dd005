//! Where a replay begins: the newest snapshot that can be used.

use ringkeeper_proto::Zxid;

use crate::directory::Directory;
use crate::error::FileError;
use crate::replay::Replay;
use crate::snapshot::read_snapshot;

/// What a replay begins with.
#[derive(Debug)]
pub struct Base {
    /// The snapshot's tree; `None` when no snapshot can be used.
    pub replay: Option<Replay>,
    /// Snapshots that were tried before and cannot be read, the newest first.
    pub failures: Vec<FileError>,
    /// Whether a snapshot was passed over because it shows later transactions than were asked for.
    pub is_too_new: bool,
}

impl Directory {
    /// The newest snapshot that can be read and shows nothing above `through`; `tick` is told of bytes read.
    pub fn base(&self, through: Option<Zxid>, tick: &mut dyn FnMut(u64)) -> Base {
        let mut base = Base {
            replay: None,
            failures: Vec::new(),
            is_too_new: false,
        };
        for (zxid, path) in self.snapshots.iter().rev() {
            if through.is_some_and(|through| through < *zxid) {
                base.is_too_new = true;
                continue;
            }
            match read_snapshot(path, tick) {
                Ok(snapshot) if through.is_some_and(|through| through < snapshot.fuzzy_through) => {
                    base.is_too_new = true;
                }
                Ok(snapshot) => {
                    base.replay = Some(Replay::from_snapshot(snapshot));
                    break;
                }
                Err(error) => base.failures.push(error),
            }
        }
        base
    }
}
