//! Snapshots: written by a thread of its own from a clone of the tree, so that no write waits for one.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use ringkeeper_config::{LoggedSince, SnapshotConfig};
use ringkeeper_member::{Metric, Settings};
use ringkeeper_storage::{
    Compression, Disk, FlushTimes, LogActivity, REST, SnapshotInfo, SnapshotReader, SnapshotWriter,
    Store,
};
use ringkeeper_transport::mailbox::{MailboxError, Sender};
use ringkeeper_tree::Tree;
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder};

use crate::messages::CoreMessage;
use crate::stalls::Stalls;
use crate::threads;

/// Decoded chunks that may wait for their turn, per loading thread.
const CHUNKS_AHEAD: usize = 64;

/// Chunks that are on their way from the disk while one is decoded, per loading thread.
const READ_AHEAD: usize = 128;

/// A snapshot that is slower than this after a second, and than a quarter of its budget, gets a share of its CPU, whoever
/// else wants it.
const BYTES_PER_SECOND_MIN: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(1);

/// After so many znodes of an old tree that were let go the snapshot thread rests, as between two chunks.
const FREED_PER_TURN: usize = 1000;

/// Snapshots that take longer than this are counted as this: a day in microseconds.
const TIME_MAX_US: u64 = 86_400_000_000;

/// A snapshot that is written, flushed and verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotTaken {
    pub(crate) info: SnapshotInfo,
    /// Of which history it is, see [`Core::history`](ringkeeper_member::Core::history).
    pub(crate) history: u64,
    pub(crate) ms: u64,
}

/// What the snapshot thread does.
#[derive(Debug)]
enum Job {
    /// Writes a snapshot of this server's own, of this history.
    Take(Tree, u64),
    /// Writes a tree that a leader sent.
    Keep(Tree),
}

/// Decides when a snapshot is due, and hands clones of the tree to the snapshot thread.
#[derive(Debug)]
pub(crate) struct Snapshots {
    config: SnapshotConfig,
    jobs: SyncSender<Job>,
    /// One snapshot is under way.
    busy: bool,
    last_bytes: u64,
    /// Of the log while a snapshot is under way.
    log: LogActivity,
    stalls: Rc<Stalls>,
    /// Of each flush of a snapshot's file.
    flush_times: FlushTimes,
    /// Of whole snapshots, in microseconds.
    times: Histogram<u64>,
}

impl Snapshots {
    /// Starts the snapshot thread on `cpus`. The last snapshot had `last_bytes`.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(crate) fn start<D: Disk>(
        settings: &Settings,
        store: &Store<D>,
        last_bytes: u64,
        core: Sender<CoreMessage>,
        cpus: Vec<usize>,
    ) -> anyhow::Result<Self> {
        let config = settings.config.snapshots.clone();
        let (jobs, wait_jobs) = sync_channel(2);
        let flush_times = FlushTimes::new();
        let log = LogActivity::default();
        let writing = Writing {
            dir: store.snapshot_dir().to_owned(),
            config: config.clone(),
            log: log.clone(),
            flush_times: flush_times.clone(),
        };
        thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                threads::run_on(&cpus);
                writing.run(&wait_jobs, &core);
            })
            .context("start the snapshot thread")?;
        Ok(Self {
            config,
            jobs,
            busy: false,
            last_bytes,
            log,
            stalls: Rc::default(),
            flush_times,
            times: Histogram::new_with_max(TIME_MAX_US, 2).expect("the bounds are constants"),
        })
    }

    /// Begins a snapshot of `tree` if one is due.
    pub(crate) fn start_if_due(&mut self, tree: &Tree, history: u64, since: &mut LoggedSince) {
        if self.busy {
            self.log.note(since.log_bytes);
            return;
        }
        if !self.config.is_due(*since, self.last_bytes) {
            return;
        }
        self.busy = self.jobs.try_send(Job::Take(tree.clone(), history)).is_ok();
        if self.busy {
            *since = LoggedSince::default();
            self.stalls.begin();
        }
    }

    /// Writes a tree that a leader sent. There is one such tree at a time, and one snapshot of this server's
    /// own before it at the most, so there is room for it.
    pub(crate) fn keep(&self, tree: Tree) {
        if self.jobs.try_send(Job::Keep(tree)).is_err() {
            tracing::error!("the snapshot thread takes no tree");
        }
    }

    /// What `mntr` shows of it.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = (&'static str, Metric)> {
        let own = [
            ("snapshot_under_way", Metric::Integer(self.busy.into())),
            ("snapshot_bytes", Metric::Integer(self.last_bytes)),
        ];
        own.into_iter().chain(self.stalls.metrics())
    }

    /// Latencies in microseconds that `mntr` shows of it.
    pub(crate) fn latencies(&self) -> [(&'static str, Histogram<u64>); 2] {
        [
            ("snapshot_fsynctime", self.flush_times.histogram()),
            ("snapshottime", self.times.clone()),
        ]
    }

    /// The snapshot under way has ended; what was taken if it is whole.
    pub(crate) fn ended(&mut self, taken: Option<&SnapshotTaken>) {
        self.busy = false;
        self.stalls.end();
        if let Some(taken) = taken {
            self.last_bytes = taken.info.bytes;
            self.times.saturating_record(taken.ms.saturating_mul(1000));
        }
    }
}

