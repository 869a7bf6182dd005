//! The pulse, in a process of its own: its counters are the process's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringkeeper_transport::doorbell::doorbell;
use ringkeeper_transport::{ExecutorSpec, busy, pulse, run_executor, sleep, spawn_executor};

const PATIENCE: Duration = Duration::from_secs(20);

fn spec(name: &str) -> ExecutorSpec {
    ExecutorSpec::new(name, None)
}

fn beats() -> u64 {
    pulse::counters().beats.load(Ordering::Relaxed)
}

fn rescues() -> u64 {
    pulse::counters().rescues.load(Ordering::Relaxed)
}

/// One test, for the counters are shared.
#[test]
fn the_pulse_follows_the_work_and_rescues() {
    idle_is_slow_and_work_makes_it_fast();
    a_parked_executor_with_a_posted_wake_is_rescued();
}

fn idle_is_slow_and_work_makes_it_fast() {
    let outcome = run_executor(&spec("pulse"), async {
        // It starts fast and holds that for a while.
        sleep(Duration::from_millis(300)).await;
        let before = beats();
        sleep(Duration::from_millis(500)).await;
        let idle = beats() - before;
        let guard = busy();
        let start = Instant::now();
        let before = beats();
        while beats() < before + 100 {
            assert!(start.elapsed() < PATIENCE, "busy and slow");
            sleep(Duration::from_millis(1)).await;
        }
        drop(guard);
        idle
    });
    let idle = outcome.unwrap_or(u64::MAX);
    assert!(idle <= 6, "{idle} beats in half a second of idleness");
}

/// An executor whose task was posted a wake and whose thread sleeps all the same is kicked by the
/// pulse of the executor that is busy. The flaw itself cannot be made to order; a waker that swallows
/// the wake leaves the same picture: posted, not run, parked.
fn a_parked_executor_with_a_posted_wake_is_rescued() {
    let before = rescues();
    let (ringer, mut bell) = doorbell();
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let parked = spawn_executor(spec("parked"), move || async move {
        let mut slept = std::pin::pin!(bell.rung());
        let mut deaf = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(slept.as_mut().poll(&mut deaf).is_pending());
        while !is_done.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let watcher = spawn_executor(spec("watcher"), move || async move {
        let _busy = busy();
        ringer.ring();
        let start = Instant::now();
        while rescues() == before && start.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1)).await;
        }
        done.store(true, Ordering::SeqCst);
        rescues() - before
    });
    let counted = watcher.and_then(ringkeeper_transport::ExecutorHandle::join);
    assert!(
        counted.is_ok_and(|counted| counted > 0),
        "nobody was rescued"
    );
    assert!(
        parked
            .and_then(ringkeeper_transport::ExecutorHandle::join)
            .is_ok()
    );
}
