//! Makes scripts from a seed. The same seed and number always make the same script.
//!
//! A script has a flavour that decides what it is mostly about, so that states which need several
//! requests (a tree full of watches, a quota nearly used up, a lost session) are common in some
//! scripts rather than rare in all.

mod aim;
mod flavour;
mod lasting;
mod model;
mod sessions;
mod spoil;
mod watches;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{Rng as _, SeedableRng as _};
use ringkeeper_proto::{Acl, Id, OpCode, Perms};

use crate::identity::digest_id;
use crate::script::{Call, Hello, SLOTS, Script, Step};
use crate::servers::Settings;
use aim::Aim;
use model::{Model, Who, Znode};

/// How a path is watched. Apache 3.8 keeps one mode per path and connection, 3.9 keeps several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Once,
    Persistent,
    Recursive,
}

/// What the generator knows of a connection.
#[derive(Clone, Debug, Default)]
struct SlotState {
    is_open: bool,
    /// The number of its session, if it has had one that was not closed.
    session: Option<usize>,
    ids: Vec<Id>,
    watched: BTreeMap<String, Mode>,
}

struct Generator {
    rng: StdRng,
    model: Model,
    slots: [SlotState; SLOTS],
    sessions: usize,
    names: usize,
    steps: Vec<Step>,
    mixes_watch_modes: bool,
    aims: Vec<Aim>,
}

