//! `ringkeeper dev`: a whole ensemble on this machine to try things out, each member a process of its own.
//!
//! Members are this same program, `serve`d from files that are written below one directory. What they log
//! comes out here, each line behind its server's number. One that ends is not started again, so that
//! whoever kills one sees what the others do; when all have ended, so does this.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::fatal::Reason;

/// More than anybody tries out on one machine.
pub(crate) const SERVERS_MAX: u16 = 9;

/// How long members may take to finish what is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// How often members are asked whether they serve, until all do.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Members.
    pub(crate) servers: u16,
    /// The client port of the first; the others follow, then the ports for peers.
    pub(crate) port: u16,
    /// Where every member has a directory.
    pub(crate) dir: PathBuf,
    /// Further arguments for each member.
    pub(crate) arguments: Vec<String>,
}

/// Runs the ensemble until SIGINT or SIGTERM.
///
/// # Errors
/// When files cannot be written, are those of another ensemble, or every member has ended by itself.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    // Taken before the first process and thread, so that none is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("take signals")?;
    plan.check()?;
    let configs = (1..=plan.servers).map(|id| plan.write(id));
    let configs = configs
        .collect::<Result<Vec<_>>>()
        .context(Reason::Configuration)?;
    let (events, wait_events) = mpsc::channel();
    let mut members = Members::default();
    for (id, config) in (1..).zip(&configs) {
        members.start(id, config, &plan.arguments, events.clone())?;
    }
    thread::spawn(move || {
        for _ in signals.forever() {
            // Nobody listens any more when it is over.
            _ = events.send(Event::Stop);
        }
    });
    let mut announced = false;
    loop {
        match wait_events.recv_timeout(LOOK_EVERY) {
            Ok(Event::Stop) => {
                say("stopping");
                return members.stop();
            }
            Ok(Event::Ended { id }) => {
                let status = members.ended(id)?;
                say(&format!("server {id} has ended ({status})"));
                ensure!(!members.0.is_empty(), "every server has ended");
            }
            Err(RecvTimeoutError::Timeout) if !announced => announced = plan.announce(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("nobody watches the servers any more"),
        }
    }
}

impl Plan {
    fn check(&self) -> Result<()> {
        let last = u32::from(self.port) + 3 * u32::from(self.servers) - 1;
        ensure!(
            last <= u32::from(u16::MAX),
            "--port {}: with {} servers ports up to {last} are used; take a smaller one",
            self.port,
            self.servers
        );
        Ok(())
    }

    fn client_port(&self, id: u16) -> u16 {
        self.port + id - 1
    }

    fn client_address(&self, id: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.client_port(id)))
    }

    fn member_dir(&self, id: u16) -> PathBuf {
        self.dir.join(format!("server-{id}"))
    }

    /// Writes the files of a member; returns its configuration.
    fn write(&self, id: u16) -> Result<PathBuf> {
        let dir = self.member_dir(id);
        let data = dir.join("data");
        fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
        let data = data.canonicalize()?;
        let config = dir.join("zoo.cfg");
        let text = self.config(id, &data);
        match fs::read_to_string(&config) {
            Ok(old) if old == text => {}
            Ok(_) => bail!(
                "{} is of another ensemble, or was changed: take another --dir, or remove this one",
                config.display()
            ),
            Err(_) => {
                fs::write(data.join("myid"), format!("{id}\n"))?;
                fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
            }
        }
        Ok(config)
    }

    fn config(&self, id: u16, data: &Path) -> String {
        // Lean, since several servers share a machine with whatever is being tried out.
        let mut text = format!(
            "dataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\ntickTime=2000\ninitLimit=10\n\
             syncLimit=5\n4lw.commands.whitelist=*\npreAllocSize=16384\nringkeeper.shards=1\n",
            data.display(),
            self.client_port(id)
        );
        let mut port = self.client_port(self.servers);
        for id in 1..=self.servers {
            _ = writeln!(text, "server.{id}=127.0.0.1:{}:{}", port + 1, port + 2);
            port += 2;
        }
        text
    }

    /// Says how to connect, once every member serves.
    fn announce(&self) -> bool {
        let modes = (1..=self.servers).map(|id| mode(self.client_address(id)));
        let Some(modes) = modes.collect::<Option<Vec<_>>>() else {
            return false;
        };
        let addresses = (1..=self.servers).map(|id| self.client_address(id).to_string());
        let addresses = addresses.collect::<Vec<_>>().join(",");
        let leader = modes.iter().position(|mode| mode == "leader");
        let leader = leader.map_or_else(String::new, |at| format!(", server {} leads", at + 1));
        say(&format!(
            "{} serving{leader}; data in {}\n\n    zkCli.sh -server {addresses}\n    echo srvr | nc 127.0.0.1 {}\n\nCtrl-C stops all",
            match self.servers {
                1 => "1 server".to_owned(),
                servers => format!("{servers} servers"),
            },
            self.dir.display(),
            self.port
        ));
        true
    }
}

