//! House rules that no lint knows, as functions from text to complaints; `tests/repository.rs` applies them to every file.
//!
//! A rule stands here when breaking it has cost somebody: what is left to do belongs into an issue, a path of one machine
//! works on no other, a file that no module names is never compiled.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::fmt;

/// Longest file, in lines; what is longer holds more than one concept.
pub const LINES_MAX: usize = 1500;

/// Folders whose crates decide and so may never contain unsafe code.
pub const SAFE_CRATES: [&str; 4] = ["src/proto/", "src/zab/", "src/tree/", "src/config/"];

/// Folders that may contain unsafe code, in small named modules.
pub const UNSAFE_FOLDERS: [&str; 2] = ["storage/", "net/transport/"];

/// Marks of unfinished work, as whole words. (Written in halves, or this file would break its own rule.)
const MARKS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
];

/// Code that stands for code to come, or keeps a test from running.
const STUBS: [&str; 3] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
];

/// Places that exist on one machine only, and hosts that are a matter of the machine's set-up.
const PLACES: [&str; 8] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("../sha", "red"),
    concat!("index.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("deb.debian", ".org"),
    concat!("registry.npmjs", ".org"),
];

/// The lint that a file names when it lifts it.
const UNSAFE_LINT: &str = concat!("unsafe", "_code");

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Path from the root of the repository.
    pub path: String,
    /// Line, from 1; 0 speaks of the whole file.
    pub line: usize,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// Applies every rule about one file's text. `path` is relative to the root of the repository.
#[must_use]
pub fn check_file(path: &str, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |line: usize, text: String| {
        complaints.push(Complaint {
            path: path.to_owned(),
            line,
            text,
        });
    };
    let lines = text.lines().count();
    if lines > LINES_MAX {
        complain(
            0,
            format!("{lines} lines, more than {LINES_MAX}: which concept wants its own file?"),
        );
    }
    if !text.is_empty() && !text.ends_with('\n') {
        complain(lines, "the last line has no end".to_owned());
    }
    for (index, line) in text.lines().enumerate() {
        if let Some(text) = check_line(line) {
            complain(index + 1, text);
        }
    }
    if let Some(text) = check_rust(path, text) {
        complain(0, text);
    }
    complaints
}

fn check_line(line: &str) -> Option<String> {
    if let Some(mark) = MARKS.into_iter().find(|mark| has_word(line, mark)) {
        return Some(format!("{mark}: finish it, or write an issue"));
    }
    if let Some(stub) = STUBS.into_iter().find(|stub| line.contains(stub)) {
        return Some(format!("{stub}: finish it, or leave it out"));
    }
    if let Some(place) = PLACES.into_iter().find(|place| line.contains(place)) {
        return Some(format!("{place}: no path or host of one machine"));
    }
    line.ends_with([' ', '\t', '\r'])
        .then(|| "blanks at the end of the line".to_owned())
}

/// Rules for Rust files and crates.
fn check_rust(path: &str, text: &str) -> Option<String> {
    let is_member = path.ends_with("/Cargo.toml") && text.contains("[package]");
    if is_member && !text.contains("[lints]\nworkspace = true") {
        return Some("a crate must say [lints] workspace = true".to_owned());
    }
    if !path.ends_with(".rs") {
        return None;
    }
    if !text.starts_with("//!") {
        return Some("a file begins with a doc comment (//!) that says what it is".to_owned());
    }
    let is_safe_crate = SAFE_CRATES
        .iter()
        .any(|folder| path.strip_prefix(folder) == Some("lib.rs"));
    if is_safe_crate && !text.contains("#![forbid(unsafe_code)]") {
        return Some("this crate must say #![forbid(unsafe_code)]".to_owned());
    }
    let may_be_unsafe = UNSAFE_FOLDERS.iter().any(|folder| path.starts_with(folder));
    let lifts_the_lint = has_word(&text.replace("#![forbid(unsafe_code)]", ""), UNSAFE_LINT);
    (!may_be_unsafe && lifts_the_lint).then(|| format!("no unsafe code outside {UNSAFE_FOLDERS:?}"))
}

