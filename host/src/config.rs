//! The checked configuration: immutable, every name resolved, nothing a string that means something else.
//!
//! [`load`] makes one: it reads a TOML or an httpd-style file into one raw form and checks that as a whole, reporting
//! every problem of the file in one run.
//!
//! ```text
//! TOML ── read.rs (de.rs) ──┐
//!                           ├── file.rs, the raw form ── check.rs ── Config
//! .conf ─ httpd.rs ─────────┘
//! ```
//!
//! `model.rs` has every type of a [`Config`] on one page, `problem.rs` what is shown when there is none.

mod check;
mod de;
mod file;
mod files;
mod health;
mod httpd;
mod locate;
mod model;
mod problem;
mod read;
pub mod retry;
mod settings;
mod shape;
mod source;
mod suggest;
mod units;

use std::path::{Path, PathBuf};

pub use self::files::Files;
pub use self::health::{CountedStatuses, Ejection, HealthCheck, HttpProbe, Probe, ProbeMethod};
pub use self::locate::NotFound;
pub use self::model::{
    Access, AccessLogTarget, Admin, AllDown, ClusterConfig, Config, CookieTerms, Families, HostHeader,
    KeyMissing, KeySource, Limits, Listener, ModuleFile, Place, ProxyProtocol, QueueOrder, Resolve,
    ResolverConfig, Route, RouteOrder, RunAs, SameSite, Server, Setting, SettingValue, StickyConfig,
    Supervision, Syntax, Timeouts, WhenFull,
};
pub use self::problem::{ConfigErrors, Problem, Warning};

use self::check::Checker;
use self::source::Diagnostics;

/// Reads and checks the configuration file at `path`; a name that ends in `.conf` is read as httpd's syntax.
///
/// # Errors
/// Every problem of the file and of what it includes. A file that cannot be read is one, too.
pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    load_from(path, &mut Files::on_disk())
}

/// As [`load`], where all that is read is kept in `files`, or is in there already.
///
/// # Errors
/// As [`load`].
pub fn load_from(path: &Path, files: &mut Files) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    let name = path.display().to_string();
    match files.text(path) {
        Ok(text) => parse_with(&name, &text, Syntax::of(path), files),
        Err(reason) => {
            let problem = Problem { place: None, text: format!("{name}: {reason}") };
            Err(ConfigErrors { problems: vec![problem], modules: Vec::new() })
        }
    }
}

/// Checks a configuration that is at hand as text. Relative paths in it start in the directory of `name`.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str, syntax: Syntax) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    parse_with(name, text, syntax, &mut Files::on_disk())
}

pub(crate) fn parse_with(
    name: &str,
    text: &str,
    syntax: Syntax,
    files: &mut Files,
) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    let mut report = Diagnostics::new(name);
    let raw = match syntax {
        Syntax::Toml => read::read(name, text, &mut report),
        Syntax::Httpd => httpd::read(name, text, files, &mut report),
    };
    let config = raw.map(|(file, root)| {
        Checker { report: &mut report, files, syntax, root, source: Path::new(name) }.check(file)
    });
    let named = |module: &&ModuleFile| !module.file.as_os_str().is_empty();
    let modules = config.iter().flat_map(|config| &config.modules).filter(named).cloned().collect();
    report.finish(config).map_err(|errors| ConfigErrors { modules, ..errors })
}

/// Where a configuration file says that its supervisor listens for commands, if it says so and as far as it can be read.
pub fn control_of(path: &Path) -> Option<PathBuf> {
    let text = Files::on_disk().text(path).ok()?;
    let name = match Syntax::of(path) {
        Syntax::Toml => match toml::from_str::<OnlyControl>(&text) {
            Ok(only) => only.control?,
            // It is no TOML, which is to be mended; the line may be whole all the same.
            Err(_) => {
                let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("control"));
                let value = lines.filter_map(|rest| rest.trim_start().strip_prefix('=')).next()?;
                value.trim().trim_matches('"').to_owned()
            }
        },
        Syntax::Httpd => httpd::control_of(&text)?,
    };
    Some(path.parent().unwrap_or(Path::new("")).join(name))
}

/// A configuration of which nothing else is wanted.
#[derive(serde::Deserialize)]
struct OnlyControl {
    control: Option<String>,
}

/// The settings of a module, where they are a file (or any text) of their own.
///
/// # Errors
/// As [`load`].
pub fn settings(name: &str, text: &str) -> Result<Vec<Setting>, ConfigErrors> {
    let mut report = Diagnostics::new(name);
    let settings = read::read_settings(name, text, &mut report);
    report.finish(settings).map(|(settings, _)| settings)
}

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
