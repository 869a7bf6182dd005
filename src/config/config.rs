//! Settings as meant: what the server reads, with units in the names and bounds already checked.
//!
//! Every value was validated by [`crate::Loaded::new`]; `Config` itself never fails. Settings that all members of an
//! ensemble must share stand apart in [`EnsembleConfig`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::peers::PeersConfig;

/// The whole configuration of one server.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What every member of an ensemble must agree on.
    pub ensemble: EnsembleConfig,
    /// The ensemble that this server is a member of; `None` for a standalone server.
    pub peers: Option<PeersConfig>,
    /// Where data lies, and whether it may be created.
    pub files: FilesConfig,
    /// The client port and its connections.
    pub clients: ClientsConfig,
    /// What is refused or delayed under load.
    pub throttle: ThrottleConfig,
    /// The token bucket for new connections.
    pub connection_throttle: ConnectionThrottleConfig,
    /// The transaction log.
    pub log: LogConfig,
    /// Snapshots and what is purged after them.
    pub snapshots: SnapshotConfig,
    /// Authentication schemes.
    pub auth: AuthConfig,
    /// The deletion of empty containers and of expired TTL nodes.
    pub containers: ContainersConfig,
    /// When a leader gives up leadership by itself.
    pub limping: LimpingConfig,
    /// Which four-letter words are answered.
    pub words: FourLetterWords,
    /// Which cores do what.
    pub placement: PlacementConfig,
    /// How long an orderly stop may take.
    pub shutdown: ShutdownConfig,
}

/// Settings that decide how a request is validated or a txn applied, or how long a session lives: members of one ensemble
/// that differ in them would answer the same request differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsembleConfig {
    /// `tickTime`: the unit of time in milliseconds, 1 to 107,374,182; session timeouts default to multiples of it.
    pub tick_ms: u32,
    /// `minSessionTimeout` in milliseconds, at most `session_timeout_ms_max`; what a client asks for is raised to it.
    pub session_timeout_ms_min: u32,
    /// `maxSessionTimeout` in milliseconds; what a client asks for is lowered to it.
    pub session_timeout_ms_max: u32,
    /// `jute.maxbuffer`: largest request frame in bytes; a longer one closes the connection.
    pub frame_bytes_max: u32,
    /// `jute.maxbuffer.extrasize`: bytes that a stored record may have beyond `frame_bytes_max`.
    pub frame_bytes_extra: u32,
    /// `extendedTypesEnabled`: TTL nodes may be created.
    pub extended_types: bool,
    /// `enforceQuota`: a write above a hard quota is refused with -125.
    pub enforce_quota: bool,
    /// `skipACL`: no ACL is checked.
    pub skip_acl: bool,
    /// `digest.enabled`: the digest of the tree is kept, and written with each txn.
    pub tree_digest: bool,
    /// `closeSessionTxn.enabled`: a closeSession txn lists the ephemeral nodes it deletes.
    pub close_session_txn: bool,
    /// `reconfigEnabled`: the membership may be changed by a client.
    pub reconfig: bool,
    /// `standaloneEnabled`: a server that is alone runs without an ensemble, so one is never reduced to less than two voters.
    pub standalone: bool,
}

/// Where data lies. The server's own files stand in `ringkeeper` below each directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// The configuration file, if there is one: a reconfiguration is written down beside it.
    pub config_file: Option<PathBuf>,
    /// `dataDir`: snapshots, and the file `myid`.
    pub data_dir: PathBuf,
    /// `dataLogDir`: the transaction log; `data_dir` unless set.
    pub log_dir: PathBuf,
    /// `datadir.autocreate`: missing directories are created; otherwise they are a reason not to start.
    pub create_directories: bool,
    /// `db.autocreate`: a server without data starts with an empty tree. Otherwise it refuses, unless a file `initialize`
    /// in `data_dir` says that it is meant: an empty directory may be a disk that was not mounted.
    pub create_database: bool,
    /// What the file `myid` says, if there is one; a standalone server needs none.
    pub my_id: Option<i64>,
    /// `ringkeeper.test.diskDelayMs`: what every durable write takes longer, to test with a slow disk.
    pub test_delay_ms: u64,
    /// `ringkeeper.test.counterMax`: the last counter of an epoch; 0 for Apache's.
    pub test_counter_max: u32,
}

