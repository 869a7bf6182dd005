//! The records of a log of either format.

use crate::apache_state;
use crate::finding::{Finding, Severity};
use crate::input::{Input, Source};
use crate::own_log;
use crate::own_records::{self, Damaged};
use crate::progress::bytes_bar;
use crate::record::{Span, Visit};
use crate::segment_scan::Depth;

/// Hands every record of `span` that can be read to `visit`, and returns what is damaged.
///
/// # Errors
/// Those of `visit`, and when something cannot be read.
pub(crate) fn for_each(
    input: &Input,
    span: Span,
    visit: Visit<'_>,
) -> anyhow::Result<Vec<Finding>> {
    let mut damage = match input.open()? {
        Source::Own(dir) => {
            let bar = bytes_bar("read", 0, true);
            let log = dir.read_log(Depth::Headers, own_log::default_threads(), &bar)?;
            let mut damage = log.findings.clone();
            let mut tell = |finding: Finding| damage.push(finding);
            own_records::for_each(&log, span, Damaged::Tell(&mut tell), visit)?;
            damage
        }
        Source::Apache(dir) => apache_state::for_each(&dir, span, visit)?,
    };
    damage.retain(|finding| finding.severity == Severity::Damage);
    Ok(damage)
}
