//! What learners and leaders say to each other, read from the wire by the proxies between them. So it is known of
//! every kind of server, without a word of its log, how it was synchronized.
//!
//! ```text
//!   learner                        leader
//!     ACKEPOCH  ------------------->        where the learner's log ends
//!               <-------------------  DIFF, TRUNC or SNAP
//!               <-------------------  NEWLEADER
//!     ACK       ------------------->        it has taken all of that over: a synchronization
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use ringkeeper_proto::quorum::{PacketKind, QuorumPacket, SNAPSHOT_END, packet_len};
use ringkeeper_proto::{Epoch, Zxid};

/// Far above what a member of these tests sends.
const PACKET_LEN_MAX: usize = 64 << 20;

const PAUSE: Duration = Duration::from_millis(2);

/// The three ways to bring a learner in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The proposals that the learner lacks.
    Diff,
    /// The end of its log is cut first.
    Trunc,
    /// The whole tree.
    Snap,
}

/// A synchronization that a learner has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synchronized {
    /// Whose history was taken over.
    pub leader: u64,
    /// Who took it over.
    pub learner: u64,
    /// How.
    pub by: By,
    /// Where the learner's log ended; -1 asks for a snapshot.
    pub from: Zxid,
    /// The zxid in the packet DIFF, TRUNC or SNAP.
    pub to: Zxid,
    /// The leader's epoch.
    pub epoch: Epoch,
}

/// All that was said so far.
#[derive(Debug, Default)]
pub struct Tap {
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    synchronized: Vec<Synchronized>,
    /// By learner and leader, the last that the one acknowledged to the other.
    acknowledged: BTreeMap<(u64, u64), Zxid>,
    /// By sender and receiver.
    packets: BTreeMap<(u64, u64, PacketKind), u64>,
    unreadable: Vec<String>,
}

impl Tap {
    /// The synchronizations, in the order of their acknowledgements.
    pub fn synchronized(&self) -> Vec<Synchronized> {
        self.lock().synchronized.clone()
    }

    /// The last that `learner` has acknowledged to `leader`, over any connection.
    pub fn acknowledged(&self, learner: u64, leader: u64) -> Zxid {
        let said = self.lock();
        let last = said.acknowledged.get(&(learner, leader)).copied();
        last.unwrap_or(Zxid::ZERO)
    }

    /// How many packets of a kind one member has sent to another.
    pub fn packets(&self, from: u64, to: u64, kind: PacketKind) -> u64 {
        let said = self.lock();
        said.packets.get(&(from, to, kind)).copied().unwrap_or(0)
    }

