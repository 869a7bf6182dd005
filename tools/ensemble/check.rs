//! What must be there when a load has ended, at every member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::{OpCode, Request};

use crate::load::{Written, parent};

const SESSION_MS: i32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found at each member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Znodes of steps.
    pub steps: usize,
    /// Members that were asked.
    pub members: usize,
}

/// Checks that each member shows exactly the steps that are known to have happened, in the order in
/// which they were sent, and that all members show the same.
///
/// # Errors
/// The first difference.
pub fn check(members: &[SocketAddr], written: &[Written]) -> Result<Found> {
    let mut found = Found::default();
    for address in members {
        let mut session = Session::open_within(*address, SESSION_MS, PATIENCE)
            .with_context(|| format!("ask the member at {address}"))?;
        let mut steps = 0;
        for known in written {
            steps += check_writer(&mut session, known)
                .with_context(|| format!("at {address}, writer {}", known.writer))?;
        }
        ensure!(
            found.members == 0 || found.steps == steps,
            "the member at {address} has {steps} steps, others have {}",
            found.steps
        );
        found.steps = steps;
        found.members += 1;
        session.close()?;
    }
    Ok(found)
}

fn check_writer(session: &mut Session, known: &Written) -> Result<usize> {
    let parent = parent(known.writer);
    session.call(&Request::Sync { path: &parent })?.ok()?;
    let present = czxids(session, &parent)?;
    let mut before = 0;
    for (step, told) in &known.steps {
        let name = format!("n{step:08}");
        let czxid = present.get(&name);
        let czxid = *czxid.with_context(|| format!("LOST: step {step} was acknowledged"))?;
        ensure!(
            told.is_none_or(|told| told == czxid),
            "step {step} was told to be {told:x?}, and is {czxid:#x}"
        );
        ensure!(
            czxid > before,
            "ORDER: step {step} is {czxid:#x}, the one before it {before:#x}"
        );
        before = czxid;
    }
    ensure!(
        present.len() == known.steps.len(),
        "{} znodes are there, {} steps are known to have happened",
        present.len(),
        known.steps.len()
    );
    let reply = session.call(&Request::GetData {
        path: &parent,
        watch: false,
    })?;
    let data = reply.ok()?.buffer()?.unwrap_or_default().to_vec();
    let last = known.steps.last().map_or(0, |(step, _)| *step);
    let shown: u64 = std::str::from_utf8(&data)?.parse()?;
    ensure!(
        shown <= last,
        "{parent} says {shown}, and the last step that has happened is {last}"
    );
    Ok(present.len())
}

/// The children of a znode and when they were created, read with many requests in flight.
fn czxids(session: &mut Session, path: &str) -> Result<BTreeMap<String, i64>> {
    let reply = session.call(&Request::GetChildren {
        op: OpCode::GetChildren,
        path,
        watch: false,
    })?;
    let mut body = reply.ok()?;
    let names: Vec<String> = body.strings()?.into_iter().map(str::to_owned).collect();
    let mut found = BTreeMap::new();
    for some in names.chunks(500) {
        for name in some {
            let path = format!("{path}/{name}");
            session.send(&Request::Exists {
                path: &path,
                watch: false,
            });
        }
        session.flush()?;
        for name in some {
            let reply = session.receive()?;
            let czxid = reply.ok()?.long()?;
            found.insert(name.clone(), czxid);
        }
    }
    Ok(found)
}
