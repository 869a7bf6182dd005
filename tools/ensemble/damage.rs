//! Damage to the log of a member of Ringkeeper's that does not run.

use std::fs;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result};

use crate::ensemble::Ensemble;

/// What the log and its parts are aligned to.
const BLOCK_BYTES: usize = 4096;

/// Where a byte is flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the middle of what the newest file holds: later writes show that it was there.
    Middle,
    /// In the last write: it may have been torn when the power failed.
    End,
}

/// Flips a byte of what a member that does not run has written to its newest log.
///
/// # Errors
/// When it has no log of Ringkeeper's.
pub fn damage_log(ensemble: &Ensemble, id: u64, place: Place) -> Result<()> {
    let member = ensemble.member(id)?;
    let folder = member.dir().join("data").join("ringkeeper");
    let mut logs = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("log-") {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let used = bytes.iter().rposition(|byte| *byte != 0);
            let used = used.map_or(0, |at| at + 1);
            // The next segment is there already, and empty but for its header.
            if used > 2 * BLOCK_BYTES {
                logs.push((path, bytes, used));
            }
        }
    }
    let last = logs.into_iter().max_by_key(|(path, ..)| path.clone());
    let (path, bytes, used) = last.context("nothing is logged")?;
    let at = match place {
        // Blocks are filled up with zeros, which count for nothing.
        Place::Middle => {
            let middle = BLOCK_BYTES + (used - BLOCK_BYTES) / 2;
            let mut behind = bytes.iter().enumerate().skip(middle);
            behind
                .find(|(_, byte)| **byte != 0)
                .map_or(used - 1, |(at, _)| at)
        }
        Place::End => used - 1,
    };
    let byte = bytes.get(at).copied().unwrap_or(0);
    let file = fs::OpenOptions::new().write(true).open(&path)?;
    file.write_all_at(&[byte ^ 0x10], at as u64)?;
    file.sync_all()?;
    Ok(())
}
