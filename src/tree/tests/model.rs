//! Random transactions on a tree and on a plain model of it: a map from paths to znodes, as Apache's
//! `DataTree` is. Everything that can be asked must be equal, also of clones that were kept.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ringkeeper_proto::txn::CreateKind;
use ringkeeper_proto::{Acl, AclList, Id, OpCode, Perms, SessionId, Stat, Txn, TxnHeader, Zxid};
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder, SnapshotEncoder};
use ringkeeper_tree::{CONTAINER_OWNER, Events, NodeKind, Tree};

const PATHS: [&str; 14] = [
    "/a",
    "/b",
    "/a/b",
    "/a/c",
    "/b/c",
    "/a/b/c",
    "/a/b/c/d",
    "/a/b/\u{e9}\u{1f600}",
    "/zookeeper/x",
    "/zookeeper/x/y",
    "/missing/x",
    "/",
    "/a/b/c2",
    "/zookeeper",
];
const SESSIONS: [i64; 3] = [1, 0x100_0000_0000, -5];

static DATA: [u8; 5000] = [7; 5000];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Znode {
    data: Option<Vec<u8>>,
    acl: AclList<'static>,
    stat: Stat,
}

#[derive(Clone, Debug)]
struct Model {
    /// The root is "".
    nodes: BTreeMap<String, Znode>,
    sessions: BTreeMap<i64, i32>,
    data_size: i64,
}

fn acl(which: u8) -> AclList<'static> {
    match which {
        0 => AclList::new(&Acl::open()),
        1 => AclList::new(&[]),
        _ => AclList::new(&[Acl {
            perms: Perms::READ,
            id: Id::new("digest", format!("user:{which}")),
        }]),
    }
}

fn utf16(path: &str) -> i64 {
    i64::try_from(path.encode_utf16().count()).unwrap()
}

impl Model {
    fn new() -> Self {
        let znode = |acl: AclList<'static>, aversion| Znode {
            data: Some(Vec::new()),
            acl,
            stat: Stat {
                aversion,
                ..Stat::default()
            },
        };
        let read = AclList::new(&[Acl {
            perms: Perms::READ,
            id: Id::new("world", "anyone"),
        }]);
        let nodes = [
            ("", znode(acl(0), 0)),
            ("/zookeeper", znode(acl(0), 0)),
            ("/zookeeper/quota", znode(acl(0), 0)),
            ("/zookeeper/config", znode(read, -1)),
        ];
        Self {
            nodes: nodes.map(|(path, node)| (path.to_owned(), node)).into(),
            sessions: BTreeMap::new(),
            data_size: 44,
        }
    }

    fn below(&self, path: &str) -> impl Iterator<Item = (&String, &Znode)> {
        let prefix = format!("{path}/");
        self.nodes
            .iter()
            .filter(move |(other, _)| other.starts_with(&prefix))
    }

    fn children(&self, path: &str) -> BTreeSet<String> {
        let skip = path.len() + 1;
        self.below(path)
            .filter_map(|(other, _)| other.get(skip..))
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    fn digest(&self) -> u64 {
        let counted = self
            .nodes
            .iter()
            .filter(|(path, _)| !path.starts_with("/zookeeper/"));
        counted.fold(0, |sum, (path, node)| {
            let stat = &node.stat;
            let mut bytes = path.as_bytes().to_vec();
            bytes.extend_from_slice(node.data.as_deref().unwrap_or(&[]));
            for long in [stat.czxid, stat.mzxid, stat.pzxid, stat.ctime, stat.mtime] {
                bytes.extend_from_slice(&long.to_be_bytes());
            }
            for int in [stat.version, stat.cversion, stat.aversion] {
                bytes.extend_from_slice(&int.to_be_bytes());
            }
            bytes.extend_from_slice(&stat.ephemeral_owner.to_be_bytes());
            sum.wrapping_add(crc32fast::hash(&bytes).into())
        })
    }

    fn create(
        &mut self,
        header: &TxnHeader,
        path: &str,
        data: Option<&[u8]>,
        acl: AclList<'static>,
        owner: i64,
    ) {
        let Some((parent, name)) = path.rsplit_once('/') else {
            return;
        };
        if name.is_empty() || !self.nodes.contains_key(parent) {
            return;
        }
        let zxid = header.zxid.to_wire();
        if let Some(node) = self.nodes.get_mut(path) {
            node.acl = acl;
        } else {
            let stat = Stat {
                czxid: zxid,
                mzxid: zxid,
                pzxid: zxid,
                ctime: header.time_ms,
                mtime: header.time_ms,
                ephemeral_owner: owner,
                ..Stat::default()
            };
            self.data_size +=
                utf16(path) + data.map_or(0, |data| i64::try_from(data.len()).unwrap());
            let data = data.map(<[u8]>::to_vec);
            self.nodes
                .insert(path.to_owned(), Znode { data, acl, stat });
        }
        let parent = self.nodes.get_mut(parent).unwrap();
        parent.stat.cversion += 1;
        parent.stat.pzxid = zxid;
    }

    fn delete(&mut self, header: &TxnHeader, path: &str) {
        let Some((parent, name)) = path.rsplit_once('/') else {
            return;
        };
        if name.is_empty() {
            return;
        }
        let Some(parent) = self.nodes.get_mut(parent) else {
            return;
        };
        parent.stat.pzxid = parent.stat.pzxid.max(header.zxid.to_wire());
        let mut gone: Vec<String> = self.below(path).map(|(path, _)| path.clone()).collect();
        gone.push(path.to_owned());
        for path in gone {
            if let Some(node) = self.nodes.remove(&path) {
                let data = node
                    .data
                    .map_or(0, |data| i64::try_from(data.len()).unwrap());
                self.data_size -= utf16(&path) + data;
            }
        }
    }

    fn apply(&mut self, header: &TxnHeader, op: OpCode, txn: &Txn<'_>) {
        match txn {
            Txn::Create {
                path,
                data,
                acl,
                kind,
                ..
            } => {
                let owner = match kind {
                    CreateKind::Plain { ephemeral: true } => header.session.0,
                    CreateKind::Plain { ephemeral: false } => 0,
                    CreateKind::Container => CONTAINER_OWNER,
                    CreateKind::Ttl(ttl_ms) => NodeKind::ttl_owner(*ttl_ms),
                };
                self.create(header, path, *data, acl.clone().into_owned(), owner);
            }
            Txn::Delete { path } => self.delete(header, path),
            Txn::SetData {
                path,
                data,
                version,
            } => {
                let key = if path == "/" { "" } else { path };
                if let Some(node) = self.nodes.get_mut(key) {
                    let old = node.data.as_ref().map_or(0, Vec::len);
                    let new = data.map_or(0, <[u8]>::len);
                    self.data_size += i64::try_from(new).unwrap() - i64::try_from(old).unwrap();
                    node.data = data.map(<[u8]>::to_vec);
                    node.stat.version = *version;
                    node.stat.mzxid = header.zxid.to_wire();
                    node.stat.mtime = header.time_ms;
                }
            }
            Txn::SetAcl { path, acl, version } => {
                let key = if path == "/" { "" } else { path };
                if let Some(node) = self.nodes.get_mut(key) {
                    node.acl = acl.clone().into_owned();
                    node.stat.aversion = *version;
                }
            }
            Txn::CreateSession { timeout_ms } => {
                self.sessions.insert(header.session.0, *timeout_ms);
            }
            Txn::CloseSession { paths } => {
                for path in paths.iter().flatten() {
                    self.delete(header, path);
                }
                let mut own: Vec<String> = self.owned_by(header.session.0);
                while let Some(path) = own.pop() {
                    self.delete(header, &path);
                }
                self.sessions.remove(&header.session.0);
            }
            Txn::Multi(parts) => {
                for (op, part) in parts {
                    self.apply(header, *op, part);
                }
            }
            Txn::Check { .. } | Txn::Error { .. } => assert_ne!(op, OpCode::Create),
        }
    }

    fn owned_by(&self, owner: i64) -> Vec<String> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.stat.ephemeral_owner == owner)
            .map(|(path, _)| path.clone())
            .collect()
    }
}

