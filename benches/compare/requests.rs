//! Requests encoded once, so that sending one costs a copy and a few patched bytes.

use bytes::BytesMut;
use rand::Rng;
use rand::rngs::SmallRng;
use ringkeeper_proto::request::CreateRequest;
use ringkeeper_proto::{Acl, AclList, OpCode, Request, Xid};

/// The znodes that set and get use.
pub(crate) const KEYS: u32 = 1_000;
/// Where they lie.
pub(crate) const KEYS_PARENT: &str = "/compare/keys";

/// What a load asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Sets of 100 bytes on random keys.
    Set,
    /// Gets of random keys.
    Get,
    /// Gets and sets: so many gets of a hundred.
    Mixed { gets_of_100: u32 },
    /// Creates with so many bytes under a parent of the connection's own.
    Create { bytes: usize },
    /// Deletes of what creates made, in the same order.
    Delete,
}

/// An encoded request whose path ends in digits that change.
#[derive(Clone, Debug)]
struct Template {
    frame: Vec<u8>,
    digits: std::ops::Range<usize>,
}

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Requests {
    mix: Mix,
    main: Template,
    get: Option<Template>,
    sent: u64,
    rng: SmallRng,
}

const KEY_DIGITS: usize = 5;
const NAME_DIGITS: usize = 9;
/// A frame's length, the request's header and the path's length stand before the path.
const PATH_AT: usize = 16;

impl Requests {
    pub(crate) fn new(mix: Mix, connection: usize, rng: SmallRng) -> Self {
        let key = key_path(0);
        let made = format!("{}/{:0NAME_DIGITS$}", parent(connection), 0);
        let (main, get) = match mix {
            Mix::Set => (Template::new(&set(&key), KEY_DIGITS), None),
            Mix::Get => (Template::new(&get(&key), KEY_DIGITS), None),
            Mix::Mixed { .. } => (
                Template::new(&set(&key), KEY_DIGITS),
                Some(Template::new(&get(&key), KEY_DIGITS)),
            ),
            Mix::Create { bytes } => (
                Template::new(&create(&made, &vec![b'c'; bytes]), NAME_DIGITS),
                None,
            ),
            Mix::Delete => {
                let request = Request::Delete {
                    path: &made,
                    version: -1,
                };
                (Template::new(&request, NAME_DIGITS), None)
            }
        };
        Self {
            mix,
            main,
            get,
            sent: 0,
            rng,
        }
    }

    /// Appends the next request.
    pub(crate) fn push(&mut self, xid: i32, out: &mut Vec<u8>) {
        let number = match self.mix {
            Mix::Create { .. } | Mix::Delete => self.sent,
            Mix::Set | Mix::Get | Mix::Mixed { .. } => self.rng.random_range(0..KEYS).into(),
        };
        self.sent += 1;
        match (self.mix, &self.get) {
            (Mix::Mixed { gets_of_100 }, Some(get))
                if self.rng.random_range(0..100) < gets_of_100 =>
            {
                get.push(xid, number, out);
            }
            _ => self.main.push(xid, number, out),
        }
    }

    /// How many have been sent.
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }
}

impl Template {
    fn new(request: &Request<'_>, digits: usize) -> Self {
        let mut frame = BytesMut::new();
        request.encode_frame(Xid(0), &mut frame);
        let frame = frame.to_vec();
        let path_len = match request {
            Request::Create { create, .. } => create.path.len(),
            Request::SetData { path, .. }
            | Request::GetData { path, .. }
            | Request::Delete { path, .. } => path.len(),
            _ => 0,
        };
        let end = PATH_AT + path_len;
        Self {
            digits: end.saturating_sub(digits)..end,
            frame,
        }
    }

    fn push(&self, xid: i32, mut number: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.frame);
        out[start + 4..start + 8].copy_from_slice(&xid.to_be_bytes());
        for at in self.digits.clone().rev() {
            out[start + at] = b"0123456789"[usize::try_from(number % 10).unwrap_or(0)];
            number /= 10;
        }
    }
}

/// The path of a key.
pub(crate) fn key_path(key: u32) -> String {
    format!("{KEYS_PARENT}/{key:0KEY_DIGITS$}")
}

/// The parent of what a connection creates.
pub(crate) fn parent(connection: usize) -> String {
    format!("/compare/made{connection:03}")
}

fn set(path: &str) -> Request<'_> {
    Request::SetData {
        path,
        data: Some(&[b's'; 100]),
        version: -1,
    }
}

/// A get.
pub(crate) const fn get(path: &str) -> Request<'_> {
    Request::GetData { path, watch: false }
}

/// A create of an ordinary znode that everybody may use.
pub(crate) fn create<'a>(path: &'a str, data: &'a [u8]) -> Request<'a> {
    Request::Create {
        op: OpCode::Create,
        create: CreateRequest {
            path,
            data: Some(data),
            acl: Some(AclList::new(&Acl::open())),
            flags: 0,
            ttl_ms: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use ringkeeper_proto::RequestHeader;

    #[test]
    fn patched_frames_are_what_would_be_encoded() {
        for mix in [Mix::Create { bytes: 100 }, Mix::Delete] {
            let mut requests = Requests::new(mix, 7, SmallRng::seed_from_u64(0));
            let mut out = Vec::new();
            requests.push(1, &mut out);
            out.clear();
            requests.push(0x0102_0304, &mut out);
            let path = format!("{}/000000001", parent(7));
            let expected = match mix {
                Mix::Create { .. } => create(&path, &[b'c'; 100]),
                _ => Request::Delete {
                    path: &path,
                    version: -1,
                },
            };
            let mut frame = BytesMut::new();
            expected.encode_frame(Xid(0x0102_0304), &mut frame);
            assert_eq!(out, frame);
        }
    }

    #[test]
    fn a_mix_has_its_shares_and_stays_among_the_keys() {
        let mix = Mix::Mixed { gets_of_100: 70 };
        let mut requests = Requests::new(mix, 0, SmallRng::seed_from_u64(1));
        let mut gets = 0;
        for xid in 0..2_000 {
            let mut out = Vec::new();
            requests.push(xid, &mut out);
            let (header, body) = RequestHeader::split(&out[4..]).unwrap();
            let op = OpCode::from_code(header.op_code()).unwrap();
            let (Request::GetData { path, .. } | Request::SetData { path, .. }) =
                Request::decode(op, body).unwrap()
            else {
                panic!("neither get nor set");
            };
            let key: u32 = path[KEYS_PARENT.len() + 1..].parse().unwrap();
            assert!(key < KEYS);
            gets += u32::from(op == OpCode::GetData);
        }
        assert!((1_300..1_500).contains(&gets), "{gets}");
    }
}
