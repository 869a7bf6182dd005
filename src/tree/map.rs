//! A persistent ordered map: a B+ tree whose blocks are shared between clones and copied when written.
//!
//! Invariants:
//! - Cloning a map copies one pointer. A write to a map that shares blocks with a clone copies the
//!   blocks on the way to the entry and no other: at most `depth` of them, each of at most
//!   [`LEAF_MAX`] entries or [`INNER_MAX`] links. A write to blocks of its own changes them in place.
//! - Entries are in the order of their keys, and keys are unique.
//! - All leaves have the same depth; every leaf has at least one entry and every inner block at least
//!   one link.
//! - The separator of a link is not above any key below it, and above every key left of it.
//!
//! A key is a number and a name. The number alone tells nearly all keys apart, so that a search reads
//! names (which stand elsewhere) only at the end. [`head_of`] derives the number from a name.

use std::cmp::Ordering;
use std::fmt;
use std::iter::FusedIterator;

use triomphe::{Arc, HeaderSlice};

/// The most entries of a leaf. Copying a block touches the reference counts of all it holds, so blocks
/// are small.
pub(crate) const LEAF_MAX: usize = 18;
/// The most links of an inner block.
pub(crate) const INNER_MAX: usize = 8;
/// A leaf with fewer entries is joined with a neighbour when both fit well into one.
const LEAF_FEW: usize = LEAF_MAX / 4;
/// As [`LEAF_FEW`], for the links of an inner block.
const INNER_FEW: usize = INNER_MAX / 4;
/// How full joined leaves may be, so that the next insert does not split them again.
const LEAF_JOINED_MAX: usize = LEAF_MAX * 3 / 4;
/// As [`LEAF_JOINED_MAX`], for inner blocks.
const INNER_JOINED_MAX: usize = INNER_MAX * 3 / 4;

/// What an entry is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key<'a> {
    pub(crate) head: u64,
    pub(crate) name: &'a [u8],
}

impl<'a> Key<'a> {
    /// The key of something that has a name.
    pub(crate) fn named(name: &'a str) -> Self {
        Self {
            head: head_of(name.as_bytes()),
            name: name.as_bytes(),
        }
    }

    /// The key of something that has a number and no name.
    pub(crate) const fn number(number: u64) -> Self {
        Self {
            head: number,
            name: &[],
        }
    }
}

/// What a map holds. Cloning one must be cheap: it happens when a leaf is copied.
pub(crate) trait Entry: Clone {
    fn head(&self) -> u64;
    fn name(&self) -> &[u8];

    fn compare(&self, key: &Key<'_>) -> Ordering {
        self.head()
            .cmp(&key.head)
            .then_with(|| self.name().cmp(key.name))
    }
}

/// The number of a name's key: a hash of all but the last four bytes, then those four bytes.
///
/// Names that only count up (`lock-0000000041`, `lock-0000000042`) are neighbours, so that a run of
/// sequential creates fills one leaf after the other; names that differ elsewhere are scattered. Names
/// made to collide cost comparisons of names, at most those of one leaf and of the blocks above it.
pub(crate) fn head_of(name: &[u8]) -> u64 {
    let (front, tail) = name.split_at(name.len().saturating_sub(4));
    let tail = match <[u8; 4]>::try_from(tail) {
        Ok(tail) => u32::from_be_bytes(tail).into(),
        Err(_) => number_of(tail),
    };
    u64::from(hash(front)) << 32 | tail
}

fn hash(bytes: &[u8]) -> u32 {
    // Two odd numbers with well mixed bits (fractions of pi).
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    const START: u64 = 0x243f_6a88_85a3_08d3;
    let mut state = START ^ bytes.len() as u64;
    let mut mix = |word: u64| state = fold(u128::from(state ^ word) * u128::from(FACTOR));
    let (words, rest) = bytes.as_chunks();
    for word in words {
        mix(u64::from_be_bytes(*word));
    }
    if !rest.is_empty() {
        mix(number_of(rest));
    }
    (fold(u128::from(state) * u128::from(FACTOR)) >> 32) as u32
}

