//! `zoo.cfg` as typed ([`RawConfig`]) and as meant ([`Config`]).
//!
//! Text goes in, typed settings or every reason against them come out: this crate reads no file and asks no system. The
//! caller reads the file, the `myid` and the dynamic file beside it (see [`Beside`]), and logs the notices.
//!
//! Invariants:
//! - Nothing is ignored in silence: a key is honoured, or logged as without effect and why, or refused with its line and
//!   what to do; an unknown key is logged with the known one that is most like it.
//! - A value that Apache would silently replace (`extendedTypesEnabled=yes` is `false` there) is refused.
//! - A [`Config`] was validated as a whole, and is never changed.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod draft;
mod honoured;
mod in_ensemble;
mod members;
mod no_effect;
mod peers;
mod properties;
mod raw;
mod refused;
mod report;
mod table;

use no_effect::ENSEMBLE;

pub use config::{
    AuthConfig, ClientAddress, ClientsConfig, Config, ConnectionThrottleConfig, ContainersConfig,
    Cpus, DigestAlgorithm, EnsembleConfig, FilesConfig, FourLetterWords, Host, LimpingConfig,
    LogConfig, LoggedSince, PlacementConfig, ShutdownConfig, SnapshotConfig, ThrottleConfig,
};
pub use draft::Draft;
pub use members::Beside;
pub use peers::{MemberConfig, Membership, PeerAddress, PeersConfig};
pub use properties::{MalformedEscape, Property, parse as parse_properties};
pub use raw::{Entry, RawConfig};
pub use report::{Notice, Origin, Problem, Problems, Weight};
pub use table::{Effect, Key, Owner, Set, Shape, find, keys, similar};

/// A configuration that may be started, and what to log about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings as meant.
    pub config: Config,
    /// What to log, in the order of the file.
    pub notices: Vec<Notice>,
}

impl Loaded {
    /// Understands and validates a configuration.
    ///
    /// # Errors
    /// All problems found, not only the first.
    pub fn new(raw: &RawConfig, beside: &Beside) -> Result<Self, Problems> {
        let mut draft = Draft::new();
        let mut notices = raw.notices();
        let mut problems = Vec::new();
        let in_ensemble = members::make_ensemble(raw, beside);
        for entry in raw.entries() {
            match read(entry, in_ensemble, &mut draft) {
                Ok(notice) => notices.extend(notice),
                Err(problem) => problems.push(problem),
            }
        }
        if let Err(more) = members::settle(raw, beside, &mut draft, &mut notices) {
            problems.extend(more);
        }
        // What depends on several keys makes sense only once each of them does.
        if problems.is_empty() {
            match draft.finish(raw, &mut notices) {
                Ok(config) => return Ok(Self { config, notices }),
                Err(more) => problems = more,
            }
        }
        Err(Problems(problems))
    }
}

/// Reads one setting.
fn read(entry: &Entry, in_ensemble: bool, draft: &mut Draft) -> Result<Option<Notice>, Problem> {
    let Entry {
        key: name,
        value,
        origin,
    } = entry;
    let Some(key) = find(name) else {
        return Ok(Some(Notice::warning(origin, unknown(name))));
    };
    if let Effect::Refused {
        unless,
        why,
        remedy,
    } = key.effect
        && !unless
            .iter()
            .any(|harmless| harmless.eq_ignore_ascii_case(value))
    {
        return Err(Problem::new(origin, format!("{name} {why}"), remedy));
    }
    let warning = key.apply(draft, value).map_err(|wrong| {
        let remedy = match key.default {
            "" => "Correct the value".to_owned(),
            default => format!("Correct the value, or remove the line for the default ({default})"),
        };
        // A hash that was mistyped is still a secret.
        let shown = if name.ends_with("superDigest") {
            "..."
        } else {
            value
        };
        Problem::new(origin, format!("{name}={shown}: {wrong}"), remedy)
    })?;
    let notice = match (warning, &key.effect) {
        (Some(warning), _) => Some(Notice::warning(origin, format!("{name}: {warning}"))),
        // It is nothing to a server without an ensemble.
        (None, Effect::NoEffect { reason, .. })
            if in_ensemble && reason.starts_with("not there yet") =>
        {
            let text = format!("{name} has no effect here: {reason}");
            Some(Notice::warning(origin, text))
        }
        (None, Effect::InEnsemble(_)) if !in_ensemble => Some(Notice::info(
            origin,
            format!("{name} has no effect here: {ENSEMBLE}"),
        )),
        (None, Effect::NoEffect { reason, .. }) => Some(Notice::info(
            origin,
            format!("{name} has no effect here: {reason}"),
        )),
        (None, _) => None,
    };
    Ok(notice)
}

fn unknown(name: &str) -> String {
    match similar(name) {
        Some(known) => {
            format!("{name} is not a known key and has no effect; did you mean {known}?")
        }
        None => format!("{name} is not a known key and has no effect"),
    }
}
