//! The replicated state and what decides about it: znodes, sessions, ACLs, quotas and watches.
//!
//! [`Tree`] is a value: cloning it takes constant time, a clone never changes, and a write to one copy
//! costs the blocks on its path. [`Tree::apply`] is the only way it changes. This crate has no clock,
//! no thread, no I/O and no randomness: equal inputs make equal trees on every server.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod acl;
mod acl_table;
mod apply;
mod compact_set;
mod digest;
mod events;
pub mod execute;
pub mod image;
mod map;
mod node;
pub mod path;
mod prepare;
mod quota;
mod quota_check;
pub mod restore;
pub mod session;
pub mod settings;
pub mod snapshot;
pub mod sweep;
mod tree;
pub mod watch;

pub use acl_table::AclHandle;
pub use apply::Applied;
pub use events::{Event, Events};
pub use execute::Executed;
pub use node::{CONTAINER_OWNER, Node, NodeKind, TTL_MS_MAX};
pub use prepare::{Context, SessionState, Undecodable, check_session, wants_ephemeral};
pub use quota::{Quota, StatsTrack};
pub use quota_check::{QuotaKind, QuotaWarning};
pub use settings::Settings;
pub use tree::Tree;
