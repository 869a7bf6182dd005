//! Replays a transaction log that Apache ZooKeeper 3.8.0 wrote (`testdata/make_log.py`) and compares
//! the digest after every transaction with the one Apache logged.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::BTreeMap;

use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{OpCode, SessionId, Txn};
use ringkeeper_tree::{Events, Tree};

const LOG: &[u8] = include_bytes!("../testdata/apache-3.8.log");

/// The records of a log: 16 bytes of header, then each with a checksum, a length and a mark at its end.
fn records(log: &[u8]) -> Vec<&[u8]> {
    assert_eq!(&log[..8], b"ZKLG\0\0\0\x02");
    let mut rest = &log[16..];
    let mut records = Vec::new();
    while let Some((head, body)) = rest.split_at_checked(12) {
        let len = u32::from_be_bytes(head[8..].try_into().unwrap()) as usize;
        assert_eq!(body[len], 0x42);
        records.push(&body[..len]);
        rest = &body[len + 1..];
    }
    records
}

#[test]
fn every_digest_of_apaches_log_is_ours() {
    let mut tree = Tree::new();
    let mut kinds = BTreeMap::new();
    let mut events = Events::new();
    for record in records(LOG) {
        let (header, txn, digest) = decode_record(record).unwrap();
        let applied = tree.apply(&header, &txn, &mut events);
        // ZK: PrepRequestProcessor sets no digest when a request fails.
        assert_eq!(digest.is_none(), matches!(txn, Txn::Error { .. }));
        if let Some(digest) = digest {
            assert_eq!(
                tree.digest_to_wire(),
                digest.tree_digest,
                "{header:?} {txn:?}"
            );
        }
        assert_eq!(tree.zxid(), header.zxid);
        match txn {
            Txn::Error { code } => assert_eq!(applied.outcome, Err(code)),
            _ => assert!(applied.outcome.is_ok(), "{header:?} {txn:?}"),
        }
        *kinds.entry(header.op).or_insert(0) += 1;
    }
    // What `mntr` and the quota's statistics showed when the log was taken.
    assert_eq!(tree.node_count(), 114);
    assert_eq!(tree.ephemerals_count(), 6);
    assert_eq!(tree.approximate_data_size(), 51665);
    let stats = tree.get("/zookeeper/quota/q/zookeeper_stats").unwrap();
    assert_eq!(stats.data(), Some(&b"count=3,bytes=9"[..]));
    assert_eq!(
        tree.containers().collect::<Vec<_>>(),
        ["/container-that-stays"]
    );
    assert_eq!(tree.ttl_nodes().collect::<Vec<_>>(), ["/ttl-long"]);
    for op in [
        OpCode::Create,
        OpCode::Create2,
        OpCode::CreateContainer,
        OpCode::CreateTtl,
        OpCode::Delete,
        OpCode::DeleteContainer,
        OpCode::SetData,
        OpCode::SetAcl,
        OpCode::Multi,
        OpCode::CreateSession,
        OpCode::CloseSession,
        OpCode::Error,
    ] {
        assert!(kinds.contains_key(&op), "the log has no {op:?}");
    }
}

/// A snapshot of Apache's is written while transactions go on, so its followers replay what is in it
/// already: a whole suffix of the log, over a state that knows it.
#[test]
fn replaying_a_suffix_that_is_there_already_ends_in_the_same_tree() {
    let records = records(LOG);
    let mut whole = Tree::new();
    for record in &records {
        let (header, txn, _) = decode_record(record).unwrap();
        let _applied = whole.apply(&header, &txn, &mut Events::new());
    }
    for start in (0..records.len()).step_by(7) {
        let mut again = whole.clone();
        for record in &records[start..] {
            let (header, txn, _) = decode_record(record).unwrap();
            let _applied = again.apply(&header, &txn, &mut Events::new());
        }
        assert_eq!(again.digest(), whole.digest(), "replayed from {start}");
        assert_eq!(again.node_count(), whole.node_count());
        assert_eq!(again.ephemerals_count(), whole.ephemerals_count());
        assert_eq!(again.acl_count(), whole.acl_count());
        let sessions: Vec<(SessionId, i32)> = again.sessions().collect();
        assert!(sessions.into_iter().eq(whole.sessions()));
    }
}
