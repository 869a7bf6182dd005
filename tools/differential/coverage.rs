//! Which operations ended how, how often, and which ends there are.

use std::collections::BTreeMap;
use std::fmt;

use ringkeeper_proto::{OpCode, Request, ZkError};

use crate::compare::op_name;
use crate::observation::{Body, Part, Seen, Transcript};
use crate::script::{Call, Script, Step};

/// A row of the table: an operation, alone or within a multi.
type Row = String;

/// Counts of the oracle's answers.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    cells: BTreeMap<(Row, i32), u64>,
    others: BTreeMap<String, u64>,
}

impl Coverage {
    pub(crate) fn add(&mut self, script: &Script, transcript: &Transcript) {
        for (step, seen) in script.steps.iter().zip(&transcript.steps) {
            for seen in seen.slots.iter().flat_map(|(_, seen)| seen) {
                self.count(step, seen);
            }
        }
    }

    fn count(&mut self, step: &Step, seen: &Seen) {
        match (seen, step) {
            (
                Seen::Reply {
                    call,
                    op,
                    error,
                    body,
                    ..
                },
                Step::Burst { calls, .. },
            ) => {
                *self.cells.entry((op_name(*op), *error)).or_default() += 1;
                if let (Body::Parts(parts), Some(call)) = (body, calls.get(*call)) {
                    self.count_parts(call, parts);
                }
            }
            (Seen::Event { kind, .. }, _) => self.count_other(match kind {
                1 => "event NodeCreated",
                2 => "event NodeDeleted",
                3 => "event NodeDataChanged",
                4 => "event NodeChildrenChanged",
                _ => "event of another kind",
            }),
            (Seen::Welcome(welcome), _) => self.count_other(match welcome.timeout_ms {
                0 => "connect: no such session",
                _ => "connect: accepted",
            }),
            (Seen::Expired(_), _) => self.count_other("session expired"),
            (Seen::Closed, Step::Connect { .. }) => self.count_other("connect: closed"),
            (Seen::Closed, Step::Stranger { .. }) => self.count_other("stranger: closed"),
            (Seen::Closed, Step::Raw { .. }) => self.count_other("broken frame: closed"),
            (Seen::Closed, _) => self.count_other("connection closed"),
            (Seen::Silence, _) => self.count_other("silence"),
            _ => {}
        }
    }

    fn count_other(&mut self, what: &str) {
        *self.others.entry(what.to_owned()).or_default() += 1;
    }

    fn count_parts(&mut self, call: &Call, parts: &[Part]) {
        let (Some(Request::Multi(requests) | Request::MultiRead(requests)), Some(op)) =
            (call.request(), call.op())
        else {
            return;
        };
        for (request, part) in requests.iter().zip(parts) {
            let row = format!("{}: {}", op_name(op.code()), op_name(request.op().code()));
            *self.cells.entry((row, part.error)).or_default() += 1;
        }
    }

    fn cell(&self, row: &str, error: i32) -> u64 {
        self.cells
            .get(&(row.to_owned(), error))
            .copied()
            .unwrap_or(0)
    }

    /// The reachable cells that have fewer than `wanted`, with their counts.
    pub(crate) fn lacking(&self, wanted: u64) -> Vec<(String, i32, u64)> {
        reachable()
            .into_iter()
            .map(|(row, error)| {
                let count = self.cell(&row, error);
                (row, error, count)
            })
            .filter(|(_, _, count)| *count < wanted)
            .collect()
    }

    /// Cells that were reached although nothing says that they can be.
    pub(crate) fn surprising(&self) -> Vec<(String, i32, u64)> {
        let reachable = reachable();
        self.cells
            .iter()
            .filter(|(cell, _)| !reachable.contains(cell))
            .map(|((row, error), count)| (row.clone(), *error, *count))
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut errors: Vec<i32> = self.cells.keys().map(|(_, error)| *error).collect();
        errors.sort_unstable_by_key(|error| std::cmp::Reverse(*error));
        errors.dedup();
        let mut rows: Vec<&str> = self.cells.keys().map(|(row, _)| row.as_str()).collect();
        rows.dedup();
        write!(f, "{:26}", "")?;
        for error in &errors {
            write!(f, "{error:>7}")?;
        }
        writeln!(f)?;
        for row in rows {
            write!(f, "{row:26}")?;
            for error in &errors {
                match self.cell(row, *error) {
                    0 => write!(f, "{:>7}", ".")?,
                    count => write!(f, "{count:>7}")?,
                }
            }
            writeln!(f)?;
        }
        for (what, count) in &self.others {
            writeln!(f, "{what:40}{count:>7}")?;
        }
        Ok(())
    }
}

