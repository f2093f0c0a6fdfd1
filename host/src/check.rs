//! `trylist check`: everything that `run` would refuse, without listening anywhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use trylist::cluster::learned::Learned;
use trylist::config::{self, Config, Excerpt, Files, Place, Problem, Warning};
use trylist::discovery;
use trylist::module::board::Crumb;
use trylist::module::guarded;
use trylist::module::load;
use trylist::module::registry::Registry;
use trylist::process::control::{Exit, Refused};
use trylist::process::preflight::{self, Lacks};
use trylist::worker::{AskedSource, Prepared, StartError, ask_sources};

use crate::apart;
use crate::cli::Apart;
use crate::output::{CommandFailure, count, print};

/// The form of the output of `check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckOutput {
    /// Lines for people.
    Lines,
    /// One object.
    Json,
    /// The configuration as it counts.
    Dump,
}

/// What is asked of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckTerms {
    pub(crate) output: CheckOutput,
    /// Each source of servers is asked once.
    pub(crate) asks_sources: bool,
}

/// How long a source may take to answer.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers that are shown of a source.
const MOST_SHOWN: usize = 10;

/// One thing that is wrong, or hardly meant.
#[derive(Debug, Default, Serialize)]
struct Finding {
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    /// As people see it.
    #[serde(skip)]
    shown: String,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

/// All that was found.
#[derive(Debug, Default)]
struct Findings {
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    /// Of the errors.
    exit: Option<Exit>,
    config: Option<Arc<Config>>,
    /// Sources that were asked.
    asked: Vec<AskedSource>,
}

/// Checks a file of servers, all of which any source may name.
pub(crate) fn members(file: &Path) -> Result<(), CommandFailure> {
    let (n_servers, n_twins) = discovery::check(file).map_err(|why| CommandFailure {
        exit: Exit::Configuration,
        text: format!("{}: {why}\n", file.display()),
    })?;
    let twins = if n_twins > 0 { format!(", {n_twins} named again and left out") } else { String::new() };
    print(&format!("{}: ok: {}{twins}\n", file.display(), count(n_servers, "server")))
}

/// Checks it in a process apart, since code of modules runs.
pub(crate) fn run(file: &Path, terms: CheckTerms, apart: &Apart) -> Result<(), CommandFailure> {
    let output = terms.output;
    if output == CheckOutput::Dump {
        let dumped = config::dump(file, &mut Files::on_disk());
        return print(
            &dumped.map_err(|text| CommandFailure { exit: Exit::Configuration, text: text + "\n" })?,
        );
    }
    if let Some(board) = apart.child {
        return apart::child(board, || check(file, terms, apart.as_root));
    }
    // The errors in it, the other process says.
    let config = preflight::read(file, &mut Files::on_disk()).ok().map(|(config, _)| config);
    let time_limit = config.as_ref().map_or(apart::TIME_LIMIT, |config| config.supervision.start_timeout);
    // Standard input is read only once.
    let input = if file == Path::new(config::STDIN) { config::standard_input() } else { &[] };
    let checked = apart::run(time_limit, input, |crumb| whose(file, config.as_ref().zip(crumb)));
    checked.or_else(|failure| match output {
        CheckOutput::Json if !failure.text.is_empty() => {
            Findings::refused(failure.exit, [failure.text.trim_end().to_owned()]).print_json(file)
        }
        _ => Err(failure),
    })
}

/// The module that a thread was inside of, and the cluster that it was built for.
fn whose(file: &Path, inside: Option<(&Config, Crumb)>) -> String {
    let names = inside.and_then(|(config, crumb)| {
        let id = &config.modules.get(crumb.module)?.id;
        let cluster = crumb.cluster.and_then(|cluster| config.clusters.get(cluster));
        Some(match cluster {
            Some(cluster) => format!("module \"{id}\", built for cluster \"{}\"", cluster.name),
            None => format!("module \"{id}\", opened"),
        })
    });
    format!("{}: {}", file.display(), names.as_deref().unwrap_or("a module"))
}

fn check(file: &Path, terms: CheckTerms, as_root: bool) -> Result<(), CommandFailure> {
    let found = Findings::of(file, terms.asks_sources, as_root);
    match terms.output {
        CheckOutput::Json => found.print_json(file),
        CheckOutput::Lines | CheckOutput::Dump => found.print_lines(),
    }
}

impl Finding {
    fn new(shown: String, place: Option<&Place>, message: &str, excerpt: Option<&Excerpt>) -> Self {
        Self {
            file: place.map(|place| place.file.to_string()),
            line: place.map(|place| place.line),
            column: excerpt.map(|excerpt| excerpt.column),
            message: message.to_owned(),
            shown,
            excerpt: excerpt.cloned(),
        }
    }

