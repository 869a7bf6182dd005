//! What this machine must grant before the first executor starts, each refusal with its remedy.
//!
//! glommio panics where io_uring is missing, and reports a short memory lock from inside a thread; so
//! it is asked for here first, also by `ringkeeper check`.
#![expect(
    unsafe_code,
    reason = "io_uring_setup, getrlimit and setrlimit have no safe wrapper among the dependencies"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::{fs, io};

use crate::executor::MEMLOCK_BYTES_PER_EXECUTOR;

/// The least Linux whose rings do all that the disk asks of them (renaming and removing came last).
const KERNEL_MIN: (u32, u32) = (5, 11);

/// What the server is about to use.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Executors.
    pub executors: usize,
    /// Open files: connections, logs, and some more.
    pub descriptors: u64,
}

/// Checks everything, raises soft limits where they are too low and may be raised, and returns all
/// that is wrong.
pub fn check(needs: Needs) -> Vec<ProbeError> {
    let outcomes = [
        check_kernel(),
        check_io_uring(),
        raise_memlock(needs.executors).map(|_| ()),
        raise_descriptors(needs.descriptors).map(|_| ()),
    ];
    outcomes.into_iter().filter_map(Result::err).collect()
}

/// As [`check`], for a start: the first thing that is wrong.
///
/// # Errors
/// [`ProbeError`].
pub fn prepare(needs: Needs) -> Result<(), ProbeError> {
    check(needs).into_iter().next().map_or(Ok(()), Err)
}

/// Checks the kernel's version.
///
/// # Errors
/// [`ProbeError::KernelTooOld`]. An unreadable version is none: [`check_io_uring`] tells.
pub fn check_kernel() -> Result<(), ProbeError> {
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return Ok(());
    };
    let release = release.trim();
    match parse_release(release) {
        Some(version) if version < KERNEL_MIN => Err(ProbeError::KernelTooOld {
            release: release.into(),
        }),
        _ => Ok(()),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((major, minor))
}

/// Sets up a small ring and closes it again.
///
/// # Errors
/// [`ProbeError`] with the likely reason.
pub fn check_io_uring() -> Result<(), ProbeError> {
    match setup_ring() {
        Ok(_) => Ok(()),
        Err(error) => Err(explain_refusal(error, &IoUringSetting::read())),
    }
}

/// The kernel's io_uring settings, as far as they can be read.
#[derive(Debug, Default)]
struct IoUringSetting {
    /// 0: for all. 1: for the privileged and `group`. 2: for nobody.
    disabled: Option<u32>,
    group: Option<i64>,
    /// 2 where a system call filter is in force for this process.
    seccomp: Option<u32>,
}

impl IoUringSetting {
    fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let seccomp = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp:"))
            .and_then(|value| value.trim().parse().ok());
        Self {
            disabled: read_number("/proc/sys/kernel/io_uring_disabled"),
            group: read_number("/proc/sys/kernel/io_uring_group"),
            seccomp,
        }
    }
}

fn read_number<N: std::str::FromStr>(path: &str) -> Option<N> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn explain_refusal(error: io::Error, setting: &IoUringSetting) -> ProbeError {
    let has_filter = setting.seccomp == Some(2);
    match error.raw_os_error() {
        Some(libc::EPERM) => match setting.disabled {
            Some(level @ 1..) => ProbeError::IoUringDisabled {
                level,
                group: setting.group.filter(|group| *group >= 0),
            },
            _ => ProbeError::IoUringFiltered { error },
        },
        Some(libc::ENOSYS) if has_filter => ProbeError::IoUringFiltered { error },
        Some(libc::ENOSYS) => ProbeError::IoUringMissing,
        _ => ProbeError::IoUringFailed { error },
    }
}

