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
    /// Between two leaders, by plan: clients keep their connections, and what they ask for waits.
    Moving,
}

/// What a server has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandingChange {
    /// What it is now.
    pub standing: Standing,
    /// Whether its clients keep their connections: nothing of what they asked for has been lost, and nothing that they
    /// saw taken back.
    pub keeps_clients: bool,
}

impl Standing {
    pub(crate) const fn of(role: Role, alone: bool) -> Self {
        match role {
            Role::Leading { .. } if alone => Self::Alone,
            Role::Looking => Self::Looking,
            Role::Moving => Self::Moving,
            Role::Leading { epoch } => Self::Leading(epoch),
            Role::Following { leader, .. } => Self::Following(leader),
            Role::Observing { leader, .. } => Self::Observing(leader),
        }
    }

    /// Whether `next` is the same but for its epoch.
    pub(crate) fn goes_on_as(self, next: Self) -> bool {
        match (self, next) {
            (Self::Leading(_), Self::Leading(_)) => true,
            (Self::Following(_) | Self::Observing(_), next) => self == next,
            _ => false,
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
            Self::Looking | Self::Moving => "looking",
            Self::ReadOnly => "read-only",
            Self::Alone => "standalone",
            Self::Leading(_) => "leader",
            Self::Following(_) => "follower",
            Self::Observing(_) => "observer",
        }
    }
}
