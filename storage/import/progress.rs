//! How far an import has come.

/// A part of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading Apache's snapshot; counted in bytes.
    ReadSnapshot,
    /// Checking the logs; counted in bytes.
    CheckLogs,
    /// Writing the own snapshot; counted in bytes, whose number is not known before.
    WriteSnapshot,
    /// Applying the logs and taking them over; counted in transactions.
    CopyLog,
}

impl Stage {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadSnapshot => "read Apache's snapshot",
            Self::CheckLogs => "check Apache's logs",
            Self::WriteSnapshot => "write the snapshot",
            Self::CopyLog => "replay the log",
        }
    }
}

/// Is told how far an import has come, and may end it.
pub trait Progress: Sync {
    /// A stage begins, with `total` to do; 0 when that is not known.
    fn begin(&self, stage: Stage, total: u64);
    /// So much more is done.
    fn advance(&self, amount: u64);
    /// Whether to end the import; asked before each step that shows on disk.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _stage: Stage, _total: u64) {}
    fn advance(&self, _amount: u64) {}
}
