//! The raw floor: what a durable write of one block costs on the file system that the servers use,
//! with nothing around it. No server can acknowledge a lone write faster.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::load::histogram;

/// A set or create of 100 bytes or 1 KiB fits one block of the log.
const BLOCK: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;

/// Latencies in nanoseconds of the two ways to make a write durable.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    /// O_DIRECT with O_DSYNC.
    pub(crate) dsync: Histogram<u64>,
    /// O_DIRECT, then fdatasync.
    pub(crate) fdatasync: Histogram<u64>,
}

impl Floor {
    /// The median of the better way.
    pub(crate) fn p50(&self) -> Duration {
        let p50 = |way: &Histogram<u64>| way.value_at_quantile(0.5);
        Duration::from_nanos(p50(&self.dsync).min(p50(&self.fdatasync)))
    }
}

/// Writes block after block of a zero-filled file in `dir`, for `time` each way.
pub(crate) fn measure(dir: &Path, time: Duration) -> Result<Floor> {
    let path = dir.join("floor");
    zero_fill(&path).with_context(|| format!("fill {}", path.display()))?;
    let result = (|| {
        Ok(Floor {
            dsync: write_for(time, &open(&path, libc::O_DIRECT | libc::O_DSYNC)?, false)?,
            fdatasync: write_for(time, &open(&path, libc::O_DIRECT)?, true)?,
        })
    })();
    std::fs::remove_file(&path)?;
    result
}

/// Allocated is not enough: a block that was never written would cost a change of metadata.
fn zero_fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(())
}

fn open(path: &Path, flags: i32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(flags);
    options
        .open(path)
        .with_context(|| format!("open {} with O_DIRECT", path.display()))
}

fn write_for(time: Duration, file: &File, flush: bool) -> Result<Histogram<u64>> {
    let memory = vec![b'x'; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = &memory[start..start + BLOCK];
    let mut latency = histogram()?;
    let began = Instant::now();
    let mut at = 0;
    while began.elapsed() < time {
        let sent = Instant::now();
        file.write_all_at(block, at)?;
        if flush {
            file.sync_data()?;
        }
        latency.saturating_record(u64::try_from(sent.elapsed().as_nanos())?);
        at = (at + BLOCK as u64) % FILE_BYTES;
    }
    Ok(latency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_measured_where_o_direct_works() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let floor = measure(dir.path(), Duration::from_millis(50)).unwrap();
        assert!(!floor.dsync.is_empty() && floor.p50() > Duration::from_micros(1));
    }
}
