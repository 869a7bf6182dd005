//! Drives a shard on its executor: accepts connections, reads each of them, walks the chain when it
//! grows, hears what others say.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringkeeper_member::ClientKey;
use ringkeeper_transport::mailbox::{MailboxError, Receiver};
use ringkeeper_transport::{
    Accepted, BoundSocket, Doorbell, ListenOptions, Listener, ReadHalf, WriteHalf, sleep,
    spawn_local, timeout,
};

use crate::four_letter;
use crate::link::Links;
use crate::messages::ShardMessage;
use crate::shard::{Next, Shard, UNSENT_BYTES_PAUSE};

/// How often a shard looks at what no message tells it: a full mailbox that has room again,
/// publications that nobody here waits for.
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
        let place = Rc::new(Place {
            index: shard.borrow().index,
            shard: Rc::clone(&shard),
            links,
            sessionless_max,
        });
        let accepting = spawn_local(accept(Rc::clone(&place), listener));
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
                    if shard.is_behind() {
                        shard.catch_up();
                        shard.flush();
                    }
                }
            }
        });
        listening();
        while let Some(message) = inbox.recv().await {
            match message {
                ShardMessage::Adopt(accepted) => serve(&place, accepted),
                ShardMessage::Stop => {
                    closer.close();
                    shard.borrow_mut().hear(message);
                    break;
                }
                message => shard.borrow_mut().hear(message),
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

/// What it takes to serve a connection on this shard.
struct Place {
    index: u32,
    shard: Rc<RefCell<Shard>>,
    links: Links,
    sessionless_max: Duration,
}

async fn accept(place: Rc<Place>, mut listener: Listener) {
    while let Some(accepted) = listener.accept_detached().await {
        let counts = &place.links.counts;
        let shard = counts.place(place.index);
        counts.serving(shard);
        if shard == place.index {
            serve(&place, accepted);
        } else {
            hand_over(&place, shard, accepted);
        }
    }
}

/// Gives a connection to another shard; keeps it when that has no time for it.
fn hand_over(place: &Rc<Place>, shard: u32, accepted: Accepted) {
    let Some(to) = place.links.shards.get(shard as usize) else {
        return;
    };
    let Err(error) = to.send(ShardMessage::Adopt(accepted)) else {
        return;
    };
    place.links.counts.served(shard);
    if let MailboxError::Full(ShardMessage::Adopt(accepted)) = error {
        place.links.counts.serving(place.index);
        serve(place, accepted);
    }
}

/// Starts the reader of a connection, which is counted as served here already, unless there are too
/// many connections.
fn serve(place: &Rc<Place>, accepted: Accepted) {
    let counts = &place.links.counts;
    let connection = match accepted.attach() {
        Ok(connection) => connection,
        Err(error) => {
            counts.served(place.index);
            tracing::warn!(%error, "serve a connection");
            return;
        }
    };
    let peer = connection.peer_addr();
    if let Err(limit) = counts.connected(peer.ip()) {
        counts.served(place.index);
        tracing::warn!(%peer, limit, "too many connections: refused");
        return;
    }
    let (input, output) = connection.split();
    let key = place.shard.borrow_mut().admit(output.clone(), peer);
    let reader = Reader {
        place: Rc::clone(place),
        key,
        input,
        output,
    };
    let place = Rc::clone(place);
    let reading = async move {
        reader.run().await;
        place.shard.borrow_mut().forget(key);
        place.links.counts.disconnected(peer.ip());
        place.links.counts.served(place.index);
    };
    spawn_local(reading).detach();
}

/// Reads one connection to its end.
struct Reader {
    place: Rc<Place>,
    key: ClientKey,
    input: ReadHalf,
    output: WriteHalf,
}

impl Reader {
    async fn run(mut self) {
        let opened = Instant::now();
        loop {
            let next = self
                .place
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
                Next::Pause => Shard::wait_ready(&self.place.shard, self.key).await,
                // Boxed: ten thousand idle connections should not each keep room for it.
                Next::FourLetterWord(word) => return Box::pin(self.four_letter_word(word)).await,
                Next::End => return Box::pin(self.discard()).await,
            }
        }
    }

    /// Receives once; whether there is more to come.
    async fn receive(&mut self, opened: Instant) -> bool {
        let has_session = self.place.shard.borrow().has_session(self.key);
        let received = if has_session {
            self.input.recv().await
        } else {
            let left = self.place.sessionless_max.saturating_sub(opened.elapsed());
            match Box::pin(timeout(left, self.input.recv())).await {
                Some(received) => received,
                None => return false,
            }
        };
        matches!(received, Ok(1..))
    }

    async fn four_letter_word(mut self, word: [u8; 4]) {
        let rest = self.input.frames().take_rest();
        let settings = self.place.shard.borrow().settings.clone();
        let argument = rest.get(4..).unwrap_or(&[]);
        let text = four_letter::answer(word, argument, &settings, &self.place.links).await;
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