/// At most eight bytes as a number.
fn number_of(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
const fn fold(wide: u128) -> u64 {
    (wide >> 64) as u64 ^ wide as u64
}

/// The map.
pub(crate) struct Map<E> {
    root: Option<Link<E>>,
    len: usize,
}

type Leaf<E> = HeaderSlice<u32, [Option<E>]>;

enum Link<E> {
    Leaf(Arc<Leaf<E>>),
    Inner(Arc<Inner<E>>),
}

/// The names of an inner block's separators.
type Names = [Option<Box<[u8]>>; INNER_MAX];

struct Inner<E> {
    len: usize,
    /// The separators' numbers, one for each link; the first is not used.
    heads: [u64; INNER_MAX],
    /// The separators' names, where one has a name.
    names: Option<Box<Names>>,
    links: [Option<Link<E>>; INNER_MAX],
}

/// A bound between two links. The name is there only where the number is not enough.
#[derive(Clone)]
struct Separator {
    head: u64,
    name: Option<Box<[u8]>>,
}

/// A link and the separator left of it.
type Part<E> = (Separator, Link<E>);

enum Inserted<E> {
    /// There is an entry of this key; nothing was changed.
    Found(E),
    Added,
    /// The block was full: what did not stay follows, with its least key.
    Split(Separator, Link<E>),
}

impl<E> Clone for Map<E> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            len: self.len,
        }
    }
}

impl<E> Clone for Link<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(leaf.clone()),
            Self::Inner(inner) => Self::Inner(inner.clone()),
        }
    }
}

impl<E> Clone for Inner<E> {
    fn clone(&self) -> Self {
        Self {
            len: self.len,
            heads: self.heads,
            names: self.names.clone(),
            links: self.links.clone(),
        }
    }
}

impl<E> Default for Map<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> fmt::Debug for Map<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<E: Entry> Map<E> {
    /// A map of `entries`, which must be in order and unique.
    pub(crate) fn from_sorted(entries: Vec<E>) -> Self {
        let len = entries.len();
        let mut level: Vec<Part<E>> = Vec::with_capacity(len.div_ceil(LEAF_MAX));
        let mut entries = entries.into_iter();
        let mut left = len;
        while left > 0 {
            let count = left.min(LEAF_MAX);
            let leaf = leaf_of(entries.by_ref().take(count), count);
            let before = match level.last() {
                Some((_, Link::Leaf(before))) => last(before),
                _ => None,
            };
            level.push((separator(before, first(&leaf)), Link::Leaf(leaf)));
            left -= count;
        }
        while level.len() > 1 {
            level = level_above(level);
        }
        Self {
            root: level.pop().map(|(_, link)| link),
            len,
        }
    }

    /// Puts `entry` in its place and returns the one that had its key.
    pub(crate) fn insert(&mut self, entry: E) -> Option<E> {
        let entry = self.insert_new(entry).err()?;
        let place = self.get_mut(&Key {
            head: entry.head(),
            name: entry.name(),
        });
        Some(std::mem::replace(place.expect("it was just found"), entry))
    }

    /// Puts `entry` in its place, or gives it back if there is one that has its key. Copies what is shared on the way
    /// in either case.
    pub(crate) fn insert_new(&mut self, entry: E) -> Result<(), E> {
        let Some(root) = &mut self.root else {
            self.root = Some(Link::Leaf(leaf_of(std::iter::once(entry), 1)));
            self.len = 1;
            return Ok(());
        };
        match insert(root, entry) {
            Inserted::Found(entry) => return Err(entry),
            Inserted::Added => {}
            Inserted::Split(separator, right) => {
                let none = Separator {
                    head: 0,
                    name: None,
                };
                let parts = [(none, root.clone()), (separator, right)];
                *root = Link::Inner(Arc::new(Inner::of(parts)));
            }
        }
        self.len += 1;
        Ok(())
    }

    /// Takes the entry of `key` out.
    pub(crate) fn remove(&mut self, key: &Key<'_>) -> Option<E> {
        // A missing key must not copy blocks.
        self.get(key)?;
        let root = self.root.as_mut()?;
        let removed = remove(root, key);
        if removed.is_some() {
            self.len -= 1;
        }
        match root {
            Link::Leaf(leaf) if leaf.header == 0 => self.root = None,
            Link::Inner(inner) if inner.len == 1 => self.root = inner.links[0].clone(),
            _ => {}
        }
        removed
    }

