//! A program that writes one JSON answer a line, for as long as it runs.
//!
//! It has a process group of its own, no standard input, and no environment but what is configured. It dies with the scout: it is
//! started by way of this program, which has the kernel see to that before it becomes the command ([`become_command`]).

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::DiscoverySource;
use super::answer::{MOST_BYTES, SourceAnswer};
use super::follow::one_line;
use super::read::{AnswerForm, read, too_long};
use crate::config::SourceSpec;

/// A command that failed is started again after this, then after twice as long, and so on up to
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// this. One that ended well is started again after this, too.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// One that ran for so long begins anew with the first pause.
const PROVEN: Duration = Duration::from_secs(60);
/// For a command to end that has closed its output,
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// and for its last words, which its children may keep open.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Its output is taken this often at most: one that floods waits in its own pipe.
const READ_EVERY: Duration = Duration::from_millis(10);
/// Lines of its stderr that are logged in each second.
const LINES_A_SECOND: usize = 10;
/// A pipe's worth.
const CHUNK: usize = 64 << 10;

/// A program that says who the servers are.
pub(super) struct ExecSource {
    said: Arc<Heard>,
    task: JoinHandle<()>,
}

/// Its last line that was not asked for yet.
#[derive(Default)]
struct Heard {
    newest: Mutex<Newest>,
    changed: Notify,
}

#[derive(Default)]
struct Newest {
    answer: Option<SourceAnswer>,
    /// After that.
    error: Option<String>,
}

/// A command that runs. Its whole group ends with this.
struct RunningCommand {
    child: Child,
    group: Option<Pid>,
    /// Logs its stderr.
    log: Option<JoinHandle<()>>,
}

impl ExecSource {
    pub(super) fn new(command: &[String], environment: &[(String, String)], spec: &Arc<SourceSpec>) -> Self {
        let said = Arc::<Heard>::default();
        let keep = keep_running(Arc::clone(&said), command.to_vec(), environment.to_vec(), Arc::clone(spec));
        Self { said, task: tokio::spawn(keep) }
    }
}

impl Drop for ExecSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DiscoverySource for ExecSource {
    async fn next(&mut self) -> Result<Option<SourceAnswer>, String> {
        loop {
            let changed = self.said.changed.notified();
            {
                let mut newest = self.said.newest();
                if let Some(answer) = newest.answer.take() {
                    return Ok(Some(answer));
                }
                if let Some(error) = newest.error.take() {
                    return Err(error);
                }
            }
            changed.await;
        }
    }
}

impl Heard {
    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, result: Result<SourceAnswer, String>) {
        let mut newest = self.newest();
        match result {
            Ok(answer) => *newest = Newest { answer: Some(answer), error: None },
            // Its lines from before still count.
            Err(error) => newest.error = Some(error),
        }
        drop(newest);
        self.changed.notify_one();
    }
}

