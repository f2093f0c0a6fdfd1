//! `trylist module test`: checks the contract on a module, in a process of its own. A module that crashes, ends its process or
//! never returns is a line of the report.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use super::checks::{self, CheckResult, ChildLine};
use trylist::process::control::Exit;

use crate::cli::Test;
use crate::output::{CommandFailure as Failure, count, print};

pub(crate) fn run(test: &Test) -> Result<(), Failure> {
    let settings = checks::settings(test)?;
    if let Some(first) = test.child {
        checks::run(test, settings, first);
        return Ok(());
    }
    let mut report = TestReport::new();
    while let Some(first) = report.next_check() {
        let mut child = ChildProcess::start(first)?;
        let end = child.follow(Duration::from_secs(test.time_limit), &mut report)?;
        report.ended(end, first, test.time_limit)?;
    }
    report.finish()
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
enum ChildEnd {
    /// By itself, or by what the module did.
    Exited(ExitStatus),
    /// It was silent for longer than a check may take.
    Silent,
}

/// This program once more, as the process that runs checks.
struct ChildProcess {
    child: Child,
    lines: Receiver<String>,
}

impl ChildProcess {
    fn start(first: usize) -> Result<Self, Failure> {
        let failed =
            |error| Failure::new(format_args!("cannot start the process that runs the checks: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(std::env::args_os().skip(1))
            .arg(format!("--child={first}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        let (send, lines) = mpsc::channel();
        // It ends with the child's output.
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Reports what it says, until it ends or says nothing for too long.
    fn follow(&mut self, time_limit: Duration, report: &mut TestReport) -> Result<ChildEnd, Failure> {
        loop {
            match self.lines.recv_timeout(time_limit) {
                // The author sees the module's own output.
                Ok(line) => match ChildLine::read(&line) {
                    Some(said) => report.said(said)?,
                    None if line.is_empty() => {}
                    None => eprintln!("{line}"),
                },
                Err(RecvTimeoutError::Timeout) => return Ok(ChildEnd::Silent),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let waited = self.child.wait();
        waited
            .map(ChildEnd::Exited)
            .map_err(|error| Failure::new(format_args!("the checks' process: {error}")))
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The report so far; each line is printed at once.
struct TestReport {
    names: Vec<&'static str>,
    verdicts: Vec<CheckResult>,
    /// The check that runs.
    running: Option<usize>,
    /// Something is wrong that is no check's.
    is_failed: bool,
}

impl TestReport {
    fn new() -> Self {
        Self { names: checks::names(), verdicts: Vec::new(), running: None, is_failed: false }
    }

    /// The first check without a verdict.
    fn next_check(&self) -> Option<usize> {
        Some(self.verdicts.len()).filter(|next| *next < self.names.len())
    }

    fn said(&mut self, said: ChildLine) -> Result<(), Failure> {
        match said {
            ChildLine::Module(text) => print(&format!("{text}\n")),
            ChildLine::Begun(check) => {
                self.running = Some(check);
                Ok(())
            }
            ChildLine::Ended(check, verdict) => {
                self.running = None;
                // After a restart, what was told already fails now: all that follows has the same reason.
                let check = check.max(self.verdicts.len());
                self.verdict(check, verdict)
            }
        }
    }

    fn verdict(&mut self, check: usize, verdict: CheckResult) -> Result<(), Failure> {
        let Some(name) = self.names.get(check) else { return Ok(()) };
        let with = |text: &str| if text.is_empty() { String::new() } else { format!(": {text}") };
        let line = match &verdict {
            CheckResult::Ok(text) => format!("ok       {name}{}\n", with(text)),
            CheckResult::Failed(text) => format!("FAILED   {name}{}\n", with(text)),
            CheckResult::Skipped(text) => format!("skipped  {name}{}\n", with(text)),
        };
        self.verdicts.push(verdict);
        print(&line)
    }

    /// Judges how a child ended that was started with this many verdicts.
    fn ended(&mut self, end: ChildEnd, n_before: usize, time_limit: u64) -> Result<(), Failure> {
        let n_after = self.verdicts.len();
        let is_cut = self.running.take().is_some() || n_after == n_before;
        let limit = || format!("did not return within {}", count(time_limit as usize, "second"));
        if n_after == self.names.len() {
            // All checks are through, and what follows is the library's own end.
            let why = match end {
                ChildEnd::Exited(status) if status.success() => return Ok(()),
                ChildEnd::Exited(status) => how(status),
                ChildEnd::Silent => limit(),
            };
            self.is_failed = true;
            return print(&format!("FAILED   ends its process cleanly: {why}\n"));
        }
        match end {
            ChildEnd::Silent => {
                self.verdict(n_after, CheckResult::Failed(limit()))?;
                return self.skip_rest("not run, because an earlier call did not return");
            }
            ChildEnd::Exited(status) if is_cut => self.verdict(n_after, CheckResult::Failed(how(status)))?,
            ChildEnd::Exited(_) => {}
        }
        self.skip_rest_after_start()
    }

    /// A module that does not load, or does not build, is not tried further.
    fn skip_rest_after_start(&mut self) -> Result<(), Failure> {
        let is_failed = |check: usize| matches!(self.verdicts.get(check), Some(CheckResult::Failed(_)));
        match (is_failed(0), is_failed(1)) {
            (true, _) => self.skip_rest("it does not load"),
            (_, true) => self.skip_rest("it does not build"),
            _ => Ok(()),
        }
    }

    fn skip_rest(&mut self, why: &str) -> Result<(), Failure> {
        while let Some(check) = self.next_check() {
            self.verdict(check, CheckResult::Skipped(why.to_owned()))?;
        }
        Ok(())
    }

    /// The last line, and the exit code.
    fn finish(self) -> Result<(), Failure> {
        let n = |is: fn(&CheckResult) -> bool| self.verdicts.iter().filter(|verdict| is(verdict)).count();
        let n_failed = n(|verdict| matches!(verdict, CheckResult::Failed(_))) + usize::from(self.is_failed);
        print(&format!(
            "{}: {} ok, {n_failed} failed, {} skipped\n",
            count(self.verdicts.len(), "check"),
            n(|verdict| matches!(verdict, CheckResult::Ok(_))),
            n(|verdict| matches!(verdict, CheckResult::Skipped(_))),
        ))?;
        // The report says why.
        if n_failed == 0 { Ok(()) } else { Err(Failure { exit: Exit::Module, text: String::new() }) }
    }
}

/// How a process ended that should not have.
fn how(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("the module ended the process, with exit code {}", status.code().unwrap_or_default());
    };
    let name = match signal {
        4 => "SIGILL: an illegal instruction",
        5 => "SIGTRAP: a trap",
        6 => "SIGABRT: abort",
        7 => "SIGBUS: memory that cannot be accessed",
        8 => "SIGFPE: a division by zero",
        9 => "SIGKILL: perhaps out of memory",
        11 => "SIGSEGV: access to invalid memory",
        31 => "SIGSYS: a system call that is forbidden",
        _ => return format!("the process was ended by signal {signal}"),
    };
    format!("the process was ended by {name}")
}
