//! Commands that run code of modules do so in a process of their own: confined, without root's rights, and with an end. A module
//! that crashes, ends its process or never returns is what the command says then.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, geteuid, kill_process_group, pidfd_open, waitid,
};
use trylist::config::RunAs;
use trylist::module::board::{Board, Crumb};
use trylist::module::crash;
use trylist::process::control::Exit;
use trylist::process::privileges;
use trylist::process::sandbox::{self, SandboxTerms};
use trylist::process::strangers::Strangers;

use crate::output::{CommandFailure, keep_from_modules, print};

/// Time for the last output of a process that has ended. It is there already, unless another process holds it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long all of it may take, where nothing else is configured.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Behind all that the process says: it has come to its end by itself, whatever its exit code.
const END: &str = "\0end\n";

/// The argument of the process; see [`run`].
pub(crate) const CHILD: &str = "--child";

/// Runs this very command once more as a process apart, and prints what it says. It may take `time_limit`, and has `input` as its
/// standard input. `describe` says where a module was when it ended that process.
///
/// # Errors
/// As that process says, or what became of it.
pub(crate) fn run(
    time_limit: Duration,
    input: &[u8],
    describe: impl FnOnce(Option<Crumb>) -> String,
) -> Result<(), CommandFailure> {
    let failed = |error: io::Error| CommandFailure::new(format_args!("no process for modules: {error}"));
    let board = Board::create(1).map_err(failed)?;
    let mut strangers = Strangers::adopt();
    let mut child = start(&board, input).map_err(failed)?;
    let said = all_of(child.stdout.take().expect("it was asked for"));
    let has_ended = await_end(&mut child, time_limit).map_err(failed)?;
    // They hold the outputs, which whoever started this command reads to their end.
    let has_left_some = strangers.end_all(&HashSet::from([Pid::from_child(&child)]));
    let status = bury(&mut child).map_err(failed)?;
    let crumb = board.look().into_iter().find_map(|seen| seen.crumb);
    let module =
        |what: &str| CommandFailure { exit: Exit::Module, text: format!("{}: {what}\n", describe(crumb)) };
    if !has_ended {
        return Err(module(&format!("it did not return within {time_limit:?}")));
    }
    if board.has_closing() {
        return Err(module("it closed descriptors of the host"));
    }
    let Some(said) = said.recv_timeout(LAST_WORDS).ok().filter(|_| !has_left_some) else {
        return Err(module("it left a process behind"));
    };
    let Some(said) = said.strip_suffix(END).filter(|_| status.code().is_some()) else {
        return Err(module(&format!("it ended the process ({})", how(status))));
    };
    if !said.is_empty() {
        print(said)?;
    }
    // Where it failed it has said why.
    if status.success() { Ok(()) } else { Err(CommandFailure { exit: exit_of(status), text: String::new() }) }
}

/// The text of an output, once all who hold it have closed it.
fn all_of(mut output: ChildStdout) -> Receiver<String> {
    let (send, said) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.read_to_end(&mut bytes);
        // Nobody waits any more for the output of a process that was left behind.
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    said
}

fn start(board: &Board, input: &[u8]) -> io::Result<Child> {
    let mut stdin = File::from(memfd_create("trylist-input", MemfdFlags::CLOEXEC)?);
    stdin.write_all(input)?;
    stdin.rewind()?;
    // It is inherited: without CLOEXEC, and closed here once the process has started.
    let inherited = rustix::io::dup(board.fd())?;
    Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg(format!("{CHILD}={}", inherited.as_raw_fd()))
        .stdin(stdin)
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Waits for its end, and kills it after the limit. Whether it ended in time.
fn await_end(child: &mut Child, time_limit: Duration) -> io::Result<bool> {
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let limit =
        Timespec { tv_sec: time_limit.as_secs().cast_signed(), tv_nsec: time_limit.subsec_nanos().into() };
    let has_ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))? > 0;
    if !has_ended {
        child.kill()?;
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    }
    Ok(has_ended)
}

/// Takes note of its end. All that is left of its process group ends first, while the number is still its own.
fn bury(child: &mut Child) -> io::Result<ExitStatus> {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait()
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => nix::sys::signal::Signal::try_from(signal)
            .map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned()),
        (None, code) => format!("exit code {}", code.unwrap_or_default()),
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    let codes = [Exit::Configuration, Exit::Module];
    codes.into_iter().find(|exit| status.code() == Some(*exit as i32)).unwrap_or(Exit::Failed)
}

/// The same in that process: does the work, and says that it came to its end. `board` is a descriptor.
///
/// # Errors
/// As the work.
pub(crate) fn child(
    board: u32,
    work: impl FnOnce() -> Result<(), CommandFailure>,
) -> Result<(), CommandFailure> {
    let file = File::options().read(true).write(true).open(format!("/proc/self/fd/{board}"));
    let board = file.and_then(|file| Board::open(file.into()));
    let board = board.map_err(|error| CommandFailure::new(format_args!("{CHILD} is internal: {error}")))?;
    let board: &'static Board = Box::leak(Box::new(board));
    crash::take_place(board, 0);
    crash::install(board)
        .map_err(|error| CommandFailure::new(format_args!("no handler for crashes: {error}")))?;
    keep_from_modules().map_err(|error| CommandFailure::new(format_args!("stdout: {error}")))?;
    let result = work();
    print(END)?;
    result
}

/// Becomes who modules run as: as configured, else nobody, if root runs this and does not insist.
///
/// # Errors
/// One line.
pub(crate) fn become_user(run_as: Option<&RunAs>, as_root: bool) -> Result<(), String> {
    match run_as.filter(|run_as| run_as.user.is_some()) {
        _ if as_root => privileges::gain_none().map_err(|error| format!("NO_NEW_PRIVS: {error}")),
        None if geteuid().is_root() => privileges::drop_to_nobody(),
        run_as => privileges::drop_to(run_as.unwrap_or(&RunAs::default())),
    }
}

/// Confines this process; see [`sandbox`].
pub(crate) fn confine() {
    // A kernel without is no reason not to look at a module; `status` of a running proxy shows it.
    let _ = sandbox::confine(SandboxTerms { tells_exits: true, holds_limits: true });
}
