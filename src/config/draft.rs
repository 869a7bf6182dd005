//! A configuration while its lines are read: [`Config`] with defaults, and what only makes sense together.

use std::path::PathBuf;

use crate::config::{ClientAddress, Config, Host, LogConfig};
use crate::peers::{self, Membership};
use crate::raw::RawConfig;
use crate::report::{Notice, Problem};

/// See `observerMaster.sizeLimit`.
pub(crate) const OBSERVER_QUEUE_BYTES: u32 = 32 << 20;

/// What setters write to.
#[derive(Clone, Debug)]
pub struct Draft {
    pub(crate) config: Config,
    /// `dataDir`, once set.
    pub(crate) data_dir: Option<String>,
    /// `dataLogDir`, once set.
    pub(crate) log_dir: Option<String>,
    pub(crate) client_port: Option<u16>,
    pub(crate) client_host: Option<Host>,
    /// As written; -1 stands for a multiple of `tickTime`.
    pub(crate) session_timeout_min: i64,
    pub(crate) session_timeout_max: i64,
    /// `jute.maxbuffer.extrasize`, once set; it follows `jute.maxbuffer` otherwise.
    pub(crate) frame_extra: Option<u32>,
    /// `preAllocSize` in KiB.
    pub(crate) preallocate_kib: i64,
    /// `txnLogSizeLimitInKb`; not positive for none.
    pub(crate) log_limit_kib: i64,
    pub(crate) standalone_enabled: bool,
    /// What only a member of an ensemble needs.
    pub(crate) peers: PeersDraft,
    /// The ensemble, when there is one.
    pub(crate) membership: Option<Membership>,
}

/// Keys that count for members of an ensemble only.
#[derive(Clone, Debug)]
pub(crate) struct PeersDraft {
    pub(crate) init_limit: Option<u32>,
    pub(crate) sync_limit: Option<u32>,
    /// 0: as `init_limit`.
    pub(crate) connect_limit: u32,
    pub(crate) connect_timeout_ms: u32,
    pub(crate) listen_on_all: bool,
    pub(crate) several_addresses: bool,
    pub(crate) checks_addresses: bool,
    pub(crate) check_timeout_ms: u32,
    /// `readonlymode.enabled`, which makes the word `isro` answered as well, also where there is no ensemble.
    pub(crate) read_only_mode: bool,
    pub(crate) local_sessions: bool,
    pub(crate) local_sessions_upgrading: bool,
    pub(crate) oracle_path: Option<PathBuf>,
    pub(crate) observer_master_port: Option<u16>,
    pub(crate) observer_queue_bytes: u32,
    /// `peerType`, once set.
    pub(crate) observes: Option<bool>,
}

impl Default for PeersDraft {
    fn default() -> Self {
        Self {
            init_limit: None,
            sync_limit: None,
            connect_limit: 0,
            connect_timeout_ms: 5000,
            listen_on_all: false,
            several_addresses: false,
            checks_addresses: true,
            check_timeout_ms: 1000,
            read_only_mode: false,
            local_sessions: false,
            local_sessions_upgrading: false,
            oracle_path: None,
            observer_master_port: None,
            observer_queue_bytes: OBSERVER_QUEUE_BYTES,
            observes: None,
        }
    }
}

/// A segment is a multiple of this.
const SEGMENT_UNIT: u64 = 1 << 20;

impl Draft {
    pub(crate) fn new() -> Self {
        Self {
            config: Config::apache_defaults(),
            data_dir: None,
            log_dir: None,
            client_port: None,
            client_host: None,
            session_timeout_min: -1,
            session_timeout_max: -1,
            frame_extra: None,
            preallocate_kib: 65_536,
            log_limit_kib: -1,
            standalone_enabled: true,
            peers: PeersDraft::default(),
            membership: None,
        }
    }

    /// Settles what depends on several keys; `raw` says where they stand.
    pub(crate) fn finish(
        mut self,
        raw: &RawConfig,
        notices: &mut Vec<Notice>,
    ) -> Result<Config, Vec<Problem>> {
        let mut problems = Vec::new();
        self.settle_directories(raw, &mut problems);
        self.settle_client_address(raw, &mut problems);
        self.settle_session_timeouts(raw, &mut problems);
        self.settle_frames();
        self.settle_weights(raw, notices);
        self.settle_segment(raw, notices);
        if let Some(membership) = self.membership.take() {
            let my_id = self.config.files.my_id;
            match peers::settle(raw, my_id, membership, &self.peers, notices) {
                Ok(peers) => self.config.peers = Some(peers),
                Err(more) => problems.extend(more),
            }
        }
        if self.peers.read_only_mode {
            // ZK: FourLetterCommands.isEnabled
            self.config.words.allow("isro");
        }
        if problems.is_empty() {
            Ok(self.config)
        } else {
            Err(problems)
        }
    }

    fn settle_directories(&mut self, raw: &RawConfig, problems: &mut Vec<Problem>) {
        match &self.data_dir {
            Some(directory) => {
                self.config.files.data_dir = directory.into();
                self.config.files.log_dir = self.log_dir.as_ref().unwrap_or(directory).into();
            }
            None => problems.push(Problem::new(
                raw.whole(),
                "dataDir is not set",
                "Write dataDir=/path/to/a/directory that survives a restart",
            )),
        }
    }

