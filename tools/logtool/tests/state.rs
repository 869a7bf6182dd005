//! What the subcommands show of a directory whose history is known: golden lines, and JSON by value.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use ringkeeper_proto::txn::CreateKind;
use ringkeeper_proto::{Acl, AclList, OpCode, Txn};
use ringkeeper_tree::Tree;
use serde_json::Value;
use support::{Maker, SESSION, arg, expect, expect_error, files, history, json, temp_dir};

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn dump_shows_every_kind_of_transaction() {
    let dir = temp_dir();
    let mut maker = Maker::open(dir.path(), Tree::new());
    maker.txn(
        OpCode::CreateSession,
        &Txn::CreateSession { timeout_ms: 30_000 },
    );
    maker.create("/a", b"text \"quoted\"");
    maker.set("/a", &[0, 159, 146]);
    let acl = AclList::new(&Acl::open());
    let ephemeral = Txn::Create {
        path: "/a/e".into(),
        data: None,
        acl: acl.clone(),
        kind: CreateKind::Plain { ephemeral: true },
        parent_cversion: 1,
    };
    maker.txn(OpCode::Create2, &ephemeral);
    let ttl = Txn::Create {
        path: "/t".into(),
        data: Some(b""),
        acl: acl.clone(),
        kind: CreateKind::Ttl(5000),
        parent_cversion: 2,
    };
    maker.txn(OpCode::CreateTtl, &ttl);
    maker.txn(
        OpCode::SetAcl,
        &Txn::SetAcl {
            path: "/a".into(),
            acl,
            version: 1,
        },
    );
    let delete = Txn::Delete { path: "/t".into() };
    let check = Txn::Check {
        path: "/a".into(),
        version: 1,
    };
    maker.txn(
        OpCode::Multi,
        &Txn::Multi(vec![(OpCode::Check, check), (OpCode::Delete, delete)]),
    );
    maker.txn(OpCode::Error, &Txn::Error { code: -101 });
    maker.txn(
        OpCode::CloseSession,
        &Txn::CloseSession {
            paths: Some(vec!["/a/e".into()]),
        },
    );
    maker.close();
    let text = expect(0, &["dump", arg(dir.path())]);
    let without_digests: Vec<&str> = text
        .lines()
        .map(|line| line.split(" digest ").next().unwrap())
        .collect();
    let expected = [
        "0x100000001 2025-10-09T08:53:21.000Z session 0x100000000000001 cxid 1 createSession timeout 30000 ms",
        "0x100000002 2025-10-09T08:53:22.000Z session 0x100000000000001 cxid 2 create /a acl world:anyone:cdrwa parent_cversion 1 data 13 \"text \\\"quoted\\\"\"",
        "0x100000003 2025-10-09T08:53:23.000Z session 0x100000000000001 cxid 3 setData /a version 1 data 3 base64 AJ+S",
        "0x100000004 2025-10-09T08:53:24.000Z session 0x100000000000001 cxid 4 create2 /a/e ephemeral acl world:anyone:cdrwa parent_cversion 1 data 0 null",
        "0x100000005 2025-10-09T08:53:25.000Z session 0x100000000000001 cxid 5 createTTL /t ttl 5000 ms acl world:anyone:cdrwa parent_cversion 2 data 0 \"\"",
        "0x100000006 2025-10-09T08:53:26.000Z session 0x100000000000001 cxid 6 setACL /a version 1 acl world:anyone:cdrwa",
        "0x100000007 2025-10-09T08:53:27.000Z session 0x100000000000001 cxid 7 multi 2 [check /a version 1; delete /t]",
        "0x100000008 2025-10-09T08:53:28.000Z session 0x100000000000001 cxid 8 error -101 NoNode",
        "0x100000009 2025-10-09T08:53:29.000Z session 0x100000000000001 cxid 9 closeSession ephemerals 1 /a/e",
    ];
    assert_eq!(without_digests, expected);
    let first = &lines(&expect(0, &["dump", "--json", "--data", arg(dir.path())]))[1];
    assert_eq!(first["type"], "create");
    assert_eq!(first["data_base64"], "dGV4dCAicXVvdGVkIg==");
    assert_eq!(first["acl"][0]["perms"], "cdrwa");
    for (args, count) in [
        (vec!["--after", "0x100000007"], 2),
        (vec!["--through", "1:2"], 2),
        (vec!["--path", "/a"], 6),
        (vec!["--path", "/a/e"], 2),
        (vec!["--path", "/"], 7),
        (vec!["--type", "delete"], 1),
        (vec!["--session", "0x100000000000001"], 9),
        (vec!["--session", "0x7"], 0),
        (vec!["--since", "2025-10-09T08:53:28Z"], 2),
        (vec!["--until", "2025-10-09T08:53:28Z"], 7),
        (vec!["--type", "setData", "--path", "/t"], 0),
    ] {
        let mut all = vec!["dump"];
        all.extend(&args);
        all.push(arg(dir.path()));
        assert_eq!(expect(0, &all).lines().count(), count, "{args:?}");
    }
}

