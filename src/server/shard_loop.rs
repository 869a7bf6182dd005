//! Drives a shard on its executor: accepts connections, reads each of them, walks the chain when it
//! grows, hears what others say.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringkeeper_transport::mailbox::Receiver;
use ringkeeper_transport::{
    BoundSocket, Connection, Doorbell, ListenOptions, Listener, ReadHalf, WriteHalf, sleep,
    spawn_local, timeout,
};

use crate::four_letter;
use crate::link::Links;
use crate::messages::ShardMessage;
use crate::publication::ClientKey;
use crate::shard::{Next, Shard, UNSENT_BYTES_PAUSE};

/// How often a shard looks at what no message tells it: a full mailbox that has room again, the end of
/// the drain.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What a shard's executor runs.
#[derive(Debug)]
pub(crate) struct ShardLoop {
    pub(crate) shard: Rc<RefCell<Shard>>,
    pub(crate) doorbell: Doorbell,
    pub(crate) inbox: Receiver<ShardMessage>,
    pub(crate) links: Links,
    /// How long a stop may wait for what is under way.
    pub(crate) drain_max: Duration,
    /// How long a connection may be without a session.
    pub(crate) sessionless_max: Duration,
}

impl ShardLoop {
    /// Serves until the server stops; calls `listening` when connections are accepted.
    ///
    /// # Errors
    /// When the socket cannot listen.
    pub(crate) async fn run(
        self,
        socket: BoundSocket,
        options: ListenOptions,
        listening: impl FnOnce(),
    ) -> io::Result<()> {
        let Self {
            shard,
            mut doorbell,
            mut inbox,
            links,
            drain_max,
            sessionless_max,
        } = self;
        let listener = socket.listen(options)?;
        let closer = listener.closer();
        let accepting = spawn_local(accept(Rc::clone(&shard), listener, links, sessionless_max));
        let walking = spawn_local({
            let shard = Rc::clone(&shard);
            async move {
                loop {
                    doorbell.rung().await;
                    let mut shard = shard.borrow_mut();
                    shard.catch_up();
                    shard.flush();
                }
            }
        });
        let looking = spawn_local({
            let shard = Rc::clone(&shard);
            async move {
                loop {
                    sleep(LOOK_INTERVAL).await;
                    let mut shard = shard.borrow_mut();
                    if shard.core.is_full() {
                        shard.flush();
                        shard.resume_paused();
                    }
                }
            }
        });
        listening();
        while let Some(message) = inbox.recv().await {
            let is_stop = matches!(message, ShardMessage::Stop);
            if is_stop {
                closer.close();
            }
            shard.borrow_mut().hear(message);
            if is_stop {
                break;
            }
        }
        drain(&shard, &mut inbox, drain_max).await;
        accepting.cancel().await;
        walking.cancel().await;
        looking.cancel().await;
        Ok(())
    }
}

/// Waits until everything under way is answered and sent.
async fn drain(
    shard: &Rc<RefCell<Shard>>,
    inbox: &mut Receiver<ShardMessage>,
    drain_max: Duration,
) {
    let started = Instant::now();
    let mut messages = Vec::new();
    while !shard.borrow().is_drained() && started.elapsed() < drain_max {
        inbox.try_recv_batch(&mut messages);
        messages
            .drain(..)
            .for_each(|message| shard.borrow_mut().hear(message));
        sleep(Duration::from_millis(2)).await;
    }
}

async fn accept(
    shard: Rc<RefCell<Shard>>,
    mut listener: Listener,
    links: Links,
    sessionless_max: Duration,
) {
    while let Some(connection) = listener.accept().await {
        serve(&shard, connection, &links, sessionless_max);
    }
}

/// Starts the reader of a connection, unless there are too many connections.
fn serve(
    shard: &Rc<RefCell<Shard>>,
    connection: Connection,
    links: &Links,
    sessionless_max: Duration,
) {
    let peer = connection.peer_addr();
    if let Err(limit) = links.counts.connected(peer.ip()) {
        tracing::warn!(%peer, limit, "too many connections: refused");
        return;
    }
    let (input, output) = connection.split();
    let key = shard.borrow_mut().admit(output.clone(), peer);
    let reader = Reader {
        shard: Rc::clone(shard),
        key,
        input,
        output,
        links: links.clone(),
        sessionless_max,
    };
    let reading = async move {
        let (shard, counts) = (Rc::clone(&reader.shard), reader.links.counts.clone());
        reader.run().await;
        shard.borrow_mut().forget(key);
        counts.disconnected(peer.ip());
    };
    spawn_local(reading).detach();
}

/// Reads one connection to its end.
struct Reader {
    shard: Rc<RefCell<Shard>>,
    key: ClientKey,
    input: ReadHalf,
    output: WriteHalf,
    links: Links,
    sessionless_max: Duration,
}

impl Reader {
    async fn run(mut self) {
        let opened = Instant::now();
        loop {
            let next = self
                .shard
                .borrow_mut()
                .take_frames(self.key, self.input.frames());
            match next {
                Next::Receive => {
                    if !self.receive(opened).await {
                        return;
                    }
                }
                Next::Pause if self.output.pending() >= UNSENT_BYTES_PAUSE => {
                    self.output.drained_to(UNSENT_BYTES_PAUSE / 2).await;
                }
                Next::Pause => Shard::wait_ready(&self.shard, self.key).await,
                // Boxed: ten thousand idle connections should not each keep room for it.
                Next::FourLetterWord(word) => return Box::pin(self.four_letter_word(word)).await,
                Next::End => return Box::pin(self.discard()).await,
            }
        }
    }

    /// Receives once; whether there is more to come.
    async fn receive(&mut self, opened: Instant) -> bool {
        let has_session = self.shard.borrow().has_session(self.key);
        let received = if has_session {
            self.input.recv().await
        } else {
            let left = self.sessionless_max.saturating_sub(opened.elapsed());
            match Box::pin(timeout(left, self.input.recv())).await {
                Some(received) => received,
                None => return false,
            }
        };
        matches!(received, Ok(1..))
    }

    async fn four_letter_word(mut self, word: [u8; 4]) {
        let rest = self.input.frames().take_rest();
        let settings = self.shard.borrow().settings.clone();
        let argument = rest.get(4..).unwrap_or(&[]);
        let text = four_letter::answer(word, argument, &settings, &self.links).await;
        self.output.queue().extend_from_slice(text.as_bytes());
        self.output.close();
        Box::pin(self.discard()).await;
    }

    /// Waits until the peer has closed too, or the linger time is over: closing at once would reset the
    /// connection, and what was sent last might be lost.
    async fn discard(mut self) {
        while let Ok(1..) = self.input.recv().await {
            self.input.frames().take_rest();
        }
    }
}
