//! Finding out, at a start, where the log goes on.
//!
//! Invariants:
//! - Nothing of the log is changed before it has been judged.
//! - Segments behind the one in which the log goes on lose their name before the first write: what they
//!   hold was cut, and must not be met again by a later start.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    rc::Rc,
};

use ringkeeper_proto::Zxid;

use crate::{
    batch::{BatchHeader, Parsed},
    disk::{BLOCK_BYTES, Disk},
    error::{Damage, DamageKind, OpenError, StorageError},
    holdings::Holdings,
    manifest::{Contents, Phase},
    recovery::{Chain, Decision, Ending, Void, Walk},
    segment::{FIRST_BATCH, Listing, Segment, SegmentHeader, SegmentMeta, log_path, spare_path},
    store::{LogOptions, Tail, list, remove, sync},
    txn_log::{Resume, needed_from},
};

/// The log as found.
pub(crate) struct ScannedLog<D: Disk> {
    pub(crate) resume: Resume<D>,
    pub(crate) tail: Tail,
    pub(crate) holdings: Holdings,
    pub(crate) bytes_read: u64,
}

/// What damage to acknowledged history means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDamage {
    /// The log is not opened.
    Refuse,
    /// It is opened for reading what there is of it, and is not changed.
    Survey,
}

/// Reads the log from where a snapshot at `snapshot` needs it, and judges its end.
pub(crate) async fn scan_log<D: Disk>(
    disk: &D,
    dir: &Path,
    options: &LogOptions,
    contents: &Contents,
    snapshot: Zxid,
    on_damage: OnDamage,
) -> Result<ScannedLog<D>, OpenError> {
    let listing = Listing::of(&list(disk, dir).await?);
    let run = (contents.starts + 1) << 32;
    let Segments {
        whole: segments,
        missing,
    } = read_segments(disk, dir, contents, &listing).await?;
    if let Some(missing) = missing.as_ref().filter(|_| on_damage == OnDamage::Refuse) {
        return Err(OpenError::Segment(missing.clone()));
    }
    if segments.is_empty() {
        return match contents.phase {
            Phase::Making => Ok(fresh(dir, options, contents, run)),
            Phase::Made => Err(OpenError::Segment(log_path(
                dir,
                contents.log_start.segment,
            ))),
        };
    }
    let first = needed_from(&segments, snapshot).unwrap_or(0);
    let before = segments
        .get(first)
        .and_then(|meta| meta.before)
        .unwrap_or(contents.log_start.before);
    let mut walk = Walk::new(
        disk.clone(),
        segments.iter().skip(first).cloned().collect(),
        before,
    );
    walk.attest(contents.durable_sequence);
    let mut voids = Vec::new();
    let mut bytes_read = 0;
    let mut committed = before.committed;
    while let Some(header) = walk.advance().await? {
        voids.extend(Void::of(&header));
        bytes_read += header.stored_bytes() as u64;
        committed = committed.max(header.committed).min(header.last_zxid);
    }
    let ending = walk.ending(contents.clean_end).await?;
    let chain = walk.chain();
    let is_missing = missing.is_some();
    if let Some(damage) = damage(&walk, &ending, missing) {
        if on_damage == OnDamage::Refuse {
            return Err(damage.into());
        }
        let (holdings, later) = walk.survey(damage, contents.clean_end, is_missing).await?;
        walk.close().await;
        // What a truncation behind the damage has cut does not count before it either.
        let last_zxid = later.iter().map(|void| void.above).min();
        voids.extend(later);
        let chain = Chain {
            last_zxid: chain.last_zxid.min(last_zxid.unwrap_or(chain.last_zxid)),
            ..chain
        };
        let state = Found {
            chain,
            committed,
            run,
            voids,
            voids_known_from: before.sequence + 1,
        };
        let mut resume = state.damaged(disk, dir, segments, &listing).await?;
        resume.damage.clone_from(&holdings.damage);
        return Ok(ScannedLog {
            resume,
            tail: Tail::Clean,
            holdings,
            bytes_read,
        });
    }
    let tail = judge(&walk, &ending);
    walk.close().await;

    let mut spares = Spares::new(disk, dir, options);
    spares
        .sort_out(&listing, contents.log_start.segment)
        .await?;
    let mut segments = segments;
    // From the last to the first, each durably: a crash in between leaves no gap in the numbers.
    for cut in segments.split_off(first + ending.index + 1).iter().rev() {
        spares.take(cut.number, cut.bytes).await?;
        sync(disk, dir).await?;
    }
    let active = reopen(disk, dir, &segments).await?;
    let state = Found {
        chain,
        committed,
        run,
        voids,
        voids_known_from: before.sequence + 1,
    };
    let resume = state.resume(active, ending.offset, segments, spares.kept);
    Ok(ScannedLog {
        resume,
        tail,
        holdings: Holdings::whole(chain.last_zxid, tail != Tail::Clean),
        bytes_read,
    })
}

