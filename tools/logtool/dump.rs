//! `dump`: the transactions of a log, one on a line.

use std::ops::ControlFlow;

use clap::Args;

use crate::exit::Exit;
use crate::filter::Filter;
use crate::finding::Finding;
use crate::input::Input;
use crate::output::Output;
use crate::own_log;
use crate::own_records::{self, Damaged};
use crate::progress::bytes_bar;
use crate::record::RecordAt;
use crate::render::Decoded;
use crate::segment_scan::Depth;

/// Show transactions, one on a line; decodes as much as it can of a damaged log
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    filter: Filter,
    /// Show all data, not only its beginning
    #[arg(long)]
    data: bool,
    /// Show records, too, that a truncation has made void
    #[arg(long)]
    void: bool,
}

pub(crate) fn run(options: &Options, out: &mut Output) -> anyhow::Result<Exit> {
    let dir = options.input.open()?;
    let bar = bytes_bar("read", 0, true);
    let log = dir.read_log(Depth::Headers, own_log::default_threads(), &bar)?;
    let mut damage: Vec<Finding> = log.findings.clone();
    damage.retain(|finding| finding.severity == crate::finding::Severity::Damage);
    let mut tell = |finding: Finding| damage.push(finding);
    let damaged = Damaged::Tell(&mut tell);
    let mut undecodable = 0_u64;
    own_records::for_each(&log, options.filter.span(), damaged, &mut |record| {
        if !record.is_void || options.void {
            undecodable += u64::from(!show(record, options, out)?);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    out.flush()?;
    for finding in &damage {
        eprintln!("{finding}");
    }
    Ok(if damage.is_empty() && undecodable == 0 {
        Exit::Ok
    } else {
        Exit::Found
    })
}

/// Prints a record if it is wanted; false when it cannot be decoded.
fn show(record: &RecordAt<'_>, options: &Options, out: &mut Output) -> anyhow::Result<bool> {
    match Decoded::of(record.bytes) {
        Ok(decoded) => {
            if !options.filter.takes(&decoded) {
            } else if out.json {
                out.value(&decoded.json(record, options.data))?;
            } else {
                out.line(decoded.line(record, options.data))?;
            }
            Ok(true)
        }
        Err(error) => {
            if options.filter.is_empty() {
                let file = record.file.display();
                eprintln!(
                    "{file} at offset {}: {} cannot be decoded: {error}",
                    record.offset, record.zxid
                );
            }
            Ok(false)
        }
    }
}
