//! What must be true after every event, found without asking the code under test more than what it did.
//!
//! The history is put together from what members say is committed: whoever says so first adds a transaction,
//! and everybody else must have the same bytes at that place. What a leader begins with is committed too, and may
//! have come to it as a tree: its transactions are known from those that proposed them.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringkeeper_proto::txn::decode_record;
use ringkeeper_proto::{OpCode, SessionId, Txn, Zxid};
use ringkeeper_tree::{Events, Tree};

/// A broken promise.
pub(crate) type Violation = String;

/// A committed transaction.
#[derive(Clone, Copy, Debug)]
struct Committed {
    zxid: Zxid,
    /// Of its bytes.
    hash: u64,
    /// Of the tree after it.
    digest: u64,
    session: SessionId,
    cxid: i32,
    op: OpCode,
}

/// A session's end that a leader has proposed.
#[derive(Debug)]
struct Expiry {
    at_ms: u64,
    /// When the leader had last heard of each session.
    heard: BTreeMap<SessionId, u64>,
}

/// The checks and what they remember.
#[derive(Debug)]
pub(crate) struct Checks {
    history: Vec<Committed>,
    tree: Tree,
    /// A second, plain account of ephemerals: path to session.
    ephemerals: BTreeMap<String, SessionId>,
    /// The last request of each session that was carried out.
    last_cxid: BTreeMap<SessionId, i32>,
    /// Who leads in which epoch, and in which of its lives.
    leaders: BTreeMap<u32, (usize, u64)>,
    /// What the leader of each epoch began with.
    begun_with: BTreeMap<u32, Zxid>,
    /// What has been proposed, as far as it is not older than what is committed.
    proposed: BTreeMap<Zxid, Bytes>,
    expiries: BTreeMap<Zxid, Expiry>,
    /// When a member that leads has heard of each session, in milliseconds.
    heard: BTreeMap<usize, BTreeMap<SessionId, u64>>,
    /// When sessions were proposed, in milliseconds.
    created: BTreeMap<SessionId, u64>,
    pub(crate) sessions_expired: u64,
}

