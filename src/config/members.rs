//! The `server.N`, `group.N` and `weight.N` lines: whether they describe a standalone server or an ensemble, and which client
//! port they give this server.
//!
//! The rules are those of `QuorumPeerConfig.parseDynamicConfig`, `setupMyId` and `setupClientPort`: no line or one voter makes a
//! standalone server (unless `standaloneEnabled=false`); the line that `myid` names may bring the client port.
//!
//! Invariant: what would be an ensemble with Apache's server is one here too, so that a server never starts alone with data
//! that others share.

use std::collections::BTreeMap;

use crate::config::{ClientAddress, Host};
use crate::draft::Draft;
use crate::peers::{MemberConfig, Membership, PeerAddress};
use crate::raw::{Entry, RawConfig};
use crate::report::{Notice, Origin, Problem, Problems};

const FORM: &str = "Write server.N=host:port:port, then :participant or :observer if need be, more addresses after |, \
                    and ;port or ;host:port for clients";

/// What lies beside a configuration file and belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Text of the file `myid` in `dataDir`, if there is one.
    pub my_id: Option<String>,
    /// The file that `dynamicConfigFile` names, if it does.
    pub dynamic: Option<RawConfig>,
}

/// One `server.N` line.
#[derive(Debug)]
struct Member<'a> {
    entry: &'a Entry,
    id: i64,
    config: MemberConfig,
}

/// Whether the lines ask for an ensemble, right or wrong; [`settle`] says what is wrong.
pub(crate) fn make_ensemble(raw: &RawConfig, beside: &Beside) -> bool {
    let source = beside.dynamic.as_ref().unwrap_or(raw);
    let servers = source
        .entries()
        .filter(|entry| entry.key.starts_with("server."));
    let standalone = raw
        .entry("standaloneEnabled")
        .is_none_or(|entry| !entry.value.eq_ignore_ascii_case("false"));
    match servers.count() {
        0 => false,
        1 => !standalone,
        _ => true,
    }
}

/// Reads `myid` and the members; fills the client port where they give it.
pub(crate) fn settle(
    raw: &RawConfig,
    beside: &Beside,
    draft: &mut Draft,
    notices: &mut Vec<Notice>,
) -> Result<(), Vec<Problem>> {
    let my_id = read_my_id(raw, beside).map_err(|problem| vec![problem])?;
    draft.config.files.my_id = my_id;
    if let (Some(dynamic), Some(pointer)) = (&beside.dynamic, raw.entry("dynamicConfigFile")) {
        check_division(raw, pointer, dynamic)?;
    }
    let source = beside.dynamic.as_ref().unwrap_or(raw);
    let members = members(source)?;
    let voters: Vec<_> = members
        .iter()
        .filter(|member| member.config.votes)
        .collect();
    let observer = members.iter().find(|member| !member.config.votes);
    match (voters.as_slice(), observer) {
        ([], Some(observer)) => {
            return refuse(
                &observer.entry.origin,
                "observers without a participant are not a valid configuration",
                FORM,
            );
        }
        ([], None) if !draft.standalone_enabled => {
            return refuse(
                &raw.at("standaloneEnabled"),
                "standaloneEnabled=false asks for an ensemble, and there is no server line",
                "Remove the line to start a standalone server, or name the members",
            );
        }
        ([], None) => return Ok(()),
        ([voter], None) if draft.standalone_enabled => {
            let text = format!(
                "{} is the only server, so this is a standalone server",
                voter.entry.key
            );
            notices.push(Notice::info(&voter.entry.origin, text));
        }
        ([_], Some(observer)) if draft.standalone_enabled => {
            return refuse(
                &observer.entry.origin,
                "one participant with observers is not a valid configuration",
                FORM,
            );
        }
        (few, _) => {
            if few.len() == 2 {
                let text = "two voters tolerate the failure of none; three tolerate one".to_owned();
                notices.push(Notice::warning(
                    &few.first()
                        .map_or_else(|| raw.whole().clone(), |it| it.entry.origin.clone()),
                    text,
                ));
            }
            draft.membership = Some(membership(raw, source, beside, &members)?);
        }
    }
    let me = members.into_iter().find(|member| my_id == Some(member.id));
    me.map_or(Ok(()), |me| adopt_client_address(raw, me, draft))
}

