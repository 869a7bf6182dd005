//! What happened, one line an event; equal runs have equal hashes.
#![expect(clippy::print_stdout, reason = "the trace is what was asked for")]

/// The trace of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: u64,
    print: bool,
}

impl Trace {
    pub(crate) const fn new(print: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: 0,
            print,
        }
    }

    /// Notes what happened where: a member's number, or 0 for what is none's.
    pub(crate) fn note(&mut self, at_us: u64, who: usize, what: &'static str, a: u64, b: u64) {
        self.lines += 1;
        for part in [at_us, who as u64, a, b] {
            self.mix(part);
        }
        what.bytes().for_each(|byte| self.mix(u64::from(byte)));
        if self.print {
            let (seconds, micros) = (at_us / 1_000_000, at_us % 1_000_000);
            println!("{seconds:6}.{micros:06}  {who}  {what:<24} {a:>12x} {b:>18x}");
        }
    }

    /// Notes a fault.
    pub(crate) fn fault(&mut self, at_us: u64, what: &'static str) {
        self.note(at_us, 0, what, 0, 0);
    }

    const fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0100_0000_01b3);
        self.hash ^= self.hash >> 29;
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) const fn lines(&self) -> u64 {
        self.lines
    }
}
