//! What the log holds, told by its epochs: enough to decide what a learner lacks, without its records.
//!
//! Since the counters of an epoch have no gaps, the last counter of each epoch tells exactly which
//! zxids are in the history.
//!
//! Invariants:
//! - spans are sorted by epoch, each epoch stands once;
//! - a span with `last == 0` is an epoch that began and has no transaction (yet);
//! - what is at or below `base` is known from a snapshot only; spans tell nothing about it, except
//!   that the epoch of `base` began.

use ringkeeper_proto::{Epoch, Zxid};

/// The part of a history that one leader proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochSpan {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The counter of its last proposal in this history; 0 if there is none.
    pub last: u32,
}

/// The shape of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    base: Zxid,
    spans: Vec<EpochSpan>,
    last: Zxid,
}

impl History {
    /// A log that begins after `base` (the zxid of the snapshot below it, or zero) and is empty.
    pub fn starting_at(base: Zxid) -> Self {
        let spans = match base {
            Zxid::ZERO => Vec::new(),
            _ => vec![EpochSpan {
                epoch: base.epoch(),
                last: base.counter(),
            }],
        };
        Self {
            base,
            spans,
            last: base,
        }
    }

    /// Adds a record that recovery found. A gap (which a Ringkeeper server never makes, but other
    /// software's logs may have) moves the base: what lies below it is not offered to learners.
    pub fn recover(&mut self, zxid: Zxid) {
        if zxid <= self.last {
            return;
        }
        if !self.continues_with(zxid) {
            self.base = zxid;
            self.spans.clear();
        }
        self.extend(zxid);
    }

    /// Whether `zxid` is the next of the last epoch or the first of a later one.
    pub fn continues_with(&self, zxid: Zxid) -> bool {
        follows(zxid, self.last)
    }

    /// Adds a record at the end.
    pub(crate) fn append(&mut self, zxid: Zxid) {
        assert!(
            self.continues_with(zxid),
            "{zxid:?} appended to a log that ends at {:?}",
            self.last
        );
        self.extend(zxid);
    }

    /// Notes that the history of this epoch's leader has been taken over, before its first proposal.
    pub(crate) fn begin_epoch(&mut self, epoch: Epoch) {
        if self.spans.last().is_none_or(|span| span.epoch < epoch) {
            self.spans.push(EpochSpan { epoch, last: 0 });
        }
    }

    /// Drops what is above `to`, which is in this history.
    pub(crate) fn truncate(&mut self, to: Zxid) {
        self.spans.retain(|span| span.epoch <= to.epoch());
        if let Some(span) = self.spans.last_mut()
            && span.epoch == to.epoch()
        {
            span.last = span.last.min(to.counter());
        }
        if to < self.base {
            // Recovered from an older snapshot: nothing is known of the log below the old base.
            *self = Self::starting_at(to);
        }
        self.last = self.last.min(to);
    }

    /// Notes that the log's records at or below `through` are gone.
    pub(crate) fn purge(&mut self, through: Zxid) {
        if through <= self.base || !self.contains(through) {
            return;
        }
        self.base = through;
        self.spans.retain(|span| span.epoch >= through.epoch());
    }

    fn extend(&mut self, zxid: Zxid) {
        match self.spans.last_mut() {
            Some(span) if span.epoch == zxid.epoch() => span.last = zxid.counter(),
            _ => self.spans.push(EpochSpan {
                epoch: zxid.epoch(),
                last: zxid.counter(),
            }),
        }
        self.last = zxid;
    }

    /// The end: the last record, or the snapshot if none follows it.
    pub const fn last(&self) -> Zxid {
        self.last
    }

    /// Records above this can be read from the log.
    pub const fn base(&self) -> Zxid {
        self.base
    }

    /// The epochs, oldest first.
    pub fn spans(&self) -> &[EpochSpan] {
        &self.spans
    }

    /// Whether a server whose log ends at `zxid` has exactly our history up to there. False when it is
    /// below the base, where that is not known.
    ///
    /// A zxid with counter 0 is the start of an epoch: an Apache server that took a snapshot then has
    /// such a zxid and no record. It is ours if that epoch's history was taken over here.
    pub fn contains(&self, zxid: Zxid) -> bool {
        if zxid == self.base {
            return true;
        }
        zxid > self.base
            && self
                .spans
                .iter()
                .any(|span| span.epoch == zxid.epoch() && zxid.counter() <= span.last)
    }

    /// The last record or snapshot at or below `zxid`; `None` if it is below the base.
    pub fn floor(&self, zxid: Zxid) -> Option<Zxid> {
        if zxid < self.base {
            return None;
        }
        let spans = self.spans.iter().rev();
        let found = spans
            .filter(|span| span.epoch <= zxid.epoch() && span.last > 0)
            .map(|span| match span.epoch == zxid.epoch() {
                true => Zxid::new(span.epoch, span.last.min(zxid.counter())),
                false => Zxid::new(span.epoch, span.last),
            })
            .find(|floor| floor.counter() > 0);
        Some(found.map_or(self.base, |floor| floor.max(self.base)))
    }

