//! The folder of the key `state`. The supervisor opens its files, which the scout writes: that may not be able to reach them, and
//! need not. They are locked for as long as this supervisor runs.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat};

use crate::os::trusted_path::{LastName, SafePath};
use crate::process::two_files::TwoFiles;

/// Between two looks at a lock.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Two files for answers and two for operators' acts, open.
#[derive(Clone, Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    answers: [Arc<OwnedFd>; 2],
    acts: [Arc<OwnedFd>; 2],
}

impl StateFolder {
    /// Opens the files, and makes those that are not there. Waits for so long where another process holds them.
    ///
    /// # Errors
    /// They cannot be opened, are reached through a symbolic link, or are another proxy's; in words.
    pub(super) fn open(path: &Path, patience: Duration) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("state \"{}\": {error}", path.display());
        let file = |name: &str| open(&path.join(name)).map(Arc::new).map_err(cannot);
        let answers = [file("answers-0.json")?, file("answers-1.json")?];
        let acts = [file("acts-0.json")?, file("acts-1.json")?];
        let until = Instant::now() + patience;
        let is_held = || {
            let locked = flock(&answers[0], FlockOperation::NonBlockingLockExclusive);
            // Some file systems have no locks.
            locked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        while is_held() {
            if Instant::now() >= until {
                return Err(format!(
                    "state \"{}\": is in use by another running proxy; name another folder",
                    path.display()
                ));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(Self { path: path.to_owned(), answers, acts })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All files, as the scout expects them.
    pub(super) fn files(&self) -> impl Iterator<Item = Arc<OwnedFd>> {
        self.answers.iter().chain(&self.acts).map(Arc::clone)
    }

    /// The acts that were written last, if there are any.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(super) fn acts(&self) -> io::Result<Option<Vec<u8>>> {
        let [first, second] = &self.acts;
        Ok(TwoFiles::read([first.try_clone()?, second.try_clone()?]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_for_a_process_that_lets_go_and_no_reload_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = StateFolder::open(folder.path(), Duration::ZERO).expect("nobody has it");
        let refused = StateFolder::open(folder.path(), Duration::ZERO).expect_err("it is held");
        assert!(refused.ends_with("is in use by another running proxy; name another folder"), "{refused}");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| StateFolder::open(folder.path(), Duration::from_secs(60)));
            drop(held);
            waits.join().expect("no panic").expect("it was let go");
        });
    }
}