/// Reads the text of a configuration, as servers send it to each other and as it stands in `/zookeeper/config`.
pub(crate) fn parse_text(text: &str) -> Result<Membership, Problems> {
    let raw = RawConfig::parse("configuration", text.as_bytes());
    let raw = raw.map_err(|problem| Problems(vec![problem]))?;
    let members = members(&raw).map_err(Problems)?;
    membership(&raw, &raw, &Beside::default(), &members).map_err(Problems)
}

/// What one `server.N=...` setting says.
pub(crate) fn parse_server(key: &str, value: &str) -> Result<(u64, MemberConfig), Problems> {
    let text = format!("{key}={value}");
    let membership = parse_text(&text)?;
    let mut members = membership.members.into_iter();
    members.next().ok_or_else(|| {
        let origin = Origin::File {
            name: "configuration".into(),
            line: 1,
        };
        Problems(vec![Problem::new(
            &origin,
            format!("{text} names no server"),
            FORM,
        )])
    })
}

fn refuse(origin: &Origin, what: &str, remedy: &str) -> Result<(), Vec<Problem>> {
    Err(vec![Problem::new(origin, what, remedy)])
}

fn read_my_id(raw: &RawConfig, beside: &Beside) -> Result<Option<i64>, Problem> {
    let Some(text) = &beside.my_id else {
        return Ok(None);
    };
    let first_line = text.lines().next().unwrap_or_default().trim();
    match first_line.parse::<i64>() {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(Problem::new(
            &raw.at("dataDir"),
            format!("the file myid in dataDir says {first_line:?}, which is not a number"),
            "Write the N of this server's server.N line into it, or remove it for a standalone server",
        )),
    }
}

