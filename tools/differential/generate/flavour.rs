//! What a script is mostly about.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use ringkeeper_proto::acl::AclList;
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, OpCode, Request, ZkError};

use super::Generator;
use super::spoil::spoil;
use crate::script::Call;
use crate::servers::FRAME_BYTES_MAX;

#[derive(Clone, Copy, Debug)]
enum Flavour {
    Mixed,
    Watches,
    Multis,
    Acls,
    Sessions,
    Malformed,
    Quotas,
    Expiry,
    Restart,
    Big,
}

const WEIGHTS: [(Flavour, u32); 10] = [
    (Flavour::Mixed, 30),
    (Flavour::Watches, 16),
    (Flavour::Multis, 24),
    (Flavour::Acls, 10),
    (Flavour::Sessions, 10),
    (Flavour::Malformed, 9),
    (Flavour::Quotas, 10),
    (Flavour::Expiry, 2),
    (Flavour::Restart, 1),
    (Flavour::Big, 1),
];

impl Generator {
    /// Makes the steps of the whole script.
    pub(super) fn fill(&mut self) {
        let flavour = WEIGHTS
            .choose_weighted(&mut self.rng, |(_, weight)| *weight)
            .map_or(Flavour::Mixed, |(flavour, _)| *flavour);
        let connections = match flavour {
            Flavour::Watches | Flavour::Sessions => self.rng.random_range(2..=3),
            Flavour::Quotas | Flavour::Big => 1,
            _ => self.rng.random_range(1..=2),
        };
        for slot in 0..connections {
            self.open(slot);
        }
        if matches!(flavour, Flavour::Acls) || self.rng.random_ratio(1, 10) {
            let slot = self.open_slot();
            self.authenticate(slot);
        }
        match flavour {
            Flavour::Quotas => self.quotas(),
            Flavour::Big => self.big(),
            Flavour::Restart => self.restart(),
            Flavour::Expiry => {
                let slot = self.open_slot();
                self.burst(slot, 5);
                self.expiry();
            }
            _ => {
                for _ in 0..self.rng.random_range(8..16) {
                    self.step_of(flavour);
                }
                if matches!(flavour, Flavour::Acls) && self.rng.random() {
                    self.hidden_events();
                }
            }
        }
        if self.rng.random_ratio(3, 10) {
            self.last_step();
        }
    }

    fn step_of(&mut self, flavour: Flavour) {
        let slot = self.open_slot();
        let count = self.rng.random_range(1..6);
        match (flavour, self.rng.random_range(0..10)) {
            (Flavour::Watches, 0..5) => {
                let call = self.watch_call(slot);
                self.call(slot, call);
            }
            (Flavour::Multis, 0..9) => self.multi_burst(slot),
            (Flavour::Acls, 0) => self.authenticate(slot),
            (Flavour::Acls, 1..5) => self.acl_burst(slot, count),
            (Flavour::Sessions, 0..6) => self.session_step(),
            (Flavour::Malformed, 0) => self.unknown_operation(slot),
            (Flavour::Malformed, 0..8) => self.malformed(slot),
            (Flavour::Mixed, 0) => {
                let call = self.watch_call(slot);
                self.call(slot, call);
            }
            (Flavour::Mixed, 1) if self.rng.random_ratio(1, 4) => self.session_step(),
            _ => self.burst(slot, count),
        }
    }

