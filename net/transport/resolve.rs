//! Names of machines, looked up off the executor: the system's resolver blocks, for many seconds when a
//! name server is gone.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::{future, io, thread};

use futures_util::task::AtomicWaker;

/// Lookups under way at most, over all executors; each has a thread while it lasts.
const LOOKUPS_MAX: usize = 32;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// The addresses of `host`, an address or a name. A name is looked up anew each time. May be
/// cancelled; the lookup then ends in the background.
///
/// # Errors
/// What the resolver says; of the kind `ResourceBusy` when too many lookups hang.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if LOOKUPS.fetch_add(1, Ordering::Relaxed) >= LOOKUPS_MAX {
        LOOKUPS.fetch_sub(1, Ordering::Relaxed);
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let answer = Arc::new(Answer::default());
    let theirs = Arc::clone(&answer);
    let host = host.to_owned();
    let started = thread::Builder::new()
        .name("resolver".into())
        .spawn(move || {
            let found = (host.as_str(), port)
                .to_socket_addrs()
                .map(Iterator::collect);
            LOOKUPS.fetch_sub(1, Ordering::Relaxed);
            theirs.give(found);
        });
    if let Err(error) = started {
        LOOKUPS.fetch_sub(1, Ordering::Relaxed);
        return Err(error);
    }
    future::poll_fn(|cx| {
        answer.waker.register(cx.waker());
        answer.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// What one lookup found, on its way to who asked.
#[derive(Debug, Default)]
struct Answer {
    found: Mutex<Option<io::Result<Vec<SocketAddr>>>>,
    waker: AtomicWaker,
}

impl Answer {
    fn give(&self, found: io::Result<Vec<SocketAddr>>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        self.waker.wake();
    }

    fn take(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{ExecutorSpec, run_executor};

    #[test]
    fn names_and_addresses_are_found() {
        run_executor(&ExecutorSpec::new("t", None), async {
            let plain = resolve("10.1.2.3", 7).await.unwrap();
            assert_eq!(plain, ["10.1.2.3:7".parse().unwrap()]);
            let six = resolve("::1", 7).await.unwrap();
            assert_eq!(six, ["[::1]:7".parse().unwrap()]);
            let named = resolve("localhost", 7).await.unwrap();
            assert!(
                named
                    .iter()
                    .all(|addr| addr.ip().is_loopback() && addr.port() == 7)
            );
            assert!(!named.is_empty());
            assert!(resolve("no such name", 7).await.is_err());
        })
        .unwrap();
        assert_eq!(LOOKUPS.load(Ordering::Relaxed), 0);
    }
}
