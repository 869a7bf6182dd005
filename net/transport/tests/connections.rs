//! Connections over loopback: real sockets, std clients on threads of their own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringkeeper_transport::{
    Connection, ConnectionLimits, ExecutorHandle, ExecutorSpec, ListenOptions, Listener, ReadHalf,
    SendError, Sent, WriteHalf, spawn_executor, spawn_local,
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `serve` on an executor with a listener, and returns where it listens.
fn server<F, Fut, T>(limits: ConnectionLimits, serve: F) -> (SocketAddr, ExecutorHandle<T>)
where
    F: FnOnce(Listener) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let (listening, addr) = mpsc::channel();
    let handle = spawn_executor(ExecutorSpec::new("server", None), move || async move {
        let options = ListenOptions {
            limits,
            ..ListenOptions::default()
        };
        let listener = Listener::bind(LOOPBACK, options).unwrap();
        listening.send(listener.local_addr()).unwrap();
        serve(listener).await
    });
    let handle = handle.unwrap();
    (addr.recv_timeout(PATIENCE).unwrap(), handle)
}

/// Answers every frame with itself until the client leaves. Returns frames and bytes.
async fn echo(connection: Connection) -> io::Result<(u64, u64)> {
    let (mut read, write) = connection.split();
    while read.recv().await? > 0 {
        while let Some(body) = read.next_frame().map_err(io::Error::other)? {
            put_frame(&write, &body);
        }
        write.flush().map_err(io::Error::other)?;
        write.drained_to(64 * 1024).await;
    }
    write.close();
    Ok((read.frames_received(), read.bytes_received()))
}

fn put_frame(write: &WriteHalf, body: &[u8]) {
    let mut out = write.queue();
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(body);
}

/// Accepts `clients` connections, echoes on each, and returns the sum of frames.
async fn echo_all(mut listener: Listener, clients: usize) -> u64 {
    let mut tasks = Vec::new();
    while tasks.len() < clients {
        let connection = listener.accept().await.unwrap();
        tasks.push(spawn_local(echo(connection)));
    }
    let mut frames = 0;
    for task in tasks {
        frames += task.await.unwrap().0;
    }
    frames
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// Bytes that differ from place to place.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 7 + at / 251 + seed) % 256).unwrap())
        .collect()
}

