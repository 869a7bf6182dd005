//! What a process used of the machine, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time and memory of a process, all its threads (and kernel workers on its behalf) together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time since its start, in steps of the kernel's clock tick (10 ms).
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

/// What the process `pid` used so far.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: u32) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read the state of process {pid}"))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("the form of /proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("read the memory of process {pid}"))?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Usage {
        cpu: Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / per_second)),
        rss: rss_bytes(&status).unwrap_or(0),
    })
}

/// What this process used so far.
///
/// # Errors
/// When `/proc` is not there.
pub fn own_usage() -> Result<Usage> {
    usage(std::process::id())
}

/// utime and stime: the 14th and 15th field. The second is the name, in brackets, and may contain
/// anything, so what counts starts behind the last bracket.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 40 2 13 14";
        assert_eq!(cpu_ticks(stat), Some(42));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(own_usage().unwrap().rss > 1 << 16);
    }
}
