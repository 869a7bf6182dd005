//! Opening a data directory, and what is kept in it beside the log.
//!
//! ```text
//! dataDir/ringkeeper/      lock  manifest-a  manifest-b  snapshot-ZXID ...
//! dataLogDir/ringkeeper/   lock  log-NUMBER ...  spare-NUMBER ...
//! ```
//!
//! Invariants:
//! - One process at a time has the directories.
//! - Apache's `version-2` beside ours is never written; a directory that is not ours is refused as it is.
//! - The manifest comes first when a store is made, so that a crash while making it is told from loss.

use std::{
    cell::Cell,
    fmt, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_util::lock::Mutex;
use ringkeeper_proto::{Epoch, Zxid};

use crate::{
    batch::HEADER_BYTES,
    disk::{BLOCK_BYTES, Disk, Entry, round_up},
    error::{OpenError, StorageError},
    holdings::Holdings,
    manifest::{self, Contents, Manifest, Phase, Reading, SNAPSHOTS_MAX, SnapshotInfo},
    record::FRAME_BYTES,
    scan::{OnDamage, scan_log},
    segment::{FIRST_BATCH, Listing, log_path, spare_path},
    snapshot::{self, snapshot_path, spare_snapshot_path},
    stats::FlushTimes,
    txn_log::{Shared, TxnLog, starts_after},
};

/// The folder of ours in `dataDir` and `dataLogDir`.
pub const FOLDER: &str = "ringkeeper";
pub(crate) const LOCK: &str = "lock";
/// Apache ZooKeeper's folder.
const APACHE: &str = "version-2";

/// The configured directories.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// `dataDir`.
    pub data: PathBuf,
    /// `dataLogDir`; the same as `data` unless configured.
    pub log: PathBuf,
}

impl Dirs {
    /// Everything under one directory.
    pub fn single(dir: impl Into<PathBuf>) -> Self {
        let data = dir.into();
        Self {
            log: data.clone(),
            data,
        }
    }

    /// Where the manifest and the snapshots are.
    pub fn data_folder(&self) -> PathBuf {
        self.data.join(FOLDER)
    }

    /// Where the log is.
    pub fn log_folder(&self) -> PathBuf {
        self.log.join(FOLDER)
    }
}

/// How the log is laid out. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Size of a log segment, a multiple of 4096. Applies to segments made from now on.
    pub segment_bytes: u64,
    /// What a batch is filled to; a single larger record is still taken.
    pub batch_bytes_max: usize,
    /// The largest record.
    pub record_bytes_max: usize,
    /// Space that preparing a segment leaves free for snapshots and others.
    pub free_bytes_min: u64,
    /// Spare segments kept for reuse. More are kept where the last purge freed more: the log fills as many between two
    /// purges, which then never need to be made anew. They take no space that the log has not taken before; where space is
    /// short, two stay at most.
    pub spares_kept: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            batch_bytes_max: 1 << 20,
            record_bytes_max: 4 << 20,
            free_bytes_min: 64 << 20,
            spares_kept: 8,
        }
    }
}

impl LogOptions {
    /// The most that one batch can take on disk.
    fn stored_bytes_max(&self) -> u64 {
        let record = HEADER_BYTES + FRAME_BYTES + self.record_bytes_max;
        // A batch that has room for nothing more may still be given one record of the maximum.
        round_up(self.batch_bytes_max + record) as u64
    }

    /// What stays free in the last segment for what is already admitted, when the disk is full.
    pub(crate) fn admitted_reserve(&self) -> u64 {
        2 * self.stored_bytes_max()
    }

    fn check(&self) -> Result<(), OpenError> {
        let wrong = if !self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            "the segment size must be a multiple of 4096"
        } else if self.batch_bytes_max < BLOCK_BYTES {
            "the batch maximum must be at least 4096"
        } else if self.segment_bytes > 1 << 40 || self.record_bytes_max > 1 << 30 {
            "the segment size must be at most 1 TiB and the record maximum at most 1 GiB"
        } else if self.segment_bytes < FIRST_BATCH + self.stored_bytes_max() {
            "a segment must hold its first block, a full batch and a record of the maximum size"
        } else {
            return Ok(());
        };
        Err(OpenError::Options(wrong))
    }
}

