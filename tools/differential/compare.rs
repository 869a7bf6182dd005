//! Two transcripts of one script, side by side.

use std::collections::BTreeMap;
use std::fmt;

use ringkeeper_proto::OpCode;

use crate::deliberate::{Context, DELIBERATE, Deliberate, Rule};
use crate::observation::{Offset, Seen, StepSeen, Transcript};
use crate::script::{Script, Step};
use crate::servers::{Server, Version};

/// Who is compared: which deliberate differences apply depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sides {
    pub(crate) oracle: Version,
    pub(crate) subject: Version,
    pub(crate) is_ringkeeper: bool,
}

/// The release whose behaviour Ringkeeper has.
const REFERENCE: Version = (3, 9, 3);

impl Sides {
    pub(crate) const fn of(oracle: &Server, subject: &Server) -> Self {
        let is_ringkeeper = subject.is_ringkeeper();
        Self {
            oracle: oracle.version(),
            subject: if is_ringkeeper {
                REFERENCE
            } else {
                subject.version()
            },
            is_ringkeeper,
        }
    }
}

/// How often each deliberate difference was met, by its id.
pub(crate) type Uses = BTreeMap<&'static str, u64>;

/// Where two transcripts part.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) step: usize,
    pub(crate) slot: usize,
    pub(crate) oracle: Option<Seen>,
    pub(crate) subject: Option<Seen>,
    /// What kind of difference it is, the same for all of one cause (as far as that can be told).
    pub(crate) signature: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |seen: &Option<Seen>| {
            seen.as_ref()
                .map_or_else(|| "(nothing more)".to_owned(), |seen| format!("{seen:?}"))
        };
        writeln!(f, "{} (step {}, #{})", self.signature, self.step, self.slot)?;
        writeln!(f, "    oracle:  {}", show(&self.oracle))?;
        write!(f, "    subject: {}", show(&self.subject))
    }
}

/// Compares what `script` showed on both sides, up to the first difference that nothing explains.
pub(crate) fn compare(
    script: &Script,
    sides: Sides,
    oracle: &Transcript,
    subject: &Transcript,
    uses: &mut Uses,
) -> Option<Difference> {
    let mut last_zxid = Offset::At(0);
    // Transactions that the oracle has and the subject, as is meant, has not.
    let mut skipped = Vec::new();
    for (place, step) in script.steps.iter().enumerate() {
        let nothing = StepSeen::default();
        let mut ours = subject.steps.get(place).unwrap_or(&nothing).clone();
        let mut theirs = oracle.steps.get(place).unwrap_or(&nothing).clone();
        if ends_session(step) {
            sort_events(&mut ours);
            sort_events(&mut theirs);
        }
        let zxid = ours.zxids().max().unwrap_or(last_zxid).max(last_zxid);
        let context = Context {
            script,
            step,
            zxid_before: last_zxid,
            zxid_after: zxid,
        };
        last_zxid = zxid;
        let mut parted = false;
        for (slot, seen) in &theirs.slots {
            let empty = Vec::new();
            let mine = ours
                .slots
                .iter()
                .find(|(other, _)| other == slot)
                .map_or(&empty, |(_, seen)| seen);
            match compare_slot(&context, sides, (seen, mine), &mut skipped, uses) {
                Outcome::Same => {}
                // The servers' states differ from here on, as intended.
                Outcome::Parted => parted = true,
                Outcome::Different(both) => {
                    let (theirs, mine) = *both;
                    return Some(Difference {
                        step: place,
                        slot: *slot,
                        signature: signature(step, theirs.as_ref(), mine.as_ref()),
                        oracle: theirs,
                        subject: mine,
                    });
                }
            }
            if parted {
                return None;
            }
        }
    }
    None
}

enum Outcome {
    Same,
    Parted,
    Different(Box<(Option<Seen>, Option<Seen>)>),
}

