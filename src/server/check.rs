//! `ringkeeper check`: everything that can be known about a start without starting.
//!
//! Each finding says what was looked at and, where it stands in the way, what to do. Nothing is created that is not
//! removed again; a missing data directory is not made, its nearest parent is looked at instead.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use ringkeeper_config::{ClientAddress, Config, Cpus, Host, Weight};
use ringkeeper_storage::Dirs;
use ringkeeper_transport::probe::{self, ProbeError};
use ringkeeper_transport::{ExecutorSpec, run_executor};
use rustix::fs::{Access, access, statvfs};

use crate::{config_file, fatal, import, threads};

/// Room that a start needs beyond the log segments it reserves, in bytes.
const FREE_BYTES_BESIDE_LOG: u64 = 256 << 20;

/// Log segments that are reserved at a start.
const SEGMENTS_AT_START: u64 = 2;

/// Fewer descriptors than this are too few for a server.
const DESCRIPTORS_MIN: u64 = 1024;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// The server starts, but something is likely to be missed.
    Warn,
    /// The server would not start, or not keep its promises.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// What one look has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    subject: &'static str,
    detail: String,
    /// What to do; of warnings and failures.
    remedy: String,
}

impl Finding {
    fn new(
        verdict: Verdict,
        subject: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict,
            subject,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn ok(subject: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, subject, detail, "")
    }
}

/// Checks a configuration and this machine, prints what was found, and says by the status whether a start would succeed.
#[expect(
    clippy::print_stdout,
    reason = "the answer to a question on the command line"
)]
pub(crate) fn run(file: Option<&Path>, assignments: &[String]) -> ExitCode {
    let findings = findings(file, assignments);
    print!("{}", render(&findings));
    match findings.iter().map(|finding| finding.verdict).max() {
        Some(Verdict::Fail) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn findings(file: Option<&Path>, assignments: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let config = match config_file::load(file, assignments) {
        Ok(loaded) => {
            let name =
                file.map_or_else(|| "built-in".to_owned(), |path| path.display().to_string());
            findings.push(Finding::ok("configuration", name));
            findings.extend(loaded.notices.iter().map(|notice| match notice.weight {
                Weight::Info => {
                    Finding::new(Verdict::Note, "configuration", notice.to_string(), "")
                }
                Weight::Warning => {
                    Finding::new(Verdict::Warn, "configuration", notice.to_string(), "")
                }
            }));
            Some(loaded.config)
        }
        Err(error) => {
            // The outermost context says that it is the configuration, as the column does.
            let causes = fatal::causes(error.chain().skip(1));
            findings.push(Finding::new(Verdict::Fail, "configuration", causes, ""));
            None
        }
    };
    findings.push(kernel());
    findings.push(io_uring());
    findings.push(cores(config.as_ref()));
    findings.push(clock_source());
    findings.push(locked_memory(executors(config.as_ref())));
    findings.push(descriptors(config.as_ref()));
    if let Some(config) = &config {
        findings.push(my_id(config));
        findings.extend(directories(config));
        let system_is_fine = findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Fail);
        findings.extend(durable_writes(config, system_is_fine));
        findings.push(client_port(&config.clients.address));
    }
    findings
}

/// One line per finding, in aligned columns, and a last line that sums up.
fn render(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.subject.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Finding {
        verdict,
        subject,
        detail,
        remedy,
    } in findings
    {
        let indent = format!("\n{:width$}", "", width = width + 8);
        let detail = detail.replace('\n', &indent);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{verdict:<4}  {subject:<width$}  {detail}");
        if !remedy.is_empty() {
            let _ = writeln!(
                text,
                "{:width$}  {}",
                "",
                remedy.replace('\n', &indent),
                width = width + 6
            );
        }
    }
    let count = |verdict| {
        findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .count()
    };
    let _ = match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => writeln!(text, "\nready to start"),
        (0, warnings) => writeln!(
            text,
            "\nready to start, with {}",
            plural(warnings, "warning")
        ),
        (failures, _) => writeln!(
            text,
            "\nnot ready to start: {}",
            plural(failures, "problem")
        ),
    };
    text
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let version = format!("Linux {release} {}", name.machine().to_string_lossy());
    granted("kernel", probe::check_kernel().map(|()| version))
}

