//! Packets as Zab knows them, and as they stand on the wire.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::quorum::bodies::{
    EpochAck, config_text, decode_leader_info, encode_leader_info, split_designated,
};
use ringkeeper_proto::quorum::{
    Capabilities, LearnerInfo, PROTOCOL_VERSION, PacketKind, QuorumPacket, put_packet,
    put_packet_with_body,
};
use ringkeeper_proto::{DecodeError, Epoch, ServerId, Zxid};
use ringkeeper_zab::{Message, Proposal};

use crate::contract::{Packet, Rider};

/// The wire's -1.
const NO_ZXID: Zxid = Zxid(u64::MAX);

/// Who is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The leader: this server opened the link.
    Leader,
    /// A learner.
    Learner,
}

/// Appends a packet as it goes to `peer`.
pub fn encode(packet: &Packet, peer: Peer, out: &mut BytesMut) {
    let mut put = |kind, zxid, data: Option<&[u8]>| put_packet(out, kind, zxid, data);
    match &packet.message {
        Message::LearnerInfo {
            id,
            observer,
            accepted_epoch,
            config_version,
            capabilities,
        } => {
            let kind = match observer {
                true => PacketKind::ObserverInfo,
                false => PacketKind::FollowerInfo,
            };
            let info = LearnerInfo {
                id: *id,
                protocol_version: PROTOCOL_VERSION,
                config_version: *config_version,
                capabilities: *capabilities,
            };
            put(kind, start_of(*accepted_epoch), Some(&info.encode()));
        }
        Message::LeaderInfo { epoch, extended } => {
            let capabilities = match extended {
                true => Capabilities::OF_LEADER,
                false => Capabilities::NONE,
            };
            let data = encode_leader_info(capabilities);
            put(PacketKind::LeaderInfo, start_of(*epoch), Some(&data));
        }
        Message::AckEpoch {
            current_epoch,
            last_logged,
            snapshot,
            doubted,
        } => {
            let ack = EpochAck {
                current_epoch: current_epoch.map_or(-1, |epoch| epoch.0.cast_signed()),
                snapshot: *snapshot,
                doubted: *doubted,
            };
            let zxid = last_logged.unwrap_or(NO_ZXID);
            put(PacketKind::AckEpoch, zxid, Some(&ack.encode()));
        }
        Message::Diff { zxid } => put(PacketKind::Diff, *zxid, None),
        Message::Trunc { zxid } => put(PacketKind::Trunc, *zxid, None),
        Message::Snap { zxid } => put(PacketKind::Snap, *zxid, None),
        Message::NewLeader { epoch, config } => put(
            PacketKind::NewLeader,
            start_of(*epoch),
            Some(config.as_bytes()),
        ),
        Message::UpToDate => put(PacketKind::UpToDate, NO_ZXID, None),
        Message::Proposal(Proposal { zxid, payload }) => {
            put(PacketKind::Proposal, *zxid, Some(payload));
        }
        Message::Ack { zxid } => put(PacketKind::Ack, *zxid, None),
        Message::Commit { zxid } => put(PacketKind::Commit, *zxid, None),
        Message::CommitAndActivate { zxid, leader } => {
            let leader = leader.to_wire().to_be_bytes();
            put(PacketKind::CommitAndActivate, *zxid, Some(&leader));
        }
        Message::Inform(Proposal { zxid, payload }) => {
            put(PacketKind::Inform, *zxid, Some(payload));
        }
        Message::InformAndActivate {
            proposal: Proposal { zxid, payload },
            leader,
        } => {
            let leader = leader.to_wire().to_be_bytes();
            let data = [&leader[..], payload].concat();
            put(PacketKind::InformAndActivate, *zxid, Some(&data));
        }
        Message::Ping { round } => {
            let touches = match (&packet.rider, peer) {
                (Rider::Touches(touches), _) => Some(&touches[..]),
                // ZK: a leader reads the table without looking whether there is one.
                (_, Peer::Leader) => Some(&[][..]),
                (_, Peer::Learner) => None,
            };
            put(PacketKind::Ping, Zxid(*round), touches);
        }
        Message::Sync => put(PacketKind::Sync, Zxid::ZERO, None),
        Message::Request(body) => put_packet_with_body(out, PacketKind::Request, NO_ZXID, body),
        Message::Revalidate(data) => put(PacketKind::Revalidate, NO_ZXID, Some(data)),
        Message::NewEpoch { epoch } => put(PacketKind::NewEpoch, start_of(*epoch), None),
        Message::HandOver { leader, round } => {
            let leader = leader.to_wire().to_be_bytes();
            put(PacketKind::HandOver, Zxid(*round), Some(&leader));
        }
    }
}

