//! What a member of an ensemble is made of: Zab's configuration and the links, from the server lines.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use ringkeeper_config::PeersConfig;
use ringkeeper_member::{Loaded, Settings, reconfiguration, zab_of_member};
use ringkeeper_peers::{BoundPeers, PeerSettings};
use ringkeeper_proto::ServerId;
use ringkeeper_storage::Recovered;
use ringkeeper_zab::Replica;

use crate::fatal::Reason;
use crate::oracle::Oracle;
use crate::peer_loop::TICK_MS;

/// Bytes of a packet beside its transaction or request.
const PACKET_BYTES_BESIDE: usize = 64 * 1024;

/// What always fits on the way to an observer, beside one packet: a part of the history, and a link that is full.
const OBSERVER_QUEUE_BYTES_MIN: usize = 4 << 20;

/// Binds the ports for peers.
///
/// # Errors
/// When a port cannot be had, or a name is not known.
pub(crate) fn bind(settings: &Settings, config: &PeersConfig) -> anyhow::Result<BoundPeers> {
    let tick = Duration::from_millis(settings.config.ensemble.tick_ms.into());
    let members = reconfiguration::peers(&config.membership);
    let text = config.membership.text();
    let packet_bytes_max = settings.tree.txn_len_max + PACKET_BYTES_BESIDE;
    let observer_queue_bytes_min = OBSERVER_QUEUE_BYTES_MIN + packet_bytes_max;
    let peers = PeerSettings {
        listen_on_all: config.listen_on_all,
        tell_all_addresses: config.several_addresses,
        observer_master_port: config.observer_master_port,
        unanswered_max: Duration::from_millis(config.unanswered_ms.into()),
        connect_patience: Duration::from_millis(config.connect_timeout_ms.into()),
        leader_patience: tick * config.connect_limit,
        silence_max: tick * config.init_limit,
        packet_bytes_max,
        observer_queue_bytes_max: observer_queue_bytes_min
            .max(config.observer_queue_bytes as usize),
        ..PeerSettings::new(ServerId(config.id), members, text.into())
    };
    BoundPeers::bind(peers)
        .context("listen for the other members")
        .context(Reason::Address)
}

/// The oracle, if there is one. It is asked twice a tick, as a leader of Apache's does.
///
/// # Errors
/// When there is no thread to ask it.
pub(crate) fn oracle(settings: &Settings, config: &PeersConfig) -> anyhow::Result<Option<Oracle>> {
    let tick = Duration::from_millis(settings.config.ensemble.tick_ms.into());
    let path = config.oracle_path.clone();
    path.map(|path| Oracle::ask(path, tick / 2)).transpose()
}

/// Zab, as a member that has recovered `data`. With `initialize` the operator says that nothing was lost,
/// though nothing is there.
///
/// # Errors
/// When the server lines are no ensemble.
pub(crate) fn zab(
    settings: &Settings,
    config: &PeersConfig,
    recovered: &Recovered,
    data: &Loaded,
    initialize: bool,
) -> anyhow::Result<Replica<Bytes>> {
    zab_of_member(settings, config, recovered, data, initialize, TICK_MS)
        .context(Reason::Configuration)
}
