//! Which sockets of an executor can be read or written: an epoll set, in which its loop sleeps.
//!
//! A poll request on a ring for every wait of every connection costs more than the `recv` it leads to: an entry in each
//! queue, and where the executor runs at that moment, an interrupt of its CPU to hand it the completion. So sockets are
//! registered once, edge-triggered, and the loop asks for all of them at once.
//!
//! Invariants:
//! - A socket's edges are taken by [`ReadySet::dispatch`] only, between tasks and never within one; so an edge
//!   that comes after a call on the socket has said "not now" is dispatched after the caller has stored its
//!   waker, and none is lost.
//! - A socket is read at most once per dispatch, unless its peer has ended: who sends as fast as it is
//!   read keeps nobody out.
//! - An edge of a socket that is gone never reaches the one that has taken its place.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use socket2::Socket;

/// Sockets that are told in one call.
pub(crate) const EVENTS_MAX: usize = 256;

/// The key of a descriptor that only wakes the loop: above all keys of places.
const BELL: u64 = u64::MAX;

thread_local! {
    static CURRENT: RefCell<Option<Rc<ReadySet>>> = const { RefCell::new(None) };
}

/// The epoll set of an executor, and who waits for what.
#[derive(Debug)]
pub(crate) struct ReadySet {
    epoll: OwnedFd,
    places: RefCell<Places>,
}

#[derive(Debug, Default)]
struct Places {
    all: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    interest: Option<Rc<Interest>>,
}

/// What has been told of a socket, and who waits for more.
#[derive(Default)]
struct Interest {
    /// An edge has come since the last read that took all there was.
    can_read: Cell<bool>,
    /// It has been writable since it was registered.
    was_writable: Cell<bool>,
    /// The peer has ended its side, or the connection has failed: reading comes to an end.
    has_ended: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

/// The descriptor of a set.
///
/// # Errors
/// When the system has none left.
pub(crate) fn descriptor() -> io::Result<OwnedFd> {
    Ok(epoll::create(epoll::CreateFlags::CLOEXEC)?)
}

/// Makes `epoll` the set of the current thread's executor.
pub(crate) fn start(epoll: OwnedFd) -> Rc<ReadySet> {
    let set = Rc::new(ReadySet {
        epoll,
        places: RefCell::default(),
    });
    CURRENT.set(Some(Rc::clone(&set)));
    set
}

/// Ends it: no socket is registered with it any more.
pub(crate) fn stop() {
    CURRENT.set(None);
}

impl ReadySet {
    /// Has the set tell of a descriptor that only wakes the loop.
    pub(crate) fn add_bell(&self, descriptor: &OwnedFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(BELL);
        epoll::add(&self.epoll, descriptor, data, flags)?;
        Ok(())
    }

    /// Takes the edges that have come, for the first of which it waits so long.
    pub(crate) fn dispatch(&self, events: &mut Vec<epoll::Event>, wait: Duration) {
        let mut wait = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        loop {
            events.clear();
            let told = epoll::wait(&self.epoll, spare_capacity(events), Some(&wait));
            wait = Timespec::default();
            match told {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "ask for the sockets' readiness");
                    return;
                }
            }
            for event in events.iter() {
                if let Some(interest) = self.places.borrow().find(event.data.u64()) {
                    interest.tell(event.flags);
                }
            }
            // Each socket is told at most once until its next edge, so this ends.
            if events.len() < EVENTS_MAX {
                return;
            }
        }
    }
}

impl Places {
    fn insert(&mut self, interest: Rc<Interest>) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.all.push(Place::default());
            u32::try_from(self.all.len() - 1).expect("descriptors run out before 2^32 places")
        });
        let place = &mut self.all[at as usize];
        place.generation = place.generation.wrapping_add(1);
        place.interest = Some(interest);
        u64::from(place.generation) << 32 | u64::from(at)
    }

    fn find(&self, key: u64) -> Option<&Interest> {
        let place = self.all.get(index_of(key) as usize)?;
        let is_same = u64::from(place.generation) == key >> 32;
        place.interest.as_deref().filter(|_| is_same)
    }

    fn remove(&mut self, key: u64) {
        let at = index_of(key);
        if let Some(place) = self.all.get_mut(at as usize)
            && place.interest.take().is_some()
        {
            self.free.push(at);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is the place"
)]
const fn index_of(key: u64) -> u32 {
    key as u32
}

