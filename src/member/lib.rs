//! The replica core of a server: it orders every write, and no reply leaves before its write is durable.
//!
//! Alone, as leader, follower or observer it is the same core: the log, the tree, the sessions and
//! [Zab](ringkeeper_zab) put together. It has no thread, no clock and no socket: its caller says what
//! time it is, hands over what clients and peers say, runs the futures of the log's writes, and delivers
//! what comes out.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod core;
mod core_report;
#[cfg(test)]
mod core_tests;
mod errand;
mod learning;
mod limping;
mod local_sessions;
#[cfg(test)]
mod member_tests;
mod messages;
mod moving;
#[cfg(test)]
mod observer_tests;
mod observers;
mod peer_traffic;
mod proposing;
mod publication;
mod read_only;
pub mod reconfiguration;
mod replay;
mod restart;
mod sessions;
mod settings;
pub mod snapshot;
mod standing;

pub use crate::core::{Core, CoreParts, WRITES_IN_FLIGHT_MAX};
pub use crate::core_report::{CoreReport, CoreStats, Metric};
pub use crate::errand::{Done, Errand, Work};
pub use crate::messages::{ClientMessage, ClientNotice, Now, WriteMessage};
pub use crate::publication::{Answer, Attached, ClientKey, Publication, ShardSet, Step, Touch};
pub use crate::replay::{Replay, ReplayError, Replayed, replay};
pub use crate::restart::{Loaded, zab_of_member};
pub use crate::sessions::Sessions;
pub use crate::settings::Settings;
pub use crate::standing::{Standing, StandingChange};