/// The client port and its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsConfig {
    /// `clientPortAddress` and `clientPort`.
    pub address: ClientAddress,
    /// `clientPortListenBacklog` as set; -1 when unset, as the word `conf` prints it. See [`ClientsConfig::backlog`].
    pub listen_backlog: i32,
    /// `maxClientCnxns`: connections per client address; `None` for any number.
    pub per_address_max: Option<u32>,
    /// `maxCnxns`: connections in all; `None` for any number.
    pub total_max: Option<u32>,
    /// `clientTcpKeepAlive`: `SO_KEEPALIVE` on accepted sockets.
    pub tcp_keep_alive: bool,
    /// `nio.sessionlessCnxnTimeout` in milliseconds: a connection without a session by then is closed.
    pub sessionless_timeout_ms: u32,
}

impl ClientsConfig {
    /// Length of the accept queue to ask the kernel for. Unset means 4,096 and not Apache's 50, because a queue that
    /// overflows resets the clients that return together after a restart.
    #[must_use]
    pub fn backlog(&self) -> u32 {
        u32::try_from(self.listen_backlog)
            .ok()
            .filter(|&backlog| backlog > 0)
            .unwrap_or(4096)
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// Interface.
    pub host: Host,
    /// TCP port; 0 lets the kernel choose.
    pub port: u16,
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => write!(f, "0.0.0.0:{}", self.port),
            Host::Ip(ip @ IpAddr::V4(_)) => write!(f, "{ip}:{}", self.port),
            Host::Ip(ip @ IpAddr::V6(_)) => write!(f, "[{ip}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// An interface to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Every interface, IPv6 and IPv4 on one socket where the system has both, as Java does for `0.0.0.0` and `::`.
    Any,
    /// One address.
    Ip(IpAddr),
    /// A name to be resolved at start.
    Name(String),
}

impl Host {
    /// Reads an address as `InetAddress.getByName` does: empty is loopback, a literal with or without brackets.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => Self::Any,
            Ok(ip) => Self::Ip(ip),
            Err(_) if text.is_empty() => Self::Ip(IpAddr::from([127, 0, 0, 1])),
            Err(_) => Self::Name(text.to_owned()),
        }
    }
}

/// What is refused or delayed under load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleConfig {
    /// `globalOutstandingLimit`: requests in the server above which connections with requests outstanding are not read.
    pub outstanding_max: u32,
    /// `request_throttle_max_requests`: requests in the pipeline above which connections are not read;
    /// `None` for no such limit.
    pub requests_max: Option<u32>,
    /// `throttled_op_wait_time` in milliseconds: a request that queued longer answers -127; `None` for never.
    pub op_wait_ms_max: Option<u32>,
    /// `largeRequestThreshold`: frames longer than this many bytes count as large; `None` for none.
    pub large_request_bytes_min: Option<u32>,
    /// `largeRequestMaxBytes`: bytes of large requests in flight above which another closes its connection.
    pub large_requests_bytes_max: u32,
}

/// The token bucket and the probabilistic drop for new connections (`BlueThrottle`).
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionThrottleConfig {
    /// `connection_throttle_tokens`: size of the bucket, not yet multiplied by a weight; `None` turns the throttle off.
    pub tokens: Option<u32>,
    /// `connection_throttle_fill_time` in milliseconds between refills.
    pub fill_ms: u32,
    /// `connection_throttle_fill_count`: tokens per refill, not yet multiplied by a weight.
    pub fill_count: u32,
    /// `connection_throttle_freeze_time` in milliseconds between changes of the drop probability; `None` for no dropping.
    pub freeze_ms: Option<u32>,
    /// `connection_throttle_drop_increase`: added to the drop probability, 0 to 1.
    pub drop_increase: f64,
    /// `connection_throttle_drop_decrease`: taken from the drop probability, 0 to 1.
    pub drop_decrease: f64,
    /// `connection_throttle_decrease_ratio`: share of used tokens below which the probability falls, 0 to 1.
    pub decrease_ratio: f64,
    /// `connection_throttle_weight_enabled`: connections cost tokens by the weights below; otherwise one each.
    pub weighted: bool,
    /// `connection_throttle_global_session_weight`, not below `local_weight`.
    pub global_weight: u32,
    /// `connection_throttle_renew_session_weight`, not below `local_weight`.
    pub renew_weight: u32,
    /// `connection_throttle_local_session_weight`.
    pub local_weight: u32,
}

