//! Directories that Apache's server itself has written, and its server on directories that we have.
//!
//! The tree that it answers with must be the one that we read, imported and exported. Debian's release unless
//! `RINGKEEPER_APACHE_CLASSPATH` names the jars of another.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ringkeeper_apache_files::{Directory, Replay, read_snapshot};
use ringkeeper_harness::{Launch, Server, Session};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, Id, OpCode, Perms, Reader, Request, SessionId, Stat, Zxid};
use ringkeeper_tree::Tree;
use support::{arg, expect, json, temp_dir};

const PATIENCE: Duration = Duration::from_secs(60);
const TIMEOUT_MS: i32 = 40_000;
/// Where Debian's package keeps Apache's jar.
const APACHE_JAR: &str = "/usr/share/java/zookeeper.jar";

/// What a client sees of a znode: its data, stat, and ACL.
type Seen = (Option<Vec<u8>>, Stat, Vec<Acl>);

fn launch() -> Launch {
    let classpath = std::env::var("RINGKEEPER_APACHE_CLASSPATH").ok();
    let mut launch = Launch::apache(classpath.as_deref(), "256m").unwrap();
    launch.set("extendedTypesEnabled", "true");
    // So that there are several logs and snapshots, and snapshots are taken while transactions are applied.
    launch.set("snapCount", "60");
    launch.set("preAllocSize", "64");
    launch
}

fn acl(perms: i32, scheme: &str, id: &str) -> Acl {
    Acl {
        perms: Perms(perms),
        id: Id::new(scheme, id),
    }
}

fn create<'a>(op: OpCode, path: &'a str, data: Option<&'a [u8]>, flags: i32) -> Request<'a> {
    Request::Create {
        op,
        create: CreateRequest {
            path,
            data,
            acl: Some(AclList::new(&Acl::open())),
            flags,
            ttl_ms: (op == OpCode::CreateTtl).then_some(3_600_000),
        },
    }
}

fn ok(session: &mut Session, request: &Request<'_>) {
    let reply = session.call(request).unwrap();
    reply
        .ok()
        .unwrap_or_else(|error| panic!("{request:?}: {error}"));
}

/// Everything that leaves a trace of its own. Returns the sessions that stay.
fn workload(server: &Server) -> Vec<Session> {
    let open = || Session::open(server.address(), TIMEOUT_MS).unwrap();
    let (mut one, mut other, mut gone) = (open(), open(), open());
    for (op, path, flags) in [
        (OpCode::Create, "/plain", 0),
        (OpCode::Create, "/plain/sequential-", 2),
        (OpCode::Create2, "/plain/sequential-", 2),
        (OpCode::Create2, "/ephemeral", 1),
        (OpCode::Create, "/plain/ephemeral-", 3),
        (OpCode::CreateContainer, "/container", 4),
        (OpCode::Create, "/container/member", 0),
        (OpCode::CreateTtl, "/ttl", 5),
        (OpCode::CreateTtl, "/plain/ttl-", 6),
        (OpCode::Create, "/q", 0),
        (OpCode::Create, "/zookeeper/quota/q", 0),
        (OpCode::Create, "/many", 0),
        (OpCode::Create, "/d\u{e9}j\u{e0} \u{4e16}", 0),
    ] {
        ok(&mut one, &create(op, path, Some(path.as_bytes()), flags));
    }
    let limits = b"count=100,bytes=1000";
    ok(
        &mut one,
        &create(
            OpCode::Create,
            "/zookeeper/quota/q/zookeeper_limits",
            Some(limits),
            0,
        ),
    );
    let stats = b"count=0,bytes=0";
    ok(
        &mut one,
        &create(
            OpCode::Create,
            "/zookeeper/quota/q/zookeeper_stats",
            Some(stats),
            0,
        ),
    );
    ok(
        &mut one,
        &create(OpCode::Create, "/q/counted", Some(b"12345"), 0),
    );
    ok(&mut other, &create(OpCode::Create, "/null", None, 0));
    ok(&mut other, &create(OpCode::Create, "/empty", Some(b""), 0));
    ok(&mut other, &create(OpCode::Create, "/other", Some(b"o"), 1));
    ok(
        &mut gone,
        &create(OpCode::Create, "/of-a-closed-session", Some(b"x"), 1),
    );
    for (at, acls) in [
        vec![acl(1, "world", "anyone"), acl(31, "ip", "127.0.0.1")],
        vec![
            acl(1, "world", "anyone"),
            acl(31, "digest", "user:aGFzaA=="),
        ],
        vec![acl(31, "ip", "10.0.0.0/8"), acl(1, "world", "anyone")],
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/acl-{at}");
        ok(&mut one, &create(OpCode::Create, &path, Some(b"a"), 0));
        let acl = Some(AclList::new(&acls));
        let version = 0;
        ok(
            &mut one,
            &Request::SetAcl {
                path: &path,
                acl,
                version,
            },
        );
    }
    // Long enough for data that is kept apart.
    let long = vec![b'l'; 9_000];
    ok(&mut one, &create(OpCode::Create, "/long", Some(&long), 0));
    burst(&mut one, "/many");
    gone.close().unwrap();
    ok(
        &mut one,
        &Request::SetData {
            path: "/plain",
            data: None,
            version: -1,
        },
    );
    vec![one, other]
}

