//! Who may do what: identities, how they are proved, and how an access control list is made safe to
//! store and checked.
//!
//! The schemes are those that Apache has without further configuration: `world`, `auth`, `digest`,
//! `ip` and `super` (`ProviderRegistry`, `DigestAuthenticationProvider`, `IPAuthenticationProvider`).
//!
//! Invariants:
//! - [`fixup`] returns only lists whose entries have a known scheme and a valid id, so what is stored
//!   never has to be doubted again.
//! - [`allows`] does not allocate: it runs for every request.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest as _, Sha1};
use sha2::{Sha224, Sha256, Sha384, Sha512};

use ringkeeper_proto::{Acl, AclList, AclRef, Id, Perms, ZkError};

use crate::acl_table::AclHandle;
use crate::settings::Settings;

/// The scheme of everybody.
pub const WORLD: &str = "world";
/// The only id of [`WORLD`].
pub const ANYONE: &str = "anyone";
/// The scheme that stands for the identities of who asks, until [`fixup`].
pub const AUTH: &str = "auth";
/// The scheme of `user:password`.
pub const DIGEST: &str = "digest";
/// The scheme of addresses.
pub const IP: &str = "ip";
/// The scheme of who may do everything.
pub const SUPER: &str = "super";

/// The hash of the digest scheme (`digestAlg`), by the names that Java has for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// `SHA1`, the default.
    #[default]
    Sha1,
    /// `SHA-224`
    Sha224,
    /// `SHA-256`
    Sha256,
    /// `SHA-384`
    Sha384,
    /// `SHA-512`
    Sha512,
}

impl DigestAlgorithm {
    /// The algorithm of a Java `MessageDigest` name; `None` for those that are not offered here.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "SHA" | "SHA1" | "SHA-1" => Self::Sha1,
            "SHA-224" | "SHA224" => Self::Sha224,
            "SHA-256" | "SHA256" => Self::Sha256,
            "SHA-384" | "SHA384" => Self::Sha384,
            "SHA-512" | "SHA512" => Self::Sha512,
            _ => return None,
        })
    }

    fn base64(self, bytes: &[u8]) -> String {
        match self {
            Self::Sha1 => BASE64.encode(Sha1::digest(bytes)),
            Self::Sha224 => BASE64.encode(Sha224::digest(bytes)),
            Self::Sha256 => BASE64.encode(Sha256::digest(bytes)),
            Self::Sha384 => BASE64.encode(Sha384::digest(bytes)),
            Self::Sha512 => BASE64.encode(Sha512::digest(bytes)),
        }
    }
}

/// The digest id of `user:password` (`DigestAuthenticationProvider.generateDigest`).
pub fn digest_id(user_password: &str, algorithm: DigestAlgorithm) -> String {
    let user = match user_password.split_once(':') {
        Some((user, _)) => user,
        None => user_password,
    };
    format!("{user}:{}", algorithm.base64(user_password.as_bytes()))
}

/// The identity that a connection has by its address, in the form of Java's
/// `InetAddress.getHostAddress`.
pub fn ip_identity(remote: IpAddr) -> Id {
    let address = match remote.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let segments = address.segments().map(|segment| format!("{segment:x}"));
            segments.join(":")
        }
    };
    Id::new(IP, address)
}

/// The identities that an auth packet proves, which the connection has from now on (each once).
///
/// # Errors
/// [`ZkError::AuthFailed`] when the scheme is unknown; the connection is closed then.
pub fn authenticate(
    scheme: &str,
    auth: &[u8],
    remote: IpAddr,
    settings: &Settings,
) -> Result<Vec<Id>, ZkError> {
    match scheme {
        IP => Ok(vec![ip_identity(remote)]),
        DIGEST if settings.digest_enabled => {
            let proof = String::from_utf8_lossy(auth);
            let id = digest_id(&proof, settings.digest_algorithm);
            let is_super = settings
                .super_digest
                .as_ref()
                .is_some_and(|expected| equal_in_constant_time(expected.as_bytes(), id.as_bytes()));
            let mut ids = Vec::with_capacity(2);
            if is_super {
                ids.push(Id::new(SUPER, ""));
            }
            ids.push(Id::new(DIGEST, id));
            Ok(ids)
        }
        _ => Err(ZkError::AuthFailed),
    }
}

