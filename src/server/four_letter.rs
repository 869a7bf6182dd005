//! The four-letter words: commands sent raw on a client port, answered with text, then closed.
//!
//! ZK: org.apache.zookeeper.server.command. The shapes of the outputs are Apache's, because scripts
//! and monitoring agents parse them. A value that is not measured is left out, never made up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};
use std::{env, fs};

use ringkeeper_member::{Settings, Standing};
use ringkeeper_proto::{SessionId, Zxid};
use ringkeeper_tree::Tree;

use crate::clock;
use crate::link::Links;
use crate::messages::{CoreMessage, ShardMessage};
use crate::monitor;
use crate::report::{ConnectionReport, Report, Wanted};

/// The words there are. `telnet close` (0xfff4fffd) is handled as one.
const WORDS: [&[u8; 4]; 17] = [
    b"conf", b"cons", b"crst", b"dirs", b"dump", b"envi", b"gtmk", b"hash", b"isro", b"mntr",
    b"ruok", b"srst", b"srvr", b"stat", b"stmk", b"wchs", b"wchc",
];

/// `wchp`, the last of them.
const WCHP: &[u8; 4] = b"wchp";

/// What telnet sends on ^C: the connection is just closed.
const TELNET_CLOSE: [u8; 4] = [0xff, 0xf4, 0xff, 0xfd];

/// The trace mask that Apache starts with; `stmk` sets another, which nothing here looks at.
const TRACE_MASK_DEFAULT: u64 = 0b1_0011_0010;

/// Whether a connection's first four bytes are a four-letter word. Read as the length of a connect
/// request each of them would be over 1.6 GB, so there is no doubt.
pub(crate) fn is_word(bytes: [u8; 4]) -> bool {
    bytes == TELNET_CLOSE || &bytes == WCHP || WORDS.contains(&&bytes)
}

/// The answer to a four-letter word. `rest` is what came after it (`stmk` takes eight bytes).
pub(crate) async fn answer(
    word: [u8; 4],
    rest: &[u8],
    settings: &Settings,
    links: &Links,
) -> String {
    let name = String::from_utf8_lossy(&word).into_owned();
    if word == TELNET_CLOSE {
        return String::new();
    }
    if !settings.config.words.is_allowed(&name) {
        return format!("{name} is not executed because it is not in the whitelist.\n");
    }
    match &word {
        b"ruok" => "imok".into(),
        b"gtmk" => TRACE_MASK_DEFAULT.to_string(),
        b"stmk" => trace_mask(rest),
        b"conf" => configuration(settings),
        b"envi" => environment(),
        b"dirs" => directories(settings),
        b"crst" => {
            reset(links, true).await;
            "Connection stats reset.\n".into()
        }
        b"srst" => {
            reset(links, false).await;
            "Server stats reset.\n".into()
        }
        _ => {
            let wanted = Wanted {
                connections: matches!(&word, b"cons" | b"stat" | b"dump"),
                watches: matches!(&word, b"wchs" | b"wchc" | b"wchp"),
                sessions: &word == b"dump",
            };
            report(word, &Report::collect(links, wanted).await, links)
        }
    }
}

fn report(word: [u8; 4], report: &Report, links: &Links) -> String {
    if !report.core.standing.is_serving() {
        return match &word {
            b"isro" => "null".into(),
            _ => "This ZooKeeper instance is not currently serving requests\n".into(),
        };
    }
    match &word {
        b"isro" if report.core.standing == Standing::ReadOnly => "ro".into(),
        b"isro" => "rw".into(),
        b"srvr" => server(report, links, false),
        b"stat" => server(report, links, true),
        b"cons" => {
            let mut text = String::new();
            for connection in report.connections() {
                text.push_str(&connection_line(connection, false));
                text.push('\n');
            }
            text + "\n"
        }
        b"dump" => dump(report),
        b"hash" => hash(report),
        b"mntr" => monitor::answer(report, links),
        b"wchs" => {
            let sessions = report.watches_by_session();
            let total: usize = sessions.values().map(|paths| paths.len()).sum();
            format!(
                "{} connections watching {} paths\nTotal watches:{total}\n",
                sessions.len(),
                report.watches_by_path().len()
            )
        }
        b"wchc" => {
            let mut text = String::new();
            for (session, paths) in report.watches_by_session() {
                _ = writeln!(text, "{session}");
                paths.iter().for_each(|path| _ = writeln!(text, "\t{path}"));
            }
            text + "\n"
        }
        _ => {
            let mut text = String::new();
            for (path, sessions) in report.watches_by_path() {
                _ = writeln!(text, "{path}");
                sessions
                    .iter()
                    .for_each(|session| _ = writeln!(text, "\t{session}"));
            }
            text + "\n"
        }
    }
}

