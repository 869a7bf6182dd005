//! Who the members are, where they listen, and the bounds of their links.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringkeeper_proto::ServerId;

/// What the links of one server are made from.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// This server.
    pub id: ServerId,
    /// Every member at first, this server included.
    pub members: BTreeMap<ServerId, Member>,
    /// Listen on every interface, whatever the own addresses say (`quorumListenOnAllIPs`).
    pub listen_on_all: bool,
    /// Tell peers all own election addresses and not only the first (`multiAddress.enabled`): servers
    /// older than ZooKeeper 3.6 do not understand that.
    pub tell_all_addresses: bool,
    /// Where followers serve observers (`observerMasterPort`): one that votes listens there, an observer tries them
    /// before the leader.
    pub observer_master_port: Option<u16>,
    /// How long a peer may take to answer an attempt to connect, and to say who it is
    /// (`cnxTimeout`).
    pub connect_patience: Duration,
    /// For how long a peer may leave what an election sends it unanswered before its connection is given up
    /// (`multiAddress.reachabilityCheckTimeoutMs`).
    pub unanswered_max: Duration,
    /// How long a learner tries to reach its leader (`connectToLearnerMasterLimit` or `initLimit`,
    /// times `tickTime`).
    pub leader_patience: Duration,
    /// How long a link may be silent (`initLimit` times `tickTime`). A bound for peers that are dead to
    /// the network; Zab's own limits are tighter.
    pub silence_max: Duration,
    /// The longest packet, in bytes.
    pub packet_bytes_max: usize,
    /// The most output, in bytes, that may wait for a peer that does not read.
    pub queue_bytes_max: usize,
    /// The same for an observer that a follower serves (`observerMaster.sizeLimit`).
    pub observer_queue_bytes_max: usize,
    /// The text of the configuration, which notifications carry.
    pub config: Arc<str>,
}

/// The members as they are now, shared by all links.
pub(crate) type Roster = Rc<RefCell<BTreeMap<ServerId, Member>>>;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Whether it votes. Observers are not called, they call.
    pub votes: bool,
    /// Where it listens; several for one machine with several networks.
    pub addresses: Vec<MemberAddress>,
}

/// One address of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAddress {
    /// An address or a name. Names are looked up anew for each connection.
    pub host: String,
    /// Where it listens for learners while it leads.
    pub quorum_port: u16,
    /// Where it listens for elections.
    pub election_port: u16,
}

impl MemberAddress {
    /// How it tells its election address to others.
    pub(crate) fn election_text(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.election_port),
            false => format!("{}:{}", self.host, self.election_port),
        }
    }
}

impl PeerSettings {
    /// Settings with ZooKeeper's usual bounds: `tickTime` 2000, `initLimit` 10, `cnxTimeout` 5000.
    pub fn new(id: ServerId, members: BTreeMap<ServerId, Member>, config: Arc<str>) -> Self {
        Self {
            id,
            members,
            listen_on_all: false,
            tell_all_addresses: false,
            observer_master_port: None,
            connect_patience: Duration::from_secs(5),
            unanswered_max: Duration::from_secs(5),
            leader_patience: Duration::from_secs(20),
            silence_max: Duration::from_secs(20),
            packet_bytes_max: 8 * 1024 * 1024,
            queue_bytes_max: 64 * 1024 * 1024,
            observer_queue_bytes_max: 32 * 1024 * 1024,
            config,
        }
    }
}
