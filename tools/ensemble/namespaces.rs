//! Hosts on one machine: a network namespace for each member, with an interface in each of several networks.
//!
//! ```text
//!   this process ---- net 0: 10.77.0.254      clients
//!                       |            |
//!                   member 1     member 2     10.77.NETWORK.MEMBER
//!                       |            |
//!                     net 1, net 2, ...       the members among themselves
//! ```
//!
//! A network is a bridge. What is cut here gets lost without a word: no side sees the end of a connection, and the kernel's
//! own TCP deals with it, as between machines.
//!
//! All of it, bridges and namespaces, is in a network and a mount namespace of this process ([`enter`]), so the
//! machine's own network is not touched, and nothing is left when the process and its servers have ended, however they do.
//! It takes `unshare`, `nsenter` and `mount` (util-linux), `ip` and `tc` (iproute2), and root or the right to
//! make user namespaces.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::{env, iter};

use anyhow::{Context, Result, ensure};

/// Tells this program that it is where it wants to be.
const MARK: &str = "RINGKEEPER_ENSEMBLE_IS_IN_NAMESPACE";

/// What it takes is tried before it is relied on.
const TRIAL: &str = "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up && ip netns add trial \
    && ip link add trial0 type veth peer name trial1 netns trial && ip link add trial2 type bridge \
    && ip link set trial0 master trial2 && nsenter --net=/run/netns/trial -- true";

/// An interface that nobody has: what is sent to it gets lost.
const NOWHERE: &str = "02:ff:ff:ff:ff:ff";

/// Where this process is, in the clients' network.
const OWN: u64 = 254;

/// The clients' network; those of the members follow.
const CLIENTS: u8 = 0;

/// There are no namespaces to be had here.
#[derive(Debug)]
pub struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "network namespaces cannot be made here: {}. They take root, or unprivileged user namespaces, and the \
             programs of iproute2 and util-linux (ip, tc, unshare, nsenter)",
            self.0.trim()
        )
    }
}

impl std::error::Error for Unavailable {}

/// Begins this program anew, in a network and a mount namespace of its own, if it is not there yet; so it is called
/// before anything else is done.
///
/// # Errors
/// [`Unavailable`].
pub fn enter() -> Result<(), Unavailable> {
    if env::var_os(MARK).is_some() {
        let prepared = shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up");
        return prepared.map_err(|error| Unavailable(error.to_string()));
    }
    let own = ["--net", "--mount", "--propagation", "private"];
    let mut reason = String::new();
    for rights in [None, Some("--map-root-user")] {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(own).args(rights).arg("--");
            command
        };
        match unshare().args(["sh", "-c", TRIAL]).output() {
            Ok(output) if output.status.success() => {
                let program = env::current_exe().map_err(|error| Unavailable(error.to_string()))?;
                let mut command = unshare();
                command.arg(program).args(env::args_os().skip(1));
                // Returns only when it fails.
                reason = command.env(MARK, "yes").exec().to_string();
            }
            Ok(output) => reason = String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => reason = format!("run unshare: {error}"),
        }
    }
    Err(Unavailable(reason))
}

/// The hosts of members, numbered from 1, and their networks.
#[derive(Debug)]
pub struct Hosts {
    count: u64,
    /// Networks among the members.
    networks: u8,
    /// Ways (from, to) on which everything gets lost.
    held: Mutex<BTreeSet<(u64, u64)>>,
}

impl Hosts {
    /// `count` hosts, with so many networks among them.
    ///
    /// # Errors
    /// When they cannot be made; before [`enter`] has been called they are refused.
    pub fn new(count: u64, networks: u8) -> Result<Self> {
        ensure!(
            env::var_os(MARK).is_some(),
            "hosts are made in a namespace of their own only"
        );
        ensure!(
            (1..=100).contains(&count) && (1..=8).contains(&networks),
            "{count} hosts with {networks} networks"
        );
        let hosts = Self {
            count,
            networks,
            held: Mutex::default(),
        };
        for network in hosts.all() {
            ip(&format!("link add br{network} type bridge"))?;
            ip(&format!("link set br{network} up"))?;
        }
        ip(&format!(
            "address add {}/24 dev br{CLIENTS}",
            address(CLIENTS, OWN)
        ))?;
        (1..=count).try_for_each(|id| hosts.build(id))?;
        Ok(hosts)
    }

    /// Where a member serves clients.
    pub fn client_address(&self, id: u64) -> IpAddr {
        address(CLIENTS, id)
    }

    /// Where the others find it, one address for each network.
    pub fn peer_addresses(&self, id: u64) -> Vec<IpAddr> {
        self.peer_networks()
            .map(|network| address(network, id))
            .collect()
    }

    /// The words that run a command at a host.
    pub fn at(&self, id: u64) -> Vec<String> {
        ["nsenter", &format!("--net=/run/netns/m{id}"), "--"]
            .map(str::to_owned)
            .into()
    }

