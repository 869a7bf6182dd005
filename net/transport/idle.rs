//! A thread that runs only when nobody else wants its CPU.
//!
//! Niceness is not enough for that: the nicest thread still keeps its CPU for a slice of some milliseconds once it has it,
//! and whoever wakes meanwhile waits. A thread of the idle policy gives way at once.
#![expect(
    unsafe_code,
    reason = "no safe wrapper of sched_setscheduler is among the dependencies"
)]

use std::io;

/// Gives the current thread the idle policy, or takes it back. It may starve while others keep its CPU busy.
pub fn run_when_idle(is_idle: bool) -> io::Result<()> {
    let policy = if is_idle {
        libc::SCHED_IDLE
    } else {
        libc::SCHED_OTHER
    };
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and `parameter` is a valid parameter that outlives the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_idle_until_it_takes_that_back() {
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("the kernel tells");
            // The name in parentheses may hold blanks; the policy is the 39th field behind the 2nd.
            let (_, rest) = stat.rsplit_once(')').expect("the name ends");
            rest.split_whitespace().nth(38).map(str::to_owned)
        };
        for (is_idle, expect) in [(true, "5"), (false, "0")] {
            run_when_idle(is_idle).expect("anybody may");
            assert_eq!(policy().as_deref(), Some(expect));
        }
    }
}
