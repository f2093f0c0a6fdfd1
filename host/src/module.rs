//! The life of a module: locate, load, check, build, load_balance, next, finish, save, retire.
//!
//! [`load`] finds the file, copies it, checks it and opens the copy. The result is a [`Module`], or one line with the reason
//! why not. [`registry`] keeps the modules of one configuration by ID. [`balancer`] makes a module's instance for one
//! cluster and is the only way to its calls. This room knows no strategy.
//!
//! An opened library stays in the process. There is no `dlclose`, because something may still point into it: thread-local
//! destructors, learned state, text in a log line.

pub mod load;
pub mod refusal;
pub mod registry;
pub mod balancer;
pub mod contract;
pub(crate) mod code;
pub(crate) mod calls;
pub mod wire;
mod mapped;
pub mod board;
pub mod crash;
mod elf;
pub mod guarded;
mod image;
mod kept;
mod owner;

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use self::calls::Calls;
use self::code::CodeRanges;
use crate::module::board::ModuleMark;

/// A module that passed every check of [`load`].
#[derive(Debug)]
pub struct Module {
    /// The opened library; shared by all modules whose files have the same bytes.
    library: &'static Library,
    /// The file that it was read from.
    file: PathBuf,
    /// Its identity in crumbs.
    mark: ModuleMark,
}

/// An opened library and its description of itself. Made once for the same bytes, and never freed.
#[derive(Debug)]
struct Library {
    id: Box<str>,
    version: Box<str>,
    summary: Box<str>,
    abi: (u32, u32),
    language: Language,
    trylist: TrylistLayout,
    sha256: [u8; 32],
    calls: Calls,
    code: CodeRanges,
}

/// Language of a module, as its envelope tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// It came in the abi_stable envelope of `lb-api`.
    Rust,
    /// It came behind the symbol `lb_module`.
    C,
}

/// The room that one trylist needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrylistLayout {
    /// Bytes; above [`lb_api::wire::TRYLIST_IN_PLACE`] it costs an allocation a request.
    pub size: usize,
    /// A power of two, [`lb_api::wire::TRYLIST_ALIGN`] at most.
    pub align: usize,
}

/// Which optional calls a module has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supports {
    /// `observe`: reports of each try.
    pub observe: bool,
    /// `save`: state for the next generation.
    pub save: bool,
    /// `explain`: why a trylist chose as it did, in words.
    pub explain: bool,
}

impl Module {
    /// Module ID.
    pub fn id(&self) -> &str {
        &self.library.id
    }

    /// The module's own version, for people.
    pub fn version(&self) -> &str {
        &self.library.version
    }

    /// One line on what it does.
    pub fn summary(&self) -> &str {
        &self.library.summary
    }

    /// ABI version that it was built for: major, minor.
    pub fn abi(&self) -> (u32, u32) {
        self.library.abi
    }

    /// Its language.
    pub fn language(&self) -> Language {
        self.library.language
    }

    /// The file that it was read from. A copy runs; the file may have changed since.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Hash of the bytes that run.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.library.sha256
    }

    /// Where its code is in this process.
    pub(crate) fn code(&self) -> &CodeRanges {
        &self.library.code
    }

    /// The room that one of its trylists needs.
    pub fn trylist(&self) -> TrylistLayout {
        self.library.trylist
    }

    /// Which optional calls it has.
    pub fn supports(&self) -> Supports {
        let calls = &self.library.calls;
        Supports {
            observe: calls.observe.is_some(),
            save: calls.save.is_some(),
            explain: calls.explain.is_some(),
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rust => "Rust",
            Self::C => "C",
        })
    }
}

/// Text that came from a module or a file, as one line: bytes that are no UTF-8 are replaced, control characters
/// escaped (so that nobody forges a line of the log), and what is too long is cut.
struct OneLine<'a>(&'a [u8]);

/// Longest text of a module that is passed on; a longer one is a mistake, or an attempt to fill a disk.
const LINE_BYTES: usize = 4096;

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = &self.0[..self.0.len().min(LINE_BYTES)];
        for c in String::from_utf8_lossy(cut).trim_end().chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        if cut.len() < self.0.len() { f.write_str(" …") } else { Ok(()) }
    }
}

/// Lower-case hex.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_module_stays_on_one_line() {
        assert_eq!(OneLine(b"a\nb\x1b[31m \xff\n").to_string(), "a\\nb\\u{1b}[31m \u{fffd}");
    }

    #[test]
    fn long_text_of_a_module_is_cut() {
        let line = OneLine(&[b'x'; LINE_BYTES + 1]).to_string();
        assert!(line.ends_with("x …") && line.len() == LINE_BYTES + " …".len());
    }
}
