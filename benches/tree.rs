//! The tree: reads, writes, clones and snapshots, small and with a million znodes.
//!
//! `RINGKEEPER_BENCH_ZNODES` changes the size of the large one.

#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::env;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ringkeeper_benches::{apply, create, path_of, tree_of};
use ringkeeper_proto::Request;
use ringkeeper_tree::snapshot::{Chunk, SnapshotBuilder, SnapshotEncoder};

fn operations(criterion: &mut Criterion) {
    let large = env::var("RINGKEEPER_BENCH_ZNODES")
        .ok()
        .and_then(|count| count.parse().ok());
    for count in [1000, large.unwrap_or(1_000_000)] {
        let tree = tree_of(count);
        println!("{count} znodes: digest {:#x}", tree.digest());
        let mut group = criterion.benchmark_group(format!("tree of {count}"));
        let mut number = 0;
        // A stride that visits the znodes in no order that helps a cache.
        let mut next = || {
            number = (number + 7919) % count;
            path_of(number)
        };
        group.bench_function("get", |bencher| {
            bencher.iter(|| tree.get(black_box(&next())).map(|node| node.stat()));
        });
        group.bench_function("clone", |bencher| bencher.iter(|| tree.clone()));
        let mut head = tree.clone();
        group.bench_function("set 100 B, own blocks", |bencher| {
            bencher.iter(|| {
                let path = next();
                apply(
                    &mut head,
                    &Request::SetData {
                        path: &path,
                        data: Some(&[b'y'; 100]),
                        version: -1,
                    },
                );
            });
        });
        group.bench_function("set 100 B, first after a clone", |bencher| {
            bencher.iter_batched(
                || (head.clone(), next()),
                |(mut head, path)| {
                    apply(
                        &mut head,
                        &Request::SetData {
                            path: &path,
                            data: Some(&[b'z'; 100]),
                            version: -1,
                        },
                    );
                    head
                },
                BatchSize::SmallInput,
            );
        });
        let mut created = 0_usize;
        group.bench_function("create and delete 100 B", |bencher| {
            bencher.iter(|| {
                created += 1;
                let path = format!("/7/c{created:010}");
                apply(&mut head, &create(&path, &[b'x'; 100]));
                apply(
                    &mut head,
                    &Request::Delete {
                        path: &path,
                        version: -1,
                    },
                );
            });
        });
        group.bench_function("all children number of /", |bencher| {
            bencher.iter(|| tree.get("/").map(|root| root.all_children_number()));
        });
        group.sample_size(10);
        group.bench_function("snapshot: encode", |bencher| {
            bencher.iter(|| {
                let mut encoder = SnapshotEncoder::new(&tree);
                let (mut chunk, mut bytes) = (Vec::new(), 0);
                while encoder.next_chunk(&mut chunk) {
                    bytes += chunk.len();
                }
                bytes
            });
        });
        let mut chunks = Vec::new();
        let mut encoder = SnapshotEncoder::new(&tree);
        let mut chunk = Vec::new();
        while encoder.next_chunk(&mut chunk) {
            chunks.push(chunk.clone());
        }
        group.bench_function("snapshot: load on one thread", |bencher| {
            bencher.iter(|| {
                let mut builder = SnapshotBuilder::new();
                for chunk in &chunks {
                    let chunk = Chunk::decode(chunk).expect("it was encoded here");
                    builder.push(chunk).expect("they are in order");
                }
                builder.finish().expect("nothing is missing")
            });
        });
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
