//! Commands to a running proxy, and its answers.

use std::io::{self, Write as _};
use std::path::Path;

use trylist::process::control::{self, Command, ControlReply, Exit};

use crate::output::{CommandFailure, print};

/// Asks, and prints what comes back as it comes.
pub(crate) fn ask(config: &Path, command: &Command) -> Result<(), CommandFailure> {
    let exit = control::ask_for(config, command, |reply| match reply {
        // If nobody reads it, the exit code has to say it alone.
        ControlReply::Line(line) => drop(print(&format!("{line}\n"))),
        ControlReply::Problem(line) => drop(writeln!(io::stderr(), "{line}")),
        ControlReply::Status(_) | ControlReply::Worker(_) | ControlReply::End(_) => {}
    });
    match exit.map_err(CommandFailure::new)? {
        Exit::Done => Ok(()),
        exit => Err(CommandFailure { exit, text: String::new() }),
    }
}
