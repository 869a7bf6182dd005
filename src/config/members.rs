//! The `server.N` lines: whether they describe a standalone server, and which client port they give it.
//!
//! The rules are those of `QuorumPeerConfig.parseDynamicConfig`, `setupMyId` and `setupClientPort`: no line or one voter makes a
//! standalone server (unless `standaloneEnabled=false`); the line that `myid` names may bring the client port.
//!
//! Invariant: what would be an ensemble is refused, so that a server never starts alone with data that others share.

use crate::config::{ClientAddress, Host};
use crate::draft::Draft;
use crate::raw::{Entry, RawConfig};
use crate::report::{Notice, Problem};

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

/// One `server.N` line, as far as a standalone server needs it.
#[derive(Debug)]
struct Member<'a> {
    entry: &'a Entry,
    id: i64,
    votes: bool,
    client: Option<ClientAddress>,
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
    let voters: Vec<_> = members.iter().filter(|member| member.votes).collect();
    let observer = members.iter().find(|member| !member.votes);
    match (voters.as_slice(), observer) {
        ([], Some(observer)) => {
            return refuse(
                &observer.entry.origin,
                "observers without a participant are not a valid configuration",
                FORM,
            );
        }
        ([] | [_], None) if !draft.standalone_enabled => {
            return refuse(
                &raw.at("standaloneEnabled"),
                "standaloneEnabled=false asks for an ensemble, and this version runs standalone servers only",
                "Remove the line to start a standalone server",
            );
        }
        ([], None) => return Ok(()),
        ([voter], None) => {
            let text = format!(
                "{} is the only server, so this is a standalone server",
                voter.entry.key
            );
            notices.push(Notice::info(&voter.entry.origin, text));
        }
        ([_], Some(observer)) => {
            return refuse(
                &observer.entry.origin,
                "one participant with observers is not a valid configuration",
                FORM,
            );
        }
        ([_, second, ..], _) => {
            let what = format!(
                "{} makes this an ensemble, and this version runs standalone servers only",
                second.entry.key
            );
            let remedy = "Keep the members on Apache ZooKeeper for now, or leave one server line for a standalone server with \
                          data of its own";
            return refuse(&second.entry.origin, &what, remedy);
        }
    }
    let me = members.into_iter().find(|member| my_id == Some(member.id));
    me.map_or(Ok(()), |me| adopt_client_address(raw, me, draft))
}

fn refuse(origin: &crate::report::Origin, what: &str, remedy: &str) -> Result<(), Vec<Problem>> {
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
        .filter(|entry| !is_member_key(&entry.key))
        .map(|entry| {
            let what = format!(
                "{} does not belong into a dynamic configuration file",
                entry.key
            );
            Problem::new(
                &entry.origin,
                what,
                "Keep server.N, group.N and weight.N lines in it and nothing else",
            )
        });
    let problems: Vec<_> = misplaced.chain(foreign).collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
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
    let mut votes = true;
    for address in addresses.split('|') {
        let parts = host_and_ports(address)?;
        let [_, peer_port, election_port, kind @ ..] = parts.as_slice() else {
            return Err(format!("\"{address}\" is not of the form host:port:port"));
        };
        for port in [peer_port, election_port] {
            parse_port(port)?;
        }
        votes = match kind {
            [] => votes,
            [kind] if kind.trim().eq_ignore_ascii_case("participant") => true,
            [kind] if kind.trim().eq_ignore_ascii_case("observer") => false,
            _ => {
                return Err(format!(
                    "\"{}\" is neither participant nor observer",
                    kind.join(":")
                ));
            }
        };
    }
    Ok(Member {
        entry,
        id,
        votes,
        client,
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
    let Some(from_line) = me.client else {
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