    /// Waits until `learner` has acknowledged more than `before` to `leader`.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn wait_for_ack(
        &self,
        (learner, leader): (u64, u64),
        before: Zxid,
        patience: Duration,
    ) -> Result<Zxid> {
        let deadline = Instant::now() + patience;
        loop {
            let acknowledged = self.acknowledged(learner, leader);
            if acknowledged > before {
                return Ok(acknowledged);
            }
            ensure!(
                Instant::now() < deadline,
                "member {learner} acknowledges nothing to {leader} after {before}"
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits for a synchronization of `learner` by `leader`, after the first `seen` of all.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub fn wait_for_synchronized(
        &self,
        (leader, learner): (u64, u64),
        seen: usize,
        patience: Duration,
    ) -> Result<Synchronized> {
        let deadline = Instant::now() + patience;
        loop {
            let all = self.synchronized();
            let mut new = all.iter().skip(seen);
            if let Some(found) = new.rfind(|it| it.leader == leader && it.learner == learner) {
                return Ok(*found);
            }
            ensure!(
                Instant::now() < deadline,
                "member {leader} has not synchronized member {learner}"
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// That everything could be read.
    ///
    /// # Errors
    /// The first packet that could not be.
    pub fn check(&self) -> Result<()> {
        let first = self.lock().unreadable.first().cloned();
        ensure!(first.is_none(), "WIRE: {}", first.unwrap_or_default());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of a learner to a leader's port.
#[derive(Debug)]
pub(crate) struct Conversation {
    tap: Arc<Tap>,
    learner: u64,
    leader: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    of_learner: Packets,
    of_leader: Packets,
    /// ACKEPOCH's.
    from: Zxid,
    chosen: Option<(By, Zxid)>,
}

impl Conversation {
    pub(crate) fn new(tap: &Arc<Tap>, learner: u64, leader: u64) -> Self {
        Self {
            tap: Arc::clone(tap),
            learner,
            leader,
            state: Mutex::default(),
        }
    }

    pub(crate) fn learner_says(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let way = (self.learner, self.leader);
        for packet in self.take(way, &mut state.of_learner, bytes) {
            let mut said = self.tap.lock();
            *said.packets.entry((way.0, way.1, packet.kind)).or_insert(0) += 1;
            match packet.kind {
                PacketKind::AckEpoch => state.from = packet.zxid,
                PacketKind::Ack if packet.zxid.counter() == 0 => {
                    if let Some((by, to)) = state.chosen.take() {
                        let one = Synchronized {
                            leader: self.leader,
                            learner: self.learner,
                            by,
                            from: state.from,
                            to,
                            epoch: packet.zxid.epoch(),
                        };
                        said.synchronized.push(one);
                    }
                }
                PacketKind::Ack => _ = said.acknowledged.insert(way, packet.zxid),
                _ => {}
            }
        }
    }

    pub(crate) fn leader_says(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let way = (self.leader, self.learner);
        for packet in self.take(way, &mut state.of_leader, bytes) {
            let mut said = self.tap.lock();
            *said.packets.entry((way.0, way.1, packet.kind)).or_insert(0) += 1;
            let by = match packet.kind {
                PacketKind::Diff => By::Diff,
                PacketKind::Trunc => By::Trunc,
                PacketKind::Snap => By::Snap,
                _ => continue,
            };
            state.chosen = Some((by, packet.zxid));
        }
    }

    fn take(&self, way: (u64, u64), packets: &mut Packets, bytes: &[u8]) -> Vec<QuorumPacket> {
        let taken = packets.take(bytes);
        taken.unwrap_or_else(|error| {
            let text = format!("from member {} to {}: {error:#}", way.0, way.1);
            self.tap.lock().unreadable.push(text);
            Vec::new()
        })
    }
}

/// Finds packets in what one side sends.
#[derive(Debug, Default)]
struct Packets {
    pending: Vec<u8>,
    within: Within,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Packets,
    /// Behind SNAP: the tree, up to [`SNAPSHOT_END`].
    Tree,
    /// Something could not be read.
    Riddle,
}

impl Packets {
    fn take(&mut self, bytes: &[u8]) -> Result<Vec<QuorumPacket>> {
        let mut found = Vec::new();
        if self.within == Within::Riddle {
            return Ok(found);
        }
        self.pending.extend_from_slice(bytes);
        let outcome = self.take_pending(&mut found);
        if outcome.is_err() {
            self.within = Within::Riddle;
        }
        outcome.map(|()| found)
    }

    fn take_pending(&mut self, found: &mut Vec<QuorumPacket>) -> Result<()> {
        let mut at = 0;
        loop {
            let rest = self.pending.get(at..).unwrap_or_default();
            if self.within == Within::Tree {
                let Some(end) = end_of_tree(rest) else {
                    // All but what may be the beginning of the end.
                    at += rest.len().saturating_sub(4 + SNAPSHOT_END.len());
                    break;
                };
                at += end;
                self.within = Within::Packets;
                continue;
            }
            let Some(len) = packet_len(rest, PACKET_LEN_MAX)? else {
                break;
            };
            let packet = Bytes::copy_from_slice(rest.get(..len).unwrap_or_default());
            let packet = QuorumPacket::decode(&packet)?;
            at += len;
            if packet.kind == PacketKind::Snap {
                self.within = Within::Tree;
            }
            found.push(packet);
        }
        self.pending.drain(..at);
        Ok(())
    }
}

/// Where the string that ends a tree ends, with its length in front.
fn end_of_tree(bytes: &[u8]) -> Option<usize> {
    let mut end = vec![0, 0, 0, u8::try_from(SNAPSHOT_END.len()).unwrap_or(0)];
    end.extend_from_slice(SNAPSHOT_END.as_bytes());
    let mut windows = bytes.windows(end.len());
    windows.position(|it| it == end).map(|at| at + end.len())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use ringkeeper_proto::quorum::put_packet;

    use super::*;

    fn packet(kind: PacketKind, zxid: u64) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_packet(&mut out, kind, Zxid(zxid), Some(b"abc"));
        out.to_vec()
    }

    #[test]
    fn a_snapshot_counts_when_it_is_acknowledged_however_it_is_cut() {
        let leader = [
            packet(PacketKind::LeaderInfo, 8 << 32),
            packet(PacketKind::Snap, 0x7_0000_0009),
            b"\0\0\0\x0aBenWas\0\0\0\x0aBenWasHere".to_vec(),
            packet(PacketKind::NewLeader, 8 << 32),
        ]
        .concat();
        let learner = [
            packet(PacketKind::FollowerInfo, 7 << 32),
            packet(PacketKind::AckEpoch, 0x7_0000_0003),
        ]
        .concat();
        for step in 1..leader.len() {
            let tap = Arc::new(Tap::default());
            let conversation = Conversation::new(&tap, 3, 1);
            learner
                .chunks(step)
                .for_each(|it| conversation.learner_says(it));
            leader
                .chunks(step)
                .for_each(|it| conversation.leader_says(it));
            assert_eq!(tap.packets(1, 3, PacketKind::NewLeader), 1, "{step}");
            assert_eq!(tap.synchronized(), [], "nothing is acknowledged");
            conversation.learner_says(&packet(PacketKind::Ack, 8 << 32));
            let expected = Synchronized {
                leader: 1,
                learner: 3,
                by: By::Snap,
                from: Zxid(0x7_0000_0003),
                to: Zxid(0x7_0000_0009),
                epoch: Epoch(8),
            };
            assert_eq!(tap.synchronized(), [expected]);
            // The one behind UPTODATE is of the same synchronization.
            conversation.learner_says(&packet(PacketKind::Ack, 8 << 32));
            assert_eq!(tap.synchronized().len(), 1);
            conversation.learner_says(&packet(PacketKind::Ack, 0x8_0000_0002));
            assert_eq!(tap.acknowledged(3, 1), Zxid(0x8_0000_0002));
            tap.check().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let tap = Arc::new(Tap::default());
        let conversation = Conversation::new(&tap, 3, 1);
        conversation.leader_says(&packet(PacketKind::LeaderInfo, 1 << 32));
        conversation.leader_says(&[0x7f; 64]);
        let error = format!("{:#}", tap.check().unwrap_err());
        assert!(error.contains("from member 1 to 3"), "{error}");
    }
}
