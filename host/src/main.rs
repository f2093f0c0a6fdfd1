//! Arguments → one subcommand → exit code; the only place that ends the process.

mod apart;
mod author;
mod check;
mod cli;
mod command;
mod demo;
mod foreground;
mod inspect;
mod log;
mod obey;
mod output;
mod sources;
mod pages;
mod status;

use std::process::ExitCode;

use clap::Parser as _;
use trylist::process::privileges;

use self::cli::{CliCommand, CommandLine};
use self::log::Log;
use self::obey::obey;

/// A connection's memory comes and goes in many sizes; this allocator serves all of them from a thread's own pages, which
/// saves a twentieth of what a connection with one request costs, and gives pages back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    if let CliCommand::ScoutCommand { parent, command } = &line.command {
        // Before anything else is done in this process, which is not to stay.
        eprintln!("{}", trylist::scout::become_command(*parent, command));
        return ExitCode::FAILURE;
    }
    let log_level = line.log_level();
    let log = match line.command {
        CliCommand::Run(_) | CliCommand::Demo => Log::of_a_service(&log_level),
        CliCommand::Worker | CliCommand::Scout => {
            // Each thread has it of its own, so before there is another one. A failure shows again in `drop_to`.
            let _ = privileges::gain_none();
            Log::of_a_service(&log_level)
        }
        _ => Log::of_a_command(&log_level),
    };
    let given = line.given_log_level().map(|level| level.as_str().to_owned());
    let (text, exit) = match obey(line.command, given) {
        Ok(()) => (String::new(), ExitCode::SUCCESS),
        Err(failure) => (failure.text, ExitCode::from(failure.exit as u8)),
    };
    log.end(&text);
    exit
}
