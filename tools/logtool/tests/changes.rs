//! The subcommands that write in place: `truncate` and `purge`.

mod support;

use futures_lite::future::block_on;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Dirs, StdDisk, Store};
use ringkeeper_tree::{Events, Tree};
use support::{Maker, arg, copy_dir, expect, expect_error, files, history, json, small, temp_dir};

#[test]
fn truncate_goes_back_and_history_goes_on_from_there() {
    let dir = temp_dir();
    history(dir.path());
    assert!(
        expect_error(4, &["truncate", "--after", "0x100000200", arg(dir.path())]).contains("--yes")
    );
    let text = expect(
        0,
        &[
            "truncate",
            "--yes",
            "--after",
            "0x100000200",
            arg(dir.path()),
        ],
    );
    assert!(
        text.contains(
            "494 transactions after 0x100000200 (up to 0x1000003ee) become void, and 1 snapshots"
        ),
        "{text}"
    );
    expect(0, &["verify", arg(dir.path())]);
    expect(0, &["doctor", arg(dir.path())]);
    assert_eq!(files(dir.path(), "snapshot-").len(), 1);
    assert_eq!(expect(0, &["dump", arg(dir.path())]).lines().count(), 512);
    assert_eq!(
        expect(0, &["dump", "--void", arg(dir.path())])
            .lines()
            .count(),
        1006
    );
    assert!(expect(0, &["dump", "--void", arg(dir.path())]).contains("\nvoid 0x100000201 "));
    assert!(
        expect(0, &["at", "0x100000200", "/app", arg(dir.path())]).ends_with("data = \"second\"\n")
    );
    assert!(
        expect(
            0,
            &[
                "truncate",
                "--yes",
                "--after",
                "0x100000200",
                arg(dir.path())
            ]
        )
        .contains("nothing lies after")
    );
    // What the server finds: the state at that zxid, and it can go on.
    let opened = block_on(Store::open(
        StdDisk::new(),
        &Dirs::single(dir.path()),
        small(),
    ))
    .unwrap();
    assert_eq!(opened.recovered.last_zxid, Zxid(0x1_0000_0200));
    let mut tree = Tree::new();
    block_on(opened.log.replay(Zxid::ZERO, |_, record| {
        let (header, txn, _) = ringkeeper_proto::txn::decode_record(record)?;
        let _applied = tree.apply(&header, &txn, &mut Events::new());
        Ok::<_, ringkeeper_proto::DecodeError>(())
    }))
    .unwrap();
    drop(opened);
    let mut maker = Maker::open(dir.path(), tree);
    let zxid = maker.set("/app", b"other");
    assert_eq!(zxid, Zxid(0x1_0000_0201));
    maker.close();
    expect(0, &["verify", arg(dir.path())]);
    assert!(
        expect(0, &["at", "0x100000201", "/app", arg(dir.path())]).ends_with("data = \"other\"\n")
    );
}

#[test]
fn truncate_refuses_what_leaves_no_state() {
    let dir = temp_dir();
    history(dir.path());
    expect(0, &["purge", "--yes", "--keep", "1", arg(dir.path())]);
    let error = expect_error(
        3,
        &[
            "truncate",
            "--yes",
            "--after",
            "0x100000010",
            arg(dir.path()),
        ],
    );
    assert!(error.contains("cannot be told"), "{error}");
    expect(0, &["verify", arg(dir.path())]);
}

#[test]
fn purge_keeps_what_the_kept_snapshots_need() {
    let dir = temp_dir();
    let tree = history(dir.path());
    let before = files(dir.path(), "log-").len();
    let foreseen = json(0, &["purge", "--dry-run", "--keep", "1", arg(dir.path())]);
    assert_eq!(files(dir.path(), "log-").len(), before);
    let copy = temp_dir();
    copy_dir(dir.path(), copy.path());
    let mut done = json(0, &["purge", "--yes", "--keep", "1", arg(copy.path())]);
    done["dry_run"] = true.into();
    assert_eq!(foreseen, done);
    let text = expect(0, &["purge", "--yes", "--keep", "1", arg(dir.path())]);
    assert!(text.starts_with("1 snapshots and "), "{text}");
    assert!(text.contains("that at 0x100000324"), "{text}");
    assert!(files(dir.path(), "log-").len() < before);
    assert_eq!(files(dir.path(), "snapshot-").len(), 1);
    assert_eq!(files(dir.path(), "spare-").len(), 0);
    expect(0, &["verify", arg(dir.path())]);
    assert!(
        expect(
            0,
            &["at", &tree.zxid().0.to_string(), "/app", arg(dir.path())]
        )
        .ends_with("data = \"third\"\n")
    );
    // A damaged snapshot keeps nothing, so nothing goes for its sake.
    let dir = temp_dir();
    history(dir.path());
    support::flip(&files(dir.path(), "snapshot-")[1], 5000 * 8);
    let error = expect_error(3, &["purge", "--yes", "--keep", "1", arg(dir.path())]);
    assert!(error.contains("nothing is purged"), "{error}");
    assert_eq!(files(dir.path(), "snapshot-").len(), 2);
}
