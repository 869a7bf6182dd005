//! `dump`: the transactions of a log, one on a line.

use std::ops::ControlFlow;

use clap::Args;

use crate::exit::Exit;
use crate::filter::Filter;
use crate::input::Input;
use crate::output::Output;
use crate::record::RecordAt;
use crate::records;
use crate::render::Decoded;

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
    let mut undecodable = 0_u64;
    let damage = records::for_each(&options.input, options.filter.span(), &mut |record| {
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
