//! A leader hands over to a voter of its choice, by plan.
//!
//! ```text
//!   leader                        successor                  others
//!   Draining: proposes nothing, until what was proposed is committed, and all there
//!   Told:     HANDOVER ---------> leads: gathers epochs
//!             <--------- HANDOVER
//!             HANDOVER ------------------------------------> follow the successor
//!             follows the successor
//! ```
//!
//! It stands for an election, of which the leader tells the result, and for nothing else: the successor still has
//! to gather promises, and to bring a quorum in line, before it leads. So whatever gets lost on the way, the worst
//! that comes of it is an election.
//!
//! Invariant: who gets a HANDOVER from its leader knows that this leader proposes nothing more, so what it asked
//! for and has not seen proposed may be asked again.

use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{ServerId, Zxid};

use super::{Leader, Phase};
use crate::contract::Output;
use crate::core_state::CoreState;
use crate::message::{LinkId, Message};
use crate::progress::{Progress, Stage};
use crate::timer::Moment;

/// Why a leader leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHandOver {
    /// Only a leader can hand over.
    #[error("this server does not lead")]
    NotLeading,
    /// One at a time.
    #[error("the leader is busy with another hand-over, or with a new epoch")]
    Busy,
    /// There is nothing to do.
    #[error("server {0} leads already")]
    LeadsAlready(ServerId),
    /// It cannot be elected either.
    #[error("server {0} has no vote")]
    NotVoter(ServerId),
    /// It has no connection, or is still being synchronized.
    #[error("server {0} is not synchronized with the leader")]
    NotSynchronized(ServerId),
    /// It would not understand.
    #[error("server {0} does not know planned hand-over: it is not a Ringkeeper server")]
    NotCapable(ServerId),
    /// Nobody can be handed to.
    #[error("no other Ringkeeper voter is synchronized with the leader")]
    NoSuccessor,
    /// Those who understand are no quorum: the others need an election.
    #[error(
        "too few synchronized voters know planned hand-over: the others are not Ringkeeper servers"
    )]
    TooFew,
    /// Not everything was committed, and there, in time.
    #[error("server {0} did not catch up in time")]
    TooSlow(ServerId),
    /// It was told, and did not answer in time.
    #[error("server {0} did not answer")]
    Silent(ServerId),
    /// Its connection ended.
    #[error("server {0} was lost meanwhile")]
    Lost(ServerId),
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum HandOver {
    /// Nothing is proposed any more.
    Draining {
        link: LinkId,
        to: ServerId,
        round: u64,
        since: Moment,
        /// How long this may take.
        limit: u64,
    },
    /// The successor knows.
    Told {
        link: LinkId,
        to: ServerId,
        round: u64,
        since: Moment,
        limit: u64,
    },
    /// All know.
    Done { to: ServerId, round: u64 },
}

impl<P: Clone> Leader<P> {
    /// Begins to hand over: to `to`, or to the voter that has most of the log. `round` is that of the election which
    /// this stands for; `patient` as in [`crate::contract::Input::HandOver`].
    pub(crate) fn hand_over(
        &mut self,
        core: &CoreState,
        to: Option<ServerId>,
        patient: bool,
        round: u64,
        outputs: &mut Vec<Output<P>>,
    ) {
        let (link, to) = match self.successor(core, to) {
            Ok(successor) => successor,
            Err(reason) => {
                let outcome = Err(reason);
                outputs.push(Output::HandedOver { outcome });
                return;
            }
        };
        let since = core.now;
        let timing = core.config.timing;
        let limit = match patient {
            true => timing.sync_limit,
            false => timing.tick_time.div_ceil(2),
        };
        self.hand_over = Some(HandOver::Draining {
            link,
            to,
            round,
            since,
            limit,
        });
        self.drain(core, outputs);
    }