/// How the log ended when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing was being written.
    Clean,
    /// A write was under way, or the last one is damaged, and what there was of it has been cut. It was
    /// never attested; a member of an ensemble may have acknowledged it all the same.
    Torn {
        /// The last whole zxid.
        after: Zxid,
        /// The last zxid of what was cut, where that can still be read.
        through: Option<Zxid>,
    },
}

impl Tail {
    /// Through where transactions may have been acknowledged that the log has lost. `Zxid(u64::MAX)`: nobody knows.
    fn doubted_through(self) -> Option<Zxid> {
        match self {
            Self::Clean => None,
            Self::Torn { after, through } => {
                Some(through.unwrap_or(Zxid(u64::MAX))).filter(|through| *through > after)
            }
        }
    }
}

/// What a member of an ensemble keeps beside its log. It is saved as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochState {
    /// The last epoch that this server promised to follow.
    pub accepted: Epoch,
    /// The last epoch whose history this server has; `current <= accepted`.
    pub current: Epoch,
    /// Whether it has taken over any leader's history since its directories were made.
    pub is_member: bool,
    /// Through where it may have acknowledged transactions that a torn write took from its log; `Zxid(u64::MAX)`
    /// where that is not known. Set by [`Store::open_as_member`], and kept over any number of starts until
    /// the caller saves that a leader has settled it.
    pub doubted_through: Option<Zxid>,
}

/// What was found in the directories.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whether the store was made just now.
    pub fresh: bool,
    /// Verified snapshots whose files are there, newest first. To restore: load the first that can be
    /// read, then [`TxnLog::replay`] from its zxid. When that zxid is above [`Recovered::last_zxid`] (the
    /// log's tail was lost, the snapshot has it), call [`TxnLog::reset`] with it before the first write.
    pub snapshots: Vec<SnapshotInfo>,
    /// The last epoch that this server promised to follow.
    pub accepted_epoch: Epoch,
    /// The last epoch whose history this server has.
    pub current_epoch: Epoch,
    /// Whether it has taken over a leader's history, see [`EpochState::is_member`].
    pub is_member: bool,
    /// See [`EpochState::doubted_through`].
    pub doubted_through: Option<Zxid>,
    /// The last zxid known committed; what the log holds above it is for Zab to settle.
    pub committed: Zxid,
    /// The log's last zxid.
    pub last_zxid: Zxid,
    /// How the log ended.
    pub tail: Tail,
    /// What the log has, zxid by zxid. Where something is faulty ([`Store::open_as_member`] only),
    /// [`Recovered::last_zxid`] is the last zxid before it.
    pub holdings: Holdings,
    /// The store's own random number.
    pub store: u64,
    /// Bytes of log that were read.
    pub log_bytes_read: u64,
}

impl Recovered {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<SnapshotInfo> {
        self.snapshots.first().copied()
    }
}

/// An open data directory: epochs, snapshots, purge. Cheap to clone.
///
/// The futures of its methods that change something must run to their end: dropped half-way they leave the
/// manifest failed with [`StorageError::Abandoned`], and every later change is refused.
pub struct Store<D: Disk> {
    pub(crate) inner: Rc<StoreInner<D>>,
}

pub(crate) struct StoreInner<D: Disk> {
    pub(crate) disk: D,
    pub(crate) data: PathBuf,
    pub(crate) log: Rc<Shared<D>>,
    pub(crate) manifest: Mutex<Manifest<D>>,
    manifest_times: FlushTimes,
    /// See [`Store::history`].
    history: Cell<u64>,
    _locks: Vec<D::Lock>,
}

/// What [`Store::open`] returns.
pub struct Opened<D: Disk> {
    /// Epochs, snapshots, purge.
    pub store: Store<D>,
    /// The log, ready for writes. [`TxnLog::maintenance`] is to be run beside it.
    pub log: TxnLog<D>,
    /// What was found.
    pub recovered: Recovered,
}

impl<D: Disk> Store<D> {
    /// Opens the directories, or makes them, and recovers the log.
    ///
    /// Reads the log from the segment that the newest snapshot needs. Cuts a torn tail (and says so in the
    /// server's log); refuses damage to acknowledged history. When this returns the recovered tail is
    /// attested by a seal, so it can no longer be taken for torn.
    pub async fn open(disk: D, dirs: &Dirs, options: LogOptions) -> Result<Opened<D>, OpenError> {
        Self::open_with(disk, dirs, options, OnDamage::Refuse).await
    }