/// Rust files below the folder of a crate that no `mod` of the crate names: they are never compiled. `files` holds paths
/// and texts of one crate; roots are what `Cargo.toml` or cargo's conventions name.
#[must_use]
pub fn orphans<'a>(files: &[(&'a str, &str)], manifest: &str) -> Vec<&'a str> {
    let is_root = |path: &str| {
        let folder = path.rsplit('/').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        matches!(name, "lib.rs" | "main.rs" | "mod.rs" | "build.rs")
            || matches!(folder, "tests" | "benches" | "examples" | "bin")
            || manifest
                .lines()
                .any(|line| line.starts_with("path") && line.contains(name))
    };
    let is_named = |path: &str| {
        let stem = path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".rs");
        let declaration = format!("mod {stem};");
        files.iter().any(|(_, text)| {
            text.lines()
                .any(|line| line.trim_end().ends_with(&declaration))
        })
    };
    files
        .iter()
        .map(|&(path, _)| path)
        .filter(|path| !is_root(path) && !is_named(path))
        .collect()
}

/// Finds `word` where no letter, digit or underscore touches it.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        check_file(path, text)
            .iter()
            .map(|complaint| format!("{}: {}", complaint.line, complaint.text))
            .collect()
    }

    #[test]
    fn a_tidy_file_has_no_complaints() {
        assert_eq!(
            complaints("src/tree/node.rs", "//! Nodes.\n\nfn f() {}\n"),
            [""; 0]
        );
        assert_eq!(
            complaints("docs/a.md", "A page about \\uXXXX and todos.\n"),
            [""; 0]
        );
        assert_eq!(complaints("docs/a.md", ""), [""; 0]);
    }

    #[test]
    fn marks_stubs_and_places_are_found_in_their_line() {
        for bad in MARKS.into_iter().chain(STUBS).chain(PLACES) {
            let found = complaints("docs/a.md", &format!("one\ntwo {bad} three\n"));
            assert!(
                found.len() == 1 && found[0].starts_with("2: "),
                "{bad}: {found:?}"
            );
        }
    }

    #[test]
    fn blanks_and_ends() {
        assert_eq!(
            complaints("a", "x \n"),
            ["1: blanks at the end of the line"]
        );
        assert_eq!(complaints("a", "x"), ["1: the last line has no end"]);
    }

    #[test]
    fn files_that_are_too_long() {
        assert_eq!(complaints("a", &"x\n".repeat(LINES_MAX)), [""; 0]);
        assert_eq!(complaints("a", &"x\n".repeat(LINES_MAX + 1)).len(), 1);
    }

    #[test]
    fn rules_for_rust() {
        assert!(complaints("src/tree/node.rs", "fn f() {}\n")[0].contains("//!"));
        assert!(complaints("src/tree/lib.rs", "//! Tree.\n")[0].contains("forbid"));
        let text = format!("//! A file.\n#![expect({UNSAFE_LINT}, reason = \"..\")]\n");
        assert!(complaints("src/server/main.rs", &text)[0].contains("outside"));
        assert_eq!(complaints("storage/a.rs", &text), [""; 0]);
        assert!(complaints("tools/a/Cargo.toml", "[package]\n")[0].contains("[lints]"));
    }

    #[test]
    fn files_that_no_module_names() {
        let files = [
            ("a/lib.rs", "mod named;\npub mod public;\n"),
            ("a/named.rs", "//! x\nmod inner;\n"),
            ("a/named/inner.rs", ""),
            ("a/public.rs", ""),
            ("a/tests/any.rs", ""),
            ("a/other.rs", ""),
            ("a/forgotten.rs", ""),
        ];
        assert_eq!(
            orphans(&files, "[[bin]]\npath = \"other.rs\"\n"),
            ["a/forgotten.rs"]
        );
    }
}
