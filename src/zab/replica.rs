//! The state machine: one `step` for every input.

use ringkeeper_proto::Zxid;

use crate::contract::{Config, Input, Mode, Output, Recovered, Role};
use crate::core_state::CoreState;
use crate::leader::Leader;
use crate::log::LogGeneration;
use crate::message::{LinkId, Proposal};
use crate::violation::Violation;

/// One member of an ensemble, or a server alone.
///
/// `P` is the handle of a proposal's bytes; it is cloned once per learner, so it should be cheap.
#[derive(Debug)]
pub struct Replica<P> {
    core: CoreState,
    phase: Phase<P>,
}

#[derive(Debug)]
enum Phase<P> {
    /// Built, not started.
    New,
    Leading(Leader<P>),
}

impl<P: Clone> Replica<P> {
    /// A replica of what storage holds. It does nothing before the first [`Input::Tick`].
    pub fn new(config: Config, recovered: Recovered) -> Self {
        Self {
            core: CoreState::new(config, recovered),
            phase: Phase::New,
        }
    }

    /// Takes one input, and appends to `outputs` what is to be done.
    ///
    /// # Errors
    /// A peer broke the protocol. The outputs are valid and deal with it; the error is for the log.
    ///
    /// # Panics
    /// When the caller breaks its side: a zxid that was not assigned here, or a completion of
    /// something that was never asked for. Nothing that a peer sends does that.
    pub fn step(&mut self, input: Input<P>, outputs: &mut Vec<Output<P>>) -> Result<(), Violation> {
        match input {
            Input::Tick => self.tick(outputs),
            Input::Proposed { zxid, payload } => {
                let Phase::Leading(leader) = &mut self.phase else {
                    panic!("proposed without being the leader");
                };
                leader.propose(&mut self.core, Proposal { zxid, payload }, outputs);
            }
            Input::Flushed {
                through,
                generation,
            } => self.flushed(through, generation, outputs),
            Input::HistoryPurged { through } => self.core.log.purge(through),
            Input::Sync { origin } => {
                if let Phase::Leading(leader) = &mut self.phase {
                    leader.sync(&self.core, origin, outputs);
                }
            }
            Input::Received { link, message } => {
                return Err(self.unexpected(link, message.name(), outputs));
            }
            Input::EpochSaved { .. }
            | Input::SnapshotInstalled { .. }
            | Input::SnapshotFailed { .. }
            | Input::SnapshotSent { .. }
            | Input::HistoryRead { .. }
            | Input::HistoryGone { .. }
            | Input::Connected { .. }
            | Input::Disconnected { .. } => {}
        }
        Ok(())
    }

    fn tick(&mut self, outputs: &mut Vec<Output<P>>) {
        self.core.now = self.core.now.after(1);
        if let (Phase::New, Mode::Standalone) = (&self.phase, self.core.config.mode) {
            self.phase = Phase::Leading(Leader::alone(&mut self.core, outputs));
        }
    }

    fn flushed(&mut self, through: Zxid, generation: LogGeneration, outputs: &mut Vec<Output<P>>) {
        if !self.core.log.flushed_through(through, generation) {
            return;
        }
        match &mut self.phase {
            Phase::New => {}
            Phase::Leading(leader) => leader.flushed(&mut self.core, outputs),
        }
    }

    fn unexpected(
        &self,
        link: LinkId,
        packet: &'static str,
        outputs: &mut Vec<Output<P>>,
    ) -> Violation {
        outputs.push(Output::Close { link });
        Violation::Unexpected {
            link,
            packet,
            phase: self.phase_name(),
        }
    }

