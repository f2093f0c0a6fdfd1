//! Lines of the log on their way to stderr, a file or syslog. To log never waits: a line is handed over, and one thread writes.
//!
//! ```text
//! serving threads, background, supervisor ── lines ──► at most 4,096 lines, 1 MiB ──► thread "log" ──► stderr, …
//!                                                └─► dropped and counted where it is full
//! ```
//!
//! A reader that stops reading (a container's log driver, a pager), a full disk or a syslog daemon that is gone therefore stops
//! the log and nothing else. Lost lines are counted; their number is logged as soon as lines are taken again. [`LogQueue::drain`] waits, for a
//! limited time, until all lines are written: a process calls it before it ends, and before it would `exec` something.
//! A process that dies by a signal waits a moment too (`settle`), because its last lines often tell why.
//!
//! The thread touches the queue and its output, and nothing else of the process. It takes no signal, holds no lock while it
//! writes, and [`std::process::Command`] starts children without running code of ours between fork and exec. So a process
//! that has no other thread, as the supervisor, stays as simple as it was.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::log_output::{self, LogOutput, count};

/// Lines that may wait. The queue's slots cost 128 KiB.
const MAX_LINES: usize = 4096;
/// Bytes that may wait.
const MAX_BYTES: usize = 1 << 20;
/// Written at once at most: a pipe takes as much as one piece (PIPE_BUF), so that lines of several processes on one pipe
/// do not mix.
const BATCH_BYTES: usize = 4096;
/// Between two lines about dropped lines.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// While lines were lost: between two tries to say so.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// For lines that wait for their output, before another one takes its place.
const SWITCH_TIMEOUT: Duration = Duration::from_millis(100);
/// For a dying process to have its last lines written.
const SETTLE: Duration = Duration::from_millis(50);

/// The queue of this process, once it is started.
static PROCESS: OnceLock<LogQueue> = OnceLock::new();

/// A bounded queue of lines; a thread writes them.
#[derive(Debug)]
pub(crate) struct LogQueue {
    sender: SyncSender<Box<[u8]>>,
    shared: Arc<LogQueueState>,
}

/// A writer for [`tracing_subscriber`]: each write is one or more whole lines.
#[derive(Clone, Copy, Debug)]
pub struct LogWriter(&'static LogQueue);

/// Logs that so many lines were lost, and of which output, if it is not stderr.
type SayDropped = fn(u64, Option<&Path>);

#[derive(Default)]
struct LogQueueState {
    /// Bytes that were handed over and are not written yet.
    waiting: AtomicUsize,
    /// Lines that were dropped since the last time it was said.
    dropped: AtomicU64,
    /// The output that takes the present one's place. Never locked by a thread that serves.
    next: Mutex<Option<Box<dyn LogOutput>>>,
    /// Taken by the thread that writes after each batch, and by one that waits for the end; never by one that logs.
    written: Mutex<()>,
    has_written: Condvar,
}

impl fmt::Debug for LogQueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogQueueState").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

thread_local! {
    /// On the thread that writes: what it logs itself, to be written next.
    static OWN: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Starts this process's queue to stderr. `say_dropped` logs how many lines were dropped; it runs on the thread that
/// writes. To be called before any other thread starts and before signals are blocked for good.
///
/// # Errors
/// The system gives no thread.
pub fn start(say_dropped: SayDropped) -> io::Result<LogWriter> {
    if let Some(queue) = PROCESS.get() {
        return Ok(LogWriter(queue));
    }
    let queue = LogQueue::start(Box::new(log_output::stderr()), say_dropped)?;
    Ok(LogWriter(PROCESS.get_or_init(|| queue)))
}

/// Has lines go to another output from now on, if this process has a queue; false if not. Lines before go to the old one, unless it
/// takes nothing for a tenth of a second.
pub(crate) fn write_to(output: Box<dyn LogOutput>) -> bool {
    let Some(queue) = PROCESS.get() else { return false };
    queue.drain(SWITCH_TIMEOUT);
    *queue.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
    true
}

/// Writes a line to stderr, unless that would wait.
pub fn try_stderr(line: &str) {
    let stderr = rustix::stdio::stderr();
    let at_once = Timespec::default();
    // A pipe that has room takes as much as one piece (PIPE_BUF).
    let line = &line.as_bytes()[..line.len().min(BATCH_BYTES)];
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&at_once)).is_ok_and(|n| n > 0) {
        let _ = rustix::io::write(stderr, line);
    }
}

