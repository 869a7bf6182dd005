//! Client requests, decoded in place: paths and data borrow from the frame.

use bytes::{BufMut, BytesMut};
use zerocopy::byteorder::big_endian::I32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::acl::AclList;
use crate::ids::{Xid, Zxid};
use crate::jute::{DecodeError, LossyText, Reader, WriteJute, put_frame};
use crate::op::OpCode;

/// The header of every request but the first, read in place.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    xid: I32,
    op: I32,
}

impl RequestHeader {
    /// A header.
    pub const fn new(xid: Xid, op: OpCode) -> Self {
        Self {
            xid: I32::new(xid.0),
            op: I32::new(op.code()),
        }
    }

    /// The header at the start of `frame` and what follows it.
    pub fn split(frame: &[u8]) -> Result<(&Self, &[u8]), DecodeError> {
        Self::ref_from_prefix(frame).map_err(|_| DecodeError::Short {
            at: frame.len(),
            needed: size_of::<Self>().saturating_sub(frame.len()),
        })
    }

    /// The number the reply must carry.
    pub const fn xid(&self) -> Xid {
        Xid(self.xid.get())
    }

    /// The operation's number, known or not.
    pub const fn op_code(&self) -> i32 {
        self.op.get()
    }
}

/// create, create2, createContainer, createTTL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateRequest<'a> {
    /// Where; a sequential create appends its number.
    pub path: &'a str,
    /// The data; `None` is null.
    pub data: Option<&'a [u8]>,
    /// Who may do what; `None` is null.
    pub acl: Option<AclList<'a>>,
    /// `CreateMode.toFlag`, unchecked.
    pub flags: i32,
    /// Milliseconds; createTTL only.
    pub ttl_ms: Option<i64>,
}

/// setWatches and setWatches2: the watches of a client that has reconnected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetWatchesRequest<'a> {
    /// What the client had seen when it lost its connection.
    pub relative_zxid: Zxid,
    /// Paths with data watches.
    pub data: Vec<&'a str>,
    /// Paths with exists watches on missing znodes.
    pub exist: Vec<&'a str>,
    /// Paths with child watches.
    pub child: Vec<&'a str>,
    /// setWatches2: paths with persistent watches.
    pub persistent: Vec<&'a str>,
    /// setWatches2: paths with persistent recursive watches.
    pub persistent_recursive: Vec<&'a str>,
}

/// A client request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the protocol's (zookeeper.jute)"
)]
pub enum Request<'a> {
    Create {
        op: OpCode,
        create: CreateRequest<'a>,
    },
    Delete {
        path: &'a str,
        version: i32,
    },
    /// Sent by the leader's container manager only; refused from clients.
    DeleteContainer {
        path: &'a str,
    },
    SetData {
        path: &'a str,
        data: Option<&'a [u8]>,
        version: i32,
    },
    SetAcl {
        path: &'a str,
        acl: Option<AclList<'a>>,
        version: i32,
    },
    Check {
        path: &'a str,
        version: i32,
    },
    Multi(Vec<Self>),
    Reconfig {
        joining: Option<&'a str>,
        leaving: Option<&'a str>,
        new_members: Option<&'a str>,
        config_id: i64,
    },
    CloseSession,
    Exists {
        path: &'a str,
        watch: bool,
    },
    GetData {
        path: &'a str,
        watch: bool,
    },
    GetAcl {
        path: &'a str,
    },
    GetChildren {
        op: OpCode,
        path: &'a str,
        watch: bool,
    },
    MultiRead(Vec<Self>),
    Sync {
        path: &'a str,
    },
    Ping,
    CheckWatches {
        path: &'a str,
        kind: i32,
    },
    RemoveWatches {
        path: &'a str,
        kind: i32,
    },
    AddWatch {
        path: &'a str,
        mode: i32,
    },
    SetWatches {
        op: OpCode,
        watches: SetWatchesRequest<'a>,
    },
    GetEphemerals {
        prefix: &'a str,
    },
    GetAllChildrenNumber {
        path: &'a str,
    },
    WhoAmI,
    Auth {
        kind: i32,
        scheme: &'a str,
        auth: &'a [u8],
    },
    Sasl {
        token: &'a [u8],
    },
}

impl<'a> Request<'a> {
    /// Reads the body of a request of kind `op`.
    ///
    /// # Errors
    /// When the body is not what the operation needs, or when no client may ask for `op`
    /// ([`DecodeError::Value`] of field `type`).
    pub fn decode(op: OpCode, body: &'a [u8]) -> Result<Self, DecodeError> {
        Self::read(op, &mut Reader::new(body))
    }