fn compare_slot(
    context: &Context<'_>,
    sides: Sides,
    (theirs, ours): (&[Seen], &[Seen]),
    skipped: &mut Vec<i64>,
    uses: &mut Uses,
) -> Outcome {
    let known = || DELIBERATE.iter().filter(|known| known.applies(sides));
    let whole = known().find(
        |known| matches!(known.rule, Rule::Step(rule) if theirs != ours && rule(context, theirs, ours)),
    );
    if let Some(whole) = whole {
        *uses.entry(whole.id).or_default() += 1;
        return Outcome::Parted;
    }
    let (mut left, mut right) = (theirs.iter().peekable(), ours.iter().peekable());
    loop {
        let (unskipped, b) = (left.peek().copied(), right.peek().copied());
        let a = unskipped.map(|seen| seen.without(skipped));
        let a = a.as_ref();
        if a == b {
            if a.is_none() {
                return Outcome::Same;
            }
            left.next();
            right.next();
            continue;
        }
        let explained = known().find(|known| explains(known, context, a, b));
        let Some(explained) = explained else {
            return Outcome::Different(Box::new((a.cloned(), b.cloned())));
        };
        *uses.entry(explained.id).or_default() += 1;
        if explained.parts {
            return Outcome::Parted;
        }
        if let (
            Rule::Skip(_),
            Some(Seen::Reply {
                zxid: Offset::At(zxid),
                ..
            }),
        ) = (explained.rule, unskipped)
        {
            skipped.push(*zxid);
        }
        left.next();
        if matches!(explained.rule, Rule::Pair(_) | Rule::Skip(_)) {
            right.next();
        }
    }
}

fn explains(known: &Deliberate, context: &Context<'_>, a: Option<&Seen>, b: Option<&Seen>) -> bool {
    match (known.rule, a, b) {
        (Rule::Pair(rule) | Rule::Skip(rule), Some(a), Some(b)) => rule(context, a, b),
        (Rule::Any(rule), a, b) => rule(context, a, b),
        _ => false,
    }
}

/// A session's ephemerals are deleted in an order that nothing defines.
fn ends_session(step: &Step) -> bool {
    match step {
        Step::Expire { .. } => true,
        Step::Burst { calls, .. } => calls
            .iter()
            .any(|call| call.op() == Some(OpCode::CloseSession)),
        _ => false,
    }
}

fn sort_events(seen: &mut StepSeen) {
    let is_event = |seen: &Seen| matches!(seen, Seen::Event { .. });
    for (_, seen) in &mut seen.slots {
        for run in seen.chunk_by_mut(|a, b| is_event(a) && is_event(b)) {
            run.sort_by_key(|seen| format!("{seen:?}"));
        }
    }
}

/// A name for the kind of difference.
fn signature(step: &Step, theirs: Option<&Seen>, ours: Option<&Seen>) -> String {
    if let (
        Some(Seen::Reply {
            call,
            op,
            xid,
            zxid,
            error,
            body,
        }),
        Some(Seen::Reply {
            xid: our_xid,
            zxid: our_zxid,
            error: our_error,
            body: our_body,
            ..
        }),
    ) = (theirs, ours)
    {
        let mut name = op_name(*op);
        if let Step::Burst { calls, .. } = step
            && let Some(how) = calls.get(*call).and_then(|call| call.spoiled)
        {
            name.push_str(&format!(" [{how}]"));
        }
        return if error != our_error {
            format!("{name}: error {error} | {our_error}")
        } else if zxid != our_zxid {
            format!("{name} (error {error}): zxid")
        } else if xid != our_xid {
            format!("{name}: xid")
        } else if std::mem::discriminant(body) == std::mem::discriminant(our_body) {
            format!("{name}: fields of the body")
        } else {
            format!("{name}: form of the body")
        };
    }
    let name = |seen: Option<&Seen>| match seen {
        None => "nothing".to_owned(),
        Some(Seen::Reply { op, error, .. }) => format!("{} error {error}", op_name(*op)),
        Some(Seen::Event { kind, .. }) => format!("event {kind}"),
        Some(Seen::Welcome(welcome)) if welcome.timeout_ms == 0 => "refusal".to_owned(),
        Some(Seen::Welcome(_)) => "welcome".to_owned(),
        Some(Seen::Pong { .. }) => "pong".to_owned(),
        Some(Seen::Frame(_)) => "frame".to_owned(),
        Some(other) => format!("{other:?}").to_lowercase(),
    };
    let what = match step {
        Step::Connect { .. } => "connect".to_owned(),
        Step::Burst { calls, .. } => calls
            .last()
            .map_or_else(String::new, |call| op_name(call.op)),
        Step::Raw { what, .. } => format!("raw {what}"),
        Step::Stranger { what, .. } => format!("stranger {what}"),
        Step::Drop { .. } => "drop".to_owned(),
        Step::Expire { .. } => "expire".to_owned(),
        Step::Sweep { .. } => "sweep".to_owned(),
        Step::Restart => "restart".to_owned(),
    };
    format!("{what}: {} | {}", name(theirs), name(ours))
}

/// The protocol's name of an operation.
pub(crate) fn op_name(op: i32) -> String {
    OpCode::from_code(op).map_or_else(
        || "unknown".to_owned(),
        |op| {
            let name = format!("{op:?}");
            let (first, rest) = name.split_at(1);
            format!("{}{rest}", first.to_lowercase())
        },
    )
}
