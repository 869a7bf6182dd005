//! Structured logs on standard error that never stall the thread that logs.
//!
//! An event is formatted where it happens and handed to one writer thread through a bounded queue. When standard error is
//! a pipe that nobody reads, the queue fills, further lines are dropped, and the next line that does get out says how many.
//!
//! Invariants:
//! - Logging takes no lock that the writer thread holds while it writes, and never waits.
//! - At most [`LINES_MAX`] lines of at most [`LINE_BYTES_MAX`] bytes wait.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable with the level, or directives such as `info,ringkeeper_storage=debug`.
pub(crate) const ENVIRONMENT: &str = "RINGKEEPER_LOG";

/// How many lines may wait for the writer thread.
const LINES_MAX: usize = 4096;

/// What is kept of a line; a path of a client can be a megabyte long.
const LINE_BYTES_MAX: usize = 8192;

/// How many bytes the writer thread gathers before it writes.
const WRITE_BYTES: usize = 64 * 1024;

/// The queue of the process; set once, by [`start`].
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people: time, level, module, message, fields.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the writer thread and makes it the destination of all events. `directives` come from the command line and win
/// over the environment; without either, the level is `info`.
///
/// # Errors
/// When the directives cannot be understood, the thread cannot be started, or logging was started before.
pub(crate) fn start(directives: Option<&str>, format: Format) -> Result<()> {
    let from_environment = std::env::var(ENVIRONMENT).ok();
    let directives = directives.or(from_environment.as_deref()).unwrap_or("info");
    let filter = filter(directives)?;
    let queue = Queue::start(io::stderr()).context("start the log thread")?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue.clone());
    match format {
        Format::Text => {
            tracing::subscriber::set_global_default(subscriber.with_ansi(false).finish())
        }
        Format::Json => {
            tracing::subscriber::set_global_default(subscriber.event_format(JsonLines).finish())
        }
    }
    .context("start logging")?;
    QUEUE
        .set(queue)
        .map_err(|_| anyhow::anyhow!("logging was started before"))
}

/// Reads a level, or a list of `module=level`. The library would take a misspelled level for the name of a module.
fn filter(directives: &str) -> Result<EnvFilter> {
    let is_known = |directive: &str| {
        let level = directive.trim();
        level.contains('=') || (!level.is_empty() && level.parse::<LevelFilter>().is_ok())
    };
    match EnvFilter::try_new(directives) {
        Ok(filter) if directives.split(',').all(is_known) => Ok(filter),
        _ => bail!(
            "\"{directives}\" is not a log level (error, warn, info, debug, trace, off) or a list of module=level"
        ),
    }
}

/// Waits until all that was logged so far has been written, but not longer than `limit`.
pub(crate) fn flush(limit: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(limit);
    }
}

/// Lines that were dropped since the start because standard error took none, for `mntr`.
pub(crate) fn dropped_lines() -> u64 {
    QUEUE
        .get()
        .map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

/// The sending side; cheap to clone.
#[derive(Clone, Debug)]
struct Queue {
    lines: SyncSender<Message>,
    /// Only grows.
    dropped: &'static AtomicU64,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Everything sent before is to be written, then this answered.
    Flush(SyncSender<()>),
}

impl Queue {
    fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        Self::start_counting(output, &DROPPED)
    }

    fn start_counting(
        output: impl Write + Send + 'static,
        dropped: &'static AtomicU64,
    ) -> io::Result<Self> {
        let (lines, inbox) = mpsc::sync_channel(LINES_MAX);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&inbox, output, dropped))?;
        Ok(Self { lines, dropped })
    }

    fn flush(&self, limit: Duration) {
        let (done, wait) = mpsc::sync_channel(1);
        // A full queue means that standard error is stuck; then there is nothing to wait for.
        if self.lines.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }
}

/// The writer thread: gathers what waits and writes it in one go.
fn write_lines(inbox: &Receiver<Message>, mut output: impl Write, dropped: &AtomicU64) {
    let mut reported = 0;
    let mut buffer = Vec::new();
    let mut flushed = Vec::new();
    while let Ok(first) = inbox.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => buffer.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
            next = if buffer.len() < WRITE_BYTES {
                inbox.try_recv().ok()
            } else {
                None
            };
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > reported {
            let _ = writeln!(
                buffer,
                "{} log lines were dropped because standard error took none",
                lost - reported
            );
            reported = lost;
        }
        // Nobody is left to tell when this fails.
        let _ = output.write_all(&buffer).and_then(|()| output.flush());
        buffer.clear();
        for done in flushed.drain(..) {
            let _ = done.try_send(());
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { queue: self }
    }
}

