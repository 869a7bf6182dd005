//! What stands in the `data` of packets.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::{PROTOCOL_VERSION, data_of, skip_ids};
use crate::acl::Id;
use crate::ids::{ServerId, SessionId, Zxid};
use crate::jute::{DecodeError, NOT_UTF8, Reader, WriteJute, wire_len};

/// What a Ringkeeper server understands that Apache's do not: four bytes, `RK` and flags, behind what
/// ZooKeeper's protocol has in LearnerInfo and LEADERINFO. Apache's servers do not read that far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u16);

impl Capabilities {
    /// None: an Apache server, or nothing more than one can do.
    pub const NONE: Self = Self(0);
    /// A learner may ask for a snapshot whatever its log holds (a byte behind ACKEPOCH's four).
    pub const SNAPSHOT_ON_REQUEST: Self = Self(1);
    /// A learner takes HANDOVER: its leader names the one that leads next.
    pub const HAND_OVER: Self = Self(2);
    /// A learner takes NEWEPOCH: its leader begins another epoch, and leads on.
    pub const NEW_EPOCH: Self = Self(4);
    /// ACK and COMMIT may speak of a run of proposals, by its last: of all that came before it on the link too.
    pub const RUNS: Self = Self(8);
    /// What a leader of this version understands.
    pub const OF_LEADER: Self = Self(Self::SNAPSHOT_ON_REQUEST.0 | Self::RUNS.0);
    /// What a learner of this version understands.
    pub const OF_LEARNER: Self = Self(Self::HAND_OVER.0 | Self::NEW_EPOCH.0 | Self::RUNS.0);
    const MAGIC: [u8; 2] = *b"RK";

    /// Whether all of `wanted` are there.
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// From what follows the fields that all servers know.
    fn decode(rest: &[u8]) -> Self {
        match rest {
            [first, second, high, low, ..] if [*first, *second] == Self::MAGIC => {
                Self(u16::from_be_bytes([*high, *low]))
            }
            _ => Self::NONE,
        }
    }

    fn encode(self, out: &mut (impl BufMut + ?Sized)) {
        if self != Self::NONE {
            out.put_slice(&Self::MAGIC);
            out.put_u16(self.0);
        }
    }
}

/// How a learner introduces itself (FOLLOWERINFO, OBSERVERINFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnerInfo {
    /// Its number.
    pub id: ServerId,
    /// The version of the protocol that it speaks; 0 before ZooKeeper 3.3.
    pub protocol_version: i32,
    /// The version of the configuration that it has activated; 0 before ZooKeeper 3.5.
    pub config_version: u64,
    /// What it understands beyond that.
    pub capabilities: Capabilities,
}

impl LearnerInfo {
    /// Reads it, in any of the forms that servers send; `None` from one without a number.
    pub fn decode(data: Option<&[u8]>) -> Result<Option<Self>, DecodeError> {
        let Some(data) = data else {
            return Ok(None);
        };
        let mut reader = Reader::new(data);
        let id = ServerId::from_wire(reader.long()?);
        // ZK: LearnerHandler takes 8, 12 and 20 bytes.
        let protocol_version = reader.int().unwrap_or(0);
        let config_version = reader.long().unwrap_or(0);
        Ok(Some(Self {
            id,
            protocol_version,
            config_version: config_version.cast_unsigned(),
            capabilities: Capabilities::decode(reader.rest()),
        }))
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.put_i64(self.id.to_wire());
        out.put_i32(self.protocol_version);
        out.put_i64(self.config_version.cast_signed());
        self.capabilities.encode(&mut out);
        out
    }
}

/// LEADERINFO's data: the protocol's version, and what the leader understands beyond it.
pub fn decode_leader_info(data: Option<&[u8]>) -> Result<Capabilities, DecodeError> {
    let mut reader = Reader::new(data.unwrap_or_default());
    let version = reader.int()?;
    match version >= PROTOCOL_VERSION {
        true => Ok(Capabilities::decode(reader.rest())),
        false => Err(DecodeError::Value {
            field: "protocolVersion",
            value: version.into(),
        }),
    }
}

