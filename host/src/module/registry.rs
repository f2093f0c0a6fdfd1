//! The modules of one configuration, by ID.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::ModuleFile;
use crate::module::board::ModuleMark;
use crate::module::load::{self, Copied};
use crate::module::refusal::LoadError;
use crate::module::{Hex, Module};

/// Module ID → loaded module, each once. Dropping it unloads nothing.
#[derive(Debug, Default)]
pub struct Registry {
    modules: BTreeMap<Arc<str>, Arc<Module>>,
    quarantined: BTreeSet<Arc<str>>,
}

impl Registry {
    /// Loads every module that a configuration names. The configuration has checked that no ID comes twice.
    ///
    /// # Errors
    ///
    /// All refusals of one run, in the order of the configuration.
    pub fn load(files: &[ModuleFile]) -> Result<Self, Vec<LoadError>> {
        Self::load_except(files, &BTreeSet::new())
    }

    /// As [`Registry::load`], without the modules with these IDs, which are in quarantine. Their files are not opened.
    ///
    /// # Errors
    ///
    /// As [`Registry::load`].
    pub(crate) fn load_except(
        files: &[ModuleFile],
        quarantined: &BTreeSet<Arc<str>>,
    ) -> Result<Self, Vec<LoadError>> {
        let read = |file: &ModuleFile| {
            if quarantined.contains(&file.id) { Ok(None) } else { load::read(file).map(Some) }
        };
        Self::open(files, files.iter().map(read))
    }

    /// As [`Registry::load`], from copies in the same order; `None` for a module in quarantine.
    ///
    /// # Errors
    ///
    /// As [`Registry::load`].
    pub fn open(
        files: &[ModuleFile],
        copies: impl IntoIterator<Item = Result<Option<Copied>, LoadError>>,
    ) -> Result<Self, Vec<LoadError>> {
        let (mut modules, mut quarantined) = (BTreeMap::new(), BTreeSet::new());
        let mut refused = Vec::new();
        for (idx, (file, copied)) in files.iter().zip(copies).enumerate() {
            let Some(copied) = copied.transpose() else {
                tracing::warn!(
                    module = &*file.id,
                    "module is in quarantine and not opened; the host chooses servers for requests of its clusters"
                );
                quarantined.insert(Arc::clone(&file.id));
                continue;
            };
            match copied.and_then(|copied| load::open(file, copied, ModuleMark::of_module(idx))) {
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
        if refused.is_empty() { Ok(Self { modules, quarantined }) } else { Err(refused) }
    }

    /// The module of this ID, if it is loaded.
    pub fn module(&self, id: &str) -> Option<&Arc<Module>> {
        self.modules.get(id)
    }

    /// Whether the module of this ID is in quarantine.
    pub fn is_quarantined(&self, id: &str) -> bool {
        self.quarantined.contains(id)
    }

    /// All modules that are loaded, ordered by ID.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Module>> {
        self.modules.values()
    }
}
