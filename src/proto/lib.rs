//! The words and the wire of the service: identifiers, error codes, the jute codec, client requests
//! and replies, and the transactions that are logged and replicated.
//!
//! This crate never does I/O, never reads a clock and never panics on bytes from outside: every
//! decoder returns a [`DecodeError`], and every length is checked against the bytes that are there
//! before anything is allocated.
//!
//! Decoded records borrow from the frame they were read from (`&str`, `&[u8]`), so a request is
//! validated and turned into a transaction without copying its path or data.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]
#![warn(missing_docs)]

pub mod acl;
pub mod connect;
pub mod election;
pub mod error;
pub mod ids;
pub mod jute;
pub mod op;
pub mod quorum;
pub mod reply;
pub mod request;
pub mod stat;
pub mod txn;

pub use acl::{Acl, AclList, AclRef, Id, Perms};
pub use error::ZkError;
pub use ids::{Epoch, ServerId, SessionId, Xid, Zxid};
pub use jute::{DecodeError, LossyText, Reader, WriteJute};
pub use op::OpCode;
pub use request::{Request, RequestHeader};
pub use stat::Stat;
pub use txn::{Txn, TxnDigest, TxnHeader};
