//! The processes of an ensemble.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::{Launch, Server, four_letter_word, free_port};
use ringkeeper_proto::Zxid;
use rustix::process::{Pid, Signal, kill_process};

use crate::namespaces::Hosts;
use crate::network::Network;
use crate::{APACHE_CLASSPATH, APACHE_LOG};

/// How long a member may take to answer when it is asked for its state.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Where Debian keeps what its `zookeeper.jar` names.
const DEBIAN_JAR: &str = "/usr/share/java/zookeeper.jar";

/// The backend of slf4j that lies beside it.
const DEBIAN_LOG_JAR: &str = "/usr/share/java/slf4j-simple.jar";

/// Apache's server, of the version that the environment names.
///
/// # Errors
/// When neither the environment nor Debian's package has one.
pub fn apache() -> Result<Launch> {
    match env::var(APACHE_CLASSPATH) {
        Ok(named) => {
            let classpath = match Path::new(&named).is_file() && !named.ends_with(".jar") {
                true => fs::read_to_string(&named).with_context(|| format!("read {named}"))?,
                false => named,
            };
            logging(&with_log(classpath.trim()))
        }
        Err(_) => debian(),
    }
}

/// Apache's server as Debian packages it.
///
/// # Errors
/// When it is not installed.
pub fn debian() -> Result<Launch> {
    // Fails with a remedy when it is not there.
    Launch::apache(None, "256m")?;
    match env::var(APACHE_LOG).is_err() && Path::new(DEBIAN_LOG_JAR).exists() {
        true => logging(&format!("{DEBIAN_LOG_JAR}:{DEBIAN_JAR}")),
        false => logging(&with_log(DEBIAN_JAR)),
    }
}

/// slf4j takes the first backend that it finds.
fn with_log(classpath: &str) -> String {
    match env::var(APACHE_LOG) {
        Ok(jar) => format!("{jar}:{classpath}"),
        Err(_) => classpath.to_owned(),
    }
}

/// What a backend that is there shall log; log4j says only errors otherwise.
fn logging(classpath: &str) -> Result<Launch> {
    let mut launch = Launch::apache(Some(classpath), "256m")?;
    launch.set_property("org.apache.logging.log4j.level", "INFO");
    Ok(launch)
}

/// What an ensemble is made from.
#[derive(Debug)]
pub struct Plan {
    /// How each voter is started; they are numbered from 1.
    pub voters: Vec<Launch>,
    /// The same for observers, numbered after the voters.
    pub observers: Vec<Launch>,
    /// Lines for every `zoo.cfg`, `key=value`.
    pub settings: Vec<String>,
    /// Numbers of members that somebody else plays: they get addresses, but no process.
    pub absent: BTreeSet<u64>,
    /// Members reach each other through a [`Network`] that can fail.
    pub proxied: bool,
    /// Each member has an address of loopback's for itself, member `n` 127.0.0.`n`, as each has a machine in earnest:
    /// `observerMasterPort` is one port of all.
    pub own_addresses: bool,
    /// Each member is a host of its own, with so many networks among them ([`Hosts`]).
    pub networks: Option<u8>,
}

impl Plan {
    /// Voters started alike.
    pub fn alike(launch: &Launch, voters: usize) -> Self {
        Self {
            voters: vec![launch.clone(); voters],
            observers: Vec::new(),
            settings: Vec::new(),
            absent: BTreeSet::new(),
            proxied: false,
            own_addresses: false,
            networks: None,
        }
    }
}

/// What a member says that it is (`srvr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows.
    Follower,
    /// It observes.
    Observer,
}

/// The ports of a member, beside its client port.
#[derive(Clone, Copy, Debug)]
pub struct PeerPorts {
    /// For learners.
    pub quorum: u16,
    /// For elections.
    pub election: u16,
    /// Whether the member votes.
    pub votes: bool,
}

/// A running ensemble. Dropping it kills every process.
#[derive(Debug)]
pub struct Ensemble {
    /// Member `n` is at `n - 1`; `None` where somebody else plays it.
    members: Vec<Option<Server>>,
    ports: Vec<PeerPorts>,
    network: Option<Network>,
    hosts: Option<Hosts>,
}