/// With a dynamic file, all that it holds is the membership, and nowhere else is any of it.
fn check_division(
    raw: &RawConfig,
    pointer: &Entry,
    dynamic: &RawConfig,
) -> Result<(), Vec<Problem>> {
    let is_member_key = |key: &str| {
        key.starts_with("server.") || key.starts_with("group") || key.starts_with("weight")
    };
    let may_be_dynamic = |key: &str| is_member_key(key) || key == "version";
    let misplaced = raw
        .entries()
        .filter(|entry| is_member_key(&entry.key))
        .map(|entry| {
            let what = format!("{} must be in the dynamic configuration file", entry.key);
            Problem::new(
                &entry.origin,
                what,
                format!(
                    "Move the line to {}, which dynamicConfigFile names",
                    pointer.value
                ),
            )
        });
    let foreign = dynamic
        .entries()
        .filter(|entry| !may_be_dynamic(&entry.key))
        .map(|entry| {
            let what = format!(
                "{} does not belong into a dynamic configuration file",
                entry.key
            );
            Problem::new(
                &entry.origin,
                what,
                "Keep server.N, group.N, weight.N and version lines in it and nothing else",
            )
        });
    let problems: Vec<_> = misplaced.chain(foreign).collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// The ensemble that the lines describe.
fn membership(
    raw: &RawConfig,
    source: &RawConfig,
    beside: &Beside,
    members: &[Member<'_>],
) -> Result<Membership, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut config = Membership::default();
    for member in members {
        match u64::try_from(member.id) {
            Ok(id) => {
                config.members.insert(id, member.config.clone());
            }
            Err(_) => problems.push(Problem::new(
                &member.entry.origin,
                format!("{} has a negative number", member.entry.key),
                "Number the servers from 1",
            )),
        }
    }
    let mut group_of = BTreeMap::new();
    let mut is_hierarchical = false;
    for entry in source.entries() {
        let (kind, number) = entry.key.split_once('.').unwrap_or((&entry.key, ""));
        let outcome = match kind {
            "group" => {
                is_hierarchical = true;
                read_group(number, &entry.value, &mut group_of)
            }
            "weight" => {
                is_hierarchical = true;
                read_weight(number, &entry.value, &mut config.weight_of)
            }
            _ => Ok(()),
        };
        if let Err(what) = outcome {
            problems.push(Problem::new(
                &entry.origin,
                format!("{}={}: {what}", entry.key, entry.value),
                "Write group.N=1:2:3 with the numbers of servers, weight.N=W with a weight of server N",
            ));
        }
    }
    // ZK: QuorumHierarchical as soon as there is a group or a weight.
    if is_hierarchical {
        for member in members.iter().filter(|member| member.config.votes) {
            let id = u64::try_from(member.id).unwrap_or_default();
            if !group_of.contains_key(&id) {
                problems.push(Problem::new(
                    &member.entry.origin,
                    format!("{} is in no group", member.entry.key),
                    "Name it in a group.N line, or remove all group and weight lines",
                ));
            }
        }
        let weight = |id| config.weight_of.get(id).copied().unwrap_or(1);
        if problems.is_empty()
            && !group_of
                .keys()
                .any(|id| config.members.contains_key(id) && weight(id) > 0)
        {
            problems.push(Problem::new(
                raw.whole(),
                "no group has any weight, so nothing could be decided",
                "Give some server a weight.N of 1 or more",
            ));
        }
        config.group_of = Some(group_of);
    }
    match read_version(raw, source, beside) {
        Ok(version) => config.version = version,
        Err(problem) => problems.push(problem),
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

fn read_group(
    number: &str,
    servers: &str,
    group_of: &mut BTreeMap<u64, u64>,
) -> Result<(), String> {
    let group = parse_number(number)?;
    for server in servers.split(':') {
        let server = parse_number(server)?;
        if group_of.insert(server, group).is_some() {
            return Err(format!("server {server} is in more than one group"));
        }
    }
    Ok(())
}

fn read_weight(
    number: &str,
    weight: &str,
    weight_of: &mut BTreeMap<u64, u64>,
) -> Result<(), String> {
    weight_of.insert(parse_number(number)?, parse_number(weight)?);
    Ok(())
}

fn parse_number(text: &str) -> Result<u64, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("\"{text}\" is not a number"))
}

/// The version of the membership: a line of the dynamic file, or the end of its name, where Apache's
/// servers put it when they write one (`zoo.cfg.dynamic.100000000`); 0 otherwise.
fn read_version(raw: &RawConfig, source: &RawConfig, beside: &Beside) -> Result<u64, Problem> {
    if let Some(entry) = source.entry("version") {
        return u64::from_str_radix(&entry.value, 16).map_err(|_| {
            Problem::new(
                &entry.origin,
                format!("version={}: it is not a hexadecimal number", entry.value),
                "Correct it, or remove it for 0",
            )
        });
    }
    let named = beside.dynamic.as_ref();
    let named = named.and_then(|_| raw.entry("dynamicConfigFile"));
    let suffix = named.and_then(|entry| entry.value.rsplit_once(".dynamic."));
    Ok(suffix
        .and_then(|(_, version)| u64::from_str_radix(version, 16).ok())
        .unwrap_or(0))
}

fn members(source: &RawConfig) -> Result<Vec<Member<'_>>, Vec<Problem>> {
    let mut members = Vec::new();
    let mut problems = Vec::new();
    for entry in source.entries() {
        let Some(id) = entry.key.strip_prefix("server.") else {
            continue;
        };
        match parse_member(entry, id) {
            Ok(member) => members.push(member),
            Err(what) => problems.push(Problem::new(
                &entry.origin,
                format!("{}={}: {what}", entry.key, entry.value),
                FORM,
            )),
        }
    }
    if problems.is_empty() {
        Ok(members)
    } else {
        Err(problems)
    }
}

