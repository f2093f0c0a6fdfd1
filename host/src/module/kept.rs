//! Copies of modules under names of their own (`module_files`), for tools that read the name of a mapping: perf and valgrind open
//! the file that it names, and memory has none.
//!
//! A name has the hash of the bytes, so that generations share a copy, and nobody writes to one that is in use.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Access, Mode, OFlags};

use crate::module::Hex;
use crate::module::image::Image;
use crate::module::refusal::LoadRefusal;
use crate::os::trusted_path::{LastName, SafePath};

/// Bytes of the hash that are in a name: enough to tell the builds of one module apart. A file that is opened is compared whole.
const HASH_BYTES: usize = 8;

/// Whether a module could be put into this folder, which nothing is done to.
///
/// # Errors
/// As [`keep`].
pub(super) fn check((folder, id, sha256): (&Path, &str, &[u8; 32])) -> Result<(), LoadRefusal> {
    let path = folder.join(name(id, sha256));
    find(&path)?;
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| LoadRefusal::Kept { path, error: error.into() })
}

fn name(id: &str, sha256: &[u8; 32]) -> String {
    format!("{id}-{}.so", Hex(&sha256[..HASH_BYTES]))
}

/// The place of a copy, if nobody else can change it.
fn find(path: &Path) -> Result<SafePath, LoadRefusal> {
    let refused = |text: String| LoadRefusal::Kept { path: path.to_owned(), error: io::Error::other(text) };
    let place = SafePath::find(path, LastName::Itself).map_err(|error| refused(error.to_string()))?;
    match place.distrust() {
        Some(distrust) => {
            Err(refused(format!("{distrust}; code is kept only where nobody else can change it")))
        }
        None => Ok(place),
    }
}

/// Puts a module into this folder and opens it there. `pour` writes its bytes to a file, `hash` is that of a file's bytes.
///
/// # Errors
/// The folder cannot be used, or others could change its files.
pub(super) fn keep(
    (folder, id, sha256): (&Path, &str, &[u8; 32]),
    pour: impl FnOnce(&mut File) -> Result<[u8; 32], LoadRefusal>,
    hash: impl Fn(&File) -> Result<[u8; 32], LoadRefusal>,
) -> Result<Image, LoadRefusal> {
    let path = folder.join(name(id, sha256));
    let refused = |error: io::Error| LoadRefusal::Kept { path: path.clone(), error };
    let place = find(&path)?;
    // Not to wait for the other end where somebody has made a pipe of it.
    let open = || place.open(OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
    if let Ok(kept) = open()
        && kept.metadata().is_ok_and(|metadata| metadata.is_file())
        && hash(&kept).is_ok_and(|hash| hash == *sha256)
    {
        return Ok(Image::from(OwnedFd::from(kept)));
    }
    let suffix = format!(".{}", std::process::id());
    let new = place.sibling(&suffix).map_err(refused)?;
    // One that an earlier process of this number left.
    let _ = new.remove();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = new.open(flags, Mode::from_raw_mode(0o555)).map_err(refused)?;
    let mut new_path = path.clone().into_os_string();
    new_path.push(suffix);
    let renamed = pour(&mut file).and_then(|_| std::fs::rename(new_path, &path).map_err(refused));
    if let Err(refusal) = renamed {
        let _ = new.remove();
        return Err(refusal);
    }
    open().map(|kept| Image::from(OwnedFd::from(kept))).map_err(refused)
}
