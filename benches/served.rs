//! Programs of this workspace run by benches: a whole server and what fills it, and `ringkeeper-log`.

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringkeeper_harness::{Launch, Server, Session, four_letter_word};
use ringkeeper_proto::Request;

use crate::{create, path_of, target};

/// How long a server may take to do what it was told.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Settings of a server that takes no snapshot.
pub const NO_SNAPSHOTS: &str = "snapCount=2000000000\nsnapSizeLimitInKb=0\n";
/// Settings of a server that begins a snapshot as soon as the one before has ended and something was written.
pub const ALWAYS_SNAPSHOTS: &str = "snapCount=2\nsnapSizeLimitInKb=1\n";
/// Requests on their way at a time while data is made.
const PIPELINED: usize = 1000;

/// The program that `variable` names, or `target/release/NAME`.
///
/// # Panics
/// When there is none.
pub fn program(variable: &str, name: &str) -> PathBuf {
    let named = env::var_os(variable).map(PathBuf::from);
    let program = named.unwrap_or_else(|| target().join("release").join(name));
    program.canonicalize().unwrap_or_else(|error| {
        panic!(
            "no program at {} ({error}): `cargo build --release -p ringkeeper -p ringkeeper-logtool` makes it, {variable} \
             names another",
            program.display()
        )
    })
}

/// A server in `dir`, not started: `target/release/ringkeeper`, or what `RINGKEEPER_BIN` names.
///
/// # Panics
/// When there is no program, or no room for its files.
pub fn server(dir: &Path, settings: &str) -> Server {
    let program = program("RINGKEEPER_BIN", "ringkeeper");
    // Whatever the core is late with beside a snapshot is in the log.
    let logged = "--log-level info,ringkeeper::stalls=debug";
    let launch = Launch::parse(&format!("{} {logged} serve", program.display()));
    let launch = launch.expect("a command line without blanks");
    let server = Server::new(launch, dir).expect("room for its files");
    let mut file = OpenOptions::new()
        .append(true)
        .open(server.dir().join("zoo.cfg"))
        .expect("it was written just now");
    file.write_all(settings.as_bytes()).expect("room for it");
    server
}

/// The requests that make `znodes` znodes of 100 bytes below 100 parents, one by one.
///
/// # Panics
/// When the server refuses one.
pub fn fill(server: &Server, znodes: usize) {
    let parents = (0..100).map(|parent| (format!("/{parent}"), &b""[..]));
    let children = (0..znodes).map(|number| (path_of(number), &[b'x'; 100][..]));
    let mut session = Session::open(server.address(), 30_000).expect("the server takes clients");
    let mut pipeline = Pipeline::new(&mut session);
    for (path, data) in parents.chain(children) {
        pipeline.send(&create(&path, data));
    }
    pipeline.finish();
    session.close().expect("the server closes sessions");
}

/// Requests of one session, so many on their way at a time.
#[derive(Debug)]
pub struct Pipeline<'s> {
    session: &'s mut Session,
    on_their_way: usize,
}

impl<'s> Pipeline<'s> {
    /// Nothing is on its way.
    pub const fn new(session: &'s mut Session) -> Self {
        Self {
            session,
            on_their_way: 0,
        }
    }

    /// Sends a request, which must succeed.
    ///
    /// # Panics
    /// When the server refuses one.
    pub fn send(&mut self, request: &Request<'_>) {
        self.session.send(request);
        self.on_their_way += 1;
        if self.on_their_way == PIPELINED {
            self.finish();
        }
    }

    /// Waits for all replies.
    ///
    /// # Panics
    /// When the server refuses a request.
    pub fn finish(&mut self) {
        self.session.flush().expect("the server reads");
        for _ in 0..std::mem::take(&mut self.on_their_way) {
            let reply = self.session.receive().expect("the server answers");
            reply.ok().expect("the benches ask for what is possible");
        }
    }
}

/// The value of a line of `mntr`; empty when there is none.
///
/// # Panics
/// When the server does not answer.
pub fn metric(server: &Server, name: &str) -> String {
    let told = four_letter_word(server.address(), "mntr").expect("the server answers");
    let mut lines = told.lines().filter_map(|line| line.split_once('\t'));
    let found = lines.find(|(key, _)| *key == format!("zk_{name}"));
    found.map_or_else(String::new, |(_, value)| value.to_owned())
}

/// Ends the server in order.
///
/// # Panics
/// When it does not end so.
pub fn stop(server: &mut Server) {
    let status = server.terminate(PATIENCE).expect("the server can be told");
    assert!(
        status.is_some_and(|status| status.success()),
        "it stops in order"
    );
}
