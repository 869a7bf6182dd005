//! Frames cut, requests in, replies out, transactions both ways.
#![expect(
    clippy::print_stdout,
    reason = "a bench shows what its figures belong to"
)]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringkeeper_benches::{body_of, create, environment, set, work_hash};
use ringkeeper_proto::jute::{WriteJute, put_frame};
use ringkeeper_proto::reply::{ReplyHeader, WriteReply};
use ringkeeper_proto::txn::{CreateKind, decode_record, encode_record};
use ringkeeper_proto::{
    Acl, AclList, OpCode, Request, SessionId, Stat, Txn, TxnDigest, TxnHeader, Xid, Zxid,
};
use ringkeeper_transport::FrameDecoder;

/// Requests that arrive with one receive.
const FRAMES: usize = 64;
const MEMBER: &str = "/service/member-0000000001";
const KEY: &str = "/service/key";
const GET: Request<'_> = Request::GetData {
    path: KEY,
    watch: false,
};

fn frames(criterion: &mut Criterion) {
    environment::print(None);
    let mut group = criterion.benchmark_group("split frames");
    let data = [b'x'; 100];
    for (name, request) in [("gets", GET), ("creates of 100 B", create(MEMBER, &data))] {
        let mut stream = BytesMut::new();
        for _ in 0..FRAMES {
            request.encode_frame(Xid(1), &mut stream);
        }
        println!("{FRAMES} {name}: work {:#018x}", work_hash(&stream));
        group.throughput(Throughput::Elements(FRAMES as u64));
        group.bench_function(format!("{FRAMES} {name} in one receive"), |bencher| {
            bencher.iter_batched(
                || stream.clone(),
                |received| {
                    let mut decoder = FrameDecoder::new(1 << 20);
                    decoder.push(received);
                    while let Some(frame) = decoder.next_frame().expect("lengths are right") {
                        black_box(frame);
                    }
                    assert_eq!(decoder.frames(), FRAMES as u64);
                    decoder
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn requests(criterion: &mut Criterion) {
    let (data, kib) = ([b'x'; 100], [b'x'; 1024]);
    let requests = [
        ("create 100 B", create(MEMBER, &data)),
        ("set 100 B", set(KEY, &data)),
        ("set 1 KiB", set(KEY, &kib)),
        ("get", GET),
        (
            "multi of 10 sets of 100 B",
            Request::Multi(vec![set(KEY, &data); 10]),
        ),
    ];
    let mut group = criterion.benchmark_group("decode request");
    for (name, request) in &requests {
        let (op, body) = (request.op(), body_of(request));
        println!("{name}: work {:#018x}", work_hash(&body));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| Request::decode(op, black_box(&body)).expect("it was encoded here"));
        });
    }
}

fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode reply");
    let stat = Stat::default();
    let multi = vec![(OpCode::SetData, Ok(WriteReply::Stat(stat))); 10];
    let replies = [
        ("create", WriteReply::Path(MEMBER.into())),
        ("create2", WriteReply::PathStat(MEMBER.into(), stat)),
        ("set", WriteReply::Stat(stat)),
        ("multi of 10 sets", WriteReply::Multi(multi)),
    ];
    let header = ReplyHeader::new(Xid(1), Zxid(2), Ok(()));
    let mut out = BytesMut::with_capacity(4096);
    for (name, reply) in &replies {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                out.clear();
                put_frame(&mut out, |out| {
                    header.encode(out);
                    black_box(reply).encode(out);
                });
                black_box(out.len())
            });
        });
        println!("{name}: work {:#018x}", work_hash(&out));
    }
    for len in [100, 1024] {
        let data = vec![b'x'; len];
        group.bench_function(format!("get of {len} B"), |bencher| {
            bencher.iter(|| {
                out.clear();
                put_frame(&mut out, |out| {
                    header.encode(out);
                    out.put_buffer(Some(black_box(&data)));
                    black_box(&stat).encode(out);
                });
                black_box(out.len())
            });
        });
    }
}

fn transactions(criterion: &mut Criterion) {
    let data = [b'x'; 100];
    let set = |_| Txn::SetData {
        path: KEY.into(),
        data: Some(&data),
        version: 7,
    };
    let create = Txn::Create {
        path: MEMBER.into(),
        data: Some(&data),
        acl: AclList::new(&Acl::open()),
        kind: CreateKind::Plain { ephemeral: false },
        parent_cversion: 7,
    };
    let parts = (0..10).map(|at| (OpCode::SetData, set(at))).collect();
    let transactions = [
        ("create 100 B", OpCode::Create, create),
        ("set 100 B", OpCode::SetData, set(0)),
        (
            "multi of 10 sets of 100 B",
            OpCode::Multi,
            Txn::Multi(parts),
        ),
    ];
    let digest = TxnDigest {
        version: TxnDigest::VERSION,
        tree_digest: 9,
    };
    let mut group = criterion.benchmark_group("transaction");
    for (name, op, txn) in &transactions {
        let header = TxnHeader {
            session: SessionId(1),
            cxid: 2,
            zxid: Zxid(3),
            time_ms: 4,
            op: *op,
        };
        let mut record = Vec::new();
        encode_record(&header, txn, Some(&digest), &mut record);
        println!("{name}: work {:#018x}", work_hash(&record));
        group.throughput(Throughput::Bytes(record.len() as u64));
        let mut out = Vec::with_capacity(record.len());
        group.bench_function(format!("encode {name}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode_record(&header, black_box(txn), Some(&digest), &mut out);
                black_box(out.len())
            });
        });
        group.bench_function(format!("decode {name}"), |bencher| {
            bencher.iter(|| decode_record(black_box(&record)).expect("it was encoded here"));
        });
    }
}

criterion_group!(benches, frames, requests, replies, transactions);
criterion_main!(benches);
