//! The keys that count for members of an ensemble only. A standalone server checks and logs them.

use std::path::PathBuf;

use crate::draft::{Draft, OBSERVER_QUEUE_BYTES};
use crate::table::{Effect, INT_MAX, INT_MIN, Key, Owner, Set};

/// Rows in the order of the documentation.
pub(crate) const KEYS: &[Key] = &[
    int(
        "initLimit",
        Owner::File,
        "",
        "Ticks in which a follower must connect and synchronize",
        |draft, value| draft.peers.init_limit = u32::try_from(value).ok(),
    ),
    int(
        "syncLimit",
        Owner::File,
        "",
        "Ticks that a peer may be silent, and a proposal unacknowledged",
        |draft, value| draft.peers.sync_limit = u32::try_from(value).ok(),
    ),
    int(
        "connectToLearnerMasterLimit",
        Owner::File,
        "0",
        "Ticks in which a learner must reach its leader; 0 for initLimit",
        |draft, value| draft.peers.connect_limit = u32::try_from(value).unwrap_or(0),
    ),
    Key {
        name: "electionAlg",
        owner: Owner::File,
        default: "3",
        about: "Election algorithm, of which only 3 is left",
        effect: Effect::InEnsemble(Set::Text {
            takes: "3",
            store: |_, value| match value {
                "3" => Ok(None),
                _ => Err("it must be 3".to_owned()),
            },
        }),
    },
    Key {
        name: "peerType",
        owner: Owner::File,
        default: "",
        about: "Role of this server; its line counts where they differ",
        effect: Effect::InEnsemble(Set::Text {
            takes: "participant, observer",
            store: peer_type,
        }),
    },
    int(
        "cnxTimeout",
        Owner::Property,
        "5000",
        "Milliseconds for a peer to answer an attempt to connect",
        |draft, value| {
            let value = u32::try_from(value).ok().filter(|value| *value > 0);
            draft.peers.connect_timeout_ms = value.unwrap_or(5000);
        },
    ),
    boolean(
        "quorumListenOnAllIPs",
        Owner::File,
        "false",
        "Peers are awaited on every interface, and not only at the own addresses",
        |draft, value| draft.peers.listen_on_all = value,
    ),
    boolean(
        "multiAddress.enabled",
        Owner::Property,
        "false",
        "Members may have several addresses; servers older than 3.6 do not understand them",
        |draft, value| draft.peers.several_addresses = value,
    ),
    boolean(
        "multiAddress.reachabilityCheckEnabled",
        Owner::Property,
        "true",
        "Where members may have several addresses, one that does not answer during an election is soon given up for another",
        |draft, value| draft.peers.checks_addresses = value,
    ),
    int(
        "multiAddress.reachabilityCheckTimeoutMs",
        Owner::Property,
        "1000",
        "Milliseconds for that; `cnxTimeout` where it is off",
        |draft, value| {
            let value = u32::try_from(value).ok().filter(|value| *value > 0);
            draft.peers.check_timeout_ms = value.unwrap_or(1000);
        },
    ),
    int(
        "observerMasterPort",
        Owner::File,
        "0",
        "Where followers serve observers, one port for all: a voter listens there, an observer tries them before the leader",
        |draft, value| {
            draft.peers.observer_master_port = u16::try_from(value).ok().filter(|port| *port > 0);
        },
    ),
    int(
        "observerMaster.sizeLimit",
        Owner::Property,
        "33554432",
        "Bytes that may wait on the way to an observer which a follower serves; beyond, its link is closed",
        |draft, value| {
            let value = u32::try_from(value).ok().filter(|value| *value > 0);
            draft.peers.observer_queue_bytes = value.unwrap_or(OBSERVER_QUEUE_BYTES);
        },
    ),
    Key {
        name: "oraclePath",
        owner: Owner::File,
        default: "",
        about: "File that begins with 1 as long as this one of two servers may go on without the other",
        effect: Effect::InEnsemble(Set::Text {
            takes: "a path",
            store: |draft, value| {
                draft.peers.oracle_path = (!value.is_empty()).then(|| PathBuf::from(value));
                Ok(None)
            },
        }),
    },
    boolean(
        "localSessionsEnabled",
        Owner::File,
        "false",
        "A new session is known to one server only, and to open it costs no write; it cannot move to another server, and ends when its server or the leader is replaced",
        |draft, value| draft.peers.local_sessions = value,
    ),
    boolean(
        "localSessionsUpgradingEnabled",
        Owner::File,
        "false",
        "A local session becomes known to all servers when it creates an ephemeral; else it is refused one",
        |draft, value| draft.peers.local_sessions_upgrading = value,
    ),
];

fn peer_type(draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
    // ZK: QuorumPeerConfig.parseProperties, in any case.
    draft.peers.observes = Some(match value.to_ascii_lowercase().as_str() {
        "participant" => false,
        "observer" => true,
        _ => return Err("it must be participant or observer".to_owned()),
    });
    Ok(None)
}

const fn int(
    name: &'static str,
    owner: Owner,
    default: &'static str,
    about: &'static str,
    store: fn(&mut Draft, i64),
) -> Key {
    Key {
        name,
        owner,
        default,
        about,
        effect: Effect::InEnsemble(Set::Int {
            min: INT_MIN,
            max: INT_MAX,
            store,
        }),
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
        effect: Effect::InEnsemble(Set::Bool(store)),
    }
}
