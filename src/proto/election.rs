//! What servers tell each other on election connections: the hello that opens one, and notifications.
//!
//! A notification is `int state, long leader, long zxid, long round, long peerEpoch, int version,
//! int len, config text`; ZooKeeper before 3.4.6 ends after `peerEpoch`, before 3.4 after `round`.

use bytes::BufMut;

use crate::ids::{Epoch, ServerId, Zxid};
use crate::jute::{DecodeError, Reader, wire_len};

/// What a server says it is doing (ZooKeeper: `QuorumPeer.ServerState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// In an election.
    Looking,
    /// Follows a leader.
    Following,
    /// Leads.
    Leading,
    /// Observes a leader.
    Observing,
}

impl PeerState {
    const fn code(self) -> i32 {
        match self {
            Self::Looking => 0,
            Self::Following => 1,
            Self::Leading => 2,
            Self::Observing => 3,
        }
    }

    fn from_code(code: i32) -> Result<Self, DecodeError> {
        match code {
            0 => Ok(Self::Looking),
            1 => Ok(Self::Following),
            2 => Ok(Self::Leading),
            3 => Ok(Self::Observing),
            other => Err(DecodeError::Value {
                field: "state",
                value: other.into(),
            }),
        }
    }
}

/// A candidate and why it should lead. Ordered as the election orders votes: by epoch, then zxid, then
/// server (ZooKeeper: `totalOrderPredicate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    /// The epoch whose history the candidate has taken over.
    pub peer_epoch: Epoch,
    /// The end of the candidate's log.
    pub zxid: Zxid,
    /// The candidate.
    pub leader: ServerId,
}

/// What a notification says about who should lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ballot {
    /// A vote.
    For(Vote),
    /// A voter that does not vote, because its storage is blank: zxid -1, which every server ignores.
    Blank(ServerId),
    /// A server without a vote: all fields are the smallest `long`.
    None,
}

/// One message of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    /// What the sender is doing.
    pub state: PeerState,
    /// Whom it votes for, or follows.
    pub ballot: Ballot,
    /// Its election round (`electionEpoch`).
    pub round: u64,
    /// The text of its configuration; `None` from servers that know no reconfiguration.
    pub config: Option<&'a str>,
}

/// The largest notification that ZooKeeper takes, and so do we (`QuorumCnxManager.PACKETMAXSIZE`).
pub const NOTIFICATION_LEN_MAX: usize = 512 * 1024;

const VERSION_WITH_CONFIG: i32 = 2;

impl<'a> Notification<'a> {
    /// Reads a notification of any version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let state = PeerState::from_code(reader.int()?)?;
        let (leader, zxid, round) = (reader.long()?, reader.long()?, reader.long()?);
        let peer_epoch = match reader.is_empty() {
            true => i64::from(Zxid::from_wire(zxid).epoch().0),
            false => reader.long()?,
        };
        let version = match reader.is_empty() {
            true => 0,
            false => reader.int()?,
        };
        let config = match version >= VERSION_WITH_CONFIG {
            true => reader.ustring()?,
            false => None,
        };
        let round = u64::try_from(round).map_err(|_| DecodeError::Value {
            field: "electionEpoch",
            value: round,
        })?;
        Ok(Self {
            state,
            ballot: ballot(leader, zxid, peer_epoch)?,
            round,
            config,
        })
    }

    /// Writes a notification of version 2, or of version 1 when there is no configuration.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        let (leader, zxid, peer_epoch) = match self.ballot {
            Ballot::For(vote) => (
                vote.leader.to_wire(),
                vote.zxid.to_wire(),
                i64::from(vote.peer_epoch.0),
            ),
            Ballot::Blank(id) => (id.to_wire(), -1, 0),
            Ballot::None => (i64::MIN, i64::MIN, i64::MIN),
        };
        out.put_i32(self.state.code());
        out.put_i64(leader);
        out.put_i64(zxid);
        out.put_i64(i64::try_from(self.round).unwrap_or(i64::MAX));
        out.put_i64(peer_epoch);
        match self.config {
            None => out.put_i32(1),
            Some(text) => {
                out.put_i32(VERSION_WITH_CONFIG);
                out.put_i32(wire_len(text.len()));
                out.put_slice(text.as_bytes());
            }
        }
    }
}

fn ballot(leader: i64, zxid: i64, peer_epoch: i64) -> Result<Ballot, DecodeError> {
    if leader == i64::MIN || zxid == i64::MIN || peer_epoch == i64::MIN {
        return Ok(Ballot::None);
    }
    let leader = ServerId::from_wire(leader);
    if zxid == -1 {
        return Ok(Ballot::Blank(leader));
    }
    let epoch = u32::try_from(peer_epoch).map_err(|_| DecodeError::Value {
        field: "peerEpoch",
        value: peer_epoch,
    })?;
    Ok(Ballot::For(Vote {
        peer_epoch: Epoch(epoch),
        zxid: Zxid::from_wire(zxid),
        leader,
    }))
}

/// What opens an election connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Who opened it; [`Hello::ANONYMOUS`] is an observer without a number.
    pub id: ServerId,
    /// Where its election port listens, as `host:port`; several with `multiAddress`. Empty from
    /// servers older than 3.5.
    pub addresses: Vec<&'a str>,
}

