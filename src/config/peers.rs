//! The ensemble that a server is a member of, and what only its members need.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::config::ClientAddress;
use crate::draft::PeersDraft;
use crate::members;
use crate::raw::RawConfig;
use crate::report::{Notice, Problem, Problems};

/// A member's view of its ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// This server (`myid`), one of the members.
    pub id: u64,
    /// Who belongs to it.
    pub membership: Membership,
    /// `initLimit`: ticks in which a learner must connect and synchronize.
    pub init_limit: u32,
    /// `syncLimit`: ticks that a peer may be silent, and a proposal unacknowledged.
    pub sync_limit: u32,
    /// `connectToLearnerMasterLimit`: ticks in which a learner must reach its leader; `init_limit` unless set.
    pub connect_limit: u32,
    /// `cnxTimeout`: milliseconds for a peer to answer an attempt to connect.
    pub connect_timeout_ms: u32,
    /// `quorumListenOnAllIPs`: the ports for peers are on every interface, not only those of the own addresses.
    pub listen_on_all: bool,
    /// `multiAddress.enabled`: a member may have several addresses, and tells peers all of them.
    pub several_addresses: bool,
    /// Milliseconds for which a peer may leave what an election sends it unanswered before another of its addresses is
    /// tried: `multiAddress.reachabilityCheckTimeoutMs`, or `cnxTimeout` where there is one address.
    pub unanswered_ms: u32,
    /// `readonlymode.enabled`: without a leader this server serves reads to clients that ask for no more.
    pub read_only_mode: bool,
    /// `localSessionsEnabled`: a new session is known to this server only.
    pub local_sessions: bool,
    /// `localSessionsUpgradingEnabled`: until it needs more, instead of being refused.
    pub local_sessions_upgrading: bool,
    /// `oraclePath`: the file that lets one of two servers go on without the other.
    pub oracle_path: Option<PathBuf>,
    /// `observerMasterPort`: where followers serve observers, which try them before the leader.
    pub observer_master_port: Option<u16>,
    /// `observerMaster.sizeLimit`: the bytes that may wait on the way to one of them.
    pub observer_queue_bytes: u32,
}

impl PeersConfig {
    /// How many members are on this server's machine, as their addresses say, and which of them it is, from 0.
    pub fn of_this_machine(&self) -> (usize, usize) {
        let hosts = |id: &u64| {
            let member = self.membership.members.get(id);
            let addresses = member.map_or(&[][..], |member| &member.addresses);
            addresses.iter().map(|address| address.host.as_str())
        };
        let is_here = |id: &&u64| {
            **id == self.id || hosts(id).any(|host| hosts(&self.id).any(|own| own == host))
        };
        let here: Vec<u64> = self
            .membership
            .members
            .keys()
            .filter(is_here)
            .copied()
            .collect();
        let rank = here.iter().position(|id| *id == self.id).unwrap_or(0);
        (here.len().max(1), rank)
    }
}

/// The members of an ensemble and how they decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The members by number.
    pub members: BTreeMap<u64, MemberConfig>,
    /// `group.N`: the group of each server; `None` where a plain majority decides.
    pub group_of: Option<BTreeMap<u64, u64>>,
    /// `weight.N`: weights other than 1, of use with groups only.
    pub weight_of: BTreeMap<u64, u64>,
    /// `version`: the zxid that established it; 0 for one that an operator wrote.
    pub version: u64,
}

/// One member (`server.N`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberConfig {
    /// Whether it is a participant; observers are not.
    pub votes: bool,
    /// Where its peers reach it; several for one machine in several networks.
    pub addresses: Vec<PeerAddress>,
    /// Where its clients reach it, if the line says so.
    pub client: Option<ClientAddress>,
}

/// One address of a member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    /// An address (without brackets) or a name.
    pub host: String,
    /// Where it listens for learners.
    pub quorum_port: u16,
    /// Where it listens for elections.
    pub election_port: u16,
}

impl Membership {
    /// Reads such a text as [`Membership::text`] makes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        members::parse_text(text)
    }

    /// The membership after servers have left and joined (ZK: an incremental reconfiguration). Each joining
    /// server is `server.N=...` with its client address; one that is a member already is replaced.
    ///
    /// # Errors
    /// What is wrong with one of them, in words.
    pub fn changed(&self, leaving: &[&str], joining: &[&str]) -> Result<Self, String> {
        if self.group_of.is_some() {
            return Err(
                "only ensembles that decide by majority change by joining and leaving".to_owned(),
            );
        }
        let mut changed = self.clone();
        for id in leaving {
            let id: u64 = id
                .trim()
                .parse()
                .map_err(|_| format!("{id:?} is not the number of a server"))?;
            changed.members.remove(&id);
        }
        for server in joining {
            let (key, value) = server
                .split_once('=')
                .ok_or_else(|| format!("{server:?} is not of the form server.N=..."))?;
            let (id, member) =
                members::parse_server(key.trim(), value.trim()).map_err(|it| it.to_string())?;
            if member.client.is_none() {
                return Err(format!("{server:?} has no client address"));
            }
            changed.members.remove(&id);
            let others = changed.members.values().flat_map(|other| &other.addresses);
            let mut taken = others.filter(|other| {
                member.addresses.iter().any(|own| {
                    own.host == other.host
                        && [own.quorum_port, own.election_port]
                            .iter()
                            .any(|port| [other.quorum_port, other.election_port].contains(port))
                })
            });
            if let Some(taken) = taken.next() {
                return Err(format!("{} is the address of another member", taken.text()));
            }
            changed.members.insert(id, member);
        }
        Ok(changed)
    }

    /// How many members vote.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.members.values().filter(|member| member.votes).count()
    }

    /// The text by which servers compare their configurations, as `QuorumVerifier.toString` has it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (id, member) in &self.members {
            let _ = writeln!(text, "server.{id}={}", member.text());
        }
        if let Some(group_of) = &self.group_of {
            let mut groups: BTreeMap<u64, Vec<String>> = BTreeMap::new();
            for (server, group) in group_of {
                groups.entry(*group).or_default().push(server.to_string());
            }
            for (group, servers) in groups {
                let _ = writeln!(text, "group.{group}={}", servers.join(":"));
            }
            let voters = self.members.iter().filter(|(_, member)| member.votes);
            let mut weights: BTreeMap<_, _> = voters.map(|(id, _)| (*id, 1)).collect();
            weights.extend(&self.weight_of);
            for (server, weight) in weights {
                let _ = writeln!(text, "weight.{server}={weight}");
            }
        }
        let _ = write!(text, "version={:x}", self.version);
        text
    }
}

