//! Bytes that no proper client sends: requests with lying lengths, and frames that are none.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use ringkeeper_proto::OpCode;

use crate::script::{Call, Step};
use crate::servers::FRAME_BYTES_MAX;

/// Spoils the body of a call. The frame stays whole, so that the connection can go on.
pub(crate) fn spoil(mut call: Call, rng: &mut StdRng) -> Call {
    let has_path = call.path().is_some();
    let how = if call.body.is_empty() {
        7
    } else if has_path {
        rng.random_range(0..9)
    } else {
        *[0, 7, 8].choose(rng).unwrap_or(&0)
    };
    // An Apache that is given null to watch cannot close that connection any more.
    let how = if how == 3 && call.op() == Some(OpCode::AddWatch) {
        0
    } else {
        how
    };
    call.spoiled = Some(match how {
        0 => {
            let len = rng.random_range(0..call.body.len());
            call.body.truncate(len);
            "cut short"
        }
        1 => {
            let length = *[-2, i32::MIN, -100].choose(rng).unwrap_or(&-2);
            overwrite(&mut call.body, 0, length);
            "negative path length"
        }
        2 => {
            let length = *[i32::MAX, 0x000f_ffff, 0x7fff_0000, 70_000]
                .choose(rng)
                .unwrap_or(&i32::MAX);
            overwrite(&mut call.body, 0, length);
            "huge path length"
        }
        3 => {
            let len = call.path().map_or(0, str::len);
            call.body.drain(4..4 + len);
            overwrite(&mut call.body, 0, -1);
            "null path"
        }
        4 => {
            let len = call.path().map_or(0, str::len);
            if len > 0 {
                let place = rng.random_range(4..4 + len);
                call.body[place] = *[0xff, 0xc3, 0x80, 0xed].choose(rng).unwrap_or(&0xff);
            }
            "path not UTF-8"
        }
        5 => spoil_acl_count(&mut call, rng),
        6 => {
            let len = call.path().map_or(0, str::len);
            overwrite(&mut call.body, 0, i32::try_from(len + 1).unwrap_or(0));
            "path length one too many"
        }
        7 => {
            let more = rng.random_range(1..20);
            call.body.extend((0..more).map(|_| rng.random::<u8>()));
            "longer"
        }
        _ => {
            let place = rng.random_range(0..call.body.len());
            call.body[place] ^= 1 << rng.random_range(0..8);
            "a bit flipped"
        }
    });
    call
}

/// A create's list of ACL entries gets a count that is not theirs.
fn spoil_acl_count(call: &mut Call, rng: &mut StdRng) -> &'static str {
    let is_create = matches!(
        call.op(),
        Some(OpCode::Create | OpCode::Create2 | OpCode::CreateContainer | OpCode::CreateTtl)
    );
    if !is_create {
        call.body.clear();
        return "empty";
    }
    let path_end = 4 + call.path().map_or(0, str::len);
    let data_len = call
        .body
        .get(path_end..path_end + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, i32::from_be_bytes);
    let place = path_end + 4 + usize::try_from(data_len).unwrap_or(0);
    let count = *[-2, 0, 2, 1_000_000, i32::MAX, i32::MIN]
        .choose(rng)
        .unwrap_or(&-2);
    overwrite(&mut call.body, place, count);
    "ACL count"
}

fn overwrite(body: &mut [u8], place: usize, value: i32) {
    if let Some(bytes) = body.get_mut(place..place + 4) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}

/// Bytes that break the framing of `slot`'s connection.
pub(crate) fn raw(slot: usize, rng: &mut StdRng) -> Step {
    let (what, bytes, end) = match rng.random_range(0..7) {
        0 => (
            "negative frame length",
            (-1_i32).to_be_bytes().to_vec(),
            false,
        ),
        1 => ("frame length MIN", i32::MIN.to_be_bytes().to_vec(), false),
        2 => ("frame too long", too_long(), false),
        3 => ("empty frame", 0_i32.to_be_bytes().to_vec(), false),
        4 => {
            let len = rng.random_range(1..8);
            let mut bytes = i32::to_be_bytes(len).to_vec();
            bytes.extend((0..len).map(|_| rng.random::<u8>()));
            ("frame without a whole header", bytes, false)
        }
        5 => ("half a length", vec![0, 0], true),
        _ => {
            let mut bytes = 40_i32.to_be_bytes().to_vec();
            bytes.extend([0, 0, 0, 9, 0, 0, 0, 4, 1, 2, 3]);
            ("half a frame", bytes, true)
        }
    };
    Step::Raw {
        slot,
        what,
        bytes,
        end,
    }
}

/// Bytes on a new connection that are no connect request.
pub(crate) fn stranger(rng: &mut StdRng) -> Step {
    let (what, bytes) = match rng.random_range(0..9) {
        0 => ("nothing", Vec::new()),
        1 => (
            "garbage",
            (0..rng.random_range(5..200))
                .map(|_| rng.random_range(0x80..=0xff))
                .collect(),
        ),
        2 => ("negative length", i32::MIN.to_be_bytes().to_vec()),
        3 => ("too long", too_long()),
        4 => ("empty frame", 0_i32.to_be_bytes().to_vec()),
        5 => {
            let mut bytes = 20_i32.to_be_bytes().to_vec();
            bytes.extend([0; 20]);
            ("connect request cut short", bytes)
        }
        6 => {
            let mut bytes = 44_i32.to_be_bytes().to_vec();
            bytes.extend([0; 24]);
            bytes.extend(rng.random_range(21..i32::MAX).to_be_bytes());
            bytes.extend([0; 16]);
            ("connect request with a lying password length", bytes)
        }
        7 => {
            let mut bytes = 44_i32.to_be_bytes().to_vec();
            bytes.extend([0; 24]);
            bytes.extend((-2_i32).to_be_bytes());
            bytes.extend([0; 16]);
            ("connect request with a negative password length", bytes)
        }
        _ => (
            "GET / HTTP",
            b"GET / HTTP/1.1\r\nHost: zoo\r\n\r\n".to_vec(),
        ),
    };
    Step::Stranger { what, bytes }
}

fn too_long() -> Vec<u8> {
    i32::try_from(FRAME_BYTES_MAX + 1)
        .unwrap_or(i32::MAX)
        .to_be_bytes()
        .to_vec()
}
