//! The watches of one shard's connections (`WatchManager`, `DataTree`'s two tables of it).
//!
//! As in Apache there are two tables. The data table has the watches of getData and exists, the
//! persistent and the recursive ones; the child table has those of getChildren and the persistent
//! ones. A watcher can have several modes on one path, and gets one event per change all the same.
//!
//! Invariants:
//! - A path has a record exactly while somebody watches it.
//! - A watcher is in a set of a path if and only if the path is in the watcher's set.
//! - A data or child watch is gone once it has fired; the others stay until they are removed.
//! - An event whose path nobody watches costs one hash, or nothing while there are no watches.
//!
//! A watch costs an entry in the path's set and one in the watcher's, each 4 bytes plus slack; the
//! path itself is kept once.

use std::hash::{DefaultHasher, Hasher as _};

use ringkeeper_proto::ZkError;
use ringkeeper_proto::reply::EventType;
use ringkeeper_proto::request::SetWatchesRequest;

use crate::compact_set::{CompactSet, spread};
use crate::path::ancestors;
use crate::tree::Tree;

/// Who is told: a connection of this shard. The number is the shard's to choose, and to use again
/// after [`WatchTable::remove_watcher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watcher(pub u32);

/// What a watch is told of, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchMode {
    /// getData, exists: the next creation, change or deletion.
    Data,
    /// getChildren: the next change of the children, or the deletion.
    Child,
    /// addWatch mode 0: everything that the two above are told, until removed.
    Persistent,
    /// addWatch mode 1: creations, changes and deletions of the path and of all below it.
    PersistentRecursive,
}

/// Which watches checkWatches and removeWatches mean (`Watcher.WatcherType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchKind {
    /// [`WatchMode::Child`].
    Child,
    /// [`WatchMode::Data`].
    Data,
    /// All modes.
    Any,
    /// [`WatchMode::Persistent`].
    Persistent,
    /// [`WatchMode::PersistentRecursive`].
    PersistentRecursive,
}

/// What `wchs` prints: the data table only, as in Apache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchSummary {
    /// Watchers that have data watches, or had some that all fired.
    pub connections: usize,
    /// Paths with a data watch.
    pub paths: usize,
    /// Pairs of a watcher and a path.
    pub watches: usize,
}

impl WatchMode {
    /// The mode of an addWatch request.
    ///
    /// # Errors
    /// [`ZkError::MarshallingError`] when there is no such mode.
    pub const fn from_add_watch(mode: i32) -> Result<Self, ZkError> {
        match mode {
            0 => Ok(Self::Persistent),
            1 => Ok(Self::PersistentRecursive),
            _ => Err(ZkError::MarshallingError),
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Data => DATA,
            Self::Child => CHILD,
            Self::Persistent => PERSISTENT,
            Self::PersistentRecursive => RECURSIVE,
        }
    }
}

impl WatchKind {
    /// The kind of a checkWatches or removeWatches request.
    ///
    /// # Errors
    /// [`ZkError::MarshallingError`] when there is no such kind.
    pub const fn from_code(code: i32) -> Result<Self, ZkError> {
        match code {
            1 => Ok(Self::Child),
            2 => Ok(Self::Data),
            3 => Ok(Self::Any),
            4 => Ok(Self::Persistent),
            5 => Ok(Self::PersistentRecursive),
            _ => Err(ZkError::MarshallingError),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Child => CHILD,
            Self::Data => DATA,
            Self::Any => DATA | CHILD | PERSISTENT | RECURSIVE,
            Self::Persistent => PERSISTENT,
            Self::PersistentRecursive => RECURSIVE,
        }
    }
}

