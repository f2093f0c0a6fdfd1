//! The files of a configuration. Each is read once and kept, so that a worker gets the bytes that were checked, even if the
//! files have changed since.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::STDIN;

/// Standard input, which can be read only once.
static STDIN_BYTES: OnceLock<Result<FileBytes, String>> = OnceLock::new();
/// Maximum size of a file. A larger one, or an endless one, is a mistake.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The files that were read for one configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// No further file is read: the configuration was checked by another process.
    is_whole: bool,
    read: Vec<KnownFile>,
    found: Vec<(IncludePattern, Result<Vec<PathBuf>, String>)>,
    /// Variables of the environment that the configuration names, with their values: a worker does not get them otherwise.
    variables: Vec<(String, Option<String>)>,
}

/// A file that was read, or could not be.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KnownFile {
    path: PathBuf,
    bytes: Result<FileBytes, String>,
    /// Permissions, as they were when it was read.
    mode: u32,
}

/// The content of a file. It may be a private key, so it is wiped when dropped, and never printed.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct FileBytes(Vec<u8>);

/// An argument of `Include`, and the directory that it starts from.
type IncludePattern = (String, PathBuf);

impl Files {
    /// No files yet; each is read when it is needed.
    pub fn on_disk() -> Self {
        Self::default()
    }

    /// Reads no further files: from now on they are reported as not found.
    #[must_use]
    pub fn sealed(self) -> Self {
        Self { is_whole: true, ..self }
    }

    /// A file as text, or the reason as words that follow its name.
    pub(super) fn text(&mut self, path: &Path) -> Result<String, String> {
        String::from_utf8(self.bytes(path)?.to_vec()).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            format!("cannot be read: line {line} is not UTF-8")
        })
    }

    /// A file.
    pub(super) fn bytes(&mut self, path: &Path) -> Result<FileBytes, String> {
        if let Some(known) = self.read.iter().find(|known| known.path == path) {
            return known.bytes.clone();
        }
        if self.is_whole {
            return Err(
                "cannot be read: it was not part of the configuration when that was checked".to_owned()
            );
        }
        let (bytes, mode) = match read(path) {
            Ok((bytes, mode)) => (Ok(bytes), mode),
            Err(reason) => (Err(reason), 0),
        };
        self.read.push(KnownFile { path: path.to_owned(), bytes: bytes.clone(), mode });
        bytes
    }

    /// The permissions of a file that was read, where everybody on this machine may read it.
    pub(super) fn open_to_all(&self, path: &Path) -> Option<u32> {
        const READABLE_BY_OTHERS: u32 = 0o004;
        let known = self.read.iter().find(|known| known.path == path)?;
        (known.mode & READABLE_BY_OTHERS != 0).then_some(known.mode & 0o7777)
    }

    /// The files that an argument of `Include` means.
    pub(super) fn included(&mut self, argument: &str, directory: &Path) -> Result<Vec<PathBuf>, String> {
        let is_known = |((known, at), _): &&(IncludePattern, _)| known == argument && at == directory;
        if let Some((_, found)) = self.found.iter().find(is_known) {
            return found.clone();
        }
        if self.is_whole {
            return Err("was not part of the configuration when that was checked".to_owned());
        }
        let found = included(argument, directory);
        self.found.push(((argument.to_owned(), directory.to_owned()), found.clone()));
        found
    }

    /// A variable of the environment; `None` where it is unset, or no text.
    pub(super) fn variable(&mut self, name: &str) -> Option<String> {
        if let Some((_, value)) = self.variables.iter().find(|(known, _)| known == name) {
            return value.clone();
        }
        let value = if self.is_whole { None } else { std::env::var(name).ok() };
        self.variables.push((name.to_owned(), value.clone()));
        value
    }

    /// The variables of the environment that were read, with their values.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }

    /// Every file with its bytes, in the order of reading.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.read.iter().filter_map(|known| Some((known.path.as_path(), &**known.bytes.as_ref().ok()?)))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for FileBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// A file's content and permissions.
fn read(path: &Path) -> Result<(FileBytes, u32), String> {
    if path == Path::new(STDIN) {
        let read = STDIN_BYTES.get_or_init(read_stdin);
        return read.clone().map(|bytes| (bytes, 0));
    }
    let (bytes, mode) = read_file(path).map_err(|error| format!("cannot be read: {}", cause(&error)))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("cannot be read: it is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    Ok((bytes, mode))
}

/// The bytes of standard input, which is read once; none where it cannot be read.
pub fn standard_input() -> &'static [u8] {
    STDIN_BYTES.get_or_init(read_stdin).as_ref().map_or(&[], |bytes| &bytes.0)
}

fn read_stdin() -> Result<FileBytes, String> {
    let mut bytes = FileBytes(Vec::new());
    match io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes.0) {
        Ok(_) if bytes.len() as u64 > MAX_FILE_BYTES => {
            Err(format!("cannot be read: it is larger than {} MiB", MAX_FILE_BYTES >> 20))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot be read: {}", cause(&error))),
    }
}

fn read_file(path: &Path) -> io::Result<(FileBytes, u32)> {
    // Without waiting for whoever may write to a pipe.
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    // In one piece from the beginning: a vector that grows leaves copies behind. One byte more shows the end.
    let mut bytes = FileBytes(Vec::with_capacity(metadata.len().min(MAX_FILE_BYTES) as usize + 1));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes.0)?;
    Ok((bytes, metadata.mode()))
}

/// The reason alone, as the other messages have it: no capital, no error number.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "file not found".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// The files that an argument of `Include` means, those of a pattern in the order of their names; there may be none. Relative
/// ones are looked for in `directory`, that of the including file.
fn included(argument: &str, directory: &Path) -> Result<Vec<PathBuf>, String> {
    if !argument.contains(['*', '?', '[']) {
        return Ok(vec![directory.join(argument)]);
    }
    let pattern = match Path::new(argument).is_absolute() || directory.as_os_str().is_empty() {
        true => argument.to_owned(),
        false => format!("{}/{argument}", glob::Pattern::escape(&directory.to_string_lossy())),
    };
    // A pattern must name a leading dot to mean hidden files, as in a shell.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let found =
        glob::glob_with(&pattern, options).map_err(|error| format!("is not a pattern: {}", error.msg))?;
    Ok(found.flatten().filter(|path| path.is_file()).collect())
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
        assert!(files.text(&other).unwrap_err().contains("not part of the configuration"));
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
