//! The files of a TOML configuration → one tree: what a file includes is part of it, and `${NAME}` in a text is a variable of the
//! environment.
//!
//! Every file has its own stretch of the offsets that [`Diagnostics`] knows, so that a span of the whole tree names its file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Files;
use super::de::TreeTerms;
use super::include::IncludeStack;
use super::secret::{HIDDEN, is_secret_name};
use super::source::{Diagnostics, Span};

/// A file of a configuration that is TOML.
#[derive(Debug)]
pub(super) struct SourceText {
    text: String,
    /// The offset at which it begins.
    base: usize,
}

/// A whole configuration as a tree.
#[derive(Debug)]
pub(super) struct Gathered<'a> {
    pub(super) root: Spanned<DeValue<'a>>,
    /// The parts to leave out, and the texts that are variables.
    pub(super) terms: TreeTerms,
}

/// The text and all that it includes, in the order in which they count. Faults are reported; there is nothing where the text
/// itself is not TOML.
pub(super) fn texts(name: &str, text: &str, files: &mut Files, report: &mut Diagnostics) -> Vec<SourceText> {
    let (open, included, texts) = (IncludeStack::default(), Vec::new(), Vec::new());
    let mut gatherer = Gatherer { files, report, open, included, texts, root: 0..0 };
    gatherer.open.enter(Path::new(name)).expect("nothing is open yet");
    gatherer.file(Path::new(name), text);
    gatherer.texts
}

/// The texts as one tree; `None` where there is none.
pub(super) fn tree<'a>(
    texts: &'a [SourceText],
    files: &mut Files,
    report: &mut Diagnostics,
) -> Option<Gathered<'a>> {
    let mut terms = TreeTerms::default();
    let mut whole: Option<(DeTable<'a>, Span)> = None;
    for SourceText { text, base } in texts {
        let (root, _) = DeTable::parse_recoverable(text);
        let span = base + root.span().start..base + root.span().end;
        let mut table = shifted_table(root.into_inner(), *base);
        let mut variables = Variables { files, report, terms: &mut terms };
        variables.expand_table(&mut table, &span, Escapes::Mine);
        match &mut whole {
            None => whole = Some((table, span)),
            Some((whole, _)) => {
                take_include(&mut table, report);
                merge(whole, table, "", report);
            }
        }
    }
    let (table, span) = whole?;
    Some(Gathered { root: Spanned::new(span, DeValue::Table(table)), terms })
}

/// Reads a text that stands alone: no file that it includes, and no variable.
pub(super) fn alone<'a>(name: &str, text: &'a str, report: &mut Diagnostics) -> Option<Spanned<DeValue<'a>>> {
    let base = report.add_file(name, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        report_syntax(text, base, &errors, report);
        return None;
    }
    Some(Spanned::new(root.span(), DeValue::Table(root.into_inner())))
}

struct Gatherer<'a> {
    files: &'a mut Files,
    report: &'a mut Diagnostics,
    /// The files being read, from the operator's own to the innermost.
    open: IncludeStack,
    /// Every file that was included, and the offset of the line that did so.
    included: Vec<(PathBuf, usize)>,
    texts: Vec<SourceText>,
    /// The span of the first file, as marks know it.
    root: Span,
}

