//! What the server says of itself: each shard's part, the core's part, and the whole of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

pub(crate) use ringkeeper_member::{CoreReport, Metric};
use ringkeeper_proto::SessionId;
use ringkeeper_transport::mailbox;
use ringkeeper_tree::Tree;

use crate::client::{Client, ClientStats, Stage};
use crate::link::Links;
use crate::messages::{CoreMessage, ShardMessage};
use crate::stats::ShardStats;

/// What a shard says.
#[derive(Debug)]
pub(crate) struct ShardReport {
    pub(crate) stats: ShardStats,
    pub(crate) tree: Tree,
    pub(crate) connections: Vec<ConnectionReport>,
    /// Per watched path the sessions that watch it (data watches, as Apache lists them).
    pub(crate) watches: Vec<(String, Vec<SessionId>)>,
    /// All watches, of every kind.
    pub(crate) watch_count: usize,
}

/// What a shard says of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionReport {
    pub(crate) peer: SocketAddr,
    pub(crate) session: SessionId,
    pub(crate) timeout_ms: i32,
    pub(crate) queued: usize,
    pub(crate) reading: bool,
    pub(crate) stats: ClientStats,
}

impl ConnectionReport {
    /// What there is to say of `client`.
    pub(crate) fn of(client: &Client) -> Self {
        Self {
            peer: client.peer,
            session: client.session,
            timeout_ms: client.timeout_ms,
            queued: client.outstanding(),
            reading: client.paused.is_none() && client.stage != Stage::Closing,
            stats: client.stats.clone(),
        }
    }
}

/// Everything that is asked of the shards and the core for one answer.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) shards: Vec<ShardReport>,
    pub(crate) core: CoreReport,
}

/// Which parts of a report are wanted; the rest is left empty.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) connections: bool,
    pub(crate) watches: bool,
    pub(crate) sessions: bool,
}

impl Report {
    /// Asks every shard and the core.
    pub(crate) async fn collect(links: &Links, wanted: Wanted) -> Self {
        let (to, mut from_shards) = mailbox::bounded(links.shards.len());
        for shard in &links.shards {
            // A mailbox is closed only when the server is stopping; then its part is missing.
            _ = shard
                .send_wait(ShardMessage::Report {
                    wanted,
                    to: to.clone(),
                })
                .await;
        }
        drop(to);
        let (to, mut from_core) = mailbox::bounded(1);
        _ = links
            .core
            .send_wait(CoreMessage::Report { wanted, to })
            .await;
        let mut shards = Vec::new();
        while let Some(report) = from_shards.recv().await {
            shards.push(report);
        }
        Self {
            shards,
            core: from_core.recv().await.unwrap_or_default(),
        }
    }

    /// The newest state that a shard shows.
    pub(crate) fn tree(&self) -> Option<&Tree> {
        self.shards
            .iter()
            .map(|shard| &shard.tree)
            .max_by_key(|tree| tree.zxid())
    }

    /// The statistics of all shards together.
    pub(crate) fn stats(&self) -> ShardStats {
        let mut all = ShardStats::new();
        self.shards.iter().for_each(|shard| all.merge(&shard.stats));
        all
    }

    /// Every connection.
    pub(crate) fn connections(&self) -> impl Iterator<Item = &ConnectionReport> {
        self.shards.iter().flat_map(|shard| &shard.connections)
    }

    /// The watching sessions by path.
    pub(crate) fn watches_by_path(&self) -> BTreeMap<&str, BTreeSet<SessionId>> {
        let mut by_path = BTreeMap::<_, BTreeSet<_>>::new();
        for (path, sessions) in self.shards.iter().flat_map(|shard| &shard.watches) {
            by_path.entry(path.as_str()).or_default().extend(sessions);
        }
        by_path
    }

    /// The watched paths by session.
    pub(crate) fn watches_by_session(&self) -> BTreeMap<SessionId, BTreeSet<&str>> {
        let mut by_session = BTreeMap::<_, BTreeSet<_>>::new();
        for (path, sessions) in self.shards.iter().flat_map(|shard| &shard.watches) {
            for session in sessions {
                by_session
                    .entry(*session)
                    .or_default()
                    .insert(path.as_str());
            }
        }
        by_session
    }
}
