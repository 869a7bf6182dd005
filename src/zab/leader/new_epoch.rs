//! The leader's counter is used up: it begins another epoch, and leads on.
//!
//! ```text
//!   leader                               learners
//!   Draining: proposes nothing, until all is committed
//!   SavingEpoch
//!   Promising:  NEWEPOCH ------------->  accepted epoch durable
//!               <------------- ACKEPOCH
//!   TakingOver: NEWLEADER ------------>  history durable, then current epoch durable
//!               <------------------ ACK
//! ```
//!
//! These are discovery and synchronization, over links that stay as they are: a promise is counted only from a server
//! whose accepted epoch it has moved, a quorum of promises comes before NEWLEADER, and a quorum has taken over
//! the history before the first proposal. Synchronization has nothing to send, since a link keeps its order: who reads
//! NEWEPOCH has all that was proposed before it.
//!
//! It is for ensembles whose connected members all know it; in others the leader gives up, as Apache's.

use std::collections::BTreeSet;

use ringkeeper_proto::quorum::Capabilities;
use ringkeeper_proto::{Epoch, ServerId, Zxid};

use super::{Leader, Phase, tell_epoch};
use crate::contract::{Epochs, Mode, Output, Role};
use crate::core_state::CoreState;
use crate::discovery::{Promises, Summary};
use crate::message::{LinkId, Message};
use crate::progress::{Progress, Stage};
use crate::synchronization::Takeover;
use crate::timer::Moment;

/// How far it is.
#[derive(Debug)]
pub(super) struct NewEpoch {
    since: Moment,
    stage: NewEpochStage,
    /// Learners that were told of it and have answered.
    answered: BTreeSet<LinkId>,
}

#[derive(Debug)]
enum NewEpochStage {
    Draining,
    SavingEpoch {
        epoch: Epoch,
    },
    Promising {
        epoch: Epoch,
        promises: Promises,
    },
    TakingOver {
        epoch: Epoch,
        /// This server's own; `None` when done, and then it counts.
        takeover: Option<Takeover>,
        acks: BTreeSet<ServerId>,
    },
}

impl<P: Clone> Leader<P> {
    /// After a proposal that may have been the last of its epoch.
    pub(super) fn begin_new_epoch(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let is_first = self.new_epoch.is_none() && core.config.mode == Mode::Ensemble;
        if !is_first || self.resigned || !self.all_know_new_epochs(core) {
            return;
        }
        // Who is not synchronized comes again, and is synchronized with the new epoch.
        self.learners.retain(|link, it| {
            let stays = it.stage == Stage::Synced;
            if !stays {
                outputs.push(Output::Close { link: *link });
            }
            stays
        });
        self.new_epoch = Some(NewEpoch {
            since: core.now,
            stage: NewEpochStage::Draining,
            answered: BTreeSet::new(),
        });
    }

    fn all_know_new_epochs(&self, core: &CoreState) -> bool {
        let knows = |it: &Progress| it.capabilities.has(Capabilities::NEW_EPOCH);
        let follows = |id| {
            let synced = |it: &Progress| it.id == id && it.stage == Stage::Synced && !it.observer;
            id == core.id() || self.learners.values().any(synced)
        };
        self.learners.values().all(knows) && core.config.ensemble.is_quorum(follows)
    }

    /// Whether the leader is between two epochs.
    pub(super) const fn is_between_epochs(&self) -> bool {
        self.new_epoch.is_some()
    }

    /// The epoch that learners are asked to follow.
    pub(super) fn epoch_offered(&self) -> Option<Epoch> {
        match self.new_epoch.as_ref().map(|new| &new.stage) {
            Some(
                NewEpochStage::SavingEpoch { epoch }
                | NewEpochStage::Promising { epoch, .. }
                | NewEpochStage::TakingOver { epoch, .. },
            ) => Some(*epoch),
            Some(NewEpochStage::Draining) | None => self.phase.epoch(),
        }
    }

    /// Something was committed: all may be.
    pub(super) fn choose_new_epoch(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let Some(new) = &mut self.new_epoch else {
            return;
        };
        if matches!(new.stage, NewEpochStage::Draining) && self.outstanding.is_empty() {
            let epoch = Epoch(core.accepted_asked().0.saturating_add(1));
            core.accept_epoch(epoch, outputs);
            new.stage = NewEpochStage::SavingEpoch { epoch };
        }
    }

    /// Epochs are durable: this server's promise, or its takeover.
    pub(super) fn new_epoch_saved(
        &mut self,
        core: &mut CoreState,
        saved: Epochs,
        outputs: &mut Vec<Output<P>>,
    ) {
        let Some(new) = &mut self.new_epoch else {
            return;
        };
        match &mut new.stage {
            NewEpochStage::SavingEpoch { epoch } if saved.accepted >= *epoch => {
                let epoch = *epoch;
                let ours = summary(core);
                // Who has taken over an epoch has no doubts about its log any more.
                let promises = Promises::begin(core.id(), ours, core.doubt());
                new.stage = NewEpochStage::Promising { epoch, promises };
                for (link, progress) in &self.learners {
                    if progress.stage == Stage::Synced {
                        let (link, message) = (*link, Message::NewEpoch { epoch });
                        outputs.push(Output::Send { link, message });
                    }
                }
                self.count_new_promises(core, outputs);
            }
            NewEpochStage::TakingOver { takeover, acks, .. } => {
                let Some(pending) = takeover.take() else {
                    return;
                };
                match pending.saved(saved) {
                    Ok(_taken) => {
                        acks.insert(core.config.id);
                    }
                    Err(pending) => *takeover = Some(pending),
                }
                self.count_new_takeovers(core, outputs);
            }
            _ => {}
        }
    }

