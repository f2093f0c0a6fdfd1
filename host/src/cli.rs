//! The command line.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use tracing::level_filters::LevelFilter;
use trylist::config;
use trylist::os::log::LogLevels;
use trylist::process::control::ServerOrder;

use crate::check::{CheckOutput, CheckTerms};

/// The configuration where none is named.
const DEFAULT_CONFIG: &str = "/etc/trylist/trylist.toml";

const EXIT_CODES: &str = "\
Exit codes:
  0  success; or drained and stopped by a signal
  1  failure at run time: address in use, file not writable, drain timeout
  2  invalid command line
  3  invalid configuration
  4  a module is refused, refuses its settings, or breaks the contract";

/// A load-balancing reverse proxy. Modules choose the servers; the configuration names them
#[derive(Debug, Parser)]
#[command(name = "trylist", version = version(), after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    /// Log level: error, warn, info, debug, trace or off [default: info; check: warn]
    ///
    /// A part of the program may have a level of its own: `info,trylist::serve::pool=debug`. Of `run`, this wins over `level` of
    /// the configuration's table `[log]`. The log goes to stderr unless that table says otherwise
    #[arg(long, value_name = "LEVEL", env = "TRYLIST_LOG", global = true, value_parser = log_level_argument)]
    log_level: Option<LogLevelArgument>,
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

impl CommandLine {
    /// The log level, if one is given.
    pub(crate) fn given_log_level(&self) -> Option<&LogLevels> {
        self.log_level.as_ref().and_then(|given| given.0.as_ref())
    }

    /// The log level: as given, or the command's default. `check` shows what is wrong with a file, and no more.
    pub(crate) fn log_level(&self) -> LogLevels {
        let default = match self.command {
            CliCommand::Check { .. } => LevelFilter::WARN,
            _ => LevelFilter::INFO,
        };
        self.given_log_level().cloned().unwrap_or_else(|| default.into())
    }
}

/// A level; none in an empty variable, which counts as unset.
#[derive(Clone, Debug)]
struct LogLevelArgument(Option<LogLevels>);

