//! Transactions and znodes as people and machines read them.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringkeeper_proto::txn::{CreateKind, decode_record};
use ringkeeper_proto::{
    AclList, DecodeError, OpCode, Perms, SessionId, Txn, TxnDigest, TxnHeader, ZkError,
};
use serde_json::{Map, Value, json};

use crate::record::RecordAt;

/// Data longer than this is cut short in text, unless it is asked for.
const SHORT: usize = 40;

/// A decoded record.
#[derive(Debug)]
pub(crate) struct Decoded<'a> {
    pub(crate) header: TxnHeader,
    pub(crate) txn: Txn<'a>,
    pub(crate) digest: Option<TxnDigest>,
}

impl<'a> Decoded<'a> {
    /// Decodes a record's bytes.
    pub(crate) fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (header, txn, digest) = decode_record(bytes)?;
        Ok(Self {
            header,
            txn,
            digest,
        })
    }

    /// One line.
    pub(crate) fn line(&self, record: &RecordAt<'_>, with_data: bool) -> String {
        let header = &self.header;
        let mut line = String::new();
        if record.is_void {
            line.push_str("void ");
        }
        // Writing to a string cannot fail.
        let _infallible = write!(
            line,
            "{} {} session {} cxid {} ",
            header.zxid,
            time(header.time_ms),
            session(header.session),
            header.cxid
        );
        put_txn(&mut line, header.op, &self.txn, with_data);
        if let Some(digest) = &self.digest {
            let _infallible = write!(line, " digest {:#x}", digest.tree_digest);
        }
        line
    }

    /// The same for machines.
    pub(crate) fn json(&self, record: &RecordAt<'_>, with_data: bool) -> Value {
        let header = &self.header;
        let mut map = Map::new();
        let mut put = |name: &str, value: Value| {
            map.insert(name.to_owned(), value);
        };
        put("zxid", json!(header.zxid.to_string()));
        put("time", json!(time(header.time_ms)));
        put("time_ms", json!(header.time_ms));
        put("session", json!(session(header.session)));
        put("cxid", json!(header.cxid));
        put("bytes", json!(record.bytes.len()));
        put("file", json!(record.file.display().to_string()));
        put("offset", json!(record.offset));
        if let Some(batch) = record.batch {
            put("batch", json!(batch));
        }
        put("record", json!(record.index));
        put("void", json!(record.is_void));
        if let Some(digest) = &self.digest {
            put("digest", json!(format!("{:#x}", digest.tree_digest)));
        }
        put_json(&mut map, header.op, &self.txn, with_data);
        Value::Object(map)
    }
}

/// The name of an operation, as Apache's tools spell it.
pub(crate) const fn op_name(op: OpCode) -> &'static str {
    match op {
        OpCode::Create => "create",
        OpCode::Create2 => "create2",
        OpCode::CreateContainer => "createContainer",
        OpCode::CreateTtl => "createTTL",
        OpCode::Delete => "delete",
        OpCode::DeleteContainer => "deleteContainer",
        OpCode::SetData => "setData",
        OpCode::SetAcl => "setACL",
        OpCode::Check => "check",
        OpCode::Multi => "multi",
        OpCode::Reconfig => "reconfig",
        OpCode::CreateSession => "createSession",
        OpCode::CloseSession => "closeSession",
        OpCode::Error => "error",
        _ => "other",
    }
}

/// The operations that a log can hold.
pub(crate) const LOGGED: [OpCode; 14] = [
    OpCode::Create,
    OpCode::Create2,
    OpCode::CreateContainer,
    OpCode::CreateTtl,
    OpCode::Delete,
    OpCode::DeleteContainer,
    OpCode::SetData,
    OpCode::SetAcl,
    OpCode::Check,
    OpCode::Multi,
    OpCode::Reconfig,
    OpCode::CreateSession,
    OpCode::CloseSession,
    OpCode::Error,
];

