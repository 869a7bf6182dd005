//! From what storage found to the tree: the newest snapshot that can be read, then the log after it.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context as _, anyhow};
use ringkeeper_member::{Loaded, Replay, Replayed, Settings};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{
    Dirs, Disk, DmaDisk, LiveRecords, LogOptions, OpenError, Opened, Recovered, Store, TxnLog,
    probe,
};
use ringkeeper_tree::Tree;

use crate::fatal::Reason;
use crate::{import, snapshots, threads};

/// Chunks of records that may be read ahead of the thread that applies them.
const CHUNKS_AHEAD: usize = 8;

/// Bytes of records that go there together: batches of a few records each are common, and each hand-over costs more than
/// they do.
const CHUNK_BYTES: usize = 64 << 10;

/// The file in dataDir that says that an empty database is meant (`db.autocreate=false`).
const INITIALIZE: &str = "initialize";

/// Opens the data directory: probes the device, recovers the log. Also says whether the file `initialize`
/// was there.
///
/// # Errors
/// When the directory cannot be used, or what is in it is damaged; each with what to do.
pub(crate) async fn open(settings: &Settings) -> anyhow::Result<(Opened<DmaDisk>, bool)> {
    let files = &settings.config.files;
    let dirs = Dirs {
        data: files.data_dir.clone(),
        log: files.log_dir.clone(),
    };
    let import_is_due = import::is_due(&dirs)?;
    check_directories(settings, &dirs, import_is_due)?;
    let (disk, report) = probe(&dirs.log).await.map_err(with_reason)?;
    tracing::info!("{report}");
    if files.test_delay_ms > 0 {
        let ms = files.test_delay_ms;
        tracing::warn!(
            ms,
            "a test wants a slow disk: each durable write takes longer"
        );
        disk.slow_down(Duration::from_millis(ms));
    }
    let options = LogOptions {
        segment_bytes: settings.config.log.segment_bytes,
        record_bytes_max: settings.tree.txn_len_max,
        ..LogOptions::default()
    };
    if import_is_due {
        import::run(&dirs, options.clone())?;
    }
    // What is damaged here a member gets from the others.
    let opened = match settings.config.peers {
        Some(_) => Store::open_as_member(disk, &dirs, options).await,
        None => Store::open(disk, &dirs, options).await,
    };
    let opened = opened.map_err(with_reason)?;
    if let Some(damage) = &opened.recovered.holdings.damage {
        tracing::error!(%damage, "acknowledged history is damaged: this member votes for nobody before a leader \
            has sent it a snapshot");
    }
    if let Some(through) = opened.recovered.doubted_through {
        let through = match through {
            Zxid(u64::MAX) => "an unknown end".to_owned(),
            through => through.to_string(),
        };
        tracing::warn!(after = %opened.recovered.last_zxid, through, "a torn write ended the log: this member may have \
            acknowledged more, and counts for a leader that lacks it only when nobody is left who could know better");
    }
    import::check(&dirs, opened.recovered.last_zxid)?;
    let initialize = files.data_dir.join(INITIALIZE).exists();
    if opened.recovered.fresh {
        // It has said what it was there for.
        match fs::remove_file(files.data_dir.join(INITIALIZE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("remove the file `initialize`");
            }
            _ => {}
        }
    }
    Ok((opened, initialize))
}

/// `datadir.autocreate` and `db.autocreate`: an empty directory may be a disk that is not mounted.
fn check_directories(settings: &Settings, dirs: &Dirs, import_is_due: bool) -> anyhow::Result<()> {
    let files = &settings.config.files;
    for dir in [&dirs.data, &dirs.log] {
        if !files.create_directories && !dir.is_dir() {
            return Err(anyhow!(
                "{} does not exist, and datadir.autocreate=false forbids to make it",
                dir.display()
            )
            .context(Reason::DataDirectory));
        }
    }
    if !files.create_database
        && !dirs.data_folder().exists()
        && !import_is_due
        && !files.data_dir.join(INITIALIZE).exists()
    {
        return Err(anyhow!(
            "{} holds no data, and db.autocreate=false forbids to start with none; if it is meant, \
             create an empty file `{INITIALIZE}` in it",
            files.data_dir.display()
        )
        .context(Reason::DataDirectory));
    }
    Ok(())
}

fn with_reason(error: OpenError) -> anyhow::Error {
    let reason = match &error {
        OpenError::Storage(_) => Reason::Storage,
        OpenError::Damaged(_) => Reason::Corrupt,
        OpenError::NoDirectIo { .. } => Reason::System,
        _ => Reason::DataDirectory,
    };
    anyhow::Error::from(error).context(reason)
}

