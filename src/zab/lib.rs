//! Zab, the atomic broadcast of ZooKeeper, as a pure state machine.
//!
//! [`Replica::step`] takes one [`Input`] and appends [`Output`]s: duties for the caller, to be carried
//! out in order. The crate has no clock (time is [`Input::Tick`]), no socket, no file, no thread and
//! no collection whose order differs between runs, so a run is a function of its inputs.
//!
//! # The caller's side of the contract
//! - Outputs are carried out in the order given, per target: the log sees appends and truncations in
//!   this order, and each link sees its sends in this order.
//! - Nothing is confirmed before it is true: [`Input::Flushed`] and [`Input::EpochSaved`] are sent
//!   only after the device says that the bytes are durable. A write or flush that fails ends the
//!   process; the core has no input for it.
//! - When `step` returns a [`Violation`], its outputs are valid and carried out all the same; the
//!   error is there to be logged.
//!
//! # Invariants
//! - `delivered <= committed` and `delivered <= flushed`: what the tree shows is in this server's log.
//! - An acknowledgement, the leader's own included, exists only after the flush it speaks of.
//! - *History durable, then epoch durable, then ACK NEWLEADER*: the types of
//!   [`synchronization`] permit no other order.
//! - zxids within an epoch have no gaps. This is asserted for what we send and checked for what we
//!   receive.
//!
//! A server without an ensemble is a [`Replica`] whose quorum is itself; its writes take the same path.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod broadcast;
mod contract;
mod core_state;
mod discovery;
mod election;
mod history;
mod leader;
mod learner;
mod log;
mod message;
mod observer_master;
#[cfg(test)]
mod observer_master_tests;
mod progress;
mod quorum;
mod replica;
#[cfg(test)]
mod replica_tests;
pub mod synchronization;
mod timer;
mod violation;

pub use contract::{COUNTER_MAX, Config, Epochs, Input, Mode, Output, Recovered, Role, SyncOrigin};
pub use history::{EpochSpan, History};
pub use leader::NoHandOver;
pub use log::LogGeneration;
pub use message::{LinkId, Message, Notification, Proposal};
pub use quorum::{Ensemble, EnsembleError, Weights};
pub use replica::Replica;
pub use timer::Timing;
pub use violation::Violation;
