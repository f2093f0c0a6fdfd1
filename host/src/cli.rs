//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::log::Filter;

/// What the process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed that has no code of its own.
    Failed = 1,
    // 2 is clap's, for a command line that it does not understand.
    /// The configuration was refused.
    Configuration = 3,
    /// A module was refused, or refused its settings.
    Module = 4,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; or stopped by a signal, after all requests had ended
  1  failed at run time: an address in use, a file that cannot be written, requests cut off at the end
  2  the command line is wrong
  3  the configuration is refused
  4  a module is refused, or refuses its settings";

/// A load-balancing reverse proxy; what balances is a module named in the configuration
#[derive(Debug, Parser)]
#[command(name = "trylist", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// What to log on stderr: error, warn, info, debug, trace or off; also for parts, as in `info,trylist::pool=debug`
    #[arg(long, value_name = "LEVEL", env = "TRYLIST_LOG", default_value = "info", global = true)]
    pub(crate) log_level: Filter,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the proxy; SIGTERM or SIGINT lets requests end and stops it, a second one stops it at once; SIGUSR2 opens the
    /// access log's file again
    Run(Configuration),
    /// Check a configuration, load its modules and build its balancers, without listening anywhere
    Check(Configuration),
    /// Run three small servers and a proxy before them on this machine, and print what to try
    Demo,
    /// About modules
    #[command(subcommand)]
    Module(ModuleCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModuleCommand {
    /// Say what a module is, needs and supports, or why it would be refused; this runs code of the module
    Inspect {
        /// The module's file
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Configuration {
    /// The configuration file, in TOML; one that ends in `.conf` is read in httpd's syntax
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn takes_the_documented_commands() {
        for line in
            ["run -c a.toml", "check --config a.conf", "demo", "module inspect a.so", "demo --log-level warn"]
        {
            parse(line).expect(line);
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse("run").expect_err("no file"), ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("module list").expect_err("no such command"), ErrorKind::InvalidSubcommand);
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
