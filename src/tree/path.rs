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

/// The parts of `path` between its slashes, as `str::split` has them. Paths are looked up for every
/// request and names are short, which a plain loop is made for.
#[derive(Clone, Debug)]
pub(crate) struct Names<'p> {
    rest: Option<&'p str>,
}

impl<'p> Names<'p> {
    pub(crate) const fn of(path: &'p str) -> Self {
        Self { rest: Some(path) }
    }
}

impl<'p> Iterator for Names<'p> {
    type Item = &'p str;

    fn next(&mut self) -> Option<&'p str> {
        let rest = self.rest?;
        let Some(slash) = rest.bytes().position(|byte| byte == b'/') else {
            self.rest = None;
            return Some(rest);
        };
        let (name, after) = rest.split_at(slash);
        self.rest = after.get(1..);
        Some(name)
    }
}

/// Checks that `path` can name a znode.
///
/// # Errors
/// When it cannot. Of several faults an arbitrary one is named.
pub fn validate(path: &str) -> Result<(), PathError> {
    if is_plain(path.as_bytes()) {
        Ok(())
    } else {
        validate_with_care(path)
    }
}

/// Whether a path is valid at first sight, as nearly all are: printable ASCII, and no name empty or with a
/// dot in front. Both loops are without branches, so that they are done for many bytes at once.
fn is_plain(path: &[u8]) -> bool {
    let ([b'/', .., last], [_, after @ ..]) = (path, path) else {
        return false;
    };
    let printable = path
        .iter()
        .fold(true, |all, byte| all & matches!(byte, b' '..=b'~'));
    let odd_name = path.iter().zip(after).fold(false, |any, (byte, next)| {
        any | (*byte == b'/') & ((*next == b'/') | (*next == b'.'))
    });
    printable & !odd_name & (*last != b'/')
}

fn validate_with_care(path: &str) -> Result<(), PathError> {
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
    if path.bytes().fold(false, |any, byte| any | (byte == 0)) {
        return None;
    }
    split(path).map(|(parent, _)| parent)
}

/// What stands before and behind the last `/` of `path`.
pub(crate) fn split(path: &str) -> Option<(&str, &str)> {
    // As for [`Names`], a plain loop is best for what is short.
    let slash = path.bytes().rposition(|byte| byte == b'/')?;
    Some((path.get(..slash)?, path.get(slash + 1..)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    // The verdicts of Apache's PathUtils.
    #[test]
    fn the_verdicts_are_apaches() {
        let cases = [
            ("/", true),
            ("", false),
            ("a", false),
            ("/a/", false),
            ("//", false),
            ("/x y", true),
            ("/x~y", true),
            ("/x.y", true),
            ("/x..y", true),
            ("/x\0y", false),
            ("/x\u{1}y", false),
            ("/x\u{1f}y", false),
            ("/a/../b", false),
            ("/a/..b", true),
            ("/a/b..", true),
            ("/a/./b", false),
            ("/.a", true),
            ("/...", true),
            ("/a/...", true),
            ("/..", false),
            ("/.", false),
            ("/x\u{1f600}y", false),
        ];
        for (path, is_valid) in cases {
            assert_eq!(validate(path).is_ok(), is_valid, "{path:?}");
        }
    }

    #[test]
    fn the_ranges_of_characters_are_apaches() {
        // Apache's verdict changes at these UTF-16 units; surrogates are no characters here.
        let changes = [
            (0, false),
            (0x20, true),
            (0x7f, false),
            (0xa0, true),
            (0xd800, false),
            (0xf900, true),
            (0xfff0, false),
        ];
        for c in ('\0'..='\u{10ffff}').filter(|&c| c != '/') {
            let path = format!("/x{c}y");
            let (_, is_valid) = changes
                .into_iter()
                .rfind(|&(from, _)| from <= u32::from(c))
                .unwrap();
            assert_eq!(validate(&path).is_ok(), is_valid, "{path:?}");
        }
    }

    #[test]
    fn all_short_strings_get_apaches_verdict() {
        // CRC32 over one byte per verdict, of every string of up to five of these.
        let alphabet = ['/', 'a', '.', '\u{1}'];
        let mut verdicts = Vec::new();
        for len in 0..=5 {
            for number in 0..4_usize.pow(len) {
                let letters = (0..len).map(|at| alphabet[number / 4_usize.pow(at) % 4]);
                let path: String = letters.collect();
                verdicts.push(u8::from(validate(&path).is_ok()));
            }
        }
        assert_eq!(verdicts.len(), 1365);
        assert_eq!(crc32fast::hash(&verdicts), 0xb4a1_2f31);
    }

    #[test]
    fn paths_are_taken_apart_as_they_stand() {
        assert_eq!(parent("/a"), Some(""));
        assert_eq!(parent("/a/"), Some("/a"));
        assert_eq!(parent("a/b"), Some("a"));
        assert_eq!(parent("a"), None);
        assert_eq!(parent("/a\0"), None);
        let of = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(of("/a/b/c"), ["/a/b", "/a", "/"]);
        assert_eq!(of("/a"), ["/"]);
        assert_eq!(of("/"), [""; 0]);
        let names = ["/", "/a", "/a/b", "", "a", "//b", "/a/"].map(top_namespace);
        assert_eq!(
            names,
            [None, Some("a"), Some("a"), None, None, Some(""), Some("a")]
        );
    }
}
