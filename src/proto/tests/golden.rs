//! Frames that Apache ZooKeeper sent and took (`testdata/exchanges.txt`): each is decoded and encoded
//! again, and must come out as it was.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use bytes::{BufMut, BytesMut};
use ringkeeper_proto::acl::AclList;
use ringkeeper_proto::connect::{ConnectRequest, ConnectResponse};
use ringkeeper_proto::reply::{
    EventType, ReplyHeader, WriteReply, put_multi_error, put_watch_event,
};
use ringkeeper_proto::request::MultiHeader;
use ringkeeper_proto::{OpCode, Reader, Request, RequestHeader, Stat, WriteJute};

const EXCHANGES: &str = include_str!("../testdata/exchanges.txt");

struct Frame<'a> {
    kind: &'a str,
    op: OpCode,
    bytes: Vec<u8>,
    name: &'a str,
}

fn frames() -> Vec<Frame<'static>> {
    let lines = EXCHANGES.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().unwrap();
            Frame {
                kind: word(),
                op: OpCode::from_code(word().parse().unwrap()).unwrap(),
                bytes: from_hex(word()),
                name: word(),
            }
        })
        .collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn requests_come_out_as_they_went_in() {
    let mut ops = BTreeSet::new();
    for frame in frames().iter().filter(|frame| frame.kind == "request") {
        let mut out = BytesMut::new();
        if frame.op == OpCode::CreateSession {
            let request = ConnectRequest::decode(&mut Reader::new(&frame.bytes[4..])).unwrap();
            request.encode_frame(&mut out);
        } else {
            let (header, body) = RequestHeader::split(&frame.bytes[4..]).unwrap();
            assert_eq!(header.op_code(), frame.op.code(), "{}", frame.name);
            let request = Request::decode(frame.op, body).unwrap();
            request.encode_frame(header.xid(), &mut out);
        }
        assert_eq!(out, frame.bytes, "{}", frame.name);
        ops.insert(frame.op);
    }
    assert!(ops.len() > 25, "{} operations are covered", ops.len());
}

#[test]
fn replies_come_out_as_they_went_in() {
    let mut count = 0;
    for frame in frames().iter().filter(|frame| frame.kind == "reply") {
        let mut out = BytesMut::new();
        if frame.op == OpCode::CreateSession {
            let response = ConnectResponse::decode(&mut Reader::new(&frame.bytes[4..])).unwrap();
            response.encode_frame(&mut out);
            assert_eq!(out, frame.bytes, "{}", frame.name);
            continue;
        }
        let mut reader = Reader::new(&frame.bytes[4..]);
        let header = ReplyHeader::decode(&mut reader).unwrap();
        out.put_slice(&frame.bytes[..4]);
        header.encode(&mut out);
        if !reader.is_empty() {
            assert_eq!(header.error, 0, "{}", frame.name);
            copy_body(frame.op, &mut reader, &mut out);
        }
        assert!(reader.is_empty(), "{}", frame.name);
        assert_eq!(out, frame.bytes, "{}", frame.name);
        count += 1;
    }
    assert!(count > 30, "{count} replies are covered");
}

#[test]
fn events_come_out_as_they_went_in() {
    let mut kinds = BTreeSet::new();
    for frame in frames().iter().filter(|frame| frame.kind == "event") {
        let mut reader = Reader::new(&frame.bytes[4..]);
        let header = ReplyHeader::decode(&mut reader).unwrap();
        let kind = match reader.int().unwrap() {
            1 => EventType::Created,
            2 => EventType::Deleted,
            3 => EventType::DataChanged,
            4 => EventType::ChildrenChanged,
            other => panic!("{}: event {other}", frame.name),
        };
        let _state = reader.int().unwrap();
        let path = reader.ustring().unwrap().unwrap();
        let mut out = BytesMut::new();
        let zxid = (header.zxid.to_wire() != -1).then_some(header.zxid);
        put_watch_event(kind, path, zxid, &mut out);
        assert_eq!(out, frame.bytes, "{}", frame.name);
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 4);
}

/// Decodes the body of a reply and encodes it again.
fn copy_body(op: OpCode, reader: &mut Reader<'_>, out: &mut BytesMut) {
    match op {
        OpCode::Create => WriteReply::Path(text(reader)).encode(out),
        OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl => {
            let path = text(reader);
            WriteReply::PathStat(path, Stat::decode(reader).unwrap()).encode(out);
        }
        OpCode::SetData | OpCode::SetAcl => {
            WriteReply::Stat(Stat::decode(reader).unwrap()).encode(out);
        }
        OpCode::Exists => Stat::decode(reader).unwrap().encode(out),
        OpCode::GetData => {
            out.put_buffer(reader.buffer().unwrap());
            Stat::decode(reader).unwrap().encode(out);
        }
        OpCode::GetAcl => {
            AclList::decode(reader).unwrap().unwrap().encode(out);
            Stat::decode(reader).unwrap().encode(out);
        }
        OpCode::GetChildren | OpCode::GetEphemerals => out.put_strings(reader.strings().unwrap()),
        OpCode::GetChildren2 => {
            out.put_strings(reader.strings().unwrap());
            Stat::decode(reader).unwrap().encode(out);
        }
        OpCode::Sync => out.put_ustring(&text(reader)),
        OpCode::GetAllChildrenNumber | OpCode::AddWatch => out.put_i32(reader.int().unwrap()),
        OpCode::WhoAmI => {
            let count = reader.int().unwrap();
            out.put_i32(count);
            for _ in 0..2 * count {
                out.put_ustring(&text(reader));
            }
        }
        OpCode::Multi | OpCode::MultiRead => copy_results(reader, out),
        other => panic!("{other:?} has no body"),
    }
}

fn copy_results(reader: &mut Reader<'_>, out: &mut BytesMut) {
    loop {
        let header = MultiHeader::decode(reader).unwrap();
        let op = match OpCode::from_code(header.op) {
            _ if header.done => {
                header.encode(out);
                return;
            }
            Some(OpCode::Error) => {
                put_multi_error(header.error, out);
                assert_eq!(reader.int(), Ok(header.error));
                continue;
            }
            op => op.unwrap(),
        };
        header.encode(out);
        if !matches!(op, OpCode::Delete | OpCode::Check) {
            copy_body(op, reader, out);
        }
    }
}

fn text(reader: &mut Reader<'_>) -> String {
    reader.ustring().unwrap().unwrap().to_owned()
}
