//! A file and its changes.
//!
//! The folder is watched and not the file: orchestrators replace a file by a rename, and Kubernetes the folder behind a link
//! (`..data`). A poll finds what no event tells, such as a change of the folder that a link leads to.

use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

use super::answer::{MOST_BYTES, SourceAnswer};
use super::read::{AnswerForm, read, too_long};
use super::{DiscoverySource, DiskWork};
use crate::config::SourceSpec;

/// The file is read this often, whatever events tell.
const POLL_EVERY: Duration = Duration::from_secs(30);
/// Reading takes no longer, unless the disk does not answer.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// An event is followed by others: somebody who writes a file does more than one thing.
const EVENTS_SETTLE: Duration = Duration::from_millis(20);

/// A file that somebody else writes.
pub(super) struct FileSource {
    path: PathBuf,
    spec: Arc<SourceSpec>,
    watch: Option<pipe::Receiver>,
    look: DiskWork<Look>,
    /// It was read, and changes are waited for.
    was_read: bool,
}

/// A watch of the folder, where there was none, and the file's content.
struct Look {
    watch: Option<OwnedFd>,
    bytes: Result<Vec<u8>, String>,
}

impl FileSource {
    pub(super) fn new(path: &Path, spec: &Arc<SourceSpec>) -> Self {
        Self {
            path: path.to_owned(),
            spec: Arc::clone(spec),
            watch: None,
            look: DiskWork::NONE,
            was_read: false,
        }
    }

    /// Waits until the file may have changed.
    async fn changed(&mut self) {
        let Some(watch) = &self.watch else { return sleep(POLL_EVERY.min(Duration::from_secs(1))).await };
        if let Ok(Ok(())) = timeout(POLL_EVERY, watch.readable()).await {
            sleep(EVENTS_SETTLE).await;
            let mut is_lost = false;
            // The error says that all events were taken.
            let _ = watch.try_io(|| Err::<(), _>(take_events(watch, &mut is_lost)));
            if is_lost {
                self.watch = None;
            }
        }
    }
}

impl Look {
    /// Watches the folder, if it is there: before the file is read, so that no change goes unseen.
    fn at(path: &Path, has_watch: bool) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let watch = (!has_watch).then(|| watch(folder.unwrap_or(Path::new("."))).ok()).flatten();
        Self { watch, bytes: bytes_of(path) }
    }
}

impl DiscoverySource for FileSource {
    async fn next(&mut self) -> Result<Option<SourceAnswer>, String> {
        if std::mem::take(&mut self.was_read) {
            self.changed().await;
        }
        let (path, has_watch) = (self.path.clone(), self.watch.is_some());
        let shown = path.display().to_string();
        let look = self.look.result(move || Look::at(&path, has_watch));
        let look = match timeout(READ_TIMEOUT, look).await {
            Ok(look) => look,
            Err(_) => return Err(format!("{shown}: cannot be read within {READ_TIMEOUT:?}")),
        };
        self.was_read = true;
        let Look { watch, bytes } = look.map_err(|why| format!("{shown}: {why}"))?;
        if let Some(watch) = watch {
            // It is read like a pipe, and only its readiness is asked for.
            self.watch = pipe::Receiver::from_owned_fd_unchecked(watch).ok();
        }
        let bytes = bytes.map_err(|why| format!("{shown}: {why}"))?;
        let form = AnswerForm::of(&self.path);
        let (answer, n_twins) = read(&bytes, form, &self.spec).map_err(|why| format!("{shown}: {why}"))?;
        if n_twins > 0 {
            tracing::warn!("{shown}: {n_twins} servers are left out: they are named before");
        }
        Ok(Some(answer))
    }
}

/// Takes all events; the error that ended it is returned. `is_lost` where the folder itself is gone, or is another one.
fn take_events(watch: &pipe::Receiver, is_lost: &mut bool) -> io::Error {
    const LOST: ReadFlags = ReadFlags::IGNORED
        .union(ReadFlags::MOVE_SELF)
        .union(ReadFlags::DELETE_SELF)
        .union(ReadFlags::UNMOUNT);
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    loop {
        match events.next() {
            Ok(event) => *is_lost |= event.events().intersects(LOST),
            Err(error) => return error.into(),
        }
    }
}

fn watch(folder: &Path) -> io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::ATTRIB
        | WatchFlags::MOVE_SELF
        | WatchFlags::DELETE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&watch, folder, changes)?;
    Ok(watch)
}

/// A file's content; of something that is none, what it is.
pub(crate) fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    // A pipe or a device would be waited for without this.
    let flags = i32::try_from(OFlags::NONBLOCK.bits() | OFlags::NOCTTY.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| format!("cannot be opened: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err(if metadata.is_dir() { "is a folder" } else { "is not a regular file" }.to_owned());
    }
    let mut bytes = Vec::new();
    let most = MOST_BYTES as u64 + 1;
    file.take(most).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > MOST_BYTES { Err(too_long()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::config::{MayName, SourceKind, WhenEmpty};

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_is_asked_once_and_its_late_answer_counts() {
        let spec = SourceSpec {
            cluster: "app".into(),
            name: "file".into(),
            kind: SourceKind::File { path: "/servers.json".into() },
            may_name: MayName { http: true, https: false, unix: vec![] },
            empty: WhenEmpty::Keep,
            settle: Duration::ZERO,
        };
        let mut source = FileSource::new(Path::new("/servers.json"), &Arc::new(spec));
        let (disk, answer) = oneshot::channel();
        source.look = DiskWork(Some(tokio::spawn(async { answer.await.unwrap() })));
        for _ in 0..3 {
            assert_eq!(source.next().await, Err("/servers.json: cannot be read within 10s".to_owned()));
        }
        let _ = disk.send(Look { watch: None, bytes: Ok(b"[\"http://a\"]".to_vec()) });
        assert_eq!(source.next().await.unwrap().unwrap().members.len(), 1);
    }
}