/// Writes it.
pub fn encode_leader_info(capabilities: Capabilities) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    out.put_i32(PROTOCOL_VERSION);
    capabilities.encode(&mut out);
    out
}

/// ACKEPOCH's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochAck {
    /// The learner's current epoch; -1 if the answer is no promise.
    pub current_epoch: i32,
    /// It wants a snapshot; only told to a leader with [`Capabilities::SNAPSHOT_ON_REQUEST`].
    pub snapshot: bool,
    /// It may have acknowledged more than its log shows, through this zxid; only told to such a leader.
    pub doubted: Option<Zxid>,
}

impl EpochAck {
    /// Bits of the byte behind the epoch.
    const SNAPSHOT: i8 = 1;
    const DOUBTED: i8 = 2;

    /// Reads it.
    pub fn decode(data: Option<&[u8]>) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data.unwrap_or_default());
        let current_epoch = reader.int()?;
        let flags = if reader.is_empty() { 0 } else { reader.byte()? };
        let doubted = match flags & Self::DOUBTED {
            0 => None,
            _ => Some(Zxid(reader.long()?.cast_unsigned())),
        };
        Ok(Self {
            current_epoch,
            snapshot: flags & Self::SNAPSHOT != 0,
            doubted,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(13);
        out.put_i32(self.current_epoch);
        let mut flags = 0;
        if self.snapshot {
            flags |= Self::SNAPSHOT;
        }
        if self.doubted.is_some() {
            flags |= Self::DOUBTED;
        }
        if flags != 0 {
            out.put_i8(flags);
        }
        if let Some(zxid) = self.doubted {
            out.put_i64(zxid.0.cast_signed());
        }
        out
    }
}

/// A session that a learner heard of since its last PING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The session.
    pub session: SessionId,
    /// Its time-out in milliseconds.
    pub timeout_ms: i32,
}

/// The data of a learner's PING: sessions and time-outs, 12 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TouchTable<'a>(&'a [u8]);

impl<'a> TouchTable<'a> {
    const ENTRY_LEN: usize = 12;

    /// Takes the data of a PING.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        match data.len() % Self::ENTRY_LEN {
            0 => Ok(Self(data)),
            beyond => Err(DecodeError::Short {
                at: data.len(),
                needed: Self::ENTRY_LEN - beyond,
            }),
        }
    }

    /// Appends one entry to a table.
    pub fn put(out: &mut (impl BufMut + ?Sized), touch: Touch) {
        out.put_i64(touch.session.0);
        out.put_i32(touch.timeout_ms);
    }

    /// How many entries there are.
    pub const fn len(&self) -> usize {
        self.0.len() / Self::ENTRY_LEN
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = Touch> + 'a {
        self.0.chunks_exact(Self::ENTRY_LEN).filter_map(|entry| {
            let mut reader = Reader::new(entry);
            Some(Touch {
                session: SessionId(reader.long().ok()?),
                timeout_ms: reader.int().ok()?,
            })
        })
    }
}

/// A learner's REVALIDATE: a client has come back with this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revalidation {
    /// The session.
    pub session: SessionId,
    /// The time-out that the client was given, in milliseconds.
    pub timeout_ms: i32,
}

impl Revalidation {
    /// Reads it.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        Ok(Self {
            session: SessionId(reader.long()?),
            timeout_ms: reader.int()?,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(12);
        out.put_i64(self.session.0);
        out.put_i32(self.timeout_ms);
        out.freeze()
    }
}

/// A leader's REVALIDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revalidated {
    /// The session.
    pub session: SessionId,
    /// Whether it lives.
    pub is_valid: bool,
}

impl Revalidated {
    /// Reads it.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        Ok(Self {
            session: SessionId(reader.long()?),
            is_valid: reader.bool()?,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_i64(self.session.0);
        out.put_bool(self.is_valid);
        out.freeze()
    }
}

/// The identities of a client, as a REQUEST carries them: a `vector<Id>`, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthInfo(Bytes);

