//! The program as a user runs it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};

use crate::{artifacts, eventually};

/// Runs it to its end.
///
/// # Panics
/// Where it cannot be started.
#[track_caller]
pub fn trylist(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// A run that goes on; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Text,
    stderr: Text,
}

/// Its output so far.
#[derive(Debug)]
struct Text {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts it.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments))
    }

    /// Starts it with so many file descriptors at most.
    #[track_caller]
    pub fn start_with_descriptors(n: usize, arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {n}; exec \"$@\""), "sh"]);
        shell.arg(artifacts::binary()).args(arguments).stdin(Stdio::null());
        Self::spawn(shell)
    }

    /// Starts this, of which nobody hears otherwise.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Text::of(child.stdout.take().unwrap());
        let stderr = Text::of(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines of its log so far that contain each of these.
    pub fn logged(&self, texts: &[&str]) -> Vec<String> {
        let so_far = self.stderr.so_far();
        so_far
            .lines()
            .filter(|line| texts.iter().all(|text| line.contains(text)))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for a line of its standard output that contains this, and returns what follows it there.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        self.stdout.after(text)
    }

    /// Waits for a line of its log that contains this, and returns what follows it there.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn logs(&self, text: &str) -> String {
        self.stderr.after(text)
    }

    /// Where it listens, from its log.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.logs("listening on ").parse().unwrap()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: exit code, and what it wrote to stderr.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = eventually("the program's end", || self.child.try_wait().unwrap());
        self.stderr.reader.take().unwrap().join().unwrap();
        (status.code(), self.stderr.so_far())
    }
}

impl Text {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let reader = std::thread::spawn({
            let text = Arc::clone(&text);
            move || {
                for line in BufReader::new(pipe).lines() {
                    let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                    text.push_str(&line.unwrap());
                    text.push('\n');
                }
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[track_caller]
    fn after(&self, text: &str) -> String {
        eventually(&format!("{text:?} of the program"), || {
            let so_far = self.so_far();
            so_far.lines().find_map(|line| Some(line.split_once(text)?.1.to_owned()))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with these arguments, not yet started.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(artifacts::binary());
    command.args(arguments).stdin(Stdio::null()).env_remove("TRYLIST_LOG").env_remove("RUST_BACKTRACE");
    command
}
