//! The differences that are meant: between the oracle's release and the one that Ringkeeper follows, and
//! between Ringkeeper and any Apache. `docs/compatibility.md` tells them to operators.
//!
//! A rule says exactly what may differ; everything else about the step is still compared. Each use is
//! counted, so that a rule which nothing needs any more shows.

use ringkeeper_proto::request::MultiHeader;
use ringkeeper_proto::{Acl, DecodeError, OpCode, Reader, Request, ZkError};

use crate::compare::Sides;
use crate::decode::SURROGATES;
use crate::observation::{Body, Offset, Part, Seen};
use crate::script::{Call, Password, Script, SessionOf, Step};
use crate::servers::Version;

/// Between whom a difference is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope {
    /// Between releases before this one and releases from it on.
    Since(Version),
    /// Between any Apache and Ringkeeper.
    Ringkeeper,
}

/// What differs.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    /// One thing that both show, differently.
    Pair(fn(&Context<'_>, &Seen, &Seen) -> bool),
    /// A reply that both show, whose transaction only the oracle has. Later zxids are compared as if it
    /// were not there.
    Skip(fn(&Context<'_>, &Seen, &Seen) -> bool),
    /// Whatever stands at the first difference; it always parts the servers' states.
    Any(fn(&Context<'_>, Option<&Seen>, Option<&Seen>) -> bool),
    /// All that the step shows on its connection; it always parts the servers' states.
    Step(fn(&Context<'_>, &[Seen], &[Seen]) -> bool),
}

/// A difference that is meant.
pub(crate) struct Deliberate {
    pub(crate) id: &'static str,
    /// What the oracle does and what the subject does.
    pub(crate) what: &'static str,
    /// Why, with the issue that it comes from.
    pub(crate) reason: &'static str,
    pub(crate) scope: Scope,
    pub(crate) rule: Rule,
    /// Whether the servers' states differ afterwards: the rest of the script is not compared.
    pub(crate) parts: bool,
}

/// Where in a script a difference stands.
pub(crate) struct Context<'a> {
    pub(crate) script: &'a Script,
    pub(crate) step: &'a Step,
    /// The largest zxid that the subject has shown before the step, and with it.
    pub(crate) zxid_before: Offset,
    pub(crate) zxid_after: Offset,
}

impl Context<'_> {
    fn call(&self, place: usize) -> Option<&Call> {
        match self.step {
            Step::Burst { calls, .. } => calls.get(place),
            _ => None,
        }
    }

    fn is_only(&self, op: OpCode) -> bool {
        matches!(self.step, Step::Burst { calls, .. } if matches!(&calls[..], [call] if call.op() == Some(op)))
    }
}

impl Deliberate {
    pub(crate) fn applies(&self, sides: Sides) -> bool {
        match self.scope {
            Scope::Since(release) => sides.oracle < release && release <= sides.subject,
            Scope::Ringkeeper => sides.is_ringkeeper,
        }
    }
}

/// All of them.
pub(crate) const DELIBERATE: &[Deliberate] = &[
    Deliberate {
        id: "event-zxid",
        what: "the header of a watch event carries zxid -1 | the zxid of the transaction that fired it",
        reason: "ZOOKEEPER-4655, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(event_zxid),
        parts: false,
    },
    Deliberate {
        id: "exists-acl",
        what: "exists needs no permission | READ on the znode",
        reason: "ZOOKEEPER-2590, Apache 3.9.2",
        scope: Scope::Since((3, 9, 2)),
        rule: Rule::Pair(exists_acl),
        // A watch is left here and not there.
        parts: true,
    },
    Deliberate {
        id: "watch-kinds",
        what: "checkWatches and removeWatches of the kinds 4 (persistent) and 5 (persistent recursive) \
               answer -5 | they are answered",
        reason: "ZOOKEEPER-4472, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(watch_kinds),
        parts: true,
    },
    Deliberate {
        id: "watch-kinds-of-modes",
        what: "the kinds 1 to 3 find persistent watches too, whatever their mode | only those whose mode \
               watches the children (1), the data (2) or either (3)",
        reason: "ZOOKEEPER-4471, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(watch_kinds_of_modes),
        parts: true,
    },
    Deliberate {
        id: "check-watches",
        what: "checkWatches also finds other clients' watches and recursive ones above, and answers -5 for \
               a path that is not valid | finds the connection's own, whatever the path",
        reason: "ZOOKEEPER-4466, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(check_watches),
        parts: false,
    },
    Deliberate {
        id: "remove-watches-path",
        what: "removeWatches answers -5 for a path that is not valid | looks for the watch",
        reason: "ZOOKEEPER-4466, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(remove_watches_path),
        parts: true,
    },
    Deliberate {
        id: "watch-modes",
        what: "a connection has one watch mode per path, the last one set | every mode by itself",
        reason: "ZOOKEEPER-4466, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Any(watch_modes),
        parts: true,
    },
    Deliberate {
        id: "malformed-zxid",
        what: "a write whose body cannot be decoded answers -5 and uses up a zxid | answers -5",
        reason: "ZOOKEEPER-4575, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Skip(malformed_zxid),
        parts: false,
    },
    Deliberate {
        id: "multi-create2",
        what: "a create2 within a multi, and a createContainer with another mode's flags, is answered as create, \
               with the path | with path and stat",
        reason: "ZOOKEEPER-4026, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(multi_create2),
        parts: false,
    },
    Deliberate {
        id: "multi-create-flags",
        what: "flags that no create has, or a null ACL, fail the operation of a multi | the whole multi \
               answers -5",
        reason: "ZOOKEEPER-4026, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Pair(multi_create_flags),
        parts: true,
    },
    Deliberate {
        id: "check-alone",
        what: "check outside a multi uses up a zxid and is not answered | -6, and the connection is closed",
        reason: "ZOOKEEPER-2623, Apache 3.8.4 and 3.9.3",
        scope: Scope::Since((3, 9, 3)),
        rule: Rule::Step(check_alone),
        parts: true,
    },
    Deliberate {
        id: "delete-container-body",
        what: "deleteContainer takes its whole body for the path | reads the path from it",
        reason: "ZOOKEEPER-4575, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Any(delete_container_body),
        parts: true,
    },
    Deliberate {
        id: "identity-order",
        what: "a connection's identities, in whoAmI and where `auth` stands for them in an ACL, have the order \
               of their hashes | the order in which they were added",
        reason: "Apache keeps them in a hash set, whose order means nothing",
        scope: Scope::Ringkeeper,
        rule: Rule::Pair(identity_order),
        parts: false,
    },
    Deliberate {
        id: "surrogates",
        what: "a character beyond the basic plane is written as two surrogates of three bytes each | as UTF-8",
        reason: "what Apache writes is not UTF-8, and no client reads it back as the character",
        scope: Scope::Ringkeeper,
        rule: Rule::Pair(surrogates),
        parts: false,
    },
    Deliberate {
        id: "multi-leftovers",
        what: "what a multi that answers -5 as a whole had prepared before is in sight of requests that come \
               before its failure is logged: their parents' cversion is too high, and a multi among them may find \
               what is not there | nothing is left of it",
        reason: "Apache takes back what failed only after errors that concern an operation",
        scope: Scope::Ringkeeper,
        rule: Rule::Pair(multi_leftovers),
        parts: true,
    },
    Deliberate {
        id: "wrong-password",
        what: "who names a session and shows a wrong password is refused, and the session's connection is \
               closed too | is refused",
        reason: "otherwise whoever learns a session's id, which is no secret, can cut it off at will",
        scope: Scope::Ringkeeper,
        rule: Rule::Any(wrong_password),
        parts: true,
    },
    Deliberate {
        id: "create-session-operation",
        what: "a client may send createSession, which changes its time-out and answers a second connect \
               response | -6, and the connection is closed",
        reason: "the operation is the server's own; what clients could do with it is a gap, not a feature",
        scope: Scope::Ringkeeper,
        rule: Rule::Step(create_session_refused),
        parts: true,
    },
    Deliberate {
        id: "delete-container-operation",
        what: "a client may send deleteContainer, and deletes any empty znode that is not ephemeral, \
               whatever its ACL | -6, and the connection is closed",
        reason: "the operation is the container manager's own; it would let any client past every ACL",
        scope: Scope::Ringkeeper,
        rule: Rule::Step(delete_container_refused),
        parts: true,
    },
];

fn event_zxid(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Event {
            zxid: Offset::MinusOne,
            error,
            kind,
            state,
            path,
        },
        Seen::Event {
            zxid,
            error: our_error,
            kind: our_kind,
            state: our_state,
            path: our_path,
        },
    ) = (theirs, ours)
    else {
        return false;
    };
    (error, kind, state, path) == (our_error, our_kind, our_state, our_path)
        && *zxid > context.zxid_before
        && *zxid <= context.zxid_after
}

fn exists_acl(_: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    matches!(
        (theirs, ours),
        (
            Seen::Reply { op, error: 0, .. },
            Seen::Reply { error, .. },
        ) if *op == OpCode::Exists.code() && *error == ZkError::NoAuth.code()
    )
}

fn watch_kinds(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Reply { call, error, .. },
        Seen::Reply {
            error: our_error, ..
        },
    ) = (theirs, ours)
    else {
        return false;
    };
    let Some(Request::CheckWatches { kind, .. } | Request::RemoveWatches { kind, .. }) =
        context.call(*call).and_then(Call::request)
    else {
        return false;
    };
    matches!(kind, 4 | 5)
        && *error == ZkError::MarshallingError.code()
        && [0, ZkError::NoWatcher.code()].contains(our_error)
}

fn check_watches(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Reply {
            call,
            op,
            xid,
            zxid,
            error,
            ..
        },
        Seen::Reply {
            op: our_op,
            xid: our_xid,
            zxid: our_zxid,
            error: our_error,
            ..
        },
    ) = (theirs, ours)
    else {
        return false;
    };
    let finds_more = *error == 0 && *our_error == ZkError::NoWatcher.code();
    *op == OpCode::CheckWatches.code()
        && (finds_more || is_path_odd(context, *call))
        && (op, xid, zxid) == (our_op, our_xid, our_zxid)
}

fn remove_watches_path(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Reply {
            call, op, error, ..
        },
        Seen::Reply { error: ours, .. },
    ) = (theirs, ours)
    else {
        return false;
    };
    *op == OpCode::RemoveWatches.code()
        && *error == ZkError::MarshallingError.code()
        && [0, ZkError::NoWatcher.code()].contains(ours)
        && is_path_odd(context, *call)
}

/// Whether the path of checkWatches or removeWatches is none that a znode could have.
fn is_path_odd(context: &Context<'_>, call: usize) -> bool {
    let Some(call) = context.call(call) else {
        return false;
    };
    match call.request() {
        Some(Request::CheckWatches { path, .. } | Request::RemoveWatches { path, .. }) => {
            !is_valid_path(path)
        }
        _ => call.spoiled.is_some(),
    }
}

// ZK: PathUtils.validatePath, as far as scripts go wrong.
fn is_valid_path(path: &str) -> bool {
    let is_odd = |c: char| matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..);
    path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            !rest.contains(is_odd) && rest.split('/').all(|name| !matches!(name, "" | "." | ".."))
        })
}

