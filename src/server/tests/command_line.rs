//! The program as an operator meets it: exit statuses, messages with remedies, an orderly stop.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ringkeeper_apache_files::{Compression, LogWriter, write_snapshot};
use ringkeeper_proto::txn::{CreateKind, encode_record};
use ringkeeper_proto::{Acl, AclList, OpCode, SessionId, Txn, TxnHeader, Zxid};
use ringkeeper_tree::{Events, Tree};
use rustix::process::{Pid, Signal, kill_process};

fn ringkeeper() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringkeeper"));
    command.env_remove("RINGKEEPER_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = ringkeeper().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A server in the foreground, on a port and with data of its own; killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    log: BufReader<std::process::ChildStderr>,
}

impl Server {
    /// Starts one and waits until it says where it listens.
    fn start(data: &Path) -> Self {
        let mut command = ringkeeper();
        command
            .arg("--set")
            .arg(format!("dataDir={}", data.display()));
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut process = command
            .args(["--set", "clientPort=0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut server = Self {
            process,
            address: ([0; 4], 0).into(),
            log,
        };
        server.address = server.read_address();
        server
    }

    /// Reads the log up to the line that says where it listens.
    fn read_address(&mut self) -> SocketAddr {
        let mut text = String::new();
        loop {
            let start = text.len();
            assert!(
                self.log.read_line(&mut text).unwrap() > 0,
                "it ended: {text}"
            );
            if let Some((_, rest)) = text[start..].split_once(" serving address=") {
                return rest.split(' ').next().unwrap().parse().unwrap();
            }
        }
    }

    fn ask(&self, word: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(word.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a signal and waits for the end; returns the status and the rest of the log.
    fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        let id = Pid::from_child(&self.process);
        kill_process(id, signal).unwrap();
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.process.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already unless a test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_version_goes_to_standard_output() {
    let (status, output, _) = run(&["version"]);
    assert_eq!(
        (status, output),
        (
            Some(0),
            format!("ringkeeper {}\n", env!("CARGO_PKG_VERSION"))
        )
    );
}

#[test]
fn what_is_wrong_with_a_configuration_is_told_with_lines_and_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zoo.cfg");
    fs::write(
        &path,
        "dataDir=/data\nclientPort=x\nsecureClientPort=2281\n",
    )
    .unwrap();
    let name = path.to_str().unwrap();
    let (status, _, errors) = run(&["serve", name]);
    assert_eq!(status, Some(2), "{errors}");
    assert!(
        errors.contains(&format!("{name}:2: clientPort=x: it must be an integer")),
        "{errors}"
    );
    assert!(
        errors.contains(&format!("{name}:3: secureClientPort asks for TLS")),
        "{errors}"
    );
    let (status, output, _) = run(&["check", name]);
    assert_eq!(status, Some(1));
    assert!(
        output.contains("FAIL  configuration") && output.contains("not ready to start"),
        "{output}"
    );
}

#[test]
fn wrong_arguments_end_with_status_2() {
    for arguments in [
        &["--nonsense"][..],
        &["serve", "a", "b"],
        &["--log-level", "inof"],
        &["--set", "x"],
    ] {
        let (status, _, errors) = run(arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_port_in_use_is_told_with_status_5() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("clientPort={}", taken.local_addr().unwrap().port());
    let directory = tempfile::tempdir().unwrap();
    let data = format!("dataDir={}", directory.path().display());
    let (status, _, errors) = run(&["--set", &port, "--set", &data]);
    assert_eq!(status, Some(5), "{errors}");
    assert!(errors.contains("in use"), "{errors}");
}

#[test]
fn damaged_data_of_apache_is_refused_with_status_11() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("version-2")).unwrap();
    fs::write(directory.path().join("version-2/snapshot.0"), "").unwrap();
    let data = format!("dataDir={}", directory.path().display());
    let (status, _, errors) = run(&["--set", "clientPort=0", "--set", &data]);
    assert_eq!(status, Some(11), "{errors}");
    assert!(
        errors.contains("version-2") && errors.contains("doctor"),
        "{errors}"
    );
    assert!(!directory.path().join("ringkeeper").exists());
}

/// A directory of Apache's with a snapshot of `count` znodes beside the initial ones, and epochs.
fn apache_data(data: &Path, count: u32) -> Tree {
    let folder = data.join("version-2");
    fs::create_dir_all(&folder).unwrap();
    let mut tree = Tree::new();
    let mut writer = LogWriter::new(&folder);
    for n in 1..=count {
        let path = format!("/z{n}");
        let txn = Txn::Create {
            path: path.as_str().into(),
            data: Some(b"x"),
            acl: AclList::new(&Acl::open()),
            kind: CreateKind::Plain { ephemeral: false },
            parent_cversion: i32::try_from(n).unwrap(),
        };
        let header = TxnHeader {
            session: SessionId(1),
            cxid: 1,
            zxid: Zxid(n.into()),
            time_ms: 5,
            op: OpCode::Create,
        };
        let _outcome = tree.apply(&header, &txn, &mut Events::new());
        let mut record = Vec::new();
        encode_record(&header, &txn, None, &mut record);
        writer.append(header.zxid, &record).unwrap();
        if n == count / 2 {
            write_snapshot(&tree, &folder, Compression::Plain, &mut |_| ()).unwrap();
        }
    }
    writer.finish().unwrap();
    tree
}

#[test]
fn data_of_apache_is_imported_once_and_refused_when_apache_has_gone_on() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let tree = apache_data(data, 100);
    let log = data.join("version-2/log.1");
    let before = fs::read(&log).unwrap();
    let setting = format!("dataDir={}", data.display());
    let (status, said, _) = run(&["check", "--set", "clientPort=0", "--set", &setting]);
    assert!(
        said.contains("which a start imports once"),
        "{status:?} {said}"
    );
    for _ in 0..2 {
        let server = Server::start(data);
        let srvr = server.ask("srvr");
        assert!(
            srvr.contains(&format!("Node count: {}\n", tree.node_count())),
            "{srvr}"
        );
        assert!(srvr.contains("Zxid: 0x64\n"), "{srvr}");
        let (status, rest) = server.stop(Signal::TERM);
        assert_eq!(status, Some(0), "{rest}");
    }
    assert_eq!(fs::read(&log).unwrap(), before);
    // Apache's server has written another transaction.
    let other = tempfile::tempdir().unwrap();
    apache_data(other.path(), 101);
    fs::copy(other.path().join("version-2/log.1"), &log).unwrap();
    let (status, _, errors) = run(&["--set", "clientPort=0", "--set", &setting]);
    assert_eq!(status, Some(3), "{errors}");
    assert!(
        errors.contains("0x65") && errors.contains("away"),
        "{errors}"
    );
    let (_, said, _) = run(&["check", "--set", "clientPort=0", "--set", &setting]);
    assert!(said.contains("since it was imported"), "{said}");
    // One of the ways out: Apache's files away.
    fs::rename(data.join("version-2"), other.path().join("away")).unwrap();
    let server = Server::start(data);
    assert!(server.ask("srvr").contains("Zxid: 0x64\n"));
}

#[test]
fn a_server_says_where_it_listens_and_stops_in_order() {
    let directory = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::start(directory.path());
        assert_eq!(server.ask("ruok"), "imok");
        assert!(server.ask("srvr").contains("Mode: standalone"));
        let (status, rest) = server.stop(signal);
        assert_eq!(status, Some(0), "{rest}");
        assert!(rest.contains("stopped"), "{rest}");
    }
}

#[test]
fn without_a_file_data_lies_in_the_current_directory() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = ringkeeper();
    command.current_dir(directory.path());
    let server = Server::spawn(command);
    assert!(directory.path().join("data/ringkeeper").is_dir());
    assert!(server.address.ip().is_loopback());
    assert!(
        server.ask("mntr").contains("zk_znode_count"),
        "all words are answered"
    );
    assert_eq!(server.stop(Signal::TERM).0, Some(0));
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start(directory.path());
    let data = format!("dataDir={}", directory.path().display());
    let (status, _, errors) = run(&["--set", "clientPort=0", "--set", &data]);
    assert_eq!(status, Some(3), "{errors}");
    assert!(errors.contains("in use by another process"), "{errors}");
    assert_eq!(first.stop(Signal::TERM).0, Some(0));
}

