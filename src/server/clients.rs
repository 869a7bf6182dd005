//! The connections of a shard, by place and generation.

use ringkeeper_member::ClientKey;
use ringkeeper_tree::watch::Watcher;

use crate::client::Client;

/// A slab of connections: a place is used again with a new generation, so that a late answer to an
/// earlier connection finds nobody.
#[derive(Debug)]
pub(crate) struct Clients {
    shard: u32,
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    client: Option<Box<Client>>,
}

impl Clients {
    /// No connections on `shard` yet.
    pub(crate) const fn new(shard: u32) -> Self {
        Self {
            shard,
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Takes in the connection that `make` builds for its key.
    pub(crate) fn insert(&mut self, make: impl FnOnce(ClientKey) -> Client) -> ClientKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                client: None,
            });
            u32::try_from(self.places.len() - 1).expect("descriptors run out before 2^32 places")
        });
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        let key = ClientKey {
            shard: self.shard,
            index,
            generation: place.generation,
        };
        place.client = Some(Box::new(make(key)));
        key
    }

    /// Takes out the connection of `key`.
    pub(crate) fn remove(&mut self, key: ClientKey) -> Option<Box<Client>> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let client = place.client.take()?;
        self.free.push(key.index);
        Some(client)
    }

    /// The connection of `key`, unless it has ended.
    pub(crate) fn get_mut(&mut self, key: ClientKey) -> Option<&mut Client> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation {
            place.client.as_deref_mut()
        } else {
            None
        }
    }

    /// The connection that a watch table knows as `watcher`: the number of its place. A watcher is taken out of
    /// the table before its place is used again.
    pub(crate) fn watcher_mut(&mut self, watcher: Watcher) -> Option<&mut Client> {
        self.places
            .get_mut(watcher.0 as usize)?
            .client
            .as_deref_mut()
    }

    /// As [`Clients::watcher_mut`].
    pub(crate) fn watcher(&self, watcher: Watcher) -> Option<&Client> {
        self.places.get(watcher.0 as usize)?.client.as_deref()
    }

    /// All connections.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.places
            .iter()
            .filter_map(|place| place.client.as_deref())
    }

    /// All connections, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Client> {
        self.places
            .iter_mut()
            .filter_map(|place| place.client.as_deref_mut())
    }
}
