//! What every tool that tests a whole server needs: starting Apache's or Ringkeeper's from a
//! `zoo.cfg`, killing it, reading what it used of the machine, and a plain blocking client.
//!
//! Servers listen on loopback only, each in a directory of its own. Nothing here knows what is
//! being tested; nothing here is used by the server.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod launch;
pub mod process;
pub mod server;
pub mod session;

pub use launch::Launch;
pub use process::{Usage, usage};
pub use server::{Server, four_letter_word, free_port};
pub use session::{Closed, Reply, Resume, Session, SessionKey};
