//! Damage to the log of a member of Ringkeeper's that does not run.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::ensemble::Ensemble;

/// What the log and its parts are aligned to.
const BLOCK_BYTES: u64 = 4096;

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
            logs.push((used_bytes(&path)?, path));
        }
    }
    // The next segment is there already, and empty but for its header.
    logs.retain(|(used, _)| *used > 2 * BLOCK_BYTES);
    let (used, path) = logs
        .into_iter()
        .max_by_key(|(_, path)| path.clone())
        .context("nothing is logged")?;
    let at = match place {
        Place::Middle => {
            let written = used.next_multiple_of(BLOCK_BYTES);
            BLOCK_BYTES + (written - BLOCK_BYTES) / 2
        }
        Place::End => used - 1,
    };
    let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    file.sync_all()?;
    Ok(())
}

/// Where the zeros begin with which the rest of a log is filled.
fn used_bytes(path: &Path) -> Result<u64> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let last = bytes.iter().rposition(|byte| *byte != 0);
    Ok(last.map_or(0, |at| at as u64 + 1))
}