    /// As [`Request::decode`], with malformed strings kept in `text` as Java reads them.
    ///
    /// # Errors
    /// As [`Request::decode`].
    pub fn decode_lossy(
        op: OpCode,
        body: &'a [u8],
        text: &'a LossyText,
    ) -> Result<Self, DecodeError> {
        Self::read(op, &mut Reader::new(body).lossy(text))
    }

    fn read(op: OpCode, reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match op {
            OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
                Request::Create {
                    op,
                    create: CreateRequest {
                        path: path(reader)?,
                        data: reader.buffer()?,
                        acl: AclList::decode(reader)?,
                        flags: reader.int()?,
                        ttl_ms: if op == OpCode::CreateTtl {
                            Some(reader.long()?)
                        } else {
                            None
                        },
                    },
                }
            }
            OpCode::Delete => Request::Delete {
                path: path(reader)?,
                version: reader.int()?,
            },
            OpCode::DeleteContainer => Request::DeleteContainer {
                path: path(reader)?,
            },
            OpCode::SetData => Request::SetData {
                path: path(reader)?,
                data: reader.buffer()?,
                version: reader.int()?,
            },
            OpCode::SetAcl => Request::SetAcl {
                path: path(reader)?,
                acl: AclList::decode(reader)?,
                version: reader.int()?,
            },
            OpCode::Check => Request::Check {
                path: path(reader)?,
                version: reader.int()?,
            },
            OpCode::Multi => Request::Multi(read_multi(reader)?),
            OpCode::MultiRead => Request::MultiRead(read_multi(reader)?),
            OpCode::Reconfig => Request::Reconfig {
                joining: reader.ustring()?,
                leaving: reader.ustring()?,
                new_members: reader.ustring()?,
                config_id: reader.long()?,
            },
            OpCode::CloseSession => Request::CloseSession,
            OpCode::Exists => Request::Exists {
                path: path(reader)?,
                watch: reader.bool()?,
            },
            OpCode::GetData => Request::GetData {
                path: path(reader)?,
                watch: reader.bool()?,
            },
            OpCode::GetAcl => Request::GetAcl {
                path: path(reader)?,
            },
            OpCode::GetChildren | OpCode::GetChildren2 => Request::GetChildren {
                op,
                path: path(reader)?,
                watch: reader.bool()?,
            },
            OpCode::Sync => Request::Sync {
                path: path(reader)?,
            },
            OpCode::Ping => Request::Ping,
            OpCode::CheckWatches => Request::CheckWatches {
                path: path_or_null(reader)?,
                kind: reader.int()?,
            },
            OpCode::RemoveWatches => Request::RemoveWatches {
                path: path_or_null(reader)?,
                kind: reader.int()?,
            },
            OpCode::AddWatch => Request::AddWatch {
                path: path_or_null(reader)?,
                mode: reader.int()?,
            },
            OpCode::SetWatches | OpCode::SetWatches2 => {
                let mut watches = SetWatchesRequest {
                    relative_zxid: Zxid::from_wire(reader.long()?),
                    data: reader.strings()?,
                    exist: reader.strings()?,
                    child: reader.strings()?,
                    ..SetWatchesRequest::default()
                };
                if op == OpCode::SetWatches2 {
                    watches.persistent = reader.strings()?;
                    watches.persistent_recursive = reader.strings()?;
                }
                Request::SetWatches { op, watches }
            }
            OpCode::GetEphemerals => Request::GetEphemerals {
                prefix: reader.ustring()?.unwrap_or(""),
            },
            OpCode::GetAllChildrenNumber => Request::GetAllChildrenNumber {
                path: path(reader)?,
            },
            OpCode::WhoAmI => Request::WhoAmI,
            OpCode::Auth => Request::Auth {
                kind: reader.int()?,
                scheme: reader.ustring()?.unwrap_or(""),
                auth: reader.buffer()?.unwrap_or(&[]),
            },
            OpCode::Sasl => Request::Sasl {
                token: reader.buffer()?.unwrap_or(&[]),
            },
            OpCode::Notification | OpCode::CreateSession | OpCode::Error => {
                return Err(DecodeError::Value {
                    field: "type",
                    value: i64::from(op.code()),
                });
            }
        })
    }

    /// The operation.
    pub const fn op(&self) -> OpCode {
        match self {
            Request::Create { op, .. }
            | Request::GetChildren { op, .. }
            | Request::SetWatches { op, .. } => *op,
            Request::Delete { .. } => OpCode::Delete,
            Request::DeleteContainer { .. } => OpCode::DeleteContainer,
            Request::SetData { .. } => OpCode::SetData,
            Request::SetAcl { .. } => OpCode::SetAcl,
            Request::Check { .. } => OpCode::Check,
            Request::Multi(_) => OpCode::Multi,
            Request::Reconfig { .. } => OpCode::Reconfig,
            Request::CloseSession => OpCode::CloseSession,
            Request::Exists { .. } => OpCode::Exists,
            Request::GetData { .. } => OpCode::GetData,
            Request::GetAcl { .. } => OpCode::GetAcl,
            Request::MultiRead(_) => OpCode::MultiRead,
            Request::Sync { .. } => OpCode::Sync,
            Request::Ping => OpCode::Ping,
            Request::CheckWatches { .. } => OpCode::CheckWatches,
            Request::RemoveWatches { .. } => OpCode::RemoveWatches,
            Request::AddWatch { .. } => OpCode::AddWatch,
            Request::GetEphemerals { .. } => OpCode::GetEphemerals,
            Request::GetAllChildrenNumber { .. } => OpCode::GetAllChildrenNumber,
            Request::WhoAmI => OpCode::WhoAmI,
            Request::Auth { .. } => OpCode::Auth,
            Request::Sasl { .. } => OpCode::Sasl,
        }
    }

    /// Appends the request as a frame, as a client sends it.
    pub fn encode_frame(&self, xid: Xid, out: &mut BytesMut) {
        put_frame(out, |out| {
            out.put_slice(RequestHeader::new(xid, self.op()).as_bytes());
            self.encode_body(out);
        });
    }

    fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Request::Create { create, .. } => {
                out.put_ustring(create.path);
                out.put_buffer(create.data);
                encode_acl(create.acl.as_ref(), out);
                out.put_i32(create.flags);
                if let Some(ttl_ms) = create.ttl_ms {
                    out.put_i64(ttl_ms);
                }
            }
            Request::Delete { path, version } | Request::Check { path, version } => {
                out.put_ustring(path);
                out.put_i32(*version);
            }
            Request::SetData {
                path,
                data,
                version,
            } => {
                out.put_ustring(path);
                out.put_buffer(*data);
                out.put_i32(*version);
            }
            Request::SetAcl { path, acl, version } => {
                out.put_ustring(path);
                encode_acl(acl.as_ref(), out);
                out.put_i32(*version);
            }
            Request::Multi(ops) | Request::MultiRead(ops) => {
                for op in ops {
                    MultiHeader {
                        op: op.op().code(),
                        done: false,
                        error: -1,
                    }
                    .encode(out);
                    op.encode_body(out);
                }
                MultiHeader::END.encode(out);
            }
            Request::Exists { path, watch }
            | Request::GetData { path, watch }
            | Request::GetChildren { path, watch, .. } => {
                out.put_ustring(path);
                out.put_bool(*watch);
            }
            Request::DeleteContainer { path }
            | Request::GetAcl { path }
            | Request::Sync { path }
            | Request::GetEphemerals { prefix: path }
            | Request::GetAllChildrenNumber { path } => out.put_ustring(path),
            Request::CheckWatches { path, kind: number }
            | Request::RemoveWatches { path, kind: number }
            | Request::AddWatch { path, mode: number } => {
                out.put_ustring(path);
                out.put_i32(*number);
            }
            Request::SetWatches { op, watches } => {
                out.put_i64(watches.relative_zxid.to_wire());
                out.put_strings(watches.data.iter().copied());
                out.put_strings(watches.exist.iter().copied());
                out.put_strings(watches.child.iter().copied());
                if *op == OpCode::SetWatches2 {
                    out.put_strings(watches.persistent.iter().copied());
                    out.put_strings(watches.persistent_recursive.iter().copied());
                }
            }
            Request::Auth { kind, scheme, auth } => {
                out.put_i32(*kind);
                out.put_ustring(scheme);
                out.put_buffer(Some(auth));
            }
            Request::Sasl { token } => out.put_buffer(Some(token)),
            Request::Reconfig {
                joining,
                leaving,
                new_members,
                config_id,
            } => {
                for members in [joining, leaving, new_members] {
                    out.put_buffer(members.map(str::as_bytes));
                }
                out.put_i64(*config_id);
            }
            Request::CloseSession | Request::Ping | Request::WhoAmI => {}
        }
    }
}

