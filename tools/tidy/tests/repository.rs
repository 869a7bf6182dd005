//! Applies the house rules to every file of the repository.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ringkeeper_tidy::{check_file, orphans};

/// Folders that hold nothing written by hand.
const SKIPPED: [&str; 7] = [
    "target",
    ".git",
    ".venv",
    "data",
    "__pycache__",
    "testdata",
    "node_modules",
];

/// Files that tools write.
const GENERATED: [&str; 1] = ["Cargo.lock"];

/// Endings of the files that are text.
const TEXT: [&str; 13] = [
    "rs", "toml", "md", "sh", "py", "java", "c", "cfg", "yml", "yaml", "txt", "proto", "service",
];

#[test]
fn the_repository_is_tidy() {
    let files = files();
    // The walk found the repository, and not an empty folder beside it.
    assert!(
        files.contains_key("Cargo.toml") && files.contains_key("src/server/main.rs"),
        "{:?}",
        files.keys()
    );
    let mut complaints: Vec<_> = files
        .iter()
        .flat_map(|(path, text)| check_file(path, text))
        .map(|complaint| complaint.to_string())
        .collect();
    for (manifest_path, manifest) in files
        .iter()
        .filter(|(path, _)| path.ends_with("/Cargo.toml"))
    {
        let folder = manifest_path.trim_end_matches("Cargo.toml");
        let nested = |path: &str| {
            files.keys().any(|other| {
                other.len() > manifest_path.len()
                    && other.starts_with(folder)
                    && other
                        .strip_suffix("Cargo.toml")
                        .is_some_and(|inner| path.starts_with(inner))
            })
        };
        let sources: Vec<_> = files
            .iter()
            .filter(|(path, _)| path.starts_with(folder) && path.ends_with(".rs") && !nested(path))
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        let orphans = orphans(&sources, manifest);
        complaints.extend(
            orphans
                .into_iter()
                .map(|path| format!("{path}:0: no `mod` of its crate names this file")),
        );
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Paths from the root of the repository, with texts.
fn files() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap();
    let mut files = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !SKIPPED.contains(&name) {
                    folders.push(path);
                }
            } else if is_text(&path, name) {
                let relative = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                files.insert(relative, fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

fn is_text(path: &Path, name: &str) -> bool {
    if GENERATED.contains(&name) {
        return false;
    }
    match path.extension() {
        Some(extension) => TEXT.iter().any(|text| extension == *text),
        // Scripts have no ending; they begin with #!.
        None => fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!")),
    }
}