/// The watches of one shard.
#[derive(Debug)]
pub struct WatchTable {
    /// Keeps strangers from choosing paths that all hash alike.
    seed: u64,
    /// A slab; the records of paths that nobody watches are in `paths_free`.
    paths: Vec<WatchedPath>,
    paths_free: Vec<u32>,
    path_index: CompactSet,
    /// A slab, as `paths`.
    watchers: Vec<WatcherRecord>,
    watchers_free: Vec<u32>,
    watcher_index: CompactSet,
    /// Paths with recursive watches: without any, ancestors need not be looked at.
    paths_recursive: usize,
    summary: WatchSummary,
    /// Pairs of a watcher and a path in the child table.
    child_watches: usize,
    /// Of the event that fires now; who has been told of it bears it as mark.
    mark: u32,
    /// The slots of those to tell of the event that fires now.
    told: Vec<u32>,
}

#[derive(Debug, Default)]
struct WatchedPath {
    path: Box<str>,
    hash: u32,
    /// [`DATA`] and [`PERSISTENT`]: slot << 1 | whether the data watch is there (see [`Members`]).
    data: Members,
    /// [`CHILD`] and [`PERSISTENT`].
    child: Members,
    /// [`RECURSIVE`]. Apart from `data`: an ancestor can have very many data watches, and every
    /// write below it looks for the recursive ones.
    recursive: Members,
}

/// Watchers of a path, with the modes that they have in this set:
/// `slot << MODE_BITS | STANDARD | LASTING`.
#[derive(Debug, Default)]
struct Members(CompactSet);

#[derive(Debug)]
struct WatcherRecord {
    id: Watcher,
    mark: u32,
    /// How many of `paths` are in the data table.
    data_paths: u32,
    /// ZK: `watch2Paths` of the data table keeps a connection whose watches have all fired.
    is_listed: bool,
    paths: CompactSet,
}

