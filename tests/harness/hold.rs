//! Holds a module inside a call: `tests/broken/waits` connects to this and goes on when its connection is closed.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use crate::eventually;

/// Where calls wait.
#[derive(Debug)]
pub struct Hold {
    path: PathBuf,
    listener: UnixListener,
    _folder: tempfile::TempDir,
}

impl Hold {
    /// With a socket of its own.
    #[expect(clippy::new_without_default, reason = "it makes a socket in the file system")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hold");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, path, _folder: folder }
    }

    /// A request that is held when its module is asked for an endpoint.
    pub fn request(&self, path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nX-Wait: {}\r\n\r\n", self.path.display())
    }

    /// The line of a cluster by which its balancers of so many members are held in this call, `build` or `drop`.
    pub fn settings(&self, call: &str, members: usize) -> String {
        format!("settings = {{ {call} = {:?}, members = {members} }}", self.path)
    }

    /// Waits until a call is inside; what it is held by.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn is_inside(&self) -> UnixStream {
        eventually("a call inside the module", || self.now_inside())
    }

    /// A call that is inside and was not seen before.
    pub fn now_inside(&self) -> Option<UnixStream> {
        self.listener.accept().ok().map(|(held, _)| held)
    }
}
