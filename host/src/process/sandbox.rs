//! The limits of modules' code towards the rest of the machine. It may not write files, start programs, trace or signal other
//! processes.
//!
//! A module is trusted code, but it may be wrong. So a process confines itself before it opens the first module, for good and
//! with all threads that it starts later:
//!
//! - Landlock: no file is opened for writing, made, renamed or removed, no device is controlled, and (from its version 6) no
//!   other process gets a signal. Files to write come as descriptors from the supervisor. `/dev/null` may be written.
//! - seccomp: no other program or process, no debugging of others, no mounts and namespaces, nothing of the kernel's own, no
//!   lower limits. The answer is EPERM. `clone3` is answered with ENOSYS, because a filter cannot see its flags, and libraries
//!   then use `clone`.
//! - `exit_group` is trapped, so that a module that calls `_exit` leaves the same record as one that dies by a signal
//!   ([`crash`](crate::module::crash)).
//!
//! Reading, connecting and look-ups of names stay as they are. A kernel without one of the two gives the other.
//!
//! The calls are made plainly. Three system calls with small structs and one table are less than a crate for each would ask us
//! to follow, and `libc` has their numbers.
#![allow(unsafe_code, reason = "system calls that no crate here wraps")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use libc::{c_int, c_long, c_ulong, sock_filter, sock_fprog};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use crate::module::crash::EXIT_MARK;

/// How a process is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The version of Landlock that holds its files, or why there is none.
    files: Option<Result<u32, String>>,
    /// Whether its system calls are filtered, or why not.
    calls: Option<Result<(), String>>,
}

/// Rules that not every process needs.
#[derive(Clone, Copy, Debug)]
pub struct SandboxTerms {
    /// `exit_group` is trapped. [`crash::install`](crate::module::crash::install) was called before; without, the process cannot
    /// end by itself.
    pub tells_exits: bool,
    /// New limits are refused.
    pub holds_limits: bool,
}

/// Confines this process. `NO_NEW_PRIVS` is set already. A failure is said by the result, and is no error: there are kernels
/// without, and services that forbid it.
pub fn confine(terms: SandboxTerms) -> Confinement {
    let text = |error: io::Error| error.to_string();
    Confinement { files: Some(hold_files().map_err(text)), calls: Some(filter_calls(terms).map_err(text)) }
}

impl Confinement {
    /// The missing parts of it, in words for the log.
    pub fn lacks(&self) -> Vec<String> {
        let files = match &self.files {
            Some(Ok(version)) => Self::lacks_of_version(*version),
            Some(Err(why)) => {
                vec![format!("files can be written, and processes signalled (no Landlock: {why})")]
            }
            None => Vec::new(),
        };
        let calls = self.calls.as_ref().and_then(|calls| calls.as_ref().err());
        let calls = calls.map(|why| format!("processes can be started (no seccomp: {why})"));
        files.into_iter().chain(calls).collect()
    }

    fn lacks_of_version(version: u32) -> Vec<String> {
        let since = [
            (TRUNCATES_SINCE, "files can be truncated"),
            (IOCTLS_SINCE, "devices can be controlled"),
            (SIGNALS_SINCE, "processes can be signalled"),
        ];
        let lacks = since.iter().filter(|(since, _)| version < *since);
        lacks
            .map(|(since, what)| format!("{what} (Landlock {version} of this kernel; {since} forbids it)"))
            .collect()
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("off");
        }
        match &self.files {
            Some(Ok(version)) => write!(f, "files by Landlock {version}")?,
            _ => f.write_str("files open")?,
        }
        f.write_str(if matches!(self.calls, Some(Ok(()))) { ", calls by seccomp" } else { ", calls open" })
    }
}

// ---- files --------------------------------------------------------------------------------------------------------------

/// Rights of Landlock, with the version that brought them.
const FILE_RIGHTS: [(u32, u64); 13] = [
    (1, WRITE_FILE),
    (1, 1 << 4),  // REMOVE_DIR
    (1, 1 << 5),  // REMOVE_FILE
    (1, 1 << 6),  // MAKE_CHAR
    (1, 1 << 7),  // MAKE_DIR
    (1, 1 << 8),  // MAKE_REG
    (1, 1 << 9),  // MAKE_SOCK
    (1, 1 << 10), // MAKE_FIFO
    (1, 1 << 11), // MAKE_BLOCK
    (1, 1 << 12), // MAKE_SYM
    (2, 1 << 13), // REFER
    (TRUNCATES_SINCE, 1 << 14),
    (IOCTLS_SINCE, 1 << 15),
];
const WRITE_FILE: u64 = 1 << 1;
const TRUNCATES_SINCE: u32 = 3;
const IOCTLS_SINCE: u32 = 5;
const SIGNALS_SINCE: u32 = 6;
/// Signals to processes outside.
const SCOPE_SIGNAL: u64 = 1 << 1;

const CREATE_RULESET_VERSION: c_ulong = 1;
const RULE_PATH_BENEATH: c_ulong = 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    access_fs: u64,
    access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Returns the version of Landlock.
