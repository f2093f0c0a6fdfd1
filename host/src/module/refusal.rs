//! Why a module was not loaded, in one line.

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use lb_api::wire;

use super::Hex;
use crate::config::{ModuleFile, NotFound, Place};

/// A whole module is far below; more is a mistake like a disk image or `/dev/zero`.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 30;

/// The table of the first release, which has every call that a module must have.
pub(super) const TABLE_BYTES: usize = offset_of!(wire::Module, drop_balancer) + size_of::<usize>();

/// Why a module was not loaded. As text it is one line: place and ID where the configuration asked, file, reason.
#[derive(Debug)]
pub struct LoadError {
    /// Where the configuration names the module; absent after [`inspect`](super::load::inspect).
    pub place: Option<Place>,
    /// The ID that was asked for; absent after [`inspect`](super::load::inspect).
    pub id: Option<Arc<str>>,
    /// The file, as found.
    pub file: PathBuf,
    /// The reason.
    pub refusal: LoadRefusal,
}

/// The reasons for which a module is not loaded. Texts in them are one line.
#[derive(Debug)]
#[expect(missing_docs, reason = "each one's text is its documentation, in `Display` below")]
pub enum LoadRefusal {
    NotFound(NotFound),
    Unreadable(io::Error),
    NoFile,
    TooLarge,
    /// Somebody else can change the file.
    Exposed(String),
    OtherHash {
        pinned: Box<[u8; 32]>,
        found: Box<[u8; 32]>,
    },
    NoLibrary(String),
    Copy(io::Error),
    Kept {
        path: PathBuf,
        error: io::Error,
    },
    Linker(String),
    NoModule,
    NoTable,
    OtherAbi {
        major: u32,
        minor: u32,
    },
    ShortTable {
        size: u32,
    },
    NoCall(&'static str),
    /// The envelope of a Rust module is not what this host knows.
    Root(String),
    /// It said nothing sensible of itself.
    Info(String),
    OtherId {
        found: Box<str>,
    },
}

impl LoadError {
    pub(super) fn of(request: &ModuleFile, file: &Path, refusal: LoadRefusal) -> Self {
        let (place, id) = (Some(request.place.clone()), Some(Arc::clone(&request.id)));
        Self { place, id, file: file.to_owned(), refusal }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if let Some(id) = &self.id {
            write!(f, "module \"{id}\": ")?;
        }
        write!(f, "{}: {}", self.file.display(), self.refusal)
    }
}

impl std::error::Error for LoadError {}

impl fmt::Display for LoadRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(NotFound { file, tried }) if tried.iter().all(|path| path == file) => {
                f.write_str("not found")
            }
            Self::NotFound(NotFound { tried, .. }) => {
                f.write_str("not found; looked for ")?;
                list(f, tried)
            }
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::NoFile => f.write_str("not a regular file"),
            Self::TooLarge => write!(f, "larger than {} MiB, expected a module", MAX_FILE_BYTES >> 20),
            Self::Exposed(why) | Self::NoLibrary(why) | Self::Root(why) | Self::Info(why) => f.write_str(why),
            Self::OtherHash { pinned, found } => {
                write!(f, "sha256 is {}, the configuration pins {}", Hex(&found[..]), Hex(&pinned[..]))
            }
            Self::Copy(error) => write!(f, "cannot be copied to memory or to a private folder: {error}"),
            Self::Kept { path, error } => {
                write!(f, "cannot be kept as {} (module_files): {error}", path.display())
            }
            Self::Linker(text) => {
                write!(f, "cannot be linked: {text}; `ldd -r FILE` lists what is missing")
            }
            Self::NoModule => f.write_str(
                "not a balancer module: it exports neither the root of a Rust module \
                 (lb_api::export_balancer!) nor the symbol lb_module of a C module",
            ),
            Self::NoTable => f.write_str(
                "symbol lb_module does not point to a table of calls; \
                 define it as `LB_EXPORT const struct lb_module *const lb_module = &table;`",
            ),
            Self::OtherAbi { major, minor } => {
                write!(
                    f,
                    "built for ABI {major}.{minor}, this host provides {ABI_MAJOR}.{ABI_MINOR}; rebuild it"
                )
            }
            Self::ShortTable { size } => {
                write!(
                    f,
                    "its table of calls has {size} bytes, expected at least {TABLE_BYTES}; set its `size` to sizeof(struct lb_module)"
                )
            }
            Self::NoCall(call) => write!(f, "required call {call} is null; define it"),
            Self::OtherId { found } => write!(f, "is module \"{found}\"; load it by that ID"),
        }
    }
}

/// `a, b and c`
pub(super) fn list(f: &mut fmt::Formatter<'_>, paths: &[PathBuf]) -> fmt::Result {
    for (i, path) in paths.iter().enumerate() {
        let before = if i == 0 {
            ""
        } else if i + 1 < paths.len() {
            ", "
        } else {
            " and "
        };
        write!(f, "{before}{}", path.display())?;
    }
    Ok(())
}
