//! A set of small integers in about five to nine bytes each: open addressing over `u32`s, linear
//! probing, no tombstones.
//!
//! What an element's key and its hash are, the caller says with each call: the same few lines serve
//! as the members of a path, as the paths of a watcher and as an index into a slab.
//!
//! Invariants:
//! - `slots.len()` is 0 or a power of two, and at least one slot is empty.
//! - With `slots.len() == 0` the set has at most one element, kept in `only`.
//! - Between an element's home slot and the slot it stands in, no slot is empty.
//! - The order of iteration depends on nothing but the calls made.

/// No element; never stored.
const EMPTY: u32 = u32::MAX;
/// Slots of the smallest table.
const SLOTS_MIN: usize = 4;

/// The set. Elements are below [`u32::MAX`].
#[derive(Clone, Debug)]
pub(crate) struct CompactSet {
    slots: Box<[u32]>,
    len: u32,
    only: u32,
}

impl Default for CompactSet {
    fn default() -> Self {
        Self {
            slots: Box::default(),
            len: 0,
            only: EMPTY,
        }
    }
}

impl CompactSet {
    /// How many elements there are.
    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let only = (self.only != EMPTY).then_some(self.only);
        let slots = self.slots.iter().copied().filter(|&slot| slot != EMPTY);
        only.into_iter().chain(slots)
    }

    /// The element with this hash of which `is_wanted` is true.
    pub(crate) fn find(&self, hash: u32, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let element = match self.position(hash, is_wanted)? {
            Position::Only => self.only,
            Position::Slot(at) => self.slot(at),
        };
        Some(element)
    }

    /// Adds an element that is not there yet.
    pub(crate) fn insert(&mut self, element: u32, hash_of: impl Fn(u32) -> u32) {
        debug_assert_ne!(element, EMPTY, "the largest number marks an empty slot");
        if self.len == 0 && self.slots.is_empty() {
            self.only = element;
        } else {
            if self.len() + 1 > capacity(self.slots.len()) {
                self.resize((self.slots.len() * 2).max(SLOTS_MIN), &hash_of);
            }
            self.place(element, hash_of(element));
        }
        self.len += 1;
    }

    /// Puts `new` where the element stands that has this hash and of which `is_wanted` is true; both
    /// have the same hash. Does nothing when it is not there.
    pub(crate) fn replace(&mut self, hash: u32, is_wanted: impl Fn(u32) -> bool, new: u32) {
        match self.position(hash, is_wanted) {
            None => {}
            Some(Position::Only) => self.only = new,
            Some(Position::Slot(at)) => self.set_slot(at, new),
        }
    }

    /// Removes the element with this hash of which `is_wanted` is true.
    pub(crate) fn remove(
        &mut self,
        hash: u32,
        is_wanted: impl Fn(u32) -> bool,
        hash_of: impl Fn(u32) -> u32,
    ) -> Option<u32> {
        let removed = match self.position(hash, is_wanted)? {
            Position::Only => std::mem::replace(&mut self.only, EMPTY),
            Position::Slot(at) => {
                let removed = self.slot(at);
                self.close_gap(at, &hash_of);
                removed
            }
        };
        self.len -= 1;
        self.shrink(&hash_of);
        Some(removed)
    }

    /// Bytes on the heap.
    pub(crate) const fn heap_len(&self) -> usize {
        self.slots.len() * size_of::<u32>()
    }

    fn position(&self, hash: u32, is_wanted: impl Fn(u32) -> bool) -> Option<Position> {
        if self.slots.is_empty() {
            return (self.only != EMPTY && is_wanted(self.only)).then_some(Position::Only);
        }
        let mut at = self.home(hash);
        loop {
            match self.slot(at) {
                EMPTY => return None,
                element if is_wanted(element) => return Some(Position::Slot(at)),
                _ => at = self.after(at),
            }
        }
    }

    // Moves back what would no longer be found behind the gap at `gap`.
    fn close_gap(&mut self, mut gap: usize, hash_of: impl Fn(u32) -> u32) {
        let mut at = gap;
        loop {
            at = self.after(at);
            let element = self.slot(at);
            if element == EMPTY {
                break;
            }
            let home = self.home(hash_of(element));
            // Its distance from home tells whether the gap lies between.
            if self.distance(home, at) >= self.distance(gap, at) {
                self.set_slot(gap, element);
                gap = at;
            }
        }
        self.set_slot(gap, EMPTY);
    }

    fn shrink(&mut self, hash_of: impl Fn(u32) -> u32) {
        if self.slots.len() > SLOTS_MIN && self.len() * 4 < self.slots.len() || self.len == 0 {
            let slots = slots_for(self.len());
            self.resize(slots, hash_of);
        }
    }

    fn resize(&mut self, slots: usize, hash_of: impl Fn(u32) -> u32) {
        let only = std::mem::replace(&mut self.only, EMPTY);
        let fresh = vec![EMPTY; slots].into_boxed_slice();
        let old = std::mem::replace(&mut self.slots, fresh);
        let elements = old.iter().copied().chain([only]);
        for element in elements.filter(|&element| element != EMPTY) {
            if slots == 0 {
                self.only = element;
            } else {
                self.place(element, hash_of(element));
            }
        }
    }

    fn place(&mut self, element: u32, hash: u32) {
        let mut at = self.home(hash);
        while self.slot(at) != EMPTY {
            at = self.after(at);
        }
        self.set_slot(at, element);
    }

    fn slot(&self, at: usize) -> u32 {
        self.slots.get(at).copied().unwrap_or(EMPTY)
    }

    fn set_slot(&mut self, at: usize, element: u32) {
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = element;
        }
    }

    // The upper bits of the hash, which a multiplication mixes best.
    fn home(&self, hash: u32) -> usize {
        (hash >> (u32::BITS - self.slots.len().trailing_zeros())) as usize
    }

    const fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    const fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.slots.len() - 1)
    }
}

