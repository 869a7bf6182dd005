//! A member without a tree: the real links and the real Zab, on a log in memory. It votes, leads,
//! follows, acknowledges and keeps every proposal, but serves no client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ringkeeper_ensemble::ensemble::PeerPorts;
use ringkeeper_peers::{
    BoundPeers, Member, MemberAddress, Packet, PeerCommand, PeerEvent, PeerLinks, PeerSettings,
    Rider,
};
use ringkeeper_proto::quorum::SNAPSHOT_END;
use ringkeeper_proto::{ServerId, Zxid};
use ringkeeper_transport::executor::ExecutorSpec;
use ringkeeper_transport::{ExecutorHandle, spawn_executor, timeout};
use ringkeeper_zab::{
    Config, Ensemble, Epochs, History, Input, LinkId, LogGeneration, Message, Output, Proposal,
    Recovered, Replica, Role, Timing,
};

const TICK: Duration = Duration::from_millis(10);

/// As the ensembles of the tests have it.
const TICK_TIME_MS: u64 = 500;

/// What a member keeps over a restart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) epochs: Epochs,
    /// What the snapshot shows that the log follows.
    pub(crate) base: Zxid,
    pub(crate) log: BTreeMap<Zxid, Bytes>,
    pub(crate) committed: Zxid,
    /// As the operator says by the file `initialize`.
    pub(crate) initialize: bool,
}

impl Disk {
    pub(crate) fn last(&self) -> Zxid {
        self.log.keys().next_back().copied().unwrap_or(self.base)
    }

    fn recovered(&self) -> Recovered {
        let mut history = History::starting_at(self.base);
        self.log.keys().for_each(|zxid| history.recover(*zxid));
        Recovered {
            damaged: false,
            epochs: self.epochs,
            history,
            committed: self.committed.max(self.base),
            initialize: self.initialize,
        }
    }
}

/// What others see of a running member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) role: Option<Role>,
    pub(crate) disk: Disk,
    /// Names of the packets that came and went.
    pub(crate) received: BTreeMap<&'static str, u64>,
    pub(crate) sent: BTreeMap<&'static str, u64>,
    /// Bytes of the last snapshot that came.
    pub(crate) snapshot: Vec<u8>,
    /// Peers with an election connection.
    pub(crate) reachable: BTreeSet<ServerId>,
    pub(crate) violations: Vec<String>,
}

/// A running member.
pub(crate) struct FakeMember {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    executor: ExecutorHandle<()>,
}

