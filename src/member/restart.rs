//! What a member of an ensemble is after a start: Zab, as what storage found says, and the tree below it.

use bytes::Bytes;
use ringkeeper_config::{LoggedSince, Membership, PeersConfig};
use ringkeeper_proto::{ServerId, Zxid};
use ringkeeper_storage::Recovered;
use ringkeeper_tree::Tree;
use ringkeeper_zab::{Config, EnsembleError, Epochs, History, Replica, Timing};

use crate::reconfiguration::ensemble;
use crate::settings::Settings;

/// What was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The state at the last transaction that is known to be committed.
    pub tree: Tree,
    /// The zxid of the snapshot that it began with.
    pub base: Zxid,
    /// What the log has above it.
    pub logged: LoggedSince,
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
    let mut ensemble = ensemble(&membership(settings, config, &data.tree))?;
    if config.oracle_path.is_some() {
        ensemble = ensemble.with_oracle();
    }
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
            doubted: recovered.doubted_through,
        },
        committed: recovered.committed.max(data.base),
        history,
        damaged: recovered.holdings.damage.is_some(),
        initialize: was_alone || initialize,
    };
    let serves_observers = config.observer_master_port.is_some();
    let mut config = Config::member(ServerId(config.id), ensemble, timing);
    config.serves_observers = serves_observers;
    if settings.config.files.test_counter_max > 0 {
        config.counter_max = settings.config.files.test_counter_max;
    }
    Ok(Replica::new(config, recovered))
}

/// The membership that counts: that of the file, unless a reconfiguration that is in the tree came after it.
fn membership(settings: &Settings, config: &PeersConfig, tree: &Tree) -> Membership {
    let of_file = config.membership.clone();
    let of_tree = tree.config().and_then(|text| Membership::parse(text).ok());
    match of_tree {
        Some(of_tree) if settings.tree.reconfig_enabled && of_tree.version > of_file.version => {
            of_tree
        }
        _ => of_file,
    }
}
