//! Commands to a running supervisor: where its socket is, what is said over it, and the end that asks.
//!
//! A client sends one line of JSON and gets lines of JSON back: [`ControlReply::Line`]s as things happen, then one that ends it.
//! Only the user who runs the supervisor can connect (the socket's mode is 0600), unless the configuration names a group.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::{self, Access, Config, ControlSocket, RunAs};

pub use crate::observe::status::{
    ActStatus, GenerationStatus, ModuleStatus, QuarantineStatus, RefusedStatus, SourceStatus, Status,
    SupervisedModule, WorkerStatus,
};

/// Exit codes of the program, and results of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// Something failed that has no code of its own.
    Failed = 1,
    // 2 is clap's, for a command line that it does not understand.
    /// The configuration was refused.
    Configuration = 3,
    /// A module was refused, refused its settings, or broke the contract.
    Module = 4,
}

impl Exit {
    /// From the exit code of another process of this program.
    pub(crate) fn of(code: u8) -> Self {
        match code {
            0 => Self::Done,
            3 => Self::Configuration,
            4 => Self::Module,
            _ => Self::Failed,
        }
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The exit code for it.
    pub exit: Exit,
    /// A line for each problem.
    pub lines: Vec<String>,
}

impl Refused {
    /// One problem that has no code of its own.
    #[expect(clippy::needless_pass_by_value, reason = "most callers have just made it")]
    pub fn failed(text: impl ToString) -> Self {
        Self { exit: Exit::Failed, lines: vec![text.to_string()] }
    }
}

impl From<config::ConfigErrors> for Refused {
    fn from(errors: config::ConfigErrors) -> Self {
        let lines = errors.problems.iter().map(ToString::to_string).collect();
        Self { exit: Exit::Configuration, lines }
    }
}

/// A command to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Start a new generation from the files as they are now. Answered when it serves, or is given up; at once, with a
    /// refusal, where too many generations drain.
    Reload,
    /// The same, but where too many would drain the oldest is cut off once the new one serves.
    ReloadCutOldest,
    /// Send the status, as far as the supervisor knows it by itself.
    Status,
    /// Send the status with that of the generation that serves. Its worker has two seconds to answer.
    State {
        /// Only this cluster.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<String>,
    },
    /// Let requests end and stop. Answered by the end of the connection, when it has stopped.
    Stop,
    /// Open the files of the access log again, after a rotation.
    Reopen,
    /// Open a module's file again though it is in quarantine.
    Release {
        /// The module's ID.
        module: String,
    },
    /// Obey an answer without servers that a source gave and that is held back. Answered when it is obeyed.
    AcceptDiscovery {
        /// Name of the cluster.
        cluster: String,
        /// Name of the source.
        source: String,
    },
    /// Change a server at run time. Answered when the change is in use, or is known not to come into use.
    Server {
        /// Name of the cluster.
        cluster: String,
        /// URL of the server, as written in the configuration; or one of its addresses, as logs and metrics name it.
        url: String,
        /// The change.
        order: ServerOrder,
        /// For how long, seconds; without it, until another order or a new value in the configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_s: Option<u64>,
    },
}

/// A change of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerOrder {
    /// It keeps its sessions and takes no new ones.
    Drain,
    /// It takes nothing; requests that run may finish.
    #[serde(rename = "maint")]
    Maintenance,
    /// It takes requests.
    Ready,
    /// It has this weight.
    Weight(u16),
    /// It becomes a server of the cluster, or is one again.
    Add,
    /// It is no server of the cluster any more.
    Remove,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// Something to be read by a person.
    Line(String),
    /// The same, of something that is wrong.
    Problem(String),
    /// The status.
    Status(Box<Status>),
    /// The status of the generation that serves.
    Worker(Box<WorkerStatus>),
    /// The last one.
    End(Exit),
}

/// Longest line of a command; what is longer is none.
pub(crate) const MAX_COMMAND_BYTES: usize = 4096;

