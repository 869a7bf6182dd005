//! Requests through [`execute_bytes`] and through Apache's own PrepRequestProcessor and DataTree, which
//! must agree on every transaction, every reply and every digest.
//!
//! `testdata/prepare_*.txt` hold scripts with Apache's results, made by `testdata/PrepareOracle.java`
//! (see there for the lines) from what `scripts_are_written` prints. Longer ones can be checked by giving
//! their path in `RINGKEEPER_PREPARE_RESULTS`.
#![expect(
    clippy::unwrap_used,
    reason = "in a test a surprise is a failure, also in its helpers"
)]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use bytes::BytesMut;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::txn;
use ringkeeper_proto::{
    Acl, AclList, Id, LossyText, OpCode, Perms, Request, SessionId, Txn, TxnHeader, Xid, ZkError,
};
use ringkeeper_tree::execute::{
    Executed, execute_bytes, execute_close_session, execute_create_session,
};
use ringkeeper_tree::{Context, Events, SessionState, Settings, Tree};

#[test]
fn transactions_replies_and_digests_are_apaches() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for (name, extended_types, enforce_quota) in [
        ("prepare_plain.txt", false, false),
        ("prepare_extended.txt", true, false),
        ("prepare_quota.txt", false, true),
    ] {
        let settings = Settings {
            extended_types,
            enforce_quota,
            ..Settings::default()
        };
        let results = fs::read_to_string(folder.join(name)).unwrap();
        assert!(check(&results, settings) > 300, "{name} has requests");
    }
}

#[test]
fn longer_results_are_apaches() {
    if let Ok(path) = env::var("RINGKEEPER_PREPARE_RESULTS") {
        let settings = Settings {
            extended_types: path.contains("extended"),
            enforce_quota: path.contains("quota"),
            ..Settings::default()
        };
        assert!(check(&fs::read_to_string(path).unwrap(), settings) > 0);
    }
}

/// With `RINGKEEPER_PREPARE_SCRIPT=plain|extended|quota,count,seed,path` the script for
/// PrepareOracle.java goes to `path`; without, a short one shows that scripts are made.
#[test]
fn scripts_are_written() {
    let own = env::temp_dir().join(format!("prepare-script-{}", std::process::id()));
    let wanted = env::var("RINGKEEPER_PREPARE_SCRIPT");
    let wanted = wanted.unwrap_or_else(|_| format!("plain,20,1,{}", own.display()));
    let mut words = wanted.split(',');
    let mode = words.next().unwrap();
    let count: usize = words.next().unwrap().parse().unwrap();
    let seed = words.next().unwrap().parse().unwrap();
    let mut script = Script {
        random: SmallRng::seed_from_u64(seed),
        has_quotas: mode == "quota",
        text: String::new(),
    };
    script.write(count);
    assert!(script.text.lines().count() >= count);
    fs::write(words.next().unwrap(), script.text).unwrap();
    // Only there when it was the short one.
    let _ = fs::remove_file(own);
}

/// Runs the requests of `results` and compares; returns how many there were.
fn check(results: &str, settings: Settings) -> usize {
    let mut world = World {
        head: Tree::new(),
        settings,
        events: Events::new(),
        line: 0,
    };
    let mut waiting = Vec::new();
    let mut count = 0;
    for (number, line) in results.lines().enumerate() {
        world.line = number + 1;
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "R" => waiting.push((number + 1, words)),
            "A" => {
                waiting.reverse();
            }
            "T" => {
                let (line, request) = waiting.pop().unwrap();
                world.line = line;
                world.compare(&request, &words);
                count += 1;
            }
            _ => {}
        }
    }
    count
}

struct World {
    head: Tree,
    settings: Settings,
    events: Events,
    line: usize,
}

impl World {
    fn compare(&mut self, request: &[&str], result: &[&str]) {
        let record = bytes(result[1]);
        let (expect, expect_txn, _) = txn::decode_record(&record).unwrap();
        let settings = self.settings.clone();
        let identities = identities(request[4].parse().unwrap());
        let context = Context {
            session: SessionId(request[1].parse().unwrap()),
            session_state: state(request[2]),
            cxid: request[3].parse().unwrap(),
            time_ms: expect.time_ms,
            identities: &identities,
            settings: &settings,
        };
        let op = OpCode::from_code(request[5].parse().unwrap()).unwrap();
        let body = bytes(request[6]);
        let error: i32 = result[2].parse().unwrap();
        let before = self.head.clone();
        match self.execute(op, &body, &LossyText::new(), &context) {
            Ok(executed) => {
                assert_eq!(executed.header, expect, "line {}", self.line);
                let (txn, expect_txn) = (normal(executed.txn), normal(expect_txn));
                assert_eq!(txn, expect_txn, "line {}", self.line);
                let code = executed
                    .outcome
                    .as_ref()
                    .err()
                    .map_or(0, |error| error.code());
                assert_eq!(code, error, "line {} {:?}", self.line, txn);
                if let Ok(reply) = executed.outcome {
                    let mut out = BytesMut::new();
                    reply.encode(&mut out);
                    assert_eq!(hex(&out), result[3], "line {}", self.line);
                }
                let digest = executed.digest.tree_digest.cast_unsigned().to_string();
                assert_eq!(digest, result[4], "line {}", self.line);
                self.check_apply(before, &executed.header, &txn);
            }
            Err(refused) => {
                assert_eq!(refused.code(), error, "line {}", self.line);
                assert_eq!(expect.zxid, self.head.zxid(), "line {}", self.line);
            }
        }
    }