async fn reset(links: &Links, connections: bool) {
    for shard in &links.shards {
        // A mailbox is closed only when the server is stopping.
        _ = shard
            .send_wait(ShardMessage::ResetStatistics { connections })
            .await;
    }
    if !connections {
        _ = links.core.send_wait(CoreMessage::ResetStatistics).await;
    }
}

fn trace_mask(rest: &[u8]) -> String {
    rest.first_chunk::<8>()
        .map_or_else(String::new, |mask| u64::from_be_bytes(*mask).to_string())
}

/// What `srvr` and `mntr` call the version: the ZooKeeper version whose behaviour this is, and ours.
pub(crate) fn version() -> String {
    format!("3.9.3-ringkeeper-{}", env!("CARGO_PKG_VERSION"))
}

fn server(report: &Report, links: &Links, clients: bool) -> String {
    let mut text = format!("Zookeeper version: {}\n", version());
    if report.core.standing == Standing::ReadOnly {
        text.push_str("READ-ONLY mode; serving only read-only clients\n");
    }
    if clients {
        text.push_str("Clients:\n");
        for connection in report.connections() {
            text.push_str(&connection_line(connection, true));
            text.push('\n');
        }
        text.push('\n');
    }
    let stats = report.stats();
    let tree = report.tree();
    let latency = stats.latency();
    _ = write!(
        text,
        "Latency min/avg/max: {}/{}/{}\nReceived: {}\nSent: {}\nConnections: {}\nOutstanding: {}\n\
         Zxid: {}\nMode: {}\nNode count: {}\n",
        latency.min_ms,
        latency.avg_ms,
        latency.max_ms,
        stats.received,
        stats.sent,
        links.counts.connections(),
        links.counts.outstanding(),
        tree.map_or(Zxid::ZERO, Tree::zxid),
        report.core.standing.name(),
        tree.map_or(0, Tree::node_count),
    );
    text
}

fn connection_line(connection: &ConnectionReport, brief: bool) -> String {
    let stats = &connection.stats;
    let mut line = format!(
        " /{}[{}](queued={},recved={},sent={}",
        connection.peer,
        u8::from(connection.reading),
        connection.queued,
        stats.received,
        stats.sent
    );
    if !brief && connection.session != SessionId::NONE {
        _ = write!(
            line,
            ",sid={},lop={},est={},to={}",
            connection.session,
            stats.last_op_name(),
            stats.established_ms,
            connection.timeout_ms
        );
        if stats.last_xid >= 0 {
            _ = write!(line, ",lcxid={:#x}", stats.last_xid);
        }
        _ = write!(
            line,
            ",lzxid={},lresp={},llat={},minlat={},avglat={},maxlat={}",
            stats.last_zxid,
            stats.last_response_ms,
            stats.last_latency_ms,
            stats.latency_min_ms.unwrap_or(0),
            stats.latency_avg_ms(),
            stats.latency_max_ms
        );
    }
    line + ")"
}

