//! The keys that do something: how each value is read and which field of [`crate::Config`] it fills.

use crate::config::{Cpus, DigestAlgorithm, FourLetterWords, Host, PlacementConfig};
use crate::draft::Draft;
use crate::table::{Effect, INT_MAX, INT_MIN, Key, Owner, Set};

/// `tickTime` times 20 is a session timeout, an `int` on the wire.
const TICK_MS_MAX: i64 = INT_MAX / 20;

/// A frame must fit into a log segment several times over, and into memory with room to spare.
const FRAME_BYTES_MAX: i64 = 256 << 20;

/// Rows in the order of the documentation.
pub(crate) const KEYS: &[Key] = &[
    text(
        "dataDir",
        Owner::File,
        "",
        "Directory of snapshots and of the file `myid`; own files go to `ringkeeper` below it",
        "a path",
        |draft, value| directory(&mut draft.data_dir, value),
    ),
    text(
        "dataLogDir",
        Owner::File,
        "the value of dataDir",
        "Directory of the transaction log; a device of its own makes writes faster",
        "a path",
        |draft, value| directory(&mut draft.log_dir, value),
    ),
    int(
        "clientPort",
        Owner::File,
        "",
        "TCP port for clients; 0 lets the kernel choose one",
        0,
        65_535,
        |draft, port| draft.client_port = u16::try_from(port).ok(),
    ),
    text(
        "clientPortAddress",
        Owner::File,
        "every interface",
        "Address or name of the interface for clients",
        "an address or a name",
        |draft, value| {
            draft.client_host = Some(Host::parse(value));
            Ok(None)
        },
    ),
    int(
        "clientPortListenBacklog",
        Owner::File,
        "-1",
        "Length of the accept queue; -1 means 4096 (Apache: 50)",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.clients.listen_backlog = i32::try_from(value).unwrap_or(-1),
    ),
    int(
        "tickTime",
        Owner::File,
        "3000",
        "Unit of time in milliseconds; session timeouts default to 2 and 20 ticks",
        1,
        TICK_MS_MAX,
        |draft, value| draft.config.ensemble.tick_ms = non_negative(value),
    ),
    int(
        "minSessionTimeout",
        Owner::File,
        "-1",
        "Shortest session timeout in milliseconds; -1 means 2 ticks",
        -1,
        INT_MAX,
        |draft, value| draft.session_timeout_min = value,
    ),
    int(
        "maxSessionTimeout",
        Owner::File,
        "-1",
        "Longest session timeout in milliseconds; -1 means 20 ticks",
        -1,
        INT_MAX,
        |draft, value| draft.session_timeout_max = value,
    ),
    int(
        "maxClientCnxns",
        Owner::File,
        "60",
        "Connections per client address; 0 or less for any number",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.clients.per_address_max = positive(value),
    ),
    int(
        "maxCnxns",
        Owner::Property,
        "0",
        "Connections in all; 0 or less for any number",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.clients.total_max = positive(value),
    ),
    boolean(
        "clientTcpKeepAlive",
        Owner::Property,
        "false",
        "Sets `SO_KEEPALIVE` on client connections",
        |draft, value| draft.config.clients.tcp_keep_alive = value,
    ),
    int(
        "nio.sessionlessCnxnTimeout",
        Owner::Property,
        "10000",
        "Milliseconds in which a new connection must ask for a session",
        1,
        INT_MAX,
        |draft, value| draft.config.clients.sessionless_timeout_ms = non_negative(value),
    ),
    text(
        "4lw.commands.whitelist",
        Owner::Property,
        "srvr",
        "Four-letter words that are answered, `srvr` always among them",
        "words with commas, `*` for all",
        whitelist,
    ),
    boolean(
        "readonlymode.enabled",
        Owner::Property,
        "false",
        "A member without a leader serves reads to clients that ask for no more (with `localSessionsEnabled`), and the four-letter word `isro` is answered; a standalone server is never read-only",
        |draft, value| draft.peers.read_only_mode = value,
    ),
    text(
        "autopurge.purgeInterval",
        Owner::File,
        "1",
        "Hours between purges (a suffix ms, s, m, h or d changes the unit); a purge also follows each snapshot; 0 or less keeps everything (the default of Apache)",
        "an integer, with or without a unit",
        purge_interval,
    ),
    text(
        "autopurge.snapRetainCount",
        Owner::File,
        "3",
        "Verified snapshots that purges keep, with the log from the oldest of them on; at least 3. The file of one more stays as `snapshot-spare`, which the next snapshot is written over",
        "an integer",
        retain_count,
    ),
    text(
        "snapCount",
        Owner::Property,
        "100000",
        "Txns since the last snapshot before which no other is taken; at least 2",
        "an integer",
        snap_count,
    ),
    int(
        "snapSizeLimitInKb",
        Owner::Property,
        "4194304",
        "KiB of log since the last snapshot that make one due in any case; 0 or less for no such limit",
        i64::MIN,
        1 << 40,
        |draft, value| draft.config.snapshots.log_bytes_max = kib(value),
    ),
    int(
        "ringkeeper.snapshotLogSizeInKb",
        Owner::Ringkeeper,
        "32768",
        "KiB of log since the last snapshot before which no other is taken; a tree larger than that waits for as much log as its last snapshot had bytes",
        0,
        1 << 40,
        |draft, value| draft.config.snapshots.log_bytes_min = kib(value).unwrap_or(0),
    ),
    int(
        "ringkeeper.snapshotKbPerSecond",
        Owner::Ringkeeper,
        "32768",
        "KiB per second that writing a snapshot may take of the disk at most while the log is written; 0 for as much as it gives",
        0,
        1 << 30,
        |draft, value| draft.config.snapshots.bytes_per_second_max = kib(value),
    ),
    boolean(
        "ringkeeper.snapshotCompression",
        Owner::Ringkeeper,
        "false",
        "Compress snapshots (LZ4): fewer bytes for more CPU time of the snapshot thread",
        |draft, value| draft.config.snapshots.is_compressed = value,
    ),
    int(
        "preAllocSize",
        Owner::Property,
        "65536",
        "KiB of a log segment, which is written with zeros before use; whole MiB from 8 MiB to 4 GiB, and at least eight of the largest requests; 0 or less means the default",
        INT_MIN,
        1 << 32,
        |draft, value| draft.preallocate_kib = value,
    ),
    int(
        "txnLogSizeLimitInKb",
        Owner::Property,
        "-1",
        "KiB that a log segment may have at most, within the bounds of `preAllocSize`; 0 or less for no such limit",
        i64::MIN,
        1 << 40,
        |draft, value| draft.log_limit_kib = value,
    ),
    int(
        "fsync.warningthresholdms",
        Owner::Property,
        "1000",
        "Milliseconds after which a durable write is logged as slow",
        0,
        INT_MAX,
        |draft, value| draft.config.log.slow_write_ms = u64::from(non_negative(value)),
    ),
    boolean(
        "datadir.autocreate",
        Owner::Property,
        "true",
        "Creates missing data directories; `false` makes them a reason not to start",
        |draft, value| draft.config.files.create_directories = value,
    ),
    boolean(
        "db.autocreate",
        Owner::Property,
        "true",
        "Starts with an empty tree where there is no data; `false` refuses to, unless a file `initialize` in dataDir says that it is meant",
        |draft, value| draft.config.files.create_database = value,
    ),
    int(
        "jute.maxbuffer",
        Owner::Property,
        "0xfffff",
        "Bytes of the largest request; a longer one closes the connection",
        1,
        FRAME_BYTES_MAX,
        |draft, value| draft.config.ensemble.frame_bytes_max = non_negative(value),
    ),
    int(
        "jute.maxbuffer.extrasize",
        Owner::Property,
        "the value of jute.maxbuffer",
        "Bytes that a stored record may have beyond `jute.maxbuffer`; at least 1024",
        INT_MIN,
        FRAME_BYTES_MAX,
        |draft, value| draft.frame_extra = Some(non_negative(value)),
    ),
    int(
        "globalOutstandingLimit",
        Owner::Property,
        "1000",
        "Requests in the server above which connections that wait for replies are not read",
        1,
        INT_MAX,
        |draft, value| draft.config.throttle.outstanding_max = non_negative(value),
    ),
    int(
        "request_throttle_max_requests",
        Owner::Property,
        "0",
        "Requests in the server above which connections are not read; 0 or less for no such limit",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.throttle.requests_max = positive(value),
    ),
    int(
        "throttled_op_wait_time",
        Owner::Property,
        "0",
        "Milliseconds in the queue after which a request answers -127; 0 or less for never",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.throttle.op_wait_ms_max = positive(value),
    ),
    text(
        "largeRequestThreshold",
        Owner::Property,
        "-1",
        "Bytes above which a request counts as large; -1 for never",
        "-1, or 1 to 2147483647",
        large_threshold,
    ),
    int(
        "largeRequestMaxBytes",
        Owner::Property,
        "104857600",
        "Bytes of large requests in flight above which another closes its connection",
        1,
        INT_MAX,
        |draft, value| draft.config.throttle.large_requests_bytes_max = non_negative(value),
    ),
    int(
        "connection_throttle_tokens",
        Owner::Property,
        "0",
        "Size of the token bucket for new connections; 0 or less turns it off",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.tokens = positive(value),
    ),
    int(
        "connection_throttle_fill_time",
        Owner::Property,
        "1",
        "Milliseconds between refills of the bucket",
        1,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.fill_ms = non_negative(value),
    ),
    int(
        "connection_throttle_fill_count",
        Owner::Property,
        "1",
        "Tokens per refill",
        1,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.fill_count = non_negative(value),
    ),
    int(
        "connection_throttle_freeze_time",
        Owner::Property,
        "-1",
        "Milliseconds between changes of the drop probability; less than 0 for no dropping",
        INT_MIN,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.freeze_ms = u32::try_from(value).ok(),
    ),
    share(
        "connection_throttle_drop_increase",
        "0.02",
        "Added to the drop probability when the bucket is empty",
        |draft, value| draft.config.connection_throttle.drop_increase = value,
    ),
    share(
        "connection_throttle_drop_decrease",
        "0.002",
        "Taken from the drop probability when the bucket is fuller than the ratio says",
        |draft, value| draft.config.connection_throttle.drop_decrease = value,
    ),
    share(
        "connection_throttle_decrease_ratio",
        "0",
        "Share of the bucket that must be left for the drop probability to fall",
        |draft, value| draft.config.connection_throttle.decrease_ratio = value,
    ),
    boolean(
        "connection_throttle_weight_enabled",
        Owner::Property,
        "false",
        "Connections cost tokens by the three weights",
        |draft, value| draft.config.connection_throttle.weighted = value,
    ),
    int(
        "connection_throttle_global_session_weight",
        Owner::Property,
        "3",
        "Tokens that a new session costs",
        1,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.global_weight = non_negative(value),
    ),
    int(
        "connection_throttle_renew_session_weight",
        Owner::Property,
        "2",
        "Tokens that a returning session costs",
        1,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.renew_weight = non_negative(value),
    ),
    int(
        "connection_throttle_local_session_weight",
        Owner::Property,
        "1",
        "Tokens that a new local session costs (`localSessionsEnabled`); the other two weights are never below it",
        1,
        INT_MAX,
        |draft, value| draft.config.connection_throttle.local_weight = non_negative(value),
    ),
    int(
        "request_throttler.shutdownTimeout",
        Owner::Property,
        "10000",
        "Milliseconds for which an orderly stop answers what it has taken",
        0,
        INT_MAX,
        |draft, value| draft.config.shutdown.drain_ms_max = non_negative(value),
    ),
    Key {
        name: "skipACL",
        owner: Owner::Property,
        default: "no",
        about: "Checks no ACL",
        effect: Effect::Honoured(Set::YesNo(|draft, value| {
            draft.config.ensemble.skip_acl = value
        })),
    },
    boolean(
        "enforceQuota",
        Owner::Property,
        "false",
        "Refuses writes above hard quotas with -125",
        |draft, value| draft.config.ensemble.enforce_quota = value,
    ),
    boolean(
        "extendedTypesEnabled",
        Owner::Property,
        "false",
        "Allows TTL nodes to be created",
        |draft, value| draft.config.ensemble.extended_types = value,
    ),
    int(
        "znode.container.checkIntervalMs",
        Owner::Property,
        "60000",
        "Milliseconds between checks for empty containers and expired TTL nodes",
        1,
        INT_MAX,
        |draft, value| draft.config.containers.check_interval_ms = non_negative(value),
    ),
    int(
        "znode.container.maxPerMinute",
        Owner::Property,
        "10000",
        "Containers and TTL nodes deleted per minute at most",
        1,
        INT_MAX,
        |draft, value| draft.config.containers.per_minute_max = non_negative(value),
    ),
    int(
        "znode.container.maxNeverUsedIntervalMs",
        Owner::Property,
        "0",
        "Milliseconds after which a container that never had a child is deleted; 0 for never",
        0,
        i64::MAX,
        |draft, value| {
            draft.config.containers.never_used_ms_max =
                u64::try_from(value).ok().filter(|&ms| ms > 0)
        },
    ),
    boolean(
        "digest.enabled",
        Owner::Property,
        "true",
        "Keeps a digest of the tree and writes it with each txn",
        |draft, value| draft.config.ensemble.tree_digest = value,
    ),
    boolean(
        "closeSessionTxn.enabled",
        Owner::Property,
        "true",
        "Lists the ephemeral nodes in the txn that closes a session",
        |draft, value| draft.config.ensemble.close_session_txn = value,
    ),
    boolean(
        "reconfigEnabled",
        Owner::File,
        "false",
        "Lets clients ask for a change of the membership; a standalone server answers as Apache's does",
        |draft, value| draft.config.ensemble.reconfig = value,
    ),
    boolean(
        "standaloneEnabled",
        Owner::File,
        "true",
        "A single server in the list is a standalone server; with `false` it is an ensemble of one",
        |draft, value| {
            draft.standalone_enabled = value;
            draft.config.ensemble.standalone = value;
        },
    ),
    boolean(
        "DigestAuthenticationProvider.enabled",
        Owner::Property,
        "true",
        "Offers the scheme `digest`",
        |draft, value| draft.config.auth.digest = value,
    ),
    membership(
        "server.*",
        "A member; one alone makes a standalone server, several an ensemble. The line that myid names may give this server its client port",
    ),
    membership(
        "group.*",
        "Servers of a group, as 1:2:3: a majority of the groups decides, each by a majority of its weight",
    ),
    membership(
        "weight.*",
        "Weight of a server within its group; 1 unless set",
    ),
    membership(
        "version",
        "Version of the membership, hexadecimal; in the dynamic file, which a reconfiguration writes",
    ),
    membership(
        "dynamicConfigFile",
        "File that holds the `server.N` lines instead",
    ),
    text(
        "DigestAuthenticationProvider.digestAlg",
        Owner::Property,
        "SHA1",
        "Hash of the scheme `digest`; ACLs made with another one can then be passed by nobody",
        "SHA1, SHA-224, SHA-256, SHA-384, SHA-512",
        |draft, value| {
            let algorithm = DigestAlgorithm::from_name(value);
            draft.config.auth.digest_algorithm =
                algorithm.ok_or("it must be SHA1, SHA-224, SHA-256, SHA-384 or SHA-512")?;
            Ok(None)
        },
    ),
    text(
        "DigestAuthenticationProvider.superDigest",
        Owner::Property,
        "",
        "User and hash that no ACL binds",
        "super:hash",
        super_digest,
    ),
    text(
        "ringkeeper.cpus",
        Owner::Ringkeeper,
        "auto",
        "Cores to use, the first of them for the replica core; `auto` shares them out among the members on this machine and pins nothing where there are fewer than members, `none` never pins",
        "auto, none, or a list such as 0,2-5",
        |draft, value| {
            draft.config.placement.cpus = Cpus::parse(value)?;
            Ok(None)
        },
    ),
    int(
        "ringkeeper.shards",
        Owner::Ringkeeper,
        "as many as there are cores for",
        "Number of executors that serve clients",
        1,
        PlacementConfig::SHARDS_MAX as i64,
        |draft, value| draft.config.placement.shards = positive(value),
    ),
    int(
        "ringkeeper.clientsBesideCore",
        Owner::Ringkeeper,
        "8",
        "Connections served on the replica core's own executor before any is on another: few clients wait less there, many spread over all executors in any case",
        0,
        1_000_000,
        |draft, value| draft.config.placement.clients_beside_core = non_negative(value),
    ),
    int(
        "ringkeeper.limping.diskMs",
        Owner::Ringkeeper,
        "200",
        "Milliseconds after which a leader's durable write is bad, if a quorum of the others is four times as fast; a leader of whose writes most are bad hands leadership over; 0 for never",
        0,
        600_000,
        |draft, value| draft.config.limping.disk_ms = value.unsigned_abs(),
    ),
    int(
        "ringkeeper.limping.networkMs",
        Owner::Ringkeeper,
        "500",
        "Milliseconds after which a quorum's answers to a leader's PING are bad; a leader of whose PINGs most are bad hands leadership over; 0 for never",
        0,
        600_000,
        |draft, value| draft.config.limping.network_ms = value.unsigned_abs(),
    ),
    int(
        "ringkeeper.limping.sustainedMs",
        Owner::Ringkeeper,
        "5000",
        "Milliseconds for which it must have been so",
        100,
        3_600_000,
        |draft, value| draft.config.limping.sustained_ms = value.unsigned_abs(),
    ),
    int(
        "ringkeeper.limping.pauseMs",
        Owner::Ringkeeper,
        "60000",
        "Milliseconds for which a new leader does not do it; and after which one that nobody could succeed tries again, twice as long each time",
        1000,
        86_400_000,
        |draft, value| draft.config.limping.pause_ms = value.unsigned_abs(),
    ),
    int(
        "ringkeeper.test.diskDelayMs",
        Owner::Ringkeeper,
        "0",
        "For tests only: milliseconds that every durable write takes longer, as on a disk that limps",
        0,
        60_000,
        |draft, value| draft.config.files.test_delay_ms = value.unsigned_abs(),
    ),
    int(
        "ringkeeper.test.counterMax",
        Owner::Ringkeeper,
        "0",
        "For tests only: the last transaction of an epoch, so that another one begins soon; 0 for the protocol's 4294967294",
        0,
        INT_MAX,
        |draft, value| draft.config.files.test_counter_max = non_negative(value),
    ),
];