    fn execute<'a>(
        &mut self,
        op: OpCode,
        body: &'a [u8],
        text: &'a LossyText,
        context: &Context<'_>,
    ) -> Result<Executed<'a>, ZkError> {
        let zxid = self.head.zxid().next().unwrap();
        let (head, events) = (&mut self.head, &mut self.events);
        match op {
            OpCode::CreateSession => {
                let timeout_ms = i32::from_be_bytes(body.try_into().unwrap());
                Ok(execute_create_session(head, zxid, timeout_ms, context))
            }
            OpCode::CloseSession => Ok(execute_close_session(head, zxid, context, events)),
            _ => execute_bytes(head, zxid, op, body, text, context, events),
        }
    }

    // Who only gets the transaction comes to the same tree, with the same events.
    fn check_apply(&mut self, mut before: Tree, header: &TxnHeader, txn: &Txn<'_>) {
        let mut events = Events::new();
        let _shown = before.apply(header, txn, &mut events);
        assert_eq!(before.digest(), self.head.digest(), "line {}", self.line);
        assert_eq!(before.zxid(), self.head.zxid(), "line {}", self.line);
        let counts = |tree: &Tree| {
            (
                tree.node_count(),
                tree.ephemerals_count(),
                tree.approximate_data_size(),
                tree.acl_count(),
                tree.sessions().len(),
            )
        };
        assert_eq!(counts(&before), counts(&self.head), "line {}", self.line);
        let sorted = |events: &Events| {
            let mut lines: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
            if header.op == OpCode::CloseSession {
                lines.sort_unstable();
            }
            lines
        };
        assert_eq!(sorted(&events), sorted(&self.events), "line {}", self.line);
        self.events.clear();
    }
}