    /// The entry of `key`, to be changed. Copies what is shared on the way, so look with
    /// [`Map::get`] first when it may be missing.
    pub(crate) fn get_mut(&mut self, key: &Key<'_>) -> Option<&mut E> {
        let mut link = self.root.as_mut()?;
        loop {
            match link {
                Link::Inner(inner) => {
                    let at = inner.position(key);
                    link = inner_mut(inner).links[at].as_mut()?;
                }
                Link::Leaf(leaf) => {
                    let at = search(leaf, key).ok()?;
                    return leaf_mut(leaf).slice.get_mut(at)?.as_mut();
                }
            }
        }
    }

    /// The entry of `key`.
    pub(crate) fn get(&self, key: &Key<'_>) -> Option<&E> {
        let mut link = self.root.as_ref()?;
        loop {
            match link {
                Link::Inner(inner) => link = inner.links[inner.position(key)].as_ref()?,
                Link::Leaf(leaf) => {
                    return leaf.slice.get(search(leaf, key).ok()?)?.as_ref();
                }
            }
        }
    }
}

impl<E> Map<E> {
    /// An empty map.
    pub(crate) const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// How many entries there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries in their order.
    pub(crate) fn iter(&self) -> Iter<'_, E> {
        let mut iter = Iter {
            above: Vec::new(),
            leaf: [].iter(),
            left: self.len,
        };
        if let Some(root) = &self.root {
            iter.descend(root);
        }
        iter
    }

    /// Drops the map, giving the entries that no other map holds to `take`, and leaving the others
    /// where they are.
    pub(crate) fn drop_own(self, take: &mut impl FnMut(E)) {
        if let Some(root) = self.root {
            drop_own(root, take);
        }
    }
}

impl<E> Inner<E> {
    /// A block of at most [`INNER_MAX`] links.
    fn of(parts: impl IntoIterator<Item = Part<E>>) -> Self {
        let mut inner = Self {
            len: 0,
            heads: [0; INNER_MAX],
            names: None,
            links: [const { None }; INNER_MAX],
        };
        for (separator, link) in parts {
            inner.insert(inner.len, separator, link);
        }
        inner
    }

    /// Puts a link in the place `at`; there is room for it.
    fn insert(&mut self, at: usize, separator: Separator, link: Link<E>) {
        self.heads[at..=self.len].rotate_right(1);
        self.heads[at] = separator.head;
        self.links[at..=self.len].rotate_right(1);
        self.links[at] = Some(link);
        if separator.name.is_some() || self.names.is_some() {
            let names = self.names.get_or_insert_default();
            names[at..=self.len].rotate_right(1);
            names[at] = separator.name;
        }
        self.len += 1;
    }

    /// Takes the link at `at` out, with the separator left of it.
    fn take(&mut self, at: usize) -> Option<Part<E>> {
        let link = self.links[at].take()?;
        let separator = Separator {
            head: self.heads[at],
            name: self.names.as_mut().and_then(|names| names[at].take()),
        };
        self.heads[at..self.len].rotate_left(1);
        self.links[at..self.len].rotate_left(1);
        if let Some(names) = &mut self.names {
            names[at..self.len].rotate_left(1);
        }
        self.len -= 1;
        Some((separator, link))
    }

    /// Takes all links out.
    fn take_all(&mut self) -> Vec<Part<E>> {
        let mut parts: Vec<Part<E>> = (0..self.len).rev().map_while(|i| self.take(i)).collect();
        parts.reverse();
        parts
    }

    /// Which link leads to `key`.
    fn position(&self, key: &Key<'_>) -> usize {
        let heads = &self.heads[1..self.len];
        let Some(names) = &self.names else {
            // A block is short: counting takes no branches to guess.
            return heads.iter().filter(|head| **head <= key.head).count();
        };
        // Numbers below the key's, then those equal to it whose name is not above.
        let below = heads.partition_point(|head| *head < key.head);
        let equal = heads[below..]
            .iter()
            .zip(&names[below + 1..])
            .take_while(|(head, name)| {
                **head == key.head && name.as_deref().unwrap_or(&[]) <= key.name
            });
        below + equal.count()
    }
}