/// Where the chain stands, and what was met on the way.
struct Found {
    chain: Chain,
    committed: Zxid,
    run: u64,
    voids: Vec<Void>,
    voids_known_from: u64,
}

impl Found {
    fn resume<D: Disk>(
        self,
        active: Rc<Segment<D>>,
        offset: u64,
        segments: VecDeque<SegmentMeta>,
        spares: Vec<u64>,
    ) -> Resume<D> {
        Resume {
            chain: self.chain,
            committed: self.committed,
            run: self.run,
            active,
            offset,
            segments,
            spares,
            voids: self.voids,
            voids_known_from: self.voids_known_from,
            damage: None,
        }
    }

    /// A log in which nothing is written, and behind all of whose files another may begin.
    async fn damaged<D: Disk>(
        self,
        disk: &D,
        dir: &Path,
        segments: VecDeque<SegmentMeta>,
        listing: &Listing,
    ) -> Result<Resume<D>, StorageError> {
        let active = reopen(disk, dir, &segments).await?;
        let number = listing.logs.last().map_or(0, |(number, _)| *number);
        let full = active.bytes;
        let last = Segment::new(dir, number.max(active.number), active.incarnation, full);
        *last.file.borrow_mut() = active.ready();
        Ok(self.resume(last, full, segments, Vec::new()))
    }
}

/// A log without any segment yet.
fn fresh<D: Disk>(
    dir: &Path,
    options: &LogOptions,
    contents: &Contents,
    run: u64,
) -> ScannedLog<D> {
    let start = contents.log_start;
    let active = Segment::new(dir, start.segment, run, options.segment_bytes);
    let meta = SegmentMeta {
        number: active.number,
        incarnation: active.incarnation,
        bytes: active.bytes,
        path: active.path.clone(),
        before: Some(start.before),
    };
    let resume = Resume {
        chain: start.before,
        committed: Zxid::ZERO,
        run,
        active,
        offset: FIRST_BATCH,
        segments: VecDeque::from([meta]),
        spares: Vec::new(),
        voids: Vec::new(),
        voids_known_from: 0,
        damage: None,
    };
    ScannedLog {
        resume,
        tail: Tail::Clean,
        holdings: Holdings::whole(start.before.last_zxid, false),
        bytes_read: 0,
    }
}

/// The damage, if the chain did not just end. `missing` is a segment that is not there or has no whole header.
fn damage<D: Disk>(walk: &Walk<D>, ending: &Ending, missing: Option<PathBuf>) -> Option<Damage> {
    match (ending.decision, missing) {
        (Decision::Rot(DamageKind::Missing) | Decision::End | Decision::Torn, Some(file)) => {
            Some(Damage {
                file,
                offset: 0,
                ..walk.damage(ending, DamageKind::Missing)
            })
        }
        (Decision::Rot(kind), _) => Some(walk.damage(ending, kind)),
        _ => None,
    }
}

fn judge<D: Disk>(walk: &Walk<D>, ending: &Ending) -> Tail {
    match ending.decision {
        Decision::Torn => {
            let after = walk.chain().last_zxid;
            let (index, offset) = ending.judged;
            let file = walk
                .segment(index)
                .map(|meta| meta.path.display().to_string());
            tracing::warn!(file, offset, %after, "cut an unfinished write off the log");
            let through = ending.torn_through;
            Tail::Torn { after, through }
        }
        // Rot has been dealt with before.
        Decision::End | Decision::Keep | Decision::Rot(_) => Tail::Clean,
    }
}

/// The segments that count.
struct Segments {
    /// Oldest first, each with a whole first block.
    whole: VecDeque<SegmentMeta>,
    /// The first that is not there, or has none.
    missing: Option<PathBuf>,
}