enum Position {
    Only,
    Slot(usize),
}

// Seven eighths, and always one slot empty: a search ends there.
const fn capacity(slots: usize) -> usize {
    slots - slots.div_ceil(8)
}

const fn slots_for(len: usize) -> usize {
    match len {
        0 | 1 => 0,
        _ => {
            let mut slots = SLOTS_MIN;
            while capacity(slots) < len + len / 4 {
                slots *= 2;
            }
            slots
        }
    }
}

/// Spreads numbers that are close together (Fibonacci hashing).
pub(crate) const fn spread(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b9)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn behaves_as_a_plain_map() {
        // The key is the element without its two lowest bits; few hashes, so that many collide.
        let hash_of = |element: u32| spread((element >> 2) % 37);
        for seed in 0..20 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut set = CompactSet::default();
            let mut model = BTreeMap::new();
            let keys = if seed % 2 == 0 { 6 } else { 300 };
            for _ in 0..3_000 {
                let key = random.random_range(0..keys);
                let element = key << 2 | random.random_range(0..4);
                let same = move |other: u32| other >> 2 == key;
                match random.random_range(0..9) {
                    0..=4 => {
                        if model.insert(key, element).is_some() {
                            set.replace(hash_of(element), same, element);
                        } else {
                            set.insert(element, hash_of);
                        }
                    }
                    _ => assert_eq!(
                        set.remove(hash_of(element), same, hash_of),
                        model.remove(&key)
                    ),
                }
                assert_eq!(set.len(), model.len());
                assert_eq!(set.is_empty(), model.is_empty());
                assert_eq!(set.find(hash_of(element), same), model.get(&key).copied());
            }
            let mut elements: Vec<u32> = set.iter().collect();
            elements.sort_unstable();
            assert_eq!(elements, model.into_values().collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_element_takes_few_bytes() {
        let mut set = CompactSet::default();
        set.insert(7, spread);
        assert_eq!(set.heap_len(), 0);
        for element in 8..100_000 {
            set.insert(element, spread);
        }
        assert!(set.heap_len() <= 10 * set.len());
        for element in 7..99_990 {
            set.remove(spread(element), |other| other == element, spread);
        }
        assert!(set.heap_len() <= 256, "it shrinks: {}", set.heap_len());
    }
}
