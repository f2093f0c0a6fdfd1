//! Completion scripts and manual pages, made from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::CommandLine;
use crate::output::{CommandFailure, print};

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), CommandFailure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "trylist", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Prints the manual page, or writes a page for each command into a folder.
pub(crate) fn man(folder: Option<&Path>) -> Result<(), CommandFailure> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(CommandLine::command())
            .render(&mut page)
            .map_err(|error| CommandFailure::new(format_args!("manual page: {error}")))?;
        return print(&String::from_utf8_lossy(&page));
    };
    let written =
        fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(CommandLine::command(), folder));
    written.map_err(|error| CommandFailure::new(format_args!("{}: {error}", folder.display())))
}
