//! What a server is to its clients and to whoever looks after it.

use ringkeeper_proto::{Epoch, ServerId};
use ringkeeper_zab::Role;

/// What a server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// In an election, or not synchronized yet: no client is served.
    #[default]
    Looking,
    /// In an election for longer than one takes: reads are served to clients that ask for no more.
    ReadOnly,
    /// Without an ensemble.
    Alone,
    /// Leader of its epoch.
    Leading(Epoch),
    /// A follower.
    Following(ServerId),
    /// An observer.
    Observing(ServerId),
}

impl Standing {
    pub(crate) const fn of(role: Role, alone: bool) -> Self {
        match role {
            Role::Leading { .. } if alone => Self::Alone,
            Role::Looking => Self::Looking,
            Role::Leading { epoch } => Self::Leading(epoch),
            Role::Following { leader, .. } => Self::Following(leader),
            Role::Observing { leader, .. } => Self::Observing(leader),
        }
    }

    /// Whether clients are served.
    pub const fn is_serving(self) -> bool {
        !matches!(self, Self::Looking)
    }

    /// Whether there is a leader: this server, or one that has synchronized it.
    pub const fn has_leader(self) -> bool {
        !matches!(self, Self::Looking | Self::ReadOnly)
    }

    /// Whether this server orders writes.
    pub const fn proposes(self) -> bool {
        matches!(self, Self::Alone | Self::Leading(_))
    }

    /// Its name in the answers of `srvr` and `mntr`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Looking => "looking",
            Self::ReadOnly => "read-only",
            Self::Alone => "standalone",
            Self::Leading(_) => "leader",
            Self::Following(_) => "follower",
            Self::Observing(_) => "observer",
        }
    }
}
