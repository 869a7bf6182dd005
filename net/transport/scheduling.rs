//! What the kernel's scheduler knows of a thread.
#![expect(
    unsafe_code,
    reason = "no safe wrappers of these calls are among the dependencies"
)]

use std::io;
use std::mem::{size_of, zeroed};
use std::time::Duration;

/// The shortest slice that the kernel grants.
const SHORTEST_SLICE: Duration = Duration::from_micros(100);

/// Gives the current thread the idle policy, or takes it back. It may starve while others keep its CPU busy.
///
/// Niceness is not enough for a thread that nobody is to wait for: the nicest still keeps its CPU for a slice of some
/// milliseconds once it has it, and whoever wakes meanwhile waits. A thread of the idle policy gives way at once.
pub fn run_when_idle(is_idle: bool) -> io::Result<()> {
    let policy = if is_idle {
        libc::SCHED_IDLE
    } else {
        libc::SCHED_OTHER
    };
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and `parameter` is a valid parameter that outlives the call.
    let outcome = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    told(outcome.into())
}

/// Asks for the shortest slices for the current thread, which gets no more of its CPU by that, but gets it sooner: who asks for
/// short slices goes before others when it wakes, and does not keep the kernel's own threads waiting, which complete its
/// writes. Niceness stays; a thread of another policy than the common one is left alone. Kernels before 6.12 take no notice.
/// Threads that it starts ask for the same, until [`run_when_idle`] gives them the kernel's choice back.
pub(crate) fn take_short_slices() -> io::Result<()> {
    let mut attributes = attributes()?;
    let common = u32::try_from(libc::SCHED_OTHER).expect("a policy is a small number");
    if attributes.sched_policy != common {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(SHORTEST_SLICE.as_nanos()).expect("it is short");
    // SAFETY: 0 is the calling thread, and the attributes are whole and outlive the call.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    told(outcome)
}

/// Those of the current thread.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: it is made of numbers, each of which may be zero.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: 0 is the calling thread, and there is room for as many bytes as the kernel is told.
    let outcome =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    told(outcome)?;
    // The kernel says how much of it there is in what it knows.
    attributes.size = u32::try_from(size).expect("it is small");
    Ok(attributes)
}

fn told(outcome: libc::c_long) -> io::Result<()> {
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_idle_until_it_takes_that_back() {
        for (is_idle, expect) in [(true, libc::SCHED_IDLE), (false, libc::SCHED_OTHER)] {
            run_when_idle(is_idle).expect("anybody may");
            let policy = attributes().expect("anybody may ask").sched_policy;
            assert_eq!(i32::try_from(policy), Ok(expect));
        }
    }

    #[test]
    fn short_slices_leave_the_rest_as_it_was() {
        // SAFETY: it takes numbers; 0 is the calling thread.
        let niced = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) };
        assert_eq!(niced, 0);
        let before = attributes().expect("anybody may ask");
        take_short_slices().expect("anybody may");
        let after = attributes().expect("anybody may ask");
        assert_eq!(
            (after.sched_policy, after.sched_nice),
            (before.sched_policy, 5)
        );
        // A kernel that knows of no slices says 0.
        let shortest = u64::try_from(SHORTEST_SLICE.as_nanos()).expect("it is short");
        assert!(before.sched_runtime == 0 || after.sched_runtime == shortest);
        // One that has another policy has it afterwards.
        run_when_idle(true).expect("anybody may");
        take_short_slices().expect("anybody may");
        let policy = attributes().expect("anybody may ask").sched_policy;
        assert_eq!(i32::try_from(policy), Ok(libc::SCHED_IDLE));
    }
}
