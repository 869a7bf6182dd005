//! Power cuts at every operation of an import, with every set of unflushed sectors and names that may survive: what is
//! left is the whole import, or another one begins anew and makes the same; the source is never touched.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is how a test fails, and the number of states is printed"
)]

mod support;

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use ringkeeper_apache_files::{Compression, write_epoch, write_snapshot};
use ringkeeper_import::{
    ImportError, MARK_NAME, NOTE_NAME, Options, Silent, SourceDirs, WORK_FOLDER, import_onto,
};
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{Epoch, Zxid};
use ringkeeper_storage::offline::MANIFEST_NAMES;
use ringkeeper_storage::{BlockingDisk as _, Dirs, Disk as _, LogOptions, SimDisk};
use ringkeeper_storage::{SnapshotReader, Store};
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder};
use ringkeeper_tree::{Events, Tree};
use support::{assert_equal, contents, records, write_log};

/// All subsets of that many units are tried; beyond, a sample.
const UNITS_EXHAUSTED: usize = 8;
const SAMPLES: u64 = 64;
/// The next import is cut too in one of so many states.
const CUT_AGAIN: u64 = 239;

fn options() -> Options {
    Options {
        log: LogOptions {
            segment_bytes: 24 << 10,
            batch_bytes_max: 4 << 10,
            record_bytes_max: 6 << 10,
            free_bytes_min: 0,
            spares_kept: 1,
        },
        accept_fuzzy: false,
    }
}

/// What there is to import, and what must come of it.
struct Case {
    source: SourceDirs,
    target: Dirs,
    tree: Tree,
    /// The note of an import that nobody interrupted.
    note: Vec<u8>,
}

impl Case {
    /// A member's snapshot and two segments of log above it.
    fn new(root: &Path, target: Dirs) -> Self {
        let folder = root.join("version-2");
        fs::create_dir_all(&folder).unwrap();
        let mut tree = Tree::new();
        write_log(&folder, &records(&mut tree, 1, 20));
        write_snapshot(&tree, &folder, Compression::Plain, &mut |_| ()).unwrap();
        write_log(&folder, &records(&mut tree, 21, 50));
        write_epoch(&folder, "acceptedEpoch", 3).unwrap();
        write_epoch(&folder, "currentEpoch", 2).unwrap();
        let mut case = Self {
            source: SourceDirs {
                data: root.to_owned(),
                log: root.to_owned(),
            },
            target,
            tree,
            note: Vec::new(),
        };
        let disk = case.disk(0);
        case.import(&disk).unwrap();
        case.note = disk.content(&case.note_path()).unwrap();
        assert!(case.note.starts_with(b"ringkeeper-import 1\n"));
        case.assert_whole(&disk, "nobody interrupted it");
        case
    }

    /// A disk with the configured directories and nothing in them.
    fn disk(&self, seed: u64) -> SimDisk {
        let disk = SimDisk::new(seed);
        for dir in [&self.target.data, &self.target.log] {
            disk.wait(disk.create_dir_all(dir)).unwrap().unwrap();
        }
        disk
    }

    fn note_path(&self) -> std::path::PathBuf {
        self.target.data_folder().join(NOTE_NAME)
    }

    fn import(&self, disk: &SimDisk) -> Result<(), ImportError> {
        import_onto(disk, &self.source, &self.target, &options(), &Silent).map(|_| ())
    }

    /// As a start asks it: whether there is data of ours.
    fn is_there(&self, disk: &SimDisk) -> bool {
        let folder = self.target.data_folder();
        let mut names = MANIFEST_NAMES.iter();
        names.any(|name| disk.exists(&folder.join(name)))
    }

    /// Starts on what is left, as a server does; whether the import had come to its place.
    fn start(&self, disk: &SimDisk, context: &str) -> bool {
        let was_there = self.is_there(disk);
        if was_there {
            let again = self.import(disk);
            assert!(
                matches!(again, Err(ImportError::Exists(_))),
                "{context}: {again:?}"
            );
        } else {
            self.import(disk)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(
                !disk.exists(&self.target.data.join(WORK_FOLDER)),
                "{context}"
            );
            assert!(
                !disk.exists(&self.target.log.join(WORK_FOLDER)),
                "{context}"
            );
            let mark = self.target.log_folder().join(MARK_NAME);
            assert!(!disk.exists(&mark), "{context}");
        }
        self.assert_whole(disk, context);
        was_there
    }