/// What whoAmI and the audit log show of an identity (`AuthUtil.getUser`).
pub fn user_name<'a>(id: &'a Id, settings: &Settings) -> &'a str {
    match id.scheme.as_str() {
        IP => &id.id,
        DIGEST if settings.digest_enabled => id.id.split(':').next().unwrap_or(""),
        _ => "",
    }
}

/// Whether one of `wanted` is granted to one of `identities` (`ZooKeeperServer.checkACL`). An empty
/// list grants everything.
pub fn allows(acl: &AclHandle, wanted: Perms, identities: &[Id], settings: &Settings) -> bool {
    acl.anyone().allows(wanted)
        || acl.is_empty()
        || settings.skip_acl
        || identities.iter().any(|id| id.scheme == SUPER)
        || acl
            .iter()
            .filter(|entry| entry.perms.allows(wanted))
            .any(|entry| matches_any(&entry, identities, settings))
}

/// Makes a list from a request safe to store (`PrepRequestProcessor.fixupACL`): no entry twice, only
/// known schemes and valid ids, and `auth` replaced by the identities of who asks.
///
/// A list that is stored as it came is borrowed, not copied.
///
/// # Errors
/// [`ZkError::InvalidAcl`] when the list is null or empty, when a scheme or id is not valid, when
/// `auth` finds no proved identity, or when the list grows beyond what a transaction may have.
pub fn fixup<'a>(
    acl: Option<&AclList<'a>>,
    identities: &[Id],
    settings: &Settings,
) -> Result<AclList<'a>, ZkError> {
    let Some(acl) = acl.filter(|acl| !acl.is_empty()) else {
        return Err(ZkError::InvalidAcl);
    };
    if acl.as_bytes() == OPEN_ENTRY {
        return Ok(acl.clone());
    }
    let mut needs_copy = false;
    for entry in acl.iter() {
        match entry.scheme {
            WORLD if entry.id == ANYONE => {}
            AUTH => needs_copy = true,
            scheme if is_valid(scheme, entry.id, settings) => {}
            _ => return Err(ZkError::InvalidAcl),
        }
    }
    if !needs_copy && (acl.len() == 1 || !has_duplicates(acl)) {
        return Ok(acl.clone());
    }
    expand(acl, identities, settings)
}

/// The list as it is shown to who may read but not change it: digests are hidden.
pub fn redacted<'a>(acl: &'a AclList<'a>) -> AclList<'a> {
    if acl.iter().all(|entry| entry.scheme != DIGEST) {
        return acl.borrowed();
    }
    let hidden = acl.iter().map(|entry| {
        let mut acl = entry.to_acl();
        if entry.scheme == DIGEST {
            acl.id.id = hide_digest(entry.id);
        }
        acl
    });
    AclList::new(&hidden.collect::<Vec<_>>())
}

/// Compares secrets without telling by the time it takes where they differ. Their lengths are not
/// secret.
pub fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let differences = left
        .iter()
        .zip(right)
        .fold(0, |all, (left, right)| all | (left ^ right));
    std::hint::black_box(differences) == 0
}

/// `world:anyone:cdrwa`, the one entry of most lists, as it is encoded.
const OPEN_ENTRY: &[u8] = b"\0\0\0\x1f\0\0\0\x05world\0\0\0\x06anyone";

fn matches_any(entry: &AclRef<'_>, identities: &[Id], settings: &Settings) -> bool {
    let of_scheme = || identities.iter().filter(|id| id.scheme == entry.scheme);
    match entry.scheme {
        DIGEST => settings.digest_enabled && of_scheme().any(|id| id.id == entry.id),
        IP => match IpRange::parse(entry.id) {
            Some(range) => of_scheme().any(|id| range.contains(&id.id)),
            None => false,
        },
        _ => false,
    }
}

// ZK: the isValid of each AuthenticationProvider. Java's split drops empty strings at the end, so
// "user:hash::" has two parts.
fn is_valid(scheme: &str, id: &str, settings: &Settings) -> bool {
    match scheme {
        DIGEST => {
            let parts = id.trim_end_matches(':').matches(':').count() + 1;
            settings.digest_enabled && parts == 2
        }
        IP => IpRange::parse(id).is_some(),
        _ => false,
    }
}

