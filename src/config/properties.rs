//! `java.util.Properties` syntax, as `Properties.load(InputStream)` reads it.
//!
//! Apache hands `zoo.cfg` to that class, so what it takes for a comment, a separator, an escape or a continued line decides
//! which setting a line makes. The rules, in the order they apply:
//! - Bytes are ISO-8859-1; lines end with `\n`, `\r` or `\r\n`.
//! - White space is blank, tab and form feed. It is skipped at the start of a line, a continuing one included.
//! - A line whose first other character is `#` or `!` is a comment; one continued from above is not.
//! - An odd number of backslashes at the end of a line joins the next line to it.
//! - The key ends at the first `=`, `:` or white space that has no backslash before it; then white space, one separator and
//!   white space are skipped, and the rest is the value, blanks at its end included.
//! - `\t \n \r \f` and `\uXXXX` are decoded; a backslash before any other character is dropped.
//!
//! Invariant: never panics, and the work and memory are linear in the input.

/// One setting as the file spells it, before the trimming that `QuorumPeerConfig` adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Key with escapes decoded.
    pub key: String,
    /// Value with escapes decoded.
    pub value: String,
    /// Number of the physical line on which the setting begins, from 1.
    pub line: u32,
}

/// A line that Java would refuse (or could only represent as broken UTF-16).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "malformed \\uXXXX escape: four hexadecimal digits must follow, and surrogates must come in pairs"
)]
pub struct MalformedEscape {
    /// Number of the physical line on which the setting begins, from 1.
    pub line: u32,
}

/// Parses a whole properties file.
///
/// # Errors
/// [`MalformedEscape`] for the first `\u` that four hexadecimal digits do not follow, as Java does.
pub fn parse(bytes: &[u8]) -> Result<Vec<Property>, MalformedEscape> {
    LogicalLines {
        bytes,
        at: 0,
        line: 1,
    }
    .map(|(line, text)| {
        let (key, value) = split(&text);
        let decode = |part| unescape(part).ok_or(MalformedEscape { line });
        Ok(Property {
            key: decode(key)?,
            value: decode(value)?,
            line,
        })
    })
    .collect()
}

/// Yields settings with their continuation lines joined, and the number of their first physical line.
struct LogicalLines<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Number of the physical line that `at` is in.
    line: u32,
}

impl Iterator for LogicalLines<'_> {
    type Item = (u32, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.skip_blanks();
            let first_line = self.line;
            let is_comment = matches!(self.bytes.get(self.at)?, b'#' | b'!');
            let (mut text, mut joined) = self.physical_line();
            // A lone backslash joins the next line to nothing, so that one may be a comment. (Java makes an empty setting of one
            // at the end of the file; nobody means that.)
            if is_comment || text.is_empty() {
                continue;
            }
            while joined && self.at < self.bytes.len() {
                self.skip_blanks();
                let (more, again) = self.physical_line();
                text.extend_from_slice(&more);
                joined = again;
            }
            return Some((first_line, text));
        }
    }
}

impl LogicalLines<'_> {
    fn skip_blanks(&mut self) {
        while self.bytes.get(self.at).is_some_and(|&byte| is_blank(byte)) {
            self.at += 1;
        }
    }

    /// Takes the rest of a physical line and its end; the flag says that a backslash joins the next one to it.
    fn physical_line(&mut self) -> (Vec<u8>, bool) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|&byte| is_line_end(byte))
            .unwrap_or(rest.len());
        let (text, end) = rest.split_at(length);
        self.at += length;
        self.at += match end {
            [b'\r', b'\n', ..] => 2,
            [_, ..] => 1,
            [] => 0,
        };
        self.line = self.line.saturating_add(u32::from(!end.is_empty()));
        let backslashes = text.iter().rev().take_while(|&&byte| byte == b'\\').count();
        let joined = backslashes % 2 == 1;
        (text[..length - usize::from(joined)].to_vec(), joined)
    }
}

/// Splits a logical line into key and value, both still escaped.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let mut escaped = false;
    let mut key_end = text.len();
    for (index, &byte) in text.iter().enumerate() {
        if !escaped && (is_separator(byte) || is_blank(byte)) {
            key_end = index;
            break;
        }
        escaped = byte == b'\\' && !escaped;
    }
    let (key, rest) = text.split_at(key_end);
    let mut separators_left = 1;
    let value_start = rest.iter().position(|&byte| {
        if is_separator(byte) && separators_left > 0 {
            separators_left -= 1;
            return false;
        }
        !is_blank(byte)
    });
    (key, value_start.map_or(&[], |start| &rest[start..]))
}

