//! From a request to the transaction that carries it out, or the error that it gets
//! (`PrepRequestProcessor`).
//!
//! Nothing is changed here. Checks are made in Apache's order, so that a request with several faults
//! gets the same error; `ZK` comments name what is easily lost.

use std::borrow::Cow;

use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::txn::{CreateKind, record_len};
use ringkeeper_proto::{AclList, DecodeError, Id, OpCode, Perms, Request, SessionId, Txn, ZkError};

use crate::acl;
use crate::node::{Node, NodeKind, TTL_MS_MAX};
use crate::path;
use crate::quota_check::{self, QuotaWarning};
use crate::settings::Settings;
use crate::sweep;
use crate::tree::{Tree, len_of};

/// How the session of a request stands with this server, which keeps the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionState {
    /// It lives here.
    #[default]
    Live,
    /// It lives here and nobody else knows of it, so it can own nothing.
    Local,
    /// Another server is taken at its word that it lives there, and it can own nothing either.
    LocalElsewhere,
    /// It is being closed, or has expired.
    Closing,
    /// There is no such session.
    Unknown,
    /// Its client has gone to another server.
    Moved,
}

/// Who asks, when, and under what rules.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The session that asks, or none for what the server itself asks.
    pub session: SessionId,
    /// How it stands.
    pub session_state: SessionState,
    /// The request's xid.
    pub cxid: i32,
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// The identities of the session's connection.
    pub identities: &'a [Id],
    /// The rules.
    pub settings: &'a Settings,
}

impl<'a> Context<'a> {
    /// The server itself asks.
    pub const fn internal(time_ms: i64, settings: &'a Settings) -> Self {
        Self {
            session: SessionId::NONE,
            session_state: SessionState::Live,
            cxid: 0,
            time_ms,
            identities: &[],
            settings,
        }
    }
}

/// What becomes of a request that could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// What the client gets.
    pub error: ZkError,
    /// Whether a transaction of the error is logged under a zxid of its own, as with every other
    /// failed write. If not, the reply shows the last zxid.
    pub takes_zxid: bool,
}

impl Undecodable {
    /// What Apache 3.9 does with a request of kind `op` that failed to decode with `error`.
    pub fn new(op: OpCode, error: &DecodeError, context: &Context<'_>) -> Self {
        if op == OpCode::Multi {
            // ZK: a multi takes its zxid even when it cannot be decoded.
            return Self {
                error: ZkError::MarshallingError,
                takes_zxid: true,
            };
        }
        // ZK: a null path is no fault to the decoder. It is found when the path is looked at, and by
        // then the request has its zxid and its session has been checked.
        if op.is_write() && matches!(error, DecodeError::Length { length: -1, .. }) {
            let error = match (check_session(context), op) {
                (Err(error), _) => error,
                // ZK: whether there are TTL znodes is asked first.
                (_, OpCode::CreateTtl) if !context.settings.extended_types => {
                    ZkError::Unimplemented
                }
                // ZK: only these look at it with validatePath.
                (_, OpCode::SetData | OpCode::SetAcl) => ZkError::BadArguments,
                _ => ZkError::MarshallingError,
            };
            return Self {
                error,
                takes_zxid: true,
            };
        }
        Self {
            error: ZkError::MarshallingError,
            takes_zxid: false,
        }
    }
}

/// Finds what is wrong with the operations of a multi before any of them is tried.
///
/// # Errors
/// The first thing that Apache's decoder (`MultiOperationRecord`, 3.9) refuses, or stumbles over.
pub(crate) fn check_multi(ops: &[Request<'_>]) -> Result<(), Undecodable> {
    let refused = |takes_zxid| Undecodable {
        error: ZkError::MarshallingError,
        takes_zxid,
    };
    for op in ops {
        match op {
            Request::Create { op, create } if *op != OpCode::CreateTtl => {
                let mode = CreateMode::from_flags(create.flags).map_err(|_| refused(true))?;
                if create.acl.is_none() {
                    // ZK: a NullPointerException passes by the line that would take the zxid.
                    return Err(refused(false));
                }
                if mode.ttl {
                    return Err(refused(true));
                }
            }
            // ZK: a multi of reads is decoded, and fails when its transaction is built.
            op if !op.op().is_write() => return Err(refused(true)),
            _ => {}
        }
    }
    Ok(())
}

/// What an operation of a multi is taken for: creates go by their flags first (`Op.create`).
pub(crate) fn part_of_multi<'r, 'a>(part: &'r Request<'a>) -> Cow<'r, Request<'a>> {
    let Request::Create { op, create } = part else {
        return Cow::Borrowed(part);
    };
    let (op, ttl_ms) = match (op, create.flags) {
        (OpCode::CreateTtl, 5 | 6) => return Cow::Borrowed(part),
        (_, 4) => (OpCode::CreateContainer, None),
        (OpCode::CreateTtl, _) => (OpCode::Create, None),
        (op, _) => (*op, None),
    };
    Cow::Owned(Request::Create {
        op,
        create: CreateRequest {
            ttl_ms,
            ..create.clone()
        },
    })
}

/// A request that can be carried out.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) op: OpCode,
    pub(crate) txn: Txn<'a>,
    pub(crate) warnings: Vec<QuotaWarning>,
}

