//! TOML text → the raw form. Reports every mistake of syntax, or every wrong type and unknown key.

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::de::{TreeError, TreeFault, TreeNode, TreeStep, TreeTerms};
use super::file::RootTable;
use super::gather::{self, Gathered};
use super::settings::{self, SettingTree};
use super::shape::Named;
use super::source::{Diagnostics, Span};
use super::suggest::{did_you_mean, nearest};
use super::{Files, Setting};

/// Reads `text` and what it includes. Of files with mistakes in them, what is right; of one that is not TOML, nothing. The span
/// is that of the whole file, as marks know it.
pub(super) fn read(
    name: &str,
    text: &str,
    files: &mut Files,
    report: &mut Diagnostics,
) -> Option<(RootTable, Span)> {
    let texts = gather::texts(name, text, files, report);
    let Gathered { root, mut terms } = gather::tree(&texts, files, report)?;
    let span = root.span();
    loop {
        let error = match RootTable::deserialize(TreeNode::new(&root, &terms)) {
            Ok(file) => return Some((file, span)),
            Err(error) => error,
        };
        let at = error.span.clone().unwrap_or_else(|| span.clone());
        report_mistake(&error, &root, at.start, report);
        if !terms.left_out.insert(at) {
            // Leaving it out did not help; what was reported so far has to do.
            return None;
        }
    }
}

/// Reads a module's settings, which are all that is in `text`.
pub(super) fn read_settings(name: &str, text: &str, report: &mut Diagnostics) -> Option<Vec<Setting>> {
    let root = gather::alone(name, text, report)?;
    match Named::<SettingTree>::deserialize(TreeNode::new(&root, &TreeTerms::default())) {
        Ok(settings) => Some(settings::flatten(settings, report)),
        Err(error) => {
            let at = error.span.clone().unwrap_or_else(|| root.span());
            report_mistake(&error, &root, at.start, report);
            None
        }
    }
}

fn report_mistake(error: &TreeError, root: &Spanned<DeValue<'_>>, at: usize, report: &mut Diagnostics) {
    for step in &error.path {
        if let TreeStep::Key { table, key } = step {
            report.mark_touched(table, key);
        }
    }
    let last_key = error.path.iter().rev().find_map(|step| match step {
        TreeStep::Key { table, key } => Some((table, key)),
        TreeStep::Index(_) => None,
    });
    let Some((table, key)) = last_key else {
        return report.error(at, error.to_string());
    };
    match &error.fault {
        TreeFault::Wrong(text) => {
            report.mark_lost(table, key);
            report.error(at, format!("{}: {text}", object(&error.path, root)));
        }
        TreeFault::UnknownKey(known) => {
            if let Some(meant) = nearest(key, known.iter().copied()) {
                report.mark_lost(table, meant);
            }
            let around = object(&error.path[..error.path.len() - 1], root);
            let hint = match did_you_mean(key, known.iter().copied()) {
                hint if hint.is_empty() => format!(" (known here: {})", known.join(", ")),
                hint => hint,
            };
            let separator = if around.is_empty() { "" } else { ": " };
            report.error(at, format!("{around}{separator}unknown key \"{key}\"{hint}"));
        }
    }
}

/// The object of a path, in words: `cluster "api": servers.weight`.
fn object(path: &[TreeStep], root: &Spanned<DeValue<'_>>) -> String {
    let mut words = String::new();
    let mut value = Some(root);
    let mut separator = "";
    for (depth, step) in path.iter().enumerate() {
        match step {
            TreeStep::Key { key, .. } => {
                words.push_str(separator);
                words.push_str(key);
                separator = ".";
                value = value.and_then(|value| value.get_ref().get(key.as_str()));
            }
            TreeStep::Index(index) => {
                value = value.and_then(|value| value.get_ref().get(*index));
                if depth == 1 {
                    separator = ": ";
                    words.push_str(&name_of(value));
                }
            }
        }
    }
    words
}

/// The name by which checks call a listener, a cluster or a route, quoted, if it has one.
fn name_of(value: Option<&Spanned<DeValue<'_>>>) -> String {
    let key = |key| value.and_then(|value| value.get_ref().get(key)).and_then(|name| name.get_ref().as_str());
    let (name, host) = match key("name").or(key("address")) {
        Some(name) => (name, None),
        None => match key("path") {
            Some(path) => (path, key("host")),
            None => return String::new(),
        },
    };
    format!(" \"{}{name}\"", host.unwrap_or_default())
}