    fn of_line(line: String) -> Self {
        Self { message: line.clone(), shown: line, ..Self::default() }
    }

    fn of_warning(warning: &Warning) -> Self {
        Self::new(warning.to_string(), warning.place.as_ref(), &warning.text, warning.excerpt.as_ref())
    }
}

impl Findings {
    fn of(file: &Path, asks_sources: bool, as_root: bool) -> Self {
        let (config, warnings) = match preflight::read(file, &mut Files::on_disk()) {
            Ok(read) => read,
            Err((errors, modules)) => {
                let problem = |problem: &Problem| {
                    let (place, excerpt) = (problem.place.as_ref(), problem.excerpt.as_ref());
                    Finding::new(problem.to_string(), place, &problem.text, excerpt)
                };
                let errors = errors.problems.iter().map(problem);
                let errors = errors.chain(modules.into_iter().map(Finding::of_line)).collect();
                return Self { errors, exit: Some(Exit::Configuration), ..Self::default() };
            }
        };
        let config = Arc::new(config);
        let lacks = Lacks::of(&config);
        let mut asked = Ok(Vec::new());
        let ask = || {
            if asks_sources {
                asked = ask_sources(&config, SOURCE_TIMEOUT);
            }
        };
        let prepared = match (prepare(&config, as_root, ask), lacks.errors.is_empty()) {
            (Ok(prepared), true) => prepared,
            (Ok(_), false) => return Self::refused(Exit::Failed, lacks.errors),
            (Err(refused), _) => {
                // The two may name the same account.
                let more = lacks.errors.into_iter().filter(|lack| !refused.lines.contains(lack));
                let more: Vec<_> = more.collect();
                return Self::refused(refused.exit, refused.lines.into_iter().chain(more));
            }
        };
        let warnings = warnings.iter().map(Finding::of_warning);
        let lines = prepared.warnings.into_iter().chain(lacks.warnings).map(Finding::of_line);
        let (asked, mut errors) = match asked {
            Ok(asked) => (asked, Vec::new()),
            Err(error) => (Vec::new(), vec![Finding::of_line(format!("sources cannot be asked: {error}"))]),
        };
        errors.extend(asked.iter().filter_map(|source| {
            let why = source.servers.as_ref().err()?;
            Some(Finding::of_line(format!("{}: {why}", name_of(source))))
        }));
        let exit = (!errors.is_empty()).then_some(Exit::Failed);
        Self { errors, warnings: warnings.chain(lines).collect(), exit, config: Some(config), asked }
    }

    fn refused(exit: Exit, lines: impl IntoIterator<Item = String>) -> Self {
        let errors = lines.into_iter().map(Finding::of_line).collect();
        Self { errors, exit: Some(exit), ..Self::default() }
    }

    /// Errors and warnings go to stderr, and the summary to stdout. A terminal sees the lines of the file too.
    fn print_lines(self) -> Result<(), CommandFailure> {
        let with_source = io::stderr().is_terminal();
        let show = |finding: &Finding, mark: &str| match &finding.excerpt {
            Some(excerpt) if with_source => format!("{}{mark}\n{excerpt}\n", finding.shown),
            _ => format!("{}{mark}\n", finding.shown),
        };
        if let Some(exit) = self.exit {
            let text = self.errors.iter().map(|finding| show(finding, "")).collect();
            return Err(CommandFailure { exit, text });
        }
        let warnings: String = self.warnings.iter().map(|finding| show(finding, " (warning)")).collect();
        // Not by the log, whose level may hide them: they are what was asked for.
        io::stderr()
            .write_all(warnings.as_bytes())
            .map_err(|error| CommandFailure::new(format_args!("stderr: {error}")))?;
        let summary = self.config.map(|config| summary(&config)).unwrap_or_default();
        print(&self.asked.iter().map(describe).fold(summary, |text, source| text + &source))
    }

