//! What an import makes, what it refuses, every state that an interruption leaves, and what a start notices of
//! Apache's going on.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use futures_lite::future::block_on;
use ringkeeper_apache_files::{Compression, LOG_PREFIX, write_epoch, write_snapshot};
use ringkeeper_import::{
    DigestCheck, ImportError, NOTE_NAME, Options, Progress, Silent, SourceDirs, Stage, Summary,
    WORK_FOLDER, check_source, has_apache_data, import,
};
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::{Dirs, SnapshotReader, StdDisk, Store};
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder};
use ringkeeper_tree::{Events, Tree};
use support::{assert_equal, contents, member, options, records, write_log};

fn dirs(data: &Path, log: &Path) -> (SourceDirs, Dirs) {
    let source = SourceDirs {
        data: data.to_owned(),
        log: log.to_owned(),
    };
    let target = Dirs {
        data: data.to_owned(),
        log: log.to_owned(),
    };
    (source, target)
}

fn run(data: &Path, log: &Path) -> Result<Summary, ImportError> {
    let (source, target) = dirs(data, log);
    import(&source, &target, &options(), &Silent)
}

/// What a server would load, with the epochs.
fn load(target: &Dirs) -> (Tree, Epoch, Epoch, Zxid) {
    let opened = block_on(Store::open(StdDisk::new(), target, options().log)).unwrap();
    let found = &opened.recovered;
    assert!(!found.fresh);
    let mut builder = SnapshotBuilder::new();
    let reader = SnapshotReader::open(opened.store.snapshot_dir(), found.snapshot().unwrap());
    let reader = reader.unwrap();
    let mut bytes = Vec::new();
    for chunk in reader.chunks() {
        reader.read_chunk(chunk, &mut bytes).unwrap();
        builder.push(Chunk::decode(&bytes).unwrap()).unwrap();
    }
    let tree = RefCell::new(builder.finish().unwrap());
    let from = tree.borrow().zxid();
    block_on(opened.log.replay(from, |_, record| {
        let (header, txn, digest) = decode_record(record).unwrap();
        let mut tree = tree.borrow_mut();
        let _outcome = tree.apply(&header, &txn, &mut Events::new());
        assert_eq!(digest.unwrap().tree_digest, tree.digest_to_wire());
        Ok::<_, String>(())
    }))
    .unwrap();
    let found = &opened.recovered;
    (
        tree.into_inner(),
        found.accepted_epoch,
        found.current_epoch,
        found.committed,
    )
}

fn copy(from: &Path, to: &Path) {
    for (path, content) in contents(from) {
        let place = to.join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, content).unwrap();
    }
}

#[test]
fn a_member_comes_along_whole_with_its_uncommitted_suffix_as_log() {
    let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = member(data.path(), log.path());
    let theirs = contents(&data.path().join("version-2"));
    let summary = run(data.path(), log.path()).unwrap();
    assert_eq!(summary.digest_check, DigestCheck::Equal);
    assert_eq!(summary.snapshot, Zxid::new(Epoch(2), 100));
    assert_eq!((summary.last, summary.logged), (tree.zxid(), 200));
    assert_eq!((summary.znodes, summary.sessions), (tree.node_count(), 1));
    assert!(summary.notes.is_empty(), "{:?}", summary.notes);
    assert!(!data.path().join(WORK_FOLDER).exists());
    assert!(!log.path().join(WORK_FOLDER).exists());
    assert_eq!(contents(&data.path().join("version-2")), theirs);
    let (_, target) = dirs(data.path(), log.path());
    let (loaded, accepted, current, committed) = load(&target);
    assert_equal(&loaded, &tree);
    assert_eq!((accepted, current), (Epoch(3), Epoch(2)));
    // Whether the rest is committed is for Zab to say.
    assert_eq!(committed, summary.snapshot);
    assert!(matches!(
        run(data.path(), log.path()),
        Err(ImportError::Exists(_))
    ));
}

/// Stops at one of the questions, and keeps what is on disk at every one of them.
struct Interrupt<'i> {
    dir: &'i Path,
    states: Mutex<Vec<tempfile::TempDir>>,
}

impl Progress for Interrupt<'_> {
    fn begin(&self, _stage: Stage, _total: u64) {}
    fn advance(&self, _amount: u64) {}
    fn is_cancelled(&self) -> bool {
        let state = tempfile::tempdir().unwrap();
        copy(self.dir, state.path());
        self.states.lock().unwrap().push(state);
        false
    }
}

