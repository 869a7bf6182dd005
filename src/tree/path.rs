//! Which strings are paths of znodes (`PathUtils.validatePath`), and the parts of a path.
//!
//! Invariant: [`validate`] accepts exactly the strings that Apache accepts. The functions that take
//! a path apart work on any string: Apache does so before it validates, and the order of errors
//! depends on it.

use std::fmt;

use ringkeeper_proto::ZkError;

/// The root.
pub const ROOT: &str = "/";
/// The parent of what the service keeps about itself.
pub const SYSTEM: &str = "/zookeeper";
/// The parent of the quotas.
pub const QUOTA: &str = "/zookeeper/quota";
/// The configuration of the ensemble.
pub const CONFIG: &str = "/zookeeper/config";

/// Why a string is not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// It does not start with `/`.
    Relative,
    /// It ends with `/` and is not the root.
    TrailingSlash,
    /// It has two `/` in a row.
    EmptyName,
    /// One of its names is `.` or `..`.
    DotName,
    /// It has a control character, a private one, or one outside the basic plane.
    Character,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relative => "a path starts with /",
            Self::TrailingSlash => "a path does not end with /",
            Self::EmptyName => "a name in a path is not empty",
            Self::DotName => "a name in a path is neither . nor ..",
            Self::Character => "the path has a character that is not allowed",
        })
    }
}

impl std::error::Error for PathError {}

impl From<PathError> for ZkError {
    fn from(_: PathError) -> Self {
        Self::BadArguments
    }
}

/// Checks that `path` can name a znode.
///
/// # Errors
/// When it cannot. Of several faults an arbitrary one is named.
pub fn validate(path: &str) -> Result<(), PathError> {
    let bytes = path.as_bytes();
    match bytes {
        [b'/'] => return Ok(()),
        [b'/', .., b'/'] => return Err(PathError::TrailingSlash),
        [b'/', ..] => {}
        _ => return Err(PathError::Relative),
    }
    let mut name_start = 1;
    let mut ascii = true;
    for (at, &byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            b'/' => {
                validate_name(bytes.get(name_start..at).unwrap_or(&[]))?;
                name_start = at + 1;
            }
            0..=0x1f | 0x7f => return Err(PathError::Character),
            0x80.. => ascii = false,
            _ => {}
        }
    }
    validate_name(bytes.get(name_start..).unwrap_or(&[]))?;
    if ascii || !path.chars().any(is_forbidden) {
        Ok(())
    } else {
        Err(PathError::Character)
    }
}

/// Whether `path` is one of those that cannot be deleted (`DataTree.isSpecialPath`).
pub fn is_special(path: &str) -> bool {
    matches!(path, ROOT | SYSTEM | QUOTA | CONFIG)
}

/// What stands before the last `/` of `path`, whether it is a valid path or not: "" for a child of
/// the root. `None` when there is no `/`, or when there is a NUL, which Apache refuses with it.
pub fn parent(path: &str) -> Option<&str> {
    if path.bytes().any(|byte| byte == 0) {
        return None;
    }
    path.rsplit_once('/').map(|(parent, _)| parent)
}

/// The ancestors of `path`, nearest first, the root last; nothing for the root itself.
pub fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        if rest == ROOT || rest.is_empty() {
            return None;
        }
        let end = rest.rfind('/')?;
        rest = if end == 0 { ROOT } else { rest.get(..end)? };
        Some(rest)
    })
}

/// The first name of `path`, by which Apache groups its per-namespace figures
/// (`PathUtils.getTopNamespace`).
pub fn top_namespace(path: &str) -> Option<&str> {
    let trimmed = path.trim_end_matches('/');
    trimmed.split('/').nth(1)
}

fn validate_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        [] => Err(PathError::EmptyName),
        b"." | b".." => Err(PathError::DotName),
        _ => Ok(()),
    }
}

// ZK: the check is on UTF-16 units, and surrogates are refused, so nothing above U+FFFF passes.
const fn is_forbidden(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..
    )
}
