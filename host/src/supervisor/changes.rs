//! The lines of the log when one generation takes over from another.

use super::Supervisor;
use super::bundle::short_hash;
use super::generation::Generation;
use crate::config::ModuleFile;

impl Supervisor {
    /// The lines to log when a generation takes over.
    pub(super) fn changes(&self, before: Option<u64>, number: u64) -> Vec<String> {
        let find = |number: u64| self.generations.iter().find(|generation| generation.number == number);
        let Some(now) = find(number) else { return Vec::new() };
        let Some(before) = before.and_then(find) else { return vec![format!("generation {number} serves")] };
        let mut lines = vec![format!(
            "generation {number} serves (pid {}), generation {} drains",
            now.pid(),
            before.number
        )];
        for (idx, copy) in now.copies.iter().enumerate() {
            let id = &now.bundle.config.modules[idx].id;
            let is_it = |module: &ModuleFile| module.id == *id;
            let was = before.bundle.config.modules.iter().position(is_it);
            let is = described(now, idx);
            match was.filter(|was| before.copies.get(*was).is_some()) {
                None => lines.push(format!("module {id} {is} is new")),
                Some(was) if before.copies[was].sha256 != copy.sha256 => {
                    lines.push(format!("module {id} {} → {is}", described(before, was)));
                }
                Some(was) if before.copies[was].is_quarantined != copy.is_quarantined => {
                    let what = if copy.is_quarantined { "is in quarantine" } else { "is out of quarantine" };
                    lines.push(format!("module {id} {is} {what}"));
                }
                Some(_) => {}
            }
        }
        for module in &before.bundle.config.modules {
            if !now.bundle.config.modules.iter().any(|other| other.id == module.id) {
                lines.push(format!("module {} is no longer loaded", module.id));
            }
        }
        lines
    }
}

/// `1.0.0 (3f2a…)`.
fn described(generation: &Generation, module: usize) -> String {
    let hash = short_hash(&generation.copies[module].sha256);
    match generation.says.get(module) {
        Some(Some(says)) => format!("{} ({hash})", says.version),
        _ => format!("({hash})"),
    }
}
