//! Access control lists: who (`scheme:id`) may do what.

use std::borrow::Cow;
use std::fmt;

use bytes::BufMut;

use crate::jute::{DecodeError, Reader, WriteJute, wire_len};

/// A set of permissions (`ZooDefs.Perms`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Perms(pub i32);

impl Perms {
    /// Read data, children and ACL.
    pub const READ: Self = Self(1);
    /// Change the data.
    pub const WRITE: Self = Self(2);
    /// Create children.
    pub const CREATE: Self = Self(4);
    /// Delete children.
    pub const DELETE: Self = Self(8);
    /// Change the ACL.
    pub const ADMIN: Self = Self(16);
    /// Everything.
    pub const ALL: Self = Self(31);

    /// Whether any of `wanted` is in the set.
    pub const fn allows(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An identity: a scheme and an id within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// `world`, `auth`, `digest`, `ip`, `super`, …
    pub scheme: String,
    /// What the scheme makes of it, for example `user:base64digest`.
    pub id: String,
}

impl Id {
    /// An identity of `scheme`.
    pub fn new(scheme: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            scheme: scheme.into(),
            id: id.into(),
        }
    }
}

/// One entry of an access control list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acl {
    /// What is allowed.
    pub perms: Perms,
    /// To whom.
    pub id: Id,
}

impl Acl {
    /// The least bytes an entry takes on the wire.
    pub const LEN_MIN: usize = 12;

    /// `world:anyone` may do everything (`ZooDefs.Ids.OPEN_ACL_UNSAFE`).
    pub fn open() -> Vec<Self> {
        vec![Self {
            perms: Perms::ALL,
            id: Id::new("world", "anyone"),
        }]
    }
}

/// A list of ACL entries in its encoded form, borrowed from a request or owned after fix-up. It is
/// checked once, when it is read, so that its entries can be walked without errors.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AclList<'a> {
    count: usize,
    entries: Cow<'a, [u8]>,
}

/// What stands for bytes that are not UTF-8.
const REPLACEMENT: char = '\u{fffd}';

fn has_replacement(text: &str) -> bool {
    !text.is_ascii() && text.contains(REPLACEMENT)
}

/// One entry of an [`AclList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclRef<'a> {
    /// What is allowed.
    pub perms: Perms,
    /// The scheme of whom.
    pub scheme: &'a str,
    /// The id of whom.
    pub id: &'a str,
}

impl<'a> AclList<'a> {
    /// Reads a vector of entries; `None` is null.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
        let Some(count) = reader.count(Acl::LEN_MIN)? else {
            return Ok(None);
        };
        let start = reader.clone();
        let mut is_utf8 = true;
        for _ in 0..count {
            let entry = read_entry(reader)?;
            is_utf8 &= !(has_replacement(entry.scheme) || has_replacement(entry.id));
        }
        let entries = start.clone().take(reader.at() - start.at())?;
        if is_utf8 {
            return Ok(Some(Self {
                count,
                entries: Cow::Borrowed(entries),
            }));
        }
        // What is stored and compared is what was read, so malformed bytes are replaced for good.
        let mut again = start;
        let acls = (0..count).map(|_| Ok(read_entry(&mut again)?.to_acl()));
        Ok(Some(AclList::new(
            &acls.collect::<Result<Vec<_>, DecodeError>>()?,
        )))
    }

    /// The list of `acls`.
    pub fn new(acls: &[Acl]) -> AclList<'static> {
        let mut entries = Vec::new();
        for acl in acls {
            encode_entry(&acl.as_ref(), &mut entries);
        }
        AclList {
            count: acls.len(),
            entries: Cow::Owned(entries),
        }
    }

    /// Writes the vector.
    pub fn encode(&self, out: &mut (impl BufMut + ?Sized)) {
        out.put_i32(wire_len(self.count));
        out.put_slice(&self.entries);
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = AclRef<'_>> {
        let mut reader = Reader::new(&self.entries);
        std::iter::from_fn(move || {
            if reader.is_empty() {
                None
            } else {
                read_entry(&mut reader).ok()
            }
        })
    }

    /// The entries, owned.
    pub fn to_acls(&self) -> Vec<Acl> {
        self.iter().map(|entry| entry.to_acl()).collect()
    }

    /// The encoded entries, without their count: equal lists have equal bytes, so this is the key to
    /// intern them by.
    pub fn as_bytes(&self) -> &[u8] {
        &self.entries
    }

    /// How many entries there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no entry.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The same list, independent of what it was read from.
    pub fn into_owned(self) -> AclList<'static> {
        AclList {
            count: self.count,
            entries: Cow::Owned(self.entries.into_owned()),
        }
    }

    /// The same list, borrowing from this one.
    pub fn borrowed(&self) -> AclList<'_> {
        AclList {
            count: self.count,
            entries: Cow::Borrowed(&self.entries),
        }
    }
}

impl fmt::Debug for AclList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl AclRef<'_> {
    /// The entry, owned.
    pub fn to_acl(&self) -> Acl {
        Acl {
            perms: self.perms,
            id: Id::new(self.scheme, self.id),
        }
    }
}

impl Acl {
    /// The entry, borrowed.
    pub fn as_ref(&self) -> AclRef<'_> {
        AclRef {
            perms: self.perms,
            scheme: &self.id.scheme,
            id: &self.id.id,
        }
    }
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<AclRef<'a>, DecodeError> {
    let perms = Perms(reader.int()?);
    let scheme = reader.ustring()?.unwrap_or("");
    let id = reader.ustring()?.unwrap_or("");
    Ok(AclRef { perms, scheme, id })
}

fn encode_entry(entry: &AclRef<'_>, out: &mut (impl BufMut + ?Sized)) {
    out.put_i32(entry.perms.0);
    out.put_ustring(entry.scheme);
    out.put_ustring(entry.id);
}