    /// As [`Store::open`], for a member of an ensemble: others may have what is damaged here.
    ///
    /// Where acknowledged history is damaged, the log is opened all the same, and
    /// [`Recovered::holdings`] says what it has. It can be read up to the damage, and nothing is changed or
    /// appended ([`TxnLog::damage`]): the member must not vote as if it lacked what it acknowledged. It becomes
    /// whole by [`Store::mend`] and another start, or by [`Store::install_snapshot`].
    ///
    /// A manifest that cannot be read is refused here too: without its epochs a member cannot know what it promised.
    pub async fn open_as_member(
        disk: D,
        dirs: &Dirs,
        options: LogOptions,
    ) -> Result<Opened<D>, OpenError> {
        Self::open_with(disk, dirs, options, OnDamage::Survey).await
    }

    async fn open_with(
        disk: D,
        dirs: &Dirs,
        options: LogOptions,
        on_damage: OnDamage,
    ) -> Result<Opened<D>, OpenError> {
        options.check()?;
        let (data, log) = (dirs.data_folder(), dirs.log_folder());
        refuse_apache(&disk, dirs).await?;
        for dir in [&data, &log] {
            let made = disk.create_dir_all(dir).await;
            made.map_err(|error| StorageError::io("make directory", dir, None, error))?;
        }
        let locks = lock(&disk, &data, &log)?;
        let (contents, fresh) = contents(&disk, &data, &log).await?;
        let mut manifest = Manifest::open(disk.clone(), &data, contents).await?;
        if fresh {
            start_anew(&disk, &log).await?;
        }
        let snapshots = find_snapshots(&disk, &data, manifest.contents()).await?;
        let newest = snapshots.first().map_or(Zxid::ZERO, |info| info.zxid);
        let contents = manifest.contents();
        let found = scan_log(&disk, &log, &options, contents, newest, on_damage).await?;
        let is_damaged = found.holdings.damage.is_some();
        let doubted_through = found.tail.doubted_through();
        // The incarnations of this run are above those of all runs before, and a clean end counts once:
        // both durably before the log is written again, and not before it has been judged.
        manifest
            .update(|contents| {
                contents.starts += 1;
                // Before what is in doubt is cut: the next start finds a log that just ends.
                if on_damage == OnDamage::Survey && contents.is_member {
                    contents.doubted_through = contents.doubted_through.max(doubted_through);
                }
                // A damaged log is not written, and where it ended is still to be known.
                if !is_damaged {
                    contents.clean_end = None;
                }
            })
            .await?;
        let tail = found.tail;
        let recovered = Recovered {
            fresh,
            snapshots,
            accepted_epoch: manifest.contents().accepted_epoch,
            current_epoch: manifest.contents().current_epoch,
            is_member: manifest.contents().is_member,
            doubted_through: manifest.contents().doubted_through,
            committed: found.resume.committed,
            last_zxid: found.resume.chain.last_zxid,
            tail,
            holdings: found.holdings,
            store: manifest.contents().store,
            log_bytes_read: found.bytes_read,
        };
        let store = manifest.contents().store;
        let mut txn_log = TxnLog::resume(disk.clone(), log, options, store, found.resume);
        if !is_damaged {
            txn_log.seal(recovered.committed).await?;
        }
        if fresh {
            manifest
                .update(|contents| contents.phase = Phase::Made)
                .await?;
        }
        let inner = StoreInner {
            disk,
            data,
            log: Rc::clone(txn_log.shared()),
            manifest_times: manifest.times().clone(),
            manifest: Mutex::new(manifest),
            history: Cell::new(0),
            _locks: locks,
        };
        Ok(Opened {
            store: Self {
                inner: Rc::new(inner),
            },
            log: txn_log,
            recovered,
        })
    }

    /// Saves the epochs durably, and leaves the rest of [`EpochState`] as it is. The caller keeps Zab's order:
    /// history first, then the epoch, then the ACK.
    pub async fn save_epochs(&self, accepted: Epoch, current: Epoch) -> Result<(), StorageError> {
        let mut manifest = self.inner.manifest.lock().await;
        let contents = manifest.contents();
        let epochs = EpochState {
            accepted,
            current,
            is_member: contents.is_member,
            doubted_through: contents.doubted_through,
        };
        save(&mut manifest, self.inner.log.durable_sequence(), epochs).await
    }

