//! The configuration as the running server uses it.

use ringkeeper_config::{AuthConfig, Config};
use ringkeeper_tree::acl::DigestAlgorithm;
use ringkeeper_tree::settings as tree;

/// The shortest election that makes a server read-only, in milliseconds.
const READ_ONLY_AFTER_MS_MIN: u32 = 2000;

/// The configuration, with what the tree needs of it in the tree's own form.
#[derive(Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// What the tree needs of it.
    pub tree: tree::Settings,
    /// Bounds of a session's time-out, in milliseconds.
    pub session_timeout_ms_min: i32,
    /// The other bound.
    pub session_timeout_ms_max: i32,
    /// `myid`; 0 without one.
    pub server_id: u8,
}

impl Settings {
    /// The settings of `config`.
    pub fn new(config: Config) -> Self {
        let ensemble = &config.ensemble;
        let AuthConfig {
            digest,
            digest_algorithm,
            super_digest,
        } = config.auth.clone();
        let tree = tree::Settings {
            skip_acl: ensemble.skip_acl,
            enforce_quota: ensemble.enforce_quota,
            extended_types: ensemble.extended_types,
            reconfig_enabled: ensemble.reconfig,
            close_session_txn: ensemble.close_session_txn,
            digest_enabled: digest,
            digest_algorithm: DigestAlgorithm::from_name(digest_algorithm.name())
                .unwrap_or_default(),
            super_digest,
            txn_len_max: (ensemble.frame_bytes_max + ensemble.frame_bytes_extra) as usize,
        };
        let server_id = u8::try_from(config.files.my_id.unwrap_or(0)).unwrap_or(0);
        let timeout_ms = |value| i32::try_from(value).unwrap_or(i32::MAX);
        Self {
            session_timeout_ms_min: timeout_ms(config.ensemble.session_timeout_ms_min),
            session_timeout_ms_max: timeout_ms(config.ensemble.session_timeout_ms_max),
            config,
            tree,
            server_id,
        }
    }

    /// Whether a new session is known to this server only (`localSessionsEnabled`; standalone servers have none).
    pub fn local_sessions(&self) -> bool {
        let peers = self.config.peers.as_ref();
        peers.is_some_and(|peers| peers.local_sessions)
    }

    /// Whether one that needs more becomes known to all (`localSessionsUpgradingEnabled`).
    pub fn upgrades_local_sessions(&self) -> bool {
        let peers = self.config.peers.as_ref();
        peers.is_some_and(|peers| peers.local_sessions_upgrading)
    }

    /// How long an election lasts before reads are served without a leader, in milliseconds; `None`: never.
    pub fn read_only_after_ms(&self) -> Option<u64> {
        let peers = self.config.peers.as_ref()?;
        // ZK: QuorumPeer.run, LOOKING.
        let after_ms = self.config.ensemble.tick_ms.max(READ_ONLY_AFTER_MS_MIN);
        peers.read_only_mode.then_some(after_ms.into())
    }

    /// The longest frame that is taken, in bytes.
    pub fn frame_bytes_max(&self) -> usize {
        self.config.ensemble.frame_bytes_max as usize
    }
}