impl AuthInfo {
    /// The same bytes for the same identities: good for telling whether they have changed.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Scheme and id of each, null read as "".
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut reader = Reader::new(&self.0);
        let count = reader.int().unwrap_or(-1).max(0);
        (0..count).map_while(move |_| {
            let scheme = reader.ustring().ok()?.unwrap_or("");
            let id = reader.ustring().ok()?.unwrap_or("");
            Some((scheme, id))
        })
    }
}

impl fmt::Debug for AuthInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Ids may be as good as passwords to whoever can guess offline.
        let schemes = self.iter().map(|(scheme, _)| scheme);
        f.debug_list().entries(schemes).finish()
    }
}

/// A client's request that a learner forwards: a REQUEST's data and authinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedRequest {
    /// Whose.
    pub session: SessionId,
    /// The client's number for it.
    pub cxid: i32,
    /// The operation's number, known or not.
    pub op: i32,
    /// The request as the client sent it, without its header.
    pub request: Bytes,
    /// Who the client is.
    pub auth: AuthInfo,
}

impl ForwardedRequest {
    /// Reads the body of a REQUEST ([`QuorumPacket::into_body`](super::QuorumPacket::into_body)),
    /// sharing its memory.
    pub fn decode(body: &Bytes) -> Result<Self, DecodeError> {
        let data = data_of(body)?.unwrap_or_default();
        let mut reader = Reader::new(body);
        reader.buffer()?;
        let ids_at = reader.at();
        skip_ids(&mut reader)?;
        let ids_end = reader.at();
        let mut reader = Reader::new(&data);
        let session = SessionId(reader.long()?);
        let (cxid, op) = (reader.int()?, reader.int()?);
        Ok(Self {
            session,
            cxid,
            op,
            request: data.slice(reader.at()..),
            auth: AuthInfo(body.slice(ids_at..ids_end)),
        })
    }

    /// The body of a REQUEST.
    pub fn encode(session: SessionId, cxid: i32, op: i32, request: &[u8], ids: &[Id]) -> Bytes {
        let ids_len: usize = ids.iter().map(|id| 8 + id.scheme.len() + id.id.len()).sum();
        let mut out = BytesMut::with_capacity(4 + 16 + request.len() + 4 + ids_len);
        out.put_i32(wire_len(16 + request.len()));
        out.put_i64(session.0);
        out.put_i32(cxid);
        out.put_i32(op);
        out.put_slice(request);
        out.put_i32(wire_len(ids.len()));
        for id in ids {
            out.put_ustring(&id.scheme);
            out.put_ustring(&id.id);
        }
        out.freeze()
    }
}

/// COMMITANDACTIVATE's data, and the start of INFORMANDACTIVATE's: the leader of the new
/// configuration; and what follows it.
pub fn split_designated(data: &Bytes) -> Result<(ServerId, Bytes), DecodeError> {
    let leader = Reader::new(data).long()?;
    Ok((ServerId::from_wire(leader), data.slice(8..)))
}

