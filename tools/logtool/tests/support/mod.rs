//! Data directories to look into, made by the storage code itself, and the binary that looks.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use futures_lite::future::block_on;
use ringkeeper_proto::txn::{CreateKind, TxnDigest, encode_record, record_len};
use ringkeeper_proto::{Acl, AclList, Epoch, OpCode, SessionId, Txn, TxnHeader, Zxid};
use ringkeeper_storage::{Dirs, LogOptions, OpenError, Opened, SnapshotWriter, StdDisk, Store};
use ringkeeper_tree::snapshot::SnapshotEncoder;
use ringkeeper_tree::{Events, Tree};
use serde_json::Value;

/// The session that all transactions are of.
pub(crate) const SESSION: SessionId = SessionId(0x0100_0000_0000_0001);
/// The moment of the first transaction.
const START_MS: i64 = 1_760_000_000_000;

/// Small segments, so that there are several.
pub(crate) fn small() -> LogOptions {
    LogOptions {
        segment_bytes: 256 << 10,
        batch_bytes_max: 32 << 10,
        record_bytes_max: 64 << 10,
        free_bytes_min: 0,
        spares_kept: 2,
    }
}

/// Opens the store in `dir`, which nobody else has for long.
fn open_store(dir: &Path, options: &LogOptions) -> Opened<StdDisk> {
    loop {
        let dirs = Dirs::single(dir);
        let open = Store::open(StdDisk::new(), &dirs, options.clone());
        match block_on(open) {
            // A child of another test's holds a copy of every lock from its fork to its exec.
            Err(OpenError::Locked(_)) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// A store being filled, with the tree that its log makes.
pub(crate) struct Maker {
    pub(crate) dir: PathBuf,
    pub(crate) opened: Opened<StdDisk>,
    pub(crate) tree: Tree,
    pub(crate) zxid: Zxid,
    /// A batch is written after so many records.
    pub(crate) batch: usize,
    waiting: Vec<(Zxid, Vec<u8>)>,
}

impl Maker {
    /// A new store in `dir`, or the one that is there; `tree` is what its log has made so far.
    pub(crate) fn open(dir: &Path, tree: Tree) -> Self {
        Self::open_with(dir, tree, small())
    }

    pub(crate) fn open_with(dir: &Path, tree: Tree, options: LogOptions) -> Self {
        let opened = open_store(dir, &options);
        let zxid = if tree.zxid() == Zxid::ZERO {
            Zxid::new(Epoch(1), 0)
        } else {
            tree.zxid()
        };
        let epoch = zxid.epoch();
        block_on(opened.store.save_epochs(epoch, epoch)).unwrap();
        Self {
            dir: dir.to_owned(),
            opened,
            tree,
            zxid,
            batch: 5,
            waiting: Vec::new(),
        }
    }

    /// Applies a transaction and logs it.
    pub(crate) fn txn(&mut self, op: OpCode, txn: &Txn<'_>) -> Zxid {
        self.zxid = self.zxid.next().unwrap();
        let header = TxnHeader {
            session: SESSION,
            cxid: i32::try_from(self.zxid.counter()).unwrap(),
            zxid: self.zxid,
            time_ms: START_MS + i64::from(self.zxid.counter()) * 1000,
            op,
        };
        let _applied = self.tree.apply(&header, txn, &mut Events::new());
        let digest = TxnDigest {
            version: TxnDigest::VERSION,
            tree_digest: self.tree.digest_to_wire(),
        };
        let mut bytes = Vec::with_capacity(record_len(txn, true));
        encode_record(&header, txn, Some(&digest), &mut bytes);
        self.waiting.push((self.zxid, bytes));
        if self.waiting.len() >= self.batch {
            self.flush();
        }
        self.zxid
    }

    /// Writes what waits as a batch.
    pub(crate) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut batch = self.opened.log.new_batch();
        for (zxid, bytes) in self.waiting.drain(..) {
            batch
                .append(zxid, bytes.len(), |slot| slot.copy_from_slice(&bytes))
                .unwrap();
        }
        let committed = self.opened.log.durable_through();
        block_on(self.opened.log.write(batch, committed)).unwrap();
    }

    pub(crate) fn create(&mut self, path: &str, data: &[u8]) -> Zxid {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let parent = if parent.is_empty() { "/" } else { parent };
        let parent_cversion = self.tree.get(parent).map_or(0, |node| node.cversion_raw()) + 1;
        let txn = Txn::Create {
            path: path.into(),
            data: Some(data),
            acl: AclList::new(&Acl::open()),
            kind: CreateKind::Plain { ephemeral: false },
            parent_cversion,
        };
        self.txn(OpCode::Create, &txn)
    }

    pub(crate) fn set(&mut self, path: &str, data: &[u8]) -> Zxid {
        let version = self.tree.get(path).map_or(0, |node| node.version()) + 1;
        let txn = Txn::SetData {
            path: path.into(),
            data: Some(data),
            version,
        };
        self.txn(OpCode::SetData, &txn)
    }

    pub(crate) fn delete(&mut self, path: &str) -> Zxid {
        self.txn(OpCode::Delete, &Txn::Delete { path: path.into() })
    }

    /// Creates `count` znodes below /n, which must be there, with data of different lengths.
    pub(crate) fn fill(&mut self, count: usize) {
        for _ in 0..count {
            let n = self.zxid.counter();
            let data =
                vec![b'a' + u8::try_from(n % 26).unwrap(); usize::try_from(n % 700).unwrap()];
            self.create(&format!("/n/{n:06}"), &data);
        }
    }

    /// Takes a snapshot of the tree as it is.
    pub(crate) fn snapshot(&mut self) -> PathBuf {
        self.flush();
        let dir = self.opened.store.snapshot_dir().to_owned();
        let mut writer = SnapshotWriter::create(&dir, self.tree.zxid(), None).unwrap();
        let mut encoder = SnapshotEncoder::new(&self.tree);
        let mut chunk = Vec::new();
        while encoder.next_chunk(&mut chunk) {
            writer.push_chunk(1, &chunk).unwrap();
        }
        let counts = [
            self.tree.node_count(),
            self.tree.sessions().len() as u64,
            0,
            0,
        ];
        let info = writer.finish(self.tree.digest(), counts).unwrap();
        block_on(self.opened.store.register_snapshot(info)).unwrap();
        dir.join(format!("snapshot-{:016x}", info.zxid.0))
    }

    /// Ends in order; the log then names its end in the manifest.
    pub(crate) fn close(mut self) -> Tree {
        self.flush();
        assert!(block_on(self.opened.store.close()).unwrap());
        self.tree
    }

    /// Ends as a crash does, without a word about where the log ends.
    pub(crate) fn crash(mut self) -> Tree {
        self.flush();
        self.tree
    }
}

/// Writes an Apache log of `records` as `log.ZXID`, padded with zeros to `padded` bytes; returns its path and where
/// each entry begins.
pub(crate) fn apache_log(
    folder: &Path,
    records: &[(Zxid, Vec<u8>)],
    padded: usize,
) -> (PathBuf, Vec<u64>) {
    let mut bytes = b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0".to_vec();
    let mut offsets = Vec::new();
    for (_, record) in records {
        offsets.push(bytes.len() as u64);
        bytes.extend(u64::from(simd_adler32::adler32(&record.as_slice())).to_be_bytes());
        bytes.extend(u32::try_from(record.len()).unwrap().to_be_bytes());
        bytes.extend(record);
        bytes.push(b'B');
    }
    offsets.push(bytes.len() as u64);
    bytes.resize(bytes.len().max(padded), 0);
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(format!("log.{:x}", records[0].0.0));
    std::fs::write(&path, bytes).unwrap();
    (path, offsets)
}

/// The records of an own log, in order.
pub(crate) fn records(dir: &Path) -> Vec<(Zxid, Vec<u8>)> {
    let opened = open_store(dir, &small());
    let mut records = Vec::new();
    block_on(opened.log.replay(Zxid::ZERO, |zxid, bytes| {
        records.push((zxid, bytes.to_vec()));
        Ok::<_, String>(())
    }))
    .unwrap();
    records
}

/// A directory with history: three segments, two snapshots, a session, and /n full of znodes; closed in order.
pub(crate) fn history(dir: &Path) -> Tree {
    let mut maker = Maker::open(dir, Tree::new());
    maker.txn(
        OpCode::CreateSession,
        &Txn::CreateSession { timeout_ms: 30_000 },
    );
    maker.create("/n", b"");
    maker.create("/app", b"first");
    maker.fill(400);
    maker.snapshot();
    maker.set("/app", b"second");
    maker.fill(400);
    maker.snapshot();
    maker.set("/app", b"third");
    maker.delete("/n/000003");
    maker.fill(200);
    maker.close()
}

/// A temporary directory.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs the tool.
pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringkeeper-log"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs the tool, which must end with `status`; returns what it printed.
pub(crate) fn expect(status: i32, args: &[&str]) -> String {
    let output = run(args);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(status), "{args:?}\n{out}\n{err}");
    out.into_owned()
}

/// As [`expect`], with what it printed to standard error.
pub(crate) fn expect_error(status: i32, args: &[&str]) -> String {
    let output = run(args);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(status), "{args:?}\n{out}\n{err}");
    err.into_owned()
}

/// Runs the tool with --json, which must end with `status` and print one document.
pub(crate) fn json(status: i32, args: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(args);
    serde_json::from_str(&expect(status, &all)).unwrap()
}

/// The path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The files of ours in `dir` whose name begins with `prefix`, in order.
pub(crate) fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.join("ringkeeper"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(prefix)
        })
        .collect();
    files.sort();
    files
}

/// Flips a bit of a file.
pub(crate) fn flip(path: &Path, bit: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

/// Copies a data directory.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
