//! The table of all keys: one row says how a key is spelled, what values it takes, and what becomes of it.
//!
//! Invariants:
//! - A key that Apache 3.9 knows has exactly one row; [`find`] prefers an exact row to a family (`ssl.*`).
//! - A setting that protects is [`Effect::Refused`] until it is in force, never [`Effect::NoEffect`].
//! - `docs/configuration.md` is this table; a test compares them.

use crate::draft::Draft;
use crate::{honoured, in_ensemble, no_effect, refused};

/// Largest Java `int`.
pub(crate) const INT_MAX: i64 = i32::MAX as i64;

/// Smallest Java `int`.
pub(crate) const INT_MIN: i64 = i32::MIN as i64;

/// One row.
#[derive(Debug)]
pub struct Key {
    /// Spelling in `zoo.cfg`, without `zookeeper.`; a family ends in `*`.
    pub name: &'static str,
    /// Whose key it is, which decides about the prefix.
    pub owner: Owner,
    /// Value when the key is absent, as the documentation shows it; empty when there is none.
    pub default: &'static str,
    /// What it sets, with its unit, in one sentence.
    pub about: &'static str,
    /// What becomes of it.
    pub effect: Effect,
}

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Apache reads it from `zoo.cfg` (`QuorumPeerConfig`).
    File,
    /// Apache reads it from a Java system property: the prefix `zookeeper.` may be written or left out, and integers may be
    /// hexadecimal or octal, as `Integer.decode` has it.
    Property,
    /// Ours.
    Ringkeeper,
}

/// What becomes of a key.
#[derive(Debug)]
pub enum Effect {
    /// It does what Apache's documentation says, or what [`Key::about`] says.
    Honoured(Set),
    /// The same, for members of an ensemble; a standalone server checks and logs it.
    InEnsemble(Set),
    /// It describes the members of the ensemble, and is read as a part of all such keys.
    Membership,
    /// It is checked, logged, and changes nothing; the reason says why nothing is missing.
    NoEffect {
        /// What values it takes.
        shape: Shape,
        /// Completes the sentence "has no effect here: ...".
        reason: &'static str,
    },
    /// It asks for protection or for a feature that is not there, so the server does not start with it.
    Refused {
        /// Values that ask for nothing and are accepted, compared without regard to case.
        unless: &'static [&'static str],
        /// What is wrong with it, after the key.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
}

/// How an honoured value is read and where it goes.
#[derive(Debug)]
pub enum Set {
    /// An integer within bounds.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
        /// Stores it.
        store: fn(&mut Draft, i64),
    },
    /// `true` or `false`, in any case.
    Bool(fn(&mut Draft, bool)),
    /// `yes` or `no`.
    YesNo(fn(&mut Draft, bool)),
    /// A number from 0 to 1.
    Share(fn(&mut Draft, f64)),
    /// Anything else; a value that is accepted but changed or doubted answers with the warning to log.
    Text {
        /// What the documentation says about the values.
        takes: &'static str,
        /// Stores it, or says what is wrong.
        store: fn(&mut Draft, &str) -> Result<Option<String>, String>,
    },
}

/// What values a key without effect takes. They are checked so that a slip shows here as it does with Apache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A 64-bit integer.
    Int,
    /// A number.
    Real,
    /// `true` or `false`.
    Bool,
    /// `yes` or `no`.
    YesNo,
    /// One of these, in any case.
    OneOf(&'static [&'static str]),
    /// Anything.
    Text,
}

impl Key {
    /// Reads a value of this key and stores it; answers with what to log.
    pub(crate) fn apply(&self, draft: &mut Draft, value: &str) -> Result<Option<String>, String> {
        match &self.effect {
            Effect::Honoured(set) | Effect::InEnsemble(set) => set.apply(self.owner, draft, value),
            Effect::NoEffect { shape, .. } => shape.check(self.owner, value).map(|()| None),
            Effect::Membership | Effect::Refused { .. } => Ok(None),
        }
    }
}

