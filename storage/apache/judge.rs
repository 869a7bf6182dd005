//! What the logs of a directory say together: where one goes on from another, what is missing, what is torn.

use std::path::Path;

use ringkeeper_proto::Zxid;

use crate::directory::Directory;
use crate::log::{FaultKind, LogScan, follows};
use crate::problem::{Problem, Severity};

/// Where transactions are damaged or missing: the last zxid before, the first behind.
pub type Break = (Zxid, Option<Zxid>);

/// The logs and what is wrong with them.
#[derive(Clone, Debug, Default)]
pub struct LogReport {
    /// File by file, in order.
    pub files: Vec<LogScan>,
    /// What is wrong, and what is worth knowing.
    pub problems: Vec<Problem>,
    /// Whether the newest file ends in an unfinished write.
    pub is_torn: bool,
    /// Where transactions are damaged or missing.
    pub breaks: Vec<Break>,
    /// Where transactions are missing that a snapshot covers: a member was given a snapshot by another.
    pub jumps: Vec<Break>,
}

impl LogReport {
    /// Whole entries.
    pub fn records(&self) -> u64 {
        self.files.iter().map(|file| file.records).sum()
    }

    /// The lowest and the highest zxid.
    pub fn zxids(&self) -> Option<(Zxid, Zxid)> {
        let ranges = self.files.iter().filter_map(|file| file.zxids);
        ranges.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// The first damage.
    pub fn damage(&self) -> Option<&Problem> {
        let mut problems = self.problems.iter();
        problems.find(|problem| problem.severity == Severity::Damage)
    }

    /// The first place between `after` and `through` where transactions cannot be read or are not there: the
    /// log above the first zxid, applied to a tree that ends with it, makes no tree beyond that place.
    pub fn first_break(&self, after: Zxid, through: Zxid) -> Option<Break> {
        let start = self.zxids().and_then(|(low, _)| {
            let is_gap = low > after && !follows(after, low);
            is_gap.then_some((after, Some(low)))
        });
        let concerns = |(last, next): &Break| {
            *last < through && next.is_none_or(|next| next.0 > after.0.saturating_add(1))
        };
        let all = start.into_iter().chain(self.breaks.iter().copied());
        let all = all.chain(self.jumps.iter().copied()).filter(concerns);
        all.min_by_key(|(last, _)| *last)
    }

    /// Whether the logs hold everything from the very first transaction on.
    pub fn begins_at_the_beginning(&self) -> bool {
        let first = self.files.iter().find_map(|file| file.zxids);
        first.is_some_and(|(low, _)| low.counter() == 1 && low.epoch().0 <= 1)
    }
}

impl Directory {
    pub(crate) fn judge(&self, log: &mut LogReport) {
        let mut last: Option<Zxid> = None;
        let mut ends_broken = false;
        let count = log.files.len();
        for at in 0..count {
            let Some(file) = log.files.get(at).cloned() else {
                continue;
            };
            let is_explained = ends_broken
                || file
                    .faults
                    .iter()
                    .any(|fault| fault.after.is_none() && fault.kind.is_break());
            ends_broken = file
                .faults
                .last()
                .is_some_and(|fault| fault.before.is_none() && fault.kind.is_break());
            self.judge_seam(log, &file, last.filter(|_| !is_explained));
            let next = log
                .files
                .get(at + 1)
                .and_then(|next| next.zxids)
                .map(|(low, _)| low);
            self.judge_file(log, &file, (last, next), at + 1 == count);
            last = file.zxids.map(|(_, high)| high).or(last);
        }
    }

