//! Commands to a running proxy, and what it answers, for people.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use trylist::process::control::{self, Command, Exit, GenerationStatus, Reply, Status};

use crate::{Failure, print};

/// Asks, and prints what comes back as it comes.
pub(crate) fn ask(config: &Path, command: &Command) -> Result<(), Failure> {
    let exit = control::ask(&control::find(config), command, |reply| match reply {
        // If nobody reads it, the exit code has to say it alone.
        Reply::Line(line) => drop(print(&format!("{line}\n"))),
        Reply::Problem(line) => drop(writeln!(io::stderr(), "{line}")),
        Reply::Status(_) | Reply::End(_) => {}
    });
    match exit.map_err(Failure::new)? {
        Exit::Done => Ok(()),
        exit => Err(Failure { exit, text: String::new() }),
    }
}

/// Says how a running proxy is.
pub(crate) fn status(config: &Path, json: bool) -> Result<(), Failure> {
    let mut found = None;
    let exit = control::ask(&control::find(config), &Command::Status, |reply| {
        if let Reply::Status(status) = reply {
            found = Some(*status);
        }
    });
    exit.map_err(Failure::new)?;
    let status = found.ok_or_else(|| Failure::new("the supervisor said nothing of how it is"))?;
    if json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|error| Failure::new(format_args!("the answer is no JSON: {error}")))?;
        return print(&(text + "\n"));
    }
    print(&describe(&status))
}

fn describe(status: &Status) -> String {
    let mut text = String::new();
    let Status { pid, version, uptime_s, config, control, .. } = status;
    let mut line = |args: std::fmt::Arguments<'_>| {
        text.write_fmt(args).expect("a String takes everything");
        text.push('\n');
    };
    line(format_args!("trylist {version}, pid {pid}, up {}", span(*uptime_s)));
    line(format_args!("  configuration {config}, control socket {control}"));
    line(format_args!("  listens on {}", status.listeners.join(", ")));
    if let Some(admin) = &status.admin {
        line(format_args!("  metrics on {admin}"));
    }
    for generation in &status.generations {
        let GenerationStatus { generation: number, pid, state, uptime_s, config_sha256, connections, .. } =
            generation;
        let left = generation.drain_left_s.map(|left| format!(" for up to {} more", span(left)));
        line(format_args!(
            "generation {number}: {state}{}, pid {pid}, up {}, {connections} connections, configuration {}",
            left.unwrap_or_default(),
            span(*uptime_s),
            beginning(config_sha256)
        ));
        if let Some(trouble) = &generation.trouble {
            line(format_args!("  trouble: its worker {trouble}"));
        }
        for module in &generation.modules {
            let version = module.version.as_deref().unwrap_or("not opened");
            let held = if module.quarantined { ", in quarantine" } else { "" };
            line(format_args!(
                "  module {} {version} ({}), {} faults{held}, {}",
                module.id,
                beginning(&module.sha256),
                module.faults,
                module.file
            ));
        }
    }
    if let Some(waiting) = &status.waiting {
        line(format_args!("waiting: {waiting}"));
    }
    for held in &status.quarantine {
        line(format_args!(
            "quarantine: module {} ({}), for {}: its worker {}",
            held.module,
            beginning(&held.sha256),
            span(held.for_s),
            held.reason
        ));
    }
    for mark in &status.marks {
        let drain = mark.drain.map(|drain| if drain { " drains" } else { " takes requests" });
        let weight = mark.weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
        line(format_args!(
            "mark: cluster {}, server {}:{}{weight}",
            mark.cluster,
            mark.url,
            drain.unwrap_or_default()
        ));
    }
    text
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
