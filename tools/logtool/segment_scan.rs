//! One log segment judged by itself: its first block, the batches that chain, and what lies between.
//!
//! Segments are scanned independently of each other, and so in parallel; `own_log.rs` puts the scans together
//! and decides. Memory is constant but for the damage found, which is bounded too.
//!
//! Invariants:
//! - `gaps.len() == runs.len() + 1`: `gaps[i]` is what lies before `runs[i]`, the last one what lies behind.
//! - Nothing read is believed before its checksum holds; lengths are held against the file's.

use std::io;
use std::path::{Path, PathBuf};

use ringkeeper_apache_files::{Window, follows};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::offline::{self, BodyFault, FIRST_BATCH_OFFSET, HeaderAt, SegmentInfo};
use ringkeeper_storage::{BLOCK_BYTES, BatchHeader, BatchKind, HEADER_BYTES, HeaderState};

/// A batch's last byte can be up to this far; a piece of this size keeps a device busy.
const AHEAD_FULL: usize = 2 << 20;
/// Only headers are wanted: one block each.
const AHEAD_HEADERS: usize = BLOCK_BYTES;
/// The most places of damage remembered per segment; what comes behind is not looked at.
const RUNS_MAX: usize = 4096;
/// The most notes of one kind remembered per segment.
const NOTES_MAX: usize = 256;

/// How thoroughly a segment is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Headers only: enough to find the way.
    Headers,
    /// Every byte that a checksum covers.
    Full,
}

/// A segment as found.
#[derive(Clone, Debug)]
pub(crate) struct SegmentScan {
    /// The number in its name; 0 when its name has none.
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    /// The file's length.
    pub(crate) bytes: u64,
    /// Its first block, or `None` when that is damaged.
    pub(crate) info: Option<SegmentInfo>,
    pub(crate) runs: Vec<Run>,
    pub(crate) gaps: Vec<Gap>,
    /// Batches in whose padding something stands: the offset of the first such byte, and the sequence.
    pub(crate) dirty_padding: Vec<(u64, u64)>,
    /// Where in the first block, behind the header, something stands.
    pub(crate) dirty_head: Option<u64>,
    /// Places where zxids are left out.
    pub(crate) jumps: Vec<Jump>,
    /// Truncations and resets.
    pub(crate) voids: Vec<Void>,
    /// Whether there was more damage than is remembered.
    pub(crate) is_cut_short: bool,
}

/// Batches that chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) first: BatchHeader,
    pub(crate) last: BatchHeader,
    pub(crate) batches: u64,
    pub(crate) records: u64,
    /// Bytes of the records, without their frames.
    pub(crate) payload_bytes: u64,
    /// The lowest and highest zxid of a record.
    pub(crate) zxids: Option<(Zxid, Zxid)>,
    /// The zxid of the first record.
    pub(crate) first_record: Option<Zxid>,
    /// The highest zxid known committed.
    pub(crate) committed: Zxid,
}

/// A place where the chain does not go on.
#[derive(Clone, Debug)]
pub(crate) struct Gap {
    pub(crate) offset: u64,
    /// Where the chain goes on, or the end of the file.
    pub(crate) end: u64,
    /// What stands at `offset`.
    pub(crate) header: HeaderState,
    /// Whether it is a whole batch, which belongs elsewhere.
    pub(crate) is_whole: bool,
    /// Batches with a whole header and a damaged body, with their offsets.
    pub(crate) broken: Vec<(u64, BatchHeader, BodyFault)>,
    /// A whole header of a newer format.
    pub(crate) newer: Option<u16>,
    /// The highest `durable_sequence` that a header within says.
    pub(crate) durable_sequence: u64,
    /// Whether it was looked at twice.
    is_settled: bool,
}

/// Zxids left out between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) offset: u64,
    pub(crate) batch: u64,
    pub(crate) after: Zxid,
    pub(crate) before: Zxid,
}