/// Reads `host:port:port[:type][|...][;[host:]port]` (`QuorumPeer.QuorumServer`).
fn parse_member<'a>(entry: &'a Entry, id: &str) -> Result<Member<'a>, String> {
    let id = id
        .parse::<i64>()
        .map_err(|_| format!("\"{id}\" is not the number of a server"))?;
    let mut parts = entry.value.split(';');
    let addresses = parts.next().unwrap_or_default();
    let client = match (parts.next(), parts.next(), parts.next()) {
        (None, _, _) => None,
        (Some(client), None, _) => Some(parse_client(client)?),
        (Some(_), Some(_), None) => {
            return Err(
                "a secure client port asks for TLS, which is not implemented yet".to_owned(),
            );
        }
        _ => return Err("it has too many parts".to_owned()),
    };
    let mut role = None;
    let mut found = Vec::new();
    for address in addresses.split('|') {
        let parts = host_and_ports(address)?;
        let [host, quorum_port, election_port, kind @ ..] = parts.as_slice() else {
            return Err(format!("\"{address}\" is not of the form host:port:port"));
        };
        let address = PeerAddress {
            host: (*host).to_owned(),
            quorum_port: parse_port(quorum_port)?,
            election_port: parse_port(election_port)?,
        };
        if address.quorum_port == address.election_port {
            return Err(format!(
                "port {} is given for both purposes",
                address.election_port
            ));
        }
        found.push(address);
        let votes = match kind {
            [] => continue,
            [kind] if kind.trim().eq_ignore_ascii_case("participant") => true,
            [kind] if kind.trim().eq_ignore_ascii_case("observer") => false,
            _ => {
                return Err(format!(
                    "\"{}\" is neither participant nor observer",
                    kind.join(":")
                ));
            }
        };
        // ZK: "Multiple addresses should have similar roles".
        if role.replace(votes).is_some_and(|before| before != votes) {
            return Err("its addresses have different roles".to_owned());
        }
    }
    Ok(Member {
        entry,
        id,
        config: MemberConfig {
            votes: role.unwrap_or(true),
            addresses: found,
            client,
        },
    })
}

fn parse_client(text: &str) -> Result<ClientAddress, String> {
    let parts = if text.contains(':') {
        host_and_ports(text)?
    } else {
        vec![text]
    };
    match parts.as_slice() {
        [port] => Ok(ClientAddress {
            host: Host::Any,
            port: parse_port(port)?,
        }),
        [host, port] => Ok(ClientAddress {
            host: Host::parse(host),
            port: parse_port(port)?,
        }),
        _ => Err(format!("\"{text}\" is neither port nor host:port")),
    }
}

/// Splits at colons, but keeps an IPv6 address in brackets whole (`ConfigUtils.getHostAndPort`).
fn host_and_ports(text: &str) -> Result<Vec<&str>, String> {
    let Some(rest) = text.strip_prefix('[') else {
        return Ok(text.split(':').collect());
    };
    let Some((host, rest)) = rest.split_once(']') else {
        return Err(format!("\"{text}\" has a [ without its ]"));
    };
    match rest.strip_prefix(':') {
        Some(ports) if !ports.is_empty() => {
            Ok([host].into_iter().chain(ports.split(':')).collect())
        }
        _ => Err(format!("\"{text}\" has no port")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("\"{text}\" is not a port"))
}

/// The client address of the own server line counts, and must not contradict `clientPort`.
fn adopt_client_address(
    raw: &RawConfig,
    me: Member<'_>,
    draft: &mut Draft,
) -> Result<(), Vec<Problem>> {
    let Some(from_line) = me.config.client else {
        return Ok(());
    };
    if let Some(port) = draft.client_port {
        let host = draft.client_host.clone().unwrap_or(Host::Any);
        let same_port = port == from_line.port;
        // ZK: with a wildcard address in the static file only the ports are compared.
        let same = same_port && (host == Host::Any || host == from_line.host);
        if !same {
            return refuse(
                &raw.at("clientPort"),
                &format!(
                    "the client address {} differs from that of {}, {from_line}",
                    ClientAddress { host, port },
                    me.entry.key
                ),
                "Keep one of the two",
            );
        }
    }
    draft.client_port = Some(from_line.port);
    draft.client_host = Some(from_line.host);
    Ok(())
}