fn io_uring() -> Finding {
    granted(
        "io_uring",
        probe::check_io_uring().map(|()| "rings can be made".to_owned()),
    )
}

fn locked_memory(executors: usize) -> Finding {
    let limit = probe::raise_memlock(executors);
    let detail = |bytes| {
        format!(
            "{}, for {}",
            limit_text(bytes),
            plural(executors, "executor")
        )
    };
    granted("locked memory", limit.map(detail))
}

fn descriptors(config: Option<&Config>) -> Finding {
    let connections = config
        .and_then(|config| config.clients.total_max)
        .map_or(0, u64::from);
    let needed = connections.saturating_add(DESCRIPTORS_MIN);
    granted(
        "open files",
        probe::raise_descriptors(needed).map(|limit| format!("{limit} at most")),
    )
}

/// What the system grants, or the refusal with its remedy.
fn granted(subject: &'static str, outcome: Result<String, ProbeError>) -> Finding {
    match outcome {
        Ok(detail) => Finding::ok(subject, detail),
        Err(error) => Finding::new(Verdict::Fail, subject, error.to_string(), error.remedy()),
    }
}

fn limit_text(bytes: u64) -> String {
    match bytes {
        u64::MAX => "unlimited".to_owned(),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

fn cores(config: Option<&Config>) -> Finding {
    let subject = "cores";
    let usable = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect::<Vec<_>>(),
        Err(error) => {
            return Finding::new(
                Verdict::Warn,
                subject,
                format!("read the CPU affinity: {error}"),
                "",
            );
        }
    };
    let detail = format!(
        "{} usable{}",
        usable.len(),
        quota()
            .map(|cores| format!(", of which the control group grants {cores:.1}"))
            .unwrap_or_default()
    );
    if let Some(Cpus::List(wanted)) = config.map(|config| &config.placement.cpus)
        && let Some(missing) = wanted
            .iter()
            .find(|&&cpu| !usable.contains(&(cpu as usize)))
    {
        return Finding::new(
            Verdict::Fail,
            subject,
            format!("core {missing} of ringkeeper.cpus is not usable by this process ({detail})"),
            format!("Name only cores among {usable:?}, or remove ringkeeper.cpus"),
        );
    }
    Finding::ok(subject, detail)
}

/// Executors of a start: one per shard, and the replica core runs on the first of them.
fn executors(config: Option<&Config>) -> usize {
    let shards = config.and_then(|config| config.placement.shards);
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    shards.map_or_else(cores, |shards| shards as usize)
}

/// How many cores the control group grants, if it limits them (`cpu.max` of version 2).
fn quota() -> Option<f64> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?;
    let max = fs::read_to_string(
        Path::new("/sys/fs/cgroup")
            .join(path.trim_start_matches('/'))
            .join("cpu.max"),
    )
    .ok()?;
    parse_quota(&max)
}

fn parse_quota(max: &str) -> Option<f64> {
    let (quota, period) = max.trim().split_once(' ')?;
    let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (period > 0.0).then_some(quota / period)
}

fn clock_source() -> Finding {
    let subject = "clock source";
    match fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource") {
        Ok(name) => match name.trim() {
            slow @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies") => Finding::new(
                Verdict::Warn,
                subject,
                format!("{slow}: reading the time is a system call, and costs each request"),
                "Boot with clocksource=tsc where the processor's counter is stable",
            ),
            name => Finding::ok(subject, name),
        },
        Err(error) => Finding::new(Verdict::Note, subject, format!("unknown: {error}"), ""),
    }
}

fn my_id(config: &Config) -> Finding {
    let detail = match config.files.my_id {
        Some(id) => id.to_string(),
        None => "none; a standalone server needs none".to_owned(),
    };
    Finding::ok("myid", detail)
}