/// Many requests in flight below `top`, which must be there, over several snapshots.
fn burst(session: &mut Session, top: &str) {
    let paths: Vec<String> = (0..240).map(|n| format!("{top}/{n:03}")).collect();
    for (at, path) in paths.iter().enumerate() {
        session.send(&create(OpCode::Create, path, Some(path.as_bytes()), 0));
        if at % 3 == 2 {
            session.send(&Request::SetData {
                path,
                data: Some(b"changed"),
                version: -1,
            });
        }
        if at % 7 == 6 {
            session.send(&Request::Delete { path, version: -1 });
        }
        if at % 11 == 10 {
            let acl = Some(AclList::new(&[
                acl(31, "world", "anyone"),
                acl(1, "ip", "127.0.0.1"),
            ]));
            session.send(&Request::SetAcl {
                path: top,
                acl,
                version: -1,
            });
        }
        if at % 13 == 12 {
            // It fails, and takes a zxid all the same.
            session.send(&create(OpCode::Create, "/plain", None, 0));
        }
        if at % 17 == 16 {
            let (kept, dropped) = (
                format!("{top}/multi-{at}"),
                format!("{top}/multi-{at}/dropped"),
            );
            session.send(&Request::Multi(vec![
                create(OpCode::Create, &kept, Some(b"m"), 0),
                create(OpCode::Create2, &dropped, Some(b"m"), 0),
                Request::Delete {
                    path: &dropped,
                    version: 0,
                },
                Request::SetData {
                    path: &kept,
                    data: Some(b"mm"),
                    version: 0,
                },
                Request::Check {
                    path: &kept,
                    version: 1,
                },
            ]));
            session.send(&Request::Multi(vec![
                create(OpCode::Create, "/never", Some(b"m"), 0),
                Request::Check {
                    path: "/plain",
                    version: 77,
                },
            ]));
        }
        if at % 40 == 39 {
            // Apache passes over a snapshot while it takes one.
            receive(session);
        }
    }
    receive(session);
}

/// Sends what is queued, and receives all replies.
fn receive(session: &mut Session) {
    let last = session.send(&Request::Exists {
        path: "/",
        watch: false,
    });
    session.flush().unwrap();
    while session.receive().unwrap().header.xid != last {}
}

/// Everything that a server shows, path by path. ACLs of the digest scheme come without their hashes.
fn answers(address: std::net::SocketAddr) -> (BTreeMap<String, Seen>, SessionId) {
    let mut session = Session::open(address, TIMEOUT_MS).unwrap();
    let mut all = BTreeMap::new();
    let mut stack = vec!["/".to_owned()];
    while let Some(path) = stack.pop() {
        let reply = session
            .call(&Request::GetData {
                path: &path,
                watch: false,
            })
            .unwrap();
        let mut reader: Reader<'_> = reply.ok().unwrap();
        let data = reader.buffer().unwrap().map(<[u8]>::to_vec);
        let stat = Stat::decode(&mut reader).unwrap();
        let reply = session.call(&Request::GetAcl { path: &path }).unwrap();
        let acl = AclList::decode(&mut reply.ok().unwrap()).unwrap().unwrap();
        let op = OpCode::GetChildren;
        let reply = session.call(&Request::GetChildren {
            op,
            path: &path,
            watch: false,
        });
        let reply = reply.unwrap();
        let children = reply.ok().unwrap().strings().unwrap().into_iter();
        let parent = path.trim_end_matches('/').to_owned();
        stack.extend(children.map(|child| format!("{parent}/{child}")));
        all.insert(path, (data, stat, masked(&acl)));
    }
    let id = session.key().id;
    (all, id)
}