fn identity_order(_: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let sorted = |seen: &Seen| {
        let mut seen = seen.clone();
        if let Seen::Reply { body, .. } = &mut seen {
            match body {
                Body::Identities(ids) => ids.sort(),
                Body::Acl(entries, _) => entries.sort(),
                _ => {}
            }
        }
        seen
    };
    sorted(theirs) == sorted(ours)
}

fn surrogates(_: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let theirs = format!("{theirs:?}");
    theirs.contains(SURROGATES) && theirs.replace(SURROGATES, "") == format!("{ours:?}")
}

fn multi_leftovers(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let is_leaving =
        |step: &Step| matches!(step, Step::Burst { calls, .. } if calls.iter().any(leaves));
    let (their_text, our_text) = (format!("{theirs:?}"), format!("{ours:?}"));
    // A later multi of the burst finds what was never made.
    let finds_it = || {
        let (Step::Burst { calls, .. }, Seen::Reply { call, op, .. }) = (context.step, theirs)
        else {
            return false;
        };
        *op == OpCode::Multi.code()
            && calls.iter().take(*call).any(leaves)
            && their_text.contains(&format!("error: {}", ZkError::NodeExists.code()))
    };
    context.script.steps.iter().any(is_leaving)
        && (without_cversions(&their_text) == without_cversions(&our_text) || finds_it())
}

