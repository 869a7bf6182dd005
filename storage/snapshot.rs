//! Snapshot files.

use std::path::{Path, PathBuf};

use ringkeeper_proto::Zxid;

const PREFIX: &str = "snapshot-";

/// The name of the snapshot at `zxid`.
pub(crate) fn file_name(zxid: Zxid) -> String {
    format!("{PREFIX}{:016x}", zxid.0)
}

/// The path of the snapshot at `zxid`.
pub(crate) fn snapshot_path(dir: &Path, zxid: Zxid) -> PathBuf {
    dir.join(file_name(zxid))
}

/// Whether `name` is a snapshot's, finished or not.
pub(crate) fn is_snapshot(name: &str) -> bool {
    name.starts_with(PREFIX)
}
