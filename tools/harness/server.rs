//! A running server: its directory, its process, and when it serves.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::launch::Launch;

/// A server with its directory (`zoo.cfg`, `data`, `server.log`); at most one process runs in it.
#[derive(Debug)]
pub struct Server {
    launch: Launch,
    dir: PathBuf,
    config: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Writes the directory; starts nothing yet.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(launch: Launch, dir: &Path) -> Result<Self> {
        let data = dir.join("data");
        fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
        let dir = dir.canonicalize()?;
        let port = free_port()?;
        let config = dir.join("zoo.cfg");
        fs::write(&config, launch.config(&dir.join("data"), port))
            .with_context(|| format!("write {}", config.display()))?;
        Ok(Self {
            launch,
            dir,
            config,
            port,
            child: None,
        })
    }

    /// Changes how it is started from now on: another program, or other settings.
    ///
    /// # Errors
    /// When the `zoo.cfg` cannot be written.
    pub fn relaunch(&mut self, change: impl FnOnce(&mut Launch)) -> Result<()> {
        change(&mut self.launch);
        let text = self.launch.config(&self.dir.join("data"), self.port);
        fs::write(&self.config, text).with_context(|| format!("write {}", self.config.display()))
    }

    /// Starts the process and does not wait for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        let log = self.log_file()?;
        let mut command = self.launch.command(&self.config);
        command
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(&self.dir);
        let child = command
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts the process and waits until it says (`srvr`) that it serves; returns how long it took.
    ///
    /// # Errors
    /// When it ends, or does not serve within `patience`.
    pub fn start(&mut self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        self.spawn()?;
        self.wait_until_serving(patience)?;
        Ok(began.elapsed())
    }

    /// Waits for a process that was spawned before.
    ///
    /// # Errors
    /// When it ends, or does not serve within `patience`.
    pub fn wait_until_serving(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                bail!(
                    "the server ended while starting ({status}):\n{}",
                    self.log_tail(20)
                );
            }
            // Apache never answers what it was asked in the moment when it began to listen.
            let answer = ask(self.address(), "srvr", Duration::from_millis(500));
            if answer.is_ok_and(|text| text.contains("Mode:")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "the server does not serve after {patience:?}:\n{}",
                    self.log_tail(20)
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// kill -9, and waits for the end.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end; `None` when it does not end within `patience` and is killed.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn terminate(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        child.wait()?;
        Ok(None)
    }

    /// The status of a process that has ended by itself.
    ///
    /// # Errors
    /// When the process cannot be asked for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// The process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.launch.host(), self.port))
    }

    /// The directory with everything of this server.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How it is started.
    pub const fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The last lines of what it printed.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(self.dir.join("server.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        let start = all.len().saturating_sub(lines);
        all.get(start..).unwrap_or_default().join("\n")
    }

    fn log_file(&self) -> Result<File> {
        let path = self.dir.join("server.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A tool that fails must not leave servers behind; there is nobody left to tell.
        let _ = self.kill();
    }
}

/// A port of loopback that nobody listens on right now, outside the range that outgoing
/// connections take theirs from, so that a restarted server finds it free. Each call gives another.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    // Programs that run at the same time begin at different ones.
    let next = NEXT.get_or_init(|| {
        let nanos = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.subsec_nanos());
        let seed = (nanos / 1_000 + std::process::id()) % u32::from(COUNT);
        AtomicU16::new(u16::try_from(seed).unwrap_or(0))
    });
    (0..COUNT)
        .map(|_| FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT)
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .context("no free port on loopback")
}

/// The answer to a four-letter word.
///
/// # Errors
/// When the server cannot be reached or does not answer in time.
pub fn four_letter_word(address: SocketAddr, word: &str) -> Result<String> {
    ask(address, word, Duration::from_secs(10))
}

fn ask(address: SocketAddr, word: &str, patience: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(word.as_bytes())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Apache may reset the connection after its answer.
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => {}
        other => {
            other?;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
