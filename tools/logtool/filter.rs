//! Which transactions are wanted: the filters of `dump` and `stats`, and how values are typed.

use std::time::UNIX_EPOCH;

use clap::Args;
use ringkeeper_proto::{OpCode, SessionId, Txn, Zxid};

use crate::record::Span;
use crate::render::{Decoded, LOGGED, for_each_path, is_below, op_name};

/// Which transactions to look at
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only zxids above this one (0x100000003, 4294967299 or 1:3)
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    pub(crate) after: Option<Zxid>,
    /// Only zxids up to this one
    #[arg(long, value_name = "ZXID", value_parser = parse_zxid)]
    pub(crate) through: Option<Zxid>,
    /// Only those of a session (0x...)
    #[arg(long, value_name = "ID", value_parser = parse_session)]
    pub(crate) session: Option<SessionId>,
    /// Only those that name this path or one below it
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Only those of this type, alone or in a multi: create, setData, ...
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_op)]
    pub(crate) op: Option<OpCode>,
    /// Only those from this moment on (2026-01-31T12:00:00Z, or milliseconds since 1970)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) since: Option<i64>,
    /// Only those before this moment
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) until: Option<i64>,
}

impl Filter {
    /// The zxids wanted.
    pub(crate) fn span(&self) -> Span {
        Span {
            after: self.after.unwrap_or(Span::ALL.after),
            through: self.through.unwrap_or(Span::ALL.through),
        }
    }

    /// Whether a transaction is wanted.
    pub(crate) fn takes(&self, decoded: &Decoded<'_>) -> bool {
        let header = &decoded.header;
        self.session.is_none_or(|session| session == header.session)
            && self.since.is_none_or(|since| header.time_ms >= since)
            && self.until.is_none_or(|until| header.time_ms < until)
            && self.op.is_none_or(|op| has_op(header.op, &decoded.txn, op))
            && self
                .path
                .as_ref()
                .is_none_or(|prefix| names(&decoded.txn, prefix))
    }

    /// Whether everything is wanted.
    pub(crate) const fn is_empty(&self) -> bool {
        self.session.is_none()
            && self.since.is_none()
            && self.until.is_none()
            && self.op.is_none()
            && self.path.is_none()
    }
}

fn has_op(own: OpCode, txn: &Txn<'_>, wanted: OpCode) -> bool {
    own == wanted || matches!(txn, Txn::Multi(parts) if parts.iter().any(|(op, _)| *op == wanted))
}

fn names(txn: &Txn<'_>, prefix: &str) -> bool {
    let mut found = false;
    for_each_path(txn, &mut |path| found |= is_below(path, prefix));
    found
}

/// Reads a zxid: hexadecimal with 0x, decimal, or epoch:counter.
pub(crate) fn parse_zxid(text: &str) -> Result<Zxid, String> {
    let wrong = |_| format!("{text} is not a zxid (0x100000003, 4294967299 or 1:3)");
    if let Some((epoch, counter)) = text.split_once(':') {
        let epoch: u32 = epoch.parse().map_err(wrong)?;
        let counter: u32 = counter.parse().map_err(wrong)?;
        return Ok(Zxid((u64::from(epoch) << 32) | u64::from(counter)));
    }
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map(Zxid)
    .map_err(wrong)
}

fn parse_session(text: &str) -> Result<SessionId, String> {
    let wrong = |_| format!("{text} is not a session id (0x..., as ZooKeeper prints it)");
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map(u64::cast_signed),
        None => text.parse::<i64>(),
    }
    .map(SessionId)
    .map_err(wrong)
}

fn parse_op(text: &str) -> Result<OpCode, String> {
    let found = LOGGED
        .into_iter()
        .find(|op| op_name(*op).eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names: Vec<_> = LOGGED.into_iter().map(op_name).collect();
        format!(
            "no transaction has the type {text}; there are {}",
            names.join(", ")
        )
    })
}

fn parse_time(text: &str) -> Result<i64, String> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    let time = humantime::parse_rfc3339_weak(text)
        .map_err(|_| format!("{text} is not a time (2026-01-31T12:00:00Z)"))?;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).map_err(|_| format!("{text} is too far ahead"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zxids_and_sessions() {
        assert_eq!(parse_zxid("0x100000003"), Ok(Zxid(0x1_0000_0003)));
        assert_eq!(parse_zxid("1:3"), Ok(Zxid(0x1_0000_0003)));
        assert_eq!(parse_zxid("17"), Ok(Zxid(17)));
        assert!(parse_zxid("x").is_err() && parse_zxid("1:x").is_err());
        assert_eq!(
            parse_session("0xff00000000000001"),
            Ok(SessionId(-0x00ff_ffff_ffff_ffff))
        );
        assert_eq!(parse_op("setdata"), Ok(OpCode::SetData));
        assert!(parse_op("getData").unwrap_err().contains("createTTL"));
        assert_eq!(parse_time("1970-01-01 00:00:01"), Ok(1000));
    }
}
