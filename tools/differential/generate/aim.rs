//! Requests that aim at an outcome: for every operation and every error it can answer, what has to be
//! there first and what to ask.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use ringkeeper_proto::acl::AclList;
use ringkeeper_proto::request::{CreateRequest, MultiHeader};
use ringkeeper_proto::{Acl, Id, OpCode, Perms, Request, WriteJute as _, ZkError};

use super::Generator;
use super::model::{Kind, allows};
use super::spoil::spoil;
use crate::identity::digest_id;
use crate::script::Call;

/// An operation and how it should end; `None` is success.
pub(crate) type Aim = (OpCode, Option<ZkError>);

const CREATES: [OpCode; 4] = [
    OpCode::Create,
    OpCode::Create2,
    OpCode::CreateContainer,
    OpCode::CreateTtl,
];
const CREATE_ENDS: [Option<ZkError>; 8] = [
    None,
    Some(ZkError::NoNode),
    Some(ZkError::NodeExists),
    Some(ZkError::NoChildrenForEphemerals),
    Some(ZkError::InvalidAcl),
    Some(ZkError::BadArguments),
    Some(ZkError::NoAuth),
    Some(ZkError::MarshallingError),
];
const READS: [OpCode; 6] = [
    OpCode::Exists,
    OpCode::GetData,
    OpCode::GetAcl,
    OpCode::GetChildren,
    OpCode::GetChildren2,
    OpCode::GetAllChildrenNumber,
];
const READ_ENDS: [Option<ZkError>; 4] = [
    None,
    Some(ZkError::NoNode),
    Some(ZkError::NoAuth),
    Some(ZkError::MarshallingError),
];
const OTHERS: [Aim; 36] = [
    (OpCode::Exists, Some(ZkError::BadArguments)),
    (OpCode::Delete, None),
    (OpCode::Delete, Some(ZkError::NoNode)),
    (OpCode::Delete, Some(ZkError::BadVersion)),
    (OpCode::Delete, Some(ZkError::NotEmpty)),
    (OpCode::Delete, Some(ZkError::NoAuth)),
    (OpCode::Delete, Some(ZkError::BadArguments)),
    (OpCode::Delete, Some(ZkError::MarshallingError)),
    (OpCode::SetData, None),
    (OpCode::SetData, Some(ZkError::NoNode)),
    (OpCode::SetData, Some(ZkError::BadVersion)),
    (OpCode::SetData, Some(ZkError::NoAuth)),
    (OpCode::SetData, Some(ZkError::BadArguments)),
    (OpCode::SetData, Some(ZkError::MarshallingError)),
    (OpCode::SetAcl, None),
    (OpCode::SetAcl, Some(ZkError::NoNode)),
    (OpCode::SetAcl, Some(ZkError::BadVersion)),
    (OpCode::SetAcl, Some(ZkError::NoAuth)),
    (OpCode::SetAcl, Some(ZkError::InvalidAcl)),
    (OpCode::SetAcl, Some(ZkError::BadArguments)),
    (OpCode::SetAcl, Some(ZkError::MarshallingError)),
    (OpCode::Sync, None),
    (OpCode::Sync, Some(ZkError::MarshallingError)),
    (OpCode::Ping, None),
    (OpCode::WhoAmI, None),
    (OpCode::GetEphemerals, None),
    (OpCode::GetEphemerals, Some(ZkError::MarshallingError)),
    (OpCode::Reconfig, Some(ZkError::ReconfigDisabled)),
    (OpCode::Reconfig, Some(ZkError::MarshallingError)),
    (OpCode::Multi, None),
    (OpCode::Multi, Some(ZkError::RuntimeInconsistency)),
    (OpCode::Multi, Some(ZkError::MarshallingError)),
    (OpCode::MultiRead, None),
    (OpCode::MultiRead, Some(ZkError::RuntimeInconsistency)),
    (OpCode::MultiRead, Some(ZkError::MarshallingError)),
    (OpCode::Reconfig, Some(ZkError::ReconfigDisabled)),
];