/// The paths that a transaction names.
pub(crate) fn for_each_path(txn: &Txn<'_>, each: &mut dyn FnMut(&str)) {
    match txn {
        Txn::Create { path, .. }
        | Txn::Delete { path }
        | Txn::SetData { path, .. }
        | Txn::SetAcl { path, .. }
        | Txn::Check { path, .. } => each(path),
        Txn::CloseSession { paths: Some(paths) } => paths.iter().for_each(|path| each(path)),
        Txn::Multi(parts) => parts.iter().for_each(|(_, part)| for_each_path(part, each)),
        Txn::CreateSession { .. } | Txn::CloseSession { paths: None } | Txn::Error { .. } => {}
    }
}

/// Whether `path` is `prefix` or lies below it.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Milliseconds since 1970 as a date.
pub(crate) fn time(ms: i64) -> String {
    match u64::try_from(ms)
        .ok()
        .filter(|ms| *ms < 253_402_300_800_000)
    {
        Some(ms) => {
            humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
        }
        None => format!("{ms} ms"),
    }
}

/// A session as ZooKeeper's tools print it.
pub(crate) fn session(session: SessionId) -> String {
    format!("{:#x}", session.0)
}

/// An ACL on one line.
pub(crate) fn acl(list: &AclList<'_>) -> String {
    let entries: Vec<String> = list
        .iter()
        .map(|entry| format!("{}:{}:{}", entry.scheme, entry.id, perms(entry.perms)))
        .collect();
    if entries.is_empty() {
        "none".to_owned()
    } else {
        entries.join(",")
    }
}

fn perms(perms: Perms) -> String {
    let letters = [
        (Perms::CREATE, 'c'),
        (Perms::DELETE, 'd'),
        (Perms::READ, 'r'),
        (Perms::WRITE, 'w'),
        (Perms::ADMIN, 'a'),
    ];
    let set = letters.into_iter().filter(|(perm, _)| perms.allows(*perm));
    set.map(|(_, letter)| letter).collect()
}

/// Data as text where it is text, else as base64; cut short unless `whole`.
pub(crate) fn data(data: Option<&[u8]>, whole: bool) -> String {
    let Some(data) = data else {
        return "null".to_owned();
    };
    let shown = if whole {
        data
    } else {
        data.get(..SHORT).unwrap_or(data)
    };
    let dots = if shown.len() < data.len() { ".." } else { "" };
    let is_plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    match std::str::from_utf8(shown) {
        Ok(text) if text.chars().all(is_plain) => format!("{text:?}{dots}"),
        _ => format!("base64 {}{dots}", STANDARD.encode(shown)),
    }
}

/// Data for machines.
pub(crate) fn data_json(data: Option<&[u8]>) -> Value {
    data.map_or(Value::Null, |data| json!(STANDARD.encode(data)))
}

fn put_txn(line: &mut String, op: OpCode, txn: &Txn<'_>, with_data: bool) {
    let name = op_name(op);
    let bytes = |data: &Option<&[u8]>| data.map_or(0, <[u8]>::len);
    let _infallible = match txn {
        Txn::Create {
            path,
            data: content,
            acl: list,
            kind,
            parent_cversion,
        } => {
            let kind = match kind {
                CreateKind::Plain { ephemeral: true } => " ephemeral".to_owned(),
                CreateKind::Plain { ephemeral: false } => String::new(),
                CreateKind::Container => " container".to_owned(),
                CreateKind::Ttl(ms) => format!(" ttl {ms} ms"),
            };
            write!(
                line,
                "{name} {path}{kind} acl {} parent_cversion {parent_cversion} data {} {}",
                acl(list),
                bytes(content),
                data(*content, with_data)
            )
        }
        Txn::Delete { path } => write!(line, "{name} {path}"),
        Txn::SetData {
            path,
            data: content,
            version,
        } => write!(
            line,
            "{name} {path} version {version} data {} {}",
            bytes(content),
            data(*content, with_data)
        ),
        Txn::SetAcl {
            path,
            acl: list,
            version,
        } => {
            write!(line, "{name} {path} version {version} acl {}", acl(list))
        }
        Txn::Check { path, version } => write!(line, "{name} {path} version {version}"),
        Txn::CreateSession { timeout_ms } => write!(line, "{name} timeout {timeout_ms} ms"),
        Txn::CloseSession { paths: None } => write!(line, "{name}"),
        Txn::CloseSession { paths: Some(paths) } => {
            write!(
                line,
                "{name} ephemerals {} {}",
                paths.len(),
                paths.join(" ")
            )
        }
        Txn::Error { code } => write!(line, "{name} {code} {}", error_name(*code)),
        Txn::Multi(parts) => {
            let _infallible = write!(line, "{name} {} [", parts.len());
            for (at, (op, part)) in parts.iter().enumerate() {
                if at > 0 {
                    line.push_str("; ");
                }
                put_txn(line, *op, part, with_data);
            }
            write!(line, "]")
        }
    };
}