    /// What member `from` sends to member `to` gets lost from now on, in all networks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold(&self, from: u64, to: u64) -> Result<()> {
        self.held_ways().insert((from, to));
        self.apply(from, to)
    }

    /// What gets lost only because of [`Self::hold`] arrives again; so for throttled hosts and cut networks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        let held: Vec<_> = std::mem::take(&mut *self.held_ways()).into_iter().collect();
        for (from, to) in held {
            for network in self.peer_networks() {
                let to = address(network, to);
                in_host(from, &format!("neigh del {to} dev net{network}"))?;
            }
        }
        for network in self.peer_networks() {
            self.restore(network)?;
            for id in 1..=self.count {
                let device = format!("dev net{network} root");
                // Fails when there is nothing to take away.
                _ = run("tc", &format!("-netns m{id} qdisc del {device}"));
            }
        }
        Ok(())
    }

    /// The host's cables are pulled: it goes on, alone, and its clients too hear nothing of it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unplug(&self, id: u64) -> Result<()> {
        self.set_ports(id, "down")
    }

    /// They are plugged in again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(&self, id: u64) -> Result<()> {
        self.set_ports(id, "up")
    }

    /// An unplugged host on which nothing runs loses power: of its connections nobody knows but their other ends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tear_down(&self, id: u64) -> Result<()> {
        ip(&format!("netns del m{id}"))?;
        // The kernel takes its time, and the names are needed again.
        for network in self.all() {
            _ = ip(&format!("link del {}", port(id, network)));
        }
        Ok(())
    }

    /// A host that was torn down is there again, with its addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn build(&self, id: u64) -> Result<()> {
        ip(&format!("netns add m{id}"))?;
        in_host(id, "link set lo up")?;
        for network in self.all() {
            let (port, mac) = (port(id, network), mac(network, id));
            ip(&format!(
                "link add {port} type veth peer name net{network} address {mac} netns m{id}"
            ))?;
            let own = address(network, id);
            in_host(id, &format!("address add {own}/24 dev net{network}"))?;
            in_host(id, &format!("link set net{network} up"))?;
            ip(&format!("link set {port} master br{network} up"))?;
        }
        let ways: Vec<_> = self.held_ways().iter().copied().collect();
        for (from, to) in ways.into_iter().filter(|(from, _)| *from == id) {
            self.apply(from, to)?;
        }
        Ok(())
    }

    /// A network among the members, numbered from 1, carries nothing any more.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn cut(&self, network: u8) -> Result<()> {
        self.set_network(network, "down")
    }

    /// It carries again.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn restore(&self, network: u8) -> Result<()> {
        self.set_network(network, "up")
    }

    /// All that a member sends to the others has to go through so many kilobits in a second, and waits for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn throttle(&self, id: u64, kilobits: u32) -> Result<()> {
        for network in self.peer_networks() {
            // The queue is long: what does not fit would get lost instead.
            let shape = format!("tbf rate {kilobits}kbit burst 3000 limit 4000000");
            run(
                "tc",
                &format!("-netns m{id} qdisc replace dev net{network} root {shape}"),
            )?;
        }
        Ok(())
    }

    /// How many networks there are among the members.
    pub const fn networks(&self) -> u8 {
        self.networks
    }

    fn peer_networks(&self) -> impl Iterator<Item = u8> + use<> {
        CLIENTS + 1..=CLIENTS + self.networks
    }

    fn all(&self) -> impl Iterator<Item = u8> + use<> {
        iter::once(CLIENTS).chain(self.peer_networks())
    }

    fn apply(&self, from: u64, to: u64) -> Result<()> {
        for network in self.peer_networks() {
            let to = address(network, to);
            let way = format!("{to} lladdr {NOWHERE} dev net{network} nud permanent");
            in_host(from, &format!("neigh replace {way}"))?;
        }
        Ok(())
    }

    fn held_ways(&self) -> std::sync::MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_ports(&self, id: u64, state: &str) -> Result<()> {
        self.all()
            .try_for_each(|network| ip(&format!("link set {} {state}", port(id, network))))
    }

    fn set_network(&self, network: u8, state: &str) -> Result<()> {
        ensure!(
            self.peer_networks().any(|it| it == network),
            "there is no network {network}"
        );
        ip(&format!("link set br{network} {state}"))
    }
}

fn address(network: u8, host: u64) -> IpAddr {
    IpAddr::from([10, 77, network, u8::try_from(host).unwrap_or(u8::MAX)])
}

/// Always the same: after a loss of power too the others find the machine that they know.
fn mac(network: u8, host: u64) -> String {
    format!("02:00:00:00:{network:02x}:{host:02x}")
}

/// A host's place in a bridge.
fn port(id: u64, network: u8) -> String {
    format!("m{id}n{network}")
}

fn in_host(id: u64, words: &str) -> Result<()> {
    ip(&format!("-netns m{id} {words}"))
}

fn ip(words: &str) -> Result<()> {
    run("ip", words)
}

fn run(program: &str, words: &str) -> Result<()> {
    let output = Command::new(program)
        .args(words.split_whitespace())
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {words}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn shell(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
