//! One line a request: combined format, then what the balancing did.
//!
//! ```text
//! 10.0.0.9 - - [23/Nov/2026:01:40:34 +0000] "GET /x HTTP/1.1" 200 130 "-" "curl/8.5.0" cluster=api module=round_robin
//!   endpoint=http://127.0.0.1:9001 tries="http://127.0.0.1:9002 connect 0.000312, http://127.0.0.1:9001 served 200 0.002107"
//!   time=0.003110 first_byte=0.002044
//! ```
//! (in one line; times in seconds; ` request_id=…` at its end where requests have IDs.) Bytes that could end a field or a line are written as `\xHH`, as nginx does.
//!
//! A request never waits for the log. Each worker thread formats into a buffer of its own ([`LogWriter`]) and hands it over
//! when it is full, or every second, through a channel of fixed length; one thread writes. Where that cannot keep up,
//! lines are dropped, counted, and spoken of in one warning a while.

mod line;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl};

use crate::config::AccessLogTarget;
use crate::os::blocking_writer::BlockingWriter;
use crate::os::trusted_path::{LastName, SafePath};

use self::line::LogDate;

pub use self::line::{LogEntry, Try};

/// Bytes that are handed over at once: some 150 lines, so that the channel costs a line next to nothing.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks that may wait to be written: 2 MiB at most while the disk is busy.
const QUEUED_CHUNKS: usize = 64;
/// At the end, what is handed over is written as long as this does not pass without a line: whoever reads a pipe may have
/// stopped.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks whether it is.
const END_PAUSE: Duration = Duration::from_millis(1);
/// Between two warnings about the same trouble.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The log of one worker: a thread that writes what the [`LogWriter`]s hand over. Dropping it writes what it was handed
/// and ends the thread, so drop the writers first; it gives up after a second in which no line could be written.
#[derive(Debug)]
pub struct AccessLog {
    sender: SyncSender<LogMessage>,
    shared: Arc<LogState>,
    /// Until it is ended. Locked by nobody who serves.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How many lines there were.
#[derive(Debug, Default)]
pub struct LineCounts {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// One thread's end of the log.
#[derive(Debug)]
pub struct LogWriter {
    sender: SyncSender<LogMessage>,
    shared: Arc<LogState>,
    chunk: LogChunk,
    date: LogDate,
}

impl AccessLog {
    /// Opens the log, or `None` where it is off. `opened` is its file where somebody else had to open it (see
    /// [`append_to`]): a supervisor may do what a worker, which has dropped its privileges, may not.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub fn open(target: &AccessLogTarget, opened: Option<File>) -> io::Result<Option<Self>> {
        let (path, file): (_, Box<dyn Write + Send>) = match (target, opened) {
            (AccessLogTarget::Off, _) => return Ok(None),
            (AccessLogTarget::Stdout, None) => (None, Box::new(BlockingWriter(rustix::stdio::stdout()))),
            (AccessLogTarget::Stdout, Some(file)) => (None, Box::new(BlockingWriter(file))),
            (AccessLogTarget::File(path), None) => (Some(path.clone()), Box::new(append_to(path)?)),
            (AccessLogTarget::File(path), Some(file)) => (Some(path.clone()), Box::new(file)),
        };
        Self::start(LogOutput { path, file, broken_line: false }).map(Some)
    }

