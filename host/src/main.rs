//! Arguments → one subcommand → exit code; the only place that ends the process.

mod author;
mod cli;
mod command;
mod demo;
mod inspect;
mod log;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use trylist::cluster::learned::Learned;
use trylist::config::{self, Config, Files, Syntax, Warning};
use trylist::module::load;
use trylist::module::registry::Registry;
use trylist::process::control::{self, Exit, Refused};
use trylist::process::preflight::{self, Lacks};
use trylist::process::privileges;
use trylist::process::sockets;
use trylist::serve::drain::Idle;
use trylist::supervisor;
use trylist::worker::{Prepared, StartError, Worker, process};

use self::cli::{Arguments, Command, ModuleCommand};
use self::demo::Demo;
use self::log::Log;

/// A connection's memory comes and goes in many sizes; this allocator serves all of them from a thread's own pages, which
/// saves a twentieth of what a connection with one request costs, and gives pages back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For a worker to end that was told to stop at once; it needs milliseconds, unless a module does not return.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// The demo finds ports that are free and lets the proxy bind them; somebody else may have taken one in between.
const DEMO_ATTEMPTS: usize = 5;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log_level = arguments.log_level();
    let log = match arguments.command {
        Command::Run(_) | Command::Demo => Log::of_a_service(&log_level),
        Command::Worker => {
            // Each thread has it of its own, so before there is another one. A failure shows again in `drop_to`.
            let _ = privileges::gain_none();
            Log::of_a_service(&log_level)
        }
        _ => Log::of_a_command(&log_level),
    };
    let result = match &arguments.command {
        Command::Run(from) => run(&from.config, log_level.as_str()),
        Command::Worker => worker(),
        Command::Reload { configuration, cut_oldest: false } => {
            command::ask(&configuration.config, &control::Command::Reload)
        }
        Command::Reload { configuration, cut_oldest: true } => {
            command::ask(&configuration.config, &control::Command::ReloadCutOldest)
        }
        Command::Status { configuration, json } => command::status(&configuration.config, *json),
        Command::Stop(from) => command::ask(&from.config, &control::Command::Stop),
        Command::Server { configuration, cluster, url, mark, weight } => {
            let mark = mark.with(*weight).unwrap_or_else(|error| error.exit());
            let (cluster, url) = (cluster.clone(), url.clone());
            command::ask(&configuration.config, &control::Command::Server { cluster, url, mark })
        }
        Command::Check(from) => check(&from.config),
        Command::Demo => demo(),
        Command::Module(ModuleCommand::Inspect { file }) => inspect(file),
        Command::Module(ModuleCommand::New(new)) => author::new::run(new),
        Command::Module(ModuleCommand::Test(test)) => author::test::run(test),
        Command::Module(ModuleCommand::Release { configuration, module }) => {
            command::ask(&configuration.config, &control::Command::Release { module: module.clone() })
        }
    };
    let (text, exit) = match result {
        Ok(()) => (String::new(), ExitCode::SUCCESS),
        Err(failure) => (failure.text, ExitCode::from(failure.exit as u8)),
    };
    log.end(&text);
    exit
}

fn run(file: &Path, log_level: &str) -> Result<(), Failure> {
    let options = supervisor::Options { config: file.to_owned(), log_level: log_level.to_owned() };
    Ok(supervisor::run(options)?)
}

fn worker() -> Result<(), Failure> {
    match process::run() {
        Ok(()) => Ok(()),
        // The supervisor says it.
        Err(process::Failure::Reported) => Err(Failure { exit: Exit::Failed, text: String::new() }),
        Err(process::Failure::NoThread(error)) => Err(Failure::new(format_args!("no thread: {error}"))),
        Err(process::Failure::NoSupervisor(error)) => Err(Failure::new(format_args!(
            "this is no command for people: `run` starts it, and speaks to it ({error})"
        ))),
    }
}

fn check(file: &Path) -> Result<(), Failure> {
    let (config, warnings) = preflight::load(file, &mut Files::on_disk())?;
    let config = Arc::new(config);
    let lacks = Lacks::of(&config);
    let prepared = match (prepare(&config), lacks.errors.is_empty()) {
        (Ok(prepared), true) => prepared,
        (Ok(_), false) => return Err(Failure { exit: Exit::Failed, text: lines(&lacks.errors) }),
        (Err(refused), _) => {
            // The two may name the same account.
            let lacks = lacks.errors.iter().filter(|lack| !refused.lines.contains(lack));
            return Err(Failure { exit: refused.exit, text: lines(refused.lines.iter().chain(lacks)) });
        }
    };
    let warnings = warnings.iter().map(Warning::to_string).chain(prepared.warnings).chain(lacks.warnings);
    let warnings: String = warnings.map(|warning| format!("{warning} (warning)\n")).collect();
    // Not by the log, whose level may hide them: they are what was asked for.
    io::stderr()
        .write_all(warnings.as_bytes())
        .map_err(|error| Failure::new(format_args!("stderr: {error}")))?;
    print(&summary(&config))
}