async fn read_segments<D: Disk>(
    disk: &D,
    dir: &Path,
    contents: &Contents,
    listing: &Listing,
) -> Result<Segments, StorageError> {
    let start = contents.log_start;
    let mut whole = VecDeque::new();
    let mut missing = None;
    let mut expected = start.segment;
    let logs = listing.logs.iter();
    for &(number, bytes) in logs.filter(|(number, _)| *number >= start.segment) {
        if number != expected {
            missing.get_or_insert_with(|| log_path(dir, expected));
        }
        expected = number + 1;
        match read_segment(disk, dir, contents.store, number, bytes).await? {
            Some(mut meta) => {
                if number == start.segment {
                    meta.before = Some(start.before);
                }
                whole.push_back(meta);
            }
            None => _ = missing.get_or_insert_with(|| log_path(dir, number)),
        }
    }
    Ok(Segments { whole, missing })
}

/// The segment, or `None` when its first block is not the one that was written.
async fn read_segment<D: Disk>(
    disk: &D,
    dir: &Path,
    store: u64,
    number: u64,
    bytes: u64,
) -> Result<Option<SegmentMeta>, StorageError> {
    let path = log_path(dir, number);
    let failed = |error| StorageError::io("read log segment", &path, Some(0), error);
    let file = disk.open(&path).await.map_err(failed)?;
    let read = disk
        .read_at(&file, 0, 2 * BLOCK_BYTES)
        .await
        .map_err(failed);
    disk.close(file).await;
    let read = read?;
    let Some(header) = SegmentHeader::read(&read)
        .filter(|header| (header.number, header.store, header.bytes) == (number, store, bytes))
    else {
        return Ok(None);
    };
    let before = match BatchHeader::read(read.get(BLOCK_BYTES..).unwrap_or_default()) {
        Parsed::Header(batch) if batch.incarnation >= header.incarnation => {
            Some(Chain::before(&batch))
        }
        _ => None,
    };
    Ok(Some(SegmentMeta {
        number,
        incarnation: header.incarnation,
        bytes,
        path,
        before,
    }))
}

/// The segment in which the log goes on: the last of `segments`.
async fn reopen<D: Disk>(
    disk: &D,
    dir: &Path,
    segments: &VecDeque<SegmentMeta>,
) -> Result<Rc<Segment<D>>, StorageError> {
    let meta = segments.back().expect("the walk has at least one segment");
    let segment = Segment::new(dir, meta.number, meta.incarnation, meta.bytes);
    let failed = |error| StorageError::io("open log segment", &meta.path, None, error);
    let file = disk.open(&meta.path).await.map_err(failed)?;
    // What was read may still be in the device's cache only; it counts from now on.
    disk.flush(&file).await.map_err(failed)?;
    *segment.file.borrow_mut() = Some(file);
    Ok(segment)
}

/// Files that can become segments again.
pub(crate) struct Spares<'a, D: Disk> {
    disk: &'a D,
    dir: &'a Path,
    options: &'a LogOptions,
    /// The numbers of those that are kept.
    pub(crate) kept: Vec<u64>,
}

impl<'a, D: Disk> Spares<'a, D> {
    pub(crate) fn new(disk: &'a D, dir: &'a Path, options: &'a LogOptions) -> Self {
        Self {
            disk,
            dir,
            options,
            kept: Vec::new(),
        }
    }

    /// Sorts out the spares that are there, and the segments before the log start.
    async fn sort_out(&mut self, listing: &Listing, start: u64) -> Result<(), StorageError> {
        for &(number, bytes) in &listing.spares {
            if self.fits(bytes) {
                self.kept.push(number);
            } else {
                // Among others, one that a crash has left half filled.
                remove(self.disk, &spare_path(self.dir, number)).await?;
            }
        }
        for &(number, bytes) in listing.logs.iter().filter(|(number, _)| *number < start) {
            self.take(number, bytes).await?;
        }
        Ok(())
    }

    /// Makes a segment a spare, or removes it when it cannot be one.
    pub(crate) async fn take(&mut self, number: u64, bytes: u64) -> Result<(), StorageError> {
        let path = log_path(self.dir, number);
        if !self.fits(bytes) {
            return remove(self.disk, &path).await;
        }
        let spare = spare_path(self.dir, number);
        self.disk
            .rename(&path, &spare)
            .await
            .map_err(|error| StorageError::io("recycle log segment", path, None, error))?;
        self.kept.push(number);
        Ok(())
    }

    fn fits(&self, bytes: u64) -> bool {
        bytes == self.options.segment_bytes
    }
}
