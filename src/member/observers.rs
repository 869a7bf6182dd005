//! What a follower passes on between the observers that it serves and the leader (ZK: `ObserverMaster`).
//!
//! To the leader an observer's clients are clients of this follower: it says [`Holder::Learner`] of this link. So which
//! observer has a session is known here alone, and is looked at here.
//!
//! Invariant: the leader answers questions about one session, and syncs, in the order in which they were asked on this
//! link, whoever asked.
//!
//! [`Holder::Learner`]: crate::sessions::Holder::Learner

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ringkeeper_proto::quorum::{ForwardedRequest, Revalidated, Revalidation};
use ringkeeper_proto::{DecodeError, OpCode, SessionId};
use ringkeeper_storage::Disk;
use ringkeeper_zab::{LinkId, Message};

use crate::core::Core;
use crate::messages::ClientNotice;

/// Whose client has a session, or asks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// One of this server.
    Here,
    /// One of the observer on this link.
    Observer(LinkId),
}

/// What is passed on.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    /// Who has asked the leader about which session, in order.
    questions: VecDeque<(SessionId, Place)>,
    /// Where the sessions are that an observer's client had last, or has come back from there to this server.
    places: BTreeMap<SessionId, Place>,
}

impl Passing {
    pub(crate) fn ask(&mut self, session: SessionId, asker: Place) {
        self.questions.push_back((session, asker));
    }

    /// Whose question about a session is answered next.
    fn answered(&mut self, session: SessionId) -> Place {
        let at = self.questions.iter().position(|(it, _)| *it == session);
        let question = at.and_then(|at| self.questions.remove(at));
        question.map_or(Place::Here, |(_, asker)| asker)
    }

    /// A session has ended.
    pub(crate) fn forget_session(&mut self, session: SessionId) {
        self.places.remove(&session);
    }

    pub(crate) fn forget_link(&mut self, link: LinkId) {
        self.places
            .retain(|_, place| *place != Place::Observer(link));
    }
}

impl<D: Disk> Core<D> {
    /// Whether this server serves observers when it follows (`observerMasterPort`).
    pub(crate) fn serves_observers(&self) -> bool {
        let peers = self.settings.config.peers.as_ref();
        peers.is_some_and(|it| it.observer_master_port.is_some())
    }

    /// A request of an observer's client.
    pub(crate) fn pass_request(&mut self, link: LinkId, payload: Bytes) -> Result<(), DecodeError> {
        let request = ForwardedRequest::decode(&payload)?;
        let (session, here) = (request.session, Place::Observer(link));
        let passing = &mut self.traffic.passing;
        if passing.places.get(&session).is_some_and(|it| *it != here) {
            // Its client has left the observer, which is older than what it has asked elsewhere since. ZK: a leader says
            // that the session has moved, and nobody is there any more to hear it.
            tracing::debug!(%session, link = link.0, "a request of a session that has moved");
            return Ok(());
        }
        match OpCode::from_code(request.op) {
            Some(OpCode::Sync) => self.learning.pass_sync(link),
            Some(OpCode::CreateSession) => _ = passing.places.insert(session, here),
            _ => {}
        }
        self.forward(payload);
        Ok(())
    }

    /// A question of an observer's, whose client has come back with its session.
    pub(crate) fn pass_question(
        &mut self,
        link: LinkId,
        payload: Bytes,
    ) -> Result<(), DecodeError> {
        let question = Revalidation::decode(&payload)?;
        if let Some(leader) = self.zab.leader_link() {
            let passing = &mut self.traffic.passing;
            passing.ask(question.session, Place::Observer(link));
            self.send(leader, Message::Revalidate(payload).into());
        }
        Ok(())
    }

    /// The leader's answer to a question about a session.
    pub(crate) fn take_answer(&mut self, answer: Revalidated) {
        let (session, is_valid) = (answer.session, answer.is_valid);
        let asker = self.traffic.passing.answered(session);
        let places = &mut self.traffic.passing.places;
        match asker {
            Place::Here => {
                // What its client asked for at an observer comes too late from now on.
                if let (true, Some(place)) = (is_valid, places.get_mut(&session)) {
                    *place = asker;
                }
                self.revalidated(answer);
            }
            Place::Observer(link) => {
                if is_valid && self.zab.peer_at(link).is_some() {
                    places.insert(session, asker);
                    // It has left this server for the observer.
                    let left = self.sessions.close(session);
                    let client = left.and_then(|left| left.holder.client());
                    let drops = client.map(|client| ClientNotice::Drop { client });
                    self.notices.extend(drops);
                }
                self.send(link, Message::Revalidate(answer.encode()).into());
            }
        }
    }
}
