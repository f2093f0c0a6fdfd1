//! From a line of `[load_module]` to a checked [`Module`]: the only place that opens files as code.
//!
//! [`read`] locates the file, checks who can change it (`owner`), makes a sealed copy (`image`) with its hash, and checks that it
//! is a library for this machine (`elf`). [`open`] then calls `dlopen`, and checks the envelope (abi_stable's root or the symbol
//! `lb_module`), the ABI version, the table of calls, the module's description of itself, and its ID. Code of the module runs
//! from `dlopen` on (a library's constructors), so every check that can come before it does.
#![allow(unsafe_code, reason = "opening a file as code, and reading what it exports")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use lb_api::export::{AbiHeaderRef, C_SYMBOL, ROOT_SYMBOL, open_root};
use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use lb_api::wire;
use libloading::os::unix::{Library as Opened, RTLD_LOCAL, RTLD_NOW};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use sha2::{Digest as _, Sha256};

use crate::config::ModuleFile;
use crate::module::board::{self, ModuleMark};
use crate::module::calls::Calls;
use crate::module::code::CodeRanges;
use crate::module::guarded;
use crate::module::image::{self, Image};
use crate::module::kept;
use crate::module::mapped::{can_be_read, is_mapped, is_readable};
use crate::module::refusal::{LoadError, LoadRefusal, MAX_FILE_BYTES, TABLE_BYTES};
use crate::module::wire::slice;
use crate::module::{Language, Library, Module, OneLine, TrylistLayout, elf, owner};

/// The private copy of a module's file, checked without running any of it. The copy is what is opened.
#[derive(Debug)]
pub struct Copied {
    /// The file that it was read from.
    pub file: PathBuf,
    /// Hash of its bytes.
    pub sha256: [u8; 32],
    image: Image,
}

/// Reads the file of the module that a configuration names.
///
/// # Errors
///
/// A refusal before the file is opened as code, as one line with file and reason.
pub fn read(request: &ModuleFile) -> Result<Copied, LoadError> {
    read_then(request, keep)
}

/// The same, and nothing is written to the folder of copies (`module_files`): only looks whether it could be.
///
/// # Errors
///
/// As [`read`].
pub fn read_to_check(request: &ModuleFile) -> Result<Copied, LoadError> {
    read_then(request, |folder, id, copied| {
        kept::check((folder, id, &copied.sha256))?;
        Ok(copied)
    })
}

fn read_then(
    request: &ModuleFile,
    keep: impl FnOnce(&Path, &str, Copied) -> Result<Copied, LoadRefusal>,
) -> Result<Copied, LoadError> {
    let error = |file: &Path, refusal| LoadError::of(request, file, refusal);
    let file =
        request.locate().map_err(|not_found| error(&request.file, LoadRefusal::NotFound(not_found)))?;
    let copied = copy(&file, &request.id, request.sha256);
    let kept = copied.and_then(|copied| match &request.kept_in {
        Some(folder) => keep(folder, &request.id, copied),
        None => Ok(copied),
    });
    kept.map_err(|refusal| error(&file, refusal))
}

/// The same copy under a name, which stays.
fn keep(folder: &Path, id: &str, copied: Copied) -> Result<Copied, LoadRefusal> {
    let Copied { file, sha256, image } = copied;
    let copy = image.into_file();
    let image = kept::keep((folder, id, &sha256), |to| pour(&copy, to), hash)?;
    Ok(Copied { file, sha256, image })
}

/// Opens the copy. `mark` identifies the module's calls to the supervisor, by the module's index in the configuration.
///
/// # Errors
///
/// A refusal after that.
pub fn open(request: &ModuleFile, copied: Copied, mark: ModuleMark) -> Result<Arc<Module>, LoadError> {
    let file = copied.file.clone();
    let module =
        load(copied, Some(&request.id), mark).map_err(|refusal| LoadError::of(request, &file, refusal))?;
    Ok(Arc::new(module))
}

/// Loads a file with any module ID, to show what it is.
///
/// # Errors
///
/// The reason why no configuration could load it.
pub fn inspect(file: &Path) -> Result<Arc<Module>, LoadError> {
    read_file(file).and_then(open_any)
}

