//! Records which thread a fatal signal hit, and inside of which module.
//!
//! The handler writes one word to the [`Board`] and lets the process die by the same signal. So its parent and a core dump see
//! what they would see without the handler. The dump's stack is the one at fault.
#![allow(unsafe_code, reason = "signal handlers")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::module::board::{self, Board};
use crate::os::log_queue;

/// Signals that end the process. Traps are what `__builtin_trap` is on some machines, SYS is a system call
/// that a filter of the service manager forbids.
const FATAL: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

/// A handler needs little, but some kernels save much of the processor's state on its stack.
const STACK_BYTES: usize = 64 << 10;

/// In the upper half of the argument of `exit_group`, which the kernel does not read: a call that this file makes. The sandbox traps
/// those without it (`process::sandbox`).
pub(crate) const EXIT_MARK: u32 = u32::from_be_bytes(*b"exit");

static BOARD: AtomicPtr<Board> = AtomicPtr::new(ptr::null_mut());

/// From now on the board records a fatal signal, and an `exit` inside a module. To be called once, before a module is loaded; a
/// module may then install handlers of its own.
///
/// # Errors
///
/// The system does not take a handler.
pub fn install(board: &'static Board) -> io::Result<()> {
    BOARD.store(ptr::from_ref(board).cast_mut(), Ordering::Release);
    let mut action = handled_by(handle as *const () as usize);
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for signal in FATAL {
        // SAFETY: `handle` is of the type that SA_SIGINFO asks for, and does only what a handler may.
        check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    }
    // SAFETY: `exiting` does not unwind.
    match unsafe { libc::atexit(exiting) } {
        0 => Ok(()),
        _ => Err(io::ErrorKind::OutOfMemory.into()),
    }
}

/// Gives the calling thread a stack for signal handlers, so that an overflow of its own stack can be recorded. `std` does so
/// for each thread that it starts, unless this process was started with SIGSEGV ignored or handled.
pub(crate) fn ensure_alternate_stack() {
    let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: only asks. Zero is a valid value of the struct.
    let stack = unsafe {
        libc::sigaltstack(ptr::null(), stack.as_mut_ptr());
        &mut *stack.as_mut_ptr()
    };
    if stack.ss_flags & libc::SS_DISABLE == 0 {
        return;
    }
    let memory = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    *stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: nobody else uses the memory, and it stays for as long as the thread. Should the system refuse it, a handler
    // runs on the thread's own stack, and only an overflow of that is not told.
    unsafe { libc::sigaltstack(stack, ptr::null_mut()) };
}

/// Only what is safe in a signal handler: thread-local and shared words, system calls, and a short sleep while the log's
/// thread writes the last lines.
extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives a handler with SA_SIGINFO the context of the thread that it interrupted.
    let at = unsafe { context.as_ref() }.map(Interrupted::read).unwrap_or_default();
    if let Some(code) = at.exit.filter(|_| signal == libc::SIGSYS) {
        end(code, &at);
    }
    if let Some(board) = board() {
        board.record_signal(signal, at.ip);
    }
    log_queue::settle();
    let default = handled_by(libc::SIG_DFL);
    // SAFETY: system calls on values that live here. The same signal is sent again, as it came: it is blocked while its
    // handler runs, and ends the process at the return, where the thread was when it came.
    unsafe {
        libc::sigaction(signal, &raw const default, ptr::null_mut());
        if libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), libc::gettid(), signal, info) != 0 {
            libc::raise(signal);
        }
    }
}

/// Ends the process as a thread wanted to that called `exit_group` in its own way, and writes down who it was.
fn end(code: u64, at: &Interrupted) -> ! {
    if let Some(board) = board() {
        board.record_exit(at.ip, at.caller());
    }
    exit_group(code)
}

fn exit_group(code: u64) -> ! {
    log_queue::settle();
    let marked = u64::from(EXIT_MARK) << 32 | code & u64::from(u32::MAX);
    loop {
        // SAFETY: ends the process, and where a filter forbids even that, the thread stays here.
        unsafe { libc::syscall(libc::SYS_exit_group, marked) };
    }
}

/// A thread as a signal found it. All is 0 on processors that this file does not know.
#[derive(Default)]
struct Interrupted {
    /// Its instruction.
    ip: u64,
    /// The exit code that it would have ended the process with, if it was at that system call.
    exit: Option<u64>,
    /// Where the address is that the function which it was in returns to, or that address itself.
    back: u64,
}

