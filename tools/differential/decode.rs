//! Replies and events, decoded in full and made comparable.

use std::collections::BTreeMap;

use ringkeeper_proto::connect::{ConnectResponse, PASSWORD_LEN};
use ringkeeper_proto::reply::ReplyHeader;
use ringkeeper_proto::request::MultiHeader;
use ringkeeper_proto::{Acl, DecodeError, OpCode, Reader, SessionId, Stat, Xid};

use crate::identity::session_password;
use crate::observation::{Body, Data, Moment, Node, Offset, Owner, Part, Seen, Welcome};
use crate::script::{Bytes, Call};

/// How far a server's clock may be from ours, in milliseconds.
const CLOCK_SLACK_MS: i64 = 2_000;

/// What turns the numbers of one server, in one script, into comparable ones.
#[derive(Debug, Default)]
pub(crate) struct Lens {
    /// The zxid at the script's start.
    pub(crate) start: i64,
    /// The wall clock at the script's start, in milliseconds.
    pub(crate) start_ms: i64,
    /// Session ids in the order of their creation.
    pub(crate) sessions: Vec<i64>,
    /// The znodes that outlive scripts: their child counters and child counts at the start.
    pub(crate) lasting: BTreeMap<String, (i32, i32)>,
    /// The time of each transaction that has shown.
    pub(crate) times: BTreeMap<i64, i64>,
}

impl Lens {
    pub(crate) fn offset(&self, zxid: i64) -> Offset {
        match zxid {
            -1 => Offset::MinusOne,
            0 => Offset::Zero,
            _ if zxid < self.start => Offset::Before,
            _ => Offset::At(zxid.wrapping_sub(self.start)),
        }
    }

    fn owner(&self, session: i64) -> Owner {
        if session == 0 {
            return Owner::Nobody;
        }
        match self.sessions.iter().position(|known| *known == session) {
            Some(number) => Owner::Session(number),
            None => Owner::Stranger,
        }
    }

    fn moment(&mut self, zxid: i64, time_ms: i64, now_ms: i64) -> Moment {
        if time_ms == 0 {
            return Moment::Zero;
        }
        if zxid <= self.start {
            return Moment::Right;
        }
        let first = *self.times.entry(zxid).or_insert(time_ms);
        if first != time_ms {
            return Moment::Wrong(format!(
                "another time of the same txn, {} ms off",
                time_ms - first
            ));
        }
        if time_ms < self.start_ms - CLOCK_SLACK_MS || time_ms > now_ms + CLOCK_SLACK_MS {
            return Moment::Wrong(format!("{} ms from now", time_ms - now_ms));
        }
        Moment::Right
    }

    fn node(&mut self, path: Option<&str>, stat: &Stat, now_ms: i64) -> Node {
        let (cversion, num_children) = path
            .and_then(|path| self.lasting.get(path))
            .copied()
            .unwrap_or_default();
        Node {
            czxid: self.offset(stat.czxid),
            mzxid: self.offset(stat.mzxid),
            pzxid: self.offset(stat.pzxid),
            ctime: self.moment(stat.czxid, stat.ctime, now_ms),
            mtime: self.moment(stat.mzxid, stat.mtime, now_ms),
            version: stat.version,
            cversion: stat.cversion.wrapping_sub(cversion),
            aversion: stat.aversion,
            owner: self.owner(stat.ephemeral_owner),
            data_length: stat.data_length,
            num_children: stat.num_children.wrapping_sub(num_children),
        }
    }

    /// A connect response.
    pub(crate) fn welcome(&self, response: &ConnectResponse) -> Welcome {
        Welcome {
            timeout_ms: response.timeout_ms,
            session: self.owner(response.session.0),
            password: if response.password == [0; PASSWORD_LEN] {
                "zeros"
            } else if response.password == session_password(response.session.0) {
                "derived"
            } else {
                "other"
            },
            read_only: response.read_only,
        }
    }

