//! Clients of a whole server: each has one request in flight, all of them one thread.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use ringkeeper_harness::Session;
use ringkeeper_proto::reply::ReplyHeader;
use ringkeeper_proto::{Reader, Request, Xid};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::latency::{Answered, Latencies};

const TIMEOUT_MS: i32 = 40_000;
/// Longer than any reply to what the benches ask for.
const REPLY_LEN_MAX: usize = 4096;
/// What epoll says of the timer; clients have their index.
const TIMER: u64 = u64::MAX;

/// Sessions with one request in flight each.
#[derive(Debug)]
pub struct Clients {
    /// `None` for a lone client: it waits in its read, as a plain client does.
    epoll: Option<OwnedFd>,
    clients: Vec<Client>,
    answered: Vec<Answered>,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    xid: i32,
    sent: Option<Instant>,
    out: BytesMut,
    input: Vec<u8>,
}

impl Clients {
    /// Opens `count` sessions.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let epoll = (count > 1)
            .then(|| epoll::create(epoll::CreateFlags::CLOEXEC))
            .transpose()?;
        let mut clients = Vec::with_capacity(count);
        for index in 0..count {
            let stream = Session::open(address, TIMEOUT_MS)?.into_stream()?;
            if let Some(epoll) = &epoll {
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(epoll, &stream, data, epoll::EventFlags::IN)?;
            }
            clients.push(Client {
                stream,
                // The session's own requests had others.
                xid: 1000,
                sent: None,
                out: BytesMut::new(),
                input: Vec::with_capacity(REPLY_LEN_MAX),
            });
        }
        Ok(Self {
            epoll,
            clients,
            answered: Vec::new(),
        })
    }

    /// Sends `count` requests in all and waits for their replies, which must be successes. `encode` appends
    /// the request of the client with this index, under this xid.
    ///
    /// # Errors
    /// When a connection is gone or a request fails.
    pub fn run(
        &mut self,
        count: u64,
        mut encode: impl FnMut(usize, Xid, &mut BytesMut),
    ) -> Result<Duration> {
        let began = Instant::now();
        let (mut sent, mut done) = (0, 0);
        for (index, client) in self.clients.iter_mut().enumerate() {
            if sent < count {
                client.send(index, Instant::now(), &mut encode)?;
                sent += 1;
            }
        }
        let mut ready = Vec::new();
        while done < count {
            self.wait(&mut ready)?;
            for index in ready.drain(..) {
                // One that waits for nothing has had its session closed, and its connection ends.
                let waits = |client: &&mut Client| client.sent.is_some();
                let Some(client) = self.clients.get_mut(index).filter(waits) else {
                    continue;
                };
                let Some(answered) = client.receive()? else {
                    continue;
                };
                self.answered.push(answered);
                done += 1;
                if sent < count {
                    client.send(index, Instant::now(), &mut encode)?;
                    sent += 1;
                }
            }
        }
        Ok(began.elapsed())
    }

    /// Sends a request each `interval` for `time`, by whichever client is free, and waits for the replies, which must be
    /// successes. Latencies count from when a request was due: what has to wait for a free client has waited, too.
    ///
    /// # Errors
    /// As [`Clients::run`], and when there is one client only or no timer to be had.
    pub fn run_each(
        &mut self,
        interval: Duration,
        time: Duration,
        mut encode: impl FnMut(usize, Xid, &mut BytesMut),
    ) -> Result<()> {
        let epoll = self.epoll.as_ref().context("more than one client")?;
        let timer = timer_of(interval)?;
        let data = epoll::EventData::new_u64(TIMER);
        epoll::add(epoll, &timer, data, epoll::EventFlags::IN)?;
        // In turn: a session whose client has nothing to do for long would expire.
        let mut free: VecDeque<usize> = (0..self.clients.len()).collect();
        let mut waiting = VecDeque::new();
        let began = Instant::now();
        let mut due = began + interval;
        let mut ready = Vec::new();
        while due < began + time || !waiting.is_empty() || free.len() < self.clients.len() {
            self.wait(&mut ready)?;
            forget_expirations(&timer)?;
            while due <= Instant::now() && due < began + time {
                waiting.push_back(due);
                due += interval;
            }
            for index in ready.drain(..) {
                let Some(client) = self.clients.get_mut(index) else {
                    continue;
                };
                if let Some(answered) = client.receive()? {
                    self.answered.push(answered);
                    free.push_back(index);
                }
            }
            while !waiting.is_empty()
                && let Some(index) = free.pop_front()
                && let Some(since) = waiting.pop_front()
            {
                self.clients[index].send(index, since, &mut encode)?;
            }
        }
        Ok(())
    }

    /// The latencies since this or [`Clients::take_answered`] was last asked for.
    pub fn take_latencies(&mut self) -> Latencies {
        self.take_answered().iter().collect()
    }

    /// What was answered since this or [`Clients::take_latencies`] was last asked for.
    pub fn take_answered(&mut self) -> Vec<Answered> {
        std::mem::take(&mut self.answered)
    }

    /// Closes all sessions.
    ///
    /// # Errors
    /// When a connection is gone.
    pub fn close(mut self) -> Result<()> {
        let count = self.clients.len() as u64;
        self.run(count, |_, xid, out| {
            Request::CloseSession.encode_frame(xid, out);
        })?;
        Ok(())
    }

    /// Waits until replies can be read, and names their clients.
    fn wait(&self, ready: &mut Vec<usize>) -> Result<()> {
        let Some(epoll) = &self.epoll else {
            ready.push(0);
            return Ok(());
        };
        let mut events = Vec::with_capacity(self.clients.len());
        match epoll::wait(epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for replies"),
        }
        for event in &events {
            if event.data.u64() != TIMER {
                ready.push(usize::try_from(event.data.u64())?);
            }
        }
        Ok(())
    }
}

