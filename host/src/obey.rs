//! One subcommand → what does it.

use std::path::Path;
use std::time::Duration;

use trylist::process::control::{Command, Exit};
use trylist::supervisor;
use trylist::worker::process::{self, WorkerFailure};

use crate::cli::{CheckArguments, CliCommand, DiscoveryCommand, ModuleCommand};
use crate::output::CommandFailure;
use crate::{author, check, command, demo, inspect, pages, sources, status};

/// Does what a command line says, to its end.
pub(crate) fn obey(command: CliCommand, log_level: Option<String>) -> Result<(), CommandFailure> {
    match command {
        CliCommand::Run(from) => run(&from.config, log_level),
        CliCommand::Worker => worker(),
        CliCommand::ScoutCommand { .. } => Ok(()),
        CliCommand::Scout => trylist::scout::run().map_err(CommandFailure::new),
        CliCommand::Discovery(DiscoveryCommand::Status { configuration, json }) => {
            sources::run(&configuration.config, json)
        }
        CliCommand::Discovery(DiscoveryCommand::Accept { configuration, cluster, source }) => {
            command::ask(&configuration.config, &Command::AcceptDiscovery { cluster, source })
        }
        CliCommand::Reload { configuration, cut_oldest } => {
            let reload = if cut_oldest { Command::ReloadCutOldest } else { Command::Reload };
            command::ask(&configuration.config, &reload)
        }
        CliCommand::Status { configuration, json, cluster, watch } => {
            let wanted = status::Wanted { json, cluster, watch: watch.map(Duration::from_secs) };
            status::run(&configuration.config, &wanted)
        }
        CliCommand::Reopen(from) => command::ask(&from.config, &Command::Reopen),
        CliCommand::Stop(from) => command::ask(&from.config, &Command::Stop),
        CliCommand::Server { configuration, cluster, url, order, weight, lasts } => {
            let order = order.with(weight).unwrap_or_else(|error| error.exit());
            let for_s = lasts.map(|lasts| lasts.as_secs());
            command::ask(&configuration.config, &Command::Server { cluster, url, order, for_s })
        }
        CliCommand::Check(CheckArguments { members: Some(file), .. }) => check::members(&file),
        CliCommand::Check(arguments) => {
            let (file, terms, apart) = arguments.wanted();
            check::run(&file, terms, &apart)
        }
        CliCommand::Completions { shell } => pages::completions(shell),
        CliCommand::Man { folder } => pages::man(folder.as_deref()),
        CliCommand::Demo => demo::run(),
        CliCommand::Module(ModuleCommand::Inspect { file, apart }) => inspect::run(&file, &apart),
        CliCommand::Module(ModuleCommand::New(new)) => author::new::run(&new),
        CliCommand::Module(ModuleCommand::Test(test)) => author::test::run(&test),
        CliCommand::Module(ModuleCommand::Release { configuration, module }) => {
            command::ask(&configuration.config, &Command::Release { module })
        }
    }
}

fn run(file: &Path, log_level: Option<String>) -> Result<(), CommandFailure> {
    let options = supervisor::Options { config: file.to_owned(), log_level };
    Ok(supervisor::run(options)?)
}

fn worker() -> Result<(), CommandFailure> {
    process::run().map_err(|failure| match failure {
        // The supervisor says it.
        WorkerFailure::Reported => CommandFailure { exit: Exit::Failed, text: String::new() },
        WorkerFailure::NoThread(error) => CommandFailure::new(format_args!("no thread: {error}")),
        WorkerFailure::NoSupervisor(error) => {
            CommandFailure::new(format_args!("this command is internal: `trylist run` starts it ({error})"))
        }
    })
}