/// What stands before each operation of a multi, and closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiHeader {
    /// The operation's number, unchecked.
    pub op: i32,
    /// Whether this ends the multi.
    pub done: bool,
    /// In a reply: the operation's error, or 0.
    pub error: i32,
}

impl MultiHeader {
    /// The end of a multi.
    pub const END: Self = Self {
        op: -1,
        done: true,
        error: -1,
    };
    /// Bytes of the record.
    pub const LEN: usize = 9;

    /// Reads the record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            op: reader.int()?,
            done: reader.bool()?,
            error: reader.int()?,
        })
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        out.put_i32(self.op);
        out.put_bool(self.done);
        out.put_i32(self.error);
    }
}

// ZK: MultiOperationRecord refuses to mix reads and writes, and every other kind of operation.
fn read_multi<'a>(reader: &mut Reader<'a>) -> Result<Vec<Request<'a>>, DecodeError> {
    let mut ops: Vec<Request<'a>> = Vec::new();
    loop {
        let header = MultiHeader::decode(reader)?;
        if header.done {
            return Ok(ops);
        }
        let refused = DecodeError::Value {
            field: "type",
            value: i64::from(header.op),
        };
        let op = OpCode::from_code(header.op).ok_or(refused)?;
        let is_read = matches!(op, OpCode::GetData | OpCode::GetChildren);
        let is_write = matches!(
            op,
            OpCode::Create
                | OpCode::Create2
                | OpCode::CreateContainer
                | OpCode::CreateTtl
                | OpCode::Delete
                | OpCode::SetData
                | OpCode::Check
        );
        let mixed = ops
            .first()
            .is_some_and(|first| first.op().is_write() != is_write);
        if !(is_read || is_write) || mixed {
            return Err(refused);
        }
        ops.push(Request::read(op, reader)?);
    }
}

