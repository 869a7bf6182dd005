//! Durable writes on a ring of their own.
//!
//! A write through glommio's reactor costs some fourteen system calls: its loop polls three rings, sets two timers and
//! takes them back, twice for each write. Here it costs one, and none when it completes: whoever runs the thread's
//! executor watches the ring's descriptor beside its sockets and calls [`reap`] when it can be read.
//!
//! Invariant: file and bytes of a write are kept until the kernel has completed it, whether or not anybody still waits.
#![expect(
    unsafe_code,
    reason = "the kernel reads memory behind a pointer: that it stays is kept here"
)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use glommio::io::{DmaBuffer, DmaFile};
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

/// Operations that may be under way at a time; the log has some four.
const DEPTH: u32 = 64;

/// How often an operation is submitted before that is an error.
const TRIES_MAX: u32 = 1000;

thread_local! {
    static CURRENT: RefCell<Option<Rc<WriteRing>>> = const { RefCell::new(None) };
    static REACTOR_WORK: Cell<usize> = const { Cell::new(0) };
}

/// Makes the current thread's ring, on which its durable writes go from now on, and returns its descriptor: whenever it can
/// be read, [`reap`] is to be called on this thread.
///
/// # Errors
/// When the system gives no ring.
pub fn start() -> io::Result<OwnedFd> {
    let ring = IoUring::new(DEPTH)?;
    // SAFETY: the ring is open for as long as this borrow is used.
    let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
    let ring = WriteRing {
        ring: RefCell::new(ring),
        under_way: RefCell::default(),
    };
    CURRENT.set(Some(Rc::new(ring)));
    Ok(descriptor)
}

/// Wakes those whose writes have ended.
pub fn reap() {
    if let Some(ring) = current() {
        ring.reap();
    }
}

/// How many operations of this thread's disks are under way of which only glommio's reactor learns the end.
pub fn reactor_work() -> usize {
    REACTOR_WORK.get()
}

/// Such an operation, while it is under way.
pub(crate) struct ReactorWork;

impl ReactorWork {
    pub(crate) fn begin() -> Self {
        REACTOR_WORK.set(REACTOR_WORK.get() + 1);
        Self
    }
}

impl Drop for ReactorWork {
    fn drop(&mut self) {
        REACTOR_WORK.set(REACTOR_WORK.get() - 1);
    }
}

pub(crate) fn current() -> Option<Rc<WriteRing>> {
    CURRENT.with_borrow(Clone::clone)
}

/// See the module.
pub(crate) struct WriteRing {
    ring: RefCell<IoUring>,
    under_way: RefCell<Slab<Operation>>,
}

struct Operation {
    /// What the kernel uses.
    _held: Held,
    state: State,
}

#[expect(dead_code, reason = "it is kept, not read")]
enum Held {
    Write(Rc<DmaFile>, Rc<DmaBuffer>),
    Flush(Rc<DmaFile>),
    Wait(Box<types::Timespec>),
}

enum State {
    UnderWay(Option<Waker>),
    /// Nobody waits for it any more.
    Abandoned,
    /// The kernel's result: bytes, or an error's number below zero.
    Ended(i32),
}

impl WriteRing {
    /// Whether there is room for another operation.
    pub(crate) fn has_room(&self) -> bool {
        self.under_way.borrow().len() < DEPTH as usize
    }

    /// Writes all of `bytes` at `offset`, with what the file's flags say of durability. It is on its way when this
    /// returns; ends with the number of bytes written.
    pub(crate) fn write(
        self: &Rc<Self>,
        file: &Rc<DmaFile>,
        bytes: Rc<DmaBuffer>,
        offset: u64,
    ) -> io::Result<Ending> {
        let descriptor = types::Fd(file.as_raw_fd());
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let entry = opcode::Write::new(descriptor, bytes.as_ptr(), len).offset(offset);
        self.begin(entry.build(), Held::Write(Rc::clone(file), bytes))
    }

