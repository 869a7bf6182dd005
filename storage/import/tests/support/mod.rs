//! A member's directory as Apache's server leaves it, and how trees and directories are compared.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ringkeeper_apache_files::{Compression, LogWriter, write_epoch, write_snapshot};
use ringkeeper_import::Options;
use ringkeeper_proto::txn::{CreateKind, TxnDigest, encode_record};
use ringkeeper_proto::{Acl, AclList, Epoch, OpCode, SessionId, Txn, TxnHeader, Zxid};
use ringkeeper_storage::LogOptions;
use ringkeeper_tree::{Events, Node, Tree};

/// Small segments, so that the log has several.
pub(crate) fn options() -> Options {
    Options {
        log: LogOptions {
            segment_bytes: 64 << 10,
            batch_bytes_max: 8 << 10,
            record_bytes_max: 16 << 10,
            free_bytes_min: 0,
            spares_kept: 1,
        },
        accept_fuzzy: false,
    }
}

/// Transactions of epoch 2 from counter `from` on, each with the digest after it.
pub(crate) fn records(tree: &mut Tree, from: u32, count: u32) -> Vec<(Zxid, Vec<u8>)> {
    let mut records = Vec::new();
    for n in from..from + count {
        let path = format!("/z{n:05}");
        let cversion = tree.root().cversion_raw() + 1;
        let txn = Txn::Create {
            path: path.as_str().into(),
            data: Some(&[7; 300]),
            acl: AclList::new(&Acl::open()),
            kind: CreateKind::Plain {
                ephemeral: n % 10 == 0,
            },
            parent_cversion: cversion,
        };
        let session = Txn::CreateSession { timeout_ms: 9000 };
        let (op, txn) = match n {
            1 => (OpCode::CreateSession, session),
            _ => (OpCode::Create, txn),
        };
        let zxid = Zxid::new(Epoch(2), n);
        let header = TxnHeader {
            session: SessionId(77),
            cxid: 1,
            zxid,
            time_ms: 5,
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

pub(crate) fn write_log(folder: &Path, records: &[(Zxid, Vec<u8>)]) {
    let mut writer = LogWriter::new(folder);
    for (zxid, record) in records {
        writer.append(*zxid, record).unwrap();
    }
    writer.finish().unwrap();
}

/// A member's directory: a snapshot at 2:100, a log up to 2:300, both epochs. Returns the tree at the end.
pub(crate) fn member(data: &Path, log: &Path) -> Tree {
    let (data, log) = (data.join("version-2"), log.join("version-2"));
    fs::create_dir_all(&data).unwrap();
    fs::create_dir_all(&log).unwrap();
    let mut tree = Tree::new();
    write_log(&log, &records(&mut tree, 1, 100));
    write_snapshot(&tree, &data, Compression::Plain, &mut |_| ()).unwrap();
    write_log(&log, &records(&mut tree, 101, 200));
    write_epoch(&data, "acceptedEpoch", 3).unwrap();
    write_epoch(&data, "currentEpoch", 2).unwrap();
    tree
}

pub(crate) fn assert_equal(a: &Tree, b: &Tree) {
    assert_eq!((a.zxid(), a.digest()), (b.zxid(), b.digest()));
    assert_eq!(a.node_count(), b.node_count());
    let sessions = |tree: &Tree| tree.sessions().collect::<Vec<_>>();
    assert_eq!(sessions(a), sessions(b));
    assert_eq!(a.ephemerals_count(), b.ephemerals_count());
    let names = |tree: &Tree| {
        let mut names: Vec<_> = tree
            .root()
            .children()
            .map(Node::name)
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b));
}

/// Every file below `dir`, with its content.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(
                    path.strip_prefix(dir).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    all
}
