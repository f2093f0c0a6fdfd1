//! Errors and warnings of a configuration, shown as one line each.

use std::fmt::{self, Write as _};

use super::model::{ModuleFile, Place};

/// As much of a line as most terminals show.
const EXCERPT_COLUMNS: usize = 100;

/// Everything wrong with a configuration, in the order of its lines. Shown as one line each.
#[derive(Debug)]
pub struct ConfigErrors {
    /// At least one.
    pub problems: Vec<Problem>,
    /// Modules whose own lines are valid, so that a caller can check their files, too.
    pub modules: Vec<ModuleFile>,
}

/// A line of a configuration, and which of its characters is meant. Shown as two lines, with a caret below that character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The line.
    pub line: Box<str>,
    /// The character, from 1.
    pub column: usize,
}

/// One thing that is wrong. Shown as `file:line: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, unless no line is to blame; then the text names the file.
    pub place: Option<Place>,
    /// What, and what would be right.
    pub text: String,
    /// The line itself, unless it may hold a secret.
    pub excerpt: Option<Excerpt>,
}

/// One thing that works but was hardly meant. Shown as a [`Problem`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where, if a line is to blame.
    pub place: Option<Place>,
    /// What, and what would be better.
    pub text: String,
    /// As for a [`Problem`].
    pub excerpt: Option<Excerpt>,
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, self.place.as_ref(), &self.text)
    }
}

impl Excerpt {
    /// The line around this byte of it; `None` where it may hold a secret.
    pub(super) fn of(line: &str, at: usize) -> Option<Self> {
        let column = line.get(..at).unwrap_or(line).chars().count() + 1;
        (!super::secret::may_hold_secret(line)).then(|| Self { line: line.into(), column })
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As much as fits beside the caret.
        let first = self.column.saturating_sub(EXCERPT_COLUMNS - 20);
        let shown: String = self.line.chars().skip(first).take(EXCERPT_COLUMNS).collect();
        let shown = shown.replace(char::is_control, " ");
        write!(f, "    {}\n    {:>2$}", shown.trim_end(), "^", self.column - first)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, self.place.as_ref(), &self.text)
    }
}

/// One line, whatever the values in it: what could end the line or speak to a terminal is escaped.
fn write_line(f: &mut fmt::Formatter<'_>, place: Option<&Place>, text: &str) -> fmt::Result {
    if let Some(place) = place {
        write!(f, "{place}: ")?;
    }
    for c in text.chars() {
        if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_below_the_character() {
        let shown = |line, at| Excerpt::of(line, at).unwrap().to_string();
        assert_eq!(shown("cluster = \"ap\"", 10), "    cluster = \"ap\"\n              ^");
        assert_eq!(shown("\té = 1", 4), "     é = 1\n       ^");
        // Of a long line, what is around it.
        let long = format!("a = [{}\"x\"]", "0, ".repeat(100));
        let lines = shown(&long, long.len() - 4);
        let (line, caret) = lines.split_once('\n').unwrap();
        assert_eq!(line.chars().nth(caret.chars().count() - 1), Some('"'), "{lines}");
    }

    #[test]
    fn no_secret_is_shown() {
        assert_eq!(Excerpt::of("sticky = { cookie = \"a\", Secret = \"short\" }", 0), None);
    }
}
