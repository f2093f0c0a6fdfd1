//! Checks before a start: all problems of the files in one run, and everything that this machine lacks for them. `check` and
//! `run` both use it, so that they refuse the same configurations.
//!
//! Nothing is created, bound or run. Addresses are not tried: while the proxy runs, its own are in use.

use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::config::{self, AccessLogTarget, Config, Files, Warning};
use crate::module::load;
use crate::net::address::Address;
use crate::os::trusted_path::{Last, Way};
use crate::process::control::{self, Exit, Refused};
use crate::process::privileges;
use crate::process::sockets::BindError;

/// Reads and checks a configuration as [`config::load_from`] does. Where it is refused, the files of its modules are checked
/// too, as far as that is possible without running them.
///
/// # Errors
/// Every problem of the configuration, and then of the modules' files.
pub fn load(path: &Path, files: &mut Files) -> Result<(Config, Vec<Warning>), Refused> {
    config::load_from(path, files).map_err(|errors| {
        let modules = errors.modules.iter().filter_map(|module| load::read(module).err());
        let mut lines: Vec<_> = errors.problems.iter().map(ToString::to_string).collect();
        lines.extend(modules.map(|error| error.to_string()));
        Refused { exit: Exit::Configuration, lines }
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
        let control = control::path_of(config);
        let created = control.parent().unwrap_or(Path::new(""));
        if let AccessLogTarget::File(path) = &config.access_log {
            lacks.cannot_be_written("access log", path, created);
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

/// Whether this user may write to a file, or make it where there is none.
fn may_be_written(path: &Path) -> io::Result<()> {
    let way = Way::find(path, Last::Follow)?;
    // Not to wait for who may read from a pipe.
    match way.open(OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK, Mode::empty()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => way.may_be_made(),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