/// Whether it is a multi that fails as a whole, once its first parts have been prepared.
fn leaves(call: &Call) -> bool {
    call.op() == Some(OpCode::Multi)
        && match call.request() {
            Some(Request::Multi(parts)) => parts.iter().any(is_create_odd),
            _ => true,
        }
}

/// Whether it is a create with flags that no create has, or a null ACL.
fn is_create_odd(part: &Request<'_>) -> bool {
    matches!(part, Request::Create { op, create }
        if *op != OpCode::CreateTtl
            && (create.acl.is_none() || !(0..=4).contains(&create.flags)))
}

/// The text of what a server showed, without the numbers behind `cversion`.
fn without_cversions(seen: &str) -> String {
    seen.split("cversion ")
        .map(|part| part.trim_start_matches(|digit: char| digit.is_ascii_digit()))
        .collect()
}

fn watch_kinds_of_modes(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Reply { call, error, .. },
        Seen::Reply {
            error: our_error, ..
        },
    ) = (theirs, ours)
    else {
        return false;
    };
    let Some(Request::CheckWatches { path, kind } | Request::RemoveWatches { path, kind }) =
        context.call(*call).and_then(Call::request)
    else {
        return false;
    };
    matches!(kind, 1..=3)
        && context.script.watches_lastingly(path)
        && [0, ZkError::NoWatcher.code()].contains(error)
        && [0, ZkError::NoWatcher.code()].contains(our_error)
}

