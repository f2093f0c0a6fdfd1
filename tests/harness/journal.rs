//! What a module was called for, told by the module itself: `tests/broken/records-calls` writes a line for each call to
//! a socket whose path its settings name.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use crate::DEADLINE;

/// The calls of one balancer.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    listener: UnixListener,
    reader: Option<BufReader<UnixStream>>,
    lines: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Journal {
    /// A journal for one cluster.
    #[expect(clippy::new_without_default, reason = "it makes a socket in the file system")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, listener, reader: None, lines: Vec::new(), _folder: folder }
    }

    /// The module's settings: `answers` to the calls of `next` of each request, in their order. See the module.
    pub fn settings(&self, answers: &[&str]) -> String {
        format!("{{ journal = {:?}, answers = {answers:?} }}", self.path)
    }

    /// Waits until the module has been called for this, and says what it was called for up to now.
    ///
    /// # Panics
    /// At the deadline, or where the balancer is gone.
    #[track_caller]
    pub fn wait_for(&mut self, call: &str) -> &[String] {
        while !self.lines.iter().any(|line| line == call) {
            assert!(self.read(), "no {call:?} in {:?}", self.lines);
        }
        &self.lines
    }

    /// All calls, once the balancer is gone: to be asked when the proxy has ended.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn all(mut self) -> Vec<String> {
        while self.read() {}
        self.lines
    }

    /// Reads a line; false at the end.
    #[track_caller]
    fn read(&mut self) -> bool {
        let reader = self.reader.get_or_insert_with(|| {
            let (socket, _) = self.listener.accept().unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            BufReader::new(socket)
        });
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => false,
            Ok(_) => {
                self.lines.push(line.trim_end().to_owned());
                true
            }
            Err(e) => panic!("nothing more after {:?}: {e}", self.lines),
        }
    }
}
