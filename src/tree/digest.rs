//! The digest of a znode, as `DigestCalculator` computes it (version 2): CRC32 over path, data and 60
//! bytes of stat. The tree's digest is the wrapping sum over all znodes but those below `/zookeeper/`.

use crc32fast::Hasher;

use crate::node::{Inner, NodeFields};

/// What stands below here has no digest: quota statistics differ between servers.
const UNCOUNTED: &str = "/zookeeper/";

/// Whether a znode at `path` counts.
pub(crate) fn counts(path: &str) -> bool {
    !path.starts_with(UNCOUNTED)
}

/// The CRC of the parts that only a change of the data changes; 0 where there is no digest.
pub(crate) fn content_crc(path: &str, data: &[u8]) -> u32 {
    if !counts(path) {
        return 0;
    }
    let mut crc = Hasher::new();
    // ZK: DigestCalculator takes "/" for "", under which the root's children know it.
    if path != "/" {
        crc.update(path.as_bytes());
    }
    crc.update(data);
    crc.finalize()
}

/// The digest of a znode with this [`content_crc`].
pub(crate) fn of_stat(content_crc: u32, node: &Inner) -> u32 {
    let head = &node.header;
    let mut stat = [0; 60];
    let mut rest = stat.as_mut_slice();
    for long in [head.czxid, head.mzxid, node.pzxid(), head.ctime, head.mtime] {
        put(&mut rest, long.to_be_bytes());
    }
    for int in [head.version, node.cversion(), node.aversion()] {
        put(&mut rest, int.to_be_bytes());
    }
    put(&mut rest, head.owner.to_be_bytes());
    let mut crc = Hasher::new_with_initial(content_crc);
    crc.update(&stat);
    crc.finalize()
}

fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    if let Some((place, after)) = std::mem::take(rest).split_first_chunk_mut() {
        *place = bytes;
        *rest = after;
    }
}