fn watch_modes(context: &Context<'_>, theirs: Option<&Seen>, ours: Option<&Seen>) -> bool {
    let is_of_watches = |seen: Option<&Seen>| match seen {
        Some(Seen::Event { .. }) => true,
        Some(Seen::Reply { op, .. }) => {
            *op == OpCode::CheckWatches.code() || *op == OpCode::RemoveWatches.code()
        }
        _ => false,
    };
    context.script.mixes_watch_modes && (is_of_watches(theirs) || is_of_watches(ours))
}

fn malformed_zxid(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Reply {
            call,
            xid,
            zxid: Offset::At(zxid),
            error,
            body,
            ..
        },
        Seen::Reply {
            xid: our_xid,
            zxid: Offset::At(our_zxid),
            error: our_error,
            body: our_body,
            ..
        },
    ) = (theirs, ours)
    else {
        return false;
    };
    let is_odd = context.call(*call).is_some_and(|call| match call.op() {
        Some(OpCode::Multi) => has_null_acl(&call.body),
        Some(op) => op.is_write() && call.spoiled.is_some(),
        None => false,
    });
    is_odd
        && *error == ZkError::MarshallingError.code()
        && (xid, error, body) == (our_xid, our_error, our_body)
        && *zxid == our_zxid + 1
}

// ZK: CreateOptions throws for it, before the multi has a header and with it a zxid.
fn has_null_acl(multi: &[u8]) -> bool {
    let mut reader = Reader::new(multi);
    loop {
        match part_has_null_acl(&mut reader) {
            Ok(Some(false)) => {}
            Ok(Some(true)) => return true,
            Ok(None) | Err(_) => return false,
        }
    }
}