/// Where the supervisor of a configuration that was read listens for commands, and who may connect. `None`: it does not.
pub(crate) fn socket_of(config: &Config) -> Option<(PathBuf, Access)> {
    let own = || Access { mode: 0o600, owner: RunAs::default() };
    match &config.control {
        ControlSocket::Off => None,
        ControlSocket::Derived => Some((default_path(&config.source), own())),
        ControlSocket::At { path, access } => Some((path.clone(), access.clone().unwrap_or_else(own))),
    }
}

/// In the folder for such things, named after the configuration file, wherever one stands.
fn default_path(config: &Path) -> PathBuf {
    let whole = config.canonicalize().or_else(|_| std::path::absolute(config)).unwrap_or(config.to_owned());
    let stem = whole.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    // Two files of one name in different folders are two configurations; a name of any length has to fit.
    let stem: String =
        stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(40).collect();
    let digest = Sha256::digest(whole.as_os_str().as_encoded_bytes());
    let tag = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    folder().join(format!("{stem}-{tag:08x}.sock"))
}

/// Where sockets and the like of running programs are.
fn folder() -> PathBuf {
    let of = |name: &str| env::var_os(name).filter(|value| *value != OsString::new()).map(PathBuf::from);
    // systemd gives several, separated by colons.
    let service = of("RUNTIME_DIRECTORY").and_then(|all| env::split_paths(&all).next());
    let user = rustix::process::geteuid();
    // Not in a folder where anybody can make files, as long as there is another: whoever comes first has the name there.
    let is_own = |folder: &PathBuf| {
        fs::symlink_metadata(folder).is_ok_and(|folder| folder.is_dir() && folder.uid() == user.as_raw())
    };
    let run = || Some(PathBuf::from(format!("/run/user/{}", user.as_raw()))).filter(is_own);
    let home = || {
        let account = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let home = of("HOME").or_else(|| Some(account()?.dir)).filter(is_own);
        of("XDG_STATE_HOME").filter(is_own).or_else(|| Some(home?.join(".local/state")))
    };
    service.unwrap_or_else(|| match of("XDG_RUNTIME_DIR").or_else(run).or_else(home) {
        _ if user.is_root() => PathBuf::from("/run/trylist"),
        Some(folder) => folder.join("trylist"),
        None => env::temp_dir().join(format!("trylist-{}", user.as_raw())),
    })
}

/// Why a command came to nothing.
#[derive(Debug)]
pub enum AskError {
    /// The configuration has no control socket.
    Off(PathBuf),
    /// Nothing listens there.
    NoSupervisor(PathBuf, io::Error),
    /// Another user, who is not root, listens there.
    Foreign(PathBuf, u32),
    /// The connection ended, or what came over it is no reply.
    Broken(io::Error),
}

/// Asks the supervisor of this configuration file, as [`ask`] does. The file may be wrong: its mending is what one reloads
/// for. Only what it says of the socket counts.
///
/// # Errors
/// As [`ask`]; or the configuration has no control socket.
pub fn ask_for(config: &Path, command: &Command, heard: impl FnMut(ControlReply)) -> Result<Exit, AskError> {
    match config::control_of(config) {
        ControlSocket::Off => Err(AskError::Off(config.to_owned())),
        ControlSocket::Derived => ask(&default_path(config), command, heard),
        // The configuration says that the socket is for others, too.
        ControlSocket::At { path, access: Some(_) } => say_and_hear(connect(&path)?, command, heard),
        ControlSocket::At { path, access: None } => ask(&path, command, heard),
    }
}

