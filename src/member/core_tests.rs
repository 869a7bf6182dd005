//! The replica core over a simulated disk.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use ringkeeper_config::{Beside, Loaded, RawConfig};
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, ServerId, SessionId, Xid, ZkError, Zxid};
use ringkeeper_storage::{Dirs, Fault, LogOptions, Opened, SimDisk, Store};
use ringkeeper_transport::{Chain, Cursor};
use ringkeeper_tree::Tree;
use ringkeeper_zab::Replica;

use crate::core::{Core, CoreParts};
use crate::messages::{ClientMessage, Now, WriteMessage};
use crate::publication::{Answer, ClientKey, Publication};
use crate::replay::replay;
use crate::sessions::Sessions;
use crate::settings::Settings;

const CLIENT: ClientKey = ClientKey {
    shard: 0,
    index: 0,
    generation: 1,
};

/// A core on a disk, and the place of a shard in its chain.
struct Bench {
    disk: SimDisk,
    core: Core<SimDisk>,
    cursor: Cursor<Publication>,
    session: SessionId,
}

impl Bench {
    fn new() -> Self {
        let disk = SimDisk::new(7);
        let opening = {
            let disk = disk.clone();
            async move {
                let options = LogOptions {
                    segment_bytes: 16 << 20,
                    ..LogOptions::default()
                };
                Store::open(disk, &Dirs::single("/data"), options)
                    .await
                    .expect("a new directory")
            }
        };
        let Opened { store, log, .. } = disk.run(opening).expect("nothing is held yet");
        disk.spawn(log.maintenance());
        let loaded = Loaded::new(&RawConfig::embedded(), &Beside::default()).expect("it is ours");
        let settings = Arc::new(Settings::new(loaded.config));
        let mut chain = Chain::new();
        let cursor = chain.cursor();
        let mut core = Core::new(CoreParts {
            zab: Replica::new(
                ringkeeper_zab::Config::standalone(ServerId(0)),
                ringkeeper_zab::Recovered::default(),
            ),
            alone: true,
            store,
            log,
            tree: Tree::new(),
            tail: Vec::new(),
            sessions: Sessions::new(1000, SessionId(1)),
            chain,
            settings,
            now: Now::default(),
        });
        core.hear(ClientMessage::NewSession {
            from: CLIENT,
            timeout_ms: 30_000,
        });
        let mut bench = Self {
            disk,
            core,
            cursor,
            session: SessionId::NONE,
        };
        bench.write_out();
        let publication = bench.cursor.next().expect("the session");
        let Some(Answer::Session { session, .. }) = publication.steps.first().map(|s| &s.answer)
        else {
            panic!("no session in {publication:?}");
        };
        bench.session = session.session;
        bench
    }

    /// Asks for a create of `path`.
    fn create(&mut self, path: &str) {
        let create = CreateRequest {
            path,
            data: Some(b"data"),
            acl: Some(AclList::new(&Acl::open())),
            flags: 0,
            ttl_ms: None,
        };
        let mut frame = BytesMut::new();
        Request::Create {
            op: OpCode::Create,
            create,
        }
        .encode_frame(Xid(1), &mut frame);
        let body = frame.freeze().slice(12..);
        self.write(OpCode::Create, body, false);
    }

    fn write(&mut self, op: OpCode, body: Bytes, keep_before: bool) {
        self.core.hear(ClientMessage::Write(WriteMessage {
            from: CLIENT,
            session: self.session,
            xid: Xid(1),
            op,
            body,
            identities: [].into(),
            keep_before,
            arrived_us: 0,
        }));
    }

    /// Starts every write that may start and lets the disk finish what it will.
    fn write_out(&mut self) {
        while let Some(write) = self.core.next_write() {
            let written = self.disk.run(write).expect("nothing is held");
            written.expect("no fault");
            self.core.flushed();
        }
    }

    /// The outcomes that a shard would see now.
    fn published(&mut self) -> Vec<Result<(), ZkError>> {
        let mut outcomes = Vec::new();
        while let Some(publication) = self.cursor.next() {
            for step in &publication.steps {
                if let Answer::Write { outcome, .. } = &step.answer {
                    outcomes.push(outcome.as_ref().map(|_| ()).map_err(|error| *error));
                }
            }
        }
        outcomes
    }
}

