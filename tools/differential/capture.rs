//! Records what the oracle is asked and what it answers, as golden bytes for the codec's own tests.
//!
//! The file has a line per frame: what it is (`request`, `reply`, `event`), the number of the operation, the
//! frame with its length in hex, and a name. A reply follows its request; events stand where they came.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bytes::BytesMut;
use ringkeeper_proto::acl::{Acl, AclList};
use ringkeeper_proto::connect::{ConnectRequest, PASSWORD_LEN};
use ringkeeper_proto::reply::ReplyHeader;
use ringkeeper_proto::request::{CreateRequest, SetWatchesRequest};
use ringkeeper_proto::{Id, OpCode, Perms, Reader, Request, SessionId, Xid, Zxid};

use crate::client::{Arrival, Connection};
use crate::identity::digest_id;
use crate::servers::{Product, Server, Settings};

const FILE: &str = "exchanges.txt";
const HEAD: &str = "# Frames exchanged with Apache ZooKeeper, recorded by `ringkeeper-differential --capture`.\n\
                    # kind, operation, frame in hex, name\n";

/// Records the exchanges of [`conversation`] in a file of `directory`; how many they are.
pub(crate) fn capture(oracle: &Product, directory: &Path) -> Result<usize> {
    let server = Server::start(oracle, Settings::Full)?;
    let mut recorder = Recorder {
        connection: Connection::open(server.address())?,
        text: HEAD.to_owned(),
        count: 0,
        xid: 0,
    };
    recorder.connect()?;
    conversation(&mut recorder)?;
    fs::create_dir_all(directory)?;
    let path = directory.join(FILE);
    fs::write(&path, &recorder.text).with_context(|| format!("write {}", path.display()))?;
    Ok(recorder.count)
}

struct Recorder {
    connection: Connection,
    text: String,
    count: usize,
    xid: i32,
}

impl Recorder {
    fn connect(&mut self) -> Result<()> {
        let mut frame = BytesMut::new();
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: Zxid::ZERO,
            timeout_ms: 20_000,
            session: SessionId::NONE,
            password: &[0; PASSWORD_LEN],
            read_only: Some(false),
        }
        .encode_frame(&mut frame);
        self.write("request", OpCode::CreateSession, &frame, "connect");
        self.connection.send(&frame);
        match self.connection.next() {
            Arrival::Frame(body) => {
                self.write_body("reply", OpCode::CreateSession, &body, "connect")
            }
            other => bail!("connect got {other:?}"),
        }
        Ok(())
    }

    fn ask(&mut self, name: &str, request: &Request<'_>) -> Result<()> {
        let op = request.op();
        let xid = match op {
            OpCode::Ping => Xid::PING,
            OpCode::Auth => Xid::AUTH,
            OpCode::SetWatches | OpCode::SetWatches2 => Xid::SET_WATCHES,
            _ => {
                self.xid += 1;
                Xid(self.xid)
            }
        };
        let mut frame = BytesMut::new();
        request.encode_frame(xid, &mut frame);
        self.write("request", op, &frame, name);
        self.connection.send(&frame);
        loop {
            let body = match self.connection.next() {
                Arrival::Frame(body) => body,
                other => bail!("{name} got {other:?}"),
            };
            let header = ReplyHeader::decode(&mut Reader::new(&body))?;
            if header.xid != Xid::NOTIFICATION {
                self.write_body("reply", op, &body, name);
                self.count += 1;
                return Ok(());
            }
            self.write_body("event", OpCode::Notification, &body, name);
        }
    }

    fn write_body(&mut self, kind: &str, op: OpCode, body: &[u8], name: &str) {
        let len = u32::try_from(body.len()).expect("the connection refuses frames of 4 GiB");
        let mut frame = len.to_be_bytes().to_vec();
        frame.extend(body);
        self.write(kind, op, &frame, name);
    }

    fn write(&mut self, kind: &str, op: OpCode, frame: &[u8], name: &str) {
        let _infallible = write!(self.text, "{kind} {} ", op.code());
        for byte in frame {
            let _infallible = write!(self.text, "{byte:02x}");
        }
        let _infallible = writeln!(self.text, " {name}");
    }
}

/// Every operation, in success and in failure, and every kind of event.
fn conversation(recorder: &mut Recorder) -> Result<()> {
    let watch = true;
    recorder.ask("ping", &Request::Ping)?;
    recorder.ask(
        "auth digest",
        &Request::Auth {
            kind: 0,
            scheme: "digest",
            auth: b"alice:a",
        },
    )?;
    recorder.ask("whoAmI", &Request::WhoAmI)?;
    creates(recorder)?;
    reads(recorder)?;
    let add = |path, mode| Request::AddWatch { path, mode };
    recorder.ask("addWatch persistent", &add("/p", 0))?;
    recorder.ask("addWatch recursive", &add("/p/\u{e9}", 1))?;
    writes(recorder)?;
    multis(recorder)?;
    let check = Request::CheckWatches {
        path: "/p",
        kind: 3,
    };
    recorder.ask("checkWatches", &check)?;
    let remove = Request::RemoveWatches {
        path: "/none",
        kind: 3,
    };
    recorder.ask("removeWatches none there", &remove)?;
    recorder.ask("setWatches", &set_watches(OpCode::SetWatches))?;
    recorder.ask("setWatches2", &set_watches(OpCode::SetWatches2))?;
    let missing = Request::Exists {
        path: "/late",
        watch,
    };
    recorder.ask("exists of a missing znode", &missing)?;
    recorder.ask("create of a watched znode", &create("/late", Some(b""), 0))?;
    recorder.ask("closeSession", &Request::CloseSession)
}

