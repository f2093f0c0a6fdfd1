//! How answers of sources and operators' acts come to a disk: at most once a second, and the newest only. The disk is waited for on
//! another thread.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::state::{self, Answers};
use crate::discovery::answer::SourceAnswer;
use crate::process::two_files::TwoFiles;

/// News are written this often at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Longest words of an error that are said.
const MAX_ERROR_CHARS: usize = 400;

/// Two files, and the write that is on its way.
struct Writing {
    /// None where nothing is kept, and while it is being written.
    files: Option<TwoFiles>,
    task: Option<JoinHandle<(TwoFiles, io::Result<()>)>>,
    /// Not before this.
    next_at: Instant,
}

/// The last answers.
pub(super) struct Keeping {
    writing: Writing,
    /// Of an earlier run.
    stored: Answers,
    last: Answers,
    /// The files on the disk are out of date.
    is_new: bool,
}

/// Operators' acts, as the supervisor has put them in words. Nobody reads them here.
pub(super) struct KeptActs {
    writing: Writing,
    /// The newest, not written yet.
    newest: Option<(u64, Arc<str>)>,
    /// Those that are being written.
    written: Option<(u64, Arc<str>)>,
    /// The result of the last write, not said yet.
    unsaid: Option<(u64, Option<String>)>,
}

impl Writing {
    const fn is_busy(&self) -> bool {
        self.task.is_some()
    }

    /// Waits until the present write is over: its result.
    async fn result(&mut self) -> io::Result<()> {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let result = match task.await {
            Ok((files, result)) => {
                self.files = Some(files);
                result
            }
            // It has said so, and nothing more is kept.
            Err(_) => Err(io::Error::other("writing failed")),
        };
        self.task = None;
        self.next_at = Instant::now() + WRITE_EVERY;
        result
    }

    /// Begins a write.
    fn begin(&mut self, write: impl FnOnce(&mut TwoFiles) -> io::Result<()> + Send + 'static) {
        if let Some(mut files) = self.files.take() {
            self.task = Some(tokio::task::spawn_blocking(move || {
                let result = write(&mut files);
                (files, result)
            }));
        }
    }

    /// Whether anything can be written now, or soon.
    fn is_open(&self) -> bool {
        self.files.as_ref().is_some_and(TwoFiles::is_open)
    }
}

impl Keeping {
    /// On no disk.
    pub(super) fn nowhere() -> Self {
        Self::with(None, Answers::new())
    }

    /// In these files of a folder.
    pub(super) fn on(folder: &Path, files: [OwnedFd; 2]) -> Self {
        let (files, stored) = state::open(folder, files);
        Self::with(Some(files), stored)
    }

    fn with(files: Option<TwoFiles>, stored: Answers) -> Self {
        // By then all sources are known: what is written replaces what was stored.
        let next_at = Instant::now() + WRITE_EVERY;
        Self { writing: Writing { files, task: None, next_at }, stored, last: Answers::new(), is_new: false }
    }

    /// Has the files get the last answer of a source.
    pub(super) fn keep(&mut self, name: (String, String), answer: Arc<SourceAnswer>) {
        let before = self.last.insert(name, Arc::clone(&answer));
        self.is_new |= before != Some(answer);
    }

    /// The last answer of a source in an earlier run; once.
    pub(super) fn recall(&mut self, name: &(String, String)) -> Option<Arc<SourceAnswer>> {
        self.stored.remove(name)
    }

    /// The source is gone.
    pub(super) fn leave(&mut self, name: &(String, String)) {
        self.is_new |= self.last.remove(name).is_some();
    }

    fn has_work(&self) -> bool {
        self.is_new && self.writing.is_open()
    }

    /// Writes what is new at once, because the proxy ends.
    pub(super) async fn finish(&mut self) {
        while self.writing.is_busy() || self.has_work() {
            let is_last = self.writing.is_busy() && !self.is_new;
            self.writing.next_at = Instant::now();
            self.step().await;
            if is_last {
                return;
            }
        }
    }

    /// Writes what is new, at most once a second. Returns when there is more to do.
    pub(super) async fn step(&mut self) {
        if self.writing.is_busy() {
            self.is_new |= self.writing.result().await.is_err();
            return;
        }
        if !self.has_work() {
            return std::future::pending().await;
        }
        sleep_until(self.writing.next_at).await;
        let last = self.last.clone();
        self.is_new = false;
        self.writing.begin(move |files| state::write(files, &last));
    }
}

impl KeptActs {
    /// On no disk.
    pub(super) fn nowhere() -> Self {
        Self::with(None)
    }

    /// In these files of a folder. The supervisor has read them.
    pub(super) fn on(folder: &Path, files: [OwnedFd; 2]) -> Self {
        Self::with(Some(TwoFiles::open(folder, "acts", files).0))
    }

    fn with(files: Option<TwoFiles>) -> Self {
        let writing = Writing { files, task: None, next_at: Instant::now() };
        Self { writing, newest: None, written: None, unsaid: None }
    }

    /// Has the files get these.
    pub(super) fn keep(&mut self, number: u64, body: String) {
        self.newest = Some((number, body.into()));
    }

    /// The number of acts that are on the disk by now, or why they are not.
    pub(super) fn unsaid(&self) -> Option<(u64, Option<String>)> {
        self.unsaid.clone()
    }

    /// That was said.
    pub(super) fn is_said(&mut self) {
        self.unsaid = None;
    }

    /// Writes the newest at once, because the proxy ends.
    pub(super) async fn finish(&mut self) {
        if self.writing.is_busy() {
            self.step().await;
        }
        if self.newest.is_some() && self.writing.files.is_some() {
            self.writing.next_at = Instant::now();
            self.step().await;
            self.step().await;
        }
    }

    /// Writes the newest, at most once a second. Returns when there is more to do, or something to say.
    pub(super) async fn step(&mut self) {
        if self.writing.is_busy() {
            let result = self.writing.result().await;
            let Some((number, body)) = self.written.take() else { return };
            if result.is_err() && self.writing.is_open() {
                // Next time there may be room.
                self.newest.get_or_insert((number, body));
            }
            let error = result.err().map(|error| error.to_string().chars().take(MAX_ERROR_CHARS).collect());
            self.unsaid = Some((number, error));
            return;
        }
        if self.newest.is_none() || self.writing.files.is_none() {
            return std::future::pending().await;
        }
        sleep_until(self.writing.next_at).await;
        if let Some((number, body)) = self.newest.take() {
            self.written = Some((number, Arc::clone(&body)));
            self.writing.begin(move |files| files.write(Ok(body.as_bytes().to_vec())));
        }
    }
}
