//! The segments of an own log put together: where the chain breaks, and what that means.
//!
//! The decisions are those of the server (`ringkeeper_storage::decide`, the table in
//! `docs/internals/txn-log.md`). Where the server stops at the first damage, this goes on behind it, so that all
//! of it is known.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use indicatif::ProgressBar;
use ringkeeper_apache_files::follows;
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{BatchHeader, DamageKind, Decision, HeaderState, Place, decide};

use crate::finding::Finding;
use crate::segment_scan::{Depth, Gap, Run, SegmentScan, Void, scan};

/// A segment file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentFile {
    /// The number in its name; 0 when it has none.
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// What is known of a log beside its segments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// The first segment that counts, and the batch before it: sequence, checksum, zxid.
    pub(crate) start: Option<(u64, Chain)>,
    /// Sequence and checksum of the last batch, if the log was closed in order.
    pub(crate) clean_end: Option<(u64, u32)>,
    /// The last batch that is known to have been durable.
    pub(crate) durable_sequence: u64,
    /// The store that the segments belong to.
    pub(crate) store: Option<u64>,
    /// Whether the segments are meant to be the whole log.
    pub(crate) is_whole: bool,
    /// Where the log should be, for a log that has no segment.
    pub(crate) dir: PathBuf,
}

/// Where the chain stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) sequence: u64,
    pub(crate) checksum: u32,
    pub(crate) last_zxid: Zxid,
}

impl Chain {
    const fn after(header: &BatchHeader) -> Self {
        Self {
            sequence: header.sequence,
            checksum: header.checksum,
            last_zxid: header.last_zxid,
        }
    }

    const fn is_followed_by(&self, header: &BatchHeader) -> bool {
        header.sequence == self.sequence + 1 && header.previous == self.checksum
    }
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing was being written.
    Clean,
    /// A write was under way; what there is of it does not count.
    Torn,
    /// What should stand behind is damaged or missing.
    Damaged,
}

/// A whole log, judged.
#[derive(Clone, Debug)]
pub(crate) struct OwnLog {
    pub(crate) segments: Vec<SegmentScan>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) ending: Ending,
    /// The last batch that counts.
    pub(crate) chain: Option<Chain>,
    /// Whether what comes before the first batch is known to be nothing.
    pub(crate) begins_empty: bool,
    /// Truncations and resets that count.
    pub(crate) voids: Vec<Void>,
    /// The highest zxid known committed.
    pub(crate) committed: Zxid,
    /// Where acknowledged batches are damaged or missing: the last zxid before, the first behind.
    pub(crate) breaks: Vec<(Zxid, Option<Zxid>)>,
    /// Segment and run from which on nothing counts (they were cut, or were in flight).
    pub(crate) counts_until: (usize, usize),
}

impl OwnLog {
    /// The runs that count, with their segments, in order.
    pub(crate) fn runs(&self) -> impl DoubleEndedIterator<Item = (&SegmentScan, &Run)> {
        let until = self.counts_until;
        self.segments
            .iter()
            .enumerate()
            .flat_map(|(at, segment)| {
                segment
                    .runs
                    .iter()
                    .enumerate()
                    .map(move |(run_at, run)| ((at, run_at), segment, run))
            })
            .filter(move |(place, _, _)| *place < until)
            .map(|(_, segment, run)| (segment, run))
    }

    /// The highest zxid that still counts in a batch of this sequence.
    pub(crate) fn ceiling(&self, sequence: u64) -> Zxid {
        let voids = self.voids.iter().filter(|void| void.sequence > sequence);
        voids.map(|void| void.above).min().unwrap_or(Zxid(u64::MAX))
    }

    pub(crate) fn records(&self) -> u64 {
        self.runs().map(|(_, run)| run.records).sum()
    }

