//! The error codes of the client protocol (ZooKeeper `KeeperException.Code`).

use std::fmt;

/// Why the server refuses a request, as the code that the reply header carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
pub enum ZkError {
    /// Marks the range of server errors.
    SystemError = -1,
    /// In a failed multi: an operation after the one that failed.
    RuntimeInconsistency = -2,
    /// The server found its own data wrong.
    DataInconsistency = -3,
    /// Seen by clients only.
    ConnectionLoss = -4,
    /// The request could not be decoded, or the server failed on it.
    MarshallingError = -5,
    /// The operation is unknown or not available here.
    Unimplemented = -6,
    /// Seen by clients only.
    OperationTimeout = -7,
    /// A path, flag, version or size that is not valid.
    BadArguments = -8,
    /// The session does not exist.
    UnknownSession = -12,
    /// Reconfig: no quorum of the new configuration is in sync.
    NewConfigNoQuorum = -13,
    /// Reconfig: another one is under way.
    ReconfigInProgress = -14,
    /// Marks the range of errors that are the client's.
    ApiError = -100,
    /// The znode does not exist.
    NoNode = -101,
    /// The ACL does not allow it.
    NoAuth = -102,
    /// The version does not match.
    BadVersion = -103,
    /// An ephemeral cannot have children.
    NoChildrenForEphemerals = -108,
    /// The znode exists.
    NodeExists = -110,
    /// The znode has children.
    NotEmpty = -111,
    /// The session has expired.
    SessionExpired = -112,
    /// Seen by clients only.
    InvalidCallback = -113,
    /// The ACL is not valid.
    InvalidAcl = -114,
    /// The authentication failed.
    AuthFailed = -115,
    /// The session has moved to another server.
    SessionMoved = -118,
    /// The server is read-only.
    NotReadOnly = -119,
    /// A local session cannot own ephemerals.
    EphemeralOnLocalSession = -120,
    /// There is no such watch.
    NoWatcher = -121,
    /// Seen by clients only.
    RequestTimeout = -122,
    /// Reconfiguration is switched off.
    ReconfigDisabled = -123,
    /// An enforced authentication scheme was not used.
    SessionClosedRequireSaslAuth = -124,
    /// A hard quota would be exceeded.
    QuotaExceeded = -125,
    /// The request waited too long and was not executed.
    ThrottledOp = -127,
}

impl ZkError {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 31] = [
        Self::ThrottledOp,
        Self::QuotaExceeded,
        Self::SessionClosedRequireSaslAuth,
        Self::ReconfigDisabled,
        Self::RequestTimeout,
        Self::NoWatcher,
        Self::EphemeralOnLocalSession,
        Self::NotReadOnly,
        Self::SessionMoved,
        Self::AuthFailed,
        Self::InvalidAcl,
        Self::InvalidCallback,
        Self::SessionExpired,
        Self::NotEmpty,
        Self::NodeExists,
        Self::NoChildrenForEphemerals,
        Self::BadVersion,
        Self::NoAuth,
        Self::NoNode,
        Self::ApiError,
        Self::ReconfigInProgress,
        Self::NewConfigNoQuorum,
        Self::UnknownSession,
        Self::BadArguments,
        Self::OperationTimeout,
        Self::Unimplemented,
        Self::MarshallingError,
        Self::ConnectionLoss,
        Self::DataInconsistency,
        Self::RuntimeInconsistency,
        Self::SystemError,
    ];

    /// The number on the wire.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The error of a number on the wire; `None` for 0 and for numbers that mean nothing.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|error| error.code() == code)
    }
}

impl fmt::Display for ZkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", self.code())
    }
}

impl std::error::Error for ZkError {}