    /// A frame that answers the call of this place in a burst, or a watch event.
    pub(crate) fn frame(&mut self, frame: &[u8], place: usize, call: &Call, now_ms: i64) -> Seen {
        let mut reader = Reader::new(frame);
        let Ok(header) = ReplyHeader::decode(&mut reader) else {
            return Seen::Frame(Data(Some(frame.to_vec())));
        };
        if header.xid == Xid::NOTIFICATION {
            return self.event(frame);
        }
        if call.op == OpCode::CreateSession.code()
            && let Some(seen) = self.second_welcome(frame, place, call)
        {
            return seen;
        }
        let rest = reader.rest();
        let body = if rest.is_empty() {
            Body::Nothing
        } else {
            let mut reader = Reader::new(rest);
            match self.body(call, &mut reader, now_ms) {
                Ok(body) if reader.is_empty() => body,
                _ => Body::Unreadable(Data(Some(rest.to_vec()))),
            }
        };
        Seen::Reply {
            call: place,
            op: call.op,
            xid: header.xid.0,
            zxid: self.offset(header.zxid.to_wire()),
            error: header.error,
            body,
        }
    }

    /// A watch event.
    pub(crate) fn event(&self, frame: &[u8]) -> Seen {
        self.read_event(frame)
            .unwrap_or_else(|_| Seen::Frame(Data(Some(frame.to_vec()))))
    }

    fn read_event(&self, frame: &[u8]) -> Result<Seen, DecodeError> {
        let mut reader = Reader::new(frame);
        let header = ReplyHeader::decode(&mut reader)?;
        let event = Seen::Event {
            zxid: self.offset(header.zxid.to_wire()),
            error: header.error,
            kind: reader.int()?,
            state: reader.int()?,
            path: text(&mut reader)?,
        };
        if !reader.is_empty() || header.xid != Xid::NOTIFICATION {
            return Err(DecodeError::Short {
                at: reader.at(),
                needed: 0,
            });
        }
        Ok(event)
    }

    // ZK: a createSession request of a client gets a connect response.
    fn second_welcome(&self, frame: &[u8], place: usize, call: &Call) -> Option<Seen> {
        let mut reader = Reader::new(frame);
        let response = ConnectResponse::decode(&mut reader).ok()?;
        (reader.is_empty() && response.session != SessionId::NONE).then(|| Seen::Reply {
            call: place,
            op: call.op,
            xid: 0,
            zxid: Offset::Zero,
            error: 0,
            body: Body::Session(self.welcome(&response)),
        })
    }

    fn body(
        &mut self,
        call: &Call,
        reader: &mut Reader<'_>,
        now_ms: i64,
    ) -> Result<Body, DecodeError> {
        let path = call.path();
        let mut node = |reader: &mut Reader<'_>| -> Result<Node, DecodeError> {
            Ok(self.node(path, &Stat::decode(reader)?, now_ms))
        };
        let Some(op) = call.op() else {
            return Ok(Body::Unreadable(Data(Some(
                reader.take(reader.rest().len())?.to_vec(),
            ))));
        };
        Ok(match op {
            OpCode::Create | OpCode::Sync => Body::Path(text(reader)?),
            OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
                Body::PathNode(text(reader)?, node(reader)?)
            }
            OpCode::SetData | OpCode::SetAcl | OpCode::Exists => Body::Node(node(reader)?),
            OpCode::GetData => Body::Data(data(reader)?, node(reader)?),
            OpCode::GetAcl => Body::Acl(acl(reader)?, node(reader)?),
            OpCode::GetChildren | OpCode::GetEphemerals => Body::Names(names(reader)?),
            OpCode::GetChildren2 => Body::NamesNode(names(reader)?, node(reader)?),
            OpCode::GetAllChildrenNumber | OpCode::AddWatch => Body::Number(reader.int()?),
            OpCode::WhoAmI => Body::Identities(identities(reader)?),
            OpCode::Multi | OpCode::MultiRead => Body::Parts(self.parts(reader, now_ms)?),
            _ => Body::Unreadable(Data(Some(reader.take(reader.rest().len())?.to_vec()))),
        })
    }

    fn parts(&mut self, reader: &mut Reader<'_>, now_ms: i64) -> Result<Vec<Part>, DecodeError> {
        let mut parts = Vec::new();
        loop {
            let header = MultiHeader::decode(reader)?;
            if header.done {
                return Ok(parts);
            }
            let mut node = |reader: &mut Reader<'_>| -> Result<Node, DecodeError> {
                Ok(self.node(None, &Stat::decode(reader)?, now_ms))
            };
            let body = match OpCode::from_code(header.op) {
                Some(OpCode::Create) => Body::Path(text(reader)?),
                Some(OpCode::Create2) => Body::PathNode(text(reader)?, node(reader)?),
                Some(OpCode::SetData) => Body::Node(node(reader)?),
                Some(OpCode::Delete | OpCode::Check) => Body::Nothing,
                Some(OpCode::Error) => Body::Number(reader.int()?),
                Some(OpCode::GetData) => Body::Data(data(reader)?, node(reader)?),
                Some(OpCode::GetChildren) => Body::Names(names(reader)?),
                _ => {
                    return Err(DecodeError::Value {
                        field: "type",
                        value: header.op.into(),
                    });
                }
            };
            parts.push(Part {
                op: header.op,
                error: header.error,
                body,
            });
        }
    }
}

