//! What the benches share: requests, and trees of many znodes.
//!
//! `cargo bench -p ringkeeper-benches` measures; `cargo bench -p ringkeeper-benches -- --test` runs each
//! bench once. The load on a whole server, and the comparison with Apache, are in `benches/compare`.

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, Xid, Zxid};
use ringkeeper_tree::execute::execute;
use ringkeeper_tree::{Context, Settings, Tree};

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
    let mut events = Vec::new();
    let executed = execute(tree, zxid, request, &context, &mut events);
    executed
        .outcome
        .expect("the benches ask for what is possible");
}
