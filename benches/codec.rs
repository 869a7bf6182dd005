//! Requests in, replies out, transactions both ways.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{Criterion, criterion_group, criterion_main};
use ringkeeper_benches::{body_of, create};
use ringkeeper_proto::jute::put_frame;
use ringkeeper_proto::reply::{ReplyHeader, WriteReply};
use ringkeeper_proto::txn::{CreateKind, decode_record, encode_record};
use ringkeeper_proto::{
    Acl, AclList, OpCode, Request, SessionId, Stat, Txn, TxnDigest, TxnHeader, Xid, Zxid,
};

fn requests(criterion: &mut Criterion) {
    let data = [b'x'; 100];
    let requests = [
        ("create 100 B", create("/service/member-0000000001", &data)),
        (
            "set 100 B",
            Request::SetData {
                path: "/service/key",
                data: Some(&data),
                version: -1,
            },
        ),
        (
            "get",
            Request::GetData {
                path: "/service/key",
                watch: false,
            },
        ),
        (
            "multi of 10",
            Request::Multi(vec![
                Request::Check {
                    path: "/service/key",
                    version: 3
                };
                10
            ]),
        ),
    ];
    let mut group = criterion.benchmark_group("decode request");
    for (name, request) in &requests {
        let (op, body) = (request.op(), body_of(request));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| Request::decode(op, black_box(&body)).expect("it was encoded here"));
        });
    }
}

fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode reply");
    let replies = [
        ("set", WriteReply::Stat(Stat::default())),
        (
            "create2",
            WriteReply::PathStat("/service/member-0000000001".into(), Stat::default()),
        ),
    ];
    for (name, reply) in &replies {
        let mut out = BytesMut::with_capacity(1024);
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                out.clear();
                put_frame(&mut out, |out| {
                    ReplyHeader::new(Xid(1), Zxid(2), Ok(())).encode(out);
                    reply.encode(out);
                });
                black_box(out.len())
            });
        });
    }
}

fn transactions(criterion: &mut Criterion) {
    let header = TxnHeader {
        session: SessionId(1),
        cxid: 2,
        zxid: Zxid(3),
        time_ms: 4,
        op: OpCode::Create,
    };
    let txn = Txn::Create {
        path: "/service/member-0000000001".into(),
        data: Some(&[b'x'; 100]),
        acl: AclList::new(&Acl::open()),
        kind: CreateKind::Plain { ephemeral: false },
        parent_cversion: 7,
    };
    let digest = TxnDigest {
        version: TxnDigest::VERSION,
        tree_digest: 9,
    };
    let mut record = Vec::new();
    encode_record(&header, &txn, Some(&digest), &mut record);
    let mut group = criterion.benchmark_group("transaction");
    group.bench_function("encode create 100 B", |bencher| {
        let mut out = Vec::with_capacity(record.len());
        bencher.iter(|| {
            out.clear();
            encode_record(&header, black_box(&txn), Some(&digest), &mut out);
            black_box(out.len())
        });
    });
    group.bench_function("decode create 100 B", |bencher| {
        bencher.iter(|| decode_record(black_box(&record)).expect("it was encoded here"));
    });
}

criterion_group!(benches, requests, replies, transactions);
criterion_main!(benches);
