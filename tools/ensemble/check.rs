//! What must be there when a load has ended, at every member.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::{OpCode, Request};

use crate::ensemble::Ensemble;
use crate::load::{ROOT, Written, parent};

const SESSION_MS: i32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

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
        let mut session = open_patiently(*address)?;
        session.call(&Request::Sync { path: ROOT })?.ok()?;
        let left = children(&mut session, ROOT)?;
        let left: Vec<_> = left.iter().filter(|name| !name.starts_with('w')).collect();
        ensure!(
            left.is_empty(),
            "EPHEMERAL: {left:?} are at {address}, and their sessions have ended"
        );
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

/// A session at a member that may be between two leaders.
///
/// # Errors
/// When it gives none within [`PATIENCE`].
pub(crate) fn open_patiently(address: SocketAddr) -> Result<Session> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Session::open_within(address, SESSION_MS, PATIENCE) {
            Ok(session) => return Ok(session),
            Err(_) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(error) => return Err(error.context(format!("ask the member at {address}"))),
        }
    }
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
    let shown: u64 = std::str::from_utf8(&data)?.trim_end().parse()?;
    ensure!(
        shown <= last,
        "{parent} says {shown}, and the last step that has happened is {last}"
    );
    Ok(present.len())
}

fn children(session: &mut Session, path: &str) -> Result<Vec<String>> {
    let reply = session.call(&Request::GetChildren {
        op: OpCode::GetChildren,
        path,
        watch: false,
    })?;
    let mut body = reply.ok()?;
    Ok(body.strings()?.into_iter().map(str::to_owned).collect())
}

/// Checks, in what Ringkeeper's members have logged, that no epoch had two leaders; returns how many had
/// one. A member's word for it is a line with `leads_epoch=N`.
///
/// # Errors
/// When one had two, or a log cannot be read.
pub fn check_epochs(ensemble: &Ensemble) -> Result<usize> {
    let mut leaders: BTreeMap<u32, u64> = BTreeMap::new();
    for id in ensemble.ids() {
        let path = ensemble.member(id)?.dir().join("server.log");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        for epoch in text.lines().filter_map(epoch_led) {
            let before = leaders.insert(epoch, id);
            ensure!(
                before.is_none(),
                "EPOCH: {epoch} was led by members {before:?} and {id}"
            );
        }
    }
    Ok(leaders.len())
}

fn epoch_led(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("leads_epoch=")?;
    let digits = rest.split(|it: char| !it.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The children of a znode and when they were created, read with many requests in flight.
fn czxids(session: &mut Session, path: &str) -> Result<BTreeMap<String, i64>> {
    let names = children(session, path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_read_from_a_leaders_line_only() {
        let line = |rest| format!("2026-01-01T00:00:00Z  INFO core: serving standing={rest}");
        let leads = line("\"leader\" leads_epoch=12 committed=0xb00000001");
        assert_eq!(epoch_led(&leads), Some(12));
        let follows = line("\"follower\" committed=0xb00000001");
        assert_eq!(epoch_led(&follows), None);
    }
}