impl Gatherer<'_> {
    /// One file, and behind it what it includes.
    fn file(&mut self, path: &Path, text: &str) {
        let base = self.report.add_file(&path.display().to_string(), text);
        let (root, errors) = DeTable::parse_recoverable(text);
        if self.texts.is_empty() {
            self.root = root.span();
        }
        if !errors.is_empty() {
            report_syntax(text, base, &errors, self.report);
            return self.lose();
        }
        self.texts.push(SourceText { text: text.to_owned(), base });
        let patterns: Vec<(String, Span)> = match root.get_ref().get("include").map(Spanned::get_ref) {
            Some(DeValue::Array(patterns)) => {
                let text = |value: &Spanned<DeValue<'_>>| {
                    let span = value.span();
                    Some((value.get_ref().as_str()?.to_owned(), base + span.start..base + span.end))
                };
                patterns.iter().filter_map(text).collect()
            }
            // The reader of the tree says what is wrong with it.
            _ => return,
        };
        let directory = path.parent().unwrap_or(Path::new(""));
        for (pattern, span) in patterns {
            let at = span.start;
            let (files, report) = (&mut *self.files, &mut *self.report);
            let mut variables = Variables { files, report, terms: &mut TreeTerms::default() };
            let pattern = match variables.expanded(&pattern, &span, Escapes::Mine) {
                Ok(expanded) => expanded.unwrap_or(pattern),
                // The tree has the pattern too, and is where an unset variable is reported.
                Err(_) => {
                    self.lose();
                    continue;
                }
            };
            match self.files.included(&pattern, directory) {
                Ok(found) if found.is_empty() => {
                    let place = self.report.place(at);
                    self.report.warn(place, format!("include \"{pattern}\": matches no file"));
                }
                Ok(found) => found.iter().for_each(|path| self.include(&pattern, path, at)),
                Err(reason) => self.refuse(&format!("include \"{pattern}\": {reason}"), at),
            }
        }
    }

    fn include(&mut self, pattern: &str, path: &Path, at: usize) {
        let object = match pattern.contains(['*', '?', '[']) {
            true => format!("include \"{pattern}\": {}", path.display()),
            false => format!("include \"{pattern}\":"),
        };
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Err(reason) = self.open.enter(path) {
            return self.refuse(&format!("{object} {reason}"), at);
        }
        if let Some((_, first)) = self.included.iter().find(|(known, _)| *known == whole) {
            let place = self.report.place(*first);
            self.refuse(&format!("{object} is already included at {place}"), at);
        } else {
            self.included.push((whole, at));
            match self.files.text(path) {
                Err(reason) => self.refuse(&format!("{object} {reason}"), at),
                Ok(text) => self.file(path, &text),
            }
        }
        self.open.leave();
    }

    /// Reports a file that is not read.
    fn refuse(&mut self, text: &str, at: usize) {
        self.report.error(at, text);
        self.lose();
    }

    /// Keys that an unreadable file would have set are not missing.
    fn lose(&mut self) {
        for part in ["listener", "load_module", "cluster", "route"] {
            self.report.mark_lost(&self.root, part);
        }
    }
}

/// Takes the key out of an included file, whose files have been read.
fn take_include(table: &mut DeTable<'_>, report: &mut Diagnostics) {
    let Some((key, include)) = table.remove_entry("include") else { return };
    let is_list = include
        .get_ref()
        .as_array()
        .is_some_and(|list| list.iter().all(|pattern| pattern.get_ref().is_str()));
    if !is_list {
        let what = "expected an array of strings (write include = [\"conf.d/*.toml\"])";
        report.error(key.span().start, format!("include: {what}"));
    }
}

/// Adds the keys of an included file: tables become one, and so do `[[lists]]`. Nothing is said twice.
fn merge<'a>(into: &mut DeTable<'a>, from: DeTable<'a>, path: &str, report: &mut Diagnostics) {
    for (key, value) in from {
        let Some(known) = into.get_mut(key.get_ref().as_ref()) else {
            into.insert(key, value);
            continue;
        };
        let first = known.span().start;
        match (known.get_mut(), value.into_inner()) {
            (DeValue::Table(known), DeValue::Table(more)) => {
                merge(known, more, &format!("{path}{}.", key.get_ref()), report);
            }
            (DeValue::Array(known), DeValue::Array(more))
                if path.is_empty() && is_of_tables(known) && is_of_tables(&more) =>
            {
                more.into_iter().for_each(|table| known.push(table));
            }
            _ => {
                let place = report.place(first);
                let text = format!("{path}{}: already set at {place}", key.get_ref());
                report.error(key.span().start, text);
            }
        }
    }
}

/// Puts variables of the environment into a tree.
struct Variables<'a> {
    files: &'a mut Files,
    report: &'a mut Diagnostics,
    terms: &'a mut TreeTerms,
}

