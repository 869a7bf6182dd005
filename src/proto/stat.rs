//! A znode's metadata as clients see it.

use bytes::BufMut;

use crate::jute::{DecodeError, Reader};

/// The `Stat` record (`zookeeper.jute`): what a client is shown of a znode.
///
/// The server translates: `cversion` is twice the creates minus the children there are, and the
/// owner of containers and TTL nodes is shown as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// zxid of the creation.
    pub czxid: i64,
    /// zxid of the last change of the data.
    pub mzxid: i64,
    /// Milliseconds since 1970 of the creation.
    pub ctime: i64,
    /// Milliseconds since 1970 of the last change of the data.
    pub mtime: i64,
    /// Changes of the data.
    pub version: i32,
    /// Changes of the children.
    pub cversion: i32,
    /// Changes of the ACL.
    pub aversion: i32,
    /// The session that owns an ephemeral, else 0.
    pub ephemeral_owner: i64,
    /// Bytes of data; 0 for null.
    pub data_length: i32,
    /// Children.
    pub num_children: i32,
    /// zxid of the last change of the children.
    pub pzxid: i64,
}

impl Stat {
    /// Bytes of the record.
    pub const LEN: usize = 68;

    /// Reads the record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            czxid: reader.long()?,
            mzxid: reader.long()?,
            ctime: reader.long()?,
            mtime: reader.long()?,
            version: reader.int()?,
            cversion: reader.int()?,
            aversion: reader.int()?,
            ephemeral_owner: reader.long()?,
            data_length: reader.int()?,
            num_children: reader.int()?,
            pzxid: reader.long()?,
        })
    }

    /// Writes the record.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        out.put_i64(self.czxid);
        out.put_i64(self.mzxid);
        out.put_i64(self.ctime);
        out.put_i64(self.mtime);
        out.put_i32(self.version);
        out.put_i32(self.cversion);
        out.put_i32(self.aversion);
        out.put_i64(self.ephemeral_owner);
        out.put_i32(self.data_length);
        out.put_i32(self.num_children);
        out.put_i64(self.pzxid);
    }
}
