//! Programs of others, as clients and servers that know nothing of the proxy's own code.

use std::io::{ErrorKind, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};

/// Runs a program to its end; `None`, said aloud, where there is none of this name.
///
/// # Panics
/// Where it is there and cannot be run.
#[track_caller]
pub fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    tool_fed(name, arguments, "")
}

/// The same with something to read.
///
/// # Panics
/// As [`tool`].
#[track_caller]
pub fn tool_fed(name: &str, arguments: &[&str], input: &str) -> Option<Output> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            eprintln!("SKIPPED: there is no {name} here (tests/README.md says where it comes from)");
            return None;
        }
        Err(e) => panic!("{name}: {e}"),
    };
    // It may not want to read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Some(child.wait_with_output().unwrap())
}

/// The standard output of a program, which must end well.
///
/// # Panics
/// Where it did not.
#[track_caller]
pub fn said(output: &Output) -> String {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}: {out}{error}", output.status);
    out.into_owned()
}

/// A program that runs on; killed when dropped.
#[derive(Debug)]
pub struct RunningTool(Child);

impl RunningTool {
    /// Starts it. `None`, with a line that says so, where it is not installed.
    ///
    /// # Panics
    /// Where it is and cannot be started.
    #[track_caller]
    pub fn start(name: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                eprintln!("SKIPPED: there is no {name} here (tests/README.md says where it comes from)");
                None
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }

    /// Its output, if it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        self.0.try_wait().ok().flatten()?;
        let mut said = String::new();
        self.0.stdout.take()?.read_to_string(&mut said).ok()?;
        Some(said)
    }
}

impl Drop for RunningTool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
