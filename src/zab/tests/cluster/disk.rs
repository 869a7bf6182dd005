//! A disk of the test cluster: what is durable, what is written but not flushed, and how a crash chooses
//! between them.

use std::collections::VecDeque;

use ringkeeper_proto::Zxid;
use ringkeeper_zab::{Epochs, History, LogGeneration, Recovered};

/// A transaction: its zxid and a number that stands for its bytes.
pub(crate) type Entry = (Zxid, u32);

/// A history as storage keeps it: a snapshot and the log after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) base: Zxid,
    /// All transactions that the snapshot shows, in order.
    pub(crate) snapshot: Vec<Entry>,
    pub(crate) log: Vec<Entry>,
}

impl Store {
    pub(crate) fn last(&self) -> Zxid {
        self.log.last().map_or(self.base, |(zxid, _)| *zxid)
    }

    /// Every transaction, snapshot and log.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.snapshot.iter().chain(&self.log)
    }

    fn apply(&mut self, op: LogOp) {
        match op {
            LogOp::Append(entry) => {
                assert!(entry.0 > self.last(), "the log only grows");
                self.log.push(entry);
            }
            LogOp::Truncate(to) => {
                assert!(to >= self.base, "a truncation below the snapshot");
                self.log.retain(|(zxid, _)| *zxid <= to);
            }
        }
    }

    /// Takes a snapshot through `zxid`, and drops the log below.
    pub(crate) fn purge(&mut self, zxid: Zxid) {
        let log = std::mem::take(&mut self.log);
        for entry in log {
            if entry.0 <= zxid {
                self.snapshot.push(entry);
            } else {
                self.log.push(entry);
            }
        }
        self.base = self.base.max(zxid);
    }
}

#[derive(Clone, Copy, Debug)]
enum LogOp {
    Append(Entry),
    Truncate(Zxid),
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// What a crash leaves.
    pub(crate) durable: Store,
    pub(crate) epochs: Epochs,
    /// The last zxid known to be committed, written along with flushes.
    pub(crate) committed: Zxid,
    /// What the running server sees.
    pub(crate) view: Store,
    ops: VecDeque<(LogOp, LogGeneration)>,
    generation: LogGeneration,
    saves: VecDeque<Epochs>,
    flush_wanted: bool,
    /// It was replaced by a blank one, and has not taken over a history since.
    pub(crate) wiped: bool,
    /// It has lost what it had acknowledged, as if that had been a torn write, and no leader has settled it since.
    pub(crate) broke_its_word: bool,
    /// The end of the log when epochs were saved last: what is lost below is known to be.
    attested: Zxid,
    pub(crate) damaged: bool,
    /// What was durable before one or the other.
    pub(crate) forgotten: Vec<Entry>,
}

impl Disk {
    pub(crate) fn append(&mut self, entry: Entry) {
        self.view.apply(LogOp::Append(entry));
        let generation = self
            .ops
            .back()
            .map_or(self.generation, |(_, generation)| *generation);
        self.ops.push_back((LogOp::Append(entry), generation));
    }

    pub(crate) fn truncate(&mut self, to: Zxid, generation: LogGeneration) {
        self.view.apply(LogOp::Truncate(to));
        self.ops.push_back((LogOp::Truncate(to), generation));
    }

    pub(crate) fn want_flush(&mut self) {
        self.flush_wanted = true;
    }

    pub(crate) fn flush_wanted(&self) -> bool {
        self.flush_wanted
    }

    /// Makes the first `count` written operations durable, and says what to report.
    pub(crate) fn flush(&mut self, count: usize, committed: Zxid) -> (Zxid, LogGeneration) {
        for _ in 0..count {
            let Some((op, generation)) = self.ops.pop_front() else {
                break;
            };
            self.durable.apply(op);
            if let LogOp::Truncate(to) = op {
                self.attested = self.attested.min(to);
            }
            self.generation = generation;
        }
        self.flush_wanted = !self.ops.is_empty();
        self.committed = self.committed.max(committed.min(self.durable.last()));
        (self.durable.last(), self.generation)
    }

