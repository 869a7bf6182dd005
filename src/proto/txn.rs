//! Transactions: what is logged and replicated. The bytes are Apache's (`TxnHeader`, the record of
//! its type, `TxnDigest`), the same in a log record and in a PROPOSAL packet.

use std::borrow::Cow;

use bytes::BufMut;

use crate::acl::AclList;
use crate::ids::{SessionId, Zxid};
use crate::jute::{DecodeError, Reader, WriteJute, wire_len};
use crate::op::OpCode;

/// What every transaction starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnHeader {
    /// Who asked.
    pub session: SessionId,
    /// The request's xid (`cxid`).
    pub cxid: i32,
    /// Its place in the order.
    pub zxid: Zxid,
    /// Milliseconds since 1970, by the leader's clock.
    pub time_ms: i64,
    /// The type.
    pub op: OpCode,
}

impl TxnHeader {
    /// Bytes of the record.
    pub const LEN: usize = 32;

    /// Reads the record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            session: SessionId(reader.long()?),
            cxid: reader.int()?,
            zxid: Zxid::from_wire(reader.long()?),
            time_ms: reader.long()?,
            op: op(reader.int()?)?,
        })
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        out.put_i64(self.session.0);
        out.put_i32(self.cxid);
        out.put_i64(self.zxid.to_wire());
        out.put_i64(self.time_ms);
        out.put_i32(self.op.code());
    }
}

/// The tree's digest after a transaction (version 2: wrapping sum of CRC32 per znode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnDigest {
    /// How it was computed.
    pub version: i32,
    /// The digest.
    pub tree_digest: i64,
}

impl TxnDigest {
    /// Bytes of the record.
    pub const LEN: usize = 12;
    /// The version that Apache 3.6 to 3.9 and this server compute.
    pub const VERSION: i32 = 2;

    /// Reads the record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            version: reader.int()?,
            tree_digest: reader.long()?,
        })
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        out.put_i32(self.version);
        out.put_i64(self.tree_digest);
    }
}

/// Which znode a create makes; decides the record's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateKind {
    /// create and create2: `ephemeral` says whether the session owns it.
    Plain {
        /// Owned by the session in the header.
        ephemeral: bool,
    },
    /// createContainer.
    Container,
    /// createTTL, in milliseconds.
    Ttl(i64),
}

/// The body of a transaction; strings and data borrow from the request or the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the protocol's (zookeeper.jute)"
)]
pub enum Txn<'a> {
    Create {
        path: Cow<'a, str>,
        data: Option<&'a [u8]>,
        acl: AclList<'a>,
        kind: CreateKind,
        /// The parent's creates after this one; -1 in logs older than 3.4.
        parent_cversion: i32,
    },
    Delete {
        path: Cow<'a, str>,
    },
    SetData {
        path: Cow<'a, str>,
        data: Option<&'a [u8]>,
        version: i32,
    },
    SetAcl {
        path: Cow<'a, str>,
        acl: AclList<'a>,
        version: i32,
    },
    Check {
        path: Cow<'a, str>,
        version: i32,
    },
    CreateSession {
        timeout_ms: i32,
    },
    /// The ephemerals that go with the session; `None` in logs older than 3.6.
    CloseSession {
        paths: Option<Vec<Cow<'a, str>>>,
    },
    Error {
        code: i32,
    },
    /// The operations with their types; when it failed, all of them are [`Txn::Error`].
    Multi(Vec<(OpCode, Self)>),
}