    fn successor(
        &self,
        core: &CoreState,
        wanted: Option<ServerId>,
    ) -> Result<(LinkId, ServerId), NoHandOver> {
        let ensemble = &core.config.ensemble;
        if !matches!(self.phase, Phase::Established { .. }) {
            return Err(NoHandOver::NotLeading);
        }
        if self.is_paused() || self.resigned {
            return Err(NoHandOver::Busy);
        }
        let is_fit = |id| ensemble.is_active_voter(id) && ensemble.weight(id) > 0;
        let synced = |it: &Progress| it.stage == Stage::Synced && !it.observer;
        if let Some(id) = wanted {
            let of_id = self.learners.values().find(|it| it.id == id);
            match of_id {
                _ if id == core.id() => return Err(NoHandOver::LeadsAlready(id)),
                _ if !is_fit(id) => return Err(NoHandOver::NotVoter(id)),
                Some(it) if synced(it) && !understands(it) => {
                    return Err(NoHandOver::NotCapable(id));
                }
                Some(it) if synced(it) => {}
                _ => return Err(NoHandOver::NotSynchronized(id)),
            }
        }
        let able = |it: &Progress| synced(it) && understands(it);
        let candidates = self.learners.iter().filter(|(_, it)| {
            able(it) && is_fit(it.id) && wanted.is_none_or(|wanted| it.id == wanted)
        });
        let best = candidates.max_by_key(|(_, it)| (it.counts_through(), it.id));
        let (link, best) = best.ok_or(NoHandOver::NoSuccessor)?;
        let follows =
            |id| id == core.id() || self.learners.values().any(|it| it.id == id && able(it));
        match ensemble.is_quorum(follows) {
            true => Ok((*link, best.id)),
            false => Err(NoHandOver::TooFew),
        }
    }

    /// Tells the successor, once it has everything and nothing waits here.
    pub(super) fn drain(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let Some(HandOver::Draining {
            link,
            to,
            round,
            since,
            limit,
        }) = self.hand_over
        else {
            return;
        };
        let last: Zxid = core.log.last();
        let Some(successor) = self.learners.get_mut(&link) else {
            self.lead_on(NoHandOver::Lost(to), outputs);
            return;
        };
        let has_all = successor
            .counts_through()
            .is_some_and(|through| through >= last);
        // Clients of this server are to be answered first; but a disk that limps is a reason to hand over, and
        // then they are told by the end of their connections.
        let is_late = core.now.exceeds(since, limit / 2);
        let answered = core.delivered == last || is_late;
        if !(has_all && answered && self.outstanding.is_idle()) {
            return;
        }
        successor.stage = Stage::Leaving;
        let message = Message::HandOver { leader: to, round };
        outputs.push(Output::Send { link, message });
        let since = core.now;
        self.hand_over = Some(HandOver::Told {
            link,
            to,
            round,
            since,
            limit,
        });
    }

    /// The successor answers: it leads, as far as this server is concerned.
    pub(super) fn succeeded(&mut self, from: LinkId, outputs: &mut Vec<Output<P>>) -> bool {
        let Some(HandOver::Told {
            link, to, round, ..
        }) = self.hand_over
        else {
            return false;
        };
        if link != from {
            return false;
        }
        for (link, progress) in &mut self.learners {
            if progress.stage == Stage::Synced && understands(progress) {
                progress.stage = Stage::Leaving;
                let (link, message) = (*link, Message::HandOver { leader: to, round });
                outputs.push(Output::Send { link, message });
            }
        }
        self.hand_over = Some(HandOver::Done { to, round });
        let outcome = Ok(to);
        outputs.push(Output::HandedOver { outcome });
        true
    }

    /// A link is gone: if the successor's, this server leads on.
    pub(super) fn lost_successor(&mut self, gone: LinkId, outputs: &mut Vec<Output<P>>) {
        match self.hand_over {
            Some(HandOver::Draining { link, to, .. } | HandOver::Told { link, to, .. })
                if link == gone =>
            {
                self.lead_on(NoHandOver::Lost(to), outputs);
            }
            _ => {}
        }
    }

    /// Not for ever: requests wait meanwhile.
    pub(super) fn hurry(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        self.drain(core, outputs);
        match self.hand_over {
            Some(HandOver::Draining {
                to, since, limit, ..
            }) if core.now.exceeds(since, limit) => {
                self.lead_on(NoHandOver::TooSlow(to), outputs);
            }
            Some(HandOver::Told {
                link,
                to,
                since,
                limit,
                ..
            }) if core.now.exceeds(since, limit) => {
                // What it asked for was held, and it may ask its own quorum for it: it begins anew.
                self.learners.remove(&link);
                outputs.push(Output::Close { link });
                self.lead_on(NoHandOver::Silent(to), outputs);
            }
            _ => {}
        }
    }

    fn lead_on(&mut self, reason: NoHandOver, outputs: &mut Vec<Output<P>>) {
        self.hand_over = None;
        let outcome = Err(reason);
        outputs.push(Output::HandedOver { outcome });
    }

    /// Who leads next, and the round of the election that this stands for.
    pub(crate) const fn handed_to(&self) -> Option<(ServerId, u64)> {
        match self.hand_over {
            Some(HandOver::Done { to, round }) => Some((to, round)),
            _ => None,
        }
    }
}

fn understands(learner: &Progress) -> bool {
    learner.capabilities.has(Capabilities::HAND_OVER)
}
