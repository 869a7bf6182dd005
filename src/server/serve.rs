//! Starts the server, waits for a signal, stops it.
//!
//! The first executor has the replica core and shard 0; every further one has a shard. The client
//! port opens when the data is loaded.

use std::cell::RefCell;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use ringkeeper_config::{ClientAddress, Config, Host};
use ringkeeper_member::{Core, CoreParts, Publication, Sessions, Settings, Standing};
use ringkeeper_peers::BoundPeers;
use ringkeeper_proto::{ServerId, Zxid};
use ringkeeper_storage::Opened;
use ringkeeper_transport::acceptor::{self, BoundSocket};
use ringkeeper_transport::mailbox::{self, Receiver};
use ringkeeper_transport::{
    Chain, ConnectionLimits, Cursor, ExecutorHandle, ExecutorSpec, ListenOptions, probe,
    spawn_executor, spawn_local,
};
use ringkeeper_tree::Tree;
use ringkeeper_tree::session::initialize_next_session;
use ringkeeper_zab::History;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::clock;
use crate::counts::SharedCounts;
use crate::fatal::Reason;
use crate::link::Links;
use crate::messages::{CoreMessage, ShardMessage};
use crate::outbox::Outbox;
use crate::placement::Placement;
use crate::replica::Replica;
use crate::shard::{Shard, ShardParts};
use crate::shard_loop::ShardLoop;
use crate::snapshots::Snapshots;
use crate::tree_sender::TreeSenders;
use crate::{control, ensemble, recovery, replica, replica_loop, threads};

/// Messages that a mailbox holds before its senders hold back: of the replica core, and of a shard.
const CORE_MAILBOX: usize = 1 << 12;
const SHARD_MAILBOX: usize = 1 << 11;

/// Bytes that may wait for a connection's peer before it is dropped: watch events come whether or not
/// the client reads.
const UNSENT_BYTES_MAX: usize = 16 << 20;

/// How long a stop may be put off until another member leads: without it the others need an election.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// Idle time after which the kernel asks a client's machine whether it is still there
/// (`clientTcpKeepAlive`).
const KEEPALIVE: Duration = Duration::from_secs(60);

/// File descriptors without which there is no use in starting.
const DESCRIPTORS_MIN: u64 = 512;

/// File descriptors that are asked for: one per connection, and some for the server itself.
const DESCRIPTORS_WANTED: u64 = 64 * 1024;

/// ZK: sessions of a standalone server are those of server 1, whatever `myid` says.
const STANDALONE_SERVER: u64 = 1;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Why the server cannot start, with what to do about it.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    // Taken before the first thread, so that none of them gets the signals.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("take signals")?;
    let settings = Arc::new(Settings::new(config));
    let placement = Placement::new(&settings);
    let needs = probe::Needs {
        executors: placement.shards.len(),
        descriptors: DESCRIPTORS_MIN,
    };
    probe::prepare(needs)
        .map_err(|error| anyhow!("{error}: {}", error.remedy()).context(Reason::System))?;
    if let Err(error) = probe::raise_descriptors(DESCRIPTORS_WANTED) {
        tracing::info!(%error, "fewer clients than that can be connected at once");
    }
    let peers = match &settings.config.peers {
        Some(config) => Some(ensemble::bind(&settings, config)?),
        None => None,
    };
    let address = resolve(&settings.config.clients.address).context(Reason::Address)?;
    let sockets = acceptor::bind(address, placement.shards.len()).context(Reason::Address)?;
    let address = sockets.first().map_or(address, BoundSocket::local_addr);
    let is_member = peers.is_some();
    let server = Server::start(&settings, &placement, sockets, peers)?;
    if is_member && let Err(error) = control::listen(&settings.config, server.links.core.clone()) {
        tracing::warn!(%error, "no control socket: leadership cannot be handed over by command");
    }
    let files = &settings.config.files;
    tracing::info!(%address, data = %files.data_dir.display(), log = %files.log_dir.display(),
        shards = placement.shards.len(), "serving");
    tracing::info!("to try it: zkCli.sh -server {address}");
    let signal = signals.forever().next();
    tracing::info!(signal, "stopping: what is under way is finished first");
    if is_member {
        control::hand_over_and_wait(&server.links.core, HAND_OVER_MAX);
    }
    server.stop()?;
    tracing::info!("stopped");
    Ok(())
}

/// The running server.
struct Server {
    links: Links,
    executors: Vec<ExecutorHandle<anyhow::Result<()>>>,
}

/// What the first executor hands over when the data is loaded: the tree, what the server is, and for
/// each further shard its place in the chain.
struct Loaded {
    tree: Tree,
    standing: Standing,
    cursors: Vec<Cursor<Publication>>,
}

