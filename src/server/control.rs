//! The control socket: how an operator on this machine tells the running server something that no stranger on the
//! network may.
//!
//! A Unix socket in the server's own folder. Who can reach it could replace the data as well; beyond that its user
//! must be the server's, or root. One line is asked, one line is answered.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ringkeeper_config::Config;
use ringkeeper_proto::ServerId;
use ringkeeper_storage::FOLDER;
use ringkeeper_transport::mailbox::Sender;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use crate::messages::CoreMessage;

const NAME: &str = "control";

/// A longer line asks for nothing.
const LINE_BYTES_MAX: u64 = 64;

/// How long a line may take to come.
const ASK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long an answer may take: a hand-over is over, one way or the other, within a few ticks.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// What is asked of the running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Hand leadership over, to this server or whichever has most of the log.
    HandOver { to: Option<ServerId> },
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandOver { to: None } => f.write_str("hand-over"),
            Self::HandOver { to: Some(to) } => write!(f, "hand-over {}", to.0),
        }
    }
}

impl Ask {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let ask = match (words.next()?, words.next()) {
            ("hand-over", None) => Self::HandOver { to: None },
            ("hand-over", Some(id)) => {
                let to = Some(ServerId(id.parse().ok()?));
                Self::HandOver { to }
            }
            _ => return None,
        };
        words.next().is_none().then_some(ask)
    }
}

/// Done, and how; or why not.
pub(crate) type Answer = Result<String, String>;

/// Where the answer goes.
pub(crate) type AnswerTo = mpsc::Sender<Answer>;

/// Takes what is asked from now on, on a thread of its own; it ends with the process.
///
/// # Errors
/// What the system says. Without the socket the server serves all the same.
pub(crate) fn listen(config: &Config, core: Sender<CoreMessage>) -> io::Result<()> {
    let socket = Place::of(&config.files.data_dir)?;
    // One that was killed leaves its socket; that no other server has this directory its lock has told.
    match fs::remove_file(&socket.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&socket.path)?;
    let serve = move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(|stream| serve(&stream, &core)) {
                tracing::warn!(%error, "control socket");
            }
        }
    };
    thread::Builder::new().name("control".into()).spawn(serve)?;
    Ok(())
}

fn serve(mut stream: &UnixStream, core: &Sender<CoreMessage>) -> io::Result<()> {
    let user = socket_peercred(stream)?.uid;
    if user != geteuid() && !user.is_root() {
        return writeln!(stream, "error this user may not ask for anything");
    }
    stream.set_read_timeout(Some(ASK_WAIT_MAX))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let Some(ask) = Ask::parse(&line) else {
        return writeln!(stream, "error nothing is known by that name");
    };
    tracing::info!(%ask, "asked for by an operator");
    let (to, answer) = mpsc::channel();
    let answer = match core.send(CoreMessage::Asked { ask, to }) {
        Ok(()) => answer.recv_timeout(ANSWER_WAIT_MAX),
        Err(_) => return writeln!(stream, "error the server is stopping, or very busy"),
    };
    match answer {
        Ok(Ok(done)) => writeln!(stream, "ok {done}"),
        Ok(Err(reason)) => writeln!(stream, "error {reason}"),
        Err(_) => writeln!(stream, "error no answer"),
    }
}

/// Has the server of this process hand leadership over, if it leads, and waits until another one leads, or `wait_max`
/// is over.
pub(crate) fn hand_over_and_wait(core: &Sender<CoreMessage>, wait_max: Duration) {
    let (to, answer) = mpsc::channel();
    let ask = Ask::HandOver { to: None };
    if core.send(CoreMessage::Asked { ask, to }).is_err() {
        return;
    }
    match answer.recv_timeout(wait_max) {
        Ok(Ok(done)) => tracing::info!("handed over before the end: {done}"),
        Ok(Err(reason)) => tracing::debug!(reason, "nothing is handed over before the end"),
        Err(_) => tracing::warn!(
            ?wait_max,
            "nobody has taken over in time: stopping as leader"
        ),
    }
}

