//! The disk's ring: what the log, the manifest and the purge do with files, on an io_uring of their thread.
//!
//! A durable write costs one system call, and none when it completes: whoever runs the thread's executor watches the ring's
//! descriptor beside its sockets and calls [`reap`] whenever it looks at those. What may block for long (opening,
//! reserving, renaming, removing) the kernel does on threads of its own.
//!
//! Invariant: file, memory and paths of an operation are kept until the kernel has completed it, whether or not anybody
//! still waits.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes memory behind a pointer: that it stays is kept here"
)]

use std::cell::RefCell;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use crate::aligned::Memory;

/// Operations that may be under way at a time; the log has some four. More wait for room.
const DEPTH: u32 = 64;

/// How often an operation is submitted before that is an error.
const TRIES_MAX: u32 = 1000;

thread_local! {
    static CURRENT: RefCell<Option<Rc<DiskRing>>> = const { RefCell::new(None) };
}

/// Makes the current thread's ring, for the disks that are made on it from now on, and returns its descriptor: whenever it
/// can be read, [`reap`] is to be called on this thread.
///
/// # Errors
/// When the system gives no ring.
pub fn start() -> io::Result<OwnedFd> {
    let ring = IoUring::new(DEPTH)?;
    // SAFETY: the ring is open for as long as this borrow is used.
    let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
    let ring = DiskRing {
        ring: RefCell::new(ring),
        under_way: RefCell::default(),
        waiting: RefCell::default(),
    };
    CURRENT.set(Some(Rc::new(ring)));
    Ok(descriptor)
}

/// Wakes those whose operations have ended.
pub fn reap() {
    if let Some(ring) = current() {
        ring.reap();
    }
}

/// The current thread's ring.
pub(crate) fn current() -> Option<Rc<DiskRing>> {
    CURRENT.with_borrow(Clone::clone)
}

/// See the module.
pub(crate) struct DiskRing {
    ring: RefCell<IoUring>,
    under_way: RefCell<Slab<Operation>>,
    /// Who waits for room.
    waiting: RefCell<Vec<Waker>>,
}

struct Operation {
    /// What the kernel uses.
    _held: Held,
    state: State,
}

#[expect(dead_code, reason = "it is kept, not read")]
enum Held {
    Nothing,
    File(Rc<File>),
    Memory(Rc<File>, Rc<Memory>),
    Path(CString),
    Paths([CString; 2]),
    Wait(Box<types::Timespec>),
}

enum State {
    UnderWay(Option<Waker>),
    /// Nobody waits for it any more.
    Abandoned,
    /// The kernel's result: bytes, a descriptor, or an error's number below zero.
    Ended(i32),
}

