//! Readers of stored bytes on bytes that are not what was written: no panic, no allocation by a stranger's
//! length, and what a checksum covers is never taken for something else.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::{ProptestConfig, any, prop, prop_assert, proptest};
use proptest::strategy::Strategy;
use ringkeeper_apache_files::{Compression, Directory, read_snapshot, write_snapshot};
use ringkeeper_proto::Zxid;
use support::{apply_all, log_file, records, temp_dir};

/// Remembers the largest piece of memory that was asked for.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator cannot be anything else")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        LARGEST.fetch_max(len, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What reading in pieces takes, with room for what a small tree, threads and the test itself take. A file
/// here has a few KiB, and the lengths that a change can make go up to 2 GiB.
const LARGEST_ALLOWED: usize = 4 << 20;

/// A change of a file: what stands at a place, relative to its length, becomes something else.
#[derive(Clone, Debug)]
enum Change {
    Set { at: f64, bytes: Vec<u8> },
    Flip { at: f64, bit: u8 },
    Cut { at: f64 },
    Insert { at: f64, bytes: Vec<u8> },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let bytes = || {
        proptest::prop_oneof![
            prop::collection::vec(any::<u8>(), 1..16),
            // Lengths that cannot be.
            proptest::sample::select(vec![
                vec![0x7f, 0xff, 0xff, 0xff],
                vec![0x0f, 0xff, 0xff, 0xff],
                vec![0xff, 0xff, 0xff, 0xff],
                vec![0x80, 0, 0, 0],
                vec![0, 0, 0, 0],
            ]),
        ]
    };
    let change = proptest::prop_oneof![
        (0.0..1.0, bytes()).prop_map(|(at, bytes)| Change::Set { at, bytes }),
        (0.0..1.0, 0..8_u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        (0.0..1.0).prop_map(|at| Change::Cut { at }),
        (0.0..1.0, bytes()).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
    ];
    prop::collection::vec(change, 1..4)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a small file"
)]
fn change(mut file: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let place = |at: f64| (at * file.len() as f64) as usize;
        match change {
            Change::Set { at, bytes } => {
                let at = place(*at);
                for (old, new) in file.iter_mut().skip(at).zip(bytes) {
                    *old = *new;
                }
            }
            Change::Flip { at, bit } => {
                let at = place(*at);
                if let Some(byte) = file.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Change::Cut { at } => {
                let at = place(*at);
                file.truncate(at);
            }
            Change::Insert { at, bytes } => {
                let at = place(*at);
                file.splice(at..at, bytes.iter().copied());
            }
        }
    }
    file
}

fn snapshot_of_a_workload(folder: &Path, compression: Compression) -> Vec<u8> {
    let tree = apply_all(&records(60));
    let path = write_snapshot(&tree, folder, compression, &mut |_| ()).unwrap();
    fs::read(path).unwrap()
}

/// Runs `work` and returns the largest piece of memory that it asked for.
fn watched(work: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    work();
    LARGEST.load(Ordering::Relaxed)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A changed snapshot is refused, unless the change did not change it (or left a tree behind a seal
    /// untouched: a cut at the end of a plain one).
    #[test]
    fn a_changed_snapshot_is_never_another_tree(
        changes in changes(),
        compression in proptest::sample::select(vec![
            Compression::Plain, Compression::Gz, Compression::Snappy,
        ]),
    ) {
        let dir = temp_dir();
        let whole = snapshot_of_a_workload(dir.path(), compression);
        let path = dir.path().join("snapshot.100000001");
        let changed = change(whole, &changes);
        fs::write(&path, &changed).unwrap();
        let mut read = None;
        let largest = watched(|| read = read_snapshot(&path, &mut |_| ()).ok());
        prop_assert!(largest < LARGEST_ALLOWED, "{largest} bytes at once");
        if let Some(snapshot) = read {
            let tree = apply_all(&records(60));
            prop_assert!(snapshot.tree.digest() == tree.digest(), "another tree");
            prop_assert!(snapshot.tree.sessions().len() == tree.sessions().len());
        }
    }

    /// Of a changed log nothing is handed out that was not written.
    #[test]
    fn a_changed_log_never_shows_another_transaction(changes in changes()) {
        let dir = temp_dir();
        let written = records(60);
        let (path, _) = log_file(dir.path(), &written, 12_000);
        let changed = change(fs::read(&path).unwrap(), &changes);
        fs::write(&path, changed).unwrap();
        let files = Directory::open(dir.path(), dir.path()).unwrap();
        let mut strangers = 0;
        let largest = watched(|| {
            files.read_logs(2, &|_| ()).unwrap();
            files
                .for_each(Zxid::ZERO, Zxid(u64::MAX), &mut |_, entry| {
                    let is_known = written.iter().any(|(zxid, bytes)| {
                        *zxid == entry.zxid && bytes == entry.bytes
                    });
                    strangers += usize::from(!is_known);
                    Ok::<_, io::Error>(ControlFlow::Continue(()))
                })
                .unwrap();
        });
        prop_assert!(largest < LARGEST_ALLOWED, "{largest} bytes at once");
        prop_assert!(strangers == 0);
    }

    /// Bytes of any kind are answered, whatever they begin with.
    #[test]
    fn any_bytes_are_answered(
        start in proptest::sample::select(vec![
            &b"ZKSN\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff"[..],
            b"\x1f\x8b\x08\0\0\0\0\0\0\0",
            b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01",
            b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0",
            b"",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let dir = temp_dir();
        let bytes = [start, &rest].concat();
        for name in ["snapshot.1", "log.1", "currentEpoch", "acceptedEpoch"] {
            fs::write(dir.path().join(name), &bytes).unwrap();
        }
        let largest = watched(|| {
            let files = Directory::open(dir.path(), dir.path()).unwrap();
            let _refused = read_snapshot(&dir.path().join("snapshot.1"), &mut |_| ());
            files.read_logs(1, &|_| ()).unwrap();
        });
        prop_assert!(largest < LARGEST_ALLOWED, "{largest} bytes at once");
    }
}

/// Each bit of a plain snapshot, one at a time: its tree is refused or the same.
#[test]
fn each_flipped_bit_of_a_snapshot_is_found() {
    let dir = temp_dir();
    let whole = snapshot_of_a_workload(dir.path(), Compression::Plain);
    let path = dir.path().join("snapshot.100000001");
    for bit in (0..whole.len() * 8).step_by(7) {
        let mut changed = whole.clone();
        *changed.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        let read = read_snapshot(&path, &mut |_| ());
        assert!(read.is_err(), "bit {bit} of {}", whole.len() * 8);
    }
}