fn check(tree: &Tree, model: &Model) {
    assert_eq!(tree.digest(), model.digest());
    assert_eq!(tree.node_count(), model.nodes.len() as u64 + 1);
    assert_eq!(tree.approximate_data_size(), model.data_size);
    let mut acls = BTreeSet::new();
    for (path, wanted) in &model.nodes {
        let node = tree
            .get(path)
            .unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(node.data(), wanted.data.as_deref(), "{path}");
        assert_eq!(tree.acl_of(node).list(), &wanted.acl, "{path}");
        acls.insert(wanted.acl.as_bytes().to_vec());
        let children = model.children(path);
        let names: BTreeSet<String> = node.child_names().map(str::to_owned).collect();
        assert_eq!(names, children, "{path}");
        let stat = &wanted.stat;
        let count = i32::try_from(children.len()).unwrap();
        let shown = Stat {
            cversion: stat.cversion * 2 - count,
            num_children: count,
            data_length: i32::try_from(wanted.data.as_ref().map_or(0, Vec::len)).unwrap(),
            ephemeral_owner: if SESSIONS.contains(&stat.ephemeral_owner) {
                stat.ephemeral_owner
            } else {
                0
            },
            ..*stat
        };
        assert_eq!(node.stat(), shown, "{path}");
        assert_eq!(node.ephemeral_owner_raw(), stat.ephemeral_owner);
        let below: Vec<&Znode> = model.below(path).map(|(_, node)| node).collect();
        assert_eq!(node.all_children_number(), below.len() as u64, "{path}");
        let bytes = below
            .iter()
            .chain([&wanted])
            .map(|node| node.data.as_ref().map_or(0, Vec::len));
        assert_eq!(node.subtree_bytes(), bytes.sum::<usize>() as u64, "{path}");
    }
    assert_eq!(tree.acl_count(), acls.len());
    let sessions: BTreeMap<i64, i32> = tree
        .sessions()
        .map(|(id, timeout)| (id.0, timeout))
        .collect();
    assert_eq!(sessions, model.sessions);
    let mut ephemerals = 0;
    for session in SESSIONS {
        let own = model.owned_by(session);
        ephemerals += own.len();
        let mut held: Vec<&str> = tree.ephemerals(SessionId(session)).collect();
        held.sort_unstable();
        assert_eq!(held, own);
        let bytes: usize = own.iter().map(|path| 4 + path.len()).sum();
        assert_eq!(tree.ephemeral_bytes(SessionId(session)), bytes);
    }
    assert_eq!(tree.ephemerals_count(), ephemerals);
    let mut containers: Vec<&str> = tree.containers().collect();
    containers.sort_unstable();
    assert_eq!(containers, model.owned_by(CONTAINER_OWNER));
    assert_eq!(
        tree.ttl_nodes().count(),
        model.owned_by(NodeKind::ttl_owner(9)).len()
    );
}

