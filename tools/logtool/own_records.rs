//! The records of an own log, in order, from what `own_log.rs` found to count.

use std::ops::ControlFlow;

use anyhow::Context as _;
use ringkeeper_apache_files::Window;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::offline::{self, FIRST_BATCH_OFFSET};
use ringkeeper_storage::{BLOCK_BYTES, BatchHeader, FRAME_BYTES, HEADER_BYTES, HeaderState};

use crate::exit::Failure;
use crate::finding::Finding;
use crate::own_log::OwnLog;
use crate::record::{RecordAt, Span, Visit};
use crate::segment_scan::{Gap, Run, SegmentScan};

const AHEAD: usize = 1 << 20;
/// The longest damaged stretch that is searched for whole records.
const SALVAGE_BYTES_MAX: u64 = 256 << 20;

/// What to do about damaged records.
pub(crate) enum Damaged<'d> {
    /// End with an error.
    Refuse,
    /// Tell, and hand out what is whole around them.
    Tell(&'d mut dyn FnMut(Finding)),
}

/// Hands every record of `span` to `visit`, void ones included (and marked).
///
/// # Errors
/// Those of `visit`, and when a file cannot be read, or as `damaged` has it.
pub(crate) fn for_each(
    log: &OwnLog,
    span: Span,
    mut damaged: Damaged<'_>,
    visit: Visit<'_>,
) -> anyhow::Result<()> {
    for (at, segment) in log.segments.iter().enumerate() {
        for (run_at, run) in segment.runs.iter().enumerate() {
            if (at, run_at) >= log.counts_until {
                return Ok(());
            }
            let mut reader = RunReader {
                log,
                segment,
                span,
                damaged: &mut damaged,
                visit: &mut *visit,
            };
            let gap = segment.gaps.get(run_at);
            let ended = match gap.filter(|gap| gap.header == HeaderState::Ours) {
                Some(gap) => reader.salvage_gap(gap, run)?.is_break(),
                None => false,
            };
            if ended || reader.read(run)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

struct RunReader<'r, 'd> {
    log: &'r OwnLog,
    segment: &'r SegmentScan,
    span: Span,
    damaged: &'r mut Damaged<'d>,
    visit: &'r mut dyn FnMut(&RecordAt<'_>) -> anyhow::Result<ControlFlow<()>>,
}

impl RunReader<'_, '_> {
    fn read(&mut self, run: &Run) -> anyhow::Result<ControlFlow<()>> {
        let (span, path) = (self.span, &self.segment.path);
        let is_wanted = |low: Zxid, high: Zxid| high > span.after && low <= span.through;
        if !run.zxids.is_some_and(|(low, high)| is_wanted(low, high)) {
            return Ok(ControlFlow::Continue(()));
        }
        let failed = || format!("read {}", path.display());
        let mut window = Window::open(path, AHEAD).with_context(failed)?;
        let mut at = run.offset;
        while at < run.end {
            let block = window.get(at, BLOCK_BYTES).with_context(failed)?;
            let Some(header) = offline::whole_header_at(block) else {
                let text = format!("{} has changed while it was read", path.display());
                return Err(Failure::Changed(text).into());
            };
            let len = header.stored_bytes();
            if header.count > 0 && is_wanted(header.first_zxid, header.last_zxid) {
                let stored = window.get(at, len).with_context(failed)?;
                if self.read_batch(at, &header, stored)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            at += len as u64;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn read_batch(
        &mut self,
        at: u64,
        header: &BatchHeader,
        stored: &[u8],
    ) -> anyhow::Result<ControlFlow<()>> {
        let body_len = usize::try_from(header.body_bytes)?;
        let body = stored
            .get(HEADER_BYTES..HEADER_BYTES + body_len)
            .unwrap_or_default();
        let mut records = offline::records(body);
        let mut used = 0;
        let mut index = 0;
        let mut last = Zxid(header.first_zxid.0.saturating_sub(1));
        for (zxid, bytes) in &mut records {
            let offset = at + (HEADER_BYTES + used) as u64;
            if self
                .hand_out(zxid, bytes, offset, header.sequence, index)?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            used += FRAME_BYTES + bytes.len();
            index += 1;
            last = zxid;
        }
        if !records.is_broken() && index == u64::from(header.count) {
            return Ok(ControlFlow::Continue(()));
        }
        let offset = at + (HEADER_BYTES + used) as u64;
        let finding = Finding::damage("checksum", &self.segment.path, "its checksum does not hold")
            .at(offset)
            .in_batch(header.sequence)
            .in_record(index)
            .between(Some(last), Some(Zxid(header.last_zxid.0.saturating_add(1))));
        match self.damaged {
            Damaged::Refuse => anyhow::bail!("{finding}; `ringkeeper-log verify` shows all damage"),
            Damaged::Tell(tell) => tell(finding),
        }
        let rest = body.get(used..).unwrap_or_default();
        let next = Zxid(last.0.saturating_add(1));
        self.hand_out_salvaged(rest, offset, header.sequence, next, header.last_zxid)
    }

    /// Looks for whole records where no batch stands.
    fn salvage_gap(&mut self, gap: &Gap, behind: &Run) -> anyhow::Result<ControlFlow<()>> {
        if matches!(self.damaged, Damaged::Refuse) || gap.end - gap.offset > SALVAGE_BYTES_MAX {
            return Ok(ControlFlow::Continue(()));
        }
        let after = self.zxid_before(gap.offset);
        let before = behind
            .first_record
            .map_or(Zxid(u64::MAX), |zxid| Zxid(zxid.0 - 1));
        let path = &self.segment.path;
        let mut window =
            Window::open(path, 0).with_context(|| format!("open {}", path.display()))?;
        let len = usize::try_from(gap.end - gap.offset)?;
        let bytes = window.get(gap.offset, len)?.to_vec();
        let sequence = behind.first.sequence.saturating_sub(1);
        self.hand_out_salvaged(
            &bytes,
            gap.offset,
            sequence,
            Zxid(after.0.saturating_add(1)),
            before,
        )
    }

    fn hand_out_salvaged(
        &mut self,
        bytes: &[u8],
        offset: u64,
        sequence: u64,
        from: Zxid,
        through: Zxid,
    ) -> anyhow::Result<ControlFlow<()>> {
        for (index, (at, zxid, record)) in (0..).zip(salvage(bytes, from, through)) {
            let place = offset + at as u64;
            if self
                .hand_out(zxid, record, place, sequence, index)?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The log's last zxid before `offset` of this segment.
    fn zxid_before(&self, offset: u64) -> Zxid {
        let runs = self.log.runs();
        let before = runs.take_while(|(segment, run)| {
            segment.number < self.segment.number
                || (segment.path == self.segment.path && run.end <= offset.max(FIRST_BATCH_OFFSET))
        });
        before
            .last()
            .map_or(Zxid::ZERO, |(_, run)| run.last.last_zxid)
    }

    fn hand_out(
        &mut self,
        zxid: Zxid,
        bytes: &[u8],
        offset: u64,
        sequence: u64,
        index: u64,
    ) -> anyhow::Result<ControlFlow<()>> {
        if zxid <= self.span.after || zxid > self.span.through {
            return Ok(ControlFlow::Continue(()));
        }
        (self.visit)(&RecordAt {
            zxid,
            bytes,
            file: &self.segment.path,
            offset,
            batch: Some(sequence),
            index,
            is_void: zxid > self.log.ceiling(sequence),
        })
    }
}

/// Whole records in `bytes`, wherever they begin, with their places: `from..=through` bounds the zxids that are
/// believed, and they only grow.
///
/// For batches of which a part is damaged: a record carries a checksum of its own.
fn salvage(bytes: &[u8], from: Zxid, through: Zxid) -> Vec<(usize, Zxid, &[u8])> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut lowest = from;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= FRAME_BYTES) {
        let Some(told) = rest.get(8..16).and_then(|zxid| zxid.try_into().ok()) else {
            break;
        };
        let told = Zxid(u64::from_be_bytes(told));
        let whole = (told >= lowest && told <= through)
            .then(|| offline::records(rest).next())
            .flatten();
        match whole {
            Some((zxid, record)) => {
                found.push((at, zxid, record));
                at += FRAME_BYTES + record.len();
                lowest = Zxid(zxid.0.saturating_add(1));
            }
            None => at += 1,
        }
    }
    found
}