/// What a member is being compared by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) zxid: Zxid,
    pub(crate) digest: u64,
    /// Whether it serves. A tree that a leader has sent which nobody has taken over shows what need not be committed.
    pub(crate) serves: bool,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self {
            history: Vec::new(),
            tree: Tree::new(),
            ephemerals: BTreeMap::new(),
            last_cxid: BTreeMap::new(),
            leaders: BTreeMap::new(),
            begun_with: BTreeMap::new(),
            proposed: BTreeMap::new(),
            expiries: BTreeMap::new(),
            heard: BTreeMap::new(),
            created: BTreeMap::new(),
            sessions_expired: 0,
        }
    }

    /// The last committed transaction.
    pub(crate) fn last(&self) -> Zxid {
        self.history.last().map_or(Zxid::ZERO, |it| it.zxid)
    }

    pub(crate) fn len(&self) -> usize {
        self.history.len()
    }

    pub(crate) const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// A member has these records and does not know them to be committed; the newest come first.
    pub(crate) fn proposed<'r>(&mut self, records: impl Iterator<Item = (Zxid, &'r Bytes)>) {
        let last = self.last();
        for (zxid, record) in records.take_while(|(zxid, _)| *zxid > last) {
            if self.proposed.contains_key(&zxid) {
                return;
            }
            self.proposed.insert(zxid, record.clone());
        }
    }

    fn find(&self, zxid: Zxid) -> Option<&Committed> {
        let at = self.history.binary_search_by_key(&zxid, |it| it.zxid);
        at.ok().and_then(|at| self.history.get(at))
    }

    /// A member says that this is committed. `clock_ms` gives the time of a leader's wall clock.
    pub(crate) fn committed(
        &mut self,
        member: usize,
        zxid: Zxid,
        record: &[u8],
        clock_ms: impl Fn(usize, i64) -> u64,
    ) -> Result<(), Violation> {
        let hash = hash_of(record);
        let last = self.last();
        if zxid <= last {
            return match self.find(zxid) {
                Some(known) if known.hash == hash => Ok(()),
                Some(known) => Err(format!(
                    "committed prefixes differ: member {member} has committed another transaction at {zxid:?} \
                     than the {:?} of {:?} with number {} that was committed there",
                    known.op, known.session, known.cxid
                )),
                None => Err(format!(
                    "committed prefixes differ: member {member} has committed {zxid:?}, which the committed \
                     history up to {last:?} does not have"
                )),
            };
        }
        let follows = match zxid.epoch() == last.epoch() {
            true => last.counter().checked_add(1) == Some(zxid.counter()),
            false => zxid.epoch() > last.epoch() && zxid.counter() == 1,
        };
        if !follows {
            return Err(format!(
                "zxids have a gap: member {member} has committed {zxid:?} after {last:?}"
            ));
        }
        let (header, txn, digest) = decode_record(record)
            .map_err(|error| format!("a committed record is none: {error}"))?;
        let leader = self.leaders.get(&zxid.epoch().0).map(|(leader, _)| *leader);
        let before = self.tree.session_timeout(header.session);
        if header.op == OpCode::CloseSession && header.cxid == 0 {
            self.expired(zxid, header.session, before, leader)?;
        }
        let _applied = self.tree.apply(&header, &txn, &mut Events::new());
        if let Some(digest) = digest
            && digest.tree_digest != self.tree.digest_to_wire()
        {
            return Err(format!(
                "digests differ: the leader's says {:x} after {zxid:?}, and its record makes {:x}",
                digest.tree_digest,
                self.tree.digest_to_wire()
            ));
        }
        self.note_ephemerals(header.session, &txn);
        self.compare_ephemerals(zxid)?;
        match header.op {
            OpCode::CreateSession => {
                let proposed_ms = leader.map_or(0, |leader| clock_ms(leader, header.time_ms));
                self.created.insert(header.session, proposed_ms);
            }
            OpCode::Error => {}
            // So has a multi that failed, be it because its session has moved.
            _ if is_failed(&txn) => {}
            _ if header.cxid > 0 => {
                let last = self.last_cxid.insert(header.session, header.cxid);
                if let Some(last) = last
                    && last >= header.cxid
                {
                    return Err(format!(
                        "a session's order is broken: request {} of {:?} is carried out at {zxid:?} after \
                         request {last}",
                        header.cxid, header.session
                    ));
                }
            }
            _ => {}
        }
        self.history.push(Committed {
            zxid,
            hash,
            digest: self.tree.digest(),
            session: header.session,
            cxid: header.cxid,
            op: header.op,
        });
        while self
            .proposed
            .first_key_value()
            .is_some_and(|(it, _)| *it <= zxid)
        {
            self.proposed.pop_first();
        }
        Ok(())
    }

    fn note_ephemerals(&mut self, session: SessionId, txn: &Txn<'_>) {
        match txn {
            Txn::Create { path, kind, .. } => {
                if matches!(
                    kind,
                    ringkeeper_proto::txn::CreateKind::Plain { ephemeral: true }
                ) {
                    self.ephemerals.insert(path.to_string(), session);
                }
            }
            Txn::Delete { path } => _ = self.ephemerals.remove(path.as_ref()),
            Txn::CloseSession { .. } => self.ephemerals.retain(|_, owner| *owner != session),
            Txn::Multi(parts) if parts.iter().all(|(_, part)| !is_error(part)) => {
                for (_, part) in parts {
                    self.note_ephemerals(session, part);
                }
            }
            _ => {}
        }
    }

    /// Ephemerals are there exactly as long as their session.
    fn compare_ephemerals(&self, zxid: Zxid) -> Result<(), Violation> {
        let owners = self.tree.ephemeral_owners();
        let mut count = 0;
        for (session, of_session) in owners {
            count += of_session;
            if of_session > 0 && self.tree.session_timeout(session).is_none() {
                return Err(format!(
                    "ephemerals outlive their session: {session:?} has {of_session} after {zxid:?}"
                ));
            }
        }
        if count != self.ephemerals.len() {
            return Err(format!(
                "there are {count} ephemerals after {zxid:?}, and there should be {}",
                self.ephemerals.len()
            ));
        }
        Ok(())
    }

    /// A session's end, which a leader proposed by itself, is committed.
    fn expired(
        &mut self,
        zxid: Zxid,
        session: SessionId,
        timeout_ms: Option<i32>,
        leader: Option<usize>,
    ) -> Result<(), Violation> {
        self.sessions_expired += 1;
        let Some(expiry) = self.expiries.remove(&zxid) else {
            return Err(format!(
                "{session:?} is closed at {zxid:?}, and nobody has asked for that"
            ));
        };
        let heard_ms = expiry.heard.get(&session).copied().unwrap_or(0);
        let heard_ms = heard_ms.max(self.created.get(&session).copied().unwrap_or(0));
        let timeout_ms = timeout_ms
            .and_then(|it| u64::try_from(it).ok())
            .unwrap_or(0);
        let waited_ms = expiry.at_ms.saturating_sub(heard_ms);
        if waited_ms < timeout_ms {
            return Err(format!(
                "a session expired before its time-out: leader {leader:?} ends {session:?} at {zxid:?}, {waited_ms} ms \
                 after it heard of it or began to lead, and the time-out is {timeout_ms} ms"
            ));
        }
        Ok(())
    }

    /// A leader has looked for sessions that are to be expired, and proposed these.
    pub(crate) fn expiring(&mut self, member: usize, zxids: (Zxid, Zxid), at_ms: u64) {
        let (after, through) = zxids;
        let first = match after.epoch() == through.epoch() {
            true => after.counter() + 1,
            false => 1,
        };
        for counter in first..=through.counter() {
            let heard = self.heard.get(&member).cloned().unwrap_or_default();
            let zxid = Zxid::new(through.epoch(), counter);
            self.expiries.insert(zxid, Expiry { at_ms, heard });
        }
    }

    /// A member that may lead has heard of a session.
    pub(crate) fn heard(&mut self, member: usize, session: SessionId, at_ms: u64) {
        self.heard.entry(member).or_default().insert(session, at_ms);
    }

    /// A member's role begins: what it heard before counts no more.
    pub(crate) fn role_changed(&mut self, member: usize) {
        self.heard.remove(&member);
    }

    /// A member leads an epoch that a quorum has taken over. `clock_ms` as for [`Checks::committed`].
    pub(crate) fn leads(
        &mut self,
        member: usize,
        (reign, epoch): (u64, u32),
        tree: &Tree,
        at_ms: u64,
        clock_ms: impl Fn(usize, i64) -> u64,
    ) -> Result<(), Violation> {
        if let Some((other, other_reign)) = self.leaders.insert(epoch, (member, reign))
            && (other, other_reign) != (member, reign)
        {
            return Err(format!(
                "two leaders in epoch {epoch}: member {other} and member {member}"
            ));
        }
        // A leader may find late that it has a quorum, which by then follows another one: it lacks nothing of
        // what was committed before its epoch.
        let earlier = self.history.partition_point(|it| it.zxid.epoch().0 < epoch);
        let last = earlier.checked_sub(1).and_then(|at| self.history.get(at));
        let last = last.map_or(Zxid::ZERO, |it| it.zxid);
        if tree.zxid() < last {
            return Err(format!(
                "acknowledged writes are lost: member {member} leads epoch {epoch} with a history up to {:?}, and \
                 {last:?} was committed",
                tree.zxid()
            ));
        }
        self.begun_with.insert(epoch, tree.zxid());
        if self.last().epoch().0 < epoch {
            self.settle(member, tree.zxid(), clock_ms)?;
        }
        self.role_changed(member);
        for (session, _) in tree.sessions() {
            self.heard(member, session, at_ms);
        }
        Ok(())
    }

    /// All through `through` is committed by being what a leader begins with.
    fn settle(
        &mut self,
        member: usize,
        through: Zxid,
        clock_ms: impl Fn(usize, i64) -> u64,
    ) -> Result<(), Violation> {
        let mut missing = Vec::new();
        let mut at = through;
        while at > self.last() {
            match at.counter().checked_sub(1) {
                Some(before) => {
                    missing.push(at);
                    at = Zxid::new(at.epoch(), before);
                }
                // What an epoch proposes follows what its leader began with.
                None => {
                    at = self
                        .begun_with
                        .get(&at.epoch().0)
                        .copied()
                        .unwrap_or(Zxid::ZERO)
                }
            }
        }
        for zxid in missing.into_iter().rev() {
            let record = self.proposed.get(&zxid).cloned().ok_or_else(|| {
                format!("member {member} leads with {zxid:?}, which nobody has proposed")
            })?;
            self.committed(member, zxid, &record, &clock_ms)?;
        }
        Ok(())
    }

    /// A leader begins another epoch without an election: its sessions live on as they were.
    pub(crate) fn leads_on(
        &mut self,
        member: usize,
        reign: u64,
        epoch: u32,
    ) -> Result<(), Violation> {
        match self.leaders.insert(epoch, (member, reign)) {
            Some((other, _)) => Err(format!(
                "two leaders in epoch {epoch}: member {other} and member {member}"
            )),
            None => Ok(()),
        }
    }

    /// A member shows a tree.
    pub(crate) fn shows(&self, member: usize, shown: Shown) -> Result<(), Violation> {
        let Shown {
            zxid,
            digest,
            serves,
        } = shown;
        match self.find(zxid) {
            Some(known) if known.digest != digest => Err(format!(
                "digests differ: member {member} has {digest:x} after {zxid:?}, and it should be {:x}",
                known.digest
            )),
            None if serves && zxid > Zxid::ZERO => Err(format!(
                "member {member} serves a state at {zxid:?}, which is not in the committed history up to {:?}",
                self.last()
            )),
            _ => Ok(()),
        }
    }

    /// A client is told that its write is done.
    pub(crate) fn acknowledged(
        &self,
        session: SessionId,
        xid: i32,
        zxid: Zxid,
    ) -> Result<(), Violation> {
        match self.find(zxid) {
            Some(known) if (known.session, known.cxid) == (session, xid) => Ok(()),
            Some(known) => Err(format!(
                "request {xid} of {session:?} is acknowledged at {zxid:?}, where request {} of {:?} is committed",
                known.cxid, known.session
            )),
            None => Err(format!(
                "request {xid} of {session:?} is acknowledged at {zxid:?}, which is not committed"
            )),
        }
    }
}

fn is_failed(txn: &Txn<'_>) -> bool {
    matches!(txn, Txn::Multi(parts) if parts.iter().any(|(_, part)| is_error(part)))
}

const fn is_error(txn: &Txn<'_>) -> bool {
    matches!(txn, Txn::Error { .. })
}

fn hash_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