/// Makes sure that `executors` can lock the memory they need, raising the soft limit up to the hard
/// one. Returns the limit, in bytes.
///
/// # Errors
/// [`ProbeError::MemlockTooLow`], [`ProbeError::Limit`].
pub fn raise_memlock(executors: usize) -> Result<u64, ProbeError> {
    let needed = MEMLOCK_BYTES_PER_EXECUTOR.saturating_mul(executors.max(1) as u64);
    let granted = raise(libc::RLIMIT_MEMLOCK, needed).map_err(|error| ProbeError::Limit {
        name: "memlock",
        error,
    })?;
    if granted < needed {
        return Err(ProbeError::MemlockTooLow {
            granted,
            needed,
            executors,
        });
    }
    Ok(granted)
}

/// Makes sure that `needed` files can be open, raising the soft limit up to the hard one. Returns the
/// limit.
///
/// # Errors
/// [`ProbeError::DescriptorsTooFew`], [`ProbeError::Limit`].
pub fn raise_descriptors(needed: u64) -> Result<u64, ProbeError> {
    let granted = raise(libc::RLIMIT_NOFILE, needed).map_err(|error| ProbeError::Limit {
        name: "nofile",
        error,
    })?;
    if granted < needed {
        return Err(ProbeError::DescriptorsTooFew { granted, needed });
    }
    Ok(granted)
}

