//! The calls of a module, in its own words: `tests/broken/records-calls` writes a line for each call to
//! a socket whose path its settings name.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::DEADLINE;

/// The calls of one balancer, or of all of a cluster.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    _folder: tempfile::TempDir,
}

#[derive(Debug, Default)]
struct Heard {
    lines: Vec<String>,
    /// The balancer is gone.
    ended: bool,
    /// Balancers that are there.
    n_open: usize,
}

impl Journal {
    /// A journal for one cluster.
    #[expect(clippy::new_without_default, reason = "it makes a socket in the file system")]
    pub fn new() -> Self {
        Self::of(1)
    }

    /// The same for all that are built of one cluster while its servers change.
    pub fn of_all_balancers() -> Self {
        Self::of(usize::MAX)
    }

    fn of(n_balancers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let listener = UnixListener::bind(&path).unwrap();
        let heard = Arc::new((Mutex::default(), Condvar::new()));
        // Read as it comes, lest the module waits for its reader.
        std::thread::spawn({
            let heard = Arc::clone(&heard);
            move || listen(&listener, n_balancers, &heard)
        });
        Self { path, heard, _folder: folder }
    }

    /// The module's settings: `answers` to the calls of `next` of each request, in their order. See the module.
    pub fn settings(&self, answers: &[&str]) -> String {
        format!("{{ journal = {:?}, answers = {answers:?} }}", self.path)
    }

    /// Waits until the module has been called for this, and says what it was called for up to now.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn wait_for(&self, call: &str) -> Vec<String> {
        self.wait_until(call, |heard| heard.lines.iter().any(|line| line == call))
    }

    /// All calls, once the balancer is gone: to be asked when the proxy has ended.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn all(self) -> Vec<String> {
        self.wait_until("its end", |heard| heard.ended)
    }

    /// Their calls so far.
    pub fn so_far(&self) -> Vec<String> {
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Balancers that were built and not dropped yet.
    pub fn n_open(&self) -> usize {
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).n_open
    }

    #[track_caller]
    fn wait_until(&self, what: &str, happened: impl Fn(&Heard) -> bool) -> Vec<String> {
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (heard, _) = self
            .heard
            .1
            .wait_timeout_while(heard, DEADLINE, |heard| !happened(heard))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(happened(&heard), "waited in vain for {what:?} in {:?}", heard.lines);
        heard.lines.clone()
    }
}

fn listen(listener: &UnixListener, n_balancers: usize, heard: &Arc<(Mutex<Heard>, Condvar)>) {
    let mut readers = Vec::new();
    for socket in listener.incoming().map_while(Result::ok).take(n_balancers) {
        heard.0.lock().unwrap_or_else(PoisonError::into_inner).n_open += 1;
        let heard = Arc::clone(heard);
        readers.push(std::thread::spawn(move || read(socket, &heard)));
    }
    // Balancers of other tiers connect too, and are not heard: the socket stays until the first one ends.
    for reader in readers {
        reader.join().expect("a reader panics only where it cannot read");
    }
}

fn read(socket: UnixStream, (heard, changed): &(Mutex<Heard>, Condvar)) {
    for line in BufReader::new(socket).lines().map_while(Result::ok) {
        heard.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line.trim_end().to_owned());
        changed.notify_all();
    }
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.n_open -= 1;
    heard.ended = heard.n_open == 0;
    drop(heard);
    changed.notify_all();
}