fn creates(recorder: &mut Recorder) -> Result<()> {
    recorder.ask("create", &create("/p", Some(b"data"), 0))?;
    recorder.ask("create that exists", &create("/p", None, 0))?;
    recorder.ask("create without data", &create("/p/\u{e9}", None, 0))?;
    recorder.ask("create sequential", &create("/p/s-", Some(b""), 2))?;
    recorder.ask("create ephemeral", &create("/p/e", Some(b"mine"), 1))?;
    let others = [
        ("create2", OpCode::Create2, 0, None),
        ("createContainer", OpCode::CreateContainer, 4, None),
        ("createTTL", OpCode::CreateTtl, 5, Some(60_000)),
        ("createTTL of a wrong ttl", OpCode::CreateTtl, 5, Some(0)),
    ];
    for (name, op, flags, ttl_ms) in others {
        let path = format!("/p/{}", op.code());
        let Request::Create { mut create, .. } = create(&path, Some(b"x"), flags) else {
            continue;
        };
        create.ttl_ms = ttl_ms;
        create.acl = Some(AclList::new(&[
            Acl {
                perms: Perms::ALL,
                id: Id::new("digest", digest_id("alice", "a")),
            },
            Acl {
                perms: Perms::READ,
                id: Id::new("ip", "127.0.0.1/32"),
            },
        ]));
        recorder.ask(name, &Request::Create { op, create })?;
    }
    Ok(())
}

fn reads(recorder: &mut Recorder) -> Result<()> {
    let (path, watch) = ("/p", true);
    recorder.ask("exists", &Request::Exists { path, watch })?;
    recorder.ask("getData", &Request::GetData { path, watch })?;
    let null = Request::GetData {
        path: "/p/\u{e9}",
        watch: false,
    };
    recorder.ask("getData of null", &null)?;
    recorder.ask("getACL", &Request::GetAcl { path: "/p/15" })?;
    for (name, op) in [
        ("getChildren", OpCode::GetChildren),
        ("getChildren2", OpCode::GetChildren2),
    ] {
        recorder.ask(name, &Request::GetChildren { op, path, watch })?;
    }
    recorder.ask(
        "getAllChildrenNumber",
        &Request::GetAllChildrenNumber { path },
    )?;
    recorder.ask("getEphemerals", &Request::GetEphemerals { prefix: "/" })?;
    recorder.ask("sync", &Request::Sync { path })?;
    let missing = "/missing";
    recorder.ask(
        "multiRead",
        &Request::MultiRead(vec![
            Request::GetData { path, watch: false },
            Request::GetChildren {
                op: OpCode::GetChildren,
                path,
                watch: false,
            },
            Request::GetData {
                path: missing,
                watch: false,
            },
        ]),
    )
}

fn writes(recorder: &mut Recorder) -> Result<()> {
    let path = "/p";
    let set = |data, version| Request::SetData {
        path,
        data,
        version,
    };
    recorder.ask("setData", &set(Some(b"new".as_slice()), 0))?;
    recorder.ask("setData of a wrong version", &set(None, 7))?;
    recorder.ask(
        "setACL",
        &Request::SetAcl {
            path: "/p/\u{e9}",
            acl: Some(AclList::new(&Acl::open())),
            version: -1,
        },
    )?;
    recorder.ask(
        "setACL of null",
        &Request::SetAcl {
            path,
            acl: None,
            version: -1,
        },
    )?;
    let delete = |path| Request::Delete { path, version: -1 };
    recorder.ask("delete", &delete("/p/\u{e9}"))?;
    recorder.ask("delete of a parent", &delete(path))
}

fn multis(recorder: &mut Recorder) -> Result<()> {
    let version = -1;
    recorder.ask(
        "multi",
        &Request::Multi(vec![
            create("/m", Some(b""), 0),
            Request::SetData {
                path: "/m",
                data: Some(b"y"),
                version,
            },
            Request::Check {
                path: "/m",
                version: 1,
            },
            Request::Delete {
                path: "/m",
                version,
            },
        ]),
    )?;
    recorder.ask(
        "multi that fails",
        &Request::Multi(vec![
            create("/m", Some(b""), 0),
            Request::Check {
                path: "/m",
                version: 9,
            },
            Request::Delete {
                path: "/m",
                version,
            },
        ]),
    )
}

fn create<'a>(path: &'a str, data: Option<&'a [u8]>, flags: i32) -> Request<'a> {
    Request::Create {
        op: OpCode::Create,
        create: CreateRequest {
            path,
            data,
            acl: Some(AclList::new(&Acl::open())),
            flags,
            ttl_ms: None,
        },
    }
}

fn set_watches(op: OpCode) -> Request<'static> {
    let mut watches = SetWatchesRequest {
        relative_zxid: Zxid(1),
        data: vec!["/p", "/gone"],
        exist: vec!["/none", "/p"],
        child: vec!["/p"],
        ..SetWatchesRequest::default()
    };
    if op == OpCode::SetWatches2 {
        watches.persistent = vec!["/p"];
        watches.persistent_recursive = vec!["/"];
    }
    Request::SetWatches { op, watches }
}
