//! The log of a process: which events are logged, in which form, and where lines go. All of that may change while it runs.
//!
//! ```text
//! tracing event ─► levels ─► format: text, JSON; before it what journald or syslog wants ─► log_queue ─► log_output
//! ```

mod fields;
mod format;
#[cfg(test)]
mod tests;

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};

pub use self::fields::is_special;
pub use self::format::layer;
use super::log_output::{self, LogOutput, SyslogOutput};
use super::log_queue;

/// Libraries that warn about peers' input, so that peers could fill the log. Their lines show at level debug, or if they are
/// named.
const TALKATIVE: &str = "h2";

/// The log as a configuration wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// The form of each line.
    pub form: LineForm,
    /// The level, as the command line takes it.
    pub level: Box<str>,
    /// Where lines go.
    pub target: LogTarget,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineForm {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// This process's stderr.
    #[default]
    Stderr,
    /// A file.
    File(PathBuf),
    /// The socket of a syslog daemon.
    Syslog(PathBuf),
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { form: LineForm::Text, level: "info".into(), target: LogTarget::Stderr }
    }
}

impl LogSettings {
    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.target {
            LogTarget::File(path) => Some(path),
            LogTarget::Stderr | LogTarget::Syslog(_) => None,
        }
    }
}

/// The log level, and levels for parts of the program.
#[derive(Clone, Debug)]
pub struct LogLevels {
    targets: Targets,
    /// As it was written, for processes that are to log the same.
    text: String,
}

impl LogLevels {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<LevelFilter> for LogLevels {
    fn from(level: LevelFilter) -> Self {
        let targets = without_talk(Targets::new().with_default(level), level);
        Self { targets, text: level.to_string() }
    }
}

impl FromStr for LogLevels {
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

// ---- what may change while the process runs -------------------------------------------------------------------------

static LEVELS: LazyLock<ArcSwap<Targets>> =
    LazyLock::new(|| ArcSwap::from_pointee(Targets::new().with_default(LevelFilter::INFO)));

/// Which events are logged: as [`set_levels`] said last. Decided once for each place that logs.
#[derive(Clone, Copy, Debug)]
pub struct CurrentLevels;

impl<S: Subscriber> Layer<S> for CurrentLevels {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if LEVELS.load().would_enable(metadata.target(), metadata.level()) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        LEVELS.load().would_enable(metadata.target(), metadata.level())
    }
}

/// Has events of these levels be logged from now on.
pub fn set_levels(levels: &LogLevels) {
    LEVELS.store(levels.targets.clone().into());
    tracing::callsite::rebuild_interest_cache();
}

/// The form of lines, and what stands before each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LineShape {
    is_json: bool,
    before: BeforeLine,
    /// No terminal shows it.
    is_elsewhere: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum BeforeLine {
    #[default]
    Nothing,
    /// `<4>`, which journald takes for the priority.
    Priority,
    /// As RFC 3164 says it of a daemon on the same machine.
    Syslog,
}

/// [`LineShape`] in bits.
static SHAPE: AtomicU8 = AtomicU8::new(0);

impl LineShape {
    const JSON: u8 = 1;
    const PRIORITY: u8 = 2;
    const SYSLOG: u8 = 4;
    const ELSEWHERE: u8 = 8;

    fn now() -> Self {
        let bits = SHAPE.load(Ordering::Relaxed);
        let before = match (bits & Self::SYSLOG, bits & Self::PRIORITY) {
            (0, 0) => BeforeLine::Nothing,
            (0, _) => BeforeLine::Priority,
            _ => BeforeLine::Syslog,
        };
        Self { is_json: bits & Self::JSON != 0, before, is_elsewhere: bits & Self::ELSEWHERE != 0 }
    }

    fn of(form: LineForm, target: &LogTarget) -> Self {
        let before = match target {
            LogTarget::Stderr if is_journal() => BeforeLine::Priority,
            LogTarget::Stderr | LogTarget::File(_) => BeforeLine::Nothing,
            LogTarget::Syslog(_) => BeforeLine::Syslog,
        };
        Self { is_json: form == LineForm::Json, before, is_elsewhere: *target != LogTarget::Stderr }
    }

    fn set(self) {
        let before = match self.before {
            BeforeLine::Nothing => 0,
            BeforeLine::Priority => Self::PRIORITY,
            BeforeLine::Syslog => Self::SYSLOG,
        };
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let bits = bit(self.is_json, Self::JSON) | before | bit(self.is_elsewhere, Self::ELSEWHERE);
        SHAPE.store(bits, Ordering::Relaxed);
    }
}

/// Begins as text on stderr, for journald if that is journald.
pub fn begin(levels: &LogLevels) {
    set_levels(levels);
    LineShape::of(LineForm::Text, &LogTarget::Stderr).set();
}

/// Has the log of this process be as these settings say, but for the level. `file` is the file of the target, open to append to.
///
/// # Errors
/// The target cannot be used. Nothing has changed then.
pub(crate) fn apply(settings: &LogSettings, file: Option<File>) -> io::Result<()> {
    // The system reads its time zone now: a process that is confined cannot.
    let _ = super::local_time::rfc3164(std::time::SystemTime::now());
    let output: Box<dyn LogOutput> = match (&settings.target, file) {
        (LogTarget::Stderr, _) => Box::new(log_output::stderr()),
        (LogTarget::File(path), Some(file)) => Box::new(log_output::file(file, path)),
        (LogTarget::File(_), None) => return Err(io::Error::other("the file is missing")),
        (LogTarget::Syslog(path), _) => Box::new(SyslogOutput::new(path)?),
    };
    if log_queue::write_to(output) {
        LineShape::of(settings.form, &settings.target).set();
        return Ok(());
    }
    LineShape::of(settings.form, &LogTarget::Stderr).set();
    match settings.target {
        LogTarget::Stderr => Ok(()),
        LogTarget::File(_) | LogTarget::Syslog(_) => Err(io::Error::other("no thread for the log")),
    }
}

/// Has lines go to this file, the one that is written being renamed.
pub(crate) fn reopen_with(file: File, path: &Path) {
    log_queue::write_to(Box::new(log_output::file(file, path)));
}

/// Whether lines go elsewhere than to stderr.
pub fn is_elsewhere() -> bool {
    LineShape::now().is_elsewhere
}

/// Lines of the log that say this text at level error; on stderr, they are the text's own.
pub fn error_lines(text: &str) -> String {
    format::lines(text, Level::ERROR, LineShape::now())
}

/// The same lines as they are on stderr.
pub fn error_lines_on_stderr(text: &str) -> String {
    format::lines(text, Level::ERROR, LineShape::of(LineForm::Text, &LogTarget::Stderr))
}

/// Whether stderr is a stream of journald's, as systemd says.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let Ok(found) = rustix::fs::fstat(rustix::stdio::stderr()) else { return false };
    stream == format!("{}:{}", found.st_dev, found.st_ino)
}
