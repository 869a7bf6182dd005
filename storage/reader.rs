//! Reading records back: replay at a start, and catch-up of learners later.

use std::{collections::VecDeque, fmt};

use ringkeeper_proto::Zxid;

use crate::{
    disk::Disk,
    error::{DamageKind, StorageError},
    record::Records,
    recovery::{Chain, Decision, Void, Walk},
    segment::SegmentMeta,
    txn_log::{Shared, needed_from},
};

/// Reads the durable records above a zxid, batch by batch.
///
/// It sees what was durable when it was made; make another for what came after. A void that comes later
/// in what it reads is known before the first record is handed out.
pub struct LogReader<D: Disk> {
    walk: Walk<D>,
    after: Zxid,
    /// Stops behind this batch.
    through: u64,
    voids: Vec<Void>,
    /// Voids below this sequence are not in `voids` yet.
    voids_known_from: u64,
}

impl<D: Disk> LogReader<D> {
    pub(crate) fn new(shared: &Shared<D>, after: Zxid) -> Result<Self, StorageError> {
        let state = shared.state.borrow();
        let Some((segments, before)) = reading_from(&state.segments, after) else {
            let start = state
                .segments
                .front()
                .and_then(|segment| segment.before)
                .map_or(Zxid::ZERO, |before| before.last_zxid);
            return Err(StorageError::Purged {
                wanted: after,
                start,
            });
        };
        let walk = Walk::new(shared.disk.clone(), segments, before);
        Ok(Self {
            walk,
            after,
            through: state.durable_sequence,
            voids: state.voids.clone(),
            voids_known_from: state.voids_known_from,
        })
    }

    /// The next batch with records above the wanted zxid, or `None` at the end.
    ///
    /// Fails with [`StorageError::Damaged`] where a batch that was durable cannot be read.
    pub async fn next_batch(&mut self) -> Result<Option<LiveRecords<'_>>, StorageError> {
        self.find_voids().await?;
        while self.walk.chain().sequence < self.through {
            let Some(header) = self.walk.advance().await? else {
                return Err(self.lost().await);
            };
            if header.count == 0 || header.last_zxid <= self.after {
                continue;
            }
            let ceiling = ceiling(&self.voids, header.sequence);
            let records = self.walk.current().await?;
            return Ok(Some(LiveRecords {
                records,
                above: self.after,
                ceiling,
            }));
        }
        Ok(None)
    }

    /// Closes the file that it reads from.
    pub async fn close(self) {
        self.walk.close().await;
    }

    /// Recovery knows the voids only from where it started to read; older ones have to be looked for.
    async fn find_voids(&mut self) -> Result<(), StorageError> {
        let begin = self.walk.chain();
        if begin.sequence + 1 >= self.voids_known_from {
            return Ok(());
        }
        let mut found = Vec::new();
        while self.walk.chain().sequence + 1 < self.voids_known_from {
            let Some(header) = self.walk.advance().await? else {
                return Err(self.lost().await);
            };
            found.extend(Void::of(&header));
        }
        found.append(&mut self.voids);
        self.voids = found;
        self.voids_known_from = 0;
        self.walk.rewind(begin);
        Ok(())
    }

    async fn lost(&mut self) -> StorageError {
        match self.walk.ending(None).await {
            Ok(ending) => {
                let kind = match ending.decision {
                    Decision::Rot(kind) => kind,
                    _ => DamageKind::Missing,
                };
                self.walk.damage(&ending, kind).into()
            }
            Err(error) => error,
        }
    }
}

impl<D: Disk> fmt::Debug for LogReader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader")
            .field("after", &self.after)
            .field("through", &self.through)
            .finish_non_exhaustive()
    }
}

/// The segments to read for everything above `after`, and what came before the first of them.
fn reading_from(
    segments: &VecDeque<SegmentMeta>,
    after: Zxid,
) -> Option<(Vec<SegmentMeta>, Chain)> {
    let first = needed_from(segments, after)?;
    let before = segments.get(first)?.before?;
    Some((segments.iter().skip(first).cloned().collect(), before))
}

/// The highest zxid that still counts in batch `sequence`.
fn ceiling(voids: &[Void], sequence: u64) -> Zxid {
    voids
        .iter()
        .filter(|void| void.sequence > sequence)
        .map(|void| void.above)
        .min()
        .unwrap_or(Zxid(u64::MAX))
}

/// The records of one batch that are wanted and not void.
#[derive(Clone, Debug)]
pub struct LiveRecords<'a> {
    records: Records<'a>,
    above: Zxid,
    ceiling: Zxid,
}

impl<'a> Iterator for LiveRecords<'a> {
    type Item = (Zxid, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (above, ceiling) = (self.above, self.ceiling);
        self.records
            .find(|(zxid, _)| *zxid > above && *zxid <= ceiling)
    }
}
