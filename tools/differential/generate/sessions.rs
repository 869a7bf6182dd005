//! Sessions that come, go, are taken over and end; and who they say they are.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use ringkeeper_proto::acl::AclList;
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, Id, OpCode, Request};

use super::Generator;
use crate::identity::digest_id;
use crate::script::{Call, Hello, LastSeen, Password, SLOTS, SessionOf, Step};
use crate::servers::{SESSION_MS_MIN, SUPER_PASSWORD};

impl Generator {
    /// A connection lost and found, in one of many ways.
    pub(super) fn session_step(&mut self) {
        let slot = self.open_slot();
        match self.rng.random_range(0..12) {
            0 => self.drop_connection(slot),
            1..4 => self.reconnect(slot),
            4 => self.take_over(slot),
            5 => self.close_session(slot),
            6 | 7 => self.strange_hello(slot),
            8 => {
                let step = super::spoil::stranger(&mut self.rng);
                self.steps.push(step);
            }
            9 => {
                let step = super::spoil::raw(slot, &mut self.rng);
                self.steps.push(step);
                self.slots[slot].is_open = false;
            }
            10 => self.unknown_operation(slot),
            _ => self.authenticate(slot),
        }
    }

    fn drop_connection(&mut self, slot: usize) {
        self.steps.push(Step::Drop { slot });
        self.slots[slot].is_open = false;
    }

    /// Reconnects a slot that has lost its connection, often with its watches.
    pub(super) fn reconnect(&mut self, slot: usize) {
        if self.slots[slot].is_open && self.rng.random() {
            self.drop_connection(slot);
            if self.rng.random() {
                let other = self.open_slot();
                let count = self.rng.random_range(1..4);
                self.burst(other, count);
            }
        }
        let hello = Hello {
            read_only: *[Some(false), Some(true), None]
                .choose(&mut self.rng)
                .unwrap_or(&None),
            timeout_ms: self.rng.random_range(10_000..60_000),
            ..Hello::again(slot)
        };
        self.steps.push(Step::Connect { slot, hello });
        self.reopened(slot);
        if self.rng.random() {
            let call = self.set_watches(slot);
            self.call(slot, call);
        }
    }

    pub(super) fn reopened(&mut self, slot: usize) {
        let state = &mut self.slots[slot];
        state.is_open = state.session.is_some();
        state.ids = vec![Id::new("world", "anyone"), Id::new("ip", "127.0.0.1")];
        state.watched.clear();
    }

    /// Another connection takes the session; the first is closed by the server.
    fn take_over(&mut self, slot: usize) {
        let other = (slot + 1) % SLOTS;
        if self.slots[slot].session.is_none() {
            return;
        }
        self.steps.push(Step::Connect {
            slot: other,
            hello: Hello::again(slot),
        });
        self.slots[slot].is_open = false;
        self.slots[other].session = self.slots[slot].session;
        self.reopened(other);
    }

    fn close_session(&mut self, slot: usize) {
        self.call(slot, Call::of(&Request::CloseSession));
        let state = &mut self.slots[slot];
        state.is_open = false;
        state.session = None;
        if self.rng.random_ratio(1, 3) {
            // It is gone: nobody gets it back.
            self.steps.push(Step::Connect {
                slot,
                hello: Hello::again(slot),
            });
        }
    }

    /// A connect request that is refused, or unusual.
    fn strange_hello(&mut self, slot: usize) {
        let ordinary = Hello::ordinary();
        let again = Hello::again(slot);
        let (hello, is_open) = match self.rng.random_range(0..10) {
            0 => (with_password(again, Password::Wrong), false),
            1 => (with_password(again, Password::Empty), false),
            2 => (with_password(again, Password::Long), false),
            3 => (with_password(again, Password::Null), false),
            4 => (
                Hello {
                    last_seen: *[
                        LastSeen::Offset(1_000_000),
                        LastSeen::Exactly(i64::MAX),
                        LastSeen::Offset(1 << 32),
                    ]
                    .choose(&mut self.rng)
                    .unwrap_or(&LastSeen::Nothing),
                    ..again
                },
                false,
            ),
            5 => (
                Hello {
                    session: SessionOf::Unknown(
                        *[1, -1, i64::MIN, 0x00ff_ffff_ffff_ffff]
                            .choose(&mut self.rng)
                            .unwrap_or(&1),
                    ),
                    ..ordinary
                },
                false,
            ),
            6 => (
                Hello {
                    timeout_ms: self.rng.random_range(10_000..i32::MAX),
                    last_seen: LastSeen::Exactly(-1),
                    ..ordinary
                },
                true,
            ),
            7 => (
                Hello {
                    protocol: *[1, -1, i32::MAX].choose(&mut self.rng).unwrap_or(&1),
                    ..ordinary
                },
                true,
            ),
            8 => (with_password(ordinary, Password::Null), true),
            _ => (
                Hello {
                    read_only: *[None, Some(true)].choose(&mut self.rng).unwrap_or(&None),
                    password: *[Password::Empty, Password::Long]
                        .choose(&mut self.rng)
                        .unwrap_or(&Password::Empty),
                    ..ordinary
                },
                true,
            ),
        };
        let is_new = hello.session == SessionOf::Nobody && is_open;
        // From another place, so that what becomes of the session's own connection can be seen.
        let other = (slot + 1) % SLOTS;
        if !is_new && !self.slots[other].is_open && self.rng.random() {
            self.steps.push(Step::Connect { slot: other, hello });
            self.slots[other].session = None;
            return;
        }
        self.steps.push(Step::Connect { slot, hello });
        if is_new {
            self.slots[slot].session = Some(self.sessions);
            self.sessions += 1;
            self.reopened(slot);
        } else {
            self.slots[slot].is_open = false;
        }
    }