/// The transaction log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `preAllocSize` and `txnLogSizeLimitInKb`: bytes of a log segment, a multiple of 1 MiB between
    /// [`LogConfig::SEGMENT_BYTES_MIN`] and [`LogConfig::SEGMENT_BYTES_MAX`], never smaller than eight of the largest
    /// requests.
    pub segment_bytes: u64,
    /// `fsync.warningthresholdms`: a durable write that takes longer is logged.
    pub slow_write_ms: u64,
}

impl LogConfig {
    /// Smallest segment.
    pub const SEGMENT_BYTES_MIN: u64 = 8 << 20;
    /// Largest segment.
    pub const SEGMENT_BYTES_MAX: u64 = 4 << 30;
}

/// When a snapshot is taken, and what is purged after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// `snapCount`: no snapshot before that many txns since the last one; at least 2.
    pub txns_min: u64,
    /// `ringkeeper.snapshotLogSizeInKb` in bytes: no snapshot before that many log bytes since the last one.
    pub log_bytes_min: u64,
    /// `snapSizeLimitInKb` in bytes: log bytes that make a snapshot due whatever the size of the last one and the number of
    /// txns; `None` for no such limit.
    pub log_bytes_max: Option<u64>,
    /// `ringkeeper.snapshotKbPerSecond` in bytes: what writing a snapshot may take of the disk at most while
    /// the log is written; `None` for all of it.
    pub bytes_per_second_max: Option<u64>,
    /// `ringkeeper.snapshotCompression`: whether snapshots are compressed.
    pub is_compressed: bool,
    /// `autopurge.snapRetainCount`: verified snapshots that are kept, with the log from the oldest of them on; at least 3.
    pub retain_count: u32,
    /// `autopurge.purgeInterval` in milliseconds between purges (one also follows each snapshot); `None` keeps everything.
    pub purge_interval_ms: Option<u64>,
}

/// What was logged since the last snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedSince {
    /// Number of txns.
    pub txns: u64,
    /// Bytes of their log records.
    pub log_bytes: u64,
}

impl LoggedSince {
    /// One more txn, whose record has `len` bytes.
    pub const fn add(&mut self, len: usize) {
        self.txns += 1;
        self.log_bytes += len as u64;
    }
}

impl SnapshotConfig {
    /// Says whether a snapshot is due. Log bytes decide and not the count of txns, so that the log to be replayed at a
    /// start and the data that was written twice stay in proportion to the tree: a snapshot waits for as many log bytes as
    /// the last one had.
    #[must_use]
    pub fn is_due(&self, since: LoggedSince, last_snapshot_bytes: u64) -> bool {
        if self.log_bytes_max.is_some_and(|max| since.log_bytes >= max) {
            return true;
        }
        since.txns >= self.txns_min
            && since.log_bytes >= self.log_bytes_min.max(last_snapshot_bytes)
    }
}

/// Authentication schemes. `world` and `ip` are always there.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// `DigestAuthenticationProvider.enabled`: the scheme `digest` is there.
    pub digest: bool,
    /// `DigestAuthenticationProvider.digestAlg`: the hash of that scheme, in ACLs and of the super user.
    pub digest_algorithm: DigestAlgorithm,
    /// `DigestAuthenticationProvider.superDigest`: the `user:hash` that no ACL binds; `None` for nobody.
    pub super_digest: Option<String>,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The hash is as good as the password to whoever can guess offline, so it stays out of logs.
        let super_digest = self.super_digest.as_ref().map(|_| "set");
        f.debug_struct("AuthConfig")
            .field("digest", &self.digest)
            .field("digest_algorithm", &self.digest_algorithm)
            .field("super_digest", &super_digest)
            .finish()
    }
}

