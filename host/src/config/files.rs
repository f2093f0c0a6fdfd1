//! The files that a configuration is made of. Each is read once and kept, so that whoever is handed them gets the very
//! bytes that were checked, whatever has become of the files since.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::httpd;

/// Largest file; what is larger, or never ends, was not meant.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What was read for one configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// Nothing more is read: these are the files of a configuration that was checked elsewhere.
    is_whole: bool,
    read: Vec<(PathBuf, Result<Vec<u8>, String>)>,
    found: Vec<(Pattern, Result<Vec<PathBuf>, String>)>,
}

/// An argument of `Include`, and the directory that it starts from.
type Pattern = (String, PathBuf);

impl Files {
    /// Nothing yet; files are read when they are asked for.
    pub fn on_disk() -> Self {
        Self::default()
    }

    /// From now on what was not asked for yet is not there.
    #[must_use]
    pub fn sealed(self) -> Self {
        Self { is_whole: true, ..self }
    }

    /// A file as text. Why not is said in words that follow its name.
    pub(super) fn text(&mut self, path: &Path) -> Result<String, String> {
        String::from_utf8(self.bytes(path)?).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            format!("cannot be read: line {line} is not UTF-8")
        })
    }

    /// A file.
    pub(super) fn bytes(&mut self, path: &Path) -> Result<Vec<u8>, String> {
        let is_known = |(known, _): &&(PathBuf, _)| known == path;
        if let Some((_, bytes)) = self.read.iter().find(is_known) {
            return bytes.clone();
        }
        if self.is_whole {
            return Err(
                "cannot be read: it was no part of the configuration when that was checked".to_owned()
            );
        }
        let bytes = read(path);
        self.read.push((path.to_owned(), bytes.clone()));
        bytes
    }

    /// The files that an argument of `Include` means.
    pub(super) fn included(&mut self, argument: &str, directory: &Path) -> Result<Vec<PathBuf>, String> {
        let is_known = |((known, at), _): &&(Pattern, _)| known == argument && at == directory;
        if let Some((_, found)) = self.found.iter().find(is_known) {
            return found.clone();
        }
        if self.is_whole {
            return Err("was no part of the configuration when that was checked".to_owned());
        }
        let found = httpd::included(argument, directory);
        self.found.push(((argument.to_owned(), directory.to_owned()), found.clone()));
        found
    }

    /// Every file with its bytes, in the order of reading: for who wants to know whether anything has changed.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.read.iter().filter_map(|(path, bytes)| Some((path.as_path(), bytes.as_deref().ok()?)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read_file(path).map_err(|error| format!("cannot be read: {}", cause(&error)))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("cannot be read: it is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    Ok(bytes)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Without waiting for whoever may write to a pipe.
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The reason alone, as the other messages have it: no capital, no error number.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
        fs::write(&path, "first").unwrap();
        let mut files = Files::on_disk();
        assert_eq!(files.text(&path), Ok("first".to_owned()));
        fs::write(&path, "second").unwrap();
        fs::write(&other, "other").unwrap();
        assert_eq!(files.text(&path), Ok("first".to_owned()));
        let mut files = files.sealed();
        assert_eq!(files.text(&path), Ok("first".to_owned()));
        assert!(files.text(&other).unwrap_err().contains("no part of the configuration"));
        assert_eq!(Files::on_disk().text(&path), Ok("second".to_owned()));
    }

    #[test]
    fn what_a_pattern_meant_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.conf"), "").unwrap();
        let mut files = Files::on_disk();
        let found = files.included("*.conf", folder.path()).unwrap();
        fs::write(folder.path().join("b.conf"), "").unwrap();
        assert_eq!(files.included("*.conf", folder.path()), Ok(found));
        assert!(files.sealed().included("*", folder.path()).is_err());
    }
}