    fn settle_client_address(&mut self, raw: &RawConfig, problems: &mut Vec<Problem>) {
        match (self.client_port, self.client_host.take()) {
            (Some(port), host) => {
                self.config.clients.address = ClientAddress { host: host.unwrap_or(Host::Any), port };
            }
            (None, Some(_)) => problems.push(Problem::new(
                &raw.at("clientPortAddress"),
                "clientPortAddress is set but clientPort is not",
                "Write clientPort=2181 as well",
            )),
            // Apache would start and listen nowhere.
            (None, None) => problems.push(Problem::new(
                raw.whole(),
                "clientPort is not set, so that no client could connect",
                "Write clientPort=2181, or give the port in the server line that the file myid names (server.1=host:2888:3888;2181)",
            )),
        }
    }

    fn settle_session_timeouts(&mut self, raw: &RawConfig, problems: &mut Vec<Problem>) {
        let tick = i64::from(self.config.ensemble.tick_ms);
        let or_ticks =
            |timeout: i64, ticks: i64| if timeout == -1 { tick * ticks } else { timeout };
        let min = or_ticks(self.session_timeout_min, 2);
        let max = or_ticks(self.session_timeout_max, 20);
        if min > max {
            let key = if self.session_timeout_min == -1 {
                "maxSessionTimeout"
            } else {
                "minSessionTimeout"
            };
            problems.push(Problem::new(
                &raw.at(key),
                format!("minSessionTimeout ({min} ms) must not be larger than maxSessionTimeout ({max} ms)"),
                "Unset, they are 2 and 20 times tickTime; set both, or change the one that is set",
            ));
            return;
        }
        // The bounds of the keys keep both within an i32.
        self.config.ensemble.session_timeout_ms_min = u32::try_from(min).unwrap_or(u32::MAX);
        self.config.ensemble.session_timeout_ms_max = u32::try_from(max).unwrap_or(u32::MAX);
    }

    fn settle_frames(&mut self) {
        let ensemble = &mut self.config.ensemble;
        // ZK: BinaryInputArchive never takes less than 1024, which was the constant before the key.
        ensemble.frame_bytes_extra = self
            .frame_extra
            .unwrap_or(ensemble.frame_bytes_max)
            .max(1024);
    }

    fn settle_weights(&mut self, raw: &RawConfig, notices: &mut Vec<Notice>) {
        let throttle = &mut self.config.connection_throttle;
        let local = throttle.local_weight;
        for (key, weight) in [
            (
                "connection_throttle_global_session_weight",
                &mut throttle.global_weight,
            ),
            (
                "connection_throttle_renew_session_weight",
                &mut throttle.renew_weight,
            ),
        ] {
            if *weight < local {
                // ZK: BlueThrottle uses the local weight then.
                let text = format!(
                    "{key} is {weight}, less than the weight of a local session, so that weight counts: {local}"
                );
                notices.push(Notice::warning(&raw.at(key), text));
                *weight = local;
            }
        }
    }

    fn settle_segment(&mut self, raw: &RawConfig, notices: &mut Vec<Notice>) {
        let ensemble = &self.config.ensemble;
        let largest_record =
            u64::from(ensemble.frame_bytes_max) + u64::from(ensemble.frame_bytes_extra);
        let kib = |kib: i64| {
            u64::try_from(kib)
                .ok()
                .filter(|&kib| kib > 0)
                .map(|kib| kib.saturating_mul(1024))
        };
        let asked = match (kib(self.preallocate_kib), kib(self.log_limit_kib)) {
            (Some(size), Some(limit)) => size.min(limit),
            (Some(size), None) | (None, Some(size)) => size,
            // Apache then lets the file grow with each write, which costs a change of its length per flush.
            (None, None) => 64 << 20,
        };
        let needed = largest_record
            .saturating_mul(4)
            .max(LogConfig::SEGMENT_BYTES_MIN);
        let size = asked
            .clamp(needed, LogConfig::SEGMENT_BYTES_MAX.max(needed))
            .next_multiple_of(SEGMENT_UNIT);
        self.config.log.segment_bytes = size;
        let keys = ["preAllocSize", "txnLogSizeLimitInKb"];
        if let Some(key) = keys.into_iter().find(|key| raw.entry(key).is_some())
            && size != asked
        {
            let text = format!(
                "{key}: log segments are {} MiB (whole MiB, at least {} MiB for the largest requests, at most {} MiB)",
                size >> 20,
                needed.div_ceil(SEGMENT_UNIT),
                LogConfig::SEGMENT_BYTES_MAX >> 20,
            );
            notices.push(Notice::info(&raw.at(key), text));
        }
    }
}

#[cfg(test)]
impl Draft {
    pub(crate) fn add_missing_for_test(&mut self) {
        self.data_dir = Some("/data".to_owned());
        self.log_dir = None;
        self.client_port = Some(2181);
        self.client_host = None;
    }

    pub(crate) fn finish_for_test(self) -> Config {
        self.finish(&RawConfig::embedded(), &mut Vec::new())
            .unwrap()
    }
}
