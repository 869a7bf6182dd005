//! The tree: reads, writes, clones and snapshots, small and with a million znodes.
//!
//! `RINGKEEPER_BENCH_ZNODES` changes the size of the large one.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main};
use ringkeeper_benches::{apply, create, environment, is_smoke_test, path_of, set, tree_of};
use ringkeeper_proto::Request;
use ringkeeper_tree::Tree;
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder, SnapshotEncoder};

/// Znodes made before they are deleted again, so that the tree keeps its size.
const CREATED: u64 = 1000;

fn trees(criterion: &mut Criterion) {
    environment::print(None);
    let large = env::var("RINGKEEPER_BENCH_ZNODES")
        .ok()
        .and_then(|count| count.parse().ok());
    let default = if is_smoke_test() { 10_000 } else { 1_000_000 };
    for count in [1000, large.unwrap_or(default)] {
        let tree = tree_of(count);
        println!("{count} znodes: work {:#018x}", tree.digest());
        let mut group = criterion.benchmark_group(format!("tree of {count}"));
        reads(&mut group, &tree, count);
        sets(&mut group, &tree, count);
        creates_and_deletes(&mut group, &tree);
        snapshots(&mut group, &tree);
    }
}

/// Paths in an order that helps no cache.
fn paths(count: usize) -> impl FnMut() -> String {
    let mut number = 0;
    move || {
        number = (number + 7919) % count;
        path_of(number)
    }
}

fn reads(group: &mut BenchmarkGroup<'_, WallTime>, tree: &Tree, count: usize) {
    let mut next = paths(count);
    group.bench_function("get", |bencher| {
        bencher.iter_batched(
            &mut next,
            |path| {
                let node = tree.get(&path);
                black_box(node.map(|node| (node.data().map(<[u8]>::len), node.stat())));
                path
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("all children number of /", |bencher| {
        bencher.iter(|| {
            tree.get(black_box("/"))
                .map(|root| root.all_children_number())
        });
    });
    group.bench_function("clone", |bencher| bencher.iter(|| tree.clone()));
}

fn sets(group: &mut BenchmarkGroup<'_, WallTime>, tree: &Tree, count: usize) {
    let mut next = paths(count);
    let mut head = tree.clone();
    group.bench_function("set 100 B, blocks of its own", |bencher| {
        bencher.iter_batched(
            &mut next,
            |path| {
                apply(&mut head, &set(&path, &[b'y'; 100]));
                path
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("clone, then set 100 B", |bencher| {
        bencher.iter_batched(
            &mut next,
            |path| {
                let mut head = head.clone();
                apply(&mut head, &set(&path, &[b'z'; 100]));
                (head, path)
            },
            BatchSize::SmallInput,
        );
    });
}

fn creates_and_deletes(group: &mut BenchmarkGroup<'_, WallTime>, tree: &Tree) {
    let mut head = tree.clone();
    group.bench_function("create 100 B", |bencher| {
        bencher.iter_custom(|count| create_and_delete(&mut head, count).0);
    });
    group.bench_function("delete", |bencher| {
        bencher.iter_custom(|count| create_and_delete(&mut head, count).1);
    });
}

/// How long so many creates took, and their deletes.
fn create_and_delete(head: &mut Tree, count: u64) -> (Duration, Duration) {
    let mut took = (Duration::ZERO, Duration::ZERO);
    let mut left = count;
    while left > 0 {
        let some = left.min(CREATED);
        left -= some;
        let paths: Vec<String> = (0..some)
            .map(|number| format!("/{}/c{number:07}", number % 100))
            .collect();
        let started = Instant::now();
        for path in &paths {
            apply(head, &create(path, &[b'x'; 100]));
        }
        took.0 += started.elapsed();
        let started = Instant::now();
        for path in &paths {
            apply(head, &Request::Delete { path, version: -1 });
        }
        took.1 += started.elapsed();
    }
    took
}

fn snapshots(group: &mut BenchmarkGroup<'_, WallTime>, tree: &Tree) {
    group.sample_size(10);
    let mut chunk = Vec::new();
    group.bench_function("snapshot: encode", |bencher| {
        bencher.iter(|| {
            let mut encoder = SnapshotEncoder::new(tree);
            let mut bytes = 0;
            while encoder.next_chunk(&mut chunk) {
                bytes += chunk.len();
            }
            bytes
        });
    });
    let mut chunks = Vec::new();
    let mut encoder = SnapshotEncoder::new(tree);
    while encoder.next_chunk(&mut chunk) {
        chunks.push(chunk.clone());
    }
    group.bench_function("snapshot: load on one thread", |bencher| {
        bencher.iter_custom(|count| {
            let mut took = Duration::ZERO;
            for _ in 0..count {
                let started = Instant::now();
                let loaded = load(&chunks);
                took += started.elapsed();
                assert_eq!(loaded.digest(), tree.digest());
            }
            took
        });
    });
}

fn load(chunks: &[Vec<u8>]) -> Tree {
    let mut builder = SnapshotBuilder::new();
    for chunk in chunks {
        let chunk = Chunk::decode(chunk).expect("it was encoded here");
        builder.push(chunk).expect("they are in order");
    }
    builder.finish().expect("nothing is missing")
}

criterion_group!(benches, trees);
criterion_main!(benches);
