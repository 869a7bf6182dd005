//! What one writer's znodes must look like.
//!
//! A writer owns its znodes alone and sends its operations on one connection, so the server executes
//! them in the order sent. After a crash the znodes must therefore show every acknowledged operation
//! and, of those sent but not acknowledged, any number from the front, and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::SmallRng;
use ringkeeper_proto::Stat;

/// One of a writer's znodes; the slots below [`EPHEMERAL_SLOTS`] are ephemeral.
pub(crate) type Slot = u16;

/// Slots of a writer.
pub(crate) const SLOTS: Slot = 200;
/// How many of them hold ephemerals.
pub(crate) const EPHEMERAL_SLOTS: Slot = 20;

/// Stands for the data of one write: the data is made from it, and no two writes share one.
pub(crate) type Token = u64;

/// An operation that succeeds when all before it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create {
        slot: Slot,
        token: Token,
    },
    Set {
        slot: Slot,
        token: Token,
        version: i32,
    },
    Delete {
        slot: Slot,
        version: i32,
    },
    /// Both in one multi.
    SetTwo {
        slots: [Slot; 2],
        token: Token,
    },
}

/// What is known of a znode. A zxid is unknown when the write was never acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) token: Token,
    pub(crate) version: i32,
    pub(crate) czxid: Option<i64>,
    pub(crate) mzxid: Option<i64>,
}

/// What the server shows of a znode.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) data: Vec<u8>,
    pub(crate) stat: Stat,
}

/// A writer's znodes by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    nodes: BTreeMap<Slot, Node>,
}

impl Model {
    /// An operation that succeeds on this state.
    pub(crate) fn choose(&self, token: Token, rng: &mut SmallRng) -> Op {
        let slot = rng.random_range(0..SLOTS);
        let Some(node) = self.nodes.get(&slot) else {
            return Op::Create { slot, token };
        };
        match rng.random_range(0..100) {
            0..15 => Op::Delete {
                slot,
                version: node.version,
            },
            15..30 => {
                let other = self.nodes.range(slot + 1..).next().map(|(other, _)| *other);
                other.map_or(
                    Op::Set {
                        slot,
                        token,
                        version: -1,
                    },
                    |other| Op::SetTwo {
                        slots: [slot, other],
                        token,
                    },
                )
            }
            30..60 => Op::Set {
                slot,
                token,
                version: node.version,
            },
            _ => Op::Set {
                slot,
                token,
                version: -1,
            },
        }
    }

    /// Executes an operation, acknowledged with `zxid` or not acknowledged.
    pub(crate) fn apply(&mut self, op: &Op, zxid: Option<i64>) {
        match *op {
            Op::Create { slot, token } => {
                let node = Node {
                    token,
                    version: 0,
                    czxid: zxid,
                    mzxid: zxid,
                };
                self.nodes.insert(slot, node);
            }
            Op::Set { slot, token, .. } => self.set(slot, token, zxid),
            Op::Delete { slot, .. } => {
                self.nodes.remove(&slot);
            }
            Op::SetTwo { slots, token } => {
                for slot in slots {
                    self.set(slot, token, zxid);
                }
            }
        }
    }

    fn set(&mut self, slot: Slot, token: Token, zxid: Option<i64>) {
        if let Some(node) = self.nodes.get_mut(&slot) {
            node.token = token;
            node.version += 1;
            node.mzxid = zxid;
        }
    }

    /// The znode in `slot`.
    pub(crate) fn node(&self, slot: Slot) -> Option<&Node> {
        self.nodes.get(&slot)
    }

    /// How what the server shows differs, one line per znode; empty when it does not.
    ///
    /// Of a zxid that is not known only the bound is: the write came after `acked_zxid`, the last
    /// one that was acknowledged to this writer.
    pub(crate) fn differences(
        &self,
        writer: u32,
        session: i64,
        acked_zxid: i64,
        seen: &BTreeMap<Slot, Seen>,
    ) -> String {
        let mut text = String::new();
        for slot in 0..SLOTS {
            let name = path(writer, slot);
            match (self.nodes.get(&slot), seen.get(&slot)) {
                (None, None) => {}
                (Some(node), None) => line(&mut text, &format!("{name} is missing: {node:?}")),
                (None, Some(seen)) => {
                    line(&mut text, &format!("{name} should not be: {:?}", seen.stat));
                }
                (Some(node), Some(seen)) => {
                    let owner = if slot < EPHEMERAL_SLOTS { session } else { 0 };
                    let zxid_fits = |known: Option<i64>, shown| {
                        known.map_or(shown > acked_zxid, |z| z == shown)
                    };
                    let same = seen.data == data(writer, node.token)
                        && seen.stat.version == node.version
                        && seen.stat.ephemeral_owner == owner
                        && zxid_fits(node.czxid, seen.stat.czxid)
                        && zxid_fits(node.mzxid, seen.stat.mzxid);
                    if !same {
                        let start = seen.data.get(..24).unwrap_or(&seen.data);
                        let start = String::from_utf8_lossy(start);
                        let text_of = format!(
                            "{name} should be {node:?} (owner {owner:#x}), shows {start:?} {:?}",
                            seen.stat
                        );
                        line(&mut text, &text_of);
                    }
                }
            }
        }
        text
    }

