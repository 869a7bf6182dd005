//! Watches of every kind, and what takes them away.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use ringkeeper_proto::acl::AclList;
use ringkeeper_proto::request::{CreateRequest, SetWatchesRequest};
use ringkeeper_proto::{Acl, Id, OpCode, Perms, Request};

use super::{Generator, Mode};
use crate::identity::digest_id;
use crate::script::{Call, Since, Step};

impl Generator {
    /// Whether `slot` may watch `path` in this mode. A second mode on one path is let through now and
    /// then, and the script remembers.
    pub(super) fn may_watch(&mut self, slot: usize, path: &str, mode: Mode) -> bool {
        let watched = &mut self.slots[slot].watched;
        match watched.get(path) {
            Some(known) if *known == mode => true,
            None => {
                watched.insert(path.to_owned(), mode);
                true
            }
            Some(_) if self.rng.random_ratio(1, 25) => {
                self.mixes_watch_modes = true;
                true
            }
            Some(_) => false,
        }
    }

    /// One call that is about watches.
    pub(super) fn watch_call(&mut self, slot: usize) -> Call {
        match self.rng.random_range(0..14) {
            0..4 => self.add_watch(slot),
            4..7 => self.watching_read(slot),
            7..10 => self.watches_question(slot, OpCode::CheckWatches),
            10..13 => self.watches_question(slot, OpCode::RemoveWatches),
            _ => self.set_watches(slot),
        }
    }

    fn add_watch(&mut self, slot: usize) -> Call {
        if self.rng.random_ratio(1, 12) {
            let mode = *[2, -1, 7, i32::MAX].choose(&mut self.rng).unwrap_or(&2);
            let path = self.any_path();
            return Call::of(&Request::AddWatch { path: &path, mode });
        }
        for _ in 0..4 {
            let path = self.any_path();
            let (mode, code) = if self.rng.random() {
                (Mode::Persistent, 0)
            } else {
                (Mode::Recursive, 1)
            };
            if self.may_watch(slot, &path, mode) {
                return Call::of(&Request::AddWatch {
                    path: &path,
                    mode: code,
                });
            }
        }
        self.watching_read(slot)
    }

    fn watching_read(&mut self, slot: usize) -> Call {
        let path = self.any_path();
        let watch = self.may_watch(slot, &path, Mode::Once);
        let path = path.as_str();
        Call::of(&match self.rng.random_range(0..4) {
            0 => Request::Exists { path, watch },
            1 => Request::GetData { path, watch },
            2 => Request::GetChildren {
                op: OpCode::GetChildren,
                path,
                watch,
            },
            _ => Request::GetChildren {
                op: OpCode::GetChildren2,
                path,
                watch,
            },
        })
    }

    /// checkWatches or removeWatches.
    fn watches_question(&mut self, slot: usize, op: OpCode) -> Call {
        let watched: Vec<&String> = self.slots[slot].watched.keys().collect();
        let path = match watched.choose(&mut self.rng) {
            Some(path) if self.rng.random_ratio(3, 4) => (*path).clone(),
            _ => self.any_path(),
        };
        let kind = *[1, 2, 3, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 0, 6, -1]
            .choose(&mut self.rng)
            .unwrap_or(&3);
        Call::of(&if op == OpCode::CheckWatches {
            Request::CheckWatches { path: &path, kind }
        } else {
            Request::RemoveWatches { path: &path, kind }
        })
    }

    /// One client watches what it may not read, and another changes it.
    pub(super) fn hidden_events(&mut self) {
        let (owner, watcher) = (0, 1);
        for slot in [owner, watcher] {
            if self.slots[slot].is_open {
                self.steps.push(Step::Drop { slot });
            }
            self.open(slot);
        }
        let mut auth = Call::of(&Request::Auth {
            kind: 0,
            scheme: "digest",
            auth: b"alice:a",
        });
        auth.xid = Some(-4);
        self.call(owner, auth);
        self.slots[owner]
            .ids
            .push(Id::new("digest", digest_id("alice", "a")));
        let path = self.fresh_path("hidden");
        let perms = Perms(Perms::ALL.0 & !Perms::READ.0);
        let mine = Acl {
            perms: Perms::ALL,
            id: Id::new("auth", ""),
        };
        let world = |perms| Acl {
            perms,
            id: Id::new("world", "anyone"),
        };
        let acl = vec![
            mine,
            world(if self.rng.random() {
                perms
            } else {
                Perms::READ
            }),
        ];
        let create = |path: &str, acl: &[Acl]| {
            Call::of(&Request::Create {
                op: OpCode::Create,
                create: CreateRequest {
                    path,
                    data: None,
                    acl: Some(AclList::new(acl)),
                    flags: 0,
                    ttl_ms: None,
                },
            })
        };
        let watched_early: bool = self.rng.random();
        if !watched_early {
            self.call(owner, create(&path, &acl));
        }
        let mode = self.rng.random_range(0..2);
        self.call(watcher, Call::of(&Request::AddWatch { path: &path, mode }));
        if watched_early {
            self.call(owner, create(&path, &acl));
        }
        let child = format!("{path}/child");
        let version = -1;
        self.call(owner, create(&child, &Acl::open()));
        self.call(
            owner,
            Call::of(&Request::SetData {
                path: &path,
                data: None,
                version,
            }),
        );
        for path in [&child, &path] {
            self.call(owner, Call::of(&Request::Delete { path, version }));
        }
    }

    /// What a client asks to get its watches back.
    pub(super) fn set_watches(&mut self, slot: usize) -> Call {
        let since = match self.rng.random_range(0..10) {
            0 => Since::Nothing,
            1 => Since::Future,
            _ => Since::Step(self.rng.random_range(0..self.steps.len().max(1))),
        };
        let op = if self.rng.random() {
            OpCode::SetWatches
        } else {
            OpCode::SetWatches2
        };
        let mut lists: [Vec<String>; 5] = Default::default();
        let count = if op == OpCode::SetWatches { 3 } else { 5 };
        for (place, list) in lists.iter_mut().enumerate().take(count) {
            let mode = match place {
                3 => Mode::Persistent,
                4 => Mode::Recursive,
                _ => Mode::Once,
            };
            for _ in 0..self.rng.random_range(0..3) {
                let path = self.any_path();
                if self.may_watch(slot, &path, mode) {
                    list.push(path);
                }
            }
        }
        let texts = |place: usize| lists[place].iter().map(String::as_str).collect();
        let mut call = Call::of(&Request::SetWatches {
            op,
            watches: SetWatchesRequest {
                data: texts(0),
                exist: texts(1),
                child: texts(2),
                persistent: texts(3),
                persistent_recursive: texts(4),
                ..SetWatchesRequest::default()
            },
        });
        call.relative = Some(since);
        call.xid = Some(-8);
        call
    }
}