/// Waits a moment until this process's lines are written, if it has a queue. Safe in a signal handler: it only reads
/// atomics and sleeps.
pub(crate) fn settle() {
    let Some(queue) = PROCESS.get() else { return };
    let pause = Duration::from_millis(1);
    for _ in 0..SETTLE.as_millis() {
        if queue.shared.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        thread::sleep(pause);
    }
}

impl LogQueue {
    fn start(output: Box<dyn LogOutput>, say_dropped: SayDropped) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(MAX_LINES);
        let shared = Arc::new(LogQueueState::default());
        let scribe =
            LogScribe { output, shared: Arc::clone(&shared), say_dropped, said: None, failing: None };
        // Blocked here and inherited there, so that no signal ever finds the thread: what they mean is decided elsewhere.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let thread = thread::Builder::new().name("log".into()).spawn(move || scribe.run(&receiver));
        before.thread_set_mask()?;
        thread.map(|_| Self { sender, shared })
    }

    /// Hands over whole lines. Returns at once; where they do not fit, they are dropped and counted.
    fn say(&self, lines: &[u8]) {
        let is_own = OWN.try_with(|own| match own.try_borrow_mut().as_deref_mut() {
            Ok(Some(own)) => {
                own.extend_from_slice(lines);
                true
            }
            _ => false,
        });
        if is_own == Ok(true) {
            return;
        }
        let waiting = self.shared.waiting.fetch_add(lines.len(), Ordering::AcqRel);
        if waiting.saturating_add(lines.len()) > MAX_BYTES || self.sender.try_send(lines.into()).is_err() {
            self.shared.waiting.fetch_sub(lines.len(), Ordering::AcqRel);
            self.shared.dropped.fetch_add(count(lines), Ordering::Relaxed);
        }
    }

    /// Waits until everything that was handed over is written, for so long at most. False where some of it is not.
    fn drain(&self, limit: Duration) -> bool {
        let written = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
        let is_waiting = |(): &mut ()| self.shared.waiting.load(Ordering::Acquire) > 0;
        let waited = self.shared.has_written.wait_timeout_while(written, limit, is_waiting);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl LogWriter {
    /// As [`LogQueue::say`].
    pub fn say(self, lines: &[u8]) {
        self.0.say(lines);
    }

    /// As [`LogQueue::drain`].
    pub fn drain(self, limit: Duration) -> bool {
        self.0.drain(limit)
    }
}

impl Write for LogWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.say(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ---- the thread that writes -----------------------------------------------------------------------------------------

struct LogScribe {
    output: Box<dyn LogOutput>,
    shared: Arc<LogQueueState>,
    say_dropped: SayDropped,
    said: Option<Instant>,
    /// The output that took nothing last, as far as stderr was told.
    failing: Option<PathBuf>,
}

impl LogScribe {
    fn run(mut self, receiver: &Receiver<Box<[u8]>>) {
        OWN.set(Some(Vec::new()));
        let (mut batch, mut next) = (Vec::with_capacity(BATCH_BYTES), None);
        while let Some(first) = next.take().or_else(|| self.first(receiver)) {
            batch.extend_from_slice(&first);
            for line in receiver.try_iter() {
                if batch.len() + line.len() > BATCH_BYTES {
                    next = Some(line);
                    break;
                }
                batch.extend_from_slice(&line);
            }
            let n_lost = self.write(&batch);
            self.shared.dropped.fetch_add(n_lost, Ordering::Relaxed);
            if n_lost == 0 {
                self.say_what_was_dropped(next.is_none());
            }
            self.shared.waiting.fetch_sub(batch.len(), Ordering::AcqRel);
            drop(self.shared.written.lock());
            self.shared.has_written.notify_all();
            batch.clear();
        }
    }

    /// The next line; meanwhile, what was lost is said as soon as that is possible.
    fn first(&mut self, receiver: &Receiver<Box<[u8]>>) -> Option<Box<[u8]>> {
        loop {
            if self.shared.dropped.load(Ordering::Relaxed) == 0 {
                return receiver.recv().ok();
            }
            match receiver.recv_timeout(RETRY_EVERY) {
                Ok(line) => return Some(line),
                Err(RecvTimeoutError::Timeout) => self.say_what_was_dropped(true),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Writes these lines, and says how many of them are lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if let Some(next) = self.shared.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.output = next;
        }
        match self.output.write_lines(lines) {
            Ok(()) => {
                self.failing = None;
                0
            }
            Err((error, n_lost)) => {
                if let Some(path) = self.output.name().filter(|path| self.failing.as_deref() != Some(path)) {
                    try_stderr(&format!("log \"{}\": lines are lost: {error}\n", path.display()));
                    self.failing = Some(path.to_owned());
                }
                n_lost
            }
        }
    }

    /// Once nothing waits, or now and then where something always does.
    fn say_what_was_dropped(&mut self, is_empty: bool) {
        let is_due = is_empty || self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY);
        if !is_due || self.shared.dropped.load(Ordering::Relaxed) == 0 {
            return;
        }
        let n = self.shared.dropped.swap(0, Ordering::Relaxed);
        (self.say_dropped)(n, self.output.name());
        self.said = Some(Instant::now());
        let own = OWN.with_borrow_mut(|own| own.as_mut().map(std::mem::take)).unwrap_or_default();
        if self.write(&own) > 0 {
            // Said when lines are taken again.
            self.shared.dropped.fetch_add(n, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead as _, BufReader};

    use super::*;

    fn ignore(_: u64, _: Option<&Path>) {}

    /// Logs as the program's own lines are: by whoever runs it.
    fn tell(n: u64, _: Option<&Path>) {
        TOLD.get().expect("a test that drops lines").say(format!("{n} dropped\n").as_bytes());
    }

    fn stream(file: File) -> Box<dyn LogOutput> {
        Box::new(log_output::StreamOutput::new(file, None))
    }

    static TOLD: OnceLock<LogQueue> = OnceLock::new();

    /// A queue to a pipe that nobody reads yet.
    fn queue(say_dropped: SayDropped) -> (LogQueue, BufReader<File>) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (LogQueue::start(stream(writer.into()), say_dropped).unwrap(), BufReader::new(reader.into()))
    }

    #[test]
    fn lines_come_whole_and_in_their_order() {
        let (queue, reader) = queue(ignore);
        let long = "x".repeat(2 * BATCH_BYTES);
        for i in 0..500 {
            queue.say(format!("line {i}\n").as_bytes());
        }
        queue.say(format!("{long}\n").as_bytes());
        let reading = thread::spawn(|| reader.lines().take(501).map(Result::unwrap).collect::<Vec<_>>());
        assert!(queue.drain(Duration::from_secs(20)));
        let lines = reading.join().unwrap();
        assert!((0..500).all(|i| lines[i] == format!("line {i}")) && lines[500] == long);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read_and_what_is_dropped_is_said() {
        let (made, mut reader) = queue(tell);
        let queue = TOLD.get_or_init(|| made);
        // More than the pipe (64 KiB) and the queue hold together.
        let line = format!("{}\n", "x".repeat(1023));
        let n_sent: u64 = 2048;
        for _ in 0..n_sent {
            queue.say(line.as_bytes());
        }
        assert!(!queue.drain(Duration::ZERO), "nobody has read anything");
        let (mut n_read, mut n_dropped) = (0, 0);
        while n_read + n_dropped < n_sent {
            let mut text = String::new();
            reader.read_line(&mut text).unwrap();
            match text.strip_suffix(" dropped\n") {
                Some(n) => n_dropped += n.parse::<u64>().unwrap(),
                None => n_read += u64::from(text == line),
            }
        }
        assert!(n_read >= 1000 && n_dropped > 900, "{n_read} {n_dropped}");
        assert!(queue.drain(Duration::from_secs(20)), "it goes on");
    }

    #[test]
    fn a_reader_that_is_gone_stops_nobody() {
        let (queue, reader) = queue(ignore);
        drop(reader);
        queue.say(b"line\n");
        assert!(queue.drain(Duration::from_secs(20)));
        assert_eq!(queue.shared.dropped.load(Ordering::Relaxed), 1, "for the next reader");
    }
}