impl WatchTable {
    /// An empty table. `seed` should be secret: it decides how paths are spread.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            paths: Vec::new(),
            paths_free: Vec::new(),
            path_index: CompactSet::default(),
            watchers: Vec::new(),
            watchers_free: Vec::new(),
            watcher_index: CompactSet::default(),
            paths_recursive: 0,
            summary: WatchSummary::default(),
            child_watches: 0,
            mark: 0,
            told: Vec::new(),
        }
    }

    /// Adds a watch; returns whether it was not there yet. Any string can be watched.
    pub fn add(&mut self, path: &str, watcher: Watcher, mode: WatchMode) -> bool {
        let path = self.path_entry(path);
        let slot = self.watcher_entry(watcher);
        let old = self.modes(path, slot);
        let new = old | mode.bit();
        self.change(path, slot, old, new);
        old != new
    }

    /// Removes the watches of `kind`.
    ///
    /// # Errors
    /// [`ZkError::NoWatcher`] when there is none.
    pub fn remove(&mut self, path: &str, watcher: Watcher, kind: WatchKind) -> Result<(), ZkError> {
        let (Some(path), Some(slot)) = (self.find_path(path), self.find_watcher(watcher)) else {
            return Err(ZkError::NoWatcher);
        };
        let old = self.modes(path, slot);
        let new = old & !kind.bits();
        if old == new {
            return Err(ZkError::NoWatcher);
        }
        self.change(path, slot, old, new);
        if let Some(record) = self.watchers.get_mut(slot as usize) {
            if record.is_listed && record.data_paths == 0 && old & IN_DATA != 0 {
                record.is_listed = false;
                self.summary.connections -= 1;
            }
            if record.paths.is_empty() && !record.is_listed {
                self.free_watcher(slot);
            }
        }
        Ok(())
    }

    /// Removes all watches of a connection that is gone.
    pub fn remove_watcher(&mut self, watcher: Watcher) {
        let Some(slot) = self.find_watcher(watcher) else {
            return;
        };
        let paths: Vec<u32> = match self.watchers.get(slot as usize) {
            Some(record) => record.paths.iter().collect(),
            None => return,
        };
        for path in paths {
            let old = self.modes(path, slot);
            self.change(path, slot, old, 0);
        }
        if self
            .watchers
            .get(slot as usize)
            .is_some_and(|record| record.is_listed)
        {
            self.summary.connections -= 1;
        }
        self.free_watcher(slot);
    }

    /// Tells those who watch that `path` has changed. `tell` is called once for each of them, in no
    /// particular order. Whether they may read it is for the caller to check.
    ///
    /// - Created, DataChanged: the data table of the path, and recursive watches of its ancestors.
    /// - Deleted: both tables of the path, and recursive watches of its ancestors.
    /// - ChildrenChanged: the child table of the path.
    pub fn fire(
        &mut self,
        kind: EventType,
        path: &str,
        mut tell: impl FnMut(Watcher, EventType, &str),
    ) {
        if self.path_index.is_empty() {
            return;
        }
        self.next_mark();
        let found = self.find_path(path);
        if let Some(record) = found.and_then(|path| self.paths.get(path as usize)) {
            if kind != EventType::ChildrenChanged {
                mark_all(&record.data, &mut self.watchers, self.mark, &mut self.told);
                mark_all(
                    &record.recursive,
                    &mut self.watchers,
                    self.mark,
                    &mut self.told,
                );
            }
            if matches!(kind, EventType::ChildrenChanged | EventType::Deleted) {
                mark_all(&record.child, &mut self.watchers, self.mark, &mut self.told);
            }
        }
        if kind != EventType::ChildrenChanged && self.paths_recursive > 0 {
            for ancestor in ancestors(path) {
                let found = self.find_path(ancestor);
                if let Some(record) = found.and_then(|path| self.paths.get(path as usize)) {
                    mark_all(
                        &record.recursive,
                        &mut self.watchers,
                        self.mark,
                        &mut self.told,
                    );
                }
            }
        }
        if self.told.is_empty() {
            return;
        }
        let spent = match kind {
            EventType::Created | EventType::DataChanged => DATA,
            EventType::ChildrenChanged => CHILD,
            EventType::Deleted => DATA | CHILD,
        };
        let mut told = std::mem::take(&mut self.told);
        for slot in told.drain(..) {
            if let Some(record) = self.watchers.get(slot as usize) {
                tell(record.id, kind, path);
            }
            if let Some(path) = found {
                let old = self.modes(path, slot);
                self.change(path, slot, old, old & !spent);
            }
        }
        told.shrink_to(TOLD_KEPT);
        self.told = told;
    }

    /// Whether `watcher` has a watch of `kind` on `path`.
    pub fn contains(&self, path: &str, watcher: Watcher, kind: WatchKind) -> bool {
        match (self.find_path(path), self.find_watcher(watcher)) {
            (Some(path), Some(slot)) => self.modes(path, slot) & kind.bits() != 0,
            _ => false,
        }
    }

    /// Whether there are no watches.
    pub const fn is_empty(&self) -> bool {
        self.path_index.is_empty()
    }

    /// How many watches there are in both tables (`DataTree.getWatchCount`); a persistent one counts
    /// in each.
    pub const fn watch_count(&self) -> usize {
        self.summary.watches + self.child_watches
    }

    /// The figures of the data table.
    pub const fn summary(&self) -> WatchSummary {
        self.summary
    }

    /// The paths in the data table, each with its watchers.
    pub fn by_path(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = Watcher>)> {
        let used = self.path_index.iter();
        used.filter_map(|path| self.paths.get(path as usize))
            .filter(|record| !(record.data.is_empty() && record.recursive.is_empty()))
            .map(|record| {
                let recursive_only = record
                    .recursive
                    .slots()
                    .filter(|&slot| record.data.modes(slot) == 0);
                let slots = record.data.slots().chain(recursive_only);
                let watchers = slots.filter_map(|slot| self.watchers.get(slot as usize));
                (&*record.path, watchers.map(|watcher| watcher.id))
            })
    }

    /// The watchers in the data table, each with its paths; with no path when all have fired.
    pub fn by_watcher(&self) -> impl Iterator<Item = (Watcher, impl Iterator<Item = &str>)> {
        let used = self.watcher_index.iter();
        used.filter_map(|slot| Some((slot, self.watchers.get(slot as usize)?)))
            .filter(|(_, record)| record.is_listed)
            .map(|(slot, record)| {
                let paths = record
                    .paths
                    .iter()
                    .filter_map(|path| self.paths.get(path as usize))
                    .filter(move |path| path.modes(slot) & IN_DATA != 0);
                (record.id, paths.map(|path| &*path.path))
            })
    }

    /// Bytes on the heap, the paths included; without what the allocator adds.
    pub fn heap_len(&self) -> usize {
        let paths = self.paths.iter().map(|record| {
            let sets = [&record.data, &record.child, &record.recursive];
            record.path.len() + sets.map(|set| set.0.heap_len()).iter().sum::<usize>()
        });
        let watchers = self.watchers.iter().map(|record| record.paths.heap_len());
        self.paths.capacity() * size_of::<WatchedPath>()
            + self.watchers.capacity() * size_of::<WatcherRecord>()
            + (self.paths_free.capacity() + self.watchers_free.capacity()) * size_of::<u32>()
            + self.path_index.heap_len()
            + self.watcher_index.heap_len()
            + paths.sum::<usize>()
            + watchers.sum::<usize>()
    }

    fn path_entry(&mut self, path: &str) -> u32 {
        let hash = self.hash(path);
        if let Some(found) = self.find_path_hashed(path, hash) {
            return found;
        }
        let record = WatchedPath {
            path: path.into(),
            hash,
            ..WatchedPath::default()
        };
        let entry = take_slot(&mut self.paths, &mut self.paths_free, record);
        let paths = &self.paths;
        self.path_index.insert(entry, |path| path_hash(paths, path));
        entry
    }

    fn watcher_entry(&mut self, watcher: Watcher) -> u32 {
        if let Some(found) = self.find_watcher(watcher) {
            return found;
        }
        let record = WatcherRecord {
            id: watcher,
            mark: self.mark,
            data_paths: 0,
            is_listed: false,
            paths: CompactSet::default(),
        };
        let slot = take_slot(&mut self.watchers, &mut self.watchers_free, record);
        let watchers = &self.watchers;
        self.watcher_index
            .insert(slot, |slot| watcher_hash(watchers, slot));
        slot
    }

    /// Moves a watcher's modes on a path from `old`, which they are, to `new`.
    fn change(&mut self, path: u32, slot: u32, old: u8, new: u8) {
        if old == new {
            return;
        }
        let (Some(record), Some(watcher)) = (
            self.paths.get_mut(path as usize),
            self.watchers.get_mut(slot as usize),
        ) else {
            return;
        };
        let had_data = !(record.data.is_empty() && record.recursive.is_empty());
        let had_recursive = !record.recursive.is_empty();
        record.data.change(slot, in_data(old), in_data(new));
        record.child.change(slot, in_child(old), in_child(new));
        record
            .recursive
            .change(slot, in_recursive(old), in_recursive(new));
        let has_data = !(record.data.is_empty() && record.recursive.is_empty());
        let has_recursive = !record.recursive.is_empty();

        self.summary.paths = self.summary.paths + usize::from(has_data) - usize::from(had_data);
        self.paths_recursive =
            self.paths_recursive + usize::from(has_recursive) - usize::from(had_recursive);
        let (was_data, is_data) = (old & IN_DATA != 0, new & IN_DATA != 0);
        self.summary.watches = self.summary.watches + usize::from(is_data) - usize::from(was_data);
        watcher.data_paths = watcher.data_paths + u32::from(is_data) - u32::from(was_data);
        if is_data && !watcher.is_listed {
            watcher.is_listed = true;
            self.summary.connections += 1;
        }
        let (was_child, is_child) = (old & IN_CHILD != 0, new & IN_CHILD != 0);
        self.child_watches = self.child_watches + usize::from(is_child) - usize::from(was_child);

        if old == 0 {
            watcher.paths.insert(path, spread);
        } else if new == 0 {
            watcher
                .paths
                .remove(spread(path), |other| other == path, spread);
            if record.is_unwatched() {
                self.free_path(path);
            }
        }
    }

    fn free_path(&mut self, path: u32) {
        let paths = &self.paths;
        let hash = path_hash(paths, path);
        self.path_index
            .remove(hash, |other| other == path, |path| path_hash(paths, path));
        if let Some(record) = self.paths.get_mut(path as usize) {
            *record = WatchedPath::default();
        }
        self.paths_free.push(path);
        if self.path_index.is_empty() {
            self.paths = Vec::new();
            self.paths_free = Vec::new();
        }
    }

    fn free_watcher(&mut self, slot: u32) {
        let watchers = &self.watchers;
        let hash = watcher_hash(watchers, slot);
        self.watcher_index.remove(
            hash,
            |other| other == slot,
            |slot| watcher_hash(watchers, slot),
        );
        if let Some(record) = self.watchers.get_mut(slot as usize) {
            record.paths = CompactSet::default();
        }
        self.watchers_free.push(slot);
    }

    fn next_mark(&mut self) {
        self.mark = self.mark.wrapping_add(1);
        if self.mark == 0 {
            // Marks from four thousand million events ago must not look new.
            for record in &mut self.watchers {
                record.mark = 0;
            }
            self.mark = 1;
        }
    }

    fn modes(&self, path: u32, slot: u32) -> u8 {
        let record = self.paths.get(path as usize);
        record.map_or(0, |record| record.modes(slot))
    }

    fn find_path(&self, path: &str) -> Option<u32> {
        if self.path_index.is_empty() {
            return None;
        }
        self.find_path_hashed(path, self.hash(path))
    }

    fn find_path_hashed(&self, path: &str, hash: u32) -> Option<u32> {
        self.path_index.find(hash, |found| {
            let record = self.paths.get(found as usize);
            record.is_some_and(|record| record.hash == hash && *record.path == *path)
        })
    }

    fn find_watcher(&self, watcher: Watcher) -> Option<u32> {
        self.watcher_index.find(spread(watcher.0), |slot| {
            let record = self.watchers.get(slot as usize);
            record.is_some_and(|record| record.id == watcher)
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "32 bits of the hash are enough"
    )]
    fn hash(&self, path: &str) -> u32 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(path.as_bytes());
        hasher.finish() as u32
    }
}

