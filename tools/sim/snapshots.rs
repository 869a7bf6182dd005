//! Snapshots of a member: of its own tree, of one that a leader has sent, and those that go to learners.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use ringkeeper_member::snapshot;
use ringkeeper_proto::WriteJute as _;
use ringkeeper_proto::quorum::SNAPSHOT_END;
use ringkeeper_storage::{
    Recovered, SimDisk, SnapshotInfo, SnapshotReader, SnapshotWriter, StorageError, Store,
};
use ringkeeper_tree::Tree;
use ringkeeper_tree::image::{CHUNK_LEN, ImageEncoder};
use ringkeeper_zab::LinkId;

use crate::check::Violation;
use crate::member::Completion;
use crate::world::{Event, World};

/// How much of a tree goes out at once.
const PIECE_BYTES: usize = 4 << 10;

/// The snapshots that a process is about.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// What has not been sent yet of trees for learners.
    pub(crate) sending: BTreeMap<LinkId, VecDeque<Bytes>>,
    /// A leader's tree, to be written.
    pub(crate) keeping: Option<Tree>,
    /// A tree of its own, to be written, and the history that it belongs to.
    taking: Option<(Tree, u64)>,
    /// Written, and not listed yet.
    taken: Option<(SnapshotInfo, u64)>,
    /// One is being listed.
    pub(crate) registers: bool,
}

impl World {
    /// Takes a tree to be written after so many transactions.
    pub(crate) fn take_snapshot_if_due(&mut self, number: usize, txns: u64) {
        let member = &mut self.members[number];
        let life = member.life;
        let Some(process) = member.process() else {
            return;
        };
        let stats = process.core.stats_mut();
        if stats.since_snapshot.txns < txns || process.snapshots.taking.is_some() {
            return;
        }
        stats.since_snapshot = ringkeeper_config::LoggedSince::default();
        let (tree, history) = (
            process.core.published_tree().clone(),
            process.core.history(),
        );
        process.snapshots.taking = Some((tree, history));
        let at = self.now + self.disks.around(20 * self.plan.disk_delay);
        let event = Event::TakeSnapshot {
            member: number,
            life,
        };
        self.schedule(at, event);
    }

    /// A snapshot of a member's own is written and verified; then it is registered, and what it makes
    /// superfluous is removed.
    pub(crate) fn take_snapshot(&mut self, number: usize) -> Result<(), Violation> {
        let disk = self.members[number].disk.clone();
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let Some((tree, history)) = process.snapshots.taking.take() else {
            return Ok(());
        };
        let store = process.store.clone();
        let written = write_snapshot(&disk, &store, &tree);
        let info = written.map_err(|error| format!("member {number}: {error}"))?;
        process.snapshots.taken = Some((info, history));
        self.trace
            .note(self.now, number, "snapshot", tree.zxid().0, info.bytes);
        self.counts.add("snapshots taken");
        self.register_snapshot(number);
        self.after_turn(number)
    }

    /// Lists the snapshot that was written last, one at a time: the server's task does so too.
    pub(crate) fn register_snapshot(&mut self, number: usize) {
        let kept = self.plan.snapshots_kept;
        let disk = self.members[number].disk.clone();
        let Some(process) = self.members[number].process() else {
            return;
        };
        if process.snapshots.registers {
            return;
        }
        let Some((info, history)) = process.snapshots.taken.take() else {
            return;
        };
        process.snapshots.registers = true;
        let (store, completions) = (process.store.clone(), Rc::clone(&process.completions));
        disk.spawn(async move {
            let work = async {
                if store.register_snapshot_of(info, history).await? {
                    store.purge(kept).await?;
                }
                Ok(())
            };
            let registered = work.await;
            completions
                .borrow_mut()
                .push_back(Completion::Registered(registered));
        });
    }

    /// The tree that a leader sent is written and verified.
    pub(crate) fn keep_snapshot(&mut self, number: usize) -> Result<(), Violation> {
        let disk = self.members[number].disk.clone();
        let now = self.members[number].now(self.now);
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let Some(tree) = process.snapshots.keeping.take() else {
            return Ok(());
        };
        let written = write_snapshot(&disk, &process.store, &tree);
        let info = written.map_err(|error| format!("member {number}: {error}"))?;
        process.core.start_turn(now);
        process.core.snapshot_kept(info);
        self.trace
            .note(self.now, number, "kept", tree.zxid().0, info.bytes);
        self.after_turn(number)
    }

    /// The next piece of a tree for a learner.
    pub(crate) fn send_chunk(&mut self, number: usize, link: LinkId) -> Result<(), Violation> {
        let now = self.members[number].now(self.now);
        let Some(process) = self.members[number].process() else {
            return Ok(());
        };
        let Some(chunks) = process.snapshots.sending.get_mut(&link) else {
            return Ok(());
        };
        let mut given = vec![chunks.pop_front().unwrap_or_default()];
        if chunks.is_empty() {
            given.push(Bytes::new());
            process.snapshots.sending.remove(&link);
        }
        process.core.start_turn(now);
        for chunk in given {
            process.core.tree_chunk(link, chunk);
        }
        self.after_turn(number)
    }
}

/// The newest snapshot that can be read.
pub(crate) fn newest_snapshot(
    disk: &SimDisk,
    store: &Store<SimDisk>,
    recovered: &Recovered,
) -> Result<Tree, String> {
    let mut failure = None;
    for info in &recovered.snapshots {
        let reader = SnapshotReader::open_with(disk, store.snapshot_dir(), *info);
        let tree = reader
            .map_err(snapshot::LoadError::from)
            .and_then(|reader| snapshot::read(&reader));
        match tree {
            Ok(tree) => return Ok(tree),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    failure.map_or_else(|| Ok(Tree::new()), Err)
}

fn write_snapshot(
    disk: &SimDisk,
    store: &Store<SimDisk>,
    tree: &Tree,
) -> Result<SnapshotInfo, StorageError> {
    let dir = store.snapshot_dir();
    let writer = SnapshotWriter::create_with(disk.clone(), dir, tree.zxid(), None)?;
    snapshot::write(writer, tree)
}

/// A tree as it is sent to a learner.
pub(crate) fn chunks_of(tree: &Tree) -> VecDeque<Bytes> {
    let mut encoder = ImageEncoder::new(tree);
    let mut chunks = VecDeque::new();
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_LEN / 16);
        let more = encoder.next_chunk(&mut chunk);
        if !more {
            chunk.put_ustring(SNAPSHOT_END);
        }
        // Small pieces, so that a link is full now and then.
        let mut rest = chunk.freeze();
        while rest.len() > PIECE_BYTES {
            chunks.push_back(rest.split_to(PIECE_BYTES));
        }
        chunks.push_back(rest);
        if !more {
            return chunks;
        }
    }
}
