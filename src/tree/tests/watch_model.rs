//! The watch tables against a model of Apache's two, over random scripts.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use ringkeeper_proto::reply::EventType;
use ringkeeper_tree::watch::{WatchKind, WatchMode, WatchSummary, WatchTable, Watcher};

/// Apache's tables, as plainly as can be.
#[derive(Default)]
struct Model {
    data: BTreeMap<(String, Watcher), BTreeSet<WatchMode>>,
    child: BTreeMap<(String, Watcher), BTreeSet<WatchMode>>,
    listed: BTreeSet<Watcher>,
}

impl Model {
    fn add(&mut self, path: &str, watcher: Watcher, mode: WatchMode) {
        let key = (path.to_owned(), watcher);
        if mode != WatchMode::Child {
            self.data.entry(key.clone()).or_default().insert(mode);
            self.listed.insert(watcher);
        }
        if matches!(mode, WatchMode::Child | WatchMode::Persistent) {
            self.child.entry(key).or_default().insert(mode);
        }
    }

    fn remove(&mut self, path: &str, watcher: Watcher, kind: WatchKind) -> bool {
        let key = (path.to_owned(), watcher);
        let is_meant = |&mode: &WatchMode| kind == WatchKind::Any || kind == kind_of(mode);
        let mut found = false;
        for (table, is_data) in [(&mut self.data, true), (&mut self.child, false)] {
            if let Some(modes) = table.get_mut(&key) {
                found |= modes.iter().any(is_meant);
                modes.retain(|mode| !is_meant(mode));
                if modes.is_empty() {
                    table.remove(&key);
                    if is_data && !table.keys().any(|key| key.1 == watcher) {
                        self.listed.remove(&watcher);
                    }
                }
            }
        }
        found
    }

    fn fire(&mut self, kind: EventType, path: &str) -> BTreeSet<u32> {
        let mut told = BTreeSet::new();
        if kind != EventType::ChildrenChanged {
            for ((at, watcher), modes) in &self.data {
                let within = !at.is_empty() && path.starts_with(&format!("{at}/"));
                let below = path != "/" && (at == "/" || within);
                let recursive = modes.contains(&WatchMode::PersistentRecursive);
                if at == path || below && recursive {
                    told.insert(watcher.0);
                }
            }
            Self::use_up(&mut self.data, path, WatchMode::Data);
        }
        if matches!(kind, EventType::ChildrenChanged | EventType::Deleted) {
            let of_path = self.child.keys().filter(|key| key.0 == path);
            told.extend(of_path.map(|key| key.1.0));
            Self::use_up(&mut self.child, path, WatchMode::Child);
        }
        told
    }

    fn use_up(
        table: &mut BTreeMap<(String, Watcher), BTreeSet<WatchMode>>,
        path: &str,
        mode: WatchMode,
    ) {
        for (_, modes) in table.iter_mut().filter(|(key, _)| key.0 == path) {
            modes.remove(&mode);
        }
        table.retain(|_, modes| !modes.is_empty());
    }

    fn remove_watcher(&mut self, watcher: Watcher) {
        self.data.retain(|key, _| key.1 != watcher);
        self.child.retain(|key, _| key.1 != watcher);
        self.listed.remove(&watcher);
    }

    fn summary(&self) -> WatchSummary {
        let paths: BTreeSet<&String> = self.data.keys().map(|key| &key.0).collect();
        WatchSummary {
            connections: self.listed.len(),
            paths: paths.len(),
            watches: self.data.len(),
        }
    }
}

fn check_listings(table: &WatchTable, model: &Model) {
    let expect: BTreeSet<(String, Watcher)> = model.data.keys().cloned().collect();
    let mut by_path = Vec::new();
    for (path, watchers) in table.by_path() {
        by_path.extend(watchers.map(|watcher| (path.to_owned(), watcher)));
    }
    assert_eq!(by_path.len(), expect.len());
    assert_eq!(by_path.into_iter().collect::<BTreeSet<_>>(), expect);
    let mut listed = BTreeSet::new();
    let mut by_watcher = Vec::new();
    for (watcher, paths) in table.by_watcher() {
        listed.insert(watcher);
        by_watcher.extend(paths.map(|path| (path.to_owned(), watcher)));
    }
    assert_eq!(listed, model.listed);
    assert_eq!(by_watcher.len(), expect.len());
    assert_eq!(by_watcher.into_iter().collect::<BTreeSet<_>>(), expect);
}

#[test]
fn behaves_as_apaches_tables() {
    let paths = [
        "/", "/a", "/a/b", "/a/b/c", "/ab", "/a/d", "/e", "no path", "",
    ];
    let modes = [
        WatchMode::Data,
        WatchMode::Child,
        WatchMode::Persistent,
        WatchMode::PersistentRecursive,
    ];
    let kinds = [
        WatchKind::Child,
        WatchKind::Data,
        WatchKind::Any,
        WatchKind::Persistent,
        WatchKind::PersistentRecursive,
    ];
    let events = [
        EventType::Created,
        EventType::Deleted,
        EventType::DataChanged,
        EventType::ChildrenChanged,
    ];
    for seed in 0..30 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut table = WatchTable::new(seed);
        let mut model = Model::default();
        let watchers = if seed % 3 == 0 { 3 } else { 40 };
        for _ in 0..2_000 {
            let path = *paths.choose(&mut random).unwrap();
            let watcher = Watcher(random.random_range(0..watchers) * 7);
            match random.random_range(0..20) {
                0..=8 => {
                    let mode = *modes.choose(&mut random).unwrap();
                    model.add(path, watcher, mode);
                    table.add(path, watcher, mode);
                }
                9..=12 => {
                    let kind = *kinds.choose(&mut random).unwrap();
                    let removed = table.remove(path, watcher, kind).is_ok();
                    assert_eq!(removed, model.remove(path, watcher, kind));
                }
                13..=18 => {
                    // What is not a path can be watched, but nothing happens to it.
                    let path = *paths[..7].choose(&mut random).unwrap();
                    let kind = *events.choose(&mut random).unwrap();
                    let told: Vec<u32> = model.fire(kind, path).into_iter().collect();
                    assert_eq!(fired(&mut table, kind, path), told, "{kind:?} {path}");
                }
                _ => {
                    model.remove_watcher(watcher);
                    table.remove_watcher(watcher);
                }
            }
            assert_eq!(table.summary(), model.summary());
            assert_eq!(table.watch_count(), model.data.len() + model.child.len());
            assert_eq!(
                table.is_empty(),
                model.data.is_empty() && model.child.is_empty()
            );
        }
        check_listings(&table, &model);
    }
}

fn kind_of(mode: WatchMode) -> WatchKind {
    match mode {
        WatchMode::Data => WatchKind::Data,
        WatchMode::Child => WatchKind::Child,
        WatchMode::Persistent => WatchKind::Persistent,
        WatchMode::PersistentRecursive => WatchKind::PersistentRecursive,
    }
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
