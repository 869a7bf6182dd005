//! Measures what the state could be kept in: memory per znode and the time of the operations that
//! matter, for one representation per run (so that one's memory is not another's).
//!
//! ```text
//! cargo run --release -p ringkeeper-tree --example representations -- NAME [ZNODES] [PARENTS]
//! ```
//! Names: `tree` (the crate's own), `paths` (`imbl::OrdMap` from full path to znode), `ordered`
//! (a tree of `imbl::OrdMap`s), `hashed` (a tree of `imbl::HashMap`s).
//!
//! Times are of the processor, not of the clock, so that other work on the machine disturbs less.
//! `tree` does more than the others: digest, stat, ACL table, counters, quotas, events and replies.
#![expect(clippy::print_stdout, reason = "the figures are for a reader")]
#![expect(clippy::unwrap_used, reason = "a run that goes wrong has no figures")]

use std::env;
use std::fs;
use std::hint::black_box;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use ringkeeper_proto::txn::CreateKind;
use ringkeeper_proto::{Acl, AclList, OpCode, SessionId, Txn, TxnHeader, Zxid};
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder, SnapshotEncoder};
use ringkeeper_tree::{Events, Tree};

/// Bytes of data of each znode.
const DATA_LEN: usize = 100;
/// Writes between two clones where a batch is measured.
const BATCH: usize = 100;
/// Operations of each kind.
const OPERATIONS: usize = 200_000;

/// What is measured.
trait Representation: Clone {
    fn new() -> Self;
    fn create(&mut self, path: &str, data: &[u8]);
    fn set(&mut self, path: &str, data: &[u8]);
    fn get(&self, path: &str) -> usize;
}

/// The metadata that a znode has beside its data.
#[derive(Clone)]
#[expect(dead_code, reason = "only the memory it takes matters")]
struct Plain {
    zxids: [i64; 3],
    times: [i64; 2],
    owner: i64,
    versions: [i32; 3],
    acl: u32,
    digest: u32,
    data: Box<[u8]>,
}

impl Plain {
    fn new(data: &[u8]) -> Self {
        Self {
            zxids: [1; 3],
            times: [1; 2],
            owner: 0,
            versions: [0; 3],
            acl: 1,
            digest: 1,
            data: data.into(),
        }
    }
}

/// Full path to znode; children would be a range of paths.
#[derive(Clone)]
struct Paths(imbl::OrdMap<Arc<str>, Arc<Plain>>);

impl Representation for Paths {
    fn new() -> Self {
        Self(imbl::OrdMap::new())
    }

    fn create(&mut self, path: &str, data: &[u8]) {
        self.0.insert(path.into(), Arc::new(Plain::new(data)));
        if let Some((parent, _)) = path.rsplit_once('/')
            && let Some(parent) = self.0.get_mut(parent)
        {
            Arc::make_mut(parent).versions[1] += 1;
        }
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        let node = Arc::make_mut(self.0.get_mut(path).unwrap());
        node.data = data.into();
        node.versions[0] += 1;
    }

    fn get(&self, path: &str) -> usize {
        self.0.get(path).unwrap().data.len()
    }
}

macro_rules! nested {
    ($name:ident, $node:ident, $map:ident) => {
        #[derive(Clone)]
        struct $name(Arc<$node>);

        #[derive(Clone)]
        struct $node {
            plain: Plain,
            children: Option<Box<imbl::$map<Arc<str>, Arc<$node>>>>,
        }

        impl $name {
            fn find_mut(&mut self, path: &str) -> &mut $node {
                let mut at = Arc::make_mut(&mut self.0);
                for name in path.split('/').filter(|name| !name.is_empty()) {
                    let children = at.children.as_mut().unwrap();
                    at = Arc::make_mut(children.get_mut(name).unwrap());
                }
                at
            }
        }

        impl Representation for $name {
            fn new() -> Self {
                Self(Arc::new($node {
                    plain: Plain::new(b""),
                    children: None,
                }))
            }

            fn create(&mut self, path: &str, data: &[u8]) {
                let (parent, name) = path.rsplit_once('/').unwrap();
                let node = $node {
                    plain: Plain::new(data),
                    children: None,
                };
                let parent = self.find_mut(parent);
                parent.plain.versions[1] += 1;
                let children = parent.children.get_or_insert_default();
                children.insert(name.into(), Arc::new(node));
            }

            fn set(&mut self, path: &str, data: &[u8]) {
                let node = self.find_mut(path);
                node.plain.data = data.into();
                node.plain.versions[0] += 1;
            }

            fn get(&self, path: &str) -> usize {
                let mut at = &self.0;
                for name in path.split('/').filter(|name| !name.is_empty()) {
                    at = at.children.as_ref().unwrap().get(name).unwrap();
                }
                at.plain.data.len()
            }
        }
    };
}

nested!(Ordered, OrderedNode, OrdMap);
nested!(Hashed, HashedNode, HashMap);

impl Representation for Tree {
    fn new() -> Self {
        Self::new()
    }