/// Loads the modules and builds the balancers as a worker does: the files are read by the user that started this command, and
/// code of modules runs as the user of the configuration. This process stays that user.
fn prepare(config: &Arc<Config>) -> Result<Prepared, Refused> {
    let copies: Vec<_> = config.modules.iter().map(load::read).collect();
    if let Err(text) = privileges::drop_to(&config.run_as) {
        let mut lines: Vec<_> =
            copies.iter().filter_map(|copy| Some(copy.as_ref().err()?.to_string())).collect();
        let exit = if lines.is_empty() { Exit::Failed } else { Exit::Module };
        lines.push(text);
        return Err(Refused { exit, lines });
    }
    let copies = copies.into_iter().map(|copy| copy.map(Some));
    let registry = Registry::open(&config.modules, copies).map_err(StartError::Modules)?;
    Ok(Prepared::over(Arc::clone(config), registry, &Learned::new())?)
}

fn demo() -> Result<(), Failure> {
    // Its servers run for as long as the proxy does.
    let mut running = None;
    serve(|| {
        let mut attempts = 1..=DEMO_ATTEMPTS;
        loop {
            attempts.next();
            let demo = Demo::start().map_err(|error| {
                Failure::new(format_args!("demo: its servers cannot be started: {error}"))
            })?;
            let (config, _) = config::parse("demo.toml", &demo.configuration(), Syntax::Toml)?;
            match Worker::start(Arc::new(config)) {
                Err(StartError::Bind(_)) if !attempts.is_empty() => {}
                started => {
                    let introduction = format!("{}\n", demo.introduction());
                    running = Some(demo);
                    return Ok((started?, introduction));
                }
            }
        }
    })
}

fn inspect(file: &Path) -> Result<(), Failure> {
    let module = load::inspect(file).map_err(|error| Failure { exit: Exit::Module, text: line(&error) })?;
    print(&inspect::describe(&module))
}

/// Starts a worker and runs it until signals end it. What `start` returns with it is said when it listens.
fn serve(start: impl FnOnce() -> Result<(Worker, String), Failure>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format_args!("no runtime for signals: {error}")))?;
    let result = runtime.block_on(serve_until_stopped(start));
    // Without waiting for a worker that does not end.
    runtime.shutdown_background();
    result
}

async fn serve_until_stopped(
    start: impl FnOnce() -> Result<(Worker, String), Failure>,
) -> Result<(), Failure> {
    // Before anything listens, so that no signal ends the process unseen.
    let mut signals =
        Signals::new().map_err(|error| Failure::new(format_args!("no signal handler: {error}")))?;
    sockets::raise_descriptor_limit();
    let (worker, introduction) = start()?;
    for address in worker.addresses() {
        tracing::info!("listening on {address}");
    }
    if let Some(address) = worker.admin_address() {
        tracing::info!("metrics on {address}");
    }
    let control = worker.control();
    print(&introduction)?;
    let mut ended = tokio::task::spawn_blocking(move || worker.wait());
    let mut is_draining = false;
    loop {
        let asked = tokio::select! {
            cut_off = &mut ended => return match cut_off {
                Ok(0) if is_draining => Ok(()),
                Ok(n) if is_draining => Err(Failure::new(format_args!("{n} connections cut off at the drain's end"))),
                Ok(_) | Err(_) => Err(Failure::new("the worker ended by itself")),
            },
            asked = signals.recv() => asked,
        };
        match asked {
            Asked::ReopenLog => {
                control.reopen_access_log();
                tracing::info!("SIGUSR2: the access log's file is opened again");
            }
            Asked::Stop(name) if !is_draining => {
                is_draining = true;
                control.drain(Idle::Close);
                tracing::info!("{name}: requests may end, then it stops; a second signal stops it at once");
            }
            Asked::Stop(name) => {
                tracing::warn!("{name}: it stops at once");
                control.stop();
                let _ = timeout(STOP_TIMEOUT, ended).await;
                return Err(Failure::new("stopped by a second signal before all requests had ended"));
            }
        }
    }
}

/// What a signal asks for.
enum Asked {
    Stop(&'static str),
    ReopenLog,
}

/// SIGTERM, SIGINT and SIGUSR2.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn recv(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.user2.recv() => Asked::ReopenLog,
        }
    }
}

/// What `check` says where nothing is wrong.
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

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever read it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(format_args!("stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Why the process ends with another code than 0.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    /// Whole lines for stderr.
    text: String,
}

impl Failure {
    /// Something failed that has no place in a file.
    fn new(text: impl Display) -> Self {
        Self { exit: Exit::Failed, text: format!("trylist: {text}\n") }
    }
}

impl From<config::ConfigErrors> for Failure {
    fn from(errors: config::ConfigErrors) -> Self {
        Self { exit: Exit::Configuration, text: lines(&errors.problems) }
    }
}

impl From<Refused> for Failure {
    fn from(Refused { exit, lines }: Refused) -> Self {
        match (exit, &lines[..]) {
            // What is not of a file begins with who says it.
            (Exit::Failed, [only]) => Self::new(only),
            _ => Self { exit, text: self::lines(&lines) },
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let Refused { exit, lines } = error.into();
        Self { exit, text: self::lines(&lines) }
    }
}

fn line(text: &impl Display) -> String {
    format!("{text}\n")
}

fn lines<'t, T: Display + 't>(texts: impl IntoIterator<Item = &'t T>) -> String {
    texts.into_iter().map(line).collect()
}
