//! A logged transaction with the place where it was found, whatever the format of its log.

use std::ops::ControlFlow;
use std::path::Path;

use ringkeeper_proto::Zxid;

/// A record as it stands in a log: `TxnHeader`, body, and digest if there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordAt<'a> {
    pub(crate) zxid: Zxid,
    pub(crate) bytes: &'a [u8],
    pub(crate) file: &'a Path,
    /// Where its frame begins in the file.
    pub(crate) offset: u64,
    /// The batch it came in; Apache's logs have none.
    pub(crate) batch: Option<u64>,
    /// Its place in the batch, or in an Apache log's file, from 0.
    pub(crate) index: u64,
    /// Whether a later truncation or reset has made it void.
    pub(crate) is_void: bool,
}

/// Which records are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Those above this zxid...
    pub(crate) after: Zxid,
    /// ...up to this one.
    pub(crate) through: Zxid,
}

impl Span {
    /// Every record.
    pub(crate) const ALL: Self = Self {
        after: Zxid::ZERO,
        through: Zxid(u64::MAX),
    };

    /// Everything above `after`.
    pub(crate) const fn after(after: Zxid) -> Self {
        Self {
            after,
            through: Self::ALL.through,
        }
    }
}

/// Is handed records one by one, and may end the walk.
pub(crate) type Visit<'v> = &'v mut dyn FnMut(&RecordAt<'_>) -> anyhow::Result<ControlFlow<()>>;
