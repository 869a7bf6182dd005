//! What a client can see of a server, made comparable: zxids are offsets from the script's start,
//! sessions are numbers in the order of their creation, times are checked rather than kept.

use std::fmt;

use crate::script::Bytes;

/// A zxid as an offset from the zxid at the script's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Offset {
    /// -1.
    MinusOne,
    /// 0: no transaction.
    Zero,
    /// From before the script.
    Before,
    /// The script's start plus this.
    At(i64),
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinusOne => f.write_str("-1"),
            Self::Zero => f.write_str("0"),
            Self::Before => f.write_str("before"),
            Self::At(offset) => write!(f, "{offset:+}"),
        }
    }
}

/// A `ctime` or `mtime`, checked against the transaction that it belongs to.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Moment {
    /// 0.
    Zero,
    /// That of its transaction, the same wherever it shows, within the script's run.
    Right,
    /// Anything else.
    Wrong(String),
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("0"),
            Self::Right => f.write_str("ok"),
            Self::Wrong(why) => f.write_str(why),
        }
    }
}

/// Whose session an id is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Nobody,
    /// The script's session of this number.
    Session(usize),
    Stranger,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("-"),
            Self::Session(number) => write!(f, "s{number}"),
            Self::Stranger => f.write_str("stranger"),
        }
    }
}

/// A `Stat`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) czxid: Offset,
    pub(crate) mzxid: Offset,
    pub(crate) pzxid: Offset,
    pub(crate) ctime: Moment,
    pub(crate) mtime: Moment,
    pub(crate) version: i32,
    pub(crate) cversion: i32,
    pub(crate) aversion: i32,
    pub(crate) owner: Owner,
    pub(crate) data_length: i32,
    pub(crate) num_children: i32,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{{czxid {:?} mzxid {:?} pzxid {:?} ctime {:?} mtime {:?} version {} cversion {} \
             aversion {} owner {:?} data_length {} num_children {}}}",
            self.czxid,
            self.mzxid,
            self.pzxid,
            self.ctime,
            self.mtime,
            self.version,
            self.cversion,
            self.aversion,
            self.owner,
            self.data_length,
            self.num_children
        )
    }
}

/// Data, which may be null.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) Option<Vec<u8>>);

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("null"),
            Some(bytes) => write!(f, "{}", Bytes(bytes)),
        }
    }
}

/// The body of a reply, decoded by the operation that it answers. Lists without an order are sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Nothing,
    Path(String),
    PathNode(String, Node),
    Node(Node),
    Data(Data, Node),
    Acl(Vec<String>, Node),
    Names(Vec<String>),
    NamesNode(Vec<String>, Node),
    Number(i32),
    Identities(Vec<(String, String)>),
    Parts(Vec<Part>),
    Session(Welcome),
    /// It is not what the operation's reply is; or the operation has none.
    Unreadable(Data),
}

/// One result of a multi.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The type in its header.
    pub(crate) op: i32,
    pub(crate) error: i32,
    pub(crate) body: Body,
}

/// What a connect response tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) timeout_ms: i32,
    pub(crate) session: Owner,
    /// Whether the password is the one that servers derive from the session's id, all zeros, or neither.
    pub(crate) password: &'static str,
    pub(crate) read_only: Option<bool>,
}

/// One thing that happens on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Welcome(Welcome),
    Reply {
        /// Which call of the burst it answers.
        call: usize,
        op: i32,
        xid: i32,
        zxid: Offset,
        error: i32,
        body: Body,
    },
    Event {
        zxid: Offset,
        error: i32,
        kind: i32,
        state: i32,
        path: String,
    },
    /// The reply to a ping of the tool's own.
    Pong {
        zxid: Offset,
        error: i32,
    },
    /// A frame that is none of these.
    Frame(Data),
    /// A session ended by time: sooner than promised, in time, or too late.
    Expired(&'static str),
    Closed,
    Silence,
}

impl Offset {
    /// The offset without the transactions in `skipped` (offsets of the same count).
    fn without(self, skipped: &[i64]) -> Self {
        match self {
            Self::At(offset) => {
                let before = skipped.iter().filter(|skipped| **skipped <= offset).count();
                Self::At(offset.saturating_sub(i64::try_from(before).unwrap_or(i64::MAX)))
            }
            other => other,
        }
    }
}

impl Seen {
    /// The same with zxids as if the transactions in `skipped` had not been.
    pub(crate) fn without(&self, skipped: &[i64]) -> Self {
        let mut seen = self.clone();
        if skipped.is_empty() {
            return seen;
        }
        match &mut seen {
            Self::Reply { zxid, body, .. } => {
                *zxid = zxid.without(skipped);
                body.skip(skipped);
            }
            Self::Event { zxid, .. } | Self::Pong { zxid, .. } => *zxid = zxid.without(skipped),
            _ => {}
        }
        seen
    }
}

impl Body {
    fn skip(&mut self, skipped: &[i64]) {
        match self {
            Self::PathNode(_, node)
            | Self::Node(node)
            | Self::Data(_, node)
            | Self::Acl(_, node)
            | Self::NamesNode(_, node) => {
                for zxid in [&mut node.czxid, &mut node.mzxid, &mut node.pzxid] {
                    *zxid = zxid.without(skipped);
                }
            }
            Self::Parts(parts) => {
                for part in parts {
                    part.body.skip(skipped);
                }
            }
            _ => {}
        }
    }
}

/// What one step showed, per slot, in order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepSeen {
    pub(crate) slots: Vec<(usize, Vec<Seen>)>,
}

impl StepSeen {
    /// The zxids of the replies and pongs of the step.
    pub(crate) fn zxids(&self) -> impl Iterator<Item = Offset> {
        self.slots
            .iter()
            .flat_map(|(_, seen)| seen)
            .filter_map(|seen| match seen {
                Seen::Reply { zxid, .. } | Seen::Pong { zxid, .. } => Some(*zxid),
                _ => None,
            })
    }
}

/// What a script showed, step by step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript {
    pub(crate) steps: Vec<StepSeen>,
}