impl<'a> Txn<'a> {
    /// Reads the body of a transaction of type `op`. What follows it in `reader` is the digest, if any.
    pub fn decode(op: OpCode, reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match op {
            OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
                read_create(op, reader)?
            }
            OpCode::Delete | OpCode::DeleteContainer => Txn::Delete {
                path: path(reader)?,
            },
            OpCode::SetData | OpCode::Reconfig => Txn::SetData {
                path: path(reader)?,
                data: reader.buffer()?,
                version: reader.int()?,
            },
            OpCode::SetAcl => Txn::SetAcl {
                path: path(reader)?,
                acl: AclList::decode(reader)?.unwrap_or_else(|| AclList::new(&[])),
                version: reader.int()?,
            },
            OpCode::Check => Txn::Check {
                path: path(reader)?,
                version: reader.int()?,
            },
            OpCode::CreateSession => Txn::CreateSession {
                timeout_ms: reader.int()?,
            },
            OpCode::CloseSession => Txn::CloseSession {
                paths: if reader.is_empty() {
                    None
                } else {
                    Some(reader.strings()?.into_iter().map(Cow::Borrowed).collect())
                },
            },
            OpCode::Error => Txn::Error {
                code: reader.int()?,
            },
            OpCode::Multi => {
                let count = reader.count(8)?.unwrap_or(0);
                let parts = (0..count).map(|_| {
                    let part = self::op(reader.int()?)?;
                    let bytes = reader.buffer()?.unwrap_or(&[]);
                    Ok((part, Txn::decode(part, &mut Reader::new(bytes))?))
                });
                Txn::Multi(parts.collect::<Result<_, DecodeError>>()?)
            }
            other => {
                return Err(DecodeError::Value {
                    field: "txn type",
                    value: other.code().into(),
                });
            }
        })
    }

    /// Writes the body.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        match self {
            Txn::Create {
                path,
                data,
                acl,
                kind,
                parent_cversion,
            } => {
                out.put_ustring(path);
                out.put_buffer(*data);
                acl.encode(out);
                if let CreateKind::Plain { ephemeral } = kind {
                    out.put_bool(*ephemeral);
                }
                out.put_i32(*parent_cversion);
                if let CreateKind::Ttl(ttl_ms) = kind {
                    out.put_i64(*ttl_ms);
                }
            }
            Txn::Delete { path } => out.put_ustring(path),
            Txn::SetData {
                path,
                data,
                version,
            } => {
                out.put_ustring(path);
                out.put_buffer(*data);
                out.put_i32(*version);
            }
            Txn::SetAcl { path, acl, version } => {
                out.put_ustring(path);
                acl.encode(out);
                out.put_i32(*version);
            }
            Txn::Check { path, version } => {
                out.put_ustring(path);
                out.put_i32(*version);
            }
            Txn::CreateSession { timeout_ms } => out.put_i32(*timeout_ms),
            Txn::CloseSession { paths: None } => {}
            Txn::CloseSession { paths: Some(paths) } => {
                out.put_strings(paths.iter().map(AsRef::as_ref));
            }
            Txn::Error { code } => out.put_i32(*code),
            Txn::Multi(parts) => {
                out.put_i32(wire_len(parts.len()));
                for (op, part) in parts {
                    out.put_i32(op.code());
                    out.put_i32(wire_len(part.encoded_len()));
                    part.encode(out);
                }
            }
        }
    }

    /// Bytes that [`Txn::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        let bytes = |data: &Option<&[u8]>| 4 + data.map_or(0, <[u8]>::len);
        match self {
            Txn::Create {
                path,
                data,
                acl,
                kind,
                ..
            } => {
                let rest = match kind {
                    CreateKind::Plain { .. } => 5,
                    CreateKind::Container => 4,
                    CreateKind::Ttl(_) => 12,
                };
                4 + path.len() + bytes(data) + 4 + acl.as_bytes().len() + rest
            }
            Txn::Delete { path } => 4 + path.len(),
            Txn::SetData { path, data, .. } => 4 + path.len() + bytes(data) + 4,
            Txn::SetAcl { path, acl, .. } => 4 + path.len() + 4 + acl.as_bytes().len() + 4,
            Txn::Check { path, .. } => 4 + path.len() + 4,
            Txn::CreateSession { .. } | Txn::Error { .. } => 4,
            Txn::CloseSession { paths: None } => 0,
            Txn::CloseSession { paths: Some(paths) } => {
                4 + paths.iter().map(|path| 4 + path.len()).sum::<usize>()
            }
            Txn::Multi(parts) => {
                4 + parts
                    .iter()
                    .map(|(_, part)| 8 + part.encoded_len())
                    .sum::<usize>()
            }
        }
    }
}