impl<'a> Hello<'a> {
    /// The id of an observer that has none (`QuorumPeer.OBSERVER_ID`).
    pub const ANONYMOUS: ServerId = ServerId(i64::MAX as u64);
    /// The longest list of addresses that ZooKeeper takes.
    pub const ADDRESSES_LEN_MAX: usize = 2048;
    const V1: i64 = -65536;
    const V2: i64 = -65535;

    /// How many bytes the hello has, as far as the bytes that have come tell: at least this many are
    /// needed before [`Hello::decode`].
    pub fn len_needed(bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.long() {
            Err(_) => return Ok(8),
            Ok(first) if first >= 0 => return Ok(8),
            Ok(_) => {}
        }
        let (Ok(_), Ok(length)) = (reader.long(), reader.int()) else {
            return Ok(20);
        };
        match usize::try_from(length) {
            Ok(length) if (1..=Self::ADDRESSES_LEN_MAX).contains(&length) => Ok(20 + length),
            _ => Err(DecodeError::Length { at: 16, length }),
        }
    }

    /// Reads a hello of any version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let first = reader.long()?;
        if first >= 0 {
            return Ok(Self {
                id: ServerId::from_wire(first),
                addresses: Vec::new(),
            });
        }
        if first != Self::V1 && first != Self::V2 {
            return Err(DecodeError::Value {
                field: "protocolVersion",
                value: first,
            });
        }
        let id = ServerId::from_wire(reader.long()?);
        let text = reader.ustring()?.unwrap_or("");
        Ok(Self {
            id,
            addresses: match first {
                Self::V1 => vec![text],
                _ => text.split('|').collect(),
            },
        })
    }

    /// Writes a hello: V2 if there are several addresses, which only servers from 3.6 on understand.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        let text = self.addresses.join("|");
        out.put_i64(if self.addresses.len() > 1 {
            Self::V2
        } else {
            Self::V1
        });
        out.put_i64(self.id.to_wire());
        out.put_i32(wire_len(text.len()));
        out.put_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote() -> Vote {
        Vote {
            peer_epoch: Epoch(7),
            zxid: Zxid::new(Epoch(6), 9),
            leader: ServerId(3),
        }
    }

    #[test]
    fn notifications_survive_the_wire() {
        for ballot in [
            Ballot::For(vote()),
            Ballot::Blank(ServerId(2)),
            Ballot::None,
        ] {
            for config in [Some("server.1=a:1:2\nversion=0"), None] {
                let notification = Notification {
                    state: PeerState::Leading,
                    ballot,
                    round: 12,
                    config,
                };
                let mut bytes = Vec::new();
                notification.encode(&mut bytes);
                assert_eq!(Notification::decode(&bytes), Ok(notification));
                for end in 0..bytes.len() {
                    // Never a panic; short forms that old servers send are read as such.
                    let _ = Notification::decode(&bytes[..end]);
                }
            }
        }
    }

    #[test]
    fn old_forms_are_read() {
        let mut bytes = Vec::new();
        bytes.put_i32(0);
        bytes.put_i64(3);
        bytes.put_i64(vote().zxid.to_wire());
        bytes.put_i64(1);
        assert_eq!(bytes.len(), 28);
        let read = Notification::decode(&bytes).unwrap();
        let from_zxid = Vote {
            peer_epoch: Epoch(6),
            ..vote()
        };
        assert_eq!(read.ballot, Ballot::For(from_zxid));
        bytes.put_i64(7);
        bytes.put_i32(1);
        let read = Notification::decode(&bytes).unwrap();
        assert_eq!((read.ballot, read.config), (Ballot::For(vote()), None));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut bytes = Vec::new();
        Notification {
            state: PeerState::Looking,
            ballot: Ballot::None,
            round: 1,
            config: Some(""),
        }
        .encode(&mut bytes);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&i32::MAX.to_be_bytes());
        assert!(Notification::decode(&bytes).is_err());
        bytes[at..].copy_from_slice(&(-2_i32).to_be_bytes());
        assert!(Notification::decode(&bytes).is_err());
    }

    #[test]
    fn a_hello_survives_the_wire_and_tells_its_length() {
        for addresses in [vec!["a:3888"], vec!["a:3888", "[::1]:3888"]] {
            let hello = Hello {
                id: ServerId(4),
                addresses,
            };
            let mut bytes = Vec::new();
            hello.encode(&mut bytes);
            assert_eq!(Hello::decode(&bytes), Ok(hello));
            assert_eq!(Hello::len_needed(&bytes), Ok(bytes.len()));
            assert_eq!(Hello::len_needed(&bytes[..10]), Ok(20));
        }
        let plain = 5_i64.to_be_bytes();
        assert_eq!(Hello::len_needed(&plain), Ok(8));
        assert_eq!(Hello::decode(&plain).unwrap().id, ServerId(5));
    }

    #[test]
    fn a_hello_with_a_length_too_large_is_refused() {
        let mut bytes = Vec::new();
        bytes.put_i64(Hello::V1);
        bytes.put_i64(1);
        bytes.put_i32(2049);
        assert!(Hello::len_needed(&bytes).is_err());
        let negative = (-7_i64).to_be_bytes();
        assert!(Hello::decode(&negative).is_err());
    }
}
