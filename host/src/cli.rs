//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;
use trylist::process::control::ServerMark;

use crate::log::Filter;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; or stopped by a signal, after all requests had ended
  1  failed at run time: an address in use, a file that cannot be written, requests cut off at the end
  2  the command line is wrong
  3  the configuration is refused
  4  a module is refused, refuses its settings, or breaks the contract";

/// A load-balancing reverse proxy; what balances is a module named in the configuration
#[derive(Debug, Parser)]
#[command(name = "trylist", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// What to log on stderr: error, warn, info, debug, trace or off; also for parts, as in `info,trylist::serve::pool=debug`
    /// [default: info; for check: warn]
    #[arg(long, value_name = "LEVEL", env = "TRYLIST_LOG", global = true, value_parser = asked_level)]
    log_level: Option<Asked>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// What to log: as asked for, or what the command is run for. Who checks a file looks for what is wrong with it.
    pub(crate) fn log_level(&self) -> Filter {
        let default = match self.command {
            Command::Check(_) => LevelFilter::WARN,
            _ => LevelFilter::INFO,
        };
        match &self.log_level {
            Some(Asked(Some(level))) => level.clone(),
            Some(Asked(None)) | None => default.into(),
        }
    }
}

/// A level, or none in a variable that is set to nothing, which is as good as unset.
#[derive(Clone, Debug)]
struct Asked(Option<Filter>);

fn asked_level(text: &str) -> Result<Asked, String> {
    Ok(Asked(if text.trim().is_empty() { None } else { Some(text.parse()?) }))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the proxy. SIGTERM or SIGINT lets requests end and stops it, a second one stops it at once; SIGHUP or SIGUSR1
    /// reloads; SIGUSR2 opens the access log's file again
    Run(Configuration),
    /// Reload configuration and modules without dropping requests
    ///
    /// A new generation is started from the files as they are now, and the one before drains. Whatever fails leaves the
    /// proxy as it is. Refused while max_draining generations drain
    Reload {
        #[command(flatten)]
        configuration: Configuration,
        /// Cut off the generation that has drained longest, where max_draining generations drain
        #[arg(long)]
        cut_oldest: bool,
    },
    /// Say how a running proxy is: its generations, their modules, what is in quarantine
    Status {
        #[command(flatten)]
        configuration: Configuration,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a running proxy let requests end and stop
    Stop(Configuration),
    /// Mark a server of a running proxy; it stays so over reloads, until the configuration says something new of the same
    Server {
        #[command(flatten)]
        configuration: Configuration,
        /// The cluster's name
        cluster: String,
        /// The server's URL, as written in the configuration
        url: String,
        /// The new state of the server
        mark: Mark,
        /// With `weight`: 1 to 65,535
        #[arg(required_if_eq("mark", "weight"), value_parser = clap::value_parser!(u16).range(1..))]
        weight: Option<u16>,
    },
    /// Check a configuration, load its modules and build its balancers, without listening anywhere
    Check(Configuration),
    /// Run three small servers and a proxy before them on this machine, and print what to try
    Demo,
    /// About modules
    #[command(subcommand)]
    Module(ModuleCommand),
    /// Serve as a supervisor says: what `run` starts itself with
    #[command(hide = true)]
    Worker,
}

/// No subcommand, so that options may stand behind it as before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mark {
    /// It finishes what runs and takes nothing new
    Drain,
    /// It takes requests
    Ready,
    /// It has the weight that follows
    Weight,
}