// Where the order means nothing, or what Apache logs of a failed multi is not what it does with it.
fn normal(txn: Txn<'_>) -> Txn<'_> {
    match txn {
        Txn::CloseSession {
            paths: Some(mut paths),
        } => {
            paths.sort_unstable();
            Txn::CloseSession { paths: Some(paths) }
        }
        Txn::Multi(parts) if parts.iter().any(|(op, _)| *op == OpCode::Error) => {
            let parts = parts.into_iter().map(|(_, part)| match part {
                Txn::Error { code } => (OpCode::Error, Txn::Error { code }),
                _ => (OpCode::Error, Txn::Error { code: 0 }),
            });
            Txn::Multi(parts.collect())
        }
        txn => txn,
    }
}

fn state(word: &str) -> SessionState {
    match word {
        "live" => SessionState::Live,
        "closing" => SessionState::Closing,
        "unknown" => SessionState::Unknown,
        "moved" => SessionState::Moved,
        word => panic!("state {word}"),
    }
}

// The same as in PrepareOracle.java.
fn identities(number: usize) -> Vec<Id> {
    let sets: [&[(&str, &str)]; 4] = [
        &[("ip", "10.0.0.1")],
        &[("ip", "10.0.0.1"), ("digest", "u:h")],
        &[("ip", "10.0.0.2"), ("digest", "v:i"), ("digest", "w:j")],
        &[("ip", "10.0.0.1"), ("super", "")],
    ];
    sets[number]
        .iter()
        .map(|&(scheme, id)| Id::new(scheme, id))
        .collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    if hex == "-" {
        return Vec::new();
    }
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".into();
    }
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Random requests that come close to each other.
struct Script {
    random: SmallRng,
    has_quotas: bool,
    text: String,
}

impl Script {
    fn write(&mut self, count: usize) {
        if self.has_quotas {
            self.write_quotas();
        }
        for cxid in 0..count {
            let op = self.request(cxid);
            // Apache does not show a pending setACL or closeSession to the next request.
            let is_seen_late = matches!(op, OpCode::SetAcl | OpCode::CloseSession);
            if is_seen_late || self.has_quotas || self.random.random_range(0..3) == 0 {
                self.text.push_str("A\n");
            }
        }
        self.text.push_str("A\n");
    }

    fn write_quotas(&mut self) {
        let quotas = [
            ("/a", "count=3,bytes=20=;countHardLimit=5;byteHardLimit=30"),
            ("/b", "count=-1,bytes=-1=;byteHardLimit=12"),
            ("/c/a", "count=2,bytes=10"),
            ("/d", "none at all"),
        ];
        for (cxid, (prefix, limits)) in quotas.into_iter().enumerate() {
            let mut at = "/zookeeper/quota".to_owned();
            for name in prefix.split('/').skip(1) {
                at = format!("{at}/{name}");
                self.put_create(cxid, &at, None);
            }
            self.put_create(cxid, &format!("{at}/zookeeper_limits"), Some(limits));
            self.put_create(
                cxid,
                &format!("{at}/zookeeper_stats"),
                Some("count=0,bytes=0"),
            );
        }
    }

    fn put_create(&mut self, cxid: usize, path: &str, data: Option<&str>) {
        let request = Request::Create {
            op: OpCode::Create,
            create: CreateRequest {
                path,
                data: data.map(str::as_bytes),
                acl: Some(AclList::new(&Acl::open())),
                flags: 0,
                ttl_ms: None,
            },
        };
        let body = body_of(&request);
        self.put(cxid, OpCode::Create, &body);
        self.text.push_str("A\n");
    }

    fn request(&mut self, cxid: usize) -> OpCode {
        let roll = self.random.random_range(0..1_000);
        let (op, body) = match roll {
            0..=699 => self.single(),
            700..=889 if !self.has_quotas => self.multi(),
            890..=909 => (OpCode::CloseSession, Vec::new()),
            910..=919 => (OpCode::CreateSession, 4_000_i32.to_be_bytes().to_vec()),
            920..=924 => (OpCode::Reconfig, [[0xff; 12].as_slice(), &[0; 8]].concat()),
            925..=929 => {
                let read = Request::GetData {
                    path: "/",
                    watch: false,
                };
                (OpCode::Multi, body_of(&Request::Multi(vec![read])))
            }
            930..=939 => self.null_path(),
            // What cannot be decoded: only a multi takes its zxid in 3.8 and 3.9 alike.
            940..=944 => (OpCode::Multi, vec![0, 0, 0]),
            _ => self.single(),
        };
        self.put(cxid, op, &body);
        op
    }

    fn put(&mut self, cxid: usize, op: OpCode, body: &[u8]) {
        let state = match self.random.random_range(0..100) {
            0 => "closing",
            1 => "unknown",
            2 => "moved",
            _ => "live",
        };
        let session = self.random.random_range(1..4);
        let identities = match self.random.random_range(0..10) {
            0..=4 => 0,
            5 | 6 => 1,
            7 => 2,
            _ => 3,
        };
        let body = hex(body);
        let op = op.code();
        writeln!(
            self.text,
            "R {session} {state} {cxid} {identities} {op} {body}"
        )
        .unwrap();
    }

    fn null_path(&mut self) -> (OpCode, Vec<u8>) {
        let ops = [
            OpCode::Delete,
            OpCode::SetData,
            OpCode::SetAcl,
            OpCode::Create,
        ];
        let op = *ops.choose(&mut self.random).unwrap();
        // A null path, null data or an empty ACL, and a number.
        let mut body = vec![0xff; 4];
        body.extend_from_slice(&[0; 12]);
        (op, body)
    }

    fn multi(&mut self) -> (OpCode, Vec<u8>) {
        let count = self.random.random_range(0..5);
        let mut body = Vec::new();
        for _ in 0..count {
            let (op, part) = loop {
                let (op, part) = self.single();
                // 3.8 takes these for other operations than 3.9 does, see `check_multi`.
                if op != OpCode::SetAcl && op != OpCode::Create2 && !is_odd_create(op, &part) {
                    break (op, part);
                }
            };
            body.extend_from_slice(&op.code().to_be_bytes());
            body.extend_from_slice(&[0, 0xff, 0xff, 0xff, 0xff]);
            body.extend_from_slice(&part);
        }
        body.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff]);
        (OpCode::Multi, body)
    }

    fn single(&mut self) -> (OpCode, Vec<u8>) {
        let path = self.path();
        let version = *[-1, -1, -1, 0, 0, 1, 2, 7]
            .choose(&mut self.random)
            .unwrap();
        let data = self.data();
        let request = match self.random.random_range(0..100) {
            0..=54 => return self.create(&path),
            55..=69 => Request::Delete {
                path: &path,
                version,
            },
            70..=84 => Request::SetData {
                path: &path,
                data: data.as_deref(),
                version,
            },
            85..=94 => Request::SetAcl {
                path: &path,
                acl: self.acl(),
                version,
            },
            _ => Request::Check {
                path: &path,
                version,
            },
        };
        (request.op(), body_of(&request))
    }

    fn create(&mut self, path: &str) -> (OpCode, Vec<u8>) {
        let ops = [
            OpCode::Create,
            OpCode::Create2,
            OpCode::CreateContainer,
            OpCode::CreateTtl,
        ];
        let op = ops[[0, 0, 0, 0, 1, 1, 2, 3][self.random.random_range(0..8)]];
        let flags = match self.random.random_range(0..20) {
            0 => *[-1, 7, 99].choose(&mut self.random).unwrap(),
            1..=9 => 0,
            _ if op == OpCode::CreateTtl => self.random.random_range(5..7),
            // Apache takes it for an ephemeral until it is applied, if the flags say so.
            _ if op == OpCode::CreateContainer => {
                *[0, 2, 4, 4, 4].choose(&mut self.random).unwrap()
            }
            _ => self.random.random_range(0..7),
        };
        let ttls = [-1, 0, 1, 5_000, 1 << 39, (1 << 40) - 1, 1 << 40];
        let mut ttl_ms = *ttls.choose(&mut self.random).unwrap();
        if !(5..=6).contains(&flags) {
            // A TTL of -1 passes in Apache, which then cannot apply what it has logged.
            ttl_ms = ttl_ms.max(0);
        }
        let data = self.data();
        let create = CreateRequest {
            path,
            data: data.as_deref(),
            acl: self.acl(),
            flags,
            ttl_ms: (op == OpCode::CreateTtl).then_some(ttl_ms),
        };
        (op, body_of(&Request::Create { op, create }))
    }

    fn path(&mut self) -> String {
        if self.random.random_range(0..100) < 12 {
            let odd = [
                "",
                "a",
                "/a/",
                "//a",
                "/a//b",
                "/a/./b",
                "/..",
                "/a\0",
                "/a\u{1}",
                "/\u{1f600}",
                "/zookeeper",
                "/zookeeper/quota",
                "/zookeeper/config",
                "/zookeeper/x",
                "a/b",
                "/a/b/",
                "/\u{e9}",
                "/zookeeper/quota/a",
                "/zookeeper/quota/a/zookeeper_limits",
            ];
            return (*odd.choose(&mut self.random).unwrap()).to_owned();
        }
        let depth = self.random.random_range(1..4);
        let names = ["a", "b", "c", "d", "q-"];
        (0..depth).fold(String::new(), |path, _| {
            let name = names.choose(&mut self.random).unwrap();
            format!("{path}/{name}")
        })
    }

    fn data(&mut self) -> Option<Vec<u8>> {
        match self.random.random_range(0..6) {
            0 => None,
            1 => Some(Vec::new()),
            len => Some(vec![b'x'; len]),
        }
    }

    fn acl(&mut self) -> Option<AclList<'static>> {
        let (all, read) = (Perms::ALL, Perms::READ);
        let lists: [&[(Perms, &str, &str)]; 12] = [
            &[],
            &[(read, "world", "anyone")],
            &[
                (all, "world", "anyone"),
                (read, "world", "anyone"),
                (all, "world", "anyone"),
            ],
            &[(all, "auth", "")],
            &[(all, "digest", "u:h"), (read, "world", "anyone")],
            &[(all, "digest", "v:i"), (all, "ip", "10.0.0.1")],
            &[(Perms::CREATE, "ip", "10.0.0.0/30"), (all, "digest", "w:j")],
            &[(all, "digest", "nocolon")],
            &[(all, "x", "y")],
            &[
                (Perms::DELETE, "world", "anyone"),
                (Perms::ADMIN, "auth", ""),
            ],
            &[(Perms(0), "world", "anyone")],
            &[(Perms(-1), "world", "anyone")],
        ];
        match self.random.random_range(0..100) {
            0..=71 => Some(AclList::new(&Acl::open())),
            72 => None,
            _ => {
                let list = lists.choose(&mut self.random).unwrap();
                let acls = list.iter().map(|&(perms, scheme, id)| Acl {
                    perms,
                    id: Id::new(scheme, id),
                });
                Some(AclList::new(&acls.collect::<Vec<_>>()))
            }
        }
    }
}

fn is_odd_create(op: OpCode, body: &[u8]) -> bool {
    match Request::decode(op, body) {
        Ok(Request::Create { op, create }) => {
            let is_odd = create.acl.is_none() || !(0..=4).contains(&create.flags);
            match op {
                OpCode::CreateTtl => false,
                OpCode::CreateContainer => is_odd || create.flags != 4,
                _ => is_odd,
            }
        }
        _ => false,
    }
}

fn body_of(request: &Request<'_>) -> Vec<u8> {
    let mut frame = BytesMut::new();
    request.encode_frame(Xid(0), &mut frame);
    // Behind the length of the frame and the header.
    frame[12..].to_vec()
}