impl Server {
    /// Loads the data and starts every executor; returns when all of them accept connections.
    fn start(
        settings: &Arc<Settings>,
        placement: &Placement,
        sockets: Vec<BoundSocket>,
        peers: Option<BoundPeers>,
    ) -> anyhow::Result<Self> {
        let (core, core_inbox) = mailbox::bounded(CORE_MAILBOX);
        let (shards, inboxes): (Vec<_>, Vec<_>) = placement
            .shards
            .iter()
            .map(|_| mailbox::bounded(SHARD_MAILBOX))
            .unzip();
        let links = Links {
            core,
            shards,
            counts: Arc::new(SharedCounts::new(settings, placement.shards.len())),
        };
        let (listening, wait_listening) = mpsc::channel();
        let mut places = placement
            .shards
            .iter()
            .zip(sockets)
            .zip(inboxes)
            .enumerate()
            .map(|(index, ((cpu, socket), inbox))| {
                let place = ShardPlace {
                    index: u32::try_from(index).expect("at most 256 shards are configured"),
                    settings: Arc::clone(settings),
                    links: links.clone(),
                    inbox,
                    socket,
                    listening: listening.clone(),
                };
                let spec =
                    ExecutorSpec::new(format!("shard-{index}"), *cpu).with_disk(threads::DISK);
                (spec, place)
            });
        let (loaded, wait_loaded) = mpsc::channel();
        let cpus = placement.clone();
        let (spec, first) = places.next().context("there is no shard")?;
        let mut executors = vec![spawn_executor(spec, move || async move {
            run_first(first, core_inbox, loaded, cpus, peers).await
        })?];
        // Without an answer the first executor has failed, and says why.
        let Ok(Loaded {
            tree,
            standing,
            cursors,
        }) = wait_loaded.recv()
        else {
            return Err(ended(executors));
        };
        for ((spec, place), cursor) in places.zip(cursors) {
            let tree = tree.clone();
            executors.push(spawn_executor(spec, move || async move {
                run_shard(place, tree, standing, cursor).await
            })?);
        }
        drop(listening);
        if wait_listening.iter().take(executors.len()).count() < executors.len() {
            return Err(ended(executors));
        }
        Ok(Self { links, executors })
    }

    /// Stops every shard, then the replica core, and waits for them.
    fn stop(self) -> anyhow::Result<()> {
        for shard in &self.links.shards {
            // Its mailbox is closed when it has ended already.
            _ = shard.send(ShardMessage::Stop);
        }
        for executor in self.executors {
            executor.join().context(Reason::Executor)??;
        }
        Ok(())
    }
}

/// Why executors ended that should not have.
fn ended(executors: Vec<ExecutorHandle<anyhow::Result<()>>>) -> anyhow::Error {
    for executor in executors {
        match executor.join() {
            Ok(Err(error)) => return error,
            Err(error) => return anyhow::Error::from(error).context(Reason::Executor),
            Ok(Ok(())) => {}
        }
    }
    anyhow!("an executor ended without saying why")
}

/// What the executor of a shard starts from.
struct ShardPlace {
    index: u32,
    settings: Arc<Settings>,
    links: Links,
    inbox: Receiver<ShardMessage>,
    socket: BoundSocket,
    listening: mpsc::Sender<()>,
}