    /// The lowest and highest zxid of all records.
    pub(crate) fn zxids(&self) -> Option<(Zxid, Zxid)> {
        let ranges = self.runs().filter_map(|(_, run)| run.zxids);
        ranges.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// The log's last zxid.
    pub(crate) fn last_zxid(&self) -> Option<Zxid> {
        self.chain.map(|chain| chain.last_zxid)
    }
}

/// Scans `files` (in order of their numbers) with up to `threads` threads, and judges what they hold. `frame` is
/// asked for when all have been read: a server may have purged some in the meantime, and says so in its manifest.
pub(crate) fn read(
    files: &[SegmentFile],
    frame: impl FnOnce() -> io::Result<Frame>,
    depth: Depth,
    threads: usize,
    bar: &ProgressBar,
) -> io::Result<OwnLog> {
    let scanned = scan_all(files, depth, threads, bar);
    let frame = frame()?;
    let first = frame.start.map_or(0, |(first, _)| first);
    let counting = files
        .iter()
        .zip(scanned)
        .filter(|(file, _)| file.number >= first);
    let segments = counting
        .map(|(_, scanned)| scanned)
        .collect::<io::Result<Vec<_>>>()?;
    Ok(Judge::new(&frame).judge(segments))
}

/// How many threads there are to use.
pub(crate) fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn scan_all(
    files: &[SegmentFile],
    depth: Depth,
    threads: usize,
    bar: &ProgressBar,
) -> Vec<io::Result<SegmentScan>> {
    // The newest first: what a server writes meanwhile into a segment already read is missing at the end only, never
    // before something that was read later.
    let left = AtomicUsize::new(files.len());
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let take = || {
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
        let at = before.ok()?.checked_sub(1)?;
        files.get(at).map(|file| (at, file))
    };
    let work = || {
        while let Some((at, file)) = take() {
            let scanned = scan(&file.path, file.number, depth, &mut |bytes| bar.inc(bytes));
            let scanned = scanned.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("read {}: {error}", file.path.display()),
                )
            });
            done.lock()
                .expect("no thread panics with the lock")
                .push((at, scanned));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(files.len()).max(1) {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().expect("no thread panics with the lock");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, scanned)| scanned).collect()
}

struct Judge<'a> {
    frame: &'a Frame,
    findings: Vec<Finding>,
    chain: Option<Chain>,
    voids: Vec<Void>,
    breaks: Vec<(Zxid, Option<Zxid>)>,
}

/// A break in the chain: the place, and what is known of it.
struct Break<'g> {
    segment: &'g SegmentScan,
    gap: &'g Gap,
    /// What comes behind it.
    resumes: Option<&'g Run>,
    attested: bool,
}

impl Frame {
    fn known_durable(&self) -> u64 {
        let closed = self.clean_end.map_or(0, |(sequence, _)| sequence);
        closed.max(self.durable_sequence)
    }
}

impl<'a> Judge<'a> {
    fn new(frame: &'a Frame) -> Self {
        Self {
            frame,
            findings: Vec::new(),
            chain: frame.start.map(|(_, chain)| chain),
            voids: Vec::new(),
            breaks: Vec::new(),
        }
    }

