//! A network between the members that can fail: for each ordered pair of them two proxied ports, whose
//! directions are held, delayed and opened one by one.
//!
//! A held direction is what packets that get lost look like to TCP: bytes, the end of a connection and
//! attempts to connect wait, and arrive when the direction is open again. The one difference is that an
//! attempt to connect is accepted here and only then waits.
//!
//! Who opens an election connection says where it can be called back, and Apache's servers do call back there. So this
//! is replaced by the proxied port of the way back, or the members would talk past the network.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ensemble::PeerPorts;
use crate::tap::{Conversation, Tap};

/// Bytes that are carried at a time; with a delay it bounds how much a link carries in a second.
const CHUNK: usize = 64 << 10;

/// From one member to another.
type Way = (u64, u64);

/// The network.
#[derive(Debug)]
pub struct Network {
    gates: BTreeMap<Way, Arc<Gate>>,
    ports: BTreeMap<Way, PeerPorts>,
    tap: Arc<Tap>,
}

impl Network {
    /// A network among members that listen on `real` ports, numbered from 1. Every direction is open.
    ///
    /// # Errors
    /// When there are no ports.
    pub fn new(real: &[PeerPorts]) -> Result<Self> {
        let ids = 1..=real.len() as u64;
        let ways = ids.clone().flat_map(|from| {
            let others = ids.clone().filter(move |to| *to != from);
            others.map(move |to| (from, to))
        });
        let gates: BTreeMap<Way, Arc<Gate>> =
            ways.map(|way| (way, Arc::<Gate>::default())).collect();
        let mut ports = BTreeMap::new();
        let mut listeners = Vec::new();
        for (from, to) in gates.keys().copied() {
            let target = usize::try_from(to - 1).ok().and_then(|at| real.get(at));
            let target = *target.context("a member without ports")?;
            let (quorum, election) = (listen()?, listen()?);
            let proxied = PeerPorts {
                quorum: quorum.local_addr()?.port(),
                election: election.local_addr()?.port(),
                votes: target.votes,
            };
            ports.insert((from, to), proxied);
            listeners.push(((from, to), target, quorum, election));
        }
        let tap = Arc::<Tap>::default();
        for ((from, to), target, quorum, election) in listeners {
            let route = |target| -> Result<Route> {
                Ok(Route {
                    target: SocketAddr::from((Ipv4Addr::LOCALHOST, target)),
                    there: Arc::clone(gates.get(&(from, to)).context("a way")?),
                    back: Arc::clone(gates.get(&(to, from)).context("the way back")?),
                })
            };
            let home = ports.get(&(to, from)).context("the way back")?.election;
            route(target.election)?.serve(election, move || Kind::Votes(Greeting::new(home)));
            let tap = Arc::clone(&tap);
            let learning = move || Kind::Learning(Conversation::new(&tap, from, to));
            route(target.quorum)?.serve(quorum, learning);
        }
        Ok(Self { gates, ports, tap })
    }

    /// What learners and leaders have said to each other.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Where member `from` finds member `to`.
    pub fn ports(&self, from: u64, to: u64) -> Option<PeerPorts> {
        self.ports.get(&(from, to)).copied()
    }

    /// Nothing gets from `from` to `to` any more.
    pub fn hold(&self, from: u64, to: u64) {
        self.change((from, to), |state| state.held = true);
    }

    /// What `from` sends to `to` takes so much longer.
    pub fn delay(&self, from: u64, to: u64, delay: Duration) {
        self.change((from, to), |state| state.delay = delay);
    }

    /// Opens every direction, without delays.
    pub fn heal(&self) {
        for way in self.gates.keys() {
            self.change(*way, |state| *state = State::default());
        }
    }