/// Sends a command and hands each reply to `heard`, until the last.
///
/// # Errors
/// There is no supervisor, or it is another user's, or the connection closed before the answer; after [`Command::Stop`] that
/// is the answer.
pub fn ask(socket: &Path, command: &Command, heard: impl FnMut(ControlReply)) -> Result<Exit, AskError> {
    let stream = connect(socket)?;
    // Another user's socket could answer anything. Root may ask the supervisors of all users.
    let (user, me) = (socket_peercred(&stream).map(|peer| peer.uid), rustix::process::geteuid());
    let user = user.map_err(|error| AskError::Broken(error.into()))?;
    if user != me && !user.is_root() && !me.is_root() {
        return Err(AskError::Foreign(socket.to_owned(), user.as_raw()));
    }
    say_and_hear(stream, command, heard)
}

fn connect(socket: &Path) -> Result<UnixStream, AskError> {
    UnixStream::connect(socket).map_err(|error| AskError::NoSupervisor(socket.to_owned(), error))
}

fn say_and_hear(
    stream: UnixStream,
    command: &Command,
    mut heard: impl FnMut(ControlReply),
) -> Result<Exit, AskError> {
    let mut line = serde_json::to_string(command).map_err(|error| AskError::Broken(error.into()))?;
    line.push('\n');
    (&stream).write_all(line.as_bytes()).map_err(AskError::Broken)?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(AskError::Broken)?;
        match serde_json::from_str(&line).map_err(|error| AskError::Broken(error.into()))? {
            ControlReply::End(exit) => return Ok(exit),
            reply => heard(reply),
        }
    }
    match command {
        Command::Stop => Ok(Exit::Done),
        _ => Err(AskError::Broken(io::Error::other("the connection closed before the answer"))),
    }
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off(config) => write!(
                f,
                "control = false in \"{}\": its proxy takes no commands; send its supervisor SIGHUP to reload, SIGTERM to \
                 stop, or SIGUSR2 to open the logs again",
                config.display()
            ),
            Self::NoSupervisor(path, error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => write!(
                    f,
                    "no proxy runs with this configuration (nothing listens on \"{}\")",
                    path.display()
                ),
                _ => write!(f, "control socket \"{}\": {error}", path.display()),
            },
            Self::Foreign(path, user) => write!(
                f,
                "control socket \"{}\" belongs to user {user}; set the key control to a socket of yours",
                path.display()
            ),
            Self::Broken(error) => write!(f, "invalid answer from the supervisor: {error}"),
        }
    }
}

impl std::error::Error for AskError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_of_one_name_have_sockets_of_their_own() {
        let (a, b) = (default_path(Path::new("/a/site.toml")), default_path(Path::new("/b/site.toml")));
        assert_ne!(a, b);
        assert_eq!(a, default_path(Path::new("/a/site.toml")));
        assert!(a.file_name().unwrap().to_str().unwrap().starts_with("site-"), "{}", a.display());
    }

    #[test]
    fn a_name_of_any_length_fits_into_a_socket_address() {
        let path = default_path(Path::new(&format!("/{}.toml", "x y\n".repeat(60))));
        assert!(path.file_name().unwrap().len() <= 60, "{}", path.display());
    }

    #[test]
    fn commands_are_lines_that_a_script_can_write() {
        let command: Command = serde_json::from_str(r#"{"release":{"module":"greedy"}}"#).unwrap();
        assert_eq!(command, Command::Release { module: "greedy".into() });
        assert_eq!(serde_json::to_string(&Command::Reload).unwrap(), r#""reload""#);
        let server = |order, for_s| {
            let command = Command::Server { cluster: "a".into(), url: "http://b".into(), order, for_s };
            let text = serde_json::to_string(&command).unwrap();
            assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
            text
        };
        let weight = r#"{"server":{"cluster":"a","url":"http://b","order":{"weight":3}}}"#;
        assert_eq!(server(ServerOrder::Weight(3), None), weight);
        let maint = r#"{"server":{"cluster":"a","url":"http://b","order":"maint","for_s":60}}"#;
        assert_eq!(server(ServerOrder::Maintenance, Some(60)), maint);
    }
}