impl Set {
    fn apply(
        &self,
        owner: Owner,
        draft: &mut Draft,
        value: &str,
    ) -> Result<Option<String>, String> {
        match *self {
            Self::Int { min, max, store } => store(draft, integer_within(owner, value, min, max)?),
            Self::Bool(store) => store(draft, parse_bool(value)?),
            Self::YesNo(store) => store(draft, parse_yes_no(value)?),
            Self::Share(store) => match value.parse::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => store(draft, number),
                _ => return Err("it must be a number from 0 to 1".to_owned()),
            },
            Self::Text { store, .. } => return store(draft, value),
        }
        Ok(None)
    }

    /// Reads an integer of a system property, for rows that do more with it than store it.
    pub(crate) fn integer(value: &str, min: i64, max: i64) -> Result<i64, String> {
        integer_within(Owner::Property, value, min, max)
    }

    /// What values the key takes, for the documentation.
    #[must_use]
    pub fn takes(&self) -> String {
        match self {
            // The bounds of Java's types say nothing to an operator.
            &Self::Int { min, max, .. } => match (min <= INT_MIN, max >= INT_MAX) {
                (true, true) => "an integer".to_owned(),
                (false, true) => format!("{min} or more"),
                (true, false) => format!("up to {max}"),
                (false, false) => format!("{min} to {max}"),
            },
            Self::Bool(_) => "true, false".to_owned(),
            Self::YesNo(_) => "yes, no".to_owned(),
            Self::Share(_) => "0 to 1".to_owned(),
            Self::Text { takes, .. } => (*takes).to_owned(),
        }
    }
}

impl Shape {
    fn check(self, owner: Owner, value: &str) -> Result<(), String> {
        let ok = match self {
            Self::Int => parse_integer(owner, value).is_some(),
            Self::Real => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Bool => return parse_bool(value).map(drop),
            Self::YesNo => return parse_yes_no(value).map(drop),
            Self::OneOf(words) => words.iter().any(|word| word.eq_ignore_ascii_case(value)),
            Self::Text => true,
        };
        if ok {
            Ok(())
        } else {
            Err(format!("it must be {}", self.describe()))
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Int => "an integer".to_owned(),
            Self::Real => "a number".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::YesNo => "yes or no".to_owned(),
            Self::OneOf(words) => words.join(" or "),
            Self::Text => "a text".to_owned(),
        }
    }
}

/// All rows, in the order of the documentation.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    honoured::KEYS
        .iter()
        .chain(in_ensemble::KEYS)
        .chain(no_effect::KEYS)
        .chain(refused::KEYS)
}

/// The row of a key in its canonical spelling.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    let in_family = |key: &&Key| {
        key.name
            .strip_suffix('*')
            .is_some_and(|prefix| name.starts_with(prefix))
    };
    keys()
        .find(|key| key.name == name)
        .or_else(|| keys().find(in_family))
}

/// Takes the `zookeeper.` of a Java system property off; other keys stay as they are.
pub(crate) fn canonical(name: &str) -> &str {
    match name.strip_prefix("zookeeper.") {
        Some(bare) if find(bare).is_some_and(|key| key.owner == Owner::Property) => bare,
        _ => name,
    }
}

/// The known key that is most like an unknown one, if one is like it at all.
#[must_use]
pub fn similar(name: &str) -> Option<&'static str> {
    let bare = name.strip_prefix("zookeeper.").unwrap_or(name);
    let exact = keys().map(|key| key.name).filter(|key| !key.ends_with('*'));
    exact
        .map(|key| {
            (
                distance(&bare.to_ascii_lowercase(), &key.to_ascii_lowercase()),
                key,
            )
        })
        .filter(|&(distance, key)| distance <= key.len() / 4)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, key)| key)
}

/// Number of single-byte edits between two keys (Levenshtein), by one row of the table at a time.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            left = (diagonal + usize::from(from != to))
                .min(left + 1)
                .min(above + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        _ if value.eq_ignore_ascii_case("true") => Ok(true),
        _ if value.eq_ignore_ascii_case("false") => Ok(false),
        // Of a system property Apache takes anything else for false without a word.
        _ => Err("it must be true or false".to_owned()),
    }
}

fn parse_yes_no(value: &str) -> Result<bool, String> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        // Apache compares with one of the two words and takes anything else for the other without a word.
        _ => Err("it must be yes or no".to_owned()),
    }
}

fn integer_within(owner: Owner, value: &str, min: i64, max: i64) -> Result<i64, String> {
    match parse_integer(owner, value) {
        Some(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("it must be an integer from {min} to {max}")),
    }
}

