//! A follower that serves observers (ZK: `ObserverMaster`): beside the learner, and only while that follows.
//!
//! ```text
//!   Introduced -> Told -> Answered -> [Snapshot ->] Reading -> Live -> Synced
//! ```
//!
//! To its observers it is what their leader would be; to the leader they are clients of this follower. It does not look
//! into the learner: what the learner tells its caller ([`Output::Append`], [`Output::Commit`]) is what the observers
//! are told, in the same order.
//!
//! Invariants:
//! - an observer is sent what is delivered here, and nothing above it: so all of it is committed;
//! - an observer that was here before, or elsewhere, and has more of this epoch waits for the follower instead of being
//!   cut: what observers have of an epoch whose leader is established is committed, and its clients have seen it;
//! - who was told an epoch is served in no other one: when that changes or ends, every link is closed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::Output;
use crate::core_state::CoreState;
use crate::history::follows;
use crate::leader::{LEARNERS_MAX, tell_epoch};
use crate::message::{LinkId, Message, Proposal};
use crate::progress::{Introduction, Progress, Stage};
use crate::synchronization::{SyncPlan, plan};
use crate::timer::Moment;
use crate::violation::Violation;

#[derive(Debug)]
pub(crate) struct ObserverMaster<P> {
    observers: BTreeMap<LinkId, Progress>,
    /// That of the leader, while this server is synchronized with it as a follower.
    epoch: Option<Epoch>,
    /// What the learner has logged and not delivered.
    pending: VecDeque<Proposal<P>>,
    /// Transactions that set a configuration, and whom the leader designated with each.
    activations: VecDeque<(Zxid, ServerId)>,
    /// Observers that get a snapshot, since the log turned out not to reach back to them.
    needs_snapshot: BTreeSet<ServerId>,
    /// Rounds of PINGs that were begun.
    round: u64,
    ping_at: Moment,
}

/// What this server is to the leader it learns from, at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Following {
    /// It follows none.
    No,
    /// It is not synchronized yet: observers that come wait.
    NotYet,
    /// It serves, in this epoch.
    In(Epoch),
}

impl<P: Clone> ObserverMaster<P> {
    pub(crate) const fn new() -> Self {
        Self {
            observers: BTreeMap::new(),
            epoch: None,
            pending: VecDeque::new(),
            activations: VecDeque::new(),
            needs_snapshot: BTreeSet::new(),
            round: 0,
            ping_at: Moment(0),
        }
    }

    // What the learner has done.

    /// Takes what the learner told the caller in this step, which are the outputs from `from` on, and adds what the
    /// observers are to be told, each in its place.
    pub(crate) fn attend(
        &mut self,
        core: &CoreState,
        following: Following,
        from: usize,
        outputs: &mut Vec<Output<P>>,
    ) {
        if following == Following::No && self.epoch.is_none() && self.observers.is_empty() {
            self.pending.clear();
            self.activations.clear();
            return;
        }
        for output in outputs.split_off(from) {
            let mut delivered = None;
            match &output {
                Output::Append { proposal } => self.pending.push_back(proposal.clone()),
                Output::Truncate { to, .. } => self.pending.retain(|it| it.zxid <= *to),
                Output::InstallSnapshot { .. } => self.pending.clear(),
                Output::Commit { through } => delivered = Some(*through),
                _ => {}
            }
            outputs.push(output);
            if let Some(through) = delivered {
                self.announce(through, outputs);
            }
        }
        let epoch = match following {
            Following::In(epoch) => Some(epoch),
            Following::NotYet | Following::No => None,
        };
        if self.epoch.is_some() && self.epoch != epoch {
            self.close_all(outputs);
        }
        if following == Following::No {
            self.close_all(outputs);
            self.pending.clear();
            self.activations.clear();
        }
        if self.epoch != epoch {
            self.epoch = epoch;
            self.ping_at = core.now;
            for (link, progress) in &mut self.observers {
                if let Some(epoch) = epoch {
                    tell_epoch(*link, progress, epoch, outputs);
                }
            }
        }
        self.synchronize_waiting(core, outputs);
    }

    /// The leader has said who is to lead from the transaction at `zxid` on.
    pub(crate) fn note_activation(&mut self, zxid: Zxid, leader: ServerId) {
        self.activations.push_back((zxid, leader));
    }