/// Earlier records that a truncation or reset has made void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Void {
    /// It concerns batches of lower sequences.
    pub(crate) sequence: u64,
    /// Records above this are void.
    pub(crate) above: Zxid,
    /// Where history goes on, after a reset: a snapshot holds what is below.
    pub(crate) resumes_after: Option<Zxid>,
}

impl Void {
    fn of(header: &BatchHeader) -> Option<Self> {
        let (above, resumes_after) = match header.kind {
            BatchKind::Records | BatchKind::Seal => return None,
            BatchKind::Truncation => (header.last_zxid, None),
            BatchKind::Reset => (Zxid::ZERO, Some(header.last_zxid)),
        };
        Some(Self {
            sequence: header.sequence,
            above,
            resumes_after,
        })
    }
}

impl SegmentScan {
    pub(crate) fn name(&self) -> String {
        self.path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    pub(crate) fn batches(&self) -> u64 {
        self.runs.iter().map(|run| run.batches).sum()
    }

    pub(crate) fn records(&self) -> u64 {
        self.runs.iter().map(|run| run.records).sum()
    }

    /// The gap behind the last run.
    pub(crate) fn last_gap(&self) -> Option<&Gap> {
        self.gaps.last()
    }
}

/// Reads the segment at `path`; `tick` is told of bytes as they are done.
pub(crate) fn scan(
    path: &Path,
    number: u64,
    depth: Depth,
    tick: &mut dyn FnMut(u64),
) -> io::Result<SegmentScan> {
    let ahead = match depth {
        Depth::Full => AHEAD_FULL,
        Depth::Headers => AHEAD_HEADERS,
    };
    let mut window = Window::open(path, ahead)?;
    let head = window.get(0, BLOCK_BYTES)?;
    let info = SegmentInfo::read(head);
    let dirty_head = head
        .iter()
        .skip(SegmentInfo::LEN)
        .position(|byte| *byte != 0)
        .map(|at| (at + SegmentInfo::LEN) as u64);
    let scan = SegmentScan {
        number,
        path: path.to_owned(),
        bytes: window.len(),
        info,
        runs: Vec::new(),
        gaps: Vec::new(),
        dirty_padding: Vec::new(),
        dirty_head,
        jumps: Vec::new(),
        voids: Vec::new(),
        is_cut_short: false,
    };
    let mut scanner = Scanner {
        floor: info.map_or(0, |info| info.incarnation),
        scan,
        window,
        depth,
        run: None,
        gap: None,
        last_zxid: None,
        payload_bytes: 0,
    };
    scanner.run_to_end(tick)?;
    Ok(scanner.scan)
}

struct Scanner {
    scan: SegmentScan,
    window: Window,
    depth: Depth,
    /// No lower incarnation counts from here on.
    floor: u64,
    run: Option<Run>,
    gap: Option<Gap>,
    /// The log's last zxid, where it is known.
    last_zxid: Option<Zxid>,
    /// Bytes of the records of the batch just checked.
    payload_bytes: u64,
}

impl Scanner {
    fn run_to_end(&mut self, tick: &mut dyn FnMut(u64)) -> io::Result<()> {
        let bytes = self.scan.bytes;
        let mut at = FIRST_BATCH_OFFSET.min(bytes);
        let mut told = 0;
        while at < bytes {
            at = self.step(at)?;
            let new = at.saturating_sub(told);
            if new >= 1 << 20 {
                tick(new);
                told = at;
            }
            if self.scan.runs.len() >= RUNS_MAX {
                self.scan.is_cut_short = true;
                break;
            }
        }
        tick(bytes.saturating_sub(told));
        self.end_run();
        let gap = self
            .gap
            .take()
            .unwrap_or_else(|| Gap::at(at, HeaderState::Zeros));
        self.push_gap(gap, bytes);
        Ok(())
    }

