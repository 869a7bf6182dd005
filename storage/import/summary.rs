//! What an import has made, in figures and words.

use ringkeeper_proto::{Epoch, Zxid};

/// Whether the tree has the digest that Apache has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestCheck {
    /// It has.
    Equal,
    /// It has not. Some requests make Apache's own digest wrong.
    Differs {
        /// The first transaction after which it differed; `None` when only the snapshot's own was compared.
        since: Option<Zxid>,
    },
    /// Apache has stored none: releases before 3.6, or `digest.enabled=false`.
    Absent,
}

/// What an import has made.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Znodes, as `zk_znode_count` counts them.
    pub znodes: u64,
    /// Sessions.
    pub sessions: usize,
    /// Ephemerals of all sessions.
    pub ephemerals: usize,
    /// The last transaction.
    pub last: Zxid,
    /// Apache's snapshot that it began with.
    pub from: Option<Zxid>,
    /// The own snapshot: Apache's with the log up to where that is fuzzy.
    pub snapshot: Zxid,
    /// Transactions in the own log above it.
    pub logged: u64,
    /// The last epoch that the server promised to follow.
    pub accepted_epoch: Epoch,
    /// The last epoch whose history it has.
    pub current_epoch: Epoch,
    /// The tree's digest after the last transaction.
    pub digest: u64,
    /// What became of comparing it.
    pub digest_check: DigestCheck,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl Summary {
    /// In words, line by line.
    pub fn lines(&self) -> Vec<String> {
        let digest = match self.digest_check {
            DigestCheck::Equal => "it is the one that Apache stored".to_owned(),
            DigestCheck::Differs { since: Some(zxid) } => format!(
                "NOT the one that Apache stored, since {zxid} (some requests make Apache's own digest wrong)"
            ),
            DigestCheck::Differs { since: None } => {
                "NOT the one that Apache's snapshot names".to_owned()
            }
            DigestCheck::Absent => "Apache stored none to compare it with".to_owned(),
        };
        let from = self.from.map_or_else(
            || "from the first transaction on".to_owned(),
            |zxid| format!("from the snapshot at {zxid}"),
        );
        let mut lines = vec![
            format!(
                "imported {} znodes, {} sessions, {} ephemerals {from} to {}",
                self.znodes, self.sessions, self.ephemerals, self.last
            ),
            format!(
                "a snapshot at {}, and {} transactions in the log above it",
                self.snapshot, self.logged
            ),
            format!(
                "epochs: accepted {}, current {}",
                self.accepted_epoch, self.current_epoch
            ),
            format!("digest {:#x}: {digest}", self.digest),
        ];
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines
    }
}