/// What is on disk before each step is what a crash leaves: the source whole, and either no data of ours, so that
/// another import makes it, or all of it.
#[test]
#[expect(
    clippy::print_stdout,
    reason = "how many states there were is part of the result"
)]
fn every_interrupted_import_is_none_or_whole() {
    for is_split in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let log_name = if is_split { "log" } else { "data" };
        let places = |root: &Path| (root.join("data"), root.join(log_name));
        let (data, log) = places(dir.path());
        let tree = member(&data, &log);
        let theirs = contents(&data.join("version-2"));
        let interrupt = Interrupt {
            dir: dir.path(),
            states: Mutex::new(Vec::new()),
        };
        let (source, target) = dirs(&data, &log);
        import(&source, &target, &options(), &interrupt).unwrap();
        let states = interrupt.states.into_inner().unwrap();
        // Before the work, the snapshot's chunks, batches, and each rename.
        assert!(states.len() > 8, "{}", states.len());
        let mut half_done = 0;
        for state in &states {
            let (data, log) = places(state.path());
            assert_eq!(contents(&data.join("version-2")), theirs);
            half_done += usize::from(data.join(WORK_FOLDER).exists());
            let (source, target) = dirs(&data, &log);
            assert!(has_apache_data(&source).unwrap());
            run(&data, &log).unwrap();
            assert!(!data.join(WORK_FOLDER).exists() && !log.join(WORK_FOLDER).exists());
            assert_equal(&load(&target).0, &tree);
        }
        assert!(half_done > 4, "{half_done}");
        println!("split {is_split}: {} states", states.len());
        if is_split {
            // The last one has the log in its place already, and no data.
            let (data, log) = places(states.last().unwrap().path());
            assert!(data.join("ringkeeper").exists() && log.join("ringkeeper").exists());
        }
    }
}

/// A log that came to its place without the data is told from one that somebody else has put there.
#[test]
fn a_log_of_others_is_never_removed() {
    let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    member(data.path(), log.path());
    fs::create_dir(log.path().join("ringkeeper")).unwrap();
    let letter = log.path().join("ringkeeper/log-0000000000000001");
    fs::write(&letter, "something").unwrap();
    assert!(matches!(
        run(data.path(), log.path()),
        Err(ImportError::Exists(_))
    ));
    assert!(letter.exists());
    assert!(!data.path().join("ringkeeper").exists());
}

fn refused(change: impl Fn(&Path)) -> ImportError {
    let dir = tempfile::tempdir().unwrap();
    member(dir.path(), dir.path());
    change(&dir.path().join("version-2"));
    let error = run(dir.path(), dir.path()).unwrap_err();
    assert!(!dir.path().join("ringkeeper").exists());
    error
}

#[test]
fn what_is_damaged_or_missing_is_refused() {
    let last_log = |folder: &Path| folder.join(format!("{LOG_PREFIX}200000065"));
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let error = refused(|folder| flip(&last_log(folder), 5_000));
    assert!(matches!(error, ImportError::Damaged(_)), "{error}");
    assert!(error.to_string().contains("doctor") && error.is_damage());
    let error = refused(|folder| fs::remove_file(folder.join("snapshot.200000064")).unwrap());
    assert!(matches!(error, ImportError::NoBase), "{error}");
    let error = refused(|folder| flip(&folder.join("snapshot.200000064"), 5_000));
    assert!(matches!(error, ImportError::Snapshots(_)), "{error}");
    // Transactions between the snapshot and the log.
    let error = refused(|folder| {
        fs::remove_file(folder.join("log.200000001")).unwrap();
        fs::remove_file(last_log(folder)).unwrap();
        let mut tree = Tree::new();
        records(&mut tree, 1, 120);
        write_log(folder, &records(&mut tree, 121, 30));
    });
    assert!(matches!(error, ImportError::Missing { .. }), "{error}");
    let error = refused(|folder| write_epoch(folder, "currentEpoch", 1).unwrap());
    assert!(matches!(error, ImportError::Epochs(_)), "{error}");
    let error = refused(|folder| fs::write(folder.join("acceptedEpoch"), "x").unwrap());
    assert!(matches!(error, ImportError::Epochs(_)), "{error}");
    let error = refused(|folder| {
        fs::remove_dir_all(folder).unwrap();
        fs::create_dir(folder).unwrap();
    });
    assert!(matches!(error, ImportError::Nothing(_)), "{error}");
}

