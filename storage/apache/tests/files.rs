//! What is written comes back, fuzzy snapshots become whole with the log after them, and what the logs of a
//! directory say together.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use ringkeeper_apache_files::{
    Compression, Directory, LogReport, LogWriter, Replay, Severity, SnapshotDigest, read_snapshot,
    write_snapshot,
};
use ringkeeper_proto::{TxnDigest, Zxid};
use ringkeeper_tree::{Node, Tree};
use support::{apply_all, log_file, records, temp_dir};

/// Everything of a tree, path by path.
fn listed(tree: &Tree) -> Vec<String> {
    let mut lines: Vec<String> = tree
        .sessions()
        .map(|(id, timeout_ms)| {
            let mut paths: Vec<_> = tree.ephemerals(id).collect();
            paths.sort_unstable();
            format!("{id:?} {timeout_ms} {paths:?}")
        })
        .collect();
    let mut stack: Vec<(String, Node<'_>)> = vec![(String::new(), tree.root())];
    while let Some((path, node)) = stack.pop() {
        lines.push(format!(
            "{path} {:?} {:?} {:?} {:?}",
            node.stat(),
            node.data(),
            node.ephemeral_owner_raw(),
            tree.acl_of(node)
        ));
        for child in node.children() {
            stack.push((format!("{path}/{}", child.name()), child));
        }
    }
    lines.sort();
    lines
}

fn report(dir: &Path) -> LogReport {
    let files = Directory::open(dir, dir).unwrap();
    files.read_logs(2, &|_| ()).unwrap()
}

fn replay(dir: &Path, replay: &mut Replay) {
    let files = Directory::open(dir, dir).unwrap();
    files
        .for_each(replay.tree.zxid(), Zxid(u64::MAX), &mut |_, entry| {
            replay.apply(entry.zxid, entry.bytes).unwrap();
            Ok::<_, io::Error>(ControlFlow::Continue(()))
        })
        .unwrap();
}

#[test]
fn a_snapshot_comes_back_whatever_compresses_it() {
    let dir = temp_dir();
    let tree = apply_all(&records(200));
    for compression in [Compression::Plain, Compression::Gz, Compression::Snappy] {
        let mut znodes = 0;
        let path = write_snapshot(&tree, dir.path(), compression, &mut |n| znodes += n).unwrap();
        let mut bytes = 0;
        let snapshot = read_snapshot(&path, &mut |n| bytes += n).unwrap();
        assert_eq!(listed(&snapshot.tree), listed(&tree));
        assert_eq!(snapshot.compression, compression);
        assert_eq!(snapshot.fuzzy_through, tree.zxid());
        assert_eq!(snapshot.digest_matches(), Some(true));
        let digest = SnapshotDigest {
            zxid: tree.zxid(),
            version: TxnDigest::VERSION,
            digest: tree.digest_to_wire(),
        };
        assert_eq!(snapshot.digest, Some(digest));
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        assert_eq!(znodes + 1, tree.node_count());
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "nothing unfinished is left");
}

#[test]
fn logs_come_back_over_several_files() {
    let dir = temp_dir();
    let written = records(200);
    let mut writer = LogWriter::new(dir.path()).files_of(4_000);
    for (zxid, record) in &written {
        writer.append(*zxid, record).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), 200);
    let report = report(dir.path());
    assert!(report.files.len() > 3);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.records(), 200);
    assert!(report.begins_at_the_beginning());
    let mut all = Replay::from_nothing();
    replay(dir.path(), &mut all);
    assert_eq!((all.applied, all.compared, all.mismatches), (200, 200, 0));
    assert_eq!(listed(&all.tree), listed(&apply_all(&written)));
}

/// Older releases name no digest, those with `digest.enabled=false` a zxid alone.
#[test]
fn trailers_of_all_releases_are_understood() {
    let dir = temp_dir();
    let tree = apply_all(&records(40));
    let path = write_snapshot(&tree, dir.path(), Compression::Plain, &mut |_| ()).unwrap();
    let bytes = fs::read(&path).unwrap();
    // znodes | seal 13 | digest 20, seal 13 | zxid 8, seal 13
    let seal_end = bytes.len() - 20 - 13 - 8 - 13;
    let seal = |bytes: &mut Vec<u8>| {
        let sum = u64::from(simd_adler32::adler32(&bytes.as_slice()));
        bytes.extend(sum.to_be_bytes());
        bytes.extend(b"\0\0\0\x01/");
    };
    let check = |bytes: &[u8], digest: Option<i64>| {
        fs::write(&path, bytes).unwrap();
        let snapshot = read_snapshot(&path, &mut |_| ()).unwrap();
        assert_eq!(snapshot.digest.map(|digest| digest.digest), digest);
        assert_eq!(listed(&snapshot.tree), listed(&tree));
    };
    // 3.4 and 3.5; 3.6 to 3.8.
    check(&bytes[..seal_end], None);
    check(&bytes[..bytes.len() - 21], Some(tree.digest_to_wire()));
    // 3.9 without digests.
    let mut without = bytes[..seal_end].to_vec();
    without.extend(tree.zxid().0.to_be_bytes());
    seal(&mut without);
    check(&without, None);
    // The first form of the digest: a hex string.
    let mut older = bytes[..seal_end].to_vec();
    older.extend(tree.zxid().0.to_be_bytes());
    older.extend(b"\0\0\0\x01\0\0\0\x02ff");
    seal(&mut older);
    check(&older, Some(0xff));
    // One of an empty tree.
    let mut empty = bytes[..seal_end].to_vec();
    empty.extend([0; 8]);
    empty.extend(b"\0\0\0\x02\0\0\0\0\0\0\0\0");
    seal(&mut empty);
    check(&empty, None);
    let mut more = bytes;
    more.push(0);
    fs::write(&path, more).unwrap();
    assert!(read_snapshot(&path, &mut |_| ()).is_err());
}

