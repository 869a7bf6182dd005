//! Executors: one pinned thread each, with its io_uring rings, its timers and its pulse.
//!
//! glommio 0.9 can park an executor that still has runnable tasks, when a completion reaches its
//! latency ring before anything ran. Four rules make that rare and harmless, and this module is
//! where they are kept:
//! - a preempt timer so long that it never fires (so `need_preempt` stays false, and **nothing
//!   interrupts a task**: work per poll must be bounded, see [`reactor_turn`]);
//! - no task queue with a latency requirement: every task runs in the default queue;
//! - rings of at least [`RING_DEPTH_MIN`] entries, so that the throughput timer stays silent;
//! - a [`pulse`] on every executor, since a pending timer always wakes the reactor.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io, thread};

use glommio::timer::Timer;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};

use crate::pulse::{self, PulseSpec};
use crate::readiness;

/// The least ring depth: the throughput timer fires after this many completions between two turns
/// of the reactor, and is one of the things that trigger the flaw.
pub const RING_DEPTH_MIN: usize = 4096;

/// io_uring refuses deeper submission rings.
pub const RING_DEPTH_MAX: usize = 32768;

/// What glommio requires as `RLIMIT_MEMLOCK` for each executor, in bytes.
pub const MEMLOCK_BYTES_PER_EXECUTOR: u64 = 512 * 1024;

/// How long glommio's preempt timer is: so long that it never fires within a turn.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);

/// Where and how an executor runs.
#[derive(Clone, Debug)]
pub struct ExecutorSpec {
    /// The thread's name; glommio adds a number.
    pub name: String,
    /// The CPU to pin the thread to; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// Entries of each submission ring, raised to [`RING_DEPTH_MIN`] and lowered to
    /// [`RING_DEPTH_MAX`] where it lies outside.
    pub ring_depth: usize,
    /// Bytes registered with the kernel for direct I/O. glommio rounds up to 64 KiB; more must fit
    /// under `RLIMIT_MEMLOCK` three times.
    pub io_memory_bytes: usize,
    /// The pulse's periods.
    pub pulse: PulseSpec,
}

impl ExecutorSpec {
    /// An executor with the usual sizes.
    pub fn new(name: impl Into<String>, cpu: Option<usize>) -> Self {
        Self {
            name: name.into(),
            cpu,
            ring_depth: RING_DEPTH_MIN,
            io_memory_bytes: 64 * 1024,
            pulse: PulseSpec::default(),
        }
    }

    fn builder(&self) -> LocalExecutorBuilder {
        let placement = match self.cpu {
            Some(cpu) => Placement::Fixed(cpu),
            None => Placement::Unbound,
        };
        LocalExecutorBuilder::new(placement)
            .name(&self.name)
            .preempt_timer(PREEMPT_TIMER)
            .ring_depth(self.ring_depth.clamp(RING_DEPTH_MIN, RING_DEPTH_MAX))
            .io_memory(self.io_memory_bytes)
            // The helper thread of renames and the like would share the executor's CPU otherwise,
            // and run ahead of it.
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
    }
}

/// Starts an executor on a thread of its own and runs what `main` makes there, with the pulse beside
/// it, until that future ends. Tasks that are left then are dropped.
///
/// Returns when the executor runs.
///
/// # Errors
/// [`ExecutorError`] when the thread, its placement or its rings could not be made.
pub fn spawn_executor<G, F, T>(
    spec: ExecutorSpec,
    main: G,
) -> Result<ExecutorHandle<T>, ExecutorError>
where
    G: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let (started, wait_started) = mpsc::sync_channel::<()>(1);
    let pulse = spec.pulse;
    let failed = |reason: String| ExecutorError {
        name: spec.name.clone(),
        reason,
    };
    let epoll = readiness::descriptor().map_err(|error| failed(error.to_string()))?;
    let inner = spec
        .builder()
        .spawn(move || async move {
            // Nobody waits for it any more when the spawning thread has gone: no reason not to run.
            let _ = started.send(());
            drop(started);
            with_pulse(pulse, epoll, main()).await
        })
        .map_err(|error| failed(error.to_string()))?;
    if wait_started.recv().is_err() {
        // The sender is dropped unsent: the rings could not be made, or the thread panicked.
        return match inner.join() {
            Err(error) => Err(failed(error.to_string())),
            Ok(_) => Err(failed("it ended before it started".into())),
        };
    }
    Ok(ExecutorHandle { inner })
}

/// Runs an executor on the calling thread until `main` ends; the thread stays pinned if the
/// specification says so.
///
/// # Errors
/// [`ExecutorError`] when its placement or its rings could not be made.
pub fn run_executor<F>(spec: &ExecutorSpec, main: F) -> Result<F::Output, ExecutorError>
where
    F: Future + 'static,
{
    let failed = |reason: String| ExecutorError {
        name: spec.name.clone(),
        reason,
    };
    let epoll = readiness::descriptor().map_err(|error| failed(error.to_string()))?;
    let made = spec.builder().make();
    let executor = made.map_err(|error| failed(error.to_string()))?;
    let pulse = spec.pulse;
    Ok(executor.run(async move { with_pulse(pulse, epoll, main).await }))
}

