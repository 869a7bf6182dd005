//! What an idle connection costs, in a process of its own so that nothing else allocates.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;

use ringkeeper_transport::{
    Connection, ExecutorSpec, ListenOptions, Listener, probe, spawn_executor, spawn_local,
};

const CONNECTIONS: usize = 3000;

/// The resident set may grow by this much for each: reader task, both halves, what is known of its
/// readiness. Measured: see docs/internals/shards.md.
const BYTES_PER_CONNECTION_MAX: usize = 1024;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

async fn serve(connection: Connection) {
    let (mut read, write) = connection.split();
    while matches!(read.recv().await, Ok(1..)) {
        while let Ok(Some(body)) = read.next_frame() {
            write.queue().extend_from_slice(&body);
        }
        if write.flush().is_err() {
            return;
        }
    }
}

#[test]
fn an_idle_connection_is_small() {
    probe::raise_descriptors(2 * CONNECTIONS as u64 + 100).unwrap();
    let (tell, hear) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let handle = spawn_executor(ExecutorSpec::new("idle", None), move || async move {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut listener = Listener::bind(addr, ListenOptions::default()).unwrap();
        tell.send(listener.local_addr()).unwrap();
        let mut tasks = Vec::with_capacity(CONNECTIONS);
        let mut before = 0;
        for at in 0..CONNECTIONS {
            // The first hundred fill what is allocated once.
            if at == 100 {
                before = resident_bytes();
            }
            tasks.push(spawn_local(serve(listener.accept().await.unwrap())));
        }
        // What their registration tells is taken with the next turns.
        for _ in 0..10 {
            ringkeeper_transport::reactor_turn().await;
        }
        let grown = resident_bytes() - before;
        wait.recv().unwrap();
        grown / (CONNECTIONS - 100)
    });
    let handle = handle.unwrap();
    let addr = hear.recv().unwrap();
    let mut clients = Vec::with_capacity(CONNECTIONS);
    clients.extend((0..CONNECTIONS).map(|_| TcpStream::connect(addr).unwrap()));
    go_on.send(()).unwrap();
    let each = handle.join().unwrap();
    drop(clients);
    eprintln!("{each} bytes per idle connection");
    assert!(each <= BYTES_PER_CONNECTION_MAX, "{each}");
}
