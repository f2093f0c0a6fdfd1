//! All that a worker is made of, read once: what was checked is what runs, also when the same is started again.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use super::presence::Presence;
use super::worker_scope::WorkerScope;
use crate::config::{Config, Files, Setting};
use crate::module::Hex;
use crate::module::load::{self, Copied};
use crate::process::channel;
use crate::process::channel::message::ModuleCopy;
use crate::process::control::{Exit, Refused};
use crate::process::preflight;

/// The files of one configuration and of its modules, as they were at one time.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) config: Config,
    pub(super) warnings: Vec<String>,
    /// The configuration's files, sealed. Keys among them are in no memory of this process then.
    pub(super) files: OwnedFd,
    /// Hash of the configuration's files.
    pub(super) sha256: [u8; 32],
    /// In the order of the configuration.
    pub(super) modules: Vec<Copied>,
    /// Bounds on the reports of its workers.
    pub(super) scope: WorkerScope,
    /// Of the threads of all its workers.
    presence: Mutex<Presence>,
}

impl Bundle {
    /// Where threads of its workers usually are.
    pub(super) fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads and checks everything that can be checked without running any of it.
    pub(super) fn read(path: &Path) -> Result<Self, Refused> {
        let mut files = Files::on_disk();
        let (config, warnings) = preflight::load(path, &mut files)?;
        let (mut modules, mut refused) = (Vec::new(), Vec::new());
        for module in &config.modules {
            match load::read(module) {
                Ok(copied) => modules.push(copied),
                Err(error) => refused.push(error.to_string()),
            }
        }
        if !refused.is_empty() {
            return Err(Refused { exit: Exit::Module, lines: refused });
        }
        let mut hash = Sha256::new();
        for (path, bytes) in files.iter() {
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update([0]);
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        for (name, value) in files.variables() {
            hash.update(name);
            hash.update([0]);
            hash.update((value.len() as u64).to_le_bytes());
            hash.update(value);
        }
        let warnings = warnings.iter().map(ToString::to_string).collect();
        let (sha256, scope) = (hash.finalize().into(), WorkerScope::of(&config));
        let files = channel::seal(&files.sealed())
            .map_err(|error| Refused::failed(format_args!("no memory for the configuration: {error}")))?;
        let presence = Mutex::default();
        Ok(Self { config, warnings, files, sha256, modules, scope, presence })
    }

    /// Its modules for a worker, which is not to open those that are held.
    pub(super) fn copies(&self, is_held: impl Fn(&[u8; 32]) -> bool) -> Vec<ModuleCopy> {
        let copy = |copied: &Copied| ModuleCopy {
            file: copied.file.clone(),
            sha256: copied.sha256,
            is_quarantined: is_held(&copied.sha256),
        };
        self.modules.iter().map(copy).collect()
    }

    /// Whether it has module files that the other one does not have.
    pub(super) fn has_new_files(&self, before: &Self) -> bool {
        self.modules.iter().any(|copied| !before.has_module(&copied.sha256))
    }

    /// Whether it has settings of a module that the other one does not have; of this module, if one is named.
    pub(super) fn has_new_settings(&self, before: &Self, module: Option<&str>) -> bool {
        let before: Vec<_> = module_settings(&before.config).collect();
        module_settings(&self.config)
            .filter(|(id, _)| module.is_none_or(|module| module == &***id))
            .any(|(id, settings)| !before.iter().any(|(other, of)| *other == id && are_equal(of, settings)))
    }

    /// Whether a module of these bytes is in it.
    pub(super) fn has_module(&self, sha256: &[u8; 32]) -> bool {
        self.modules.iter().any(|copied| copied.sha256 == *sha256)
    }
}

/// Modules with the settings that clusters give them.
fn module_settings(config: &Config) -> impl Iterator<Item = (&Arc<str>, &[Setting])> {
    config.clusters.iter().flat_map(|cluster| {
        let missing = cluster.key_missing.as_ref().map(|missing| (&missing.module, &missing.settings[..]));
        std::iter::once((&cluster.module, &cluster.settings[..])).chain(missing)
    })
}

/// Wherever they stand.
fn are_equal(a: &[Setting], b: &[Setting]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.path == b.path && a.value == b.value)
}

/// The name of a file without its folders.
pub(super) fn short_path(path: &Path) -> impl std::fmt::Display {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A hash as people compare them at a glance.
pub(super) fn short_hash(sha256: &[u8; 32]) -> String {
    format!("{}…", Hex(&sha256[..2]))
}
