//! `trylist status`: what a running proxy says of itself, as a table for people or as JSON.

mod table;

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use trylist::process::control::{
    self, ActStatus, Command, ControlReply, GenerationStatus, ModuleStatus, RefusedStatus, SourceStatus,
    Status, WorkerStatus,
};

use self::table::{Paint, describe_cluster, describe_events, describe_listeners};
use crate::output::{CommandFailure, safe, span};
use crate::sources;

/// The parts to show.
pub(crate) struct Wanted {
    pub(crate) json: bool,
    pub(crate) cluster: Option<String>,
    /// Again and again, with this pause.
    pub(crate) watch: Option<Duration>,
}

/// All that was said.
#[derive(Serialize)]
struct Said {
    #[serde(flatten)]
    status: Status,
    /// The generation that serves, as its worker says.
    worker: Option<WorkerStatus>,
    /// Why that is not known, where it is not.
    problem: Option<String>,
}

/// Prints the status of a running proxy.
pub(crate) fn run(config: &Path, wanted: &Wanted) -> Result<(), CommandFailure> {
    let is_terminal = io::stdout().is_terminal();
    let paint = Paint { is_on: is_terminal && has_colours() };
    loop {
        let said = ask(config, wanted.cluster.clone())?;
        let text = if wanted.json { json(&said, wanted.watch.is_some())? } else { describe(&said, paint) };
        // Home, and what stands below is erased.
        let clear = if wanted.watch.is_some() && is_terminal { "\x1b[H\x1b[2J" } else { "" };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(clear.as_bytes()).and_then(|()| stdout.write_all(text.as_bytes())) {
            Ok(()) => {}
            // Its reader has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(CommandFailure::new(format_args!("stdout: {error}"))),
        }
        let flushed = stdout.flush();
        drop(stdout);
        match wanted.watch {
            Some(pause) if flushed.is_ok() => thread::sleep(pause),
            _ => return Ok(()),
        }
    }
}

fn ask(config: &Path, cluster: Option<String>) -> Result<Said, CommandFailure> {
    let (mut status, mut worker, mut problem) = (None, None, None);
    let command = Command::State { cluster: cluster.clone() };
    let exit = control::ask_for(config, &command, |reply| match reply {
        ControlReply::Status(said) => status = Some(*said),
        ControlReply::Worker(said) => worker = Some(*said),
        ControlReply::Line(line) | ControlReply::Problem(line) => problem = Some(line),
        ControlReply::End(_) => {}
    });
    exit.map_err(CommandFailure::new)?;
    let not_sent = || problem.clone().unwrap_or_else(|| "the supervisor did not send its status".to_owned());
    let status: Status = status.ok_or_else(|| CommandFailure::new(not_sent()))?;
    let is_empty = worker.as_ref().is_some_and(|worker: &WorkerStatus| worker.clusters.is_empty());
    if let Some(cluster) = cluster.filter(|_| is_empty) {
        return Err(CommandFailure::new(format_args!(
            "there is no cluster \"{}\"; without --cluster, all are shown",
            safe(&cluster)
        )));
    }
    Ok(Said { status, worker, problem })
}

/// One line for each where more follow, so that a program can read them.
fn json(said: &Said, is_line: bool) -> Result<String, CommandFailure> {
    let text = if is_line { serde_json::to_string(said) } else { serde_json::to_string_pretty(said) };
    let text = text.map_err(|error| CommandFailure::new(format_args!("invalid JSON in the answer: {error}")));
    Ok(text? + "\n")
}