/// About how many bytes a packet takes, for deciding when to send.
pub(crate) fn encoded_len(packet: &Packet) -> usize {
    let payload = match &packet.message {
        Message::Proposal(proposal)
        | Message::Inform(proposal)
        | Message::InformAndActivate { proposal, .. } => proposal.payload.len(),
        Message::Request(body) | Message::Revalidate(body) => body.len(),
        _ => 0,
    };
    64 + payload
}

/// Reads a packet that came from `peer`, sharing its memory. `None` for a kind that is not known, which
/// is passed over, as Apache's servers do. A learner that gives no number is called `nameless`.
///
/// # Errors
/// When the bytes are no packet.
pub fn decode(bytes: &Bytes, nameless: ServerId) -> Result<Option<Packet>, DecodeError> {
    let packet = match QuorumPacket::decode(bytes) {
        Ok(packet) => packet,
        Err(DecodeError::Value { field: "type", .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let zxid = packet.zxid;
    let data = packet.data();
    let bytes_of = |data: &Option<Bytes>| data.clone().unwrap_or_default();
    let mut rider = Rider::None;
    let message = match packet.kind {
        PacketKind::FollowerInfo | PacketKind::ObserverInfo => {
            let info = introduced(data.as_deref(), nameless)?;
            Message::LearnerInfo {
                id: info.id,
                observer: packet.kind == PacketKind::ObserverInfo,
                accepted_epoch: zxid.epoch(),
                config_version: info.config_version,
                capabilities: info.capabilities,
            }
        }
        PacketKind::LeaderInfo => Message::LeaderInfo {
            epoch: zxid.epoch(),
            extended: decode_leader_info(data.as_deref())?.has(Capabilities::OF_LEADER),
        },
        PacketKind::AckEpoch => {
            let ack = EpochAck::decode(data.as_deref())?;
            Message::AckEpoch {
                current_epoch: current_epoch(ack.current_epoch)?,
                last_logged: (zxid != NO_ZXID).then_some(zxid),
                snapshot: ack.snapshot,
                doubted: ack.doubted,
            }
        }
        PacketKind::Diff => Message::Diff { zxid },
        PacketKind::Trunc => Message::Trunc { zxid },
        PacketKind::Snap => Message::Snap { zxid },
        PacketKind::NewLeader => Message::NewLeader {
            epoch: zxid.epoch(),
            config: Arc::from(config_text(&bytes_of(&data))),
        },
        PacketKind::UpToDate => Message::UpToDate,
        PacketKind::Proposal => Message::Proposal(Proposal {
            zxid,
            payload: bytes_of(&data),
        }),
        PacketKind::Ack => Message::Ack { zxid },
        PacketKind::Commit => Message::Commit { zxid },
        PacketKind::CommitAndActivate => Message::CommitAndActivate {
            zxid,
            leader: split_designated(&bytes_of(&data))?.0,
        },
        PacketKind::Inform => Message::Inform(Proposal {
            zxid,
            payload: bytes_of(&data),
        }),
        PacketKind::InformAndActivate => {
            let (leader, payload) = split_designated(&bytes_of(&data))?;
            let proposal = Proposal { zxid, payload };
            Message::InformAndActivate { proposal, leader }
        }
        PacketKind::Ping => {
            if let Some(touches) = data.filter(|data| !data.is_empty()) {
                rider = Rider::Touches(touches);
            }
            Message::Ping { round: zxid.0 }
        }
        PacketKind::Sync => Message::Sync,
        PacketKind::Request => Message::Request(packet.into_body()),
        PacketKind::Revalidate => Message::Revalidate(bytes_of(&data)),
        PacketKind::NewEpoch => Message::NewEpoch {
            epoch: zxid.epoch(),
        },
        PacketKind::HandOver => Message::HandOver {
            leader: split_designated(&bytes_of(&data))?.0,
            round: zxid.0,
        },
    };
    Ok(Some(Packet { message, rider }))
}

/// Who introduces itself, with which configuration and capabilities.
fn introduced(data: Option<&[u8]>, nameless: ServerId) -> Result<LearnerInfo, DecodeError> {
    let Some(info) = LearnerInfo::decode(data)? else {
        return Ok(LearnerInfo {
            id: nameless,
            protocol_version: PROTOCOL_VERSION,
            config_version: 0,
            capabilities: Capabilities::NONE,
        });
    };
    // A learner from before ZooKeeper 3.3 knows no epochs.
    if info.protocol_version < PROTOCOL_VERSION {
        return Err(DecodeError::Value {
            field: "protocolVersion",
            value: info.protocol_version.into(),
        });
    }
    Ok(info)
}

fn current_epoch(wire: i32) -> Result<Option<Epoch>, DecodeError> {
    match wire {
        -1 => Ok(None),
        epoch => match u32::try_from(epoch) {
            Ok(epoch) => Ok(Some(Epoch(epoch))),
            Err(_) => Err(DecodeError::Value {
                field: "currentEpoch",
                value: epoch.into(),
            }),
        },
    }
}

const fn start_of(epoch: Epoch) -> Zxid {
    Zxid::new(epoch, 0)
}

/// A notification's bytes on an election connection: its length, and what follows.
pub(crate) fn put_notification(
    notification: &ringkeeper_zab::Notification,
    config: &str,
    out: &mut BytesMut,
) {
    let record = ringkeeper_proto::election::Notification {
        state: notification.state,
        ballot: notification.ballot,
        round: notification.round,
        config: Some(config),
    };
    ringkeeper_proto::jute::put_frame(out, |out| record.encode(out));
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::SessionId;
    use ringkeeper_proto::quorum::{ForwardedRequest, packet_len};

    use super::*;

    fn proposal() -> Proposal<Bytes> {
        Proposal {
            zxid: Zxid(0x0003_0000_0009),
            payload: Bytes::from_static(b"header, record, digest"),
        }
    }

    /// Every message, with the side that it goes to.
    fn messages() -> Vec<(Message<Bytes>, Peer)> {
        let zxid = Zxid(0x0003_0000_0009);
        let epoch = Epoch(3);
        let introduction = |observer| Message::LearnerInfo {
            id: ServerId(2),
            observer,
            accepted_epoch: epoch,
            config_version: 0x0001_0000_0000,
            capabilities: Capabilities::OF_LEARNER,
        };
        let ack = |current_epoch, last_logged, snapshot| Message::AckEpoch {
            current_epoch,
            last_logged,
            snapshot,
            doubted: None,
        };
        let doubtful = Message::AckEpoch {
            current_epoch: Some(epoch),
            last_logged: Some(zxid),
            snapshot: true,
            doubted: Some(Zxid(u64::MAX)),
        };
        let hand_over = Message::HandOver {
            leader: ServerId(3),
            round: 7,
        };
        let request = ForwardedRequest::encode(SessionId(1), 2, 1, b"create", &[]);
        let to_leader = [
            introduction(false),
            introduction(true),
            hand_over.clone(),
            ack(Some(epoch), Some(zxid), false),
            ack(None, Some(zxid), false),
            ack(None, None, true),
            doubtful,
            Message::Ack { zxid },
            Message::Ping { round: 5 },
            Message::Request(request),
            Message::Revalidate(Bytes::from_static(b"twelve bytes")),
        ];
        let to_learner = [
            Message::LeaderInfo {
                epoch,
                extended: true,
            },
            Message::LeaderInfo {
                epoch,
                extended: false,
            },
            Message::Diff { zxid },
            Message::Trunc { zxid },
            Message::Snap { zxid },
            Message::NewLeader {
                epoch,
                config: Arc::from("server.1=a:1:2\nversion=0"),
            },
            Message::UpToDate,
            hand_over,
            Message::NewEpoch { epoch },
            Message::Proposal(proposal()),
            Message::Commit { zxid },
            Message::Inform(proposal()),
            Message::Ping { round: 5 },
            Message::Sync,
            Message::Revalidate(Bytes::from_static(b"9 bytes..")),
        ];
        let to_leader = to_leader.into_iter().map(|it| (it, Peer::Leader));
        let to_learner = to_learner.into_iter().map(|it| (it, Peer::Learner));
        to_leader.chain(to_learner).collect()
    }

    fn round_trip(packet: &Packet, peer: Peer) -> Packet {
        let mut out = BytesMut::new();
        encode(packet, peer, &mut out);
        assert_eq!(packet_len(&out, 1000), Ok(Some(out.len())));
        let bytes = out.freeze();
        decode(&bytes, ServerId(99)).unwrap().unwrap()
    }

    #[test]
    fn every_message_survives_the_wire() {
        for (message, peer) in messages() {
            let packet = Packet::from(message);
            assert_eq!(round_trip(&packet, peer), packet);
        }
    }

    #[test]
    fn riders_arrive() {
        let packets = [
            (
                Message::Ping { round: 5 },
                Rider::Touches(Bytes::from_static(b"0123456789ab")),
            ),
            (
                Message::CommitAndActivate {
                    zxid: Zxid(5),
                    leader: ServerId(3),
                },
                Rider::None,
            ),
            (
                Message::InformAndActivate {
                    proposal: proposal(),
                    leader: ServerId(3),
                },
                Rider::None,
            ),
        ];
        for (message, rider) in packets {
            let packet = Packet { message, rider };
            assert_eq!(round_trip(&packet, Peer::Leader), packet);
        }
    }

    #[test]
    fn a_ping_to_a_leader_always_has_a_table() {
        let ping = Packet::from(Message::Ping { round: 5 });
        for (peer, length) in [(Peer::Leader, [0; 4]), (Peer::Learner, [0xff; 4])] {
            let mut out = BytesMut::new();
            encode(&ping, peer, &mut out);
            assert_eq!(out[12..16], length);
        }
    }

    #[test]
    fn odd_learners_are_told_apart() {
        let packet = |data: Option<&[u8]>| {
            let mut out = BytesMut::new();
            put_packet(&mut out, PacketKind::FollowerInfo, Zxid::ZERO, data);
            decode(&out.freeze(), ServerId(99))
        };
        let Some(Packet { message, .. }) = packet(None).unwrap() else {
            panic!("a packet");
        };
        assert!(matches!(
            message,
            Message::LearnerInfo {
                id: ServerId(99),
                ..
            }
        ));
        assert!(packet(Some(&[0; 12])).is_err(), "protocol version 0");
        assert!(packet(Some(&[0; 3])).is_err());
    }

    #[test]
    fn kinds_that_nobody_knows_are_passed_over_and_garbage_is_not() {
        let mut out = BytesMut::new();
        put_packet(&mut out, PacketKind::Sync, Zxid::ZERO, None);
        out[3] = 77;
        assert_eq!(decode(&out.clone().freeze(), ServerId(0)), Ok(None));
        out.extend_from_slice(&[1]);
        assert!(decode(&out.freeze(), ServerId(0)).is_err());
        for kind in PacketKind::ALL {
            // Data that is too short for its kind: an error or a packet, never a panic.
            for len in 0..24 {
                let mut out = BytesMut::new();
                put_packet(&mut out, kind, NO_ZXID, Some(&vec![0xff; len]));
                let _ = decode(&out.freeze(), ServerId(0));
            }
        }
    }
}