/// How the snapshot thread writes, and where.
struct Writing {
    dir: PathBuf,
    config: SnapshotConfig,
    log: LogActivity,
    flush_times: FlushTimes,
}

impl Writing {
    fn run(&self, jobs: &Receiver<Job>, core: &Sender<CoreMessage>) {
        for job in jobs {
            let started = Instant::now();
            let (tree, budget) = match &job {
                Job::Take(tree, _) => {
                    threads::step_back();
                    (tree, self.config.bytes_per_second_max)
                }
                // The member waits for it, and serves nobody meanwhile.
                Job::Keep(tree) => {
                    threads::step_forward();
                    (tree, None)
                }
            };
            let written = self.write(budget, tree);
            let written = written.map_err(|error| format!("{error:#}"));
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let mut message = match &job {
                Job::Take(_, history) => {
                    let history = *history;
                    CoreMessage::SnapshotTaken(written.map(|info| SnapshotTaken {
                        info,
                        history,
                        ms,
                    }))
                }
                Job::Keep(_) => CoreMessage::SnapshotKept(written),
            };
            // The tree's own blocks are freed here and not on the core.
            let (Job::Take(tree, _) | Job::Keep(tree)) = job;
            let mut freed = 0;
            tree.drop_in_turns(&mut || {
                freed += 1;
                if freed % FREED_PER_TURN == 0 {
                    thread::sleep(REST);
                }
            });
            while let Err(MailboxError::Full(back)) = core.send(message) {
                message = back;
                thread::yield_now();
            }
        }
    }

    fn write(
        &self,
        bytes_per_second_max: Option<u64>,
        tree: &Tree,
    ) -> anyhow::Result<SnapshotInfo> {
        let compression = match self.config.is_compressed {
            true => Compression::Lz4,
            false => Compression::None,
        };
        let writer = SnapshotWriter::create(&self.dir, tree.zxid(), bytes_per_second_max)?;
        let writer = writer
            .compressed_by(compression)
            .beside(&self.log)
            .timed_by(&self.flush_times);
        let started = Instant::now();
        let mut is_late = false;
        let quarter = bytes_per_second_max.map_or(u64::MAX, |max| max / 4);
        let least = quarter.clamp(1, BYTES_PER_SECOND_MIN);
        let mut watch = |bytes: u64| {
            // The log grows until the snapshot is there: on a busy machine it must not starve.
            let due = PATIENCE + Duration::from_millis(bytes * 1000 / least);
            if !is_late && started.elapsed() > due {
                is_late = true;
                threads::step_forward();
            }
        };
        let written = ringkeeper_member::snapshot::write_watched(writer, tree, &mut watch);
        Ok(written?)
    }
}

/// Loads a snapshot: chunks are read and decoded by a thread for each of `cpus`, and put together in
/// their order on this one.
///
/// # Errors
/// When the file is not what was written, or not a tree.
pub(crate) fn load(dir: &Path, info: SnapshotInfo, cpus: &[usize]) -> anyhow::Result<Tree> {
    let reader = SnapshotReader::open(dir, info)?;
    let workers = cpus.len().max(1);
    let mut builder = SnapshotBuilder::new();
    thread::scope(|scope| {
        let decoded: Vec<_> = (0..workers)
            .map(|worker| {
                let (decoded, wait_decoded) = sync_channel(CHUNKS_AHEAD);
                let reader = &reader;
                scope.spawn(move || {
                    threads::run_on(cpus);
                    decode(reader, worker, workers, &decoded);
                });
                wait_decoded
            })
            .collect();
        for (at, worker) in (0..reader.chunks().len()).zip((0..workers).cycle()) {
            let chunk = decoded[worker]
                .recv()
                .context("a loading thread has ended")?;
            builder
                .push(chunk?)
                .with_context(|| format!("chunk {at}"))?;
        }
        anyhow::Ok(())
    })?;
    Ok(builder.finish()?)
}

