//! TOML text → the raw form. Reports every mistake of syntax, or every wrong type and unknown key.

use std::collections::HashSet;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Setting;
use super::de::{TreeError, TreeFault, TreeNode, TreeStep};
use super::file::RootTable;
use super::settings::{self, SettingTree};
use super::shape::Named;
use super::source::{Diagnostics, Span};
use super::suggest::{did_you_mean, nearest};

/// Reads `text`, the only file of `report`. Of a file with mistakes in it, what is right; of one that is not TOML,
/// nothing. The span is that of the whole file, as marks know it.
pub(super) fn read(name: &str, text: &str, report: &mut Diagnostics) -> Option<(RootTable, Span)> {
    let root = parse(name, text, report)?;
    let span = root.span();
    let mut left_out = HashSet::new();
    loop {
        let error = match RootTable::deserialize(TreeNode::new(&root, &left_out)) {
            Ok(file) => return Some((file, span)),
            Err(error) => error,
        };
        let at = error.span.clone().unwrap_or_else(|| span.clone());
        report_mistake(&error, &root, at.start, report);
        if !left_out.insert(at) {
            // Leaving it out did not help; what was reported so far has to do.
            return None;
        }
    }
}

/// Reads a module's settings, which are all that is in `text`.
pub(super) fn read_settings(name: &str, text: &str, report: &mut Diagnostics) -> Option<Vec<Setting>> {
    let root = parse(name, text, report)?;
    match Named::<SettingTree>::deserialize(TreeNode::new(&root, &HashSet::new())) {
        Ok(settings) => Some(settings::flatten(settings, report)),
        Err(error) => {
            let at = error.span.clone().unwrap_or_else(|| root.span());
            report_mistake(&error, &root, at.start, report);
            None
        }
    }
}

fn parse<'a>(name: &str, text: &'a str, report: &mut Diagnostics) -> Option<Spanned<DeValue<'a>>> {
    report.add_file(name, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        report_syntax(text, &errors, report);
        return None;
    }
    Some(Spanned::new(root.span(), DeValue::Table(root.into_inner())))
}

fn report_syntax(text: &str, errors: &[toml::de::Error], report: &mut Diagnostics) {
    let mut last_line = 0;
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let line = report.place(span.start).line;
        // Further faults of a line mostly echo the first one.
        if line == last_line {
            continue;
        }
        last_line = line;
        let here = text.get(span.clone()).unwrap_or_default();
        let object = match error.message() {
            "duplicate key" => format!(" \"{}\"", here.trim_matches('"')),
            _ => String::new(),
        };
        let message = error.message().replace('\n', " ");
        report.error(span.start, format!("not valid TOML: {message}{object}"));
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