// Whatever is asked for is on its way with the first poll, if there is room.
impl DiskRing {
    /// Opens a file for reads and writes past the page cache. `flags` are open(2)'s beside those.
    pub(crate) async fn open(
        self: &Rc<Self>,
        path: &Path,
        flags: i32,
        mode: u32,
    ) -> io::Result<Rc<File>> {
        let path = c_path(path)?;
        let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
            .flags(libc::O_RDWR | libc::O_DIRECT | libc::O_CLOEXEC | flags)
            .mode(mode);
        let descriptor = self.run(entry.build(), Held::Path(path)).await?;
        let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made it for us; nobody else has it.
        Ok(Rc::new(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// Closes a file that nobody else holds; otherwise the last who does closes it.
    pub(crate) async fn close(self: &Rc<Self>, file: Rc<File>) {
        if let Ok(file) = Rc::try_unwrap(file) {
            let entry = opcode::Close::new(types::Fd(file.into_raw_fd()));
            // A close reports nothing that a durable write has not; the descriptor is gone either way.
            _ = self.run(entry.build(), Held::Nothing).await;
        }
    }

    /// Reads what there is for the blocks of `memory` from block number `first` on; ends with the number of bytes.
    pub(crate) async fn read(
        self: &Rc<Self>,
        file: &Rc<File>,
        memory: &mut Rc<Memory>,
        first: usize,
        offset: u64,
    ) -> io::Result<usize> {
        let blocks = Rc::get_mut(memory).expect("memory is read into while nobody else holds it");
        let room = &mut blocks[first..];
        let (start, len) = (room.as_mut_ptr().cast(), size_of_val(room));
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), start, length(len)?);
        let held = Held::Memory(Rc::clone(file), Rc::clone(memory));
        self.run(entry.offset(offset).build(), held).await
    }

    /// Writes the first `len` bytes of `memory` at `offset`, with what the file's flags say of durability; ends with the
    /// number of bytes written.
    pub(crate) async fn write(
        self: &Rc<Self>,
        file: &Rc<File>,
        memory: Rc<Memory>,
        len: usize,
        offset: u64,
    ) -> io::Result<usize> {
        assert!(len <= size_of_val(&**memory), "there are so many bytes");
        let start = memory.as_ptr().cast();
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), start, length(len)?);
        let held = Held::Memory(Rc::clone(file), memory);
        self.run(entry.offset(offset).build(), held).await
    }

    /// Flushes what was written to `file`.
    pub(crate) async fn flush(self: &Rc<Self>, file: &Rc<File>) -> io::Result<()> {
        let entry =
            opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC);
        let flushed = self.run(entry.build(), Held::File(Rc::clone(file)));
        flushed.await.map(drop)
    }

    /// Flushes the entries of a directory.
    pub(crate) async fn sync_dir(self: &Rc<Self>, dir: &Path) -> io::Result<()> {
        let directory = Rc::new(File::open(dir)?);
        let entry = opcode::Fsync::new(types::Fd(directory.as_raw_fd()));
        let synced = self.run(entry.build(), Held::File(directory));
        synced.await.map(drop)
    }

    /// Reserves place for the first `len` bytes of a file, which is so long then.
    pub(crate) async fn reserve(self: &Rc<Self>, file: &Rc<File>, len: u64) -> io::Result<()> {
        let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), len);
        let reserved = self.run(entry.build(), Held::File(Rc::clone(file)));
        reserved.await.map(drop)
    }

    /// Gives the place of a part of a file back; it reads as zeros then, and the file is as long as before.
    pub(crate) async fn give_back(
        self: &Rc<Self>,
        file: &Rc<File>,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), len)
            .offset(offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
        let given = self.run(entry.build(), Held::File(Rc::clone(file)));
        given.await.map(drop)
    }

    /// Renames a file, replacing what has the new name.
    pub(crate) async fn rename(self: &Rc<Self>, from: &Path, to: &Path) -> io::Result<()> {
        let paths = [c_path(from)?, c_path(to)?];
        let here = types::Fd(libc::AT_FDCWD);
        let entry = opcode::RenameAt::new(here, paths[0].as_ptr(), here, paths[1].as_ptr());
        let renamed = self.run(entry.build(), Held::Paths(paths));
        renamed.await.map(drop)
    }

    /// Removes a file's name.
    pub(crate) async fn remove(self: &Rc<Self>, path: &Path) -> io::Result<()> {
        let path = c_path(path)?;
        let entry = opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr());
        let removed = self.run(entry.build(), Held::Path(path));
        removed.await.map(drop)
    }

    /// Waits.
    pub(crate) async fn sleep(self: &Rc<Self>, duration: Duration) -> io::Result<()> {
        let wait = Box::new(types::Timespec::from(duration));
        let entry = opcode::Timeout::new(&raw const *wait).build();
        match self.run(entry, Held::Wait(wait)).await {
            // So it says that the time is over.
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            slept => slept.map(drop),
        }
    }

    async fn run(self: &Rc<Self>, entry: squeue::Entry, held: Held) -> io::Result<usize> {
        poll_fn(|cx| {
            if self.under_way.borrow().len() < DEPTH as usize {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.begin(entry, held)?.await
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
        // SAFETY: what the entry points to is in `under_way`, which only `reap` takes it out of.
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
                    State::Abandoned => {
                        under_way.try_remove(key);
                        wakers.append(&mut self.waiting.borrow_mut());
                    }
                    State::Ended(_) => {}
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Forgets an operation whose end was told: there is room for another.
    fn forget(&self, key: usize) {
        self.under_way.borrow_mut().remove(key);
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    let named = CString::new(path.as_os_str().as_bytes());
    named.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl fmt::Debug for DiskRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskRing")
            .field("under_way", &self.under_way.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Drop for DiskRing {
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
    ring: Rc<DiskRing>,
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
                drop(under_way);
                self.ring.forget(key);
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
            State::Ended(_) => {
                drop(under_way);
                self.ring.forget(key);
            }
            state => *state = State::Abandoned,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Instant;

    use ringkeeper_transport::{DiskHooks, ExecutorSpec, run_executor, sleep, spawn_local};
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::aligned;
    use crate::disk::BLOCK_BYTES;

    fn on_executor<F: Future + 'static>(test: impl FnOnce(Rc<DiskRing>) -> F + 'static) {
        let hooks = DiskHooks { start, reap };
        let spec = ExecutorSpec::new("t", None).with_disk(hooks);
        run_executor(&spec, async { test(current().unwrap()).await }).unwrap();
    }

    /// A directory with a file of two blocks of zeros.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target");
        fs::create_dir_all(&place).unwrap();
        let dir = tempfile::tempdir_in(place.canonicalize().unwrap()).unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![0; 2 * BLOCK_BYTES]).unwrap();
        (dir, path)
    }

    fn a_block_of_ones() -> Rc<Memory> {
        let mut memory = aligned::allocate(BLOCK_BYTES);
        Rc::get_mut(&mut memory).unwrap().as_mut_bytes().fill(1);
        memory
    }

    fn is_idle(ring: &DiskRing) -> bool {
        ring.under_way.borrow().is_empty()
    }

    #[test]
    fn what_is_written_and_flushed_is_there() {
        let (_dir, path) = directory();
        on_executor(move |ring| async move {
            let file = ring.open(&path, 0, 0).await.unwrap();
            let offset = BLOCK_BYTES as u64;
            let written = ring.write(&file, a_block_of_ones(), BLOCK_BYTES, offset);
            assert_eq!(written.await.unwrap(), BLOCK_BYTES);
            ring.flush(&file).await.unwrap();
            let expect: Vec<u8> = [[0; BLOCK_BYTES], [1; BLOCK_BYTES]].concat();
            assert!(fs::read(&path).unwrap() == expect);
            // The last block of three is behind the end.
            let mut memory = aligned::allocate(3 * BLOCK_BYTES);
            let count = ring.read(&file, &mut memory, 1, 0).await.unwrap();
            assert_eq!(count, 2 * BLOCK_BYTES);
            assert!(memory.as_bytes()[BLOCK_BYTES..] == expect);
            ring.sleep(Duration::from_millis(1)).await.unwrap();
            assert!(is_idle(&ring));
        });
    }

    #[test]
    fn files_are_made_reserved_renamed_and_removed() {
        let (dir, path) = directory();
        on_executor(move |ring| async move {
            let new = path.with_file_name("new");
            let refused = ring.open(&new, 0, 0).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::NotFound);
            let file = ring.open(&new, libc::O_CREAT, 0o600).await.unwrap();
            ring.reserve(&file, 3 * BLOCK_BYTES as u64).await.unwrap();
            assert_eq!(file.metadata().unwrap().len(), 3 * BLOCK_BYTES as u64);
            let descriptor = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            assert_eq!(fs::read_link(&descriptor).unwrap(), new);
            ring.close(file).await;
            assert!(fs::read_link(&descriptor).map_or(true, |other| other != new));
            ring.rename(&new, &path).await.unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), 3 * BLOCK_BYTES as u64);
            ring.remove(&path).await.unwrap();
            ring.sync_dir(dir.path()).await.unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
            let refused = ring.remove(&path).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::NotFound);
            assert!(is_idle(&ring));
        });
    }

    #[test]
    fn a_write_that_nobody_waits_for_any_more_ends_all_the_same() {
        let (_dir, path) = directory();
        on_executor(move |ring| async move {
            let file = ring.open(&path, 0, 0).await.unwrap();
            let held = a_block_of_ones();
            {
                let mut write = std::pin::pin!(ring.write(&file, Rc::clone(&held), BLOCK_BYTES, 0));
                poll_fn(|cx| {
                    let _pending = write.as_mut().poll(cx);
                    Poll::Ready(())
                })
                .await;
            }
            // Nothing is reaped while this task runs.
            assert_eq!(Rc::strong_count(&held), 2, "the kernel may still read it");
            while !is_idle(&ring) {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(Rc::strong_count(&held), 1);
            assert_eq!(fs::read(&path).unwrap()[..BLOCK_BYTES], [1; BLOCK_BYTES]);
        });
    }

    #[test]
    fn what_is_more_than_there_is_room_for_waits() {
        let (_dir, path) = directory();
        on_executor(move |ring| async move {
            let file = ring.open(&path, 0, 0).await.unwrap();
            let tasks: Vec<_> = (0..3 * DEPTH)
                .map(|_| {
                    let (ring, file) = (Rc::clone(&ring), Rc::clone(&file));
                    spawn_local(async move {
                        let mut memory = aligned::allocate(BLOCK_BYTES);
                        ring.read(&file, &mut memory, 0, 0).await.unwrap()
                    })
                })
                .collect();
            assert_eq!(ring.under_way.borrow().len(), DEPTH as usize);
            for task in tasks {
                assert_eq!(task.await, BLOCK_BYTES);
            }
            assert!(is_idle(&ring));
        });
    }

    #[test]
    fn room_is_told_when_all_have_ended_at_once() {
        // A wait that nobody ends lasts as long as the loop sleeps, a second: it takes many to see that.
        const ROUNDS: usize = 25;
        let hooks = DiskHooks { start, reap };
        let mut spec = ExecutorSpec::new("t", None).with_disk(hooks);
        spec.pulse.busy = Duration::from_secs(3600);
        spec.pulse.idle = spec.pulse.busy;
        let started = Instant::now();
        let main = async {
            let ring = current().unwrap();
            let wait = || {
                let ring = Rc::clone(&ring);
                spawn_local(async move { ring.sleep(Duration::from_millis(1)).await.unwrap() })
            };
            for _ in 0..ROUNDS {
                let tasks: Vec<_> = (0..=DEPTH).map(|_| wait()).collect();
                // Nothing is reaped meanwhile.
                std::thread::sleep(Duration::from_millis(20));
                for task in tasks {
                    task.await;
                }
            }
            assert!(is_idle(&ring));
        };
        run_executor(&spec, main).unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "it was slept through"
        );
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let (_dir, path) = directory();
        on_executor(move |ring| async move {
            let file = Rc::new(File::open(&path).unwrap());
            let written = ring.write(&file, a_block_of_ones(), BLOCK_BYTES, 0).await;
            assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EBADF));
            assert!(is_idle(&ring));
        });
    }
}