/// Arms the watches of a client that has reconnected, and tells it at once of those that would
/// have fired while it was away (`DataTree.setWatches`). Persistent ones are armed only: what they
/// missed is not known. The events are not checked against ACLs, nor are they in Apache.
pub fn set_watches(
    tree: &Tree,
    watches: &mut WatchTable,
    watcher: Watcher,
    request: &SetWatchesRequest<'_>,
    mut tell: impl FnMut(EventType, &str),
) {
    let seen = request.relative_zxid.to_wire();
    for path in &request.data {
        match tree.get(path) {
            None => tell(EventType::Deleted, path),
            Some(node) if node.mzxid() > seen => tell(EventType::DataChanged, path),
            Some(_) => {
                watches.add(path, watcher, WatchMode::Data);
            }
        }
    }
    for path in &request.exist {
        if tree.get(path).is_some() {
            tell(EventType::Created, path);
        } else {
            watches.add(path, watcher, WatchMode::Data);
        }
    }
    for path in &request.child {
        match tree.get(path) {
            None => tell(EventType::Deleted, path),
            Some(node) if node.pzxid() > seen => tell(EventType::ChildrenChanged, path),
            Some(_) => {
                watches.add(path, watcher, WatchMode::Child);
            }
        }
    }
    for path in &request.persistent {
        watches.add(path, watcher, WatchMode::Persistent);
    }
    for path in &request.persistent_recursive {
        watches.add(path, watcher, WatchMode::PersistentRecursive);
    }
}

