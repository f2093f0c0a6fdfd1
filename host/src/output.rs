//! Output and failures of commands.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

use trylist::config;
use trylist::os::log::is_special;
use trylist::process::control::{Exit, Refused};
use trylist::worker::StartError;

/// A failed command: exit code and text.
#[derive(Debug)]
pub(crate) struct CommandFailure {
    pub(crate) exit: Exit,
    /// Whole lines for stderr.
    pub(crate) text: String,
}

impl CommandFailure {
    /// Something failed that has no place in a file.
    pub(crate) fn new(text: impl Display) -> Self {
        Self { exit: Exit::Failed, text: format!("trylist: {text}\n") }
    }
}

impl From<config::ConfigErrors> for CommandFailure {
    fn from(errors: config::ConfigErrors) -> Self {
        Self { exit: Exit::Configuration, text: lines(&errors.problems) }
    }
}

impl From<Refused> for CommandFailure {
    fn from(Refused { exit, lines }: Refused) -> Self {
        match (exit, &lines[..]) {
            // Problems without a file begin with the program's name.
            (Exit::Failed, [only]) => Self::new(only),
            _ => Self { exit, text: self::lines(&lines) },
        }
    }
}

impl From<StartError> for CommandFailure {
    fn from(error: StartError) -> Self {
        let Refused { exit, lines } = error.into();
        Self { exit, text: self::lines(&lines) }
    }
}

/// One line.
pub(crate) fn line(text: &impl Display) -> String {
    format!("{text}\n")
}

/// A line for each.
pub(crate) fn lines<'t, T: Display + 't>(texts: impl IntoIterator<Item = &'t T>) -> String {
    texts.into_iter().map(line).collect()
}

/// `1 server`, `2 servers`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A time of so many seconds.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Text of others, with characters that a terminal obeys as their escapes.
pub(crate) fn safe(text: &str) -> Cow<'_, str> {
    if !text.contains(is_special) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_special(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe.into()
}

/// The output of this process where standard output is a module's: see [`keep_from_modules`].
static OWN_OUTPUT: OnceLock<File> = OnceLock::new();

/// Keeps standard output apart from what modules print from now on, which goes to standard error.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn keep_from_modules() -> io::Result<()> {
    let own = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    // The second call of two finds the first one's, which is as good.
    let _ = OWN_OUTPUT.set(File::from(own));
    Ok(())
}

/// Prints to standard output. A reader that has gone has read enough.
pub(crate) fn print(text: &str) -> Result<(), CommandFailure> {
    let written = match OWN_OUTPUT.get() {
        Some(mut output) => output.write_all(text.as_bytes()),
        None => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        }
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CommandFailure::new(format_args!("stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}
