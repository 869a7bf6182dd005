//! Mayflies: sessions that make an ephemeral znode and are left alone, one after the other. The znode must be there
//! until its session's time is over, and not for ever.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringkeeper_harness::Session;
use ringkeeper_proto::Request;

use crate::load::{FIND_PAUSE, REPLY_PATIENCE, ROOT, SESSION_MS, create_ephemeral, is_connection};

/// A mayfly's session time-out; the ensemble may raise or lower it.
const MAYFLY_MS: i32 = 3_000;

/// How long a mayfly may live: each new leader gives every session its whole time again.
const MAYFLY_PATIENCE: Duration = Duration::from_secs(120);

const MAYFLY_PAUSE: Duration = Duration::from_millis(50);

/// Lets mayflies live and die, one after the other, until `stop`; returns how many.
pub(crate) fn mayflies(addresses: &[SocketAddr], stop: &AtomicBool) -> Result<u32> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += u32::from(mayfly(addresses, count, stop)?);
    }
    Ok(count)
}

/// One session that makes an ephemeral znode and is then left alone. False if its member was lost before.
fn mayfly(addresses: &[SocketAddr], number: u32, stop: &AtomicBool) -> Result<bool> {
    let path = format!("{ROOT}/m{number}");
    let address = |at: u32| addresses.get(at as usize % addresses.len().max(1)).copied();
    let home = address(number).context("there is no member")?;
    let Ok(mut session) = Session::open_within(home, MAYFLY_MS, REPLY_PATIENCE) else {
        thread::sleep(FIND_PAUSE);
        return Ok(false);
    };
    let created = Instant::now();
    let timeout = Duration::from_millis(session.timeout_ms().unsigned_abs().into());
    let is_there = session.call(&create_ephemeral(&path)).is_ok_and(|reply| {
        // An earlier one of this number that nobody was told of lives for its own time.
        reply.header.error == 0
    });
    drop(session);
    if !is_there {
        // Whoever has this name has to go first.
        return see_out(addresses, number, &path, None, stop).map(|()| false);
    }
    see_out(addresses, number, &path, Some(created + timeout), stop).map(|()| true)
}

/// Waits until `path` is gone. Before `until` it must not be.
fn see_out(
    addresses: &[SocketAddr],
    number: u32,
    path: &str,
    until: Option<Instant>,
    stop: &AtomicBool,
) -> Result<()> {
    let patience = Instant::now() + MAYFLY_PATIENCE;
    let mut at = number as usize + 1;
    let mut session = None;
    loop {
        let there = match &mut session {
            Some(session) => look(session, path),
            None => {
                at += 1;
                let address = addresses.get(at % addresses.len().max(1));
                let address = address.context("there is no member")?;
                session = Session::open_within(*address, SESSION_MS, REPLY_PATIENCE).ok();
                thread::sleep(MAYFLY_PAUSE);
                continue;
            }
        };
        match there {
            Ok(true) => {}
            Ok(false) => {
                let early = until.and_then(|until| until.checked_duration_since(Instant::now()));
                ensure!(
                    early.is_none(),
                    "{path} is gone {early:?} before its session's time is over"
                );
                if let Some(session) = session {
                    // Its member may be dying; then the session ends by itself.
                    _ = session.close();
                }
                return Ok(());
            }
            Err(error) if is_connection(&error) => session = None,
            Err(error) => return Err(error.context(format!("look for {path}"))),
        }
        let is_ending = stop.load(Ordering::Relaxed);
        ensure!(
            Instant::now() < patience,
            "{path} is there after {MAYFLY_PATIENCE:?}, and its session was left alone (ending: {is_ending})"
        );
        thread::sleep(MAYFLY_PAUSE);
    }
}

/// Whether a znode is there, by the newest state.
fn look(session: &mut Session, path: &str) -> Result<bool> {
    session.call(&Request::Sync { path })?.ok()?;
    let reply = session.call(&Request::Exists { path, watch: false })?;
    if reply.header.error == ringkeeper_proto::ZkError::NoNode.code() {
        return Ok(false);
    }
    reply.ok()?;
    Ok(true)
}
