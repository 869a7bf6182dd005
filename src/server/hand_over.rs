//! Hand-overs that an operator has asked for: who is told what came of it.

use ringkeeper_member::{Core, Standing};
use ringkeeper_proto::ServerId;
use ringkeeper_storage::Disk;

use crate::clock;
use crate::control::{Answer, AnswerTo};

/// Who waits for a hand-over.
#[derive(Debug, Default)]
pub(crate) struct HandOvers {
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    asked_by: AnswerTo,
    since_us: u64,
    /// The successor, when it is under way.
    to: Option<ServerId>,
}

impl HandOvers {
    /// Somebody asks for one.
    pub(crate) fn ask<D: Disk>(
        &mut self,
        core: &mut Core<D>,
        to: Option<ServerId>,
        asked_by: AnswerTo,
    ) {
        let refusal = match core.standing() {
            Standing::Leading(_) => None,
            Standing::Alone => Some("this server is not a member of an ensemble".to_owned()),
            Standing::Following(leader) | Standing::Observing(leader) => {
                Some(format!("this server does not lead: ask server {leader}"))
            }
            Standing::Looking | Standing::ReadOnly | Standing::Moving => {
                Some("there is no leader yet".to_owned())
            }
        };
        if let Some(reason) = refusal {
            // Who asked has gone when this fails; so below.
            _ = asked_by.send(Err(reason));
            return;
        }
        if self.waiting.is_some() {
            _ = asked_by.send(Err("leadership is being handed over already".to_owned()));
            return;
        }
        self.waiting = Some(Waiting {
            asked_by,
            since_us: clock::monotonic_us(),
            to: None,
        });
        core.hand_over(to);
    }

    /// After a turn: who waits is told, if it is over.
    pub(crate) fn look<D: Disk>(&mut self, core: &mut Core<D>) {
        let outcome = core.hand_over_outcome();
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        let answer = match (outcome, waiting.to) {
            (Some(Err(reason)), _) => Some(Err(reason.to_string())),
            (Some(Ok(to)), _) => {
                waiting.to = Some(to);
                None
            }
            (None, Some(to)) => over(core.standing(), to, waiting.since_us),
            (None, None) => None,
        };
        if let Some(answer) = answer
            && let Some(waiting) = self.waiting.take()
        {
            _ = waiting.asked_by.send(answer);
        }
    }
}

/// What came of a hand-over to `to`, when that can be said.
fn over(standing: Standing, to: ServerId, since_us: u64) -> Option<Answer> {
    match standing {
        Standing::Following(leader) if leader == to => {
            let ms = (clock::monotonic_us() - since_us) as f64 / 1000.0;
            Some(Ok(format!("server {to} leads, after {ms:.1} ms")))
        }
        Standing::Moving => None,
        _ => Some(Err(format!(
            "server {to} was told to lead, and was lost meanwhile: the members elect a leader"
        ))),
    }
}
