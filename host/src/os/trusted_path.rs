//! The target of a path, and the users who could redirect it.
//!
//! A supervisor that is root makes and changes files by name: sockets, logs, the pid file. If somebody else may write to a
//! folder on the way, they can put a symbolic link there, and root would follow it to any file of root's. So paths are
//! walked here, one name at a time and by descriptor, under one rule:
//!
//! - A link is followed only where it, and every folder on the way to it, belongs to root or to this process's user and is
//!   not writable by anybody else. Thus `/var/run`, which is root's own link in root's own folder, keeps working.
//! - A folder with the sticky bit (`/tmp`) may be writable by all: nobody can rename or remove what others own there, and
//!   the next name on the way is checked by itself. Access lists count too, since their mask shows as the group's bits.
//! - Behind the first folder that somebody else could change nothing is trusted any more, and no link is followed.
//!
//! A [`SafePath`] holds the folder at its end by a descriptor, so the folder that was checked is the one that is used.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, accessat, statat, unlinkat};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, fstatfs, mkdirat, openat, readlinkat};
use rustix::io::Errno;

const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;
const ROOT: u32 = 0;
/// As in the kernel's own walk.
const MAX_LINKS: usize = 40;
/// File systems whose links the kernel makes up (`/proc/self/fd/1`): their targets need not exist as paths.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// The way to a name in a folder.
#[derive(Debug)]
pub(crate) struct SafePath {
    folder: OwnedFd,
    name: OsString,
    distrust: Option<Distrust>,
    /// Others may make files in the folder, if not change ours.
    is_shared: bool,
    /// The name is a link of the kernel's own, which only the kernel can follow.
    is_magic: bool,
}

/// The first folder or link on the way that somebody else could change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Distrust {
    /// Which one.
    pub(crate) path: PathBuf,
    /// A link; else a folder.
    pub(crate) is_link: bool,
    /// How.
    pub(crate) why: DistrustCause,
}

/// Why others could change a folder or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DistrustCause {
    /// The user that it belongs to.
    BelongsTo(u32),
    /// Others, by its mode.
    WritableByOthers(u32),
}

/// The reason why a path cannot be used.
#[derive(Debug)]
pub(crate) enum PathError {
    /// An error of the system.
    System(io::Error),
    /// There is a link that is not followed.
    Link {
        /// Which one.
        link: PathBuf,
        /// The folder or link that others could change.
        by: Distrust,
    },
}

/// Whether the last name of a path may be a link that leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastName {
    /// Yes: it names a file to open.
    Follow,
    /// No: it names something to make, to bind or to remove.
    Itself,
}

impl SafePath {
    /// Walks to the folder of this path, for this process's user.
    ///
    /// # Errors
    /// A folder does not exist or cannot be entered, or there is a link that is not to be followed.
    pub(crate) fn find(path: &Path, last: LastName) -> Result<Self, PathError> {
        Self::find_for(path, last, rustix::process::geteuid().as_raw())
    }

    /// The same where `owner` and root alone are trusted.
    ///
    /// # Errors
    /// As [`SafePath::find`].
    pub(crate) fn find_for(path: &Path, last: LastName, owner: u32) -> Result<Self, PathError> {
        let mut ahead = parts(&std::path::absolute(path)?);
        let mut walk = Walk::begin(owner)?;
        while let Some(name) = ahead.pop() {
            if name == ".." {
                walk.go_up()?;
                continue;
            }
            let is_last = ahead.is_empty();
            if is_last && last == LastName::Itself {
                return Ok(walk.end(name, false));
            }
            let metadata = match statat(&walk.folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(metadata) => metadata,
                Err(Errno::NOENT) if is_last => return Ok(walk.end(name, false)),
                Err(error) => return Err(error.into()),
            };
            if FileType::from_raw_mode(metadata.st_mode) != FileType::Symlink {
                if is_last {
                    return Ok(walk.end(name, false));
                }
                walk.enter(&name)?;
                continue;
            }
            let is_magic = walk.is_in_proc()?;
            match walk.read_link(&name)? {
                _ if is_magic && is_last => return Ok(walk.end(name, true)),
                _ if is_magic => walk.enter_by_link(&name)?,
                target => {
                    if target.is_absolute() {
                        walk.go_to_root()?;
                    }
                    ahead.extend(parts(&target));
                }
            }
        }
        // The path ends with a folder: `/`, or `..`.
        Err(io::Error::from(io::ErrorKind::IsADirectory).into())
    }