impl WatchedPath {
    fn modes(&self, slot: u32) -> u8 {
        let mut modes = 0;
        let data = self.data.modes(slot);
        if data & STANDARD != 0 {
            modes |= DATA;
        }
        if data & LASTING != 0 {
            modes |= PERSISTENT;
        }
        if self.child.modes(slot) & STANDARD != 0 {
            modes |= CHILD;
        }
        if self.recursive.modes(slot) != 0 {
            modes |= RECURSIVE;
        }
        modes
    }

    const fn is_unwatched(&self) -> bool {
        self.data.is_empty() && self.child.is_empty() && self.recursive.is_empty()
    }
}

impl Members {
    fn change(&mut self, slot: u32, old: u32, new: u32) {
        let hash = spread(slot);
        let is_wanted = |member: u32| member >> MODE_BITS == slot;
        let hash_of = |member: u32| spread(member >> MODE_BITS);
        let member = (slot << MODE_BITS) | new;
        match (old, new) {
            (old, new) if old == new => {}
            (0, _) => self.0.insert(member, hash_of),
            (_, 0) => {
                self.0.remove(hash, is_wanted, hash_of);
            }
            _ => self.0.replace(hash, is_wanted, member),
        }
    }

    fn modes(&self, slot: u32) -> u32 {
        let found = self
            .0
            .find(spread(slot), |member| member >> MODE_BITS == slot);
        found.map_or(0, |member| member & (STANDARD | LASTING))
    }

