//! Carries frames: executors, acceptors, connections, and the hand-offs between executors.
//!
//! This crate is the seam in front of glommio. It knows nothing of ZooKeeper beyond "a frame is four
//! bytes of big-endian length and a body", decides nothing, and keeps no state of the service.
//!
//! Invariants:
//! - Every executor is made by [`spawn_executor`] or [`run_executor`], so that each has its loop, without which
//!   none of the rest works, and its [`pulse`].
//! - No allocation follows a length that a stranger sent: buffers grow as bytes arrive.
//! - Every queue has a maximum: a [`mailbox`] its capacity, a connection its pending output, a
//!   [`chain`] the lag that its writer reads and admission obeys.
//! - A peer executor is woken (an eventfd write) only when it sleeps.
#![warn(missing_docs)]

pub mod acceptor;
pub mod chain;
pub mod connect;
pub mod connection;
pub mod doorbell;
pub mod executor;
pub mod frame;
pub mod mailbox;
pub mod probe;
pub mod pulse;
pub mod resolve;

mod chunk;
mod port_owner;
mod readiness;
mod run_loop;
mod scheduling;
mod socket;
mod thread_clock;
mod wake;

pub use acceptor::{Accepted, BindError, BoundSocket, ListenOptions, Listener};
pub use chain::{Chain, Cursor, LAG_MAX_QUIET, Lag};
pub use connect::{ConnectOptions, connect, connect_any};
pub use connection::{Connection, ConnectionLimits, ReadHalf, SendError, Sent, WriteHalf};
pub use doorbell::{Doorbell, Ringer};
pub use executor::{
    DiskHooks, ExecutorError, ExecutorHandle, ExecutorSpec, Task, reactor_turn, run_executor,
    sleep, spawn_executor, spawn_local, timeout,
};
pub use frame::{FrameDecoder, FrameError};
pub use probe::{Needs, ProbeError};
pub use pulse::{Busy, busy};
pub use resolve::resolve;
pub use scheduling::run_when_idle;