impl Ensemble {
    /// Writes the directories below `dir`; starts nothing.
    ///
    /// # Errors
    /// When files cannot be written or no ports are free.
    pub fn new(plan: &Plan, dir: &Path) -> Result<Self> {
        let launches: Vec<_> = plan.voters.iter().chain(&plan.observers).collect();
        let (ports, held) = choose_ports(launches.len(), plan.voters.len())?;
        let network = plan.proxied.then(|| Network::new(&ports)).transpose()?;
        let count = launches.len() as u64;
        let hosts = plan.networks.map(|networks| Hosts::new(count, networks));
        let hosts = hosts.transpose()?;
        let mut members = Vec::new();
        for (at, launch) in launches.into_iter().enumerate() {
            let id = at as u64 + 1;
            if plan.absent.contains(&id) {
                members.push(None);
                continue;
            }
            let mut launch = launch.clone();
            launch.set("initLimit", "10");
            launch.set("syncLimit", "5");
            // A shorter tick than usual: what waits for limits waits for less.
            launch.set("tickTime", "500");
            if at >= plan.voters.len() {
                launch.set("peerType", "observer");
            }
            if let Some(hosts) = &hosts {
                launch.run_at(hosts.client_address(id), hosts.at(id));
                let has_several = (hosts.networks() > 1).to_string();
                if launch.is_apache() {
                    launch.set("zookeeper.multiAddress.enabled", &has_several);
                } else {
                    launch.set("multiAddress.enabled", &has_several);
                    // By their addresses these are machines, and each would take all CPUs for itself.
                    launch.set("ringkeeper.cpus", "none");
                }
            }
            for line in &plan.settings {
                launch.set_line(line)?;
            }
            for (at, ports) in ports.iter().enumerate() {
                let to = at as u64 + 1;
                let proxied = network.as_ref().and_then(|it| it.ports(id, to));
                let own = if plan.own_addresses { to } else { 1 };
                let own = u8::try_from(own).context("127.0.0.n")?;
                let at = hosts.as_ref().map_or_else(
                    || vec![Ipv4Addr::new(127, 0, 0, own).into()],
                    |hosts| hosts.peer_addresses(to),
                );
                let line = server_line(&at, proxied.unwrap_or(*ports));
                launch.set(&format!("server.{to}"), &line);
            }
            let dir = dir.join(format!("member-{id}"));
            let server = Server::new(launch, &dir)?;
            fs::write(dir.join("data").join("myid"), format!("{id}\n"))?;
            members.push(Some(server));
        }
        drop(held);
        Ok(Self {
            members,
            ports,
            network,
            hosts,
        })
    }

    /// Starts every member, and waits until a leader and all others serve.
    ///
    /// # Errors
    /// When one ends, or they do not within `patience`.
    pub fn start(&mut self, patience: Duration) -> Result<()> {
        for id in self.ids() {
            self.spawn(id)?;
        }
        self.wait_until_serving(patience)
    }

    /// The numbers of the members that have a process or can have one.
    pub fn ids(&self) -> Vec<u64> {
        let members = self.members.iter().enumerate();
        members
            .filter(|(_, member)| member.is_some())
            .map(|(at, _)| at as u64 + 1)
            .collect()
    }