impl FakeMember {
    /// Plays member `id` of an ensemble whose members have these ports.
    pub(crate) fn start(id: u64, ports: &[PeerPorts], disk: Disk) -> Self {
        let (settings, ensemble) = settings(id, ports);
        let bound = BoundPeers::bind(settings).unwrap();
        let seen = Arc::new(Mutex::new(Seen {
            disk: disk.clone(),
            ..Seen::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let spec = ExecutorSpec::new(format!("member-{id}"), None);
        let executor = spawn_executor(spec, move || async move {
            let timing = Timing::new(TICK_TIME_MS, 10, 5, 10);
            let config = Config::member(ServerId(id), ensemble, timing);
            let member = Playing {
                replica: Replica::new(config, disk.recovered()),
                disk,
                links: bound.start().unwrap(),
                inputs: Vec::new(),
                installing: None,
                seen: theirs,
            };
            member.run(&stopped).await;
        });
        Self {
            seen,
            stop,
            executor: executor.unwrap(),
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until what is seen satisfies `is_so`.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = self.seen();
            assert!(seen.violations.is_empty(), "{:?}", seen.violations);
            if is_so(&seen) {
                return seen;
            }
            if Instant::now() > deadline {
                let brief = Seen {
                    snapshot: Vec::new(),
                    disk: Disk {
                        log: BTreeMap::new(),
                        ..seen.disk.clone()
                    },
                    ..seen.clone()
                };
                panic!("{what} does not happen: {:?}, {brief:?}", seen.disk.last());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops as a crash would, but that all that was written is there.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.executor.join().unwrap();
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn settings(id: u64, ports: &[PeerPorts]) -> (PeerSettings, Ensemble) {
    let members: BTreeMap<_, _> = (1..).map(ServerId).zip(ports).collect();
    let mut text = String::new();
    for (id, ports) in &members {
        let role = if ports.votes {
            "participant"
        } else {
            "observer"
        };
        text += &format!(
            "server.{id}=127.0.0.1:{}:{}:{role}\n",
            ports.quorum, ports.election
        );
    }
    text += "version=0";
    let voters = members.iter().filter(|(_, ports)| ports.votes);
    let voters: Vec<_> = voters.map(|(id, _)| *id).collect();
    let observers = members.iter().filter(|(_, ports)| !ports.votes);
    let observers: Vec<_> = observers.map(|(id, _)| *id).collect();
    let ensemble = Ensemble::majority(voters, observers).unwrap();
    let ensemble = ensemble.described(0, text.as_str());
    let links = members.iter().map(|(id, ports)| {
        let address = MemberAddress {
            host: "127.0.0.1".to_owned(),
            quorum_port: ports.quorum,
            election_port: ports.election,
        };
        let member = Member {
            votes: ports.votes,
            addresses: vec![address],
        };
        (*id, member)
    });
    let settings = PeerSettings::new(ServerId(id), links.collect(), text.into());
    (settings, ensemble)
}

struct Installing {
    link: LinkId,
    zxid: Zxid,
    generation: LogGeneration,
    stream: BytesMut,
}

struct Playing {
    replica: Replica<Bytes>,
    disk: Disk,
    links: PeerLinks,
    inputs: Vec<Input<Bytes>>,
    installing: Option<Installing>,
    seen: Arc<Mutex<Seen>>,
}

impl Playing {
    async fn run(mut self, stop: &AtomicBool) {
        let mut next_tick = Instant::now();
        while !stop.load(Ordering::SeqCst) {
            let mut events = Vec::new();
            let left = next_tick.saturating_duration_since(Instant::now());
            let _ = timeout(left, self.links.events(&mut events)).await;
            for event in events {
                self.hear(event);
                self.settle();
            }
            if Instant::now() >= next_tick {
                next_tick += TICK;
                self.inputs.push(Input::Tick);
                self.settle();
            }
            self.links.flush();
            let mut seen = lock(&self.seen);
            seen.role = Some(self.replica.role());
            seen.disk = self.disk.clone();
        }
        self.links.stop();
    }

    fn hear(&mut self, event: PeerEvent) {
        let input = match event {
            PeerEvent::Notified {
                from, notification, ..
            } => Input::Notified { from, notification },
            PeerEvent::Reachable { peer, reachable } => {
                let mut seen = lock(&self.seen);
                match reachable {
                    true => seen.reachable.insert(peer),
                    false => seen.reachable.remove(&peer),
                };
                Input::Reachable { peer, reachable }
            }
            PeerEvent::Connected { leader, link } => Input::Connected { leader, link },
            PeerEvent::ConnectFailed { leader } => Input::ConnectFailed { leader },
            PeerEvent::Received { link, packet } => {
                let message = packet.message;
                *lock(&self.seen).received.entry(message.name()).or_default() += 1;
                Input::Received { link, message }
            }
            PeerEvent::StreamBytes { link, bytes } => return self.take_stream(link, &bytes),
            PeerEvent::Writable { .. } => return,
            PeerEvent::Disconnected { link } => {
                if let Some(installing) = self.installing.take_if(|it| it.link == link) {
                    let generation = installing.generation;
                    self.inputs.push(Input::SnapshotFailed { generation });
                }
                Input::Disconnected { link }
            }
        };
        self.inputs.push(input);
    }

    /// Steps until there is nothing left to do.
    fn settle(&mut self) {
        while !self.inputs.is_empty() {
            for input in std::mem::take(&mut self.inputs) {
                let mut outputs = Vec::new();
                if let Err(violation) = self.replica.step(input, &mut outputs) {
                    lock(&self.seen).violations.push(violation.to_string());
                }
                outputs
                    .into_iter()
                    .for_each(|output| self.carry_out(output));
            }
        }
    }

    fn carry_out(&mut self, output: Output<Bytes>) {
        match output {
            Output::SaveEpoch { epochs } => {
                self.disk.epochs = epochs;
                self.inputs.push(Input::EpochSaved { epochs });
            }
            Output::Append { proposal } => {
                self.disk.log.insert(proposal.zxid, proposal.payload);
            }
            Output::Flush => self.inputs.push(Input::Flushed {
                through: self.disk.last(),
                generation: self.replica.log_generation(),
            }),
            Output::Truncate { to, .. } => self.disk.log.retain(|zxid, _| *zxid <= to),
            Output::InstallSnapshot {
                link,
                zxid,
                generation,
            } => {
                self.installing = Some(Installing {
                    link,
                    zxid,
                    generation,
                    stream: BytesMut::new(),
                });
                self.links.carry_out(PeerCommand::ReadStream { link });
            }
            Output::SendSnapshot { .. } => panic!("a member without a tree has no snapshot"),
            Output::ReadHistory {
                link,
                after,
                through,
            } => {
                let some = self.disk.log.range(after..=through);
                let some = some.filter(|(zxid, _)| **zxid > after).take(100);
                let proposals: Vec<_> = some
                    .map(|(zxid, payload)| Proposal {
                        zxid: *zxid,
                        payload: payload.clone(),
                    })
                    .collect();
                self.inputs.push(Input::HistoryRead { link, proposals });
            }
            Output::Send { link, message } => self.send(link, message),
            Output::Notify { to, notification } => {
                self.links
                    .carry_out(PeerCommand::Notify { to, notification });
            }
            Output::Connect { leader } => self.links.carry_out(PeerCommand::Connect { leader }),
            Output::Close { link } => self.links.carry_out(PeerCommand::Close { link }),
            Output::Commit { through } => self.disk.committed = through,
            Output::Synced { .. }
            | Output::SyncDone
            | Output::Revalidate { .. }
            | Output::Forwarded { .. }
            | Output::ChangeRole { .. } => {}
        }
    }

    fn send(&self, link: LinkId, message: Message<Bytes>) {
        *lock(&self.seen).sent.entry(message.name()).or_default() += 1;
        let packet = Packet {
            message,
            rider: Rider::None,
        };
        self.links.carry_out(PeerCommand::Send { link, packet });
    }

    /// The snapshot ends with a string that no other place of a small tree has.
    fn take_stream(&mut self, link: LinkId, bytes: &[u8]) {
        let Some(installing) = self.installing.as_mut().filter(|it| it.link == link) else {
            return;
        };
        installing.stream.extend_from_slice(bytes);
        let end = SNAPSHOT_END.as_bytes();
        let found = installing
            .stream
            .windows(end.len())
            .position(|it| it == end);
        let Some(at) = found else {
            self.links.carry_out(PeerCommand::ReadStream { link });
            return;
        };
        let rest = installing.stream.split_off(at + end.len()).freeze();
        self.links.carry_out(PeerCommand::EndStream { link, rest });
        if let Some(installing) = self.installing.take() {
            lock(&self.seen).snapshot = installing.stream.to_vec();
            self.disk.log.clear();
            self.disk.base = installing.zxid;
            let generation = installing.generation;
            self.inputs.push(Input::SnapshotInstalled { generation });
            self.settle();
        }
    }
}
