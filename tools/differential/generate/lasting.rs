//! What outlasts a request: what a restarted server still knows, and what servers delete of their own accord.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use ringkeeper_proto::{OpCode, Request};

use super::Generator;
use super::flavour::create;
use crate::script::{Call, Hello, SLOTS, Step};

impl Generator {
    /// The servers are killed in the middle; sessions come back, and everything is looked at.
    pub(super) fn restart(&mut self) {
        for _ in 0..self.rng.random_range(4..10) {
            let slot = self.open_slot();
            let count = self.rng.random_range(1..8);
            self.burst(slot, count);
        }
        self.steps.push(Step::Restart);
        for slot in 0..SLOTS {
            if self.slots[slot].session.is_some() {
                let hello = Hello::again(slot);
                self.steps.push(Step::Connect { slot, hello });
                self.reopened(slot);
            }
        }
        let slot = self.open_slot();
        let call = self.set_watches(slot);
        self.call(slot, call);
        self.look_at_everything(slot);
        let count = self.rng.random_range(3..8);
        self.burst(slot, count);
        self.look_at_everything(slot);
    }

    /// Reads every znode that the model knows, in every way.
    fn look_at_everything(&mut self, slot: usize) {
        let watch = false;
        let op = OpCode::GetChildren2;
        let mut calls = Vec::new();
        for path in self.model.znodes.keys() {
            calls.push(Call::of(&Request::GetData { path, watch }));
            calls.push(Call::of(&Request::GetAcl { path }));
            calls.push(Call::of(&Request::GetChildren { op, path, watch }));
        }
        calls.push(Call::of(&Request::GetEphemerals { prefix: "/" }));
        self.send(slot, calls);
    }

    /// Containers and TTL nodes, one at a time, that the servers delete once they may.
    pub(super) fn sweeps(&mut self) {
        let (actor, watcher) = (0, 1);
        self.open(actor);
        self.open(watcher);
        let root = self.model.root.clone();
        let mode = *[0, 1].choose(&mut self.rng).unwrap_or(&0);
        self.call(watcher, Call::of(&Request::AddWatch { path: &root, mode }));
        for _ in 0..self.rng.random_range(2..5) {
            match self.rng.random_range(0..4) {
                0 => self.swept_container(actor),
                1 => self.swept_ttl(actor, 5),
                2 => self.swept_ttl(actor, 6),
                _ => self.swept_ttl_parent(actor),
            }
            let watch = false;
            let op = OpCode::GetChildren2;
            let path = root.as_str();
            self.call(actor, Call::of(&Request::GetChildren { op, path, watch }));
        }
    }

    /// A container goes once it has had a child.
    fn swept_container(&mut self, actor: usize) {
        let path = self.fresh_path("box");
        self.call(actor, create(OpCode::CreateContainer, &path, b"", 4));
        let child = format!("{path}/child");
        self.call(actor, create(OpCode::Create, &child, b"", 0));
        self.goes_with(actor, &child, path);
    }

    fn swept_ttl(&mut self, actor: usize, flags: i32) {
        let asked = self.fresh_path("brief");
        let call = with_ttl(create(OpCode::CreateTtl, &asked, b"", flags));
        let creates = self
            .model
            .znodes
            .get(&self.model.root)
            .map_or(0, |root| root.creates);
        let path = if flags == 6 {
            format!("{asked}{creates:010}")
        } else {
            asked
        };
        self.apply(actor, &call);
        let slot = actor;
        self.steps.push(Step::Sweep { slot, call, path });
    }

    /// A TTL node with children stays until they are gone.
    fn swept_ttl_parent(&mut self, actor: usize) {
        let path = self.fresh_path("brief");
        let child = format!("{path}/child");
        let calls = vec![
            with_ttl(create(OpCode::CreateTtl, &path, b"", 5)),
            create(OpCode::Create, &child, b"", 0),
        ];
        for call in &calls {
            self.apply(actor, call);
        }
        self.send(actor, calls);
        self.goes_with(actor, &child, path);
    }

    /// Deletes the last child; its parent follows.
    fn goes_with(&mut self, slot: usize, child: &str, path: String) {
        let call = Call::of(&Request::Delete {
            path: child,
            version: -1,
        });
        self.steps.push(Step::Sweep { slot, call, path });
    }
}

/// A createTTL whose znode may go soon, but not before the next request has come.
fn with_ttl(mut call: Call) -> Call {
    const TTL_MS: i64 = 150;
    let len = call.body.len();
    if let Some(place) = call.body.get_mut(len - 8..) {
        place.copy_from_slice(&TTL_MS.to_be_bytes());
    }
    call
}