/// Opens a copy with any module ID.
///
/// # Errors
///
/// As [`inspect`].
pub fn open_any(copied: Copied) -> Result<Arc<Module>, LoadError> {
    let file = copied.file.clone();
    let error = |refusal| LoadError { place: None, id: None, file, refusal };
    load(copied, None, ModuleMark::NONE).map(Arc::new).map_err(error)
}

/// Reads a file for [`open_any`], which may run as another user.
///
/// # Errors
///
/// As [`read`].
pub fn read_file(file: &Path) -> Result<Copied, LoadError> {
    let error = |refusal| LoadError { place: None, id: None, file: file.to_owned(), refusal };
    copy(file, "module", None).map_err(error)
}

impl Copied {
    /// Takes over a copy that another process made.
    pub(crate) fn from_parts(file: PathBuf, sha256: [u8; 32], image: OwnedFd) -> Self {
        Self { file, sha256, image: Image::from(image) }
    }

    /// The same where this process may run it: as it is, or copied once more, into a private file.
    ///
    /// # Errors
    ///
    /// No such file can be made.
    pub fn runnable(self) -> Result<Self, LoadRefusal> {
        Ok(Self { image: runnable(self.image)?, ..self })
    }

    /// The number of the copy's descriptor.
    pub fn number(&self) -> RawFd {
        self.image.fd().as_raw_fd()
    }

    /// The copy, to be handed on.
    pub(crate) fn image(&self) -> BorrowedFd<'_> {
        self.image.fd()
    }
}

const PIECE_BYTES: usize = 64 << 10;

fn copy(file: &Path, name: &str, pinned: Option<[u8; 32]>) -> Result<Copied, LoadRefusal> {
    let (opened, metadata) = open_file(file)?;
    if rustix::process::geteuid().is_root() {
        owner::check(file, &metadata, 0).map_err(LoadRefusal::Exposed)?;
    }
    let fill = |to: &mut File| pour(&opened, to);
    let (image, sha256) = match Image::in_memory(name, fill) {
        Err(LoadRefusal::Copy(_)) => Image::in_file(&image::private_folders(), fill)?,
        other => other?,
    };
    if let Some(pinned) = pinned.filter(|pinned| *pinned != sha256) {
        return Err(LoadRefusal::OtherHash { pinned: pinned.into(), found: sha256.into() });
    }
    let copied = image.try_clone().map_err(LoadRefusal::Copy)?.into_file();
    elf::check(&copied).map_err(LoadRefusal::NoLibrary)?;
    Ok(Copied { file: file.to_owned(), sha256, image })
}

fn load(copied: Copied, id: Option<&str>, mark: ModuleMark) -> Result<Module, LoadRefusal> {
    let Copied { file, sha256, image } = copied;
    let library = library(sha256, image, mark)?;
    match id {
        Some(id) if id != &*library.id => Err(LoadRefusal::OtherId { found: library.id.clone() }),
        _ => Ok(Module { library, file, mark }),
    }
}

fn open_file(path: &Path) -> Result<(File, Metadata), LoadRefusal> {
    // Not to wait for the other end where the path names a pipe.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file =
        OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(LoadRefusal::Unreadable)?;
    let metadata = file.metadata().map_err(LoadRefusal::Unreadable)?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(LoadRefusal::NoFile) }
}

/// Copies a file and says its hash. It goes piece by piece: a supervisor that had held whole modules in memory of its own
/// would keep that memory, and be the first that the kernel kills for want of it.
fn pour(from: &File, to: &mut File) -> Result<[u8; 32], LoadRefusal> {
    read_all(from, |piece| to.write_all(piece))
}

fn hash(file: &File) -> Result<[u8; 32], LoadRefusal> {
    read_all(file, |_| Ok(()))
}

/// The hash of a file's bytes, which are passed to `take` piece by piece.
fn read_all(from: &File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<[u8; 32], LoadRefusal> {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut hash, mut at) = (Sha256::new(), 0);
    loop {
        let n = match from.read_at(&mut piece, at) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(LoadRefusal::Unreadable(error)),
        };
        at += n as u64;
        if at > MAX_FILE_BYTES {
            return Err(LoadRefusal::TooLarge);
        }
        hash.update(&piece[..n]);
        take(&piece[..n]).map_err(LoadRefusal::Copy)?;
    }
}