    fn start(output: LogOutput) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUED_CHUNKS);
        let shared = Arc::new(LogState::default());
        let scribe = LogThread { output, shared: Arc::clone(&shared), warned: None };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || scribe.run(&receiver))?;
        Ok(Self { sender, shared, thread: Mutex::new(Some(thread)) })
    }

    /// A thread's end of the log.
    pub fn writer(&self) -> LogWriter {
        LogWriter {
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
            chunk: LogChunk::default(),
            date: LogDate::default(),
        }
    }

    /// The counts, for the metrics.
    pub fn lines(&self) -> Arc<LineCounts> {
        Arc::clone(&self.shared.lines)
    }

    /// Opens the file again by its name, after a rotation. Returns at once: the log's thread does it, before it writes
    /// what is handed over from now on. If that fails, it goes on with the old file and says so.
    pub fn reopen(&self) {
        self.reopen_as(ReopenFrom::ByName);
    }

    /// As [`Self::reopen`], with the file that somebody else has opened.
    pub fn reopen_with(&self, file: File) {
        self.reopen_as(ReopenFrom::With(file));
    }

    /// Writes what was handed over and ends the thread, as dropping the log does. The writers are to be gone by then: what
    /// they hand over later is lost.
    pub fn end(&self) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut end = Some(LogMessage::End);
        let (mut n_lines, mut since) = (self.shared.lines.total(), Instant::now());
        loop {
            // Where the channel is full, it is tried again: nothing serves any more, so to wait is right here.
            if let Some(message) = end.take()
                && let Err(TrySendError::Full(message)) = self.sender.try_send(message)
            {
                end = Some(message);
            }
            if thread.is_finished() {
                let _ = thread.join();
                return;
            }
            let now_lines = self.shared.lines.total();
            if n_lines != now_lines {
                (n_lines, since) = (now_lines, Instant::now());
            }
            if since.elapsed() >= END_TIMEOUT {
                tracing::warn!("access log: the last lines are lost because nobody takes them");
                return;
            }
            thread::sleep(END_PAUSE);
        }
    }

    fn reopen_as(&self, reopen: ReopenFrom) {
        *self.shared.reopen.lock().unwrap_or_else(PoisonError::into_inner) = Some(reopen);
        // If the channel is full, the thread is awake and looks for it before its next chunk.
        let _ = self.sender.try_send(LogMessage::Wake);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.end();
    }
}

impl LineCounts {
    /// LineCounts that were written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// LineCounts that were lost, because the disk was too slow or refused them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn total(&self) -> u64 {
        self.written().wrapping_add(self.dropped())
    }
}

impl LogWriter {
    /// Writes one line about a request that is over now, with its tries in the order they were made.
    pub fn log<'t>(&mut self, entry: &LogEntry<'_>, tries: impl IntoIterator<Item = Try<'t>>) {
        self.log_at(SystemTime::now(), entry, tries);
    }

    /// Hands over what is buffered. To be called about once a second by the thread that owns it, so that lines are not
    /// kept back while there is no traffic; dropping does it too.
    pub fn flush(&mut self) {
        if self.chunk.n_lines == 0 {
            return;
        }
        match self.sender.try_send(LogMessage::LogChunk(std::mem::take(&mut self.chunk))) {
            Ok(()) => {}
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                let LogMessage::LogChunk(chunk) = message else { unreachable!("it was sent as a chunk") };
                self.chunk = chunk;
            }
        }
    }

    fn log_at<'t>(&mut self, now: SystemTime, entry: &LogEntry<'_>, tries: impl IntoIterator<Item = Try<'t>>) {
        if self.chunk.bytes.len() >= CHUNK_BYTES {
            self.flush();
            if self.chunk.n_lines > 0 {
                self.shared.drop_lines(1);
                return;
            }
        }
        self.date.set(now);
        entry.format(&mut self.chunk.bytes, self.date.text(), tries);
        self.chunk.n_lines += 1;
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
        if self.chunk.n_lines > 0 {
            self.shared.drop_lines(self.chunk.n_lines);
        }
    }
}

#[derive(Debug, Default)]
struct LogState {
    lines: Arc<LineCounts>,
    /// What to do before the next chunk. Locked by the thread that writes and by who has it reopen, never by one that
    /// serves.
    reopen: Mutex<Option<ReopenFrom>>,
    /// Seconds since 1970 at the last warning about lines dropped.
    warned_s: AtomicU64,
}

impl LogState {
    /// Counts, and warns unless somebody did a moment ago. The warning comes from the thread that dropped, because the
    /// one that writes may be stuck in a write.
    fn drop_lines(&self, n: u64) {
        let dropped = self.lines.dropped.fetch_add(n, Ordering::Relaxed) + n;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let warned_s = self.warned_s.load(Ordering::Relaxed);
        let due = now_s.abs_diff(warned_s) >= WARN_EVERY.as_secs();
        if due
            && self.warned_s.compare_exchange(warned_s, now_s, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!(dropped, "access log: lines are dropped because writing them cannot keep up");
        }
    }
}

/// How to come by the file anew.
#[derive(Debug)]
enum ReopenFrom {
    ByName,
    With(File),
}

/// Whole lines.
#[derive(Debug, Default)]
struct LogChunk {
    bytes: Vec<u8>,
    n_lines: u64,
}