async fn keep_running(
    said: Arc<Heard>,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    spec: Arc<SourceSpec>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        let end = run(&said, &command, &environment, &spec).await;
        if begun.elapsed() >= PROVEN {
            pause = FIRST_PAUSE;
        }
        match end {
            Ok(()) => sleep(LONGEST_PAUSE).await,
            Err(why) => {
                let program = command.first().map(String::as_str).unwrap_or_default();
                said.hear(Err(format!("{program}: {why}; next attempt in {pause:?}")));
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Runs the command once, to its end.
async fn run(
    said: &Heard,
    command: &[String],
    environment: &[(String, String)],
    spec: &SourceSpec,
) -> Result<(), String> {
    let mut running = RunningCommand::start(command, environment)?;
    let stdout = running.child.stdout.take().ok_or("has no standard output")?;
    let stderr = running.child.stderr.take().ok_or("has no standard error")?;
    let name = format!("cluster \"{}\": source \"{}\"", spec.cluster, spec.name);
    let log = running.log.insert(tokio::spawn(log_lines(stderr, name)));
    // A child of the command may keep its stderr for ever: the end of its output is what counts.
    let rest = hear_lines(stdout, said, spec).await?;
    let ended = timeout(END_TIMEOUT, running.child.wait()).await;
    let ended = ended.map_err(|_| format!("closed its output, and did not end within {END_TIMEOUT:?}"))?;
    let status = ended.map_err(|error| format!("cannot be waited for: {error}"))?;
    // Its number may be another's from then on.
    end_group(running.group.take());
    let _ = timeout(LAST_WORDS_TIMEOUT, log).await;
    if !status.success() {
        return Err(format!("ended ({status})"));
    }
    // A last line need not end.
    if rest.iter().any(|byte| !byte.is_ascii_whitespace()) {
        said.hear(read(&rest, AnswerForm::Json, spec).map(|(answer, _)| answer));
    }
    Ok(())
}

/// Takes lines until the end of the output; what follows the last whole line is returned.
async fn hear_lines(
    mut output: impl AsyncRead + Unpin,
    said: &Heard,
    spec: &SourceSpec,
) -> Result<Vec<u8>, String> {
    let mut line = Vec::new();
    loop {
        let from = line.len();
        line.resize(from + CHUNK, 0);
        let n = output.read(&mut line[from..]).await.map_err(|error| format!("cannot be read: {error}"))?;
        line.truncate(from + n);
        if n == 0 {
            return Ok(line);
        }
        if let Some(end) = line[from..].iter().rposition(|byte| *byte == b'\n') {
            let mut whole = line;
            line = whole.split_off(from + end + 1);
            whole.truncate(from + end);
            // The last one counts: each is complete.
            let last = whole.rsplit(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
            if let Some(last) = last {
                said.hear(read(last, AnswerForm::Json, spec).map(|(answer, _)| answer));
            }
            sleep(READ_EVERY.max(spec.settle)).await;
        }
        if line.len() > MOST_BYTES {
            return Err(format!("a line {}", too_long()));
        }
    }
}

/// Logs what it writes to stderr, as far as that is little.
async fn log_lines(mut output: impl AsyncRead + Unpin, name: String) {
    let mut chunk = vec![0; CHUNK];
    let (mut second, mut n_lines, mut n_left_out) = (Instant::now(), 0, 0_usize);
    while let Ok(n @ 1..) = output.read(&mut chunk).await {
        if second.elapsed() >= Duration::from_secs(1) {
            if n_left_out > 0 {
                tracing::warn!("{name}: its command wrote {n_left_out} further lines, which are left out");
            }
            (second, n_lines, n_left_out) = (Instant::now(), 0, 0);
        }
        for line in chunk[..n].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            n_lines += 1;
            if n_lines <= LINES_A_SECOND {
                tracing::info!("{name}: its command says: {}", one_line(&String::from_utf8_lossy(line)));
            } else {
                n_left_out += 1;
            }
        }
        sleep(READ_EVERY).await;
    }
    if n_left_out > 0 {
        tracing::warn!("{name}: its command wrote {n_left_out} further lines, which are left out");
    }
}

impl RunningCommand {
    fn start(command: &[String], environment: &[(String, String)]) -> Result<Self, String> {
        let own = std::process::id().to_string();
        let child = Command::new("/proc/self/exe")
            .arg0("trylist")
            .args(["scout-command", &own, "--"])
            .args(command)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot be started: {error}"))?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { child, group, log: None })
    }
}

/// Ends the processes that a command started and that still run.
fn end_group(group: Option<Pid>) {
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        end_group(self.group);
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// Becomes a command that dies with the process `parent`, which has started this one. Returns only where that fails.
pub fn become_command(parent: u32, command: &[String]) -> String {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have ended before that.
    if getppid().is_none_or(|now| now.as_raw_nonzero().get().unsigned_abs() != parent) {
        return "the scout is gone".to_owned();
    }
    // Those that the scout leaves to its supervisor are blocked here, too; the command is to hear them.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        return format!("signals cannot be unblocked: {error}");
    }
    let Some((program, arguments)) = command.split_first() else { return "no command".to_owned() };
    let error = std::process::Command::new(program).args(arguments).exec();
    format!("{program}: cannot be started: {error}")
}