/// Raises a soft limit to `needed`, as far as the hard limit goes. Returns the soft limit then.
fn raise(resource: libc::__rlimit_resource_t, needed: u64) -> io::Result<u64> {
    let limit = read_limit(resource)?;
    if limit.rlim_cur >= needed || limit.rlim_cur >= limit.rlim_max {
        return Ok(limit.rlim_cur);
    }
    let raised = libc::rlimit {
        rlim_cur: needed.min(limit.rlim_max),
        rlim_max: limit.rlim_max,
    };
    // SAFETY: `raised` is a valid rlimit for the whole call, which only reads it.
    let outcome = unsafe { libc::setrlimit(resource, &raw const raised) };
    if outcome == 0 {
        Ok(raised.rlim_cur)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn read_limit(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the one rlimit that the call writes.
    let outcome = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if outcome == 0 {
        Ok(limit)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The length of the kernel's `struct io_uring_params`, all zero but for what the kernel fills in.
const IO_URING_PARAMS_BYTES: usize = 120;

fn setup_ring() -> io::Result<OwnedFd> {
    #[repr(align(8))]
    struct Params([u8; IO_URING_PARAMS_BYTES]);
    let mut params = Params([0; IO_URING_PARAMS_BYTES]);
    let entries: libc::c_uint = 4;
    // SAFETY: `params` is as long and as aligned as the struct that the kernel reads and writes.
    let outcome =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.0.as_mut_ptr()) };
    match RawFd::try_from(outcome) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Something that this machine does not grant. [`Self::remedy`] says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// io_uring as used here needs a newer kernel.
    #[error("Linux {release} is too old: io_uring as used here needs 5.11")]
    KernelTooOld {
        /// The running kernel.
        release: String,
    },
    /// The kernel has no io_uring.
    #[error("this kernel has no io_uring")]
    IoUringMissing,
    /// `kernel.io_uring_disabled` forbids it.
    #[error("io_uring is switched off: kernel.io_uring_disabled = {level}")]
    IoUringDisabled {
        /// The setting.
        level: u32,
        /// The group that may use it all the same, at level 1.
        group: Option<i64>,
    },
    /// A system call filter forbids it, as container runtimes' default does.
    #[error("a system call filter (seccomp) forbids io_uring: {error}")]
    IoUringFiltered {
        /// What `io_uring_setup` said.
        error: io::Error,
    },
    /// It failed in another way.
    #[error("io_uring_setup: {error}")]
    IoUringFailed {
        /// What it said.
        error: io::Error,
    },
    /// Executors cannot lock enough memory.
    #[error(
        "the limit of locked memory is {granted} bytes, {executors} executors need {needed} bytes"
    )]
    MemlockTooLow {
        /// The limit, after raising it as far as the hard limit goes.
        granted: u64,
        /// What is needed.
        needed: u64,
        /// For how many executors.
        executors: usize,
    },
    /// Too few files can be open.
    #[error("the limit of open files is {granted}, needed are {needed}")]
    DescriptorsTooFew {
        /// The limit, after raising it as far as the hard limit goes.
        granted: u64,
        /// What is needed.
        needed: u64,
    },
    /// A limit could not be read or set.
    #[error("limit {name}: {error}")]
    Limit {
        /// Its name in `limits.conf`.
        name: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl ProbeError {
    /// What the operator can do.
    pub fn remedy(&self) -> String {
        match self {
            Self::KernelTooOld { .. } | Self::IoUringMissing => {
                "run Linux 5.11 or newer, built with CONFIG_IO_URING".into()
            }
            Self::IoUringDisabled {
                level: 1,
                group: Some(group),
            } => format!(
                "run `sysctl kernel.io_uring_disabled=0`, or make the server's user a member of the \
                 group with the id {group}"
            ),
            Self::IoUringDisabled { .. } => {
                "run `sysctl kernel.io_uring_disabled=0` and make it lasting in /etc/sysctl.d".into()
            }
            Self::IoUringFiltered { .. } => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp \
                 profile (Docker: --security-opt seccomp=profile.json; Kubernetes: \
                 securityContext.seccompProfile)"
                    .into()
            }
            Self::IoUringFailed { .. } => "see the system's message".into(),
            Self::MemlockTooLow { needed, .. } => format!(
                "raise the limit to {needed} bytes: LimitMEMLOCK={needed} in the systemd unit, `memlock` \
                 (in KiB) in limits.conf, --ulimit memlock={needed}:{needed} for Docker"
            ),
            Self::DescriptorsTooFew { needed, .. } => format!(
                "raise the limit to {needed}: LimitNOFILE={needed} in the systemd unit, `nofile` in \
                 limits.conf, --ulimit nofile={needed}:{needed} for Docker; or allow fewer connections \
                 (maxCnxns)"
            ),
            Self::Limit { .. } => "see the system's message".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes() {
        let needs = Needs {
            executors: 2,
            descriptors: 64,
        };
        let wrong = check(needs);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.18.44-fc-v782"), Some((6, 18)));
        assert_eq!(parse_release("5.8"), Some((5, 8)));
        assert_eq!(parse_release("4.19.0+"), Some((4, 19)));
        assert_eq!(parse_release("unknown"), None);
        assert!(parse_release("4.19.0").unwrap() < KERNEL_MIN);
        assert!(parse_release("5.10.0").unwrap() < KERNEL_MIN);
        assert!(parse_release("6.1").unwrap() > KERNEL_MIN);
    }

    #[test]
    fn limits_that_cannot_be_had_are_told() {
        let error = raise_descriptors(u64::MAX - 1).unwrap_err();
        assert!(
            matches!(error, ProbeError::DescriptorsTooFew { .. }),
            "{error}"
        );
        assert!(error.remedy().contains("LimitNOFILE"));
    }

    #[test]
    fn refusals_are_told_apart() {
        fn check(errno: i32, setting: &IoUringSetting, expect: &str, remedy: &str) {
            let error = explain_refusal(io::Error::from_raw_os_error(errno), setting);
            assert!(error.to_string().contains(expect), "{error}");
            assert!(error.remedy().contains(remedy), "{}", error.remedy());
        }
        let open = IoUringSetting {
            disabled: Some(0),
            group: Some(-1),
            seccomp: Some(0),
        };
        let filtered = IoUringSetting {
            seccomp: Some(2),
            ..IoUringSetting::default()
        };
        let off = IoUringSetting {
            disabled: Some(2),
            group: Some(-1),
            seccomp: Some(2),
        };
        let group = IoUringSetting {
            disabled: Some(1),
            group: Some(44),
            seccomp: None,
        };
        check(libc::EPERM, &off, "io_uring_disabled = 2", "sysctl");
        check(libc::EPERM, &group, "io_uring_disabled = 1", "id 44");
        check(libc::EPERM, &filtered, "seccomp", "profile");
        check(libc::EPERM, &open, "seccomp", "profile");
        check(libc::ENOSYS, &filtered, "seccomp", "profile");
        check(libc::ENOSYS, &open, "no io_uring", "CONFIG_IO_URING");
        check(libc::ENOMEM, &open, "io_uring_setup", "message");
    }
}
