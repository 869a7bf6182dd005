//! The load generator: a few threads, each with its connections in one epoll, requests patched into
//! place and replies looked at no further than their header. It must cost far less than a server, or
//! it would be what is measured; its own CPU time is part of every result.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use ringkeeper_harness::{Session, process};
use ringkeeper_proto::{Request, Xid};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use crate::requests::{Mix, Requests};
use crate::subject::Subject;

/// Session time-out of load connections; they are never idle.
pub(crate) const TIMEOUT_MS: i32 = 30_000;

/// How a load is put on a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    /// Requests in flight per connection.
    pub(crate) depth: usize,
    /// Threads of the generator.
    pub(crate) threads: usize,
}

/// When a load ends.
#[derive(Clone, Debug)]
pub(crate) enum Until {
    /// After `ramp`, which is not counted, and `measured`, which is.
    Elapsed { ramp: Duration, measured: Duration },
    /// When each connection has sent its number; all is counted.
    Sent { by_connection: Vec<u64> },
}

/// What a load came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) ops: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) server_cpu: Duration,
    pub(crate) own_cpu: Duration,
    /// By connection: requests sent, counted or not.
    pub(crate) sent: Vec<u64>,
}

/// Nanoseconds from 100 to a minute, three digits.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(100, 60_000_000_000, 3)?)
}

// What the threads are to do; moves forward only.
const RAMPING: u8 = 0;
const MEASURING: u8 = 1;
const ENDING: u8 = 2;

/// Puts `mix` on `subject`, its clients spread evenly over the servers.
pub(crate) fn run(subject: &Subject, mix: Mix, shape: Shape, until: &Until) -> Result<Outcome> {
    let mut workers = workers(subject, mix, shape, until)?;
    let counted_from_start = matches!(until, Until::Sent { .. });
    let phase = AtomicU8::new(if counted_from_start {
        MEASURING
    } else {
        RAMPING
    });
    let (from, to) = thread::scope(|scope| {
        let phase = &phase;
        let began = Instant::now();
        let mut from = (began, subject.usage()?, process::own_usage()?);
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| scope.spawn(move || worker.run(shape.depth, began, phase)))
            .collect();
        let mut to = None;
        if let Until::Elapsed { ramp, measured } = *until {
            thread::sleep(ramp);
            from = (Instant::now(), subject.usage()?, process::own_usage()?);
            phase.store(MEASURING, Ordering::SeqCst);
            thread::sleep(measured);
            phase.store(ENDING, Ordering::SeqCst);
            to = Some((Instant::now(), subject.usage()?, process::own_usage()?));
        }
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a load thread panicked"))??;
        }
        let to = match to {
            Some(to) => to,
            None => (Instant::now(), subject.usage()?, process::own_usage()?),
        };
        Ok::<_, anyhow::Error>((from, to))
    })?;
    let mut latency = histogram()?;
    let mut sent = Vec::new();
    for worker in workers {
        latency.add(&worker.latency)?;
        for connection in worker.connections {
            sent.push((connection.number, connection.requests.sent()));
            connection.close()?;
        }
    }
    sent.sort_unstable();
    Ok(Outcome {
        ops: latency.len(),
        elapsed: to.0 - from.0,
        latency,
        server_cpu: to.1.cpu.saturating_sub(from.1.cpu),
        own_cpu: to.2.cpu.saturating_sub(from.2.cpu),
        sent: sent.into_iter().map(|(_, sent)| sent).collect(),
    })
}

fn workers(subject: &Subject, mix: Mix, shape: Shape, until: &Until) -> Result<Vec<Worker>> {
    let threads = shape.threads.clamp(1, shape.connections.max(1));
    let mut workers = (0..threads)
        .map(|_| Worker::new())
        .collect::<Result<Vec<_>>>()?;
    for number in 0..shape.connections {
        let limit = match until {
            Until::Elapsed { .. } => u64::MAX,
            Until::Sent { by_connection } => by_connection.get(number).copied().unwrap_or(0),
        };
        let connection = Connection::open(subject.address(number), mix, number, limit)?;
        if let Some(worker) = workers.get_mut(number % threads) {
            worker.add(connection)?;
        }
    }
    Ok(workers)
}

/// One thread's connections.
#[derive(Debug)]
struct Worker {
    epoll: std::os::fd::OwnedFd,
    connections: Vec<Connection>,
    latency: Histogram<u64>,
}

impl Worker {
    fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: Vec::new(),
            latency: histogram()?,
        })
    }

    fn add(&mut self, connection: Connection) -> Result<()> {
        epoll::add(
            &self.epoll,
            &connection.stream,
            epoll::EventData::new_u64(self.connections.len() as u64),
            epoll::EventFlags::IN,
        )?;
        self.connections.push(connection);
        Ok(())
    }

    fn run(&mut self, depth: usize, began: Instant, phase: &AtomicU8) -> Result<()> {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            connection.fill(depth, nanos_since(began));
            connection.write()?;
            connection.rearm(&self.epoll, index)?;
        }
        let mut events = Vec::with_capacity(256);
        while self.connections.iter().any(|one| !one.done()) {
            events.clear();
            let patience = rustix::event::Timespec {
                tv_sec: 30,
                tv_nsec: 0,
            };
            let got = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&patience));
            match got {
                Ok(0) => bail!("the server has not answered for 30 s"),
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let phase = phase.load(Ordering::Relaxed);
            let mut latency = (phase == MEASURING).then_some(&mut self.latency);
            for event in &events {
                let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                let Some(connection) = self.connections.get_mut(index) else {
                    continue;
                };
                connection.read(began, latency.as_deref_mut())?;
                if phase == ENDING {
                    connection.limit = 0;
                }
                connection.fill(depth, nanos_since(began));
                connection.write()?;
                connection.rearm(&self.epoll, index)?;
            }
        }
        Ok(())
    }
}