fn insert<E: Entry>(link: &mut Link<E>, entry: E) -> Inserted<E> {
    match link {
        Link::Leaf(leaf) => insert_into_leaf(leaf, entry),
        Link::Inner(inner) => {
            let at = inner.position(&Key {
                head: entry.head(),
                name: entry.name(),
            });
            let inner = inner_mut(inner);
            let link = inner.links[at].as_mut();
            match insert(link.expect("the first `len` links are there"), entry) {
                Inserted::Split(separator, right) => {
                    insert_into_inner(inner, at + 1, separator, right)
                }
                done => done,
            }
        }
    }
}

fn insert_into_leaf<E: Entry>(leaf: &mut Arc<Leaf<E>>, entry: E) -> Inserted<E> {
    let key = Key {
        head: entry.head(),
        name: entry.name(),
    };
    let Err(at) = search(leaf, &key) else {
        return Inserted::Found(entry);
    };
    let len = leaf.header as usize;
    if len == LEAF_MAX {
        return split_leaf(leaf, at, entry);
    }
    if leaf.slice.len() > len
        && let Some(own) = Arc::get_mut(leaf)
    {
        own.slice[at..=len].rotate_right(1);
        own.slice[at] = Some(entry);
        own.header += 1;
        return Inserted::Added;
    }
    let old = take_entries(leaf);
    let mut entry = Some(entry);
    let mut old = old.into_iter();
    let entries = (0..=len).filter_map(|i| if i == at { entry.take() } else { old.next() });
    *leaf = leaf_of(entries, len + 1);
    Inserted::Added
}

/// Splits a full leaf. A run of ascending keys leaves full leaves behind, instead of half empty ones.
fn split_leaf<E: Entry>(leaf: &mut Arc<Leaf<E>>, at: usize, entry: E) -> Inserted<E> {
    let len = leaf.header as usize;
    if at == len {
        let right = leaf_of(std::iter::once(entry), 1);
        let separator = separator(last(leaf), first(&right));
        return Inserted::Split(separator, Link::Leaf(right));
    }
    let mut entries = take_entries(leaf);
    entries.insert(at, entry);
    let half = entries.len().div_ceil(2);
    let right = entries.split_off(half);
    let (left_len, right_len) = (entries.len(), right.len());
    *leaf = leaf_of(entries.into_iter(), left_len);
    let right = leaf_of(right.into_iter(), right_len);
    let separator = separator(last(leaf), first(&right));
    Inserted::Split(separator, Link::Leaf(right))
}

/// Puts a link in the place `at` of a block, and splits the block if it is full.
fn insert_into_inner<E>(
    inner: &mut Inner<E>,
    at: usize,
    separator: Separator,
    link: Link<E>,
) -> Inserted<E> {
    if inner.len < INNER_MAX {
        inner.insert(at, separator, link);
        return Inserted::Added;
    }
    if at == INNER_MAX {
        let right = Inner::of([(separator.clone(), link)]);
        return Inserted::Split(separator, Link::Inner(Arc::new(right)));
    }
    let mut parts = inner.take_all();
    parts.insert(at, (separator, link));
    let right = parts.split_off(parts.len().div_ceil(2));
    *inner = Inner::of(parts);
    let separator = right[0].0.clone();
    Inserted::Split(separator, Link::Inner(Arc::new(Inner::of(right))))
}

fn remove<E: Entry>(link: &mut Link<E>, key: &Key<'_>) -> Option<E> {
    match link {
        Link::Leaf(leaf) => {
            let at = search(leaf, key).ok()?;
            Some(remove_from_leaf(leaf, at))
        }
        Link::Inner(inner) => {
            let at = inner.position(key);
            let inner = inner_mut(inner);
            let removed = remove(inner.links[at].as_mut()?, key);
            inner.tidy(at);
            removed
        }
    }
}

fn remove_from_leaf<E: Entry>(leaf: &mut Arc<Leaf<E>>, at: usize) -> E {
    let len = leaf.header as usize;
    // A leaf of its own that is not far too large keeps its place.
    if class_of(len - 1) * 2 >= leaf.slice.len()
        && let Some(own) = Arc::get_mut(leaf)
    {
        let removed = own.slice[at].take();
        own.slice[at..len].rotate_left(1);
        own.header -= 1;
        return removed.expect("the first `header` slots are filled");
    }
    let mut entries = take_entries(leaf);
    let removed = entries.remove(at);
    *leaf = leaf_of(entries.into_iter(), len - 1);
    removed
}

