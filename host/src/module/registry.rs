//! The modules of one configuration, by ID.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::breadcrumb::Mark;
use crate::config::ModuleFile;
use crate::module::load::{self, Copied, LoadError};
use crate::module::{Hex, Module};

/// Module ID → loaded module, each once. Dropping it unloads nothing.
#[derive(Debug, Default)]
pub struct Registry {
    modules: BTreeMap<Arc<str>, Arc<Module>>,
}

impl Registry {
    /// Loads every module that a configuration names. The configuration has checked that no ID comes twice.
    ///
    /// # Errors
    ///
    /// Every refusal, in the order of the configuration, so that one run shows all that is wrong.
    pub fn load(files: &[ModuleFile]) -> Result<Self, Vec<LoadError>> {
        Self::open(files, files.iter().map(|file| load::read(file).map(Some)))
    }

    /// As [`Registry::load`], of files that were read before, in the same order.
    ///
    /// # Errors
    ///
    /// As [`Registry::load`].
    pub fn open(
        files: &[ModuleFile],
        copies: impl IntoIterator<Item = Result<Option<Copied>, LoadError>>,
    ) -> Result<Self, Vec<LoadError>> {
        let mut modules = BTreeMap::new();
        let mut refused = Vec::new();
        for (idx, (file, copied)) in files.iter().zip(copies).enumerate() {
            let Some(copied) = copied.transpose() else { continue };
            match copied.and_then(|copied| load::open(file, copied, Mark::of_module(idx))) {
                Ok(module) => {
                    tracing::info!(
                        module = module.id(),
                        version = module.version(),
                        file = %module.file().display(),
                        sha256 = %Hex(module.sha256()),
                        "module loaded"
                    );
                    modules.insert(Arc::clone(&file.id), module);
                }
                Err(error) => refused.push(error),
            }
        }
        if refused.is_empty() { Ok(Self { modules }) } else { Err(refused) }
    }

    /// The module of this ID, if it is loaded.
    pub fn module(&self, id: &str) -> Option<&Arc<Module>> {
        self.modules.get(id)
    }

    /// All modules, ordered by ID.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Module>> {
        self.modules.values()
    }
}
