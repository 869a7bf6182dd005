//! Ensembles on loopback, or in network namespaces, for tests: Apache's servers, Ringkeeper's, or both, each a
//! process with its directory and ports; a load whose acknowledged writes are checked afterwards; and faults.
//!
//! Apache's classpath comes from the environment variable [`APACHE_CLASSPATH`] (the classpath itself,
//! or a file with it); without it Debian's package is taken. Its servers log to `server.log`
//! in their directories when a logging backend is among their jars, or is named by [`APACHE_LOG`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod check;
pub mod crowd;
pub mod damage;
pub mod doubt;
pub mod ensemble;
pub mod failover;
pub mod faults;
pub mod hand_over;
pub mod limping;
pub mod load;
mod mayflies;
pub mod namespaces;
pub mod network;
pub mod networks;
pub mod oracle;
pub mod replace;
pub mod rolling;
pub mod rollover;
mod succession;
pub mod synchronize;
pub mod tap;

pub use ensemble::{Ensemble, Plan, Role, apache, debian};

/// The environment variable with Apache's classpath, or a file that holds it.
pub const APACHE_CLASSPATH: &str = "RINGKEEPER_APACHE_CLASSPATH";

/// The environment variable with a jar of slf4j's backends, to see what Apache logs.
pub const APACHE_LOG: &str = "RINGKEEPER_APACHE_LOG_JAR";