/// By hash, for as long as the process lives.
static OPENED: Mutex<Option<HashMap<[u8; 32], &'static Library>>> = Mutex::new(None);

/// Opens a library, or finds that these very bytes are open: a process that builds several configurations one after
/// another (as tests do) has each module once.
fn library(sha256: [u8; 32], image: Image, mark: ModuleMark) -> Result<&'static Library, LoadRefusal> {
    // Held while the library is opened, so that two threads do not open it twice. A panic leaves the map whole.
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let opened = opened.get_or_insert_default();
    if let Some(library) = opened.get(&sha256) {
        return Ok(library);
    }
    let mark = mark.long();
    let exports = dlopen(image, mark)?;
    let (language, table) = exports.table(mark)?;
    let calls = Calls::from_table(&table).map_err(LoadRefusal::NoCall)?;
    let info = ModuleInfo::ask(&table, mark)?;
    let library: &'static Library = Box::leak(Box::new(Library {
        id: info.id,
        version: info.version,
        summary: info.summary,
        abi: (table.abi_major, table.abi_minor),
        language,
        trylist: info.trylist,
        sha256,
        calls,
        code: exports.code(),
    }));
    opened.insert(sha256, library);
    Ok(library)
}

/// The symbols of an opened library, which is never closed.
struct Exports(&'static Opened);

fn dlopen(image: Image, mark: ModuleMark) -> Result<Exports, LoadRefusal> {
    dlopen_image(runnable(image)?, mark)
}

fn runnable(image: Image) -> Result<Image, LoadRefusal> {
    if may_run(&image) {
        return Ok(image);
    }
    // The policy allows memory files but does not allow running them (SELinux, a noexec mount of shared memory).
    let copy = image.into_file();
    let (in_file, _) = Image::in_file(&image::private_folders(), |to| pour(&copy, to))?;
    Ok(in_file)
}

/// Whether the system lets this process run the image. It is mapped as code once, as the linker is about to do.
fn may_run(image: &Image) -> bool {
    let opened = match File::open(image.path()) {
        Ok(opened) => opened,
        Err(error) => return error.kind() != io::ErrorKind::PermissionDenied,
    };
    let len = 1;
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that nobody changes.
    match unsafe {
        mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, &opened, 0)
    } {
        Ok(mapping) => {
            // SAFETY: the mapping from above, of which no reference was made. If it stayed, it would cost a page.
            let _ = unsafe { munmap(mapping, len) };
            true
        }
        // Any other error is the linker's to report.
        Err(error) => !matches!(error, Errno::ACCESS | Errno::PERM),
    }
}

