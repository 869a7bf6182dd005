//! What happened to znodes, in order: what watches may wait for.
//!
//! Events are made for every write and most are watched by nobody, so they are kept cheaply: all paths stand in one
//! text, and who may be told is kept only where not everybody may.

use std::fmt;
use std::ops::Range;

use ringkeeper_proto::reply::EventType;
use ringkeeper_proto::{Id, Perms, Zxid};

use crate::acl::allows;
use crate::acl_table::AclHandle;
use crate::path;
use crate::settings::Settings;

/// Something that watches may wait for.
#[derive(Clone, Copy)]
pub struct Event<'e> {
    /// What happened.
    pub kind: EventType,
    /// The znode that it is about: for [`EventType::ChildrenChanged`] the parent.
    pub path: &'e str,
    /// The transaction.
    pub zxid: Zxid,
    readers: Option<&'e AclHandle>,
}

impl Event<'_> {
    /// Whether who has these identities may be told: who may read the znode (CVE-2024-23944).
    pub fn may_be_told(&self, identities: &[Id], settings: &Settings) -> bool {
        self.readers
            .is_none_or(|acl| allows(acl, Perms::READ, identities, settings))
    }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.zxid, self.kind, self.path)
    }
}

/// Events in order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Events {
    entries: Vec<Entry>,
    /// The paths, one behind the other; that of a parent is the front of its child's.
    paths: String,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    kind: EventType,
    path: Range<usize>,
    zxid: Zxid,
    /// The znode's ACL, unless it lets everybody read.
    readers: Option<AclHandle>,
}

/// Where [`Events`] ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    entries: usize,
    paths_len: usize,
}

impl Events {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            paths: String::new(),
        }
    }

    /// None yet, and room for about as many as there are in `other`.
    pub fn with_room_of(other: &Self) -> Self {
        Self {
            entries: Vec::with_capacity(other.entries.len().next_power_of_two()),
            paths: String::with_capacity(other.paths.len().next_power_of_two()),
        }
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.paths.clear();
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        self.entries.iter().map(|entry| Event {
            kind: entry.kind,
            path: &self.paths[entry.path.clone()],
            zxid: entry.zxid,
            readers: entry.readers.as_ref(),
        })
    }

    /// Adds an event of the znode at `path`, which has the ACL `acl`.
    pub(crate) fn push(&mut self, kind: EventType, path: &str, acl: &AclHandle, zxid: Zxid) {
        let start = self.paths.len();
        self.paths.push_str(path);
        let path = start..self.paths.len();
        self.enter(kind, path, acl, zxid);
    }

    /// Adds that the children have changed of the parent of the znode of the last event.
    pub(crate) fn push_children_changed(&mut self, parent_acl: &AclHandle, zxid: Zxid) {
        let Some(child) = self.entries.last().map(|last| last.path.clone()) else {
            return;
        };
        let parent = path::split(&self.paths[child.clone()]).map_or("", |(parent, _)| parent);
        // The path of a child of the root starts with the root's.
        let parent = child.start..child.start + parent.len().max(1);
        self.enter(EventType::ChildrenChanged, parent, parent_acl, zxid);
    }

    fn enter(&mut self, kind: EventType, path: Range<usize>, acl: &AclHandle, zxid: Zxid) {
        let readers = (!acl.anyone().allows(Perms::READ)).then(|| acl.clone());
        self.entries.push(Entry {
            kind,
            path,
            zxid,
            readers,
        });
    }

    /// Where they end now.
    pub(crate) const fn mark(&self) -> Mark {
        Mark {
            entries: self.entries.len(),
            paths_len: self.paths.len(),
        }
    }

    /// Forgets what was added since `mark`.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        self.entries.truncate(mark.entries);
        self.paths.truncate(mark.paths_len);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::{Acl, AclList};

    use super::*;

    fn acl(perms: Perms, id: Id) -> AclHandle {
        AclHandle::new(AclList::new(&[Acl { perms, id }]))
    }

    #[test]
    fn a_parent_is_named_by_the_front_of_its_childs_path() {
        let open = acl(Perms::ALL, Id::new("world", "anyone"));
        let mut events = Events::new();
        for path in ["/a", "/a/b"] {
            events.push(EventType::Created, path, &open, Zxid(1));
            events.push_children_changed(&open, Zxid(1));
        }
        let mark = events.mark();
        let before = events.clone();
        events.push(EventType::Deleted, "/a/b/c", &open, Zxid(2));
        events.push_children_changed(&open, Zxid(2));
        let paths: Vec<&str> = events.iter().map(|event| event.path).collect();
        assert_eq!(paths, ["/a", "/", "/a/b", "/a", "/a/b/c", "/a/b"]);
        events.roll_back(mark);
        assert_eq!(events, before);
    }

    #[test]
    fn who_may_not_read_is_not_told() {
        let own = Id::new("digest", "own");
        let settings = Settings::default();
        let mut events = Events::new();
        let not_to_be_read = acl(
            Perms(Perms::ALL.0 & !Perms::READ.0),
            Id::new("world", "anyone"),
        );
        events.push(EventType::DataChanged, "/a", &not_to_be_read, Zxid(1));
        let private = acl(Perms::READ, own.clone());
        events.push(EventType::DataChanged, "/a", &private, Zxid(2));
        let open = acl(Perms::READ, Id::new("world", "anyone"));
        events.push(EventType::DataChanged, "/a", &open, Zxid(3));
        let told = |identities: &[Id]| -> Vec<bool> {
            events
                .iter()
                .map(|event| event.may_be_told(identities, &settings))
                .collect()
        };
        assert_eq!(told(&[]), [false, false, true]);
        assert_eq!(told(&[own]), [false, true, true]);
    }
}