/// Reads a whole transaction as it stands in a log record or a PROPOSAL.
pub fn decode_record(bytes: &[u8]) -> Result<(TxnHeader, Txn<'_>, Option<TxnDigest>), DecodeError> {
    let mut reader = Reader::new(bytes);
    let header = TxnHeader::decode(&mut reader)?;
    // ZK: with closeSessionTxn.enabled=false the record has no body, yet a digest follows. A body
    // without a digest can be as long: that of a single path of four bytes, whose count is 1.
    let has_digest_alone = || {
        reader.rest().len() == TxnDigest::LEN
            && reader.rest().starts_with(&TxnDigest::VERSION.to_be_bytes())
    };
    let txn = if header.op == OpCode::CloseSession && has_digest_alone() {
        Txn::CloseSession { paths: None }
    } else {
        Txn::decode(header.op, &mut reader)?
    };
    let digest = if reader.is_empty() {
        None
    } else {
        Some(TxnDigest::decode(&mut reader)?)
    };
    Ok((header, txn, digest))
}

/// Writes a whole transaction.
pub fn encode_record(
    header: &TxnHeader,
    txn: &Txn<'_>,
    digest: Option<&TxnDigest>,
    out: &mut (impl BufMut + ?Sized),
) {
    header.encode(out);
    txn.encode(out);
    if let Some(digest) = digest {
        digest.encode(out);
    }
}

/// Bytes that [`encode_record`] writes.
pub fn record_len(txn: &Txn<'_>, digest: bool) -> usize {
    TxnHeader::LEN + txn.encoded_len() + if digest { TxnDigest::LEN } else { 0 }
}

fn read_create<'a>(op: OpCode, reader: &mut Reader<'a>) -> Result<Txn<'a>, DecodeError> {
    let path = path(reader)?;
    let data = reader.buffer()?;
    let acl = AclList::decode(reader)?.unwrap_or_else(|| AclList::new(&[]));
    let ephemeral = match op {
        OpCode::Create | OpCode::Create2 => reader.bool()?,
        _ => false,
    };
    // ZK: CreateTxnV0 (before 3.4) ends here.
    let parent_cversion = if reader.is_empty() { -1 } else { reader.int()? };
    let kind = match op {
        OpCode::CreateContainer => CreateKind::Container,
        OpCode::CreateTtl => CreateKind::Ttl(reader.long()?),
        _ => CreateKind::Plain { ephemeral },
    };
    Ok(Txn::Create {
        path,
        data,
        acl,
        kind,
        parent_cversion,
    })
}

fn path<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, str>, DecodeError> {
    Ok(Cow::Borrowed(reader.ustring()?.unwrap_or("")))
}

fn op(code: i32) -> Result<OpCode, DecodeError> {
    OpCode::from_code(code).ok_or_else(|| DecodeError::Value {
        field: "txn type",
        value: code.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::Acl;

    #[test]
    fn records_come_back_as_written() {
        let create = Txn::Create {
            path: "/a".into(),
            data: Some(b"x"),
            acl: AclList::new(&Acl::open()),
            kind: CreateKind::Ttl(5),
            parent_cversion: 3,
        };
        let cases = [
            (OpCode::CreateTtl, create.clone()),
            (OpCode::Multi, Txn::Multi(vec![(OpCode::CreateTtl, create)])),
            (
                OpCode::CloseSession,
                Txn::CloseSession {
                    paths: Some(vec!["/e".into()]),
                },
            ),
            (OpCode::CloseSession, Txn::CloseSession { paths: None }),
            (
                OpCode::CloseSession,
                Txn::CloseSession {
                    paths: Some(vec!["/a/b".into()]),
                },
            ),
            (OpCode::Error, Txn::Error { code: -101 }),
        ];
        for (op, txn) in cases {
            let header = TxnHeader {
                session: SessionId(1),
                cxid: 2,
                zxid: Zxid(3),
                time_ms: 4,
                op,
            };
            let digest = TxnDigest {
                version: 2,
                tree_digest: 9,
            };
            let mut out = Vec::new();
            encode_record(&header, &txn, Some(&digest), &mut out);
            assert_eq!(out.len(), record_len(&txn, true));
            assert_eq!(decode_record(&out), Ok((header, txn.clone(), Some(digest))));
            out.truncate(out.len() - TxnDigest::LEN);
            assert_eq!(decode_record(&out), Ok((header, txn, None)));
        }
    }
}