    fn multi_burst(&mut self, slot: usize) {
        const AIMS: [super::Aim; 6] = [
            (OpCode::Multi, Some(ZkError::RuntimeInconsistency)),
            (OpCode::Multi, Some(ZkError::RuntimeInconsistency)),
            (OpCode::Multi, Some(ZkError::RuntimeInconsistency)),
            (OpCode::Multi, Some(ZkError::RuntimeInconsistency)),
            (OpCode::Multi, None),
            (OpCode::MultiRead, Some(ZkError::RuntimeInconsistency)),
        ];
        let mut calls = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let aim = *AIMS.choose(&mut self.rng).unwrap_or(&AIMS[0]);
            let call = self.call_for(slot, aim, &mut calls);
            self.apply(slot, &call);
            calls.push(call);
        }
        self.send(slot, calls);
    }

    fn acl_burst(&mut self, slot: usize, count: usize) {
        const AIMS: [super::Aim; 12] = [
            (OpCode::Create, None),
            (OpCode::SetAcl, None),
            (OpCode::GetAcl, None),
            (OpCode::SetAcl, Some(ZkError::InvalidAcl)),
            (OpCode::SetAcl, Some(ZkError::NoAuth)),
            (OpCode::GetAcl, Some(ZkError::NoAuth)),
            (OpCode::Create, Some(ZkError::InvalidAcl)),
            (OpCode::Create2, Some(ZkError::NoAuth)),
            (OpCode::Delete, Some(ZkError::NoAuth)),
            (OpCode::GetData, Some(ZkError::NoAuth)),
            (OpCode::WhoAmI, None),
            (OpCode::SetData, Some(ZkError::NoAuth)),
        ];
        let mut calls = Vec::new();
        for _ in 0..count {
            let aim = *AIMS.choose(&mut self.rng).unwrap_or(&AIMS[0]);
            let call = self.call_for(slot, aim, &mut calls);
            self.apply(slot, &call);
            calls.push(call);
        }
        self.send(slot, calls);
    }

    fn malformed(&mut self, slot: usize) {
        let sound = if self.rng.random_ratio(1, 4) {
            self.set_watches(slot)
        } else if self.rng.random_ratio(1, 3) {
            self.watch_call(slot)
        } else {
            let aim = *self
                .aims
                .choose(&mut self.rng)
                .unwrap_or(&(OpCode::Ping, None));
            let mut calls = Vec::new();
            let call = self.call_for(slot, (aim.0, None), &mut calls);
            for first in calls {
                self.steps.push(crate::script::Step::Burst {
                    slot,
                    calls: vec![first],
                });
            }
            call
        };
        let mut call = spoil(sound, &mut self.rng);
        if self.rng.random_ratio(1, 10) {
            call.xid = Some(
                *[0, i32::MAX, i32::MIN, -2, -3, -4, -5, -8]
                    .choose(&mut self.rng)
                    .unwrap_or(&0),
            );
        }
        self.call(slot, call);
    }

    /// A subtree with a quota, and writes that use it up.
    fn quotas(&mut self) {
        const LIMITS: [&str; 9] = [
            "count=3,bytes=20",
            "count=-1,bytes=-1=;byteHardLimit=30;countHardLimit=4",
            "count=2,bytes=10=;byteHardLimit=40;countHardLimit=5",
            "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=2",
            "count=-1,bytes=-1=;byteHardLimit=0;countHardLimit=-1",
            "count=1,bytes=1,byteHardLimit=25,countHardLimit=3",
            "count=-1,bytes=-1,byteHardLimit=25,countHardLimit=3",
            "count=-1,bytes=-1;byteHardLimit=12;countHardLimit=2",
            "count=1,bytes=-1",
        ];
        let slot = self.open_slot();
        let root = self.model.root.clone();
        let limited = format!("{root}/q");
        self.quota_create(slot, &limited, b"12", 0);
        if self.rng.random() {
            self.quota_create(slot, &format!("{limited}/early"), b"1234", 0);
        }
        let quota_root = format!("/zookeeper/quota{root}");
        self.quota_create(slot, &quota_root, b"", 0);
        self.quota_create(slot, &format!("{quota_root}/q"), b"", 0);
        let limits = format!("{quota_root}/q/zookeeper_limits");
        let stats = format!("{quota_root}/q/zookeeper_stats");
        let text = *LIMITS.choose(&mut self.rng).unwrap_or(&LIMITS[0]);
        let limits_first = self.rng.random();
        if limits_first {
            self.quota_create(slot, &limits, text.as_bytes(), 0);
        }
        self.quota_create(slot, &stats, b"count=0,bytes=0", 0);
        if !limits_first {
            self.quota_create(slot, &limits, text.as_bytes(), 0);
        }
        for round in 0..self.rng.random_range(10..24) {
            self.quota_step(slot, &limited, &limits, round);
            if self.rng.random() {
                let watch = false;
                let path = stats.as_str();
                self.call(slot, Call::of(&Request::GetData { path, watch }));
            }
        }
    }

    fn quota_create(&mut self, slot: usize, path: &str, data: &[u8], flags: i32) {
        let ops = [OpCode::Create, OpCode::Create2];
        let op = *ops.choose(&mut self.rng).unwrap_or(&OpCode::Create);
        let call = create(op, path, data, flags);
        self.call(slot, call);
    }

    fn quota_step(&mut self, slot: usize, limited: &str, limits: &str, round: usize) {
        let data = vec![b'd'; self.rng.random_range(0..16)];
        let path = format!("{limited}/c{}", self.rng.random_range(0..4));
        let call = match self.rng.random_range(0..24) {
            0..3 => create(OpCode::Create, &path, &data, 0),
            3..6 => create(OpCode::Create2, &format!("{limited}/s"), &data, 2),
            6..9 => create(
                OpCode::CreateContainer,
                &format!("{limited}/t{round}"),
                &data,
                4,
            ),
            9..12 => create(OpCode::CreateTtl, &format!("{limited}/l{round}"), &data, 5),
            12..15 => {
                let data = vec![b'D'; self.rng.random_range(0..64)];
                Call::of(&Request::SetData {
                    path: if self.rng.random_ratio(3, 4) {
                        limited
                    } else {
                        &path
                    },
                    data: if data.is_empty() { None } else { Some(&data) },
                    version: -1,
                })
            }
            15 => Call::of(&Request::Delete {
                path: &path,
                version: -1,
            }),
            16..23 => {
                let path = format!("{limited}/m{round}");
                // One write to the quota in a multi: what several add up to, Apache does not see.
                let part = match self.rng.random_range(0..5) {
                    0 => create(OpCode::Create, &path, &data, 0),
                    1 => create(OpCode::Create2, &path, &data, 1),
                    2 => create(OpCode::CreateContainer, &path, &data, 4),
                    3 => create(OpCode::CreateTtl, &path, &data, 5),
                    _ => Call::of(&Request::SetData {
                        path: limited,
                        data: Some(&[b'm'; 50]),
                        version: -1,
                    }),
                };
                super::aim::multi_of(OpCode::Multi, &[part])
            }
            _ if self.rng.random_ratio(1, 3) => Call::of(&Request::Delete {
                path: limits,
                version: -1,
            }),
            _ => Call::of(&Request::SetData {
                path: limits,
                data: Some(b"count=4,bytes=50=;byteHardLimit=60;countHardLimit=6"),
                version: -1,
            }),
        };
        self.call(slot, call);
    }

    /// Frames and data near the largest size.
    fn big(&mut self) {
        let slot = self.open_slot();
        let path = format!("{}/big", self.model.root);
        // The frame of a create: header 8, path, data and their lengths, the open ACL 31, flags 4.
        let around = 8 + 4 + path.len() + 4 + 31 + 4;
        let fits = FRAME_BYTES_MAX - around;
        let size = *[fits, fits - 1, 1 << 19]
            .choose(&mut self.rng)
            .unwrap_or(&fits);
        self.call(slot, create(OpCode::Create, &path, &vec![b'x'; size], 0));
        let watch = false;
        self.call(slot, Call::of(&Request::GetData { path: &path, watch }));
        let long = format!("{}/{}", self.model.root, "l".repeat(60_000));
        self.call(slot, create(OpCode::Create2, &long, b"", 0));
        let root = self.model.root.clone();
        let path = root.as_str();
        self.call(
            slot,
            Call::of(&Request::GetChildren {
                op: OpCode::GetChildren2,
                path,
                watch,
            }),
        );
        let too_big = format!("{root}/too-big");
        self.call(
            slot,
            create(OpCode::Create, &too_big, &vec![b'x'; fits + 1], 0),
        );
        self.slots[slot].is_open = false;
    }

    /// A request after which the servers are known to differ, so that nothing may follow it.
    fn last_step(&mut self) {
        let slot = self.open_slot();
        if self.rng.random_ratio(1, 6) {
            let timeout_ms: i32 = 20_000;
            let call = Call::raw(
                OpCode::CreateSession.code(),
                timeout_ms.to_be_bytes().to_vec(),
            );
            self.call(slot, call);
            return;
        }
        let end = *[
            None,
            Some(ZkError::NoNode),
            Some(ZkError::NotEmpty),
            Some(ZkError::BadVersion),
            Some(ZkError::BadArguments),
            Some(ZkError::MarshallingError),
        ]
        .choose(&mut self.rng)
        .unwrap_or(&None);
        let mut first = Vec::new();
        let call = self.delete_container(end, &mut first);
        for call in first {
            self.call(slot, call);
        }
        self.call(slot, call);
    }

    fn delete_container(&mut self, end: Option<ZkError>, first: &mut Vec<Call>) -> Call {
        let path = match end {
            Some(ZkError::NoNode) => self.missing_path(),
            Some(ZkError::BadArguments) => "/zookeeper/quota".to_owned(),
            Some(ZkError::BadVersion) => {
                let path = self.fresh_path("own");
                first.push(create(OpCode::Create, &path, b"", 1));
                path
            }
            Some(ZkError::NotEmpty) => {
                let path = self.fresh_path("up");
                first.push(create(OpCode::Create, &path, b"", 0));
                first.push(create(OpCode::Create, &format!("{path}/a"), b"", 0));
                path
            }
            _ => {
                let path = self.fresh_path("box");
                first.push(create(OpCode::CreateContainer, &path, b"", 4));
                path
            }
        };
        let call = Call::of(&Request::DeleteContainer { path: &path });
        if end == Some(ZkError::MarshallingError) {
            let body = (-2_i32).to_be_bytes().to_vec();
            return Call {
                spoiled: Some("negative path length"),
                ..Call::raw(OpCode::DeleteContainer.code(), body)
            };
        }
        call
    }
}

/// A create with an open ACL.
pub(super) fn create(op: OpCode, path: &str, data: &[u8], flags: i32) -> Call {
    Call::of(&Request::Create {
        op,
        create: CreateRequest {
            path,
            data: Some(data),
            acl: Some(AclList::new(&Acl::open())),
            flags,
            ttl_ms: (op == OpCode::CreateTtl).then_some(1_000_000),
        },
    })
}