impl<'a> Prepared<'a> {
    pub(crate) const fn new(op: OpCode, txn: Txn<'a>) -> Self {
        Self {
            op,
            txn,
            warnings: Vec::new(),
        }
    }
}

/// The transaction of a single operation.
pub(crate) fn prepare<'a>(
    head: &Tree,
    request: &Request<'a>,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    let prepared = match request {
        Request::Create { op, create } => prepare_create(head, *op, create, context),
        Request::Delete { path, version } => prepare_delete(head, path, *version, context),
        Request::DeleteContainer { path } => prepare_delete_container(head, path, context),
        Request::SetData {
            path,
            data,
            version,
        } => prepare_set_data(head, path, *data, *version, context),
        Request::SetAcl { path, acl, version } => {
            prepare_set_acl(head, path, acl.as_ref(), *version, context)
        }
        Request::Check { path, version } => prepare_check(head, path, *version, context),
        Request::Reconfig { .. } if !context.settings.reconfig_enabled => {
            Err(ZkError::ReconfigDisabled)
        }
        Request::Reconfig { .. } => {
            check_session(context)?;
            // ZK: a server without an ensemble has nothing to reconfigure.
            Err(ZkError::Unimplemented)
        }
        // ZK: reads have no transaction to build; in a multi that ends in a server error.
        _ => Err(ZkError::MarshallingError),
    }?;
    check_txn_len(&prepared.txn, context.settings)?;
    Ok(prepared)
}

// ZK: the ACL of the configuration's znode is asked last, when everything else is well.
pub(crate) fn prepare_reconfig<'a>(
    head: &Tree,
    text: &'a str,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    let node = find(head, path::CONFIG)?;
    check_acl(head, node, Perms::WRITE, context)?;
    let txn = Txn::SetData {
        path: path::CONFIG.into(),
        data: Some(text.as_bytes()),
        version: -1,
    };
    check_txn_len(&txn, context.settings)?;
    Ok(Prepared::new(OpCode::Reconfig, txn))
}

/// Refuses a transaction that some log reader or peer would not take.
pub(crate) fn check_txn_len(txn: &Txn<'_>, settings: &Settings) -> Result<(), ZkError> {
    if record_len(txn, true) > settings.txn_len_max {
        Err(ZkError::BadArguments)
    } else {
        Ok(())
    }
}

/// Whether a request makes an ephemeral, so that its session must be known to all servers.
///
/// ZK: `QuorumZooKeeperServer.checkUpgradeSession`.
pub fn wants_ephemeral(request: &Request<'_>) -> bool {
    match request {
        Request::Create {
            op: OpCode::Create | OpCode::Create2,
            create,
        } => CreateMode::from_flags(create.flags).is_ok_and(|mode| mode.ephemeral),
        Request::Multi(ops) => ops.iter().any(wants_ephemeral),
        _ => false,
    }
}

/// `CreateMode.fromFlag`.
struct CreateMode {
    ephemeral: bool,
    sequential: bool,
    ttl: bool,
}

impl CreateMode {
    const fn from_flags(flags: i32) -> Result<Self, ZkError> {
        let (ephemeral, sequential, ttl) = match flags {
            // Alone, the flag of a container makes a persistent znode: the operation decides.
            0 | 4 => (false, false, false),
            1 => (true, false, false),
            2 => (false, true, false),
            3 => (true, true, false),
            5 => (false, false, true),
            6 => (false, true, true),
            _ => return Err(ZkError::BadArguments),
        };
        Ok(Self {
            ephemeral,
            sequential,
            ttl,
        })
    }
}

