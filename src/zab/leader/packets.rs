//! What a leader makes of its learners' packets, in each phase.

use ringkeeper_proto::Zxid;

use super::{LEARNERS_MAX, Leader, Phase, tell_epoch};
use crate::contract::Output;
use crate::core_state::CoreState;
use crate::discovery::Summary;
use crate::message::{LinkId, Message};
use crate::progress::{Introduction, Progress, Stage};
use crate::violation::Violation;

impl<P: Clone> Leader<P> {
    /// A learner's first packet.
    pub(crate) fn introduced(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        who: Introduction,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let ours = core.config.ensemble.version();
        if who.config_version > ours {
            outputs.push(Output::Close { link });
            return Err(Violation::NewerConfig {
                from: who.id,
                theirs: who.config_version,
                ours,
            });
        }
        // The connection that it had before is dead, whether we know it yet or not.
        let old = self
            .learners
            .iter()
            .find(|(_, progress)| progress.id == who.id);
        if let Some(old) = old.map(|(old, _)| *old) {
            self.learners.remove(&old);
            outputs.push(Output::Close { link: old });
        }
        let votes = core.config.ensemble.is_voter(who.id) && !who.observer;
        if votes
            && self
                .epoch_offered()
                .is_some_and(|epoch| who.accepted_epoch > epoch)
        {
            // It has promised itself to a later epoch, which came to nothing, and can follow no
            // leader of this one: only a new election brings it back.
            self.resigned = true;
        }
        if self.learners.len() >= LEARNERS_MAX {
            outputs.push(Output::Close { link });
            return Ok(());
        }
        self.disloyal.remove(&who.id);
        // A server that is to join follows as those do that vote, before anybody counts it.
        let mut progress = Progress::introduced(who.id, who.observer, core.now);
        progress.capabilities = who.capabilities;
        let waits = self.is_between_epochs();
        let progress = self.learners.entry(link).or_insert(progress);
        if let (Some(epoch), false) = (self.phase.epoch(), waits) {
            tell_epoch(link, progress, epoch, outputs);
        }
        if let (Phase::Gathering(gathering), true) = (&mut self.phase, votes) {
            gathering.hear(who.id, who.accepted_epoch);
            self.choose_epoch(core, outputs);
        }
        Ok(())
    }

    /// Any later packet; `None` if the link is not a learner's.
    pub(crate) fn received(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        message: Message<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        if matches!(message, Message::HandOver { .. }) && self.succeeded(link, outputs) {
            return Ok(());
        }
        let packet = message.name();
        let phase = self.phase_name();
        let unexpected = Violation::Unexpected {
            link,
            packet,
            phase,
        };
        let Some(progress) = self.learners.get_mut(&link) else {
            outputs.push(Output::Close { link });
            return Err(unexpected);
        };
        progress.heard_at = core.now;
        let (from, stage) = (progress.id, progress.stage);
        let serving = matches!(self.phase, Phase::Established { .. }) && stage == Stage::Synced;
        let result = match message {
            _ if stage == Stage::Leaving => Ok(()),
            Message::AckEpoch {
                current_epoch,
                last_logged,
                snapshot,
                doubted,
            } if stage == Stage::Told => {
                if snapshot {
                    self.needs_snapshot.insert(from);
                }
                let summary = |last_logged| {
                    current_epoch.map(|current_epoch| Summary {
                        current_epoch,
                        last_logged,
                    })
                };
                let theirs = last_logged.and_then(summary);
                let doubt = doubted.and_then(summary);
                return self.promised(core, link, theirs, doubt, last_logged, outputs);
            }
            Message::AckEpoch {
                current_epoch,
                last_logged,
                ..
            } if stage == Stage::Synced => {
                let theirs = (current_epoch, last_logged);
                match self.promises_new_epoch(core, link, theirs, outputs) {
                    true => Ok(()),
                    false => Err(unexpected),
                }
            }
            Message::Ack { zxid } if progress.is_live() => self.acked(core, link, zxid, outputs),
            Message::Ping { round } if progress.is_live() && round <= self.round => {
                progress.pong(round);
                self.count_pongs(core, outputs);
                Ok(())
            }
            Message::Request(request) if serving => {
                outputs.push(Output::Forwarded {
                    link,
                    from,
                    request,
                });
                Ok(())
            }
            Message::Revalidate(payload) if serving => {
                outputs.push(Output::Revalidate {
                    link,
                    from,
                    payload,
                });
                Ok(())
            }
            _ => Err(unexpected),
        };
        if result.is_err() {
            self.learners.remove(&link);
            outputs.push(Output::Close { link });
        }
        result
    }

    fn promised(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        theirs: Option<Summary>,
        doubt: Option<Summary>,
        last_logged: Option<Zxid>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let Some(progress) = self.learners.get_mut(&link) else {
            return Ok(());
        };
        progress.stage = Stage::Answered { last_logged };
        let from = progress.id;
        match &mut self.phase {
            Phase::Promised { promises, .. } => {
                if progress.observer || !core.config.ensemble.is_voter(from) {
                    return Ok(());
                }
                if let Some(theirs) = theirs {
                    if !promises.promise(from, theirs, doubt) {
                        self.resigned = true;
                        return Err(Violation::LearnerAhead {
                            from,
                            current_epoch: theirs.current_epoch,
                            last_logged: theirs.last_logged,
                        });
                    }
                    self.count_promises(core, outputs);
                } else {
                    self.resigned |= !promises.refuse(from, &core.config.ensemble);
                    if last_logged.is_none() {
                        promises.hear_mute(from);
                        self.count_promises(core, outputs);
                    }
                }
            }
            Phase::Establishing { .. } | Phase::Established { .. } => {
                self.synchronize(core, link, last_logged, outputs);
            }
            Phase::Gathering(_) | Phase::SavingEpoch { .. } => {}
        }
        Ok(())
    }

    fn acked(
        &mut self,
        core: &mut CoreState,
        link: LinkId,
        zxid: Zxid,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        if zxid.counter() == 0 && self.took_new_epoch(core, link, zxid.epoch(), outputs) {
            return Ok(());
        }
        let (committed, now) = (self.outstanding.committed(), core.now);
        let epoch = self.phase.epoch();
        let Some(progress) = self.learners.get_mut(&link) else {
            return Ok(());
        };
        if zxid.counter() > 0 {
            // Apache before 3.8.4 may acknowledge a proposal before NEWLEADER (ZOOKEEPER-4685); it is
            // noted, and counts with the rest.
            progress.ack(zxid, committed, core.log.history(), now)?;
            if progress.stage == Stage::Synced && matches!(self.phase, Phase::Established { .. }) {
                self.commit(core, outputs);
            }
            return Ok(());
        }
        if Some(zxid.epoch()) != epoch {
            let (packet, phase) = ("ACK of another epoch", self.phase_name());
            return Err(Violation::Unexpected {
                link,
                packet,
                phase,
            });
        }
        if progress.stage == Stage::Synced {
            // The second one, for UPTODATE.
            return Ok(());
        }
        progress.synced(now);
        let (from, votes) = (progress.id, !progress.observer);
        match &mut self.phase {
            Phase::Establishing { acks, .. } => {
                if votes {
                    acks.insert(from);
                }
                self.count_takeovers(core, outputs);
            }
            Phase::Established { .. } => {
                let message = Message::UpToDate;
                outputs.push(Output::Send { link, message });
                self.commit(core, outputs);
            }
            _ => {}
        }
        Ok(())
    }
}