/// Whether the next operation of a multi is a create with a null ACL; `None` at the end.
fn part_has_null_acl(reader: &mut Reader<'_>) -> Result<Option<bool>, DecodeError> {
    let header = MultiHeader::decode(reader)?;
    if header.done {
        return Ok(None);
    }
    let _path = reader.buffer()?;
    let op = OpCode::from_code(header.op);
    match op {
        Some(OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl) => {
            let _data = reader.buffer()?;
            let Some(count) = reader.count(Acl::LEN_MIN)? else {
                return Ok(Some(op != Some(OpCode::CreateTtl)));
            };
            for _ in 0..count {
                let _perms = reader.int()?;
                let (_scheme, _id) = (reader.buffer()?, reader.buffer()?);
            }
            let _flags = reader.int()?;
            if op == Some(OpCode::CreateTtl) {
                let _ttl = reader.long()?;
            }
        }
        Some(OpCode::SetData) => {
            let (_data, _version) = (reader.buffer()?, reader.int()?);
        }
        Some(OpCode::Delete | OpCode::Check) => {
            let _version = reader.int()?;
        }
        _ => {
            let _watch = reader.bool()?;
        }
    }
    Ok(Some(false))
}

/// `CreateMode.CONTAINER`.
const CONTAINER_FLAGS: i32 = 4;

fn multi_create2(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (
        Seen::Reply {
            call,
            op,
            xid,
            zxid,
            error,
            body: Body::Parts(parts),
        },
        Seen::Reply {
            op: our_op,
            xid: our_xid,
            zxid: our_zxid,
            error: our_error,
            body: Body::Parts(our_parts),
            ..
        },
    ) = (theirs, ours)
    else {
        return false;
    };
    let Some(Request::Multi(requests)) = context.call(*call).and_then(Call::request) else {
        return false;
    };
    let is_part_right = |(request, (part, ours)): (&Request<'_>, (&Part, &Part))| {
        // Theirs goes by the flags.
        let is_create2 = matches!(request, Request::Create { op, create }
                if *op == OpCode::Create2 || *op == OpCode::CreateContainer && create.flags != CONTAINER_FLAGS)
            && part.op == OpCode::Create.code()
            && ours.op == OpCode::Create2.code();
        match (&part.body, &ours.body) {
            (Body::Path(path), Body::PathNode(our_path, _)) if is_create2 => path == our_path,
            _ => part == ours,
        }
    };
    (op, xid, zxid, error) == (our_op, our_xid, our_zxid, our_error)
        && parts.len() == our_parts.len()
        && requests
            .iter()
            .zip(parts.iter().zip(our_parts))
            .all(is_part_right)
}

fn multi_create_flags(context: &Context<'_>, theirs: &Seen, ours: &Seen) -> bool {
    let (Seen::Reply { call, .. }, Seen::Reply { error, .. }) = (theirs, ours) else {
        return false;
    };
    let Some(Request::Multi(parts)) = context.call(*call).and_then(Call::request) else {
        return false;
    };
    parts.iter().any(is_create_odd) && *error == ZkError::MarshallingError.code()
}

fn check_alone(context: &Context<'_>, _: &[Seen], ours: &[Seen]) -> bool {
    context.is_only(OpCode::Check) && is_refused(ours)
}

fn delete_container_body(context: &Context<'_>, _: Option<&Seen>, _: Option<&Seen>) -> bool {
    context.is_only(OpCode::DeleteContainer)
}

fn create_session_refused(context: &Context<'_>, _: &[Seen], ours: &[Seen]) -> bool {
    context.is_only(OpCode::CreateSession) && is_refused(ours)
}

fn delete_container_refused(context: &Context<'_>, _: &[Seen], ours: &[Seen]) -> bool {
    context.is_only(OpCode::DeleteContainer) && is_refused(ours)
}

fn wrong_password(context: &Context<'_>, theirs: Option<&Seen>, ours: Option<&Seen>) -> bool {
    let Step::Connect { hello, .. } = context.step else {
        return false;
    };
    matches!(hello.session, SessionOf::Slot(_))
        && hello.password != Password::Right
        && matches!(
            (theirs, ours),
            (Some(Seen::Closed), Some(Seen::Pong { .. }))
        )
}

fn is_refused(ours: &[Seen]) -> bool {
    matches!(
        ours,
        [Seen::Reply { error, .. }, Seen::Closed] if *error == ZkError::Unimplemented.code()
    )
}