/// Damage that the snapshot covers is no loss, an unfinished write was never acknowledged, and a damaged snapshot has
/// an older one and the log instead.
#[test]
fn what_loses_nothing_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let tree = member(dir.path(), dir.path());
    let folder = dir.path().join("version-2");
    let old = folder.join("log.200000001");
    let mut bytes = fs::read(&old).unwrap();
    bytes[2_000] ^= 1;
    fs::write(&old, bytes).unwrap();
    let last = folder.join("log.200000065");
    let mut bytes = fs::read(&last).unwrap();
    bytes.extend([0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 99, 7]);
    fs::write(&last, bytes).unwrap();
    fs::write(folder.join("snapshot.20000012c"), "ZKSN").unwrap();
    let summary = run(dir.path(), dir.path()).unwrap();
    assert_eq!(summary.notes.len(), 2, "{:?}", summary.notes);
    let (_, target) = dirs(dir.path(), dir.path());
    assert_equal(&load(&target).0, &tree);
}

/// A snapshot that shows what no log holds is a mix of moments: only who asks for it gets it.
#[test]
fn a_fuzzy_snapshot_without_its_log_is_only_taken_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("version-2");
    fs::create_dir(&folder).unwrap();
    let mut tree = Tree::new();
    records(&mut tree, 1, 50);
    let path = write_snapshot(&tree, &folder, Compression::Gz, &mut |_| ()).unwrap();
    // Named after an earlier transaction than it shows.
    fs::rename(path, folder.join("snapshot.20000001e.gz")).unwrap();
    let error = run(dir.path(), dir.path()).unwrap_err();
    assert!(matches!(error, ImportError::Fuzzy { .. }), "{error}");
    let (source, target) = dirs(dir.path(), dir.path());
    let options = Options {
        accept_fuzzy: true,
        ..options()
    };
    let summary = import(&source, &target, &options, &Silent).unwrap();
    assert_eq!(summary.notes.len(), 1, "{:?}", summary.notes);
    assert_eq!(load(&target).0.node_count(), tree.node_count());
}

#[test]
fn apaches_going_on_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = member(dir.path(), dir.path());
    let folder = dir.path().join("version-2");
    run(dir.path(), dir.path()).unwrap();
    let (source, _) = dirs(dir.path(), dir.path());
    let grown = || check_source(&source, dir.path(), Some(tree.zxid())).unwrap();
    assert_eq!(grown(), None);
    // It was started and has padded its log, or begun an empty one, and nothing more.
    let last = folder.join("log.200000065");
    let before = fs::read(&last).unwrap();
    fs::write(&last, [&before[..], &[0; 4096]].concat()).unwrap();
    fs::write(folder.join("log.20000012d"), "").unwrap();
    assert_eq!(grown(), None);
    fs::remove_file(folder.join("log.20000012d")).unwrap();
    let more = records(&mut tree.clone(), 301, 1);
    write_log(&folder, &more);
    let text = grown().unwrap().to_string();
    assert!(
        text.contains("0x20000012d") && text.contains("away"),
        "{text}"
    );
    fs::remove_file(folder.join("log.20000012d")).unwrap();
    assert_eq!(grown(), None);
    // In the same file.
    let (zxid, record) = &more[0];
    let one = tempfile::tempdir().unwrap();
    write_log(one.path(), &more);
    let entry = fs::read(one.path().join(format!("log.{:x}", zxid.0))).unwrap();
    assert!(entry.len() > record.len());
    fs::write(&last, [&before[..], &entry[16..]].concat()).unwrap();
    assert!(grown().is_some());
    fs::write(&last, &before).unwrap();
    assert_eq!(grown(), None);
    // A snapshot that it was given by another member, and a promise to follow an epoch.
    fs::write(folder.join("snapshot.300000001"), "").unwrap();
    assert!(grown().is_some());
    fs::remove_file(folder.join("snapshot.300000001")).unwrap();
    write_epoch(&folder, "acceptedEpoch", 4).unwrap();
    assert!(grown().is_some());
    write_epoch(&folder, "acceptedEpoch", 3).unwrap();
    assert_eq!(grown(), None);
    // Without a note only what ours does not have counts.
    let note = dir.path().join("ringkeeper").join(NOTE_NAME);
    let text = fs::read_to_string(&note).unwrap();
    fs::write(&note, text.replace('3', "4")).unwrap();
    assert!(check_source(&source, dir.path(), None).is_err());
    fs::remove_file(&note).unwrap();
    assert_eq!(grown(), None);
    let older = Zxid(tree.zxid().0 - 1);
    assert!(
        check_source(&source, dir.path(), Some(older))
            .unwrap()
            .is_some()
    );
    // Apache's data has gone: nothing is left to compare with.
    tree.set_zxid(Zxid::ZERO);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(
        check_source(&source, dir.path(), Some(Zxid::ZERO)).unwrap(),
        None
    );
}