/// Asks the server that runs with `config`.
///
/// # Errors
/// Why what was asked for has not been done.
pub(crate) fn ask(config: &Config, ask: Ask) -> Result<String> {
    let data_dir = &config.files.data_dir;
    let place = Place::of(data_dir);
    let connected = place.and_then(|place| UnixStream::connect(&place.path));
    let mut stream = connected.with_context(|| {
        format!(
            "no member of an ensemble runs here with the data in {}",
            data_dir.display()
        )
    })?;
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX + ASK_WAIT_MAX))?;
    writeln!(stream, "{ask}")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("the server's answer")?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", done)) => Ok(done.to_owned()),
        Some(("error", reason)) => bail!("{reason}"),
        _ => bail!("the server has ended without an answer"),
    }
}

/// Where the socket is, by a name that is short however long the directory's is: a socket's may have about 100
/// bytes.
struct Place {
    path: PathBuf,
    /// The name is good while this is open.
    _folder: File,
}

impl Place {
    fn of(data_dir: &Path) -> io::Result<Self> {
        let folder = File::open(data_dir.join(FOLDER))?;
        let path = format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd());
        Ok(Self {
            path: path.into(),
            _folder: folder,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_asked() {
        for to in [None, Some(ServerId(3))] {
            let ask = Ask::HandOver { to };
            assert_eq!(Ask::parse(&format!("{ask}\n")), Some(ask));
        }
        for line in [
            "",
            "\n",
            "hand-over x",
            "hand-over 1 2",
            "hand-over -1",
            "stop",
        ] {
            assert_eq!(Ask::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn who_asks_gets_the_answer_however_long_the_directory_is_called() {
        let temporary = tempfile::tempdir().unwrap();
        let mut config = ringkeeper_config::Loaded::new(
            &ringkeeper_config::RawConfig::embedded(),
            &ringkeeper_config::Beside::default(),
        )
        .unwrap()
        .config;
        config.files.data_dir = temporary.path().join("d".repeat(150));
        let hand_over = Ask::HandOver { to: None };
        assert!(ask(&config, hand_over).is_err(), "nobody is there");
        fs::create_dir_all(config.files.data_dir.join(FOLDER)).unwrap();
        let (core, mut inbox) = ringkeeper_transport::mailbox::bounded(1);
        // A socket that was left behind is in nobody's way.
        listen(&config, core.clone()).unwrap();
        listen(&config, core).unwrap();
        let asking = thread::spawn(move || {
            [ask(&config, hand_over), ask(&config, hand_over)]
                .map(|answer| answer.map_err(|error| error.to_string()))
        });
        for answer in [Ok("done".to_owned()), Err("not today".to_owned())] {
            let mut batch = Vec::new();
            while inbox.try_recv_batch(&mut batch) == 0 {
                thread::yield_now();
            }
            let Some(CoreMessage::Asked { ask, to }) = batch.pop() else {
                panic!("{batch:?}");
            };
            assert_eq!(ask, hand_over);
            to.send(answer).unwrap();
        }
        let answers = asking.join().unwrap();
        assert_eq!(
            answers,
            [Ok("done".to_owned()), Err("not today".to_owned())]
        );
    }

    #[test]
    fn who_stops_waits_for_the_next_leader_and_not_for_ever() {
        let (core, mut inbox) = ringkeeper_transport::mailbox::bounded(1);
        let stopping = {
            let core = core.clone();
            thread::spawn(move || hand_over_and_wait(&core, Duration::from_secs(600)))
        };
        let mut batch = Vec::new();
        while inbox.try_recv_batch(&mut batch) == 0 {
            thread::yield_now();
        }
        let Some(CoreMessage::Asked { ask, to }) = batch.pop() else {
            panic!("{batch:?}");
        };
        assert_eq!(ask, Ask::HandOver { to: None });
        assert!(!stopping.is_finished(), "nobody leads yet");
        to.send(Ok("server 3 leads".to_owned())).unwrap();
        stopping.join().unwrap();
        // Nobody answers.
        hand_over_and_wait(&core, Duration::from_millis(1));
        assert_eq!(inbox.try_recv_batch(&mut batch), 1);
    }
}
