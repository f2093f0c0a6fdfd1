//! From a line of `[load_module]` to a checked [`Module`]: the only place that opens files as code.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{ModuleFile, Place};
use crate::module::Module;

/// Why a module was not loaded, as one line.
#[derive(Debug)]
pub struct LoadError {
    /// Where the configuration names the module; absent in [`inspect`].
    pub place: Option<Place>,
    /// The ID that was asked for; absent in [`inspect`].
    pub id: Option<Arc<str>>,
    /// The file.
    pub file: PathBuf,
    reason: String,
}

/// Loads the module that a configuration names.
///
/// # Errors
///
/// Any refusal, as one line that names file and reason.
pub fn open(request: &ModuleFile) -> Result<Arc<Module>, LoadError> {
    Err(LoadError {
        place: Some(request.place.clone()),
        id: Some(Arc::clone(&request.id)),
        file: request.file.clone(),
        reason: String::new(),
    })
}

/// Loads a file without asking for an ID, to show what it is.
///
/// # Errors
///
/// Why no configuration could load it.
pub fn inspect(file: &Path) -> Result<Arc<Module>, LoadError> {
    Err(LoadError { place: None, id: None, file: file.to_owned(), reason: String::new() })
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if let Some(id) = &self.id {
            write!(f, "module \"{id}\": ")?;
        }
        write!(f, "{}: {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for LoadError {}