#[test]
fn check_needs_no_more_than_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let data = format!("dataDir={}", directory.path().join("new").display());
    let (status, output, _) = run(&["check", "--set", "clientPort=0", "--set", &data]);
    assert_eq!(status, Some(0), "{output}");
    assert!(
        output.contains("will be created") && output.contains("ready to start"),
        "{output}"
    );
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn dev_runs_an_ensemble_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let port = ports_in_a_row(9);
    let mut process = ringkeeper()
        .args(["dev", "--servers", "3", "--log-level", "warn", "--dir"])
        .arg(dir.path())
        .arg("--port")
        .arg(port.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("Ctrl-C stops all") {
        assert!(output.read_line(&mut text).unwrap() > 0, "{text}");
    }
    assert!(text.contains("3 servers serving, server "), "{text}");
    let addresses = format!("127.0.0.1:{port},127.0.0.1:{}", port + 1);
    assert!(text.contains(&addresses), "{text}");
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    output.read_to_string(&mut text).unwrap();
    assert!(process.wait().unwrap().success(), "{text}");
    assert!(text.ends_with("stopped\n"), "{text}");
    for port in port..port + 9 {
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "{port}");
    }
}

/// The first of so many ports in a row that nobody listens on.
fn ports_in_a_row(count: u16) -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let mut candidates = (start..32_000).step_by(count.into());
    candidates
        .find(|first| (*first..first + count).all(free))
        .unwrap()
}