#[test]
fn many_connections_echo_pipelined_frames() {
    const CLIENTS: usize = 64;
    const ROUNDS: usize = 50;
    let (addr, handle) = server(ConnectionLimits::default(), |listener| {
        echo_all(listener, CLIENTS)
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            thread::spawn(move || {
                let mut stream = connect(addr);
                for round in 0..ROUNDS {
                    let bodies: Vec<_> = (0..16)
                        .map(|at| pattern(at * 37 + round, client + at))
                        .collect();
                    let request: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
                    stream.write_all(&request).unwrap();
                    for body in bodies {
                        assert_eq!(read_frame(&mut stream).unwrap(), body);
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(handle.join().unwrap(), (CLIENTS * ROUNDS * 16) as u64);
}

#[test]
fn a_large_frame_comes_back_whole() {
    let (addr, handle) = server(ConnectionLimits::default(), |listener| {
        echo_all(listener, 1)
    });
    let body = pattern(1024 * 1024, 3);
    let mut stream = connect(addr);
    let mut writer = stream.try_clone().unwrap();
    let request = frame(&body);
    let sender = thread::spawn(move || writer.write_all(&request).unwrap());
    assert_eq!(read_frame(&mut stream).unwrap(), body);
    sender.join().unwrap();
    drop(stream);
    assert_eq!(handle.join().unwrap(), 1);
}

#[test]
fn a_frame_may_be_split_anywhere() {
    let (addr, handle) = server(ConnectionLimits::default(), |listener| {
        echo_all(listener, 1)
    });
    let mut stream = connect(addr);
    let body = pattern(9, 1);
    let request: Vec<u8> = [frame(&body), frame(b""), frame(&body)].concat();
    for at in 1..request.len() {
        stream.write_all(&request[..at]).unwrap();
        // The server has read the first part when it has answered the frames that are whole.
        for _ in 0..[13, 17, 30].iter().filter(|end| at >= **end).count() {
            read_frame(&mut stream).unwrap();
        }
        stream.write_all(&request[at..]).unwrap();
        for _ in 0..[13, 17, 30].iter().filter(|end| at < **end).count() {
            read_frame(&mut stream).unwrap();
        }
    }
    drop(stream);
    assert_eq!(handle.join().unwrap(), 29 * 3);
}

#[test]
fn a_lying_length_ends_the_connection() {
    for length in [-1, i32::MIN, i32::MAX, 1024 * 1024 + 1] {
        let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
            let connection = listener.accept().await.unwrap();
            echo(connection).await.unwrap_err().to_string()
        });
        let mut stream = connect(addr);
        stream.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "{length}");
        let error = handle.join().unwrap();
        assert!(error.contains(&length.to_string()), "{error}");
    }
}

#[test]
fn a_thousand_connect_at_once() {
    const CLIENTS: usize = 1000;
    let (addr, handle) = server(ConnectionLimits::default(), |listener| {
        echo_all(listener, CLIENTS)
    });
    let threads: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut streams: Vec<_> = (0..CLIENTS / 8).map(|_| connect(addr)).collect();
                for stream in &mut streams {
                    stream.write_all(&frame(b"hello")).unwrap();
                }
                for stream in &mut streams {
                    assert_eq!(read_frame(stream).unwrap(), b"hello");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(handle.join().unwrap(), CLIENTS as u64);
}

/// Sends replies to a client that does not read until the connection gives up.
async fn flood(connection: Connection) -> (usize, usize) {
    let (mut read, write) = connection.split();
    let body = pattern(10_000, 0);
    let mut most = 0;
    loop {
        put_frame(&write, &body);
        match write.flush() {
            Ok(Sent::All) => {}
            Ok(Sent::Pending { bytes }) => most = most.max(bytes),
            Err(SendError::TooSlow { pending }) => {
                // The reader is woken, although the client sent nothing.
                assert!(matches!(read.recv().await, Ok(0) | Err(_)));
                assert!(matches!(write.flush(), Err(SendError::Closed)));
                return (most, pending);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_slow_reader_is_bounded_and_dropped() {
    const PENDING_MAX: usize = 200_000;
    let limits = ConnectionLimits {
        pending_bytes_max: PENDING_MAX,
        ..ConnectionLimits::default()
    };
    let (addr, handle) = server(limits, |mut listener| async move {
        let connection = listener.accept().await.unwrap();
        flood(connection).await
    });
    let mut stream = connect(addr);
    let (most, pending) = handle.join().unwrap();
    assert!(most <= PENDING_MAX && most > PENDING_MAX - 20_000, "{most}");
    assert!(pending > PENDING_MAX && pending <= PENDING_MAX + 10_004);
    // The connection is over for the client too, be it by an end or a reset.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}

#[test]
fn a_slow_reader_that_catches_up_gets_everything_in_order() {
    const FRAMES: usize = 400;
    let (queued, wait_queued) = mpsc::channel();
    let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
        let (_read, write) = listener.accept().await.unwrap().split();
        let mut most = 0;
        for at in 0..FRAMES {
            put_frame(&write, &pattern(20_000, at));
            if let Sent::Pending { bytes } = write.flush().unwrap() {
                most = most.max(bytes);
            }
        }
        queued.send(()).unwrap();
        write.drained_to(0).await;
        (most, write.pending(), write.bytes_sent())
    });
    let mut stream = connect(addr);
    wait_queued.recv_timeout(PATIENCE).unwrap();
    for at in 0..FRAMES {
        assert_eq!(read_frame(&mut stream).unwrap(), pattern(20_000, at));
    }
    let (most, pending, sent) = handle.join().unwrap();
    assert!(most > 0, "the socket took everything: not tested");
    assert_eq!((pending, sent), (0, (FRAMES * 20_004) as u64));
}

#[test]
fn close_sends_what_is_queued_first() {
    // More than the socket takes at once, so that the close has to wait for the writer.
    const BYTES: usize = 8 * 1024 * 1024;
    let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
        let (mut read, write) = listener.accept().await.unwrap().split();
        assert!(read.recv().await.unwrap() > 0);
        put_frame(&write, &pattern(BYTES, 5));
        write.close();
        assert!(write.is_closed());
        // What the client still sends is not received, and does not reset the connection.
        read.recv().await.unwrap()
    });
    let mut stream = connect(addr);
    stream.write_all(b"first").unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    stream.write_all(&pattern(5000, 0)).unwrap();
    let mut body = Vec::new();
    stream.read_to_end(&mut body).unwrap();
    assert!(body == pattern(BYTES, 5), "{} bytes", body.len());
    drop(stream);
    assert_eq!(handle.join().unwrap(), 0);
}

#[test]
fn a_closed_connection_does_not_wait_for_ever_for_its_peer() {
    let limits = ConnectionLimits {
        linger: Duration::from_millis(100),
        ..ConnectionLimits::default()
    };
    let (addr, handle) = server(limits, |mut listener| async move {
        let (mut read, write) = listener.accept().await.unwrap().split();
        let start = Instant::now();
        write.close();
        assert_eq!(read.recv().await.unwrap(), 0);
        start.elapsed()
    });
    let stream = connect(addr);
    let elapsed = handle.join().unwrap();
    assert!(elapsed >= Duration::from_millis(100), "{elapsed:?}");
    assert!(elapsed < PATIENCE);
    drop(stream);
}

#[test]
fn dropping_the_reader_ends_the_connection_at_once() {
    let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
        let (read, write) = listener.accept().await.unwrap().split();
        drop(read);
        put_frame(&write, b"late");
        assert!(matches!(write.flush(), Err(SendError::Closed)));
        assert_eq!(write.pending(), 0);
        // It was the half that ended it, not the end of the executor: the client leaves first.
        let mut next = listener.accept().await.unwrap().split().0;
        next.recv().await.unwrap()
    });
    let mut stream = connect(addr);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    drop(connect(addr));
    assert_eq!(handle.join().unwrap(), 0);
}

#[test]
fn dropping_a_connection_ends_it() {
    let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
        drop(listener.accept().await.unwrap());
        let mut next = listener.accept().await.unwrap().split().0;
        next.recv().await.unwrap()
    });
    let mut stream = connect(addr);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    drop(connect(addr));
    assert_eq!(handle.join().unwrap(), 0);
}

#[test]
fn a_closed_listener_refuses_and_ends_accept() {
    let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
        let closer = listener.closer();
        let accepted = Rc::new(Cell::new(0));
        let counter = Rc::clone(&accepted);
        let task = spawn_local(async move {
            while let Some(connection) = listener.accept().await {
                counter.set(counter.get() + 1);
                let (mut read, _write) = connection.split();
                read.recv().await.unwrap();
            }
        });
        while accepted.get() == 0 {
            ringkeeper_transport::reactor_turn().await;
        }
        closer.close();
        task.await;
        accepted.get()
    });
    let stream = connect(addr);
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(handle.join().unwrap(), 1);
    let error = TcpStream::connect(addr).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn four_letters_are_seen_before_any_frame() {
    let (addr, handle) = server(ConnectionLimits::default(), |mut listener| async move {
        let (mut read, write): (ReadHalf, WriteHalf) = listener.accept().await.unwrap().split();
        while read.peek_four().is_none() {
            assert!(read.recv().await.unwrap() > 0);
        }
        assert_eq!(read.peek_four(), Some(*b"ruok"));
        assert_eq!(&read.frames().take_rest()[..], b"ruok");
        write.queue().extend_from_slice(b"imok");
        write.close();
        read.recv().await.unwrap()
    });
    let mut stream = connect(addr);
    stream.write_all(b"ru").unwrap();
    stream.write_all(b"ok").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "imok");
    drop(stream);
    assert_eq!(handle.join().unwrap(), 0);
}