/// Decodes every `workers`th chunk.
fn decode(
    reader: &SnapshotReader,
    worker: usize,
    workers: usize,
    decoded: &SyncSender<anyhow::Result<Chunk>>,
) {
    let mut bytes = Vec::new();
    let places = || reader.chunks().iter().skip(worker).step_by(workers);
    let mut ahead = places();
    // A device is fast only when it is asked for much at a time.
    ahead
        .by_ref()
        .take(READ_AHEAD)
        .for_each(|place| reader.read_ahead(place));
    for place in places() {
        if let Some(place) = ahead.next() {
            reader.read_ahead(place);
        }
        let chunk = reader
            .read_chunk(place, &mut bytes)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(Chunk::decode(&bytes)?));
        // Nobody waits any more when an earlier chunk was bad.
        if decoded.send(chunk).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use ringkeeper_proto::txn::CreateKind;
    use ringkeeper_proto::{Acl, AclList, OpCode, SessionId, Txn, TxnHeader, Zxid};
    use ringkeeper_tree::Events;
    use ringkeeper_tree::snapshot::CHUNK_LEN;

    use super::*;

    /// More threads than chunks, and as many as one.
    const WORKERS: [usize; 6] = [0, 1, 2, 3, 8, 100];

    /// A tree of some twelve chunks, written into `dir`.
    fn snapshot(dir: &Path) -> (Tree, SnapshotInfo) {
        let mut tree = Tree::new();
        let data: Vec<u8> = (0..251).cycle().take(500).collect();
        for n in 0..12 * CHUNK_LEN as u64 / 500 {
            let txn = Txn::Create {
                path: format!("/n{n:06}").into(),
                data: data.get(usize::try_from(n % 97).unwrap()..),
                acl: AclList::new(&Acl::open()),
                kind: CreateKind::Plain { ephemeral: false },
                parent_cversion: -1,
            };
            let header = TxnHeader {
                session: SessionId(1),
                cxid: 1,
                zxid: Zxid(n + 1),
                time_ms: 1,
                op: OpCode::Create,
            };
            let _applied = tree.apply(&header, &txn, &mut Events::new());
        }
        let writer = SnapshotWriter::create(dir, tree.zxid(), None).unwrap();
        let info = ringkeeper_member::snapshot::write(writer, &tree).unwrap();
        (tree, info)
    }

    fn load_by(dir: &Path, info: SnapshotInfo, workers: usize) -> anyhow::Result<Tree> {
        // Each on the first CPU, which is there.
        load(dir, info, &vec![0; workers])
    }

    #[test]
    fn a_snapshot_under_way_is_told_of_the_log() {
        let (jobs, _wait_jobs) = sync_channel(1);
        let mut snapshots = Snapshots {
            config: SnapshotConfig::default(),
            jobs,
            busy: true,
            last_bytes: 0,
            log: LogActivity::default(),
            stalls: Rc::default(),
            flush_times: FlushTimes::new(),
            times: Histogram::new(2).unwrap(),
        };
        // The snapshot thread has a clone.
        let heard = snapshots.log.clone();
        for log_bytes in [5, 7] {
            let mut since = LoggedSince { txns: 1, log_bytes };
            snapshots.start_if_due(&Tree::new(), 0, &mut since);
            assert_eq!(format!("{heard:?}"), format!("LogActivity({log_bytes})"));
        }
    }

    #[test]
    fn any_number_of_threads_loads_the_same_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, info) = snapshot(dir.path());
        let chunks = SnapshotReader::open(dir.path(), info)
            .unwrap()
            .chunks()
            .len();
        assert!((10..30).contains(&chunks), "{chunks} chunks");
        for workers in WORKERS {
            let loaded = load_by(dir.path(), info, workers).unwrap();
            assert_eq!(loaded.digest(), tree.digest(), "{workers} threads");
            assert_eq!(loaded.node_count(), tree.node_count());
            assert_eq!(loaded.zxid(), tree.zxid());
            for path in ["/n000000", "/n000500", "/n001000"] {
                let data = |tree: &Tree| tree.get(path).unwrap().data().map(<[u8]>::to_vec);
                assert_eq!(data(&loaded), data(&tree), "{path}");
            }
        }
    }

    #[test]
    fn a_damaged_chunk_is_noticed_whichever_thread_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let (_, info) = snapshot(dir.path());
        let path = dir.path().join(format!("snapshot-{:016x}", info.zxid.0));
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let chunk = CHUNK_LEN as u64;
        for at in [chunk / 2, 4 * chunk, 7 * chunk, info.bytes - chunk] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            for workers in WORKERS {
                let error = load_by(dir.path(), info, workers).unwrap_err();
                let text = format!("{error:#}");
                assert!(
                    text.contains("checksum"),
                    "{workers} threads, byte {at}: {text}"
                );
            }
            file.write_all_at(&byte, at).unwrap();
        }
        assert!(load_by(dir.path(), info, 2).is_ok());
    }
}
