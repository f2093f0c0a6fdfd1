//! Checks before a start: all problems of the files in one run, and everything that this machine lacks for them. `check` and
//! `run` both use them, so they refuse the same configurations.
//!
//! Nothing is created, bound or run. Addresses are not tried: while the proxy runs, its own are in use.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::config::{self, AccessLogTarget, Config, ConfigErrors, Files, Warning};
use crate::module::load;
use crate::net::address::Address;
use crate::os::trusted_path::{LastName, SafePath};
use crate::process::control::{self, Exit, Refused};
use crate::process::privileges;
use crate::process::sockets::BindError;

/// Reads and checks a configuration as [`config::load_from`] does. Where it is refused, the files of its modules are checked
/// too, as far as that is possible without running them.
///
/// # Errors
/// Every problem of the configuration, and then of the modules' files.
pub fn load(path: &Path, files: &mut Files) -> Result<(Config, Vec<Warning>), Refused> {
    read(path, files).map_err(|(errors, modules)| {
        let lines = errors.problems.iter().map(ToString::to_string).chain(modules).collect();
        Refused { exit: Exit::Configuration, lines }
    })
}

/// As [`load()`], but with each problem of the configuration as it is, and then those of its modules as lines.
///
/// # Errors
/// As [`load()`].
pub fn read(path: &Path, files: &mut Files) -> Result<(Config, Vec<Warning>), (ConfigErrors, Vec<String>)> {
    config::load_from(path, files).map_err(|errors| {
        let modules = errors.modules.iter().filter_map(|module| load::read_to_check(module).err());
        let modules = modules.map(|error| error.to_string()).collect();
        (errors, modules)
    })
}

/// Accounts and writable files that a configuration needs and this machine lacks, one line each.
#[derive(Debug, Default)]
pub struct Lacks {
    /// Reasons to refuse a start by this user.
    pub errors: Vec<String>,
    /// Reasons to refuse a start by root, where this user is not root.
    pub warnings: Vec<String>,
}

impl Lacks {
    /// Looks for them.
    pub fn of(config: &Config) -> Self {
        let mut lacks = Self::default();
        let accounts = privileges::problems(&config.run_as);
        match rustix::process::geteuid().is_root() {
            true => lacks.errors = accounts,
            false => lacks.warnings = accounts,
        }
        let listeners = config.listeners.iter().map(|of| ("listener", &of.address, &of.access, &of.place));
        let admin = config.admin.iter().map(|of| ("admin listener", &of.address, &of.access, &of.place));
        for (what, address, access, place) in listeners.chain(admin) {
            if matches!(address, Address::Unix(_))
                && let Err(error) = privileges::ids(&access.owner)
            {
                let (address, place) = (address.clone(), place.clone());
                let error = BindError { what, address, place, source: io::Error::other(error) };
                lacks.errors.push(error.to_string());
            }
        }
        // The supervisor creates this folder, if it is missing, before it opens any of these files.
        let control = control::socket_of(config);
        let created = control.as_ref().and_then(|(path, _)| path.parent()).unwrap_or(Path::new(""));
        if let Some((path, access)) = &control {
            let allowed = privileges::ids(&access.owner).map(drop);
            if let Err(error) = allowed.and_then(|()| may_hold_the_control_socket(path)) {
                lacks.errors.push(format!("control socket \"{}\": {error}", path.display()));
            }
        }
        if let AccessLogTarget::File(path) = &config.access_log {
            lacks.cannot_be_written("access log", path, created);
        }
        if let Some(path) = config.log.file() {
            lacks.cannot_be_written("log", path, created);
        }
        if let Some(path) = &config.pid_file {
            lacks.cannot_be_written("pid_file", path, created);
        }
        lacks
    }