    /// Fills in the zxids that are not known from what the server shows.
    pub(crate) fn learn(&mut self, seen: &BTreeMap<Slot, Seen>) {
        for (slot, node) in &mut self.nodes {
            if let Some(seen) = seen.get(slot) {
                node.czxid = Some(seen.stat.czxid);
                node.mzxid = Some(seen.stat.mzxid);
            }
        }
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "    {line}");
}

/// After a crash: how many of the `pending` operations, from the front, the server has executed, and
/// the state that follows. The error describes the nearest state.
pub(crate) fn settle(
    acked: &Model,
    pending: &VecDeque<Op>,
    differences: impl Fn(&Model) -> String,
) -> Result<(usize, Model), String> {
    let mut state = acked.clone();
    let mut nearest = differences(&state);
    if nearest.is_empty() {
        return Ok((0, state));
    }
    for (index, op) in pending.iter().enumerate() {
        state.apply(op, None);
        let now = differences(&state);
        if now.is_empty() {
            return Ok((index + 1, state));
        }
        if now.lines().count() < nearest.lines().count() {
            nearest = now;
        }
    }
    Err(nearest)
}

/// The path of a writer's slot.
pub(crate) fn path(writer: u32, slot: Slot) -> String {
    format!("/torture/w{writer}/n{slot:03}")
}

/// The slot that a child of a writer's znode is.
pub(crate) fn slot_of(child: &str) -> Option<Slot> {
    child
        .strip_prefix('n')?
        .parse()
        .ok()
        .filter(|slot| *slot < SLOTS)
}

/// The data that `token` stands for: who wrote it, then bytes that only this token makes. Most are
/// short, some span several blocks of a log.
pub(crate) fn data(writer: u32, token: Token) -> Vec<u8> {
    let mixed = token.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(writer);
    let len = match mixed >> 60 {
        0 => 9_000,
        1..=3 => 1_100,
        _ => 100,
    };
    let mut data = format!("{writer}:{token}:").into_bytes();
    let pattern = mixed.to_be_bytes();
    data.extend(pattern.iter().cycle().take(len));
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn show(writer: u32, model: &Model) -> BTreeMap<Slot, Seen> {
        let seen = |slot: Slot, node: &Node| Seen {
            data: data(writer, node.token),
            stat: Stat {
                version: node.version,
                czxid: node.czxid.unwrap_or(1_000_000),
                mzxid: node.mzxid.unwrap_or(1_000_000),
                ephemeral_owner: if slot < EPHEMERAL_SLOTS { 5 } else { 0 },
                ..Stat::default()
            },
        };
        let nodes = model.nodes.iter();
        nodes
            .map(|(slot, node)| (*slot, seen(*slot, node)))
            .collect()
    }

    fn history(acks: usize, pendings: usize) -> (Model, VecDeque<Op>, Model, Vec<Model>) {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut state = Model::default();
        let mut before_last_ack = Model::default();
        for index in 0..acks {
            if index + 1 == acks {
                before_last_ack = state.clone();
            }
            let op = state.choose(index as u64, &mut rng);
            state.apply(&op, Some(index as i64 + 1));
        }
        let acked = state.clone();
        let mut pending = VecDeque::new();
        let mut after = vec![acked.clone()];
        for index in 0..pendings {
            let op = state.choose((acks + index) as u64, &mut rng);
            state.apply(&op, None);
            pending.push_back(op);
            after.push(state.clone());
        }
        (before_last_ack, pending, acked, after)
    }

    #[test]
    fn any_front_part_of_what_was_pending_may_have_happened() {
        let (_, pending, acked, after) = history(2_000, 40);
        for (executed, state) in after.iter().enumerate() {
            let seen = show(1, state);
            let differences = |model: &Model| model.differences(1, 5, 2_000, &seen);
            let (found, settled) = settle(&acked, &pending, differences).unwrap();
            assert_eq!((found, &settled), (executed, state));
        }
    }

    #[test]
    fn losing_the_last_acknowledged_write_is_noticed() {
        let (before, pending, acked, _) = history(2_000, 40);
        let seen = show(1, &before);
        let differences = |model: &Model| model.differences(1, 5, 2_000, &seen);
        assert!(settle(&acked, &pending, differences).is_err());
    }

    #[test]
    fn a_gap_among_the_pending_writes_is_noticed() {
        let (_, pending, acked, _) = history(2_000, 40);
        let mut state = acked.clone();
        for (index, op) in pending.iter().enumerate() {
            if index != 5 {
                state.apply(op, None);
            }
        }
        let seen = show(1, &state);
        let differences = |model: &Model| model.differences(1, 5, 2_000, &seen);
        assert!(settle(&acked, &pending, differences).is_err());
    }

    #[test]
    fn tokens_make_different_data() {
        assert_ne!(data(1, 2), data(1, 3));
        assert_ne!(data(1, 2), data(2, 2));
    }
}