impl MemberConfig {
    fn text(&self) -> String {
        let mut addresses = self.addresses.clone();
        addresses.sort();
        let addresses: Vec<_> = addresses.iter().map(PeerAddress::text).collect();
        let role = if self.votes {
            "participant"
        } else {
            "observer"
        };
        let client = self.client.as_ref();
        let client = client.map_or_else(String::new, |client| format!(";{client}"));
        format!("{}:{role}{client}", addresses.join("|"))
    }
}

impl PeerAddress {
    fn text(&self) -> String {
        let Self {
            host,
            quorum_port,
            election_port,
        } = self;
        match host.contains(':') {
            true => format!("[{host}]:{quorum_port}:{election_port}"),
            false => format!("{host}:{quorum_port}:{election_port}"),
        }
    }
}

/// Settles what a member needs beside the membership.
pub(crate) fn settle(
    raw: &RawConfig,
    my_id: Option<i64>,
    membership: Membership,
    draft: &PeersDraft,
    notices: &mut Vec<Notice>,
) -> Result<PeersConfig, Vec<Problem>> {
    let mut problems = Vec::new();
    // ZK: QuorumPeerConfig.checkValidity
    let mut limit = |key: &str, value: Option<u32>| {
        value.filter(|ticks| *ticks > 0).unwrap_or_else(|| {
            let what = format!("{key} is not set, and a member of an ensemble needs it");
            let remedy = format!("Write {key}=5, or what the other members have");
            problems.push(Problem::new(&raw.at(key), what, remedy));
            0
        })
    };
    let init_limit = limit("initLimit", draft.init_limit);
    let sync_limit = limit("syncLimit", draft.sync_limit);
    let id = my_id.and_then(|id| u64::try_from(id).ok());
    match id.map(|id| (id, membership.members.get(&id))) {
        None => problems.push(Problem::new(
            &raw.at("dataDir"),
            "there is no file myid in dataDir, and a member of an ensemble needs it",
            "Write the N of this server's server.N line into it",
        )),
        Some((id, None)) => problems.push(Problem::new(
            &raw.at("dataDir"),
            format!("the file myid in dataDir says {id}, and there is no line server.{id}"),
            "Correct the file, or add the line at every member",
        )),
        Some((_, Some(member))) if draft.observes.is_some_and(|it| it == member.votes) => {
            let text = "peerType differs from the role in this server's line, which counts";
            notices.push(Notice::warning(&raw.at("peerType"), text.to_owned()));
        }
        Some(_) => {}
    }
    if !draft.several_addresses {
        let several = membership.members.iter();
        let several = several.filter(|(_, member)| member.addresses.len() > 1);
        for (id, _) in several {
            let key = format!("server.{id}");
            problems.push(Problem::new(
                &raw.at(&key),
                format!("{key} has several addresses, and multiAddress.enabled is not set"),
                "Write multiAddress.enabled=true at every member, or keep one address",
            ));
        }
    }
    if draft.oracle_path.is_some() && membership.voters() != 2 {
        // ZK: QuorumOracleMaj.containsQuorum
        let text = "the oracle has a say only where exactly two servers vote";
        notices.push(Notice::warning(&raw.at("oraclePath"), text.to_owned()));
    }
    match problems.is_empty() {
        true => Ok(PeersConfig {
            id: id.unwrap_or_default(),
            membership,
            init_limit,
            sync_limit,
            connect_limit: match draft.connect_limit {
                0 => init_limit,
                limit => limit,
            },
            connect_timeout_ms: draft.connect_timeout_ms,
            listen_on_all: draft.listen_on_all,
            several_addresses: draft.several_addresses,
            unanswered_ms: match draft.several_addresses && draft.checks_addresses {
                true => draft.check_timeout_ms,
                false => draft.connect_timeout_ms,
            },
            read_only_mode: draft.read_only_mode,
            local_sessions: draft.local_sessions,
            local_sessions_upgrading: draft.local_sessions_upgrading,
            oracle_path: draft.oracle_path.clone(),
            observer_master_port: draft.observer_master_port,
            observer_queue_bytes: draft.observer_queue_bytes,
        }),
        false => Err(problems),
    }
}
