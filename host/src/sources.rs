//! `trylist discovery status`: the sources of servers of a running proxy.

use std::path::Path;

use trylist::process::control::{self, Command, ControlReply, SourceStatus};

use crate::output::{CommandFailure, print, safe, span};

/// Prints them.
pub(crate) fn run(config: &Path, json: bool) -> Result<(), CommandFailure> {
    let sources = ask(config)?;
    if json {
        let text = serde_json::to_string_pretty(&sources)
            .map_err(|error| CommandFailure::new(format_args!("invalid JSON in the answer: {error}")))?;
        return print(&(text + "\n"));
    }
    let none = "the configuration has no source of servers ([[cluster.discover]])\n".to_owned();
    let lines: String = sources.iter().map(|source| format!("{}\n", describe(source))).collect();
    print(if sources.is_empty() { &none } else { &lines })
}

fn ask(config: &Path) -> Result<Vec<SourceStatus>, CommandFailure> {
    let mut found = None;
    let exit = control::ask_for(config, &Command::Status, |reply| {
        if let ControlReply::Status(status) = reply {
            found = Some(status.discovery);
        }
    });
    exit.map_err(CommandFailure::new)?;
    found.ok_or_else(|| CommandFailure::new("the supervisor did not send its status"))
}

/// `cluster app, source file (file): 3 servers, answer 7, 12s ago`, and what is wrong.
pub(crate) fn describe(status: &SourceStatus) -> String {
    let SourceStatus { cluster, source, kind, members, answer, age_s, held, errors, error, .. } = status;
    let mut line = format!("cluster {cluster}, source {source} ({kind}): ");
    line += &match (members, answer, age_s) {
        (Some(n), Some(answer), Some(age)) => format!("{n} servers, answer {answer}, {} ago", span(*age)),
        _ => "no answer yet".to_owned(),
    };
    if *held {
        line += "; names no server any more, which is held back (trylist discovery accept)";
    }
    if let Some(error) = error {
        line += &format!("; fails ({errors} times): {}", safe(error));
    }
    line
}