/// Whether the terminal's user wants colours (no-color.org).
fn has_colours() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn describe(said: &Said, paint: Paint) -> String {
    let status = &said.status;
    let Status { pid, version, uptime_s, config, control, .. } = status;
    let mut lines = vec![
        format!("trylist {version}, pid {pid}, up {}", span(*uptime_s)),
        format!("  configuration {config}, control socket {}", control.as_deref().unwrap_or("none")),
        format!("  listens on {}", status.listeners.join(", ")),
    ];
    lines.extend(status.admin.as_ref().map(|admin| format!("  metrics on {admin}")));
    let serving = said.worker.as_ref();
    lines.extend(status.generations.iter().flat_map(|generation| {
        let is_its = |worker: &&WorkerStatus| worker.summary.generation == Some(generation.generation);
        describe_generation(generation, serving.filter(is_its))
    }));
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
    let is_in_trouble =
        |source: &&SourceStatus| source.held || source.error.is_some() || source.answer.is_none();
    lines.extend(status.discovery.iter().filter(is_in_trouble).map(sources::describe));
    lines.extend(status.acts.iter().map(|act| {
        let ActStatus { cluster, url, what, by, age_s, left_s } = act;
        let left = left_s.map(|left| format!(", for {} more", span(left))).unwrap_or_default();
        format!("changed: cluster {cluster}, server {url}: {what}, by {by}, {} ago{left}", span(*age_s))
    }));
    lines.extend(said.problem.as_ref().map(|problem| paint.bad(problem)));
    let mut text: String = lines.iter().map(|line| format!("{}\n", safe_but_paint(line, paint))).collect();
    if let Some(worker) = &said.worker {
        text += &describe_listeners(&worker.listeners, paint);
        for cluster in &worker.clusters {
            text += &describe_cluster(cluster, &status.acts, paint);
        }
        text += &describe_events(&worker.events);
        if worker.servers_left_out > 0 {
            let n = worker.servers_left_out;
            text += &format!("{n} more servers are left out; --cluster shows those of one cluster\n");
        }
    }
    text
}

/// Lines that we painted ourselves have nothing else that a terminal obeys.
fn safe_but_paint(line: &str, paint: Paint) -> String {
    if paint.is_on && line.starts_with('\x1b') { line.to_owned() } else { safe(line).into_owned() }
}

/// A line for the generation, then one for its trouble and one for each of its modules; with the time and memory that they take,
/// where its worker says.
fn describe_generation(generation: &GenerationStatus, worker: Option<&WorkerStatus>) -> Vec<String> {
    let GenerationStatus { generation: number, pid, state, uptime_s, connections, .. } = generation;
    let left = generation.drain_left_s.map(|left| format!(" for up to {} more", span(left)));
    let mut lines = vec![format!(
        "generation {number}: {state}{}, pid {pid}, up {}, {connections} connections, configuration {}",
        left.unwrap_or_default(),
        span(*uptime_s),
        beginning(&generation.config_sha256)
    )];
    lines.extend(generation.trouble.as_ref().map(|trouble| format!("  trouble: its worker {trouble}")));
    lines.extend(generation.sandbox.as_ref().map(|sandbox| format!("  sandbox: {sandbox}")));
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
    lines.extend(worker.iter().flat_map(|worker| describe_pace(&worker.modules)));
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

/// A line for the time of each module that was called, and one for the memory of their worker.
fn describe_pace(modules: &[ModuleStatus]) -> Vec<String> {
    let pace = |module: &ModuleStatus| {
        let averages = module.clusters.iter().filter_map(|of| of.numbers.average_us);
        let average = averages.reduce(f64::max)?;
        let share = module.thread_share * 100.0;
        Some(format!(
            "  time in {}: {average:.1} µs a request, {share:.2} % of the threads' time",
            module.module
        ))
    };
    let mut lines: Vec<String> = modules.iter().filter_map(pace).collect();
    let growth = modules.first().and_then(|module| module.worker_growth_bytes);
    lines.extend(growth.map(|bytes| {
        let mib = bytes as f64 / f64::from(1 << 20);
        format!("  memory of the worker: {mib:.1} MiB more than when its modules were loaded")
    }));
    lines
}

/// As much of a hash as people compare.
fn beginning(sha256: &str) -> String {
    format!("{}…", sha256.get(..12).unwrap_or(sha256))
}