fn has_duplicates(acl: &AclList<'_>) -> bool {
    if acl.len() <= FEW_ENTRIES {
        for (at, entry) in acl.iter().enumerate() {
            if acl.iter().take(at).any(|earlier| earlier == entry) {
                return true;
            }
        }
        return false;
    }
    // A list may have tens of thousands of entries: comparing each with each would take minutes.
    let mut seen = BTreeSet::new();
    !acl.iter()
        .all(|entry| seen.insert((entry.perms, entry.scheme, entry.id)))
}

fn expand(
    acl: &AclList<'_>,
    identities: &[Id],
    settings: &Settings,
) -> Result<AclList<'static>, ZkError> {
    let proved = identities
        .iter()
        .filter(|id| id.scheme == DIGEST && settings.digest_enabled);
    let mut seen = BTreeSet::new();
    let mut fixed: Vec<Acl> = Vec::with_capacity(acl.len());
    let mut len = 0_usize;
    for entry in acl.iter() {
        if !seen.insert((entry.perms, entry.scheme, entry.id)) {
            continue;
        }
        let from = fixed.len();
        if entry.scheme == AUTH {
            // ZK: what `auth` becomes is not compared with the other entries again.
            for id in proved.clone() {
                len = grown(len, &id.scheme, &id.id, settings)?;
                fixed.push(Acl {
                    perms: entry.perms,
                    id: id.clone(),
                });
            }
        } else {
            len = grown(len, entry.scheme, entry.id, settings)?;
            fixed.push(entry.to_acl());
        }
        if fixed.len() == from {
            return Err(ZkError::InvalidAcl);
        }
    }
    Ok(AclList::new(&fixed))
}

// A few bytes of `auth` can stand for many identities: the list is bounded while it grows, not after.
fn grown(len: usize, scheme: &str, id: &str, settings: &Settings) -> Result<usize, ZkError> {
    let len = len + Acl::LEN_MIN + scheme.len() + id.len();
    if len > settings.txn_len_max {
        Err(ZkError::InvalidAcl)
    } else {
        Ok(len)
    }
}

// ZK: `replaceAll(":.*", ":x")`, where `.` stops at the end of a line.
fn hide_digest(id: &str) -> String {
    let mut hidden = String::with_capacity(id.len());
    let mut rest = id;
    while let Some((before, after)) = rest.split_once(':') {
        hidden.push_str(before);
        hidden.push_str(":x");
        rest = match after.find(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
            Some(end) => after.get(end..).unwrap_or(""),
            None => "",
        };
    }
    hidden.push_str(rest);
    hidden
}

/// `address` or `address/bits` of the ip scheme.
#[derive(Debug)]
struct IpRange {
    address: Address,
    bits: u32,
}

/// An address as its bits, the first one highest.
#[derive(Clone, Copy, Debug)]
enum Address {
    V4(u32),
    V6(u128),
}

