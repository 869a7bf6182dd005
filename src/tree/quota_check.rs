//! Whether a write would exceed a quota (`ZooKeeperServer.checkQuota`).
//!
//! The usage that is compared is that of the tree given, which holds every write already prepared:
//! writes sent one after the other without waiting, or in one multi, cannot exceed a hard quota
//! together, as they can in Apache.

use std::fmt;

use ringkeeper_proto::ZkError;

use crate::quota::StatsTrack;
use crate::tree::Tree;

/// A soft quota that a write exceeds; it is carried out all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaWarning {
    /// The top of the subtree.
    pub prefix: String,
    /// What is counted.
    pub what: QuotaKind,
    /// How much there is with the write.
    pub usage: i64,
    /// How much there should be at most.
    pub limit: i64,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaKind {
    /// Znodes.
    Count,
    /// Bytes of data.
    Bytes,
}

impl fmt::Display for QuotaWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            QuotaKind::Count => "count",
            QuotaKind::Bytes => "bytes",
        };
        let Self {
            prefix,
            usage,
            limit,
            ..
        } = self;
        write!(
            f,
            "soft {what} quota of {prefix} exceeded: {usage} of {limit}"
        )
    }
}

/// Checks a write at `path` that adds `nodes` znodes and `bytes` bytes of data; returns the soft
/// quotas that it exceeds.
///
/// # Errors
/// [`ZkError::QuotaExceeded`] when it exceeds a hard quota, [`ZkError::MarshallingError`] when the
/// limits cannot be read.
pub(crate) fn check(
    head: &Tree,
    path: &str,
    bytes: i64,
    nodes: i64,
) -> Result<Vec<QuotaWarning>, ZkError> {
    let mut warnings = Vec::new();
    let Some(quota) = head.quota_limit_for(path) else {
        return Ok(warnings);
    };
    // ZK: limits that are null or not numbers make the write fail as a server error.
    let limits = quota.limits.ok_or(ZkError::MarshallingError)?;
    let Some(usage) = quota.usage else {
        return Ok(warnings);
    };
    let measures = [
        (QuotaKind::Count, nodes, usage.count()),
        (QuotaKind::Bytes, bytes, usage.bytes()),
    ];
    for (what, added, used) in measures {
        let (limit, is_hard) = limit_of(&limits, what);
        let usage = used.saturating_add(added);
        if added == 0 || limit < 0 || usage <= limit {
            continue;
        }
        if is_hard {
            return Err(ZkError::QuotaExceeded);
        }
        warnings.push(QuotaWarning {
            prefix: quota.prefix.clone().into_owned(),
            what,
            usage,
            limit,
        });
    }
    Ok(warnings)
}

// ZK: where there is a hard limit the soft one counts for nothing. -1 is none.
fn limit_of(limits: &StatsTrack, what: QuotaKind) -> (i64, bool) {
    let (soft, hard) = match what {
        QuotaKind::Count => (limits.count(), limits.count_hard_limit()),
        QuotaKind::Bytes => (limits.bytes(), limits.bytes_hard_limit()),
    };
    if hard >= 0 {
        (hard, true)
    } else {
        (soft, false)
    }
}