    fn assert_whole(&self, disk: &SimDisk, context: &str) {
        let note = disk.content(&self.note_path());
        assert_eq!(note.as_ref(), Some(&self.note), "{context}");
        let open = Store::open(disk.clone(), &self.target, options().log);
        let opened = disk
            .wait(open)
            .unwrap()
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = &opened.recovered;
        assert!(!found.fresh, "{context}");
        let epochs = (found.accepted_epoch, found.current_epoch);
        assert_eq!(epochs, (Epoch(3), Epoch(2)), "{context}");
        assert_eq!(found.committed, Zxid::new(Epoch(2), 20), "{context}");
        let info = found.snapshot().unwrap();
        let reader = SnapshotReader::open_with(disk, opened.store.snapshot_dir(), info)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let (mut builder, mut bytes) = (SnapshotBuilder::new(), Vec::new());
        for chunk in reader.chunks() {
            reader.read_chunk(chunk, &mut bytes).unwrap();
            builder.push(Chunk::decode(&bytes).unwrap()).unwrap();
        }
        let tree = RefCell::new(builder.finish().unwrap());
        let from = tree.borrow().zxid();
        let replay = opened.log.replay(from, |_, record| {
            let (header, txn, _) = decode_record(record).unwrap();
            let _outcome = tree.borrow_mut().apply(&header, &txn, &mut Events::new());
            Ok::<_, String>(())
        });
        disk.wait(replay)
            .unwrap()
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_equal(&tree.into_inner(), &self.tree);
    }

    /// Imports until the power is cut at operation `cut`; whether it came to its end before.
    fn cut_at(&self, disk: &SimDisk, cut: u64, context: &str) -> bool {
        disk.cut_power_at(cut);
        match self.import(disk) {
            Ok(()) => true,
            Err(error) => {
                assert!(disk.is_powerless(), "{context}: {error}");
                false
            }
        }
    }
}

/// What was met.
#[derive(Debug, Default)]
struct Count {
    cuts: u64,
    states: u64,
    /// States in which the import had come to its place.
    whole: u64,
    /// States after a second cut, in the import that began anew.
    cut_again: u64,
}

/// Calls `visit` with every set of `units`, or with a sample.
fn subsets(units: usize, seed: u64, mut visit: impl FnMut(&dyn Fn(usize) -> bool)) {
    if units <= UNITS_EXHAUSTED {
        for mask in 0..1_u64 << units {
            visit(&|unit| mask >> unit & 1 == 1);
        }
        return;
    }
    visit(&|_| false);
    visit(&|_| true);
    for sample in 0..SAMPLES {
        // Some sets keep most, some little.
        let density = sample % 4 + 1;
        visit(&|unit| mix(seed, sample * 1000 + unit as u64) % 5 < density);
    }
}

fn mix(seed: u64, value: u64) -> u64 {
    let mut z = seed.wrapping_add(value.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn every_cut(case: &Case) -> Count {
    let mut count = Count::default();
    for cut in 0.. {
        let context = format!("cut {cut}");
        let disk = case.disk(1);
        if case.cut_at(&disk, cut, &context) {
            return count;
        }
        count.cuts += 1;
        subsets(disk.unflushed(), cut, |keeps| {
            let left = disk.after_power_cut(keeps);
            count.states += 1;
            let context = format!("{context}, state {}", count.states);
            if count.states % CUT_AGAIN == 0 {
                count.cut_again += cut_again(case, &left, &context);
            }
            count.whole += u64::from(case.start(&left, &context));
        });
    }
    count
}

/// Cuts the power again at every operation of the import that begins anew on what is left.
fn cut_again(case: &Case, left: &SimDisk, context: &str) -> u64 {
    let mut states = 0;
    if case.is_there(left) {
        return 0;
    }
    for cut in 0.. {
        let disk = left.after_power_cut(|_| true);
        let context = format!("{context}, then cut {cut}");
        if case.cut_at(&disk, cut, &context) {
            return states;
        }
        let units = disk.unflushed().min(2);
        for mask in 0..1_u64 << units {
            let twice = disk.after_power_cut(|unit| mask >> (unit % 2) & 1 == 1);
            states += 1;
            case.start(&twice, &context);
        }
    }
    states
}

#[test]
fn every_power_cut_leaves_none_or_all_of_an_import() {
    let split = Dirs {
        data: "/disk/data".into(),
        log: "/disk/log".into(),
    };
    for target in [Dirs::single("/disk/data"), split] {
        let root = tempfile::tempdir().unwrap();
        let is_split = target.data != target.log;
        let case = Case::new(root.path(), target);
        let theirs = contents(root.path());
        let count = every_cut(&case);
        println!("split {is_split}: {count:?}");
        assert_eq!(contents(root.path()), theirs, "the source");
        assert!(count.states > 1_000 && count.cut_again > 300, "{count:?}");
        // The last cuts are behind the rename that makes it valid.
        assert!(count.whole > 3 && count.whole < count.states, "{count:?}");
    }
}
