//! Makes a Ringkeeper data directory of an Apache ZooKeeper one, once.
//!
//! ```text
//! snapshot, and the log up to where it is fuzzy   ->  own snapshot, a point in time
//! the log above that, committed or not            ->  own log above the snapshot, the same records
//! acceptedEpoch, currentEpoch                     ->  both epochs in the manifest
//! ```
//!
//! Invariants:
//! - The source is only read. What was imported of it is noted beside the new data, so that a start can tell
//!   whether Apache has gone on writing since ([`check_source`]).
//! - The new data is made beside its place and flushed, and takes its place by a rename, the data's last:
//!   interrupted anywhere, there is no new data yet or all of it, and the next import begins anew.
//! - Nothing damaged is taken over: an import makes what Apache had acknowledged, or says why it cannot.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod appender;
mod error;
mod import;
mod note;
mod place;
mod progress;
mod source;
mod summary;

pub use appender::Appender;
pub use error::ImportError;
pub use import::{Options, import, import_onto};
pub use note::{Grown, NOTE_NAME, Note, check_source};
pub use place::{MARK_NAME, WORK_FOLDER};
pub use progress::{Progress, Silent, Stage};
pub use source::{SourceDirs, has_apache_data};
pub use summary::{DigestCheck, Summary};
