//! Hosts in namespaces: what is cut gets lost without a word, one way where one way is cut, and arrives again afterwards.
//! Says so, and does nothing, where no namespaces can be made.
#![expect(clippy::print_stdout, reason = "a test's report")]
#![expect(clippy::unwrap_used, reason = "a test without a harness")]

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use ringkeeper_ensemble::namespaces::{Hosts, enter};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PORT: u16 = 2888;

/// For what must not arrive.
const SHORT: Duration = Duration::from_millis(200);

/// For what must.
const LONG: Duration = Duration::from_secs(10);

fn main() {
    if let Err(unavailable) = enter() {
        println!("left out: {unavailable}");
        return;
    }
    let hosts = Hosts::new(3, 2).unwrap();
    a_way_is_cut_in_one_direction_only(&hosts);
    an_unplugged_host_is_silent(&hosts);
    a_lost_host_is_there_again(&hosts);
    one_network_is_cut_and_the_other_is_not(&hosts);
    a_throttled_host_takes_its_time(&hosts);
    println!("ok");
}

/// Does something at a host.
fn at<T: Send>(id: u64, work: impl FnOnce() -> T + Send) -> T {
    let body = || {
        let namespace = File::open(format!("/run/netns/m{id}")).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap())
}

fn address(hosts: &Hosts, id: u64, network: usize) -> SocketAddr {
    SocketAddr::new(hosts.peer_addresses(id)[network], PORT)
}

/// Whether a datagram arrives.
fn arrives(hosts: &Hosts, from: u64, to: u64, network: usize, patience: Duration) -> bool {
    let target = address(hosts, to, network);
    let socket = at(to, || UdpSocket::bind(target).unwrap());
    socket.set_read_timeout(Some(patience)).unwrap();
    at(from, || {
        let any = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
        UdpSocket::bind(any).unwrap().send_to(b"x", target).unwrap();
    });
    socket.recv(&mut [0]).is_ok()
}

fn a_way_is_cut_in_one_direction_only(hosts: &Hosts) {
    assert!(arrives(hosts, 1, 2, 0, LONG));
    hosts.hold(1, 2).unwrap();
    for network in [0, 1] {
        assert!(!arrives(hosts, 1, 2, network, SHORT), "it is cut");
        assert!(arrives(hosts, 2, 1, network, LONG), "the way back");
        assert!(arrives(hosts, 1, 3, network, LONG), "another way");
    }
    hosts.heal().unwrap();
    assert!(arrives(hosts, 1, 2, 0, LONG));
}

/// A connection from a host to a listener at another one.
fn connect(hosts: &Hosts, from: u64, to: u64) -> (TcpStream, TcpStream) {
    let target = address(hosts, to, 0);
    let listener = at(to, || TcpListener::bind(target).unwrap());
    let near = at(from, || TcpStream::connect(target).unwrap());
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

fn an_unplugged_host_is_silent(hosts: &Hosts) {
    let (mut near, far) = connect(hosts, 1, 2);
    hosts.unplug(2).unwrap();
    // As if its process had ended.
    drop(far);
    near.set_read_timeout(Some(SHORT)).unwrap();
    let error = near.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "nothing is told");
    let target = address(hosts, 2, 0);
    let error = at(1, || TcpStream::connect_timeout(&target, SHORT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "nobody refuses");
    hosts.plug(2).unwrap();
    near.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(near.read(&mut [0]).unwrap(), 0, "the end arrives late");
}

fn a_lost_host_is_there_again(hosts: &Hosts) {
    let (mut near, far) = connect(hosts, 1, 2);
    hosts.unplug(2).unwrap();
    drop(far);
    hosts.tear_down(2).unwrap();
    hosts.build(2).unwrap();
    near.set_read_timeout(Some(SHORT)).unwrap();
    let error = near.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "it knows nothing");
    assert!(arrives(hosts, 1, 2, 0, LONG) && arrives(hosts, 2, 1, 1, LONG));
}

fn one_network_is_cut_and_the_other_is_not(hosts: &Hosts) {
    hosts.cut(1).unwrap();
    assert!(!arrives(hosts, 1, 2, 0, SHORT));
    assert!(arrives(hosts, 1, 2, 1, LONG));
    hosts.heal().unwrap();
    assert!(arrives(hosts, 1, 2, 0, LONG));
}

fn a_throttled_host_takes_its_time(hosts: &Hosts) {
    // Behind the first few a datagram of 1000 bytes goes each second.
    hosts.throttle(1, 8).unwrap();
    let target = address(hosts, 2, 0);
    let socket = at(2, || UdpSocket::bind(target).unwrap());
    at(1, || {
        let own = UdpSocket::bind(address(hosts, 1, 0)).unwrap();
        for number in 0..26 {
            own.send_to(&[number; 1000], target).unwrap();
        }
    });
    let mut datagram = [0; 1000];
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let mut last = None;
    while socket.recv(&mut datagram).is_ok() {
        last = Some(datagram[0]);
    }
    assert!(last.is_some_and(|last| last < 25), "{last:?} in no time");
    hosts.heal().unwrap();
}