/// Everything to aim at outside the special flavours.
pub(crate) fn aims() -> Vec<Aim> {
    let mut aims = OTHERS.to_vec();
    for op in CREATES {
        aims.extend(CREATE_ENDS.map(|end| (op, end)));
        aims.extend([(op, Some(ZkError::Unimplemented)); 2]);
    }
    for op in READS {
        aims.extend(READ_ENDS.map(|end| (op, end)));
    }
    aims
}

impl Generator {
    /// A call of `slot` that should end as aimed. What it needs first is appended to `calls`.
    pub(crate) fn call_for(&mut self, slot: usize, aim: Aim, calls: &mut Vec<Call>) -> Call {
        let (op, end) = aim;
        if end == Some(ZkError::MarshallingError) {
            let sound = self.call_for(slot, (op, None), calls);
            return spoil(sound, &mut self.rng);
        }
        match op {
            OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
                self.create_for(slot, op, end, calls)
            }
            OpCode::Delete => self.delete_for(slot, end, calls),
            OpCode::SetData => {
                let (path, version) = self.versioned(slot, end, Perms::WRITE, calls, |z| z.version);
                let data = self.data();
                Call::of(&Request::SetData {
                    path: &path,
                    data: data.as_deref(),
                    version,
                })
            }
            OpCode::SetAcl => {
                let (path, version) =
                    self.versioned(slot, end, Perms::ADMIN, calls, |z| z.aversion);
                let acl = if end == Some(ZkError::InvalidAcl) {
                    self.bad_acl(slot)
                } else {
                    Some(self.acl(slot))
                };
                Call::of(&Request::SetAcl {
                    path: &path,
                    acl: acl.as_deref().map(AclList::new),
                    version,
                })
            }
            OpCode::Multi | OpCode::MultiRead => self.multi_for(slot, op, end, calls),
            OpCode::Reconfig => Call::raw(op.code(), self.reconfig_body()),
            OpCode::Ping => Call::of(&Request::Ping),
            OpCode::WhoAmI => Call::of(&Request::WhoAmI),
            OpCode::GetEphemerals => {
                let root = self.model.root.clone();
                let prefixes = ["", "/", " ", "/r", &root, "/nothing", "r"];
                let prefix = (*prefixes.choose(&mut self.rng).unwrap_or(&"")).to_owned();
                Call::of(&Request::GetEphemerals { prefix: &prefix })
            }
            OpCode::Sync => {
                let path = self.any_path();
                Call::of(&Request::Sync { path: &path })
            }
            _ => self.read_for(slot, op, end, calls),
        }
    }

    fn create_for(
        &mut self,
        slot: usize,
        op: OpCode,
        end: Option<ZkError>,
        calls: &mut Vec<Call>,
    ) -> Call {
        let mut flags = match op {
            OpCode::CreateContainer => 4,
            OpCode::CreateTtl => *[5, 5, 6].choose(&mut self.rng).unwrap_or(&5),
            _ => *[0, 0, 0, 1, 1, 2, 3].choose(&mut self.rng).unwrap_or(&0),
        };
        let mut ttl_ms = self.rng.random_range(1..1 << 30);
        let path = match end {
            Some(ZkError::NoNode) => {
                let name = self.name();
                format!("{}/none/{name}", self.model.root)
            }
            Some(ZkError::NodeExists) => {
                flags = if op == OpCode::CreateTtl {
                    5
                } else {
                    flags & !2
                };
                self.some_path(slot, Perms::READ, calls)
            }
            Some(ZkError::NoChildrenForEphemerals) => {
                format!("{}/{}", self.ephemeral(slot, calls), self.name())
            }
            Some(ZkError::NoAuth) => {
                format!(
                    "{}/{}",
                    self.locked(slot, Perms::CREATE, calls),
                    self.name()
                )
            }
            Some(ZkError::Unimplemented) => {
                flags = *[5, 6].choose(&mut self.rng).unwrap_or(&5);
                self.new_path(slot)
            }
            Some(ZkError::BadArguments) if self.rng.random_ratio(2, 3) => self.bad_path(),
            Some(ZkError::BadArguments) => {
                if op == OpCode::CreateTtl && self.rng.random() {
                    ttl_ms = *[0, -1, 1 << 40, i64::MAX, i64::MIN]
                        .choose(&mut self.rng)
                        .unwrap_or(&0);
                } else {
                    flags = *[-1, 4, 5, 6, 7, 100, i32::MIN]
                        .choose(&mut self.rng)
                        .unwrap_or(&7);
                }
                self.new_path(slot)
            }
            _ => self.new_path(slot),
        };
        let acl = if end == Some(ZkError::InvalidAcl) {
            self.bad_acl(slot)
        } else if self.rng.random_ratio(3, 4) {
            Some(Acl::open())
        } else {
            Some(self.acl(slot))
        };
        let data = self.data();
        Call::of(&Request::Create {
            op,
            create: CreateRequest {
                path: &path,
                data: data.as_deref(),
                acl: acl.as_deref().map(AclList::new),
                flags,
                ttl_ms: (op == OpCode::CreateTtl).then_some(ttl_ms),
            },
        })
    }

    fn delete_for(&mut self, slot: usize, end: Option<ZkError>, calls: &mut Vec<Call>) -> Call {
        let mut version = -1;
        let path = match end {
            Some(ZkError::NoNode) => self.missing_path(),
            Some(ZkError::BadArguments) => {
                let root = &self.model.root;
                let paths = [
                    "",
                    "x",
                    "/",
                    "/zookeeper",
                    "/zookeeper/quota",
                    "/zookeeper/config",
                    &format!("{root}/a\0"),
                    &format!("{root}/"),
                ];
                (*paths.choose(&mut self.rng).unwrap_or(&"")).to_owned()
            }
            Some(ZkError::NotEmpty) => self.parent(slot, calls),
            Some(ZkError::NoAuth) => {
                format!(
                    "{}/{}",
                    self.locked(slot, Perms::DELETE, calls),
                    self.name()
                )
            }
            _ => {
                let path = self.leaf(slot, calls);
                let current = self.model.znodes.get(&path).map_or(0, |z| z.version);
                if end == Some(ZkError::BadVersion) {
                    version = current + self.rng.random_range(1..3);
                } else if self.rng.random() {
                    version = current;
                }
                path
            }
        };
        Call::of(&Request::Delete {
            path: &path,
            version,
        })
    }

    /// The path and version of a setData, setACL or check.
    fn versioned(
        &mut self,
        slot: usize,
        end: Option<ZkError>,
        perms: Perms,
        calls: &mut Vec<Call>,
        current: fn(&super::model::Znode) -> i32,
    ) -> (String, i32) {
        match end {
            Some(ZkError::NoNode) => (self.missing_path(), -1),
            Some(ZkError::BadArguments) => (self.bad_path(), -1),
            Some(ZkError::NoAuth) => (self.locked(slot, perms, calls), -1),
            _ => {
                let path = self.some_path(slot, perms, calls);
                let current = self.model.znodes.get(&path).map_or(0, current);
                let version = match end {
                    Some(ZkError::BadVersion) => {
                        let away = *[1, 2, -3, i32::MIN].choose(&mut self.rng).unwrap_or(&1);
                        current.wrapping_add(away)
                    }
                    _ if self.rng.random() => current,
                    _ => -1,
                };
                (path, version)
            }
        }
    }

    fn read_for(
        &mut self,
        slot: usize,
        op: OpCode,
        end: Option<ZkError>,
        calls: &mut Vec<Call>,
    ) -> Call {
        let perms = if op == OpCode::GetAcl {
            Perms::READ.union(Perms::ADMIN)
        } else {
            Perms::READ
        };
        let path = match end {
            Some(ZkError::NoNode) => self.missing_path(),
            Some(ZkError::NoAuth) => self.locked(slot, perms, calls),
            Some(ZkError::BadArguments) => format!("{}/a\0b", self.model.root),
            _ if self.rng.random_ratio(1, 10) => self.lasting_path(),
            _ => self.some_path(slot, perms, calls),
        };
        let watch = self.rng.random_ratio(1, 3) && self.may_watch(slot, &path, super::Mode::Once);
        let path = path.as_str();
        Call::of(&match op {
            OpCode::Exists => Request::Exists { path, watch },
            OpCode::GetData => Request::GetData { path, watch },
            OpCode::GetAcl => Request::GetAcl { path },
            OpCode::GetAllChildrenNumber => Request::GetAllChildrenNumber { path },
            _ => Request::GetChildren { op, path, watch },
        })
    }

    fn multi_for(
        &mut self,
        slot: usize,
        op: OpCode,
        end: Option<ZkError>,
        calls: &mut Vec<Call>,
    ) -> Call {
        let count = self.rng.random_range(0..6);
        let bad = end
            .is_some()
            .then(|| self.rng.random_range(0..count.max(1)));
        let before = self.model.clone();
        let first = calls.len();
        let mut parts = Vec::new();
        for place in 0..count {
            let is_bad = bad == Some(place);
            let part = if op == OpCode::MultiRead {
                let ops = [OpCode::GetData, OpCode::GetChildren];
                let ends = [Some(ZkError::NoNode), Some(ZkError::NoAuth)];
                let op = *ops.choose(&mut self.rng).unwrap_or(&ops[0]);
                let end = *ends.choose(&mut self.rng).unwrap_or(&None);
                self.call_for(slot, (op, if is_bad { end } else { None }), calls)
            } else {
                let (op, end) = self.part_aim(is_bad);
                let part = self.part_for(slot, op, end, calls);
                self.apply(slot, &part);
                part
            };
            parts.push(part);
        }
        if self.rng.random_ratio(1, 25) {
            // Reads among writes, or an operation that no multi takes.
            let other = if op == OpCode::Multi {
                OpCode::GetData
            } else {
                OpCode::Sync
            };
            parts.push(self.call_for(slot, (other, None), calls));
        }
        // Nothing of it has happened yet, except what was put before it.
        self.model = before;
        for call in &calls[first..] {
            self.apply(slot, call);
        }
        multi_of(op, &parts)
    }

    /// What an operation of a multi should be and how it should end.
    fn part_aim(&mut self, is_bad: bool) -> Aim {
        // The one with the most ways to fail stands twice.
        const OPS: [OpCode; 8] = [
            OpCode::Create,
            OpCode::Create2,
            OpCode::CreateContainer,
            OpCode::CreateTtl,
            OpCode::CreateTtl,
            OpCode::Delete,
            OpCode::SetData,
            OpCode::Check,
        ];
        const VERSIONED: [ZkError; 4] = [
            ZkError::BadVersion,
            ZkError::NoAuth,
            ZkError::NoNode,
            ZkError::BadArguments,
        ];
        let op = *OPS.choose(&mut self.rng).unwrap_or(&OPS[0]);
        if !is_bad {
            return (op, None);
        }
        let end = match op {
            OpCode::SetData | OpCode::Check => VERSIONED.choose(&mut self.rng).copied(),
            OpCode::Delete if self.rng.random_ratio(1, 5) => Some(ZkError::NotEmpty),
            OpCode::Delete => VERSIONED.choose(&mut self.rng).copied(),
            OpCode::CreateTtl if self.rng.random_ratio(1, 6) => Some(ZkError::BadArguments),
            // Neither success, which stands first, nor what no multi could carry, which stands last.
            _ => CREATE_ENDS[1..CREATE_ENDS.len() - 1]
                .choose(&mut self.rng)
                .copied()
                .flatten(),
        };
        (op, end)
    }

    fn part_for(
        &mut self,
        slot: usize,
        op: OpCode,
        end: Option<ZkError>,
        calls: &mut Vec<Call>,
    ) -> Call {
        if op == OpCode::Check {
            let (path, version) = self.versioned(slot, end, Perms::READ, calls, |z| z.version);
            return Call::of(&Request::Check {
                path: &path,
                version,
            });
        }
        self.call_for(slot, (op, end), calls)
    }

    /// A create that makes what another call needs; it goes before that call.
    fn first_create(
        &mut self,
        slot: usize,
        flags: i32,
        parent: &str,
        acl: &[Acl],
        calls: &mut Vec<Call>,
    ) -> String {
        let path = format!("{parent}/n{}", self.next_name());
        let call = Call::of(&Request::Create {
            op: OpCode::Create,
            create: CreateRequest {
                path: &path,
                data: Some(b"x"),
                acl: Some(AclList::new(acl)),
                flags,
                ttl_ms: None,
            },
        });
        self.apply(slot, &call);
        calls.push(call);
        path
    }

    /// A znode that `slot` may use for `perms`.
    fn some_path(&mut self, slot: usize, perms: Perms, calls: &mut Vec<Call>) -> String {
        let ids = self.who(slot).ids;
        self.pick(|_, znode| allows(&znode.acl, perms, &ids))
            .unwrap_or_else(|| {
                let root = self.model.root.clone();
                self.first_create(slot, 0, &root, &Acl::open(), calls)
            })
    }

    /// A znode that denies `perms` to `slot`.
    fn locked(&mut self, slot: usize, perms: Perms, calls: &mut Vec<Call>) -> String {
        let who = self.who(slot);
        if let Some(path) = self.pick(|_, znode| !allows(&znode.acl, perms, &who.ids)) {
            return path;
        }
        let stranger = Acl {
            perms: Perms::ALL,
            id: Id::new("digest", digest_id("carol", "c")),
        };
        let rest = Acl {
            perms: Perms(Perms::ALL.0 & !perms.0),
            id: Id::new("world", "anyone"),
        };
        let acl = if self.rng.random() {
            vec![stranger]
        } else {
            vec![rest]
        };
        let root = self.model.root.clone();
        self.first_create(slot, 0, &root, &acl, calls)
    }

    fn ephemeral(&mut self, slot: usize, calls: &mut Vec<Call>) -> String {
        self.pick(|_, znode| matches!(znode.kind, Kind::Ephemeral(_)))
            .unwrap_or_else(|| {
                let root = self.model.root.clone();
                self.first_create(slot, 1, &root, &Acl::open(), calls)
            })
    }

    fn leaf(&mut self, slot: usize, calls: &mut Vec<Call>) -> String {
        let root = self.model.root.clone();
        self.pick(|path, znode| znode.children == 0 && path != root)
            .unwrap_or_else(|| self.first_create(slot, 0, &root, &Acl::open(), calls))
    }

    fn parent(&mut self, slot: usize, calls: &mut Vec<Call>) -> String {
        let root = self.model.root.clone();
        self.pick(|path, znode| znode.children > 0 && path != root)
            .unwrap_or_else(|| {
                let parent = self.first_create(slot, 0, &root, &Acl::open(), calls);
                self.first_create(slot, 0, &parent, &Acl::open(), calls);
                parent
            })
    }

    fn reconfig_body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        for text in ["server.2=localhost:1:2;3", "2", ""] {
            if self.rng.random() {
                body.put_buffer(None);
            } else {
                body.put_ustring(text);
            }
        }
        body.extend(self.rng.random_range(-1_i64..2).to_be_bytes());
        body
    }
}

/// A multi of these calls, whatever they are.
pub(crate) fn multi_of(op: OpCode, parts: &[Call]) -> Call {
    let mut body = Vec::new();
    for part in parts {
        MultiHeader {
            op: part.op,
            done: false,
            error: -1,
        }
        .encode(&mut body);
        body.extend(&part.body);
    }
    MultiHeader::END.encode(&mut body);
    Call::raw(op.code(), body)
}
