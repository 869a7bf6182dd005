//! The workloads, and what is reported of each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::{Request, Stat};

use crate::crowd::Crowd;
use crate::load::{self, Outcome, Shape, TIMEOUT_MS, Until};
use crate::report::{Better, Metric, Report};
use crate::requests::{self, KEYS, KEYS_PARENT, Mix};
use crate::subject::Subject;

/// How long a server may take to start.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(120);

/// Who makes a steady load.
#[derive(Clone, Copy, Debug)]
enum Clients {
    /// `--clients` of them, with `--depth` requests in flight each.
    Many,
    /// So many, with one request in flight each.
    Each(usize),
}

/// A steady load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steady {
    /// How the command line names it.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    mix: Mix,
    clients: Clients,
}

/// In the order they run. Creates are deleted again, so that one load's znodes do not fill the heap
/// of the next.
pub(crate) const STEADY: [Steady; 16] = [
    Steady {
        name: "set",
        title: "set 100 B, many clients",
        mix: Mix::Set,
        clients: Clients::Many,
    },
    Steady {
        name: "create",
        title: "create 100 B, many clients",
        mix: Mix::Create { bytes: 100 },
        clients: Clients::Many,
    },
    Steady {
        name: "create1k",
        title: "create 1 KiB, many clients",
        mix: Mix::Create { bytes: 1024 },
        clients: Clients::Many,
    },
    Steady {
        name: "get",
        title: "get 100 B, many clients",
        mix: Mix::Get,
        clients: Clients::Many,
    },
    Steady {
        name: "mixed",
        title: "70% get, 30% set, many clients",
        mix: Mix::Mixed { gets_of_100: 70 },
        clients: Clients::Many,
    },
    Steady {
        name: "set-alone",
        title: "set 100 B, one client",
        mix: Mix::Set,
        clients: Clients::Each(1),
    },
    Steady {
        name: "create-alone",
        title: "create 100 B, one client",
        mix: Mix::Create { bytes: 100 },
        clients: Clients::Each(1),
    },
    Steady {
        name: "get-alone",
        title: "get 100 B, one client",
        mix: Mix::Get,
        clients: Clients::Each(1),
    },
    Steady {
        name: "set-2",
        title: "set 100 B, 2 clients, one request each",
        mix: Mix::Set,
        clients: Clients::Each(2),
    },
    Steady {
        name: "create-2",
        title: "create 100 B, 2 clients, one request each",
        mix: Mix::Create { bytes: 100 },
        clients: Clients::Each(2),
    },
    Steady {
        name: "set-5",
        title: "set 100 B, 5 clients, one request each",
        mix: Mix::Set,
        clients: Clients::Each(5),
    },
    Steady {
        name: "create-5",
        title: "create 100 B, 5 clients, one request each",
        mix: Mix::Create { bytes: 100 },
        clients: Clients::Each(5),
    },
    Steady {
        name: "set-10",
        title: "set 100 B, 10 clients, one request each",
        mix: Mix::Set,
        clients: Clients::Each(10),
    },
    Steady {
        name: "create-10",
        title: "create 100 B, 10 clients, one request each",
        mix: Mix::Create { bytes: 100 },
        clients: Clients::Each(10),
    },
    Steady {
        name: "set-64",
        title: "set 100 B, 64 clients, one request each",
        mix: Mix::Set,
        clients: Clients::Each(64),
    },
    Steady {
        name: "create-64",
        title: "create 100 B, 64 clients, one request each",
        mix: Mix::Create { bytes: 100 },
        clients: Clients::Each(64),
    },
];

/// The workloads that are not steady loads.
pub(crate) const OTHERS: [&str; 3] = ["storm", "idle", "big"];

/// Sizes and times, as the command line says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) shape: Shape,
    pub(crate) warm_up: Duration,
    pub(crate) ramp: Duration,
    pub(crate) measured: Duration,
    pub(crate) storm: usize,
    pub(crate) idle: usize,
    pub(crate) hold: Duration,
    pub(crate) znodes: u64,
    pub(crate) restarts: u32,
}

