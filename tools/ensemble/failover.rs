//! How long a client of a surviving member waits for its next write when the leader is killed.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringkeeper_harness::{Resume, Session};
use ringkeeper_proto::{Request, Zxid};

use crate::ensemble::Ensemble;
use crate::load::create;

const PATIENCE: Duration = Duration::from_secs(120);
const SESSION_MS: i32 = 20_000;
const PROBE: &str = "/probe";

/// Writes in flight while znodes are made.
const DEPTH: u64 = 1_000;

/// Children of each parent that is made. Nothing is in flight when one is.
const CHILDREN: u64 = 10 * DEPTH;

/// How long to wait between two attempts to reach a member.
const PAUSE: Duration = Duration::from_millis(1);

/// Makes `znodes` znodes of 100 bytes below `/data`.
///
/// # Errors
/// When a write fails.
pub fn populate(ensemble: &Ensemble, znodes: u64) -> Result<()> {
    let leader = ensemble.leader().context("there is no leader")?;
    let mut session = Session::open(ensemble.address(leader)?, SESSION_MS)?;
    let data = [b'd'; 100];
    session.call(&create("/data", b""))?.ok()?;
    let mut made = 0;
    while made < znodes {
        let some = DEPTH.min(znodes - made);
        for number in made..made + some {
            if number % CHILDREN == 0 {
                let parent = format!("/data/p{}", number / CHILDREN);
                session.call(&create(&parent, b""))?.ok()?;
            }
            let path = format!("/data/p{}/n{number:08}", number / CHILDREN);
            session.send(&create(&path, &data));
        }
        session.flush()?;
        for _ in 0..some {
            session.receive()?.ok()?;
        }
        made += some;
    }
    session.close()
}

/// Kills the leader `kills` times; how long each time no write of a client at another member was
/// acknowledged, in order.
///
/// # Errors
/// When the ensemble does not come back.
pub fn measure(ensemble: &mut Ensemble, kills: u32) -> Result<Vec<Duration>> {
    let leader = ensemble.leader().context("there is no leader")?;
    let mut session = Session::open(ensemble.address(leader)?, SESSION_MS)?;
    session.call(&create(PROBE, b""))?.ok()?;
    session.close()?;
    let mut pauses = Vec::new();
    for _ in 0..kills {
        pauses.push(kill_once(ensemble)?);
        ensemble.wait_until_serving(PATIENCE)?;
    }
    Ok(pauses)
}

fn kill_once(ensemble: &mut Ensemble) -> Result<Duration> {
    let leader = ensemble.leader().context("there is no leader")?;
    let survivors: Vec<_> = ensemble
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let addresses = survivors.iter().map(|id| ensemble.address(*id));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let home = addresses.first().context("there is no other member")?;
    let mut client = Client::new(*home)?;
    for _ in 0..50 {
        client.write()?;
    }
    // The client's thread writes on; what it does not know is when the leader dies.
    let (ready, is_ready) = std::sync::mpsc::channel();
    let writing = thread::spawn(move || {
        client.write()?;
        _ = ready.send(());
        client.write_through(&addresses)
    });
    is_ready.recv().context("the client has given up")?;
    let killed = Instant::now();
    ensemble.kill(leader)?;
    let outcome = writing.join();
    let next = match outcome {
        Ok(outcome) => outcome?,
        Err(_) => bail!("the client panicked"),
    };
    ensemble.spawn(leader)?;
    Ok(next.saturating_duration_since(killed))
}

struct Client {
    session: Session,
    zxid: Zxid,
}

impl Client {
    fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            session: Session::open(address, SESSION_MS)?,
            zxid: Zxid::ZERO,
        })
    }

    fn write(&mut self) -> Result<()> {
        let set = Request::SetData {
            path: PROBE,
            data: Some(b"x"),
            version: -1,
        };
        let reply = self.session.call(&set)?;
        self.zxid = self.zxid.max(reply.header.zxid);
        reply.ok()?;
        Ok(())
    }

    /// Writes until its connection ends, and until the first write after that; returns when that was
    /// acknowledged.
    fn write_through(mut self, addresses: &[SocketAddr]) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        while self.write().is_ok() {
            ensure!(Instant::now() < deadline, "the connection did not end");
        }
        let key = self.session.key();
        for address in addresses.iter().cycle() {
            ensure!(Instant::now() < deadline, "no member takes a write");
            let found = Session::resume_within(
                *address,
                SESSION_MS,
                key,
                self.zxid,
                Duration::from_secs(5),
            );
            match found {
                Ok(Resume::Alive(session)) => {
                    self.session = session;
                    if self.write().is_ok() {
                        let written = Instant::now();
                        // The last that is asked of it.
                        _ = self.session.close();
                        return Ok(written);
                    }
                }
                Ok(Resume::Expired) => bail!("the session has expired"),
                Err(_) => thread::sleep(PAUSE),
            }
        }
        bail!("there is no member")
    }
}