    /// ACKEPOCH of a synchronized learner; false if nobody has asked for it.
    pub(super) fn promises_new_epoch(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        theirs: (Option<Epoch>, Option<Zxid>),
        outputs: &mut Vec<Output<P>>,
    ) -> bool {
        let Some(new) = &mut self.new_epoch else {
            return false;
        };
        let Some(progress) = self.learners.get(&link) else {
            return false;
        };
        let votes = !progress.observer && core.config.ensemble.is_voter(progress.id);
        match &mut new.stage {
            NewEpochStage::Promising { promises, .. } => {
                new.answered.insert(link);
                if let (true, (Some(current_epoch), Some(last_logged))) = (votes, theirs) {
                    let theirs = Summary {
                        current_epoch,
                        last_logged,
                    };
                    // It has nothing that did not come from here; but discovery's rule is discovery's.
                    self.resigned |= !promises.promise(progress.id, theirs, None);
                }
                self.count_new_promises(core, outputs);
            }
            NewEpochStage::TakingOver { epoch, .. } => {
                new.answered.insert(link);
                let config = core.config.ensemble.newest_text().clone();
                let epoch = *epoch;
                let message = Message::NewLeader { epoch, config };
                outputs.push(Output::Send { link, message });
                self.count_new_takeovers(core, outputs);
            }
            NewEpochStage::Draining | NewEpochStage::SavingEpoch { .. } => return false,
        }
        true
    }

    fn count_new_promises(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        let Some(new) = &mut self.new_epoch else {
            return;
        };
        let NewEpochStage::Promising { epoch, promises } = &mut new.stage else {
            return;
        };
        if self.resigned || !promises.are_enough(&core.config.ensemble) {
            return;
        }
        let epoch = *epoch;
        let takeover = Some(Takeover::begin(core, epoch, outputs));
        let acks = BTreeSet::new();
        new.stage = NewEpochStage::TakingOver {
            epoch,
            takeover,
            acks,
        };
        for link in &new.answered {
            let config = core.config.ensemble.newest_text().clone();
            let (link, message) = (*link, Message::NewLeader { epoch, config });
            outputs.push(Output::Send { link, message });
        }
        self.new_epoch_flushed(core, outputs);
    }

    /// More of the leader's own log is durable.
    pub(super) fn new_epoch_flushed(&mut self, core: &mut CoreState, outputs: &mut Vec<Output<P>>) {
        if let Some(NewEpoch {
            stage: NewEpochStage::TakingOver { takeover, .. },
            ..
        }) = &mut self.new_epoch
        {
            let pending = takeover.take();
            *takeover = pending.map(|pending| pending.flushed(core, outputs));
        }
    }

    /// A learner has taken over the new epoch; false if that is not the one that begins.
    pub(super) fn took_new_epoch(
        &mut self,
        core: &CoreState,
        link: LinkId,
        taken: Epoch,
        outputs: &mut Vec<Output<P>>,
    ) -> bool {
        let Some(progress) = self.learners.get(&link) else {
            return false;
        };
        let Some(NewEpoch {
            stage: NewEpochStage::TakingOver { epoch, acks, .. },
            ..
        }) = &mut self.new_epoch
        else {
            return false;
        };
        if *epoch != taken {
            return false;
        }
        if !progress.observer {
            acks.insert(progress.id);
        }
        self.count_new_takeovers(core, outputs);
        true
    }

    fn count_new_takeovers(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let Some(NewEpoch {
            stage: NewEpochStage::TakingOver { epoch, acks, .. },
            answered,
            since,
        }) = &self.new_epoch
        else {
            return;
        };
        let (me, epoch) = (core.id(), *epoch);
        let enough = core.config.ensemble.is_quorum(|id| acks.contains(&id));
        // Who has not answered yet would not know what to do with this epoch's proposals; it is waited for a little, lest
        // its clients lose it.
        let mut synced = self
            .learners
            .iter()
            .filter(|(_, it)| it.stage == Stage::Synced);
        let all_answered = synced.all(|(link, _)| answered.contains(link));
        let is_late = core
            .now
            .exceeds(*since, core.config.timing.tick_time.div_ceil(2));
        if !(enough && acks.contains(&me) && (all_answered || is_late)) {
            return;
        }
        self.learners.retain(|link, progress| {
            if progress.stage == Stage::Introduced {
                // It came meanwhile.
                tell_epoch(*link, progress, epoch, outputs);
                return true;
            }
            let stays = answered.contains(link);
            if !stays {
                outputs.push(Output::Close { link: *link });
            }
            stays
        });
        self.new_epoch = None;
        self.enter(core, Phase::Established { epoch });
        let role = Role::Leading { epoch };
        outputs.push(Output::ChangeRole { role });
    }

    /// Not for ever: an election would begin a new epoch too.
    pub(super) fn hurry_new_epoch(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        self.count_new_takeovers(core, outputs);
        let limit = core.config.timing.init_limit;
        self.resigned |= self
            .new_epoch
            .as_ref()
            .is_some_and(|new| core.now.exceeds(new.since, limit));
    }
}

const fn summary(core: &CoreState) -> Summary {
    Summary {
        current_epoch: core.epochs.current,
        last_logged: core.log.last(),
    }
}
