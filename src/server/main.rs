//! The server: one binary that serves, checks a machine, and tells its version.
//!
//! Executors, clocks, signals and files come together here; what decides is in the crates
//! `zab`, `tree` and `config`.

mod check;
mod client;
mod clients;
mod clock;
mod command_line;
mod config_file;
mod connection_throttle;
mod control;
mod counts;
mod dev;
mod ensemble;
mod fatal;
mod four_letter;
mod hand_over;
mod import;
mod intake;
mod link;
mod logging;
mod messages;
mod monitor;
mod oracle;
mod outbox;
mod peer_loop;
mod placement;
mod read_path;
mod recovery;
mod replica;
mod replica_loop;
mod report;
mod serve;
mod shard;
mod shard_loop;
mod snapshots;
mod stalls;
mod stats;
mod threads;
mod tree_sender;

use std::process::ExitCode;

use mimalloc::MiMalloc;
use ringkeeper_storage::HugePages;

/// Frames are allocated on one core and freed on another all day long; this allocator takes that well.
#[global_allocator]
static ALLOCATOR: HugePages<MiMalloc> = HugePages(MiMalloc);

fn main() -> ExitCode {
    // The inner allocator would take huge pages, of which a tree leaves parts unused: 15% more memory with a
    // million znodes, and no less CPU. A kernel without the switch has none to save.
    _ = rustix::thread::disable_transparent_huge_pages(true);
    command_line::run(serve::run)
}