impl IpRange {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address = Address::parse(address)?;
        let bits_max = match address {
            Address::V4(_) => 32,
            Address::V6(_) => 128,
        };
        let bits = match bits {
            None => bits_max,
            // Java's parseInt and this one agree: a sign, leading zeros, no spaces.
            Some(bits) => u32::try_from(bits.parse::<i32>().ok()?).ok()?,
        };
        (bits <= bits_max).then_some(Self { address, bits })
    }

    fn contains(&self, address: &str) -> bool {
        match (self.address, Address::parse(address)) {
            (Address::V4(own), Some(Address::V4(other))) => {
                (own ^ other).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (Address::V6(own), Some(Address::V6(other))) => {
                (own ^ other).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl Address {
    fn parse(text: &str) -> Option<Self> {
        if text.contains(':') {
            Self::parse_v6(text)
        } else {
            Self::parse_v4(text)
        }
    }

    fn parse_v4(text: &str) -> Option<Self> {
        let mut bits = 0;
        let mut count = 0;
        for part in text.split('.') {
            let byte = u8::try_from(part.parse::<i32>().ok()?).ok()?;
            bits = (bits << 8) | u32::from(byte);
            count += 1;
            if count > 4 {
                return None;
            }
        }
        (count == 4).then_some(Self::V4(bits))
    }

    // ZK 3.9.5, ZOOKEEPER-4240: eight groups of up to four hexadecimal digits, or `::` once for at
    // least one group of zeros; no embedded IPv4 and no scope.
    fn parse_v6(text: &str) -> Option<Self> {
        let mut halves = text.split("::");
        let (head, tail) = (halves.next()?, halves.next());
        if halves.next().is_some() {
            return None;
        }
        let Some(tail) = tail else {
            let (bits, count) = v6_groups(head)?;
            return (count == 8).then_some(Self::V6(bits));
        };
        let (head, head_count) = if head.is_empty() {
            (0, 0)
        } else {
            v6_groups(head)?
        };
        let (tail, tail_count) = if tail.is_empty() {
            (0, 0)
        } else {
            v6_groups(tail)?
        };
        if head_count + tail_count >= 8 {
            return None;
        }
        let head = if head_count == 0 {
            0
        } else {
            head << (16 * (8 - head_count))
        };
        Some(Self::V6(head | tail))
    }
}

// The groups of `text`, the last one lowest, and how many there are: at most eight.
fn v6_groups(text: &str) -> Option<(u128, u32)> {
    let mut bits = 0_u128;
    let mut count = 0;
    for group in text.split(':') {
        if group.is_empty() || group.len() > 4 || count == 8 {
            return None;
        }
        let value = i32::from_str_radix(group, 16).ok()?;
        let [.., high, low] = value.to_be_bytes();
        bits = (bits << 16) | u128::from(u16::from_be_bytes([high, low]));
        count += 1;
    }
    Some((bits, count))
}

/// Up to here comparing each entry with each is quicker than a set.
const FEW_ENTRIES: usize = 8;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ringkeeper_proto::Reader;

    use super::*;

    fn settings() -> Settings {
        Settings::default()
    }

    // "perms|scheme|id perms|scheme|id".
    fn list(text: &str) -> AclList<'static> {
        let entries = text.split(' ').filter(|entry| !entry.is_empty());
        let acls = entries.map(|entry| {
            let parts: Vec<&str> = entry.split('|').collect();
            Acl {
                perms: Perms(parts[0].parse().unwrap()),
                id: Id::new(parts[1], parts[2]),
            }
        });
        AclList::new(&acls.collect::<Vec<_>>())
    }

    fn shown(acl: &AclList<'_>) -> String {
        let entries = acl
            .iter()
            .map(|entry| format!("{}|{}|{}", entry.perms.0, entry.scheme, entry.id));
        entries.collect::<Vec<_>>().join(" ")
    }

    // The results of Apache's PrepRequestProcessor.fixupACL for these identities and lists.
    #[test]
    fn fixup_gives_what_apache_stores() {
        let address = Id::new(IP, "127.0.0.1");
        let both = [
            address.clone(),
            Id::new(DIGEST, "u:h"),
            Id::new(SUPER, ""),
            Id::new(DIGEST, "v:i"),
        ];
        let either = [
            ("", "-114"),
            ("31|world|anyone", "31|world|anyone"),
            ("31|world|anyone 31|world|anyone", "31|world|anyone"),
            (
                "31|world|anyone 1|world|anyone",
                "31|world|anyone 1|world|anyone",
            ),
            ("1|world|nobody", "-114"),
            ("1|digest|a:b 1|digest|a:b", "1|digest|a:b"),
            ("1|digest|ab", "-114"),
            ("1|ip|1.2.3.4/8", "1|ip|1.2.3.4/8"),
            ("1|ip|x", "-114"),
            ("1|sasl|x", "-114"),
            ("1|super|", "-114"),
            ("0|world|anyone", "0|world|anyone"),
            ("-1|world|anyone", "-1|world|anyone"),
            ("1||", "-114"),
        ];
        let proved = [
            ("31|auth|", "31|digest|u:h 31|digest|v:i"),
            (
                "31|auth|x 3|auth|x",
                "31|digest|u:h 31|digest|v:i 3|digest|u:h 3|digest|v:i",
            ),
            (
                "31|auth| 31|digest|u:h",
                "31|digest|u:h 31|digest|v:i 31|digest|u:h",
            ),
            ("31|auth| 31|auth|", "31|digest|u:h 31|digest|v:i"),
            (
                "1|digest|a:b 31|auth| 1|digest|a:b",
                "1|digest|a:b 31|digest|u:h 31|digest|v:i",
            ),
        ];
        let check = |identities: &[Id], given: &str, expect: &str| {
            let got = match fixup(Some(&list(given)), identities, &settings()) {
                Ok(acl) => shown(&acl),
                Err(error) => error.code().to_string(),
            };
            assert_eq!(got, expect, "{given:?} of {identities:?}");
        };
        for (given, expect) in either {
            check(std::slice::from_ref(&address), given, expect);
            check(&both, given, expect);
        }
        for (given, expect) in proved {
            check(std::slice::from_ref(&address), given, "-114");
            check(&both, given, expect);
        }
        assert_eq!(fixup(None, &both, &settings()), Err(ZkError::InvalidAcl));
    }

    #[test]
    fn a_list_stored_as_it_came_is_not_copied() {
        for text in [
            "31|world|anyone",
            "1|digest|a:b 2|ip|1.2.3.4",
            "1|world|anyone",
        ] {
            let mut bytes = Vec::new();
            list(text).encode(&mut bytes);
            let acl = AclList::decode(&mut Reader::new(&bytes)).unwrap().unwrap();
            let fixed = fixup(Some(&acl), &[], &settings()).unwrap();
            assert_eq!(fixed.as_bytes().as_ptr(), bytes[4..].as_ptr());
        }
        assert_eq!(list("31|world|anyone").as_bytes(), OPEN_ENTRY);
    }

    #[test]
    fn many_entries_are_fixed_quickly_and_within_bounds() {
        let mut acls: Vec<Acl> = (0..60_000)
            .map(|perms| Acl {
                perms: Perms(perms % 50_000),
                id: Id::new(WORLD, ANYONE),
            })
            .collect();
        let fixed = fixup(Some(&AclList::new(&acls)), &[], &settings());
        assert_eq!(fixed.unwrap().len(), 50_000);
        for acl in &mut acls {
            acl.id = Id::new(AUTH, "");
        }
        let identities: Vec<Id> = (0..100)
            .map(|user| Id::new(DIGEST, format!("u{user}:h")))
            .collect();
        let fixed = fixup(Some(&AclList::new(&acls)), &identities, &settings());
        assert_eq!(fixed, Err(ZkError::InvalidAcl));
    }

    // The results of Apache's DigestAuthenticationProvider.
    #[test]
    fn digests_are_apaches() {
        let ids = [
            ("super:test", "super:D/InIHSb7yEEbrWz8b9l71RjZJU="),
            ("bob", "bob:SBgazSKz7a68ikR4aKfffOYpkgo="),
            ("", ":2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
            ("u:p:q", "u:VIgTKUjc2iscZoJn2UUrdGNNgW4="),
            (":p", ":LlDE5iroUDDm9zdvmLsfjkUvn0k="),
            ("u:", "u:IX23jg4I7W2/R//KoV8VL1UfuBM="),
            ("\u{e9}:\u{4f60}", "\u{e9}:kN5XZYTifr2Vu/p4TDDK+/JIP64="),
        ];
        for (proof, id) in ids {
            assert_eq!(digest_id(proof, DigestAlgorithm::Sha1), id);
        }
        let valid = [
            ("a:b", true),
            ("a:", false),
            (":b", true),
            ("a:b:", true),
            ("a:b::", true),
            ("a::b", false),
            (":", false),
            ("", false),
            ("a", false),
            ("::", false),
            ("::b", false),
            ("a:b:c", false),
            ("a:b:c:", false),
            (" : ", true),
        ];
        for (id, expect) in valid {
            assert_eq!(is_valid(DIGEST, id, &settings()), expect, "{id:?}");
        }
    }

    #[test]
    fn other_digests_go_by_javas_names() {
        let algorithm = |name| DigestAlgorithm::from_name(name);
        assert_eq!(algorithm("sha1"), Some(DigestAlgorithm::Sha1));
        assert_eq!(algorithm("MD5"), None);
        // printf 'a:b' | sha256sum | xxd -r -p | base64
        assert_eq!(
            digest_id("a:b", algorithm("SHA-256").unwrap()),
            "a:Z4OjHqv2jMwGYPk1wIJigr3SJB86gKny0Q1Zrqnrtdg="
        );
        let lengths = ["SHA-1", "SHA-224", "SHA-256", "SHA-384", "SHA-512"]
            .map(|name| digest_id("", algorithm(name).unwrap()).len() - 1);
        assert_eq!(lengths, [28, 40, 44, 64, 88]);
    }

    // The results of Apache's IPAuthenticationProvider: 3.8 for IPv4, the rules of 3.9.5 for IPv6.
    #[test]
    fn addresses_are_valid_where_apache_says_so() {
        let cases = [
            ("1.2.3.4", true),
            ("1.2.3.4/0", true),
            ("1.2.3.4/32", true),
            ("1.2.3.4/33", false),
            ("1.2.3.4/-1", false),
            ("1.2.3.4/+8", true),
            ("1.2.3.4/", false),
            ("1.2.3", false),
            ("1.2.3.4.5", false),
            ("1.2.3.256", false),
            ("1.2.3.-0", true),
            ("+1.2.3.4", true),
            ("01.2.3.4", true),
            (" 1.2.3.4", false),
            ("1.2.3.", false),
            ("1.2.3.4/8/8", false),
            ("", false),
            ("/8", false),
            ("a.b.c.d", false),
            ("1.2.3.4/08", true),
            ("0001.0.0.0", true),
            ("::", true),
            ("::1", true),
            ("1::", true),
            ("1:2:3:4:5:6:7:8", true),
            ("1:2:3:4:5:6:7:8/128", true),
            ("1:2:3:4:5:6:7:8/129", false),
            ("1:2:3:4:5:6:7", false),
            ("1:2:3:4::5:6:7:8", false),
            ("1:2:3:4:5:6:7:8:9", false),
            ("1::2::3", false),
            (":::", false),
            ("12345::", false),
            ("::ffff:1.2.3.4", false),
            ("::1%eth0", false),
            (":", false),
        ];
        for (id, expect) in cases {
            assert_eq!(is_valid(IP, id, &settings()), expect, "{id:?}");
        }
    }

    #[test]
    fn addresses_match_within_their_bits() {
        let cases = [
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("10.1.2.3", "10.1.0.0/16", true),
            ("10.2.2.3", "10.1.0.0/16", false),
            ("10.1.2.3", "0.0.0.0/0", true),
            ("10.1.2.3", "10.1.2.0/31", false),
            ("10.1.2.3", "10.1.2.2/31", true),
            ("10.1.2.3", "10.1.2.128/25", false),
            ("10.1.2.131", "10.1.2.128/25", true),
            ("::1", "1.2.3.4", false),
            ("::1", "0.0.0.0/0", false),
            ("200.1.1.1", "128.0.0.0/1", true),
            ("100.1.1.1", "128.0.0.0/1", false),
            ("0:0:0:0:0:0:0:1", "::1", true),
            ("2001:db8:0:0:0:0:0:7", "2001:db8::/32", true),
            ("2001:db9:0:0:0:0:0:7", "2001:db8::/32", false),
            ("2001:db9:0:0:0:0:0:7", "::/0", true),
        ];
        for (id, range, expect) in cases {
            let range = IpRange::parse(range).unwrap();
            assert_eq!(range.contains(id), expect, "{id} in {range:?}");
        }
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xa);
        assert_eq!(ip_identity(v6.into()), Id::new(IP, "2001:db8:0:0:0:0:0:a"));
        let mapped = Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped();
        assert_eq!(ip_identity(mapped.into()), Id::new(IP, "127.0.0.1"));
    }

    #[test]
    fn permissions_follow_the_identities() {
        let anonymous = [Id::new(IP, "10.0.0.1")];
        let bob = [Id::new(IP, "10.0.0.1"), Id::new(DIGEST, "bob:h")];
        let root = [Id::new(SUPER, "")];
        let check = |acl: &str, wanted, identities: &[Id], expect| {
            let granted = allows(&AclHandle::new(list(acl)), wanted, identities, &settings());
            assert_eq!(granted, expect, "{acl:?} {wanted:?} {identities:?}");
        };
        check("", Perms::ADMIN, &[], true);
        check("31|world|anyone", Perms::ADMIN, &[], true);
        check("1|world|anyone", Perms::READ, &[], true);
        check("1|world|anyone", Perms::WRITE, &bob, false);
        check("1|world|anyone", Perms::WRITE, &root, true);
        check("1|world|anyone 2|digest|bob:h", Perms::WRITE, &bob, true);
        check("1|digest|bob:h", Perms::READ, &anonymous, false);
        check("1|digest|bob:i", Perms::READ, &bob, false);
        check("1|ip|10.0.0.0/8", Perms::READ, &anonymous, true);
        check("1|ip|11.0.0.0/8", Perms::READ, &anonymous, false);
        // What another server's providers stored means nothing here.
        check(
            "31|sasl|bob:h",
            Perms::READ,
            &[Id::new("sasl", "bob:h")],
            false,
        );
        let any_of = Perms::READ.union(Perms::ADMIN);
        check("16|world|anyone", any_of, &[], true);

        let open = Settings {
            skip_acl: true,
            ..settings()
        };
        assert!(allows(
            &AclHandle::new(list("1|digest|a:b")),
            Perms::ALL,
            &[],
            &open
        ));
        let without_digest = Settings {
            digest_enabled: false,
            ..settings()
        };
        assert!(!allows(
            &AclHandle::new(list("1|digest|bob:h")),
            Perms::READ,
            &bob,
            &without_digest
        ));
    }

    #[test]
    fn proofs_become_identities() {
        let remote = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let with_super = Settings {
            super_digest: Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=".into()),
            ..settings()
        };
        let prove =
            |scheme, auth, settings: &Settings| authenticate(scheme, auth, remote, settings);
        let id = Id::new(DIGEST, "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
        assert_eq!(
            prove(DIGEST, b"super:test", &settings()),
            Ok(vec![id.clone()])
        );
        assert_eq!(
            prove(DIGEST, b"super:test", &with_super),
            Ok(vec![Id::new(SUPER, ""), id.clone()])
        );
        assert_eq!(
            prove(IP, b"", &settings()),
            Ok(vec![Id::new(IP, "127.0.0.1")])
        );
        for scheme in [WORLD, SUPER, AUTH, "sasl", ""] {
            assert_eq!(prove(scheme, b"x", &settings()), Err(ZkError::AuthFailed));
        }
        let without_digest = Settings {
            digest_enabled: false,
            ..settings()
        };
        assert_eq!(
            prove(DIGEST, b"a:b", &without_digest),
            Err(ZkError::AuthFailed)
        );
        assert_eq!(user_name(&id, &settings()), "super");
        assert_eq!(user_name(&Id::new(SUPER, ""), &settings()), "");
        assert_eq!(user_name(&Id::new(IP, "1.2.3.4"), &settings()), "1.2.3.4");
    }

    // The results of Java's replaceAll(":.*", ":x").
    #[test]
    fn digests_are_hidden_as_apache_does() {
        let cases = [
            ("user:hash", "user:x"),
            ("a:b:c", "a:x"),
            (":x", ":x"),
            ("u:abc\ndef:ghi", "u:x\ndef:x"),
            ("u:a\rb", "u:x\rb"),
            ("u:a\u{85}b:c\u{2028}d", "u:x\u{85}b:x\u{2028}d"),
            ("nocolon", "nocolon"),
            ("u:", "u:x"),
        ];
        for (id, expect) in cases {
            assert_eq!(hide_digest(id), expect);
        }
        let acl = list("31|digest|bob:h 1|ip|1.2.3.4 1|world|anyone");
        assert_eq!(
            shown(&redacted(&acl)),
            "31|digest|bob:x 1|ip|1.2.3.4 1|world|anyone"
        );
    }
}