/// Reads an integer as Apache does: `Integer.parseInt` for the file's own keys, `Integer.decode` for system properties.
fn parse_integer(owner: Owner, value: &str) -> Option<i64> {
    let (negative, digits) = match value.as_bytes().first()? {
        b'-' => (true, value.get(1..)?),
        b'+' => (false, value.get(1..)?),
        _ => (false, value),
    };
    let (digits, radix) = match owner {
        Owner::Property => split_radix(digits),
        Owner::File | Owner::Ringkeeper => (digits, 10),
    };
    // A second sign would be taken by `from_str_radix`.
    if !digits.bytes().next()?.is_ascii_alphanumeric() {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

fn split_radix(digits: &str) -> (&str, u32) {
    for prefix in ["0x", "0X", "#"] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            return (rest, 16);
        }
    }
    match digits.strip_prefix('0') {
        Some(rest) if !rest.is_empty() => (rest, 8),
        _ => (digits, 10),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_has_one_row_and_says_what_it_is() {
        let mut names = BTreeSet::new();
        for key in keys() {
            assert!(names.insert(key.name), "{} has two rows", key.name);
            assert!(
                !key.about.is_empty() && !key.about.ends_with('.'),
                "{}",
                key.name
            );
            if let Effect::NoEffect { reason, .. } = key.effect {
                assert!(!reason.is_empty() && !reason.ends_with('.'), "{}", key.name);
            }
            assert_eq!(
                key.owner == Owner::Ringkeeper,
                key.name.starts_with("ringkeeper."),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn shown_defaults_are_valid_values() {
        for key in keys().filter(|key| !key.default.is_empty() && !key.default.contains(' ')) {
            let mut draft = Draft::new();
            assert_eq!(
                key.apply(&mut draft, key.default),
                Ok(None),
                "{}={}",
                key.name,
                key.default
            );
        }
    }

    #[test]
    fn shown_defaults_are_the_defaults() {
        let mut draft = Draft::new();
        for key in keys().filter(|key| !key.default.is_empty() && !key.default.contains(' ')) {
            key.apply(&mut draft, key.default).unwrap();
        }
        draft.add_missing_for_test();
        let mut untouched = Draft::new();
        untouched.add_missing_for_test();
        assert_eq!(draft.finish_for_test(), untouched.finish_for_test());
    }

    #[test]
    fn families_yield_to_exact_rows() {
        assert_eq!(find("ssl.keyStore.location").unwrap().name, "ssl.*");
        assert_eq!(
            find("metricsProvider.className").unwrap().name,
            "metricsProvider.className"
        );
        assert_eq!(
            find("metricsProvider.anything").unwrap().name,
            "metricsProvider.*"
        );
        assert!(find("sslx").is_none());
    }

    #[test]
    fn slips_are_recognized() {
        assert_eq!(similar("clientport"), Some("clientPort"));
        assert_eq!(similar("zookeeper.dataDir"), Some("dataDir"));
        assert_eq!(similar("maxClientCnxn"), Some("maxClientCnxns"));
        assert_eq!(
            similar("autopurge.purgeIntervall"),
            Some("autopurge.purgeInterval")
        );
        assert_eq!(similar("leader.serves"), Some("leaderServes"));
        assert_eq!(similar("color"), None);
    }

    #[test]
    fn distances() {
        for (a, b, expect) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), expect, "{a} {b}");
        }
    }

    #[test]
    fn integers_read_as_java_reads_them() {
        let file = |text| parse_integer(Owner::File, text);
        let property = |text| parse_integer(Owner::Property, text);
        assert_eq!((file("010"), property("010")), (Some(10), Some(8)));
        assert_eq!((file("0x10"), property("0x10")), (None, Some(16)));
        assert_eq!((file("+5"), property("-#ff")), (Some(5), Some(-255)));
        assert_eq!((file("0"), property("0")), (Some(0), Some(0)));
        for text in [
            "",
            "-",
            "+",
            "--1",
            "+-1",
            "1 ",
            "1k",
            "08",
            "0x-1",
            "99999999999999999999",
        ] {
            assert_eq!(property(text), None, "{text:?}");
        }
    }
}