fn directories(config: &Config) -> Vec<Finding> {
    let files = &config.files;
    let log = &config.log;
    let log_needs = log
        .segment_bytes
        .saturating_mul(SEGMENTS_AT_START)
        .saturating_add(FREE_BYTES_BESIDE_LOG);
    let mut findings = Vec::new();
    let mut look = |subject, directory: &Path, needed: u64| {
        findings.push(directory_finding(
            subject,
            directory,
            files.create_directories,
        ));
        findings.extend(nearest_existing(directory).map(|existing| free_space(&existing, needed)));
    };
    if files.log_dir == files.data_dir {
        look("data directory", &files.data_dir, log_needs);
    } else {
        look("data directory", &files.data_dir, FREE_BYTES_BESIDE_LOG);
        look("log directory", &files.log_dir, log_needs);
    }
    findings.extend(foreign_data(config));
    findings
}

/// Direct I/O and the latency of durable writes where the log will lie. Measured on a file that is removed again, and only
/// where an executor can run and a file can be made.
fn durable_writes(config: &Config, may_measure: bool) -> Vec<Finding> {
    let Some(directory) = nearest_existing(&config.files.log_dir) else {
        return Vec::new();
    };
    if access(&directory, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Vec::new(); // The finding about the directory has said so.
    }
    let subject = "direct I/O";
    let direct = match ringkeeper_storage::check_direct_io(&directory) {
        Ok(()) => Finding::ok(
            subject,
            format!("O_DIRECT works on {}", directory.display()),
        ),
        // The message names its remedy.
        Err(error) => return vec![Finding::new(Verdict::Fail, subject, error.to_string(), "")],
    };
    if !may_measure {
        return vec![direct];
    }
    vec![direct, measure(directory)]
}

fn measure(directory: PathBuf) -> Finding {
    let subject = "durable writes";
    let probe = async move { ringkeeper_storage::probe(&directory).await };
    let spec = ExecutorSpec::new("check", None).with_disk(threads::DISK);
    match run_executor(&spec, probe) {
        Ok(Ok((_, report))) if report.volatile => Finding::new(
            Verdict::Warn,
            subject,
            report.to_string(),
            "Put dataDir and dataLogDir on a disk: what is acknowledged here is gone after a restart of the machine",
        ),
        Ok(Ok((_, report))) => Finding::ok(subject, report.to_string()),
        Ok(Err(error)) => Finding::new(Verdict::Fail, subject, error.to_string(), ""),
        Err(error) => Finding::new(Verdict::Fail, subject, error.to_string(), ""),
    }
}

fn directory_finding(subject: &'static str, directory: &Path, may_create: bool) -> Finding {
    let shown = directory.display();
    if directory.is_dir() {
        return match access(
            directory,
            Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
        ) {
            Ok(()) => Finding::ok(subject, shown.to_string()),
            Err(error) => Finding::new(
                Verdict::Fail,
                subject,
                format!("{shown}: {error}"),
                "Make the user that runs the server the owner of the directory (chown)",
            ),
        };
    }
    if directory.exists() {
        let remedy = "Name a directory, or one that does not exist yet";
        return Finding::new(
            Verdict::Fail,
            subject,
            format!("{shown} is not a directory"),
            remedy,
        );
    }
    if !may_create {
        return Finding::new(
            Verdict::Fail,
            subject,
            format!("{shown} does not exist, and datadir.autocreate=false forbids to create it"),
            "Mount or create it",
        );
    }
    let parent = nearest_existing(directory);
    match parent
        .as_deref()
        .map(|parent| (parent, access(parent, Access::WRITE_OK | Access::EXEC_OK)))
    {
        Some((_, Ok(()))) => Finding::ok(subject, format!("{shown}: will be created")),
        Some((parent, Err(error))) => Finding::new(
            Verdict::Fail,
            subject,
            format!("{shown} cannot be created in {}: {error}", parent.display()),
            "Create it, and make the user that runs the server its owner",
        ),
        None => Finding::new(
            Verdict::Fail,
            subject,
            format!("{shown}: no parent exists"),
            "Name another directory",
        ),
    }
}

