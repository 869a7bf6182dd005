//! What a member of an ensemble is made of: Zab's configuration and the links, from the server lines.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use ringkeeper_config::{Membership, PeersConfig};
use ringkeeper_member::Settings;
use ringkeeper_peers::{BoundPeers, Member, MemberAddress, PeerSettings};
use ringkeeper_proto::{ServerId, Zxid};
use ringkeeper_storage::Recovered;
use ringkeeper_zab::{Config, Ensemble, Epochs, History, Replica, Timing, Weights};

use crate::fatal::Reason;
use crate::peer_loop::TICK_MS;
use crate::recovery::Loaded;

/// Bytes of a packet beside its transaction or request.
const PACKET_BYTES_BESIDE: usize = 64 * 1024;

/// Binds the ports for peers.
///
/// # Errors
/// When a port cannot be had, or a name is not known.
pub(crate) fn bind(settings: &Settings, config: &PeersConfig) -> anyhow::Result<BoundPeers> {
    let tick = Duration::from_millis(settings.config.ensemble.tick_ms.into());
    let members = config.membership.members.iter().map(|(id, member)| {
        let addresses = member.addresses.iter().map(|address| MemberAddress {
            host: address.host.clone(),
            quorum_port: address.quorum_port,
            election_port: address.election_port,
        });
        let member = Member {
            votes: member.votes,
            addresses: addresses.collect(),
        };
        (ServerId(*id), member)
    });
    let text = config.membership.text();
    let peers = PeerSettings {
        listen_on_all: config.listen_on_all,
        tell_all_addresses: config.several_addresses,
        connect_patience: Duration::from_millis(config.connect_timeout_ms.into()),
        leader_patience: tick * config.connect_limit,
        silence_max: tick * config.init_limit,
        packet_bytes_max: settings.tree.txn_len_max + PACKET_BYTES_BESIDE,
        ..PeerSettings::new(ServerId(config.id), members.collect(), text.into())
    };
    BoundPeers::bind(peers)
        .context("listen for the other members")
        .context(Reason::Address)
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
    let ensemble = ensemble(&config.membership).context(Reason::Configuration)?;
    let timing = Timing::new(
        settings.config.ensemble.tick_ms.into(),
        config.init_limit.into(),
        config.sync_limit.into(),
        TICK_MS,
    );
    let mut history = History::starting_at(data.base);
    data.zxids.iter().for_each(|zxid| history.recover(*zxid));
    // The log of a server that was alone before is what the ensemble begins with.
    let was_alone = !recovered.is_member && history.last() > Zxid::ZERO;
    let recovered = ringkeeper_zab::Recovered {
        epochs: Epochs {
            accepted: recovered.accepted_epoch,
            current: recovered.current_epoch,
            member: recovered.is_member,
        },
        committed: recovered.committed.max(data.base),
        history,
        initialize: was_alone || initialize,
    };
    let config = Config::member(ServerId(config.id), ensemble, timing);
    Ok(Replica::new(config, recovered))
}

fn ensemble(membership: &Membership) -> anyhow::Result<Ensemble> {
    let ids = |votes| {
        let members = membership.members.iter();
        members
            .filter(move |(_, member)| member.votes == votes)
            .map(|(id, _)| ServerId(*id))
    };
    let ensemble = match &membership.group_of {
        None => Ensemble::majority(ids(true), ids(false)),
        Some(group_of) => {
            let by_server = |map: &BTreeMap<u64, u64>| {
                let entries = map.iter();
                entries.map(|(id, value)| (ServerId(*id), *value)).collect()
            };
            let weights = Weights {
                group_of: by_server(group_of),
                weight_of: by_server(&membership.weight_of),
            };
            Ensemble::hierarchical(ids(true), ids(false), weights)
        }
    };
    Ok(ensemble?.described(membership.version, membership.text()))
}