/// A snapshot written while transactions were applied shows, of each subtree, another moment: every such mix
/// becomes the right tree when the log from its name on is applied again.
#[test]
fn a_fuzzy_snapshot_is_whole_after_the_log() {
    let dir = temp_dir();
    let written = records(200);
    let last = apply_all(&written);
    for (from, to) in [(20, 60), (40, 41), (99, 140), (120, 199), (60, 80)] {
        let (early, late) = (apply_all(&written[..from]), apply_all(&written[..to]));
        let name = early.zxid();
        let bytes = mixed(&early, &late, &late);
        let path = dir.path().join(format!("snapshot.{:x}", name.0));
        fs::write(&path, bytes).unwrap();
        log_file(dir.path(), &written, 60_000);
        let snapshot = read_snapshot(&path, &mut |_| ()).unwrap();
        assert_eq!(snapshot.tree.zxid(), name);
        assert_eq!(snapshot.fuzzy_through, late.zxid());
        let mut whole = Replay::from_snapshot(snapshot);
        assert!(!whole.is_settled());
        replay(dir.path(), &mut whole);
        assert!(whole.is_settled());
        let differing = listed(&whole.tree).into_iter().zip(listed(&last));
        let first = differing
            .into_iter()
            .find(|(found, wanted)| found != wanted);
        assert_eq!(first, None, "{from} {to}");
        assert_eq!(whole.tree.node_count(), last.node_count(), "{from} {to}");
        assert_eq!(whole.mismatches, 0, "{from} {to}");
        assert_eq!(whole.snapshot_matches, Some(true), "{from} {to}");
        assert_eq!(whole.without_acl(), None);
    }
}

/// The transaction that is being applied when a snapshot ends can show in it already, although the digest is of the one
/// before; a delete leaves no zxid that would tell.
#[test]
fn what_was_being_applied_when_a_snapshot_ended_is_no_mismatch() {
    let dir = temp_dir();
    let written = records(100);
    // It deletes a child of the root, of which the snapshot has an earlier stat, that was made before.
    let (deletes, deleted) = (72, "/m69");
    let early = apply_all(&written[..deletes - 1]);
    let told = apply_all(&written[..deletes]);
    let shown = apply_all(&written[..=deletes]);
    assert!(told.get(deleted).is_some() && shown.get(deleted).is_none());
    let path = dir.path().join(format!("snapshot.{:x}", early.zxid().0));
    fs::write(&path, mixed(&early, &shown, &told)).unwrap();
    let read = |records: &[(Zxid, Vec<u8>)]| {
        let snapshot = read_snapshot(&path, &mut |_| ()).unwrap();
        assert!(snapshot.tree.get(deleted).is_none());
        let mut whole = Replay::from_snapshot(snapshot);
        assert_eq!(whole.fuzzy_through, told.zxid());
        for (zxid, bytes) in records {
            whole.apply(*zxid, bytes).unwrap();
        }
        (whole.mismatches, whole.last_matches, whole.snapshot_matches)
    };
    // The log ends there: nothing says that it is whole.
    assert_eq!(read(&written[..deletes]), (0, Some(false), Some(false)));
    assert_eq!(read(&written), (0, Some(true), Some(true)));
    // Where what follows does not make it whole, it was a mismatch.
    let mut spoilt = written[..=deletes].to_vec();
    let digest_from = spoilt[deletes].1.len() - 1;
    spoilt[deletes].1[digest_from] ^= 1;
    assert_eq!(read(&spoilt), (2, Some(false), Some(false)));
}