fn prepare_create<'a>(
    head: &Tree,
    op: OpCode,
    create: &CreateRequest<'a>,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    let settings = context.settings;
    let mode = CreateMode::from_flags(create.flags)?;
    let kind = create_kind(op, create, &mode, settings)?;
    check_create_session(&mode, context)?;
    let parent_path = path::parent(create.path).ok_or(ZkError::BadArguments)?;
    let acl = acl::fixup(create.acl.as_ref(), context.identities, settings)?;
    let parent = find(head, parent_path)?;
    check_acl(head, parent, Perms::CREATE, context)?;
    let created = if mode.sequential {
        // ZK: `%010d` of an int, which is negative after 2^31 creates.
        Cow::Owned(format!("{}{:010}", create.path, parent.cversion_raw()))
    } else {
        Cow::Borrowed(create.path)
    };
    path::validate(&created)?;
    // What stands behind the last slash is its parent's child, without another walk from the root; only
    // the root has no name.
    let name = path::split(&created).map_or("", |(_, name)| name);
    if name.is_empty() || parent.has_child(name) {
        return Err(ZkError::NodeExists);
    }
    if parent.is_ephemeral() {
        return Err(ZkError::NoChildrenForEphemerals);
    }
    let warnings = check_quota(head, &created, len_of(create.data), 1, context)?;
    if kind == (CreateKind::Plain { ephemeral: true }) {
        check_ephemerals(head, &created, context)?;
    }
    let txn = Txn::Create {
        path: created,
        data: create.data,
        acl,
        kind,
        parent_cversion: parent.cversion_raw().wrapping_add(1),
    };
    Ok(Prepared { op, txn, warnings })
}

// ZK: the operation decides what is made, the flags whether it is sequential, and in create and
// create2 whether it is ephemeral.
fn create_kind(
    op: OpCode,
    create: &CreateRequest<'_>,
    mode: &CreateMode,
    settings: &Settings,
) -> Result<CreateKind, ZkError> {
    if mode.ttl && !settings.extended_types {
        return Err(ZkError::Unimplemented);
    }
    let ttl_ms = create.ttl_ms.unwrap_or(-1);
    let is_valid = if mode.ttl {
        (1..=TTL_MS_MAX).contains(&ttl_ms)
    } else {
        ttl_ms < 0
    };
    if !is_valid {
        return Err(ZkError::BadArguments);
    }
    match op {
        OpCode::CreateContainer => Ok(CreateKind::Container),
        // Apache logs a transaction here that it then cannot apply, and stops serving.
        OpCode::CreateTtl if !mode.ttl => Err(ZkError::BadArguments),
        OpCode::CreateTtl => Ok(CreateKind::Ttl(ttl_ms)),
        _ => Ok(CreateKind::Plain {
            ephemeral: mode.ephemeral,
        }),
    }
}

fn prepare_delete<'a>(
    head: &Tree,
    path: &'a str,
    version: i32,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    check_session(context)?;
    let parent = find(head, deletable_parent(path)?)?;
    check_acl(head, parent, Perms::DELETE, context)?;
    let node = find(head, path)?;
    next_version(node.version(), version)?;
    if node.num_children() > 0 {
        return Err(ZkError::NotEmpty);
    }
    let txn = Txn::Delete { path: path.into() };
    Ok(Prepared::new(OpCode::Delete, txn))
}

// ZK: deletes whatever is empty and not ephemeral. Here the znode must still be what the sweep took
// it for: Apache also deletes a plain znode that took a container's place, and a TTL znode that was
// written to since it was found.
fn prepare_delete_container<'a>(
    head: &Tree,
    path: &'a str,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    deletable_parent(path)?;
    let node = find(head, path)?;
    if node.num_children() > 0 {
        return Err(ZkError::NotEmpty);
    }
    let is_due = match node.kind() {
        NodeKind::Ttl(_) => sweep::is_expired(node, context.time_ms, 0),
        kind => kind == NodeKind::Container,
    };
    if !is_due {
        return Err(ZkError::BadVersion);
    }
    let txn = Txn::Delete { path: path.into() };
    Ok(Prepared::new(OpCode::DeleteContainer, txn))
}

fn prepare_set_data<'a>(
    head: &Tree,
    path: &'a str,
    data: Option<&'a [u8]>,
    version: i32,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    check_session(context)?;
    path::validate(path)?;
    let node = find(head, path)?;
    check_acl(head, node, Perms::WRITE, context)?;
    let growth = len_of(data) - len_of(node.data());
    let warnings = check_quota(head, path, growth, 0, context)?;
    let version = next_version(node.version(), version)?;
    let txn = Txn::SetData {
        path: path.into(),
        data,
        version,
    };
    Ok(Prepared {
        op: OpCode::SetData,
        txn,
        warnings,
    })
}

