//! The differences that are meant: between the oracle's release and the one that Ringkeeper follows, and
//! between Ringkeeper and any Apache. `docs/compatibility.md` lists the same ids.
//!
//! A rule says exactly what may differ; everything else about the step is still compared. Each use is
//! counted, so that a rule which nothing needs any more shows.

use ringkeeper_proto::{OpCode, Request, ZkError};

use crate::compare::Sides;
use crate::observation::{Offset, Seen};
use crate::script::{Call, Script, Step};
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
    /// Something that only the oracle shows.
    Missing(fn(&Context<'_>, &Seen) -> bool),
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
        id: "event-acl",
        what: "an event is delivered to everybody | only to those who may read the znode (for \
               NodeChildrenChanged the parent)",
        reason: "CVE-2024-23944, ZOOKEEPER-4799, Apache 3.8.4 and 3.9.2",
        scope: Scope::Since((3, 9, 2)),
        rule: Rule::Missing(event_acl),
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
        id: "watch-modes",
        what: "a connection has one watch mode per path, the last one set | every mode by itself",
        reason: "ZOOKEEPER-4466, Apache 3.9.0",
        scope: Scope::Since((3, 9, 0)),
        rule: Rule::Any(watch_modes),
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

fn event_acl(context: &Context<'_>, theirs: &Seen) -> bool {
    matches!(theirs, Seen::Event { path, .. } if context.script.is_unreadable(path))
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
    let kind = match context.call(*call).and_then(Call::request) {
        Some(Request::CheckWatches { kind, .. } | Request::RemoveWatches { kind, .. }) => kind,
        _ => return false,
    };
    matches!(kind, 4 | 5)
        && *error == ZkError::MarshallingError.code()
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

fn create_session_refused(context: &Context<'_>, _: &[Seen], ours: &[Seen]) -> bool {
    context.is_only(OpCode::CreateSession) && is_refused(ours)
}

fn delete_container_refused(context: &Context<'_>, _: &[Seen], ours: &[Seen]) -> bool {
    context.is_only(OpCode::DeleteContainer) && is_refused(ours)
}

fn is_refused(ours: &[Seen]) -> bool {
    matches!(
        ours,
        [Seen::Reply { error, .. }, Seen::Closed] if *error == ZkError::Unimplemented.code()
    )
}
