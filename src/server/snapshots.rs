//! Snapshots: written by a thread of its own from a clone of the tree, so that no write waits for one.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ringkeeper_config::{LoggedSince, SnapshotConfig};
use ringkeeper_member::{Metric, Settings};
use ringkeeper_storage::{Compression, Disk, SnapshotInfo, SnapshotReader, SnapshotWriter, Store};
use ringkeeper_transport::mailbox::Sender;
use ringkeeper_transport::{sleep, spawn_local};
use ringkeeper_tree::Tree;
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder};

use crate::messages::CoreMessage;
use crate::threads;

/// Decoded chunks that may wait for their turn, per loading thread.
const CHUNKS_AHEAD: usize = 4;

/// How often the core's executor is looked at while a snapshot is under way.
const PROBE_PAUSE: Duration = Duration::from_millis(1);

/// A stall that counts.
const STALL: Duration = Duration::from_millis(5);

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
    stalls: Rc<Stalls>,
}

/// How late the core's executor was with what was due while a snapshot was under way.
#[derive(Debug, Default)]
struct Stalls {
    is_under_way: Cell<bool>,
    longest: Cell<Duration>,
    over_limit: Cell<u64>,
}

impl Stalls {
    /// Looks until the snapshot has ended. What makes it late is whatever keeps the executor: a long turn, a page that is
    /// not there, the snapshot thread on its CPU, or a hypervisor.
    async fn probe(self: Rc<Self>) {
        while self.is_under_way.get() {
            let started = Instant::now();
            sleep(PROBE_PAUSE).await;
            let late = started.elapsed().saturating_sub(PROBE_PAUSE);
            self.longest.set(self.longest.get().max(late));
            if late > STALL {
                self.over_limit.set(self.over_limit.get() + 1);
            }
        }
    }
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
        let dir = store.snapshot_dir().to_owned();
        let writing = config.clone();
        thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                threads::run_on(&cpus);
                threads::step_back();
                run(&dir, &writing, &wait_jobs, &core);
            })
            .context("start the snapshot thread")?;
        Ok(Self {
            config,
            jobs,
            busy: false,
            last_bytes,
            stalls: Rc::default(),
        })
    }

    /// Begins a snapshot of `tree` if one is due.
    pub(crate) fn start_if_due(&mut self, tree: &Tree, history: u64, since: &mut LoggedSince) {
        if self.busy || !self.config.is_due(*since, self.last_bytes) {
            return;
        }
        self.busy = self.jobs.try_send(Job::Take(tree.clone(), history)).is_ok();
        if self.busy {
            *since = LoggedSince::default();
            if !self.stalls.is_under_way.replace(true) {
                spawn_local(Rc::clone(&self.stalls).probe()).detach();
            }
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
    pub(crate) fn metrics(&self) -> [(&'static str, Metric); 4] {
        let longest_us = u64::try_from(self.stalls.longest.get().as_micros()).unwrap_or(u64::MAX);
        let over_limit = self.stalls.over_limit.get();
        [
            ("snapshot_under_way", Metric::Integer(self.busy.into())),
            ("snapshot_bytes", Metric::Integer(self.last_bytes)),
            ("snapshot_core_stall_max_us", Metric::Integer(longest_us)),
            ("snapshot_core_stalls_over_5ms", Metric::Integer(over_limit)),
        ]
    }

    /// The snapshot under way has ended, with so many bytes if it is whole.
    pub(crate) fn ended(&mut self, bytes: Option<u64>) {
        self.busy = false;
        self.stalls.is_under_way.set(false);
        self.last_bytes = bytes.unwrap_or(self.last_bytes);
    }
}

fn run(dir: &Path, config: &SnapshotConfig, jobs: &Receiver<Job>, core: &Sender<CoreMessage>) {
    for job in jobs {
        let started = Instant::now();
        let (tree, budget) = match &job {
            Job::Take(tree, _) => (tree, config.bytes_per_second_max),
            // The member waits for it, and serves nobody meanwhile.
            Job::Keep(tree) => (tree, None),
        };
        let compression = match config.is_compressed {
            true => Compression::Lz4,
            false => Compression::None,
        };
        let written = write(dir, budget, compression, tree).map_err(|error| format!("{error:#}"));
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut message = match &job {
            Job::Take(_, history) => {
                let history = *history;
                CoreMessage::SnapshotTaken(written.map(|info| SnapshotTaken { info, history, ms }))
            }
            Job::Keep(_) => CoreMessage::SnapshotKept(written),
        };
        // The tree's own blocks are freed here and not on the core.
        drop(job);
        while let Err(ringkeeper_transport::mailbox::MailboxError::Full(back)) = core.send(message)
        {
            message = back;
            thread::yield_now();
        }
    }
}

fn write(
    dir: &Path,
    bytes_per_second_max: Option<u64>,
    compression: Compression,
    tree: &Tree,
) -> anyhow::Result<SnapshotInfo> {
    let writer = SnapshotWriter::create(dir, tree.zxid(), bytes_per_second_max)?;
    let writer = writer.compressed_by(compression);
    Ok(ringkeeper_member::snapshot::write(writer, tree)?)
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
    for place in reader.chunks().iter().skip(worker).step_by(workers) {
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
