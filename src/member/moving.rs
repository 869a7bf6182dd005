//! Between two leaders, by plan: what clients ask for waits, and they keep their connections.
//!
//! Invariant: what waits here was proposed by nobody. At a former leader it came when nothing was proposed any
//! more; at a learner it had been forwarded, and its leader said that it proposes nothing more, after all that it
//! had proposed ([`Role::Moving`]). So it is asked again, of whoever leads next; except what a session has asked that
//! has meanwhile asked for something else at another server.

use std::collections::VecDeque;

use ringkeeper_proto::ServerId;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_storage::Disk;
use ringkeeper_zab::{Input, NoHandOver};

use crate::core::Core;
use crate::messages::{ClientMessage, ClientNotice};
use crate::standing::Standing;

#[cfg(doc)]
use ringkeeper_zab::Role;

/// What waits, and what became of a hand-over.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    /// What clients have asked for, in their order.
    held: VecDeque<ClientMessage>,
    /// When the last role ended that served, in milliseconds.
    since_ms: u64,
    outcome: Option<Result<ServerId, NoHandOver>>,
}

impl<D: Disk> Core<D> {
    /// Asks for leadership to be handed over; to the voter that has most of the log when nobody is named. What
    /// becomes of it is [`Core::hand_over_outcome`], sooner or later.
    pub fn hand_over(&mut self, to: Option<ServerId>) {
        self.begin_hand_over(to, false);
    }

    /// `patient` as in [`Input::HandOver`].
    pub(crate) fn begin_hand_over(&mut self, to: Option<ServerId>, patient: bool) {
        self.moving.outcome = None;
        self.input(Input::HandOver { to, patient });
    }

    /// What became of the last hand-over, once: who was to lead next (it still has to be established), or why this
    /// server leads on.
    pub const fn hand_over_outcome(&mut self) -> Option<Result<ServerId, NoHandOver>> {
        self.moving.outcome.take()
    }

    pub(crate) fn handed_over(&mut self, outcome: Result<ServerId, NoHandOver>) {
        match outcome {
            Ok(to) => {
                tracing::info!(%to, "leadership handed over");
                self.stats.hand_overs += 1;
            }
            Err(reason) => {
                tracing::warn!(%reason, "leadership not handed over");
                self.stats.hand_overs_refused += 1;
                let now_ms = self.now.monotonic_ms();
                self.measuring.limping.refused(now_ms);
            }
        }
        self.moving.outcome = Some(outcome);
    }

    /// Whether what clients ask for has to wait.
    pub(crate) const fn is_held(&self) -> bool {
        matches!(self.standing, Standing::Moving) || self.zab.is_paused()
    }

    /// Takes what a client says, or keeps it until it can be taken; an order once begun is kept.
    pub(crate) fn hear_or_hold(&mut self, message: ClientMessage) {
        if self.is_held() || !self.moving.held.is_empty() {
            self.moving.held.push_back(message);
        } else {
            self.hear_now(message);
        }
    }

    /// Takes what waited, if it need not any more.
    pub(crate) fn release_held(&mut self) {
        if self.moving.held.is_empty() && self.traffic.forwarded.is_empty() {
            return;
        }
        while !self.is_held()
            && let Some(message) = self.moving.held.pop_front()
        {
            self.hear_now(message);
        }
        self.take_forwarded();
    }

    /// Nobody waits any more: clients are told by the end of their connections.
    pub(crate) fn forget_held(&mut self) {
        self.moving.held.clear();
    }

    /// A role that served has ended, and the next leader is known.
    pub(crate) fn begin_to_move(&mut self) {
        self.moving.since_ms = self.now.monotonic_ms();
    }

    /// This server serves again: what it had forwarded and not seen comes before what came meanwhile.
    pub(crate) fn end_to_move(&mut self) {
        let pause_ms = self.now.monotonic_ms() - self.moving.since_ms;
        self.stats.moves += 1;
        self.stats.last_move_ms = pause_ms;
        for record in &self.tail {
            let (header, ..) =
                decode_record(&record.bytes).expect("it was decoded once when it came");
            let lost = self.learning.overtaken(&header).into_iter();
            let drops = lost.map(|client| ClientNotice::Drop { client });
            self.notices.extend(drops);
        }
        let mut held = self.learning.take_back(self.now);
        let unseen = held.len();
        held.append(&mut self.moving.held);
        tracing::info!(
            pause_ms,
            unseen,
            held = held.len(),
            "requests go to the next leader"
        );
        self.moving.held = held;
    }
}