/// The hashes that the scheme `digest` can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// SHA-1, the default.
    #[default]
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl DigestAlgorithm {
    /// The algorithm of a name that Java's `MessageDigest` knows; `None` for the others, and for those that are not there.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_uppercase().as_str() {
            "SHA" | "SHA1" | "SHA-1" => Some(Self::Sha1),
            "SHA-224" | "SHA224" => Some(Self::Sha224),
            "SHA-256" | "SHA256" => Some(Self::Sha256),
            "SHA-384" | "SHA384" => Some(Self::Sha384),
            "SHA-512" | "SHA512" => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Its name in Java.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha224 => "SHA-224",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        }
    }
}

/// When a leader limps, and hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimpingConfig {
    /// `ringkeeper.limping.diskMs`: a durable write that takes so long is bad, if the others are several times as fast; 0:
    /// none is.
    pub disk_ms: u64,
    /// `ringkeeper.limping.networkMs`: a quorum's answers to a PING that take so long are bad; 0: none are.
    pub network_ms: u64,
    /// `ringkeeper.limping.sustainedMs`: how long most must be bad.
    pub sustained_ms: u64,
    /// `ringkeeper.limping.pauseMs`: a reign is left alone for so long, and so is a leader that nobody could succeed; the
    /// latter for ever longer.
    pub pause_ms: u64,
}

/// The deletion of empty containers and of expired TTL nodes (`ContainerManager`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainersConfig {
    /// `znode.container.checkIntervalMs`: milliseconds between checks.
    pub check_interval_ms: u32,
    /// `znode.container.maxPerMinute`: deletions per minute at most.
    pub per_minute_max: u32,
    /// `znode.container.maxNeverUsedIntervalMs`: a container that never had a child is deleted after so long; `None` for never.
    pub never_used_ms_max: Option<u64>,
}

/// Which four-letter words are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FourLetterWords {
    allowed: BTreeSet<String>,
}

impl FourLetterWords {
    /// Every word that Apache 3.9 knows, in its order.
    pub const KNOWN: [&'static str; 19] = [
        "conf",
        "cons",
        "crst",
        "dirs",
        "dump",
        "envi",
        "gtmk",
        "ruok",
        "stmk",
        "srst",
        "srvr",
        "stat",
        "wchc",
        "wchp",
        "wchs",
        "mntr",
        "isro",
        "telnet close",
        "hash",
    ];

    /// Reads a whitelist as `FourLetterCommands.isEnabled` does; returns the words in it that nobody knows as well.
    #[must_use]
    pub fn parse(list: &str) -> (Self, Vec<String>) {
        let mut words = Self::default();
        let mut unknown = Vec::new();
        for word in list
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            if word == "*" {
                words.allowed.extend(Self::KNOWN.map(str::to_owned));
                break;
            }
            if Self::KNOWN.contains(&word) {
                words.allow(word);
            } else {
                unknown.push(word.to_owned());
            }
        }
        (words, unknown)
    }

    /// Adds a word.
    pub fn allow(&mut self, word: &str) {
        self.allowed.insert(word.to_owned());
    }

    /// Says whether a word is answered.
    #[must_use]
    pub fn is_allowed(&self, word: &str) -> bool {
        self.allowed.contains(word)
    }
}

impl Default for FourLetterWords {
    /// `srvr` alone, which Apache's scripts depend on.
    fn default() -> Self {
        Self {
            allowed: BTreeSet::from(["srvr".to_owned()]),
        }
    }
}

