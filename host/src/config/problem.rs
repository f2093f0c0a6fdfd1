//! Errors and warnings of a configuration, shown as one line each.

use std::fmt::{self, Write as _};

use super::model::{ModuleFile, Place};

/// Everything wrong with a configuration, in the order of its lines. Shown as one line each.
#[derive(Debug)]
pub struct ConfigErrors {
    /// At least one.
    pub problems: Vec<Problem>,
    /// Modules whose own lines are valid, so that a caller can check their files, too.
    pub modules: Vec<ModuleFile>,
}

/// One thing that is wrong. Shown as `file:line: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, unless no line is to blame; then the text names the file.
    pub place: Option<Place>,
    /// What, and what would be right.
    pub text: String,
}

/// One thing that works but was hardly meant. Shown as a [`Problem`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where, if a line is to blame.
    pub place: Option<Place>,
    /// What, and what would be better.
    pub text: String,
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