/// What a server says that it is, if it serves.
fn mode(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, LOOK_EVERY).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"srvr").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let mode = text.lines().find_map(|line| line.strip_prefix("Mode: "))?;
    Some(mode.to_owned())
}

enum Event {
    /// A signal has come.
    Stop,
    /// A member's output has ended, and so has the member.
    Ended { id: u16 },
}

/// The members' processes.
#[derive(Default)]
struct Members(Vec<(u16, Child)>);

impl Members {
    fn start(
        &mut self,
        id: u16,
        config: &Path,
        arguments: &[String],
        events: Sender<Event>,
    ) -> Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let mut child = Command::new(program)
            .arg("serve")
            .arg(config)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start server {id}"))?;
        let log = child.stderr.take().context("a server without a log")?;
        self.0.push((id, child));
        thread::spawn(move || {
            for line in BufReader::new(log).split(b'\n') {
                let Ok(line) = line else { break };
                say(&format!("[{id}] {}", String::from_utf8_lossy(&line)));
            }
            // Nobody listens any more when it is over.
            _ = events.send(Event::Ended { id });
        });
        Ok(())
    }

    /// The status of a member that has ended.
    fn ended(&mut self, id: u16) -> Result<String> {
        let at = self.0.iter().position(|(known, _)| *known == id);
        let (_, mut child) = self.0.remove(at.context("a server that is not there")?);
        Ok(child.wait()?.to_string())
    }

    /// Stops every member, and waits.
    fn stop(&mut self) -> Result<()> {
        for (_, child) in &self.0 {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            // From a terminal all have the signal already, and may be gone.
            _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut late = Vec::new();
        for (id, child) in &mut self.0 {
            while child.try_wait()?.is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
            if child.try_wait()?.is_none() {
                late.push(id.to_string());
            }
        }
        // Those that are late are killed when this is dropped.
        ensure!(
            late.is_empty(),
            "killed, since they did not stop within {STOP_PATIENCE:?}: server {}",
            late.join(", server ")
        );
        say("stopped");
        Ok(())
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            // Nobody is left to hear why not.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path, port: u16) -> Plan {
        Plan {
            servers: 3,
            port,
            dir: dir.to_owned(),
            arguments: Vec::new(),
        }
    }

    #[test]
    fn members_get_ports_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let first = plan(dir.path(), 2181);
        let text = first.config(2, Path::new("/d"));
        assert!(text.contains("clientPort=2182\n"), "{text}");
        assert!(text.contains("server.1=127.0.0.1:2184:2185\n"), "{text}");
        assert!(text.contains("server.3=127.0.0.1:2188:2189\n"), "{text}");
        assert!(first.check().is_ok());
        assert!(plan(dir.path(), 65_528).check().is_err());
        assert!(plan(dir.path(), 65_527).check().is_ok());
    }

    #[test]
    fn files_of_another_ensemble_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = plan(dir.path(), 2181).write(1).unwrap();
        assert_eq!(plan(dir.path(), 2181).write(1).unwrap(), config);
        let before = fs::read_to_string(&config).unwrap();
        let error = plan(dir.path(), 3181).write(1).unwrap_err().to_string();
        assert!(error.contains("another ensemble"), "{error}");
        assert_eq!(fs::read_to_string(&config).unwrap(), before);
    }
}
