//! What is served without a leader: reads, to clients that ask for no more (`readonlymode.enabled`).
//!
//! ZK: ReadOnlyZooKeeperServer. It begins when an election has lasted for [`Settings::read_only_after_ms`], and ends
//! when a leader is found, before this server is synchronized with it: its clients then have to come again.
//!
//! Invariants:
//! - What is published does not change meanwhile, so no watch event is owed.
//! - The sessions are local ones, known to nobody else, and end with the standing.

use ringkeeper_proto::reply::WriteReply;
use ringkeeper_proto::{OpCode, ZkError};
use ringkeeper_storage::Disk;

use crate::core::Core;
use crate::messages::{ClientMessage, WriteMessage};
use crate::publication::Answer;
use crate::sessions::Holder;
use crate::standing::Standing;

impl<D: Disk> Core<D> {
    /// Notes whether an election is under way, and becomes read-only or ceases to be.
    pub(crate) fn watch_election(&mut self) {
        if self.alone || !self.zab.is_electing() {
            self.electing_since_ms = None;
            if self.standing == Standing::ReadOnly {
                tracing::info!("a leader is found: read-only clients have to come again");
                self.sessions.clear();
                self.steps.clear();
                self.stand(Standing::Looking, false);
            }
            return;
        }
        let now_ms = self.now.monotonic_ms();
        let since_ms = *self.electing_since_ms.get_or_insert(now_ms);
        if self.standing == Standing::Looking
            && let Some(after_ms) = self.settings.read_only_after_ms()
            && now_ms.saturating_sub(since_ms) >= after_ms
        {
            tracing::info!(zxid = %self.published.zxid(), "no leader: serving reads only");
            self.stand(Standing::ReadOnly, false);
        }
    }

    pub(crate) fn hear_read_only(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::NewSession { from, timeout_ms } => {
                self.new_local_session(from, timeout_ms);
            }
            ClientMessage::Reconnect {
                from,
                session,
                timeout_ms,
            } => {
                // The shard has let nobody through whose session is known to all.
                let (now_ms, holder) = (self.now.monotonic_ms(), Holder::Client(from));
                let held = self.sessions.reattach(session, timeout_ms, holder, now_ms);
                self.tell_reattached(from, held);
            }
            ClientMessage::Write(write) => self.refuse_write(&write),
            ClientMessage::Disconnected { from, session } => {
                self.sessions.detach(session, from);
            }
        }
    }

    fn refuse_write(&mut self, write: &WriteMessage) {
        let outcome = match write.op {
            OpCode::CloseSession => {
                self.sessions.close(write.session);
                Ok(WriteReply::Empty)
            }
            _ => Err(ZkError::NotReadOnly),
        };
        let (to, xid) = (write.from, write.xid);
        let answer = Answer::Write { to, xid, outcome };
        let before = write.keep_before.then(|| Box::new(self.published.clone()));
        self.step(self.published.zxid(), before, answer);
    }
}
