//! Reading beside a writer: no false alarm, whatever moment is met.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringkeeper_tree::Tree;
use support::{Maker, arg, expect, run, temp_dir};

#[test]
fn a_log_that_is_being_written_and_purged_has_no_damage() {
    let dir = temp_dir();
    let path = dir.path().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // Made before anybody reads, or the first reader finds an empty directory.
    let (made, wait_made) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        let mut maker = Maker::open(&path, Tree::new());
        maker.create("/n", b"");
        maker.fill(20);
        made.send(()).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            maker.fill(200);
            maker.snapshot();
            futures_lite::future::block_on(maker.opened.store.purge(2)).unwrap();
        }
        maker.close()
    });
    wait_made.recv().unwrap();
    for _ in 0..5 {
        expect(0, &["verify", arg(dir.path())]);
        expect(0, &["doctor", arg(dir.path())]);
        // What it was about to show may be purged: then it says so.
        let dump = run(&["dump", arg(dir.path())]);
        let error = String::from_utf8_lossy(&dump.stderr);
        let is_purged = error.contains("No such file") || error.contains("has changed while");
        assert!(dump.status.success() || is_purged, "{error}");
    }
    stop.store(true, Ordering::Relaxed);
    let tree = writer.join().unwrap();
    let text = expect(0, &["verify", arg(dir.path())]);
    assert!(text.contains(&format!("to {})", tree.zxid())), "{text}");
}
