//! Standard output, buffered, as text or as JSON.

use std::io::{self, BufWriter, Stdout, Write};

use serde_json::Value;

/// Where results go. Errors and progress go to standard error.
#[derive(Debug)]
pub(crate) struct Output {
    writer: BufWriter<Stdout>,
    /// Whether machines read it.
    pub(crate) json: bool,
    /// Whether nobody wants a progress bar.
    pub(crate) quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            writer: BufWriter::with_capacity(64 << 10, io::stdout()),
            json,
            quiet,
        }
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.writer.write_all(text.as_ref().as_bytes())?;
        self.writer.write_all(b"\n")
    }

    /// Writes a value on one line.
    pub(crate) fn value(&mut self, value: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, value)?;
        self.writer.write_all(b"\n")
    }

    /// Brings everything out.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
