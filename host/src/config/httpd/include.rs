//! `Include`: which files a pattern means, and no file inside itself.

use std::path::{Path, PathBuf};

/// Deeper than any hand writes, and shallow enough for any stack.
const DEEPEST: usize = 16;

/// The files being read, from the operator's own to the innermost.
#[derive(Debug, Default)]
pub(super) struct Stack(Vec<PathBuf>);

impl Stack {
    /// Goes into a file, unless that would never end.
    pub(super) fn enter(&mut self, path: &Path) -> Result<(), String> {
        // Where there is no such file (a text given by a test), the name has to do.
        let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.0.contains(&file) {
            return Err("includes itself".to_owned());
        }
        if self.0.len() > DEEPEST {
            return Err(format!("is included more than {DEEPEST} files deep"));
        }
        self.0.push(file);
        Ok(())
    }

    /// Comes back out of the innermost file.
    pub(super) fn leave(&mut self) {
        self.0.pop();
    }
}

/// The files that an argument of `Include` means, those of a pattern in the order of their names. Relative ones are
/// looked for in `directory`, that of the including file.
pub(in crate::config) fn included(argument: &str, directory: &Path) -> Result<Vec<PathBuf>, String> {
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
    let files: Vec<PathBuf> = found.flatten().filter(|path| path.is_file()).collect();
    match files.is_empty() {
        true => Err("matches no file".to_owned()),
        false => Ok(files),
    }
}