/// Builds the tree as of `through`, with a thread for each of `cpus` where that helps.
///
/// # Errors
/// When there are snapshots and none can be read, when the log does not reach back to the one that
/// can, or when a record cannot be what was logged.
pub(crate) async fn load<D: Disk>(
    store: &Store<D>,
    log: &mut TxnLog<D>,
    recovered: &Recovered,
    cpus: &[usize],
    through: Zxid,
) -> anyhow::Result<Loaded> {
    let started = Instant::now();
    let tree = newest_snapshot(store, recovered, cpus)?;
    let (base, snapshot_ms) = (tree.zxid(), started.elapsed().as_millis());
    let (tree, replayed) = replay(log, tree, cpus, through)
        .await
        .with_context(|| format!("replay the log at {}", store.snapshot_dir().display()))?;
    if tree.zxid() > recovered.last_zxid && recovered.holdings.damage.is_none() {
        log.reset(tree.zxid())
            .await
            .context("continue the log after the snapshot")?;
    }
    tracing::info!(zxid = %tree.zxid(), znodes = tree.node_count(), sessions = tree.sessions().len(),
        snapshot_zxid = %base, snapshot_ms, replayed = replayed.count,
        undecided = replayed.suffix.len(), total_ms = started.elapsed().as_millis(), "data loaded");
    Ok(Loaded {
        tree,
        base,
        logged: replayed.logged,
        zxids: replayed.zxids,
        tail: replayed.suffix,
    })
}

fn newest_snapshot<D: Disk>(
    store: &Store<D>,
    recovered: &Recovered,
    cpus: &[usize],
) -> anyhow::Result<Tree> {
    let mut failure = None;
    for info in &recovered.snapshots {
        match snapshots::load(store.snapshot_dir(), *info, cpus) {
            Ok(tree) => return Ok(tree),
            Err(error) => {
                tracing::error!(zxid = %info.zxid, error = format!("{error:#}"),
                    "snapshot cannot be read; trying the one before it");
                failure = Some(error);
            }
        }
    }
    match failure {
        Some(error) => Err(error.context("none of the snapshots can be read")),
        None => Ok(Tree::new()),
    }
}

/// Applies what the log holds after `tree`. Records are read here and applied by a thread of their own,
/// on any of `cpus`.
async fn replay<D: Disk>(
    log: &TxnLog<D>,
    tree: Tree,
    cpus: &[usize],
    through: Zxid,
) -> anyhow::Result<(Tree, Replayed)> {
    let mut reader = log.read_from(tree.zxid())?;
    let (chunks, wait_chunks) = sync_channel::<RecordChunk>(CHUNKS_AHEAD);
    let cpus = cpus.to_vec();
    let applying = thread::Builder::new()
        .name("replay".into())
        .spawn(move || {
            threads::run_on(&cpus);
            let mut replay = Replay::new(tree, through);
            for chunk in wait_chunks {
                chunk.replay(&mut replay)?;
            }
            anyhow::Ok(replay.finish()?)
        })
        .context("start the thread that replays the log")?;
    let mut chunk = RecordChunk::default();
    while let Some(batch) = reader.next_batch().await? {
        chunk.extend(batch);
        // Waiting holds up this executor, which has nothing else to do yet. Nobody takes the chunk any more when an
        // earlier one was bad.
        if chunk.bytes.len() >= CHUNK_BYTES && chunks.send(std::mem::take(&mut chunk)).is_err() {
            break;
        }
    }
    reader.close().await;
    // As above.
    let _ = chunks.send(chunk);
    drop(chunks);
    match applying.join() {
        Ok(replayed) => replayed,
        Err(panic) => resume_unwind(panic),
    }
}

/// Records on their way to another thread.
#[derive(Default)]
struct RecordChunk {
    bytes: Vec<u8>,
    /// Each record's zxid, and where it ends.
    ends: Vec<(Zxid, usize)>,
}

impl RecordChunk {
    fn extend(&mut self, records: LiveRecords<'_>) {
        for (zxid, record) in records {
            self.bytes.extend_from_slice(record);
            self.ends.push((zxid, self.bytes.len()));
        }
    }

    fn replay(&self, replay: &mut Replay) -> anyhow::Result<()> {
        let mut start = 0;
        for &(zxid, end) in &self.ends {
            let record = self.bytes.get(start..end).unwrap_or_default();
            replay
                .record(zxid, record)
                .with_context(|| format!("the record of {zxid} is not what was logged"))?;
            start = end;
        }
        Ok(())
    }
}