impl Variables<'_> {
    /// The table at this span.
    fn expand_table(&mut self, table: &mut DeTable<'_>, span: &Span, escapes: Escapes) {
        for (key, value) in table.iter_mut() {
            let has_variables = ["request_headers", "response_headers", "format"].contains(&&**key.get_ref());
            if !self.expand(value, if has_variables { Escapes::Theirs } else { escapes }) {
                // One line is enough.
                self.terms.left_out.insert(value.span());
                self.report.mark_lost(span, key.get_ref());
            }
        }
    }

    /// False where a variable of this very value is unset.
    fn expand(&mut self, value: &mut Spanned<DeValue<'_>>, escapes: Escapes) -> bool {
        let span = value.span();
        match value.get_mut() {
            DeValue::String(text) => match self.expanded(text, &span, escapes) {
                Ok(None) => true,
                Ok(Some(expanded)) => {
                    *text = Cow::Owned(expanded);
                    true
                }
                Err(reason) => {
                    self.report.error(span.start, reason);
                    false
                }
            },
            DeValue::Array(elements) => {
                let mut all = true;
                for element in elements.iter_mut() {
                    all &= self.expand(element, escapes);
                }
                all
            }
            DeValue::Table(table) => {
                self.expand_table(table, &span, escapes);
                true
            }
            _ => true,
        }
    }

    /// A text with its variables; `None` where it has none.
    ///
    /// # Errors
    /// A variable is unset.
    fn expanded(&mut self, text: &str, span: &Span, escapes: Escapes) -> Result<Option<String>, String> {
        let (mut out, mut rest, mut found) = (String::new(), text, false);
        let mut secrets = Vec::new();
        while let Some(at) = rest.find("${") {
            let (before, behind) = (&rest[..at], &rest[at + 2..]);
            let Some((reference, end)) = Reference::of(behind) else {
                out.push_str(&rest[..at + 2]);
                rest = behind;
                continue;
            };
            found = true;
            if before.ends_with('$') {
                out.push_str(if escapes == Escapes::Mine { &before[..at - 1] } else { before });
                out.push_str(&rest[at..at + 2 + end]);
            } else {
                out.push_str(before);
                let begin = out.len();
                out.push_str(&self.value_of(&reference)?);
                if is_secret_name(reference.name) {
                    secrets.push(begin..out.len());
                }
                if at == 0 && end == behind.len() {
                    self.terms.from_environment.insert(span.clone());
                }
            }
            rest = &behind[end..];
        }
        out.push_str(rest);
        if !secrets.is_empty() {
            let mut shown = out.clone();
            secrets.into_iter().rev().for_each(|secret| shown.replace_range(secret, HIDDEN));
            self.terms.shown.insert(span.clone(), shown);
        }
        Ok(found.then_some(out))
    }

    fn value_of(&mut self, reference: &Reference<'_>) -> Result<String, String> {
        let Reference { name, default } = reference;
        match (self.files.variable(name), default) {
            (Some(value), _) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok((*default).to_owned()),
            (Some(empty), None) => Ok(empty),
            (None, None) => {
                let right = format!("set it, or write ${{{name}:-default}}");
                Err(format!("environment variable {name} is not set ({right})"))
            }
        }
    }
}

/// Meaning of `$${` in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escapes {
    /// `${` as it is.
    Mine,
    /// The text has variables of its own, whose reader takes the escape.
    Theirs,
}

/// A variable in a text, behind its `${`.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'a> {
    name: &'a str,
    /// For a variable that is unset or empty.
    default: Option<&'a str>,
}

impl<'a> Reference<'a> {
    /// With the length up to behind its `}`. Names are in capitals: others are variables of requests.
    fn of(text: &'a str) -> Option<(Self, usize)> {
        let end = text.find('}')?;
        let (name, default) = match text[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&text[..end], None),
        };
        let is_name = name.starts_with(|first: char| first.is_ascii_uppercase() || first == '_')
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        is_name.then_some((Self { name, default }, end + 1))
    }
}

fn is_of_tables(array: &[Spanned<DeValue<'_>>]) -> bool {
    array.iter().all(|element| element.get_ref().is_table())
}

/// A table whose spans begin later.
fn shifted_table<'a>(table: DeTable<'a>, base: usize) -> DeTable<'a> {
    let by = |span: Span| span.start + base..span.end + base;
    let entry = |(key, value): (Spanned<Cow<'a, str>>, Spanned<DeValue<'a>>)| {
        let span = by(key.span());
        (Spanned::new(span, key.into_inner()), shifted(value, base))
    };
    table.into_iter().map(entry).collect()
}

fn shifted<'a>(value: Spanned<DeValue<'a>>, base: usize) -> Spanned<DeValue<'a>> {
    let span = value.span().start + base..value.span().end + base;
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shifted_table(table, base)),
        DeValue::Array(elements) => {
            DeValue::Array(elements.into_iter().map(|element| shifted(element, base)).collect())
        }
        other => other,
    };
    Spanned::new(span, value)
}

fn report_syntax(text: &str, base: usize, errors: &[toml::de::Error], report: &mut Diagnostics) {
    let mut last_line = 0;
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let line = report.place(base + span.start).line;
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
        report.error(base + span.start, format!("not valid TOML: {message}{object}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_in_capitals() {
        let of = |text| Reference::of(text).map(|(reference, end)| (reference.name, reference.default, end));
        assert_eq!(of("A_1}x"), Some(("A_1", None, 4)));
        assert_eq!(of("A:-b c}"), Some(("A", Some("b c"), 7)));
        assert_eq!(of("A:-}"), Some(("A", Some(""), 4)));
        for text in ["host}", "}", "1A}", "A", "A-B}", "A:b}"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
