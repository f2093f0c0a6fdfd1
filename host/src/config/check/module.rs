//! `[load_module]`, `module_path` and `module_files`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;

use super::super::shape::{Named, Short};
use super::super::source::{At, Span};
use super::super::suggest::nearest;
use super::super::{ClusterConfig, ModuleFile, Syntax, file};
use super::Checker;

/// The modules that passed.
pub(super) struct CheckedModules {
    pub(super) checked: Vec<ModuleFile>,
    /// The table that they are from, as marks know it.
    span: Option<Span>,
}

impl Checker<'_> {
    pub(super) fn modules(
        &mut self,
        table: Option<Spanned<Named<Short<file::ModuleTable>>>>,
        module_path: Option<Vec<Spanned<String>>>,
        module_files: Option<Spanned<String>>,
    ) -> CheckedModules {
        let search = self.search(module_path);
        let kept_in: Option<Arc<Path>> = self.kept_in(module_files);
        let span = table.as_ref().map(Spanned::span);
        let entries = table.map(|table| table.into_inner().0).unwrap_or_default();
        if entries.is_empty() && !self.report.is_touched(&self.root, "load_module") {
            self.report.error_of_whole(match self.syntax {
                Syntax::Toml => "no module (write, for example, round_robin = \"libmod_round_robin.so\" below [load_module])",
                Syntax::Httpd => "no module (write, for example, LoadModule proxy_lb_module modules/mod_proxy_lb.so)",
            });
        }
        let mut modules: Vec<ModuleFile> = Vec::new();
        let mut seen = HashMap::new();
        for (id, module) in entries {
            let place = self.report.place(id.at());
            self.check_id(&id);
            if let Some(first) = seen.insert(id.get_ref().clone(), place.clone()) {
                self.report.error(id.at(), format!("module \"{id}\": already loaded at {first}"));
                continue;
            }
            let (span, module) = (module.span(), module.into_inner());
            let (path, sha256) = match module {
                Short::Text(path) => (Some(Spanned::new(span.clone(), path)), None),
                Short::Table(module) => (module.path, module.sha256),
            };
            let sha256 = sha256.and_then(|text| self.sha256(&id, &text));
            let file = self.module_file(&id, &span, path);
            modules.push(ModuleFile {
                id: id.get_ref().as_str().into(),
                file,
                search: search.clone(),
                sha256,
                kept_in: kept_in.clone(),
                place,
            });
        }
        CheckedModules { checked: modules, span }
    }

    fn search(&mut self, module_path: Option<Vec<Spanned<String>>>) -> Arc<[PathBuf]> {
        let Some(directories) = module_path else { return default_search() };
        for directory in directories.iter().filter(|directory| directory.get_ref().is_empty()) {
            self.report.error(
                directory.at(),
                "module_path: a directory is empty (write \".\" for that of this file)",
            );
        }
        directories.iter().map(|directory| self.relative(directory.get_ref())).collect()
    }

    fn kept_in(&mut self, folder: Option<Spanned<String>>) -> Option<Arc<Path>> {
        let folder = folder?;
        if folder.get_ref().is_empty() {
            self.report.error(
                folder.at(),
                "module_files: the directory is empty (write \".\" for that of this file)",
            );
            return None;
        }
        Some(self.relative(folder.get_ref()).into())
    }

    fn check_id(&mut self, id: &Spanned<String>) {
        if is_id(id.get_ref()) {
            return;
        }
        let snake = id.get_ref().trim().to_ascii_lowercase().replace(['-', ' ', '.'], "_");
        let right = if is_id(&snake) { format!(", as \"{snake}\"") } else { String::new() };
        let text = format!("module \"{id}\": a module ID is written in snake_case{right}");
        self.report.error(id.at(), text);
    }

    fn module_file(&mut self, id: &Spanned<String>, span: &Span, path: Option<Spanned<String>>) -> PathBuf {
        match path {
            Some(path) if path.get_ref().is_empty() => {
                self.report.error(path.at(), format!("module \"{id}\": the file's name is empty"));
                PathBuf::new()
            }
            Some(path) => path.into_inner().into(),
            None => {
                let right = format!("write, for example, path = \"libmod_{id}.so\"");
                self.missing(span, "path", &format!("module \"{id}\""), &right);
                PathBuf::new()
            }
        }
    }

    fn sha256(&mut self, id: &Spanned<String>, text: &Spanned<String>) -> Option<[u8; 32]> {
        let hash = parse_hex(text.get_ref());
        if hash.is_none() {
            let wrong = format!("module \"{id}\": sha256 \"{text}\" is not 64 hexadecimal digits");
            self.report.error(text.at(), format!("{wrong} (sha256sum FILE prints them)"));
        }
        hash
    }

    /// The module of a cluster: the one that it names, or the only one there is.
    pub(super) fn module_of(
        &mut self,
        object: &str,
        at: usize,
        named: Option<&Spanned<String>>,
        modules: &CheckedModules,
    ) -> Option<Arc<str>> {
        let loaded = &modules.checked;
        let ids = || loaded.iter().map(|module| &*module.id);
        match named {
            Some(named) => {
                let found = loaded.iter().find(|module| *module.id == **named.get_ref());
                if found.is_none() && !self.may_be_loaded(named.get_ref(), modules) {
                    let hint = match nearest(named.get_ref(), ids()) {
                        Some(meant) => format!("did you mean \"{meant}\"?"),
                        None => format!("loaded: {}", ids().collect::<Vec<_>>().join(", ")),
                    };
                    self.report
                        .error(named.at(), format!("{object}: no module \"{named}\" is loaded ({hint})"));
                }
                found.map(|module| module.id.clone())
            }
            None => {
                if let [_, _, ..] = loaded[..] {
                    let right = match self.syntax {
                        Syntax::Toml => "module = \"ID\"",
                        Syntax::Httpd => "LBClusterModule CLUSTER ID",
                    };
                    let ids = ids().collect::<Vec<_>>().join(", ");
                    let text =
                        format!("{object}: several modules are loaded ({ids}); name one of them ({right})");
                    self.report.error(at, text);
                }
                loaded.first().map(|module| module.id.clone())
            }
        }
    }

    /// Whether the line that loads this module is there, but was complained of already.
    fn may_be_loaded(&self, id: &str, modules: &CheckedModules) -> bool {
        let is_lost = |span: &Span| self.report.is_lost(span, id);
        self.report.is_lost(&self.root, "load_module") || modules.span.as_ref().is_some_and(is_lost)
    }

    /// Loading code that nobody asks is a mistake of somebody, but a harmless one.
    pub(super) fn warn_of_unused(&mut self, modules: &[ModuleFile], clusters: &[ClusterConfig]) {
        let is_used = |module: &&ModuleFile| {
            clusters.iter().any(|cluster| cluster.modules().any(|id| *id == module.id))
        };
        let unused: Vec<_> = modules.iter().filter(|module| !is_used(module)).collect();
        let text = match &*unused {
            [] => return,
            [module] => format!("module \"{}\": loaded, but no cluster uses it", module.id),
            // One line: a file that loads all there are is no reason for a dozen.
            modules => {
                let ids: Vec<_> = modules.iter().map(|module| &*module.id).collect();
                format!("modules {}: loaded, but no cluster uses them", ids.join(", "))
            }
        };
        self.report.warn(unused[0].place.clone(), text);
    }
}

/// Whether it is snake_case: `least_request`.
fn is_id(id: &str) -> bool {
    id.starts_with(|first: char| first.is_ascii_lowercase())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

/// A build tree has the modules beside the binary, an installation in its `lib`.
fn default_search() -> Arc<[PathBuf]> {
    let binary = std::env::current_exe().unwrap_or_default();
    let beside = binary.parent().unwrap_or(Path::new("."));
    [beside.to_owned(), beside.join("../lib/trylist/modules")].into()
}