    const fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::New => "starting",
            Phase::Leading(_) => "leading",
        }
    }

    /// The zxid that the next proposal must have; `None` when this server may not propose.
    pub fn next_zxid(&self) -> Option<Zxid> {
        match &self.phase {
            Phase::New => None,
            Phase::Leading(leader) => leader.next_zxid(&self.core),
        }
    }

    /// What this replica is to its clients.
    pub const fn role(&self) -> Role {
        match self.phase {
            Phase::New => Role::Looking,
            Phase::Leading(_) => Role::Leading {
                epoch: self.core.epochs.current,
            },
        }
    }

    /// The end of the log, durable or not.
    pub const fn last_logged(&self) -> Zxid {
        self.core.log.last()
    }

    /// The last zxid given out with [`Output::Commit`], or recovered as committed.
    pub const fn delivered(&self) -> Zxid {
        self.core.delivered
    }

    /// What a flush issued now, after all outputs so far have been carried out, reports.
    pub const fn log_generation(&self) -> LogGeneration {
        self.core.log.generation()
    }
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::{Epoch, ServerId};

    use super::*;
    use crate::contract::SyncOrigin;
    use crate::history::History;

    const GENERATION: LogGeneration = LogGeneration(0);

    fn zxid(epoch: u32, counter: u32) -> Zxid {
        Zxid::new(Epoch(epoch), counter)
    }

    fn standalone(last_logged: Zxid, committed: Zxid) -> Replica<&'static str> {
        let recovered = Recovered {
            history: History::starting_at(last_logged),
            committed,
            ..Recovered::default()
        };
        Replica::new(Config::standalone(ServerId(1)), recovered)
    }

    fn step(
        replica: &mut Replica<&'static str>,
        input: Input<&'static str>,
    ) -> Vec<Output<&'static str>> {
        let mut outputs = Vec::new();
        replica.step(input, &mut outputs).unwrap();
        outputs
    }

    #[test]
    fn a_server_alone_leads_at_once_and_continues_its_epoch() {
        let mut replica = standalone(zxid(0, 7), zxid(0, 5));
        assert_eq!(replica.next_zxid(), None);
        let role = Role::Leading { epoch: Epoch(0) };
        let through = zxid(0, 7);
        let outputs = step(&mut replica, Input::Tick);
        assert_eq!(
            outputs,
            [Output::Commit { through }, Output::ChangeRole { role }]
        );
        assert_eq!(replica.next_zxid(), Some(zxid(0, 8)));
        assert_eq!(step(&mut replica, Input::Tick), []);
    }

    #[test]
    fn a_write_is_committed_when_it_is_flushed_and_not_before() {
        let mut replica = standalone(Zxid::ZERO, Zxid::ZERO);
        step(&mut replica, Input::Tick);
        for counter in 1..=3 {
            let zxid = zxid(0, counter);
            let outputs = step(
                &mut replica,
                Input::Proposed {
                    zxid,
                    payload: "set",
                },
            );
            assert_eq!(outputs, [Output::Flush]);
        }
        let flushed = |through| Input::Flushed {
            through,
            generation: GENERATION,
        };
        let through = zxid(0, 2);
        assert_eq!(
            step(&mut replica, flushed(through)),
            [Output::Commit { through }]
        );
        assert_eq!(step(&mut replica, flushed(through)), []);
        assert_eq!(replica.delivered(), through);
        let through = zxid(0, 3);
        assert_eq!(
            step(&mut replica, flushed(through)),
            [Output::Commit { through }]
        );
    }

    #[test]
    fn the_counter_rolls_over_into_the_next_epoch() {
        let mut replica = standalone(zxid(4, u32::MAX), zxid(4, u32::MAX));
        step(&mut replica, Input::Tick);
        assert_eq!(replica.next_zxid(), Some(zxid(5, 1)));
        step(
            &mut replica,
            Input::Proposed {
                zxid: zxid(5, 1),
                payload: "set",
            },
        );
        let through = zxid(5, 1);
        let outputs = step(
            &mut replica,
            Input::Flushed {
                through,
                generation: GENERATION,
            },
        );
        assert_eq!(outputs, [Output::Commit { through }]);
        assert_eq!(replica.next_zxid(), Some(zxid(5, 2)));
    }

    #[test]
    fn a_sync_waits_for_what_was_proposed_before_it() {
        let mut replica = standalone(Zxid::ZERO, Zxid::ZERO);
        step(&mut replica, Input::Tick);
        let sync = |tag| Input::Sync {
            origin: SyncOrigin::Own(tag),
        };
        assert_eq!(step(&mut replica, sync(1)), [Output::Synced { tag: 1 }]);
        step(
            &mut replica,
            Input::Proposed {
                zxid: zxid(0, 1),
                payload: "set",
            },
        );
        assert_eq!(step(&mut replica, sync(2)), []);
        let through = zxid(0, 1);
        let outputs = step(
            &mut replica,
            Input::Flushed {
                through,
                generation: GENERATION,
            },
        );
        assert_eq!(
            outputs,
            [Output::Commit { through }, Output::Synced { tag: 2 }]
        );
    }

    #[test]
    #[should_panic(expected = "zxids are assigned by next_zxid")]
    fn a_zxid_of_the_callers_making_is_refused() {
        let mut replica = standalone(Zxid::ZERO, Zxid::ZERO);
        step(&mut replica, Input::Tick);
        step(
            &mut replica,
            Input::Proposed {
                zxid: zxid(0, 2),
                payload: "set",
            },
        );
    }
}