fn put_json(map: &mut Map<String, Value>, op: OpCode, txn: &Txn<'_>, with_data: bool) {
    let mut put = |name: &str, value: Value| {
        map.insert(name.to_owned(), value);
    };
    put("type", json!(op_name(op)));
    match txn {
        Txn::Create {
            path,
            data,
            acl: list,
            kind,
            parent_cversion,
        } => {
            put("path", json!(path));
            put("data_bytes", json!(data.map_or(0, <[u8]>::len)));
            if with_data {
                put("data_base64", data_json(*data));
            }
            put("acl", acl_json(list));
            put("parent_cversion", json!(parent_cversion));
            match kind {
                CreateKind::Plain { ephemeral } => put("ephemeral", json!(ephemeral)),
                CreateKind::Container => put("container", json!(true)),
                CreateKind::Ttl(ms) => put("ttl_ms", json!(ms)),
            }
        }
        Txn::Delete { path } => put("path", json!(path)),
        Txn::SetData {
            path,
            data,
            version,
        } => {
            put("path", json!(path));
            put("version", json!(version));
            put("data_bytes", json!(data.map_or(0, <[u8]>::len)));
            if with_data {
                put("data_base64", data_json(*data));
            }
        }
        Txn::SetAcl {
            path,
            acl: list,
            version,
        } => {
            put("path", json!(path));
            put("version", json!(version));
            put("acl", acl_json(list));
        }
        Txn::Check { path, version } => {
            put("path", json!(path));
            put("version", json!(version));
        }
        Txn::CreateSession { timeout_ms } => put("timeout_ms", json!(timeout_ms)),
        Txn::CloseSession { paths } => put("ephemerals", json!(paths)),
        Txn::Error { code } => {
            put("code", json!(code));
            put("error", json!(error_name(*code)));
        }
        Txn::Multi(parts) => {
            let parts = parts.iter().map(|(op, part)| {
                let mut map = Map::new();
                put_json(&mut map, *op, part, with_data);
                Value::Object(map)
            });
            put("parts", Value::Array(parts.collect()));
        }
    }
}

/// An ACL for machines.
pub(crate) fn acl_json(list: &AclList<'_>) -> Value {
    let entries = list
        .iter()
        .map(|entry| json!({"scheme": entry.scheme, "id": entry.id, "perms": perms(entry.perms)}));
    Value::Array(entries.collect())
}

fn error_name(code: i32) -> String {
    ZkError::from_code(code).map_or_else(|| "unknown".to_owned(), |error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_a_component() {
        for (path, prefix, expected) in [
            ("/a/b", "/a", true),
            ("/a", "/a", true),
            ("/ab", "/a", false),
            ("/ab", "/", true),
            ("/a/b", "/a/", true),
            ("/", "/a", false),
        ] {
            assert_eq!(is_below(path, prefix), expected, "{path} {prefix}");
        }
    }

    #[test]
    fn data_is_text_where_it_can_be() {
        assert_eq!(data(None, false), "null");
        assert_eq!(data(Some(b"ab\"c"), false), "\"ab\\\"c\"");
        assert_eq!(data(Some(&[0, 255]), false), "base64 AP8=");
        assert_eq!(
            data(Some(&[b'x'; 50]), false),
            format!("\"{}\"..", "x".repeat(40))
        );
        assert_eq!(
            data(Some(&[b'x'; 50]), true),
            format!("\"{}\"", "x".repeat(50))
        );
    }
}
