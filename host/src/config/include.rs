//! Files that include others: no file inside itself.

use std::path::{Path, PathBuf};

/// Deeper than any hand writes, and shallow enough for any stack.
const DEEPEST: usize = 16;

/// The files being read, from the operator's own to the innermost.
#[derive(Debug, Default)]
pub(super) struct IncludeStack(Vec<PathBuf>);

impl IncludeStack {
    /// Goes into a file, unless that would never end.
    pub(super) fn enter(&mut self, path: &Path) -> Result<(), String> {
        // A text that a test gives has no file; its name is used.
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