    /// Saves the whole of it durably, in the same order.
    pub async fn save_epoch_state(&self, epochs: EpochState) -> Result<(), StorageError> {
        let durable_sequence = self.inner.log.durable_sequence();
        let mut manifest = self.inner.manifest.lock().await;
        save(&mut manifest, durable_sequence, epochs).await
    }

    /// Puts a snapshot in the place of all history: what a leader sent to a learner whose log it cannot continue.
    ///
    /// `info` is a snapshot in [`Store::snapshot_dir`] that is finished and verified
    /// ([`SnapshotWriter`](crate::SnapshotWriter)). When this returns, a restart finds that snapshot and an empty
    /// log after it; before, it finds the log and the snapshots as they were: one save of the manifest decides.
    /// The epochs are not touched.
    ///
    /// It waits for what is in flight; what is handed over meanwhile is refused with [`StorageError::Replaced`].
    /// Call [`TxnLog::begin_generation`] before, so that [`TxnLog::durable`] tells the two histories apart.
    pub async fn install_snapshot(&self, info: SnapshotInfo) -> Result<(), StorageError> {
        let inner = &*self.inner;
        let mut manifest = inner.manifest.lock().await;
        let (replacement, start) = inner.log.begin_replacement(info.zxid).await?;
        let others: Vec<SnapshotInfo> = manifest
            .contents()
            .snapshots
            .iter()
            .filter(|other| other.zxid != info.zxid)
            .copied()
            .collect();
        manifest
            .update(|contents| {
                contents.log_start = start;
                contents.snapshots = vec![info];
                // A log that was damaged still has it, and it is of the history that goes.
                contents.clean_end = None;
            })
            .await?;
        let gone = inner.log.finish_replacement(replacement, start);
        inner.history.set(inner.history.get() + 1);
        // Nothing counts on these any more; a crash leaves them to the next start.
        for other in others {
            remove(&inner.disk, &snapshot_path(&inner.data, other.zxid)).await?;
        }
        sync(&inner.disk, &inner.data).await?;
        self.recycle(&gone).await
    }

    /// A number that changes when history is replaced or cut, so that a snapshot that was begun before is told
    /// from one of what counts now: ask when a snapshot begins, and give it to
    /// [`Store::register_snapshot_of`].
    pub fn history(&self) -> u64 {
        self.inner.history.get()
    }

    /// As [`Store::register_snapshot`], if `history` still is what [`Store::history`] says. Otherwise the snapshot
    /// shows what does not count any more: its file is removed, and the answer is `false`.
    pub async fn register_snapshot_of(
        &self,
        info: SnapshotInfo,
        history: u64,
    ) -> Result<bool, StorageError> {
        let inner = &*self.inner;
        let mut manifest = inner.manifest.lock().await;
        if history == inner.history.get() {
            enlist(&mut manifest, info).await?;
            return Ok(true);
        }
        let listed = &manifest.contents().snapshots;
        let is_listed = listed.iter().any(|other| other.zxid == info.zxid);
        // An earlier snapshot at the same zxid may have had the name, and have been removed with it.
        let name = snapshot::file_name(info.zxid);
        let entries = list(&inner.disk, &inner.data).await?;
        if !is_listed && entries.iter().any(|entry| entry.name == name) {
            remove(&inner.disk, &snapshot_path(&inner.data, info.zxid)).await?;
            sync(&inner.disk, &inner.data).await?;
        }
        Ok(false)
    }

    /// Notes in the manifest where the log ends, so that the next start need not look behind the end, and
    /// damage to the last batch is told from a torn write even without a seal.
    ///
    /// For an orderly stop, when all writes have been answered. Returns whether it did: it does nothing
    /// while writes are in flight or after a failure. From then on writes answer [`StorageError::Closed`].
    pub async fn close(&self) -> Result<bool, StorageError> {
        let mut manifest = self.inner.manifest.lock().await;
        let Some(end) = self.inner.log.close() else {
            return Ok(false);
        };
        manifest
            .update(|contents| contents.clean_end = Some(end))
            .await?;
        Ok(true)
    }

    /// Lists a snapshot whose file is complete, flushed and verified (see
    /// [`SnapshotWriter`](crate::SnapshotWriter)).
    pub async fn register_snapshot(&self, info: SnapshotInfo) -> Result<(), StorageError> {
        enlist(&mut *self.inner.manifest.lock().await, info).await
    }

