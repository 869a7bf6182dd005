//! The language of scripts: what is done on which connection, in order.
//!
//! A script knows nothing of the server it will run on: sessions are named by slot, zxids are
//! offsets from the zxid at its start, and passwords are whatever the server gave.

use std::fmt;

use bytes::BytesMut;
use ringkeeper_proto::{OpCode, Request, Xid};

/// How many connections a script may hold.
pub(crate) const SLOTS: usize = 4;

/// A script and what the comparison has to know about it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) index: u64,
    /// The znode under which (nearly) everything happens; it exists when the script starts.
    pub(crate) root: String,
    pub(crate) steps: Vec<Step>,
    /// Whether a connection watches one path in more than one mode.
    pub(crate) mixes_watch_modes: bool,
}

impl Script {
    /// The root of the script of this number.
    pub(crate) fn root_of(index: u64) -> String {
        format!("/r{index:06}")
    }

    /// How many requests it makes.
    pub(crate) fn operations(&self) -> usize {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Burst { calls, .. } => calls.len(),
                _ => 1,
            })
            .sum()
    }

    /// Whether it sends a check outside a multi.
    pub(crate) fn checks_alone(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Burst { calls, .. } => calls.iter().any(|call| call.op() == Some(OpCode::Check)),
            _ => false,
        })
    }

    /// Whether some client watches `path` in a mode that lasts.
    pub(crate) fn watches_lastingly(&self, path: &str) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Burst { calls, .. } => calls.iter().any(|call| match call.request() {
                Some(Request::AddWatch { path: watched, .. }) => watched == path,
                Some(Request::SetWatches { watches, .. }) => {
                    watches.persistent.contains(&path)
                        || watches.persistent_recursive.contains(&path)
                }
                _ => false,
            }),
            _ => false,
        })
    }
}

/// One thing that is done. After each, every open connection is asked whether anything has come.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A new TCP connection in this slot, and the connect request on it.
    Connect { slot: usize, hello: Hello },
    /// Requests in one write; each gets its reply, unless the server closes the connection.
    Burst { slot: usize, calls: Vec<Call> },
    /// Bytes that break the framing of an open connection. The client then sends nothing more when
    /// `end`, else a ping, which only a connection that is still understood answers.
    Raw {
        slot: usize,
        what: &'static str,
        bytes: Vec<u8>,
        end: bool,
    },
    /// Bytes on a connection of their own, in place of a connect request.
    Stranger { what: &'static str, bytes: Vec<u8> },
    /// The client closes its connection, and keeps its session.
    Drop { slot: usize },
    /// The servers are killed and start again; all connections are lost.
    Restart,
    /// A request, after which the servers delete `path` of their own accord.
    Sweep {
        slot: usize,
        call: Call,
        path: String,
    },
    /// The slot's session is left alone until `watcher` sees the first event of its end; its connection
    /// stays open, silent, unless `hang_up`.
    Expire {
        slot: usize,
        watcher: usize,
        hang_up: bool,
    },
}

/// A connect request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) protocol: i32,
    pub(crate) last_seen: LastSeen,
    pub(crate) timeout_ms: i32,
    pub(crate) session: SessionOf,
    pub(crate) password: Password,
    pub(crate) read_only: Option<bool>,
}

impl Hello {
    /// What an ordinary client says first.
    pub(crate) const fn ordinary() -> Self {
        Self {
            protocol: 0,
            last_seen: LastSeen::Nothing,
            timeout_ms: 20_000,
            session: SessionOf::Nobody,
            password: Password::Zeros,
            read_only: Some(false),
        }
    }

    /// What the client of `slot` says when it has lost its connection.
    pub(crate) const fn again(slot: usize) -> Self {
        Self {
            last_seen: LastSeen::Offset(0),
            session: SessionOf::Slot(slot),
            password: Password::Right,
            ..Self::ordinary()
        }
    }
}

/// The zxid that a connecting client claims to have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastSeen {
    Nothing,
    /// That of the script's start, plus this.
    Offset(i64),
    Exactly(i64),
}

/// The session that a connecting client claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionOf {
    /// None: it wants a new one.
    Nobody,
    /// The last one of this slot.
    Slot(usize),
    /// One that never was.
    Unknown(i64),
}

/// The password that a connecting client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Password {
    /// That of the claimed session.
    Right,
    Wrong,
    Zeros,
    Empty,
    Long,
    Null,
}

/// What a client that asks for its watches again has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    Nothing,
    /// All up to the end of this step (or of the last one before it that is left).
    Step(usize),
    Future,
}

/// A request as bytes, well-formed or not.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) op: i32,
    pub(crate) body: Vec<u8>,
    /// The xid to use in place of the connection's next.
    pub(crate) xid: Option<i32>,
    /// setWatches: the relative zxid to write over the body's first eight bytes.
    pub(crate) relative: Option<Since>,
    /// How the body was spoiled, if it was.
    pub(crate) spoiled: Option<&'static str>,
}