#[test]
fn no_reply_before_its_write_is_durable() {
    let mut bench = Bench::new();
    bench.create("/a");
    let write = bench.core.next_write().expect("a batch");
    bench.disk.hold_completions(true);
    // The future is kept and polled, as the task is that the server spawns for it.
    let done = std::rc::Rc::new(std::cell::Cell::new(false));
    let put = done.clone();
    bench.disk.spawn(async move {
        write.await.expect("no fault");
        put.set(true);
    });
    assert_eq!(bench.disk.run(std::future::pending::<()>()), None);
    assert!(bench.disk.in_flight() > 0, "the write is with the disk");
    // A refusal needs no write, but it does not overtake the write before it.
    bench.create("/a");
    bench.write(OpCode::Sync, Bytes::new(), false);
    assert!(!done.get());
    assert_eq!(
        bench.published(),
        [],
        "nothing may be told before the disk has answered"
    );

    bench.disk.hold_completions(false);
    assert_eq!(bench.disk.run(std::future::pending::<()>()), None);
    assert!(done.get(), "the disk has answered");
    bench.core.flushed();
    assert_eq!(bench.published(), [Ok(())], "the first write, and only it");
    bench.write_out();
    assert_eq!(bench.published(), [Err(ZkError::NodeExists), Ok(())]);
}

#[test]
fn what_is_told_survives_a_power_cut() {
    let mut bench = Bench::new();
    bench.create("/kept");
    bench.write_out();
    assert_eq!(bench.published(), [Ok(())]);
    bench.create("/maybe");
    let write = bench.core.next_write().expect("a batch");
    bench.disk.hold_completions(true);
    assert_eq!(bench.disk.run(write).map(|written| written.is_ok()), None);

    let after = bench.disk.after_power_cut(|_| false);
    let reading = {
        let disk = after.clone();
        async move {
            let options = LogOptions {
                segment_bytes: 16 << 20,
                ..LogOptions::default()
            };
            let opened = Store::open(disk, &Dirs::single("/data"), options).await;
            let Opened { log, .. } = opened.expect("a torn tail is no damage");
            let mut tree = Tree::new();
            let all = Zxid(u64::MAX);
            replay(&log, &mut tree, all).await.expect("the log replays");
            tree
        }
    };
    let tree = after.run(reading).expect("nothing is held");
    assert!(tree.get("/kept").is_some(), "it was acknowledged");
    assert!(
        tree.get("/maybe").is_none(),
        "none of it had reached the disk"
    );
}

#[test]
fn a_failed_write_is_told_to_nobody() {
    let mut bench = Bench::new();
    bench.create("/a");
    bench.disk.inject(0, Fault::WriteError { kept: 0 });
    let write = bench.core.next_write().expect("a batch");
    assert!(bench.disk.run(write).expect("the disk answers").is_err());
    assert_eq!(bench.published(), []);
}

#[test]
fn reads_between_two_writes_see_the_state_between() {
    let mut bench = Bench::new();
    bench.create("/first");
    let mut body = BytesMut::new();
    body.put_i32(6);
    body.put_slice(b"/first");
    body.put_i32(-1);
    bench.write(OpCode::Delete, body.freeze(), true);
    bench.write_out();
    let publication = bench.cursor.next().expect("one batch");
    let [create, delete] = publication.steps.as_slice() else {
        panic!("two steps, not {publication:?}");
    };
    assert!(create.before.is_none(), "nobody waits before the first");
    let before = delete
        .before
        .as_ref()
        .expect("a read waits before the second");
    assert!(before.get("/first").is_some());
    assert!(publication.tree.get("/first").is_none());
}

#[test]
fn a_learner_is_not_sent_what_it_has_of_the_uncommitted_tail() {
    let mut bench = Bench::new();
    let core = &mut bench.core;
    let record = |counter| crate::core::Record {
        zxid: Zxid(counter),
        bytes: Bytes::new(),
    };
    core.recent.restart(Zxid(0));
    (1..=3).for_each(|counter| core.recent.push(record(counter)));
    core.tail.extend((4..=9).map(record));
    let sent = |after, through| -> Vec<u64> {
        let proposals = core.recent_history(Zxid(after), Zxid(through));
        proposals.into_iter().map(|it| it.zxid.0).collect()
    };
    assert_eq!(sent(2, 5), [3, 4, 5]);
    assert_eq!(sent(6, 9), [7, 8, 9]);
}

#[test]
fn a_leader_is_told_of_a_session_whose_client_has_just_left() {
    let mut bench = Bench::new();
    let core = &mut bench.core;
    let session = SessionId(7);
    core.now.monotonic_us += 1_000_000;
    _ = core.touches();
    let now_ms = core.now.monotonic_ms();
    let holder = crate::sessions::Holder::Client(CLIENT);
    core.sessions.insert(session, 4_000, holder, now_ms);
    core.remember_touch(session);
    core.sessions.close(session);
    let told = |core: &mut Core<SimDisk>| match core.touches() {
        ringkeeper_peers::Rider::Touches(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    let mut table = BytesMut::new();
    table.put_u64(7);
    table.put_u32(4_000);
    assert_eq!(told(core), table);
    assert_eq!(told(core), Bytes::new());
}
