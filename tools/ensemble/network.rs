//! A network between the members that can fail: for each ordered pair of them two proxied ports, whose
//! directions are held, delayed and opened one by one.
//!
//! A held direction is what packets that get lost look like to TCP: bytes, the end of a connection and
//! attempts to connect wait, and arrive when the direction is open again. The one difference is that an
//! attempt to connect is accepted here and only then waits.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ensemble::PeerPorts;

/// Bytes that are carried at a time; with a delay it bounds how much a link carries in a second.
const CHUNK: usize = 64 << 10;

/// From one member to another.
type Way = (u64, u64);

/// The network.
#[derive(Debug)]
pub struct Network {
    gates: BTreeMap<Way, Arc<Gate>>,
    ports: BTreeMap<Way, PeerPorts>,
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
        for (from, to) in gates.keys().copied() {
            let target = usize::try_from(to - 1).ok().and_then(|at| real.get(at));
            let target = target.context("a member without ports")?;
            let there = gates.get(&(from, to)).context("a way")?;
            let back = gates.get(&(to, from)).context("the way back")?;
            let proxied = PeerPorts {
                quorum: listen(target.quorum, there, back)?,
                election: listen(target.election, there, back)?,
                votes: target.votes,
            };
            ports.insert((from, to), proxied);
        }
        Ok(Self { gates, ports })
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

/// Accepts connections for `target` until the process ends; returns the port.
fn listen(target: u16, there: &Arc<Gate>, back: &Arc<Gate>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for a proxy")?;
    let port = listener.local_addr()?.port();
    let (there, back) = (Arc::clone(there), Arc::clone(back));
    thread::spawn(move || {
        for source in listener.incoming().flatten() {
            let (there, back) = (Arc::clone(&there), Arc::clone(&back));
            thread::spawn(move || {
                there.pass();
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
                // Where nobody listens the source sees the end of its connection.
                if let Ok(target) = TcpStream::connect(address) {
                    carry(source, target, there, back);
                }
            });
        }
    });
    Ok(port)
}

/// Carries both directions of a connection until both have ended.
fn carry(source: TcpStream, target: TcpStream, there: Arc<Gate>, back: Arc<Gate>) {
    _ = source.set_nodelay(true);
    _ = target.set_nodelay(true);
    let (Ok(answers), Ok(answered)) = (target.try_clone(), source.try_clone()) else {
        return;
    };
    thread::spawn(move || pump(answers, answered, &back));
    pump(source, target, &there);
}

fn pump(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let mut chunk = vec![0; CHUNK];
    let mut is_whole = false;
    while let Ok(count) = from.read(&mut chunk) {
        gate.pass();
        is_whole = count == 0;
        let bytes = chunk.get(..count).unwrap_or_default();
        if is_whole || to.write_all(bytes).is_err() {
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
        near.write_all(b"x").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "it was held");
        listener.set_nonblocking(false).unwrap();
        network.heal();
        let (mut far, _) = listener.accept().unwrap();
        assert_eq!(read(&mut far, 1), b"x");
    }
}
