//! The log on stderr: one line an event, coloured only for people.

mod fields;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::panic::{self, PanicHookInfo};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::Layer;
use tracing_subscriber::fmt::format::{Compact, Format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use trylist::os::log_queue::{self, LogWriter};

use self::fields::LogFields;
pub(crate) use self::fields::is_special;

/// Libraries that warn about peers' input, so that peers could fill the log. Their lines show at level debug, or if they are
/// named.
const TALKATIVE: &str = "h2";

/// The log level, and levels for parts of the program.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    targets: Targets,
    /// As it was written, for processes that are to log the same.
    text: String,
}

impl Filter {
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<LevelFilter> for Filter {
    fn from(level: LevelFilter) -> Self {
        let targets = without_talk(Targets::new().with_default(level), level);
        Self { targets, text: level.to_string() }
    }
}

impl FromStr for Filter {
    type Err = String;

    /// `level` or `target=level`, by commas. Stricter than [`Targets`]'s own, which takes a misspelt level for the name
    /// of a target, and then logs nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut targets, mut default, mut is_named) = (Targets::new(), LevelFilter::OFF, false);
        for part in text.split(',').map(str::trim) {
            let (target, level) =
                part.split_once('=').map_or((None, part), |(target, level)| (Some(target), level));
            // An empty one would be read as "error".
            let known = Some(level).filter(|level| !level.is_empty()).and_then(|level| level.parse().ok());
            let level: LevelFilter = known.ok_or_else(|| {
                format!("invalid level \"{level}\"; use error, warn, info, debug, trace or off")
            })?;
            is_named |= target.is_some_and(|target| target.starts_with(TALKATIVE));
            targets = match target {
                Some(target) => targets.with_target(target, level),
                None => {
                    default = level;
                    targets.with_default(level)
                }
            };
        }
        let targets = if is_named { targets } else { without_talk(targets, default) };
        Ok(Self { targets, text: text.to_owned() })
    }
}

fn without_talk(targets: Targets, default: LevelFilter) -> Targets {
    if default < LevelFilter::DEBUG {
        targets.with_target(TALKATIVE, default.min(LevelFilter::ERROR))
    } else {
        targets
    }
}

/// For the last lines to be written when the process ends. It is shorter than a supervisor waits for the end of a worker
/// that has said its last word.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Log {
    /// To stderr at once: of commands, whose user waits for what they say.
    Direct,
    /// Through a queue: of processes that serve, which wait for nobody who reads.
    Queued(LogWriter),
}

impl Log {
    /// Starts the log of a command. Called once, before anything that logs.
    pub(crate) fn of_a_command(filter: &Filter) -> Self {
        start(filter, Self::Direct);
        Self::Direct
    }

    /// Starts the log of a process that serves. Called once, before anything that logs and before any other thread.
    pub(crate) fn of_a_service(filter: &Filter) -> Self {
        let say_dropped = |n| tracing::warn!("log: dropped {n} lines because stderr was blocked");
        match log_queue::start(say_dropped) {
            Ok(lines) => {
                start(filter, Self::Queued(lines));
                // The process ends with this thread, and so does the one that writes.
                let main = thread::current().id();
                panic::set_hook(Box::new(move |panicked| {
                    lines.say(panic_text(panicked).as_bytes());
                    if thread::current().id() == main {
                        lines.drain(END_TIMEOUT);
                    }
                }));
                Self::Queued(lines)
            }
            Err(error) => {
                let log = Self::of_a_command(filter);
                tracing::warn!("no thread for the log; a blocked stderr delays requests: {error}");
                log
            }
        }
    }

    /// Says this, whole lines, and waits until all lines are written; for a limited time where the process serves. To be
    /// called before the process ends or executes another program.
    pub(crate) fn end(self, text: &str) {
        match self {
            // If stderr is gone too, the exit code has to say it alone.
            Self::Direct => drop(io::stderr().write_all(text.as_bytes())),
            Self::Queued(lines) => {
                lines.say(text.as_bytes());
                lines.drain(END_TIMEOUT);
            }
        }
    }
}

fn start(filter: &Filter, log: Log) {
    let is_for_people =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let writer = move || -> Box<dyn io::Write> {
        match log {
            Log::Direct => Box::new(io::stderr()),
            Log::Queued(lines) => Box::new(lines),
        }
    };
    let lines = layer(is_for_people).with_writer(writer);
    tracing_subscriber::registry().with(lines).with(filter.targets.clone()).init();
}

/// One line an event, in which nothing that peers say can pass for something else.
fn layer<S>(has_colours: bool) -> Layer<S, LogFields, Format<Compact>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    Layer::default().compact().fmt_fields(LogFields).with_target(false).with_ansi(has_colours)
}

/// As the standard library says it, which would wait for stderr.
fn panic_text(panicked: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let mut text = format!("thread '{}' {panicked}\n", thread.name().unwrap_or("<unnamed>"));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{backtrace}");
    }
    text
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    /// The log is one of a whole process, so this runs in one of its own.
    #[test]
    fn a_panic_of_the_main_thread_is_written_before_the_process_ends() {
        const ROLE: &str = "TRYLIST_TEST_PANICS";
        if env::var_os(ROLE).is_some() {
            let Log::Queued(lines) = Log::of_a_service(&LevelFilter::INFO.into()) else { unreachable!() };
            lines.say("x".repeat(1 << 19).as_bytes());
            let _ = panic::catch_unwind(|| panic!("told to"));
            // Without anything that the end of a process does.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        let test = "log::tests::a_panic_of_the_main_thread_is_written_before_the_process_ends";
        let mut command = std::process::Command::new(env::current_exe().expect("this one"));
        let run = command.args([test, "--exact", "--nocapture"]).env(ROLE, "1").output().expect("it runs");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(said.contains("told to"), "{} bytes", said.len());
    }

    #[test]
    fn takes_a_level_and_levels_for_parts() {
        let Filter { targets, .. } = "warn,trylist::serve::pool=debug".parse().expect("it is right");
        assert!(targets.would_enable("trylist::worker", &Level::WARN));
        assert!(!targets.would_enable("trylist::worker", &Level::INFO));
        assert!(targets.would_enable("trylist::serve::pool", &Level::DEBUG));
        let Filter { targets, text } = LevelFilter::INFO.into();
        assert!(
            targets.would_enable("trylist", &Level::INFO) && !targets.would_enable("trylist", &Level::DEBUG)
        );
        assert!(text == "info" && !targets.would_enable("h2::proto", &Level::WARN));
    }

    #[test]
    fn what_peers_make_a_library_say_is_logged_where_somebody_looks_for_it() {
        for (text, is_logged) in
            [("info", false), ("off,trylist=debug", false), ("info,h2=warn", true), ("debug", true)]
        {
            let Filter { targets, .. } = text.parse().expect("it is right");
            assert_eq!(targets.would_enable("h2::proto", &Level::WARN), is_logged, "{text}");
        }
    }

    #[test]
    fn refuses_a_level_that_there_is_not() {
        for text in ["", "infoo", "info,trylist=loud", "info,", "trylist="] {
            let error = text.parse::<Filter>().expect_err(text);
            assert!(error.contains("use error, warn"), "{error}");
        }
    }
}