    /// The record after `zxid`, which is the base, a record or an epoch's start.
    pub fn successor(&self, zxid: Zxid) -> Option<Zxid> {
        if zxid < self.base {
            return None;
        }
        self.spans.iter().find_map(|span| {
            if span.epoch == zxid.epoch() {
                (zxid.counter() < span.last).then(|| Zxid::new(span.epoch, zxid.counter() + 1))
            } else {
                (span.epoch > zxid.epoch() && span.last > 0).then(|| Zxid::new(span.epoch, 1))
            }
        })
    }
}

/// Whether `zxid` can come after `last` in a log: the next of its epoch, or the first of a later one.
pub(crate) fn follows(zxid: Zxid, last: Zxid) -> bool {
    if zxid.epoch() == last.epoch() {
        last.next() == Some(zxid)
    } else {
        zxid.epoch() > last.epoch() && zxid.counter() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zxid(epoch: u32, counter: u32) -> Zxid {
        Zxid::new(Epoch(epoch), counter)
    }

    fn history(base: Zxid, records: &[(u32, u32)]) -> History {
        let mut history = History::starting_at(base);
        for (epoch, counter) in records {
            history.append(zxid(*epoch, *counter));
        }
        history
    }

    #[test]
    fn contains_what_was_appended_and_nothing_else() {
        let mut ours = history(zxid(1, 2), &[(1, 3), (3, 1), (3, 2)]);
        ours.begin_epoch(Epoch(4));
        for present in [(1, 2), (1, 3), (3, 1), (3, 2), (3, 0), (4, 0)] {
            assert!(ours.contains(zxid(present.0, present.1)), "{present:?}");
        }
        for absent in [(1, 1), (1, 4), (2, 0), (2, 1), (3, 3), (4, 1), (5, 0)] {
            assert!(!ours.contains(zxid(absent.0, absent.1)), "{absent:?}");
        }
    }

    #[test]
    fn floor_is_the_last_record_below() {
        let ours = history(zxid(1, 2), &[(1, 3), (3, 1), (3, 2)]);
        let check = |at: (u32, u32), expect: Option<(u32, u32)>| {
            let floor = ours.floor(zxid(at.0, at.1));
            assert_eq!(floor, expect.map(|(e, c)| zxid(e, c)), "{at:?}");
        };
        check((1, 1), None);
        check((1, 2), Some((1, 2)));
        check((1, 9), Some((1, 3)));
        check((2, 5), Some((1, 3)));
        check((3, 0), Some((1, 3)));
        check((3, 9), Some((3, 2)));
        check((9, 1), Some((3, 2)));
    }

    #[test]
    fn successors_walk_the_log() {
        let mut ours = history(zxid(1, 2), &[(1, 3), (3, 1), (3, 2)]);
        ours.begin_epoch(Epoch(4));
        let mut at = zxid(1, 2);
        let mut seen = Vec::new();
        while let Some(next) = ours.successor(at) {
            seen.push(next);
            at = next;
        }
        assert_eq!(seen, [zxid(1, 3), zxid(3, 1), zxid(3, 2)]);
        assert_eq!(ours.successor(zxid(3, 0)), Some(zxid(3, 1)));
        assert_eq!(ours.successor(zxid(1, 1)), None);
    }

    #[test]
    fn truncation_forgets_later_epochs() {
        let mut ours = history(Zxid::ZERO, &[(1, 1), (1, 2), (2, 1)]);
        ours.truncate(zxid(1, 1));
        assert_eq!(ours, history(Zxid::ZERO, &[(1, 1)]));
        ours.append(zxid(3, 1));
        assert_eq!(ours.last(), zxid(3, 1));
    }

    #[test]
    fn a_gap_found_by_recovery_moves_the_base() {
        let mut ours = History::starting_at(Zxid::ZERO);
        for counter in [1, 2, 5, 6] {
            ours.recover(zxid(1, counter));
        }
        assert_eq!(ours.base(), zxid(1, 5));
        assert_eq!(ours.last(), zxid(1, 6));
        assert!(!ours.contains(zxid(1, 3)));
    }

    #[test]
    fn only_the_next_zxid_continues() {
        let ours = history(Zxid::ZERO, &[(2, 1)]);
        assert!(ours.continues_with(zxid(2, 2)));
        assert!(ours.continues_with(zxid(3, 1)));
        for wrong in [(2, 1), (2, 3), (3, 0), (3, 2), (1, 2)] {
            assert!(!ours.continues_with(zxid(wrong.0, wrong.1)), "{wrong:?}");
        }
    }
}