fn prepare_set_acl<'a>(
    head: &Tree,
    path: &'a str,
    acl: Option<&AclList<'a>>,
    version: i32,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    check_session(context)?;
    path::validate(path)?;
    let acl = acl::fixup(acl, context.identities, context.settings)?;
    let node = find(head, path)?;
    check_acl(head, node, Perms::ADMIN, context)?;
    let version = next_version(node.aversion(), version)?;
    let txn = Txn::SetAcl {
        path: path.into(),
        acl,
        version,
    };
    Ok(Prepared::new(OpCode::SetAcl, txn))
}

fn prepare_check<'a>(
    head: &Tree,
    path: &'a str,
    version: i32,
    context: &Context<'_>,
) -> Result<Prepared<'a>, ZkError> {
    check_session(context)?;
    path::validate(path)?;
    let node = find(head, path)?;
    check_acl(head, node, Perms::READ, context)?;
    let version = next_version(node.version(), version)?;
    let txn = Txn::Check {
        path: path.into(),
        version,
    };
    Ok(Prepared::new(OpCode::Check, txn))
}

// ZK: SessionTracker.checkSession.
/// Whether the session of a request may ask for something.
///
/// # Errors
/// Why it may not.
pub const fn check_session(context: &Context<'_>) -> Result<(), ZkError> {
    match context.session_state {
        SessionState::Live | SessionState::Local | SessionState::LocalElsewhere => Ok(()),
        SessionState::Closing => Err(ZkError::SessionExpired),
        SessionState::Unknown => Err(ZkError::UnknownSession),
        SessionState::Moved => Err(ZkError::SessionMoved),
    }
}

// ZK: who wants an ephemeral must have a session that all servers know (checkGlobalSession).
const fn check_create_session(mode: &CreateMode, context: &Context<'_>) -> Result<(), ZkError> {
    match context.session_state {
        SessionState::Local if mode.ephemeral => Err(ZkError::EphemeralOnLocalSession),
        SessionState::Unknown | SessionState::LocalElsewhere if mode.ephemeral => {
            Err(ZkError::SessionExpired)
        }
        _ => check_session(context),
    }
}

// The transaction that closes a session lists its ephemerals, and must be logged and read as any
// other (ZOOKEEPER-4306): a session cannot have more of them than fit.
fn check_ephemerals(head: &Tree, path: &str, context: &Context<'_>) -> Result<(), ZkError> {
    let listed = Txn::CloseSession {
        paths: Some(Vec::new()),
    };
    let len = record_len(&listed, true) + head.ephemeral_bytes(context.session) + 4 + path.len();
    if len > context.settings.txn_len_max {
        Err(ZkError::QuotaExceeded)
    } else {
        Ok(())
    }
}

// ZK: getParentPathAndValidate.
fn deletable_parent(path: &str) -> Result<&str, ZkError> {
    match path::parent(path) {
        Some(parent) if !path::is_special(path) => Ok(parent),
        _ => Err(ZkError::BadArguments),
    }
}

// ZK: the parent of "/a" is "", which is found as the root.
fn find<'t>(head: &'t Tree, path: &str) -> Result<Node<'t>, ZkError> {
    head.get(path).ok_or(ZkError::NoNode)
}

fn check_acl(
    head: &Tree,
    node: Node<'_>,
    wanted: Perms,
    context: &Context<'_>,
) -> Result<(), ZkError> {
    if acl::allows(
        head.acl_of(node),
        wanted,
        context.identities,
        context.settings,
    ) {
        Ok(())
    } else {
        Err(ZkError::NoAuth)
    }
}

// 3.9.3: plain addition, so that MAX is followed by MIN and -2 by -1.
const fn next_version(current: i32, expected: i32) -> Result<i32, ZkError> {
    if expected != -1 && expected != current {
        Err(ZkError::BadVersion)
    } else {
        Ok(current.wrapping_add(1))
    }
}

fn check_quota(
    head: &Tree,
    path: &str,
    bytes: i64,
    nodes: i64,
    context: &Context<'_>,
) -> Result<Vec<QuotaWarning>, ZkError> {
    if context.settings.enforce_quota {
        quota_check::check(head, path, bytes, nodes)
    } else {
        Ok(Vec::new())
    }
}
