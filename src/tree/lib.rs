//! Placeholder while the crate is being written.

pub mod acl;
mod compact_set;
pub mod path;
pub mod session;
pub mod settings;
pub mod watch;