/// The directory itself, or the nearest above it that is there.
fn nearest_existing(directory: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(directory).ok()?;
    absolute
        .ancestors()
        .find(|path| path.is_dir())
        .map(Path::to_path_buf)
}

fn free_space(directory: &Path, needed: u64) -> Finding {
    let subject = "free space";
    let shown = directory.display();
    match statvfs(directory) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} MiB on {shown}", free >> 20);
            if free < needed {
                let remedy = format!(
                    "A start needs {} MiB: free some, or lower preAllocSize",
                    needed >> 20
                );
                return Finding::new(Verdict::Fail, subject, detail, remedy);
            }
            Finding::ok(subject, detail)
        }
        Err(error) => Finding::new(Verdict::Warn, subject, format!("{shown}: {error}"), ""),
    }
}

/// What a start would make of Apache's data.
fn foreign_data(config: &Config) -> Option<Finding> {
    let dirs = Dirs {
        data: config.files.data_dir.clone(),
        log: config.files.log_dir.clone(),
    };
    let subject = "data directory";
    Some(match import::outlook(&dirs)? {
        Ok(detail) => Finding::ok(subject, detail),
        Err(detail) => Finding::new(
            Verdict::Fail,
            subject,
            detail,
            "`ringkeeper-log doctor` judges the directory",
        ),
    })
}

fn client_port(address: &ClientAddress) -> Finding {
    let subject = "client port";
    match bind(address) {
        Ok(bound) => Finding::ok(subject, format!("{bound} is free")),
        Err(error) => {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            let remedy = match kind {
                Some(io::ErrorKind::AddrInUse) => {
                    "Stop what listens there (ss -ltnp shows it), or choose another clientPort"
                }
                Some(io::ErrorKind::PermissionDenied) => {
                    "Choose a clientPort above 1023, or grant CAP_NET_BIND_SERVICE"
                }
                Some(io::ErrorKind::AddrNotAvailable) => {
                    "Set clientPortAddress to an address of this machine"
                }
                _ => "Correct clientPort and clientPortAddress",
            };
            Finding::new(
                Verdict::Fail,
                subject,
                format!("{address}: {error:#}"),
                remedy,
            )
        }
    }
}

