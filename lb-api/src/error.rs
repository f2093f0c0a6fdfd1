//! Why a balancer could not be built.

use std::fmt;

/// Why [`Balancer::build`](crate::Balancer::build) refuses: one problem or several, each with the setting at fault, if any. The
/// host puts file, line and cluster in front of each. A text is one line, in lower case, and says what would be right.
///
/// ```
/// use lb_api::BuildError;
///
/// let error = BuildError::setting("choices", "expected 2 or more, found 1");
/// assert_eq!(error.to_string(), "choices: expected 2 or more, found 1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    problems: Vec<Problem>,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, as a path like `choices` or `tiers[1].name`; empty where no single setting is at fault.
    pub path: String,
    /// The problem, in one line.
    pub text: String,
}

impl BuildError {
    /// A problem without a single setting at fault.
    pub fn new(text: impl Into<String>) -> Self {
        Self::setting("", text)
    }

    /// A problem of one setting.
    pub fn setting(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { problems: vec![Problem { path: path.into(), text: text.into() }] }
    }

    /// Adds other problems: an operator should see all of them in one run.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.problems.extend(other.problems);
        self
    }

    /// The problems; at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(crate) fn from_problems(problems: Vec<Problem>) -> Self {
        Self { problems }
    }
}

impl From<&str> for BuildError {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for BuildError {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, problem) in self.problems.iter().enumerate() {
            let gap = if idx == 0 { "" } else { "; " };
            match problem.path.as_str() {
                "" => write!(f, "{gap}{}", problem.text)?,
                path => write!(f, "{gap}{path}: {}", problem.text)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for BuildError {}