    fn create(&mut self, path: &str, data: &[u8]) {
        let txn = Txn::Create {
            path: path.into(),
            data: Some(data),
            acl: AclList::new(&Acl::open()),
            kind: CreateKind::Plain { ephemeral: false },
            parent_cversion: -1,
        };
        run(self, OpCode::Create, &txn);
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        let txn = Txn::SetData {
            path: path.into(),
            data: Some(data),
            version: 1,
        };
        run(self, OpCode::SetData, &txn);
    }

    fn get(&self, path: &str) -> usize {
        self.get(path).unwrap().data_len()
    }
}

fn run(tree: &mut Tree, op: OpCode, txn: &Txn<'_>) {
    let header = TxnHeader {
        session: SessionId(1),
        cxid: 0,
        zxid: Zxid(tree.zxid().0 + 1),
        time_ms: 1,
        op,
    };
    let mut events = Events::new();
    assert!(tree.apply(&header, txn, &mut events).outcome.is_ok());
}

fn main() {
    let mut args = env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "tree".to_owned());
    let mut number = |default: usize| args.next().map_or(default, |arg| arg.parse().unwrap());
    let (znodes, parents) = (number(1_000_000), number(1));
    println!("{name}: {znodes} znodes of {DATA_LEN} B below {parents} parents");
    match name.as_str() {
        "tree" => {
            let tree = measure::<Tree>(znodes, parents);
            measure_snapshot(&tree);
        }
        "paths" => drop(measure::<Paths>(znodes, parents)),
        "ordered" => drop(measure::<Ordered>(znodes, parents)),
        "hashed" => drop(measure::<Hashed>(znodes, parents)),
        _ => println!("no such representation"),
    }
}

fn path_of(i: usize, parents: usize) -> String {
    format!("/p{:05}/n{:010}", i % parents, i / parents)
}

fn measure<R: Representation>(znodes: usize, parents: usize) -> R {
    let data = [7; DATA_LEN];
    let before = resident();
    let mut tree = R::new();
    for i in 0..parents {
        tree.create(&format!("/p{i:05}"), b"");
    }
    let start = cpu_ns();
    let mut path_bytes = parents * "/p00000".len();
    for i in 0..znodes {
        let path = path_of(i, parents);
        path_bytes += path.len();
        tree.create(&path, &data);
    }
    show("create, one after the other", start, znodes);
    let held = resident() - before;
    let payload = path_bytes + znodes * DATA_LEN;
    println!(
        "{:>8} B   memory per znode beyond its path and data",
        held.saturating_sub(payload) / (znodes + parents)
    );
    let mut rng = SmallRng::seed_from_u64(1);
    let paths: Vec<String> = (0..OPERATIONS)
        .map(|_| path_of(rng.random_range(0..znodes), parents))
        .collect();
    time("get", || {
        for path in &paths {
            black_box(tree.get(path));
        }
    });
    time("set, not shared", || {
        for path in &paths {
            tree.set(path, &data);
        }
    });
    time("set, first after a clone", || {
        for path in &paths {
            let old = tree.clone();
            tree.set(path, &data);
            drop(old);
        }
    });
    time("set, a clone every 100", || {
        for batch in paths.chunks(BATCH) {
            let old = tree.clone();
            for path in batch {
                tree.set(path, &data);
            }
            drop(old);
        }
    });
    let first = znodes.div_ceil(parents) * parents;
    let new: Vec<String> = (first..first + OPERATIONS)
        .map(|i| path_of(i, parents))
        .collect();
    time("create, a clone every 100", || {
        for batch in new.chunks(BATCH) {
            let old = tree.clone();
            for path in batch {
                tree.create(path, &data);
            }
            drop(old);
        }
    });
    tree
}

fn measure_snapshot(tree: &Tree) {
    let start = cpu_ns();
    let mut encoder = SnapshotEncoder::new(tree);
    let mut chunks = Vec::new();
    let mut bytes = Vec::new();
    while encoder.next_chunk(&mut bytes) {
        chunks.push(bytes.clone());
    }
    let len: usize = chunks.iter().map(Vec::len).sum();
    println!("{:>8} ms  snapshot written, {len} B", ms_since(start));
    let start = cpu_ns();
    let decoded: Vec<Chunk> = chunks
        .iter()
        .map(|bytes| Chunk::decode(bytes).unwrap())
        .collect();
    let decode_ms = ms_since(start);
    let start = cpu_ns();
    let mut builder = SnapshotBuilder::new();
    for chunk in decoded {
        builder.push(chunk).unwrap();
    }
    let again = builder.finish().unwrap();
    println!("{decode_ms:>8} ms  chunks decoded, on one thread");
    println!("{:>8} ms  tree built of them", ms_since(start));
    assert_eq!(again.digest(), tree.digest());
    let start = cpu_ns();
    drop(again);
    println!("{:>8} ms  tree dropped", ms_since(start));
}

fn time(what: &str, run: impl FnOnce()) {
    let start = cpu_ns();
    run();
    show(what, start, OPERATIONS);
}

fn show(what: &str, start: u64, count: usize) {
    println!("{:>8} ns  {what}", (cpu_ns() - start) / count as u64);
}

fn ms_since(start: u64) -> u64 {
    (cpu_ns() - start) / 1_000_000
}

/// Nanoseconds that this thread has run.
fn cpu_ns() -> u64 {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    schedstat.split(' ').next().unwrap().parse().unwrap()
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
