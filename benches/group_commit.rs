//! Group commit: clients with one write each on its way, by how many batches may be in flight at a time.
//!
//! No sockets and no tree: what a client is told is durable, and it asks again. Records that come while as many batches
//! are in flight as may be wait together for the next one. Criterion's estimate is the time per record; latencies of
//! single records are printed below it. Data lies below `target`, on the disk that is measured;
//! `RINGKEEPER_BENCH_DIR` names another place.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::latency::Latencies;
use ringkeeper_benches::{directory, environment, executor};
use ringkeeper_proto::Zxid;
use ringkeeper_storage::{Dirs, DmaDisk, LogOptions, Opened, Store, TxnLog};
use ringkeeper_transport::{pulse, run_executor, sleep, spawn_local};

/// What a client needs from its answer to its next request: two ways over loopback.
const TURNAROUND: Duration = Duration::from_micros(30);

/// The most records of a measurement; criterion is told its share.
const RECORDS: u64 = 50_000;

/// The clients, and the log that they write to.
struct Clients {
    log: TxnLog<DmaDisk>,
    /// So many batches may be in flight.
    in_flight_max: usize,
    len: usize,
    /// When each of those that wait asked.
    waiting: Vec<Instant>,
    zxid: u64,
    /// Records that are still to be asked for.
    left: u64,
    unanswered: u64,
    latencies: Latencies,
}

type Shared = Rc<RefCell<Clients>>;

fn ask(clients: &Shared, count: usize) {
    {
        let mut this = clients.borrow_mut();
        let count = count.min(usize::try_from(this.left).unwrap_or(usize::MAX));
        this.left -= count as u64;
        this.unanswered += count as u64;
        let now = Instant::now();
        this.waiting.extend(std::iter::repeat_n(now, count));
    }
    write(clients);
}

fn write(clients: &Shared) {
    loop {
        let mut this = clients.borrow_mut();
        if this.waiting.is_empty() || this.log.in_flight() >= this.in_flight_max {
            return;
        }
        let mut batch = this.log.new_batch();
        let mut asked = Vec::new();
        while batch.has_room(this.len)
            && let Some(at) = this.waiting.pop()
        {
            this.zxid += 1;
            let zxid = Zxid(this.zxid);
            batch
                .append(zxid, this.len, |place| place.fill(b'x'))
                .expect("within the limits");
            asked.push(at);
        }
        let written = this.log.write(batch, Zxid::ZERO);
        drop(this);
        let clients = Rc::clone(clients);
        let answer = async move {
            written.await.expect("the disk writes");
            {
                let mut this = clients.borrow_mut();
                for at in &asked {
                    this.latencies.record(at.elapsed());
                }
                this.unanswered -= asked.len() as u64;
            }
            write(&clients);
            sleep(TURNAROUND).await;
            ask(&clients, asked.len());
        };
        spawn_local(answer).detach();
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
/// `count` records of `len` bytes by so many clients.
fn run(
    dir: &Path,
    in_flight_max: usize,
    clients: usize,
    len: usize,
    count: u64,
) -> (Duration, Latencies) {
    let dir = dir.to_owned();
    let main = async move {
        let disk = DmaDisk::new().expect("the executor has a ring");
        let _busy = pulse::busy();
        let opened = Store::open(disk, &Dirs::single(&dir), LogOptions::default()).await;
        let Opened { store, log, .. } = opened.expect("an own directory");
        let maintenance = spawn_local(log.maintenance());
        let zxid = log.last_zxid().0;
        let shared = Rc::new(RefCell::new(Clients {
            log,
            in_flight_max,
            len,
            waiting: Vec::new(),
            zxid,
            left: count,
            unanswered: 0,
            latencies: Latencies::new(),
        }));
        // Without the first batches: they allocate what the others use again.
        ask(&shared, clients);
        sleep(Duration::from_millis(5)).await;
        let (began, answered) = (Instant::now(), shared.borrow().latencies.count());
        shared.borrow_mut().latencies = Latencies::new();
        while {
            let this = shared.borrow();
            this.left + this.unanswered > 0
        } {
            sleep(Duration::from_micros(50)).await;
        }
        let latencies = shared.borrow().latencies.clone();
        let took = began
            .elapsed()
            .mul_f64(count as f64 / (count - answered).max(1) as f64);
        maintenance.cancel().await;
        drop((shared, store));
        (took, latencies)
    };
    run_executor(&executor(), main).expect("io_uring is needed")
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn share(took: Duration, count: u64, records: u64) -> Duration {
    took.mul_f64(count as f64 / records as f64)
}

fn group_commit(criterion: &mut Criterion) {
    let dir = directory();
    environment::print(Some(dir.path()));
    for len in [100, 1024] {
        for clients in [1, 8, 64, 1000] {
            let mut group = criterion.benchmark_group(format!("{len} B, clients: {clients}"));
            group.throughput(Throughput::Elements(1));
            for in_flight_max in [1, 2, 4] {
                let mut all = Latencies::new();
                let place = dir.path().join(format!("{len}-{clients}-{in_flight_max}"));
                std::fs::create_dir(&place).expect("room for it");
                group.bench_function(format!("{in_flight_max} in flight"), |bencher| {
                    bencher.iter_custom(|count| {
                        let records = RECORDS.min(clients as u64 * 1000);
                        let (took, latencies) = run(&place, in_flight_max, clients, len, records);
                        all.add(&latencies);
                        share(took, count, records)
                    });
                });
                if all.count() > 0 {
                    println!("  {all}");
                }
                std::fs::remove_dir_all(&place).expect("it is ours");
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = group_commit
}
criterion_main!(benches);
