//! No descriptors left, in a process of its own: clients wait in the backlog and are served later.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use ringkeeper_transport::{ExecutorSpec, ListenOptions, Listener, spawn_executor, spawn_local};

const FILES_MAX: u64 = 256;
const CLIENTS: usize = 4;

#[test]
fn clients_wait_while_there_are_no_descriptors() {
    let (listening, addr) = mpsc::channel();
    let handle = spawn_executor(ExecutorSpec::new("server", None), move || async move {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut listener = Listener::bind(addr, ListenOptions::default()).unwrap();
        listening.send(listener.local_addr()).unwrap();
        let mut served = Vec::new();
        while served.len() < CLIENTS {
            let (mut read, write) = listener.accept().await.unwrap().split();
            served.push(spawn_local(async move {
                read.recv().await.unwrap();
                write.queue().extend_from_slice(b"here");
                write.close();
                while read.recv().await.unwrap() > 0 {}
            }));
        }
        for task in served {
            task.await;
        }
    });
    let addr: SocketAddr = addr.recv().unwrap();
    let (_, hard) = rlimit::Resource::NOFILE.get().unwrap();
    rlimit::Resource::NOFILE.set(FILES_MAX, hard).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    // One descriptor for each client, none for the server, but for one that it held while it waited.
    let mut unserved = 0;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = loop {
            assert!(files.pop().is_some(), "a descriptor to give");
            match TcpStream::connect(addr) {
                Ok(client) => break client,
                // The server, which tries again now and then, was quicker: it has one more.
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {}
                Err(error) => panic!("connect: {error}"),
            }
        };
        client.write_all(b"hello").unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        if client.peek(&mut [0; 4]).is_err() {
            unserved += 1;
        }
        clients.push(client);
    }
    assert!(unserved > 0, "there was no shortage");
    files.clear();
    for client in &mut clients {
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"here");
    }
    drop(clients);
    handle.unwrap().join().unwrap();
}