/// Takes one formatted event; the formatter writes an event in one piece.
#[derive(Debug)]
struct LineWriter<'a> {
    queue: &'a Queue,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let kept = line.get(..LINE_BYTES_MAX).unwrap_or(line);
        let mut text = kept.to_vec();
        if kept.len() < line.len() {
            text.extend_from_slice(b"...\n");
        }
        match self.queue.lines.try_send(Message::Line(text)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.queue.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats an event as one JSON object: `time`, `level`, `target`, `message`, and its fields.
#[derive(Debug)]
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        write!(
            writer,
            "{{\"time\":\"{time}\",\"level\":\"{}\",\"target\":",
            metadata.level()
        )?;
        write_json_text(&mut writer, metadata.target())?;
        let mut fields = JsonFields {
            writer: writer.by_ref(),
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        writeln!(writer, "}}")
    }
}

struct JsonFields<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

impl JsonFields<'_> {
    fn put(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.result.is_ok() {
            self.result = (|| {
                self.writer.write_char(',')?;
                write_json_text(&mut self.writer, field.name())?;
                self.writer.write_char(':')?;
                value(&mut self.writer)
            })();
        }
    }
}

impl Visit for JsonFields<'_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |writer| write!(writer, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |writer| write!(writer, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |writer| write!(writer, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, |writer| write_json_text(writer, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, |writer| {
            write_json_text(writer, &format!("{value:?}"))
        });
    }
}

/// Writes a text as a JSON string.
fn write_json_text(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    writer.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(writer, "\\{c}")?,
            '\n' => writer.write_str("\\n")?,
            c if c.is_control() => write!(writer, "\\u{:04x}", u32::from(c))?,
            c => writer.write_char(c)?,
        }
    }
    writer.write_char('"')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written, and waits at the gate before each write.
    #[derive(Clone, Default)]
    struct Output {
        written: Arc<Mutex<Vec<u8>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
        }
    }

    fn queue(output: &Output) -> Queue {
        Queue::start_counting(output.clone(), Box::leak(Box::default())).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_written_in_order() {
        let output = Output::default();
        let queue = queue(&output);
        for line in ["one\n", "two\n"] {
            queue.make_writer().write_all(line.as_bytes()).unwrap();
        }
        queue.flush(LONG);
        assert_eq!(output.text(), "one\ntwo\n");
    }

    #[test]
    fn a_stuck_output_drops_lines_and_says_so_later() {
        let output = Output::default();
        let queue = queue(&output);
        let closed = output.gate.lock().unwrap();
        // This would never end if logging waited. The writer thread holds what it has gathered beside the full queue.
        for _ in 0..100_000 {
            queue.make_writer().write_all(&[b'x'; 64]).unwrap();
        }
        let lost = queue.dropped.load(Ordering::Relaxed);
        let gathered_max = WRITE_BYTES / 64 + 1;
        assert!(
            lost >= u64::try_from(100_000 - LINES_MAX - gathered_max).unwrap(),
            "{lost}"
        );
        drop(closed);
        // The queue drains now. Each flush that is taken makes the writer thread look at the count again.
        while reported(&output.text()) < lost {
            queue.flush(LONG);
        }
        assert_eq!(reported(&output.text()), lost);
    }

    fn reported(text: &str) -> u64 {
        let counts = text.split(['x', '\n']).filter_map(|line| {
            line.strip_suffix(" log lines were dropped because standard error took none")
        });
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn long_lines_are_cut() {
        let output = Output::default();
        let queue = queue(&output);
        queue.make_writer().write_all(&vec![b'x'; 1 << 20]).unwrap();
        queue.flush(LONG);
        assert_eq!(output.text().len(), LINE_BYTES_MAX + 4);
        assert!(output.text().ends_with("x...\n"));
    }

    #[test]
    fn levels_and_lists_are_told_from_slips() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,ringkeeper_storage=debug",
            "ringkeeper=trace",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,nonsense", "ringkeeper=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn json_lines_hold_fields_with_their_types() {
        let output = Output::default();
        let queue = queue(&output);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(queue.clone())
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(count = 3, path = "/a\"b\\\u{1}", ok = true, "two\nlines");
        });
        queue.flush(LONG);
        let text = output.text();
        assert!(text.starts_with("{\"time\":\"2"), "{text}");
        assert!(text.contains("\"level\":\"WARN\",\"target\":\""), "{text}");
        assert!(
            text.ends_with("\"message\":\"two\\nlines\",\"count\":3,\"path\":\"/a\\\"b\\\\\\u0001\",\"ok\":true}\n"),
            "{text}"
        );
    }
}