impl<E: Entry> Inner<E> {
    /// Removes the block at `at` if it is empty, and joins it with a neighbour if it has become small.
    fn tidy(&mut self, at: usize) {
        let few = match &self.links[at] {
            Some(Link::Leaf(leaf)) if leaf.header > 0 => (leaf.header as usize) < LEAF_FEW,
            Some(Link::Inner(inner)) if inner.len > 0 => inner.len < INNER_FEW,
            _ => {
                self.take(at);
                return;
            }
        };
        if few && at + 1 < self.len {
            self.join(at);
        } else if few && at > 0 {
            self.join(at - 1);
        }
    }

    /// Joins the blocks at `at` and `at + 1` if there is room.
    fn join(&mut self, at: usize) {
        match &mut self.links[at..at + 2] {
            [Some(Link::Leaf(left)), Some(Link::Leaf(right))] => {
                let len = (left.header + right.header) as usize;
                if len > LEAF_JOINED_MAX {
                    return;
                }
                let mut entries = take_entries(left);
                entries.append(&mut take_entries(right));
                *left = leaf_of(entries.into_iter(), len);
                self.take(at + 1);
            }
            [Some(Link::Inner(left)), Some(Link::Inner(right))] => {
                if left.len + right.len > INNER_JOINED_MAX {
                    return;
                }
                let parts = inner_mut(right).take_all();
                let block = self.take(at + 1);
                if let (Some((separator, _)), Some(Link::Inner(left))) =
                    (block, &mut self.links[at])
                {
                    let left = inner_mut(left);
                    // The first link's own separator bounds nothing: its block's does.
                    let mut separator = Some(separator);
                    for (own, link) in parts {
                        left.insert(left.len, separator.take().unwrap_or(own), link);
                    }
                }
            }
            _ => {}
        }
    }
}

fn level_above<E>(level: Vec<Part<E>>) -> Vec<Part<E>> {
    let mut above = Vec::with_capacity(level.len().div_ceil(INNER_MAX));
    let mut left = level.len();
    let mut level = level.into_iter();
    while left > 0 {
        let count = left.min(INNER_MAX);
        let inner = Inner::of(level.by_ref().take(count));
        // The first link's separator bounds the whole block from its left neighbour.
        let separator = Separator {
            head: inner.heads[0],
            name: inner.names.as_ref().and_then(|names| names[0].clone()),
        };
        above.push((separator, Link::Inner(Arc::new(inner))));
        left -= count;
    }
    above
}

fn drop_own<E>(link: Link<E>, take: &mut impl FnMut(E)) {
    match link {
        Link::Leaf(mut leaf) => {
            if let Some(leaf) = Arc::get_mut(&mut leaf) {
                leaf.slice
                    .iter_mut()
                    .filter_map(Option::take)
                    .for_each(take);
            }
        }
        Link::Inner(mut inner) => {
            if let Some(inner) = Arc::get_mut(&mut inner) {
                for link in inner.links.iter_mut().filter_map(Option::take) {
                    drop_own(link, take);
                }
            }
        }
    }
}

/// How many slots a leaf of `len` entries gets: sizes that leave little of an allocator's block unused (with
/// 24 bytes for a child and 16 for the leaf: 112, 160, 208, 256, 304, 376 and 448).
const fn class_of(len: usize) -> usize {
    match len {
        0..=2 => len,
        3..=4 => 4,
        5..=6 => 6,
        7..=8 => 8,
        9..=10 => 10,
        11..=12 => 12,
        13..=15 => 15,
        _ => LEAF_MAX,
    }
}

fn leaf_of<E>(entries: impl Iterator<Item = E>, len: usize) -> Arc<Leaf<E>> {
    let slots = Slots {
        entries,
        left: class_of(len),
    };
    #[expect(clippy::cast_possible_truncation, reason = "a leaf has few entries")]
    Arc::from_header_and_iter(len as u32, slots)
}

/// `entries`, then empty slots up to the leaf's size.
struct Slots<I> {
    entries: I,
    left: usize,
}

impl<E, I: Iterator<Item = E>> Iterator for Slots<I> {
    type Item = Option<E>;