    /// Tells who is live what is delivered now. Who is not reads it from the log.
    fn announce(&mut self, through: Zxid, outputs: &mut Vec<Output<P>>) {
        if self.epoch.is_none_or(|epoch| through.epoch() > epoch) {
            // The leader has begun another epoch, and this server is about to.
            self.close_all(outputs);
        }
        while self.pending.front().is_some_and(|it| it.zxid <= through)
            && let Some(proposal) = self.pending.pop_front()
        {
            let zxid = proposal.zxid;
            self.activations.retain(|it| it.0 >= zxid);
            let activation = self.activations.front().filter(|it| it.0 == zxid).copied();
            for (link, progress) in &mut self.observers {
                if progress.is_live() && follows(zxid, progress.sent) {
                    progress.sent = zxid;
                    let proposal = proposal.clone();
                    let message = match activation {
                        Some((_, leader)) => Message::InformAndActivate { proposal, leader },
                        None => Message::Inform(proposal),
                    };
                    outputs.push(Output::Send {
                        link: *link,
                        message,
                    });
                }
            }
        }
        // Of what was logged before this leader was followed the bytes are not here. Who would have a hole comes again.
        self.retain(outputs, |it| !it.is_live() || it.sent == through);
    }

    fn retain(&mut self, outputs: &mut Vec<Output<P>>, stays: impl Fn(&Progress) -> bool) {
        self.observers.retain(|link, progress| {
            let stays = stays(progress);
            if !stays {
                outputs.push(Output::Close { link: *link });
            }
            stays
        });
    }

    fn close_all(&mut self, outputs: &mut Vec<Output<P>>) {
        self.retain(outputs, |_| false);
    }

    // Synchronization.

    fn synchronize_waiting(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let waiting = self.observers.iter();
        let waiting: Vec<_> = waiting
            .filter_map(|(link, progress)| match progress.stage {
                Stage::Answered { last_logged } => Some((*link, last_logged)),
                _ => None,
            })
            .collect();
        for (link, last_logged) in waiting {
            self.synchronize(core, link, last_logged, outputs);
        }
    }

    fn synchronize(
        &mut self,
        core: &CoreState,
        link: LinkId,
        last_logged: Option<Zxid>,
        outputs: &mut Vec<Output<P>>,
    ) {
        let (through, history) = (core.delivered, core.log.history());
        let (Some(epoch), Some(progress)) = (self.epoch, self.observers.get_mut(&link)) else {
            return;
        };
        if through.epoch() > epoch {
            // The leader has begun another epoch. Once this server serves in it, whoever was told of this one comes again.
            return;
        }
        let last_logged = last_logged.filter(|_| !self.needs_snapshot.contains(&progress.id));
        let is_ahead = last_logged.is_some_and(|last| last > through);
        let is_of_history =
            |last: Zxid| last.epoch() == epoch || (is_ahead && history.contains(last));
        let message = match (plan(history, through, last_logged), last_logged) {
            // It has seen the epoch begin, and nothing is committed in it.
            (_, Some(last)) if is_ahead && last.counter() == 0 && history.contains(last) => {
                progress.sent = through;
                Message::Diff { zxid: through }
            }
            // It waits.
            (_, Some(last)) if is_ahead && last.counter() > 0 && is_of_history(last) => return,
            (SyncPlan::Diff, Some(last)) => {
                progress.sent = last;
                Message::Diff { zxid: through }
            }
            (SyncPlan::Truncate { to }, _) => {
                progress.sent = to;
                Message::Trunc { zxid: to }
            }
            (SyncPlan::Diff, None) | (SyncPlan::Snapshot, _) => {
                progress.sent = through;
                progress.stage = Stage::Snapshot;
                outputs.push(Output::SendSnapshot { link, through });
                return;
            }
        };
        outputs.push(Output::Send { link, message });
        self.feed(core, link, outputs);
    }

    /// Sends an observer what it lacks of what is delivered, then NEWLEADER.
    fn feed(&mut self, core: &CoreState, link: LinkId, outputs: &mut Vec<Output<P>>) {
        let (through, history) = (core.delivered, core.log.history());
        let (Some(epoch), Some(progress)) = (self.epoch, self.observers.get_mut(&link)) else {
            return;
        };
        let after = progress.sent;
        if after < history.base() {
            // Purged since the last read. To go on here would leave a hole.
            self.history_gone(link, outputs);
            return;
        }
        if history.successor(after).is_some_and(|next| next <= through) {
            progress.stage = Stage::Reading;
            outputs.push(Output::ReadHistory {
                link,
                after,
                through,
            });
            return;
        }
        progress.sent = through;
        progress.go_live(through);
        let config = core.config.ensemble.newest_text().clone();
        let message = Message::NewLeader { epoch, config };
        outputs.push(Output::Send { link, message });
    }

    pub(crate) fn history_read(
        &mut self,
        core: &CoreState,
        link: LinkId,
        proposals: Vec<Proposal<P>>,
        outputs: &mut Vec<Output<P>>,
    ) {
        let reading = |progress: &&mut Progress| progress.stage == Stage::Reading;
        let Some(progress) = self.observers.get_mut(&link).filter(reading) else {
            return;
        };
        progress.send_history(link, proposals, core.now, outputs);
        self.feed(core, link, outputs);
    }

    pub(crate) fn history_gone(&mut self, link: LinkId, outputs: &mut Vec<Output<P>>) {
        if let Some(progress) = self.observers.remove(&link) {
            self.needs_snapshot.insert(progress.id);
            outputs.push(Output::Close { link });
        }
    }