fn masked(acl: &AclList<'_>) -> Vec<Acl> {
    let mut acls = acl.to_acls();
    for acl in acls.iter_mut().filter(|acl| acl.id.scheme == "digest") {
        let user = acl.id.id.split(':').next().unwrap_or_default();
        acl.id.id = format!("{user}:x");
    }
    acls
}

/// The same of a tree.
fn listed(tree: &Tree) -> BTreeMap<String, Seen> {
    let mut all = BTreeMap::new();
    let mut stack = vec![(String::new(), tree.root())];
    while let Some((path, node)) = stack.pop() {
        for child in node.children() {
            stack.push((format!("{path}/{}", child.name()), child));
        }
        let shown = if path.is_empty() {
            "/".to_owned()
        } else {
            path
        };
        let data = node.data().map(<[u8]>::to_vec);
        all.insert(shown, (data, node.stat(), masked(tree.acl_of(node).list())));
    }
    all
}

fn assert_same(found: &BTreeMap<String, Seen>, wanted: &BTreeMap<String, Seen>) {
    let paths = |all: &BTreeMap<String, Seen>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(found), paths(wanted));
    for (path, seen) in found {
        assert_eq!(Some(seen), wanted.get(path), "{path}");
    }
}

/// The tree that Apache's files in `dir` make, and how many digests were compared on the way.
fn read(dir: &Path) -> (Tree, u64) {
    let files = Directory::open(dir, dir).unwrap();
    let mut replay = files.base(None, &mut |_| ()).replay.unwrap();
    apply(&files, &mut replay);
    assert!(replay.is_settled());
    assert_eq!(replay.mismatches, 0, "since {:?}", replay.first_mismatch);
    (replay.tree, replay.compared)
}

fn apply(files: &Directory, replay: &mut Replay) {
    files
        .for_each(replay.tree.zxid(), Zxid(u64::MAX), &mut |_, entry| {
            replay.apply(entry.zxid, entry.bytes).unwrap();
            Ok::<_, io::Error>(ControlFlow::Continue(()))
        })
        .unwrap();
}

/// Each file with its content.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Apache writes with each compression in turn, one directory; what it answers at the end is what we read from every
/// snapshot on, import, and export.
#[test]
fn apaches_directories_go_there_and_back() {
    let dir = temp_dir();
    let (mut sessions, mut ids) = (Vec::new(), Vec::new());
    let mut checked = None;
    for method in ["", "gz", "snappy"] {
        let mut launch = launch();
        launch.set("snapshot.compression.method", method);
        let mut server = Server::new(launch, dir.path()).unwrap();
        server.start(PATIENCE).unwrap();
        if sessions.is_empty() {
            sessions = workload(&server);
        } else {
            let mut session = Session::open(server.address(), TIMEOUT_MS).unwrap();
            let top = format!("/many-{method}");
            ok(&mut session, &create(OpCode::Create, &top, None, 0));
            burst(&mut session, &top);
            sessions.push(session);
        }
        checked = Some(answers(server.address()));
        server.kill().unwrap();
        let id = checked.as_ref().map(|(_, id)| *id);
        ids.extend(id.map(|id| id.0));
    }
    let (wanted, _) = checked.unwrap();
    let data = dir.path().join("data");
    let folder = data.join("version-2");

    // What Apache has written is what it has answered, from whichever snapshot the replay begins.
    let (tree, compared) = read(&data);
    assert!(compared > 0);
    assert_same(&listed(&tree), &wanted);
    let mut found: Vec<i64> = tree.sessions().map(|(id, _)| id.0).collect();
    ids.extend(sessions.iter().map(|session| session.key().id.0));
    ids.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, ids);
    for session in &sessions {
        let timeout = tree.session_timeout(session.key().id);
        assert_eq!(timeout, Some(session.timeout_ms()));
    }
    let files = Directory::open(&data, &data).unwrap();
    let mut kinds = [0; 3];
    for (_, path) in &files.snapshots {
        let snapshot = read_snapshot(path, &mut |_| ()).unwrap();
        kinds[snapshot.compression as usize] += 1;
        let mut replay = Replay::from_snapshot(snapshot);
        apply(&files, &mut replay);
        assert_same(&listed(&replay.tree), &wanted);
        assert_eq!((replay.mismatches, replay.is_settled()), (0, true));
    }
    assert!(kinds.iter().all(|count| *count > 1), "{kinds:?}");
    let report = json(0, &["verify", arg(&data)]);
    assert_eq!(report["replay"]["mismatches"], 0, "{report:#}");
    assert_eq!(json(0, &["doctor", arg(&data)])["verdict"], "healthy");

    // The import is the same tree, and leaves Apache's files as they are.
    let before = contents(&folder);
    let own = dir.path().join("own");
    let summary = json(0, &["import", arg(&data), arg(&own)]);
    assert_eq!(summary["digest_check"], "equal", "{summary:#}");
    assert_eq!(summary["digest"], format!("{:#x}", tree.digest()));
    assert_eq!(summary["znodes"], tree.node_count());
    assert_eq!(summary["sessions"], tree.sessions().len());
    assert_eq!(contents(&folder), before);
    assert!(expect(0, &["diff", arg(&data), arg(&own)]).contains(": equal"));
    expect(0, &["verify", arg(&own)]);
    assert_eq!(json(0, &["doctor", arg(&own)])["verdict"], "healthy");

    // Apache starts on the export and shows the same; the digests that it logs then are those that we compute.
    let back = temp_dir();
    let mut server = Server::new(launch(), back.path()).unwrap();
    let data = back.path().join("data");
    let export = ["export", "--format", "apache", "--compression", "snappy"];
    json(0, &[&export[..], &[arg(&own), arg(&data)]].concat());
    server.start(PATIENCE).unwrap();
    let (shown, checker) = answers(server.address());
    assert_same(&shown, &wanted);
    let mut session = Session::open(server.address(), TIMEOUT_MS).unwrap();
    ok(
        &mut session,
        &create(OpCode::Create, "/plain/sequential-", Some(b"more"), 2),
    );
    ok(
        &mut session,
        &Request::Delete {
            path: "/long",
            version: -1,
        },
    );
    let (wanted, _) = answers(server.address());
    server.kill().unwrap();
    let (tree, compared) = read(&data);
    assert!(compared > 3);
    assert_same(&listed(&tree), &wanted);
    assert!(tree.session_timeout(checker).is_some());
    for session in &sessions {
        assert!(
            tree.session_timeout(session.key().id).is_some(),
            "it came along"
        );
    }
}

