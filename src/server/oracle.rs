//! The oracle of an ensemble of two (`oraclePath`): a file, written by something that both servers trust, that begins
//! with `1` as long as this server may go on without the other.
//!
//! Invariants:
//! - It is read on a thread of its own: what it lies on may hang.
//! - An answer that is older than [`FRESH_READS`] intervals counts for nothing.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use crate::clock;

/// How many intervals an answer is good for.
const FRESH_READS: u64 = 3;

/// The oracle, asked until it is dropped.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// Microseconds of the monotonic clock when it last said yes; 0 since it has said no.
    granted_at: Arc<AtomicU64>,
    interval: Duration,
}

impl Oracle {
    /// Begins to ask, every `interval`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn ask(path: PathBuf, interval: Duration) -> anyhow::Result<Self> {
        let granted_at = Arc::new(AtomicU64::new(0));
        let answers = Arc::downgrade(&granted_at);
        tracing::info!(path = %path.display(), "where two servers vote, this file decides whether one goes on alone");
        thread::Builder::new()
            .name("oracle".into())
            .spawn(move || ask_on(&path, interval, &answers))
            .context("start the thread that asks the oracle")?;
        Ok(Self {
            granted_at,
            interval,
        })
    }

    /// What it says now.
    pub(crate) fn grants(&self) -> bool {
        let granted_at = self.granted_at.load(Ordering::Relaxed);
        let interval = u64::try_from(self.interval.as_micros()).unwrap_or(u64::MAX);
        let good_until = granted_at.saturating_add(interval.saturating_mul(FRESH_READS));
        granted_at > 0 && clock::monotonic_us() <= good_until
    }
}

fn ask_on(path: &Path, interval: Duration, answers: &Weak<AtomicU64>) {
    let mut failed = false;
    while let Some(granted_at) = answers.upgrade() {
        // What is read after this moment is at least as new.
        let asked_at = clock::monotonic_us().max(1);
        let answer = first_byte(path);
        if let (Err(error), false) = (&answer, failed) {
            tracing::warn!(path = %path.display(), %error, "the oracle cannot be read, and so denies");
        }
        failed = answer.is_err();
        let grants = matches!(answer, Ok(Some(b'1')));
        granted_at.store(if grants { asked_at } else { 0 }, Ordering::Relaxed);
        drop(granted_at);
        thread::sleep(interval);
    }
}

/// ZK: `QuorumOracleMaj.askOracle` looks at one character.
fn first_byte(path: &Path) -> std::io::Result<Option<u8>> {
    let mut byte = [0];
    let read = File::open(path)?.read(&mut byte)?;
    Ok(byte.first().copied().filter(|_| read == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(oracle: &Oracle, grants: bool) {
        for _ in 0..2_000 {
            if oracle.grants() == grants {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the oracle does not come to say {grants}");
    }

    #[test]
    fn it_grants_while_the_file_begins_with_1() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("oracle");
        let oracle = Oracle::ask(path.clone(), Duration::from_millis(20)).expect("a thread");
        assert!(!oracle.grants(), "there is no file");
        for (content, grants) in [("1\n", true), ("0", false), ("1", true), ("", false)] {
            std::fs::write(&path, content).expect("write");
            wait_for(&oracle, grants);
        }
        std::fs::write(&path, "1").expect("write");
        wait_for(&oracle, true);
        std::fs::remove_file(&path).expect("remove");
        wait_for(&oracle, false);
    }

    #[test]
    fn an_old_answer_is_none() {
        let granted_at = Arc::new(AtomicU64::new(clock::monotonic_us().max(1)));
        let interval = Duration::from_secs(3600);
        let oracle = Oracle {
            granted_at: Arc::clone(&granted_at),
            interval,
        };
        assert!(oracle.grants());
        let oracle = Oracle {
            granted_at,
            interval: Duration::ZERO,
        };
        while oracle.grants() {
            thread::yield_now();
        }
    }
}
