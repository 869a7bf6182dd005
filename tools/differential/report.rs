//! What a run found, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::compare::{Difference, Uses};
use crate::coverage::{Coverage, UNREACHABLE};
use crate::deliberate::DELIBERATE;
use crate::observation::{Seen, Transcript};
use crate::script::{Script, Shortened};

/// The steps shown before a difference.
const STEPS_BEFORE: usize = 4;

/// The first difference of its kind, with the shortest script that shows it.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) seed: u64,
    pub(crate) index: u64,
    pub(crate) script: Script,
    pub(crate) theirs: Transcript,
    pub(crate) ours: Transcript,
    pub(crate) difference: Difference,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) operations: usize,
    pub(crate) scripts: usize,
    pub(crate) coverage: Coverage,
    pub(crate) uses: Uses,
    findings: Vec<Finding>,
    /// Scripts per kind of difference.
    counts: BTreeMap<String, Vec<u64>>,
    failures: Vec<String>,
    /// Scripts in which the oracle answered nothing for as long as one waits.
    silences: Vec<u64>,
}

impl Report {
    pub(crate) fn knows(&self, signature: &str) -> bool {
        self.counts.contains_key(signature)
    }

    pub(crate) fn count(&mut self, signature: &str, script: &Script) {
        self.counts
            .entry(signature.to_owned())
            .or_default()
            .push(script.index);
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        let signature = finding.difference.signature.clone();
        self.counts
            .entry(signature)
            .or_default()
            .push(finding.index);
        self.findings.push(finding);
    }

    pub(crate) fn note_silence(&mut self, script: &Script, transcript: &Transcript) {
        let mut slots = transcript.steps.iter().flat_map(|step| &step.slots);
        if slots.any(|(_, seen)| seen.contains(&Seen::Silence)) {
            self.silences.push(script.index);
        }
    }

    pub(crate) fn add_failure(&mut self, script: &Script, error: &anyhow::Error) {
        self.failures.push(format!(
            "--seed {} --script {}: {error:#}",
            script.seed, script.index
        ));
    }

    /// How many kinds of difference there are.
    pub(crate) fn kinds(&self) -> usize {
        self.counts.len()
    }

    pub(crate) fn is_good(&self, cells: u64) -> bool {
        self.counts.is_empty() && self.failures.is_empty() && !self.lacks(cells)
    }

    /// Whether a reachable cell was met less than `cells` times.
    pub(crate) fn lacks(&self, cells: u64) -> bool {
        cells > 0 && !self.coverage.lacking(cells).is_empty()
    }

    pub(crate) fn print(&self, elapsed: Duration, cells: u64) {
        println!("{}", self.coverage);
        println!("codes that no script can reach:");
        for (error, reason) in UNREACHABLE {
            println!("  {error}: {reason}");
        }
        for (row, error, count) in self.coverage.surprising() {
            println!("not listed as reachable: {row} {error}, {count} times");
        }
        for (row, error, count) in self.coverage.lacking(cells) {
            println!("too rare: {row} {error}, {count} of {cells}");
        }
        println!("deliberate differences met:");
        for known in DELIBERATE {
            let uses = self.uses.get(known.id).copied().unwrap_or(0);
            println!(
                "  {:28}{uses:>7}  {} ({})",
                known.id, known.what, known.reason
            );
        }
        if !self.silences.is_empty() {
            println!(
                "the oracle leaves a request unanswered in scripts {:?}",
                self.silences
            );
        }
        self.print_differences();
        println!(
            "{} operations in {} scripts, {:.1} s; {} kinds of unexplained difference in {} scripts, \
             {} failures",
            self.operations,
            self.scripts,
            elapsed.as_secs_f64(),
            self.kinds(),
            self.counts.values().map(Vec::len).sum::<usize>(),
            self.failures.len()
        );
    }

    pub(crate) fn print_differences(&self) {
        for failure in &self.failures {
            println!("FAILURE {failure}");
        }
        let count = |finding: &Finding| {
            self.counts
                .get(&finding.difference.signature)
                .map_or(0, Vec::len)
        };
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(count(finding)));
        for finding in findings {
            println!(
                "DIFFERENCE in {} scripts; --seed {} --script {}: {}",
                count(finding),
                finding.seed,
                finding.index,
                finding.difference
            );
            let place = Some(finding.difference.step);
            println!(
                "  oracle:\n{}  subject:\n{}",
                listing(&finding.script, &finding.theirs, place),
                listing(&finding.script, &finding.ours, place)
            );
        }
    }
}

/// The steps of a script and what they showed, around `place` or all.
pub(crate) fn listing(script: &Script, transcript: &Transcript, place: Option<usize>) -> String {
    let mut text = String::new();
    for (number, (step, seen)) in script.steps.iter().zip(&transcript.steps).enumerate() {
        if let Some(place) = place
            && (number > place || number + STEPS_BEFORE < place)
        {
            continue;
        }
        let _infallible = writeln!(text, "    {number:2} {step}");
        for (slot, seen) in &seen.slots {
            for seen in seen {
                let line = format!("{seen:?}");
                let _infallible = writeln!(text, "         #{slot} < {}", Shortened(&line));
            }
        }
    }
    text
}
