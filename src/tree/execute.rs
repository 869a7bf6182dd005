//! Carries requests out on `head`: validates each against everything accepted before it, builds the
//! transaction that is logged and replicated, and applies it.
//!
//! Invariants:
//! - Whatever happens, exactly one transaction comes out, under the zxid given: that of the request,
//!   or one that says how it failed. Applying it to the tree as it was before gives `head` as it is
//!   after.
//! - A request that fails leaves nothing behind in `head` but its zxid, and no events.
//! - The record of the transaction is at most [`Settings::txn_len_max`](crate::Settings) bytes long,
//!   whatever was asked.

use std::borrow::Cow;
use std::cmp::Ordering;

use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::txn::record_len;
use ringkeeper_proto::{LossyText, OpCode, Request, Txn, TxnDigest, TxnHeader, ZkError, Zxid};

use crate::events::Events;
use crate::prepare::{
    Context, Prepared, Undecodable, check_multi, check_txn_len, part_of_multi, prepare,
    prepare_reconfig,
};
use crate::quota_check::QuotaWarning;
use crate::tree::Tree;

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Executed<'a> {
    /// The header of the transaction. Its type is [`OpCode::Error`] when the request failed.
    pub header: TxnHeader,
    /// The transaction.
    pub txn: Txn<'a>,
    /// What the client gets, once the transaction is committed. A multi whose operations failed is a
    /// success with [`WriteReply::Multi`] of errors; after [`ZkError::SessionMoved`] the connection
    /// is closed.
    pub outcome: Result<WriteReply, ZkError>,
    /// The digest of the tree after the transaction.
    pub digest: TxnDigest,
    /// The soft quotas that it exceeds, to be logged.
    pub warnings: Vec<QuotaWarning>,
}

/// Executes a write of a client, or a [`Request::DeleteContainer`] of the server itself
/// (`PrepRequestProcessor.pRequest`), and adds its events.
pub fn execute<'a>(
    head: &mut Tree,
    zxid: Zxid,
    request: &Request<'a>,
    context: &Context<'_>,
    events: &mut Events,
) -> Executed<'a> {
    match request {
        Request::Multi(ops) => execute_multi(head, zxid, ops, context, events),
        Request::CloseSession => execute_close_session(head, zxid, context, events),
        single => match prepare(head, single, context) {
            Ok(prepared) => finish(head, zxid, prepared, context, events),
            Err(error) => execute_error(head, zxid, error, context),
        },
    }
}

/// As [`execute`], for a request of kind `op` that is still in the form in which the client sent it. `text`
/// keeps what it has of malformed strings.
///
/// # Errors
/// What the client gets when the request cannot be decoded and no transaction says so: `head` is as
/// it was, and the zxid is not used.
pub fn execute_bytes<'a>(
    head: &mut Tree,
    zxid: Zxid,
    op: OpCode,
    body: &'a [u8],
    text: &'a LossyText,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Executed<'a>, ZkError> {
    let decoded = match Request::decode_lossy(op, body, text) {
        Ok(Request::Multi(ops)) => check_multi(&ops).map(|()| Request::Multi(ops)),
        Ok(request) => Ok(request),
        Err(error) => Err(Undecodable::new(op, &error, context)),
    };
    match decoded {
        Ok(request) => Ok(execute(head, zxid, &request, context, events)),
        Err(Undecodable {
            error,
            takes_zxid: true,
        }) => Ok(execute_error(head, zxid, error, context)),
        Err(Undecodable { error, .. }) => Err(error),
    }
}

/// Executes a request that failed before it came here, such as one that could not be decoded, and that
/// takes a zxid nevertheless.
pub fn execute_error<'a>(
    head: &mut Tree,
    zxid: Zxid,
    error: ZkError,
    context: &Context<'_>,
) -> Executed<'a> {
    let txn = Txn::Error { code: error.code() };
    let mut executed = finish(
        head,
        zxid,
        Prepared::new(OpCode::Error, txn),
        context,
        &mut Events::new(),
    );
    executed.outcome = Err(error);
    executed
}

/// Executes a reconfiguration that sets the configuration of the ensemble to `text`, or was found to fail for
/// reasons that the tree does not know.
pub fn execute_reconfig<'a>(
    head: &mut Tree,
    zxid: Zxid,
    text: Result<&'a str, ZkError>,
    context: &Context<'_>,
    events: &mut Events,
) -> Executed<'a> {
    match text.and_then(|text| prepare_reconfig(head, text, context)) {
        Ok(prepared) => finish(head, zxid, prepared, context, events),
        Err(error) => execute_error(head, zxid, error, context),
    }
}

/// Executes the creation of the session of `context`.
pub fn execute_create_session<'a>(
    head: &mut Tree,
    zxid: Zxid,
    timeout_ms: i32,
    context: &Context<'_>,
) -> Executed<'a> {
    let txn = Txn::CreateSession { timeout_ms };
    let prepared = Prepared::new(OpCode::CreateSession, txn);
    finish(head, zxid, prepared, context, &mut Events::new())
}

