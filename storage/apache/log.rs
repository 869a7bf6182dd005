//! One transaction log of Apache ZooKeeper, read as far as it can be.
//!
//! ```text
//! file    "ZKLG"  version (2)  dbid (8 bytes)  entries ...  zeros to the end
//! entry   Adler-32 of the record (8 bytes)  length (4)  record  'B'
//! ```
//!
//! Nothing chains entries, so what Apache reads as the end of a log can be damage in its middle: whoever finds a
//! whole entry with a higher zxid further on knows better. That is what the scan looks for.
//!
//! Invariants:
//! - Nothing read is believed before its checksum holds; lengths are held against the file's.
//! - Memory is bounded by the longest record, not by the file.

use std::io;
use std::path::{Path, PathBuf};

use ringkeeper_proto::Zxid;

use crate::window::Window;
use crate::{LEN_MAX, LOG_MAGIC, LOG_PREFIX, VERSION};

/// Bytes before the first entry.
const HEADER_BYTES: usize = 16;
/// Checksum and length before a record.
const FRAME_BYTES: usize = 12;
/// The least that a record can be: a transaction's header.
const RECORD_BYTES_MIN: usize = 32;
/// How an entry ends.
pub(crate) const END_OF_RECORD: u8 = b'B';
/// Read in pieces of this size.
const AHEAD: usize = 1 << 20;
/// An epoch further on than this is no continuation.
const EPOCHS_AHEAD_MAX: u32 = 1 << 16;
/// The most places of damage remembered per file.
const FAULTS_MAX: usize = 4096;

/// An entry as handed out.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// That of its header.
    pub zxid: Zxid,
    /// `TxnHeader`, body, and digest if there is one.
    pub bytes: &'a [u8],
    /// Where its frame begins in the file.
    pub offset: u64,
    /// Its place among the entries of the file, damaged ones included as far as they can be told apart.
    pub index: u64,
}

/// A place that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// The entry's place in the file.
    pub index: u64,
    /// What is wrong.
    pub kind: FaultKind,
    /// The last whole zxid before it.
    pub after: Option<Zxid>,
    /// The first whole one behind it.
    pub before: Option<Zxid>,
    /// What the damaged record says of itself, where it is one.
    pub claims: Option<Zxid>,
}

/// What is wrong at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Magic, version or dbid are not those of a log.
    Header,
    /// A record in whole, but its checksum does not hold.
    Checksum,
    /// No entry, and whole ones further on.
    Broken,
    /// The last entry's length or end mark is damaged, around a whole record.
    Frame,
    /// No whole entry, and none further on: a write that did not finish, or its damage.
    Torn,
    /// A whole entry whose zxid does not come after the one before.
    Order,
    /// A whole entry with the zxid of the one before.
    Repeated,
    /// Zxids of an epoch are left out.
    Gap,
    /// Something stands in the zeros behind the last entry.
    Padding,
}

impl FaultKind {
    /// Whether a transaction is damaged or missing there.
    #[must_use]
    pub const fn is_break(self) -> bool {
        matches!(self, Self::Checksum | Self::Broken | Self::Frame)
    }
}

/// A log as found.
#[derive(Clone, Debug)]
pub struct LogScan {
    /// The file.
    pub path: PathBuf,
    /// The zxid in its name.
    pub named: Option<Zxid>,
    /// Its length, padding included.
    pub bytes: u64,
    /// Whole entries.
    pub records: u64,
    /// The lowest and the highest zxid of these.
    pub zxids: Option<(Zxid, Zxid)>,
    /// What is wrong, from front to back.
    pub faults: Vec<Fault>,
}

/// Whether `next` may follow `last` without a zxid left out: the next counter of the epoch, or the first of
/// a later one.
pub fn follows(last: Zxid, next: Zxid) -> bool {
    if next.epoch() == last.epoch() {
        last.next() == Some(next)
    } else {
        next.epoch() > last.epoch() && next.counter() <= 1
    }
}

