//! Checks before a start: all problems of the files in one run, and everything that this machine lacks for them. `check` and
//! `run` both use it, so that they refuse the same configurations.
//!
//! Nothing is created, bound or run. Addresses are not tried: while the proxy runs, its own are in use.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::address::Address;
use crate::config::{self, AccessLogTarget, Config, Files, Warning};
use crate::control::{Exit, Refused};
use crate::module::load;
use crate::privileges;
use crate::sockets::BindError;
use crate::trusted_path::{Last, Way};

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
        if let AccessLogTarget::File(path) = &config.access_log {
            lacks.cannot_be_written("access log", path);
        }
        if let Some(path) = &config.pid_file {
            lacks.cannot_be_written("pid_file", path);
        }
        lacks
    }

    fn cannot_be_written(&mut self, what: &str, path: &Path) {
        if let Err(error) = may_be_written(path) {
            self.errors.push(format!("{what} \"{}\": {error}", path.display()));
        }
    }
}

/// Whether this user may write to a file, or make it where there is none.
fn may_be_written(path: &Path) -> io::Result<()> {
    let way = Way::find(path, Last::Follow)?;
    // Not to wait for who may read from a pipe.
    match way.open(OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK, Mode::empty()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => way.may_be_made(),
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
        may_be_written(folder.path()).expect_err("a folder");
        may_be_written(&folder.path().join("none/access.log")).expect_err("no such folder");
        fs::write(folder.path().join("file"), "").unwrap();
        may_be_written(&folder.path().join("file/access.log")).expect_err("no folder");
    }
}