    fn cannot_be_written(&mut self, what: &str, path: &Path, created: &Path) {
        let Err(error) = may_be_written(path) else { return };
        if error.kind() == ErrorKind::NotFound && path.parent() == Some(created) {
            return;
        }
        let why = match error.kind() {
            ErrorKind::NotFound => "its folder does not exist; create it first".to_owned(),
            ErrorKind::NotADirectory => "its folder is a file; choose another path".to_owned(),
            ErrorKind::IsADirectory => "this is a folder; write the name of a file".to_owned(),
            ErrorKind::PermissionDenied => {
                "permission denied; the user that starts the proxy must be allowed to write there".to_owned()
            }
            _ => error.to_string(),
        };
        self.errors.push(format!("{what} \"{}\": {why}", path.display()));
    }
}

/// Whether nobody else could put another socket in the place of this one. Its folder may not exist yet: then it is made in the
/// first one above it that does.
fn may_hold_the_control_socket(socket: &Path) -> Result<(), String> {
    let socket = std::path::absolute(socket).map_err(|error| error.to_string())?;
    let is_made = |path: &&Path| path.parent().is_none_or(Path::exists);
    let made_first = socket.ancestors().find(is_made).unwrap_or(&socket);
    let way = SafePath::find(made_first, LastName::Itself).map_err(|error| error.to_string())?;
    way.distrust().map_or(Ok(()), |distrust| Err(distrust.to_string()))?;
    match way.stat() {
        // As this socket, or as its folder, which was made a moment ago.
        Ok(_) => Ok(()),
        Err(_) => way.may_be_made().map_err(|error| error.to_string()),
    }
}

/// Whether this user may write to a file, or make it where there is none.
fn may_be_written(path: &Path) -> io::Result<()> {
    let way = SafePath::find(path, LastName::Follow)?;
    match way.may_be_written() {
        Err(error) if error.kind() == ErrorKind::NotFound => way.may_be_made(),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_is_not_there_may_be_made_and_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.log");
        may_be_written(&file).expect("its folder lets it be made");
        assert!(!file.exists());
        fs::write(&file, "a line").unwrap();
        may_be_written(&file).expect("it is ours");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a line");
    }

    fn make_pipe(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("a pipe");
    }

    #[test]
    fn a_pipe_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("access.log");
        make_pipe(&pipe);
        may_be_written(&pipe).expect("nobody reads it, and it is ours");
        let reader = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let reader = rustix::fs::open(&pipe, reader, rustix::fs::Mode::empty()).unwrap();
        let _writer = fs::File::options().append(true).open(&pipe).unwrap();
        may_be_written(&pipe).expect("somebody reads it");
        let end = rustix::io::read(&reader, &mut [0]).unwrap_err();
        assert_eq!(end, rustix::io::Errno::AGAIN, "no end has been seen");
    }

    #[test]
    fn a_folder_in_which_others_could_replace_the_control_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o775)).unwrap();
        let why = format!("folder {} is writable by others (mode 0775)", shared.display());
        for socket in ["shared/t.sock", "shared/new/newer/t.sock"] {
            let refused = may_hold_the_control_socket(&folder.path().join(socket)).unwrap_err();
            assert_eq!(refused, why);
        }
        for socket in ["t.sock", "new/newer/t.sock"] {
            may_hold_the_control_socket(&folder.path().join(socket)).expect("it is ours");
        }
        assert!(!folder.path().join("new").exists());
    }

    #[test]
    fn no_file_is_made_in_no_folder_nor_in_the_place_of_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let mut lacks = Lacks::default();
        let names = ["", "none/access.log", "file/access.log"];
        for name in names {
            lacks.cannot_be_written("access log", &folder.path().join(name), &folder.path().join("created"));
        }
        lacks.cannot_be_written(
            "access log",
            &folder.path().join("created/access.log"),
            &folder.path().join("created"),
        );
        let expected = [
            "this is a folder; write the name of a file",
            "its folder does not exist; create it first",
            "its folder is a file; choose another path",
        ];
        let line = |(name, why)| format!("access log \"{}\": {why}", folder.path().join(name).display());
        assert_eq!(lacks.errors, names.into_iter().zip(expected).map(line).collect::<Vec<_>>());
    }
}