    /// Looks at the block at `at`; returns where to go on.
    fn step(&mut self, at: u64) -> io::Result<u64> {
        let bytes = self.scan.bytes;
        let block = self.window.get(at, BLOCK_BYTES)?;
        let whole = offline::whole_header_at(block);
        let header = whole.filter(|header| {
            let is_placed = u64::from(header.block) * BLOCK_BYTES as u64 == at;
            let fits = at.saturating_add(header.stored_bytes() as u64) <= bytes;
            is_placed && fits && header.incarnation >= self.floor
        });
        let last = self.run.as_ref().or_else(|| self.scan.runs.last());
        let header = header.filter(|header| last.is_none_or(|l| header.sequence > l.last.sequence));
        let Some(header) = header else {
            if self.gap.is_none() {
                let gap = Gap::of(at, block, whole, self.floor);
                self.open_gap(gap);
            }
            return Ok(at + BLOCK_BYTES as u64);
        };
        if let Some(healed) = self.look_again()? {
            return Ok(healed);
        }
        let len = header.stored_bytes();
        if self.depth == Depth::Full
            && let Some(fault) = self.check_body(at, &header)?
        {
            self.end_run();
            let gap = self
                .gap
                .get_or_insert_with(|| Gap::at(at, HeaderState::Ours));
            if gap.broken.len() < RUNS_MAX {
                gap.broken.push((at, header, fault));
            }
            gap.durable_sequence = gap.durable_sequence.max(header.durable_sequence);
            self.last_zxid = None;
            return Ok(at + len as u64);
        }
        self.accept(at, header);
        Ok(at + len as u64)
    }

    /// Reads the place where the chain stopped once more, now that something is found behind it: a server may have
    /// been writing there. Returns the place when it is good now.
    fn look_again(&mut self) -> io::Result<Option<u64>> {
        let Some(gap) = self.gap.as_mut().filter(|gap| !gap.is_settled) else {
            return Ok(None);
        };
        gap.is_settled = true;
        let at = gap.offset;
        self.window.forget();
        let block = self.window.get(at, BLOCK_BYTES)?;
        let last = self.scan.runs.last().filter(|run| run.end == at);
        let header = offline::whole_header_at(block).filter(|header| {
            let chains = last.is_none_or(|run| run.is_followed_by(header));
            let is_placed = u64::from(header.block) * BLOCK_BYTES as u64 == at;
            let fits = at.saturating_add(header.stored_bytes() as u64) <= self.scan.bytes;
            chains && is_placed && fits && header.incarnation >= self.floor
        });
        let Some(header) = header else {
            return Ok(None);
        };
        let stored = self.window.get(at, header.stored_bytes())?;
        if self.depth == Depth::Full && offline::check_body(&header, stored, |_, _| ()).is_err() {
            return Ok(None);
        }
        self.gap = None;
        self.run = self.scan.runs.pop_if(|run| run.end == at);
        self.last_zxid = self.run.as_ref().map(|run| run.last.last_zxid);
        Ok(Some(at))
    }

    /// Sums up the body, and looks for zxids that are left out and padding that is not zero.
    fn check_body(&mut self, at: u64, header: &BatchHeader) -> io::Result<Option<BodyFault>> {
        let stored = self.window.get(at, header.stored_bytes())?;
        let mut jumps = Vec::new();
        let mut payload_bytes = 0;
        let mut last = self.last_zxid;
        let checked = offline::check_body(header, stored, |zxid, payload| {
            payload_bytes += payload.len() as u64;
            if let Some(after) = last.filter(|last| !follows(*last, zxid)) {
                jumps.push((after, zxid));
            }
            last = Some(zxid);
        });
        let used = HEADER_BYTES + usize::try_from(header.body_bytes).unwrap_or(usize::MAX);
        let padding = stored.get(used..).unwrap_or_default();
        let dirty = padding.iter().position(|byte| *byte != 0);
        if let Err(fault) = checked {
            return Ok(Some(fault));
        }
        if let Some(dirty) = dirty.filter(|_| self.scan.dirty_padding.len() < NOTES_MAX) {
            let place = at + (used + dirty) as u64;
            self.scan.dirty_padding.push((place, header.sequence));
        }
        for (after, before) in jumps {
            self.note_jump(at, header.sequence, after, before);
        }
        self.payload_bytes = payload_bytes;
        Ok(None)
    }