    fn slots(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|member| member >> MODE_BITS)
    }

    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// Appends to `told` the watchers in `members` that do not bear `mark` yet, and marks them.
fn mark_all(members: &Members, watchers: &mut [WatcherRecord], mark: u32, told: &mut Vec<u32>) {
    for slot in members.slots() {
        if let Some(record) = watchers.get_mut(slot as usize)
            && record.mark != mark
        {
            record.mark = mark;
            told.push(slot);
        }
    }
}

fn take_slot<T>(slab: &mut Vec<T>, free: &mut Vec<u32>, record: T) -> u32 {
    if let Some(slot) = free.pop()
        && let Some(place) = slab.get_mut(slot as usize)
    {
        *place = record;
        return slot;
    }
    slab.push(record);
    u32::try_from(slab.len() - 1).expect("memory ends before four thousand million watches")
}

fn path_hash(paths: &[WatchedPath], path: u32) -> u32 {
    paths.get(path as usize).map_or(0, |record| record.hash)
}

fn watcher_hash(watchers: &[WatcherRecord], slot: u32) -> u32 {
    let record = watchers.get(slot as usize);
    record.map_or(0, |record| spread(record.id.0))
}

const fn in_data(modes: u8) -> u32 {
    standard(modes & DATA != 0) | lasting(modes & PERSISTENT != 0)
}

const fn in_child(modes: u8) -> u32 {
    standard(modes & CHILD != 0) | lasting(modes & PERSISTENT != 0)
}

const fn in_recursive(modes: u8) -> u32 {
    lasting(modes & RECURSIVE != 0)
}

const fn standard(is_set: bool) -> u32 {
    if is_set { STANDARD } else { 0 }
}

const fn lasting(is_set: bool) -> u32 {
    if is_set { LASTING } else { 0 }
}

/// The modes of a watcher on a path, as a set.
const DATA: u8 = 1;
const CHILD: u8 = 2;
const PERSISTENT: u8 = 4;
const RECURSIVE: u8 = 8;
/// What is in the data table.
const IN_DATA: u8 = DATA | PERSISTENT | RECURSIVE;
/// What is in the child table.
const IN_CHILD: u8 = CHILD | PERSISTENT;

/// The modes of a watcher in one set: gone once fired, and there to stay.
const STANDARD: u32 = 1;
const LASTING: u32 = 2;
const MODE_BITS: u32 = 2;

