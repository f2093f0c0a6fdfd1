//! The pid file. It is locked while this supervisor runs, so that a second one neither overwrites nor removes it.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat};

use crate::os::trusted_path::{LastName, SafePath};

/// A pid file that is this process's own. Dropping it removes the file, if the path still leads to it.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    way: SafePath,
    metadata: Stat,
    /// Holds the lock.
    _file: File,
}

impl PidFile {
    /// Writes this process's number. A file that a dead process left is taken over.
    ///
    /// # Errors
    /// The file cannot be written, is reached through a symbolic link that is not followed, or belongs to a proxy that runs.
    pub(super) fn write(path: &Path) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("pid_file \"{}\": {error}", path.display());
        let way = SafePath::find(path, LastName::Follow).map_err(|error| cannot(error.into()))?;
        loop {
            let (mut file, metadata) = Self::open(&way).map_err(cannot)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut text = String::new();
                    let _ = (&file).take(20).read_to_string(&mut text);
                    return Err(format!(
                        "pid_file \"{}\": is in use by a running proxy (pid {}); name another file",
                        path.display(),
                        text.trim()
                    ));
                }
                // Some file systems have no locks. Then the file is written as it was before there were any.
                Ok(()) | Err(_) => {}
            }
            // Its owner may have removed it between the two calls, and another one may have made a file of this name. A
            // lock on a file without the name keeps nobody out.
            if way.is(&metadata) {
                file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(cannot)?;
                return Ok(Self { path: path.to_owned(), way, metadata, _file: file });
            }
        }
    }

    fn open(way: &SafePath) -> io::Result<(File, Stat)> {
        // Not to wait for the other end of a pipe.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        let file = way.open(flags, Mode::from_raw_mode(0o644))?;
        let metadata = fstat(&file)?;
        if FileType::from_raw_mode(metadata.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file; name another"));
        }
        Ok((file, metadata))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.way.is(&self.metadata) {
            let _ = self.way.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_second_one_is_refused_and_leaves_the_first_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let first = PidFile::write(&path).unwrap();
        let me = format!("{}\n", std::process::id());
        let refused = PidFile::write(&path).unwrap_err();
        assert!(
            refused
                .ends_with(&format!("is in use by a running proxy (pid {}); name another file", me.trim()))
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), me);
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        fs::write(&path, "123456789\n").unwrap();
        let _ours = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn one_at_a_time_has_it_however_many_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let (n_inside, n_taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while n_taken.load(Ordering::SeqCst) < 2_000 {
                        let Ok(ours) = PidFile::write(&path) else { continue };
                        assert_eq!(n_inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        n_taken.fetch_add(1, Ordering::SeqCst);
                        n_inside.fetch_sub(1, Ordering::SeqCst);
                        drop(ours);
                    }
                });
            }
        });
    }

    #[test]
    fn a_file_that_somebody_put_in_its_place_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let ours = PidFile::write(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(ours);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }
}
