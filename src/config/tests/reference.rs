//! `docs/configuration.md` holds the table of keys that the code holds; `UPDATE=1` rewrites it.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::fmt::Write as _;
use std::path::Path;

use ringkeeper_config::{Effect, Key, keys};

const BEGIN: &str = "<!-- keys: written by a test of ringkeeper-config, run with UPDATE=1 -->\n";
const END: &str = "<!-- end of keys -->\n";

#[test]
fn the_documentation_lists_every_key_as_the_code_treats_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page
        .split_once(BEGIN)
        .expect("the page has the line that begins the keys");
    let (written, after) = rest
        .split_once(END)
        .expect("the page has the line that ends the keys");
    let expect = tables();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{expect}{END}{after}")).unwrap();
        return;
    }
    assert!(
        written == expect,
        "docs/configuration.md is not what the code does; run this test with UPDATE=1"
    );
}

fn tables() -> String {
    let mut text = String::new();
    text.push_str("\n### Keys that do something\n\n| key | takes | default | what it does |\n|---|---|---|---|\n");
    for key in keys() {
        let takes = match &key.effect {
            Effect::Honoured(set) => set.takes(),
            Effect::Membership => "see below".to_owned(),
            Effect::InEnsemble(_) | Effect::NoEffect { .. } | Effect::Refused { .. } => continue,
        };
        row(&mut text, &[&name(key), &takes, &default(key), key.about]);
    }
    text.push_str("\n### Keys that count in an ensemble\n\n| key | takes | default | what it does |\n|---|---|---|---|\n");
    for key in keys() {
        if let Effect::InEnsemble(set) = &key.effect {
            row(
                &mut text,
                &[&name(key), &set.takes(), &default(key), key.about],
            );
        }
    }
    text.push_str("\n### Keys without effect here\n\n| key | default | what it does in Apache | why nothing is missing |\n|---|---|---|---|\n");
    for key in keys() {
        if let Effect::NoEffect { reason, .. } = &key.effect {
            row(&mut text, &[&name(key), &default(key), key.about, reason]);
        }
    }
    text.push_str("\n### Keys that are refused\n\n| key | accepted values | what it does in Apache | why | what to do |\n|---|---|---|---|---|\n");
    for key in keys() {
        if let Effect::Refused {
            unless,
            why,
            remedy,
        } = &key.effect
        {
            row(
                &mut text,
                &[&name(key), &unless.join(", "), key.about, why, remedy],
            );
        }
    }
    text.push('\n');
    text
}

fn name(key: &Key) -> String {
    format!("`{}`", key.name)
}

fn default(key: &Key) -> String {
    if key.default.is_empty() || key.default.contains(' ') {
        key.default.to_owned()
    } else {
        format!("`{}`", key.default)
    }
}

fn row(text: &mut String, cells: &[&str]) {
    for cell in cells {
        write!(text, "| {} ", cell.replace('|', "\\|")).unwrap();
    }
    text.push_str("|\n");
}