fn reloaded(tree: &Tree) -> Tree {
    let mut encoder = SnapshotEncoder::new(tree);
    let mut builder = SnapshotBuilder::new();
    let mut bytes = Vec::new();
    while encoder.next_chunk(&mut bytes) {
        builder.push(Chunk::decode(&bytes).unwrap()).unwrap();
    }
    builder.finish().unwrap()
}

type Step = (u8, u8, u8, u8, u16);

/// The transaction that the numbers stand for.
fn txn(model: &Model, (kind, path, which, session, len): Step) -> (OpCode, Txn<'static>) {
    let path = PATHS[usize::from(path) % PATHS.len()];
    let data = (len > 0).then(|| &DATA[..usize::from(len - 1)]);
    let version = i32::from(which) * 3;
    match kind {
        0..=7 => {
            let (op, kind) = match which % 5 {
                0 => (OpCode::CreateContainer, CreateKind::Container),
                1 => (OpCode::CreateTtl, CreateKind::Ttl(9)),
                2 => (OpCode::Create2, CreateKind::Plain { ephemeral: true }),
                _ => (OpCode::Create, CreateKind::Plain { ephemeral: false }),
            };
            let txn = Txn::Create {
                path: path.into(),
                data,
                acl: acl(which % 4),
                kind,
                parent_cversion: -1,
            };
            (op, txn)
        }
        // The special znodes are never deleted: requests for that are refused.
        8..=10 if path != "/zookeeper" => (OpCode::Delete, Txn::Delete { path: path.into() }),
        11..=13 => (
            OpCode::SetData,
            Txn::SetData {
                path: path.into(),
                data,
                version,
            },
        ),
        14..=15 => (
            OpCode::SetAcl,
            Txn::SetAcl {
                path: path.into(),
                acl: acl(which % 4),
                version,
            },
        ),
        16 => (
            OpCode::CreateSession,
            Txn::CreateSession {
                timeout_ms: version,
            },
        ),
        17 => {
            let own = model.owned_by(SESSIONS[usize::from(session) % 3]);
            let paths = (which % 2 == 0).then(|| own.into_iter().map(Into::into).collect());
            (OpCode::CloseSession, Txn::CloseSession { paths })
        }
        _ => (OpCode::Error, Txn::Error { code: -101 }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_tree_is_what_the_model_is_and_its_clones_never_change(
        steps in prop::collection::vec((0_u8..20, 0_u8..14, 0_u8..10, 0_u8..3, 0_u16..5000), 1..200),
    ) {
        let mut tree = Tree::new();
        let mut model = Model::new();
        let mut kept = vec![(tree.clone(), model.clone())];
        let mut multi = Vec::new();
        for (i, step) in steps.into_iter().enumerate() {
            let header = TxnHeader {
                session: SessionId(SESSIONS[usize::from(step.3) % 3]),
                cxid: 0,
                zxid: Zxid(i as u64 + 1),
                time_ms: 1000 + i64::try_from(i).unwrap(),
                op: OpCode::Error,
            };
            let (op, txn) = txn(&model, step);
            if step.0 == 19 && !multi.is_empty() {
                let parts: Vec<(OpCode, Txn<'_>)> = std::mem::take(&mut multi);
                let txn = Txn::Multi(parts);
                model.apply(&header, OpCode::Multi, &txn);
                let header = TxnHeader { op: OpCode::Multi, ..header };
                let _applied = tree.apply(&header, &txn, &mut Events::new());
            } else if step.2 == 9 && op != OpCode::Error && op != OpCode::CloseSession {
                // Kept for the next multi.
                multi.push((op, txn));
            } else {
                model.apply(&header, op, &txn);
                let header = TxnHeader { op, ..header };
                let _applied = tree.apply(&header, &txn, &mut Events::new());
            }
            prop_assert_eq!(tree.digest(), model.digest());
            if i % 40 == 7 {
                kept.push((tree.clone(), model.clone()));
            }
        }
        check(&tree, &model);
        check(&reloaded(&tree), &model);
        for (tree, model) in &kept {
            check(tree, model);
        }
    }
}
