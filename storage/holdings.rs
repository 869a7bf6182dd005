//! What a log has, zxid by zxid, when some of it is damaged: what a member of an ensemble must know to neither
//! vote as if it lacked what it acknowledged nor stay out because one block has rotted.
//!
//! The answers are those of protocol-aware recovery: *have*, *do not have*, *have faulty*. The third is the point: a
//! member that has something faulty once had it, so it may have been committed, and only the others can say.
#![deny(clippy::indexing_slicing)]

use std::path::PathBuf;

use ringkeeper_proto::Zxid;

use crate::{
    batch::{BatchHeader, BatchKind},
    error::Damage,
    recovery::Chain,
};

/// What a server has of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// In the log or in a snapshot, whole.
    Have,
    /// It never was in the log.
    DontHave,
    /// It was in the log and is damaged, or may have been: others must say what it was, and whether it was.
    HaveFaulty,
}

/// A stretch of zxids that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultyRange {
    /// The last zxid before it.
    pub after: Zxid,
    /// Its last zxid; the highest there is when nothing further on says where it ends.
    pub through: Zxid,
    /// The batch, where its header is whole and only records are damaged: see
    /// [`Store::mend`](crate::Store::mend).
    pub(crate) batch: Option<DamagedBatch>,
}

impl FaultyRange {
    /// Whether the records can be put back in their place once another server has sent them.
    pub fn is_mendable(&self) -> bool {
        self.batch.is_some()
    }
}

/// A batch whose header is whole and whose body is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DamagedBatch {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) header: BatchHeader,
}

/// What the log has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// The first damage that was found; without any the log is open for writes.
    pub damage: Option<Damage>,
    /// The last zxid of which anything is known.
    pub last: Zxid,
    /// Whether more may have been written after `last`, and acknowledged, than can be told: a write was torn there.
    pub may_have_had_more: bool,
    faulty: Vec<FaultyRange>,
}

impl Holdings {
    pub(crate) fn whole(last: Zxid, may_have_had_more: bool) -> Self {
        Self {
            last,
            may_have_had_more,
            ..Self::default()
        }
    }

    /// What there is of `zxid`, if it is a transaction of the history that this log is part of.
    pub fn of(&self, zxid: Zxid) -> Holding {
        let is_faulty = |range: &FaultyRange| zxid > range.after && zxid <= range.through;
        if self.faulty.iter().any(is_faulty) {
            return Holding::HaveFaulty;
        }
        match (zxid <= self.last, self.may_have_had_more) {
            (true, _) => Holding::Have,
            (false, true) => Holding::HaveFaulty,
            (false, false) => Holding::DontHave,
        }
    }

    /// The stretches that cannot be read, in order.
    pub fn faulty(&self) -> &[FaultyRange] {
        &self.faulty
    }
}

/// Puts holdings together from the batches that are found behind a damaged place.
#[derive(Debug)]
pub(crate) struct Survey {
    sequence: u64,
    checksum: u32,
    pub(crate) incarnation: u64,
    last: Zxid,
    faulty: Vec<FaultyRange>,
}

impl Survey {
    /// A survey behind `chain`, the last batch that could be reached.
    pub(crate) fn behind(chain: Chain) -> Self {
        Self {
            sequence: chain.sequence,
            checksum: chain.checksum,
            incarnation: chain.incarnation,
            last: chain.last_zxid,
            faulty: Vec::new(),
        }
    }

    /// Whether a header that is whole and in its place counts: it is of this history, and comes after what is known.
    pub(crate) fn counts(&self, header: &BatchHeader) -> bool {
        header.sequence > self.sequence && header.incarnation >= self.incarnation
    }

    /// Takes in the next batch that counts; `damaged` says where it is if its records are not whole.
    pub(crate) fn found(&mut self, header: &BatchHeader, damaged: Option<DamagedBatch>) {
        let is_next = header.sequence == self.sequence + 1 && header.previous == self.checksum;
        // The last zxid that counts before this batch.
        let before = match header.kind {
            BatchKind::Records => Zxid(header.first_zxid.0.saturating_sub(1)),
            BatchKind::Seal | BatchKind::Truncation | BatchKind::Reset => header.last_zxid,
        };
        match header.kind {
            BatchKind::Reset => self.faulty.clear(),
            BatchKind::Truncation => self.cut(before),
            // A truncation is among what is missing.
            BatchKind::Records | BatchKind::Seal if before < self.last => self.cut(before),
            BatchKind::Records | BatchKind::Seal if !is_next => self.miss(before, None),
            BatchKind::Records | BatchKind::Seal => {}
        }
        self.last = before;
        if damaged.is_some() {
            self.miss(header.last_zxid, damaged);
        }
        self.last = header.last_zxid;
        self.sequence = header.sequence;
        self.checksum = header.checksum;
        self.incarnation = header.incarnation;
    }