/// Which cores do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementConfig {
    /// `ringkeeper.cpus`: the cores to use.
    pub cpus: Cpus,
    /// `ringkeeper.shards`: number of shard executors, 1 to [`PlacementConfig::SHARDS_MAX`]; `None` chooses by the cores.
    pub shards: Option<u32>,
    /// `ringkeeper.clientsBesideCore`: so many connections are served on the replica core's own executor before
    /// any is on another; 0 spreads them from the first.
    pub clients_beside_core: u32,
}

impl PlacementConfig {
    /// More shards than this are refused.
    pub const SHARDS_MAX: u32 = 256;
}

/// The cores to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// Those that the process may use, shared out among the members of the ensemble on this machine.
    Auto,
    /// Executors are not pinned.
    Unpinned,
    /// These, in this order, each named once; the first is the replica core's. Never empty.
    List(Vec<u32>),
}

impl Cpus {
    /// Reads `auto`, `none` or a list such as `0,2-5`; the error is what is wrong.
    ///
    /// # Errors
    /// When a part is neither a number nor a range, a core is named twice, or above 4,095.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::Unpinned),
            _ => {}
        }
        let mut list = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |digits: &str| match digits.trim().parse::<u32>() {
                Ok(cpu @ 0..4096) => Ok(cpu),
                _ => Err(format!("\"{part}\" is not a core number or range")),
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range \"{part}\" is empty"));
            }
            for cpu in first..=last {
                if list.contains(&cpu) {
                    return Err(format!("core {cpu} is named twice"));
                }
                list.push(cpu);
            }
        }
        Ok(Self::List(list))
    }
}

/// How long an orderly stop may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// `request_throttler.shutdownTimeout` in milliseconds: how long requests already taken may still be answered.
    pub drain_ms_max: u32,
}

impl Config {
    /// What holds when a file sets nothing but `dataDir` and `clientPort`: Apache 3.9's defaults, except that purge is on.
    pub(crate) fn apache_defaults() -> Self {
        Self {
            ensemble: EnsembleConfig::default(),
            peers: None,
            files: FilesConfig {
                config_file: None,
                data_dir: PathBuf::new(),
                log_dir: PathBuf::new(),
                create_directories: true,
                create_database: true,
                my_id: None,
                test_delay_ms: 0,
                test_counter_max: 0,
            },
            clients: ClientsConfig {
                address: ClientAddress {
                    host: Host::Any,
                    port: 0,
                },
                listen_backlog: -1,
                per_address_max: Some(60),
                total_max: None,
                tcp_keep_alive: false,
                sessionless_timeout_ms: 10_000,
            },
            throttle: ThrottleConfig::default(),
            connection_throttle: ConnectionThrottleConfig::default(),
            log: LogConfig {
                segment_bytes: 64 << 20,
                slow_write_ms: 1000,
            },
            snapshots: SnapshotConfig::default(),
            auth: AuthConfig {
                digest: true,
                digest_algorithm: DigestAlgorithm::default(),
                super_digest: None,
            },
            limping: LimpingConfig {
                disk_ms: 200,
                network_ms: 500,
                sustained_ms: 5_000,
                pause_ms: 60_000,
            },
            containers: ContainersConfig {
                check_interval_ms: 60_000,
                per_minute_max: 10_000,
                never_used_ms_max: None,
            },
            words: FourLetterWords::default(),
            placement: PlacementConfig {
                cpus: Cpus::Auto,
                shards: None,
                clients_beside_core: 8,
            },
            shutdown: ShutdownConfig {
                drain_ms_max: 10_000,
            },
        }
    }
}

impl Default for EnsembleConfig {
    fn default() -> Self {
        Self {
            tick_ms: 3000,
            session_timeout_ms_min: 6000,
            session_timeout_ms_max: 60_000,
            frame_bytes_max: 0xf_ffff,
            frame_bytes_extra: 0xf_ffff,
            extended_types: false,
            enforce_quota: false,
            skip_acl: false,
            tree_digest: true,
            close_session_txn: true,
            reconfig: false,
            standalone: true,
        }
    }
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self {
            outstanding_max: 1000,
            requests_max: None,
            op_wait_ms_max: None,
            large_request_bytes_min: None,
            large_requests_bytes_max: 100 << 20,
        }
    }
}

