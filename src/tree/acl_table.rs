//! The access control lists of a tree, each stored once (`ReferenceCountedACLCache`).
//!
//! Invariants:
//! - `uses` of a list is the number of znodes with its id; a list without znodes is forgotten.
//! - Ids mean something within one tree and its clones only.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use ringkeeper_proto::{AclList, AclRef, Perms};

use crate::map::{Entry, Key, Map};

/// An access control list that is shared with the tree it comes from. Cloning it is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct AclHandle(Arc<Shared>);

#[derive(PartialEq, Eq)]
struct Shared {
    list: AclList<'static>,
    anyone: Perms,
}

impl AclHandle {
    /// A handle of `list`.
    pub fn new(list: AclList<'_>) -> Self {
        let anyone = list
            .iter()
            .filter(|entry| entry.scheme == "world" && entry.id == "anyone")
            .fold(Perms::default(), |perms, entry| perms.union(entry.perms));
        Self(Arc::new(Shared {
            list: list.into_owned(),
            anyone,
        }))
    }

    /// The list.
    pub fn list(&self) -> &AclList<'static> {
        &self.0.list
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = AclRef<'_>> {
        self.0.list.iter()
    }

    /// Whether there is no entry: then everything is allowed to everybody.
    pub fn is_empty(&self) -> bool {
        self.0.list.is_empty()
    }

    /// What `world:anyone` may do, without a walk over the entries.
    pub fn anyone(&self) -> Perms {
        self.0.anyone
    }
}

impl fmt::Debug for AclHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.list.fmt(f)
    }
}

/// The lists by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct AclTable {
    slots: Map<Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    id: u32,
    uses: u64,
    handle: AclHandle,
}

impl Entry for Slot {
    fn head(&self) -> u64 {
        self.id.into()
    }

    fn name(&self) -> &[u8] {
        &[]
    }
}

impl AclTable {
    /// The id of `list` for one more znode.
    pub(crate) fn intern(&mut self, list: &AclList<'_>) -> u32 {
        // The id starts from a hash, so that the lists need no second index. Where another list has
        // the id the next one is tried; a list found twice after a removal costs memory only.
        let mut id = hash(list);
        while let Some(slot) = self.slots.get(&Key::number(id.into())) {
            if slot.handle.list() == list {
                self.add_uses(id, 1);
                return id;
            }
            id = id.wrapping_add(1);
        }
        self.slots.insert(Slot {
            id,
            uses: 1,
            handle: AclHandle::new(list.borrowed()),
        });
        id
    }

    /// One znode less has the list of `id`.
    pub(crate) fn release(&mut self, id: u32) {
        let key = Key::number(id.into());
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.uses = slot.uses.saturating_sub(1);
            if slot.uses == 0 {
                self.slots.remove(&key);
            }
        }
    }

    /// `count` znodes more have the list of `id`. False if there is no such list.
    pub(crate) fn add_uses(&mut self, id: u32, count: u64) -> bool {
        match self.slots.get_mut(&Key::number(id.into())) {
            Some(slot) => {
                slot.uses += count;
                true
            }
            None => false,
        }
    }

    /// Puts a list back under the id it had, without znodes. False if the id is taken.
    pub(crate) fn restore(&mut self, id: u32, list: AclList<'_>) -> bool {
        let slot = Slot {
            id,
            uses: 0,
            handle: AclHandle::new(list),
        };
        self.slots.insert(slot).is_none()
    }

    /// Whether every list has a znode.
    pub(crate) fn all_used(&self) -> bool {
        self.slots.iter().all(|slot| slot.uses > 0)
    }

    /// The list of `id`.
    pub(crate) fn handle(&self, id: u32) -> Option<&AclHandle> {
        Some(&self.slots.get(&Key::number(id.into()))?.handle)
    }

    /// Ids, lists and how many znodes have them.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &AclHandle, u64)> {
        self.slots
            .iter()
            .map(|slot| (slot.id, &slot.handle, slot.uses))
    }
}

/// A hash that does not differ between runs, and that is hard to make collide.
#[expect(clippy::cast_possible_truncation, reason = "half a hash is enough")]
fn hash(list: &AclList<'_>) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(list.as_bytes());
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use ringkeeper_proto::{Acl, Id};

    use super::*;

    fn list(id: &str) -> AclList<'static> {
        AclList::new(&[Acl {
            perms: Perms::READ,
            id: Id::new("digest", id),
        }])
    }

    #[test]
    fn equal_lists_share_an_id_until_the_last_use_ends() {
        let mut table = AclTable::default();
        let a = table.intern(&list("a"));
        let b = table.intern(&list("b"));
        assert_ne!(a, b);
        assert_eq!(table.intern(&list("a")), a);
        table.release(a);
        assert!(table.handle(a).is_some());
        table.release(a);
        assert!(table.handle(a).is_none());
        assert_eq!(table.handle(b).map(AclHandle::list), Some(&list("b")));
        assert_eq!(table.iter().len(), 1);
    }

    #[test]
    fn an_id_that_another_list_has_is_passed_over() {
        let mut table = AclTable::default();
        assert!(table.restore(hash(&list("a")), list("other")));
        let a = table.intern(&list("a"));
        assert_eq!(a, hash(&list("a")).wrapping_add(1));
        assert_eq!(table.intern(&list("a")), a);
    }

    #[test]
    fn what_anyone_may_do_is_known() {
        assert_eq!(
            AclHandle::new(AclList::new(&Acl::open())).anyone(),
            Perms::ALL
        );
        assert_eq!(AclHandle::new(list("a")).anyone(), Perms::default());
    }
}