fn dump(report: &Report) -> String {
    let core = &report.core;
    let mut text = "SessionTracker dump:\n".to_owned();
    if let Some(due) = &core.local_due {
        put_session_sets("Local Session", due, &mut text);
    }
    // ZK: a learner knows of the sessions, and not when they expire.
    match (core.standing.proposes(), report.tree()) {
        (false, Some(tree)) => put_sessions(tree, &mut text),
        _ if core.local_due.is_some() => put_session_sets("Global Session", &core.due, &mut text),
        _ => put_session_sets("Session", &core.due, &mut text),
    }
    text.push_str("ephemeral nodes dump:\n");
    if let Some(tree) = report.tree() {
        let owners = tree.ephemeral_owners();
        _ = writeln!(text, "Sessions with Ephemerals ({}):", owners.len());
        for (owner, _) in owners {
            _ = writeln!(text, "{owner}:");
            tree.ephemerals(owner)
                .for_each(|path| _ = writeln!(text, "\t{path}"));
        }
    }
    let connections = report.connections().count();
    _ = writeln!(
        text,
        "Connections dump:\nConnections Sets ({connections})/({connections}):"
    );
    for connection in report.connections() {
        _ = writeln!(
            text,
            "\tip: /{} sessionId: {}",
            connection.peer, connection.session
        );
    }
    text
}

fn put_session_sets(kind: &str, due: &[(i64, Vec<SessionId>)], text: &mut String) {
    let count: usize = due.iter().map(|(_, sessions)| sessions.len()).sum();
    _ = writeln!(text, "{kind} Sets ({})/({count}):", due.len());
    for (in_ms, sessions) in due {
        _ = writeln!(text, "{} expire at {}:", sessions.len(), date_in(*in_ms));
        sessions
            .iter()
            .for_each(|session| _ = writeln!(text, "\t{session}"));
    }
}

fn put_sessions(tree: &Tree, text: &mut String) {
    let sessions: BTreeMap<_, _> = tree.sessions().collect();
    _ = writeln!(text, "Global Sessions({}):", sessions.len());
    for (session, timeout_ms) in sessions {
        _ = writeln!(text, "{session}\t{timeout_ms}ms");
    }
}

fn hash(report: &Report) -> String {
    report
        .core
        .digests
        .iter()
        .fold(String::new(), |mut text, (zxid, digest)| {
            _ = writeln!(text, "{:x}: {digest}", zxid.0);
            text
        })
}

fn configuration(settings: &Settings) -> String {
    let config = &settings.config;
    let (data, log) = (&config.files.data_dir, &config.files.log_dir);
    format!(
        "clientPort={}\nsecureClientPort=-1\ndataDir={}\ndataDirSize={}\ndataLogDir={}\n\
         dataLogSize={}\ntickTime={}\nmaxClientCnxns={}\nminSessionTimeout={}\n\
         maxSessionTimeout={}\nclientPortListenBacklog={}\nserverId={}\n",
        config.clients.address.port,
        data.display(),
        directory_bytes(data),
        log.display(),
        directory_bytes(log),
        config.ensemble.tick_ms,
        config.clients.per_address_max.unwrap_or(0),
        config.ensemble.session_timeout_ms_min,
        config.ensemble.session_timeout_ms_max,
        config.clients.listen_backlog,
        settings.server_id,
    )
}

fn directories(settings: &Settings) -> String {
    format!(
        "datadir_size: {}\nlogdir_size: {}\n",
        directory_bytes(&settings.config.files.data_dir),
        directory_bytes(&settings.config.files.log_dir)
    )
}

fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            entry
                .metadata()
                .ok()
                .map(|metadata| (entry.path(), metadata))
        })
        .map(|(path, metadata)| {
            if metadata.is_dir() {
                directory_bytes(&path)
            } else {
                metadata.len()
            }
        })
        .sum()
}

fn environment() -> String {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let home = env::var("HOME").unwrap_or_default();
    let user = env::var("USER").unwrap_or_default();
    let here = env::current_dir().unwrap_or_default();
    format!(
        "Environment:\nzookeeper.version={}\nhost.name={}\nos.name=Linux\nos.arch={}\nos.version={}\n\
         user.name={user}\nuser.home={home}\nuser.dir={}\n",
        version(),
        read("/proc/sys/kernel/hostname"),
        env::consts::ARCH,
        read("/proc/sys/kernel/osrelease"),
        here.display()
    )
}

fn date_in(in_ms: i64) -> String {
    let at = clock::wall_ms().saturating_add(in_ms);
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at).unwrap_or(0));
    humantime::format_rfc3339_millis(at).to_string()
}
