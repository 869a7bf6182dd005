//! What a replica knows in every phase.

use std::collections::BTreeSet;

use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::contract::{Config, Epochs, Mode, Output, Recovered};
use crate::discovery::Summary;
use crate::log::{Log, LogGeneration};
use crate::timer::Moment;

#[derive(Debug)]
pub(crate) struct CoreState {
    pub(crate) config: Config,
    pub(crate) log: Log,
    /// As durable; changed by `EpochSaved` alone.
    pub(crate) epochs: Epochs,
    /// As last asked to be saved: never older than `epochs`. What is saved next builds on it, lest a
    /// save that is still under way be undone.
    epochs_asked: Epochs,
    /// The largest zxid known to be committed; `delivered <= committed`, but for a snapshot that an
    /// unestablished leader sent.
    pub(crate) committed: Zxid,
    /// The largest zxid told to the caller as committed; `delivered <= log.flushed()` when it grows.
    pub(crate) delivered: Zxid,
    /// Storage was blank, and no leader's history has been taken over since.
    pub(crate) blank: bool,
    /// Acknowledged history cannot be read, until a leader's snapshot takes its place.
    pub(crate) damaged: bool,
    /// Storage is blank, but so is a quorum's: in this election and reign this server counts.
    pub(crate) new_ensemble: bool,
    /// The log cannot be brought in line by a leader's DIFF or TRUNC: ask for a snapshot.
    pub(crate) wants_snapshot: bool,
    /// The oracle's last answer.
    pub(crate) oracle_grants: bool,
    /// Voters without an election connection.
    pub(crate) unreachable: BTreeSet<ServerId>,
    pub(crate) now: Moment,
}

impl CoreState {
    pub(crate) fn new(config: Config, recovered: Recovered) -> Self {
        let last = recovered.history.last();
        let saved = recovered.epochs;
        let member = saved.member || recovered.initialize;
        // A member's record proves that its epoch's history was taken over: the log is a prefix of
        // that leader's. (Apache's standalone server saves no epochs, and a crash can come between the
        // flush of the history and the saving of its epoch.)
        let alone = config.mode == Mode::Standalone;
        let current = match (member || alone) && last.counter() > 0 {
            true => saved.current.max(last.epoch()),
            false => saved.current,
        };
        let epochs = Epochs {
            accepted: saved.accepted.max(current),
            current,
            member,
            doubted: saved.doubted,
        };
        let committed = recovered.committed.min(last);
        let delivered = committed.max(recovered.history.base());
        Self {
            config,
            log: Log::recovered(recovered.history),
            epochs,
            epochs_asked: epochs,
            committed,
            delivered,
            blank: !member,
            damaged: recovered.damaged,
            new_ensemble: false,
            wants_snapshot: false,
            oracle_grants: false,
            unreachable: BTreeSet::new(),
            now: Moment(0),
        }
    }

    pub(crate) const fn id(&self) -> ServerId {
        self.config.id
    }

    /// Whether only a snapshot can bring this server in line.
    pub(crate) const fn must_install(&self) -> bool {
        self.wants_snapshot || self.hides_log()
    }

    /// Whether what its log shows may be less than what this server has acknowledged.
    pub(crate) const fn hides_log(&self) -> bool {
        self.damaged || self.is_blank()
    }

    /// Whether this server may have forgotten what it promised and acknowledged.
    pub(crate) const fn is_blank(&self) -> bool {
        self.blank && !self.new_ensemble
    }

    /// How new its history is.
    pub(crate) const fn summary(&self) -> Summary {
        Summary {
            current_epoch: self.epochs.current,
            last_logged: self.log.last(),
        }
    }

    /// How new it may have been, if a torn write may have taken some of it.
    pub(crate) fn doubt(&self) -> Option<Summary> {
        // Of a later epoch than the current one it has acknowledged nothing.
        let end = Zxid::new(self.epochs.current, u32::MAX);
        let doubted = self.epochs.doubted?;
        Some(Summary {
            current_epoch: self.epochs.current,
            last_logged: doubted.min(end),
        })
    }

    /// The newest epoch promised to, durable or about to be.
    pub(crate) const fn accepted_asked(&self) -> Epoch {
        self.epochs_asked.accepted
    }

    /// Promises to follow no leader older than `epoch`'s, once it is saved.
    pub(crate) fn accept_epoch<P>(&mut self, epoch: Epoch, outputs: &mut Vec<Output<P>>) {
        self.epochs_asked.accepted = self.epochs_asked.accepted.max(epoch);
        outputs.push(Output::SaveEpoch {
            epochs: self.epochs_asked,
        });
    }

    /// Takes over `epoch`'s history, once it is saved.
    pub(crate) fn enter_epoch<P>(&mut self, epoch: Epoch, outputs: &mut Vec<Output<P>>) {
        self.epochs_asked.current = self.epochs_asked.current.max(epoch);
        self.epochs_asked.member = true;
        // That leader has what was committed, or it would not have got this far.
        self.epochs_asked.doubted = None;
        self.accept_epoch(epoch, outputs);
    }

    pub(crate) fn epoch_saved(&mut self, epochs: Epochs) {
        assert!(
            epochs.accepted <= self.epochs_asked.accepted
                && epochs.current <= self.epochs_asked.current,
            "{epochs:?} saved, but {:?} was asked for",
            self.epochs_asked
        );
        if epochs.current > self.epochs.current {
            self.log.begin_epoch(epochs.current);
        }
        self.epochs = epochs;
        self.blank &= !epochs.member;
    }

    /// Notes that a quorum has logged everything through `zxid`.
    pub(crate) fn commit_through<P>(&mut self, zxid: Zxid, outputs: &mut Vec<Output<P>>) {
        self.committed = self.committed.max(zxid);
        self.deliver(outputs);
        let next = self.config.ensemble.next_zxid();
        if next.is_some_and(|next| next <= self.committed) {
            self.config.ensemble.activate_next();
            outputs.push(Output::Activate);
        }
    }

    /// Cuts the log, and with it the configuration that was set behind the cut.
    pub(crate) fn truncate(&mut self, to: Zxid) -> LogGeneration {
        let next = self.config.ensemble.next_zxid();
        if next.is_some_and(|next| next > to) {
            self.config.ensemble.forget_next();
        }
        self.log.truncate(to)
    }

    /// Notes the same, and tells nobody yet.
    pub(crate) fn note_committed(&mut self, zxid: Zxid) {
        self.committed = self.committed.max(zxid);
    }

    /// Tells the caller what is both committed and durable here.
    pub(crate) fn deliver<P>(&mut self, outputs: &mut Vec<Output<P>>) {
        self.deliver_until(Zxid(u64::MAX), outputs);
    }

    /// The same for what is at or below `limit`; whether that is all told now.
    pub(crate) fn deliver_until<P>(&mut self, limit: Zxid, outputs: &mut Vec<Output<P>>) -> bool {
        let through = self.committed.min(self.log.flushed()).min(limit);
        if through > self.delivered {
            self.delivered = through;
            outputs.push(Output::Commit { through });
        }
        self.delivered >= limit
    }
}

/// Asks for a flush, once for a run of appends.
pub(crate) fn request_flush<P>(outputs: &mut Vec<Output<P>>) {
    if !matches!(outputs.last(), Some(Output::Flush)) {
        outputs.push(Output::Flush);
    }
}
