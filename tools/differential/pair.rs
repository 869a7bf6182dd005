//! The oracle and the subject, and one script on both at the same time.

use std::thread;

use anyhow::{Result, anyhow};

use crate::compare::{Difference, Sides, Uses, compare};
use crate::execute::Executor;
use crate::observation::Transcript;
use crate::report::{Finding, Report};
use crate::script::Script;
use crate::servers::{Product, Server, Settings};
use crate::shrink::shrink;

/// How often a pair that failed is started anew before the run gives up.
const RESTARTS_MAX: usize = 10;

#[derive(Debug)]
struct Side {
    product: Product,
    server: Server,
    executor: Executor,
}

/// The two servers under comparison.
#[derive(Debug)]
pub(crate) struct Pair {
    settings: Settings,
    oracle: Side,
    subject: Side,
    restarts: usize,
}

impl Side {
    fn start(product: &Product, settings: Settings) -> Result<Self> {
        let server = Server::start(product, settings)?;
        let executor = Executor::new(server.address())?;
        Ok(Self {
            product: product.clone(),
            server,
            executor,
        })
    }

    fn start_afresh(&mut self, settings: Settings) -> Result<()> {
        let product = self.product.clone();
        *self = Self::start(&product, settings)?;
        Ok(())
    }

    fn run(&mut self, script: &Script) -> Result<Transcript> {
        self.executor
            .run(&mut self.server, script)
            .map_err(|error| {
                let state = if self.server.is_alive() {
                    "it still runs".to_owned()
                } else {
                    format!("its process has ended: {}", self.server.last_words())
                };
                error.context(format!("{:?} failed; {state}", self.product))
            })
    }
}

impl Pair {
    pub(crate) fn start(oracle: &Product, subject: &Product, settings: Settings) -> Result<Self> {
        let (oracle, subject) = thread::scope(|scope| {
            let first = scope.spawn(|| Side::start(oracle, settings));
            let second = Side::start(subject, settings);
            (join(first), second)
        });
        Ok(Self {
            settings,
            oracle: oracle?,
            subject: subject?,
            restarts: 0,
        })
    }

    /// What `script` shows on both.
    pub(crate) fn run(&mut self, script: &Script) -> Result<(Transcript, Transcript)> {
        let (oracle, subject) = (&mut self.oracle, &mut self.subject);
        let (theirs, ours) = thread::scope(|scope| {
            let first = scope.spawn(|| oracle.run(script));
            let ours = subject.run(script);
            (join(first), ours)
        });
        Ok((theirs?, ours?))
    }

    /// Runs `script`, compares, and adds to the report what came of it. A difference is shrunk if it is
    /// the first of its kind.
    pub(crate) fn check(&mut self, script: &Script, report: &mut Report) -> Result<()> {
        self.check_script(script, report)?;
        // An Apache that has logged a check by itself (ZOOKEEPER-2623) does not start again.
        if script.checks_alone() {
            self.start_afresh()?;
        }
        Ok(())
    }

    fn check_script(&mut self, script: &Script, report: &mut Report) -> Result<()> {
        let sides = Sides::of(&self.oracle.server, &self.subject.server);
        report.operations += script.operations();
        report.scripts += 1;
        let (theirs, ours) = match self.run(script) {
            Ok(transcripts) => transcripts,
            Err(error) => {
                report.add_failure(script, &error);
                return self.restart(&error);
            }
        };
        report.coverage.add(script, &theirs);
        report.note_silence(script, &theirs);
        let Some(difference) = compare(script, sides, &theirs, &ours, &mut report.uses) else {
            return Ok(());
        };
        if report.knows(&difference.signature) {
            report.count(&difference.signature, script);
            return Ok(());
        }
        let wanted = difference.signature.clone();
        let mut failed = None;
        let mut last = (script.clone(), theirs, ours, difference);
        shrink(script, |shorter| {
            if failed.is_some() {
                return false;
            }
            match self.differs(shorter, sides) {
                Ok(Some((theirs, ours, difference))) if difference.signature == wanted => {
                    last = (shorter.clone(), theirs, ours, difference);
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        let (shortest, theirs, ours, difference) = last;
        report.add(Finding {
            seed: script.seed,
            index: script.index,
            script: shortest,
            theirs,
            ours,
            difference,
        });
        match failed {
            None => Ok(()),
            Some(error) => self.restart(&error),
        }
    }

    fn differs(
        &mut self,
        script: &Script,
        sides: Sides,
    ) -> Result<Option<(Transcript, Transcript, Difference)>> {
        let (theirs, ours) = self.run(script)?;
        let difference = compare(script, sides, &theirs, &ours, &mut Uses::new());
        Ok(difference.map(|difference| (theirs, ours, difference)))
    }

    fn restart(&mut self, error: &anyhow::Error) -> Result<()> {
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            return Err(anyhow!("the servers failed too often; at last: {error:#}"));
        }
        self.start_afresh()
    }

    fn start_afresh(&mut self) -> Result<()> {
        self.oracle.start_afresh(self.settings)?;
        self.subject.start_afresh(self.settings)
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("the thread of a side panicked")))
}