const fn int(
    name: &'static str,
    owner: Owner,
    default: &'static str,
    about: &'static str,
    min: i64,
    max: i64,
    store: fn(&mut Draft, i64),
) -> Key {
    Key {
        name,
        owner,
        default,
        about,
        effect: Effect::Honoured(Set::Int { min, max, store }),
    }
}

const fn boolean(
    name: &'static str,
    owner: Owner,
    default: &'static str,
    about: &'static str,
    store: fn(&mut Draft, bool),
) -> Key {
    Key {
        name,
        owner,
        default,
        about,
        effect: Effect::Honoured(Set::Bool(store)),
    }
}

const fn share(
    name: &'static str,
    default: &'static str,
    about: &'static str,
    store: fn(&mut Draft, f64),
) -> Key {
    Key {
        name,
        owner: Owner::Property,
        default,
        about,
        effect: Effect::Honoured(Set::Share(store)),
    }
}

const fn membership(name: &'static str, about: &'static str) -> Key {
    Key {
        name,
        owner: Owner::File,
        default: "",
        about,
        effect: Effect::Membership,
    }
}

const fn text(
    name: &'static str,
    owner: Owner,
    default: &'static str,
    about: &'static str,
    takes: &'static str,
    store: fn(&mut Draft, &str) -> Result<Option<String>, String>,
) -> Key {
    Key {
        name,
        owner,
        default,
        about,
        effect: Effect::Honoured(Set::Text { takes, store }),
    }
}