/// The script of this seed and number, for servers with these settings.
pub(crate) fn script(seed: u64, index: u64, settings: Settings) -> Script {
    let root = Script::root_of(index);
    let mut generator = Generator {
        rng: StdRng::seed_from_u64(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        model: Model::new(&root),
        slots: Default::default(),
        sessions: 0,
        names: 0,
        steps: Vec::new(),
        mixes_watch_modes: false,
        aims: aim::aims(),
    };
    if settings == Settings::Sweeping {
        generator.sweeps();
    } else {
        generator.fill();
    }
    Script {
        seed,
        index,
        root,
        steps: generator.steps,
        mixes_watch_modes: generator.mixes_watch_modes,
    }
}

impl Generator {
    /// A burst of aimed calls on one connection.
    fn burst(&mut self, slot: usize, count: usize) {
        let mut calls = Vec::new();
        for _ in 0..count {
            let aim = *self
                .aims
                .choose(&mut self.rng)
                .expect("the table of aims is not empty");
            let call = self.call_for(slot, aim, &mut calls);
            self.apply(slot, &call);
            calls.push(call);
        }
        self.send(slot, calls);
    }

    /// Puts the calls into as few bursts as give answers that do not depend on timing.
    fn send(&mut self, slot: usize, calls: Vec<Call>) {
        // ZK: the change record of a setACL keeps the old ACL, so what is pipelined behind it is checked
        // against the one or the other.
        let is_set_acl = |call: &Call| call.op() == Some(OpCode::SetAcl);
        for calls in calls.chunk_by(|call, _| !is_set_acl(call)) {
            self.steps.push(Step::Burst {
                slot,
                calls: calls.to_vec(),
            });
        }
    }

    /// A step of one call.
    fn call(&mut self, slot: usize, call: Call) {
        self.apply(slot, &call);
        self.steps.push(Step::Burst {
            slot,
            calls: vec![call],
        });
    }

    /// Does to the model what the call does to the servers, if it is sound.
    fn apply(&mut self, slot: usize, call: &Call) {
        if matches!(call.spoiled, None | Some("longer"))
            && let Some(request) = call.request()
        {
            let who = self.who(slot);
            let _the_model_may_refuse = self.model.apply(&who, &request);
        }
    }

    /// Opens the slot with a new session.
    fn open(&mut self, slot: usize) {
        self.steps.push(Step::Connect {
            slot,
            hello: Hello::ordinary(),
        });
        self.slots[slot] = SlotState {
            is_open: true,
            session: Some(self.sessions),
            ids: vec![Id::new("world", "anyone"), Id::new("ip", "127.0.0.1")],
            watched: BTreeMap::new(),
        };
        self.sessions += 1;
    }

    /// A slot with an open connection.
    fn open_slot(&mut self) -> usize {
        let slots = 0..SLOTS;
        match slots
            .filter(|slot| self.slots[*slot].is_open)
            .choose(&mut self.rng)
        {
            Some(slot) => slot,
            None => {
                self.open(0);
                0
            }
        }
    }

    fn who(&self, slot: usize) -> Who {
        let state = &self.slots[slot];
        Who {
            session: state.session.unwrap_or(usize::MAX),
            ids: state.ids.clone(),
        }
    }

    /// A znode of the script that is as wanted.
    fn pick(&mut self, wanted: impl Fn(&str, &Znode) -> bool) -> Option<String> {
        self.model
            .znodes
            .iter()
            .filter(|(path, znode)| wanted(path, znode))
            .choose(&mut self.rng)
            .map(|(path, _)| path.clone())
    }

    fn next_name(&mut self) -> usize {
        self.names += 1;
        self.names
    }

    /// A path of the script's root that has not been used.
    fn fresh_path(&mut self, stem: &str) -> String {
        let name = self.next_name();
        format!("{}/{stem}{name}", self.model.root)
    }

    /// One of few names, so that scripts meet themselves again.
    fn name(&mut self) -> String {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "longer-name", "\u{e9}", "0"];
        (*NAMES.choose(&mut self.rng).unwrap_or(&"a")).to_owned()
    }

    /// A path where nothing is and that may become something.
    fn new_path(&mut self, slot: usize) -> String {
        let ids = self.who(slot).ids;
        let parent = self
            .pick(|path, znode| {
                matches!(znode.kind, model::Kind::Persistent)
                    && path.split('/').count() < 6
                    && model::allows(&znode.acl, Perms::CREATE, &ids)
            })
            .unwrap_or_else(|| self.model.root.clone());
        for _ in 0..3 {
            let path = format!("{parent}/{}", self.name());
            if !self.model.znodes.contains_key(&path) {
                return path;
            }
        }
        format!("{parent}/m{}", self.next_name())
    }

    fn missing_path(&mut self) -> String {
        let parent = self
            .pick(|_, _| true)
            .unwrap_or_else(|| self.model.root.clone());
        format!("{parent}/missing")
    }

    /// A znode that outlives scripts.
    fn lasting_path(&mut self) -> String {
        const PATHS: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
        (*PATHS.choose(&mut self.rng).unwrap_or(&"/")).to_owned()
    }

    fn any_path(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => self.missing_path(),
            1 => self.lasting_path(),
            2 => self.bad_path(),
            _ => self
                .pick(|_, _| true)
                .unwrap_or_else(|| self.model.root.clone()),
        }
    }

    /// A path that is not valid, in one of the many ways.
    fn bad_path(&mut self) -> String {
        let root = &self.model.root;
        let paths = [
            String::new(),
            "x".to_owned(),
            "x/y".to_owned(),
            "//".to_owned(),
            format!("{root}/a/"),
            format!("{root}//a"),
            format!("{root}/./a"),
            format!("{root}/../a"),
            format!("{root}/."),
            format!("{root}/.."),
            format!("{root}/a\0b"),
            format!("{root}/a\u{1}"),
            format!("{root}/a\u{1f}"),
            format!("{root}/a\u{7f}"),
            format!("{root}/a\u{9f}"),
            format!("{root}/a\u{e000}"),
            format!("{root}/a\u{f8ff}"),
            format!("{root}/a\u{fff0}"),
            format!("{root}/a\u{ffff}"),
            format!("{root}/a\u{1f600}"),
        ];
        paths.choose(&mut self.rng).cloned().unwrap_or_default()
    }

    fn data(&mut self) -> Option<Vec<u8>> {
        let len = match self.rng.random_range(0..10) {
            0 => return None,
            1 => 0,
            2 => 1_000,
            _ => self.rng.random_range(1..20),
        };
        Some(
            (0..len)
                .map(|_| self.rng.random_range(b'a'..=b'z'))
                .collect(),
        )
    }

    /// A valid ACL.
    fn acl(&mut self, slot: usize) -> Vec<Acl> {
        let perms = Perms(self.rng.random_range(0..32));
        let entry = |scheme: &str, id: &str| Acl {
            perms,
            id: Id::new(scheme, id),
        };
        let world_read = Acl {
            perms: Perms::READ,
            id: Id::new("world", "anyone"),
        };
        let alice = digest_id("alice", "a");
        let has_user = self.slots[slot]
            .ids
            .iter()
            .any(|id| id.scheme == "digest" || id.scheme == "super");
        match self.rng.random_range(0..10) {
            0 => vec![entry("world", "anyone")],
            1 => vec![entry("digest", &alice), world_read],
            2 => vec![entry("digest", &digest_id("bob", "b"))],
            3 => vec![entry("ip", "127.0.0.1")],
            4 => vec![entry("ip", "127.0.0.0/8"), entry("ip", "10.0.0.1")],
            5 => vec![entry("ip", "10.1.2.3/32"), world_read],
            6 if has_user => vec![entry("auth", ""), world_read],
            // The same twice: fixupACL keeps one.
            7 => vec![world_read.clone(), entry("digest", &alice), world_read],
            8 => vec![Acl {
                perms: Perms(*[32, -1, 64, i32::MIN].choose(&mut self.rng).unwrap_or(&32)),
                id: Id::new("world", "anyone"),
            }],
            _ => Acl::open(),
        }
    }

    /// An ACL that is refused; `None` is null.
    fn bad_acl(&mut self, slot: usize) -> Option<Vec<Acl>> {
        const BAD: [(&str, &str); 14] = [
            ("world", "someone"),
            ("world", ""),
            ("", ""),
            ("nobody", "x"),
            ("digest", "nocolon"),
            ("digest", "a:b:c"),
            ("digest", ""),
            ("ip", "999.0.0.1"),
            ("ip", "1.2.3"),
            ("ip", "1.2.3.4/33"),
            ("ip", "1.2.3.4/-1"),
            ("ip", ""),
            ("sasl", "x"),
            ("auth", ""),
        ];
        let has_user = self.slots[slot].ids.len() > 2;
        let usable = if has_user { BAD.len() - 1 } else { BAD.len() };
        let entry = |(scheme, id): (&str, &str)| Acl {
            perms: Perms::ALL,
            id: Id::new(scheme, id),
        };
        match self.rng.random_range(0..6) {
            0 => None,
            1 => Some(Vec::new()),
            kind => {
                let bad = entry(BAD[self.rng.random_range(0..usable)]);
                let mut acl = vec![bad];
                if kind == 2 {
                    acl.insert(0, entry(("world", "anyone")));
                }
                Some(acl)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_makes_the_same_script() {
        let text = |index| format!("{:?}", script(7, index, Settings::Full).steps);
        for index in 0..50 {
            assert_eq!(text(index), text(index));
        }
        assert_ne!(text(1), text(2));
    }
}