/// Loads the data, then runs the replica core and shard 0.
async fn run_first(
    place: ShardPlace,
    inbox: Receiver<CoreMessage>,
    loaded: mpsc::Sender<Loaded>,
    cpus: Placement,
    peers: Option<BoundPeers>,
) -> anyhow::Result<()> {
    let settings = &place.settings;
    let (opened, initialize) = recovery::open(settings).await?;
    let Opened {
        store,
        mut log,
        recovered,
    } = opened;
    let last_snapshot = recovered.snapshot().map_or(0, |info| info.bytes);
    // What a server alone has logged is committed.
    let through = match peers {
        Some(_) => recovered.committed,
        None => Zxid(u64::MAX),
    };
    let loading = recovery::load(&store, &mut log, &recovered, &cpus.all, through);
    let data = loading.await.context(Reason::Corrupt)?;
    let zab = match &settings.config.peers {
        Some(config) => ensemble::zab(settings, config, &recovered, &data, initialize)?,
        None => zab_alone(&data.tree),
    };
    let tree = data.tree.clone();
    let mut chain = Chain::new();
    let mut cursors: Vec<_> = place.links.shards.iter().map(|_| chain.cursor()).collect();
    let cursor = cursors.remove(0);
    let mut core = Core::new(CoreParts {
        settings: Arc::clone(settings),
        zab,
        alone: peers.is_none(),
        sessions: sessions(settings),
        tree: data.tree,
        tail: data.tail,
        chain,
        store: store.clone(),
        log,
        now: replica::now(),
    });
    // What was replayed is replayed by the next start as well, unless it gets into a snapshot.
    core.stats_mut().since_snapshot = data.logged;
    // Shards begin with it, and hear only of what changes.
    core.end_turn();
    _ = core.take_standing();
    let standing = core.standing();
    loaded
        .send(Loaded {
            tree: tree.clone(),
            standing,
            cursors,
        })
        .map_err(|_| anyhow!("the main thread has ended"))?;
    drop(loaded);
    let core_mailbox = place.links.core.clone();
    let snapshots = Snapshots::start(
        settings,
        &store,
        last_snapshot,
        core_mailbox.clone(),
        cpus.beside.clone(),
    )?;
    let shards = place.links.shards.iter().cloned().map(Outbox::new);
    let links = peers.map(BoundPeers::start).transpose();
    let links = links.context("listen for other members")?;
    let members = settings.config.peers.as_ref();
    let oracle = members.map(|config| ensemble::oracle(settings, config));
    let oracle = oracle.transpose()?.flatten();
    let senders = TreeSenders::new(core_mailbox, cpus.beside);
    let replica = Replica::new(core, shards.collect(), links.clone(), senders, snapshots);
    let replica = Rc::new(RefCell::new(replica));
    let core = spawn_local(replica_loop::run(replica, store, inbox, links, oracle));
    run_shard(place, tree, standing, cursor).await?;
    core.await;
    Ok(())
}

async fn run_shard(
    place: ShardPlace,
    tree: Tree,
    standing: Standing,
    cursor: Cursor<Publication>,
) -> anyhow::Result<()> {
    let ShardPlace {
        index,
        settings,
        links,
        inbox,
        socket,
        listening,
    } = place;
    let clients = &settings.config.clients;
    let options = ListenOptions {
        backlog: i32::try_from(clients.backlog()).unwrap_or(i32::MAX),
        keepalive: clients.tcp_keep_alive.then_some(KEEPALIVE),
        limits: ConnectionLimits {
            frame_bytes_max: settings.frame_bytes_max(),
            pending_bytes_max: UNSENT_BYTES_MAX,
            ..ConnectionLimits::default()
        },
    };
    let drain_max = Duration::from_millis(settings.config.shutdown.drain_ms_max.into());
    let sessionless_max = Duration::from_millis(clients.sessionless_timeout_ms.into());
    let doorbell = cursor.doorbell();
    let shard = Shard::new(ShardParts {
        index,
        tree,
        cursor,
        links: links.clone(),
        standing,
        seed: rand::random(),
        settings: Arc::clone(&settings),
    });
    let shard = Rc::new(RefCell::new(shard));
    let core = links.core.clone();
    ShardLoop {
        shard,
        doorbell,
        inbox,
        links,
        drain_max,
        sessionless_max,
    }
    .run(socket, options, move || {
        // Nobody waits any more when the start has failed elsewhere.
        _ = listening.send(());
    })
    .await
    .context("listen on the client port")?;
    _ = core.send_wait(CoreMessage::ShardStopped).await;
    Ok(())
}

/// Zab for a server without an ensemble: all that was recovered is committed.
fn zab_alone(tree: &Tree) -> ringkeeper_zab::Replica<Bytes> {
    let recovered = ringkeeper_zab::Recovered {
        history: History::starting_at(tree.zxid()),
        committed: tree.zxid(),
        ..ringkeeper_zab::Recovered::default()
    };
    ringkeeper_zab::Replica::new(ringkeeper_zab::Config::standalone(ServerId(0)), recovered)
}

/// No sessions yet, and where their ids begin.
fn sessions(settings: &Settings) -> Sessions {
    let started_ms = u64::try_from(clock::wall_ms()).unwrap_or(0);
    let peers = settings.config.peers.as_ref();
    let server = peers.map_or(STANDALONE_SERVER, |peers| peers.id);
    let first = initialize_next_session(server, started_ms);
    Sessions::new(settings.config.ensemble.tick_ms.into(), first)
}

fn resolve(address: &ClientAddress) -> anyhow::Result<SocketAddr> {
    let port = address.port;
    match &address.host {
        Host::Any => Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)),
        Host::Ip(ip) => Ok(SocketAddr::new(*ip, port)),
        Host::Name(name) => (name.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("resolve clientPortAddress={name}"))?
            .next()
            .with_context(|| format!("clientPortAddress={name} has no address")),
    }
}