/// Znodes for set and get, and the parents of what is created.
pub(crate) fn prepare(subject: &Subject, connections: usize) -> Result<()> {
    let mut session = Session::open(subject.address(0), TIMEOUT_MS)?;
    let mut paths: Vec<String> = vec!["/compare".to_owned(), KEYS_PARENT.to_owned()];
    paths.extend((0..connections).map(requests::parent));
    paths.extend((0..KEYS).map(requests::key_path));
    for path in &paths {
        session.send(&requests::create(path, &[b'k'; 100]));
    }
    session.flush()?;
    for path in &paths {
        session.receive()?.ok().with_context(|| path.clone())?;
    }
    session.close()?;
    // Every server has them before its clients come.
    for address in subject.addresses() {
        let mut session = Session::open(address, TIMEOUT_MS)?;
        session.call(&Request::Sync { path: "/" })?.ok()?;
        session.close()?;
    }
    Ok(())
}

/// Every kind of load for a while, so that the JIT compiler has seen all paths.
pub(crate) fn warm_up(subject: &Subject, scale: &Scale) -> Result<()> {
    let kinds = u32::try_from(STEADY.len())?;
    for steady in STEADY {
        let until = Until::Elapsed {
            ramp: Duration::ZERO,
            measured: scale.warm_up / kinds,
        };
        steady.put_on(subject, scale, &until)?;
    }
    Ok(())
}

impl Steady {
    /// Runs it once and reports.
    pub(crate) fn run(
        &self,
        subject: &Subject,
        index: usize,
        scale: &Scale,
        report: &mut Report,
    ) -> Result<()> {
        let until = Until::Elapsed {
            ramp: scale.ramp,
            measured: scale.measured,
        };
        let outcome = self.put_on(subject, scale, &until)?;
        self.add(&outcome, index, report);
        Ok(())
    }

    fn put_on(&self, subject: &Subject, scale: &Scale, until: &Until) -> Result<Outcome> {
        let shape = match self.clients {
            Clients::Many => scale.shape,
            Clients::Each(connections) => Shape {
                connections,
                depth: 1,
                threads: 1,
            },
        };
        let outcome = load::run(subject, self.mix, shape, until)?;
        if let Mix::Create { .. } = self.mix {
            let until = Until::Sent {
                by_connection: outcome.sent.clone(),
            };
            let shape = Shape { depth: 32, ..shape };
            load::run(subject, Mix::Delete, shape, &until)?;
        }
        Ok(outcome)
    }

    fn add(&self, outcome: &Outcome, index: usize, report: &mut Report) {
        let seconds = outcome.elapsed.as_secs_f64();
        let ops = outcome.ops as f64;
        let micros_per_op = |cpu: Duration| cpu.as_secs_f64() * 1e6 / ops.max(1.0);
        let micros = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1e3;
        let server_micros = micros_per_op(outcome.server_cpu);
        let mut add = |name, unit, better, value| {
            let metric = Metric { name, unit, better };
            report.add(self.title, metric, index, value);
        };
        add("throughput", "ops/s", Better::Higher, ops / seconds);
        add("p50", "us", Better::Lower, micros(0.5));
        add("p99", "us", Better::Lower, micros(0.99));
        add("p99.9", "us", Better::Lower, micros(0.999));
        add(
            "longest",
            "us",
            Better::Lower,
            outcome.latency.max() as f64 / 1e3,
        );
        add("server CPU per op", "us", Better::Lower, server_micros);
        let of_a_core = outcome.own_cpu.as_secs_f64() / seconds * 100.0;
        add(
            "load's CPU per op",
            "us",
            Better::Neither,
            micros_per_op(outcome.own_cpu),
        );
        add("load's CPU", "% of a core", Better::Neither, of_a_core);
    }
}

