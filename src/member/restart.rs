//! What a member of an ensemble is after a start: Zab, as what storage found says, and the tree below it.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringkeeper_config::{Membership, PeersConfig};
use ringkeeper_proto::{ServerId, Zxid};
use ringkeeper_storage::Recovered;
use ringkeeper_tree::Tree;
use ringkeeper_zab::{Config, Ensemble, EnsembleError, Epochs, History, Replica, Timing, Weights};

use crate::settings::Settings;

/// What was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The state at the last transaction that is known to be committed.
    pub tree: Tree,
    /// The zxid of the snapshot that it began with.
    pub base: Zxid,
    /// The zxids that the log has above it, applied or not.
    pub zxids: Vec<Zxid>,
    /// What is in the log and perhaps not committed.
    pub tail: Vec<(Zxid, Bytes)>,
}

/// Zab, as a member that has recovered `data`; one of its ticks lasts `core_tick_ms`. With `initialize` the
/// operator says that nothing was lost, though nothing is there.
///
/// # Errors
/// When the server lines are no ensemble.
pub fn zab_of_member(
    settings: &Settings,
    config: &PeersConfig,
    recovered: &Recovered,
    data: &Loaded,
    initialize: bool,
    core_tick_ms: u64,
) -> Result<Replica<Bytes>, EnsembleError> {
    let ensemble = ensemble(&config.membership)?;
    let timing = Timing::new(
        settings.config.ensemble.tick_ms.into(),
        config.init_limit.into(),
        config.sync_limit.into(),
        core_tick_ms,
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

fn ensemble(membership: &Membership) -> Result<Ensemble, EnsembleError> {
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
