//! The program as a user runs it.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::{DEADLINE, artifacts, eventually};

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
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// The next line of its output; empty at the output's end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Waits until it takes connections here.
    #[track_caller]
    pub fn wait_until_it_listens(&mut self, address: SocketAddr) {
        eventually("the program listens", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}: {}", self.errors());
            }
            TcpStream::connect_timeout(&address, DEADLINE).ok()
        });
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
        (status.code(), self.errors())
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(artifacts::binary());
    command.args(arguments).stdin(Stdio::null()).env_remove("TRYLIST_LOG");
    command
}