    fn next(&mut self) -> Option<Option<E>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.entries.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<E, I: Iterator<Item = E>> ExactSizeIterator for Slots<I> {}

/// The entries of `leaf`: moved out of it when it is not shared, else cloned.
fn take_entries<E: Entry>(leaf: &mut Arc<Leaf<E>>) -> Vec<E> {
    let mut entries = Vec::with_capacity(leaf.header as usize + 1);
    if let Some(own) = Arc::get_mut(leaf) {
        entries.extend(own.slice.iter_mut().filter_map(Option::take));
        own.header = 0;
    } else {
        copied::leaf();
        entries.extend(leaf.slice.iter().flatten().cloned());
    }
    entries
}

fn leaf_mut<E: Entry>(leaf: &mut Arc<Leaf<E>>) -> &mut Leaf<E> {
    if !leaf.is_unique() {
        copied::leaf();
        *leaf = leaf_of(leaf.slice.iter().flatten().cloned(), leaf.header as usize);
    }
    Arc::get_mut(leaf).expect("it was just found or made to be unshared")
}

fn inner_mut<E>(inner: &mut Arc<Inner<E>>) -> &mut Inner<E> {
    if !inner.is_unique() {
        copied::inner();
    }
    Arc::make_mut(inner)
}

fn search<E: Entry>(leaf: &Leaf<E>, key: &Key<'_>) -> Result<usize, usize> {
    // As in [`Inner::position`], counting takes no branches to guess; names are looked at only then.
    let is_below = |slot: &&Option<E>| slot.as_ref().is_some_and(|it| it.head() < key.head);
    let mut at = leaf.slice.iter().filter(is_below).count();
    while let Some(Some(entry)) = leaf.slice.get(at) {
        match entry.compare(key) {
            Ordering::Less => at += 1,
            Ordering::Equal => return Ok(at),
            Ordering::Greater => break,
        }
    }
    Err(at)
}

fn first<E>(leaf: &Leaf<E>) -> Option<&E> {
    leaf.slice.first()?.as_ref()
}

fn last<E>(leaf: &Leaf<E>) -> Option<&E> {
    leaf.slice
        .get((leaf.header as usize).checked_sub(1)?)?
        .as_ref()
}

/// What stands between `left` and `right`; both are there, since no leaf is empty.
fn separator<E: Entry>(left: Option<&E>, right: Option<&E>) -> Separator {
    let head = right.map_or(0, Entry::head);
    let same = left.is_some_and(|left| left.head() == head);
    Separator {
        head,
        name: right.filter(|_| same).map(|right| right.name().into()),
    }
}

/// The entries of a [`Map`] in their order.
#[derive(Debug)]
pub(crate) struct Iter<'a, E> {
    /// The links still to be visited, from the root's down.
    above: Vec<std::slice::Iter<'a, Option<Link<E>>>>,
    leaf: std::slice::Iter<'a, Option<E>>,
    left: usize,
}

impl<E> fmt::Debug for Link<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf(_) => "Leaf",
            Self::Inner(_) => "Inner",
        })
    }
}

impl<'a, E> Iter<'a, E> {
    fn descend(&mut self, link: &'a Link<E>) {
        let mut link = link;
        loop {
            match link {
                Link::Leaf(leaf) => {
                    self.leaf = leaf.slice.iter();
                    return;
                }
                Link::Inner(inner) => {
                    let mut links = inner.links.iter();
                    let Some(Some(next)) = links.next() else {
                        return;
                    };
                    self.above.push(links);
                    link = next;
                }
            }
        }
    }
}

impl<'a, E> Iterator for Iter<'a, E> {
    type Item = &'a E;