    pub(crate) fn unflushed(&self) -> usize {
        self.ops.len()
    }

    /// Whether the record is durable for good: no truncation that takes it away is under way.
    pub(crate) fn keeps(&self, zxid: Zxid) -> bool {
        let cut = |op: &LogOp| matches!(op, LogOp::Truncate(to) if *to < zxid);
        self.durable.entries().any(|(at, _)| *at == zxid) && !self.ops.iter().any(|(op, _)| cut(op))
    }

    /// A snapshot replaces everything, at once.
    pub(crate) fn install(&mut self, base: Zxid, snapshot: Vec<Entry>, generation: LogGeneration) {
        self.ops.clear();
        self.generation = generation;
        self.durable = Store {
            base,
            snapshot,
            log: Vec::new(),
        };
        self.view = self.durable.clone();
        self.damaged = false;
        self.attested = base;
    }

    pub(crate) fn save(&mut self, epochs: Epochs) {
        self.saves.push_back(epochs);
    }

    pub(crate) fn saves_waiting(&self) -> bool {
        !self.saves.is_empty()
    }

    /// Makes the next saved epochs durable.
    pub(crate) fn complete_save(&mut self) -> Option<Epochs> {
        let epochs = self.saves.pop_front()?;
        self.epochs = epochs;
        // A server that is a member again has a history again.
        self.wiped &= !epochs.member;
        self.broke_its_word &= epochs.doubted.is_some();
        self.attested = self.durable.last();
        Some(epochs)
    }

    /// The server is gone: of what was not durable, the first `ops` writes and `saves` saves survive.
    pub(crate) fn crash(&mut self, ops: usize, saves: usize) {
        self.flush(ops, Zxid::ZERO);
        for _ in 0..saves {
            self.complete_save();
        }
        self.ops.clear();
        self.saves.clear();
        self.flush_wanted = false;
        self.generation = LogGeneration(0);
        self.view = self.durable.clone();
    }

    /// The server is gone, and its log ends in a torn write: what was not durable, and `lost` records that were. If
    /// `known`, it can be seen how far they reached.
    pub(crate) fn crash_torn(&mut self, lost: usize, known: bool) {
        let appended = |(op, _): &(LogOp, LogGeneration)| match op {
            LogOp::Append((zxid, _)) => Some(*zxid),
            LogOp::Truncate(_) => None,
        };
        let written = self.ops.iter().filter_map(appended).max();
        let durable = self.durable.last();
        self.crash(0, 0);
        let kept = self.durable.log.len().saturating_sub(lost);
        let gone = self.durable.log.split_off(kept);
        let through = written.max((!gone.is_empty()).then_some(durable));
        self.broke_its_word |= !gone.is_empty();
        self.forgotten.extend(gone);
        self.committed = self.committed.min(self.durable.last());
        self.damaged |= self.durable.last() < self.attested;
        self.view = self.durable.clone();
        if let Some(through) = through.filter(|_| self.epochs.member) {
            let through = if known { through } else { Zxid(u64::MAX) };
            self.epochs.doubted = self.epochs.doubted.max(Some(through));
        }
    }

    /// Whether a server that starts on it has taken over no history.
    pub(crate) fn is_blank(&self) -> bool {
        !self.epochs.member
    }

    pub(crate) fn wipe(&mut self) {
        *self = Self {
            wiped: true,
            forgotten: self.durable.entries().copied().collect(),
            ..Self::default()
        };
    }

    pub(crate) fn recover(&self) -> Recovered {
        let mut history = History::starting_at(self.durable.base);
        for (zxid, _) in &self.durable.log {
            history.recover(*zxid);
        }
        Recovered {
            damaged: self.damaged,
            epochs: self.epochs,
            history,
            committed: self.committed,
            initialize: false,
        }
    }
}
