//! Plain threads beside the executors.
//!
//! A thread inherits the CPUs of the thread that starts it, and executors are pinned: one that is to
//! run elsewhere has to say so.

use ringkeeper_storage::disk_ring;
use ringkeeper_transport::{DiskHooks, run_when_idle};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

/// The nicest there is: everybody else goes first.
const NICE_MAX: i32 = 19;

/// Lets the current thread run on any of `cpus`; an empty list changes nothing.
pub(crate) fn run_on(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    if !cpus.is_empty()
        && let Err(error) = sched_setaffinity(None, &set)
    {
        tracing::warn!(%error, ?cpus, "set the CPUs of a thread");
    }
}

/// Gives the current thread the lowest priority: it runs when nobody else wants its CPU.
pub(crate) fn step_back() {
    be_nicest();
    set_idle(true);
}

/// Gives the current thread the smallest share of its CPU that others cannot take from it.
pub(crate) fn step_forward() {
    be_nicest();
    set_idle(false);
}

fn be_nicest() {
    // On Linux the priority is the thread's, although the call names a process.
    if let Err(error) = setpriority_process(Some(gettid()), NICE_MAX) {
        tracing::warn!(%error, "lower the priority of a thread");
    }
}

fn set_idle(is_idle: bool) {
    if let Err(error) = run_when_idle(is_idle) {
        tracing::warn!(%error, is_idle, "change the scheduling of a thread");
    }
}

/// What an executor does for the log's disk.
pub(crate) const DISK: DiskHooks = DiskHooks {
    start: disk_ring::start,
    reap: disk_ring::reap,
};
