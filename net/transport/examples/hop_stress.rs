//! One lone client hopping between two executors: the case in which nothing else wakes an executor
//! that parked with work left. Prints round trips, the longest stall, and what the pulses did.
//!
//! ```text
//! cargo run --release -p ringkeeper-transport --example hop_stress -- [seconds] [mode] [clients] [think] [pulse]
//! ```
//! - `seconds`: how long, 10.
//! - `mode`: `hop` (shard -> mailbox -> core -> chain -> shard, as the server does), `direct` (answered
//!   on the shard), or `mail` (no sockets: two executors sending one message to and fro). `hop`.
//! - `clients`: connections, each on a thread of its own, 1.
//! - `think`: the longest pause between two requests in microseconds, 0. The pauses vary, so that
//!   requests meet the executors at every stage of falling asleep.
//! - `pulse`: milliseconds between two beats, 2. With a long one, what the pulse is there for shows as
//!   stalls of that length.
#![expect(clippy::print_stdout, reason = "it is what an example is for")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use ringkeeper_transport::mailbox::{self, Receiver, Sender};
use ringkeeper_transport::{
    Chain, Connection, Cursor, ExecutorSpec, ListenOptions, Listener, WriteHalf, busy, pulse,
    spawn_executor, spawn_local,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// From a connection's number, what it asked.
type Request = (u64, Bytes);
type Batch = Vec<Request>;

/// The size of a small request of the real protocol.
const BODY_BYTES: usize = 64;

/// A stall longer than ten minutes counts as one of ten minutes.
const HISTOGRAM_NS_MAX: u64 = 600_000_000_000;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Hop,
    Direct,
    Mail,
}

#[derive(Clone, Copy)]
struct Plan {
    duration: Duration,
    mode: Mode,
    clients: usize,
    think_us: u64,
    pulse: Duration,
}

impl Plan {
    fn parse() -> Result<Self, Failure> {
        let mut args = std::env::args().skip(1);
        let duration = Duration::from_secs(args.next().as_deref().unwrap_or("10").parse()?);
        let mode = match args.next().as_deref() {
            None | Some("hop") => Mode::Hop,
            Some("direct") => Mode::Direct,
            Some("mail") => Mode::Mail,
            Some(other) => return Err(format!("unknown mode {other}").into()),
        };
        let clients = args.next().as_deref().unwrap_or("1").parse()?;
        let think_us = args.next().as_deref().unwrap_or("0").parse()?;
        let pulse_ms = args.next().as_deref().unwrap_or("2").parse()?;
        Ok(Self {
            duration,
            mode,
            clients,
            think_us,
            pulse: Duration::from_millis(pulse_ms),
        })
    }

    fn executor(&self, name: &str) -> ExecutorSpec {
        let mut spec = ExecutorSpec::new(name, None);
        spec.pulse.busy = self.pulse;
        spec.pulse.idle = spec.pulse.idle.max(self.pulse);
        spec
    }
}

fn main() -> Result<(), Failure> {
    let plan = Plan::parse()?;
    let histogram = match plan.mode {
        Mode::Mail => run_mail(plan)?,
        Mode::Hop | Mode::Direct => run_sockets(plan)?,
    };
    report(plan, &histogram);
    Ok(())
}

fn report(plan: Plan, histogram: &Histogram<u64>) {
    let us = |ns: u64| ns / 1000;
    println!(
        "{} round trips, {:.0}/s; us: p50 {} p99 {} p99.9 {} p99.99 {} max {}",
        histogram.len(),
        histogram.len() as f64 / plan.duration.as_secs_f64(),
        us(histogram.value_at_quantile(0.5)),
        us(histogram.value_at_quantile(0.99)),
        us(histogram.value_at_quantile(0.999)),
        us(histogram.value_at_quantile(0.9999)),
        us(histogram.max()),
    );
    for step in histogram.iter_log(4000, 2.0) {
        if step.count_since_last_iteration() > 0 {
            println!(
                "  up to {:>9} us: {}",
                us(step.value_iterated_to()),
                step.count_since_last_iteration()
            );
        }
    }
    let counters = pulse::counters();
    println!(
        "pulse: {} beats, {} rescues ({} kicks), longest stall {} us, {} suspicions",
        counters.beats.load(Ordering::Relaxed),
        counters.rescues.load(Ordering::Relaxed),
        counters.kicks.load(Ordering::Relaxed),
        us(counters.stall_max_ns.load(Ordering::Relaxed)),
        counters.suspicions.load(Ordering::Relaxed),
    );
}

fn new_histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, HISTOGRAM_NS_MAX, 3)?)
}

/// Pauses of 0 to `think_us`, by a multiplicative generator.
struct Think {
    state: u64,
    think_us: u64,
}

impl Think {
    fn pause(&mut self) {
        if self.think_us > 0 {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            thread::sleep(Duration::from_micros((self.state >> 33) % self.think_us));
        }
    }
}