/// Every cell that scripts can reach on a standalone Apache 3.8. [`UNREACHABLE`] says why others cannot; and
/// a check outside a multi is not answered at all.
fn reachable() -> Vec<(Row, i32)> {
    let mut cells = Vec::new();
    for (ops, errors) in REACHABLE {
        for op in *ops {
            for error in *errors {
                let row = match op {
                    Place::Alone(op) => op_name(op.code()),
                    Place::Multi(op) => format!("multi: {}", op_name(op.code())),
                    Place::MultiRead(op) => format!("multiRead: {}", op_name(op.code())),
                    Place::Unknown => "unknown".to_owned(),
                };
                cells.push((row, error.map_or(0, ZkError::code)));
            }
        }
    }
    cells
}

enum Place {
    Alone(OpCode),
    Multi(OpCode),
    MultiRead(OpCode),
    Unknown,
}

const OK: Option<ZkError> = None;
const MARSHALLING: Option<ZkError> = Some(ZkError::MarshallingError);
const UNIMPLEMENTED: Option<ZkError> = Some(ZkError::Unimplemented);
const BAD_ARGUMENTS: Option<ZkError> = Some(ZkError::BadArguments);
const NO_NODE: Option<ZkError> = Some(ZkError::NoNode);
const NO_AUTH: Option<ZkError> = Some(ZkError::NoAuth);
const BAD_VERSION: Option<ZkError> = Some(ZkError::BadVersion);
const NODE_EXISTS: Option<ZkError> = Some(ZkError::NodeExists);
const NOT_EMPTY: Option<ZkError> = Some(ZkError::NotEmpty);
const EPHEMERAL_PARENT: Option<ZkError> = Some(ZkError::NoChildrenForEphemerals);
const INVALID_ACL: Option<ZkError> = Some(ZkError::InvalidAcl);
const QUOTA: Option<ZkError> = Some(ZkError::QuotaExceeded);
const SKIPPED: Option<ZkError> = Some(ZkError::RuntimeInconsistency);