/// What stands before a string that came with surrogates.
pub(crate) const SURROGATES: &str = "(surrogates)";

// ZK: BinaryOutputArchive writes a character beyond the basic plane as its two surrogates, three bytes each,
// which is not UTF-8.
fn text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let Some(bytes) = reader.buffer()? else {
        return Ok("(null)".to_owned());
    };
    if let Ok(text) = str::from_utf8(bytes) {
        return Ok(text.to_owned());
    }
    let mut units = Vec::new();
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first() {
        let (unit, len) = match (first, others) {
            (0x00..=0x7f, _) => (u16::from(*first), 1),
            (0xc0..=0xdf, [second, ..]) => (bits(*first, 0x1f, 6) | bits(*second, 0x3f, 0), 2),
            (0xe0..=0xef, [second, third, ..]) => (
                bits(*first, 0x0f, 12) | bits(*second, 0x3f, 6) | bits(*third, 0x3f, 0),
                3,
            ),
            _ => return Ok(format!("{}", Bytes(bytes))),
        };
        units.push(unit);
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(format!("{SURROGATES}{}", String::from_utf16_lossy(&units)))
}

fn bits(byte: u8, mask: u8, place: u32) -> u16 {
    u16::from(byte & mask) << place
}

fn data(reader: &mut Reader<'_>) -> Result<Data, DecodeError> {
    Ok(Data(reader.buffer()?.map(<[u8]>::to_vec)))
}

fn names(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let count = reader.count(4)?.unwrap_or(0);
    let names = (0..count).map(|_| text(reader));
    let mut names = names.collect::<Result<Vec<_>, DecodeError>>()?;
    names.sort();
    Ok(names)
}

// The order of an ACL is the creator's, so it is compared.
fn acl(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let Some(count) = reader.count(Acl::LEN_MIN)? else {
        return Ok(vec!["(null)".to_owned()]);
    };
    let entry = |reader: &mut Reader<'_>| {
        let perms = reader.int()?;
        Ok(format!("{}:{}={perms}", text(reader)?, text(reader)?))
    };
    (0..count).map(|_| entry(reader)).collect()
}

// ZK: AuthUtil.getClientInfos keeps the order in which the identities were added.
fn identities(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, DecodeError> {
    let count = reader.count(8)?.unwrap_or(0);
    (0..count)
        .map(|_| Ok((text(reader)?, text(reader)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zxids_become_offsets() {
        let lens = Lens {
            start: 10,
            ..Lens::default()
        };
        assert_eq!(lens.offset(12), Offset::At(2));
        assert_eq!(lens.offset(10), Offset::At(0));
        assert_eq!(lens.offset(9), Offset::Before);
        assert_eq!(lens.offset(0), Offset::Zero);
        assert_eq!(lens.offset(-1), Offset::MinusOne);
    }

    #[test]
    fn surrogates_are_read_and_marked() {
        let bytes = b"\0\0\0\x08/a\xed\xa0\xbd\xed\xb8\x80";
        assert_eq!(
            text(&mut Reader::new(bytes)),
            Ok(format!("{SURROGATES}/a\u{1f600}"))
        );
    }

    #[test]
    fn a_txn_has_one_time() {
        let mut lens = Lens {
            start: 10,
            start_ms: 1_000_000,
            ..Lens::default()
        };
        assert_eq!(lens.moment(11, 1_000_001, 1_000_002), Moment::Right);
        assert_eq!(lens.moment(11, 1_000_001, 1_000_002), Moment::Right);
        assert!(matches!(
            lens.moment(11, 1_000_002, 1_000_002),
            Moment::Wrong(_)
        ));
        assert!(matches!(
            lens.moment(12, 1_500_000, 1_000_002),
            Moment::Wrong(_)
        ));
    }
}
