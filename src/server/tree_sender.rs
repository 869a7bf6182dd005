//! Trees on their way to learners: each is cut into chunks by a thread of its own, so that the replica core
//! never waits for one.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::{Bytes, BytesMut};
use ringkeeper_proto::WriteJute as _;
use ringkeeper_proto::quorum::SNAPSHOT_END;
use ringkeeper_transport::mailbox;
use ringkeeper_tree::Tree;
use ringkeeper_tree::image::{CHUNK_LEN, ImageEncoder};
use ringkeeper_zab::LinkId;

use crate::messages::CoreMessage;
use crate::threads;

/// The trees that are being sent.
#[derive(Debug)]
pub(crate) struct TreeSenders {
    core: mailbox::Sender<CoreMessage>,
    cpus: Vec<usize>,
    /// By link: each message asks for one chunk.
    senders: BTreeMap<LinkId, Sender<()>>,
}

impl TreeSenders {
    /// No trees yet. Chunks go to `core`; threads run on `cpus`.
    pub(crate) const fn new(core: mailbox::Sender<CoreMessage>, cpus: Vec<usize>) -> Self {
        Self {
            core,
            cpus,
            senders: BTreeMap::new(),
        }
    }

    /// Gets ready to cut `tree` into chunks.
    pub(crate) fn begin(&mut self, link: LinkId, tree: Tree) {
        let (next, wait_next) = channel();
        let (core, cpus) = (self.core.clone(), self.cpus.clone());
        let started = thread::Builder::new()
            .name("tree-sender".into())
            .spawn(move || {
                threads::run_on(&cpus);
                run(link, &tree, &wait_next, &core);
            });
        match started {
            Ok(_) => _ = self.senders.insert(link, next),
            // The learner hears nothing more, and comes back.
            Err(error) => tracing::error!(%error, "start a thread that sends a tree"),
        }
    }

    /// Makes the next chunk for a link.
    pub(crate) fn next(&self, link: LinkId) {
        if let Some(next) = self.senders.get(&link) {
            // Its thread has ended after the last chunk.
            _ = next.send(());
        }
    }

    /// A tree need not be sent any more.
    pub(crate) fn stop(&mut self, link: LinkId) {
        self.senders.remove(&link);
    }
}

fn run(link: LinkId, tree: &Tree, next: &Receiver<()>, core: &mailbox::Sender<CoreMessage>) {
    let mut encoder = ImageEncoder::new(tree);
    let mut is_over = false;
    while !is_over && next.recv().is_ok() {
        let mut chunk = BytesMut::with_capacity(CHUNK_LEN + CHUNK_LEN / 8);
        is_over = !encoder.next_chunk(&mut chunk);
        if is_over {
            chunk.put_ustring(SNAPSHOT_END);
        }
        send(core, link, chunk.freeze());
    }
    if is_over {
        send(core, link, Bytes::new());
    }
}

fn send(core: &mailbox::Sender<CoreMessage>, link: LinkId, bytes: Bytes) {
    let mut message = CoreMessage::TreeChunk { link, bytes };
    while let Err(mailbox::MailboxError::Full(back)) = core.send(message) {
        message = back;
        thread::yield_now();
    }
}