#[derive(Debug)]
enum LogMessage {
    LogChunk(LogChunk),
    /// There may be something else to do.
    Wake,
    End,
}

// ---- the thread that writes -----------------------------------------------------------------------------------------

struct LogThread {
    output: LogOutput,
    shared: Arc<LogState>,
    warned: Option<Instant>,
}

/// Where lines go.
struct LogOutput {
    path: Option<PathBuf>,
    file: Box<dyn Write + Send>,
    /// A write failed within a line, so that the next one must end that first.
    broken_line: bool,
}

impl LogThread {
    fn run(mut self, receiver: &Receiver<LogMessage>) {
        while let Ok(message) = receiver.recv() {
            let reopen = self.shared.reopen.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(reopen) = reopen {
                self.reopen(reopen);
            }
            match message {
                LogMessage::LogChunk(chunk) => self.write(&chunk),
                LogMessage::Wake => {}
                LogMessage::End => break,
            }
        }
        // Chunks of writers that were dropped while the end was on its way.
        for message in receiver.try_iter() {
            if let LogMessage::LogChunk(chunk) = message {
                self.write(&chunk);
            }
        }
    }

    fn write(&mut self, chunk: &LogChunk) {
        let n_written = match self.output.write(&chunk.bytes) {
            Ok(()) => chunk.n_lines,
            Err((error, n_bytes)) => {
                if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    let file = self.output.name();
                    tracing::warn!(%error, "access log {file}: lines are lost because writing fails");
                }
                memchr::memchr_iter(b'\n', &chunk.bytes[..n_bytes]).count() as u64
            }
        };
        self.shared.lines.written.fetch_add(n_written, Ordering::Relaxed);
        self.shared.lines.dropped.fetch_add(chunk.n_lines - n_written, Ordering::Relaxed);
    }

    fn reopen(&mut self, how: ReopenFrom) {
        let opened = match (how, &self.output.path) {
            (ReopenFrom::With(file), _) => Ok(file),
            (ReopenFrom::ByName, Some(path)) => append_to(path),
            (ReopenFrom::ByName, None) => return,
        };
        let name = self.output.name();
        match opened {
            Ok(file) => {
                self.output.file = Box::new(file);
                self.output.broken_line = false;
                tracing::info!("access log {name}: opened again");
            }
            Err(error) => {
                tracing::error!(%error, "access log {name}: cannot be reopened; the old file stays in use");
            }
        }
    }
}

impl LogOutput {
    /// Writes whole lines, or says how many bytes of them went before the error.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let mut n_done = 0;
        if self.broken_line {
            self.file.write_all(b"\n").map_err(|error| (error, n_done))?;
            self.broken_line = false;
        }
        while n_done < bytes.len() {
            match self.file.write(&bytes[n_done..]) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), n_done)),
                Ok(n) => {
                    n_done += n;
                    self.broken_line = bytes[n_done - 1] != b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, n_done)),
            }
        }
        self.file.flush().map_err(|error| (error, n_done))
    }

    fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "stdout".into(), |path| path.display().to_string())
    }
}

/// Opens a file for an access log: lines go to its end, whoever else writes to it. A named pipe is opened for reading too:
/// so it needs no reader now, and a reader sees no end when one worker hands over to the next.
///
/// # Errors
/// It cannot be opened or made; or there is a symbolic link on the way that somebody else could have put there (see
/// [`trusted_path`](crate::os::trusted_path)).
pub fn append_to(path: &Path) -> io::Result<File> {
    let way = SafePath::find(path, LastName::Follow)?;
    // Not to wait for the reader of a pipe; afterwards it may block, in the thread that writes.
    let open = |flags| way.open(flags | OFlags::APPEND | OFlags::NONBLOCK, Mode::from_raw_mode(0o666));
    let is_pipe = way.stat().is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
    let file = match open(if is_pipe { OFlags::RDWR } else { OFlags::WRONLY | OFlags::CREATE }) {
        // Only its reader may read.
        Err(error) if is_pipe && error.kind() == io::ErrorKind::PermissionDenied => open(OFlags::WRONLY)?,
        opened => opened?,
    };
    fcntl_setfl(&file, fcntl_getfl(&file)? & !OFlags::NONBLOCK)?;
    Ok(file)
}