fn run_mail(plan: Plan) -> Result<Histogram<u64>, Failure> {
    let (to_core, mut core_box) = mailbox::bounded::<u64>(16);
    let (to_shard, mut shard_box) = mailbox::bounded::<u64>(16);
    let core = spawn_executor(plan.executor("core"), move || async move {
        while let Some(item) = core_box.recv().await {
            if to_shard.send(item).is_err() {
                break;
            }
        }
    })?;
    let shard = spawn_executor(plan.executor("shard"), move || async move {
        let mut histogram = new_histogram()?;
        let end = Instant::now() + plan.duration;
        let mut start = Instant::now();
        while start < end {
            let _busy = busy();
            if to_core.send(0).is_err() || shard_box.recv().await.is_none() {
                break;
            }
            let now = Instant::now();
            histogram.saturating_record(nanos(now - start));
            start = now;
        }
        Ok::<_, Failure>(histogram)
    })?;
    let histogram = shard.join()??;
    core.join()?;
    Ok(histogram)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn run_sockets(plan: Plan) -> Result<Histogram<u64>, Failure> {
    let (to_core, core_box) = mailbox::bounded::<Batch>(4096);
    let mut chain = Chain::new();
    let cursor = chain.cursor();
    let core = spawn_executor(plan.executor("core"), move || serve_core(core_box, chain))?;
    let (listening, addr) = mpsc::channel();
    let shard = spawn_executor(plan.executor("shard"), move || {
        serve_shard(plan, listening, to_core, cursor)
    })?;
    let addr: SocketAddr = addr.recv()?;
    let clients: Vec<_> = (0..plan.clients)
        .map(|seed| thread::spawn(move || run_client(addr, plan, seed as u64)))
        .collect();
    let mut histogram = new_histogram()?;
    for client in clients {
        histogram.add(client.join().map_err(|_| "a client panicked")??)?;
    }
    shard.join()?;
    core.join()?;
    Ok(histogram)
}

fn run_client(addr: SocketAddr, plan: Plan, seed: u64) -> Result<Histogram<u64>, Failure> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let length = u32::try_from(BODY_BYTES)?.to_be_bytes();
    let request = [&length[..], &[7; BODY_BYTES]].concat();
    let mut reply = [0; BODY_BYTES + 4];
    let mut histogram = new_histogram()?;
    let mut think = Think {
        state: seed,
        think_us: plan.think_us,
    };
    let end = Instant::now() + plan.duration;
    loop {
        think.pause();
        let start = Instant::now();
        if start >= end {
            return Ok(histogram);
        }
        stream.write_all(&request)?;
        stream.read_exact(&mut reply)?;
        histogram.saturating_record(nanos(start.elapsed()));
    }
}

/// The replica core's part: takes batches, appends them to the chain, rings.
async fn serve_core(mut core_box: Receiver<Batch>, mut chain: Chain<Batch>) {
    let mut batches = Vec::new();
    let mut freed = Vec::new();
    while core_box.recv_batch(&mut batches).await > 0 {
        for batch in batches.drain(..) {
            chain.append(batch, BODY_BYTES, &mut freed);
        }
        chain.ring();
        freed.clear();
    }
}

type Connections = Rc<RefCell<BTreeMap<u64, WriteHalf>>>;

/// The shard's part: accepts as many connections as there are clients, and ends with the last.
async fn serve_shard(
    plan: Plan,
    listening: mpsc::Sender<SocketAddr>,
    to_core: Sender<Batch>,
    cursor: Cursor<Batch>,
) {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let Ok(mut listener) = Listener::bind(addr, ListenOptions::default()) else {
        return;
    };
    if listening.send(listener.local_addr()).is_err() {
        return;
    }
    let connections = Connections::default();
    let walker = spawn_local(walk(cursor, Rc::clone(&connections)));
    let mut readers = Vec::new();
    for id in 0..plan.clients as u64 {
        let Some(connection) = listener.accept().await else {
            return;
        };
        let to_core = (plan.mode == Mode::Hop).then(|| to_core.clone());
        let connections = Rc::clone(&connections);
        readers.push(spawn_local(read(id, connection, to_core, connections)));
    }
    for reader in readers {
        let _ = reader.await;
    }
    walker.cancel().await;
}

/// Sends the answers that come along the chain, one send per connection.
async fn walk(mut cursor: Cursor<Batch>, connections: Connections) {
    let mut bell = cursor.doorbell();
    loop {
        bell.rung().await;
        while let Some(batch) = cursor.next() {
            let connections = connections.borrow();
            for (id, body) in batch {
                if let Some(write) = connections.get(id) {
                    put(write, body);
                    // The reader finds out.
                    let _ = write.flush();
                }
            }
        }
    }
}

fn put(write: &WriteHalf, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut out = write.queue();
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
}

async fn read(
    id: u64,
    connection: Connection,
    to_core: Option<Sender<Batch>>,
    connections: Connections,
) -> io::Result<()> {
    let (mut read, write) = connection.split();
    connections.borrow_mut().insert(id, write.clone());
    while read.recv().await? > 0 {
        let mut batch = Batch::new();
        while let Some(body) = read.next_frame().map_err(io::Error::other)? {
            batch.push((id, body));
        }
        match &to_core {
            Some(to_core) => to_core.send(batch).map_err(|_| io::ErrorKind::BrokenPipe)?,
            None => {
                batch.iter().for_each(|(_, body)| put(&write, body));
                write.flush().map_err(io::Error::other)?;
            }
        }
    }
    connections.borrow_mut().remove(&id);
    Ok(())
}
