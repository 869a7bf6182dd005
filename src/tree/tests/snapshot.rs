//! Trees as bytes and back, whole and damaged.

use proptest::prelude::*;
use ringkeeper_proto::txn::CreateKind;
use ringkeeper_proto::{Acl, AclList, OpCode, SessionId, Txn, TxnHeader, Zxid};
use ringkeeper_tree::snapshot::{
    CHUNK_LEN, Chunk, SnapshotBuilder, SnapshotEncoder, SnapshotError,
};
use ringkeeper_tree::{Events, Tree};

fn create(tree: &mut Tree, path: &str, data: &[u8], ephemeral: bool) {
    let txn = Txn::Create {
        path: path.into(),
        data: Some(data),
        acl: AclList::new(&Acl::open()),
        kind: CreateKind::Plain { ephemeral },
        parent_cversion: -1,
    };
    apply(tree, OpCode::Create, &txn);
}

fn apply(tree: &mut Tree, op: OpCode, txn: &Txn<'_>) {
    let header = TxnHeader {
        session: SessionId(3),
        cxid: 0,
        zxid: Zxid(tree.zxid().0 + 1),
        time_ms: 5,
        op,
    };
    let applied = tree.apply(&header, txn, &mut Events::new());
    assert!(applied.outcome.is_ok());
}

fn sample() -> Tree {
    let mut tree = Tree::new();
    create(&mut tree, "/wide", b"", false);
    for i in 0..3000 {
        create(&mut tree, &format!("/wide/{i}"), &[7; 700], i % 100 == 0);
    }
    let mut path = String::new();
    for _ in 0..300 {
        path.push_str("/deep");
        create(&mut tree, &path, b"d", false);
    }
    create(&mut tree, "/long", &vec![1; CHUNK_LEN + 5], false);
    create(&mut tree, "/zookeeper/quota/wide", b"", false);
    create(
        &mut tree,
        "/zookeeper/quota/wide/zookeeper_limits",
        b"count=1",
        false,
    );
    tree
}

fn chunks(tree: &Tree) -> Vec<Vec<u8>> {
    let mut encoder = SnapshotEncoder::new(tree);
    let mut chunks = Vec::new();
    let mut bytes = Vec::new();
    while encoder.next_chunk(&mut bytes) {
        chunks.push(bytes.clone());
    }
    chunks
}

fn build<'c>(chunks: impl IntoIterator<Item = &'c Vec<u8>>) -> Result<Tree, SnapshotError> {
    let mut builder = SnapshotBuilder::new();
    for chunk in chunks {
        builder.push(Chunk::decode(chunk)?)?;
    }
    builder.finish()
}

#[test]
fn a_tree_of_many_chunks_comes_back() {
    let tree = sample();
    let chunks = chunks(&tree);
    assert!(chunks.len() > 5);
    let long = chunks.iter().filter(|chunk| chunk.len() > CHUNK_LEN);
    assert_eq!(long.count(), 1, "only the znode that is longer needs more");
    let mut again = build(&chunks).unwrap();
    assert_eq!(again.zxid(), tree.zxid());
    assert_eq!(again.digest(), tree.digest());
    assert_eq!(again.ephemerals_count(), 30);
    assert_eq!(again.quota_prefix("/wide/1"), Some("/wide"));
    assert_eq!(
        self::chunks(&again),
        chunks,
        "the same tree, the same bytes"
    );
    // It goes on living.
    create(&mut again, "/wide/new", b"", false);
    assert_eq!(again.get("/wide").unwrap().num_children(), 3001);
}

#[test]
fn a_clone_that_is_dropped_in_turns_rests_after_each_znode_and_leaves_the_tree_alone() {
    let mut tree = sample();
    let old = tree.clone();
    for i in 0..3000 {
        let path = format!("/wide/{i}").into();
        apply(&mut tree, OpCode::Delete, &Txn::Delete { path });
    }
    let left = chunks(&tree);
    let mut rests = 0;
    old.drop_in_turns(&mut || rests += 1);
    assert!(rests >= 3000, "{rests}");
    assert_eq!(chunks(&tree), left);
    // What others still have is not gone through.
    let (mut rests, clone) = (0, tree.clone());
    clone.drop_in_turns(&mut || rests += 1);
    assert_eq!(rests, 0);
    assert_eq!(chunks(&tree), left);
    let count = tree.node_count();
    tree.drop_in_turns(&mut || rests += 1);
    // The root has no parent that lets it go, and "/" is not two znodes.
    assert_eq!(rests + 2, count);
}

#[test]
fn missing_and_misplaced_chunks_are_noticed() {
    let chunks = chunks(&sample());
    for skip in 0..chunks.len() {
        let some = chunks.iter().enumerate().filter(|(i, _)| *i != skip);
        assert!(
            build(some.map(|(_, chunk)| chunk)).is_err(),
            "without {skip}"
        );
        let twice = chunks.iter().take(skip + 1).chain(&chunks[skip..]);
        assert!(build(twice).is_err(), "twice {skip}");
    }
    for i in 1..chunks.len() {
        let mut swapped = chunks.clone();
        swapped.swap(i - 1, i);
        // Siblings may come in any order.
        if let Ok(tree) = build(&swapped) {
            assert_eq!(self::chunks(&tree), chunks, "{i} before its time");
        }
    }
    assert!(matches!(build([]), Err(SnapshotError::Order(_))));
}

#[test]
fn another_format_is_refused() {
    let mut chunks = chunks(&Tree::new());
    chunks[0][4] = 9;
    assert_eq!(build(&chunks).unwrap_err(), SnapshotError::Format(9));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn damaged_chunks_are_errors_or_harmless_but_never_panics(
        damage in prop::collection::vec((0_usize..4, any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        which in 0_usize..4,
    ) {
        let mut tree = Tree::new();
        create(&mut tree, "/a", b"x", true);
        create(&mut tree, "/b", b"x", false);
        create(&mut tree, "/b/c", b"xyz", false);
        let header = TxnHeader {
            session: SessionId(3),
            cxid: 0,
            zxid: Zxid(9),
            time_ms: 5,
            op: OpCode::CreateSession,
        };
        let _applied = tree.apply(&header, &Txn::CreateSession { timeout_ms: 1 }, &mut Events::new());
        let mut chunks = chunks(&tree);
        prop_assert_eq!(chunks.len(), 4);
        for (chunk, at, byte) in damage {
            let at = at.index(chunks[chunk].len());
            chunks[chunk][at] ^= byte;
        }
        let _outcome = build(&chunks);
        let len = cut.index(chunks[which].len());
        chunks[which].truncate(len);
        prop_assert!(build(&chunks).is_err());
    }
}

#[test]
fn a_fuzzy_tree_comes_back_fuzzy() {
    let mut tree = sample();
    assert!(!build(&chunks(&tree)).unwrap().is_fuzzy());
    tree.set_fuzzy(true);
    let mut chunks = chunks(&tree);
    assert!(build(&chunks).unwrap().is_fuzzy());
    *chunks[0].last_mut().unwrap() = 2;
    assert!(build(&chunks).is_err());
}