    fn judge(mut self, segments: Vec<SegmentScan>) -> OwnLog {
        let durable = durable_behind(&segments, self.frame.known_durable());
        let mut begins_empty = self
            .chain
            .is_some_and(|chain| chain.last_zxid == Zxid::ZERO);
        let mut ending = Ending::Clean;
        let mut counts_until = (segments.len(), 0);
        let mut expected = self.frame.start.map(|(first, _)| first);
        let mut committed = Zxid::ZERO;
        let mut at_run = 0;
        'segments: for (at, segment) in segments.iter().enumerate() {
            self.check_number(segment, expected);
            expected = Some(segment.number + 1);
            self.check_segment(segment);
            for (run_at, run) in segment.runs.iter().enumerate() {
                if let Some(chain) = self.chain.filter(|chain| !chain.is_followed_by(&run.first)) {
                    let place = self.place_of(&segments, at, run_at);
                    let broken = Break {
                        segment: place.0,
                        gap: place.1,
                        resumes: Some(run),
                        attested: durable.get(at_run).is_some_and(|d| *d > chain.sequence),
                    };
                    match self.judge_break(chain, &broken) {
                        Ending::Damaged => {}
                        cut => {
                            ending = cut;
                            counts_until = (at, run_at);
                            break 'segments;
                        }
                    }
                } else if self.chain.is_none() {
                    begins_empty = run.first.sequence == 1;
                    self.judge_beginning(segment, run, durable.get(at_run).copied().unwrap_or(0));
                }
                self.pass(segment, run);
                committed = committed.max(run.committed).min(run.last.last_zxid);
                at_run += 1;
            }
        }
        if counts_until.0 == segments.len() {
            ending = self.judge_end(&segments);
        }
        let cut_at = self.chain.map_or(0, |chain| chain.sequence);
        self.voids.retain(|void| void.sequence <= cut_at);
        OwnLog {
            segments,
            findings: self.findings,
            ending,
            chain: self.chain,
            begins_empty,
            voids: self.voids,
            committed,
            breaks: self.breaks,
            counts_until,
        }
    }

    /// Judges what lies before the first run of a log of which nobody told where it begins.
    fn judge_beginning(&mut self, segment: &SegmentScan, run: &Run, durable: u64) {
        let Some(gap) = segment.gaps.first().filter(|gap| gap.offset < gap.end) else {
            return;
        };
        let lost = u64::try_from(gap.broken.len()).unwrap_or(0).max(1);
        let chain = Chain {
            sequence: run.first.sequence.saturating_sub(1 + lost),
            ..Chain::default()
        };
        let broken = Break {
            segment,
            gap,
            resumes: Some(run),
            attested: durable > chain.sequence,
        };
        self.judge_break(chain, &broken);
    }

    fn check_number(&mut self, segment: &SegmentScan, expected: Option<u64>) {
        let Some(expected) = expected.filter(|e| self.frame.is_whole && *e < segment.number) else {
            return;
        };
        let after = self.chain.map(|chain| chain.last_zxid);
        let before = segment.runs.first().and_then(|run| run.first_record);
        for number in (expected..segment.number).take(64) {
            let path = self.frame.dir.join(format!("log-{number:016x}"));
            let text = "this log segment is missing";
            self.findings
                .push(Finding::damage("segment-missing", &path, text).between(after, before));
        }
    }

    /// What is wrong with a segment apart from its chain.
    fn check_segment(&mut self, segment: &SegmentScan) {
        let path = &segment.path;
        match segment.info {
            None => self.findings.push(
                Finding::damage(
                    "segment-header",
                    path,
                    "the segment's first block is damaged; its batches are not",
                )
                .at(0)
                .between(None, segment.runs.first().and_then(|run| run.first_record)),
            ),
            Some(info) => {
                let is_other = self.frame.store.is_some_and(|store| store != info.store);
                if is_other {
                    let text = "the segment belongs to another store";
                    self.findings
                        .push(Finding::damage("foreign-segment", path, text).at(0));
                } else if segment.number != 0 && info.number != segment.number {
                    let text = format!("the segment calls itself number {:#x}", info.number);
                    self.findings
                        .push(Finding::damage("segment-header", path, text).at(0));
                } else if info.bytes != segment.bytes {
                    let text = format!(
                        "the file has {} bytes, and should have {}",
                        segment.bytes, info.bytes
                    );
                    self.findings
                        .push(Finding::damage("truncated", path, text).at(segment.bytes));
                }
            }
        }
        if let Some(offset) = segment.dirty_head {
            let text =
                "something stands in the unused rest of the first block; no record is concerned";
            self.findings
                .push(Finding::damage("padding", path, text).at(offset));
        }
        for (offset, batch) in &segment.dirty_padding {
            let text = "something stands in the padding behind the records; no record is concerned";
            self.findings.push(
                Finding::damage("padding", path, text)
                    .at(*offset)
                    .in_batch(*batch),
            );
        }
        for jump in &segment.jumps {
            let text = "zxids are left out";
            self.findings.push(
                Finding::note("zxid-gap", path, text)
                    .at(jump.offset)
                    .in_batch(jump.batch)
                    .between(Some(jump.after), Some(jump.before)),
            );
        }
        if segment.is_cut_short {
            let text = "there is more damage than is listed here";
            self.findings.push(Finding::damage("more", path, text));
        }
    }

    /// Goes over a run that counts.
    fn pass(&mut self, segment: &SegmentScan, run: &Run) {
        let is_jump = |last: Zxid, first: Zxid| !follows(last, first) && first > last;
        if let (Some(chain), Some(first)) = (self.chain, run.first_record)
            && self
                .chain
                .is_some_and(|chain| chain.is_followed_by(&run.first))
            && run.first.count > 0
            && chain.last_zxid > Zxid::ZERO
            && is_jump(chain.last_zxid, first)
        {
            self.findings.push(
                Finding::note("zxid-gap", &segment.path, "zxids are left out")
                    .at(run.offset)
                    .in_batch(run.first.sequence)
                    .between(Some(chain.last_zxid), Some(first)),
            );
        }
        self.chain = Some(Chain::after(&run.last));
        let voids = segment.voids.iter();
        let within =
            voids.filter(|v| (run.first.sequence..=run.last.sequence).contains(&v.sequence));
        self.voids.extend(within);
    }

    /// The gap that a break before a run is about: the one right before it, or, where a segment begins, the
    /// end of the segment before when nothing of ours stands at the beginning of this one.
    fn place_of<'s>(
        &self,
        segments: &'s [SegmentScan],
        at: usize,
        run_at: usize,
    ) -> (&'s SegmentScan, &'s Gap) {
        let segment = &segments[at];
        let gap = &segment.gaps[run_at];
        let is_empty = gap.offset == gap.end;
        if run_at == 0
            && is_empty
            && let Some(before) = at.checked_sub(1).and_then(|at| segments.get(at))
            && let Some(end) = before.last_gap().filter(|gap| gap.offset < gap.end)
            && before.number + 1 == segment.number
        {
            return (before, end);
        }
        (segment, gap)
    }

    fn judge_break(&mut self, chain: Chain, broken: &Break<'_>) -> Ending {
        let decision = decide(Place {
            header: broken.gap.header,
            whole: broken.gap.is_whole,
            chains: false,
            attested: broken.attested,
        });
        match decision {
            Decision::Rot(kind) => {
                self.report(chain, broken, kind);
                let resumes = broken.resumes.and_then(|run| run.first_record);
                self.breaks.push((chain.last_zxid, resumes));
                Ending::Damaged
            }
            Decision::Torn => {
                self.report_torn(chain, broken);
                Ending::Torn
            }
            Decision::End | Decision::Keep => Ending::Clean,
        }
    }

    /// Says what is damaged: each batch whose header is whole by itself, what else is lost by the range.
    fn report(&mut self, chain: Chain, broken: &Break<'_>, kind: DamageKind) {
        let (path, gap) = (&broken.segment.path, broken.gap);
        let before = broken.resumes.and_then(|run| run.first_record);
        let next = broken.resumes.map(|run| run.first.sequence);
        let lost = next.map_or(0, |next| next.saturating_sub(chain.sequence + 1));
        let mut after = chain.last_zxid;
        for (at, (offset, header, fault)) in gap.broken.iter().enumerate() {
            let text = describe(header, fault);
            let record_after = fault.after.unwrap_or(after);
            let behind = gap
                .broken
                .get(at + 1)
                .map(|(_, header, _)| header.first_zxid);
            let first_behind = behind.or(before);
            let mut finding = Finding::damage("checksum", path, text)
                .at(offset + fault.offset as u64)
                .in_batch(header.sequence)
                .between(
                    Some(record_after),
                    first_behind.or(Some(Zxid(header.last_zxid.0 + 1))),
                );
            if let Some(record) = fault.record {
                finding = finding.in_record(record);
            }
            self.findings.push(finding);
            after = header.last_zxid;
        }
        let explained = gap.broken.len() as u64;
        if explained > 0 && (lost <= explained || next.is_none()) {
            return;
        }
        let text = match (kind, gap.newer) {
            (_, Some(format)) => {
                format!("it has format version {format}, which this release does not know")
            }
            (DamageKind::Checksum, _) => lost_text("its header is damaged", lost),
            (DamageKind::Missing, _) => {
                lost_text("the batch was acknowledged and is not there", lost)
            }
            (DamageKind::Chain, _) => lost_text(
                "what stands here does not continue the log: the batch before it is lost, or this one was \
                 directed here by mistake",
                lost,
            ),
        };
        let name = match kind {
            DamageKind::Checksum => "checksum",
            DamageKind::Missing => "missing",
            DamageKind::Chain => "chain",
        };
        self.findings.push(
            Finding::damage(name, path, text)
                .at(gap.offset)
                .in_batch(chain.sequence + 1)
                .between(Some(chain.last_zxid), before),
        );
    }

    fn report_torn(&mut self, chain: Chain, broken: &Break<'_>) {
        let text = "the log ends in an unfinished write, which nothing proves acknowledged: normal after a crash, \
                    and the next start cuts it off (or a server is writing it just now)";
        self.findings.push(
            Finding::note("torn", &broken.segment.path, text)
                .at(broken.gap.offset)
                .in_batch(chain.sequence + 1)
                .between(Some(chain.last_zxid), None),
        );
    }

    /// Judges what lies behind the last run.
    fn judge_end(&mut self, segments: &[SegmentScan]) -> Ending {
        let Some(last) = segments.last() else {
            if self.frame.is_whole && self.frame.start.is_some() {
                let first = self.frame.start.map_or(1, |(first, _)| first);
                let path = self.frame.dir.join(format!("log-{first:016x}"));
                let text = "the log is missing: not a single segment is there";
                self.findings
                    .push(Finding::damage("segment-missing", &path, text));
                return Ending::Damaged;
            }
            return Ending::Clean;
        };
        // The next segment may be prepared and hold no batch yet, or one that was torn.
        let with_batches = segments
            .iter()
            .rposition(|segment| !segment.runs.is_empty());
        let from = with_batches.unwrap_or(0);
        let ends = segments.get(from..).unwrap_or_default().iter();
        let ends: Vec<_> = ends.filter_map(|s| Some((s, s.last_gap()?))).collect();
        let ours = ends
            .iter()
            .find(|(_, gap)| gap.header == HeaderState::Ours && gap.offset < gap.end);
        let Some(&(segment, gap)) = ours.or_else(|| ends.first()) else {
            return Ending::Clean;
        };
        let chain = self.chain.unwrap_or_default();
        let here = (chain.sequence, chain.checksum);
        if self.frame.clean_end == Some(here) {
            return Ending::Clean;
        }
        let durable = ends.iter().map(|(_, gap)| gap.durable_sequence).max();
        let known = self.frame.known_durable() > chain.sequence;
        let broken = Break {
            segment,
            gap,
            resumes: None,
            attested: known || durable.is_some_and(|durable| durable > chain.sequence),
        };
        let is_lost = self.chain.is_none() && self.frame.is_whole && last.runs.is_empty();
        if is_lost && gap.header == HeaderState::Zeros {
            return Ending::Clean;
        }
        self.judge_break(chain, &broken)
    }
}

/// For each run, the highest batch that it or anything behind it says was durable.
fn durable_behind(segments: &[SegmentScan], known: u64) -> Vec<u64> {
    let mut highest = known;
    let mut durable = Vec::new();
    for segment in segments.iter().rev() {
        if let Some(gap) = segment.last_gap() {
            highest = highest.max(gap.durable_sequence);
        }
        for (run, gap) in segment.runs.iter().zip(&segment.gaps).rev() {
            highest = highest.max(run.last.durable_sequence);
            durable.push(highest);
            highest = highest.max(gap.durable_sequence);
        }
    }
    durable.reverse();
    durable
}

fn describe(header: &BatchHeader, fault: &ringkeeper_storage::offline::BodyFault) -> String {
    let (first, last) = (header.first_zxid, header.last_zxid);
    let whole = format!(
        "the batch holds {} records, {first} to {last}",
        header.count
    );
    format!("{}; {whole}", fault.what)
}

fn lost_text(what: &str, batches: u64) -> String {
    match batches {
        0 | 1 => what.to_owned(),
        more => format!("{what}; {more} batches are lost here"),
    }
}