fn log_level_argument(text: &str) -> Result<LogLevelArgument, String> {
    Ok(LogLevelArgument(if text.trim().is_empty() { None } else { Some(text.parse()?) }))
}

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Run the proxy
    ///
    /// SIGTERM and SIGINT drain and stop it, a second one stops it at once. SIGHUP and SIGUSR1 reload. SIGUSR2 reopens the
    /// log files
    Run(Configuration),
    /// Reload configuration and modules without dropping requests
    ///
    /// Starts a new generation from the current files; the one before drains. If the start fails, the running generation
    /// goes on unchanged. Refused while `max_draining` generations drain
    Reload {
        #[command(flatten)]
        configuration: Configuration,
        /// If `max_draining` generations drain, close the connections of the oldest
        #[arg(long)]
        cut_oldest: bool,
    },
    /// Show clusters, servers, generations and modules of a running proxy
    ///
    /// A server that takes no requests is shown with the reason, and since when
    Status {
        #[command(flatten)]
        configuration: Configuration,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show only this cluster
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// Show it again every two seconds, or so many
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", require_equals = true,
              value_parser = clap::value_parser!(u64).range(1..=3600))]
        watch: Option<u64>,
    },
    /// Open the log files again, after a rotation
    Reopen(Configuration),
    /// Drain and stop a running proxy
    Stop(Configuration),
    /// Drain, add or remove a server, or change its weight
    ///
    /// Takes effect without a reload. Kept over reloads and crashes, until taken back, until `--for` is over, or until the
    /// configuration has a new value for the same setting. The configuration file stays as it is
    Server {
        #[command(flatten)]
        configuration: Configuration,
        /// The cluster's name
        cluster: String,
        /// The server's URL as written in the configuration, or one of its addresses as logs and metrics name it
        url: String,
        /// The change
        order: OrderArgument,
        /// The new weight, 1 to 65,535; with `weight` only
        #[arg(required_if_eq("order", "weight"), value_parser = clap::value_parser!(u16).range(1..))]
        weight: Option<u16>,
        /// Time limit, such as `10m`; then the configuration counts again, but a drain ends in maint
        #[arg(long = "for", value_name = "TIME", value_parser = time)]
        lasts: Option<Duration>,
    },
    /// Show sources of servers, and accept what they say
    #[command(subcommand)]
    Discovery(DiscoveryCommand),
    /// Check a configuration
    ///
    /// Loads its modules and builds its balancers, but listens nowhere
    Check(CheckArguments),
    /// Run three demo servers and a proxy, and print what to try
    Demo,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands to a folder
    Man {
        /// The folder
        folder: Option<PathBuf>,
    },
    /// Inspect, write, test and release modules
    #[command(subcommand)]
    Module(ModuleCommand),
    /// Internal: the worker process that `run` starts
    #[command(hide = true)]
    Worker,
    /// Internal: the process that asks sources of servers, which `run` starts
    #[command(hide = true)]
    Scout,
    /// Internal: becomes a command of a source, which dies with the scout
    #[command(hide = true)]
    ScoutCommand {
        /// Process ID of the scout
        parent: u32,
        /// The command
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiscoveryCommand {
    /// Show the sources of a running proxy: last answer, its age, its servers, and errors
    Status {
        #[command(flatten)]
        configuration: Configuration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Obey an answer without servers
    ///
    /// A source that names no server any more, after it named some, is not believed unless `empty = "obey"`: its last servers
    /// stay. This command has the proxy believe it
    Accept {
        #[command(flatten)]
        configuration: Configuration,
        /// The cluster's name
        cluster: String,
        /// The source's name
        source: String,
    },
}

/// Not a subcommand, so that options may stand before or behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrderArgument {
    /// Keep sessions, take no new ones
    Drain,
    /// Finish running requests, take no new ones
    Maint,
    /// Take requests again
    Ready,
    /// Set the weight
    Weight,
    /// Add a server, or bring back a removed one
    Add,
    /// Remove a server, until `add`
    Remove,
}

impl OrderArgument {
    /// The order as the supervisor takes it.
    ///
    /// # Errors
    /// A weight is given with another order than `weight`. (clap has refused `weight` without one.)
    pub(crate) fn with(self, weight: Option<u16>) -> Result<ServerOrder, clap::Error> {
        match (self, weight) {
            (Self::Weight, Some(weight)) => Ok(ServerOrder::Weight(weight)),
            (Self::Weight, None) | (_, Some(_)) => {
                let text = "a weight belongs to the change `weight`";
                Err(CommandLine::command().error(ErrorKind::ArgumentConflict, text))
            }
            (Self::Drain, None) => Ok(ServerOrder::Drain),
            (Self::Maint, None) => Ok(ServerOrder::Maintenance),
            (Self::Ready, None) => Ok(ServerOrder::Ready),
            (Self::Add, None) => Ok(ServerOrder::Add),
            (Self::Remove, None) => Ok(ServerOrder::Remove),
        }
    }
}

/// A time limit in whole seconds, as the supervisor takes it.
fn time(text: &str) -> Result<Duration, String> {
    let time = config::parse_duration(text)?;
    if time.is_zero() || time.subsec_nanos() > 0 {
        return Err("expected a time of whole seconds, such as \"30s\" or \"10m\"".to_owned());
    }
    Ok(time)
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModuleCommand {
    /// Show what a module is, needs and supports
    ///
    /// Runs code of the module. Shows the reason where the module would be refused
    Inspect {
        /// The module's file
        file: PathBuf,
        #[command(flatten)]
        apart: Apart,
    },
    /// Create a new module, in Rust or in C
    ///
    /// It builds, passes its test and loads as it is
    New(New),
    /// Test a built module against the contract for modules
    ///
    /// The checks run in a process of their own
    Test(Test),
    /// Release a module from quarantine
    ///
    /// A running proxy opens the file again that workers died of
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
    /// Language
    #[arg(long, value_enum, default_value_t = Lang::Rust)]
    pub(crate) lang: Lang,
    /// Folder to create [default: NAME with dashes, in the current folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) path: Option<PathBuf>,
    /// Sources of lb-api, for Rust [default: those that this program was built with]
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
    /// Settings for the module: a TOML file, as in a cluster's table `settings`
    #[arg(long, value_name = "FILE", conflicts_with = "setting")]
    pub(crate) settings: Option<PathBuf>,
    /// One setting; a value that is not TOML is taken as a string
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) setting: Vec<String>,
    /// First choices must follow the effective weights, within this tolerance (0.1 is a tenth of a share)
    #[arg(long, value_name = "TOLERANCE", value_parser = tolerance)]
    pub(crate) weighted: Option<f64>,
    /// The module must not choose an unavailable endpoint while another is available
    #[arg(long)]
    pub(crate) skips_unavailable: bool,
    /// Requests with one key must have one first choice; only keys of an endpoint that is down may move
    #[arg(long)]
    pub(crate) keyed: bool,
    /// A trylist may end before it has offered every endpoint, as those of balancers that choose a subset do
    #[arg(long)]
    pub(crate) may_end_early: bool,
    /// Random numbers begin with this seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Run only the checks that have this text in their name
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Time limit of one check; a check that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) time_limit: u64,
    /// Time limit of one call of the module; a check with a call that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) call_limit: u64,
    /// Run the module as root, if root runs this [default: as nobody]
    #[arg(long)]
    pub(crate) as_root: bool,
    /// Internal: run the checks from this one on, in this process
    #[arg(long, value_name = "CHECK", hide = true)]
    pub(crate) child: Option<usize>,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(tolerance) if (0.0..=1.0).contains(&tolerance) => Ok(tolerance),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// How a process runs code of modules.
#[derive(Args, Debug)]
pub(crate) struct Apart {
    /// Run code of modules as root, if root runs this [default: as the user of the configuration, else as nobody]
    #[arg(long)]
    pub(crate) as_root: bool,
    /// Internal: this is the process that runs code of modules
    #[arg(long, value_name = "BOARD", hide = true)]
    pub(crate) child: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Configuration {
    /// Configuration file: TOML, or httpd's syntax if its name ends in `.conf`; `-` is standard input
    #[arg(short, long, value_name = "FILE", env = "TRYLIST_CONFIG", default_value = DEFAULT_CONFIG)]
    pub(crate) config: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    configuration: Configuration,
    /// The same as `--config FILE`
    file: Option<PathBuf>,
    /// Check a file of servers instead, as a source of type `file` reads it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "json", "dump"])]
    pub(crate) members: Option<PathBuf>,
    /// Also ask each source of servers once, and print what it names
    #[arg(long, conflicts_with_all = ["members", "dump"])]
    connect: bool,
    /// Print JSON: errors and warnings with file, line and column
    #[arg(long, conflicts_with = "dump")]
    json: bool,
    /// Print the effective configuration instead: with what it includes, variables and defaults; secrets are hidden
    #[arg(long)]
    dump: bool,
    #[command(flatten)]
    apart: Apart,
}

impl CheckArguments {
    /// The file, what is asked of it, and how code of modules runs.
    pub(crate) fn wanted(self) -> (PathBuf, CheckTerms, Apart) {
        let output = match (self.json, self.dump) {
            (_, true) => CheckOutput::Dump,
            (true, false) => CheckOutput::Json,
            (false, false) => CheckOutput::Lines,
        };
        let terms = CheckTerms { output, asks_sources: self.connect };
        (self.file.unwrap_or(self.configuration.config), terms, self.apart)
    }
}

/// Version, commit, and the ABI of modules.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("TRYLIST_COMMIT"));
        format!("{version} (commit {commit}, module ABI {ABI_MAJOR}.{ABI_MINOR})")
    })
}

