//! The inputs and outputs of a [`Replica`](crate::Replica), and what it is built from.

use ringkeeper_proto::{Epoch, ServerId, Zxid};

use crate::history::History;
use crate::leader::NoHandOver;
use crate::log::LogGeneration;
use crate::message::{LinkId, Message, Notification, Proposal};
use crate::quorum::Ensemble;
use crate::timer::Timing;

/// Who this server is and whom it decides with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This server.
    pub id: ServerId,
    /// Alone, or a member.
    pub mode: Mode,
    /// The members. Standalone: this server alone.
    pub ensemble: Ensemble,
    /// How long things may take.
    pub timing: Timing,
    /// The last counter of an epoch that a member uses; less than [`COUNTER_MAX`] only to see what follows.
    pub counter_max: u32,
    /// As follower: serve observers that come.
    pub serves_observers: bool,
}

/// The last counter of an epoch. ZK: the one after it, all bits set, is never used.
pub const COUNTER_MAX: u32 = u32::MAX - 1;

impl Config {
    /// A server without an ensemble.
    pub fn standalone(id: ServerId) -> Self {
        Self {
            id,
            mode: Mode::Standalone,
            ensemble: Ensemble::alone(id),
            timing: Timing::default(),
            counter_max: COUNTER_MAX,
            serves_observers: false,
        }
    }

    /// A member of an ensemble.
    pub const fn member(id: ServerId, ensemble: Ensemble, timing: Timing) -> Self {
        Self {
            id,
            mode: Mode::Ensemble,
            ensemble,
            timing,
            counter_max: COUNTER_MAX,
            serves_observers: false,
        }
    }
}

/// How epochs are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As ZooKeeper standalone: no election, and a start begins no epoch: zxids continue where the log
    /// ends. When the counter is used up they continue in the next epoch.
    Standalone,
    /// As a ZooKeeper quorum peer: each leader begins an epoch.
    Ensemble,
}

/// What a member keeps beside its log, as one record: it is saved as a whole or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    /// The newest epoch whose leader this server promised to follow; `current <= accepted`.
    pub accepted: Epoch,
    /// The newest epoch whose leader's history this server has taken over.
    pub current: Epoch,
    /// Whether it has taken over any leader's history since its storage was blank. Until then it may
    /// lack what an earlier disk of its acknowledged, though its log be not empty (a snapshot came, and
    /// a crash before the rest), and helps to elect nobody.
    pub member: bool,
    /// A torn write ended the log, and may have taken what this server had acknowledged, through this zxid
    /// (`Zxid(u64::MAX)`: nobody knows how much). Until it has taken over a leader's history, what its log
    /// lacks proves nothing: docs/internals/zab.md, "Torn logs".
    pub doubted: Option<Zxid>,
}