/// A value within the bounds of its row, which are those of a non-negative `int`; a negative one counts as 0.
fn non_negative(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// Zero and less stand for "no limit" in many keys.
fn positive(value: i64) -> Option<u32> {
    u32::try_from(value).ok().filter(|&value| value > 0)
}

fn kib(value: i64) -> Option<u64> {
    u64::try_from(value)
        .ok()
        .filter(|&kib| kib > 0)
        .map(|kib| kib.saturating_mul(1024))
}

fn directory(field: &mut Option<String>, value: &str) -> Result<Option<String>, String> {
    if value.is_empty() {
        return Err("it names no directory".to_owned());
    }
    *field = Some(value.to_owned());
    // ZK: VerifyingFileFactory warns unless the path says that being relative is meant.
    let plain = !value.starts_with('/') && !value.starts_with("./") && value != ".";
    Ok(plain.then(|| format!("the path {value} is relative to where the server is started; write ./{value} if that is meant")))
}

fn whitelist(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    let (words, unknown) = FourLetterWords::parse(value);
    draft.config.words = words;
    Ok((!unknown.is_empty()).then(|| {
        format!(
            "nobody knows these four-letter words, which are left out: {}",
            unknown.join(", ")
        )
    }))
}

fn purge_interval(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    let (digits, unit) = value.split_at(
        value
            .trim_end_matches(|c: char| c.is_ascii_alphabetic())
            .len(),
    );
    let ms_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "" | "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("its unit must be ms, s, m, h or d".to_owned()),
    };
    let Ok(count) = digits.parse::<i32>() else {
        return Err(
            "it must be an integer, with or without one of the units ms, s, m, h, d".to_owned(),
        );
    };
    let count = u64::try_from(count).unwrap_or(0);
    draft.config.snapshots.purge_interval_ms = (count > 0).then(|| count * ms_per_unit);
    Ok(None)
}

