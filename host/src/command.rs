//! Commands to a running proxy, and its answers.

use std::io::{self, Write as _};
use std::path::Path;

use trylist::process::control::{
    self, ActStatus, Command, ControlReply, Exit, GenerationStatus, RefusedStatus, Status,
};

use crate::output::{CommandFailure, print};

/// Asks, and prints what comes back as it comes.
pub(crate) fn ask(config: &Path, command: &Command) -> Result<(), CommandFailure> {
    let exit = control::ask(&control::find(config), command, |reply| match reply {
        // If nobody reads it, the exit code has to say it alone.
        ControlReply::Line(line) => drop(print(&format!("{line}\n"))),
        ControlReply::Problem(line) => drop(writeln!(io::stderr(), "{line}")),
        ControlReply::Status(_) | ControlReply::End(_) => {}
    });
    match exit.map_err(CommandFailure::new)? {
        Exit::Done => Ok(()),
        exit => Err(CommandFailure { exit, text: String::new() }),
    }
}

/// Prints the status of a running proxy.
pub(crate) fn status(config: &Path, json: bool) -> Result<(), CommandFailure> {
    let mut found = None;
    let exit = control::ask(&control::find(config), &Command::Status, |reply| {
        if let ControlReply::Status(status) = reply {
            found = Some(*status);
        }
    });
    exit.map_err(CommandFailure::new)?;
    let status = found.ok_or_else(|| CommandFailure::new("the supervisor did not send its status"))?;
    if json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|error| CommandFailure::new(format_args!("invalid JSON in the answer: {error}")))?;
        return print(&(text + "\n"));
    }
    print(&describe(&status))
}

fn describe(status: &Status) -> String {
    let Status { pid, version, uptime_s, config, control, .. } = status;
    let mut lines = vec![
        format!("trylist {version}, pid {pid}, up {}", span(*uptime_s)),
        format!("  configuration {config}, control socket {control}"),
        format!("  listens on {}", status.listeners.join(", ")),
    ];
    lines.extend(status.admin.as_ref().map(|admin| format!("  metrics on {admin}")));
    lines.extend(status.generations.iter().flat_map(describe_generation));
    lines.extend(status.waiting.as_ref().map(|waiting| format!("waiting: {waiting}")));
    lines.extend(status.quarantine.iter().map(|held| {
        format!(
            "quarantine: module {} ({}), for {}: its worker {}",
            held.module,
            beginning(&held.sha256),
            span(held.for_s),
            held.reason
        )
    }));
    lines.extend(status.acts.iter().map(|act| {
        let ActStatus { cluster, url, what, by, age_s, left_s } = act;
        let left = left_s.map(|left| format!(", for {} more", span(left))).unwrap_or_default();
        format!("changed: cluster {cluster}, server {url}: {what}, by {by}, {} ago{left}", span(*age_s))
    }));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// A line for the generation, then one for its trouble and one for each of its modules.
fn describe_generation(generation: &GenerationStatus) -> Vec<String> {
    let GenerationStatus { generation: number, pid, state, uptime_s, connections, .. } = generation;
    let left = generation.drain_left_s.map(|left| format!(" for up to {} more", span(left)));
    let mut lines = vec![format!(
        "generation {number}: {state}{}, pid {pid}, up {}, {connections} connections, configuration {}",
        left.unwrap_or_default(),
        span(*uptime_s),
        beginning(&generation.config_sha256)
    )];
    lines.extend(generation.trouble.as_ref().map(|trouble| format!("  trouble: its worker {trouble}")));
    lines.extend(generation.modules.iter().map(|module| {
        let version = module.version.as_deref().unwrap_or("not opened");
        let held = if module.quarantined { ", in quarantine" } else { "" };
        format!(
            "  module {} {version} ({}), {} faults{held}, {}",
            module.id,
            beginning(&module.sha256),
            module.faults,
            module.file
        )
    }));
    lines.extend(generation.refused.iter().map(|refused| {
        let RefusedStatus { cluster, why, host_chooses } = refused;
        let what = if *host_chooses {
            "the host chooses among its servers"
        } else {
            "its servers stay as they were"
        };
        format!("  cluster {cluster}: {what}: {why}")
    }));
    lines
}

/// As much of a hash as people compare.
fn beginning(sha256: &str) -> String {
    format!("{}…", sha256.get(..12).unwrap_or(sha256))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}