const REACHABLE: &[(&[Place], &[Option<ZkError>])] = &[
    (
        &[
            Place::Alone(OpCode::Create),
            Place::Alone(OpCode::Create2),
            Place::Alone(OpCode::CreateContainer),
            Place::Alone(OpCode::CreateTtl),
        ],
        &[
            OK,
            MARSHALLING,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            EPHEMERAL_PARENT,
            NODE_EXISTS,
            INVALID_ACL,
            QUOTA,
        ],
    ),
    (
        &[
            Place::Alone(OpCode::Create),
            Place::Alone(OpCode::Create2),
            Place::Alone(OpCode::CreateContainer),
            Place::Alone(OpCode::CreateTtl),
            Place::Alone(OpCode::Notification),
            Place::Alone(OpCode::Error),
            Place::Alone(OpCode::Reconfig),
            Place::Unknown,
        ],
        &[UNIMPLEMENTED],
    ),
    (
        &[Place::Alone(OpCode::Delete)],
        &[
            OK,
            MARSHALLING,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            BAD_VERSION,
            NOT_EMPTY,
        ],
    ),
    // Apache 3.8 takes the length of the path for a part of it, so nothing else can come of it.
    (&[Place::Alone(OpCode::DeleteContainer)], &[BAD_ARGUMENTS]),
    (
        &[Place::Alone(OpCode::SetData)],
        &[
            OK,
            MARSHALLING,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            BAD_VERSION,
            QUOTA,
        ],
    ),
    (
        &[Place::Alone(OpCode::SetAcl)],
        &[
            OK,
            MARSHALLING,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            BAD_VERSION,
            INVALID_ACL,
        ],
    ),
    (
        &[
            Place::Alone(OpCode::GetData),
            Place::Alone(OpCode::GetAcl),
            Place::Alone(OpCode::GetChildren),
            Place::Alone(OpCode::GetChildren2),
            Place::Alone(OpCode::GetAllChildrenNumber),
        ],
        &[OK, MARSHALLING, NO_NODE, NO_AUTH],
    ),
    (
        &[Place::Alone(OpCode::Exists)],
        &[OK, MARSHALLING, BAD_ARGUMENTS, NO_NODE],
    ),
    (
        &[
            Place::Alone(OpCode::Sync),
            Place::Alone(OpCode::GetEphemerals),
            Place::Alone(OpCode::SetWatches),
            Place::Alone(OpCode::SetWatches2),
            Place::Alone(OpCode::AddWatch),
            Place::Alone(OpCode::Multi),
            Place::Alone(OpCode::MultiRead),
        ],
        &[OK, MARSHALLING],
    ),
    (
        &[
            Place::Alone(OpCode::CheckWatches),
            Place::Alone(OpCode::RemoveWatches),
        ],
        &[OK, MARSHALLING, Some(ZkError::NoWatcher)],
    ),
    (
        &[
            Place::Alone(OpCode::Ping),
            Place::Alone(OpCode::WhoAmI),
            Place::Alone(OpCode::CloseSession),
            Place::Alone(OpCode::CreateSession),
            Place::Alone(OpCode::Sasl),
        ],
        &[OK],
    ),
    (
        &[Place::Alone(OpCode::Auth)],
        &[OK, Some(ZkError::AuthFailed)],
    ),
    (
        &[Place::Alone(OpCode::Reconfig)],
        &[MARSHALLING, Some(ZkError::ReconfigDisabled)],
    ),
    (
        &[
            Place::Multi(OpCode::Create),
            Place::Multi(OpCode::Create2),
            Place::Multi(OpCode::CreateContainer),
            Place::Multi(OpCode::CreateTtl),
        ],
        &[
            OK,
            SKIPPED,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            EPHEMERAL_PARENT,
            NODE_EXISTS,
            INVALID_ACL,
            QUOTA,
        ],
    ),
    (&[Place::Multi(OpCode::CreateTtl)], &[UNIMPLEMENTED]),
    (
        &[Place::Multi(OpCode::Delete)],
        &[
            OK,
            SKIPPED,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            BAD_VERSION,
            NOT_EMPTY,
        ],
    ),
    (
        &[Place::Multi(OpCode::SetData)],
        &[
            OK,
            SKIPPED,
            BAD_ARGUMENTS,
            NO_NODE,
            NO_AUTH,
            BAD_VERSION,
            QUOTA,
        ],
    ),
    (
        &[Place::Multi(OpCode::Check)],
        &[OK, SKIPPED, BAD_ARGUMENTS, NO_NODE, NO_AUTH, BAD_VERSION],
    ),
    (
        &[
            Place::MultiRead(OpCode::GetData),
            Place::MultiRead(OpCode::GetChildren),
        ],
        &[OK, NO_NODE, NO_AUTH],
    ),
];

/// Error codes that no script can reach for any operation, and why.
pub(crate) const UNREACHABLE: &[(ZkError, &str)] = &[
    (ZkError::SystemError, "marks a range; no server sends it"),
    (
        ZkError::DataInconsistency,
        "no path of Apache's server sends it",
    ),
    (ZkError::ConnectionLoss, "made by clients"),
    (ZkError::OperationTimeout, "made by clients"),
    (
        ZkError::UnknownSession,
        "no path of Apache's server sends it to a client",
    ),
    (ZkError::NewConfigNoQuorum, "needs an ensemble"),
    (ZkError::ReconfigInProgress, "needs an ensemble"),
    (ZkError::ApiError, "marks a range; no server sends it"),
    (
        ZkError::SessionExpired,
        "a standalone server closes the connection before a request of a closing session is answered",
    ),
    (ZkError::InvalidCallback, "made by clients"),
    (
        ZkError::SessionMoved,
        "needs an ensemble; shows as a closed connection",
    ),
    (
        ZkError::NotReadOnly,
        "needs an ensemble that has lost its quorum",
    ),
    (
        ZkError::EphemeralOnLocalSession,
        "needs an ensemble with local sessions",
    ),
    (ZkError::RequestTimeout, "made by clients"),
    (
        ZkError::SessionClosedRequireSaslAuth,
        "needs enforced authentication, which no setting of these servers has",
    ),
    (
        ZkError::ThrottledOp,
        "needs requests that wait for a time in the server's queues, which no script controls",
    ),
];