fn retain_count(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    let count = value
        .parse::<i32>()
        .map_err(|_| "it must be an integer".to_owned())?;
    draft.config.snapshots.retain_count = u32::try_from(count).unwrap_or(0).max(3);
    // ZK: QuorumPeerConfig
    Ok((count < 3).then(|| "fewer than 3 snapshots are not safe; 3 are kept".to_owned()))
}

fn snap_count(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    let count = Set::integer(value, INT_MIN, INT_MAX)?;
    draft.config.snapshots.txns_min = u64::try_from(count).unwrap_or(0).max(2);
    // ZK: ZooKeeperServer.getSnapCount
    Ok((count < 2).then(|| "it should be 2 or more, and is taken for 2".to_owned()))
}

fn large_threshold(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    match Set::integer(value, -1, INT_MAX)? {
        0 => Err("it must be -1 or positive".to_owned()),
        bytes => {
            draft.config.throttle.large_request_bytes_min = positive(bytes);
            Ok(None)
        }
    }
}

fn super_digest(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    let plausible = value
        .split_once(':')
        .is_some_and(|(user, hash)| !user.is_empty() && !hash.is_empty());
    if !plausible {
        return Err("it must be of the form super:hash, where the hash is base64 of the SHA-1 of super:password".to_owned());
    }
    draft.config.auth.super_digest = Some(value.to_owned());
    Ok(None)
}
