//! The links between the members of an ensemble, on ZooKeeper's wire.
//!
//! The core of a member says what to do ([`PeerCommand`]) and hears what happened ([`PeerEvent`]); it
//! sees neither sockets nor bytes. What a [`Message`](ringkeeper_zab::Message) is on the wire is said
//! here; nothing is decided.
//!
//! Invariants:
//! - A [`LinkId`](ringkeeper_zab::LinkId) is never used again while the process lives.
//! - Sends on one link leave in the order in which they were given, and what comes is told in the
//!   order in which it came. `Disconnected` is the last event of its link; after `Close` there is none.
//! - Every queue has a maximum. A peer that does not read is disconnected when its queue is full.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod contract;
mod election_links;
mod events;
mod learner_links;
mod links;
mod settings;
pub mod wire;

pub use contract::{Packet, PeerCommand, PeerEvent, Rider};
pub use links::{BoundPeers, PeerLinks};
pub use settings::{Member, MemberAddress, PeerSettings};