fn nanos_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// One connection with its session.
#[derive(Debug)]
struct Connection {
    number: usize,
    stream: TcpStream,
    requests: Requests,
    /// No request is sent once so many have been.
    limit: u64,
    /// When each request in flight was sent.
    in_flight: VecDeque<u64>,
    /// Of the newest request; the oldest in flight is `xid - in_flight.len() + 1`.
    xid: i32,
    out: Vec<u8>,
    written: usize,
    waits_for_room: bool,
    input: Vec<u8>,
    filled: usize,
}

impl Connection {
    fn open(address: SocketAddr, mix: Mix, number: usize, limit: u64) -> Result<Self> {
        let stream = Session::open(address, TIMEOUT_MS)?.into_stream()?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            number,
            stream,
            requests: Requests::new(mix, number, SmallRng::seed_from_u64(number as u64)),
            limit,
            in_flight: VecDeque::new(),
            xid: 0,
            out: Vec::new(),
            written: 0,
            waits_for_room: false,
            input: vec![0; 64 << 10],
            filled: 0,
        })
    }

    /// Queues requests until `depth` are in flight.
    fn fill(&mut self, depth: usize, now: u64) {
        while self.in_flight.len() < depth && self.requests.sent() < self.limit {
            self.xid += 1;
            self.requests.push(self.xid, &mut self.out);
            self.in_flight.push_back(now);
        }
    }

    fn write(&mut self) -> Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => bail!("the connection takes no more bytes"),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("send requests"),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Tells epoll to wait for room when there is something left to send.
    fn rearm(&mut self, epoll: &std::os::fd::OwnedFd, index: usize) -> Result<()> {
        let waits = !self.out.is_empty();
        if waits != self.waits_for_room {
            self.waits_for_room = waits;
            let room = if waits {
                epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::empty()
            };
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(epoll, &self.stream, data, epoll::EventFlags::IN | room)?;
        }
        Ok(())
    }

    fn read(&mut self, began: Instant, mut latency: Option<&mut Histogram<u64>>) -> Result<()> {
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error).context("receive replies"),
        }
        let now = nanos_since(began);
        let mut at = 0;
        while let Some((xid, error, len)) = reply_at(&self.input[at..self.filled])? {
            at += len;
            let sent = self.in_flight.pop_front().context("a reply to nothing")?;
            let left = i32::try_from(self.in_flight.len()).unwrap_or(i32::MAX);
            ensure!(
                xid == self.xid - left,
                "reply {xid}, not {}",
                self.xid - left
            );
            ensure!(error == 0, "the server answers error {error}");
            if let Some(latency) = latency.as_deref_mut() {
                latency.saturating_record(now.saturating_sub(sent));
            }
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        ensure!(
            self.filled < self.input.len(),
            "a reply of more than 64 KiB"
        );
        Ok(())
    }

    fn done(&self) -> bool {
        self.in_flight.is_empty() && self.requests.sent() >= self.limit
    }

    /// Closes the session, so that none is left to expire during what comes next.
    fn close(mut self) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        let mut frame = BytesMut::new();
        Request::CloseSession.encode_frame(Xid(self.xid + 1), &mut frame);
        self.stream.write_all(&frame)?;
        let mut reply = [0; 20];
        self.stream
            .read_exact(&mut reply)
            .context("close a session")?;
        Ok(())
    }
}

/// The xid and error of the reply at the start of `bytes`, and the length of its frame; `None` when
/// it is not all there.
fn reply_at(bytes: &[u8]) -> Result<Option<(i32, i32, usize)>> {
    let Some((head, _)) = bytes.split_first_chunk::<20>() else {
        return Ok(None);
    };
    let int = |at: usize| i32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = usize::try_from(int(0)).context("a frame of negative length")?;
    ensure!(len >= 16, "a reply of {len} bytes");
    Ok((bytes.len() >= 4 + len).then_some((int(4), int(16), 4 + len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_found_whole_or_not_at_all() {
        let mut bytes = vec![0, 0, 0, 17];
        bytes.extend(7_i32.to_be_bytes());
        bytes.extend(9_i64.to_be_bytes());
        bytes.extend((-101_i32).to_be_bytes());
        assert_eq!(reply_at(&bytes).unwrap(), None);
        bytes.push(1);
        assert_eq!(reply_at(&bytes).unwrap(), Some((7, -101, 21)));
        bytes[3] = 3;
        assert!(reply_at(&bytes).is_err());
    }
}
