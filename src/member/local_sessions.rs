//! Sessions that one server alone knows of (`localSessionsEnabled`): no transaction opens or closes them.
//!
//! ZK: UpgradeableSessionTracker. Who wants an ephemeral must have a session that all servers know, so the first one makes
//! the session global (`localSessionsUpgradingEnabled`), or is refused. A local session cannot move to another
//! server, and ends with this server's standing.

use ringkeeper_proto::{LossyText, OpCode, Request, SessionId, ZkError};
use ringkeeper_storage::Disk;
use ringkeeper_tree::wants_ephemeral;

use crate::core::Core;
use crate::messages::ClientNotice;
use crate::publication::ClientKey;

impl<D: Disk> Core<D> {
    /// Opens a session that nobody else is to know of.
    pub(crate) fn new_local_session(&mut self, to: ClientKey, timeout_ms: i32) {
        let (id, now_ms) = (self.sessions.next_id(), self.now.monotonic_ms());
        let session = self.sessions.insert_local(id, timeout_ms, to, now_ms);
        self.notices.push(ClientNotice::Attach { to, session });
    }

    /// What a request needs for which a local session does not do. `Ok`: its session is global from now on, and its
    /// creation, with this time-out, has to be proposed before the request.
    pub(crate) fn upgrade_for(
        &mut self,
        session: SessionId,
        op: OpCode,
        body: &[u8],
    ) -> Option<Result<i32, ZkError>> {
        if !self.sessions.is_local(session) {
            return None;
        }
        let text = LossyText::new();
        let request = Request::decode_lossy(op, body, &text).ok()?;
        if !wants_ephemeral(&request) {
            return None;
        }
        if !self.settings.upgrades_local_sessions() {
            return Some(Err(ZkError::EphemeralOnLocalSession));
        }
        tracing::debug!(%session, "a local session becomes global");
        self.sessions.upgrade(session).map(Ok)
    }

    /// Whether a session that nobody knows here may be a local one of another server.
    ///
    /// ZK: LeaderSessionTracker.checkSession. One that is being closed is known until that is committed.
    pub(crate) fn may_be_local_elsewhere(&self, session: SessionId) -> bool {
        self.settings.local_sessions()
            && !self.sessions.is_numbered_here(session)
            && self.published.session_timeout(session).is_none()
    }

    /// Closes the local sessions that have expired.
    pub(crate) fn expire_local_sessions(&mut self) {
        for session in self.sessions.expired_local(self.now.monotonic_ms()) {
            tracing::info!(%session, "local session expired");
            self.stats.sessions_expired += 1;
            let closed = self.sessions.close(session);
            if let Some(client) = closed.and_then(|closed| closed.holder.client()) {
                self.notices.push(ClientNotice::Drop { client });
            }
        }
    }
}
