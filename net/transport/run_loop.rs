//! The loop of an executor: its tasks, its timers, and where it sleeps.
//!
//! All tasks of an executor run within a single task of glommio, which never waits: they have a run queue of their own, so
//! that it is known when none can go on. Then the thread sleeps in an epoll set, which costs one system call and ends with
//! what comes first: a socket, the ring of the disk ([`DiskHooks`]), a wake from another thread, a timer.
//!
//! Invariants:
//! - Nothing else of this process runs as a task of glommio's on an executor, nor waits for its reactor: it would starve.
//! - A wake from this thread puts the task on the queue; one from another thread puts it into the inbox, then rings the
//!   event descriptor in the epoll set if the loop sleeps. The loop says that it sleeps before it looks at the inbox for
//!   the last time.
//! - Whatever wakes are lost, the loop looks at everything at least once in [`SLEEP_MAX`].
//! - Tasks that are left when the loop ends are dropped by it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_task::Runnable;
use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use slab::Slab;

use crate::executor::DiskHooks;
use crate::readiness::{self, EVENTS_MAX, ReadySet};

/// The longest sleep without a look.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Tasks that run before the sockets are looked at again.
const RUNS_MAX: usize = 256;

thread_local! {
    static CURRENT: RefCell<Option<Rc<RunLoop>>> = const { RefCell::new(None) };
}

/// See the module.
pub(crate) struct RunLoop {
    shared: Arc<Shared>,
    queue: RefCell<VecDeque<Runnable>>,
    /// Of each task that has not ended.
    tasks: RefCell<Slab<Waker>>,
    timers: RefCell<Timers>,
    ready: Rc<ReadySet>,
    disk: Option<DiskHooks>,
    /// The disk's ring.
    _ring: Option<OwnedFd>,
}

/// What other threads use of a loop.
struct Shared {
    inbox: SegQueue<Runnable>,
    sleeps: AtomicBool,
    bell: OwnedFd,
}

impl Shared {
    #[expect(
        clippy::host_endian_bytes,
        reason = "an event descriptor counts in the machine's order"
    )]
    fn ring(&self) {
        // The count never comes near the limit at which a write fails.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn schedule(self: &Arc<Self>, runnable: Runnable) {
        let mut runnable = Some(runnable);
        // Where the thread ends there is no loop any more.
        let _ = CURRENT.try_with(|current| {
            if let Some(own) = current.borrow().as_ref()
                && Arc::ptr_eq(&own.shared, self)
            {
                own.queue.borrow_mut().extend(runnable.take());
            }
        });
        let Some(runnable) = runnable else { return };
        self.inbox.push(runnable);
        // Orders the push before the load; the loop has the other half.
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) && self.sleeps.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }
}

/// Deadlines, with who waits for them.
struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    next_id: u64,
    /// Ends a sleep in the epoll set, whose own time-outs are whole milliseconds.
    descriptor: OwnedFd,
    /// What that is set to.
    armed: Option<Instant>,
}

impl Timers {
    fn first(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Has the descriptor fire by the first deadline. False if that is over: then it need not, which saves setting the
    /// machine's timer, an exit to the hypervisor on a virtual one.
    fn arm(&mut self, now: Instant) -> bool {
        let Some(first) = self.first() else {
            return true;
        };
        if first <= now {
            return false;
        }
        if self
            .armed
            .is_some_and(|armed| armed > now && armed <= first)
        {
            return true;
        }
        let value = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(first - now),
        };
        let set = timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &value);
        self.armed = set.is_ok().then_some(first);
        true
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// The descriptors that a loop needs.
#[derive(Debug)]
pub(crate) struct Descriptors {
    epoll: OwnedFd,
    bell: OwnedFd,
    timer: OwnedFd,
}

impl Descriptors {
    /// # Errors
    /// When the system has none left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: readiness::descriptor()?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
        })
    }
}