/// Listens for a moment. Without `SO_REUSEPORT`, so that a server that runs already is found.
fn bind(address: &ClientAddress) -> Result<SocketAddr> {
    let port = address.port;
    let listener = match &address.host {
        Host::Any => TcpListener::bind(("::", port)).or_else(|error| match error.kind() {
            // There may be no IPv6.
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => TcpListener::bind(("0.0.0.0", port)),
        }),
        Host::Ip(ip) => TcpListener::bind((*ip, port)),
        Host::Name(name) => {
            let addresses = (name.as_str(), port)
                .to_socket_addrs()
                .context("resolve the name")?;
            TcpListener::bind(addresses.collect::<Vec<_>>().as_slice())
        }
    }?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(text: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zoo.cfg");
        fs::write(&path, text).unwrap();
        config_file::load(Some(&path), &[]).unwrap().config
    }

    fn verdicts<'a>(findings: &'a [Finding], subject: &str) -> Vec<(Verdict, &'a str)> {
        let of_subject = findings.iter().filter(|finding| finding.subject == subject);
        of_subject
            .map(|finding| (finding.verdict, finding.detail.as_str()))
            .collect()
    }

    #[test]
    fn columns_are_aligned_and_the_last_line_sums_up() {
        let findings = [
            Finding::ok("kernel", "Linux"),
            Finding::new(
                Verdict::Fail,
                "client port",
                "in use\nby another",
                "Choose another",
            ),
        ];
        let expect = "\
ok    kernel       Linux
FAIL  client port  in use
                   by another
                   Choose another

not ready to start: 1 problem
";
        assert_eq!(render(&findings), expect);
        assert!(render(&findings[..1]).ends_with("\nready to start\n"));
    }

    #[test]
    fn a_port_in_use_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let address = ClientAddress {
            host: Host::parse("127.0.0.1"),
            port,
        };
        let finding = client_port(&address);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.remedy.contains("ss -ltnp"), "{finding:?}");
        drop(taken);
        let other = ClientAddress {
            host: Host::parse("127.0.0.1"),
            port: 0,
        };
        assert_eq!(client_port(&other).verdict, Verdict::Ok);
        let elsewhere = ClientAddress {
            host: Host::parse("192.0.2.1"),
            port: 0,
        };
        assert!(
            client_port(&elsewhere)
                .remedy
                .contains("address of this machine")
        );
    }

    #[test]
    fn directories_are_judged_without_being_made() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        assert_eq!(
            directory_finding("d", root.path(), true).verdict,
            Verdict::Ok
        );
        assert_eq!(
            directory_finding("d", &at("a/b/c"), true).verdict,
            Verdict::Ok
        );
        assert!(!at("a").exists());
        assert_eq!(
            directory_finding("d", &at("a/b/c"), false).verdict,
            Verdict::Fail
        );
        fs::write(at("file"), "").unwrap();
        assert_eq!(
            directory_finding("d", &at("file"), true).verdict,
            Verdict::Fail
        );
    }

    #[test]
    fn data_of_apache_is_imported_unless_there_is_some_of_ours() {
        let root = tempfile::tempdir().unwrap();
        let text = format!("clientPort=0\ndataDir={}\n", root.path().display());
        let config = config_of(&text);
        assert_eq!(foreign_data(&config), None);
        fs::create_dir(root.path().join("version-2")).unwrap();
        assert_eq!(foreign_data(&config), None);
        fs::write(root.path().join("version-2/snapshot.0"), "").unwrap();
        let found = foreign_data(&config).unwrap();
        assert_eq!(found.verdict, Verdict::Ok);
        assert!(found.detail.contains("imports once"), "{}", found.detail);
        fs::create_dir(root.path().join("ringkeeper")).unwrap();
        fs::write(root.path().join("ringkeeper/manifest-a"), "").unwrap();
        assert_eq!(foreign_data(&config), None);
        fs::write(root.path().join("ringkeeper/imported"), "something else").unwrap();
        assert_eq!(foreign_data(&config).unwrap().verdict, Verdict::Fail);
    }

    #[test]
    fn problems_of_the_configuration_are_findings() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("zoo.cfg");
        fs::write(&path, "dataDir=/tmp\nsecureClientPort=2281\ntickTime=x\n").unwrap();
        let found = findings(Some(&path), &[]);
        let [(Verdict::Fail, detail)] = verdicts(&found, "configuration")[..] else {
            panic!("{found:?}")
        };
        assert!(
            detail.contains("zoo.cfg:2: secureClientPort")
                && detail.contains("zoo.cfg:3: tickTime=x"),
            "{detail}"
        );
        assert!(
            !verdicts(&found, "kernel").is_empty(),
            "the machine is looked at all the same"
        );
    }

    #[test]
    fn cores_that_are_not_there_are_refused() {
        let config = config_of("dataDir=/tmp\nclientPort=0\nringkeeper.cpus=1000\n");
        assert_eq!(cores(Some(&config)).verdict, Verdict::Fail);
        assert_eq!(cores(None).verdict, Verdict::Ok);
    }

    #[test]
    fn quotas_of_control_groups() {
        assert_eq!(parse_quota("150000 100000\n"), Some(1.5));
        assert_eq!(parse_quota("max 100000\n"), None);
        assert_eq!(parse_quota(""), None);
    }

    #[test]
    fn too_little_space_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(free_space(root.path(), u64::MAX).verdict, Verdict::Fail);
        assert_eq!(free_space(root.path(), 0).verdict, Verdict::Ok);
    }
}
