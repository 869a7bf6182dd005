//! What an operator can choose about requests: access, quotas, sizes.

use crate::acl::DigestAlgorithm;

/// The settings that decide about requests. They are read, never changed, while requests run; all
/// servers of an ensemble must have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `skipACL`: nobody's permissions are checked.
    pub skip_acl: bool,
    /// `enforceQuota`: quotas are checked when a request is prepared; hard ones refuse it.
    pub enforce_quota: bool,
    /// `extendedTypesEnabled`: there are TTL znodes.
    pub extended_types: bool,
    /// `reconfigEnabled`.
    pub reconfig_enabled: bool,
    /// `closeSessionTxn.enabled`: the transaction that closes a session lists its ephemerals.
    pub close_session_txn: bool,
    /// `DigestAuthenticationProvider.enabled`.
    pub digest_enabled: bool,
    /// `DigestAuthenticationProvider.digestAlg`.
    pub digest_algorithm: DigestAlgorithm,
    /// `DigestAuthenticationProvider.superDigest`: who proves to be this `user:digest` may do
    /// everything.
    pub super_digest: Option<String>,
    /// The most bytes of a transaction's record (header, body, digest) that every log reader and
    /// every peer takes: `jute.maxbuffer` plus `jute.maxbuffer.extrasize`. A request whose
    /// transaction would be longer is refused.
    pub txn_len_max: usize,
}

impl Settings {
    /// `jute.maxbuffer` of a server that says nothing about it.
    pub const JUTE_MAX_BUFFER: usize = 0xf_ffff;
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            skip_acl: false,
            enforce_quota: false,
            extended_types: false,
            reconfig_enabled: false,
            close_session_txn: true,
            digest_enabled: true,
            digest_algorithm: DigestAlgorithm::Sha1,
            super_digest: None,
            txn_len_max: 2 * Self::JUTE_MAX_BUFFER,
        }
    }
}
