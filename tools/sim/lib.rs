//! An ensemble of three or five servers in one thread: the production `zab`, `tree`, `storage` and `member` code on
//! simulated disks, network and virtual time, with clients, and with everything that goes wrong.
//!
//! A run is a function of its seed: the same seed gives the same trace, so what was found once is found again.
//! `docs/internals/simulator.md` says what goes wrong, what is checked, and how a trace reads.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![expect(
    clippy::indexing_slicing,
    reason = "members and clients are numbered, and a simulator that is wrong is to stop"
)]

mod check;
mod client;
mod member;
mod nemesis;
mod network;
mod plan;
mod random;
mod shard;
mod snapshots;
mod trace;
mod world;

pub use world::Counts;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was found.
    pub violation: Option<String>,
    /// The hash of the trace.
    pub trace_hash: u64,
    /// Its length in lines.
    pub trace_lines: u64,
    /// Virtual seconds in which writes were acknowledged.
    pub seconds: u64,
    /// Transactions committed.
    pub transactions: u64,
    /// How often what happened.
    pub counts: Counts,
}

/// Runs the ensemble of `seed`, and prints its trace if asked to.
pub fn run(seed: u64, print: bool) -> Outcome {
    let mut world = world::World::new(seed, print);
    let violation = world.run().err();
    world.counts.add("runs");
    for _ in 0..world.checks.sessions_expired {
        world.counts.add("sessions expired");
    }
    Outcome {
        violation,
        trace_hash: world.trace.hash(),
        trace_lines: world.trace.lines(),
        seconds: world.flowed_seconds(),
        transactions: world.checks.len() as u64,
        counts: std::mem::take(&mut world.counts),
    }
}