    fn next(&mut self) -> Option<&'a E> {
        loop {
            if let Some(Some(entry)) = self.leaf.next() {
                self.left -= 1;
                return Some(entry);
            }
            let link = loop {
                match self.above.last_mut()?.next() {
                    Some(Some(link)) => break link,
                    _ => {
                        self.above.pop();
                    }
                }
            };
            self.descend(link);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<E> ExactSizeIterator for Iter<'_, E> {}
impl<E> FusedIterator for Iter<'_, E> {}

/// Counts the blocks that were copied because they are shared. Only tests count.
pub(crate) mod copied {
    #[cfg(test)]
    thread_local! {
        static LEAVES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
        static INNERS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
        static NODES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    pub(super) fn leaf() {
        #[cfg(test)]
        LEAVES.set(LEAVES.get() + 1);
    }

    pub(super) fn inner() {
        #[cfg(test)]
        INNERS.set(INNERS.get() + 1);
    }

    pub(crate) fn node() {
        #[cfg(test)]
        NODES.set(NODES.get() + 1);
    }

    /// Leaves, inner blocks and znodes copied by this thread since it last asked.
    #[cfg(test)]
    pub(crate) fn take() -> (usize, usize, usize) {
        (LEAVES.take(), INNERS.take(), NODES.take())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Pair(u64, String, u32);

    impl Entry for Pair {
        fn head(&self) -> u64 {
            self.0
        }
        fn name(&self) -> &[u8] {
            self.1.as_bytes()
        }
    }

    fn key(pair: &(u64, String)) -> Key<'_> {
        Key {
            head: pair.0,
            name: pair.1.as_bytes(),
        }
    }

    fn check(map: &Map<Pair>, model: &BTreeMap<(u64, String), u32>) {
        assert_eq!(map.len(), model.len());
        let held = map
            .iter()
            .map(|pair| ((pair.0, pair.1.clone()), pair.2))
            .collect::<Vec<_>>();
        let wanted = model
            .iter()
            .map(|(key, value)| (key.clone(), *value))
            .collect::<Vec<_>>();
        assert_eq!(held, wanted);
        for (wanted, value) in model {
            assert_eq!(map.get(&key(wanted)).map(|pair| pair.2), Some(*value));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_map_behaves_as_a_btree_map_and_clones_never_change(
            steps in prop::collection::vec((0_u8..10, 0_u64..9, 0_u8..40, any::<u32>()), 0..1500),
        ) {
            let mut map = Map::default();
            let mut model = BTreeMap::new();
            let mut kept = Vec::new();
            for (step, head, name, value) in steps {
                let name = (head, format!("n{name}"));
                match step {
                    0..=4 => {
                        let old = map.insert(Pair(name.0, name.1.clone(), value));
                        prop_assert_eq!(old.map(|pair| pair.2), model.insert(name, value));
                    }
                    5..=7 => {
                        let old = map.remove(&key(&name));
                        prop_assert_eq!(old.map(|pair| pair.2), model.remove(&name));
                    }
                    8 => {
                        if let Some(pair) = map.get_mut(&key(&name)) {
                            pair.2 = value;
                            model.insert(name, value);
                        }
                    }
                    _ if kept.len() < 8 => kept.push((map.clone(), model.clone())),
                    _ => {}
                }
            }
            check(&map, &model);
            for (map, model) in &kept {
                check(map, model);
            }
            let sorted = Map::from_sorted(map.iter().cloned().collect());
            check(&sorted, &model);
        }
    }

    #[test]
    fn a_million_ascending_entries_fill_their_leaves() {
        let mut map = Map::default();
        for i in 0..100_000_u32 {
            map.insert(Pair(u64::from(i), String::new(), i));
        }
        assert!(map.iter().map(|pair| pair.2).eq(0..100_000));
        for i in (0..100_000_u32).filter(|i| i % 100 != 0) {
            assert!(map.remove(&Key::number(u64::from(i))).is_some());
        }
        assert!(map.iter().map(|pair| pair.2).eq((0..1000).map(|i| i * 100)));
    }

    #[test]
    fn the_first_write_after_a_clone_copies_one_block_per_level() {
        let mut map = Map::default();
        for i in 0..200_000_u64 {
            map.insert(Pair(
                i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                String::new(),
                0,
            ));
        }
        let depth = 9;
        let old = map.clone();
        copied::take();
        map.insert(Pair(77, String::new(), 1));
        let (leaves, inners, _) = copied::take();
        assert_eq!(leaves, 1);
        assert!((1..depth).contains(&inners), "{inners} inner blocks copied");
        map.insert(Pair(77, String::new(), 2));
        assert_eq!(copied::take(), (0, 0, 0));
        assert_eq!(old.len() + 1, map.len());
    }

    #[test]
    fn names_that_count_up_are_neighbours() {
        let a = head_of(b"lock-0000000041");
        let b = head_of(b"lock-0000000042");
        assert_eq!(a + 1, b);
        assert_ne!(
            head_of(b"lock-0000000041") >> 32,
            head_of(b"lick-0000000041") >> 32
        );
        assert_eq!(head_of(b""), u64::from(hash(b"")) << 32);
    }
}