/// Executes the end of the session of `context`, by its own wish or by expiry: its ephemerals go.
pub fn execute_close_session<'a>(
    head: &mut Tree,
    zxid: Zxid,
    context: &Context<'_>,
    events: &mut Events,
) -> Executed<'a> {
    let paths = context.settings.close_session_txn.then(|| {
        let paths = head.ephemerals(context.session);
        paths.map(|path| Cow::Owned(path.to_owned())).collect()
    });
    let mut txn = Txn::CloseSession { paths };
    if check_txn_len(&txn, context.settings).is_err() {
        // A session taken over from a server that does not count may have more ephemerals than fit.
        // Without the list every server deletes those that it knows of.
        txn = Txn::CloseSession { paths: None };
    }
    let prepared = Prepared::new(OpCode::CloseSession, txn);
    finish(head, zxid, prepared, context, events)
}

fn execute_multi<'a>(
    head: &mut Tree,
    zxid: Zxid,
    ops: &[Request<'a>],
    context: &Context<'_>,
    events: &mut Events,
) -> Executed<'a> {
    if let Err(Undecodable { error, .. }) = check_multi(ops) {
        return execute_error(head, zxid, error, context);
    }
    let header = header_of(OpCode::Multi, zxid, context);
    let events_before = events.mark();
    let mut backup = None;
    let mut done = Multi {
        len: record_len(&Txn::Multi(Vec::new()), true),
        ..Multi::default()
    };
    let mut failure = None;
    for op in ops {
        let prepared = match prepare(head, &part_of_multi(op), context) {
            Ok(prepared) => prepared,
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        // Many small operations can make one transaction that is too long: stop before it is built.
        done.len += PART_HEADER_LEN + prepared.txn.encoded_len();
        if done.len > context.settings.txn_len_max {
            failure = Some(ZkError::BadArguments);
            break;
        }
        // Whatever is applied may have to be taken back by what follows it.
        if backup.is_none() && ops.len() > 1 {
            backup = Some(head.clone());
        }
        let reply = head.apply_part(&header, prepared.op, &prepared.txn, events);
        done.replies.push((shown_op(prepared.op), reply));
        done.warnings.extend(prepared.warnings);
        done.parts.push((prepared.op, prepared.txn));
    }
    let Some(error) = failure else {
        head.set_zxid(zxid.max(head.zxid()));
        return Executed {
            header,
            txn: Txn::Multi(done.parts),
            outcome: Ok(WriteReply::Multi(done.replies)),
            digest: digest_of(head),
            warnings: done.warnings,
        };
    };
    if let Some(backup) = backup {
        *head = backup;
    }
    events.roll_back(events_before);
    // ZK: a request that makes the server itself fail is no failed multi, but a failed request.
    if error == ZkError::MarshallingError {
        return execute_error(head, zxid, error, context);
    }
    refuse_multi(head, zxid, ops.len(), done.parts.len(), error, context)
}

/// What has been done of a multi.
#[derive(Default)]
struct Multi<'a> {
    parts: Vec<(OpCode, Txn<'a>)>,
    replies: Vec<(OpCode, Result<WriteReply, i32>)>,
    warnings: Vec<QuotaWarning>,
    /// Bytes of the record.
    len: usize,
}

/// Bytes before each part of a multi's transaction: its type and its length.
const PART_HEADER_LEN: usize = 8;

// ZK: the operations before the one that failed say 0, those after it say that they were not tried.
fn refuse_multi<'a>(
    head: &mut Tree,
    zxid: Zxid,
    count: usize,
    failed_at: usize,
    error: ZkError,
    context: &Context<'_>,
) -> Executed<'a> {
    let parts = (0..count).map(|at| {
        let code = match at.cmp(&failed_at) {
            Ordering::Less => 0,
            Ordering::Equal => error.code(),
            Ordering::Greater => ZkError::RuntimeInconsistency.code(),
        };
        (OpCode::Error, Txn::Error { code })
    });
    let txn = Txn::Multi(parts.collect());
    if let Err(error) = check_txn_len(&txn, context.settings) {
        return execute_error(head, zxid, error, context);
    }
    let prepared = Prepared::new(OpCode::Multi, txn);
    finish(head, zxid, prepared, context, &mut Events::new())
}

fn finish<'a>(
    head: &mut Tree,
    zxid: Zxid,
    prepared: Prepared<'a>,
    context: &Context<'_>,
    events: &mut Events,
) -> Executed<'a> {
    let header = header_of(prepared.op, zxid, context);
    let applied = head.apply(&header, &prepared.txn, events);
    let outcome = applied
        .outcome
        .map_err(|code| ZkError::from_code(code).unwrap_or(ZkError::SystemError));
    Executed {
        header,
        txn: prepared.txn,
        outcome,
        digest: digest_of(head),
        warnings: prepared.warnings,
    }
}

const fn header_of(op: OpCode, zxid: Zxid, context: &Context<'_>) -> TxnHeader {
    TxnHeader {
        session: context.session,
        cxid: context.cxid,
        zxid,
        time_ms: context.time_ms,
        op,
    }
}

const fn digest_of(head: &Tree) -> TxnDigest {
    TxnDigest {
        version: TxnDigest::VERSION,
        tree_digest: head.digest_to_wire(),
    }
}

// ZK: FinalRequestProcessor makes a CreateResult of each, and one with a stat is a create2.
const fn shown_op(op: OpCode) -> OpCode {
    match op {
        OpCode::CreateTtl | OpCode::CreateContainer => OpCode::Create2,
        op => op,
    }
}