#[test]
fn dump_decodes_what_is_whole_around_damage() {
    let dir = temp_dir();
    history(dir.path());
    let all = expect(0, &["dump", arg(dir.path())]).lines().count();
    // The third record of the second batch: its payload, then its length.
    let log = &files(dir.path(), "log-")[0];
    let dump = lines(&expect(0, &["dump", "--json", arg(dir.path())]));
    let third = dump
        .iter()
        .filter(|line| line["record"] == 2)
        .nth(1)
        .unwrap();
    let offset = third["offset"].as_u64().unwrap();
    for bit in [(offset + 30) * 8, offset * 8 + 7] {
        support::flip(log, bit);
        let output = support::run(&["dump", arg(dir.path())]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), all - 1);
        assert!(!text.contains(&format!("{} ", third["zxid"].as_str().unwrap())));
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("record 2: its checksum does not hold")
        );
        support::flip(log, bit);
    }
}

#[test]
fn at_shows_a_znode_as_of_a_zxid() {
    let dir = temp_dir();
    let tree = history(dir.path());
    for (zxid, expected) in [
        ("0x100000002", None),
        ("0x100000003", Some("first")),
        ("0x100000193", Some("first")),
        ("0x100000194", Some("second")),
        ("0x1000003ee", Some("third")),
    ] {
        let args = ["at", zxid, "/app", arg(dir.path())];
        match expected {
            Some(data) => {
                let text = expect(0, &args);
                assert!(
                    text.ends_with(&format!("data = {data:?}\n")),
                    "{zxid}: {text}"
                );
            }
            None => assert!(expect(1, &args).contains("/app does not exist at 0x100000002")),
        }
    }
    let value = json(0, &["at", "0x1000003ee", "/app", arg(dir.path())]);
    assert_eq!(
        (&value["version"], &value["czxid"], &value["exists"]),
        (&2.into(), &"0x100000003".into(), &true.into())
    );
    assert_eq!(value["zxid"], tree.zxid().to_string());
    expect(1, &["at", "0x1000003ee", "/n/000003", arg(dir.path())]);
    expect(0, &["at", "0x100000200", "/n/000003", arg(dir.path())]);
    expect_error(2, &["at", "0x100000200", "n", arg(dir.path())]);
}

