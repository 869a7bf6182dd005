//! What the tests on real files share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{future::Future, path::Path};

use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Dirs, DmaDisk, LogOptions, OpenError, Opened, Store, TxnLog, disk_ring};
use ringkeeper_transport::{DiskHooks, ExecutorSpec, spawn_executor};

/// Small segments, so that rolls happen soon.
pub(crate) fn small() -> LogOptions {
    LogOptions {
        segment_bytes: 256 << 10,
        batch_bytes_max: 32 << 10,
        record_bytes_max: 64 << 10,
        free_bytes_min: 0,
        spares_kept: 2,
    }
}

/// Runs `test` on an executor of its own, as the server's; a panic in it fails the calling test.
pub(crate) fn on_executor<F, T>(test: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let spec = ExecutorSpec::new("test", None).with_disk(DiskHooks {
        start: disk_ring::start,
        reap: disk_ring::reap,
    });
    spawn_executor(spec, test)
        .expect("start an executor")
        .join()
        .expect("the test ran to its end")
}

/// A temporary directory on the build's file system, which has O_DIRECT where the system's may not.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a temporary directory")
}

pub(crate) async fn open(dir: &Path, options: LogOptions) -> Result<Opened<DmaDisk>, OpenError> {
    let disk = DmaDisk::new().expect("start the disk");
    Store::open(disk, &Dirs::single(dir), options).await
}

/// A record's bytes, told by its zxid.
pub(crate) fn payload(zxid: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (zxid.wrapping_mul(31).wrapping_add(i * 7) & 0xFF) as u8)
        .collect()
}

/// Writes one batch of records of `len` bytes with the given zxids.
pub(crate) async fn write(
    log: &mut TxnLog<DmaDisk>,
    zxids: std::ops::RangeInclusive<u64>,
    len: usize,
) -> Zxid {
    let mut batch = log.new_batch();
    for zxid in zxids {
        let bytes = payload(zxid, len);
        batch
            .append(Zxid(zxid), len, |slot| slot.copy_from_slice(&bytes))
            .expect("append");
    }
    let committed = log.durable_through();
    log.write(batch, committed).await.expect("write a batch")
}

/// All records above `after`, with their bytes.
pub(crate) async fn read(log: &TxnLog<DmaDisk>, after: u64) -> Vec<(u64, Vec<u8>)> {
    let mut records = Vec::new();
    log.replay(Zxid(after), |zxid, bytes| {
        records.push((zxid.0, bytes.to_vec()));
        Ok::<(), String>(())
    })
    .await
    .expect("replay");
    records
}
