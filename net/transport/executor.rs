//! Executors: one pinned thread each, with its loop (`run_loop`), its timers and its pulse.
//!
//! glommio makes the thread, places and joins it, and runs one task on it, which holds the loop. Its reactor is never
//! entered: glommio 0.9 can park an executor whose task could run, when a completion reaches its latency ring before
//! anything ran. So nothing on an executor may wait for what completes on glommio's rings.
//!
//! **Nothing interrupts a task**: work per poll must be bounded, see [`reactor_turn`].
//!
//! A [`pulse`] on every executor counts whether any was late.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io, thread};

use glommio::{LocalExecutorBuilder, Placement};

use crate::pulse::{self, PulseSpec};
use crate::run_loop::{self, Descriptors, Sleep};
use crate::scheduling::take_short_slices;

/// Entries of each of glommio's rings, which stay empty.
const GLOMMIO_RING_DEPTH: usize = 16;

/// Bytes that glommio registers for its own I/O, of which there is none: the least that it takes.
const GLOMMIO_IO_MEMORY_BYTES: usize = 64 * 1024;

/// What glommio requires as `RLIMIT_MEMLOCK` for each executor, in bytes.
pub const MEMLOCK_BYTES_PER_EXECUTOR: u64 = 512 * 1024;

/// Where and how an executor runs.
#[derive(Clone, Debug)]
pub struct ExecutorSpec {
    /// The thread's name; glommio adds a number.
    pub name: String,
    /// The CPU to pin the thread to; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// The pulse's periods.
    pub pulse: PulseSpec,
    /// The disk that is used on it.
    pub disk: Option<DiskHooks>,
}

/// What an executor does for the disk that is used on it.
#[derive(Clone, Copy, Debug)]
pub struct DiskHooks {
    /// Makes the thread's ring, and returns its descriptor.
    pub start: fn() -> io::Result<OwnedFd>,
    /// Called whenever that can be read, and at other times.
    pub reap: fn(),
}

impl ExecutorSpec {
    /// An executor with the usual sizes.
    pub fn new(name: impl Into<String>, cpu: Option<usize>) -> Self {
        Self {
            name: name.into(),
            cpu,
            pulse: PulseSpec::default(),
            disk: None,
        }
    }

    /// The same, on which a disk is used.
    #[must_use]
    pub fn with_disk(mut self, disk: DiskHooks) -> Self {
        self.disk = Some(disk);
        self
    }

    fn builder(&self) -> LocalExecutorBuilder {
        let placement = match self.cpu {
            Some(cpu) => Placement::Fixed(cpu),
            None => Placement::Unbound,
        };
        LocalExecutorBuilder::new(placement)
            .name(&self.name)
            .ring_depth(GLOMMIO_RING_DEPTH)
            .io_memory(GLOMMIO_IO_MEMORY_BYTES)
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
    let (pulse, disk) = (spec.pulse, spec.disk);
    let failed = |reason: String| ExecutorError {
        name: spec.name.clone(),
        reason,
    };
    let descriptors = Descriptors::new().map_err(|error| failed(error.to_string()))?;
    let inner = spec
        .builder()
        .spawn(move || async move {
            // Nobody waits for it any more when the spawning thread has gone: no reason not to run.
            let _ = started.send(());
            drop(started);
            in_loop(pulse, descriptors, disk, main()).await
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
    let descriptors = Descriptors::new().map_err(|error| failed(error.to_string()))?;
    let made = spec.builder().make();
    let executor = made.map_err(|error| failed(error.to_string()))?;
    let (pulse, disk) = (spec.pulse, spec.disk);
    Ok(executor.run(in_loop(pulse, descriptors, disk, main)))
}

/// Runs `main` in a loop of its own, on a thread of short slices, with the pulse beside it. Within its first poll it comes to
/// its end.
#[expect(clippy::unused_async, reason = "it is what glommio runs")]
async fn in_loop<F: Future<Output: 'static> + 'static>(
    spec: PulseSpec,
    descriptors: Descriptors,
    disk: Option<DiskHooks>,
    main: F,
) -> F::Output {
    if let Err(error) = take_short_slices() {
        tracing::debug!(%error, "ask for short slices of the CPU");
    }
    let own = run_loop::start(descriptors, disk).expect("descriptors that were just made");
    let pulse = pulse::start(spec);
    let beat = spawn_local(pulse::beat(pulse.clone()));
    let output = own.run(main);
    pulse::stop(&pulse);
    drop(beat);
    own.stop();
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
pub struct Task<T>(async_task::Task<T>);

impl<T> Task<T> {
    /// Lets the task run on its own until it or its executor ends.
    pub fn detach(self) {
        self.0.detach();
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
    Task(run_loop::spawn(future))
}

/// Waits for `duration` by the current executor's timers.
pub async fn sleep(duration: Duration) {
    Sleep::new(duration).await;
}

/// Lets the sockets be looked at, and what was ready run, before the caller goes on. A long piece of work calls this
/// every few hundred microseconds.
pub async fn reactor_turn() {
    Sleep::new(Duration::ZERO).await;
}

/// Awaits `future` for at most `duration`; `None` when the time is over. The future is dropped then,
/// so it must be one that may be cancelled (a pending durable write must not).
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    let mut timer = pin!(Sleep::new(duration));
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