fn dlopen_image(image: Image, mark: ModuleMark) -> Result<Exports, LoadRefusal> {
    let path = image.path();
    // SAFETY: a library's constructors are code of the module, which is trusted: the operator named the file, and it is
    // what was checked, because the image cannot change.
    let open = || unsafe { Opened::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
    let opened = board::inside(mark, || guarded::around(open));
    let opened = opened.map_err(|error| {
        // The linker names the file by its descriptor, which means nothing to the reader.
        let text = error_text(&error).replace(&format!("{}: ", path.display()), "");
        LoadRefusal::Linker(OneLine(text.as_bytes()).to_string())
    })?;
    std::mem::forget(image);
    Ok(Exports(Box::leak(Box::new(opened))))
}

/// The linker's own text, if there is any. It is shown as a detail; nothing is decided by it.
fn error_text(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Exports {
    /// Where the library's code is, found by the symbol that it is a module by.
    fn code(&self) -> CodeRanges {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let address = |symbol: &str| {
            // SAFETY: only the symbol's own address is used, whatever is there.
            let symbol = unsafe { self.0.get::<*const c_void>(symbol) };
            symbol.ok().map(|symbol| symbol.as_raw_ptr().addr() as u64)
        };
        let address = address(ROOT_SYMBOL).or_else(|| address(C_SYMBOL));
        address.map_or_else(CodeRanges::default, |address| CodeRanges::around(&maps, address))
    }

    fn table(&self, mark: ModuleMark) -> Result<(Language, wire::Module), LoadRefusal> {
        // SAFETY: what stands under this name is a header of abi_stable, or the file was forged.
        if let Ok(header) = unsafe { self.0.get::<AbiHeaderRef>(ROOT_SYMBOL) } {
            return board::inside(mark, || open_root(*header))
                .map(|table| (Language::Rust, table))
                .map_err(LoadRefusal::Root);
        }
        // SAFETY: a pointer to data; what is there is checked before it is read.
        match unsafe { self.0.get::<*const *const wire::Module>(C_SYMBOL) } {
            Ok(symbol) => c_table(*symbol).map(|table| (Language::C, table)),
            Err(_) => Err(LoadRefusal::NoModule),
        }
    }
}

/// Reads the table of a C module, of which this host may know more calls than the module does.
pub(crate) fn c_table(symbol: *const *const wire::Module) -> Result<wire::Module, LoadRefusal> {
    // The usual mistake is to export the table itself and not a pointer to it; to follow what then stands in the
    // pointer's place would end the process.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let readable = |at: *const c_void, len| maps.is_empty() || is_readable(&maps, at.addr(), len);
    if !readable(symbol.cast(), size_of::<*const c_void>()) || !symbol.is_aligned() {
        return Err(LoadRefusal::NoTable);
    }
    // SAFETY: readable and aligned.
    let table = unsafe { *symbol };
    const HEAD: usize = offset_of!(wire::Module, reserved);
    if table.is_null() || !table.is_aligned() || !readable(table.cast(), HEAD) {
        return Err(LoadRefusal::NoTable);
    }
    // SAFETY: readable up to `HEAD`. Size and version stand at the same place in every ABI that there will be.
    let (size, major, minor) = unsafe {
        (
            (&raw const (*table).size).read(),
            (&raw const (*table).abi_major).read(),
            (&raw const (*table).abi_minor).read(),
        )
    };
    check_abi(major, minor)?;
    if (size as usize) < TABLE_BYTES {
        return Err(LoadRefusal::ShortTable { size });
    }
    if !readable(table.cast(), size as usize) {
        return Err(LoadRefusal::NoTable);
    }
    // SAFETY: readable up to the size of the first release's table, whose `info` this is.
    let info = unsafe { (&raw const (*table).info).read() };
    if info.is_some_and(|info| !maps.is_empty() && !is_mapped(&maps, (info as *const ()).addr(), 1, 'x')) {
        return Err(LoadRefusal::NoTable);
    }
    let mut copy = MaybeUninit::<wire::Module>::zeroed();
    let len = (size as usize).min(size_of::<wire::Module>());
    // SAFETY: `len` bytes are readable there and fit here. Bytes beyond the copy are null, which means an absent call.
    Ok(unsafe {
        ptr::copy_nonoverlapping(table.cast::<u8>(), copy.as_mut_ptr().cast(), len);
        copy.assume_init()
    })
}

/// The ABI's rule; see [`lb_api::version`].
fn check_abi(major: u32, minor: u32) -> Result<(), LoadRefusal> {
    // `ABI_MINOR` may be 0, but will not stay so.
    #[allow(clippy::absurd_extreme_comparisons, reason = "the minor number rises")]
    if major == ABI_MAJOR && minor <= ABI_MINOR {
        Ok(())
    } else {
        Err(LoadRefusal::OtherAbi { major, minor })
    }
}

/// A module's description of itself, checked.
pub(crate) struct ModuleInfo {
    pub(crate) id: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) summary: Box<str>,
    pub(crate) trylist: TrylistLayout,
}

/// Longest of the texts that a module says of itself.
const MAX_TEXT: usize = 512;

/// Largest trylist: one a request, so that many of them must fit. Larger state belongs on the heap, by need.
const MAX_TRYLIST: usize = 64 << 10;

impl ModuleInfo {
    fn ask(table: &wire::Module, mark: ModuleMark) -> Result<Self, LoadRefusal> {
        let ask = table.info.ok_or(LoadRefusal::NoCall("info"))?;
        let absent = wire::Str { ptr: ptr::null(), len: 0 };
        let mut info = wire::Info {
            size: size_of::<wire::Info>() as u32,
            abi_major: 0,
            abi_minor: 0,
            trylist_size: 0,
            trylist_align: 0,
            reserved: 0,
            id: absent,
            version: absent,
            summary: absent,
        };
        // SAFETY: the call is of the type that the ABI gives it, and `info` of the size that it says.
        let ask = || unsafe { ask(&raw mut info) };
        match board::inside(mark, || guarded::around(ask)) {
            wire::STATUS_OK => {}
            wire::STATUS_PANICKED => return Err(LoadRefusal::Info("panicked in info".into())),
            status => return Err(LoadRefusal::Info(format!("info returned status {status}"))),
        }
        Self::check(&info, (table.abi_major, table.abi_minor))
    }

    /// Checks the description of a module whose table has this ABI.
    ///
    /// # Errors
    ///
    /// The first part of it that is invalid.
    pub(crate) fn check(info: &wire::Info, abi: (u32, u32)) -> Result<Self, LoadRefusal> {
        let (major, minor) = (info.abi_major, info.abi_minor);
        if (major, minor) != abi {
            return Err(LoadRefusal::Info(format!(
                "its table has ABI {}.{}, its info {major}.{minor}; rebuild the whole module",
                abi.0, abi.1
            )));
        }
        for (what, text) in [("ID", &info.id), ("version", &info.version), ("summary", &info.summary)] {
            let at = text.ptr.addr();
            if text.len > MAX_TEXT || (!text.ptr.is_null() && !can_be_read(at, text.len)) {
                return Err(LoadRefusal::Info(format!(
                    "its {what} is not a readable text of at most {MAX_TEXT} bytes"
                )));
            }
        }
        // SAFETY: the ABI promises static text, and what is no text at all was found out above.
        let (id, version, summary) = unsafe { (slice(&info.id), slice(&info.version), slice(&info.summary)) };
        Ok(Self {
            id: id_of(id)?,
            version: text_of("version", version)?,
            summary: text_of("summary", summary)?,
            trylist: trylist_of(info.trylist_size as usize, info.trylist_align as usize)?,
        })
    }
}

fn id_of(id: &[u8]) -> Result<Box<str>, LoadRefusal> {
    let is_snake = |id: &str| {
        id.starts_with(|c: char| c.is_ascii_lowercase())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    match std::str::from_utf8(id) {
        Ok(id) if is_snake(id) => Ok(id.into()),
        _ => Err(LoadRefusal::Info(format!("its ID \"{}\" is not snake_case", OneLine(id)))),
    }
}

fn text_of(what: &str, text: &[u8]) -> Result<Box<str>, LoadRefusal> {
    match std::str::from_utf8(text) {
        Ok(_) => Ok(OneLine(text).to_string().into()),
        Err(_) => Err(LoadRefusal::Info(format!("its {what} is not UTF-8: \"{}\"", OneLine(text)))),
    }
}

fn trylist_of(size: usize, align: usize) -> Result<TrylistLayout, LoadRefusal> {
    if !align.is_power_of_two() || align > wire::TRYLIST_ALIGN {
        let most = wire::TRYLIST_ALIGN;
        return Err(LoadRefusal::Info(format!(
            "its trylist has alignment {align}, expected a power of two up to {most}"
        )));
    }
    if size > MAX_TRYLIST {
        return Err(LoadRefusal::Info(format!(
            "its trylist has {size} bytes, expected at most {MAX_TRYLIST}; keep the rest on the heap"
        )));
    }
    Ok(TrylistLayout { size, align })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    use rustix::fs::StatVfsMountFlags;

    /// The library that `cc` makes of this C, as a file that has no name any more.
    fn library_of(c: &str) -> File {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("x.c"), folder.path().join("x.so"));
        std::fs::write(&source, c).unwrap();
        let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(cc.unwrap().success());
        File::open(library).unwrap()
    }

    fn in_memory(library: &File) -> Image {
        Image::in_memory("x", |to| pour(library, to)).unwrap().0
    }

    /// Where this test may be run from, so may a library be.
    fn folder() -> PathBuf {
        std::env::current_exe().unwrap().parent().unwrap().to_owned()
    }

    #[test]
    fn a_private_file_can_be_opened_where_memory_cannot() {
        let library = library_of("int answer = 42;");
        let (image, _) = Image::in_file(&[folder()], |to| pour(&library, to)).unwrap();
        let exports = dlopen_image(image, ModuleMark::NONE).unwrap();
        // SAFETY: an `int`, as written above.
        assert_eq!(unsafe { **exports.0.get::<*const i32>("answer").unwrap() }, 42);
    }

    #[test]
    fn what_may_run_is_what_the_system_lets_be_mapped_as_code() {
        assert!(may_run(&in_memory(&library_of("int answer = 42;"))));
        // A folder cannot be mapped for another reason than a policy: the linker is left to say which.
        assert!(may_run(&Image::from(OwnedFd::from(File::open("/").unwrap()))));
        if let Some(refused) = file_on_a_noexec_mount() {
            assert!(!may_run(&Image::from(OwnedFd::from(refused))));
        }
    }

    #[test]
    fn a_library_that_may_not_run_where_it_is_runs_from_a_private_file() {
        let Some(mut refused) = file_on_a_noexec_mount() else { return };
        pour(&library_of("int answer = 42;"), &mut refused).unwrap();
        let exports = dlopen(Image::from(OwnedFd::from(refused)), ModuleMark::NONE).unwrap();
        // SAFETY: an `int`, as written above.
        assert_eq!(unsafe { **exports.0.get::<*const i32>("answer").unwrap() }, 42);
    }

    /// A new file where nothing may be run, if this machine has such a place that we can write to.
    fn file_on_a_noexec_mount() -> Option<File> {
        let is_noexec = |folder: &&str| {
            rustix::fs::statvfs(*folder).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::NOEXEC))
        };
        let folder = ["/dev/shm", "/run", "/run/lock", "/tmp"].into_iter().find(is_noexec);
        let file = folder.and_then(|folder| tempfile::tempfile_in(folder).ok());
        if file.is_none() {
            eprintln!("skipped: no folder here is mounted noexec");
        }
        file
    }

    #[test]
    fn two_libraries_are_two_though_their_images_came_one_after_the_other() {
        for answer in [1, 2] {
            let library = library_of(&format!("int answer = {answer};"));
            let exports = dlopen(in_memory(&library), ModuleMark::NONE).unwrap();
            // SAFETY: an `int`, as written above.
            assert_eq!(unsafe { **exports.0.get::<*const i32>("answer").unwrap() }, answer);
        }
    }

    #[test]
    fn the_same_bytes_are_opened_once() {
        let file = library_of("int nothing_of_interest;");
        let sha256 = [7; 32];
        let image = || in_memory(&file);
        assert!(matches!(library(sha256, image(), ModuleMark::NONE), Err(LoadRefusal::NoModule)));
        let known = Box::leak(Box::new(Library {
            id: "x".into(),
            version: "1".into(),
            summary: "".into(),
            abi: (1, 0),
            language: Language::C,
            trylist: TrylistLayout { size: 0, align: 1 },
            sha256,
            calls: crate::module::balancer::tests::NOTHING,
            code: CodeRanges::default(),
        }));
        OPENED.lock().unwrap().get_or_insert_default().insert(sha256, known);
        assert!(ptr::eq(library(sha256, image(), ModuleMark::NONE).unwrap(), known));
    }

    #[test]
    fn takes_its_own_minor_and_every_lower_one_of_its_major() {
        for minor in 0..=ABI_MINOR {
            assert!(check_abi(ABI_MAJOR, minor).is_ok());
        }
        for (major, minor) in [(ABI_MAJOR, ABI_MINOR + 1), (ABI_MAJOR + 1, 0), (ABI_MAJOR - 1, 0)] {
            assert!(check_abi(major, minor).is_err());
        }
    }
}
