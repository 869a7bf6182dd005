//! Newtypes for the identifiers of the protocol.

use std::fmt;

/// A transaction id: the epoch in the high 32 bits, a counter within the epoch in the low 32 bits.
///
/// Prints as hex (`0x100000001`), as ZooKeeper's tools do.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zxid(pub u64);

impl Zxid {
    /// No transaction.
    pub const ZERO: Self = Self(0);

    /// The zxid of `counter` in `epoch`.
    pub const fn new(epoch: Epoch, counter: u32) -> Self {
        Self(((epoch.0 as u64) << 32) | counter as u64)
    }

    /// The epoch in which it was assigned.
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> 32) as u32)
    }

    /// Its counter within the epoch; 0 is the epoch's start, before the first transaction.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    pub const fn counter(self) -> u32 {
        self.0 as u32
    }

    /// The next zxid of the same epoch, or `None` when the counter is used up.
    pub const fn next(self) -> Option<Self> {
        match self.counter().checked_add(1) {
            Some(counter) => Some(Self::new(self.epoch(), counter)),
            None => None,
        }
    }

    /// The signed form that the wire and the files carry.
    #[expect(
        clippy::cast_possible_wrap,
        reason = "the wire's type is a signed long"
    )]
    pub const fn to_wire(self) -> i64 {
        self.0 as i64
    }

    /// The zxid that a signed long on the wire stands for.
    #[expect(clippy::cast_sign_loss, reason = "the wire's type is a signed long")]
    pub const fn from_wire(value: i64) -> Self {
        Self(value as u64)
    }
}

impl fmt::Display for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch().0, self.counter())
    }
}

/// The number of a leader's reign; grows with each election that reaches discovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A member of the ensemble (`myid`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u64);

impl ServerId {
    /// The signed form that the wire carries.
    pub const fn to_wire(self) -> i64 {
        self.0.cast_signed()
    }

    /// The server that a signed long on the wire stands for.
    pub const fn from_wire(value: i64) -> Self {
        Self(value.cast_unsigned())
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A client session; 0 is no session. Prints as hex, as ZooKeeper does.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub i64);

impl SessionId {
    /// No session.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number a client gives a request; its reply carries it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub i32);

impl Xid {
    /// A watch event from the server.
    pub const NOTIFICATION: Self = Self(-1);
    /// A ping and its reply.
    pub const PING: Self = Self(-2);
    /// An auth packet and its reply.
    pub const AUTH: Self = Self(-4);
    /// A `setWatches` and its reply.
    pub const SET_WATCHES: Self = Self(-8);
}