/// Room for those to tell of an event, kept for the next event.
const TOLD_KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> WatchTable {
        WatchTable::new(42)
    }

    fn fired(table: &mut WatchTable, kind: EventType, path: &str) -> Vec<u32> {
        let mut told = Vec::new();
        table.fire(kind, path, |watcher, told_kind, told_path| {
            assert_eq!((told_kind, told_path), (kind, path));
            told.push(watcher.0);
        });
        told.sort_unstable();
        told
    }

    const W: Watcher = Watcher(1);
    const V: Watcher = Watcher(u32::MAX);

    #[test]
    fn data_and_child_watches_fire_once() {
        let mut table = table();
        assert!(table.add("/a", W, WatchMode::Data));
        assert!(!table.add("/a", W, WatchMode::Data));
        assert!(table.add("/a", W, WatchMode::Child));
        assert!(table.add("/a", V, WatchMode::Child));
        assert_eq!(fired(&mut table, EventType::DataChanged, "/b"), [0; 0]);
        assert_eq!(fired(&mut table, EventType::DataChanged, "/a"), [1]);
        assert_eq!(fired(&mut table, EventType::DataChanged, "/a"), [0; 0]);
        assert_eq!(
            fired(&mut table, EventType::ChildrenChanged, "/a"),
            [1, u32::MAX]
        );
        assert_eq!(fired(&mut table, EventType::ChildrenChanged, "/a"), [0; 0]);
        assert!(table.is_empty());
        assert_eq!(table.watch_count(), 0);
    }

    #[test]
    fn a_deletion_uses_up_both_tables_with_one_event() {
        let mut table = table();
        table.add("/a", W, WatchMode::Data);
        table.add("/a", W, WatchMode::Child);
        table.add("/a", V, WatchMode::Child);
        assert_eq!(fired(&mut table, EventType::Deleted, "/a"), [1, u32::MAX]);
        assert!(table.is_empty());
    }

    #[test]
    fn persistent_watches_stay_and_see_both_tables() {
        let mut table = table();
        table.add("/a", W, WatchMode::Persistent);
        table.add("/a", W, WatchMode::Data);
        for _ in 0..2 {
            for kind in [
                EventType::Created,
                EventType::DataChanged,
                EventType::ChildrenChanged,
                EventType::Deleted,
            ] {
                assert_eq!(fired(&mut table, kind, "/a"), [1]);
            }
        }
        assert!(!table.contains("/a", W, WatchKind::Data));
        assert!(table.contains("/a", W, WatchKind::Persistent));
        assert_eq!(fired(&mut table, EventType::DataChanged, "/a/b"), [0; 0]);
        assert_eq!(table.watch_count(), 2);
    }

    #[test]
    fn recursive_watches_see_all_below_but_no_children_events() {
        let mut table = table();
        table.add("/", W, WatchMode::PersistentRecursive);
        table.add("/a", W, WatchMode::PersistentRecursive);
        table.add("/a/b", V, WatchMode::PersistentRecursive);
        for kind in [
            EventType::Created,
            EventType::DataChanged,
            EventType::Deleted,
        ] {
            assert_eq!(fired(&mut table, kind, "/a/b/c"), [1, u32::MAX]);
            assert_eq!(fired(&mut table, kind, "/a"), [1]);
            assert_eq!(fired(&mut table, kind, "/"), [1]);
        }
        assert_eq!(fired(&mut table, EventType::ChildrenChanged, "/a"), [0; 0]);
        // Told by way of an ancestor, a child watch of the path is used up without an event of its own.
        table.add("/a/x", W, WatchMode::Child);
        assert_eq!(fired(&mut table, EventType::Deleted, "/a/x"), [1]);
        assert!(!table.contains("/a/x", W, WatchKind::Any));
    }

    #[test]
    fn watches_are_removed_by_kind() {
        let mut table = table();
        let modes = [
            (WatchMode::Data, WatchKind::Data),
            (WatchMode::Child, WatchKind::Child),
            (WatchMode::Persistent, WatchKind::Persistent),
            (
                WatchMode::PersistentRecursive,
                WatchKind::PersistentRecursive,
            ),
        ];
        for (mode, _) in modes {
            table.add("/a", W, mode);
        }
        for (_, kind) in modes {
            assert!(table.contains("/a", W, kind));
            assert!(!table.contains("/a", V, kind));
            assert_eq!(table.remove("/a", W, kind), Ok(()));
            assert_eq!(table.remove("/a", W, kind), Err(ZkError::NoWatcher));
        }
        assert!(table.is_empty());
        for (mode, _) in modes {
            table.add("/a", W, mode);
        }
        assert_eq!(
            table.remove("/b", W, WatchKind::Any),
            Err(ZkError::NoWatcher)
        );
        assert_eq!(table.remove("/a", W, WatchKind::Any), Ok(()));
        assert!(table.is_empty());
    }

    #[test]
    fn kinds_and_modes_are_the_protocols() {
        let kinds: Vec<_> = (0..=6).map(WatchKind::from_code).collect();
        assert_eq!(
            kinds,
            [
                Err(ZkError::MarshallingError),
                Ok(WatchKind::Child),
                Ok(WatchKind::Data),
                Ok(WatchKind::Any),
                Ok(WatchKind::Persistent),
                Ok(WatchKind::PersistentRecursive),
                Err(ZkError::MarshallingError),
            ]
        );
        let modes: Vec<_> = (-1..=2).map(WatchMode::from_add_watch).collect();
        assert_eq!(
            modes,
            [
                Err(ZkError::MarshallingError),
                Ok(WatchMode::Persistent),
                Ok(WatchMode::PersistentRecursive),
                Err(ZkError::MarshallingError),
            ]
        );
    }

    #[test]
    fn the_summary_counts_the_data_table() {
        let mut table = table();
        table.add("/c", V, WatchMode::Child);
        assert_eq!(table.summary(), WatchSummary::default());
        table.add("/a", W, WatchMode::Data);
        table.add("/a", W, WatchMode::PersistentRecursive);
        table.add("/b", W, WatchMode::Data);
        table.add("/b", V, WatchMode::Persistent);
        let expect = WatchSummary {
            connections: 2,
            paths: 2,
            watches: 3,
        };
        assert_eq!(table.summary(), expect);
        table.remove("/a", W, WatchKind::Any).unwrap();
        assert_eq!(
            fired(&mut table, EventType::DataChanged, "/b"),
            [1, u32::MAX]
        );
        // ZK: watcher 1 has no data watch left and is still counted, since its last one fired.
        let expect = WatchSummary {
            connections: 2,
            paths: 1,
            watches: 1,
        };
        assert_eq!(table.summary(), expect);
        table.remove("/b", V, WatchKind::Any).unwrap();
        table.remove_watcher(W);
        let expect = WatchSummary {
            connections: 0,
            paths: 0,
            watches: 0,
        };
        assert_eq!(table.summary(), expect);
        assert!(table.contains("/c", V, WatchKind::Child));
    }

    #[test]
    fn marks_survive_their_overflow() {
        let mut table = table();
        table.add("/a", W, WatchMode::Persistent);
        table.mark = u32::MAX - 1;
        for _ in 0..4 {
            assert_eq!(fired(&mut table, EventType::DataChanged, "/a"), [1]);
        }
    }

    #[test]
    fn a_watch_takes_at_most_24_bytes_where_there_are_many() {
        for (watchers, paths) in [(300, 300), (20_000, 8), (60, 2_000)] {
            let mut table = table();
            for path in 0..paths {
                for watcher in 0..watchers {
                    table.add(
                        &format!("/app/node-{path}"),
                        Watcher(watcher),
                        WatchMode::Data,
                    );
                }
            }
            let count = table.watch_count();
            assert_eq!(count, watchers as usize * paths);
            let each = table.heap_len() as f64 / count as f64;
            assert!(each <= 24.0, "{watchers} x {paths}: {each:.1} bytes");
            for watcher in 0..watchers {
                table.remove_watcher(Watcher(watcher));
            }
            assert!(table.is_empty());
            assert_eq!(table.watch_count(), 0);
        }
    }
}