fn path<'a>(reader: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let at = reader.at();
    reader
        .ustring()?
        .ok_or(DecodeError::Length { at, length: -1 })
}

/// ZK: a null path can be watched; no znode has one, so nothing comes of it. Nor has any this one, which must not be what
/// bytes that are no text are read as: those can be watched too.
const NULL_PATH: &str = "\0null";

fn path_or_null<'a>(reader: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    Ok(reader.ustring()?.unwrap_or(NULL_PATH))
}

fn encode_acl(acl: Option<&AclList<'_>>, out: &mut BytesMut) {
    match acl {
        Some(acl) => acl.encode(out),
        None => out.put_i32(-1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::Acl;

    fn check(request: Request<'_>) {
        let mut out = BytesMut::new();
        request.encode_frame(Xid(7), &mut out);
        let frame = &out[4..];
        let (header, body) = RequestHeader::split(frame).unwrap();
        assert_eq!(header.xid(), Xid(7));
        assert_eq!(header.op_code(), request.op().code());
        assert_eq!(Request::decode(request.op(), body), Ok(request));
        for cut in 0..body.len() {
            let _ = Request::decode(OpCode::from_code(header.op_code()).unwrap(), &body[..cut]);
        }
    }

    #[test]
    fn a_null_path_is_not_what_is_no_text() {
        let path_of = |path: &[u8]| {
            let body = [path, &[0, 0, 0, 3]].concat();
            match Request::decode(OpCode::RemoveWatches, &body).unwrap() {
                Request::RemoveWatches { path, kind: 3 } => path.to_owned(),
                other => panic!("{other:?}"),
            }
        };
        let null = path_of(&[0xff; 4]);
        assert_ne!(null, path_of(&[0, 0, 0, 1, 0xaf]));
        assert_ne!(null, path_of(&[0, 0, 0, 0]));
    }

    #[test]
    fn requests_come_back_as_sent() {
        let create = |op, ttl_ms| Request::Create {
            op,
            create: CreateRequest {
                path: "/a",
                data: Some(b"x"),
                acl: Some(AclList::new(&Acl::open())),
                flags: 3,
                ttl_ms,
            },
        };
        check(create(OpCode::Create, None));
        check(create(OpCode::CreateTtl, Some(9)));
        check(Request::SetData {
            path: "/a",
            data: None,
            version: -1,
        });
        check(Request::Multi(vec![
            create(OpCode::Create2, None),
            Request::Check {
                path: "/a",
                version: 0,
            },
        ]));
        check(Request::MultiRead(vec![Request::GetData {
            path: "/",
            watch: true,
        }]));
        check(Request::SetWatches {
            op: OpCode::SetWatches2,
            watches: SetWatchesRequest {
                relative_zxid: Zxid(4),
                data: vec!["/d"],
                persistent: vec!["/p", "/q"],
                ..SetWatchesRequest::default()
            },
        });
        check(Request::Auth {
            kind: 0,
            scheme: "digest",
            auth: b"u:p",
        });
        check(Request::WhoAmI);
    }

    #[test]
    fn a_multi_of_reads_and_writes_is_refused() {
        let mut out = BytesMut::new();
        Request::Multi(vec![
            Request::Check {
                path: "/a",
                version: 0,
            },
            Request::GetData {
                path: "/",
                watch: false,
            },
        ])
        .encode_frame(Xid(1), &mut out);
        assert_eq!(
            Request::decode(OpCode::Multi, &out[12..]),
            Err(DecodeError::Value {
                field: "type",
                value: 4
            })
        );
    }
}
