//! Snapshots: written by a thread of its own from a clone of the tree, so that no write waits for one.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use ringkeeper_config::{LoggedSince, SnapshotConfig};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Disk, SnapshotInfo, Store};
use ringkeeper_transport::mailbox::Sender;
use ringkeeper_tree::Tree;

use crate::messages::CoreMessage;
use crate::settings::Settings;

/// A snapshot that is written, flushed and verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotTaken {
    pub(crate) info: SnapshotInfo,
    pub(crate) ms: u64,
}

/// Decides when a snapshot is due, and hands clones of the tree to the snapshot thread.
#[derive(Debug)]
pub(crate) struct Snapshots {
    config: SnapshotConfig,
    jobs: SyncSender<Tree>,
    /// One snapshot is under way.
    busy: bool,
    last_bytes: u64,
}

impl Snapshots {
    /// Starts the snapshot thread.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(crate) fn start<D: Disk>(
        settings: &Settings,
        store: &Store<D>,
        last_bytes: u64,
        core: Sender<CoreMessage>,
    ) -> anyhow::Result<Self> {
        let config = settings.config.snapshots.clone();
        let (jobs, wait_jobs) = sync_channel(1);
        let dir = store.snapshot_dir().to_owned();
        let bytes_per_second_max = config.bytes_per_second_max;
        thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || run(&dir, bytes_per_second_max, &wait_jobs, &core))
            .context("start the snapshot thread")?;
        Ok(Self {
            config,
            jobs,
            busy: false,
            last_bytes,
        })
    }

    /// Begins a snapshot of `tree` if one is due.
    pub(crate) fn start_if_due(&mut self, tree: &Tree, since: &mut LoggedSince) {
        if self.busy || !self.config.is_due(*since, self.last_bytes) {
            return;
        }
        self.busy = self.jobs.try_send(tree.clone()).is_ok();
        if self.busy {
            *since = LoggedSince::default();
        }
    }

    /// The snapshot under way has ended, with so many bytes if it is whole.
    pub(crate) fn ended(&mut self, bytes: Option<u64>) {
        self.busy = false;
        self.last_bytes = bytes.unwrap_or(self.last_bytes);
    }
}

fn run(
    dir: &Path,
    bytes_per_second_max: Option<u64>,
    jobs: &Receiver<Tree>,
    core: &Sender<CoreMessage>,
) {
    for tree in jobs {
        let started = Instant::now();
        let written = write(dir, bytes_per_second_max, &tree);
        // The tree's own blocks are freed here and not on the core.
        drop(tree);
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let taken = written
            .map(|info| SnapshotTaken { info, ms })
            .map_err(|error| format!("{error:#}"));
        let mut message = CoreMessage::SnapshotTaken(taken);
        while let Err(ringkeeper_transport::mailbox::MailboxError::Full(back)) = core.send(message)
        {
            message = back;
            thread::yield_now();
        }
    }
}

fn write(_dir: &Path, _rate: Option<u64>, _tree: &Tree) -> anyhow::Result<SnapshotInfo> {
    anyhow::bail!("not yet")
}

pub(crate) fn load(_dir: &Path, _zxid: Zxid) -> anyhow::Result<Tree> {
    anyhow::bail!("not yet")
}