    /// Takes snapshots above `zxid` off the list and removes their files (a TRUNC goes below them).
    ///
    /// To be called, and waited for, before [`TxnLog::truncate`]: a snapshot above the truncation would bring back
    /// at the next start what was cut. Fails with [`StorageError::Purged`], and changes nothing, when no older
    /// snapshot is left to begin from and the log does not reach back to the beginning: then only a snapshot
    /// of the leader's helps.
    pub async fn discard_snapshots_above(&self, zxid: Zxid) -> Result<(), StorageError> {
        let inner = &*self.inner;
        let mut manifest = inner.manifest.lock().await;
        let listed = &manifest.contents().snapshots;
        let (gone, kept): (Vec<_>, Vec<_>) = listed.iter().partition(|info| info.zxid > zxid);
        let start = starts_after(&inner.log.state.borrow().segments);
        if kept.is_empty() && start > Zxid::ZERO {
            return Err(StorageError::Purged {
                wanted: zxid,
                start,
            });
        }
        inner.history.set(inner.history.get() + 1);
        if gone.is_empty() {
            return Ok(());
        }
        manifest
            .update(|contents| contents.snapshots = kept)
            .await?;
        for info in gone {
            remove(&inner.disk, &snapshot_path(&inner.data, info.zxid)).await?;
        }
        sync(&inner.disk, &inner.data).await
    }

    /// The verified snapshots, newest first.
    pub async fn snapshots(&self) -> Vec<SnapshotInfo> {
        let manifest = self.inner.manifest.lock().await;
        manifest
            .contents()
            .snapshots
            .iter()
            .rev()
            .copied()
            .collect()
    }

    /// How long the manifest's durable writes take: what an epoch waits for.
    pub fn manifest_times(&self) -> &FlushTimes {
        &self.inner.manifest_times
    }

    /// Where snapshots are written.
    pub fn snapshot_dir(&self) -> &Path {
        &self.inner.data
    }
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self {
            inner: Rc::clone(&self.inner),
        }
    }
}

impl<D: Disk> fmt::Debug for Store<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("data", &self.inner.data)
            .finish_non_exhaustive()
    }
}

impl<D: Disk> fmt::Debug for Opened<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("store", &self.store)
            .field("log", &self.log)
            .field("recovered", &self.recovered)
            .finish()
    }
}

async fn save<D: Disk>(
    manifest: &mut Manifest<D>,
    durable_sequence: u64,
    epochs: EpochState,
) -> Result<(), StorageError> {
    assert!(
        epochs.current <= epochs.accepted,
        "an epoch is accepted before it is current"
    );
    manifest
        .update(|contents| {
            contents.accepted_epoch = epochs.accepted;
            contents.current_epoch = epochs.current;
            contents.is_member = epochs.is_member;
            contents.doubted_through = epochs.doubted_through;
            contents.durable_sequence = contents.durable_sequence.max(durable_sequence);
        })
        .await
}

async fn enlist<D: Disk>(
    manifest: &mut Manifest<D>,
    info: SnapshotInfo,
) -> Result<(), StorageError> {
    manifest
        .update(|contents| {
            contents.snapshots.retain(|other| other.zxid != info.zxid);
            contents.snapshots.push(info);
            contents.snapshots.sort_unstable_by_key(|info| info.zxid);
            // Only when purge is off and nobody cleans up: the oldest go unlisted, their files stay.
            let excess = contents.snapshots.len().saturating_sub(SNAPSHOTS_MAX);
            contents.snapshots.drain(..excess);
        })
        .await
}

/// Refuses Apache's data where nothing of ours is beside it.
async fn refuse_apache<D: Disk>(disk: &D, dirs: &Dirs) -> Result<(), OpenError> {
    for (dir, other) in [(&dirs.data, &dirs.data), (&dirs.log, &dirs.data)] {
        let entries = list_if_any(disk, dir).await?;
        let apache = entries
            .iter()
            .any(|entry| entry.is_dir && entry.name == APACHE);
        // An empty folder is what a server that never ran has left.
        if apache && !list(disk, &dir.join(APACHE)).await?.is_empty() {
            let ours = list_if_any(disk, &other.join(FOLDER)).await?;
            if !ours
                .iter()
                .any(|entry| manifest::NAMES.contains(&entry.name.as_str()))
            {
                return Err(OpenError::ApacheData(dir.clone()));
            }
        }
    }
    Ok(())
}

