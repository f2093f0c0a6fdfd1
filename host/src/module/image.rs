//! The private copy of a module's file. The checked bytes are the ones that run; the file itself may change meanwhile.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::module::refusal::LoadRefusal;

/// A copy that nobody can change, not even this process.
#[derive(Debug)]
pub(super) struct Image {
    file: OwnedFd,
}

impl Image {
    /// Fills sealed memory, which has the module's name in `/proc/self/maps` and in crash reports. Returns the result of
    /// `fill` too.
    pub(super) fn in_memory<T>(
        name: &str,
        fill: impl FnOnce(&mut File) -> Result<T, LoadRefusal>,
    ) -> Result<(Self, T), LoadRefusal> {
        // The kernel takes a longer name than any ID of a module that loads.
        let name: String = name.chars().filter(|c| *c != '\0').take(60).collect();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Since Linux 6.3 memory to be run needs the flag EXEC; older kernels do not know it.
        let file = match memfd_create(name.as_str(), flags | MemfdFlags::EXEC) {
            Err(Errno::INVAL) => memfd_create(name.as_str(), flags),
            other => other,
        };
        let mut file = File::from(file.map_err(|error| LoadRefusal::Copy(error.into()))?);
        let filled = fill(&mut file)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(|error| LoadRefusal::Copy(error.into()))?;
        Ok((Self { file: file.into() }, filled))
    }

    /// Fills a file that only this user can reach, for machines whose policy forbids running memory. The file has no name
    /// when this returns.
    pub(super) fn in_file<T>(
        folders: &[PathBuf],
        fill: impl Fn(&mut File) -> Result<T, LoadRefusal>,
    ) -> Result<(Self, T), LoadRefusal> {
        let mut last =
            LoadRefusal::Copy(io::Error::new(io::ErrorKind::NotFound, "no folder for private files"));
        for folder in folders {
            match Self::in_folder(folder, &fill) {
                Err(LoadRefusal::Copy(error)) => last = LoadRefusal::Copy(error),
                other => return other,
            }
        }
        Err(last)
    }

    fn in_folder<T>(
        parent: &Path,
        fill: impl FnOnce(&mut File) -> Result<T, LoadRefusal>,
    ) -> Result<(Self, T), LoadRefusal> {
        // A folder of its own, so that nobody can put another file in the name's place before it is opened again. The
        // file is opened again because a file that is open for writing may not be run, and this one never shall change.
        let folder = private_folder(parent).map_err(LoadRefusal::Copy)?;
        let path = folder.join("module.so");
        let copy = OpenOptions::new()
            .write(true)
            .create_new(true)
            // Once the folder is gone nobody finds it. A worker that became another user has to run it.
            .mode(0o555)
            .open(&path)
            .map_err(LoadRefusal::Copy)
            .and_then(|mut file| fill(&mut file))
            .and_then(|filled| Ok((File::open(&path).map_err(LoadRefusal::Copy)?, filled)));
        // Without the name it goes away with the process. A file that cannot be removed stays, but harms nobody.
        let _ = fs::remove_dir_all(&folder);
        let (file, filled) = copy?;
        Ok((Self { file: file.into() }, filled))
    }

    /// The copy's descriptor, for another process.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The same copy with a descriptor of its own.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// The copy as a file to read.
    pub(super) fn into_file(self) -> File {
        File::from(self.file)
    }

    /// Path for the dynamic linker, valid until the image is dropped. The linker remembers libraries by this path, so an opened
    /// image must stay open as long as the process: the next file with the same descriptor would be taken for this one.
    ///
    /// It has the number of this process in it, which is what `/proc/self` links to (in a PID namespace another one than the
    /// parent's). A debugger opens the path as well, and for it `/proc/self` is the debugger.
    pub(super) fn path(&self) -> PathBuf {
        let process = fs::read_link("/proc/self").unwrap_or_else(|_| PathBuf::from("self"));
        Path::new("/proc").join(process).join("fd").join(self.file.as_raw_fd().to_string())
    }
}

impl From<OwnedFd> for Image {
    /// Takes over a copy that another process made.
    fn from(file: OwnedFd) -> Self {
        Self { file }
    }
}

/// Folders for private files: the service's, the user's, and the one for all.
pub(super) fn private_folders() -> Vec<PathBuf> {
    // systemd gives several, separated by colons.
    let service = std::env::var_os("RUNTIME_DIRECTORY").and_then(|all| std::env::split_paths(&all).next());
    let user = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| *path != OsString::new()).map(PathBuf::from);
    service.into_iter().chain(user).chain([std::env::temp_dir()]).collect()
}

fn private_folder(parent: &Path) -> io::Result<PathBuf> {
    // In a shared folder others may have taken some of the names.
    for n in 0..1000 {
        let folder = parent.join(format!("trylist-{}-{n}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| folder),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "all names for a private file are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    fn code(file: &mut File) -> Result<(), LoadRefusal> {
        file.write_all(b"code").map_err(LoadRefusal::Copy)
    }

    #[test]
    fn nobody_can_change_a_copy_in_memory() {
        let (image, ()) = Image::in_memory("round_robin", code).unwrap();
        assert_eq!(fs::read(image.path()).unwrap(), b"code");
        let mut file = OpenOptions::new().write(true).open(image.path()).unwrap();
        assert_eq!(file.write(b"evil").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(file.set_len(0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let name = fs::read_link(image.path()).unwrap();
        assert!(name.to_str().unwrap().contains("memfd:round_robin"), "{}", name.display());
    }

    #[test]
    fn a_name_that_no_file_may_have_is_made_one() {
        assert!(Image::in_memory(&format!("a\0b{}", "x".repeat(1000)), code).is_ok());
    }

    #[test]
    fn a_copy_in_a_file_is_private_and_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [PathBuf::from("/nowhere"), folder.path().to_owned()];
        let (image, ()) = Image::in_file(&folders, code).unwrap();
        assert_eq!(fs::read(image.path()).unwrap(), b"code");
        assert_eq!(fs::metadata(image.path()).unwrap().permissions().mode() & 0o222, 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!((&File::from(image.file)).write(b"evil").is_err());
    }

    #[test]
    fn names_that_others_took_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(format!("trylist-{}-0", std::process::id()))).unwrap();
        assert!(Image::in_folder(folder.path(), code).is_ok());
    }
}
