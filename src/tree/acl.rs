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
pub fn allows(acl: &AclList<'_>, wanted: Perms, identities: &[Id], settings: &Settings) -> bool {
    acl.is_empty()
        || acl.as_bytes() == OPEN_ENTRY && Perms::ALL.allows(wanted)
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
        WORLD => entry.id == ANYONE,
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
struct IpRange {
    address: Address,
    bits: u32,
}

/// An address as its bits, the first one highest.
#[derive(Clone, Copy, PartialEq, Eq)]
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