    /// What the survey came to. `has_lost_more`: something durable is missing behind all that was found.
    pub(crate) fn finish(
        mut self,
        damage: Damage,
        has_lost_more: bool,
        may_have_had_more: bool,
    ) -> Holdings {
        if has_lost_more {
            self.miss(Zxid(u64::MAX), None);
        }
        Holdings {
            damage: Some(damage),
            last: self.last,
            may_have_had_more,
            faulty: self.faulty,
        }
    }

    pub(crate) fn has_no_gap(&self) -> bool {
        self.faulty.is_empty()
    }

    /// The chain that a batch behind all that was found would continue.
    pub(crate) fn chain(&self) -> Chain {
        Chain {
            sequence: self.sequence,
            checksum: self.checksum,
            incarnation: self.incarnation,
            last_zxid: self.last,
            committed: Zxid::ZERO,
        }
    }

    fn miss(&mut self, through: Zxid, batch: Option<DamagedBatch>) {
        if through > self.last {
            self.faulty.push(FaultyRange {
                after: self.last,
                through,
                batch,
            });
        }
    }

    /// What lies above `zxid` does not count any more.
    fn cut(&mut self, zxid: Zxid) {
        self.faulty.retain(|range| range.after < zxid);
        for range in &mut self.faulty {
            if range.through > zxid {
                range.through = zxid;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::DamageKind;

    fn header(kind: BatchKind, sequence: u64, first: u64, last: u64) -> BatchHeader {
        BatchHeader {
            checksum: u32::try_from(sequence).expect("small"),
            body_checksum: 0,
            previous: u32::try_from(sequence - 1).expect("small"),
            kind,
            count: 1,
            incarnation: 1,
            sequence,
            durable_sequence: sequence - 1,
            first_zxid: Zxid(first),
            last_zxid: Zxid(last),
            durable_through: Zxid::ZERO,
            committed: Zxid::ZERO,
            body_bytes: 0,
            block: 0,
        }
    }

    fn damage() -> Damage {
        Damage {
            file: PathBuf::new(),
            offset: 0,
            kind: DamageKind::Checksum,
            after: Zxid(3),
            before: None,
        }
    }

    fn ranges(batches: &[(BatchKind, u64, u64, u64)], has_lost_more: bool) -> Vec<(u64, u64)> {
        let mut survey = Survey::behind(Chain {
            sequence: 3,
            checksum: 3,
            incarnation: 1,
            last_zxid: Zxid(3),
            committed: Zxid::ZERO,
        });
        for (kind, sequence, first, last) in batches {
            survey.found(&header(*kind, *sequence, *first, *last), None);
        }
        let holdings = survey.finish(damage(), has_lost_more, false);
        let ranges = holdings.faulty().iter();
        ranges
            .map(|range| (range.after.0, range.through.0))
            .collect()
    }

    #[test]
    fn gaps_and_voids() {
        use BatchKind::{Records, Reset, Seal, Truncation};
        assert_eq!(ranges(&[(Records, 6, 9, 10)], false), [(3, 8)]);
        assert_eq!(ranges(&[(Seal, 5, 4, 4)], false), [(3, 4)]);
        let two = [(Records, 5, 5, 6), (Records, 6, 7, 7), (Records, 9, 12, 12)];
        assert_eq!(ranges(&two, false), [(3, 4), (7, 11)]);
        assert_eq!(ranges(&two, true), [(3, 4), (7, 11), (12, u64::MAX)]);
        // A truncation makes what is missing above it irrelevant, one that is itself missing too.
        let cut = [(Records, 6, 9, 10), (Truncation, 7, 5, 5)];
        assert_eq!(ranges(&cut, false), [(3, 5)]);
        assert_eq!(
            ranges(&[(Records, 6, 9, 10), (Records, 9, 2, 3)], false),
            []
        );
        assert_eq!(
            ranges(&[(Records, 6, 9, 10), (Reset, 7, 50, 50)], false),
            []
        );
        assert_eq!(ranges(&[], true), [(3, u64::MAX)]);
    }

    #[test]
    fn answers() {
        let holdings = Holdings {
            faulty: vec![FaultyRange {
                after: Zxid(3),
                through: Zxid(5),
                batch: None,
            }],
            ..Holdings::whole(Zxid(9), false)
        };
        let of = |zxid| holdings.of(Zxid(zxid));
        assert_eq!([3, 4, 5, 6, 9].map(of), {
            use Holding::{Have, HaveFaulty};
            [Have, HaveFaulty, HaveFaulty, Have, Have]
        });
        assert_eq!(of(10), Holding::DontHave);
        let torn = Holdings::whole(Zxid(9), true);
        assert_eq!(torn.of(Zxid(10)), Holding::HaveFaulty);
    }
}