    /// Whether a file goes on where the one before it ended.
    fn judge_seam(&self, log: &mut LogReport, file: &LogScan, last: Option<Zxid>) {
        let first = file.zxids.map(|(low, _)| low);
        if let (Some(last), Some(first)) = (last, first)
            && !follows(last, first)
            && self.data.is_some()
        {
            if first <= last {
                let text = "it begins before the file before it ends";
                log.problems.push(
                    Problem::new(Severity::Warning, "order", &file.path, text)
                        .between(Some(last), Some(first)),
                );
            } else {
                self.report_gap(log, &file.path, 16, last, first);
            }
        }
        let is_misnamed = match (file.named, first) {
            (Some(named), Some(first)) => named != first && file.faults.is_empty(),
            _ => false,
        };
        if is_misnamed {
            let text = format!(
                "its name says that it begins with {}, and it does not",
                file.named.unwrap_or_default()
            );
            log.problems
                .push(Problem::new(Severity::Warning, "name", &file.path, text));
        }
    }

    /// Zxids that are left out: nothing is lost where a snapshot holds them.
    fn report_gap(&self, log: &mut LogReport, path: &Path, offset: u64, after: Zxid, before: Zxid) {
        let is_covered = self
            .snapshots
            .iter()
            .any(|(zxid, _)| zxid.0 + 1 >= before.0);
        let problem = if is_covered {
            log.jumps.push((after, Some(before)));
            Problem::new(
                Severity::Note,
                "zxid-gap",
                path,
                "zxids are left out; a snapshot holds them",
            )
        } else {
            log.breaks.push((after, Some(before)));
            Problem::new(
                Severity::Damage,
                "zxid-gap",
                path,
                "zxids are left out: transactions are missing",
            )
        };
        log.problems
            .push(problem.at(offset).between(Some(after), Some(before)));
    }

    fn judge_file(
        &self,
        log: &mut LogReport,
        file: &LogScan,
        around: (Option<Zxid>, Option<Zxid>),
        is_last: bool,
    ) {
        for fault in &file.faults {
            let before = fault.before.or(around.1);
            let claims = fault
                .claims
                .map_or_else(String::new, |zxid| format!(", which calls itself {zxid}"));
            let after = fault.after.or(around.0);
            let mut problem = match fault.kind {
                FaultKind::Header => Problem::new(
                    Severity::Damage,
                    "header",
                    &file.path,
                    "the file's header is damaged",
                ),
                FaultKind::Checksum => Problem::new(
                    Severity::Damage,
                    "checksum",
                    &file.path,
                    format!("the record's checksum does not hold{claims}"),
                ),
                FaultKind::Broken => Problem::new(
                    Severity::Damage,
                    "broken",
                    &file.path,
                    "no entry stands here, and whole ones further on: Apache would take this for the end of the log",
                ),
                FaultKind::Frame => Problem::new(
                    Severity::Damage,
                    "frame",
                    &file.path,
                    "the entry's length or end mark is damaged, its record is whole: Apache would take this for the end \
                     of the log",
                ),
                FaultKind::Order => Problem::new(
                    Severity::Damage,
                    "order",
                    &file.path,
                    format!("its zxid does not come after the one before it{claims}"),
                ),
                FaultKind::Repeated => Problem::new(
                    Severity::Note,
                    "repeated",
                    &file.path,
                    "the zxid of the entry before stands again; Apache passes over the second",
                ),
                FaultKind::Padding => Problem::new(
                    Severity::Damage,
                    "padding",
                    &file.path,
                    "something stands behind the last transaction, where zeros should be",
                ),
                FaultKind::Gap => {
                    let (after, before) = (after.unwrap_or_default(), before.unwrap_or_default());
                    self.report_gap(log, &file.path, fault.offset, after, before);
                    continue;
                }
                FaultKind::Torn => {
                    log.is_torn |= is_last;
                    let text = "the file ends in an unfinished write, as a crash leaves it; Apache ignores it";
                    Problem::new(Severity::Note, "torn", &file.path, text)
                }
            };
            problem = problem.at(fault.offset).between(after, before);
            if fault.kind != FaultKind::Header && fault.kind != FaultKind::Padding {
                problem = problem.in_record(fault.index);
            }
            if fault.kind.is_break() {
                log.breaks.push((after.unwrap_or_default(), before));
            }
            log.problems.push(problem);
        }
    }
}