#[cfg(test)]
mod tests {
    use trylist::process::control::Exit;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn takes_the_documented_commands() {
        for line in [
            "run -c a.toml",
            "check --config a.conf",
            "run",
            "check a.toml --json",
            "check -c - --dump",
            "completions bash",
            "man folder",
            "check --members servers.json",
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
            "status -c a.toml --cluster app --watch",
            "status --watch=5 -c a.toml",
            "discovery status -c a.toml",
            "discovery status --json -c a.toml",
            "discovery accept app file -c a.toml",
            "stop -c a.toml",
            "reopen -c a.toml",
            "server -c a.toml app http://127.0.0.1:9001 drain",
            "server -c a.toml app http://127.0.0.1:9001 weight 3",
            "server app http://127.0.0.1:9001 drain -c a.toml",
            "server app http://127.0.0.1:9001 ready --config a.toml",
            "server app http://127.0.0.1:9001 weight 3 -c a.toml",
            "server app -c a.toml http://127.0.0.1:9001 weight 3",
            "server -c a.toml app http://127.0.0.1:9001 drain --for 10m",
            "server -c a.toml app http://127.0.0.1:9001 maint",
            "server -c a.toml app http://127.0.0.1:9003 add --for 1h",
            "server -c a.toml app http://127.0.0.1:9003 remove",
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
        assert_eq!(parse("check --json --dump").expect_err("both"), ErrorKind::ArgumentConflict);
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
        let order = parse("server -c a.toml app http://a halt").expect_err("no such change");
        assert_eq!(order, ErrorKind::InvalidValue);
        for order in [OrderArgument::Drain, OrderArgument::Add] {
            assert_eq!(order.with(Some(3)).expect_err("no weight").kind(), ErrorKind::ArgumentConflict);
        }
        for time in ["10", "0s", "1500ms", "25h", "soon"] {
            let line = format!("server -c a.toml app http://a drain --for {time}");
            assert_eq!(parse(&line).expect_err(time), ErrorKind::ValueValidation);
        }
        assert_eq!(parse("demo --log-level loud").expect_err("no level"), ErrorKind::ValueValidation);
    }

    #[test]
    fn help_tells_the_exit_codes() {
        let help = CommandLine::command().render_long_help().to_string();
        for exit in [Exit::Failed, Exit::Configuration, Exit::Module] {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{help}");
        }
    }

    fn parse(line: &str) -> Result<CommandLine, ErrorKind> {
        let words = std::iter::once("trylist").chain(line.split(' '));
        CommandLine::try_parse_from(words).map_err(|error| error.kind())
    }
}