/// Beside Apache's own `PurgeTxnLog`, with logs in another directory: the same files stay, and Apache's server shows the
/// same from what is left. While it runs nothing is touched.
#[test]
fn a_purge_keeps_what_apaches_own_keeps() {
    let dir = temp_dir();
    let data_log = dir.path().join("logs");
    fs::create_dir_all(&data_log).unwrap();
    let mut launch = launch();
    launch.set("dataLogDir", arg(&data_log));
    let mut server = Server::new(launch, dir.path()).unwrap();
    server.start(PATIENCE).unwrap();
    let _sessions = workload(&server);
    let (wanted, _) = answers(server.address());
    let data = dir.path().join("data");
    let purge = ["purge", "--yes", arg(&data), "--log-dir", arg(&data_log)];
    let error = support::expect_error(4, &purge);
    assert!(error.contains("stop the server first"), "{error}");
    server.kill().unwrap();

    let names = |data: &Path, log: &Path| {
        let of = |dir: &Path| contents(&dir.join("version-2")).into_keys().collect();
        let (data, log): (Vec<String>, Vec<String>) = (of(data), of(log));
        (data, log)
    };
    let copy = temp_dir();
    let (their_data, their_log) = (copy.path().join("data"), copy.path().join("logs"));
    support::copy_dir(&data, &their_data);
    support::copy_dir(&data_log, &their_log);
    let before = names(&data, &data_log);
    let classpath = std::env::var("RINGKEEPER_APACHE_CLASSPATH");
    let output = std::process::Command::new("java")
        .args(["-cp", classpath.as_deref().unwrap_or(APACHE_JAR)])
        .arg("org.apache.zookeeper.server.PurgeTxnLog")
        .args([&their_log, &their_data])
        .args(["-n", "3"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    expect(0, &purge);
    assert_eq!(names(&data, &data_log), names(&their_data, &their_log));
    let left = names(&data, &data_log);
    assert!(left.0.len() < before.0.len() && left.1.len() < before.1.len());

    expect(0, &["verify", arg(&data), "--log-dir", arg(&data_log)]);
    server.start(PATIENCE).unwrap();
    let (shown, _) = answers(server.address());
    server.kill().unwrap();
    assert_same(&shown, &wanted);
}