/// NEWLEADER's data: the text of the leader's configuration, "" from servers that send none.
pub fn config_text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or(NOT_UTF8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learners_introduce_themselves_in_every_form() {
        let info = LearnerInfo {
            id: ServerId(3),
            protocol_version: PROTOCOL_VERSION,
            config_version: 0x1_0000_0002,
            capabilities: Capabilities::SNAPSHOT_ON_REQUEST,
        };
        let bytes = info.encode();
        let read = |len: usize| LearnerInfo::decode(Some(&bytes[..len])).unwrap().unwrap();
        assert_eq!(read(24), info);
        let plain = LearnerInfo {
            capabilities: Capabilities::NONE,
            ..info
        };
        assert_eq!(read(20), plain);
        assert_eq!(plain.encode(), bytes[..20]);
        assert_eq!(
            (read(12).protocol_version, read(12).config_version),
            (PROTOCOL_VERSION, 0)
        );
        assert_eq!((read(8).id, read(8).protocol_version), (ServerId(3), 0));
        assert!(LearnerInfo::decode(Some(&bytes[..7])).is_err());
        assert_eq!(LearnerInfo::decode(None), Ok(None));
    }

    #[test]
    fn capabilities_need_their_mark() {
        let plain = encode_leader_info(Capabilities::NONE);
        assert_eq!(plain, [0, 1, 0, 0]);
        assert_eq!(decode_leader_info(Some(&plain)), Ok(Capabilities::NONE));
        let ours = encode_leader_info(Capabilities::SNAPSHOT_ON_REQUEST);
        let read = decode_leader_info(Some(&ours)).unwrap();
        assert!(read.has(Capabilities::SNAPSHOT_ON_REQUEST));
        let other = [0, 1, 0x10, 0, 0, 0, 0, 1];
        assert_eq!(decode_leader_info(Some(&other)), Ok(Capabilities::NONE));
        assert!(decode_leader_info(Some(&[0, 0, 0, 1])).is_err());
        assert!(decode_leader_info(None).is_err());
    }

    #[test]
    fn an_epoch_ack_to_apache_has_four_bytes() {
        let doubt = Some(Zxid(u64::MAX));
        for (snapshot, doubted, len) in [
            (false, None, 4),
            (true, None, 5),
            (false, doubt, 13),
            (true, doubt, 13),
        ] {
            let ack = EpochAck {
                current_epoch: if snapshot { 7 } else { -1 },
                snapshot,
                doubted,
            };
            assert_eq!(ack.encode().len(), len);
            assert_eq!(EpochAck::decode(Some(&ack.encode())), Ok(ack));
        }
        assert!(EpochAck::decode(Some(&[0, 0, 1])).is_err());
    }

    #[test]
    fn touch_tables_are_whole_entries() {
        let touches = [(1, 4000), (-5, 40_000)].map(|(session, timeout_ms)| Touch {
            session: SessionId(session),
            timeout_ms,
        });
        let mut bytes = Vec::new();
        for touch in touches {
            TouchTable::put(&mut bytes, touch);
        }
        let table = TouchTable::decode(&bytes).unwrap();
        assert_eq!((table.len(), table.is_empty()), (2, false));
        assert_eq!(table.iter().collect::<Vec<_>>(), touches);
        assert!(TouchTable::decode(&bytes[..23]).is_err());
        assert!(TouchTable::decode(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_forwarded_request_shares_the_memory_of_its_packet() {
        let ids = [Id::new("ip", "10.0.0.1"), Id::new("digest", "a:b")];
        let body = ForwardedRequest::encode(SessionId(9), 4, 1, b"request", &ids);
        let read = ForwardedRequest::decode(&body).unwrap();
        assert_eq!((read.session, read.cxid, read.op), (SessionId(9), 4, 1));
        assert_eq!(&read.request[..], b"request");
        assert!(body.as_ptr_range().contains(&read.request.as_ptr()));
        let pairs: Vec<_> = read.auth.iter().collect();
        assert_eq!(pairs, [("ip", "10.0.0.1"), ("digest", "a:b")]);
        assert_eq!(format!("{:?}", read.auth), r#"["ip", "digest"]"#);
        for end in 0..body.len() {
            assert!(
                ForwardedRequest::decode(&body.slice(..end)).is_err(),
                "{end}"
            );
        }
        let short = Bytes::from_static(&[0, 0, 0, 2, 1, 2, 255, 255, 255, 255]);
        assert!(ForwardedRequest::decode(&short).is_err());
    }

    #[test]
    fn sessions_are_revalidated() {
        let question = Revalidation {
            session: SessionId(0x1_0000),
            timeout_ms: 30_000,
        };
        assert_eq!(Revalidation::decode(&question.encode()), Ok(question));
        assert!(Revalidation::decode(&question.encode()[..11]).is_err());
        let answer = Revalidated {
            session: SessionId(0x1_0000),
            is_valid: true,
        };
        assert_eq!(answer.encode().len(), 9);
        assert_eq!(Revalidated::decode(&answer.encode()), Ok(answer));
    }
}