fn hold_files() -> io::Result<u32> {
    let none: *const Ruleset = std::ptr::null();
    // SAFETY: asks for the version, which takes no struct.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, CREATE_RULESET_VERSION) };
    let version = u32::try_from(checked(version)?).map_err(io::Error::other)?;
    let rights =
        FILE_RIGHTS.iter().filter(|(since, _)| *since <= version).fold(0, |all, (_, right)| all | right);
    let ruleset = Ruleset {
        access_fs: rights,
        access_net: 0,
        scoped: if version >= SIGNALS_SINCE { SCOPE_SIGNAL } else { 0 },
    };
    // Older versions know a shorter struct, and take a longer one whose rest is zero.
    let size = size_of::<Ruleset>();
    // SAFETY: a struct of the size that is said.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0) };
    let made = c_int::try_from(checked(made)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made) };
    if let Ok(null) = openat(CWD, "/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        let rule = PathBeneath { allowed: WRITE_FILE, parent: null.as_raw_fd() };
        // SAFETY: the struct that this kind of rule asks for.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        };
        checked(added)?;
    }
    // SAFETY: takes a descriptor and no flags.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    Ok(version)
}

// ---- system calls -------------------------------------------------------------------------------------------------------

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: Option<u32> = None;

/// Calls that are answered with EPERM, whatever their arguments.
const REFUSED: &[c_long] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // Memory and descriptors of others.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The kernel's own.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // A filter of a thread's own could end it at its next call.
    libc::SYS_seccomp,
];

/// Where `struct seccomp_data` has the number of the call, the architecture, and
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

/// half of an argument: the lower one, and the upper one.
const fn low(argument: u32) -> u32 {
    16 + 8 * argument + if cfg!(target_endian = "big") { 4 } else { 0 }
}
const fn high(argument: u32) -> u32 {
    16 + 8 * argument + if cfg!(target_endian = "big") { 0 } else { 4 }
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;

/// An instruction: `if_true` and `if_false` are how many to leave out.
fn instruction(code: u16, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { code, jt: if_true, jf: if_false, k }
}

fn load(at: u32) -> sock_filter {
    instruction(LOAD, at, 0, 0)
}

fn answer(answer: u32) -> sock_filter {
    instruction(RETURN, answer, 0, 0)
}

/// The next instructions are for this call only, and there are so many.
fn of_call(number: c_long, n: u8) -> sock_filter {
    instruction(IF_EQUAL, number as u32, 0, n)
}

fn filter(architecture: u32, terms: SandboxTerms) -> Vec<sock_filter> {
    let mut filter = vec![
        load(ARCHITECTURE_AT),
        // Calls of another architecture have other numbers.
        instruction(IF_EQUAL, architecture, 1, 0),
        answer(UNKNOWN),
        load(NUMBER_AT),
    ];
    if cfg!(target_arch = "x86_64") {
        // And so have those of x32.
        filter.extend([instruction(IF_LEAST, 0x4000_0000, 0, 1), answer(UNKNOWN)]);
    }
    filter.extend(REFUSED.iter().flat_map(|number| [of_call(*number, 1), answer(REFUSE)]));
    filter.extend([of_call(libc::SYS_clone3, 1), answer(UNKNOWN)]);
    filter.extend([
        of_call(libc::SYS_clone, 4),
        load(low(0)),
        instruction(IF_ANY_BIT, libc::CLONE_THREAD as u32, 0, 1),
        answer(ALLOW),
        answer(REFUSE),
    ]);
    filter.extend([
        of_call(libc::SYS_prctl, 4),
        load(low(0)),
        instruction(IF_EQUAL, libc::PR_SET_SECCOMP as u32, 0, 1),
        answer(REFUSE),
        answer(ALLOW),
    ]);
    if terms.holds_limits {
        filter.extend(hold_limits());
    }
    if terms.tells_exits {
        filter.extend([
            of_call(libc::SYS_exit_group, 4),
            load(high(0)),
            instruction(IF_EQUAL, EXIT_MARK, 0, 1),
            answer(ALLOW),
            answer(TRAP),
        ]);
    }
    filter.push(answer(ALLOW));
    filter
}

/// The next connection would find no descriptor, or no memory.
fn hold_limits() -> [sock_filter; 9] {
    [
        of_call(libc::SYS_setrlimit, 1),
        answer(REFUSE),
        // The third argument is a pointer to new limits.
        of_call(libc::SYS_prlimit64, 6),
        load(low(2)),
        instruction(IF_EQUAL, 0, 0, 3),
        load(high(2)),
        instruction(IF_EQUAL, 0, 0, 1),
        answer(ALLOW),
        answer(REFUSE),
    ]
}

fn filter_calls(terms: SandboxTerms) -> io::Result<()> {
    let Some(architecture) = ARCHITECTURE else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not known for this processor"));
    };
    let mut filter = filter(architecture, terms);
    let program = sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    let mode = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    // The log's thread, too, which is there already.
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // SAFETY: a program that lives until the call returns; the kernel checks it.
    match checked(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) })? {
        0 => Ok(()),
        thread => Err(io::Error::other(format!("thread {thread} cannot have the filter"))),
    }
}

fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_kernel_is_told_by_what_it_leaves_open() {
        let of = |version: u32| Confinement { files: Some(Ok(version)), calls: Some(Ok(())) }.lacks();
        assert_eq!(of(SIGNALS_SINCE), Vec::<String>::new());
        assert_eq!(of(5), ["processes can be signalled (Landlock 5 of this kernel; 6 forbids it)"]);
        assert_eq!(of(1).len(), 3);
        let none = Confinement { files: Some(Err("off".into())), calls: Some(Err("off".into())) };
        assert_eq!(none.lacks().len(), 2);
        assert_eq!(Confinement::default().lacks(), Vec::<String>::new(), "it is off by configuration");
    }
}
