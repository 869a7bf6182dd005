//! What the benches share: requests and trees, the raw floor of the disk, clients of a whole server.
//!
//! `cargo bench -p ringkeeper-benches` measures; `cargo bench -p ringkeeper-benches -- --test` runs each
//! bench once. The throughput of a whole server, and the comparison with Apache, are in `benches/compare`.
//!
//! Every bench prints what it ran on. A figure that depends on the disk stands beside the raw floor of the same
//! minute, and only its ratio to that floor means anything on another machine.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod clients;
pub mod environment;
pub mod floor;
pub mod latency;
pub mod pauses;
pub mod served;

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, Xid, Zxid};
use ringkeeper_storage::disk_ring;
use ringkeeper_transport::{DiskHooks, ExecutorSpec};
use ringkeeper_tree::execute::execute;
use ringkeeper_tree::{Context, Events, Settings, Tree};

/// The middle of `values`, of an even number the mean of the two in the middle; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

/// Whether each bench is only to be run once, to see that it works (`-- --test`).
pub fn is_smoke_test() -> bool {
    let mut is_bench = false;
    for argument in std::env::args() {
        match argument.as_str() {
            "--test" => return true,
            "--bench" => is_bench = true,
            _ => {}
        }
    }
    // As criterion has it: `cargo test` gives neither.
    !is_bench
}

/// An executor as the server's: durable writes go by the disk's own ring.
pub fn executor() -> ExecutorSpec {
    ExecutorSpec::new("bench", None).with_disk(DiskHooks {
        start: disk_ring::start,
        reap: disk_ring::reap,
    })
}

/// Where programs are built: `CARGO_TARGET_DIR`, or `target` at the root of the repository.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    )
}

/// A directory below [`target`] that goes when it is dropped, or below `RINGKEEPER_BENCH_DIR`: the disk that
/// it lies on is what is measured.
///
/// # Panics
/// When it cannot be made.
pub fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("RINGKEEPER_BENCH_DIR").map_or_else(target, PathBuf::from);
    std::fs::create_dir_all(&place).expect("a place for the data");
    tempfile::Builder::new()
        .prefix("bench")
        .tempdir_in(place)
        .expect("a directory for the data")
}

/// The number that the environment has for `variable`.
///
/// # Panics
/// When it is there and is no number: a typing error must not measure something else.
pub fn number_of(variable: &str) -> Option<usize> {
    let told = std::env::var(variable).ok()?;
    let number = told.replace('_', "").parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={told} is no number")))
}

/// A number that says whether two runs did the same work: FNV-1a of the bytes that were worked on.
pub fn work_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A create of `path` with `data`, open to everybody.
pub fn create<'a>(path: &'a str, data: &'a [u8]) -> Request<'a> {
    let acl = Some(AclList::new(&Acl::open()));
    let create = CreateRequest {
        path,
        data: Some(data),
        acl,
        flags: 0,
        ttl_ms: None,
    };
    Request::Create {
        op: OpCode::Create,
        create,
    }
}

/// A set of `path` to `data`, whatever its version.
pub const fn set<'a>(path: &'a str, data: &'a [u8]) -> Request<'a> {
    Request::SetData {
        path,
        data: Some(data),
        version: -1,
    }
}

/// The body of a request as a client sends it: behind the frame's length and the header.
pub fn body_of(request: &Request<'_>) -> Bytes {
    let mut frame = BytesMut::new();
    request.encode_frame(Xid(1), &mut frame);
    frame.freeze().slice(12..)
}

/// The path of the znode that [`tree_of`] makes as number `number`.
pub fn path_of(number: usize) -> String {
    format!("/{}/n{number:07}", number % 100)
}

/// A tree of `count` znodes of 100 bytes, below 100 parents.
///
/// # Panics
/// When a create fails, which it cannot on an empty tree.
pub fn tree_of(count: usize) -> Tree {
    let mut tree = Tree::new();
    for parent in 0..100 {
        apply(&mut tree, &create(&format!("/{parent}"), b""));
    }
    for number in 0..count {
        apply(&mut tree, &create(&path_of(number), &[b'x'; 100]));
    }
    tree
}

/// Executes a write as the next transaction.
///
/// # Panics
/// When it fails.
pub fn apply(tree: &mut Tree, request: &Request<'_>) {
    let settings = Settings::default();
    let context = Context::internal(1, &settings);
    let zxid = Zxid(tree.zxid().0 + 1);
    let mut events = Events::new();
    let executed = execute(tree, zxid, request, &context, &mut events);
    executed
        .outcome
        .expect("the benches ask for what is possible");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_what_was_asked_for() {
        let tree = tree_of(250);
        assert_eq!(tree.node_count(), Tree::new().node_count() + 100 + 250);
        assert!(tree.get(&path_of(249)).is_some() && tree.get(&path_of(250)).is_none());
    }

    #[test]
    fn the_hash_is_fnv() {
        // Of the function's own test vectors.
        assert_eq!(work_hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