/// Reads the log at `path`, handing each whole entry to `each` until it says stop.
///
/// # Errors
/// When the file cannot be read, or `each` fails.
pub fn scan<E: From<io::Error>>(
    path: &Path,
    tick: &mut dyn FnMut(u64),
    each: &mut dyn FnMut(&Entry<'_>) -> Result<bool, E>,
) -> Result<LogScan, E> {
    let mut scanner = Scanner {
        window: Window::open(path, AHEAD).map_err(|error| named_error(path, &error))?,
        scan: LogScan {
            path: path.to_owned(),
            named: name_zxid(path, LOG_PREFIX),
            bytes: 0,
            records: 0,
            zxids: None,
            faults: Vec::new(),
        },
        last: None,
        index: 0,
    };
    scanner.scan.bytes = scanner.window.len();
    scanner
        .check_header()
        .map_err(|error| named_error(path, &error))?;
    scanner.run(tick, each)?;
    Ok(scanner.scan)
}

fn named_error(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("read {}: {error}", path.display()))
}

/// The zxid in the name of a log or snapshot, with or without the ending of a compression.
pub fn name_zxid(path: &Path, prefix: &str) -> Option<Zxid> {
    let name = path.file_name()?.to_str()?.strip_prefix(prefix)?;
    let digits = name.split('.').next()?;
    u64::from_str_radix(digits, 16).ok().map(Zxid)
}

struct Scanner {
    window: Window,
    scan: LogScan,
    last: Option<Zxid>,
    index: u64,
}

/// What stands at a place.
enum Place {
    /// A whole entry: its record's length and zxid.
    Whole(usize, Zxid),
    /// A frame and an end where the frame says, around a record whose checksum does not hold.
    BadChecksum(usize),
    /// Zeros where a frame would be.
    Zeros,
    /// The end of the file.
    End,
    /// None of these.
    Nothing,
}

