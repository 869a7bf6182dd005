//! A small mixed workload, and files of it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use ringkeeper_proto::txn::{CreateKind, TxnDigest, encode_record};
use ringkeeper_proto::{Acl, AclList, Id, OpCode, Perms, SessionId, Txn, TxnHeader, Zxid};
use ringkeeper_tree::{Events, Node, Tree};

/// A temporary directory.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The transactions of a workload with every kind of znode, sessions that come and go, ACLs and multis; each
/// with the digest after it. About half of the multis fail.
pub(crate) fn records(count: u32) -> Vec<(Zxid, Vec<u8>)> {
    let mut tree = Tree::new();
    let mut records = Vec::new();
    let mut zxid = Zxid::new(ringkeeper_proto::Epoch(1), 0);
    for n in 0..count {
        zxid = zxid.next().unwrap();
        let (op, txn) = transaction(n, &tree);
        let header = TxnHeader {
            session: SessionId(0x0100_0000_0000_0000 + i64::from(n / 20)),
            cxid: i32::try_from(n).unwrap(),
            zxid,
            time_ms: 1_760_000_000_000 + i64::from(n),
            op,
        };
        let _outcome = tree.apply(&header, &txn, &mut Events::new());
        let digest = TxnDigest {
            version: TxnDigest::VERSION,
            tree_digest: tree.digest_to_wire(),
        };
        let mut bytes = Vec::new();
        encode_record(&header, &txn, Some(&digest), &mut bytes);
        records.push((zxid, bytes));
    }
    records
}

fn transaction(n: u32, tree: &Tree) -> (OpCode, Txn<'static>) {
    let create = |path: String, kind| {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        // As a leader logs it: only so a replay over a later state leaves that as it is.
        let created = tree.get(parent).map_or(0, Node::cversion_raw);
        Txn::Create {
            path: path.into(),
            data: Some(b"some data"),
            acl: AclList::new(&Acl::open()),
            kind,
            parent_cversion: created + 1,
        }
    };
    let plain = |ephemeral| CreateKind::Plain { ephemeral };
    match n % 20 {
        0 => (
            OpCode::CreateSession,
            Txn::CreateSession { timeout_ms: 30_000 },
        ),
        1 => (OpCode::Create, create(format!("/p{n}"), plain(false))),
        2 => (OpCode::Create2, create(format!("/e{n}"), plain(true))),
        3 => (
            OpCode::CreateContainer,
            create(format!("/c{n}"), CreateKind::Container),
        ),
        4 => (
            OpCode::CreateTtl,
            create(format!("/t{n}"), CreateKind::Ttl(60_000)),
        ),
        5 => (
            OpCode::Create,
            create(format!("/p{}/below", n - 4), plain(false)),
        ),
        6 => {
            let acl = Acl {
                perms: Perms::READ,
                id: Id::new("digest", format!("user{n}:hash")),
            };
            let path = format!("/p{}", n - 5).into();
            let acl = AclList::new(&[acl]);
            (
                OpCode::SetAcl,
                Txn::SetAcl {
                    path,
                    acl,
                    version: 1,
                },
            )
        }
        7 | 8 => {
            let path = format!("/p{}", n - n % 20 + 1).into();
            let version = i32::try_from(n % 20 - 6).unwrap();
            let data = (n % 20 == 7).then_some(&b"other"[..]);
            (
                OpCode::SetData,
                Txn::SetData {
                    path,
                    data,
                    version,
                },
            )
        }
        9 => {
            let parts = vec![
                (
                    OpCode::Check,
                    Txn::Check {
                        path: "/".into(),
                        version: 0,
                    },
                ),
                (OpCode::Create, create(format!("/m{n}"), plain(false))),
                (
                    OpCode::Delete,
                    Txn::Delete {
                        path: format!("/p{}/below", n - 8).into(),
                    },
                ),
            ];
            (OpCode::Multi, Txn::Multi(parts))
        }
        10 => {
            let parts = [0, -101, -2].map(|code| (OpCode::Error, Txn::Error { code }));
            (OpCode::Multi, Txn::Multi(parts.to_vec()))
        }
        11 => (OpCode::Error, Txn::Error { code: -110 }),
        12 => (
            OpCode::Delete,
            Txn::Delete {
                path: format!("/m{}", n - 3).into(),
            },
        ),
        13 => (OpCode::Create, create(format!("/null{n}"), plain(false))),
        14 => {
            let path = format!("/null{}", n - 1).into();
            (
                OpCode::SetData,
                Txn::SetData {
                    path,
                    data: None,
                    version: 1,
                },
            )
        }
        // Of every second session; the other lasts.
        19 if n % 40 == 19 => {
            let paths = Some(vec![format!("/e{}", n - 17).into()]);
            (OpCode::CloseSession, Txn::CloseSession { paths })
        }
        _ => (OpCode::Create, create(format!("/more{n}"), plain(false))),
    }
}

/// The tree that `records` make.
pub(crate) fn apply_all(records: &[(Zxid, Vec<u8>)]) -> Tree {
    let mut tree = Tree::new();
    for (_, bytes) in records {
        let (header, txn, _) = ringkeeper_proto::txn::decode_record(bytes).unwrap();
        let _outcome = tree.apply(&header, &txn, &mut Events::new());
    }
    tree
}

/// Writes a log of `records` as Apache does, padded with zeros to `padded` bytes; returns its path and where
/// each entry begins.
pub(crate) fn log_file(
    folder: &Path,
    records: &[(Zxid, Vec<u8>)],
    padded: usize,
) -> (PathBuf, Vec<usize>) {
    let mut bytes = b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0".to_vec();
    let mut offsets = Vec::new();
    for (_, record) in records {
        offsets.push(bytes.len());
        bytes.extend(u64::from(simd_adler32::adler32(&record.as_slice())).to_be_bytes());
        bytes.extend(u32::try_from(record.len()).unwrap().to_be_bytes());
        bytes.extend(record);
        bytes.push(b'B');
    }
    offsets.push(bytes.len());
    bytes.resize(bytes.len().max(padded), 0);
    let (first, _) = records.first().unwrap();
    let path = folder.join(format!("log.{:x}", first.0));
    fs::write(&path, bytes).unwrap();
    (path, offsets)
}