    /// An operation that is none, or not for clients; the server answers and closes.
    pub(super) fn unknown_operation(&mut self, slot: usize) {
        // Apache 3.8 does not answer a check that stands alone, which takes all patience.
        let op = if self.rng.random_ratio(1, 60) {
            OpCode::Check.code()
        } else {
            *[
                0,
                0,
                0,
                0,
                -1,
                -1,
                -1,
                -1,
                10,
                23,
                99,
                108,
                1_000,
                i32::MIN,
                i32::MAX,
                -12,
            ]
            .choose(&mut self.rng)
            .unwrap_or(&0)
        };
        let body = if op == OpCode::Check.code() {
            Call::of(&Request::Check {
                path: "/",
                version: -1,
            })
            .body
        } else {
            vec![0; self.rng.random_range(0..12)]
        };
        self.call(slot, Call::raw(op, body));
        self.slots[slot].is_open = false;
    }

    /// auth or sasl, well or badly.
    pub(super) fn authenticate(&mut self, slot: usize) {
        const USERS: [(&str, &str); 3] = [("alice", "a"), ("bob", "b"), ("super", SUPER_PASSWORD)];
        let (scheme, auth, id) = match self.rng.random_range(0..17) {
            0..10 => {
                let (user, password) = *USERS.choose(&mut self.rng).unwrap_or(&USERS[0]);
                let id = Id::new("digest", digest_id(user, password));
                ("digest", format!("{user}:{password}"), Some(id))
            }
            10 => {
                let id = Id::new("digest", digest_id("", ""));
                ("digest", "nocolon".to_owned(), Some(id))
            }
            11 => {
                let id = Id::new("digest", digest_id("super", "wrong"));
                ("digest", "super:wrong".to_owned(), Some(id))
            }
            12 => ("ip", "1.2.3.4".to_owned(), None),
            13 => ("nobody", "x:y".to_owned(), None),
            14 => ("world", "anyone".to_owned(), None),
            _ => {
                let mut token = Vec::new();
                ringkeeper_proto::WriteJute::put_buffer(&mut token, Some(b"token"));
                self.call(slot, Call::raw(OpCode::Sasl.code(), token));
                self.slots[slot].is_open = false;
                return;
            }
        };
        let mut call = Call::of(&Request::Auth {
            kind: self.rng.random_range(0..3),
            scheme,
            auth: auth.as_bytes(),
        });
        call.xid = Some(if self.rng.random_ratio(1, 10) { 77 } else { -4 });
        if self.rng.random_ratio(1, 20) {
            call = super::spoil::spoil(call, &mut self.rng);
        }
        self.call(slot, call);
        let state = &mut self.slots[slot];
        match id {
            Some(id) => {
                if auth == format!("super:{SUPER_PASSWORD}") {
                    state.ids.push(Id::new("super", ""));
                }
                state.ids.push(id);
            }
            // ZK: the scheme ip takes any auth packet, and adds nothing new.
            None if scheme == "ip" => {}
            None => state.is_open = false,
        }
    }

    /// A short session that owns ephemerals is left alone until it ends, and others see it.
    pub(super) fn expiry(&mut self) {
        let (owner, watcher) = (2, 1);
        for slot in [owner, watcher] {
            if self.slots[slot].is_open {
                self.drop_connection(slot);
            }
        }
        self.open(watcher);
        self.open(owner);
        if let Some(Step::Connect { hello, .. }) = self.steps.last_mut() {
            hello.timeout_ms = SESSION_MS_MIN;
        }
        let root = self.model.root.clone();
        let mut watches = vec![Call::of(&Request::AddWatch {
            path: &root,
            mode: 1,
        })];
        let mut creates = Vec::new();
        for _ in 0..self.rng.random_range(1..5) {
            let path = format!("{root}/x{}", self.next_name());
            let create = Call::of(&Request::Create {
                op: OpCode::Create,
                create: CreateRequest {
                    path: &path,
                    data: None,
                    acl: Some(AclList::new(&Acl::open())),
                    flags: *[1, 3].choose(&mut self.rng).unwrap_or(&1),
                    ttl_ms: None,
                },
            });
            self.apply(owner, &create);
            creates.push(create);
            let watch = self.rng.random();
            watches.push(Call::of(&Request::Exists { path: &path, watch }));
        }
        self.steps.push(Step::Burst {
            slot: owner,
            calls: creates,
        });
        self.steps.push(Step::Burst {
            slot: watcher,
            calls: watches,
        });
        let hang_up = self.rng.random();
        self.steps.push(Step::Expire {
            slot: owner,
            watcher,
            hang_up,
        });
        if let Some(session) = self.slots[owner].session.take() {
            self.model.end_session(session);
        }
        self.slots[owner].is_open = false;
        self.slots[watcher]
            .watched
            .insert(root, super::Mode::Recursive);
        self.steps.push(Step::Connect {
            slot: owner,
            hello: Hello::again(owner),
        });
    }
}

const fn with_password(hello: Hello, password: Password) -> Hello {
    Hello { password, ..hello }
}