/// Runs `main` with the pulse and the sockets' readiness beside it.
async fn with_pulse<F: Future>(spec: PulseSpec, epoll: OwnedFd, main: F) -> F::Output {
    let pulse = pulse::start(spec);
    let beat = spawn_local(pulse::beat(pulse.clone()));
    let ready = spawn_local(readiness::drive(readiness::start(epoll)));
    let output = main.await;
    readiness::stop();
    ready.cancel().await;
    pulse::stop(&pulse);
    beat.cancel().await;
    output
}

/// A running executor.
#[derive(Debug)]
#[must_use = "an executor that nobody joins ends with the process"]
pub struct ExecutorHandle<T: Send + 'static> {
    inner: glommio::ExecutorJoinHandle<T>,
}

impl<T: Send + 'static> ExecutorHandle<T> {
    /// Waits for the executor's end and returns what its main future returned. A panic there goes
    /// on here.
    ///
    /// # Errors
    /// [`ExecutorError`] when glommio reports one.
    pub fn join(self) -> Result<T, ExecutorError> {
        let name = self.thread().name().unwrap_or("executor").to_owned();
        match self.inner.join() {
            Ok(output) => Ok(output),
            Err(glommio::GlommioError::BuilderError(glommio::BuilderErrorKind::ThreadPanic(
                payload,
            ))) => resume_unwind(payload),
            Err(error) => Err(ExecutorError {
                name,
                reason: error.to_string(),
            }),
        }
    }

    /// The thread it runs on.
    pub fn thread(&self) -> &thread::Thread {
        self.inner.thread()
    }
}

/// An executor could not be started or ended abnormally.
#[derive(Debug, thiserror::Error)]
#[error("executor {name}: {reason}")]
pub struct ExecutorError {
    /// Which executor.
    pub name: String,
    /// What went wrong, in glommio's words.
    pub reason: String,
}

impl From<ExecutorError> for io::Error {
    fn from(error: ExecutorError) -> Self {
        Self::other(error)
    }
}

/// A task on this executor. Dropping it cancels it.
#[must_use = "a dropped task is cancelled: await it, keep it, or detach it"]
pub struct Task<T>(glommio::Task<T>);

impl<T> Task<T> {
    /// Lets the task run on its own until it or its executor ends.
    pub fn detach(self) {
        drop(self.0.detach());
    }

    /// Cancels it, and waits until its future is dropped. Returns the output if it had ended.
    pub async fn cancel(self) -> Option<T> {
        self.0.cancel().await
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

/// Spawns a task on the current executor.
///
/// The future is polled **at once, inside this call**: hold no `RefCell` borrow that it needs.
///
/// # Panics
/// Outside an executor.
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(glommio::spawn_local(future))
}

/// Waits for `duration` by the current executor's timers.
pub async fn sleep(duration: Duration) {
    Timer::new(duration).await;
}

/// Lets the reactor poll I/O once, and what was ready run before the caller goes on.
///
/// glommio looks at I/O only when every runnable task has run, so a loop that merely wakes itself
/// would keep everything else out. A long piece of work calls this every few hundred microseconds.
pub async fn reactor_turn() {
    let mut wait = Duration::from_micros(1);
    loop {
        let mut timer = pin!(Timer::new(wait));
        if poll_fn(|cx| Poll::Ready(timer.as_mut().poll(cx).is_pending())).await {
            timer.await;
            return;
        }
        // It was due at its first poll, so it has not been to the reactor.
        wait *= 2;
    }
}

/// Awaits `future` for at most `duration`; `None` when the time is over. The future is dropped then,
/// so it must be one that may be cancelled (a pending durable write must not).
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    let mut timer = pin!(Timer::new(duration));
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.as_mut().poll(cx).map(|_| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn runs_and_returns() {
        let handle = spawn_executor(ExecutorSpec::new("t", None), || async { 6 * 7 }).unwrap();
        assert_eq!(handle.join().unwrap(), 42);
    }

    #[test]
    fn pins() {
        let handle = spawn_executor(ExecutorSpec::new("t", Some(0)), || async {
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let status = handle.unwrap().join().unwrap();
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .unwrap();
        assert_eq!(list.trim(), "0");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        let result = spawn_executor(ExecutorSpec::new("t", Some(100_000)), || async {});
        assert!(result.is_err());
    }

    #[test]
    #[should_panic(expected = "on purpose")]
    fn a_panic_arrives_at_join() {
        let handle = spawn_executor(ExecutorSpec::new("t", None), || async {
            panic!("on purpose");
        });
        let () = handle.unwrap().join().unwrap();
    }

    #[test]
    fn timeout_ends_what_does_not() {
        let output = run_executor(&ExecutorSpec::new("t", None), async {
            let never = timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
            let now = timeout(Duration::from_secs(60), async { 1 }).await;
            (never, now)
        });
        assert_eq!(output.unwrap(), (None, Some(1)));
    }

    #[test]
    fn a_reactor_turn_lets_timers_in() {
        run_executor(&ExecutorSpec::new("t", None), async {
            let rang = Rc::new(Cell::new(false));
            let setter = Rc::clone(&rang);
            let task = spawn_local(async move {
                sleep(Duration::from_millis(2)).await;
                setter.set(true);
            });
            let start = Instant::now();
            while !rang.get() {
                assert!(start.elapsed() < Duration::from_secs(10), "timer starved");
                reactor_turn().await;
            }
            task.await;
        })
        .unwrap();
    }
}