/// Decodes escapes; `None` for a malformed `\uXXXX`. Bytes are ISO-8859-1, so each is the character of the same number.
fn unescape(text: &[u8]) -> Option<String> {
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            units.push(u16::from(*byte));
            continue;
        }
        let [escape, after @ ..] = rest else { break };
        rest = after;
        units.push(match escape {
            b't' => u16::from(b'\t'),
            b'n' => u16::from(b'\n'),
            b'r' => u16::from(b'\r'),
            b'f' => 0x0c,
            b'u' => {
                let (digits, after) = rest.split_at_checked(4)?;
                rest = after;
                digits.iter().try_fold(0, |unit: u16, &digit| {
                    let value = char::from(digit).to_digit(16)?;
                    Some(unit << 4 | u16::try_from(value).ok()?)
                })?
            }
            other => u16::from(*other),
        });
    }
    String::from_utf16(&units).ok()
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0c)
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'=' | b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[(&str, &str, u32)]) {
        let found = parse(text.as_bytes()).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|p| (p.key.as_str(), p.value.as_str(), p.line))
            .collect();
        assert_eq!(found, expect, "{text:?}");
    }

    #[test]
    fn separators_and_blanks() {
        check("a=1", &[("a", "1", 1)]);
        check("a = 1 ", &[("a", "1 ", 1)]);
        check(
            "a:1\nb 2\nc\t=\t3",
            &[("a", "1", 1), ("b", "2", 2), ("c", "3", 3)],
        );
        check("a == 1", &[("a", "= 1", 1)]);
        check("a : = 1", &[("a", "= 1", 1)]);
        check("a", &[("a", "", 1)]);
        check("=1", &[("", "1", 1)]);
        check("server.1=h:1:2;3", &[("server.1", "h:1:2;3", 1)]);
        check("\x0c a\x0cb", &[("a", "b", 1)]);
    }

    #[test]
    fn comments_and_blank_lines() {
        check(
            "# a=1\n  ! b=2\n\n \t\nc=3 # no comment",
            &[("c", "3 # no comment", 5)],
        );
        check("# comment \\\na=1", &[("a", "1", 2)]);
        check("a=1\\\n# joined", &[("a", "1# joined", 1)]);
        check("", &[]);
        check("#", &[]);
    }

    #[test]
    fn lines_end_in_three_ways_and_are_counted_once() {
        check(
            "a=1\rb=2\r\nc=3\n\rd=4",
            &[("a", "1", 1), ("b", "2", 2), ("c", "3", 3), ("d", "4", 5)],
        );
    }

    #[test]
    fn continuation() {
        check(
            "a=1,\\\n   2,\\\r\n\t3\nb=4",
            &[("a", "1,2,3", 1), ("b", "4", 4)],
        );
        check("a=1\\\\\nb=2", &[("a", "1\\", 1), ("b", "2", 2)]);
        check("a=1\\\\\\\n2", &[("a", "1\\2", 1)]);
        check("a=1\\", &[("a", "1", 1)]);
        check("a=1\\\n\nb=2", &[("a", "1", 1), ("b", "2", 3)]);
        check("\\\nb=2", &[("b", "2", 2)]);
        check("\\\n#b=2", &[]);
        check("key\\\n  more = v", &[("keymore", "v", 1)]);
    }

    #[test]
    fn escapes() {
        check(r"a\ b=c\td", &[("a b", "c\td", 1)]);
        check(r"a\=b\:c=1", &[("a=b:c", "1", 1)]);
        check(r"path=C:\\zk\data", &[("path", r"C:\zkdata", 1)]);
        check(
            r"a=\u0041\u00e4\uD83D\uDE00\n\r\f",
            &[("a", "Aä\u{1f600}\n\r\u{c}", 1)],
        );
        check("\\u0023a=1", &[("#a", "1", 1)]);
    }

    #[test]
    fn bytes_are_latin_1() {
        let found = parse(b"a=\xe4").unwrap();
        assert_eq!(found[0].value, "ä");
    }

    #[test]
    fn malformed_escapes_name_their_line() {
        for text in [
            "a=1\nb=\\u12",
            "a=1\nb=\\u12g4",
            "a=1\nb=\\uD83D",
            "a=1\n\\u=2",
        ] {
            assert_eq!(
                parse(text.as_bytes()),
                Err(MalformedEscape { line: 2 }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn random_inputs_are_read_as_java_reads_them() {
        // testdata/PropertiesOracle.java made the file.
        for line in include_str!("testdata/properties.txt").lines() {
            let (input, expect) = line.split_once(' ').unwrap_or((line, ""));
            let bytes: Vec<u8> = (0..input.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&input[at..at + 2], 16).unwrap())
                .collect();
            let hexadecimal = |text: &str| -> String {
                text.encode_utf16()
                    .map(|unit| format!("{unit:04x}"))
                    .collect()
            };
            let found = match parse(&bytes) {
                Ok(found) => found
                    .iter()
                    .map(|p| format!("{}={};", hexadecimal(&p.key), hexadecimal(&p.value)))
                    .collect(),
                Err(MalformedEscape { .. }) => "ERR".to_owned(),
            };
            assert_eq!(found, expect, "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        // A small linear congruential generator over the bytes that matter; each input is also read to its end.
        let alphabet = b"a=: \t\\\n\r#!u0f\x0c";
        let mut state: u64 = 7;
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..24)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    alphabet[usize::try_from(state >> 40).unwrap() % alphabet.len()]
                })
                .collect();
            if let Ok(found) = parse(&text) {
                assert!(found.iter().all(|p| p.line >= 1));
            }
        }
    }
}