impl Default for ConnectionThrottleConfig {
    fn default() -> Self {
        Self {
            tokens: None,
            fill_ms: 1,
            fill_count: 1,
            freeze_ms: None,
            drop_increase: 0.02,
            drop_decrease: 0.002,
            decrease_ratio: 0.0,
            weighted: false,
            global_weight: 3,
            renew_weight: 2,
            local_weight: 1,
        }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self {
            txns_min: 100_000,
            log_bytes_min: 32 << 20,
            log_bytes_max: Some(4 << 30),
            bytes_per_second_max: Some(32 << 20),
            is_compressed: false,
            retain_count: 3,
            purge_interval_ms: Some(3_600_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_read_as_java_reads_them() {
        assert_eq!(Host::parse("0.0.0.0"), Host::Any);
        assert_eq!(Host::parse("::"), Host::Any);
        assert_eq!(Host::parse("[::]"), Host::Any);
        assert_eq!(Host::parse(""), Host::Ip([127, 0, 0, 1].into()));
        assert_eq!(Host::parse("10.0.0.1"), Host::Ip([10, 0, 0, 1].into()));
        assert_eq!(Host::parse("zk1.example"), Host::Name("zk1.example".into()));
        let address = ClientAddress {
            host: Host::parse("::1"),
            port: 1,
        };
        assert_eq!(address.to_string(), "[::1]:1");
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(Cpus::parse("auto"), Ok(Cpus::Auto));
        assert_eq!(Cpus::parse("none"), Ok(Cpus::Unpinned));
        assert_eq!(Cpus::parse("3, 0-2"), Ok(Cpus::List(vec![3, 0, 1, 2])));
        for text in ["", "a", "1,", "2-1", "1,0-3", "0-4096", "-1"] {
            assert!(Cpus::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn whitelists_read_as_apache_reads_them() {
        let (words, unknown) = FourLetterWords::parse("stat, ruok,,what");
        assert!(words.is_allowed("stat") && words.is_allowed("ruok") && words.is_allowed("srvr"));
        assert!(!words.is_allowed("mntr") && !words.is_allowed("what"));
        assert_eq!(unknown, ["what"]);
        let (words, unknown) = FourLetterWords::parse("*, what");
        assert!(
            FourLetterWords::KNOWN
                .iter()
                .all(|word| words.is_allowed(word))
        );
        assert_eq!(unknown, [""; 0]);
        assert!(!FourLetterWords::parse("").0.is_allowed("isro"));
    }

    #[test]
    fn a_snapshot_waits_for_both_bounds_and_for_the_size_of_the_last() {
        let config = SnapshotConfig {
            txns_min: 10,
            log_bytes_min: 100,
            log_bytes_max: Some(1000),
            ..SnapshotConfig::default()
        };
        let due = |txns, log_bytes, last| config.is_due(LoggedSince { txns, log_bytes }, last);
        assert!(!due(9, 999, 0), "too few txns");
        assert!(!due(10, 99, 0), "too few bytes");
        assert!(due(10, 100, 0));
        assert!(!due(10, 499, 500), "less than the last snapshot");
        assert!(due(10, 500, 500));
        assert!(due(1, 1000, 5000), "the upper bound counts alone");
    }

    #[test]
    fn the_super_digest_stays_out_of_debug_output() {
        let auth = AuthConfig {
            digest: true,
            digest_algorithm: DigestAlgorithm::default(),
            super_digest: Some("super:secret".into()),
        };
        assert!(!format!("{auth:?}").contains("secret"));
    }

    #[test]
    fn an_unset_backlog_is_long() {
        let mut clients = Config::apache_defaults().clients;
        assert_eq!(clients.backlog(), 4096);
        clients.listen_backlog = 0;
        assert_eq!(clients.backlog(), 4096);
        clients.listen_backlog = 7;
        assert_eq!(clients.backlog(), 7);
    }
}
