//! What is measured: one server, or an ensemble of servers that are started alike.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringkeeper_ensemble::{Ensemble, Plan};
use ringkeeper_harness::{Launch, Server, Usage, usage};

const END_PATIENCE: Duration = Duration::from_secs(120);

/// A server or an ensemble, running or not.
#[derive(Debug)]
pub(crate) enum Subject {
    Alone(Box<Server>),
    Ensemble(Ensemble),
}

impl Subject {
    /// `servers` servers with their files below `dir`; starts nothing.
    pub(crate) fn new(launch: &Launch, servers: usize, dir: &Path) -> Result<Self> {
        if servers == 1 {
            let server = Server::new(launch.clone(), dir)?;
            return Ok(Self::Alone(Box::new(server)));
        }
        let plan = Plan::alike(launch, servers);
        Ok(Self::Ensemble(Ensemble::new(&plan, dir)?))
    }

    /// Starts all servers and waits until they serve. How long that took.
    pub(crate) fn start(&mut self, patience: Duration) -> Result<Duration> {
        match self {
            Self::Alone(server) => server.start(patience),
            Self::Ensemble(ensemble) => {
                let began = Instant::now();
                ensemble.start(patience)?;
                Ok(began.elapsed())
            }
        }
    }

    /// SIGTERM to all, and waits for their end.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        match self {
            Self::Alone(server) => _ = server.terminate(END_PATIENCE)?,
            Self::Ensemble(ensemble) => {
                for id in ensemble.ids() {
                    ensemble.terminate(id, END_PATIENCE)?;
                }
            }
        }
        Ok(())
    }

    /// Where each server's clients connect.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.servers().iter().map(|it| it.address()).collect()
    }

    /// Where the client with this number connects: clients are spread evenly.
    pub(crate) fn address(&self, client: usize) -> SocketAddr {
        let addresses = self.addresses();
        addresses[client % addresses.len()]
    }

    /// What all servers together used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let servers = self.servers();
        ensure!(!servers.is_empty(), "there is no server");
        let mut sum = Usage::default();
        for server in servers {
            let used = usage(server.pid().context("the server does not run")?)?;
            sum.cpu += used.cpu;
            sum.rss += used.rss;
        }
        Ok(sum)
    }

    /// The last lines of what each server logged.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let tails: Vec<_> = self.servers().iter().map(|it| it.log_tail(lines)).collect();
        tails.join("\n--\n")
    }

    fn servers(&self) -> Vec<&Server> {
        match self {
            Self::Alone(server) => vec![server],
            Self::Ensemble(ensemble) => {
                let ids = ensemble.ids().into_iter();
                ids.filter_map(|id| ensemble.member(id).ok()).collect()
            }
        }
    }
}