/// `scale.storm` clients connect at once.
pub(crate) fn storm(
    subject: &Subject,
    index: usize,
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let title = format!("{} clients connect at once", scale.storm);
    let before = subject.usage()?;
    let crowd = Crowd::assemble(subject, scale.storm, scale.storm)?;
    let cpu = subject.usage()?.cpu.saturating_sub(before.cpu);
    let count = scale.storm as f64;
    let mut add = |name, unit, better, value| {
        report.add(&title, Metric { name, unit, better }, index, value);
    };
    let millis = |quantile| crowd.latency.value_at_quantile(quantile) as f64 / 1e6;
    add(
        "all have a session",
        "ms",
        Better::Lower,
        crowd.assembled_in.as_secs_f64() * 1e3,
    );
    add("p50", "ms", Better::Lower, millis(0.5));
    add("p99", "ms", Better::Lower, millis(0.99));
    add(
        "server CPU per session",
        "us",
        Better::Lower,
        cpu.as_secs_f64() * 1e6 / count,
    );
    crowd.dismiss()
}

/// `scale.idle` clients do nothing but ping.
pub(crate) fn idle(
    subject: &Subject,
    index: usize,
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let title = format!("{} idle clients", scale.idle);
    let before = subject.usage()?;
    let mut crowd = Crowd::assemble(subject, scale.idle, 200)?;
    let held = crowd.hold(subject, scale.hold)?;
    let grown = subject.usage()?.rss.saturating_sub(before.rss);
    let seconds = held.elapsed.as_secs_f64();
    let of_a_core = |cpu: Duration| cpu.as_secs_f64() / seconds * 100.0;
    let mut add = |name, unit, better, value| {
        report.add(&title, Metric { name, unit, better }, index, value);
    };
    add(
        "all have a session",
        "ms",
        Better::Lower,
        crowd.assembled_in.as_secs_f64() * 1e3,
    );
    add(
        "RSS grown per client",
        "KiB",
        Better::Lower,
        grown as f64 / 1024.0 / scale.idle as f64,
    );
    add(
        "server CPU",
        "% of a core",
        Better::Lower,
        of_a_core(held.server_cpu),
    );
    add("pings", "1/s", Better::Neither, held.pings as f64 / seconds);
    add(
        "load's CPU",
        "% of a core",
        Better::Neither,
        of_a_core(held.own_cpu),
    );
    crowd.dismiss()
}

/// A big tree: loading it, memory, restart. The server must be fresh.
pub(crate) fn big(
    subject: &mut Subject,
    index: usize,
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let connections = scale.shape.connections;
    let each = scale.znodes / connections as u64;
    let total = each * connections as u64;
    let title = format!("{total} znodes of 100 B");
    prepare(subject, connections)?;
    let until = Until::Sent {
        by_connection: vec![each; connections],
    };
    let mix = Mix::Create { bytes: 100 };
    let outcome = load::run(subject, mix, scale.shape, &until)?;
    let mut add = |name, unit, better, value| {
        report.add(&title, Metric { name, unit, better }, index, value);
    };
    let seconds = outcome.elapsed.as_secs_f64();
    add(
        "loading",
        "ops/s",
        Better::Higher,
        outcome.ops as f64 / seconds,
    );
    // A snapshot that the load has started may still be under way.
    std::thread::sleep(Duration::from_secs(3));
    const MIB: f64 = (1 << 20) as f64;
    add(
        "RSS after loading",
        "MiB",
        Better::Lower,
        subject.usage()?.rss as f64 / MIB,
    );
    for _ in 0..scale.restarts {
        subject.terminate()?;
        let began = Instant::now();
        subject.start(START_PATIENCE)?;
        let mut session = Session::open(subject.address(0), TIMEOUT_MS)?;
        session.call(&requests::get(&requests::key_path(0)))?.ok()?;
        add(
            "restart until a read is answered",
            "s",
            Better::Lower,
            began.elapsed().as_secs_f64(),
        );
        let mut found = 0;
        for connection in 0..connections {
            let parent = requests::parent(connection);
            let reply = session.call(&Request::Exists {
                path: &parent,
                watch: false,
            })?;
            found += i64::from(Stat::decode(&mut reply.ok()?)?.num_children);
        }
        ensure!(
            u64::try_from(found) == Ok(total),
            "{found} of {total} znodes are there after a restart"
        );
        session.close()?;
    }
    add(
        "RSS after a restart",
        "MiB",
        Better::Lower,
        subject.usage()?.rss as f64 / MIB,
    );
    Ok(())
}
