//! Commands that run code of modules do so in a process of their own: confined, without root's rights, and with an end. A module
//! that crashes, ends its process or never returns is what the command says then.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};
use trylist::config::RunAs;
use trylist::module::board::{Board, Crumb};
use trylist::module::crash;
use trylist::process::control::Exit;
use trylist::process::{privileges, sandbox};

use crate::output::{CommandFailure, print};

/// How long all of it may take, where nothing else is configured.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Behind all that the process says: it has come to its end by itself, whatever its exit code.
const END: &str = "\0end\n";

/// The argument of the process; see [`run`].
pub(crate) const CHILD: &str = "--child";

/// Runs this very command once more as a process apart, and prints what it says. It may take `time_limit`. `describe` says where
/// a module was when it ended that process.
///
/// # Errors
/// As that process says, or what became of it.
pub(crate) fn run(
    time_limit: Duration,
    describe: impl FnOnce(Option<Crumb>) -> String,
) -> Result<(), CommandFailure> {
    let failed = |error: io::Error| CommandFailure::new(format_args!("no process for modules: {error}"));
    let board = Board::create(1).map_err(failed)?;
    let mut child = start(&board).map_err(failed)?;
    let mut stdout = child.stdout.take().expect("it was asked for");
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stdout.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let status = end_of(&mut child, time_limit).map_err(failed)?;
    let crumb = board.look().into_iter().find_map(|seen| seen.crumb);
    let module =
        |what: &str| CommandFailure { exit: Exit::Module, text: format!("{}: {what}\n", describe(crumb)) };
    let Some(status) = status else {
        return Err(module(&format!("it did not return within {time_limit:?}")));
    };
    let said = reader.join().unwrap_or_default();
    let Some(said) = said.strip_suffix(END).filter(|_| status.code().is_some()) else {
        return Err(module(&format!("it ended the process ({})", how(status))));
    };
    if !said.is_empty() {
        print(said)?;
    }
    // Where it failed it has said why.
    if status.success() { Ok(()) } else { Err(CommandFailure { exit: exit_of(status), text: String::new() }) }
}

fn start(board: &Board) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg(CHILD)
        .stdin(board.fd().try_clone_to_owned()?)
        .stdout(Stdio::piped())
        .spawn()
}

/// None where it did not end in time; it is killed then.
fn end_of(child: &mut Child, time_limit: Duration) -> io::Result<Option<ExitStatus>> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit =
        Timespec { tv_sec: time_limit.as_secs().cast_signed(), tv_nsec: time_limit.subsec_nanos().into() };
    let has_ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))? > 0;
    if !has_ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(has_ended.then_some(status))
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

/// The same in that process: does the work, and says that it came to its end.
///
/// # Errors
/// As the work.
pub(crate) fn child(work: impl FnOnce() -> Result<(), CommandFailure>) -> Result<(), CommandFailure> {
    let board = io::stdin().as_fd().try_clone_to_owned().and_then(Board::open);
    let board = board.map_err(|error| CommandFailure::new(format_args!("{CHILD} is internal: {error}")))?;
    let board: &'static Board = Box::leak(Box::new(board));
    crash::take_place(board, 0);
    crash::install(board)
        .map_err(|error| CommandFailure::new(format_args!("no handler for crashes: {error}")))?;
    let result = work();
    io::stdout()
        .write_all(END.as_bytes())
        .and_then(|()| io::stdout().flush())
        .map_err(|error| CommandFailure::new(format_args!("stdout: {error}")))?;
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
    let _ = sandbox::confine(true);
}