    /// The first folder or link that others could change, if any.
    pub(crate) fn distrust(&self) -> Option<&Distrust> {
        self.distrust.as_ref()
    }

    /// Another name in the same folder: this one's with something behind it.
    ///
    /// # Errors
    /// Too many descriptors are open.
    pub(crate) fn sibling(&self, suffix: &str) -> io::Result<Self> {
        let mut name = self.name.clone();
        name.push(suffix);
        let (folder, distrust) = (self.folder.try_clone()?, self.distrust.clone());
        Ok(Self { folder, name, distrust, is_shared: self.is_shared, is_magic: false })
    }

    /// Opens the file. No link is followed, even if the name has become one since it was found.
    ///
    /// # Errors
    /// The system refuses; or the file has other names, where somebody else could have given it this one.
    pub(crate) fn open(&self, flags: OFlags, mode: Mode) -> io::Result<File> {
        let no_follow = if self.is_magic { OFlags::empty() } else { OFlags::NOFOLLOW };
        let file = openat(&self.folder, &self.name, flags | no_follow | OFlags::CLOEXEC, mode);
        let file = file.map_err(|error| match error {
            Errno::LOOP => io::Error::other("a symbolic link has been put in its place"),
            error => error.into(),
        })?;
        let metadata = fstat(&file)?;
        let is_file = FileType::from_raw_mode(metadata.st_mode) == FileType::RegularFile;
        if is_file && metadata.st_nlink > 1 && !self.is_magic && (self.is_shared || self.distrust.is_some()) {
            // A hard link to any file of root's is as good as a symbolic one.
            return Err(io::Error::other(format!(
                "the file has {} names (hard links), and others may write to its folder; remove it, or choose another folder",
                metadata.st_nlink
            )));
        }
        Ok(file.into())
    }

    /// Whether this user may make a file of this name.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_be_made(&self) -> io::Result<()> {
        Ok(accessat(&self.folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
    }

    /// Whether this user may write to the file of this name. A pipe is not opened for that: its reader would take our end of
    /// it for the end of the log.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_be_written(&self) -> io::Result<()> {
        match FileType::from_raw_mode(self.stat()?.st_mode) {
            // A link here is one of the kernel's own, which only opening follows.
            FileType::RegularFile | FileType::Symlink => {
                self.open(OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK, Mode::empty()).map(drop)
            }
            FileType::Directory => Err(io::ErrorKind::IsADirectory.into()),
            _ => Ok(accessat(&self.folder, &self.name, Access::WRITE_OK, AtFlags::EACCESS)?),
        }
    }

    /// The status of the file of this name; a link is not followed.
    ///
    /// # Errors
    /// Nothing has it.
    pub(crate) fn stat(&self) -> io::Result<Stat> {
        Ok(statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Removes the name.
    ///
    /// # Errors
    /// It cannot be removed, or nothing has it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        Ok(unlinkat(&self.folder, &self.name, AtFlags::empty())?)
    }

    /// Whether the name still belongs to `file`.
    pub(crate) fn is(&self, file: &Stat) -> bool {
        self.stat().is_ok_and(|now| (now.st_dev, now.st_ino) == (file.st_dev, file.st_ino))
    }

    /// The way to it for system calls that take only a path. This is `path` if nobody else can change its target. Otherwise it
    /// goes by the folder's descriptor, and is right for as long as this lives.
    pub(crate) fn path<'a>(&self, path: &'a Path) -> std::borrow::Cow<'a, Path> {
        if self.distrust.is_none() {
            return path.into();
        }
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(&self.name).into()
    }
}