/// The bytes of a snapshot with sessions and ACLs of `early`, and its root's stat; each child of the root is
/// that of `late` or of `early` by turns, if it is there; with the digest of `told`.
fn mixed(early: &Tree, late: &Tree, told: &Tree) -> Vec<u8> {
    use bytes::BufMut as _;
    use ringkeeper_proto::WriteJute as _;
    fn put(path: &str, node: Node<'_>, out: &mut Vec<u8>) {
        let stat = node.stat();
        out.put_ustring(path);
        out.put_buffer(node.data());
        out.put_i64(node.acl_id().into());
        for long in [stat.czxid, stat.mzxid, stat.ctime, stat.mtime] {
            out.put_i64(long);
        }
        for int in [stat.version, node.cversion_raw(), stat.aversion] {
            out.put_i32(int);
        }
        out.put_i64(node.ephemeral_owner_raw());
        out.put_i64(stat.pzxid);
        if !path.is_empty() {
            for child in node.children() {
                put(&format!("{path}/{}", child.name()), child, out);
            }
        }
    }
    let mut out = b"ZKSN\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff".to_vec();
    out.put_i32(i32::try_from(early.sessions().len()).unwrap());
    for (id, timeout_ms) in early.sessions() {
        out.put_i64(id.0);
        out.put_i32(timeout_ms);
    }
    // Those made later are not in the list.
    out.put_i32(i32::try_from(early.acls().len()).unwrap());
    for (id, acl) in early.acls() {
        out.put_i64(id.into());
        acl.list().encode(&mut out);
    }
    put("", early.root(), &mut out);
    let mut names: Vec<&str> = early.root().child_names().collect();
    names.extend(late.root().child_names());
    names.sort_unstable();
    names.dedup();
    for (at, name) in names.into_iter().enumerate() {
        let tree = if at % 2 == 0 { late } else { early };
        let path = format!("/{name}");
        if let Some(node) = tree.get(&path) {
            put(&path, node, &mut out);
        }
    }
    out.put_ustring("/");
    let seal = |out: &mut Vec<u8>| {
        let sum = u64::from(simd_adler32::adler32(&out.as_slice()));
        out.put_u64(sum);
        out.put_ustring("/");
    };
    seal(&mut out);
    out.put_u64(told.zxid().0);
    out.put_i32(TxnDigest::VERSION);
    out.put_i64(told.digest_to_wire());
    seal(&mut out);
    out
}

#[test]
fn what_is_missing_between_files_is_told_from_what_a_snapshot_covers() {
    let dir = temp_dir();
    let written = records(100);
    log_file(dir.path(), &written[..30], 0);
    log_file(dir.path(), &written[50..], 0);
    let found = report(dir.path());
    let (after, before) = (written[29].0, written[50].0);
    assert_eq!(found.breaks, [(after, Some(before))]);
    assert_eq!(found.damage().unwrap().kind, "zxid-gap");
    let all = Zxid(u64::MAX);
    assert_eq!(
        found.first_break(Zxid::ZERO, all),
        Some((after, Some(before)))
    );
    assert_eq!(found.first_break(Zxid::ZERO, after), None);
    assert_eq!(found.first_break(written[49].0, all), None);
    let tree = apply_all(&written[..50]);
    write_snapshot(&tree, dir.path(), Compression::Plain, &mut |_| ()).unwrap();
    let found = report(dir.path());
    assert!(found.damage().is_none(), "{:?}", found.problems);
    // Still nothing may be applied across it.
    assert_eq!(
        found.first_break(Zxid::ZERO, all),
        Some((after, Some(before)))
    );
    assert_eq!(found.first_break(tree.zxid(), all), None);
}

#[test]
fn a_log_that_begins_behind_the_snapshot_is_missing_transactions() {
    let dir = temp_dir();
    let written = records(100);
    log_file(dir.path(), &written[50..], 0);
    let found = report(dir.path());
    assert!(found.damage().is_none());
    assert!(!found.begins_at_the_beginning());
    let all = Zxid(u64::MAX);
    assert_eq!(found.first_break(written[49].0, all), None);
    let gap = (written[48].0, Some(written[50].0));
    assert_eq!(found.first_break(written[48].0, all), Some(gap));
}

#[test]
fn an_empty_newest_log_and_a_repeated_zxid_are_no_damage() {
    let dir = temp_dir();
    let written = records(20);
    let mut repeated = written.clone();
    repeated.push(written[19].clone());
    log_file(dir.path(), &repeated, 0);
    for header in [0, 7, 16] {
        fs::write(dir.path().join("log.100000015"), vec![0; header]).unwrap();
        let found = report(dir.path());
        assert!(found.damage().is_none(), "{:?}", found.problems);
        assert!(found.is_torn);
        let kinds: Vec<_> = found.problems.iter().map(|problem| problem.kind).collect();
        assert_eq!(kinds, ["repeated", "torn"]);
        assert!(found.problems.iter().all(|p| p.severity == Severity::Note));
    }
}
