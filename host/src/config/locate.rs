//! Search for the file of a module.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::ModuleFile;

/// The file of a module was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    /// The file as written.
    pub file: PathBuf,
    /// The paths that were searched, in this order.
    pub tried: Vec<PathBuf>,
}

impl ModuleFile {
    /// The file to load: of each directory of `search` in turn, the file as written, then its name alone, then `lib`
    /// before the name; of an absolute path, that alone. So one line serves a build tree and an installation.
    ///
    /// Touches the file system; for start-up and checks only.
    ///
    /// # Errors
    /// Where none of them exists. One that exists but cannot be opened is found; opening it says why not.
    pub fn locate(&self) -> Result<PathBuf, NotFound> {
        let mut tried: Vec<PathBuf> = Vec::new();
        for candidate in self.candidates() {
            if is_there(&candidate) {
                return Ok(candidate);
            }
            if !tried.contains(&candidate) {
                tried.push(candidate);
            }
        }
        Err(NotFound { file: self.file.clone(), tried })
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let Some(name) = self.file.file_name().filter(|_| self.file.is_relative()) else {
            return vec![self.file.clone()];
        };
        let mut with_lib = std::ffi::OsString::from("lib");
        with_lib.push(name);
        let forms = [self.file.as_path(), Path::new(name), Path::new(&with_lib)];
        self.search.iter().flat_map(|directory| forms.map(|form| directory.join(form))).collect()
    }
}

fn is_there(path: &Path) -> bool {
    match path.metadata() {
        Ok(metadata) => !metadata.is_dir(),
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

impl std::error::Error for NotFound {}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "module file \"{}\" not found", self.file.display())?;
        if self.tried.iter().any(|path| *path != self.file) {
            let tried: Vec<_> = self.tried.iter().map(|path| path.display().to_string()).collect();
            write!(f, " (searched: {})", tried.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Place;

    fn module(file: &str, search: &[&Path]) -> ModuleFile {
        ModuleFile {
            id: "x".into(),
            file: file.into(),
            search: search.iter().map(|path| path.to_path_buf()).collect(),
            sha256: None,
            kept_in: None,
            place: Place { file: "t.toml".into(), line: 1 },
        }
    }

    #[test]
    fn finds_it_as_written_then_by_name_then_with_lib_in_front() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        fs::create_dir_all(first.join("modules")).unwrap();
        fs::create_dir_all(&second).unwrap();
        let line = module("modules/mod_x.so", &[&first, &second]);
        let files = [
            "second/libmod_x.so",
            "second/mod_x.so",
            "first/libmod_x.so",
            "first/mod_x.so",
            "first/modules/mod_x.so",
        ];
        for file in files {
            let file = dir.path().join(file);
            fs::write(&file, "").unwrap();
            assert_eq!(line.locate(), Ok(file));
        }
    }

    #[test]
    fn takes_an_absolute_path_at_its_word() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mod_x.so");
        let line = module(file.to_str().unwrap(), &[]);
        let error = line.locate().unwrap_err();
        assert_eq!(error.to_string(), format!("module file \"{}\" not found", file.display()));
        fs::write(&file, "").unwrap();
        assert_eq!(line.locate(), Ok(file));
    }

    #[test]
    fn says_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        // A directory of that name is no module.
        fs::create_dir(dir.path().join("mod_x.so")).unwrap();
        let error = module("mod_x.so", &[dir.path()]).locate().unwrap_err();
        let expected =
            format!("module file \"mod_x.so\" not found (searched: {at}/mod_x.so, {at}/libmod_x.so)");
        assert_eq!(error.to_string(), expected);
    }
}
