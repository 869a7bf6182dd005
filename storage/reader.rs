//! Reading records back: replay at a start, and catch-up of learners later.

use std::{collections::VecDeque, fmt, rc::Rc};

use ringkeeper_proto::Zxid;

use crate::{
    batch::SealedBatch,
    disk::Disk,
    error::{DamageKind, StorageError},
    record::Records,
    recovery::{Chain, Decision, Void, Walk},
    segment::SegmentMeta,
    txn_log::{Shared, needed_from, starts_after},
};

/// Reads the records above a zxid, batch by batch.
///
/// It sees what was there when it was made (durable, or handed over; see [`TxnLog`](crate::TxnLog)); make another
/// for what came after. A void that comes later in what it reads is known before the first record is handed out.
pub struct LogReader<D: Disk> {
    shared: Rc<Shared<D>>,
    walk: Walk<D>,
    after: Zxid,
    through: Zxid,
    /// Reads from the disk to this batch.
    last_sequence: u64,
    /// Batches behind it that were on their way when the reader was made, with their sequences.
    in_flight: VecDeque<(u64, SealedBatch<D::Buffer>)>,
    /// The batch that was handed out last, if it was one of those.
    held: Option<SealedBatch<D::Buffer>>,
    voids: Vec<Void>,
    /// Voids below this sequence are not in `voids` yet.
    voids_known_from: u64,
}

impl<D: Disk> LogReader<D> {
    pub(crate) fn new(
        shared: &Rc<Shared<D>>,
        after: Zxid,
        through: Zxid,
    ) -> Result<Self, StorageError> {
        let state = shared.state.borrow();
        let Some((segments, before)) = reading_from(&state.segments, after) else {
            return Err(StorageError::Purged {
                wanted: after,
                start: starts_after(&state.segments),
            });
        };
        let walk = Walk::new(shared.disk.clone(), segments, before);
        Ok(Self {
            shared: Rc::clone(shared),
            walk,
            after,
            through,
            last_sequence: state.durable_sequence,
            in_flight: VecDeque::new(),
            held: None,
            voids: state.voids.clone(),
            voids_known_from: state.voids_known_from,
        })
    }

    /// Takes in what is handed over and not durable yet.
    pub(crate) fn read_in_flight(&mut self, shared: &Shared<D>) {
        let state = shared.state.borrow();
        let sequences = state.durable_sequence + 1..;
        let batches = state.in_flight.iter().map(|entry| entry.batch.clone());
        self.in_flight = sequences.zip(batches).collect();
    }

    /// The next batch with wanted records, or `None` at the end. It may turn out to have none that is not void.
    ///
    /// Fails with [`StorageError::Damaged`] where a batch that was durable cannot be read, and with
    /// [`StorageError::Purged`] where it was purged meanwhile.
    pub async fn next_batch(&mut self) -> Result<Option<LiveRecords<'_>>, StorageError> {
        let found = self.find().await;
        // A file that is gone, or holds something else by now, is no damage.
        let found = found.map_err(|error| self.purged().unwrap_or(error))?;
        let (records, ceiling) = match found {
            Found::OnDisk { ceiling } => (self.walk.current().await?, ceiling),
            Found::InFlight { batch, ceiling } => (self.held.insert(batch).records(), ceiling),
            Found::Nothing => return Ok(None),
        };
        Ok(Some(LiveRecords {
            records,
            above: self.after,
            ceiling: ceiling.min(self.through),
        }))
    }

    async fn find(&mut self) -> Result<Found<D::Buffer>, StorageError> {
        self.find_voids().await?;
        while self.walk.chain().sequence < self.last_sequence {
            let Some(header) = self.walk.advance().await? else {
                return Err(self.lost().await);
            };
            let is_wanted = header.last_zxid > self.after && header.first_zxid <= self.through;
            if header.count > 0 && is_wanted {
                let ceiling = ceiling(&self.voids, header.sequence);
                return Ok(Found::OnDisk { ceiling });
            }
        }
        while let Some((sequence, batch)) = self.in_flight.pop_front() {
            if batch.last_zxid() > self.after {
                let ceiling = ceiling(&self.voids, sequence);
                return Ok(Found::InFlight { batch, ceiling });
            }
        }
        Ok(Found::Nothing)
    }

    /// That the log begins later by now than where this reader is, if it does.
    fn purged(&self) -> Option<StorageError> {
        let state = self.shared.state.borrow();
        let first = state.segments.front()?.before?;
        (first.sequence > self.walk.chain().sequence).then_some(StorageError::Purged {
            wanted: self.after,
            start: first.last_zxid,
        })
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

/// The next batch of a reader, and the highest zxid of it that still counts.
enum Found<B> {
    OnDisk {
        ceiling: Zxid,
    },
    InFlight {
        batch: SealedBatch<B>,
        ceiling: Zxid,
    },
    Nothing,
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
