//! Offsets of values, their files and lines, and the list of all problems.
//!
//! All files of one configuration (a file and its includes) share one space of offsets: each file begins where the previous
//! one ended. So a plain span of the raw form gives file and line in every syntax.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

use super::{ConfigErrors, Excerpt, Place, Problem, Warning};

/// A stretch of the configuration's text.
pub(super) type Span = Range<usize>;

/// Problems found while one configuration is read and checked.
#[derive(Debug)]
pub(super) struct Diagnostics {
    name: Arc<str>,
    files: Vec<SourceFile>,
    end: usize,
    errors: Vec<(Option<usize>, String)>,
    warnings: Vec<Warning>,
    lost: HashSet<(Span, String)>,
    touched: HashSet<(Span, String)>,
}

#[derive(Debug)]
struct SourceFile {
    name: Arc<str>,
    text: Box<str>,
    base: usize,
    /// Offsets at which lines begin.
    lines: Vec<usize>,
}

impl Diagnostics {
    /// An empty list for the configuration with this file name.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            files: Vec::new(),
            end: 0,
            errors: Vec::new(),
            warnings: Vec::new(),
            lost: HashSet::new(),
            touched: HashSet::new(),
        }
    }

    /// Adds a file, and returns the offset at which its text begins.
    pub(super) fn add_file(&mut self, name: &str, text: &str) -> usize {
        let base = self.end;
        let starts = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| base + at + 1);
        let lines = std::iter::once(base).chain(starts).collect();
        self.files.push(SourceFile { name: name.into(), text: text.into(), base, lines });
        // One more than its length, so that the end of one file is not the beginning of the next.
        self.end = base + text.len() + 1;
        base
    }

    /// File and line of an offset.
    pub(super) fn place(&self, at: usize) -> Place {
        let file = self.file_of(at);
        Place { file: file.name.clone(), line: file.lines.partition_point(|&start| start <= at) }
    }

    fn file_of(&self, at: usize) -> &SourceFile {
        let before = self.files.partition_point(|file| file.base <= at);
        &self.files[before.checked_sub(1).expect("offsets come from files that were added")]
    }

    /// The line of an offset.
    fn excerpt(&self, at: usize) -> Option<Excerpt> {
        let file = self.file_of(at);
        let line = file.lines.partition_point(|&start| start <= at).checked_sub(1)?;
        Excerpt::of(file.line(line)?, at - file.lines[line])
    }

    /// The line of a place, from its first word.
    fn line_of(&self, place: &Place) -> Option<Excerpt> {
        let line =
            self.files.iter().find(|file| file.name == place.file)?.line(place.line.checked_sub(1)?)?;
        Excerpt::of(line, line.len() - line.trim_start().len())
    }

    pub(super) fn error(&mut self, at: usize, text: impl Into<String>) {
        self.errors.push((Some(at), one_line(text.into())));
    }

    /// Reports a problem of the whole configuration, without a line.
    pub(super) fn error_of_whole(&mut self, text: &str) {
        self.errors.push((None, one_line(format!("{}: {text}", self.name))));
    }

    /// Number of errors so far.
    pub(super) fn n_errors(&self) -> usize {
        self.errors.len()
    }

    pub(super) fn warn(&mut self, place: Place, text: impl Into<String>) {
        let excerpt = self.line_of(&place);
        self.warnings.push(Warning { place: Some(place), text: one_line(text.into()), excerpt });
    }

    /// Remembers that `key` of `table` is there but could not be read, so that it is not reported as missing.
    pub(super) fn mark_lost(&mut self, table: &Span, key: &str) {
        self.lost.insert((table.clone(), key.to_owned()));
        self.mark_touched(table, key);
    }

    /// Remembers that something at or below `key` of `table` could not be read.
    pub(super) fn mark_touched(&mut self, table: &Span, key: &str) {
        self.touched.insert((table.clone(), key.to_owned()));
    }

    /// Whether [`mark_lost`](Self::mark_lost) was told.
    pub(super) fn is_lost(&self, table: &Span, key: &str) -> bool {
        self.lost.contains(&(table.clone(), key.to_owned()))
    }

    /// Whether [`mark_lost`](Self::mark_lost) or [`mark_touched`](Self::mark_touched) was told.
    pub(super) fn is_touched(&self, table: &Span, key: &str) -> bool {
        self.touched.contains(&(table.clone(), key.to_owned()))
    }

    /// The value and its warnings, or every problem: those of lines in the order of the files, then those of the whole, which
    /// may follow from an unreadable line.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<Warning>), ConfigErrors> {
        self.errors.sort_by_key(|&(at, _)| (at.is_none(), at));
        self.errors.dedup();
        if let (Some(value), true) = (value, self.errors.is_empty()) {
            return Ok((value, self.warnings));
        }
        let problems = self.errors.iter();
        let problems = problems.map(|(at, text)| Problem {
            place: at.map(|at| self.place(at)),
            text: text.clone(),
            excerpt: at.and_then(|at| self.excerpt(at)),
        });
        Err(ConfigErrors { problems: problems.collect(), modules: Vec::new() })
    }
}

impl SourceFile {
    /// A line, from 0.
    fn line(&self, line: usize) -> Option<&str> {
        let start = self.lines.get(line)? - self.base;
        self.text.get(start..)?.lines().next()
    }
}

/// A message as one line. Text of the file in it may contain control characters.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Values with a place in the text.
pub(super) trait At {
    /// The first offset of the value.
    fn at(&self) -> usize;
}

impl<T> At for Spanned<T> {
    fn at(&self) -> usize {
        self.span().start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_offsets_of_several_files() {
        let mut report = Diagnostics::new("a.conf");
        let a = report.add_file("a.conf", "one\ntwo");
        let b = report.add_file("b.conf", "");
        let c = report.add_file("c.conf", "one\n\nthree\n");
        let place = |at| report.place(at).to_string();
        assert_eq!(
            [place(a), place(a + 3), place(a + 4), place(a + 7)].join(" "),
            "a.conf:1 a.conf:1 a.conf:2 a.conf:2"
        );
        assert_eq!(place(b), "b.conf:1");
        assert_eq!(
            [place(c), place(c + 4), place(c + 5), place(c + 10)].join(" "),
            "c.conf:1 c.conf:2 c.conf:3 c.conf:3"
        );
    }
}