    fn print_json(self, file: &Path) -> Result<(), CommandFailure> {
        let n_servers =
            |config: &Config| config.clusters.iter().map(|cluster| cluster.servers.len()).sum::<usize>();
        let object = json!({
            "file": file.display().to_string(),
            "ok": self.exit.is_none(),
            "errors": self.errors,
            "warnings": self.warnings,
            "summary": self.config.as_ref().map(|config| json!({
                "listeners": config.listeners.len(),
                "modules": config.modules.len(),
                "clusters": config.clusters.len(),
                "servers": n_servers(config),
                "routes": config.routes.len(),
            })),
            "sources": self.asked.iter().map(|source| json!({
                "cluster": source.cluster,
                "source": source.source,
                "servers": source.servers.as_ref().ok(),
            })).collect::<Vec<_>>(),
        });
        print(&format!("{object:#}\n"))?;
        match self.exit {
            Some(exit) => Err(CommandFailure { exit, text: String::new() }),
            None => Ok(()),
        }
    }
}

/// Loads the modules and builds the balancers as a worker does: the files are read by the user that started this command, and
/// code of modules runs as the user of the configuration. This process stays that user. `before` is called as that user, before any
/// module is opened.
fn prepare(config: &Arc<Config>, as_root: bool, before: impl FnOnce()) -> Result<Prepared, Refused> {
    let copies: Vec<_> = config.modules.iter().map(load::read_to_check).collect();
    if let Err(text) = apart::become_user(Some(&config.run_as), as_root) {
        let mut lines: Vec<_> =
            copies.iter().filter_map(|copy| Some(copy.as_ref().err()?.to_string())).collect();
        let exit = if lines.is_empty() { Exit::Failed } else { Exit::Module };
        lines.push(text);
        return Err(Refused { exit, lines });
    }
    let runnable = |copied: load::Copied| {
        copied.runnable().map_err(|error| Refused::failed(format_args!("modules: {error}")))
    };
    let copies = copies.into_iter().map(|copy| match copy {
        Ok(copied) => runnable(copied).map(Ok),
        Err(error) => Ok(Err(error)),
    });
    let copies: Vec<_> = copies.collect::<Result<_, _>>()?;
    before();
    if config.supervision.sandbox {
        apart::confine();
    }
    let images = copies.iter().flatten().map(load::Copied::number);
    guarded::guard(&images.collect::<Vec<_>>());
    let copies = copies.into_iter().map(|copy| copy.map(Some));
    let registry = Registry::open(&config.modules, copies).map_err(StartError::Modules)?;
    Ok(Prepared::over(Arc::clone(config), registry, &Learned::new())?)
}

fn name_of(source: &AskedSource) -> String {
    format!("cluster \"{}\": source \"{}\"", source.cluster, source.source)
}

/// A line for a source that answered: how many servers it names, and the first of them.
fn describe(source: &AskedSource) -> String {
    let Ok(servers) = &source.servers else { return String::new() };
    let shown = servers.iter().take(MOST_SHOWN).map(|server| {
        let weight = if server.weight == 1 { String::new() } else { format!(" weight {}", server.weight) };
        let tier = if server.tier == 0 { String::new() } else { format!(" tier {}", server.tier) };
        let state = if server.state == "ready" { String::new() } else { format!(" {}", server.state) };
        format!("{}{weight}{tier}{state}", server.url)
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    let n_more = servers.len().saturating_sub(MOST_SHOWN);
    let more = if n_more > 0 { format!(" and {n_more} more") } else { String::new() };
    let colon = if shown.is_empty() { "" } else { ": " };
    format!("{}: {}{colon}{shown}{more}\n", name_of(source), count(servers.len(), "server"))
}

/// The line of a successful check.
fn summary(config: &Config) -> String {
    let n_servers = config.clusters.iter().map(|cluster| cluster.servers.len()).sum();
    format!(
        "{}: ok: {}, {}, {} of {}, {}\n",
        config.source.display(),
        count(config.listeners.len(), "listener"),
        count(config.modules.len(), "module"),
        count(config.clusters.len(), "cluster"),
        count(n_servers, "server"),
        count(config.routes.len(), "route"),
    )
}