impl Client {
    /// Sends a request that was due at `since`.
    fn send(
        &mut self,
        index: usize,
        since: Instant,
        encode: &mut impl FnMut(usize, Xid, &mut BytesMut),
    ) -> Result<()> {
        self.xid += 1;
        self.out.clear();
        encode(index, Xid(self.xid), &mut self.out);
        self.sent = Some(since);
        self.stream.write_all(&self.out).context("send a request")
    }

    /// Reads what is there; the request, when that completes its reply.
    fn receive(&mut self) -> Result<Option<Answered>> {
        let mut chunk = [0; REPLY_LEN_MAX];
        let count = self.stream.read(&mut chunk).context("read a reply")?;
        ensure!(count > 0, "the server closed the connection");
        let arrived = Instant::now();
        self.input
            .extend_from_slice(chunk.get(..count).unwrap_or_default());
        let Some((len, body)) = self.input.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = usize::try_from(i32::from_be_bytes(*len))?;
        if body.len() < len {
            return Ok(None);
        }
        ensure!(body.len() == len, "more than one reply to one request");
        let header = ReplyHeader::decode(&mut Reader::new(body))?;
        ensure!(
            header.xid.0 == self.xid && header.error == 0,
            "reply {header:?} to request {}",
            self.xid
        );
        self.input.clear();
        let since = self.sent.take().context("a reply without a request")?;
        let took = arrived.duration_since(since);
        Ok(Some(Answered { since, took }))
    }
}

/// A timer that fires each `interval`.
fn timer_of(interval: Duration) -> Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let interval = Timespec::try_from(interval)?;
    let each = Itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
    Ok(timer)
}

/// Takes note of what a timer has fired, so that it can be waited for again.
fn forget_expirations(timer: &OwnedFd) -> Result<()> {
    match rustix::io::read(timer, &mut [0; 8]) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error).context("read a timer"),
    }
}

/// Latencies of `len` bytes to another thread and back over loopback, for `time`: what is left of a request when
/// the server does nothing.
///
/// # Errors
/// When loopback does not work.
pub fn measure_loopback(len: usize, time: Duration) -> Result<Latencies> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = thread::spawn(move || {
        let mut buffer = vec![0; len];
        // The near end closes when it has enough.
        while far.read_exact(&mut buffer).is_ok() && far.write_all(&buffer).is_ok() {}
    });
    let mut buffer = vec![b'x'; len];
    let mut latencies = Latencies::new();
    let began = Instant::now();
    while began.elapsed() < time || latencies.count() == 0 {
        let started = Instant::now();
        near.write_all(&buffer)?;
        near.read_exact(&mut buffer)?;
        latencies.record(started.elapsed());
    }
    drop(near);
    ensure!(echo.join().is_ok(), "the echo panicked");
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_measured() {
        let latencies = measure_loopback(100, Duration::from_millis(5)).unwrap();
        assert!(latencies.count() > 0 && latencies.micros(0.5) > 0.5);
    }
}