/// Makes a folder, and those above it that do not exist yet, if nobody else can redirect the path.
///
/// # Errors
/// The system refuses, or there is a link that is not to be followed.
pub(crate) fn make_folders(path: &Path, mode: Mode) -> Result<(), PathError> {
    let path = std::path::absolute(path)?;
    let missing = path.ancestors().take_while(|folder| !folder.exists()).collect::<Vec<_>>();
    for folder in missing.into_iter().rev() {
        let way = SafePath::find(folder, LastName::Itself)?;
        match mkdirat(&way.folder, &way.name, mode) {
            // Another process was faster.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A path to the file of an `O_PATH` descriptor, for calls that take no such descriptor. It is right for as long as the
/// descriptor is open.
pub(crate) fn path_of(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

struct Walk {
    folder: OwnedFd,
    /// The folder by its name, with the links on the way resolved.
    at: PathBuf,
    owner: u32,
    distrust: Option<Distrust>,
    is_shared: bool,
    n_links: usize,
}

const A_FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Walk {
    fn begin(owner: u32) -> Result<Self, PathError> {
        let folder = openat(CWD, "/", A_FOLDER, Mode::empty())?;
        let at = PathBuf::from("/");
        let mut walk = Self { folder, at, owner, distrust: None, is_shared: false, n_links: 0 };
        walk.judge()?;
        Ok(walk)
    }

    fn end(self, name: OsString, is_magic: bool) -> SafePath {
        let Self { folder, distrust, is_shared, .. } = self;
        SafePath { folder, name, distrust, is_shared, is_magic }
    }

    fn enter(&mut self, name: &OsStr) -> Result<(), PathError> {
        // The folder may have become a link meanwhile.
        self.folder = openat(&self.folder, name, A_FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        self.at.push(name);
        self.judge()
    }

    fn enter_by_link(&mut self, name: &OsStr) -> Result<(), PathError> {
        self.folder = openat(&self.folder, name, A_FOLDER, Mode::empty())?;
        self.at.push(name);
        self.judge()
    }

    fn go_up(&mut self) -> Result<(), PathError> {
        self.folder = openat(&self.folder, "..", A_FOLDER, Mode::empty())?;
        self.at.pop();
        self.judge()
    }

    fn go_to_root(&mut self) -> Result<(), PathError> {
        self.folder = openat(CWD, "/", A_FOLDER, Mode::empty())?;
        self.at = PathBuf::from("/");
        self.judge()
    }

    fn trusts(&self, metadata: &Stat) -> bool {
        metadata.st_uid == self.owner || metadata.st_uid == ROOT
    }

    /// Looks at the folder that it has come to. A distrusted folder stays so, whatever comes behind it.
    fn judge(&mut self) -> Result<(), PathError> {
        let metadata = fstat(&self.folder)?;
        let is_writable = metadata.st_mode & WRITABLE_BY_OTHERS != 0;
        self.is_shared = is_writable;
        let why = if !self.trusts(&metadata) {
            DistrustCause::BelongsTo(metadata.st_uid)
        } else if is_writable && metadata.st_mode & STICKY == 0 {
            DistrustCause::WritableByOthers(metadata.st_mode & 0o7777)
        } else {
            return Ok(());
        };
        let at = &self.at;
        self.distrust.get_or_insert_with(|| Distrust { path: at.clone(), is_link: false, why });
        Ok(())
    }

    fn is_in_proc(&self) -> Result<bool, PathError> {
        Ok(fstatfs(&self.folder)?.f_type as i64 == PROC_SUPER_MAGIC)
    }

    /// The target of a link in this folder, if it may be followed.
    fn read_link(&mut self, name: &OsStr) -> Result<PathBuf, PathError> {
        let path = self.at.join(name);
        if let Some(by) = self.distrust.clone() {
            return Err(PathError::Link { link: path, by });
        }
        self.n_links += 1;
        if self.n_links > MAX_LINKS {
            return Err(io::Error::other("too many symbolic links").into());
        }
        let itself = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = openat(&self.folder, name, itself, Mode::empty())?;
        let metadata = fstat(&link)?;
        // In a folder that others may write to, only its owner can change a link.
        if !self.trusts(&metadata) {
            let why = DistrustCause::BelongsTo(metadata.st_uid);
            return Err(PathError::Link {
                by: Distrust { path: path.clone(), is_link: true, why },
                link: path,
            });
        }
        let target = readlinkat(&link, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(part).collect()
}

impl From<Errno> for PathError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl From<io::Error> for PathError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<PathError> for io::Error {
    fn from(error: PathError) -> Self {
        match error {
            PathError::System(error) => error,
            link @ PathError::Link { .. } => Self::other(link.to_string()),
        }
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => error.fmt(f),
            Self::Link { link, by } if by.is_link => {
                write!(f, "the symbolic link {} is not followed: it {}", link.display(), by.why)
            }
            Self::Link { link, by } => {
                write!(f, "the symbolic link {} is not followed: {by}", link.display())
            }
        }
    }
}

impl std::error::Error for PathError {}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_link { "link" } else { "folder" };
        write!(f, "{what} {} {}", self.path.display(), self.why)
    }
}

impl fmt::Display for DistrustCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BelongsTo(user) => write!(f, "belongs to user {user}"),
            Self::WritableByOthers(mode) => write!(f, "is writable by others (mode {mode:04o})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A folder of this user's, whatever rights those above it have: a temporary directory is sticky, or the user's own.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(folders: &[(&str, u32)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (name, mode) in folders {
                fs::create_dir_all(tree.path(name)).unwrap();
                fs::set_permissions(tree.path(name), fs::Permissions::from_mode(*mode)).unwrap();
            }
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn link(&self, target: &str, name: &str) {
            symlink(target, self.path(name)).unwrap();
        }

        fn find(&self, name: &str) -> Result<SafePath, PathError> {
            SafePath::find(&self.path(name), LastName::Follow)
        }

        /// Writes by the name, and says where that has gone.
        fn write(&self, name: &str) -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let mut file = self.find(name)?.open(flags, Mode::from_raw_mode(0o600))?;
            io::Write::write_all(&mut file, b"written")
        }
    }

    #[test]
    fn follows_links_that_nobody_else_could_change() {
        let tree = Tree::new(&[("a", 0o755), ("a/b", 0o755), ("c", 0o755)]);
        tree.link("../../c/log", "a/b/log");
        tree.link("../../c", "a/b/folder");
        tree.link(tree.path("a/b").to_str().unwrap(), "whole");
        for name in ["a/b/../../whole/folder/../a/b/../../c/log", "a/b/folder/log", "whole/log"] {
            let way = tree.find(name);
            // `..` is that of the folder itself, as in the kernel.
            let Ok(way) = way else { panic!("{name}: {way:?}") };
            assert_eq!((way.distrust(), &*way.name), (None, OsStr::new("log")), "{name}");
        }
        tree.write("a/b/log").unwrap();
        assert_eq!(fs::read_to_string(tree.path("c/log")).unwrap(), "written");
    }

    #[test]
    fn a_folder_of_others_may_hold_files_and_no_links() {
        let tree = Tree::new(&[("theirs", 0o777), ("theirs/sub", 0o755), ("mine", 0o755)]);
        tree.write("theirs/sub/log").unwrap();
        assert_eq!(fs::read_to_string(tree.path("theirs/sub/log")).unwrap(), "written");
        fs::write(tree.path("mine/victim"), "mine").unwrap();
        tree.link("../../mine/victim", "theirs/sub/link");
        tree.link("../mine", "theirs/folder");
        tree.link("theirs/sub/link", "outer");
        for name in ["theirs/sub/link", "theirs/folder/victim", "outer", "theirs/folder/../mine/victim"] {
            let error = tree.write(name).unwrap_err().to_string();
            let by = format!("folder {} is writable by others (mode 0777)", tree.path("theirs").display());
            assert!(error.starts_with("the symbolic link ") && error.ends_with(&by), "{name}: {error}");
        }
        assert_eq!(fs::read_to_string(tree.path("mine/victim")).unwrap(), "mine");
    }

    #[test]
    fn a_file_of_several_names_is_not_opened_where_others_could_have_given_it_one() {
        let tree = Tree::new(&[("theirs", 0o1777), ("mine", 0o755)]);
        fs::write(tree.path("mine/victim"), "mine").unwrap();
        for folder in ["theirs", "mine"] {
            fs::hard_link(tree.path("mine/victim"), tree.path(folder).join("log")).unwrap();
        }
        let error = tree.write("theirs/log").unwrap_err().to_string();
        assert!(error.starts_with("the file has 3 names (hard links)"), "{error}");
        tree.write("mine/log").unwrap();
    }

    #[test]
    fn a_link_that_comes_between_the_look_and_the_opening_is_not_followed() {
        let tree = Tree::new(&[("theirs", 0o777)]);
        fs::write(tree.path("victim"), "mine").unwrap();
        let way = tree.find("theirs/log").unwrap();
        tree.link("../victim", "theirs/log");
        let error = way.open(OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).unwrap_err().to_string();
        assert_eq!(error, "a symbolic link has been put in its place");
        // A folder that takes the place of the checked one is not used.
        fs::rename(tree.path("theirs"), tree.path("moved")).unwrap();
        fs::create_dir(tree.path("theirs")).unwrap();
        way.sibling(".lock").unwrap().open(OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
        assert!(tree.path("moved/log.lock").exists());
    }

    #[test]
    fn a_link_of_another_user_is_not_followed_even_where_nobody_could_replace_it() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can make links of others");
            return;
        }
        let tree = Tree::new(&[("shared", 0o1777)]);
        tree.link("../victim", "shared/log");
        std::os::unix::fs::lchown(tree.path("shared/log"), Some(65534), None).unwrap();
        let error = tree.write("shared/log").unwrap_err().to_string();
        assert!(error.ends_with("shared/log is not followed: it belongs to user 65534"), "{error}");
    }

    #[test]
    fn what_the_kernel_itself_links_to_is_opened() {
        let tree = Tree::new(&[]);
        let file = File::create(tree.path("log")).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened =
            SafePath::find(Path::new(&path), LastName::Follow).unwrap().open(OFlags::WRONLY, Mode::empty());
        io::Write::write_all(&mut opened.unwrap(), b"written").unwrap();
        assert_eq!(fs::read_to_string(tree.path("log")).unwrap(), "written");
        let null = SafePath::find(Path::new("/dev/null"), LastName::Follow).unwrap();
        null.open(OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, Mode::empty()).unwrap();
    }

    #[test]
    fn gives_up_on_links_in_a_circle() {
        let tree = Tree::new(&[]);
        tree.link("round", "round");
        assert_eq!(tree.find("round").unwrap_err().to_string(), "too many symbolic links");
    }

    #[test]
    fn makes_folders_where_there_are_none() {
        let tree = Tree::new(&[("a", 0o755)]);
        tree.link("a", "link");
        make_folders(&tree.path("link/b/c"), Mode::from_raw_mode(0o700)).unwrap();
        make_folders(&tree.path("link/b/c"), Mode::from_raw_mode(0o700)).unwrap();
        assert!(tree.path("a/b/c").is_dir());
    }
}