    pub(crate) fn snapshot_sent(
        &mut self,
        core: &CoreState,
        link: LinkId,
        zxid: Zxid,
        outputs: &mut Vec<Output<P>>,
    ) {
        let sending = |progress: &&mut Progress| progress.stage == Stage::Snapshot;
        if let Some(progress) = self.observers.get_mut(&link).filter(sending) {
            progress.snapshot_sent(zxid, core.now);
            self.needs_snapshot.remove(&progress.id);
            self.feed(core, link, outputs);
        }
    }

    // What observers say.

    /// A first packet, while this server learns from a leader.
    pub(crate) fn introduced(
        &mut self,
        core: &CoreState,
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
        self.retain(outputs, |it| it.id != who.id);
        // ZK: whoever votes has to follow the leader itself.
        if !who.observer || self.observers.len() >= LEARNERS_MAX {
            outputs.push(Output::Close { link });
            return Ok(());
        }
        let mut progress = Progress::introduced(who.id, true, core.now);
        if let Some(epoch) = self.epoch {
            tell_epoch(link, &mut progress, epoch, outputs);
        }
        self.observers.insert(link, progress);
        Ok(())
    }

    /// Any later packet of an observer's.
    pub(crate) fn received(
        &mut self,
        core: &CoreState,
        link: LinkId,
        message: Message<P>,
        outputs: &mut Vec<Output<P>>,
    ) -> Result<(), Violation> {
        let Some(progress) = self.observers.get_mut(&link) else {
            return Ok(());
        };
        progress.heard_at = core.now;
        let unexpected = Violation::Unexpected {
            link,
            packet: message.name(),
            phase: "serving observers",
        };
        let (from, stage) = (progress.id, progress.stage);
        let begin = self.epoch.map(|epoch| Zxid::new(epoch, 0));
        let result = match message {
            Message::AckEpoch {
                current_epoch,
                last_logged,
                snapshot,
                ..
            } if stage == Stage::Told => {
                if snapshot {
                    self.needs_snapshot.insert(from);
                }
                progress.stage = Stage::Answered { last_logged };
                match last_logged.filter(|last| self.epoch.is_some_and(|it| last.epoch() > it)) {
                    // It has a later leader's, whom this server has not found yet.
                    Some(last_logged) => Err(Violation::LearnerAhead {
                        from,
                        current_epoch: current_epoch.unwrap_or_default(),
                        last_logged,
                    }),
                    None => Ok(()),
                }
            }
            Message::Ack { zxid } if progress.is_live() && Some(zxid) == begin => {
                // The second one is for UPTODATE.
                if stage == Stage::Live {
                    progress.synced(core.now);
                    let message = Message::UpToDate;
                    outputs.push(Output::Send { link, message });
                }
                Ok(())
            }
            Message::Ping { round } if progress.is_live() && round <= self.round => Ok(()),
            Message::Request(request) if stage == Stage::Synced => {
                outputs.push(Output::Forwarded {
                    link,
                    from,
                    request,
                });
                Ok(())
            }
            Message::Revalidate(payload) if stage == Stage::Synced => {
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
            self.observers.remove(&link);
            outputs.push(Output::Close { link });
        }
        result
    }

    /// A link is gone; false if it was not an observer's.
    pub(crate) fn disconnected(&mut self, link: LinkId) -> bool {
        self.observers.remove(&link).is_some()
    }

    // Upkeep.

    pub(crate) fn tick(&mut self, core: &CoreState, outputs: &mut Vec<Output<P>>) {
        let (now, timing) = (core.now, core.config.timing);
        if now >= self.ping_at {
            self.ping_at = now.after(timing.tick_time.div_ceil(2));
            self.round += 1;
            let round = self.round;
            for (link, progress) in &self.observers {
                // ZK: a learner that is not synchronized does not expect a PING.
                if progress.is_live() {
                    let (link, message) = (*link, Message::Ping { round });
                    outputs.push(Output::Send { link, message });
                }
            }
        }
        self.retain(outputs, |progress| {
            let limit = match progress.stage {
                Stage::Synced => timing.sync_limit,
                // How long a snapshot takes is between the caller and the connection.
                Stage::Snapshot | Stage::Reading => u64::MAX,
                _ => timing.init_limit,
            };
            !now.exceeds(progress.heard_at, limit)
        });
    }

    pub(crate) fn has(&self, link: LinkId) -> bool {
        self.observers.contains_key(&link)
    }

    pub(crate) fn observer_at(&self, link: LinkId) -> Option<ServerId> {
        self.observers.get(&link).map(|observer| observer.id)
    }

    pub(crate) fn observers(&self) -> impl Iterator<Item = (ServerId, bool, bool)> {
        let observers = self.observers.values();
        observers.map(|it| (it.id, true, it.stage == Stage::Synced))
    }
}