    /// Starts one member, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self, id: u64) -> Result<()> {
        self.member_mut(id)?.spawn()
    }

    /// kill -9.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        self.member_mut(id)?.kill()
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn terminate(&mut self, id: u64, patience: Duration) -> Result<()> {
        self.member_mut(id)?.terminate(patience)?;
        Ok(())
    }

    /// SIGSTOP: the process is there and does nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, id: u64) -> Result<()> {
        self.signal(id, Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, id: u64) -> Result<()> {
        self.signal(id, Signal::CONT)
    }

    /// Waits until every started member serves and one of them leads.
    ///
    /// # Errors
    /// When one has ended, or they do not within `patience`.
    pub fn wait_until_serving(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let ids = self.running();
            let roles: Vec<_> = ids.iter().map(|id| self.role(*id)).collect();
            if roles.iter().all(Option::is_some) && roles.contains(&Some(Role::Leader)) {
                return Ok(());
            }
            for id in ids {
                let member = self.member_mut(id)?;
                if let Some(status) = member.ended()? {
                    bail!("member {id} ended ({status}):\n{}", member.log_tail(30));
                }
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = self
                    .members
                    .iter()
                    .flatten()
                    .map(|it| it.log_tail(10))
                    .collect();
                bail!(
                    "not serving after {patience:?}: {roles:?}\n{}",
                    logs.join("\n--\n")
                );
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// What a member is, if it serves.
    pub fn role(&self, id: u64) -> Option<Role> {
        let text = four_letter_word(self.member(id).ok()?.address(), "srvr").ok()?;
        let mode = text.lines().find_map(|line| line.strip_prefix("Mode: "))?;
        match mode.trim() {
            "leader" => Some(Role::Leader),
            "follower" => Some(Role::Follower),
            "observer" => Some(Role::Observer),
            _ => None,
        }
    }

    /// The last transaction that a member has committed, if it answers.
    pub fn committed(&self, id: u64) -> Option<Zxid> {
        let text = four_letter_word(self.member(id).ok()?.address(), "srvr").ok()?;
        let zxid = text
            .lines()
            .find_map(|line| line.strip_prefix("Zxid: 0x"))?;
        u64::from_str_radix(zxid.trim(), 16).ok().map(Zxid)
    }

    /// A metric of a member (`mntr`), without its prefix.
    ///
    /// # Errors
    /// When the member does not answer, or has no such metric.
    pub fn metric(&self, id: u64, name: &str) -> Result<u64> {
        let text = four_letter_word(self.address(id)?, "mntr")?;
        let value = text.lines().find_map(|line| {
            let (key, value) = line.strip_prefix("zk_")?.split_once('\t')?;
            (key == name).then(|| value.trim().parse())
        });
        Ok(value.with_context(|| format!("member {id} has no {name}"))??)
    }

    /// The member that leads.
    pub fn leader(&self) -> Option<u64> {
        let mut ids = self.running().into_iter();
        ids.find(|id| self.role(*id) == Some(Role::Leader))
    }

    /// Where clients of a member connect.
    ///
    /// # Errors
    /// When it has no process.
    pub fn address(&self, id: u64) -> Result<SocketAddr> {
        Ok(self.member(id)?.address())
    }

    /// The peer ports of all members, in order.
    pub fn ports(&self) -> &[PeerPorts] {
        &self.ports
    }

    /// The network among the members, where there is one that can fail.
    pub const fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The hosts of the members, where each has one of its own.
    pub const fn hosts(&self) -> Option<&Hosts> {
        self.hosts.as_ref()
    }

    /// Changes how a member is started from now on.
    ///
    /// # Errors
    /// When its `zoo.cfg` cannot be written.
    pub fn relaunch(&mut self, id: u64, change: impl FnOnce(&mut Launch)) -> Result<()> {
        self.member_mut(id)?.relaunch(change)
    }

    /// Takes all data of a member that does not run.
    ///
    /// # Errors
    /// When it runs, or files cannot be removed.
    pub fn wipe(&mut self, id: u64) -> Result<()> {
        let member = self.member(id)?;
        ensure!(member.pid().is_none(), "member {id} runs");
        let data = member.dir().join("data");
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        fs::create_dir_all(&data)?;
        fs::write(data.join("myid"), format!("{id}\n"))?;
        Ok(())
    }

    /// Whether a member is one of Apache's servers.
    pub fn is_apache(&self, id: u64) -> bool {
        self.member(id).is_ok_and(|it| it.launch().is_apache())
    }

    /// Whether a member votes, by its place in the plan.
    pub fn votes(&self, id: u64) -> bool {
        let at = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        let ports = at.and_then(|at| self.ports.get(at));
        ports.is_some_and(|ports| ports.votes)
    }

    /// A member's process and directory.
    ///
    /// # Errors
    /// When somebody else plays it.
    pub fn member(&self, id: u64) -> Result<&Server> {
        let member = usize::try_from(id)
            .ok()
            .and_then(|id| self.members.get(id.checked_sub(1)?));
        member
            .and_then(Option::as_ref)
            .with_context(|| format!("there is no member {id}"))
    }

    fn member_mut(&mut self, id: u64) -> Result<&mut Server> {
        let member = usize::try_from(id)
            .ok()
            .and_then(|id| self.members.get_mut(id.checked_sub(1)?));
        member
            .and_then(Option::as_mut)
            .with_context(|| format!("there is no member {id}"))
    }

    fn running(&self) -> Vec<u64> {
        let mut ids = self.ids();
        ids.retain(|id| self.member(*id).is_ok_and(|member| member.pid().is_some()));
        ids
    }

    fn signal(&self, id: u64, signal: Signal) -> Result<()> {
        let pid = self
            .member(id)?
            .pid()
            .and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("member {id} does not run"))?;
        kill_process(pid, signal).with_context(|| format!("signal member {id}"))
    }
}

/// The value of a `server.N` line.
fn server_line(at: &[IpAddr], ports: PeerPorts) -> String {
    let role = if ports.votes { "" } else { ":observer" };
    let (quorum, election) = (ports.quorum, ports.election);
    let line: Vec<_> = at
        .iter()
        .map(|host| format!("{host}:{quorum}:{election}{role}"))
        .collect();
    line.join("|")
}

/// Two ports for each of `count` members. The listeners hold them until the client ports are chosen.
fn choose_ports(count: usize, voters: usize) -> Result<(Vec<PeerPorts>, Vec<TcpListener>)> {
    let mut held = Vec::new();
    let mut hold = || -> Result<u16> {
        loop {
            let port = free_port()?;
            // Somebody may have been faster.
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                held.push(listener);
                return Ok(port);
            }
        }
    };
    let mut ports = Vec::new();
    for at in 0..count {
        ports.push(PeerPorts {
            quorum: hold()?,
            election: hold()?,
            votes: at < voters,
        });
    }
    Ok((ports, held))
}