impl Scanner {
    fn check_header(&mut self) -> io::Result<()> {
        let bytes = self.window.get(0, HEADER_BYTES)?;
        if bytes.iter().all(|byte| *byte == 0) && self.scan.bytes <= HEADER_BYTES as u64 {
            // A crash came before the header was written.
            self.fault(0, FaultKind::Torn, None);
            return Ok(());
        }
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(i32::from_be_bytes)
        };
        let is_good = bytes.starts_with(&LOG_MAGIC)
            && word(4) == Some(VERSION)
            // ZK: FileTxnLog never sets its dbId.
            && (word(8), word(12)) == (Some(0), Some(0));
        if !is_good {
            self.fault(0, FaultKind::Header, None);
        }
        Ok(())
    }

    fn run<E: From<io::Error>>(
        &mut self,
        tick: &mut dyn FnMut(u64),
        each: &mut dyn FnMut(&Entry<'_>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let path = self.scan.path.clone();
        let failed = |error: io::Error| named_error(&path, &error);
        let mut at = self.scan.bytes.min(HEADER_BYTES as u64);
        let mut told = 0;
        while self.scan.faults.len() < FAULTS_MAX {
            let here = match self.place(at).map_err(failed)? {
                Place::Whole(len, zxid) => {
                    self.check_order(at, zxid);
                    (len, zxid)
                }
                Place::Zeros => match self.first_not_zero(at).map_err(failed)? {
                    None => break,
                    Some(dirty) => match self.next_whole(at).map_err(failed)? {
                        Some(found) => {
                            self.fault(at, FaultKind::Broken, None);
                            self.index += 1;
                            at = found;
                            continue;
                        }
                        None => {
                            self.fault(dirty, FaultKind::Padding, None);
                            break;
                        }
                    },
                },
                Place::End => break,
                Place::BadChecksum(len) => {
                    let claims = self.zxid_at(at).map_err(failed)?;
                    self.fault(at, FaultKind::Checksum, claims);
                    self.index += 1;
                    at += (FRAME_BYTES + len + 1) as u64;
                    continue;
                }
                Place::Nothing => match self.next_whole(at + 1).map_err(failed)? {
                    Some(found) => {
                        self.fault(at, FaultKind::Broken, None);
                        self.index += 1;
                        at = found;
                        continue;
                    }
                    None => {
                        let is_frame = self.has_whole_record(at).map_err(failed)?;
                        let kind = if is_frame {
                            FaultKind::Frame
                        } else {
                            FaultKind::Torn
                        };
                        self.fault(at, kind, None);
                        break;
                    }
                },
            };
            let (len, zxid) = here;
            let stored = self
                .window
                .get(at + FRAME_BYTES as u64, len)
                .map_err(failed)?;
            let entry = Entry {
                zxid,
                bytes: stored,
                offset: at,
                index: self.index,
            };
            if !each(&entry)? {
                break;
            }
            self.pass(zxid);
            at += (FRAME_BYTES + len + 1) as u64;
            if at.saturating_sub(told) >= 1 << 20 {
                tick(at - told);
                told = at;
            }
        }
        tick(self.scan.bytes.saturating_sub(told));
        Ok(())
    }

    fn pass(&mut self, zxid: Zxid) {
        self.index += 1;
        self.scan.records += 1;
        let (low, high) = self.scan.zxids.unwrap_or((zxid, zxid));
        self.scan.zxids = Some((low.min(zxid), high.max(zxid)));
        self.last = Some(self.last.map_or(zxid, |last| last.max(zxid)));
    }

    /// Looks at the order of zxids, and closes the range of the faults before.
    fn check_order(&mut self, at: u64, zxid: Zxid) {
        let open = self
            .scan
            .faults
            .iter_mut()
            .rev()
            .take_while(|fault| fault.before.is_none());
        let mut after_fault = false;
        for fault in open.filter(|fault| fault.kind != FaultKind::Header) {
            fault.before = Some(zxid);
            after_fault = true;
        }
        let Some(last) = self.last.filter(|_| !after_fault) else {
            return;
        };
        if zxid == last {
            // ZK: FileTxnLog.append warns of it and writes on.
            self.fault(at, FaultKind::Repeated, Some(zxid));
        } else if zxid < last {
            self.fault(at, FaultKind::Order, Some(zxid));
        } else if !follows(last, zxid) {
            self.fault(at, FaultKind::Gap, Some(zxid));
            if let Some(fault) = self.scan.faults.last_mut() {
                fault.before = Some(zxid);
            }
        }
    }

    fn fault(&mut self, offset: u64, kind: FaultKind, claims: Option<Zxid>) {
        self.scan.faults.push(Fault {
            offset,
            index: self.index,
            kind,
            after: self.last,
            before: None,
            claims,
        });
    }

    fn place(&mut self, at: u64) -> io::Result<Place> {
        let left = usize::try_from(self.scan.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let frame = self.window.get(at, FRAME_BYTES)?;
        if frame.is_empty() {
            return Ok(Place::End);
        }
        if frame.iter().all(|byte| *byte == 0) {
            return Ok(Place::Zeros);
        }
        let Some((sum, len)) = read_frame(frame) else {
            return Ok(Place::Nothing);
        };
        if !(RECORD_BYTES_MIN..=LEN_MAX).contains(&len) || FRAME_BYTES + len + 1 > left {
            return Ok(Place::Nothing);
        }
        let stored = self.window.get(at + FRAME_BYTES as u64, len + 1)?;
        let Some((end, record)) = stored
            .split_last()
            .filter(|(_, record)| record.len() == len)
        else {
            return Ok(Place::Nothing);
        };
        let is_whole = u64::from(simd_adler32::adler32(&record)) == sum;
        let zxid = record_zxid(record);
        Ok(match (is_whole, *end == END_OF_RECORD, zxid) {
            (true, true, Some(zxid)) => Place::Whole(len, zxid),
            (false, true, _) => Place::BadChecksum(len),
            _ => Place::Nothing,
        })
    }

    /// Whether the last bytes of the file that are not zero end a record whose checksum holds: then it was written to
    /// its end, and only its length or its end mark is not what it was.
    fn has_whole_record(&mut self, at: u64) -> io::Result<bool> {
        let end = self.end_of_content(at)?;
        let len = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        if len <= FRAME_BYTES + RECORD_BYTES_MIN || len > LEN_MAX {
            return Ok(false);
        }
        let stored = self.window.get(at, len)?;
        let sum = stored
            .get(..8)
            .and_then(|sum| sum.try_into().ok())
            .map(u64::from_be_bytes);
        // The end mark is the last byte, unless the flip made it zero.
        let ends = [len - 1, len];
        Ok(ends.into_iter().any(|end| {
            let record = stored.get(FRAME_BYTES..end).unwrap_or_default();
            Some(u64::from(simd_adler32::adler32(&record))) == sum
        }))
    }

    /// Where, behind `from`, only zeros follow.
    fn end_of_content(&mut self, from: u64) -> io::Result<u64> {
        let (mut at, mut end) = (from, from);
        loop {
            let piece = self.window.get(at, AHEAD)?;
            if piece.is_empty() {
                return Ok(end);
            }
            if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
                end = at + last as u64 + 1;
            }
            at += piece.len() as u64;
        }
    }

    /// What the record at `at` says its zxid is.
    fn zxid_at(&mut self, at: u64) -> io::Result<Option<Zxid>> {
        Ok(record_zxid(
            self.window.get(at + FRAME_BYTES as u64, RECORD_BYTES_MIN)?,
        ))
    }

    /// Where, from `from` on, a whole entry with a later zxid begins.
    fn next_whole(&mut self, from: u64) -> io::Result<Option<u64>> {
        const PIECE: usize = 1 << 20;
        const LOOK: usize = FRAME_BYTES + RECORD_BYTES_MIN;
        let lowest = self.last.unwrap_or(Zxid::ZERO);
        let mut from = from;
        loop {
            let piece = self.window.get(from, PIECE)?.to_vec();
            for at in 0..piece.len().saturating_sub(LOOK - 1) {
                let is_candidate = piece
                    .get(at..at + LOOK)
                    .is_some_and(|look| is_likely(look, lowest));
                let place = from + at as u64;
                if is_candidate
                    && matches!(self.place(place)?, Place::Whole(_, zxid) if zxid > lowest)
                {
                    return Ok(Some(place));
                }
            }
            if piece.len() < PIECE {
                return Ok(None);
            }
            from += (piece.len() - LOOK + 1) as u64;
        }
    }

    fn first_not_zero(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut from = from;
        loop {
            let piece = self.window.get(from, AHEAD)?;
            if piece.is_empty() {
                return Ok(None);
            }
            if let Some(at) = piece.iter().position(|byte| *byte != 0) {
                return Ok(Some(from + at as u64));
            }
            from += piece.len() as u64;
        }
    }
}

/// A frame's checksum and length; `None` when its length is negative.
fn read_frame(frame: &[u8]) -> Option<(u64, usize)> {
    let sum = u64::from_be_bytes(frame.get(..8)?.try_into().ok()?);
    let len = i32::from_be_bytes(frame.get(8..12)?.try_into().ok()?);
    Some((sum, usize::try_from(len).ok()?))
}

/// The zxid in a transaction's header.
fn record_zxid(record: &[u8]) -> Option<Zxid> {
    let zxid = record.get(12..20)?.try_into().ok()?;
    Some(Zxid(u64::from_be_bytes(zxid)))
}

/// Whether frame and header at the start of `look` may be those of a later entry; cheap, since every byte is tried.
fn is_likely(look: &[u8], lowest: Zxid) -> bool {
    let Some((sum, len)) = read_frame(look) else {
        return false;
    };
    let zxid = look.get(FRAME_BYTES..).and_then(record_zxid);
    sum != 0
        && sum <= u64::from(u32::MAX)
        && (RECORD_BYTES_MIN..=LEN_MAX).contains(&len)
        && zxid.is_some_and(|zxid| {
            zxid > lowest && zxid.epoch().0 - lowest.epoch().0 <= EPOCHS_AHEAD_MAX
        })
}
