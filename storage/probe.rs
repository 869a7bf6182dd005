//! The start-up probe: which durable write is faster on this device, and whether O_DIRECT works at all.

use std::{fmt, io, path::Path, time::Duration};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::{
    disk::{BLOCK_BYTES, Disk, DiskBuffer as _, Urgency},
    dma_disk::{DmaDisk, DurableVariant},
    error::{OpenError, StorageError},
};

/// Durable writes of each variant; the first half only warms up.
const ROUNDS: usize = 64;
/// No round begins later than this after the first: on a device that is busy, writes wait for long, and so would the start.
const BUDGET: Duration = Duration::from_millis(500);
/// With fewer rounds than this the variant is not chosen by what was measured.
const FEWEST_ROUNDS: usize = 8;
const SCRATCH: &str = ".durable-write-probe";
/// The other variant must be this much faster (in percent) to be chosen, so that noise does not choose.
const GAIN_PERCENT: u32 = 10;

/// What the probe found; for the server's log.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// The variant that was chosen.
    pub variant: DurableVariant,
    /// Median of a 4 KiB write through an `O_DSYNC` descriptor.
    pub dsync: Duration,
    /// Median of a 4 KiB write and `fdatasync`.
    pub write_then_flush: Duration,
    /// How many writes of each those are; few where the device was busy.
    pub rounds: usize,
    /// The alignment in bytes that O_DIRECT asks for, where the system tells.
    pub alignment: Option<u32>,
    /// What the block device says of its cache ("write back", "write through"), where the system tells.
    pub write_cache: Option<String>,
    /// Free bytes in the log's file system.
    pub free_bytes: u64,
    /// Whether the file system lives in memory only.
    pub volatile: bool,
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.variant {
            DurableVariant::Dsync if self.rounds < FEWEST_ROUNDS => "the device is busy",
            DurableVariant::Dsync => "not slower",
            DurableVariant::WriteThenFlush => "faster",
        };
        write!(
            f,
            "durable writes by {} ({reason}: O_DSYNC {} us, write + fdatasync {} us, p50 of {} x 4 KiB",
            self.variant.name(),
            self.dsync.as_micros(),
            self.write_then_flush.as_micros(),
            self.rounds,
        )?;
        if let Some(cache) = &self.write_cache {
            write!(f, "; device cache: {cache}")?;
        }
        if self.volatile {
            f.write_str("; THE FILE SYSTEM IS IN MEMORY AND KEEPS NOTHING")?;
        }
        f.write_str(")")
    }
}

/// Starts a disk for files in `dir` (made if missing) and chooses its durable-write variant ([`choose_variant`]).
///
/// To be called on the executor that will use the disk.
pub async fn probe(dir: &Path) -> Result<(DmaDisk, ProbeReport), OpenError> {
    let failed = |operation| move |error| StorageError::io(operation, dir, None, error);
    std::fs::create_dir_all(dir).map_err(failed("make directory"))?;
    check_direct_io(dir)?;
    let disk = DmaDisk::new().map_err(failed("start a disk"))?;
    let report = choose_variant(&disk, dir).await?;
    Ok((disk, report))
}

/// Measures which durable write is faster on the device of `dir`, and sets it; few writes are measured
/// where each takes long.
pub async fn choose_variant(disk: &DmaDisk, dir: &Path) -> Result<ProbeReport, StorageError> {
    let failed = |operation| move |error| StorageError::io(operation, dir, None, error);
    let scratch = dir.join(SCRATCH);
    let measured = measure(disk, &scratch).await;
    drop(std::fs::remove_file(&scratch));
    let [dsync, flush] = measured.map_err(failed("measure durable writes"))?;
    let rounds = dsync.len();
    let (dsync, write_then_flush) = (median(dsync), median(flush));
    let is_faster = write_then_flush * 100 < dsync * (100 - GAIN_PERCENT);
    let variant = if is_faster && rounds >= FEWEST_ROUNDS {
        DurableVariant::WriteThenFlush
    } else {
        DurableVariant::Dsync
    };
    disk.set_variant(variant);
    Ok(ProbeReport {
        variant,
        dsync,
        write_then_flush,
        rounds,
        alignment: alignment(dir),
        write_cache: write_cache(dir),
        free_bytes: disk.available(dir).map_err(failed("measure free space"))?,
        volatile: is_tmpfs(dir),
    })
}

/// Checks that O_DIRECT works in `dir` with blocks of 4096 bytes; for `check`, without an executor.
pub fn check_direct_io(dir: &Path) -> Result<(), OpenError> {
    let refused = |source| OpenError::NoDirectIo {
        dir: dir.to_path_buf(),
        source,
    };
    let scratch = dir.join(".direct-probe");
    std::fs::write(&scratch, [0; BLOCK_BYTES])
        .map_err(|error| StorageError::io("write a file", &scratch, None, error))?;
    let opened = open_direct(&scratch);
    let alignment = alignment(&scratch);
    drop(std::fs::remove_file(&scratch));
    opened.map_err(refused)?;
    match alignment {
        Some(alignment) if !(BLOCK_BYTES as u64).is_multiple_of(alignment.max(1).into()) => {
            let message = format!("it asks for an alignment of {alignment} bytes");
            Err(refused(io::Error::new(io::ErrorKind::Unsupported, message)))
        }
        _ => Ok(()),
    }
}

fn open_direct(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

/// What writes of both variants took, measured in turn so that a noisy moment hits both; as many of each, one at least.
async fn measure(disk: &DmaDisk, scratch: &Path) -> io::Result<[Vec<Duration>; 2]> {
    let variants = [DurableVariant::Dsync, DurableVariant::WriteThenFlush];
    let bytes = (ROUNDS * BLOCK_BYTES) as u64;
    let made = disk
        .create_zeroed(scratch, bytes, |_| Urgency::Soon)
        .await?;
    disk.close(made).await;
    let mut files = Vec::new();
    for variant in variants {
        disk.set_variant(variant);
        files.push(disk.open(scratch).await?);
    }
    let buffer = <DmaDisk as Disk>::Buffer::with_capacity(BLOCK_BYTES);
    let mut took = [Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS)];
    let began = disk.now();
    for round in 0..ROUNDS {
        for (file, took) in files.iter().zip(&mut took) {
            let started = disk.now();
            disk.write_durable_at(file, (round * BLOCK_BYTES) as u64, &buffer)
                .await?;
            took.push(disk.now().saturating_sub(started));
        }
        if disk.now().saturating_sub(began) > BUDGET {
            break;
        }
    }
    for file in files {
        disk.close(file).await;
    }
    Ok(took.map(|took| took.split_at(took.len() / 2).1.to_vec()))
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// The larger of the alignments that O_DIRECT asks of memory and offsets.
fn alignment(path: &Path) -> Option<u32> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::DIOALIGN).ok()?;
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let alignment = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
    (told && alignment > 0).then_some(alignment)
}

fn write_cache(dir: &Path) -> Option<String> {
    use std::os::linux::fs::MetadataExt as _;
    let device = std::fs::metadata(dir).ok()?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = format!("/sys/dev/block/{major}:{minor}");
    // A partition's queue is its disk's.
    let queues = [
        format!("{device}/queue/write_cache"),
        format!("{device}/../queue/write_cache"),
    ];
    let told = queues
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())?;
    Some(told.trim().to_owned())
}

fn is_tmpfs(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type == libc::TMPFS_MAGIC)
}
