//! The first exchange on a connection.

use bytes::{BufMut, BytesMut};

use crate::ids::{SessionId, Zxid};
use crate::jute::{DecodeError, Reader, WriteJute, put_frame};

/// Bytes of a session password.
pub const PASSWORD_LEN: usize = 16;

/// What a client opens its connection with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRequest<'a> {
    /// 0 so far.
    pub protocol_version: i32,
    /// The last zxid the client has seen: a server that is behind it must refuse.
    pub last_zxid_seen: Zxid,
    /// The session time-out that is asked for, in milliseconds.
    pub timeout_ms: i32,
    /// The session to take up again, or [`SessionId::NONE`].
    pub session: SessionId,
    /// Its password.
    pub password: &'a [u8],
    /// Whether a read-only server will do; `None` from clients that do not know the field, whose
    /// response must lack it too.
    pub read_only: Option<bool>,
}

impl<'a> ConnectRequest<'a> {
    /// Reads the record.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            protocol_version: reader.int()?,
            last_zxid_seen: Zxid::from_wire(reader.long()?),
            timeout_ms: reader.int()?,
            session: SessionId(reader.long()?),
            password: reader.buffer()?.unwrap_or(&[]),
            read_only: if reader.is_empty() {
                None
            } else {
                Some(reader.bool()?)
            },
        })
    }

    /// Appends the record as a frame.
    pub fn encode_frame(&self, out: &mut BytesMut) {
        put_frame(out, |out| {
            out.put_i32(self.protocol_version);
            out.put_i64(self.last_zxid_seen.to_wire());
            out.put_i32(self.timeout_ms);
            out.put_i64(self.session.0);
            out.put_buffer(Some(self.password));
            if let Some(read_only) = self.read_only {
                out.put_bool(read_only);
            }
        });
    }
}

/// The server's answer: the session, or (time-out 0, session 0) that there is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// The negotiated time-out in milliseconds; 0 when the session is gone.
    pub timeout_ms: i32,
    /// The session.
    pub session: SessionId,
    /// Its password.
    pub password: [u8; PASSWORD_LEN],
    /// Whether this server is read-only; `None` leaves the field out.
    pub read_only: Option<bool>,
}

impl ConnectResponse {
    /// The answer to a client whose session does not exist.
    pub const fn expired(read_only: Option<bool>) -> Self {
        Self {
            timeout_ms: 0,
            session: SessionId::NONE,
            password: [0; PASSWORD_LEN],
            read_only,
        }
    }

    /// Reads the record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let _protocol_version = reader.int()?;
        let timeout_ms = reader.int()?;
        let session = SessionId(reader.long()?);
        let at = reader.at();
        let bytes = reader.buffer()?.unwrap_or(&[]);
        let password = bytes.try_into().map_err(|_| DecodeError::Length {
            at,
            length: i32::try_from(bytes.len()).unwrap_or(i32::MAX),
        })?;
        let read_only = if reader.is_empty() {
            None
        } else {
            Some(reader.bool()?)
        };
        Ok(Self {
            timeout_ms,
            session,
            password,
            read_only,
        })
    }

    /// Appends the record as a frame.
    pub fn encode_frame(&self, out: &mut BytesMut) {
        put_frame(out, |out| {
            out.put_i32(0);
            out.put_i32(self.timeout_ms);
            out.put_i64(self.session.0);
            out.put_buffer(Some(&self.password));
            if let Some(read_only) = self.read_only {
                out.put_bool(read_only);
            }
        });
    }
}