/// What storage found when the server started.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// As last saved. Where nothing was saved (a standalone server) both are zero.
    pub epochs: Epochs,
    /// The shape of the log, all of it durable: [`History::starting_at`] the newest snapshot from
    /// which the log is complete, then [`History::recover`] for each record.
    pub history: History,
    /// The last zxid that is known to have been committed; what lies above it in the log is for Zab to
    /// settle. The tree is loaded up to it, or up to the log's base if that is higher (a snapshot from
    /// a leader that was never established proves no commit).
    pub committed: Zxid,
    /// Some of what this server has acknowledged cannot be read, and `history` ends before it. It knows what it
    /// promised, but neither votes nor says where its log ends, and is brought in line by a snapshot.
    pub damaged: bool,
    /// Nothing was lost, though no epoch was ever saved: the operator says so (ZooKeeper: the
    /// `initialize` file), or the server was alone before. Otherwise a server that is not
    /// [`Epochs::member`] votes only when a quorum is as blank, which is a new ensemble, and first
    /// joins an established leader else.
    pub initialize: bool,
}

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<P> {
    /// Time passed: one of [`Timing`]'s ticks. The first one starts the replica.
    Tick,
    /// As leader: `payload` was encoded at [`Replica::next_zxid`](crate::Replica::next_zxid), and its
    /// bytes are at the end of the log's buffer.
    Proposed {
        /// What `next_zxid` said.
        zxid: Zxid,
        /// The bytes.
        payload: P,
    },
    /// The record at `zxid` sets this configuration: it is in the log, or comes with the next input. Or, when
    /// `zxid` is the configuration's version, a leader or a peer has told of it.
    Configuration {
        /// Its transaction.
        zxid: Zxid,
        /// The configuration.
        ensemble: Ensemble,
    },
    /// In an election: a peer has activated this configuration, which is newer than ours.
    Adopt {
        /// The configuration.
        ensemble: Ensemble,
    },
    /// The log is durable through this zxid.
    Flushed {
        /// The last durable record, or the log's base when there is none.
        through: Zxid,
        /// The generation of the log when the flush was issued
        /// ([`Replica::log_generation`](crate::Replica::log_generation), or that of the last
        /// [`Output::Truncate`] carried out before).
        generation: LogGeneration,
    },
    /// [`Output::SaveEpoch`] is durable.
    EpochSaved {
        /// What was saved.
        epochs: Epochs,
    },
    /// The answer to [`Output::InstallSnapshot`]: it is durable, it is what a restart would find, and
    /// the tree shows it.
    SnapshotInstalled {
        /// As in the output.
        generation: LogGeneration,
    },
    /// The other answer to it: the stream ended early or was bad. Log and tree are as before.
    SnapshotFailed {
        /// As in the output.
        generation: LogGeneration,
    },
    /// The snapshot asked for by [`Output::SendSnapshot`] has gone out on the link.
    SnapshotSent {
        /// The link.
        link: LinkId,
        /// The zxid of the tree that was sent.
        zxid: Zxid,
    },
    /// The answer to [`Output::ReadHistory`]. To be given when the link has room for more, so that a
    /// slow learner is fed from the log and not from a queue.
    HistoryRead {
        /// The link.
        link: LinkId,
        /// The records after the one asked for, without a gap: at least one, as many as are convenient.
        proposals: Vec<Proposal<P>>,
    },
    /// The other answer to it: the log does not reach back that far any more.
    HistoryGone {
        /// The link.
        link: LinkId,
    },
    /// Records at or below `through`, which are in a snapshot, can no longer be read.
    HistoryPurged {
        /// The last one gone.
        through: Zxid,
    },
    /// A message of the election came.
    Notified {
        /// The sender.
        from: ServerId,
        /// What it says.
        notification: Notification,
    },
    /// An election connection came up, or went down, or could not be made. An election does not wait
    /// for servers that cannot be reached.
    Reachable {
        /// The peer.
        peer: ServerId,
        /// Whether there is a connection.
        reachable: bool,
    },
    /// The connection that [`Output::Connect`] asked for is there.
    Connected {
        /// Whom it reaches.
        leader: ServerId,
        /// Its number.
        link: LinkId,
    },
    /// It cannot be made.
    ConnectFailed {
        /// Whom it should have reached.
        leader: ServerId,
    },
    /// A packet came. A link that a learner opened is introduced by its first packet.
    Received {
        /// The link.
        link: LinkId,
        /// The packet.
        message: Message<P>,
    },
    /// A link is gone.
    Disconnected {
        /// The link.
        link: LinkId,
    },
    /// Everything proposed so far is to be confirmed: a `sync` request (ZooKeeper: `processSync`).
    Sync {
        /// Whose it is.
        origin: SyncOrigin,
    },
    /// The oracle of an ensemble of two has answered: whether this server may decide without the other. It is asked
    /// again and again, and denies until it has answered.
    Oracle {
        /// Its answer.
        grants: bool,
    },
    /// Hand leadership over, by plan. Answered by [`Output::HandedOver`].
    HandOver {
        /// To whom; to the voter that has most of the log if not said.
        to: Option<ServerId>,
        /// Whether the successor may take up to `sync_limit` to catch up, and not half a tick only: where the way
        /// to it is slow, and clients wait as long for any write.
        patient: bool,
    },
    /// Give up the role, for a reason that Zab cannot see: a disk that is full, a digest that differs.
    GiveUp {
        /// Whether to ask the next leader for a snapshot, whatever the log holds.
        resynchronize: bool,
    },
}

