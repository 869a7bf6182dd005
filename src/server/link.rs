//! How every part of the server reaches the others.

use std::sync::Arc;

use ringkeeper_transport::mailbox::Sender;

use crate::counts::SharedCounts;
use crate::messages::{CoreMessage, ShardMessage};

/// The mailboxes of the replica core and of every shard, and what they count together.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) core: Sender<CoreMessage>,
    pub(crate) shards: Vec<Sender<ShardMessage>>,
    pub(crate) counts: Arc<SharedCounts>,
}
