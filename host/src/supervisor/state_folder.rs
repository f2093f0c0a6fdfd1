//! The folder of the key `state`. The supervisor opens its files, which the scout writes: that may not be able to reach them, and
//! need not. They are locked for as long as this supervisor runs.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat};

use crate::os::trusted_path::{LastName, SafePath};

/// Two files for answers, open.
#[derive(Clone, Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    answers: [Arc<OwnedFd>; 2],
}

impl StateFolder {
    /// Opens the files, and makes those that are not there.
    ///
    /// # Errors
    /// They cannot be opened, are reached through a symbolic link, or are another proxy's; in words.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("state \"{}\": {error}", path.display());
        let [first, second] = ["answers-0.json", "answers-1.json"].map(|name| open(&path.join(name)));
        let answers = [Arc::new(first.map_err(cannot)?), Arc::new(second.map_err(cannot)?)];
        match flock(&answers[0], FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(format!(
                "state \"{}\": is in use by another running proxy; name another folder",
                path.display()
            )),
            // Some file systems have no locks.
            Ok(()) | Err(_) => Ok(Self { path: path.to_owned(), answers }),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The files for answers.
    pub(super) fn files(&self) -> [Arc<OwnedFd>; 2] {
        self.answers.clone()
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let way = SafePath::find(path, LastName::Itself).map_err(io::Error::from)?;
    // Not to wait for the other end of a pipe.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
    let file = way.open(flags, Mode::from_raw_mode(0o600))?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{} is not a regular file", path.display())));
    }
    Ok(file.into())
}
