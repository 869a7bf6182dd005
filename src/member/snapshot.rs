//! A tree as a snapshot file, and back: one chunk after the other.

use ringkeeper_storage::{
    Chunk as Place, SnapshotFiles, SnapshotInfo, SnapshotReader, SnapshotWriter, StorageError,
};
use ringkeeper_tree::Tree;
use ringkeeper_tree::snapshot::{
    CHUNK_LEN, Chunk, SnapshotBuilder, SnapshotEncoder, SnapshotError,
};

/// What the container calls the chunks of a tree.
const TREE_CHUNK: u32 = 1;

/// Why a snapshot cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not what was written.
    #[error(transparent)]
    File(#[from] StorageError),
    /// It is, and no tree.
    #[error(transparent)]
    Tree(#[from] SnapshotError),
}

/// Writes `tree` into a snapshot that was begun at its zxid.
///
/// # Errors
/// When a write, a flush, or the check at the end fails.
pub fn write<F: SnapshotFiles>(
    writer: SnapshotWriter<F>,
    tree: &Tree,
) -> Result<SnapshotInfo, StorageError> {
    write_watched(writer, tree, &mut |_| ())
}

/// As [`write()`]; `watch` is told, chunk by chunk, how many bytes of the tree there were so far.
///
/// # Errors
/// As [`write()`].
pub fn write_watched<F: SnapshotFiles>(
    mut writer: SnapshotWriter<F>,
    tree: &Tree,
    watch: &mut dyn FnMut(u64),
) -> Result<SnapshotInfo, StorageError> {
    let mut bytes = 0;
    let mut encoder = SnapshotEncoder::new(tree);
    let mut chunk = Vec::with_capacity(CHUNK_LEN);
    while encoder.next_chunk(&mut chunk) {
        writer.push_chunk(TREE_CHUNK, &chunk)?;
        bytes += chunk.len() as u64;
        watch(bytes);
    }
    let counts = [tree.node_count(), tree.sessions().len() as u64, 0, 0];
    writer.finish(tree.digest(), counts)
}

/// The tree of an open snapshot.
///
/// # Errors
/// When the file is not what was written, or not a tree.
pub fn read<R: ringkeeper_storage::ReadFile>(
    reader: &SnapshotReader<R>,
) -> Result<Tree, LoadError> {
    let mut builder = SnapshotBuilder::new();
    let mut bytes = Vec::new();
    let places: &[Place] = reader.chunks();
    for place in places {
        reader.read_chunk(place, &mut bytes)?;
        builder.push(Chunk::decode(&bytes)?)?;
    }
    Ok(builder.finish()?)
}
