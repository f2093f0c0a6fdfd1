//! The log of this program's processes: what starts it, and what ends it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::thread;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use trylist::os::log::{self, CurrentLevels, LogLevels};
use trylist::os::log_queue::{self, LogWriter};

/// For the last lines to be written when the process ends. It is shorter than a supervisor waits for the end of a worker
/// that has said its last word.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Said at once at most, well below what may wait.
const PIECE_BYTES: usize = 256 << 10;

/// How lines are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Log {
    /// To stderr at once: of commands, whose user waits for what they say.
    Direct,
    /// Through a queue: of processes that serve, which wait for nobody who reads. To stderr, until the configuration says where.
    Queued(LogWriter),
}

impl Log {
    /// Starts the log of a command. Called once, before anything that logs.
    pub(crate) fn of_a_command(levels: &LogLevels) -> Self {
        start(levels, Self::Direct);
        Self::Direct
    }

    /// Starts the log of a process that serves. Called once, before anything that logs and before any other thread.
    pub(crate) fn of_a_service(levels: &LogLevels) -> Self {
        let say_dropped = |n, path: Option<&Path>| match path {
            None => tracing::warn!("log: dropped {n} lines because stderr was blocked"),
            Some(path) => {
                tracing::warn!("log: dropped {n} lines because \"{}\" took none", path.display());
            }
        };
        match log_queue::start(say_dropped) {
            Ok(lines) => {
                start(levels, Self::Queued(lines));
                // The process ends with this thread, and so does the one that writes.
                let main = thread::current().id();
                panic::set_hook(Box::new(move |panicked| {
                    lines.say(log::error_lines(&panic_text(panicked)).as_bytes());
                    if thread::current().id() == main {
                        lines.drain(END_TIMEOUT);
                    }
                }));
                Self::Queued(lines)
            }
            Err(error) => {
                let log = Self::of_a_command(levels);
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
            Self::Direct => drop(io::stderr().write_all(log::error_lines_on_stderr(text).as_bytes())),
            Self::Queued(lines) => {
                say_all(lines, log::error_lines(text).as_bytes());
                if log::is_elsewhere() {
                    // Whoever started the program looks there.
                    log_queue::try_stderr(&log::error_lines_on_stderr(text));
                }
                lines.drain(END_TIMEOUT);
            }
        }
    }
}

/// Says whole lines, even more than may wait at once. Gives up where a piece is not taken in time.
fn say_all(lines: LogWriter, mut text: &[u8]) {
    while text.len() > PIECE_BYTES {
        let end = memchr::memrchr(b'\n', &text[..PIECE_BYTES]).map_or(PIECE_BYTES, |at| at + 1);
        lines.say(&text[..end]);
        if !lines.drain(END_TIMEOUT) {
            return;
        }
        text = &text[end..];
    }
    lines.say(text);
}

fn start(levels: &LogLevels, how: Log) {
    let is_for_people =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let writer = move || -> Box<dyn io::Write> {
        match how {
            Log::Direct => Box::new(io::stderr()),
            Log::Queued(lines) => Box::new(lines),
        }
    };
    log::begin(levels);
    tracing_subscriber::registry().with(log::layer(is_for_people, writer)).with(CurrentLevels).init();
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
    use tracing::level_filters::LevelFilter;

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
}
