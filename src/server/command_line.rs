//! The command line: what to do, with which configuration, and how to log.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use ringkeeper_config::{Config, Notice, Weight};
use ringkeeper_proto::ServerId;

use crate::fatal::Reason;
use crate::logging::Format;
use crate::{check, config_file, control, dev, fatal, logging};

/// A coordination service that speaks the ZooKeeper protocol, on io_uring.
///
/// Without a command it serves on 127.0.0.1:2181 with its data in ./data, to try it out.
#[derive(Debug, Parser)]
#[command(name = "ringkeeper", version, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    logging: Logging,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve in the foreground until SIGTERM or SIGINT.
    Serve {
        /// Configuration file, in the format of Apache ZooKeeper's zoo.cfg [default: built-in]
        config: Option<PathBuf>,
    },
    /// Validate a configuration and this machine without starting.
    Check {
        /// Configuration file, in the format of Apache ZooKeeper's zoo.cfg [default: built-in]
        config: Option<PathBuf>,
    },
    /// Have the leader that runs here hand its leadership over, without an election and without a client noticing.
    HandOver {
        /// Its configuration file
        config: PathBuf,
        /// The server that is to lead [default: the one that has most of the log]
        #[arg(long, value_name = "ID")]
        to: Option<u64>,
    },
    /// Run an ensemble on this machine, to try it out, until Ctrl-C.
    Dev {
        /// How many servers it has.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(dev::SERVERS_MAX)))]
        servers: u16,
        /// Client port of the first server; further ports are the next ones.
        #[arg(long, default_value_t = 2181)]
        port: u16,
        /// Where each has a directory.
        #[arg(long, default_value = "ringkeeper-dev")]
        dir: PathBuf,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
struct Settings {
    /// Set a key of the configuration; wins over the file. May be repeated.
    #[arg(short = 'D', long = "set", value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
}

#[derive(Debug, Args)]
struct Logging {
    /// error, warn, info, debug, trace or off; or a list such as info,ringkeeper_storage=debug [default: info]
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: Format,
}

/// Runs the command that the command line names. `serve` runs the server until it has stopped.
pub(crate) fn run(serve: fn(Config) -> Result<()>) -> ExitCode {
    let CommandLine {
        command,
        settings,
        logging,
    } = CommandLine::parse();
    let result = match command.unwrap_or(Command::Serve { config: None }) {
        Command::Serve { config } => run_server(config.as_deref(), &settings, &logging, serve),
        Command::Check { config } => return check::run(config.as_deref(), &settings.set),
        Command::Dev { servers, port, dir } => dev::run(&dev::Plan {
            servers,
            port,
            dir,
            arguments: for_members(&settings, &logging),
        }),
        Command::HandOver { config, to } => hand_over(&config, &settings, to.map(ServerId)),
        Command::Version => print_version(),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // Standard error and not the log, which may be what failed, or be filtered.
    logging::flush(Duration::from_secs(1));
    report(&error);
    ExitCode::from(Reason::of(&error).status())
}

#[expect(
    clippy::print_stdout,
    reason = "the answer to a question on the command line"
)]
fn hand_over(config: &Path, settings: &Settings, to: Option<ServerId>) -> Result<()> {
    let loaded = config_file::load(Some(config), &settings.set)?;
    let ask = control::Ask::HandOver { to };
    println!("{}", control::ask(&loaded.config, ask)?);
    Ok(())
}

/// The options that hold for every member of an ensemble, as they are written.
fn for_members(settings: &Settings, logging: &Logging) -> Vec<String> {
    let mut arguments = Vec::new();
    for setting in &settings.set {
        arguments.extend(["--set".to_owned(), setting.clone()]);
    }
    if let Some(level) = &logging.log_level {
        arguments.extend(["--log-level".to_owned(), level.clone()]);
    }
    arguments
}

fn run_server(
    file: Option<&Path>,
    settings: &Settings,
    options: &Logging,
    serve: fn(Config) -> Result<()>,
) -> Result<()> {
    logging::start(options.log_level.as_deref(), options.log_format)
        .context(Reason::Configuration)?;
    let loaded = config_file::load(file, &settings.set)?;
    loaded.notices.iter().for_each(log);
    let result = serve(loaded.config);
    logging::flush(Duration::from_secs(1));
    result
}

fn log(notice: &Notice) {
    match notice.weight {
        Weight::Info => tracing::info!("{notice}"),
        Weight::Warning => tracing::warn!("{notice}"),
    }
}

fn report(error: &anyhow::Error) {
    eprintln!("ringkeeper: {}", fatal::causes(error.chain()));
}

#[expect(
    clippy::print_stdout,
    reason = "the answer to a question on the command line"
)]
fn print_version() -> Result<()> {
    println!("ringkeeper {}", env!("CARGO_PKG_VERSION"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn settings_and_logging_may_stand_after_the_command() {
        let line = CommandLine::parse_from([
            "ringkeeper",
            "serve",
            "zoo.cfg",
            "-DsnapCount=7",
            "--set",
            "tickTime=100",
            "--log-level",
            "debug",
        ]);
        assert_eq!(line.settings.set, ["snapCount=7", "tickTime=100"]);
        assert_eq!(line.logging.log_level.as_deref(), Some("debug"));
        assert!(matches!(
            line.command,
            Some(Command::Serve { config: Some(_) })
        ));
    }

    #[test]
    fn no_command_serves() {
        assert!(CommandLine::parse_from(["ringkeeper"]).command.is_none());
        assert!(CommandLine::try_parse_from(["ringkeeper", "zoo.cfg"]).is_err());
    }
}
