//! Replies and watch events.

use bytes::{BufMut, BytesMut};

use crate::error::ZkError;
use crate::ids::{Xid, Zxid};
use crate::jute::{DecodeError, Reader, WriteJute, put_frame};
use crate::op::OpCode;
use crate::request::MultiHeader;
use crate::stat::Stat;

/// The header of every reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The request's number.
    pub xid: Xid,
    /// The server's last processed zxid when it replied.
    pub zxid: Zxid,
    /// 0, or the code of a [`ZkError`].
    pub error: i32,
}

impl ReplyHeader {
    /// Bytes of the record.
    pub const LEN: usize = 16;

    /// A header of a reply with this outcome.
    pub const fn new(xid: Xid, zxid: Zxid, outcome: Result<(), ZkError>) -> Self {
        let error = match outcome {
            Ok(()) => 0,
            Err(error) => error.code(),
        };
        Self { xid, zxid, error }
    }

    /// Reads the record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            xid: Xid(reader.int()?),
            zxid: Zxid::from_wire(reader.long()?),
            error: reader.int()?,
        })
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        out.put_i32(self.xid.0);
        out.put_i64(self.zxid.to_wire());
        out.put_i32(self.error);
    }
}

/// Appends a reply that has no body, or none because of its error.
pub fn put_header_only(header: ReplyHeader, out: &mut BytesMut) {
    put_frame(out, |out| header.encode(out));
}

/// The outcome of a write, which its reply shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteReply {
    /// delete, check, closeSession: nothing but the header.
    Empty,
    /// create.
    Path(String),
    /// create2, createContainer, createTTL.
    PathStat(String, Stat),
    /// setData, setACL.
    Stat(Stat),
    /// reconfig: the text of the configuration, as getData shows it.
    DataStat(Vec<u8>, Stat),
    /// multi: per operation what it did or why it failed, in order.
    Multi(Vec<(OpCode, Result<Self, i32>)>),
}

impl WriteReply {
    /// Writes the body of the reply.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        match self {
            Self::Empty => {}
            Self::Path(path) => out.put_ustring(path),
            Self::PathStat(path, stat) => {
                out.put_ustring(path);
                stat.encode(out);
            }
            Self::Stat(stat) => stat.encode(out),
            Self::DataStat(data, stat) => {
                out.put_buffer(Some(data));
                stat.encode(out);
            }
            Self::Multi(results) => {
                for (op, result) in results {
                    match result {
                        Ok(reply) => {
                            MultiHeader {
                                op: op.code(),
                                done: false,
                                error: 0,
                            }
                            .encode(out);
                            reply.encode(out);
                        }
                        Err(code) => put_multi_error(*code, out),
                    }
                }
                MultiHeader::END.encode(out);
            }
        }
    }
}

/// Writes the result of a failed operation within a multi.
pub fn put_multi_error(code: i32, out: &mut (impl BufMut + ?Sized)) {
    MultiHeader {
        op: OpCode::Error.code(),
        done: false,
        error: code,
    }
    .encode(out);
    out.put_i32(code);
}

/// What happened to a watched znode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum EventType {
    /// It was created.
    Created = 1,
    /// It was deleted.
    Deleted = 2,
    /// Its data was set.
    DataChanged = 3,
    /// A child was created or deleted.
    ChildrenChanged = 4,
}

/// `KeeperState.SyncConnected`, the state that every event from a server carries.
pub const STATE_SYNC_CONNECTED: i32 = 3;

/// Appends a watch event. `zxid` is the triggering transaction's, or `None` for events that
/// setWatches makes.
pub fn put_watch_event(kind: EventType, path: &str, zxid: Option<Zxid>, out: &mut BytesMut) {
    put_frame(out, |out| {
        out.put_i32(Xid::NOTIFICATION.0);
        out.put_i64(zxid.map_or(-1, Zxid::to_wire));
        out.put_i32(0);
        out.put_i32(kind as i32);
        out.put_i32(STATE_SYNC_CONNECTED);
        out.put_ustring(path);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_multi_carries_each_code_twice() {
        let mut out = BytesMut::new();
        WriteReply::Multi(vec![(OpCode::Check, Err(-101))]).encode(&mut out);
        assert_eq!(
            out.as_ref(),
            [
                0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0x9b, 0xff, 0xff, 0xff,
                0x9b, // error
                0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff // end
            ]
        );
    }
}