    fn change(&self, way: Way, change: impl FnOnce(&mut State)) {
        if let Some(gate) = self.gates.get(&way) {
            change(&mut gate.lock());
            gate.changed.notify_all();
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    held: bool,
    delay: Duration,
}

/// One direction between two members.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what is sent now would arrive.
    fn pass(&self) {
        let delay = self.lock().delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let mut state = self.lock();
        while state.held {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for a proxy")
}

/// From one member to a port of another.
#[derive(Clone, Debug)]
struct Route {
    target: SocketAddr,
    there: Arc<Gate>,
    back: Arc<Gate>,
}

/// What a connection is for.
enum Kind {
    /// A learner at its leader.
    Learning(Conversation),
    /// An election.
    Votes(Greeting),
}

impl Route {
    /// Accepts connections until the process ends.
    fn serve(self, listener: TcpListener, kind: impl Fn() -> Kind + Send + 'static) {
        thread::spawn(move || {
            for source in listener.incoming().flatten() {
                let (route, kind) = (self.clone(), kind());
                thread::spawn(move || {
                    route.there.pass();
                    // Where nobody listens the source sees the end of its connection.
                    if let Ok(target) = TcpStream::connect(route.target) {
                        route.carry(source, target, kind);
                    }
                });
            }
        });
    }

    /// Carries both directions of a connection until both have ended.
    fn carry(self, source: TcpStream, target: TcpStream, kind: Kind) {
        _ = source.set_nodelay(true);
        _ = target.set_nodelay(true);
        let (Ok(answers), Ok(answered)) = (target.try_clone(), source.try_clone()) else {
            return;
        };
        let Self { there, back, .. } = self;
        match kind {
            Kind::Votes(mut greeting) => {
                thread::spawn(move || pump(answers, answered, &back, |_| {}));
                pump(source, target, &there, |bytes| greeting.change(bytes));
            }
            Kind::Learning(conversation) => {
                let conversation = Arc::new(conversation);
                let other = Arc::clone(&conversation);
                thread::spawn(move || {
                    pump(answers, answered, &back, |bytes| other.leader_says(bytes));
                });
                pump(source, target, &there, |bytes| {
                    conversation.learner_says(bytes);
                });
            }
        }
    }
}

/// Carries one direction; `change` is given what has passed before it can be answered.
fn pump(mut from: TcpStream, mut to: TcpStream, gate: &Gate, mut change: impl FnMut(&mut Vec<u8>)) {
    let mut chunk = vec![0; CHUNK];
    let mut is_whole = false;
    while let Ok(count) = from.read(&mut chunk) {
        gate.pass();
        is_whole = count == 0;
        if is_whole {
            break;
        }
        let mut bytes = chunk.get(..count).unwrap_or_default().to_vec();
        change(&mut bytes);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // A connection that broke takes no time to say so, but its news takes the same way.
    gate.pass();
    let how = match is_whole {
        true => Shutdown::Write,
        false => Shutdown::Both,
    };
    _ = to.shutdown(how);
}

/// The first message of an election connection: `long protocol, long server, int len, "host:port"`, several addresses
/// with `|` between them in the newer protocol, none in the oldest.
#[derive(Debug)]
struct Greeting {
    /// The port where the caller can be called back.
    home: u16,
    pending: Vec<u8>,
    is_over: bool,
}

impl Greeting {
    const PROTOCOLS: [i64; 2] = [-65536, -65535];

    const fn new(home: u16) -> Self {
        Self {
            home,
            pending: Vec::new(),
            is_over: false,
        }
    }

    /// Changes the address in what passes; keeps back a greeting that is not whole.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        if self.is_over {
            return;
        }
        self.pending.append(bytes);
        if let Some(changed) = self.changed() {
            self.is_over = true;
            *bytes = changed;
        }
    }

    fn changed(&self) -> Option<Vec<u8>> {
        let (protocol, rest) = self.pending.split_first_chunk()?;
        if !Self::PROTOCOLS.contains(&i64::from_be_bytes(*protocol)) {
            return Some(self.pending.clone());
        }
        let (server, rest) = rest.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = usize::try_from(i32::from_be_bytes(*len)).unwrap_or(0);
        let behind = rest.get(len..)?;
        let home = SocketAddr::from((Ipv4Addr::LOCALHOST, self.home)).to_string();
        let len = i32::try_from(home.len()).unwrap_or(0).to_be_bytes();
        Some([&protocol[..], server, &len, home.as_bytes(), behind].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two members, the second of which is this listener.
    fn network() -> (Network, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ports = PeerPorts {
            quorum: port,
            election: port,
            votes: true,
        };
        (Network::new(&[ports, ports]).unwrap(), listener)
    }

    fn connect(network: &Network, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let port = network.ports(1, 2).unwrap().quorum;
        let near = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (far, _) = listener.accept().unwrap();
        (near, far)
    }

    fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        // Rather a failure than a test that never ends.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_held_direction_delivers_everything_later_and_the_other_goes_on() {
        let (network, listener) = network();
        let (mut near, mut far) = connect(&network, &listener);
        near.write_all(b"a").unwrap();
        assert_eq!(read(&mut far, 1), b"a");
        network.hold(1, 2);
        near.write_all(b"bc").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        far.write_all(b"d").unwrap();
        assert_eq!(read(&mut near, 1), b"d");
        far.set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert!(far.read(&mut [0; 8]).is_err(), "it was held");
        far.set_read_timeout(None).unwrap();
        network.heal();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"bc");
    }

    #[test]
    fn who_calls_through_a_held_direction_is_heard_later() {
        let (network, listener) = network();
        network.hold(1, 2);
        let port = network.ports(1, 2).unwrap().election;
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let greeting = 1_i64.to_be_bytes();
        near.write_all(&greeting).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "it was held");
        listener.set_nonblocking(false).unwrap();
        network.heal();
        let (mut far, _) = listener.accept().unwrap();
        assert_eq!(read(&mut far, 8), greeting);
    }

    #[test]
    fn who_calls_is_called_back_through_the_network() {
        let greeting = |address: &str| {
            let len = i32::try_from(address.len()).unwrap().to_be_bytes();
            let head = [(-65536_i64).to_be_bytes(), 1_i64.to_be_bytes()].concat();
            [&head[..], &len, address.as_bytes()].concat()
        };
        let (network, listener) = network();
        let ports = network.ports(1, 2).unwrap();
        let home = network.ports(2, 1).unwrap().election;
        let sent = [&greeting("127.0.0.1:1")[..], b"vote"].concat();
        let expected = [&greeting(&format!("127.0.0.1:{home}"))[..], b"vote"].concat();
        for cut in 1..sent.len() {
            let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, ports.election)).unwrap();
            near.set_nodelay(true).unwrap();
            near.write_all(&sent[..cut]).unwrap();
            near.write_all(&sent[cut..]).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            assert_eq!(read(&mut far, expected.len()), expected, "{cut}");
        }
        // The oldest protocol: the number of the server alone.
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, ports.election)).unwrap();
        near.write_all(&1_i64.to_be_bytes()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        assert_eq!(read(&mut far, 8), 1_i64.to_be_bytes());
    }
}
