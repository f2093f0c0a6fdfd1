//! The checked configuration: immutable, with every name resolved and every value in its own type.
//!
//! [`load`] reads a TOML file or one in httpd's syntax into one raw form, and checks it as a whole. One run reports every
//! problem of the file.
//!
//! ```text
//! TOML ── gather.rs ── read.rs (de.rs) ──┐
//!                                        ├── file.rs, the raw form ── check.rs ── Config
//! .conf ─ httpd.rs ──────────────────────┘
//! ```
//!
//! `model.rs` has every type of a [`Config`] on one page, `problem.rs` what is shown when there is none.

mod answer;
mod check;
mod dump;
mod de;
pub(crate) mod discover;
mod file;
mod files;
mod gather;
mod health;
mod httpd;
mod include;
mod locate;
mod log_format;
mod model;
mod problem;
mod read;
pub(crate) mod retry;
mod secret;
mod settings;
mod shape;
mod source;
mod suggest;
mod units;

use std::path::Path;

pub use self::answer::{Answer, ERROR_STATUSES, ErrorPages, Page, Redirect, Respond};
pub(crate) use self::check::canonical_url;
pub use self::discover::{DnsRecord, MayName, MemberTemplate, SourceKind, SourceSpec, WhenEmpty};
pub use self::files::{Files, standard_input};
pub use self::health::{CountedStatuses, Ejection, HealthCheck, HttpProbe, Probe, ProbeMethod};
pub use self::locate::NotFound;
pub use self::log_format::{LogField, LogFormat, LogPart};
pub use self::model::{
    Access, AccessLogTarget, Admin, AllDown, ClusterConfig, Config, ControlSocket, CookieTerms, Discover,
    Families, HostHeader, HostPattern, KeyMissing, KeySource, Limits, Listener, MAX_SERVERS, ModuleFile,
    Place, ProxyProtocol, QueueOrder, Resolve, ResolverConfig, Route, RouteOrder, RunAs, SameSite, Server,
    Setting, SettingValue, Spill, StickyConfig, Supervision, Syntax, Timeouts, WhenFull,
};
pub(crate) use self::model::{LAST_TIER, MAX_REQUESTS, url_at};
pub use self::problem::{ConfigErrors, Excerpt, Problem, Warning};

use self::check::Checker;
use self::file::ControlTable;
use self::shape::{Short, Switched};
use self::source::Diagnostics;

/// The name that stands for standard input. It is read once in the life of the process.
pub const STDIN: &str = "-";

/// Reads and checks the configuration file at `path`; a name that ends in `.conf` is read as httpd's syntax.
///
/// # Errors
/// Every problem of the file and of what it includes. A file that cannot be read is one, too.
pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    load_from(path, &mut Files::on_disk())
}

/// As [`load`]; reads files through `files`, which keeps them.
///
/// # Errors
/// As [`load`].
pub fn load_from(path: &Path, files: &mut Files) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    let name = if path == Path::new(STDIN) { "<stdin>".to_owned() } else { path.display().to_string() };
    match files.text(path) {
        Ok(text) => parse_with(&name, &text, Syntax::of(path), files)
            .map(|(config, warnings)| (Config { source: path.to_owned(), ..config }, warnings)),
        Err(reason) => {
            let problem = Problem { place: None, text: format!("{name}: {reason}"), excerpt: None };
            Err(ConfigErrors { problems: vec![problem], modules: Vec::new() })
        }
    }
}

/// Checks a configuration given as text. Relative paths start in the directory of `name`.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str, syntax: Syntax) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    parse_with(name, text, syntax, &mut Files::on_disk())
}

/// Reads a duration as configurations have it: `250ms`, `10s`, `5m`, `1h`; at most 24 hours.
///
/// # Errors
/// It is none, or too long; in words.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    units::parse_time(text)
}

/// A configuration as it counts, in TOML: what it includes and the variables of the environment are in place, and so is every
/// default that `conf/reference.toml` shows. Secrets are hidden.
///
/// # Errors
/// It is in httpd's syntax, or is not TOML.
pub fn dump(path: &Path, files: &mut Files) -> Result<String, String> {
    if Syntax::of(path) == Syntax::Httpd {
        return Err("only TOML can be dumped, and this file is in httpd's syntax".to_owned());
    }
    let name = path.display().to_string();
    let text = files.text(path).map_err(|reason| format!("{name}: {reason}"))?;
    let mut report = Diagnostics::new(&name);
    let texts = gather::texts(&name, &text, files, &mut report);
    let tree = gather::tree(&texts, files, &mut report);
    tree.map(|tree| dump::show(&tree)).ok_or_else(|| format!("{name}: is not TOML"))
}

pub(crate) fn parse_with(
    name: &str,
    text: &str,
    syntax: Syntax,
    files: &mut Files,
) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    let mut report = Diagnostics::new(name);
    let raw = match syntax {
        Syntax::Toml => read::read(name, text, files, &mut report),
        Syntax::Httpd => httpd::read(name, text, files, &mut report),
    };
    let config = raw.map(|(file, root)| {
        Checker { report: &mut report, files, syntax, root, source: Path::new(name) }.check(file)
    });
    let named = |module: &&ModuleFile| !module.file.as_os_str().is_empty();
    let modules = config.iter().flat_map(|config| &config.modules).filter(named).cloned().collect();
    report.finish(config).map_err(|errors| ConfigErrors { modules, ..errors })
}

/// The control socket that a configuration file names. The file may be wrong otherwise.
pub fn control_of(path: &Path) -> ControlSocket {
    // As a start reads it, with what it includes and the variables in it, where that works.
    if let Ok((config, _)) = load(path) {
        return config.control;
    }
    let Ok(text) = Files::on_disk().text(path) else { return ControlSocket::Derived };
    let named = match Syntax::of(path) {
        Syntax::Toml => OnlyControl::of(&text),
        Syntax::Httpd => httpd::control_of(&text),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let at = |path: &str, access| ControlSocket::At { path: folder.join(path), access };
    match named {
        Some(Switched::Off) => ControlSocket::Off,
        Some(Switched::On(Short::Text(path))) => at(&path, None),
        // The supervisor knows who exactly may connect.
        Some(Switched::On(Short::Table(ControlTable { path: Some(path), .. }))) => {
            at(path.get_ref(), Some(Access::default()))
        }
        Some(Switched::On(Short::Table(_))) | None => ControlSocket::Derived,
    }
}

/// The one key of a configuration that [`control_of`] reads.
#[derive(serde::Deserialize)]
struct OnlyControl {
    control: Option<Switched<ControlTable>>,
}

impl OnlyControl {
    fn of(text: &str) -> Option<Switched<ControlTable>> {
        if let Ok(only) = toml::from_str::<Self>(text) {
            return only.control;
        }
        // The file is not valid TOML, but its lines for the control socket may be.
        let from = |line: &str| {
            line.trim_start().strip_prefix("control").is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        if let Some(line) = text.lines().find(|line| from(line)) {
            return toml::from_str::<Self>(line).ok()?.control;
        }
        let mut lines = text.lines().skip_while(|line| line.trim() != "[control]");
        let head = lines.next()?;
        let table: Vec<&str> = lines.take_while(|line| !line.trim_start().starts_with('[')).collect();
        toml::from_str::<Self>(&format!("{head}\n{}", table.join("\n"))).ok()?.control
    }
}

/// Checks the settings of a module that are a file of their own.
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