/// Makes the loop of the current thread's executor.
///
/// # Errors
/// When the descriptors cannot be watched.
pub(crate) fn start(descriptors: Descriptors, disk: Option<DiskHooks>) -> io::Result<Rc<RunLoop>> {
    let Descriptors { epoll, bell, timer } = descriptors;
    let ready = readiness::start(epoll);
    ready.add_bell(&bell)?;
    ready.add_bell(&timer)?;
    let ring = disk.map(|hooks| (hooks.start)()).transpose()?;
    if let Some(ring) = &ring {
        ready.add_bell(ring)?;
    }
    let own = Rc::new(RunLoop {
        shared: Arc::new(Shared {
            inbox: SegQueue::new(),
            sleeps: AtomicBool::new(false),
            bell,
        }),
        queue: RefCell::default(),
        tasks: RefCell::default(),
        timers: RefCell::new(Timers {
            waiting: BTreeMap::new(),
            next_id: 0,
            descriptor: timer,
            armed: None,
        }),
        ready,
        disk,
        _ring: ring,
    });
    CURRENT.set(Some(Rc::clone(&own)));
    Ok(own)
}

fn current() -> Rc<RunLoop> {
    CURRENT
        .with_borrow(Clone::clone)
        .expect("tasks and timers are used on an executor of this crate")
}

/// Takes a task out of its loop's list when its future is dropped.
struct Listed {
    of: std::rc::Weak<RunLoop>,
    at: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(of) = self.of.upgrade() {
            of.tasks.borrow_mut().try_remove(self.at);
        }
    }
}

/// Spawns a task, which is polled at once.
pub(crate) fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> async_task::Task<T> {
    let own = current();
    let shared = Arc::clone(&own.shared);
    let mut tasks = own.tasks.borrow_mut();
    let entry = tasks.vacant_entry();
    let listed = Listed {
        of: Rc::downgrade(&own),
        at: entry.key(),
    };
    let listed_future = async move {
        let _listed = listed;
        future.await
    };
    let schedule = move |runnable| shared.schedule(runnable);
    let (runnable, task) = async_task::spawn_local(listed_future, schedule);
    entry.insert(runnable.waker());
    drop(tasks);
    runnable.run();
    task
}

/// A wait for a deadline.
#[derive(Debug)]
pub(crate) struct Sleep {
    at: Instant,
    id: Option<u64>,
}

impl Sleep {
    pub(crate) fn new(duration: Duration) -> Self {
        let now = Instant::now();
        Self {
            // What is too far away to be told is never waited for to its end.
            at: now
                .checked_add(duration)
                .unwrap_or_else(|| now + Duration::from_secs(1 << 32)),
            id: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let own = current();
        let mut timers = own.timers.borrow_mut();
        let Some(id) = self.id else {
            // Even what is due waits for a turn, so that a loop of sleeps lets others run.
            let id = timers.next_id;
            timers.next_id += 1;
            timers.waiting.insert((self.at, id), cx.waker().clone());
            self.id = Some(id);
            return Poll::Pending;
        };
        match timers.waiting.get_mut(&(self.at, id)) {
            Some(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // Where the thread ends there are no timers any more.
            let _ = CURRENT.try_with(|current| {
                if let Some(own) = current.borrow().as_ref() {
                    own.timers.borrow_mut().waiting.remove(&(self.at, id));
                }
            });
        }
    }
}

impl RunLoop {
    /// Runs until `main` ends.
    pub(crate) fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let mut main = spawn(main);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.take_inbox();
            self.fire_timers();
            let is_drained = self.run_queue();
            // Whoever awaits a task is woken when it ends. Here it is looked at instead.
            if let Poll::Ready(output) = Pin::new(&mut main).poll(&mut nobody()) {
                return output;
            }
            let may_sleep = is_drained && self.begin_sleep();
            self.look(
                &mut events,
                if may_sleep { SLEEP_MAX } else { Duration::ZERO },
            );
        }
    }