    /// Flushes what was written to `file`.
    pub(crate) fn flush(self: &Rc<Self>, file: &Rc<DmaFile>) -> io::Result<Ending> {
        let entry =
            opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC);
        self.begin(entry.build(), Held::Flush(Rc::clone(file)))
    }

    /// Ends with an error after so long.
    pub(crate) fn sleep(self: &Rc<Self>, duration: Duration) -> io::Result<Ending> {
        let wait = Box::new(types::Timespec::from(duration));
        let entry = opcode::Timeout::new(&raw const *wait).build();
        self.begin(entry, Held::Wait(wait))
    }

    fn begin(self: &Rc<Self>, entry: squeue::Entry, held: Held) -> io::Result<Ending> {
        let key = self.under_way.borrow_mut().insert(Operation {
            _held: held,
            state: State::UnderWay(None),
        });
        let ending = Ending {
            ring: Rc::clone(self),
            key: Some(key),
        };
        let mut ring = self.ring.borrow_mut();
        let entry = entry.user_data(key as u64);
        // SAFETY: file and bytes are in `under_way`, which only `reap` takes them out of.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.expect("there is room, since each entry is submitted at once");
        let mut tries = 0;
        loop {
            match ring.submit() {
                Ok(_) => return Ok(ending),
                // The kernel is short of something for a moment.
                Err(error) if is_passing(&error) && tries < TRIES_MAX => {
                    tries += 1;
                    std::thread::yield_now();
                }
                // The entry stays in the queue, and may be submitted with the next: its memory has to stay too.
                Err(error) => return Err(error),
            }
        }
    }

    fn reap(&self) {
        let mut wakers = Vec::new();
        {
            let mut ring = self.ring.borrow_mut();
            let mut under_way = self.under_way.borrow_mut();
            for entry in ring.completion() {
                let key = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                let Some(operation) = under_way.get_mut(key) else {
                    continue;
                };
                match std::mem::replace(&mut operation.state, State::Ended(entry.result())) {
                    State::UnderWay(waker) => wakers.extend(waker),
                    State::Abandoned => _ = under_way.try_remove(key),
                    State::Ended(_) => {}
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for WriteRing {
    /// What is still under way goes on after the ring is closed, so its memory is never used for anything else.
    fn drop(&mut self) {
        for operation in self.under_way.get_mut().drain() {
            if !matches!(operation.state, State::Ended(_)) {
                let _kept = ManuallyDrop::new(operation);
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
    matches!(error.kind(), Interrupted | ResourceBusy | WouldBlock)
}

/// The end of an operation.
pub(crate) struct Ending {
    ring: Rc<WriteRing>,
    /// `None` when it was told.
    key: Option<usize>,
}

impl Future for Ending {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let key = self.key.expect("it is not polled after its end");
        let mut under_way = self.ring.under_way.borrow_mut();
        match &mut under_way[key].state {
            State::Ended(result) => {
                let result = *result;
                under_way.remove(key);
                drop(under_way);
                self.key = None;
                Poll::Ready(
                    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)),
                )
            }
            state => {
                *state = State::UnderWay(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut under_way = self.ring.under_way.borrow_mut();
        match &mut under_way[key].state {
            State::Ended(_) => _ = under_way.remove(key),
            state => *state = State::Abandoned,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::poll_fn;
    use std::path::PathBuf;

    use glommio::io::OpenOptions;
    use ringkeeper_transport::{DiskHooks, DiskUse, ExecutorSpec, run_executor, sleep};

    use super::*;
    use crate::aligned::AlignedBuffer;
    use crate::disk::{BLOCK_BYTES, DiskBuffer as _};

    fn on_executor<F: Future + 'static>(test: F) -> F::Output {
        let disk = DiskUse::Told(DiskHooks {
            start,
            reap,
            reactor_work,
        });
        run_executor(&ExecutorSpec::new("t", None).with_disk(disk), test).unwrap()
    }

    /// A file of two blocks of zeros, and a buffer of one of ones.
    async fn file_and_bytes(
        dir: &tempfile::TempDir,
        may_write: bool,
    ) -> (Rc<DmaFile>, AlignedBuffer) {
        let path = path(dir);
        fs::write(&path, vec![0; 2 * BLOCK_BYTES]).unwrap();
        let _work = ReactorWork::begin();
        let mut options = OpenOptions::new();
        options.read(true).write(may_write);
        let file = Rc::new(options.dma_open(&path).await.unwrap());
        let mut bytes = AlignedBuffer::with_capacity(BLOCK_BYTES);
        bytes.bytes_mut().fill(1);
        (file, bytes)
    }

    fn path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("file")
    }

    fn temp_dir() -> tempfile::TempDir {
        let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target");
        fs::create_dir_all(&place).unwrap();
        tempfile::tempdir_in(place).unwrap()
    }

    fn is_idle(ring: &WriteRing) -> bool {
        ring.under_way.borrow().is_empty()
    }

    #[test]
    fn what_is_written_and_flushed_is_there() {
        let dir = temp_dir();
        let written = path(&dir);
        on_executor(async move {
            let (file, bytes) = file_and_bytes(&dir, true).await;
            let ring = current().unwrap();
            let offset = BLOCK_BYTES as u64;
            let write = ring.write(&file, bytes.share(), offset).unwrap();
            assert!(!is_idle(&ring));
            assert_eq!(write.await.unwrap(), BLOCK_BYTES);
            assert_eq!(ring.flush(&file).unwrap().await.unwrap(), 0);
            let wait = ring.sleep(Duration::from_millis(1)).unwrap().await;
            assert_eq!(wait.unwrap_err().raw_os_error(), Some(libc::ETIME));
            assert!(is_idle(&ring));
            let expect: Vec<u8> = [[0; BLOCK_BYTES], [1; BLOCK_BYTES]].concat();
            assert!(fs::read(&written).unwrap() == expect);
        });
    }

    #[test]
    fn a_write_that_nobody_waits_for_any_more_ends_all_the_same() {
        let dir = temp_dir();
        let written = path(&dir);
        on_executor(async move {
            let (file, bytes) = file_and_bytes(&dir, true).await;
            let ring = current().unwrap();
            let held = bytes.share();
            let mut write = ring.write(&file, bytes.share(), 0).unwrap();
            poll_fn(|cx| {
                let _pending = Pin::new(&mut write).poll(cx);
                Poll::Ready(())
            })
            .await;
            drop((write, bytes));
            // Nothing is reaped while this task runs.
            assert_eq!(Rc::strong_count(&held), 2, "the kernel may still read it");
            while !is_idle(&ring) {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(Rc::strong_count(&held), 1);
            assert_eq!(fs::read(&written).unwrap()[..BLOCK_BYTES], [1; BLOCK_BYTES]);
        });
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let dir = temp_dir();
        on_executor(async move {
            let (file, bytes) = file_and_bytes(&dir, false).await;
            let ring = current().unwrap();
            let error = ring.write(&file, bytes.share(), 0).unwrap().await;
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EBADF));
            assert!(is_idle(&ring));
        });
    }
}