    fn note_jump(&mut self, offset: u64, batch: u64, after: Zxid, before: Zxid) {
        if self.scan.jumps.len() < NOTES_MAX {
            self.scan.jumps.push(Jump {
                offset,
                batch,
                after,
                before,
            });
        }
    }

    /// Takes a good batch into the run that it continues, or begins one.
    fn accept(&mut self, at: u64, header: BatchHeader) {
        let chains = self
            .run
            .as_ref()
            .is_some_and(|run| run.is_followed_by(&header));
        if self.gap.is_some() || !chains {
            self.end_run();
            let gap = self.gap.take().unwrap_or_else(|| Gap {
                is_whole: true,
                ..Gap::at(at, HeaderState::Ours)
            });
            self.push_gap(gap, at);
            self.run = Some(Run::begin(at, header));
        }
        self.floor = header.incarnation;
        self.last_zxid = Some(header.last_zxid);
        self.scan.voids.extend(Void::of(&header));
        let payload_bytes = std::mem::take(&mut self.payload_bytes);
        if let Some(run) = &mut self.run {
            run.add(at, header);
            run.payload_bytes += payload_bytes;
        }
    }

    fn open_gap(&mut self, gap: Gap) {
        self.end_run();
        self.last_zxid = None;
        self.gap = Some(gap);
    }

    fn push_gap(&mut self, mut gap: Gap, end: u64) {
        gap.end = end;
        self.scan.gaps.push(gap);
    }

    fn end_run(&mut self) {
        self.scan.runs.extend(self.run.take());
    }
}

impl Run {
    fn begin(offset: u64, first: BatchHeader) -> Self {
        Self {
            offset,
            end: offset,
            first,
            last: first,
            batches: 0,
            records: 0,
            payload_bytes: 0,
            zxids: None,
            first_record: None,
            committed: Zxid::ZERO,
        }
    }

    fn is_followed_by(&self, header: &BatchHeader) -> bool {
        header.sequence == self.last.sequence + 1 && header.previous == self.last.checksum
    }

    fn add(&mut self, at: u64, header: BatchHeader) {
        self.end = at + header.stored_bytes() as u64;
        self.last = header;
        self.batches += 1;
        self.records += u64::from(header.count);
        self.committed = self.committed.max(header.committed);
        if header.count > 0 {
            let (low, high) = self.zxids.unwrap_or((header.first_zxid, header.last_zxid));
            self.zxids = Some((low.min(header.first_zxid), high.max(header.last_zxid)));
            self.first_record.get_or_insert(header.first_zxid);
        }
    }
}

impl Gap {
    const fn at(offset: u64, header: HeaderState) -> Self {
        Self {
            offset,
            end: offset,
            header,
            is_whole: false,
            broken: Vec::new(),
            newer: None,
            durable_sequence: 0,
            is_settled: false,
        }
    }

    /// What stands in `block` at `offset`, where no batch of the chain does.
    fn of(offset: u64, block: &[u8], whole: Option<BatchHeader>, floor: u64) -> Self {
        if let Some(header) = whole {
            let is_foreign = header.incarnation < floor;
            let state = if is_foreign {
                HeaderState::Foreign
            } else {
                HeaderState::Ours
            };
            return Self {
                is_whole: !is_foreign,
                ..Self::at(offset, state)
            };
        }
        match offline::header_at(block) {
            HeaderAt::Zeros => Self::at(offset, HeaderState::Zeros),
            HeaderAt::Newer(format) => Self {
                newer: Some(format),
                ..Self::at(offset, HeaderState::Ours)
            },
            HeaderAt::Garbage | HeaderAt::Header(_) => Self::at(offset, HeaderState::Ours),
        }
    }
}
