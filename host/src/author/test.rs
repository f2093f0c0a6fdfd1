//! `trylist module test`: checks the contract on a module, in a process of its own. A module that crashes, ends its process or
//! never returns is a line of the report.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
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

/// The check of the module's own output, which the parent makes.
const PRINTS: &str = "prints nothing";

/// How a child ended.
#[derive(Clone, Debug)]
enum ChildEnd {
    /// One of its calls takes longer than its limit: which.
    Hung(String),
    /// By itself, or by what the module did.
    Exited(ExitStatus),
    /// It was silent for longer than a check may take.
    Silent,
}

/// This program once more, as the process that runs checks.
struct ChildProcess {
    child: Child,
    lines: Receiver<PrintedLine>,
}

/// A line of the checks' process, or of the module that runs in it.
enum PrintedLine {
    Stdout(String),
    Stderr(String),
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
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (send, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("it was asked for");
        let stderr = child.stderr.take().expect("it was asked for");
        pass_lines(stdout, send.clone(), PrintedLine::Stdout);
        pass_lines(stderr, send, PrintedLine::Stderr);
        Ok(Self { child, lines })
    }

    /// Reports what it says, until it ends or says nothing for too long.
    fn follow(&mut self, time_limit: Duration, report: &mut TestReport) -> Result<ChildEnd, Failure> {
        loop {
            match self.lines.recv_timeout(time_limit) {
                Ok(PrintedLine::Stdout(line)) => match ChildLine::read(&line) {
                    Some(ChildLine::Hangs(check, why)) => {
                        report.running = Some(check);
                        return Ok(ChildEnd::Hung(why));
                    }
                    Some(said) => report.said(said)?,
                    None => report.printed(&line),
                },
                Ok(PrintedLine::Stderr(line)) => report.printed(&line),
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

/// Sends each line, until the child's output ends.
fn pass_lines(
    output: impl Read + Send + 'static,
    lines: Sender<PrintedLine>,
    as_line: fn(String) -> PrintedLine,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if lines.send(as_line(String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
        }
    });
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
    /// The first line that the module itself printed, and the check that ran.
    printed: Option<(String, usize)>,
    /// Something is wrong that is no check's.
    is_failed: bool,
}

impl TestReport {
    fn new() -> Self {
        Self { names: checks::names(), verdicts: Vec::new(), running: None, printed: None, is_failed: false }
    }

    /// The first check without a verdict.
    fn next_check(&self) -> Option<usize> {
        Some(self.verdicts.len()).filter(|next| *next < self.names.len())
    }

    fn said(&mut self, said: ChildLine) -> Result<(), Failure> {
        match said {
            ChildLine::Module(text) => print(&format!("{text}\n")),
            ChildLine::Hangs(..) => Ok(()),
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

    /// The author sees what the module prints.
    fn printed(&mut self, line: &str) {
        if !line.is_empty() {
            eprintln!("{line}");
            let check = self.running.unwrap_or(self.verdicts.len());
            self.printed.get_or_insert_with(|| (line.to_owned(), check));
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
                ChildEnd::Hung(why) => why,
            };
            self.is_failed = true;
            return print(&format!("FAILED   ends its process cleanly: {why}\n"));
        }
        match end {
            ChildEnd::Silent => {
                self.verdict(n_after, CheckResult::Failed(limit()))?;
                return self.skip_rest("not run, because an earlier call did not return");
            }
            ChildEnd::Hung(why) => {
                self.verdict(n_after, CheckResult::Failed(why))?;
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

    /// The module has ended its process by a signal or on its own: whatever was printed then is no fault of its own.
    fn prints(&self) -> CheckResult {
        match (&self.printed, self.verdicts.first()) {
            (_, Some(CheckResult::Failed(_))) | (_, None) => {
                CheckResult::Skipped("it does not load".to_owned())
            }
            (None, _) => CheckResult::Ok(String::new()),
            (Some((line, check)), _) => {
                let when = self.names.get(*check).copied().unwrap_or("the end");
                let line: String = line.chars().take(200).collect();
                CheckResult::Failed(format!(
                    "printed {line:?} while \"{when}\" ran, or just before; a module logs by HostApi"
                ))
            }
        }
    }

    /// The last lines, and the exit code.
    fn finish(mut self) -> Result<(), Failure> {
        self.names.push(PRINTS);
        self.verdict(self.names.len() - 1, self.prints())?;
        let is_failed = |verdict: &CheckResult| matches!(verdict, CheckResult::Failed(_));
        if let Some(first) = self.verdicts.iter().position(is_failed) {
            print(&format!("again: {}\n", again(std::env::args(), self.names[first])))?;
        }
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

/// The command that repeats one check, for a shell.
fn again(arguments: impl Iterator<Item = String>, check: &str) -> String {
    let quoted = |text: String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if text.chars().all(is_plain) && !text.is_empty() {
            text
        } else {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
    };
    let mut words: Vec<String> = arguments.map(quoted).collect();
    if !words.iter().any(|word| word.starts_with("--only")) && check != PRINTS {
        words.extend(["--only".to_owned(), quoted(check.to_owned())]);
    }
    words.join(" ")
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