impl Mark {
    /// The mark as the supervisor takes it.
    ///
    /// # Errors
    /// A weight is given with another mark than `weight`. (clap has refused `weight` without one.)
    pub(crate) fn with(self, weight: Option<u16>) -> Result<ServerMark, clap::Error> {
        match (self, weight) {
            (Self::Drain, None) => Ok(ServerMark::Drain),
            (Self::Ready, None) => Ok(ServerMark::Ready),
            (Self::Weight, Some(weight)) => Ok(ServerMark::Weight(weight)),
            (Self::Drain | Self::Ready | Self::Weight, _) => {
                let text = "a weight goes with the mark `weight`, and with no other";
                Err(Arguments::command().error(ErrorKind::ArgumentConflict, text))
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModuleCommand {
    /// Say what a module is, needs and supports, or why it would be refused; this runs code of the module
    Inspect {
        /// The module's file
        file: PathBuf,
    },
    /// Write a module of your own, in Rust or in C, that builds, passes its test and loads as it is
    New(New),
    /// Try the contract that every module must keep on a built one, in a process of its own, and report
    Test(Test),
    /// Have a running proxy open a module's file again that is in quarantine, because workers died of it
    Release {
        #[command(flatten)]
        configuration: Configuration,
        /// The module's ID
        module: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct New {
    /// Module ID, in snake_case
    pub(crate) name: String,
    /// What to write it in
    #[arg(long, value_enum, default_value_t = Lang::Rust)]
    pub(crate) lang: Lang,
    /// The folder to make [default: NAME with dashes, in this folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) path: Option<PathBuf>,
    /// Where the sources of lb-api are, for Rust [default: those that this program was built with]
    #[arg(long, value_name = "DIR")]
    pub(crate) lb_api: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lang {
    Rust,
    C,
}

#[derive(Args, Debug)]
pub(crate) struct Test {
    /// The module's file
    pub(crate) file: PathBuf,
    /// A TOML file of the module's settings, as they would stand in a cluster's table `settings`
    #[arg(long, value_name = "FILE", conflicts_with = "setting")]
    pub(crate) settings: Option<PathBuf>,
    /// One setting; a value that is not TOML is a string
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) setting: Vec<String>,
    /// First choices must be proportional to effective weights, to within this part of each share (0.1 is a tenth)
    #[arg(long, value_name = "TOLERANCE", value_parser = tolerance)]
    pub(crate) weighted: Option<f64>,
    /// An endpoint that is not available must not be answered as long as another is
    #[arg(long)]
    pub(crate) skips_unavailable: bool,
    /// Requests of one key, or client, must have one first choice, and only keys of an endpoint that is down may move
    #[arg(long)]
    pub(crate) keyed: bool,
    /// For one check to take; what takes longer counts as never returning
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) time_limit: u64,
    /// Runs the checks from this one on, in this process: what this command starts itself with
    #[arg(long, value_name = "CHECK", hide = true)]
    pub(crate) child: Option<usize>,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(tolerance) if (0.0..=1.0).contains(&tolerance) => Ok(tolerance),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

#[derive(Args, Debug)]
pub(crate) struct Configuration {
    /// The configuration file, in TOML; one that ends in `.conf` is read in httpd's syntax
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[cfg(test)]
mod tests {
    use trylist::process::control::Exit;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn takes_the_documented_commands() {
        for line in [
            "run -c a.toml",
            "check --config a.conf",
            "demo",
            "module inspect a.so",
            "module new mine --lang c --path elsewhere",
            "module new mine --lb-api ../lb-api",
            "module test a.so --setting a=1 --setting b.c=x --weighted 0.1 --skips-unavailable --keyed --time-limit 5",
            "module test a.so --settings a.toml",
            "demo --log-level warn",
            "reload -c a.toml",
            "reload -c a.toml --cut-oldest",
            "status -c a.toml --json",
            "stop -c a.toml",
            "server -c a.toml app http://127.0.0.1:9001 drain",
            "server -c a.toml app http://127.0.0.1:9001 weight 3",
            "server app http://127.0.0.1:9001 drain -c a.toml",
            "server app http://127.0.0.1:9001 ready --config a.toml",
            "server app http://127.0.0.1:9001 weight 3 -c a.toml",
            "server app -c a.toml http://127.0.0.1:9001 weight 3",
            "module release greedy -c a.toml",
            "reload -c a.toml --log-level warn",
            "module release -c a.toml greedy",
        ] {
            parse(line).expect(line);
        }
    }

    #[test]
    fn logs_what_a_command_is_run_for() {
        let level = |line| parse(line).expect(line).log_level().as_str().to_owned();
        assert_eq!(["run -c a.toml", "check -c a.toml"].map(level), ["info", "warn"]);
        assert_eq!(level("check -c a.toml --log-level info,h2=debug"), "info,h2=debug");
        // As clap takes it from a variable that is set to nothing.
        assert_eq!(level("check -c a.toml --log-level="), "warn");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse("run").expect_err("no file"), ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("module list").expect_err("no such command"), ErrorKind::InvalidSubcommand);
        assert_eq!(parse("module test a.so --weighted 2").expect_err("too much"), ErrorKind::ValueValidation);
        assert_eq!(
            parse("module test a.so --settings a --setting b=1").expect_err("both"),
            ErrorKind::ArgumentConflict
        );
        let weight = parse("server -c a.toml app http://a weight 0").expect_err("no weight");
        assert_eq!(weight, ErrorKind::ValueValidation);
        let weight = parse("server -c a.toml app http://a weight").expect_err("no weight");
        assert_eq!(weight, ErrorKind::MissingRequiredArgument);
        let mark = parse("server -c a.toml app http://a halt").expect_err("no such mark");
        assert_eq!(mark, ErrorKind::InvalidValue);
        for mark in [Mark::Drain, Mark::Ready] {
            assert_eq!(mark.with(Some(3)).expect_err("no weight").kind(), ErrorKind::ArgumentConflict);
        }
        assert_eq!(parse("demo --log-level loud").expect_err("no level"), ErrorKind::ValueValidation);
    }

    #[test]
    fn help_tells_the_exit_codes() {
        let help = Arguments::command().render_long_help().to_string();
        for exit in [Exit::Failed, Exit::Configuration, Exit::Module] {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{help}");
        }
    }

    fn parse(line: &str) -> Result<Arguments, ErrorKind> {
        let words = std::iter::once("trylist").chain(line.split(' '));
        Arguments::try_parse_from(words).map_err(|error| error.kind())
    }
}