impl Call {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        let mut frame = BytesMut::new();
        request.encode_frame(Xid(0), &mut frame);
        Self::raw(request.op().code(), frame.split_off(12).to_vec())
    }

    pub(crate) const fn raw(op: i32, body: Vec<u8>) -> Self {
        Self {
            op,
            body,
            xid: None,
            relative: None,
            spoiled: None,
        }
    }

    pub(crate) fn op(&self) -> Option<OpCode> {
        OpCode::from_code(self.op)
    }

    /// The request, when the body is one.
    pub(crate) fn request(&self) -> Option<Request<'_>> {
        Request::decode(self.op()?, &self.body).ok()
    }

    /// The path that a simple request is about.
    pub(crate) fn path(&self) -> Option<&str> {
        match self.request()? {
            Request::Create { create, .. } => Some(path_in(&self.body, create.path)),
            Request::Delete { path, .. }
            | Request::DeleteContainer { path }
            | Request::SetData { path, .. }
            | Request::SetAcl { path, .. }
            | Request::Check { path, .. }
            | Request::Exists { path, .. }
            | Request::GetData { path, .. }
            | Request::GetAcl { path }
            | Request::GetChildren { path, .. }
            | Request::Sync { path }
            | Request::CheckWatches { path, .. }
            | Request::RemoveWatches { path, .. }
            | Request::AddWatch { path, .. }
            | Request::GetAllChildrenNumber { path } => Some(path_in(&self.body, path)),
            _ => None,
        }
    }

    /// Whether it can change nothing that another connection would see.
    pub(crate) fn is_quiet(&self) -> bool {
        self.spoiled.is_none()
            && matches!(
                self.op(),
                Some(
                    OpCode::Exists
                        | OpCode::GetData
                        | OpCode::GetAcl
                        | OpCode::GetChildren
                        | OpCode::GetChildren2
                        | OpCode::Sync
                        | OpCode::Ping
                        | OpCode::CheckWatches
                        | OpCode::RemoveWatches
                        | OpCode::AddWatch
                        | OpCode::MultiRead
                        | OpCode::GetEphemerals
                        | OpCode::GetAllChildrenNumber
                        | OpCode::WhoAmI
                )
            )
    }
}

/// The path with the lifetime of the body that it was read from.
fn path_in<'a>(body: &'a [u8], path: &str) -> &'a str {
    let start = (path.as_ptr() as usize).wrapping_sub(body.as_ptr() as usize);
    body.get(start..start.wrapping_add(path.len()))
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .unwrap_or("")
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(how) = self.spoiled {
            write!(f, "[{how}] ")?;
        }
        match (self.spoiled, self.request()) {
            (None, Some(Request::Reconfig { .. })) | (Some(_), _) | (_, None) => {
                match self.op() {
                    Some(op) => write!(f, "{op:?}")?,
                    None => write!(f, "op {}", self.op)?,
                }
                write!(f, " body={}", Bytes(&self.body))?;
            }
            (None, Some(request)) => write!(f, "{}", Shortened(&format!("{request:?}")))?,
        }
        if let Some(xid) = self.xid {
            write!(f, " xid={xid}")?;
        }
        if let Some(relative) = self.relative {
            write!(f, " since {relative:?}")?;
        }
        Ok(())
    }
}

/// Bytes for people: printable ones as they are, the rest as hex, the middle of many left out.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 160;
        write!(f, "({})\"", self.0.len())?;
        for byte in self.0.iter().take(SHOWN_MAX) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                0x20..=0x7e => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        write!(f, "\"{}", if self.0.len() > SHOWN_MAX { ".." } else { "" })
    }
}

/// A long text without its middle.
pub(crate) struct Shortened<'a>(pub(crate) &'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 1_000;
        match self.0.char_indices().nth(SHOWN_MAX) {
            Some((end, _)) => write!(f, "{}.. ({} bytes)", &self.0[..end], self.0.len()),
            None => f.write_str(self.0),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { slot, hello } => write!(f, "#{slot} connect {hello:?}"),
            Self::Burst { slot, calls } => {
                for (place, call) in calls.iter().enumerate() {
                    if place > 0 {
                        write!(f, "\n       ")?;
                    }
                    write!(f, "#{slot} {call:?}")?;
                }
                Ok(())
            }
            Self::Raw {
                slot,
                what,
                bytes,
                end,
            } => write!(f, "#{slot} raw [{what}] {} end={end}", Bytes(bytes)),
            Self::Stranger { what, bytes } => write!(f, "stranger [{what}] {}", Bytes(bytes)),
            Self::Drop { slot } => write!(f, "#{slot} drop"),
            Self::Restart => f.write_str("kill and restart the server"),
            Self::Sweep { slot, call, path } => {
                write!(f, "#{slot} {call:?}, after which {path} goes")
            }
            Self::Expire {
                slot,
                watcher,
                hang_up,
            } => write!(f, "#{slot} expire, seen by #{watcher}, hang_up={hang_up}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_keeps_what_its_request_says() {
        let call = Call::of(&Request::GetData {
            path: "/a",
            watch: true,
        });
        assert_eq!(call.op, 4);
        assert_eq!(call.path(), Some("/a"));
        assert!(call.is_quiet());
    }
}