/// Who asked for a `sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncOrigin {
    /// A client of this server; the number comes back in [`Output::Synced`].
    Own(u64),
    /// A learner, which gets a SYNC packet in order with its commits.
    Learner(LinkId),
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<P> {
    /// Make both epochs durable, then answer [`Input::EpochSaved`].
    SaveEpoch {
        /// What to save.
        epochs: Epochs,
    },
    /// Put the proposal at the end of the log (own proposals are there already).
    Append {
        /// The record.
        proposal: Proposal<P>,
    },
    /// Make everything in the log durable as soon as the device allows, then answer
    /// [`Input::Flushed`], even if nothing is new. Several of these may be answered by one.
    Flush,
    /// Drop the records above `to` from the log: by a record of its own, in order with the appends
    /// around it, so that [`Input::Flushed`] with this generation covers it.
    Truncate {
        /// The last zxid to keep.
        to: Zxid,
        /// What flushes issued from here on report.
        generation: LogGeneration,
    },
    /// Read a snapshot off the link, make it durable, replace log and tree by it, then answer
    /// [`Input::SnapshotInstalled`] or [`Input::SnapshotFailed`], exactly one, whatever becomes of the
    /// link. Nothing more is read from the link before that.
    InstallSnapshot {
        /// Where it comes from.
        link: LinkId,
        /// Its zxid.
        zxid: Zxid,
        /// What flushes issued after it report.
        generation: LogGeneration,
    },
    /// Send SNAP and a tree, then answer [`Input::SnapshotSent`]. While a leader is being established it
    /// is the tree at `through`, with all of its log applied: a learner may hold some of it, acknowledged,
    /// and must never be set back. Afterwards it is any tree from [`Role::Leading`] on: what lies between
    /// it and `through` follows from the log.
    SendSnapshot {
        /// The learner's link.
        link: LinkId,
        /// The highest zxid that the tree may have.
        through: Zxid,
    },
    /// Read the log's records in `(after, through]`, flushed or not, then answer
    /// [`Input::HistoryRead`] or [`Input::HistoryGone`].
    ReadHistory {
        /// The learner's link.
        link: LinkId,
        /// Where to begin.
        after: Zxid,
        /// Where to end, at the latest.
        through: Zxid,
    },
    /// Send the packet.
    Send {
        /// The link.
        link: LinkId,
        /// The packet.
        message: Message<P>,
    },
    /// Send a message of the election, if the peer can be reached. Of several for one peer that wait
    /// for a connection only the last matters.
    Notify {
        /// The peer.
        to: ServerId,
        /// What to say.
        notification: Notification,
    },
    /// Open a connection to the leader, trying again for a while (it may still be in its election),
    /// then answer [`Input::Connected`] or [`Input::ConnectFailed`].
    Connect {
        /// The leader.
        leader: ServerId,
    },
    /// Close the link; nothing more is taken from it.
    Close {
        /// The link.
        link: LinkId,
    },
    /// Everything through this zxid is committed and in this server's durable log: apply and publish.
    Commit {
        /// The last one.
        through: Zxid,
    },
    /// The `sync` of a client of this server is done.
    Synced {
        /// As in [`SyncOrigin::Own`].
        tag: u64,
    },
    /// As learner: SYNC came, and all commits before it have been delivered.
    SyncDone,
    /// A question or an answer about a session, for the caller. As follower, a question of an observer's is for the leader.
    Revalidate {
        /// The link.
        link: LinkId,
        /// The peer.
        from: ServerId,
        /// Its bytes.
        payload: P,
    },
    /// A learner's request to prepare and propose. As follower: an observer's, to be passed on to the leader.
    Forwarded {
        /// The link.
        link: LinkId,
        /// The learner.
        from: ServerId,
        /// Its bytes.
        request: P,
    },
    /// The configuration at [`Replica::ensemble`](crate::Replica::ensemble) has become active: links go to its
    /// members from now on. What was committed before this output is committed under the one before.
    Activate,
    /// What became of [`Input::HandOver`]: who leads next, as far as this server can say (it still has to be
    /// established), or why this server leads on.
    HandedOver {
        /// The successor.
        outcome: Result<ServerId, NoHandOver>,
    },
    /// The role changed. On losing one, the tree's head falls back to what is committed; on
    /// `Leading`, all of the log has been committed before.
    ChangeRole {
        /// The new one.
        role: Role,
    },
}

/// What a replica is to its clients. Everything before synchronization is done is `Looking`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// No leader, or not synchronized with it: no requests are served.
    Looking,
    /// Between two leaders, by plan: nothing was proposed since the role before, and what this server asked for and
    /// has not seen proposed was not. Follows a role that serves; if another than `Looking` comes next, nothing that
    /// this server knew has been taken back.
    Moving,
    /// Leader of an established epoch: proposes.
    Leading {
        /// The epoch in which it proposes.
        epoch: Epoch,
    },
    /// Synchronized, and votes.
    Following {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Synchronized, without a vote.
    Observing {
        /// The leader.
        leader: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
}