#[test]
fn tree_sums_up() {
    let dir = temp_dir();
    history(dir.path());
    let rows = lines(&expect(
        0,
        &["tree", "--json", "--depth", "1", arg(dir.path())],
    ));
    let paths: Vec<_> = rows
        .iter()
        .map(|row| row["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/", "/app", "/n", "/zookeeper"]);
    let n = &rows[2];
    assert_eq!((&n["znodes"], &n["children"]), (&1000.into(), &999.into()));
    let all: u64 = rows[1..]
        .iter()
        .map(|row| row["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(rows[0]["bytes"], all);
    let text = expect(0, &["tree", "--path", "/app", arg(dir.path())]);
    assert_eq!(
        text.lines().collect::<Vec<_>>()[1..],
        [
            "         bytes       znodes   children  path",
            "             5            1          0  /app"
        ]
    );
    expect_error(3, &["tree", "--path", "/none", arg(dir.path())]);
}

#[test]
fn snapshots_are_shown() {
    let dir = temp_dir();
    history(dir.path());
    let snapshot = &files(dir.path(), "snapshot-")[0];
    let text = expect(0, &["show-snapshot", "--sessions", arg(snapshot)]);
    assert!(
        text.contains("zxid = 0x100000193\nznodes = 407\n"),
        "{text}"
    );
    assert!(
        text.contains("session 0x100000000000001 timeout 30000 ms ephemerals 0"),
        "{text}"
    );
    let text = expect(
        0,
        &["show-snapshot", "--data", "--path", "/app", arg(snapshot)],
    );
    assert!(
        text.contains("----\n/app\n  cZxid = 0x100000003\n"),
        "{text}"
    );
    assert!(text.ends_with("  data = \"first\"\n"), "{text}");
    let rows = expect(0, &["show-snapshot", "--nodes", "--json", arg(dir.path())]);
    assert!(lines(&rows).iter().any(|row| row["path"] == "/n/000500"));
    assert_eq!(SESSION.0, 0x0100_0000_0000_0001);
}

#[test]
fn diff_says_which_znodes_and_since_when() {
    let dir = temp_dir();
    history(dir.path());
    let snapshots = files(dir.path(), "snapshot-");
    assert!(expect(0, &["diff", arg(dir.path()), arg(dir.path())]).contains("equal"));
    assert!(
        expect(
            0,
            &[
                "diff",
                arg(dir.path()),
                arg(&snapshots[0]),
                "--old-at",
                "0x100000193"
            ]
        )
        .contains("equal")
    );
    let text = expect(1, &["diff", arg(&snapshots[1]), arg(dir.path())]);
    assert!(
        text.contains("data,stat /app since 0x100000325\n"),
        "{text}"
    );
    assert!(
        text.contains("removed /n/000003 since 0x1000003ee or earlier\n"),
        "{text}"
    );
    assert!(
        text.contains("added /n/000806 since 0x100000327\n"),
        "{text}"
    );
    assert!(
        text.ends_with("200 added, 1 removed, 2 changed, the first since 0x100000325\n"),
        "{text}"
    );
    let rows = lines(&expect(
        1,
        &[
            "diff",
            "--json",
            "--path",
            "/app",
            arg(&snapshots[0]),
            arg(&snapshots[1]),
        ],
    ));
    assert_eq!(rows[0]["differs"], serde_json::json!(["data", "stat"]));
    assert_eq!(rows[0]["since"], "0x100000194");
    assert_eq!(rows[1]["changed"], 1);
}

#[test]
fn diff_by_subtree() {
    let dir = temp_dir();
    history(dir.path());
    let snapshots = files(dir.path(), "snapshot-");
    let (old, new) = (arg(&snapshots[0]), arg(&snapshots[1]));
    let text = expect(1, &["diff", "--by-subtree", "1", old, new]);
    let paths: Vec<_> = text
        .lines()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(paths, ["/", "/app", "/n"]);
    assert!(text.contains("znodes 401 to 801"), "{text}");
    let large = ["--bytes-min", "1000", "--znodes-min", "100"];
    let text = expect(
        1,
        &[&["diff", "--by-subtree", "1"][..], &large, &[old, new]].concat(),
    );
    assert_eq!(text.lines().count(), 2);
    expect(0, &["diff", "--by-subtree", "9", old, old]);
}

#[test]
fn stats_count() {
    let dir = temp_dir();
    history(dir.path());
    let stats = json(0, &["stats", "--bucket", "100", arg(dir.path())]);
    assert_eq!(stats["transactions"], 1006);
    assert_eq!(stats["first_zxid"], "0x100000001");
    let of = |rows: &Value, name: &str| {
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .cloned();
        row.unwrap_or_default()["transactions"].clone()
    };
    assert_eq!(of(&stats["types"], "create"), 1002);
    assert_eq!(of(&stats["types"], "setData"), 2);
    assert_eq!(of(&stats["prefixes"], "/n"), 1002);
    assert_eq!(of(&stats["prefixes"], "/app"), 3);
    assert_eq!(of(&stats["sessions"], "0x100000000000001"), 1006);
    let rate = stats["rate"]["rows"].as_array().unwrap();
    assert!(
        rate.len() >= 10 && rate[5]["transactions"] == 100,
        "{rate:?}"
    );
    let classes = stats["record_bytes"]["classes"].as_array().unwrap();
    let total: u64 = classes
        .iter()
        .map(|class| class["records"].as_u64().unwrap())
        .sum();
    assert_eq!(total, 1006);
    let text = expect(0, &["stats", "--type", "setData", arg(dir.path())]);
    assert!(text.starts_with("2 transactions, "), "{text}");
}