impl Interest {
    fn tell(&self, flags: epoll::EventFlags) {
        let ends = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        let fails = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        let has_ended = flags.intersects(ends);
        if has_ended || flags.contains(epoll::EventFlags::IN) {
            self.has_ended.set(has_ended || self.has_ended.get());
            self.can_read.set(true);
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        if flags.intersects(fails | epoll::EventFlags::OUT) {
            self.was_writable.set(true);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interest")
            .field("can_read", &self.can_read)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

/// A socket that is registered with the set of its executor.
#[derive(Debug)]
pub(crate) struct Watched {
    socket: Socket,
    interest: Rc<Interest>,
    set: Rc<ReadySet>,
    key: u64,
}

impl Watched {
    /// Registers `socket` with the current executor.
    ///
    /// # Errors
    /// When the system's limit of watched descriptors is reached (`fs.epoll.max_user_watches`).
    ///
    /// # Panics
    /// Outside an executor of this crate.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        let set = CURRENT.with_borrow(Clone::clone);
        let set = set.expect("sockets are used on an executor of this crate");
        let interest = Rc::new(Interest::default());
        let key = set.places.borrow_mut().insert(Rc::clone(&interest));
        // From here on a failure takes the place back.
        let watched = Self {
            socket,
            interest,
            set,
            key,
        };
        epoll::add(
            &watched.set.epoll,
            &watched.socket,
            epoll::EventData::new_u64(key),
            interests(),
        )?;
        Ok(watched)
    }

    /// The socket.
    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Calls `read`, which says how many bytes it took of how many it had room for, when there may be
    /// something to read; ready with what it says unless that is "not now".
    pub(crate) fn poll_read(
        &self,
        cx: &Context<'_>,
        room: usize,
        mut read: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let interest = &self.interest;
        while interest.can_read.get() {
            match read() {
                Ok(count) => {
                    // Less than there is room for is all there was. What has ended is read to its end,
                    // which no further edge would tell.
                    interest.can_read.set(interest.has_ended.get());
                    if count == room && !interest.has_ended.get() {
                        self.ask_again()?;
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    interest.can_read.set(false);
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        interest.reader.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Waits until there may be something to read, or to accept, that was not there when this last
    /// returned.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.interest.can_read.replace(false) {
            return Poll::Ready(());
        }
        self.interest.reader.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Wakes the caller with the next edge of writability, of which there is one after every write that
    /// has found no room.
    pub(crate) fn wake_writer(&self, cx: &Context<'_>) {
        self.interest.writer.set(Some(cx.waker().clone()));
    }

    /// Waits until it has been writable once: a connection that was begun is there, or has failed.
    pub(crate) fn poll_begun(&self, cx: &Context<'_>) -> Poll<()> {
        if self.interest.was_writable.get() {
            return Poll::Ready(());
        }
        self.wake_writer(cx);
        Poll::Pending
    }

    /// Has the next dispatch tell again what is there.
    fn ask_again(&self) -> io::Result<()> {
        let data = epoll::EventData::new_u64(self.key);
        epoll::modify(&self.set.epoll, &self.socket, data, interests())?;
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.set.places.borrow_mut().remove(self.key);
        // It fails only where registering has failed.
        let _ = epoll::delete(&self.set.epoll, &self.socket);
    }
}

fn interests() -> epoll::EventFlags {
    epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};

    use socket2::{Domain, Type};

    use super::*;
    use crate::executor::{ExecutorSpec, run_executor};

    /// A watched end and the other one.
    fn pair() -> (Watched, Socket) {
        let (near, far) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        near.set_nonblocking(true).unwrap();
        (Watched::new(near).unwrap(), far)
    }

    async fn read(watched: &Watched, room: usize) -> Vec<u8> {
        let mut bytes = vec![0; room];
        let count = poll_fn(|cx| watched.poll_read(cx, room, || watched.socket().read(&mut bytes)));
        let count = count.await.unwrap();
        bytes.truncate(count);
        bytes
    }

    fn on_executor(test: impl Future<Output = ()> + 'static) {
        run_executor(&ExecutorSpec::new("t", None), test).unwrap();
    }

    #[test]
    fn what_is_more_than_there_was_room_for_is_told_again_and_the_end_too() {
        on_executor(async {
            let (near, mut far) = pair();
            far.write_all(b"abcdef").unwrap();
            assert_eq!(read(&near, 4).await, b"abcd");
            assert_eq!(read(&near, 4).await, b"ef");
            far.write_all(b"ghi").unwrap();
            drop(far);
            assert_eq!(read(&near, 2).await, b"gh");
            assert_eq!(read(&near, 2).await, b"i");
            assert_eq!(read(&near, 2).await, b"");
        });
    }

    #[test]
    fn a_flood_is_read_once_per_dispatch() {
        on_executor(async {
            let (near, mut far) = pair();
            far.write_all(&[b'x'; 64]).unwrap();
            read(&near, 8).await;
            // There is more, but it is not told before the others have had their turn.
            let mut calls = 0;
            poll_fn(|cx| {
                let outcome = near.poll_read(cx, 8, || {
                    calls += 1;
                    Ok(8)
                });
                assert!(outcome.is_pending());
                Poll::Ready(())
            })
            .await;
            assert_eq!(calls, 0);
            assert_eq!(read(&near, 8).await.len(), 8);
        });
    }

    #[test]
    fn the_next_in_a_place_hears_nothing_of_the_one_before() {
        on_executor(async {
            let (near, mut far) = pair();
            let key = near.key;
            // Its edge is there, and not dispatched yet.
            far.write_all(b"x").unwrap();
            drop(near);
            let (next, _far) = pair();
            assert_eq!(index_of(next.key), index_of(key));
            assert!(next.set.places.borrow().find(key).is_none());
            poll_fn(|cx| next.poll_begun(cx)).await;
            assert!(!next.interest.can_read.get());
        });
    }

    #[test]
    fn room_is_told_to_who_found_none() {
        on_executor(async {
            let (near, mut far) = pair();
            let mut sent = 0;
            while let Ok(count) = near.socket().send(&[0; 65_536]) {
                sent += count;
            }
            let mut drained = vec![0; sent];
            let mut asked = false;
            poll_fn(|cx| {
                if !asked {
                    asked = true;
                    near.wake_writer(cx);
                    far.read_exact(&mut drained).unwrap();
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            assert!(near.socket().send(b"x").is_ok());
        });
    }
}