impl Interrupted {
    #[cfg(target_arch = "x86_64")]
    fn read(context: &libc::ucontext_t) -> Self {
        let register = |number: c_int| context.uc_mcontext.gregs[number as usize].cast_unsigned();
        let is_exit = register(libc::REG_RAX) == libc::SYS_exit_group as u64;
        Self {
            ip: register(libc::REG_RIP),
            exit: is_exit.then(|| register(libc::REG_RDI)),
            back: register(libc::REG_RSP),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn read(context: &libc::ucontext_t) -> Self {
        let registers = &context.uc_mcontext.regs;
        let is_exit = registers[8] == libc::SYS_exit_group as u64;
        Self { ip: context.uc_mcontext.pc, exit: is_exit.then(|| registers[0]), back: registers[30] }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn read(_: &libc::ucontext_t) -> Self {
        Self::default()
    }

    /// The caller of the function that makes the system call, which has no frame of its own in libc. Anything where it is another
    /// function: it is only looked up.
    fn caller(&self) -> u64 {
        if cfg!(target_arch = "x86_64") && self.back != 0 && self.back.is_multiple_of(8) {
            // SAFETY: the stack of a thread that runs; the handler may be on it right now.
            return unsafe { ptr::with_exposed_provenance::<u64>(self.back as usize).read_volatile() };
        }
        self.back
    }
}

/// Runs when anybody calls `exit`, on the thread that does; also when `main` returns.
extern "C" fn exiting() {
    if let Some(board) = board() {
        board.record_exit(0, 0);
    }
    log_queue::settle();
}

/// Ends the process in which a module has closed descriptors of the host's. The board has the call that the thread is inside of.
pub(super) fn end_without_descriptors() -> ! {
    if let Some(board) = board() {
        board.record_closing();
    }
    exit_group(1)
}

fn board() -> Option<&'static Board> {
    // SAFETY: null, or what `install` was given for ever.
    unsafe { BOARD.load(Ordering::Acquire).as_ref() }
}

fn handled_by(handler: usize) -> libc::sigaction {
    // SAFETY: what is zero is a valid value of the struct: no flags, no further signals blocked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on the calling thread leaves its crumbs on the board. A stack overflow is recorded too, on another stack. Threads
/// without a place leave no crumbs.
///
/// # Panics
///
/// The board has no such slot: it was made for fewer threads than there are.
pub fn take_place(board: &'static Board, slot: usize) {
    ensure_alternate_stack();
    board::take_place(board, slot);
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::os::fd::AsFd as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};
    use std::sync::mpsc;
    use std::{env, thread};

    use rustix::process::{Resource, Rlimit, setrlimit};

    use super::*;
    use crate::module::board::{CallKind, Crumb, Fatal, FatalCause, ModuleMark, inside};

    const ROLE: &str = "TRYLIST_CRASH_ROLE";

    /// The remains of a process that does `role` on the thread in slot 1, inside module 1 of cluster 3, while the
    /// thread in slot 0 is inside module 0.
    fn dies(role: &str) -> (ExitStatus, Option<Fatal>) {
        let board = Board::create(2).unwrap();
        let (_, module) = module_path!().split_once("::").unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::child"), "--ignored", "--nocapture"])
            .env(ROLE, role)
            .stdin(board.fd().try_clone_to_owned().unwrap())
            .output()
            .unwrap();
        let innocent = board.look();
        assert_eq!(innocent.len(), 2, "both were there: {output:?}");
        let inside_of = Crumb { kind: CallKind::Serving, module: 0, cluster: Some(0), in_host: false };
        assert_eq!(innocent[0].crumb, Some(inside_of));
        let fatal = board.fatal().inspect(|fatal| {
            assert_eq!(fatal.ip != 0, matches!(fatal.by, FatalCause::Signal(_)), "where a signal came at");
        });
        (output.status, fatal.map(|fatal| Fatal { ip: 0, ..fatal }))
    }

    fn guilty(by: FatalCause) -> Option<Fatal> {
        let crumb = Crumb { kind: CallKind::Serving, module: 1, cluster: Some(3), in_host: false };
        Some(Fatal { slot: Some(1), crumb: Some(crumb), by, ip: 0, caller: 0 })
    }

    /// Dies by this signal as if nobody handled it, and the one at fault is on record.
    #[track_caller]
    fn dies_by(signal: c_int, role: &str) {
        let (status, fatal) = dies(role);
        assert_eq!(status.signal(), Some(signal), "{status}");
        assert_eq!(fatal, guilty(FatalCause::Signal(signal)));
    }

    #[test]
    #[ignore = "what the others start as a process of its own"]
    fn child() {
        let role = env::var(ROLE).expect("started by another test");
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        let file = io::stdin().as_fd().try_clone_to_owned().unwrap();
        let board: &'static Board = Box::leak(Box::new(Board::open(file).unwrap()));
        install(board).unwrap();
        let (entered, has_entered) = mpsc::channel();
        thread::spawn(move || {
            take_place(board, 0);
            inside(ModuleMark::of_module(0).in_cluster(0), || {
                entered.send(()).unwrap();
                loop {
                    thread::park();
                }
            })
        });
        has_entered.recv().unwrap();
        thread::spawn(move || {
            take_place(board, 1);
            if role == "segv outside" {
                read_nowhere();
            }
            inside(ModuleMark::of_module(1).in_cluster(3), || act(&role));
        })
        .join()
        .unwrap();
    }

    fn act(role: &str) {
        match role {
            "segv" => read_nowhere(),
            "bus" => read_beyond_a_file(),
            "ill" => raise(libc::SIGILL),
            "fpe" => raise(libc::SIGFPE),
            "trap" => raise(libc::SIGTRAP),
            "sys" => raise(libc::SIGSYS),
            "abort" => std::process::abort(),
            "panic at the boundary" => panics(),
            "overflow" => assert_ne!(overflow(0), 1),
            "exit" => exit(),
            "kill" => raise(libc::SIGKILL),
            "segv of another" => thread::spawn(read_nowhere).join().unwrap(),
            other => panic!("no role {other:?}"),
        }
    }

    fn raise(signal: c_int) {
        // SAFETY: what it does to this process is what the test wants.
        unsafe { libc::raise(signal) };
    }

    fn exit() {
        // SAFETY: as C modules call it; that guards do not run is what the test wants.
        unsafe { libc::exit(0) };
    }

    fn read_nowhere() {
        // SAFETY: none; that is the fault.
        black_box(unsafe { ptr::with_exposed_provenance::<usize>(8).read_volatile() });
    }

    fn read_beyond_a_file() {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let empty = rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        // SAFETY: the mapping is new. To read it is the fault.
        unsafe {
            let page = mmap(ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, &empty, 0).unwrap();
            black_box(page.cast::<u8>().read_volatile());
        }
    }

    extern "C" fn panics() {
        panic!("told to");
    }

    #[expect(unconditional_recursion, reason = "that is the fault")]
    fn overflow(depth: usize) -> usize {
        let frame = black_box([depth; 64]);
        overflow(black_box(depth + 1)) + frame[depth % 64]
    }

    #[test]
    fn names_the_thread_that_died_and_not_the_one_that_waits_in_an_innocent_module() {
        dies_by(libc::SIGSEGV, "segv");
    }

    #[test]
    fn every_fatal_signal_is_told_and_kept() {
        dies_by(libc::SIGBUS, "bus");
        dies_by(libc::SIGILL, "ill");
        dies_by(libc::SIGFPE, "fpe");
        dies_by(libc::SIGTRAP, "trap");
        dies_by(libc::SIGSYS, "sys");
    }

    #[test]
    fn an_abort_is_told() {
        dies_by(libc::SIGABRT, "abort");
        dies_by(libc::SIGABRT, "panic at the boundary");
    }

    #[test]
    fn an_overflow_of_the_stack_is_told() {
        dies_by(libc::SIGSEGV, "overflow");
    }

    #[test]
    fn an_exit_inside_a_module_is_told() {
        let (status, fatal) = dies("exit");
        assert_eq!((status.code(), fatal), (Some(0), guilty(FatalCause::Exit)));
    }

    #[test]
    fn a_death_outside_of_modules_blames_none() {
        let nobody =
            |slot| Some(Fatal { slot, crumb: None, by: FatalCause::Signal(libc::SIGSEGV), ip: 0, caller: 0 });
        assert_eq!(dies("segv outside").1, nobody(Some(1)));
        assert_eq!(dies("segv of another").1, nobody(None));
    }

    #[test]
    fn what_nobody_can_hear_is_not_on_record() {
        let (status, fatal) = dies("kill");
        assert_eq!((status.signal(), fatal), (Some(libc::SIGKILL), None));
    }

    #[test]
    fn a_thread_without_an_alternate_stack_gets_one() {
        let stack = || {
            let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
            // SAFETY: only asks.
            unsafe {
                libc::sigaltstack(ptr::null(), stack.as_mut_ptr());
                stack.assume_init()
            }
        };
        thread::spawn(move || {
            let of_std = stack();
            assert_eq!(of_std.ss_flags & libc::SS_DISABLE, 0, "std gives one");
            ensure_alternate_stack();
            assert_eq!(stack().ss_sp, of_std.ss_sp, "and it is kept");
            let none = libc::stack_t { ss_flags: libc::SS_DISABLE, ..of_std };
            // SAFETY: no signal is handled on it now.
            unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) };
            ensure_alternate_stack();
            assert_eq!((stack().ss_flags & libc::SS_DISABLE, stack().ss_size), (0, STACK_BYTES));
        })
        .join()
        .unwrap();
    }
}
