//! The access log: one line for each request, in combined format and then how it was balanced.
//!
//! ```text
//! 10.0.0.9 - - [23/Nov/2026:01:40:34 +0000] "GET /x HTTP/1.1" 200 130 "-" "curl/8.5.0" cluster=api module=round_robin
//!   endpoint=http://127.0.0.1:9001 tries="http://127.0.0.1:9002 connect 0.000312, http://127.0.0.1:9001 served 200 0.002107"
//!   time=0.003110 first_byte=0.002044
//! ```
//! It is one line, unless `format` asks for another form: `combined`, `json`, or a template of fields. Times are in seconds. If
//! requests have IDs, `request_id=…` ends the line. Bytes that could end a field or a line are written as `\xHH`, as in nginx.
//!
//! A request never waits for the log. Each worker thread formats lines into a buffer of its own ([`AccessLogWriter`]). It hands the
//! buffer over when it is full, or every second, through a bounded channel. One thread writes. If that thread is too slow,
//! lines are dropped and counted, with one warning every ten seconds.

mod json;
mod line;
mod template;
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

use crate::config::{AccessLogTarget, LogFormat};
use crate::os::blocking_writer::BlockingWriter;
use crate::os::trusted_path::{LastName, SafePath};

use self::line::LogDate;

pub use self::line::{LogEntry, TlsSeen, Try};

/// Bytes of a chunk: some 150 lines, so that the channel costs a line next to nothing.
const CHUNK_BYTES: usize = 32 * 1024;
/// Maximum chunks in the channel: 2 MiB while the disk is busy.
const QUEUED_CHUNKS: usize = 64;
/// Timeout without a written line when the log ends: the reader of a pipe may be stalled.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two checks whether the log's thread has ended.
const END_PAUSE: Duration = Duration::from_millis(1);
/// Interval of repeated warnings.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The log of one worker: a thread that writes the chunks of all [`AccessLogWriter`]s. Drop the writers first: dropping the log
/// writes what is in the channel and ends the thread. It gives up after a second without a written line.
#[derive(Debug)]
pub struct AccessLog {
    sender: SyncSender<LogMessage>,
    shared: Arc<LogState>,
    /// The form of its lines.
    format: Arc<LogFormat>,
    /// Until it is ended. Locked by nobody who serves.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Counts of lines.
#[derive(Debug, Default)]
pub struct LineCounts {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// The log of one worker thread.
#[derive(Debug)]
pub struct AccessLogWriter {
    sender: SyncSender<LogMessage>,
    shared: Arc<LogState>,
    chunk: LogChunk,
    date: LogDate,
    format: Arc<LogFormat>,
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
        Ok(Self { sender, shared, format: Arc::default(), thread: Mutex::new(Some(thread)) })
    }

    /// With lines of this form, for the writers to come.
    #[must_use]
    pub fn with_format(mut self, format: &Arc<LogFormat>) -> Self {
        self.format = Arc::clone(format);
        self
    }

    /// A writer for one thread.
    pub fn writer(&self) -> AccessLogWriter {
        AccessLogWriter {
            sender: self.sender.clone(),
            shared: Arc::clone(&self.shared),
            chunk: LogChunk::default(),
            date: LogDate::default(),
            format: Arc::clone(&self.format),
        }
    }

    /// The counts, for the metrics.
    pub fn lines(&self) -> Arc<LineCounts> {
        Arc::clone(&self.shared.lines)
    }

    /// Reopens the file by its name, after a rotation. Returns at once: the log's thread reopens it before it writes the next
    /// chunk. If that fails, it logs an error and keeps the old file.
    pub fn reopen(&self) {
        self.reopen_as(ReopenFrom::ByName);
    }

    /// As [`Self::reopen`], with a file that is open already.
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
            // If the channel is full, it is tried again. Nothing serves any more, so waiting is fine.
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
                tracing::warn!("access log: last lines lost because the reader is stalled");
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

impl AccessLogWriter {
    /// Writes the line of a request that has just ended, with its tries in order.
    pub fn log<'t>(
        &mut self,
        entry: &LogEntry<'_>,
        tries: impl IntoIterator<Item = Try<'t>, IntoIter: Clone>,
    ) {
        self.log_at(SystemTime::now(), entry, tries);
    }

    /// Hands over the buffered lines. The owning thread calls it about once a second, so that lines do not wait for traffic.
    /// Dropping the writer does it too.
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

    fn log_at<'t>(
        &mut self,
        now: SystemTime,
        entry: &LogEntry<'_>,
        tries: impl IntoIterator<Item = Try<'t>, IntoIter: Clone>,
    ) {
        if self.chunk.bytes.len() >= CHUNK_BYTES {
            self.flush();
            if self.chunk.n_lines > 0 {
                self.shared.drop_lines(1);
                return;
            }
        }
        self.date.set(now);
        let (line, date) = (&mut self.chunk.bytes, &self.date);
        match &*self.format {
            LogFormat::Full => entry.format(line, date.text(), tries),
            LogFormat::Combined => entry.format_combined(line, date.text()),
            LogFormat::Json => entry.format_json(line, date, tries),
            LogFormat::Template(parts) => entry.format_template(line, date, parts, tries),
        }
        self.chunk.n_lines += 1;
    }
}

impl Drop for AccessLogWriter {
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
    /// A request to reopen the file before the next chunk. Never locked by a thread that serves.
    reopen: Mutex<Option<ReopenFrom>>,
    /// Time of the last warning about dropped lines, in seconds since 1970.
    warned_s: AtomicU64,
}

impl LogState {
    /// Counts dropped lines, and warns at intervals. The thread that drops them warns, because the writing thread may be
    /// blocked in a write.
    fn drop_lines(&self, n: u64) {
        let dropped = self.lines.dropped.fetch_add(n, Ordering::Relaxed) + n;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let warned_s = self.warned_s.load(Ordering::Relaxed);
        let due = now_s.abs_diff(warned_s) >= WARN_EVERY.as_secs();
        if due
            && self.warned_s.compare_exchange(warned_s, now_s, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!(dropped, "access log: lines dropped because writing is too slow");
        }
    }
}

/// Where the new file comes from.
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
    /// Wakes the thread to reopen the file.
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
    /// The last write ended within a line, which the next write has to end first.
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
        // Chunks of writers that were dropped meanwhile.
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
                    tracing::warn!(%error, "access log {file}: write failed, lines are lost");
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
                tracing::info!("access log {name}: reopened");
            }
            Err(error) => {
                tracing::error!(%error, "access log {name}: cannot be reopened; the old file stays in use");
            }
        }
    }
}

impl LogOutput {
    /// Writes whole lines. An error comes with the number of bytes written before it.
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

/// Opens or creates a file for an access log, to append to. A named pipe is opened for reading too: so it needs no reader now,
/// and its reader sees no end when one worker hands over to the next.
///
/// # Errors
/// The file cannot be opened or created, or another user could have put a symbolic link on its path (see
/// `os/trusted_path.rs`).
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
