//! What a replica knows in every phase.

use ringkeeper_proto::{ServerId, Zxid};

use crate::contract::{Config, Epochs, Output, Recovered};
use crate::log::Log;
use crate::timer::Moment;

#[derive(Debug)]
pub(crate) struct CoreState {
    pub(crate) config: Config,
    pub(crate) log: Log,
    /// As durable; changed by `EpochSaved` alone.
    pub(crate) epochs: Epochs,
    /// The largest zxid known to be committed; `delivered <= committed`.
    pub(crate) committed: Zxid,
    /// The largest zxid told to the caller as committed; `delivered <= log.flushed()` when it grows.
    pub(crate) delivered: Zxid,
    pub(crate) now: Moment,
}

impl CoreState {
    pub(crate) fn new(config: Config, recovered: Recovered) -> Self {
        let last = recovered.history.last();
        // A record proves that its epoch's history was taken over: the log is a prefix of that
        // leader's. (Apache's standalone server saves no epochs, and a crash can come between the
        // flush of the history and the saving of its epoch.)
        let proven = match last.counter() {
            0 => recovered.epochs.current,
            _ => last.epoch(),
        };
        let current = recovered.epochs.current.max(proven);
        Self {
            config,
            log: Log::recovered(recovered.history),
            epochs: Epochs {
                accepted: recovered.epochs.accepted.max(current),
                current,
            },
            committed: recovered.committed.min(last),
            delivered: recovered.committed.min(last),
            now: Moment(0),
        }
    }

    pub(crate) const fn id(&self) -> ServerId {
        self.config.id
    }

    /// Tells the caller what is both committed and durable here.
    pub(crate) fn deliver<P>(&mut self, outputs: &mut Vec<Output<P>>) {
        let through = self.committed.min(self.log.flushed());
        if through > self.delivered {
            self.delivered = through;
            outputs.push(Output::Commit { through });
        }
    }
}