    /// Drops all tasks.
    pub(crate) fn stop(&self) {
        loop {
            let wakers: Vec<Waker> = self.tasks.borrow_mut().drain().collect();
            wakers.into_iter().for_each(Waker::wake);
            self.take_inbox();
            let queue = std::mem::take(&mut *self.queue.borrow_mut());
            if queue.is_empty() {
                break;
            }
            drop(queue);
        }
        readiness::stop();
        CURRENT.set(None);
    }

    /// Has the first timer ring, and other threads from now on. False if there is something to run, or a timer is due.
    fn begin_sleep(&self) -> bool {
        if !self.timers.borrow_mut().arm(Instant::now()) {
            return false;
        }
        self.shared.sleeps.store(true, Ordering::SeqCst);
        // Orders the store before the look at the inbox; `schedule` has the other half.
        fence(Ordering::SeqCst);
        self.shared.inbox.is_empty()
    }

    /// Takes what the epoll set tells, for the first of which it waits so long, and what the disk has done.
    fn look(&self, events: &mut Vec<epoll::Event>, wait: Duration) {
        self.ready.dispatch(events, wait);
        if let Some(hooks) = self.disk {
            (hooks.reap)();
        }
    }

    fn take_inbox(&self) {
        self.shared.sleeps.store(false, Ordering::Relaxed);
        let mut queue = self.queue.borrow_mut();
        while let Some(runnable) = self.shared.inbox.pop() {
            queue.push_back(runnable);
        }
    }

    fn fire_timers(&self) {
        let due = {
            let mut timers = self.timers.borrow_mut();
            let Some(first) = timers.first() else { return };
            let now = Instant::now();
            if first > now {
                return;
            }
            let later = timers.waiting.split_off(&(now, u64::MAX));
            std::mem::replace(&mut timers.waiting, later)
        };
        due.into_values().for_each(Waker::wake);
    }

    /// Runs tasks until none can go on. False when there are so many that others have to have a turn.
    fn run_queue(&self) -> bool {
        for _ in 0..RUNS_MAX {
            let Some(runnable) = self.queue.borrow_mut().pop_front() else {
                return true;
            };
            runnable.run();
        }
        false
    }
}

const fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::thread;

    use futures_util::task::AtomicWaker;

    use super::*;
    use crate::executor::{
        DiskHooks, ExecutorSpec, reactor_turn, run_executor, sleep, spawn_local,
    };

    thread_local! {
        static RING: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
        static REAPED: Cell<usize> = const { Cell::new(0) };
        static DONE: Cell<Option<Waker>> = const { Cell::new(None) };
    }

    /// A disk whose ring is an event descriptor.
    const HOOKS: DiskHooks = DiskHooks {
        start: || {
            let ring = eventfd(0, EventfdFlags::NONBLOCK)?;
            RING.set(Some(ring.try_clone()?));
            Ok(ring)
        },
        reap: || {
            REAPED.set(REAPED.get() + 1);
            if let Some(waker) = DONE.take() {
                waker.wake();
            }
        },
    };

    const ALL: [Option<DiskHooks>; 2] = [None, Some(HOOKS)];

    /// A wake that is lost is made up for within a second: it takes many to see that.
    const ROUNDS: usize = 100;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Without a pulse that would wake the loop.
    fn on_executor<T: 'static>(
        disk: Option<DiskHooks>,
        test: impl Future<Output = T> + 'static,
    ) -> T {
        let mut spec = ExecutorSpec::new("t", None);
        spec.disk = disk;
        spec.pulse.busy = Duration::from_secs(3600);
        spec.pulse.idle = spec.pulse.busy;
        let started = Instant::now();
        let output = run_executor(&spec, test).unwrap();
        assert!(
            started.elapsed() < PATIENCE,
            "{disk:?}: something was slept through"
        );
        output
    }

    #[test]
    fn a_sleeping_loop_hears_other_threads() {
        for disk in ALL {
            on_executor(disk, async {
                let waker = Arc::new(AtomicWaker::new());
                let rung = Arc::new(AtomicUsize::new(0));
                let (answer, wait_answer) = mpsc::channel();
                let ringer = thread::spawn({
                    let (waker, rung) = (Arc::clone(&waker), Arc::clone(&rung));
                    move || {
                        for round in 1..=ROUNDS {
                            rung.store(round, Ordering::SeqCst);
                            waker.wake();
                            wait_answer.recv().unwrap();
                        }
                    }
                });
                for round in 1..=ROUNDS {
                    poll_fn(|cx| {
                        waker.register(cx.waker());
                        match rung.load(Ordering::SeqCst) == round {
                            true => Poll::Ready(()),
                            false => Poll::Pending,
                        }
                    })
                    .await;
                    answer.send(()).unwrap();
                }
                ringer.join().unwrap();
            });
        }
    }

    #[test]
    fn timers_end_in_their_order_and_not_early() {
        for disk in ALL {
            let ended = on_executor(disk, async {
                let ended = Rc::new(RefCell::new(Vec::new()));
                let tasks: Vec<_> = [9, 3, 6, 0]
                    .into_iter()
                    .map(|ms| {
                        let ended = Rc::clone(&ended);
                        spawn_local(async move {
                            let started = Instant::now();
                            sleep(Duration::from_millis(ms)).await;
                            assert!(started.elapsed() >= Duration::from_millis(ms));
                            ended.borrow_mut().push(ms);
                        })
                    })
                    .collect();
                // One that nobody waits for any more is not in the way of the others.
                drop(spawn_local(sleep(Duration::from_millis(1))));
                for task in tasks {
                    task.await;
                }
                ended.take()
            });
            assert_eq!(ended, [0, 3, 6, 9]);
        }
    }

    #[test]
    fn a_turn_sets_no_timer() {
        on_executor(None, async {
            for _ in 0..ROUNDS {
                reactor_turn().await;
            }
            assert_eq!(current().timers.borrow().armed, None);
            sleep(Duration::from_millis(1)).await;
            assert!(current().timers.borrow().armed.is_some());
        });
    }

    #[test]
    fn what_is_on_the_ring_of_the_disk_wakes_and_is_reaped() {
        on_executor(Some(HOOKS), async {
            for round in 1..=ROUNDS {
                let reaped = REAPED.get();
                let (go, wait) = mpsc::channel();
                let ring = RING.with_borrow(|ring| ring.as_ref().unwrap().try_clone().unwrap());
                let disk = thread::spawn(move || {
                    wait.recv().unwrap();
                    rustix::io::write(&ring, &[0, 0, 0, 0, 0, 0, 0, 1]).unwrap();
                });
                DONE.set(Some(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await));
                go.send(()).unwrap();
                poll_fn(|_| match REAPED.get() > reaped {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                })
                .await;
                disk.join().unwrap();
                assert!(REAPED.get() >= round);
            }
        });
    }

    #[test]
    fn who_never_sleeps_keeps_nobody_out() {
        for disk in ALL {
            on_executor(disk, async move {
                let restless = spawn_local(async {
                    loop {
                        // Ready again at once.
                        let mut is_second = false;
                        poll_fn(|cx| match std::mem::replace(&mut is_second, true) {
                            true => Poll::Ready(()),
                            false => {
                                cx.waker().wake_by_ref();
                                Poll::Pending
                            }
                        })
                        .await;
                    }
                });
                let (send, mut receive) = crate::mailbox::bounded(1);
                let sender = thread::spawn(move || send.send(7).unwrap());
                assert_eq!(receive.recv().await, Some(7));
                sender.join().unwrap();
                reactor_turn().await;
                sleep(Duration::from_millis(1)).await;
                restless.cancel().await;
            });
        }
    }

    #[test]
    fn what_is_left_is_dropped_at_the_end() {
        for disk in ALL {
            let held = on_executor(disk, async {
                let held = Rc::new(());
                for held in [Rc::clone(&held), Rc::clone(&held)] {
                    spawn_local(async move {
                        std::future::pending::<()>().await;
                        drop(held);
                    })
                    .detach();
                }
                held
            });
            assert_eq!(Rc::strong_count(&held), 1);
        }
    }
}