fn lock<D: Disk>(disk: &D, data: &Path, log: &Path) -> Result<Vec<D::Lock>, OpenError> {
    let mut dirs = vec![data];
    if log != data {
        dirs.push(log);
    }
    dirs.into_iter()
        .map(|dir| {
            let path = dir.join(LOCK);
            match disk.lock(&path) {
                Ok(Some(lock)) => Ok(lock),
                Ok(None) => Err(OpenError::Locked(dir.to_path_buf())),
                Err(error) => Err(StorageError::io("lock", path, None, error).into()),
            }
        })
        .collect()
}

/// The manifest's contents, or those of a new store where there is nothing yet.
async fn contents<D: Disk>(
    disk: &D,
    data: &Path,
    log: &Path,
) -> Result<(Contents, bool), OpenError> {
    let reading = manifest::read(disk, data).await?;
    if let Reading::Present(contents) = reading {
        let fresh = contents.phase == Phase::Making;
        return Ok((contents, fresh));
    }
    // A manifest torn while it was first written has nothing beside it yet.
    for dir in [data, log] {
        let stranger = list(disk, dir)
            .await?
            .into_iter()
            .find(|entry| !is_harmless(&entry.name));
        if let Some(stranger) = stranger {
            let found = dir.join(&stranger.name);
            return Err(match reading {
                Reading::Unreadable => OpenError::ManifestUnreadable(data.to_path_buf()),
                _ => OpenError::Foreign {
                    dir: dir.to_path_buf(),
                    found,
                },
            });
        }
    }
    Ok((Contents::new(disk.unique()), true))
}

/// Whether a file may lie in a directory that has no manifest yet.
fn is_harmless(name: &str) -> bool {
    name == LOCK || name.starts_with('.') || manifest::NAMES.contains(&name)
}

/// Removes what an earlier, interrupted making of the store has left.
async fn start_anew<D: Disk>(disk: &D, log: &Path) -> Result<(), StorageError> {
    let listing = Listing::of(&list(disk, log).await?);
    for (number, _) in listing.logs {
        remove(disk, &log_path(log, number)).await?;
    }
    for (number, _) in listing.spares {
        remove(disk, &spare_path(log, number)).await?;
    }
    sync(disk, log).await
}

/// The listed snapshots whose files are there, newest first. A file that is not listed becomes the spare, or goes.
async fn find_snapshots<D: Disk>(
    disk: &D,
    data: &Path,
    contents: &Contents,
) -> Result<Vec<SnapshotInfo>, StorageError> {
    let entries = list(disk, data).await?;
    let listed: Vec<String> = contents
        .snapshots
        .iter()
        .map(|info| snapshot::file_name(info.zxid))
        .collect();
    let mut has_spare = entries.iter().any(|entry| snapshot::is_spare(&entry.name));
    for Entry { name, .. } in &entries {
        let is_kept = listed.contains(name) || snapshot::is_spare(name);
        if !snapshot::is_snapshot(name) || is_kept {
            continue;
        }
        tracing::info!(file = name, "a snapshot that was never finished");
        let path = data.join(name);
        if has_spare {
            remove(disk, &path).await?;
        } else {
            let spare = spare_snapshot_path(data);
            let renamed = disk.rename(&path, &spare).await;
            renamed.map_err(|error| StorageError::io("rename", path, None, error))?;
            has_spare = true;
        }
    }
    let found = contents.snapshots.iter().rev().filter(|info| {
        let name = snapshot::file_name(info.zxid);
        let there = entries
            .iter()
            .any(|entry| entry.name == name && entry.bytes == info.bytes);
        if !there {
            tracing::error!(file = name, "a snapshot is missing or has the wrong length");
        }
        there
    });
    Ok(found.copied().collect())
}

pub(crate) async fn list<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<Entry>, StorageError> {
    disk.list(dir)
        .await
        .map_err(|error| StorageError::io("list directory", dir, None, error))
}

/// The entries, or none when there is no such directory.
async fn list_if_any<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<Entry>, StorageError> {
    match disk.list(dir).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|error| StorageError::io("list directory", dir, None, error)),
    }
}

pub(crate) async fn remove<D: Disk>(disk: &D, path: &Path) -> Result<(), StorageError> {
    disk.remove(path)
        .await
        .map_err(|error| StorageError::io("remove", path, None, error))
}

pub(crate) async fn sync<D: Disk>(disk: &D, dir: &Path) -> Result<(), StorageError> {
    disk.sync_dir(dir)
        .await
        .map_err(|error| StorageError::io("flush directory", dir, None, error))
}
