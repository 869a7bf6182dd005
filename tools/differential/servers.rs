//! The servers under comparison: each a process of ours on loopback with its own temporary directory.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::free_port;
use tempfile::TempDir;

/// Debian's `zookeeper.jar` names the jars it needs in its manifest.
pub(crate) const DEBIAN_CLASSPATH: &str =
    "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar";
/// The tick of every server, in milliseconds.
pub(crate) const TICK_MS: i32 = 100;
/// The shortest session, in milliseconds.
pub(crate) const SESSION_MS_MIN: i32 = 400;
/// The longest session, in milliseconds.
pub(crate) const SESSION_MS_MAX: i32 = 40_000;
/// `jute.maxbuffer`.
pub(crate) const FRAME_BYTES_MAX: usize = 0xf_ffff;
/// The password of the user `super`.
pub(crate) const SUPER_PASSWORD: &str = "secret";

const CONFIG: &str = "zoo.cfg";
const OUTPUT: &str = "output";
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Clone, Debug)]
pub(crate) enum Product {
    /// `ZooKeeperServerMain` from this class path.
    Apache { classpath: String },
    /// `ringkeeper serve`.
    Ringkeeper { binary: PathBuf },
}

/// The settings of a server that some answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Settings {
    /// TTL nodes, hard quotas; reconfig switched off.
    Full,
    /// No TTL nodes, quotas only logged; reconfig switched on.
    Sparse,
    /// As full, and containers and TTL nodes are looked after all the time.
    Sweeping,
}

impl Settings {
    pub(crate) const ALL: [Self; 3] = [Self::Sparse, Self::Sweeping, Self::LAST];
    /// Those of most scripts.
    pub(crate) const LAST: Self = Self::Full;

    const fn lines(self) -> &'static str {
        match self {
            // Ringkeeper's clients are spread over its shards, in sparse they are all on one.
            Self::Full | Self::Sweeping => {
                "extendedTypesEnabled=true\nenforceQuota=true\nringkeeper.clientsBesideCore=0\n"
            }
            Self::Sparse => {
                "extendedTypesEnabled=false\nenforceQuota=false\nreconfigEnabled=true\n"
            }
        }
    }

    /// How often containers and TTL nodes are looked after, in milliseconds. Elsewhere than in the scripts
    /// about just that, the servers must not delete at a moment that no script knows.
    const fn check_interval_ms(self) -> u64 {
        match self {
            Self::Full | Self::Sparse => 1_000_000_000,
            // Long enough for a deletion to be on disk before the next check would ask for it again, which
            // would use another zxid, on either server.
            Self::Sweeping => 400,
        }
    }
}

/// A release, as `srvr` tells it.
pub(crate) type Version = (u32, u32, u32);

/// A running server; ends with the value.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    product: Product,
    settings: Settings,
    address: SocketAddr,
    version: Version,
    directory: TempDir,
}

impl Server {
    /// Starts `product` and waits until it serves.
    pub(crate) fn start(product: &Product, settings: Settings) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("ringkeeper-differential-")
            .tempdir()?;
        let port = free_port()?;
        fs::write(
            directory.path().join(CONFIG),
            zoo_cfg(product, settings, port, directory.path()),
        )?;
        let mut server = Self {
            process: spawn(product, settings, directory.path())?,
            product: product.clone(),
            settings,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            version: (0, 0, 0),
            directory,
        };
        server.version = server.wait_until_serving()?;
        Ok(server)
    }

    /// Kills it and starts it on what it has kept.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.product, self.settings, self.directory.path())?;
        self.wait_until_serving()?;
        Ok(())
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its release; a Ringkeeper that tells none is taken for the release whose behaviour it has.
    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    pub(crate) const fn is_ringkeeper(&self) -> bool {
        matches!(self.product, Product::Ringkeeper { .. })
    }

    /// Whether its process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The end of what it printed.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(self.directory.path().join(OUTPUT)).unwrap_or_default();
        let start = text.len().saturating_sub(4_000);
        String::from_utf8_lossy(&text[start..]).into_owned()
    }

    fn wait_until_serving(&mut self) -> Result<Version> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!(
                    "{:?} ended with {status}:\n{}",
                    self.product,
                    self.last_words()
                );
            }
            if let Some(version) = ask_version(self.address) {
                return Ok(version);
            }
            ensure!(
                start.elapsed() < START_LIMIT,
                "{:?} does not serve:\n{}",
                self.product,
                self.last_words()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.kill();
        let start = Instant::now();
        while self.is_alive() && start.elapsed() < STOP_LIMIT {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn spawn(product: &Product, settings: Settings, directory: &Path) -> Result<Child> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join(OUTPUT))?;
    command(product, settings, &directory.join(CONFIG))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("start {product:?}"))
}

fn command(product: &Product, settings: Settings, config: &Path) -> Command {
    match product {
        Product::Apache { classpath } => {
            let mut command = Command::new("java");
            command
                .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
                // These two are system properties without the prefix that zoo.cfg's keys get.
                .arg(format!(
                    "-Dznode.container.checkIntervalMs={}",
                    settings.check_interval_ms()
                ))
                .arg(format!("-Djute.maxbuffer={FRAME_BYTES_MAX}"))
                .args(["-cp", classpath])
                .arg("org.apache.zookeeper.server.ZooKeeperServerMain")
                .arg(config);
            command
        }
        Product::Ringkeeper { binary } => {
            let mut command = Command::new(binary);
            command.arg("serve").arg(config);
            command
        }
    }
}

fn zoo_cfg(product: &Product, settings: Settings, port: u16, directory: &Path) -> String {
    let mut text = String::new();
    let data = directory.join("data");
    let _infallible = write!(
        text,
        "tickTime={TICK_MS}\n\
         minSessionTimeout={SESSION_MS_MIN}\n\
         maxSessionTimeout={SESSION_MS_MAX}\n\
         maxClientCnxns=0\n\
         dataDir={}\n\
         clientPort={port}\n\
         clientPortAddress=127.0.0.1\n\
         admin.enableServer=false\n\
         4lw.commands.whitelist=*\n\
         forceSync=no\n\
         DigestAuthenticationProvider.superDigest={}\n\
         {}",
        data.display(),
        crate::identity::digest_id("super", SUPER_PASSWORD),
        settings.lines(),
    );
    if matches!(product, Product::Ringkeeper { .. }) {
        let _infallible = write!(
            text,
            "znode.container.checkIntervalMs={}\njute.maxbuffer={FRAME_BYTES_MAX}\n",
            settings.check_interval_ms()
        );
    }
    text
}

/// The release that `srvr` tells, once the server serves.
fn ask_version(address: SocketAddr) -> Option<Version> {
    let text = four_letters(address, "srvr")?;
    let (_, rest) = text.split_once("ersion: ")?;
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    text.contains("Mode: standalone").then_some(())?;
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// What the server answers to a four-letter word; `None` when it does not.
pub(crate) fn four_letters(address: SocketAddr, word: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(word.as_bytes()).ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
